"""The pump of an outbox: from the store to the sender, in order, until each message has its fate.

Where an entry is::

    store -> `ready` -> `_current` -> `window` ... outcome -> gone
               (`_heap`, those to be sent again) <-'

Rules:

* `Pump.run` owns two tasks, for transfers and for outcomes, and awaits both before it returns; the outbox owns the task
  that `run` is in.
* What is stored comes straight into `ready` while the pump keeps up, and is read from the store, in portions, while
  it does not: `_read_to` is the last sequence that came either way, `_stored_to` the last that is stored.
* Outcomes are looked at in the order of the transfers. One that comes early waits for those before it.
* While something is to be sent again, nothing new is transferred: it goes first, in its order.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from ...endpoint import Waiters
from ...errors import AMQPError, DeliveryUnknown, EndpointClosed, LocalProtocolError, StopReason
from ...message import Message
from ...outcomes import Accepted, Modified, Outcome, Rejected
from .store import Entry, Store

if TYPE_CHECKING:
    from .options import OutboxOptions

__all__ = ["Fates", "OutboxSender", "Pump"]

logger = logging.getLogger(__name__)

READY_MESSAGES: Final = 1000  # in memory of what is on disk, beside those in flight
READY_BYTES: Final = 8 * 2**20


class OutboxSender(Protocol):
    """What an outbox sends with: a sender of a connection, or better of a client, which outlives connections.

    A `DeliveryUnknown` or `EndpointClosed` while `stop` is None is taken as passing, and the message is sent again. For
    the order's sake, a sender whose link was lost either sends what was in doubt again itself, before anything new, or
    fails the first transfer after it, so that the pump can.
    """

    @property
    def address(self) -> str | None:
        """Where it sends to."""

    @property
    def stop(self) -> StopReason | None:
        """Why it stopped for good, or None while it has not."""

    async def transfer(self, message: Message | bytes, /) -> Awaitable[Outcome | None]:
        """Send a message as soon as it may; awaiting the result gives the outcome."""

    async def close(self) -> None:
        """Close it."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> object:
        """Close it, without waiting if cancelled."""


class Fates(Protocol):
    """Who is told what became of messages."""

    def on_sent(self, entry: Entry) -> None:
        """The peer has accepted it."""

    def on_again(self, entry: Entry) -> None:
        """It will be sent again."""

    def on_poison(self, entry: Entry, why: Outcome | Exception) -> None:
        """It must not be sent again."""

    def on_loaded(self) -> None:
        """`Pump.ready` has more."""


