"""What a measured process is told, as JSON in its one argument, and what it reports, as JSON in its last line."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any, Self

from .mark import Stopwatch, peak_memory
from .shapes import SHAPES, Shape

__all__ = ["Job", "percentiles"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for one client process. The peers in other languages read the same fields.

    Attributes:
        url: Where to, ``ws://HOST:PORT/``; who speaks TCP takes the host and port alone.
        address: The queue.
        work: What to do: ``send``, ``receive``, or one of the other ways that the client offers.
        shape: The name of what is sent.
        body_file: The file with the body, for those who cannot import `shapes`.
        rich: As `Shape.rich`.
        messages: How many are measured.
        warm_up: How many come before, and are not measured.
        window: How many may be in flight, and the credit of a receiver.
        tasks: Tasks that share one sender, in the works that have them.
        connections: Connections that share the messages.
        links: Links on one connection that share the messages.
        loop: The event loop, for clients on asyncio: ``asyncio`` or ``uvloop``.
        seconds: How long idle connections are watched.
    """

    url: str
    address: str
    work: str
    shape: str = "100b"
    body_file: str = ""
    rich: bool = False
    messages: int = 1000
    warm_up: int = 0
    window: int = 1000
    tasks: int = 100
    connections: int = 1
    links: int = 1
    loop: str = "asyncio"
    seconds: float = 10.0

    @classmethod
    def from_argument(cls) -> Self:
        """Read the job of this process."""
        return cls(**json.loads(sys.argv[1]))

    def to_argument(self) -> str:
        """The argument for a process."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def what(self) -> Shape:
        """The shape."""
        return SHAPES[self.shape]

    def report(self, watch: Stopwatch, **more: Any) -> None:
        """Print the result.

        Args:
            watch: What was measured.
            **more: Further figures, such as latencies.
        """
        figures = {"messages": self.messages, "cpu": watch.cpu, "wall": watch.wall, "peak_memory": peak_memory()}
        print(json.dumps(figures | more), flush=True)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The median and the 99th percentile, as the report has them."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
