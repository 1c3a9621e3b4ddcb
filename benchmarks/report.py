"""Results for people: tables, and what is aimed at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .measuring import Run
from .results import UNITS, Row, aimed, rows
from .workloads import WORKLOADS

__all__ = ["aims", "text"]


def text(runs: Sequence[Run]) -> str:
    """All tables."""
    names = [name for name in WORKLOADS if any(run.workload == name for run in runs)]
    return "\n".join([*(_table(name, runs) for name in names)])


def _table(name: str, runs: Iterable[Run]) -> str:
    workload = WORKLOADS[name]
    head = (
        f"\n{name}: {workload.title}\n"
        f"{'':28}{UNITS[workload.metric]:>16}{'min - max':>18}{'x first':>9}{'x floor':>9}{'1/s':>10}{'peak MiB':>10}"
    )
    table = rows(name, runs)
    if any(row.p99 is not None for row in table):
        head += f"{'p99 µs':>9}"
    if any(row.idle is not None for row in table):
        head += f"{'CPU %':>9}"
    return "\n".join([head, *(_line(row) for row in table)]) + "\n"


def _line(row: Row) -> str:
    line = f"{row.contender:28}{_number(row.median):>16}{_number(row.low) + ' - ' + _number(row.high):>18}"
    line += f"{_ratio(row.of_first):>9}{_ratio(row.of_floor):>9}"
    line += f"{row.rate:10.0f}" if row.rate else f"{'':10}"
    line += f"{row.peak / 2**20:10.0f}"
    if row.p99 is not None:
        line += f"{_number(row.p99):>9}"
    if row.idle is not None:
        line += f"{row.idle * 100:9.2f}"
    return line


def aims(runs: Sequence[Run]) -> str:
    """What is aimed at, and how far off it is."""
    lines = []
    for aim, ratio in aimed(runs):
        verdict = "yes" if ratio <= aim.most else f"no, over by {ratio / aim.most - 1:.0%}"
        what = f"{aim.workload}: {aim.contender} / {aim.other}" + (" (idle CPU)" if aim.metric else "")
        lines.append(f"{what:62}{ratio:8.3f}  at most {aim.most:5.3f}  {verdict}")
    return "\n".join(["aims", *lines]) if lines else ""


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
