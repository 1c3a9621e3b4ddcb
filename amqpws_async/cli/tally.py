"""What became of the messages that ``amqpws send`` sent: counted, summed up, and turned into an exit status."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

from .. import Accepted, Modified, Outcome, Rejected, Released
from .failures import ExitStatus, status_of
from .terminal import rate

__all__ = ["Tally"]

_SHOWN_FAILURES: Final = 10
_OUTCOMES: Final[dict[type[Any] | None, str]] = {
    Accepted: "accepted",
    Rejected: "rejected",
    Released: "released",
    Modified: "modified",
    None: "settled",
}


class Tally:
    """What became of the messages, as far as is known.

    Attributes:
        sent: Transfers made.
        refused: Messages that were not sent, because they are too large.
        outcomes: How many had which outcome.
        failures: The first few that failed, and why.
        error: What ended the sending early, or None.
        seconds: How long it took, once it is over.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._started = time.monotonic()

    def stop(self) -> None:
        """Note that it is over."""
        self.seconds = time.monotonic() - self._started

    @property
    def settled(self) -> int:
        """How many have their outcome, or were sent settled."""
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        """How many are known not to have been accepted."""
        return self.settled - self.outcomes["accepted"] - self.outcomes["settled"] + self.refused

    def fail(self, number: int, why: str) -> None:
        """Note why a message failed."""
        if len(self.failures) < _SHOWN_FAILURES:
            self.failures.append(f"message {number}: {why}")

    def count(self, number: int, outcome: Outcome | None) -> None:
        """Count an outcome; None for a message that was sent settled."""
        name = _OUTCOMES.get(type(outcome) if outcome is not None else None, "settled without outcome")
        self.outcomes[name] += 1
        if isinstance(outcome, Rejected):
            self.fail(number, f"rejected: {outcome.error or 'no reason given'}")
        elif name not in ("accepted", "settled"):
            self.fail(number, name)

    def progress(self) -> str:
        """How far it has got, in a line."""
        elapsed = time.monotonic() - self._started
        text = f"sent {self.sent:,}, outcomes {self.settled:,}, {rate(self.settled, elapsed)}"
        return f"{text}, failed {self.failed:,}" if self.failed else text

    def summary(self) -> str:
        """What became of all, in a line."""
        parts = [f"{count:,} {name}" for name, count in self.outcomes.items()]
        if self.sent > self.settled:
            parts.append(f"{self.sent - self.settled:,} in doubt")
        if self.refused:
            parts.append(f"{self.refused:,} not sent")
        speed = f" ({rate(self.sent, self.seconds)})" if self.sent > 1 else ""
        return f"{self.sent:,} sent in {self.seconds:.2f} s{speed}{': ' if parts else ''}{', '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """What became of all, for a machine."""
        counts = {name: self.outcomes[name] for name in ("accepted", "rejected", "released", "modified", "settled")}
        return {
            "sent": self.sent,
            **counts,
            "unknown": self.sent - sum(counts.values()),
            "not_sent": self.refused,
            "seconds": round(self.seconds, 6),
            "rate": round(self.sent / self.seconds, 1) if self.seconds else None,
            "failures": self.failures,
            "error": None if self.error is None else str(self.error),
        }

    def status(self) -> ExitStatus:
        """The exit status that this calls for."""
        if isinstance(self.error, TimeoutError):
            return ExitStatus.TIMED_OUT
        if self.error is not None:
            return status_of(self.error)
        return ExitStatus.FAILED if self.failed else ExitStatus.OK
