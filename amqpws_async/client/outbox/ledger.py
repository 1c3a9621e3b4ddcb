"""The ledger of an outbox: what is in it, what there is room for, and what becomes of each message.

Rules:

* `messages` and `bytes` count what is in the store and what is on its way there. They are raised before an entry is
  handed to the store, and lowered when the entry has its fate, whoever waits for it or does not any more.
* Every message given up is counted, logged and reported, in `drop`.
* The outbox ends once: `failure` makes the error, a new one for each who asks.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ...endpoint import Waiters
from ...errors import AMQPError, DeliveryUnknown, EndpointClosed, OutboxError, OutboxFull, StopReason, closed_error
from ...message import Message
from ...outcomes import Outcome
from ...sender import failed_delivery
from .options import PoisonedMessage, Verdict
from .store import Contents, Entry, PoisonedEntry, Store

if TYPE_CHECKING:
    from .options import OutboxOptions
    from .pump import OutboxSender, Pump

__all__ = ["Ledger", "as_message", "copied"]

logger = logging.getLogger(__name__)

LOG_INTERVAL: Final = 1.0  # seconds: in an outage thousands a second may be dropped


class Ledger:
    """Counts, makes room, and is told by store and pump what happens.

    Attributes:
        store: Where entries are.
        pump: What sends them.
        sender: What the pump sends with, once it is there.
        task: The pump's.
        taking: Whether messages are taken: until the outbox closes.
        failure: Makes the error for whoever comes after the end; None before it.
        sequence: The last one used.
        messages: How many are in the outbox.
        bytes: Their size.
        poisoned: How many are set aside.
        poisoned_bytes: Their size.
        sent: How many were accepted.
        retried: How often one was to be sent again.
        dropped: How many were given up.
        emptied: Woken when nothing is in the outbox any more, and at its end.
    """

    store: Store
    pump: Pump

    def __init__(self, options: OutboxOptions, where: str) -> None:
        self._options = options
        self._where = where
        self._loop = loop = asyncio.get_running_loop()
        self._gate = asyncio.Lock()  # who holds it is the next to get room
        self._room = Waiters(loop)
        self.sender: OutboxSender | None = None
        self.task: asyncio.Task[None] | None = None
        self.taking = True
        self.failure: Callable[[], Exception] | None = None
        self.sequence = 0
        self.messages = self.bytes = self.poisoned = self.poisoned_bytes = 0
        self.sent = self.retried = self.dropped = 0
        self.emptied = Waiters(loop)
        self._logged: dict[str, tuple[float, int]] = {}  # what -> when to log again, how many since

    def begin(self, contents: Contents) -> None:
        """Begin with what the store holds."""
        self.sequence = contents.last
        self.messages, self.bytes = contents.messages, contents.bytes
        self.poisoned, self.poisoned_bytes = contents.poisoned, contents.poisoned_bytes
        if contents.messages:
            self.pump.resume(contents.last)

    # --- the end --------------------------------------------------------------------------------

    @property
    def error(self) -> Exception | None:
        """Why nothing can be sent or stored any more, or None as long as it can."""
        if self.failure is not None:
            return self.failure()
        stop = self.sender.stop if self.sender is not None else None
        return closed_error(stop, self._where) if stop is not None else None

    def check_open(self) -> None:
        """Raise unless messages are taken."""
        error = self.error
        if error is not None:
            raise error
        if not self.taking:
            raise self.closed_error()

    def closed_error(self) -> EndpointClosed:
        """A new error that says that we closed it."""
        return closed_error(StopReason("link", "local"), self._where)

    def close(self) -> None:
        """Take no more messages."""
        self.taking = False
        self._wake()

    def fail(self, failure: Callable[[], Exception], cause: Exception | None = None) -> None:
        """End: nothing is stored or sent any more, and everybody who waits is told."""
        if self.failure is not None:
            return
        self.failure = failure
        if cause is not None:
            logger.error("! %s ends, with %d messages not sent: %s", self._where, self.messages, cause)
        in_flight = {entry.sequence for entry, _ in self.pump.window}
        for entry in self.pump.outstanding():
            if entry.settles:
                entry.wake(self._unsettled(entry, entry.sequence in in_flight))
        self._wake()

    def _unsettled(self, entry: Entry, in_flight: bool) -> Exception:
        """What a call that waits for the outcome raises, as there will be none."""
        assert self.failure is not None
        error = self.failure()
        if in_flight:
            stop = error.stop if isinstance(error, EndpointClosed) else StopReason("link", "local", cause=error)
            return DeliveryUnknown(entry.raw, stop, self._where)
        if not self.store.volatile:
            error.add_note(f"the message is stored in {self._options.path}, and is sent when that is opened again")
        return error

    def _wake(self) -> None:
        self._room.wake_all()
        self.emptied.wake_all()

    # --- coming in --------------------------------------------------------------------------------

    async def add(self, raw: bytes, settles: bool) -> Entry:
        """Make room for a message, and hand it to the store. Cancelled, nothing is stored."""
        if self._gate.locked() or not self._fits(len(raw)):
            await self._make_room(len(raw))
        self.sequence += 1
        entry = Entry(self.sequence, raw, time.time())
        entry.settles = settles
        entry.waiter = self._loop.create_future()
        self.messages += 1
        self.bytes += len(raw)
        self.store.add(entry)
        return entry

    def _fits(self, size: int) -> bool:
        options = self._options
        return self.messages < options.max_messages and self.bytes + size <= options.max_bytes

    async def _make_room(self, size: int) -> None:
        """Get room for one message by the option `overflow`; first come, first served."""
        options = self._options
        if size > options.max_bytes:
            raise self._full(size)
        async with self._gate:
            self.check_open()
            while not self._fits(size):
                if options.overflow == "raise":
                    raise self._full(size)
                if options.overflow == "drop_oldest":
                    await self.pump.load()
                    self.check_open()
                    oldest = self.pump.drop_oldest()
                    if oldest is not None:
                        self._drop_oldest(oldest, size)
                        continue
                await self._room.wait()
                self.check_open()

    def _full(self, size: int) -> OutboxFull:
        options = self._options
        if size <= options.max_bytes and self.messages >= options.max_messages:
            text = f"{self._where} is full: it holds {self.messages} messages (max_messages)"
            return OutboxFull(text, size=self.messages + 1, limit=options.max_messages)
        total = size if size > options.max_bytes else self.bytes + size
        text = f"{self._where} has no room for {size} bytes: it holds {self.bytes} of {options.max_bytes} (max_bytes)"
        return OutboxFull(text, size=total, limit=options.max_bytes)

    def _drop_oldest(self, entry: Entry, size: int) -> None:
        full = self._full(size)
        full.add_note("the message was dropped for a newer one")
        self.store.remove(entry.sequence)
        self._on_gone(entry)
        self.drop(Message.decode(entry.raw), "the outbox is full, and newer messages came (overflow)")
        entry.wake(full)

    def drop(self, message: Message, reason: str) -> None:
        """Count, log and report a message that is given up."""
        self.dropped += 1
        self._log("dropped", message, reason)
        if self._options.on_drop is not None:
            try:
                self._options.on_drop(message, reason)
            except Exception:
                logger.exception("! %s: on_drop failed", self._where)

    def _log(self, what: str, message: Message, reason: str) -> None:
        """Log what became of a message, one of them each second; that line says how many there were."""
        now = self._loop.time()
        not_before, others = self._logged.get(what, (now, 0))
        if now >= not_before:
            more = f", and {others} others since the last such line" if others else ""
            logger.warning("! %s: %s %s: %s%s", self._where, what, _named(message), reason, more)
            self._logged[what] = now + LOG_INTERVAL, 0
        else:
            self._logged[what] = not_before, others + 1

    def log_rest(self) -> None:
        """Log how many messages no line has told of yet."""
        for what, (_, others) in self._logged.items():
            if others:
                logger.warning("! %s: %s %d others since the last such line", self._where, what, others)
        self._logged.clear()

    # --- the store's calls ------------------------------------------------------------------------

    def on_stored(self, entries: Sequence[Entry]) -> None:
        """Report to those who wait for the store, and give all to the pump."""
        for entry in entries:
            if not entry.settles:
                entry.wake()
            elif self.failure is not None:
                entry.wake(self._unsettled(entry, False))
        self.pump.put(entries)

    def on_not_stored(self, entries: Sequence[Entry], error: Exception) -> None:
        """Report to all who wait, each with an error of its own."""
        for entry in entries:
            self._on_gone(entry)
            entry.wake(copied(error))

    def on_returned(self, entries: Sequence[Entry]) -> None:
        """Give what was poison to the pump."""
        size = sum(len(entry.raw) for entry in entries)
        self.on_discarded(len(entries), size)
        self.messages += len(entries)
        self.bytes += size
        self.pump.put(entries)

    def on_discarded(self, count: int, size: int) -> None:
        """Note that so much poison is gone."""
        self.poisoned -= count
        self.poisoned_bytes -= size

    def on_broken(self, error: Exception) -> None:
        """Stop: the store cannot be relied on."""
        self.fail(lambda: copied(error), error)
        if self.task is not None:
            self.task.cancel()

    # --- the pump's calls -------------------------------------------------------------------------

    def on_sent(self, entry: Entry) -> None:
        """Forget a message that was accepted."""
        self.store.remove(entry.sequence)
        self.sent += 1
        self._on_gone(entry)
        entry.wake()

    def on_again(self, entry: Entry) -> None:
        """Count; and it may be dropped now."""
        self.retried += 1
        self.on_loaded()

    def on_loaded(self) -> None:
        """There may be something to drop now."""
        if self._options.overflow == "drop_oldest":
            self._room.wake_all()

    def on_poison(self, entry: Entry, why: Outcome | Exception) -> None:
        """Set a message aside, or drop it, as the option `on_poison` says."""
        error = why if isinstance(why, Exception) else failed_delivery(why, entry.raw, self._where)
        poisoned = PoisonedEntry(entry.sequence, entry.raw, entry.stored_at, entry.attempts, str(error), time.time())
        verdict = self._verdict(poisoned)
        reason = poisoned.reason
        if verdict == "keep" and not self._has_poison_room(len(entry.raw)):
            verdict = "drop"
            reason = f"there is no room to set it aside (max_messages, max_bytes): {reason}"
        self._on_gone(entry)
        if verdict == "keep":
            self.poisoned += 1
            self.poisoned_bytes += len(entry.raw)
            self.store.poison(poisoned)
            self._log("set aside", Message.decode(entry.raw), reason)
        else:
            self.store.remove(entry.sequence)
            self.drop(Message.decode(entry.raw), reason)
        entry.wake(error)

    def _verdict(self, poisoned: PoisonedEntry) -> Verdict:
        policy = self._options.on_poison
        if not callable(policy):
            return policy
        try:
            verdict = policy(as_message(poisoned))
        except Exception:
            logger.exception("! %s: on_poison failed", self._where)
            return "keep"
        return "drop" if verdict == "drop" else "keep"

    def _has_poison_room(self, size: int) -> bool:
        options = self._options
        return self.poisoned < options.max_messages and self.poisoned_bytes + size <= options.max_bytes

    def _on_gone(self, entry: Entry) -> None:
        """A message has its fate: there is room for another."""
        self.messages -= 1
        self.bytes -= len(entry.raw)
        self._room.wake_all()
        if not self.messages:
            self.emptied.wake_all()


def as_message(entry: PoisonedEntry) -> PoisonedMessage:
    """What a user sees of poison."""
    return PoisonedMessage(
        sequence=entry.sequence,
        message=Message.decode(entry.raw),
        reason=entry.reason,
        attempts=entry.attempts,
        stored_at=entry.stored_at,
        poisoned_at=entry.poisoned_at,
    )


def _named(message: Message) -> str:
    """How log lines name a message: by its id, never by anything of its body."""
    try:
        return f"message {message.message_id!r:.100}"
    except AMQPError:
        return "a message that cannot be decoded"


def copied(error: Exception) -> Exception:
    """A new exception like this one: one that is raised again and again collects tracebacks."""
    twin: Exception
    if isinstance(error, EndpointClosed):
        twin = closed_error(error.stop)
        twin.args = error.args
    else:
        try:
            twin = copy.copy(error)
        except TypeError:  # it is made of more than its text
            twin = OutboxError(str(error))
    twin.__cause__ = error.__cause__ or error
    return twin
