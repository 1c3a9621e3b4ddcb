"""How an outbox stores and sends, with every default explained, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from ...message import Message

__all__ = ["OutboxArguments", "OutboxOptions", "OutboxStatistics", "PoisonedMessage"]

Durability = Literal["normal", "full"]
Overflow = Literal["wait", "raise", "drop_oldest"]
Wait = Literal["stored", "settled"]
Verdict = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonedMessage:
    """A message that the peer will not have: rejected, or given back too often.

    Attributes:
        sequence: What names it in `Outbox.retry_poisoned` and `Outbox.discard_poisoned`.
        message: The message, its message-id included.
        reason: Why, in the peer's words where it gave any.
        attempts: How often the peer gave it back.
        stored_at: When `Outbox.send` stored it, in seconds since 1970.
        poisoned_at: When it was set aside, in seconds since 1970.
    """

    sequence: int
    message: Message
    reason: str
    attempts: int
    stored_at: float
    poisoned_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatistics:
    """What is in an outbox now, and what it has done since it was opened.

    Attributes:
        stored: Messages that have not been accepted yet, those in flight included.
        bytes: Their encoded bytes.
        in_flight: Those of them that were transferred and have no outcome yet.
        oldest_age: Seconds since the oldest of them was stored, over restarts; None if there is none.
        poisoned: Messages set aside now.
        sent: Messages that were accepted.
        retried: Times that a message was released, modified or left in doubt, and is sent again.
        dropped: Messages given up, each of which was reported to `on_drop`.
        commits: Transactions on disk; `sent` and what was stored, divided by it, tell how well they are grouped.
    """

    stored: int = 0
    bytes: int = 0
    in_flight: int = 0
    oldest_age: float | None = None
    poisoned: int = 0
    sent: int = 0
    retried: int = 0
    dropped: int = 0
    commits: int = 0


class OutboxArguments(TypedDict, total=False):
    """The fields of `OutboxOptions` beside `path`."""

    durability: Durability
    max_messages: int
    max_bytes: int
    overflow: Overflow
    on_drop: Callable[[Message, str], object] | None
    wait: Wait
    in_flight: int
    max_attempts: int
    retry_interval: float
    max_retry_interval: float
    on_poison: Verdict | Callable[[PoisonedMessage], Verdict | None]
    close_timeout: float


@dataclass(frozen=True, kw_only=True)
class OutboxOptions:
    """How an outbox stores and sends.

    Attributes:
        path: The file (sqlite's, with a ``-wal`` beside it while it is open), made with permissions 0600, for one
            outbox at a time and one address. On a local disk: network file systems lock badly. None, the default, keeps
            messages in memory: they survive an outage, and not the process.
        durability: What ``stored`` means for a file. ``"normal"``, the default: it survives the process, killed at any
            moment, but a power loss may take what was stored in the last seconds (WAL, synchronous=NORMAL). ``"full"``:
            it survives a power loss, at the price of a flush to the disk for each group of messages (synchronous=FULL).
        max_messages: Messages at which it is full, 10 000 by default.
        max_bytes: Encoded bytes at which it is full, 64 MiB by default. The file takes a little more, and does not
            shrink. Poison is counted apart, by the same two limits.
        overflow: What `send` does when it is full: ``"wait"`` for room, the default; ``"raise"`` `OutboxFull`; or
            ``"drop_oldest"`` of those not in flight, for data of which only the newest counts.
        on_drop: Called with message and reason for every message given up, none by default; it is counted and logged
            in any case. It must not block.
        wait: What `send` waits for unless told: until the message is ``"stored"``, the default, or ``"settled"``.
        in_flight: Messages transferred and without outcome at most, 1000 by default. 1 keeps the order even where the
            peer gives one back: others are transferred behind it before that is known.
        max_attempts: How often a message may be released or modified before it is poison, 10 by default: with the
            intervals below after a minute or so. Rejected, or modified as undeliverable here, it is poison at once.
        retry_interval: Seconds before the first such message is sent again, 0.1 by default; doubled with every attempt.
            Nothing behind it is transferred meanwhile, so that the order is kept.
        max_retry_interval: Seconds at most before it is sent again, 30 by default.
        on_poison: ``"keep"``, the default: set aside in the store, see `Outbox.poisoned`, until its limits are reached;
            ``"drop"``: given up and reported to `on_drop`; or a function of `PoisonedMessage` that says one of the
            two. It must not block.
        close_timeout: Seconds that `Outbox.close` waits for outcomes in flight (in memory: for all messages), 5 by
            default.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    path: str | Path | None = None
    durability: Durability = "normal"
    max_messages: int = 10_000
    max_bytes: int = 64 * 2**20
    overflow: Overflow = "wait"
    on_drop: Callable[[Message, str], object] | None = None
    wait: Wait = "stored"
    in_flight: int = 1000
    max_attempts: int = 10
    retry_interval: float = 0.1
    max_retry_interval: float = 30.0
    on_poison: Verdict | Callable[[PoisonedMessage], Verdict | None] = "keep"
    close_timeout: float = 5.0

    def __post_init__(self) -> None:
        if self.path is not None and not str(self.path):
            raise ValueError("path: a file's, or None to keep messages in memory, not empty")
        if self.path is None and self.durability != "normal":
            raise ValueError("durability: there is none in memory: give a path, too")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "on_poison" and callable(value)):
                raise ValueError(f"{name}: {' or '.join(map(repr, choices))}, not {value!r}")
        for name in ("max_messages", "max_bytes", "in_flight", "max_attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: a whole number of at least 1, not {value!r}")
        if not 0 < self.retry_interval <= self.max_retry_interval:
            raise ValueError("retry_interval: more than 0 seconds, and no more than max_retry_interval")
        if not self.close_timeout >= 0:
            raise ValueError(f"close_timeout: at least 0 seconds, not {self.close_timeout!r}")
        if self.on_drop is not None and not callable(self.on_drop):
            raise ValueError(f"on_drop: a function or None, not {self.on_drop!r}")


_CHOICES = {
    "durability": ("normal", "full"),
    "overflow": ("wait", "raise", "drop_oldest"),
    "wait": ("stored", "settled"),
    "on_poison": ("keep", "drop"),
}
