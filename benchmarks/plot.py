"""Draws results as SVG: a panel for each workload, a bar for each contender, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from .measuring import Run
from .peers.catalogue import PEERS
from .results import UNITS, Row, rows
from .workloads import WORKLOADS

__all__ = ["svg"]

WIDTH: Final = 760  # pixels, as all that follow
LABEL: Final = 240
BAR: Final = 18
STEP: Final = 24
HEAD: Final = 44
MARGIN: Final = 16
CUT: Final = 8.0  # a bar ends at so many times the first, so that one slow client does not make the others dots

SHOWN: Final[tuple[str, ...]] = ("send-100b", "receive-100b", "send-1k", "receive-1k", "latency")
"""The workloads that are drawn, where they were run."""

STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px } .note { font-size: 11px; fill: #6e7781 }
.bar { fill: #8c959f } .ours { fill: #0969da } .floor { fill: #bf8700 } .cut { stroke: #fff; stroke-width: 3 }
.page { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #8b949e } .page { fill: #0d1117 } .cut { stroke: #0d1117 }
  .ours { fill: #2f81f7 } .floor { fill: #d29922 } .bar { fill: #6e7681 }
}"""


def svg(runs: Sequence[Run], environment: Mapping[str, Any]) -> str:
    """Draw the medians.

    Args:
        runs: What was measured.
        environment: Where, from `environment`.
    """
    run_names = {run.workload for run in runs}
    names = [name for name in SHOWN if name in run_names] or [name for name in WORKLOADS if name in run_names]
    parts: list[str] = []
    top = MARGIN
    for name in names:
        table = rows(name, runs)
        parts.append(_panel(name, table, top))
        top += HEAD + len(table) * STEP + MARGIN
    about = f"{environment['cpu']}, {environment['cores']} cores, {environment['python']}, {environment['broker']}"
    repeats = max((run.repeat for run in runs), default=0)
    parts.append(_text(MARGIN, top + 8, f"Medians of {repeats} interleaved runs; less is better. {about}", "note"))
    height = top + 8 + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
        f'<style>\n{STYLE}\n</style>\n<rect class="page" width="{WIDTH}" height="{height}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(name: str, table: Sequence[Row], top: int) -> str:
    workload = WORKLOADS[name]
    parts = [
        _text(MARGIN, top + 14, workload.title, "title"),
        _text(MARGIN, top + 32, UNITS[workload.metric], "note"),
    ]
    labels = {each.name: f"{PEERS[each.peer].title} {each.way}".strip() for each in workload.contenders}
    first = table[0].median
    longest = min(max(row.median for row in table), CUT * first)
    room = WIDTH - LABEL - MARGIN - 130
    for index, row in enumerate(table):
        y = top + HEAD + index * STEP
        length = max(1.0, min(row.median, longest) / longest * room)
        kind = "ours" if row.contender.startswith("ours") else "floor" if row.contender == "floor" else "bar"
        parts.append(_text(LABEL - 8, y + 13, labels[row.contender], "", anchor="end"))
        parts.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        if row.median > longest:
            x = LABEL + length - 24
            parts.append(f'<path class="cut" d="M{x:.1f} {y + BAR + 2} l8 {-BAR - 4}"/>')
        value = f"{row.median:.2f}" if row.median < 10 else f"{row.median:.0f}"
        times = "" if index == 0 else f" · {row.median / first:.2f} x"
        parts.append(_text(LABEL + round(length) + 8, y + 13, value + times))
    return "\n".join(parts)


def _text(x: int, y: int, text: str, kind: str = "", *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
