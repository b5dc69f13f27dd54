"""Compares Palisade with nginx, HAProxy and Envoy: the same work through each in turn, in one run.

    bench.py [--smoke [--install]] [--rounds N] [--seconds S] [--only SCENARIO,...] [--proxies PROXY,...] [--out DIR]

The proxy runs alone on core 0, everything else on core 1; scenarios of two workers are not pinned. Each round runs
every proxy for a few seconds, one after the other, so that what disturbs the machine disturbs all; the median of the
rounds counts. Before the first measurement and after the last a request with and one without the right header are read
to the last byte; during it, every response counts by its status and the sum of all by its size. `docs/performance.md`
has the method in full.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import peers
import report
from load import Failed, check, load
from peers import ROOT, Place, Proxy
from processes import Group, compiler_seconds, cpu_seconds, descendants, memory, own_what_is_started, pin
from scenarios import SCENARIOS, Scenario

# Seconds after which a plugin is measured although its JIT compiler still works.
COMPILED = 60


@dataclass
class Sample:
    """What one proxy did in one round; CPU in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    p999: float
    proxy_cpu: float
    plugin_cpu: float
    # Of `plugin_cpu`, what a JIT compiler in threads of its own took.
    compiler_cpu: float
    # Of each core, from 0 to 1: how busy it was, with whatever.
    cores: list[float]
    # Of all cores, from 0 to 1: work that is none of this run's.
    others: float
    rss_kib: int
    peak_kib: int

    @property
    def cost(self) -> float:
        """CPU microseconds of a request."""
        return (self.proxy_cpu + self.plugin_cpu) / max(1, self.requests) * 1e6

    @property
    def compiles(self) -> bool:
        """Whether a JIT compiler is at work, beyond the function now and then."""
        return self.compiler_cpu > 0.05 * self.plugin_cpu


def measure(scenario: Scenario, proxy: Proxy, place: Place, seconds: float, rate: float = 0,
            warm: bool = True) -> Sample:
    """Loads one proxy and checks what came of it; until it is warm, a verdict may come too late."""
    own, others = processes(proxy)
    # Threads may have come since the last time.
    pin(own, scenario.proxy_cores)
    pin([*others, *(pid for other in others for pid in descendants(other))], scenario.other_cores)
    before = cpu_seconds(own), cpu_seconds(others), machine.busy(), whole_run(), compiler_seconds(others)
    started = time.monotonic()
    got = load(scenario, proxy, place, seconds, rate)
    while not got["requests"] and not got["errors"] and seconds < 16:
        # A busy machine gave it no time.
        seconds *= 2
        got = load(scenario, proxy, place, seconds, rate)
    elapsed = time.monotonic() - started
    after = cpu_seconds(own), cpu_seconds(others), machine.busy(), whole_run(), compiler_seconds(others)
    if warm and (got["status_errors"] or got["errors"] or not got["requests"]):
        raise Failed(f"{proxy.name}: {got['status_errors']} wrong answers, {got['errors']} errors, "
                     f"{got['requests']} requests")
    cores = [new - old for new, old in zip(after[2], before[2])]
    return Sample(got["requests"], got["us"] / 1e6, got["p50"], got["p99"], got["p999"], after[0] - before[0],
                  after[1] - before[1], after[4] - before[4], [core / elapsed for core in cores],
                  max(0, sum(cores) - (after[3] - before[3])) / elapsed / len(cores),
                  sum(map(own_memory, own)), max(memory(pid, "VmHWM") for pid in own))


def processes(proxy: Proxy) -> tuple[list[int], list[int]]:
    """Those of the proxy, and those that decide."""
    # nginx's workers are its children, Palisade's children are its plugins.
    children = descendants(proxy.pid)
    if proxy.is_palisade:
        return [proxy.pid], children
    return [proxy.pid, *children], proxy.auth_pids


def whole_run() -> float:
    """CPU seconds of this process and all that it has started."""
    times = os.times()
    return cpu_seconds(descendants(os.getpid())) + sum(times[:4])


