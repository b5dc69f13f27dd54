"""Compares Palisade with nginx, HAProxy and Envoy: the same work through each in turn, in one run.

    bench.py [--smoke] [--rounds N] [--seconds S] [--only SCENARIO,...] [--out DIR]

The proxy runs alone on core 0, everything else on core 1; scenarios of two workers are not pinned. Each round runs every
proxy for a few seconds, one after the other, so that what disturbs the machine disturbs all; the median of the rounds
counts. Before each measurement a request with and one without the right header are read to the last byte; during it,
every response counts by its status and the sum of all by its size. `docs/performance.md` has the method in full.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import report
from peers import HERE, ROOT, Place, Proxy
from processes import Group, cpu_seconds, descendants, memory, pin

PROXY_CORES, OTHER_CORES = {0}, {1}


@dataclass(frozen=True)
class Scenario:
    """One kind of work, and who does it."""

    name: str
    title: str
    proxies: Callable[[Place, int], list[Proxy]]
    connections: int = 64
    path: str = "/hello"
    expected: int = 200
    user: str = "admin"
    upload: int = 0
    http2: bool = False
    tls: bool = False
    workers: int = 1
    pinned: bool = True
    # Of the requests/s that the proxy did in a closed loop just before; open loop.
    share: float = 0
    idle: int = 0
    smoke: bool = False


def plain(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, None), peers.nginx_proxy(place, upstream, None)]
    if peers.there("haproxy"):
        proxies.append(peers.haproxy(place, upstream))
    return proxies + envoy(place, upstream, None)


def rust(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, "rust"), peers.nginx_proxy(place, upstream, "http")]
    return proxies + envoy(place, upstream, "rust")


def python(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, plugin) for plugin in ("python", "python-async")]
    return proxies + envoy(place, upstream, "python")


def java(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, "java"), *envoy(place, upstream, "java")]


def envoy(place: Place, upstream: int, auth: str | None) -> list[Proxy]:
    return [peers.envoy(place, upstream, auth)] if peers.envoy_program() else []


SCENARIOS = [
    Scenario("plain", "Plain HTTP/1.1, 64 connections", plain, smoke=True),
    Scenario("auth-rust", "A decision by a Rust process", rust, smoke=True),
    Scenario("auth-python", "A decision by a Python process", python),
    Scenario("auth-java", "A decision by a Java process", java),
    Scenario("deny", "Denied by a Rust process", rust, expected=403, user="guest", smoke=True),
    Scenario("plain-1", "Plain, one connection", plain, connections=1),
    Scenario("auth-1", "A decision by a Rust process, one connection", rust, connections=1),
    Scenario("plain-512", "Plain, 512 connections", plain, connections=512),
    Scenario("auth-512", "A decision by a Rust process, 512 connections", rust, connections=512),
    Scenario("half", "A decision by a Rust process, open loop at half load", rust, share=0.5),
    Scenario("http2", "HTTP/2 clients", plain, http2=True, connections=8),
    Scenario("tls", "TLS, keep-alive", plain, tls=True),
    Scenario("down-64k", "Responses of 64 KiB", plain, path="/64k"),
    Scenario("down-1m", "Responses of 1 MiB", plain, path="/1m", connections=16),
    Scenario("up-64k", "Requests of 64 KiB", plain, path="/take", upload=64 * 1024),
    Scenario("up-1m", "Requests of 1 MiB", plain, path="/take", upload=1024 * 1024, connections=16),
    Scenario("two", "Plain, two workers", plain, workers=2, pinned=False),
    Scenario("two-auth", "A decision by a Rust process, two workers", rust, workers=2, pinned=False),
    Scenario("idle", "Idle keep-alive connections", plain, idle=10_000),
]


@dataclass
class Sample:
    """What one proxy did in one round."""

    requests: int
    seconds: float
    p50: float
    p99: float
    p999: float
    proxy_cpu: float
    plugin_cpu: float
    load_cpu: float
    extra: dict[str, float] = field(default_factory=dict)


def ask(proxy: Proxy, path: str, user: str) -> tuple[int, bytes]:
    """One request, its answer read whole."""
    if proxy.tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", proxy.port, timeout=10, context=context)
    else:
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        client.request("GET", path, headers={"user": user})
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def check(scenario: Scenario, proxy: Proxy) -> None:
    """Sees that the proxy does the work: the right answer to the right request, none to the wrong one."""
    judged = "auth" in proxy.name or "-" in proxy.name
    wanted = {"/64k": b"x" * (64 << 10), "/1m": b"x" * (1 << 20), "/take": b"taken\n"}
    path = scenario.path
    status, body = ask(proxy, path, "admin")
    if (status, body) != (200, wanted.get(path, b"hello, world\n")):
        sys.exit(f"{scenario.name}: {proxy.name} answers {status} {body[:80]!r} to whom it should let pass")
    status, body = ask(proxy, path, "guest")
    if status != (403 if judged else 200):
        sys.exit(f"{scenario.name}: {proxy.name} answers {status} to whom it should {'deny' if judged else 'pass'}")


def response_size(scenario: Scenario, proxy: Proxy) -> int:
    """Bytes of one response on a kept connection, head and body."""
    body = b"x" * scenario.upload
    head = f"{'POST' if body else 'GET'} {scenario.path} HTTP/1.1\r\nHost: bench\r\nuser: {scenario.user}\r\n"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        answers = client.makefile("rb")
        # The second is like all that follow.
        for _ in range(2):
            client.sendall(head.encode() + b"\r\n" + body)
            size = length = 0
            for line in iter(answers.readline, b"\r\n"):
                if not line:
                    sys.exit(f"{scenario.name}: {proxy.name} closes the connection")
                size += len(line)
                name, _, value = line.lower().partition(b":")
                if name == b"content-length":
                    length = int(value)
            size += 2 + len(answers.read(length))
    return size


def wrk(scenario: Scenario, proxy: Proxy, seconds: float) -> dict[str, Any]:
    scheme = "https" if proxy.tls else "http"
    command = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "--latency",
               "-H", f"user: {scenario.user}", "-s", str(HERE / "wrk.lua"),
               f"{scheme}://127.0.0.1:{proxy.port}{scenario.path}"]
    if scenario.upload:
        command += ["--", "POST", str(scenario.upload)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=pinned(scenario))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{scenario.name}: wrk failed:\n{done.stdout}{done.stderr}")
    return dict(json.loads(lines[-1]))


def pinned(scenario: Scenario) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, OTHER_CORES) if scenario.pinned else None


def h2load(scenario: Scenario, proxy: Proxy, seconds: float, rate: float, place: Place) -> dict[str, Any]:
    """HTTP/2, and open loops: each response's time and status are in its log."""
    log = place.scratch / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", f"-c{scenario.connections}", f"-D{max(1, round(seconds))}", "-H", f"user: {scenario.user}",
               f"--log-file={log}"]
    if scenario.http2:
        command += ["-m8"]
    else:
        command += ["--h1"]
    if rate:
        command += [f"--rps={max(1, round(rate / scenario.connections))}"]
    command.append(f"{'https' if proxy.tls else 'http'}://127.0.0.1:{proxy.port}{scenario.path}")
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=pinned(scenario))
    rows = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    times = sorted(int(row[2]) for row in rows)
    if not times:
        sys.exit(f"{scenario.name}: h2load failed:\n{done.stdout}{done.stderr}")

    def at(share: float) -> int:
        return times[min(len(times) - 1, int(len(times) * share))]

    wrong = sum(row[1] != str(scenario.expected) for row in rows)
    return {"requests": len(rows), "us": seconds * 1e6, "status_errors": wrong, "errors": 0, "bytes": 0,
            "p50": at(0.5), "p99": at(0.99), "p999": at(0.999)}


