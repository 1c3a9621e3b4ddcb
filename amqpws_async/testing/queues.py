"""A queue of the embedded broker, without I/O: who gets which message, and what becomes of it.

A message is an `Entry` of one queue. It is *ready* until a consumer takes it, then *unsettled* until the consumer says
what became of it. One rule makes dispatch cheap: no ready entry suits a consumer that has credit. So a new entry is
offered to the waiting consumers, who take turns, and a consumer that gets credit is fed from the ready entries.

Memory is bounded by withholding credit: a queue that holds `limit` bytes, ready or unsettled, is full, and whoever
sends to it registers in `Queue.blocked` to be told when half of that is free again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import DecodeError, EncodeError, ErrorCondition
from ..message import Message, lazy
from ..outcomes import ACCEPTED, Modified, Outcome, Rejected
from .statistics import QueueStatistics

if TYPE_CHECKING:
    from .nodes import Nodes

__all__ = ["Consumer", "Entry", "Publisher", "Queue", "Selector", "deleted", "matches", "rewritten"]

#: Bytes that an entry takes besides the message (objects, tables), so that empty messages fill a queue as well.
ENTRY_BYTES: Final = 256

Selector = Callable[[Message], bool]


class Publisher(Protocol):
    """Who sends to a node, and waits while it is full."""

    def unblock(self) -> None:
        """Go on, as there is room."""

    def evict(self, error: ErrorCondition) -> None:
        """End, because the node is gone."""


class Entry:
    """A message in a queue.

    Attributes:
        raw: The encoded message, as the next consumer gets it.
        queue: Where it is.
        sequence: Its place in the queue.
        expires: When it expires on the queue's clock, or None.
        failures: Failed attempts to deliver it.
        barred: Consumers that must not get it again, or None.
        consumer: Who has it, while it is unsettled.
    """

    __slots__ = ("barred", "consumer", "expires", "failures", "queue", "raw", "sequence")

    def __init__(self, raw: bytes, queue: Queue, sequence: int, expires: float | None) -> None:
        self.raw = raw
        self.queue = queue
        self.sequence = sequence
        self.expires = expires
        self.failures = 0
        self.barred: set[tuple[str, str]] | None = None
        self.consumer: Consumer | None = None

    @property
    def link(self) -> Any:
        """The engine's link that it went out on."""
        return self.consumer.link if self.consumer is not None else None

    def __lt__(self, other: Entry) -> bool:
        return self.sequence < other.sequence

    def _on_outcome(self, outcome: Outcome) -> None:
        self.queue.settle(self, outcome)

    def _fail(self, stop: object) -> None:
        """Not called: a link that ends takes its deliveries back itself."""


class Consumer:
    """Who receives from a queue.

    Attributes:
        key: Container id and link name.
        link: The engine's link, or None.
        credit: How many messages it may get now; kept by the subclass.
        selector: Picks the messages it wants, or None for all.
        browsing: Whether it looks without taking.
        settled: Whether its deliveries are settled as they go out.
        max_message_size: The largest message it takes, in bytes, or None for no limit.
        choosy: Whether it may not want a message.
    """

    link: Any = None

    def __init__(
        self,
        key: tuple[str, str],
        *,
        selector: Selector | None = None,
        browsing: bool = False,
        settled: bool = False,
        max_message_size: int | None = None,
    ) -> None:
        self.key = key
        self.credit = 0
        self.selector = selector
        self.browsing = browsing
        self.settled = settled
        self.max_message_size = max_message_size
        self.choosy = selector is not None or max_message_size is not None
        self._waiting = False
        self._seen = -1  # the last sequence a browsing consumer saw

    def deliver(self, entry: Entry) -> None:
        """Send one message and lower `credit`."""
        raise NotImplementedError

    def evict(self, error: ErrorCondition, *, closed: bool = True) -> None:
        """End, because the node is gone or another link takes this one's place."""
        raise NotImplementedError

    def takes(self, entry: Entry) -> bool:
        """Whether the message may and should go here."""
        if entry.barred is not None and self.key in entry.barred:
            return False
        if self.max_message_size is not None and len(entry.raw) > self.max_message_size:
            return False
        return self.selector is None or matches(self.selector, entry.raw)


