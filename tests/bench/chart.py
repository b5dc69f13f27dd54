"""The chart: CPU for each request, proxy and plugin beside each other, which is what is needed to serve it."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

COLUMNS, PANEL, NAMES, FIGURES = 2, 560, 190, 100
BAR, GAP = 15, 26
# Proxy and plugin: Palisade's own, and others'.
OWN, OTHERS = ("#1f5a96", "#d9822b"), ("#9fb3c8", "#ecc89b")


def chart(results: dict[str, Any]) -> str:
    """A panel for each scenario, with a scale of its own, in two columns."""
    heights = [20] * COLUMNS
    panels: list[str] = []
    for result in results.values():
        rows = {name: row for name, row in result["proxies"].items() if "proxy_cpu_us" in row}
        if rows:
            column = heights.index(min(heights))
            panel, height = _panel(result["title"], rows)
            panels.append(f'<g transform="translate({column * PANEL + 10}, {heights[column] + 16})">{panel}</g>')
            heights[column] += height
    width, height = COLUMNS * PANEL + 10, max(heights) + 10
    legend = (f'CPU for each request in microseconds: Palisade (<tspan fill="{OWN[0]}">proxy</tspan> + '
              f'<tspan fill="{OWN[1]}">plugin</tspan>), others (<tspan fill="{OTHERS[0]}">proxy</tspan> + '
              f'<tspan fill="{OTHERS[1]}">plugin</tspan>)')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="12">'
            f'<rect width="100%" height="100%" fill="white"/><text x="10" y="18" font-size="14">{legend}</text>'
            + "".join(panels) + "</svg>\n")


def _panel(title: str, rows: dict[str, dict[str, Any]]) -> tuple[str, int]:
    """Its elements and its height."""
    most = max(row["proxy_cpu_us"] + row["plugin_cpu_us"] for row in rows.values()) or 1
    scale = (PANEL - NAMES - FIGURES - 20) / most
    parts = [f'<text x="0" y="14" font-weight="bold">{escape(title)}</text>']
    y = 22
    for name, row in rows.items():
        colours = OWN if name.startswith("palisade") else OTHERS
        proxy, plugin = row["proxy_cpu_us"] * scale, row["plugin_cpu_us"] * scale
        figures = " + ".join(f"{row[key]:,.1f}" for key in ("proxy_cpu_us", "plugin_cpu_us") if row[key] >= 0.05)
        label = escape(name.removeprefix("palisade ") or name)
        parts.append(
            f'<text x="{NAMES - 8}" y="{y + 12}" text-anchor="end">{label}</text>'
            f'<rect x="{NAMES}" y="{y}" width="{proxy:.1f}" height="{BAR}" fill="{colours[0]}"/>'
            f'<rect x="{NAMES + proxy:.1f}" y="{y}" width="{plugin:.1f}" height="{BAR}" fill="{colours[1]}"/>'
            f'<text x="{NAMES + proxy + plugin + 6:.1f}" y="{y + 12}">{figures}</text>'
        )
        y += BAR + 4
    return "".join(parts), y + GAP - 12