class Pump:
    """Takes entries from a store and sends them.

    Attributes:
        ready: What comes next, in order.
        window: What was transferred and has no outcome yet.
        final: Why nothing can be sent any more, once that is so.
    """

    def __init__(self, fates: Fates, store: Store, options: OutboxOptions) -> None:
        self._fates = fates
        self._store = store
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._heap: list[Entry] = []
        self._current: Entry | None = None  # waiting for credit
        self._ready_bytes = 0
        self._read_to = 0
        self._stored_to = 0
        self._waited_for: dict[int, Entry] = {}  # on disk alone, and somebody waits for the outcome
        self._loading = asyncio.Lock()
        self._resume = 0.0  # when what is in the heap may go
        self._finishing = False
        self._transfers: asyncio.Task[None] | None = None
        self._to_transfer = Waiters(self._loop)
        self._to_settle = Waiters(self._loop)
        self.ready: deque[Entry] = deque()
        self.window: deque[tuple[Entry, Awaitable[Outcome | None]]] = deque()
        self.final: EndpointClosed | DeliveryUnknown | None = None

    # --- what comes in ------------------------------------------------------------------------

    def resume(self, last: int) -> None:
        """Begin with what the store holds, up to this sequence."""
        self._stored_to = last

    def put(self, entries: Sequence[Entry]) -> None:
        """Take entries that were just stored."""
        for entry in entries:
            if entry.sequence <= self._read_to:
                heapq.heappush(self._heap, entry)  # moved behind others that are here already
            elif self._store.volatile or (self._read_to == self._stored_to and self._has_room()):
                self.ready.append(entry)
                self._ready_bytes += len(entry.raw)
                self._read_to = self._stored_to = entry.sequence
            else:
                self._stored_to = max(self._stored_to, entry.sequence)
                if entry.settles and entry.waiter is not None:
                    self._waited_for[entry.sequence] = entry
        self._to_transfer.wake_all()

    def _has_room(self) -> bool:
        return len(self.ready) < READY_MESSAGES and self._ready_bytes < READY_BYTES

    @property
    def unread(self) -> bool:
        """Whether there is more in the store."""
        return self._read_to < self._stored_to

    async def load(self) -> None:
        """Read more if nothing is ready; cancelling loses nothing."""
        async with self._loading:
            if self.ready or not self.unread:
                return
            stored_to = self._stored_to
            entries = await self._store.read(self._read_to, READY_MESSAGES, READY_BYTES)
            self._read_to = entries[-1].sequence if entries else stored_to
            for entry in entries:
                known = self._waited_for.pop(entry.sequence, entry)
                self.ready.append(known)
                self._ready_bytes += len(known.raw)
            self._stored_to = max(self._stored_to, self._read_to)
            self._to_transfer.wake_all()
            self._fates.on_loaded()

    def drop_oldest(self) -> Entry | None:
        """Take back the oldest that is not in flight; None if there is none here, though perhaps in the store."""
        if self._heap:
            return heapq.heappop(self._heap)
        return self._take_ready() if self.ready else None

    def _take_ready(self) -> Entry:
        entry = self.ready.popleft()
        self._ready_bytes -= len(entry.raw)
        return entry

    def outstanding(self) -> list[Entry]:
        """What has not been accepted, as far as it is here, in order."""
        current = [self._current] if self._current is not None else []
        flying = [entry for entry, _ in self.window]
        return sorted([*flying, *current, *self._heap, *self.ready, *self._waited_for.values()])

    @property
    def oldest(self) -> float | None:
        """When the oldest entry that is here was stored, in seconds since 1970."""
        firsts = [self.window[0][0]] if self.window else []
        firsts += [entry for entry in (self._current, *self._heap[:1]) if entry is not None]
        firsts += [self.ready[0]] if self.ready else []
        return min((entry.stored_at for entry in firsts), default=None)

    # --- the two tasks --------------------------------------------------------------------------

    async def run(self, sender: OutboxSender) -> None:
        """Send until told to finish, or until the sender has stopped for good; then `final` says why."""
        tasks = [
            self._loop.create_task(self._transfer(sender), name=f"transfers of outbox to {sender.address!r}"),
            self._loop.create_task(self._outcomes(sender), name=f"outcomes of outbox to {sender.address!r}"),
        ]
        self._transfers = tasks[0]
        if self._finishing:
            self.finish()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await self._reap(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _reap(self, tasks: list[asyncio.Task[None]]) -> None:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            try:
                await asyncio.wait(left)
            except asyncio.CancelledError:
                await self._reap(left)
                raise

    def finish(self) -> None:
        """Transfer no more from disk, and wait for outcomes; from memory, send all there is. Then `run` returns."""
        self._finishing = True
        if self._transfers is not None and not self._store.volatile:
            self._transfers.cancel()  # it may wait for credit, or through an outage
        self._wake()

    def _wake(self) -> None:
        self._to_transfer.wake_all()
        self._to_settle.wake_all()

    @property
    def _done(self) -> bool:
        """Whether no transfer will come any more."""
        if self.final is not None:
            return True
        return self._finishing and not (self._store.volatile and (self.ready or self._heap or self.window))

    async def _transfer(self, sender: OutboxSender) -> None:
        while (entry := await self._next()) is not None:
            self._current = entry
            try:
                pending = await sender.transfer(entry.raw)
            except EndpointClosed as error:
                heapq.heappush(self._heap, entry)  # nothing was sent
                self._on_lost(sender, error)
            except (AMQPError, ValueError) as error:  # too large, say
                self._fates.on_poison(entry, error)
            except BaseException:
                heapq.heappush(self._heap, entry)
                raise
            else:
                self.window.append((entry, pending))
            finally:
                self._current = None
                self._to_settle.wake_all()
        self._to_settle.wake_all()

    async def _next(self) -> Entry | None:
        """Wait for what may be transferred; None when nothing will be."""
        while not self._done:
            delay = None
            if not self.ready and self.unread and not self._finishing:
                await self.load()
                continue
            if len(self.window) < self._options.in_flight:
                if self._heap:
                    delay = self._resume - self._loop.time()
                    if delay <= 0:
                        return heapq.heappop(self._heap)
                elif self.ready:
                    return self._take_ready()
            try:
                async with asyncio.timeout(delay):
                    await self._to_transfer.wait()
            except TimeoutError:
                pass
        return None

    async def _outcomes(self, sender: OutboxSender) -> None:
        window = self.window
        while True:
            if not window:
                if self._done and self._current is None:
                    self._to_transfer.wake_all()
                    return
                await self._to_settle.wait()
                continue
            entry, pending = window[0]
            try:
                outcome = await pending
            except (DeliveryUnknown, EndpointClosed) as error:
                window.popleft()
                self._on_lost(sender, error)
                heapq.heappush(self._heap, entry)
                if self.final is None:
                    self._fates.on_again(entry)
                else:
                    entry.wake(error)
            else:
                self._on_outcome(entry, outcome)
                window.popleft()
            self._to_transfer.wake_all()

    def _on_outcome(self, entry: Entry, outcome: Outcome | None) -> None:
        if isinstance(outcome, Accepted):
            self._fates.on_sent(entry)
        elif outcome is None:
            raise LocalProtocolError(
                "the link sends settled, so what becomes of messages is not known: an outbox needs a sender with "
                "snd_settle_mode UNSETTLED"
            )
        elif isinstance(outcome, Rejected) or (isinstance(outcome, Modified) and outcome.undeliverable_here):
            self._fates.on_poison(entry, outcome)
        else:
            entry.attempts += 1
            if entry.attempts >= self._options.max_attempts:
                self._fates.on_poison(entry, outcome)
            else:
                self._store.attempted(entry)
                self._pause(entry.attempts)
                heapq.heappush(self._heap, entry)
                self._fates.on_again(entry)

    def _on_lost(self, sender: OutboxSender, error: EndpointClosed | DeliveryUnknown) -> None:
        """A delivery is in doubt or was not made: for good, or until the next link."""
        if sender.stop is None:
            self._pause(1)
        elif self.final is None:
            self.final = error
            self._wake()

    def _pause(self, attempts: int) -> None:
        options = self._options
        delay = min(options.retry_interval * 2 ** min(attempts - 1, 64), options.max_retry_interval)
        self._resume = max(self._resume, self._loop.time() + delay)
