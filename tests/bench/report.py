"""What a run found, as Markdown, JSON and a chart.

    report.py DIRECTORY     # writes bench.md and bench.svg anew, from its bench.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chart import chart

Results = dict[str, Any]

COLUMNS = [
    ("proxy CPU us/req", "proxy_cpu_us"),
    ("plugin CPU us/req", "plugin_cpu_us"),
    ("requests/s", "requests_per_second"),
    ("p50 us", "p50_us"),
    ("p99 us", "p99_us"),
    ("p99.9 us", "p999_us"),
    ("RSS MiB", "rss_mib"),
    ("most MiB", "peak_mib"),
    ("cores %", "cores_percent"),
    ("saturated", "saturated"),
    ("other work %", "others_percent"),
    ("spread %", "spread_percent"),
]

PLAIN = {"Palisade": "palisade", "nginx": "nginx", "HAProxy": "haproxy", "Envoy": "envoy"}
RUST = {"Palisade": "palisade-rust", "nginx": "nginx-auth_request", "Envoy": "envoy-rust"}
# Rows of the tables of docs/performance.md: what it is called there, the scenario, and whose figure is in which column.
WORK = [
    ("plain", "plain", PLAIN),
    ("a decision by a Rust process", "auth-rust", RUST),
    ("a decision by a Python process", "auth-python", {"Palisade": "palisade-python", "Envoy": "envoy-python"}),
    ("the same, as a coroutine", "auth-python", {"Palisade": "palisade-python-async", "Envoy": "envoy-python"}),
    ("a decision by a Java process", "auth-java", {"Palisade": "palisade-java", "Envoy": "envoy-java"}),
    ("over MOSN's contract, by a Python process", "auth-mosn", {"Palisade": "palisade-mosn-python"}),
    ("over MOSN's contract, by a Go process", "auth-mosn", {"Palisade": "palisade-mosn-go"}),
    ("denied by a Rust process", "deny", RUST),
    ("plain, one connection", "plain-1", PLAIN),
    ("a decision by a Rust process, one connection", "auth-1", RUST),
    ("plain, 512 connections", "plain-512", PLAIN),
    ("a decision by a Rust process, 512 connections", "auth-512", RUST),
    ("HTTP/2 clients", "http2", PLAIN),
    ("TLS, keep-alive", "tls", PLAIN),
    ("full TLS handshakes", "tls-full", PLAIN),
    ("resumed TLS handshakes", "tls-resumed", PLAIN),
    ("requests of 64 KiB", "up-64k", PLAIN),
    ("requests of 1 MiB", "up-1m", PLAIN),
    ("responses of 64 KiB", "down-64k", PLAIN),
    ("responses of 1 MiB", "down-1m", PLAIN),
    ("plain, two workers", "two", PLAIN),
    ("a decision by a Rust process, two workers", "two-auth", RUST),
]
LATENCIES = ["plain, one connection", "a decision by a Rust process, one connection", "plain",
             "a decision by a Rust process", "plain, 512 connections", "a decision by a Rust process, 512 connections"]
GROWTH = {"headers": "header fields", "routes": "routes", "idle-plugins": "idle plugins", "filters": "filters",
          "connections": "connections"}


def write(out: Path, machine: dict[str, Any], results: Results) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps({"machine": machine, "scenarios": results}, indent=2) + "\n")
    (out / "bench.md").write_text(markdown(machine, results))
    (out / "bench.svg").write_text(chart(results))


def markdown(machine: dict[str, Any], results: Results) -> str:
    """All that is to be said."""
    figures = (table(name, result) for name, result in results.items())
    return "\n".join([overview(machine, results), "## All figures\n", *figures])


def overview(machine: dict[str, Any], results: Results) -> str:
    """The tables of docs/performance.md, and what goes before them."""
    facts = [f"- {key.replace('_', ' ')}: {value}" for key, value in machine.items()
             if key not in ("versions", "calibration")]
    facts += [f"- {version}" for version in machine["versions"].values()]
    facts += [f"- calibration at the {when}: one byte there and back between processes on the two cores "
              f"{run['round_trip_us']} us; one request in a thousand at half load, for the machine's sake alone, "
              f"{run['half_load_p999_us']:,} us; a fixed loop {run['loop_ms']} ms"
              for when, run in zip(("start", "end"), machine["calibration"])]
    parts = [
        "# Benchmark\n\n" + "\n".join(facts) + "\n",
        "## Goals\n\n" + goals(machine, results),
        "## Against others\n\nCPU of the proxy, and of the plugin, for each request, in microseconds:\n\n"
        + against_others(machine, results, cpu),
        "Requests (or handshakes) per second:\n\n" + against_others(machine, results, rate),
        "Latency in microseconds, p50 / p99 / p99.9:\n\n" + latency(machine, results),
        "Memory:\n\n" + memory(results),
        "## How cost grows\n\nCPU of Palisade, and of its plugins, for each request, in microseconds:\n\n"
        + growth(results),
        "## Tuning\n\nRequests per second, and CPU of Palisade and of its plugins for each:\n\n" + tuning(results),
    ]
    return "\n".join(parts)


def table(name: str, result: dict[str, Any]) -> str:
    """All figures of one scenario."""
    rows = {proxy: row | saturated(row) for proxy, row in result["proxies"].items()}
    columns = [(title, key) for title, key in COLUMNS if any(key in row for row in rows.values())]
    known = {key for _, key in columns} | {"rounds"}
    columns += [(key.replace("_", " "), key) for key in dict.fromkeys(key for row in rows.values() for key in row)
                if key not in known]
    lines = [[proxy, *(_text(row.get(key, "")) for _, key in columns)] for proxy, row in rows.items()]
    head = f"### {result['title']} (`{name}`)\n\n"
    if "failed" in result:
        return f"{head}Failed: {result['failed']}\n"
    return head + _table(["proxy", *(title for title, _ in columns)], lines)


def saturated(row: dict[str, Any]) -> dict[str, str]:
    """The cores that had no time left."""
    if "cores_percent" not in row:
        return {}
    full = [f"core {core}" for core, percent in enumerate(row["cores_percent"]) if percent >= 95]
    return {"saturated": " and ".join(full) or "nothing"}


def against_others(machine: dict[str, Any], results: Results, cell: Callable[[dict[str, Any]], str]) -> str:
    """Rows of `WORK` that were measured."""
    lines = []
    for title, scenario, names in WORK:
        found = {peer: row for peer in PLAIN if (row := _row(results, scenario, names.get(peer, "")))}
        if "Palisade" in found:
            lines.append([title, *(cell(found[peer]) if peer in found else "" for peer in PLAIN)])
    return _table(["work", *_peers(machine)], lines)


def _peers(machine: dict[str, Any]) -> list[str]:
    """With their versions, as far as two numbers."""
    names = []
    for peer in PLAIN:
        version = re.search(r"\d+\.\d+", machine["versions"].get(peer.lower(), ""))
        names.append(f"{peer} {version[0]}" if version and peer != "Palisade" else peer)
    return names


def _row(results: Results, scenario: str, proxy: str) -> dict[str, Any] | None:
    row: dict[str, Any] | None = results.get(scenario, {}).get("proxies", {}).get(proxy)
    return row


def cpu(row: dict[str, Any]) -> str:
    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 200 else f"{value:.1f}"

    return " + ".join(short(row[key]) for key in ("proxy_cpu_us", "plugin_cpu_us") if row[key] >= 0.05)


def rate(row: dict[str, Any]) -> str:
    """To three digits."""
    value = row["requests_per_second"]
    return f"{round(value, 3 - len(str(value))):,}"


def latency(machine: dict[str, Any], results: Results) -> str:
    def all_three(row: dict[str, Any]) -> str:
        return " / ".join(f"{round(row[key]):,}" for key in ("p50_us", "p99_us", "p999_us"))

    works = [next(work for work in WORK if work[0] == title) for title in LATENCIES]
    works.append(("a decision by a Rust process, half load", "half", RUST))
    lines = []
    for title, scenario, names in works:
        found = {peer: row for peer in PLAIN if (row := _row(results, scenario, names.get(peer, "")))}
        if found:
            lines.append([title, *(all_three(found[peer]) if peer in found else "" for peer in PLAIN)])
    added = {peer: _added(results, peer) for peer in PLAIN}
    if any(added.values()):
        # A round trip is two wake-ups.
        wake_up = min(run["round_trip_us"] for run in machine["calibration"]) / 2
        lines.append(["what a decision adds to p50 on one connection",
                      *(f"{us:.0f}, {us / wake_up:.1f} wake-ups" if (us := added[peer]) else "" for peer in PLAIN)])
    return _table(["work", *_peers(machine)], lines)


def _added(results: Results, peer: str) -> float | None:
    without, with_ = _row(results, "plain-1", PLAIN[peer]), _row(results, "auth-1", RUST.get(peer, ""))
    return with_["p50_us"] - without["p50_us"] if without and with_ else None


def memory(results: Results) -> str:
    lines = []
    idle = {peer: row for peer in PLAIN if (row := _row(results, "idle", PLAIN[peer]))}
    if idle:
        lines.append(["without connections, MiB",
                      *(str(idle[peer]["rss_mib"]) if peer in idle else "" for peer in PLAIN)])
        for key in next(iter(idle.values())):
            if count := re.fullmatch(r"kib_each_of_(\d+)", key):
                lines.append([f"an idle keep-alive connection, KiB (of {int(count[1]):,})",
                              *(f"{idle[peer][key]:.1f}" if peer in idle else "" for peer in PLAIN)])
    for title, scenario in (("most, with requests of 1 MiB, MiB", "up-1m"),
                            ("most, with responses of 1 MiB, MiB", "down-1m")):
        rows = {peer: row for peer in PLAIN if (row := _row(results, scenario, PLAIN[peer]))}
        if rows:
            lines.append([title, *(str(rows[peer]["peak_mib"]) if peer in rows else "" for peer in PLAIN)])
    return _table(["memory", *PLAIN], lines)


def growth(results: Results) -> str:
    tables = []
    for scenario, title in GROWTH.items():
        # Named `palisade 5 headers` and `palisade 5 headers, a decision`.
        plain: dict[str, str] = {}
        decided: dict[str, str] = {}
        for name, row in results.get(scenario, {}).get("proxies", {}).items():
            (decided if name.endswith("a decision") else plain)[f"{int(name.split()[1]):,}"] = cpu(row)
        if plain:
            lines = [["plain" if decided or scenario != "filters" else "a Rust process each", *plain.values()]]
            lines += [["a decision by a Rust process", *decided.values()]] if decided else []
            tables.append(_table([title, *plain], lines))
    return "\n".join(tables) or _table([], [])


def tuning(results: Results) -> str:
    lines = [[result["title"], name.removeprefix("palisade "), rate(row), cpu(row)]
             for scenario, result in results.items() if scenario.startswith("tuning-")
             for name, row in result["proxies"].items()]
    return _table(["work", "with", "requests/s", "CPU, us"], lines)


def goals(machine: dict[str, Any], results: Results) -> str:
    """What this run has of the figures that are aimed at. A row whose figures are not all there is left out."""
    def cost(scenario: str, proxy: str) -> float:
        row = results[scenario]["proxies"][proxy]
        return float(row["proxy_cpu_us"] + row["plugin_cpu_us"])

    def speed(scenario: str, proxy: str) -> float:
        return float(results[scenario]["proxies"][proxy]["requests_per_second"])

    def times(scenario: str, mine: str, other: str) -> float:
        return speed(scenario, mine) / speed(scenario, other)

    def added() -> float:
        if (us := _added(results, "Palisade")) is None:
            raise KeyError("plain-1 or auth-1")
        return us

    def half() -> float:
        row = results["half"]["proxies"]["palisade-rust"]
        return float(row["p999_us"] / row["p50_us"])

    def idle() -> dict[str, float]:
        return dict(results["idle"]["proxies"]["palisade"])

    wanted: list[tuple[str, str, float, Callable[[], float]]] = [
        ("plain: CPU, times nginx's", "<=", 1.1, lambda: cost("plain", "palisade") / cost("plain", "nginx")),
        ("plain: requests/s, times Envoy's", ">=", 2, lambda: times("plain", "palisade", "envoy")),
        ("a decision in Rust: CPU of proxy and plugin, times nginx's", "<=", 0.85,
         lambda: cost("auth-rust", "palisade-rust") / cost("auth-rust", "nginx-auth_request")),
        ("a decision in Rust: requests/s, times Envoy's", ">=", 6,
         lambda: times("auth-rust", "palisade-rust", "envoy-rust")),
        ("a decision in Python: requests/s, times Envoy's", ">=", 6,
         lambda: times("auth-python", "palisade-python", "envoy-python")),
        ("the same, as a coroutine", ">=", 6, lambda: times("auth-python", "palisade-python-async", "envoy-python")),
        ("a decision in Java: requests/s, times Envoy's", ">=", 4,
         lambda: times("auth-java", "palisade-java", "envoy-java")),
        ("what a decision adds to p50 on one connection, us", "<=", 40, added),
        ("p99.9 at half load, times p50", "<=", 5, half),
        *((f"{title}: requests/s, times {peer}'s", ">=", goal,
           lambda scenario=scenario, peer=peer: times(scenario, "palisade", peer.lower()))
          for title, scenario in (("HTTP/2 clients", "http2"), ("TLS, keep-alive", "tls"))
          for peer, goal in (("Envoy", 1.5), ("nginx", 0.9))),
        ("responses of 1 MiB: as many as nginx, times", ">=", 0.9, lambda: times("down-1m", "palisade", "nginx")),
        ("requests of 1 MiB: as many as nginx, times", ">=", 0.9, lambda: times("up-1m", "palisade", "nginx")),
        ("an idle connection, KiB", "<=", 8, lambda: list(idle().values())[-1]),
        ("without connections, MiB", "<=", 15, lambda: idle()["rss_mib"]),
        ("10,000 routes: CPU, times that with 1", "<=", 1.1,
         lambda: cost("routes", "palisade 10000 routes") / cost("routes", "palisade 1 routes")),
        ("100 idle plugins: CPU, times that with 1", "<=", 1.1,
         lambda: cost("idle-plugins", "palisade 100 idle plugins") / cost("idle-plugins", "palisade 1 idle plugins")),
    ]
    lines = []
    for title, sense, goal, measured in wanted:
        try:
            value = measured()
        except (KeyError, ZeroDivisionError):
            continue
        reached = value <= goal if sense == "<=" else value >= goal
        lines.append([title, f"{sense} {goal:g}", f"{value:#.3g}", "reached" if reached else "missed"])
    return _table(["what", "goal", "measured", ""], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return "Not measured in this run.\n"
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |").replace("|  |", "| |") for row in rows)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    run = json.loads((directory / "bench.json").read_text())
    write(directory, run["machine"], run["scenarios"])