class Queue:
    """A queue, or the messages of one subscription.

    Attributes:
        address: Its name.
        limit: Bytes at which it is full.
        max_delivery_count: Failed attempts after which a message is a dead letter, or None for no limit.
        blocked: Publishers to tell when there is room again, in the order they came.
        publishers: Who sends to it.
        consumers: Who receives from it.
    """

    def __init__(self, nodes: Nodes, address: str, selector: Selector | None = None) -> None:
        self.address = address
        self.limit = nodes.max_queue_bytes
        self.max_delivery_count = nodes.max_delivery_count
        self.selector = selector
        self.blocked: dict[Publisher, None] = {}
        self.publishers: dict[Publisher, None] = {}
        self.consumers: list[Consumer] = []
        self._nodes = nodes
        self._clock = nodes.clock
        self._ready: deque[Entry] = deque()
        self._waiting: deque[Consumer] = deque()
        self._browsers = 0
        self._barring = False  # whether a ready entry may be barred from somebody
        self._next = 0
        self._held = 0
        self._unsettled = 0
        self._acknowledged = 0
        self._redelivered = 0
        self._dead_lettered = 0
        self._expired = 0
        self._discarded = 0

    # --- in ---------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes until it is full; not positive when it is."""
        return self.limit - self._held

    def fullest(self) -> Queue:
        """The queue that a publisher to this node has to wait for."""
        return self

    def put(self, raw: bytes, expires: float | None = None) -> None:
        """Add a message, and deliver it if somebody waits for it."""
        entry = Entry(raw, self, self._next, expires)
        self._next += 1
        self._held += len(raw) + ENTRY_BYTES
        if not self._offer(entry):
            self._ready.append(entry)
            if self._browsers:
                self._show(entry)

    def ready(self) -> list[bytes]:
        """The encoded messages that wait for a consumer, the next one first."""
        return [entry.raw for entry in self._ready]

    def _offer(self, entry: Entry) -> bool:
        """Give an entry to the next consumer that wants it."""
        waiting = self._waiting
        for _ in range(len(waiting)):
            consumer = waiting[0]
            if consumer.credit <= 0:
                waiting.popleft()
                consumer._waiting = False
                continue
            waiting.rotate(-1)
            if (not consumer.choosy and entry.barred is None) or consumer.takes(entry):
                self._hand(entry, consumer)
                return True
        return False

    def _hand(self, entry: Entry, consumer: Consumer) -> None:
        if entry.expires is not None and entry.expires <= self._clock():
            self._expired += 1
            self._drop(entry)
            return
        entry.consumer = consumer
        consumer.deliver(entry)
        if consumer.settled:
            self._acknowledged += 1
            self._drop(entry)
        else:
            self._unsettled += 1

    # --- out --------------------------------------------------------------------------

    def join(self, consumer: Consumer) -> None:
        """Add a consumer; `feed` it once it has credit."""
        self.consumers.append(consumer)
        self._browsers += consumer.browsing

    def leave(self, consumer: Consumer, unsettled: Sequence[Entry] = ()) -> None:
        """Remove a consumer; what it had not settled is delivered again, its delivery-count raised."""
        self.consumers.remove(consumer)
        self._browsers -= consumer.browsing
        if consumer._waiting:
            self._waiting.remove(consumer)
            consumer._waiting = False
        for entry in unsettled:
            entry.failures += 1
            entry.raw = self._resized(entry, rewritten(entry.raw, failed=True))
        self.restore(unsettled)

    def feed(self, consumer: Consumer) -> None:
        """Deliver to a consumer that has credit what is ready, and remember it for what comes."""
        if consumer.browsing:
            self._browse(consumer)
            return
        ready = self._ready
        if ready and consumer.credit > 0:
            if not consumer.choosy and not self._barring:
                while ready and consumer.credit > 0:
                    self._hand(ready.popleft(), consumer)
            else:
                passed = []
                while ready and consumer.credit > 0:
                    entry = ready.popleft()
                    if consumer.takes(entry):
                        self._hand(entry, consumer)
                    else:
                        passed.append(entry)
                ready.extendleft(reversed(passed))
            self._barring = self._barring and bool(ready)
        if consumer.credit > 0 and not consumer._waiting:
            consumer._waiting = True
            self._waiting.append(consumer)

    def _browse(self, consumer: Consumer) -> None:
        for entry in self._ready:
            if consumer.credit <= 0:
                return
            self._look(consumer, entry)

    def _show(self, entry: Entry) -> None:
        """Let those who browse, and have seen all there was, look at an entry."""
        for consumer in self.consumers:
            if consumer.browsing and consumer.credit > 0:
                self._look(consumer, entry)

    def _look(self, consumer: Consumer, entry: Entry) -> None:
        if entry.sequence > consumer._seen:
            consumer._seen = entry.sequence
            if (entry.expires is None or entry.expires > self._clock()) and consumer.takes(entry):
                consumer.deliver(entry)

    # --- what became of it ----------------------------------------------------------------

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Record how a delivery ended."""
        self._unsettled -= 1
        if outcome is ACCEPTED:
            self._acknowledged += 1
            self._drop(entry)
            return
        consumer, entry.consumer = entry.consumer, None
        if isinstance(outcome, Rejected):
            self._dead_letter(entry, outcome.error or ErrorCondition("amqp:rejected", "the consumer gave no reason"))
            return
        failed, annotations = False, None
        if isinstance(outcome, Modified):
            failed, annotations = outcome.delivery_failed, outcome.message_annotations
            if outcome.undeliverable_here and consumer is not None:
                entry.barred = (entry.barred or set()) | {consumer.key}
        entry.failures += failed
        entry.raw = self._resized(entry, rewritten(entry.raw, failed=failed, annotations=annotations))
        self._restore_one(entry)

    def restore(self, entries: Sequence[Entry]) -> None:
        """Make unsettled entries ready again, each at the place it had."""
        self._unsettled -= len(entries)
        if len(entries) < 8:
            for entry in entries:
                entry.consumer = None
                self._restore_one(entry)
            return
        alive = []
        for entry in entries:
            entry.consumer = None
            if not self._exhausted(entry):
                self._redelivered += 1
                self._barring = self._barring or entry.barred is not None
                alive.append(entry)
        self._ready = deque(heapq.merge(self._ready, sorted(alive)))
        for consumer in [*self._waiting, *(consumer for consumer in self.consumers if consumer.browsing)]:
            self.feed(consumer)

    def _restore_one(self, entry: Entry) -> None:
        if self._exhausted(entry):
            return
        self._redelivered += 1
        if self._offer(entry):
            return
        ready = self._ready
        self._barring = self._barring or entry.barred is not None
        if not ready or entry.sequence < ready[0].sequence:
            ready.appendleft(entry)
        else:
            place = next((index for index, other in enumerate(ready) if other.sequence > entry.sequence), len(ready))
            ready.insert(place, entry)
        if self._browsers:
            self._show(entry)

    def _exhausted(self, entry: Entry) -> bool:
        limit = self.max_delivery_count
        if limit is None or entry.failures < limit:
            return False
        text = f"delivery failed {entry.failures} times, and max_delivery_count is {limit}"
        self._dead_letter(entry, ErrorCondition("amqp:resource-limit-exceeded", text))
        return True

    def _dead_letter(self, entry: Entry, error: ErrorCondition) -> None:
        self._dead_lettered += 1
        self._drop(entry)
        self._nodes.bury(entry.raw, self, error)

    def _resized(self, entry: Entry, raw: bytes) -> bytes:
        self._held += len(raw) - len(entry.raw)
        return raw

    def _drop(self, entry: Entry) -> None:
        self._held -= len(entry.raw) + ENTRY_BYTES
        if self.blocked and self._held <= self.limit // 2:
            self.unblock()

    def unblock(self) -> None:
        """Let the publishers that wait look again whether there is room."""
        blocked, self.blocked = self.blocked, {}
        for publisher in blocked:
            publisher.unblock()

    def discard_oldest(self) -> bool:
        """Throw away the oldest ready message, if there is one."""
        if not self._ready:
            return False
        self._discarded += 1
        self._drop(self._ready.popleft())
        return True

    def delete(self) -> None:
        """End everybody who uses it, and forget the messages, which lets the publishers of a topic go on."""
        for consumer in list(self.consumers):
            consumer.evict(deleted(self.address))
        for publisher in list(self.publishers):
            publisher.evict(deleted(self.address))
        while self.discard_oldest():
            pass

    def statistics(self) -> QueueStatistics:
        """Count what is here and what was."""
        depth = len(self._ready)
        return QueueStatistics(
            depth=depth,
            bytes=self._held - ENTRY_BYTES * (depth + self._unsettled),
            unsettled=self._unsettled,
            consumers=len(self.consumers),
            enqueued=self._next,
            acknowledged=self._acknowledged,
            redelivered=self._redelivered,
            dead_lettered=self._dead_lettered,
            expired=self._expired,
            discarded=self._discarded,
        )


def matches(selector: Selector, raw: bytes) -> bool:
    """Whether a selector takes a message; malformed ones it never does."""
    try:
        return selector(lazy(raw))
    except DecodeError:
        return False


def deleted(address: str) -> ErrorCondition:
    """What the users of a node that is deleted are told."""
    return ErrorCondition("amqp:resource-deleted", f"{address!r} was deleted")


def rewritten(raw: bytes, *, failed: bool = False, annotations: Mapping[Any, Any] | None = None) -> bytes:
    """The message for its next consumer: header and annotations as 3.2.1 and 3.4.5 want them, all else as it came."""
    if not failed and not annotations and raw[1] == 0x53 and raw[2] != 0x70:
        return raw  # no header, so first-acquirer is false already
    message = lazy(raw)
    try:
        if failed:
            message.delivery_count += 1
        if message.first_acquirer:
            message.first_acquirer = False
        if annotations:
            message.message_annotations = {**message.message_annotations, **annotations}
        return message.encode()
    except (DecodeError, EncodeError):
        return raw  # what nobody can read goes on as it is