def measure(scenario: Scenario, proxy: Proxy, seconds: float, place: Place, rate: float = 0) -> Sample:
    """Loads one proxy and checks what came of it."""
    children = descendants(proxy.pid)
    is_palisade = proxy.name.startswith("palisade")
    # nginx's workers are its children, Palisade's children are its plugins.
    own = [proxy.pid] if is_palisade else [proxy.pid, *children]
    others = proxy.auth_pids + (children if is_palisade else [])
    if scenario.pinned:
        pin(own, PROXY_CORES)
        pin([*others, *(pid for other in others for pid in descendants(other))], OTHER_CORES)
    by_h2load = scenario.http2 or rate > 0
    size = 0 if by_h2load or proxy.tls else response_size(scenario, proxy)
    before = cpu_seconds(own), cpu_seconds(others), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    got = h2load(scenario, proxy, seconds, rate, place) if by_h2load else wrk(scenario, proxy, seconds)
    elapsed = time.monotonic() - started
    after = cpu_seconds(own), cpu_seconds(others), resource.getrusage(resource.RUSAGE_CHILDREN)
    requests = got["requests"]
    # wrk counts every status from 400 as an error.
    wrong = got["status_errors"] if by_h2load or scenario.expected < 400 else requests - got["status_errors"]
    if wrong or got["errors"] or not requests:
        sys.exit(f"{scenario.name}: {proxy.name}: {wrong} wrong answers, {got['errors']} errors, {requests} requests")
    if size:
        # Responses that were cut off by the end count in bytes only.
        surplus = got["bytes"] - requests * size
        if not -scenario.connections * size <= surplus <= scenario.connections * (size + 65536):
            sys.exit(f"{scenario.name}: {proxy.name}: {got['bytes']} bytes in {requests} responses of {size}")
    load = sum(getattr(after[2], part) - getattr(before[2], part) for part in ("ru_utime", "ru_stime"))
    return Sample(requests, elapsed if not by_h2load else seconds, got["p50"], got["p99"], got["p999"],
                  after[0] - before[0], after[1] - before[1], load,
                  {"rss_kib": sum(map(memory_of, own)), "peak_kib": max(memory(pid, "VmHWM") for pid in own)})


