"""What a measured process notes about itself, between two marks."""

from __future__ import annotations

import gc
import re
import resource
import sys
import time
from pathlib import Path
from typing import Protocol

__all__ = ["Mark", "Stopwatch", "Unmarked", "memory", "peak_memory"]


class Mark(Protocol):
    """Told where the measured part begins and ends."""

    def begin(self) -> None:
        """The measured part begins."""

    def end(self) -> None:
        """The measured part ends."""


class Unmarked:
    """Measures nothing."""

    def begin(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Stopwatch:
    """Takes CPU time and wall time between the marks.

    Attributes:
        cpu: Seconds of user and system time of this process.
        wall: Seconds by the clock.
    """

    def __init__(self) -> None:
        self.cpu = 0.0
        self.wall = 0.0

    def begin(self) -> None:
        """Start; garbage of what was before is collected first."""
        gc.collect()
        self.wall = -time.perf_counter()
        self.cpu = -time.process_time()

    def end(self) -> None:
        """Stop."""
        self.cpu += time.process_time()
        self.wall += time.perf_counter()


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes."""
    # Not by getrusage where that can be avoided: its figure begins with the peak of the process that started us.
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def memory() -> int:
    """The memory that is resident now, in bytes; 0 where that is not known."""
    return _status("VmRSS")


def _status(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
