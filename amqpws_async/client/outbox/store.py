"""What the stores of an outbox promise, and the one in memory.

Rules:

* A store belongs to one event loop, and calls its listener there: for each entry added exactly once, `on_stored` or
  `on_not_stored`, whether or not somebody still waits for it.
* Entries are stored in the order in which they were added, and read in it.
* What says how a message ended (`remove`, `attempted`, `poison`) is done in the order asked and may lag: a crash undoes
  it, and the message is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Contents", "Entry", "Listener", "MemoryStore", "PoisonedEntry", "Store"]


class Entry:
    """A message in an outbox.

    Attributes:
        sequence: Its place.
        raw: The encoded message.
        stored_at: Seconds since 1970.
        attempts: How often the peer gave it back.
        waiter: Signalled when what the caller waits for is there, or `error` is; None if nobody waits.
        settles: Whether the caller waits for the outcome, and not for the store.
        error: What the caller is to raise. One caller, so one object will do.
    """

    __slots__ = ("attempts", "error", "raw", "sequence", "settles", "stored_at", "waiter")

    def __init__(self, sequence: int, raw: bytes, stored_at: float, attempts: int = 0) -> None:
        self.sequence = sequence
        self.raw = raw
        self.stored_at = stored_at
        self.attempts = attempts
        self.waiter: asyncio.Future[None] | None = None
        self.settles = False
        self.error: Exception | None = None

    def __lt__(self, other: Entry) -> bool:
        return self.sequence < other.sequence

    def wake(self, error: Exception | None = None) -> None:
        """Signal the caller, if one waits."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            self.error = error
            if not waiter.done():
                waiter.set_result(None)


@dataclass(slots=True)
class PoisonedEntry:
    """A message set aside: the fields of `PoisonedMessage`, encoded."""

    sequence: int
    raw: bytes
    stored_at: float
    attempts: int
    reason: str
    poisoned_at: float


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a store as it is opened.

    Attributes:
        last: The highest sequence ever used and still there, 0 if none.
        messages: How many entries.
        bytes: Their size.
        poisoned: How many are set aside.
        poisoned_bytes: Their size.
    """

    last: int = 0
    messages: int = 0
    bytes: int = 0
    poisoned: int = 0
    poisoned_bytes: int = 0


class Listener(Protocol):
    """Who is told what became of entries."""

    def on_stored(self, entries: Sequence[Entry]) -> None:
        """Take entries that are stored, in order."""

    def on_not_stored(self, entries: Sequence[Entry], error: Exception) -> None:
        """Take entries back that are not stored."""

    def on_returned(self, entries: Sequence[Entry]) -> None:
        """Take entries that were poison, and are stored again."""

    def on_discarded(self, count: int, size: int) -> None:
        """Note that so many poisoned entries, of so many bytes, are gone."""

    def on_broken(self, error: Exception) -> None:
        """Stop: the store cannot be relied on any more."""


class Store(Protocol):
    """Where the messages of an outbox are."""

    volatile: bool
    """Whether it is gone with the process; then nothing is ever read from it."""
    commits: int
    """Transactions so far."""

    async def open(self) -> Contents:
        """Open it; cancelled or failed, call `stop`."""

    def add(self, entry: Entry) -> None:
        """Store an entry; the listener is told."""

    def remove(self, sequence: int) -> None:
        """Forget an entry."""

    def attempted(self, entry: Entry) -> None:
        """Note how often an entry was given back."""

    def poison(self, poisoned: PoisonedEntry) -> None:
        """Set an entry aside."""

    async def read(self, after: int, count: int, size: int) -> list[Entry]:
        """Read entries behind a sequence, up to a count and (but for the first) a size in bytes."""

    async def poisoned(self, after: int, count: int) -> list[PoisonedEntry]:
        """Read what was set aside, behind a sequence."""

    async def retry(self, sequences: Collection[int] | None, first: int) -> int:
        """Move poison (None: all) to the end, under sequences from `first` on; the listener is told."""

    async def discard(self, sequences: Collection[int] | None) -> int:
        """Delete poison (None: all); the listener is told."""

    def stop(self) -> None:
        """Do what was asked, then end; idempotent."""

    async def close(self) -> None:
        """The same, and wait for it."""


class MemoryStore:
    """Keeps nothing but poison: the pump has all entries in its hands."""

    volatile = True
    commits = 0

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._poisoned: dict[int, PoisonedEntry] = {}

    async def open(self) -> Contents:
        """Begin empty."""
        return Contents()

    def add(self, entry: Entry) -> None:
        """Store an entry at once."""
        self._listener.on_stored((entry,))

    def remove(self, sequence: int) -> None:
        """Nothing: whoever has the entry drops it."""

    def attempted(self, entry: Entry) -> None:
        """Nothing: the entry itself knows."""

    def poison(self, poisoned: PoisonedEntry) -> None:
        """Set an entry aside."""
        self._poisoned[poisoned.sequence] = poisoned

    async def read(self, after: int, count: int, size: int) -> list[Entry]:
        """Find nothing: there is nothing that the pump does not have."""
        return []

    async def poisoned(self, after: int, count: int) -> list[PoisonedEntry]:
        """Read what was set aside."""
        return [self._poisoned[sequence] for sequence in sorted(self._poisoned) if sequence > after][:count]

    async def retry(self, sequences: Collection[int] | None, first: int) -> int:
        """Move poison to the end."""
        taken = self._take(sequences)
        entries = [Entry(first + index, entry.raw, entry.stored_at) for index, entry in enumerate(taken)]
        self._listener.on_returned(entries)
        return len(taken)

    async def discard(self, sequences: Collection[int] | None) -> int:
        """Delete poison."""
        taken = self._take(sequences)
        self._listener.on_discarded(len(taken), sum(len(entry.raw) for entry in taken))
        return len(taken)

    def _take(self, sequences: Collection[int] | None) -> list[PoisonedEntry]:
        chosen = sorted(self._poisoned if sequences is None else self._poisoned.keys() & set(sequences))
        return [self._poisoned.pop(sequence) for sequence in chosen]

    def stop(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""