def memory_of(pid: int) -> int:
    """What is its own: pages that nginx's processes share would count for each of them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def idle(scenario: Scenario, proxy: Proxy) -> dict[str, float]:
    """Memory of connections that have asked once and wait."""
    own = [proxy.pid, *(descendants(proxy.pid) if not proxy.name.startswith("palisade") else [])]
    base = sum(map(memory_of, own))
    figures: dict[str, float] = {"rss_kib": base}
    clients: list[socket.socket] = []
    request = b"GET /hello HTTP/1.1\r\nHost: bench\r\n\r\n"
    most = min(scenario.idle, peers.FILES // 2 - 500)
    try:
        for count in sorted({min(1000, most), most}):
            while len(clients) < count:
                client = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
                clients.append(client)
                client.sendall(request)
                if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                    sys.exit(f"{scenario.name}: {proxy.name} does not answer connection {len(clients)}")
            figures[f"kib_each_of_{count}"] = round((sum(map(memory_of, own)) - base) / count, 2)
    finally:
        for client in clients:
            client.close()
    return figures


def saturated(scenario: Scenario, sample: Sample) -> str:
    """Which core had no time left."""
    proxy = sample.proxy_cpu / sample.seconds / scenario.workers
    other = (sample.plugin_cpu + sample.load_cpu) / sample.seconds
    if not scenario.pinned:
        return f"both cores {100 * (sample.proxy_cpu + sample.plugin_cpu + sample.load_cpu) / sample.seconds / 2:.0f} %"
    full = [name for name, share in (("proxy", proxy), ("load + plugin + upstream", other)) if share > 0.9]
    return " and ".join(full) or f"nothing (proxy {100 * proxy:.0f} %)"


def summary(scenario: Scenario, samples: list[Sample]) -> dict[str, Any]:
    def median(of: Callable[[Sample], float]) -> float:
        return statistics.median(map(of, samples))

    return {
        "requests_per_second": round(median(lambda s: s.requests / s.seconds)),
        "p50_us": median(lambda s: s.p50),
        "p99_us": median(lambda s: s.p99),
        "p999_us": median(lambda s: s.p999),
        "proxy_cpu_us": round(median(lambda s: s.proxy_cpu / s.requests * 1e6), 2),
        "plugin_cpu_us": round(median(lambda s: s.plugin_cpu / s.requests * 1e6), 2),
        "rss_mib": round(median(lambda s: s.extra["rss_kib"]) / 1024, 1),
        "peak_mib": round(median(lambda s: s.extra["peak_kib"]) / 1024, 1),
        "saturated": saturated(scenario, sorted(samples, key=lambda s: s.requests)[len(samples) // 2]),
        "rounds": len(samples),
    }


def run(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    """Every proxy in every round; the medians."""
    with tempfile.TemporaryDirectory(prefix="pb-") as directory:
        scratch = Path(directory)
        # nginx's workers may be of another user.
        scratch.chmod(0o755)
        group = Group(scratch)
        place = Place(scratch, options.programs, ROOT / ".venv/bin/python",
                      ROOT / "plugins-java/samples/target/header-auth.jar", group, scenario.workers)
        if scenario.tls:
            place.certificate = certificate(scratch)
        try:
            upstream = peers.upstream(place)
            if scenario.pinned:
                pin(group.pids(), OTHER_CORES)
            proxies = scenario.proxies(place, upstream)
            if options.proxies:
                proxies = [proxy for proxy in proxies if proxy.name in options.proxies]
            for proxy in proxies:
                check(scenario, proxy)
            if scenario.idle:
                return {proxy.name: idle(scenario, proxy) for proxy in proxies}
            rates = dict.fromkeys((proxy.name for proxy in proxies), 0.0)
            samples: dict[str, list[Sample]] = {proxy.name: [] for proxy in proxies}
            for round_ in range(options.rounds + 1):
                for proxy in proxies:
                    # The first round warms up: pools, caches, the JIT compiler.
                    sample = measure(scenario, proxy, options.seconds if round_ else options.warm_up, place,
                                     rates[proxy.name])
                    if round_:
                        samples[proxy.name].append(sample)
                    elif scenario.share:
                        rates[proxy.name] = scenario.share * sample.requests / sample.seconds
            for proxy in proxies:
                check(scenario, proxy)
            return {name: summary(scenario, of) for name, of in samples.items()}
        except BaseException:
            for log in sorted(scratch.glob("*.out")) + sorted(scratch.glob("*.log")):
                text = log.read_text(errors="replace")[-2000:]
                if text:
                    print(f"--- {log.name}\n{text}", file=sys.stderr)
            raise
        finally:
            group.end()


def certificate(scratch: Path) -> Path:
    """A self-signed ECDSA certificate."""
    folder = scratch / "certs"
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "7",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "key.pem").chmod(0o644)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one short round: sees that it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warm-up", type=float, default=3)
    parser.add_argument("--only", default="", help="names of scenarios, joined by commas")
    parser.add_argument("--proxies", default="", help="names of proxies, joined by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "bench")
    parser.add_argument("--programs", type=Path, default=ROOT / "target" / "release")
    options = parser.parse_args()
    options.programs, options.out = options.programs.resolve(), options.out.resolve()
    options.proxies = [name for name in options.proxies.split(",") if name]
    if options.smoke:
        options.rounds, options.seconds, options.warm_up = 1, 1, 1
    wanted = [name for name in options.only.split(",") if name]
    unknown = set(wanted) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SCENARIOS)}")
    if not options.smoke:
        peers.install()
    elif lacking := [name for name in ("nginx", "wrk") if not peers.there(name)]:
        print(f"skipped: {' and '.join(lacking)} not installed (`make bench` installs what it compares with)")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    results: dict[str, Any] = {}
    started = time.monotonic()
    for scenario in SCENARIOS:
        if scenario.name not in wanted if wanted else options.smoke and not scenario.smoke:
            continue
        results[scenario.name] = {"title": scenario.title, "proxies": run(scenario, options)}
        print(report.table(scenario.name, results[scenario.name]), flush=True)
    place = Place(Path(), options.programs, Path(), Path(), Group(Path()))
    machine = {
        "cpu": next((line.split(": ", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(), "kernel": platform.release(), "minutes": round((time.monotonic() - started) / 60, 1),
        "load_average": os.getloadavg()[2], "rounds": options.rounds, "seconds": options.seconds,
        "versions": peers.versions(place),
    }
    report.write(options.out, machine, results)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
