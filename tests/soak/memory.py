"""How much memory this process has, and where that is going."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
from pathlib import Path

KEPT = 4 / 5  # of the samples: what comes before is warming up
FLAT = 2**20  # bytes: growth over a whole run that is the allocator's: one arena of CPython (1 MiB since 3.10)


def peak() -> int:
    """The most memory this process ever had, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def resident() -> int:
    """The memory this process has, in bytes."""
    if sys.platform != "linux":
        return peak()  # which grows with it
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Growth:
    """Samples of the memory over a count of things done."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._sizes: list[int] = []

    def sample(self, count: int) -> int:
        """Takes one, without garbage; the size in bytes."""
        gc.collect()
        self._counts.append(count)
        self._sizes.append(resident())
        return self._sizes[-1]

    def per_thing(self) -> float:
        """Bytes for each thing, by a line laid through the later samples."""
        start = round(len(self._counts) * (1 - KEPT))
        return statistics.linear_regression(self._counts[start:], self._sizes[start:]).slope
