"""A picture of latencies in a few lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TextIO

from .terminal import bar, duration

__all__ = ["histogram", "quantile"]

_ROWS: Final = 9
_WIDTH: Final = 40


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the values are (the nearest rank)."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def histogram(ordered: Sequence[float], stream: TextIO) -> list[str]:
    """A bar for each span of time, and the slowest hundredth in one.

    Args:
        ordered: Seconds, ascending, at least one.
        stream: Where it will be written, which decides the characters.
    """
    shortest, most = ordered[0], quantile(ordered, 0.99)
    step = _round_up((most - shortest) / _ROWS)
    first = math.floor(shortest / step)
    counts = [0] * (math.floor(most / step) - first + 1)
    slow = 0
    for value in ordered:
        place = math.floor(value / step) - first
        if place < len(counts):
            counts[place] += 1
        else:
            slow += 1
    rows = [(duration((first + place) * step), count) for place, count in enumerate(counts)]
    if slow:
        rows.append((f"over {duration((first + len(counts)) * step)}", slow))
    highest = max(count for _, count in rows)
    label_width = max(len(label) for label, _ in rows)
    return [
        f"{label:>{label_width}}  {bar(count / highest, _WIDTH, stream):<{_WIDTH}}  {count:>7,}"
        for label, count in rows
    ]


def _round_up(step: float) -> float:
    """The next of 1, 2, 5, 10, ... microseconds and so on."""
    if step <= 1e-6:
        return 1e-6
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= step)
