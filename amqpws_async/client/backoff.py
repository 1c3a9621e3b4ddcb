"""How long to wait between attempts, and when to give up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from .retry import Retry

__all__ = ["Backoff", "GivenUp", "Pace", "check_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait between attempts, and when to give up.

    The first retry is at once where the reason allows it (`Retry`). Each later delay is by chance up to a half shorter,
    so that clients that lost the same broker do not come back together.

    Attributes:
        initial: Seconds before the first retry that is not at once, 0.2 by default.
        factor: What each further delay is longer by, 2.0 by default.
        maximum: Seconds that no delay is longer than, 30 by default, except where a server's Retry-After says so.
        stable_after: Seconds that a connection or link must have lasted, 10 by default, for earlier failures to be
            forgotten. Less lets a broker that accepts and drops connections be asked in quick succession.
        max_attempts: Attempts that may fail in a row before it is given up; None, the default, is no limit. Where there
            are several places, each is tried all the same.
        max_time: Seconds since the first failure in a row after which it is given up; None, the default, is no limit.

    Raises:
        ValueError: A value is out of range.
    """

    initial: float = 0.2
    factor: float = 2.0
    maximum: float = 30.0
    stable_after: float = 10.0
    max_attempts: int | None = None
    max_time: float | None = None

    def __post_init__(self) -> None:
        for name in ("initial", "maximum", "stable_after"):
            check_seconds(self, name)
        if self.max_time is not None:
            check_seconds(self, "max_time")
        if not (isinstance(self.factor, (int, float)) and 1 <= self.factor <= 100):
            raise ValueError(f"factor: a number from 1 to 100, not {self.factor!r}")
        if self.max_attempts is not None and (not isinstance(self.max_attempts, int) or self.max_attempts < 1):
            raise ValueError(f"max_attempts: at least 1, or None for no limit, not {self.max_attempts!r}")


class GivenUp(Exception):
    """No further attempt: `error` is why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Pace:
    """Counts failures in a row, and says how long to wait after each."""

    def __init__(self, backoff: Backoff, clock: Callable[[], float]) -> None:
        self._backoff = backoff
        self._clock = clock
        self._since = 0.0  # the first failure in a row
        self._attempts = 0  # that failed in a row
        self._delays = 0  # in a row
        self._free = True  # whether a retry without a delay is left
        self._succeeded: float | None = None
        self.failures = 0

    def succeeded(self) -> None:
        """Note that an attempt came off, or the move to another connection; whether it counts shows when it ends."""
        if self._succeeded is None:
            self._succeeded = self._clock()

    def interrupted(self) -> None:
        """Note an end that is no failure of its own: what was lost was lost with something else."""
        self._succeeded = None

    def failed(
        self, retry: Retry, error: Exception, *, asked: float = 0.0, more: bool = False, lost: bool = False
    ) -> float:
        """Note a failure.

        Args:
            retry: What follows it.
            error: What it was.
            asked: Seconds that the peer asked us to wait.
            more: Whether there is another place to try, for which nobody has to wait.
            lost: Whether it is the loss of what there was, and no attempt.

        Returns:
            Seconds to wait before the next attempt.

        Raises:
            GivenUp: There is to be none.
        """
        now, backoff = self._clock(), self._backoff
        if self._succeeded is not None and now - self._succeeded >= backoff.stable_after:
            self.failures = self._attempts = self._delays = 0
            self._free = True
        self._succeeded = None
        if self.failures == 0:
            self._since = now
        self.failures += 1
        self._attempts += not lost
        if retry is Retry.NEVER:
            raise GivenUp(error)
        delay = 0.0 if more else max(asked, self._delay(retry))
        lasted = now + delay - self._since
        most = math.inf if backoff.max_attempts is None or lost or more else backoff.max_attempts
        if self._attempts >= most or (backoff.max_time is not None and lasted > backoff.max_time):
            error.add_note(f"given up after {self._attempts} attempts in {now - self._since:.1f} s (backoff)")
            raise GivenUp(error)
        return delay

    def _delay(self, retry: Retry) -> float:
        backoff, free = self._backoff, self._free
        self._free = False
        if retry is Retry.NOW and free:
            return 0.0
        # The exponent is bounded where the delay long is, so that years of failing do not overflow.
        delay = min(backoff.maximum, backoff.initial * backoff.factor ** min(self._delays, 64))
        self._delays += 1
        return delay * random.uniform(0.5, 1.0)


def check_seconds(options: object, name: str) -> None:
    """Refuse what is no finite number of seconds, or negative."""
    value = getattr(options, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0:
        raise ValueError(f"{name}: seconds, not negative, not {value!r}")