def own_memory(pid: int) -> int:
    """In KiB; pages that processes share count in part for each of them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def idle(proxy: Proxy, most: int) -> dict[str, float]:
    """Memory of connections that have asked once and wait."""
    own, _ = processes(proxy)
    base = sum(map(own_memory, own))
    figures: dict[str, float] = {"rss_mib": round(base / 1024, 1)}
    clients: list[socket.socket] = []
    request = b"GET /hello HTTP/1.1\r\nHost: bench\r\n\r\n"
    try:
        for count in sorted({min(1000, most), most}):
            while len(clients) < count:
                client = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
                clients.append(client)
                client.sendall(request)
                if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise Failed(f"{proxy.name} does not answer connection {len(clients)}")
            figures[f"kib_each_of_{count}"] = round((sum(map(own_memory, own)) - base) / count, 2)
    finally:
        for client in clients:
            client.close()
    return figures


def summary(samples: list[Sample]) -> dict[str, Any]:
    def median(of: Callable[[Sample], float]) -> float:
        return statistics.median(map(of, samples))

    costs = [sample.cost for sample in samples]
    cores = [median(lambda s, core=core: s.cores[core]) for core in range(len(samples[0].cores))]  # type: ignore[misc]
    return {
        "requests_per_second": round(median(lambda s: s.requests / s.seconds)),
        "p50_us": median(lambda s: s.p50),
        "p99_us": median(lambda s: s.p99),
        "p999_us": median(lambda s: s.p999),
        "proxy_cpu_us": round(median(lambda s: s.proxy_cpu / s.requests * 1e6), 2),
        "plugin_cpu_us": round(median(lambda s: s.plugin_cpu / s.requests * 1e6), 2),
        "spread_percent": round((max(costs) - min(costs)) / statistics.median(costs) * 100) if min(costs) else 0,
        "rss_mib": round(median(lambda s: s.rss_kib) / 1024, 1),
        "peak_mib": round(median(lambda s: s.peak_kib) / 1024, 1),
        "cores_percent": [round(core * 100) for core in cores],
        "others_percent": round(max(sample.others for sample in samples) * 100),
        "rounds": len(samples),
    }


def warm_up(scenario: Scenario, proxy: Proxy, place: Place, smoke: bool) -> Sample:
    """Pools, caches: loads it until what a request costs stays within 5 % three times in a row.

    A JIT compiler is given more time than that: while it has work to do, a request may cost the same for 10 s, in code
    that is not worth being measured, with the compiler's own time on top.
    """
    least, most = (1, 1) if smoke else scenario.settles
    step = 1 if most <= 2 else 2
    started = time.monotonic()
    samples: list[Sample] = []
    while True:
        samples.append(measure(scenario, proxy, place, step, warm=False))
        spent = time.monotonic() - started
        last = samples[-3:]
        costs = [sample.cost for sample in last]
        settled = spent >= most or (spent >= least and len(last) == 3 and max(costs) < 1.05 * min(costs))
        if settled and (smoke or spent >= COMPILED or not any(sample.compiles for sample in last)):
            return samples[-1]


def run(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    """Every proxy in every round; the medians."""
    with tempfile.TemporaryDirectory(prefix="pb-") as directory:
        scratch = Path(directory)
        # nginx's workers may be of another user.
        scratch.chmod(0o755)
        group = Group(scratch)
        place = Place(scratch, options.programs, ROOT / ".venv/bin/python",
                      ROOT / "plugins-java/samples/target/header-auth.jar", group, scenario.workers,
                      certificate(scratch) if scenario.tls else None, scenario.http2, scenario.proxy_cores,
                      scenario.other_cores)
        try:
            proxies = scenario.proxies(place, peers.upstream(place))
            if options.proxies:
                proxies = [proxy for proxy in proxies if proxy.name in options.proxies]
            for proxy in proxies:
                check(scenario, proxy, within=30)
            if scenario.idle:
                # Palisade keeps half of its descriptors for upstreams, and some of the other half.
                most = min(scenario.idle, peers.FILES // 2 - 500) if not options.smoke else 100
                return {proxy.name: idle(proxy, most) for proxy in proxies}
            rates = dict.fromkeys((proxy.name for proxy in proxies), 0.0)
            if scenario.share or not options.smoke:
                for proxy in proxies:
                    sample = warm_up(scenario, proxy, place, options.smoke)
                    rates[proxy.name] = scenario.share * sample.requests / sample.seconds
            samples: dict[str, list[Sample]] = {proxy.name: [] for proxy in proxies}
            seconds = min(options.seconds, scenario.seconds or options.seconds)
            for _ in range(options.rounds):
                for proxy in proxies:
                    samples[proxy.name].append(measure(scenario, proxy, place, seconds, rates[proxy.name]))
            for proxy in proxies:
                # Where clients go all at once, Envoy cancels so many calls that a server of tonic ends the connection.
                check(scenario, proxy, within=10)
            return {name: summary(of) for name, of in samples.items()}
        except Exception:
            tell(scratch)
            raise
        finally:
            group.end()


def tell(scratch: Path) -> None:
    """The last words of all that ran."""
    for log in sorted(scratch.glob("*.out")) + sorted(scratch.glob("*.log")):
        text = log.read_text(errors="replace")[-2000:]
        if text and log.name != "h2load.log":
            print(f"--- {log.name}\n{text}", file=sys.stderr)


def certificate(scratch: Path) -> Path:
    """A self-signed ECDSA certificate."""
    folder = scratch / "certs"
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-days", "7", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one short round of some: sees that it works")
    parser.add_argument("--install", action="store_true", help="with --smoke: installs what is missing, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of each round, whole ones")
    parser.add_argument("--only", default="", help="names of scenarios, joined by commas")
    parser.add_argument("--proxies", default="", help="names of proxies, joined by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "bench")
    parser.add_argument("--programs", type=Path, default=ROOT / "target" / "release")
    options = parser.parse_args()
    options.programs, options.out = options.programs.resolve(), options.out.resolve()
    options.proxies = [name for name in options.proxies.split(",") if name]
    if options.smoke:
        options.rounds, options.seconds = 1, 1
    wanted = [name for name in options.only.split(",") if name]
    unknown = set(wanted) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SCENARIOS)}")
    if options.install or not options.smoke:
        peers.install()
    elif lacking := [name for name in ("nginx", "wrk", "h2load", "curl") if not peers.there(name)]:
        print(f"skipped: {' and '.join(lacking)} not installed (`make bench` installs what it compares with)")
        return
    own_what_is_started()
    resource.setrlimit(resource.RLIMIT_NOFILE, (peers.FILES, peers.FILES))
    started = time.monotonic()
    facts = machine.description() | {
        "rounds": options.rounds, "seconds": options.seconds,
        "versions": peers.versions(options.programs), "calibration": [machine.calibration()],
    }
    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        if scenario.name not in wanted if wanted else options.smoke and not scenario.smoke:
            continue
        begun = time.monotonic()
        result: dict[str, Any] = {"title": scenario.title, "proxies": {}}
        try:
            result["proxies"] = run(scenario, options)
        # The others are worth having all the same.
        except Exception as error:
            result["failed"] = str(error) if isinstance(error, Failed) else repr(error)
        result["took_seconds"] = round(time.monotonic() - begun, 1)
        results[scenario.name] = result
        # What there is stays, should the run be ended.
        report.write(options.out, facts, results)
        print(report.table(scenario.name, result), flush=True)
    facts["calibration"].append(machine.calibration())
    facts["minutes"] = round((time.monotonic() - started) / 60, 1)
    report.write(options.out, facts, results)
    print(report.overview(facts, results))
    print(f"written to {options.out}")
    if failed := [name for name, result in results.items() if "failed" in result]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
