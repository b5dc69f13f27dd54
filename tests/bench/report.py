"""What a run found, as Markdown, JSON and a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

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
    ("other work %", "others_percent"),
    ("spread %", "spread_percent"),
]


def table(name: str, result: dict[str, Any]) -> str:
    rows = result["proxies"]
    columns = [(title, key) for title, key in COLUMNS if any(key in row for row in rows.values())]
    known = {key for _, key in columns} | {"rounds"}
    columns += [(key, key) for key in sorted({key for row in rows.values() for key in row} - known)]
    lines = [f"### {result['title']} (`{name}`)", "", "| proxy | " + " | ".join(title for title, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for proxy, row in rows.items():
        lines.append(f"| {proxy} | " + " | ".join(_text(row.get(key, "")) for _, key in columns) + " |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(out: Path, machine: dict[str, Any], results: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps({"machine": machine, "scenarios": results}, indent=2) + "\n")
    facts = [f"- {key}: {value}" for key, value in machine.items() if key not in ("versions", "calibration")]
    facts += [f"- {version}" for version in machine["versions"].values()]
    facts += [f"- calibration at the {when}: one byte there and back between two processes {run['round_trip_us']} us, "
              f"a fixed loop {run['loop_ms']} ms" for when, run in zip(("start", "end"), machine["calibration"])]
    text = ["# Benchmark", "", *facts, "", *(table(name, result) for name, result in results.items())]
    (out / "bench.md").write_text("\n".join(text))
    (out / "bench.svg").write_text(chart(results))


def chart(results: dict[str, Any]) -> str:
    """CPU for each request, proxy and plugin beside each other: what is needed to serve it."""
    width, left, bar, gap = 860, 220, 16, 26
    rows: list[str] = []
    y = 30
    for result in results.values():
        proxies = {name: row for name, row in result["proxies"].items() if "proxy_cpu_us" in row}
        if not proxies:
            continue
        most = max(row["proxy_cpu_us"] + row["plugin_cpu_us"] for row in proxies.values()) or 1
        rows.append(f'<text x="10" y="{y}" font-weight="bold">{escape(result["title"])}</text>')
        y += 10
        for name, row in proxies.items():
            scale = (width - left - 150) / most
            proxy, plugin = row["proxy_cpu_us"] * scale, row["plugin_cpu_us"] * scale
            figures = f"{row['proxy_cpu_us']:.1f}" + (f" + {row['plugin_cpu_us']:.1f}" if plugin else "") + " us"
            rows.append(
                f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{left}" y="{y}" width="{proxy:.1f}" height="{bar}" fill="#35618f"/>'
                f'<rect x="{left + proxy:.1f}" y="{y}" width="{plugin:.1f}" height="{bar}" fill="#d28f33"/>'
                f'<text x="{left + proxy + plugin + 6:.1f}" y="{y + 12}">{figures}</text>'
            )
            y += bar + 4
        y += gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="14">CPU for each request: '
        '<tspan fill="#35618f">proxy</tspan>, <tspan fill="#d28f33">plugin</tspan></text>' + "".join(rows) + "</svg>\n"
    )
