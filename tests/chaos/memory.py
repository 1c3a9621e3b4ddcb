"""Whether memory is flat, by what is in use.

What the process has from the system grows for long after that: thousands of broken TLS connections, whose buffers are
large, leave holes. So where the C library tells what it has given out, that and the objects of Python are looked at.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
from typing import Final

from tests.soak.memory import KEPT, resident

__all__ = ["Memory"]

FLAT: Final = 4 * 2**20  # bytes in use that a whole run may grow by

FLAT_RESIDENT: Final = 64 * 2**20  # likewise of what the process has from the system, where nothing else is known

FLAT_BLOCKS: Final = 0.05  # of Python's blocks, likewise

LEAST: Final = 20  # samples, for a trend


class _Usage(ctypes.Structure):
    """What glibc's mallinfo2 tells; `uordblks` and `hblkhd` are bytes in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


class Memory:
    """Samples over a count of things done."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._sizes: list[int] = []
        self._blocks: list[int] = []
        self._tell = None
        if sys.platform == "linux":
            self._tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
            if self._tell is not None:
                self._tell.restype = _Usage

    def sample(self, count: int) -> str:
        """Take one, without garbage; what there is, in words."""
        gc.collect()
        self._counts.append(count)
        self._blocks.append(sys.getallocatedblocks())
        had = resident()
        if self._tell is None:
            self._sizes.append(had)
            return f"{had / 2**20:.1f} MiB"
        usage = self._tell()
        self._sizes.append(usage.uordblks + usage.hblkhd)
        return f"{had / 2**20:.1f} MiB, {self._sizes[-1] / 2**20:.1f} of C and {self._blocks[-1]} objects in use"

    def verdict(self) -> tuple[bool, str] | None:
        """Whether it is flat, and by how much it grew over the run, by the trend of the later samples."""
        start = round(len(self._counts) * (1 - KEPT))
        if len(self._counts) < LEAST:
            return None
        counts, total = self._counts[start:], self._counts[-1]
        size = statistics.linear_regression(counts, self._sizes[start:]).slope * total
        blocks = statistics.linear_regression(counts, self._blocks[start:]).slope * total
        limit = FLAT if self._tell is not None else FLAT_RESIDENT
        flat = size < limit and blocks < FLAT_BLOCKS * statistics.mean(self._blocks)
        return flat, f"{size / 2**20:+.1f} MiB and {blocks:+.0f} objects over the run, by the trend"
