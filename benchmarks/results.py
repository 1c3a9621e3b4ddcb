"""From runs to figures: medians, ratios, and how they compare with what is aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .measuring import Run
from .shapes import SHAPES
from .workloads import WORKLOADS, Workload

__all__ = ["AIMS", "UNITS", "Aim", "Row", "aimed", "figure", "rows"]

UNITS: Final = {
    "cpu": "CPU µs/message",
    "cpu_mib": "CPU µs/MiB",
    "p50": "p50 µs",
    "memory_each": "KiB/connection",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender's line in the table of a workload.

    Attributes:
        contender: Its name.
        median: The metric's median over the repeats.
        low: Its least.
        high: Its most.
        rate: Median of messages (or connections) per second; 0 where that says nothing.
        peak: Median of the peak memory, in bytes.
        p99: Median of the 99th percentiles, in microseconds, or None.
        idle: Median CPU of the process over wall time, for idle connections, or None.
        of_first: Median of the ratios to the first contender, repeat by repeat, or None where there is none.
        of_floor: The same to the raw floor.
    """

    contender: str
    median: float
    low: float
    high: float
    rate: float
    peak: float
    p99: float | None
    idle: float | None
    of_first: float | None
    of_floor: float | None


@dataclass(frozen=True, slots=True)
class Aim:
    """A ratio that is aimed at.

    Attributes:
        workload: Where both take part.
        contender: Whose figure it is.
        other: What it is divided by.
        most: The most that it should be.
        metric: Instead of the workload's.
    """

    workload: str
    contender: str
    other: str
    most: float
    metric: str | None = None


AIMS: Final = (
    Aim("send-100b", "ours transfer", "floor", 0.9),
    Aim("send-100b", "ours transfer", "go-amqp", 0.4),
    Aim("send-100b", "ours transfer", "rhea", 0.3),
    Aim("send-100b", "ours transfer", "pyamqp", 1 / 30),
    Aim("send-100b", "ours send_many", "ours transfer", 1.1),
    Aim("tasks-100b", "ours 100 tasks", "ours transfer", 1.8),
    Aim("tasks-100b", "ours 100 tasks", "go-amqp pipelined", 0.7),
    Aim("receive-100b", "ours", "floor", 1.3),
    Aim("receive-100b", "ours", "go-amqp", 0.3),
    Aim("receive-100b", "ours", "rhea", 0.6),
    Aim("send-1k", "ours transfer", "go-amqp", 0.6),
    Aim("receive-1k", "ours", "go-amqp", 0.5),
    *(
        Aim(f"{work}-{shape}", f"ours{way}", other, most)
        for shape in ("64k", "1m")
        for work, way in (("send", " transfer"), ("receive", ""))
        for other, most in (("go-amqp", 1.0), ("websockets", 1.7))
    ),
    Aim("latency", "ours asyncio", "websockets asyncio", 1.15),
    Aim("latency", "ours uvloop", "websockets uvloop", 1.25),
    Aim("links-500", "ours 500 links", "ours 1 link", 1.2),
    Aim("idle-1000", "ours", "websockets and proton", 1.5),
    Aim("idle-1000", "ours", "websockets", 1.5, "cpu_idle"),
)


def figure(workload: Workload, run: Run, metric: str | None = None) -> float:
    """The metric of one run."""
    figures, messages = run.figures, run.figures["messages"]
    match metric or workload.metric:
        case "cpu":
            return figures["cpu"] / messages * 1e6
        case "cpu_mib":
            return figures["cpu"] / (messages * len(SHAPES[workload.shape].body) / 2**20) * 1e6
        case "p50":
            return figures["p50"] * 1e6
        case "memory_each":
            return figures["memory_each"] / 1024
        case "cpu_idle":
            return figures["cpu"] / figures["wall"]
        case other:
            raise ValueError(f"no such metric: {other}")


def rows(name: str, runs: Iterable[Run]) -> list[Row]:
    """The table of a workload, in the order of its contenders."""
    workload = WORKLOADS[name]
    by_contender = _by_contender(name, runs)
    first = by_contender.get(workload.contenders[0].name, {})
    floor = by_contender.get("floor", {})
    table = []
    for contender in workload.contenders:
        repeats = by_contender.get(contender.name)
        if not repeats:
            continue
        values = [figure(workload, run) for run in repeats.values()]
        all_figures = [run.figures for run in repeats.values()]
        idle = workload.metric == "memory_each"
        table.append(
            Row(
                contender=contender.name,
                median=statistics.median(values),
                low=min(values),
                high=max(values),
                rate=0.0 if idle else statistics.median(each["messages"] / each["wall"] for each in all_figures),
                peak=statistics.median(each["peak_memory"] for each in all_figures),
                p99=statistics.median(each["p99"] * 1e6 for each in all_figures) if "p99" in all_figures[0] else None,
                idle=statistics.median(each["cpu"] / each["wall"] for each in all_figures) if idle else None,
                of_first=_ratio(workload, repeats, first),
                of_floor=_ratio(workload, repeats, floor),
            )
        )
    return table


def aimed(runs: Iterable[Run]) -> list[tuple[Aim, float]]:
    """The ratios that are aimed at, as far as both sides were run."""
    runs = list(runs)
    found = []
    for aim in AIMS:
        by_contender = _by_contender(aim.workload, runs)
        ratio = _ratio(
            WORKLOADS[aim.workload], by_contender.get(aim.contender, {}), by_contender.get(aim.other, {}), aim.metric
        )
        if ratio is not None:
            found.append((aim, ratio))
    return found


def _by_contender(name: str, runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.workload == name:
            found.setdefault(run.contender, {})[run.repeat] = run
    return found


def _ratio(
    workload: Workload, one: Mapping[int, Run], other: Mapping[int, Run], metric: str | None = None
) -> float | None:
    """The median of the ratios within each repeat: what drifts between repeats falls out."""
    ratios = [
        figure(workload, one[repeat], metric) / figure(workload, other[repeat], metric)
        for repeat in one
        if repeat in other
    ]
    return statistics.median(ratios) if ratios else None
