"""`Outbox`: what a user sees of storing and sending.

The outbox owns one task, the pump's, and the store, whose thread it ends; `Ledger` knows what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from ...endpoint import BODY_FAILED_TIMEOUT, EndpointState, Waiters
from ...errors import AMQPError, LocalProtocolError, OutboxError, OutboxUnsent, closed_error
from ...message import Message, MessageId
from ...sender import encoded
from .ledger import Ledger, as_message, copied
from .options import OutboxArguments, OutboxOptions, OutboxStatistics, PoisonedMessage, Wait
from .pump import OutboxSender, Pump
from .store import MemoryStore, Store

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)


class Outbox:
    """Stores messages, and sends them in their order as the broker takes them; any number of tasks may share it.

    Made by `Client.outbox`::

        async with client.outbox("orders", path="orders.outbox", durability="full") as outbox:
            await outbox.send(message)                  # stored: it will be sent, also after a restart
            await outbox.send(message, wait="settled")  # accepted by the broker

    Delivery is at least once: what was accepted shortly before a crash, or was in doubt, is sent again, the same bytes
    under the same message-id, which is made a random UUID where it is absent.

    Args:
        sender: What to send with; or what gives it when awaited, such as an `Opening`: then the outbox takes messages
            at once, and opens it in the background. Closed with the outbox, also if that cannot be opened.
        path: The file; None, the default, keeps messages in memory.
        address: Where the sender sends to, where it is still to be opened; else it is asked. A file is for one address.
        **options: The other fields of `OutboxOptions`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        sender: OutboxSender | Awaitable[OutboxSender],
        path: str | Path | None = None,
        *,
        address: str | None = None,
        **options: Unpack[OutboxArguments],
    ) -> None:
        self._ledger: Ledger | None = None  # once opening has begun
        self._state = EndpointState.OPENING
        self._options = OutboxOptions(path=path, **options)
        self._path = None if path is None else Path(path)
        self._sender: OutboxSender | None = None
        self._opening: Awaitable[OutboxSender] | None = None
        if inspect.isawaitable(sender):
            self._opening = sender
        else:
            self._sender = sender
            address = sender.address if address is None else address
        self._address = address
        self._unsent: list[Message] = []  # at the end, of those in memory

    # --- what is known ------------------------------------------------------------------------

    @property
    def address(self) -> str | None:
        """Where messages go; None for the anonymous terminus."""
        return self._address

    @property
    def path(self) -> Path | None:
        """The file, or None if messages are in memory."""
        return self._path

    @property
    def options(self) -> OutboxOptions:
        """The options it was made with."""
        return self._options

    @property
    def state(self) -> EndpointState:
        """Where the outbox is in its life."""
        return self._state

    @property
    def error(self) -> Exception | None:
        """Why nothing can be stored or sent any more, or None as long as it can."""
        return self._ledger.error if self._ledger is not None else None

    @property
    def statistics(self) -> OutboxStatistics:
        """What is in it now, and what it has done since it was opened."""
        ledger = self._ledger
        if ledger is None:
            return OutboxStatistics()
        oldest = ledger.pump.oldest
        return OutboxStatistics(
            stored=ledger.messages,
            bytes=ledger.bytes,
            in_flight=len(ledger.pump.window),
            oldest_age=None if oldest is None else max(0.0, time.time() - oldest),
            poisoned=ledger.poisoned,
            sent=ledger.sent,
            retried=ledger.retried,
            dropped=ledger.dropped,
            commits=ledger.store.commits,
        )

    @property
    def _where(self) -> str:
        return f"outbox to {self._address!r}" if self._address else "outbox to the anonymous terminus"

    def __repr__(self) -> str:
        place = "memory" if self._path is None else str(self._path)
        stored = self._ledger.messages if self._ledger is not None else 0
        return f"<Outbox {self._address!r} in {place} {self._state.value} stored={stored}>"

    # --- opening --------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the store, and begin to send what it holds from before. It opens once.

        Cancelling closes what was opened, and the sender.

        Returns:
            The outbox.

        Raises:
            OutboxError: The file is in use, damaged, of something else, or cannot be written; the text says what to do.
        """
        if self._state is not EndpointState.OPENING or self._ledger is not None:
            raise LocalProtocolError(f"{self._where} opens once: make another one")
        self._ledger = ledger = Ledger(self._options, self._where)
        self._closed = Waiters(asyncio.get_running_loop())
        ledger.store = self._make_store(ledger)
        ledger.pump = Pump(ledger, ledger.store, self._options)
        ledger.sender = self._sender
        try:
            contents = await ledger.store.open()
        except BaseException as error:
            self._state = EndpointState.CLOSED
            ledger.store.stop()
            await self._leave_sender(error)
            if inspect.iscoroutine(self._opening):
                self._opening.close()
            with contextlib.suppress(OutboxError):
                await ledger.store.close()  # then the file is free
            raise
        ledger.begin(contents)
        if contents.messages:
            logger.info("= %s: %d messages from before in %s", self._where, contents.messages, self._path)
        self._state = EndpointState.OPEN
        ledger.task = asyncio.create_task(self._run(ledger), name=self._where)
        return self

    def _make_store(self, ledger: Ledger) -> Store:
        if self._path is None:
            return MemoryStore(ledger)
        try:
            from .disk import DiskStore  # sqlite3 takes time to load, and some builds of Python are without it
        except ImportError as error:
            raise OutboxError(f"{self._where}: a file needs Python's sqlite3 module: {error}") from error
        return DiskStore(ledger, self._path, self._options.durability, self._address)

    async def __aenter__(self) -> Self:
        return await self.open() if self._ledger is None else self

    async def _run(self, ledger: Ledger) -> None:
        """The pump's task: sends until closed. What goes wrong ends the outbox, and is not raised here."""
        try:
            if ledger.sender is None:
                assert self._opening is not None
                ledger.sender = await self._opening
            await ledger.pump.run(ledger.sender)
        except asyncio.CancelledError:
            ledger.fail(ledger.closed_error)
            raise
        except Exception as error:
            ledger.fail(_each(error, self._where), error)
        else:
            final = ledger.pump.final
            if final is not None:
                ledger.fail(lambda: closed_error(final.stop, self._where), final)

    # --- sending ----------------------------------------------------------------------------------

    async def send(self, message: Message | bytes, *, wait: Wait | None = None) -> MessageId:
        """Store a message, to be sent behind those before it.

        Calls that run at the same time share a transaction: with ``durability="full"`` a thousand tasks store a
        thousand messages in little more time than one.

        Cancelling while it waits for room stores nothing. Cancelled later, the message may be stored, and is sent then.

        Args:
            message: The message, or the bytes of a complete encoded message. It is encoded at once and not changed:
                where it has no message-id, what is stored gets one.
            wait: ``"stored"`` returns when it is stored, ``"settled"`` when the peer has accepted it. Default: the
                option `wait`.

        Returns:
            The message-id it is sent with.

        Raises:
            OutboxFull: There is no room, and `overflow` says to raise; or the message is larger than the outbox; or,
                with ``wait="settled"``, it was dropped for a newer one.
            OutboxError: It could not be stored.
            MessageRejected: With ``wait="settled"``: it became poison. A `DeliveryFailed`, as are `MessageReleased` and
                `MessageModified`, which come when it was given back too often.
            MessageTooLarge: With ``wait="settled"``: it is over the link's max-message-size, and so became poison.
            DeliveryUnknown: With ``wait="settled"``: it was transferred, and the sender ended before the outcome came.
            LinkClosed: The outbox or its sender was closed. Likewise `SessionClosed` and `ConnectionClosed`. With
                ``wait="settled"`` the message may be stored: a note of the error says so.
            EncodeError: A value that AMQP cannot carry.
            ValueError: The bytes are no encoded message, or `wait` is none of the two.
        """
        wait = self._options.wait if wait is None else wait
        if wait != "stored" and wait != "settled":
            raise ValueError(f"wait: 'stored' or 'settled', not {wait!r}")
        ledger = self._opened()
        ledger.check_open()
        raw, message_id = _identified(message)
        entry = await ledger.add(raw, wait == "settled")
        if entry.waiter is not None:
            try:
                await entry.waiter
            finally:
                entry.waiter = None
        if entry.error is not None:
            raise entry.error
        return message_id

    async def flush(self) -> None:
        """Wait until nothing is stored any more: all was accepted, dropped, or set aside as poison.

        Cancelling changes nothing.

        Raises:
            LinkClosed: The outbox or its sender was closed. Likewise `SessionClosed` and `ConnectionClosed`.
            OutboxError: The store failed.
        """
        ledger = self._opened()
        while ledger.messages:
            ledger.check_open()
            await ledger.emptied.wait()

    def _opened(self) -> Ledger:
        ledger = self._ledger
        if ledger is None or self._state is EndpointState.OPENING:
            raise LocalProtocolError(f"{self._where} is not open yet: use `async with`, or await its open()")
        return ledger

    # --- poison ---------------------------------------------------------------------------------------

    async def poisoned(self, *, after: int = 0, limit: int = 1000) -> list[PoisonedMessage]:
        """Read the messages that were set aside, oldest first. Cancelling changes nothing.

        Args:
            after: The `sequence` of the last one seen, to page through many; 0, the default, is from the start.
            limit: How many at most, 1000 by default.

        Raises:
            OutboxError: The file cannot be read, or the outbox is closed.
        """
        return [as_message(entry) for entry in await self._opened().store.poisoned(after, limit)]

    async def retry_poisoned(self, sequences: Collection[int] | None = None) -> int:
        """Send poison again, behind all that is stored, with its attempts forgotten; it may pass the limits by that.

        Cancelling stops the waiting alone: it may be done all the same.

        Args:
            sequences: Those of the messages to move; None, the default, is all.

        Returns:
            How many there were.

        Raises:
            OutboxError: The file cannot be written, or the outbox is closed.
        """
        ledger = self._opened()
        first = ledger.sequence + 1
        ledger.sequence += ledger.poisoned  # it cannot be more
        return await ledger.store.retry(sequences, first)

    async def discard_poisoned(self, sequences: Collection[int] | None = None) -> int:
        """Delete poison for good; nothing is reported to `on_drop`.

        Cancelling stops the waiting alone: it may be done all the same.

        Args:
            sequences: Those of the messages to delete; None, the default, is all.

        Returns:
            How many there were.

        Raises:
            OutboxError: The file cannot be written, or the outbox is closed.
        """
        return await self._opened().store.discard(sequences)

    # --- closing --------------------------------------------------------------------------------------

    async def close(self) -> int:
        """Wait for what is in flight, up to `close_timeout` seconds, then close file and sender; idempotent.

        From memory all there is is sent within that time, since what is left is lost. Cancelling closes at once.

        Returns:
            How many messages are in the file, and are sent when it is opened again.

        Raises:
            OutboxUnsent: Messages in memory were not sent; it hands them over.
            OutboxError: Which messages were sent could not be written: those will be sent again.
        """
        return await self._close(self._options.close_timeout)

    async def _close(self, timeout: float) -> int:
        ledger = self._ledger
        if self._state is EndpointState.OPENING:
            if ledger is not None:
                raise LocalProtocolError(f"{self._where} is being opened: cancel that to close it")
            self._state = EndpointState.CLOSED
            if self._sender is not None:
                await self._sender.close()
        while self._state is EndpointState.CLOSING:
            await self._closed.wait()
        if ledger is None or self._state is EndpointState.CLOSED:
            return 0 if ledger is None or self._path is None else ledger.messages
        self._state = EndpointState.CLOSING
        failure = ledger.error
        task = ledger.task
        assert task is not None
        try:
            ledger.close()
            ledger.pump.finish()
            # The opening of a sender is only waited for where messages would be lost.
            worth = ledger.sender is not None or (self._path is None and ledger.messages > 0)
            if worth and ledger.failure is None:
                await asyncio.wait([task], timeout=timeout)
            task.cancel()
            await asyncio.wait([task])
            ledger.fail(ledger.closed_error)
            await ledger.store.close()
            if ledger.pump.window:  # its time is up
                await self._leave_sender(asyncio.CancelledError())
            elif ledger.sender is not None:
                await ledger.sender.close()
        except BaseException as error:
            await self._abort(ledger, error)
            raise
        finally:
            self._on_closed(ledger)
        if self._unsent:
            text = f"{self._where}: closed with {len(self._unsent)} messages in memory, not sent"
            raise OutboxUnsent(text, messages=self._unsent) from failure
        return ledger.messages

    async def _abort(self, ledger: Ledger, error: BaseException) -> None:
        """Close at once, waiting for nothing but the transaction that runs."""
        assert ledger.task is not None
        self._state = EndpointState.CLOSING
        try:
            ledger.close()
            ledger.task.cancel()
            ledger.store.stop()
            await self._leave_sender(error)
            await asyncio.wait([ledger.task])
            ledger.fail(ledger.closed_error)
            with contextlib.suppress(OutboxError):  # it was logged
                await ledger.store.close()
        finally:
            self._on_closed(ledger)

    async def _leave_sender(self, error: BaseException) -> None:
        """Give the sender up, without waiting if `error` is a cancellation."""
        sender = self._ledger.sender if self._ledger is not None else None
        if sender is not None:
            await sender.__aexit__(type(error), error, error.__traceback__)

    def _on_closed(self, ledger: Ledger) -> None:
        """The end: whoever waits is told, and so is what was not sent."""
        if self._state is EndpointState.CLOSED:
            return
        self._state = EndpointState.CLOSED
        self._closed.wake_all()
        if inspect.iscoroutine(self._opening):
            self._opening.close()  # if it has not begun
        ledger.fail(ledger.closed_error)
        if self._path is None:
            self._unsent = [Message.decode(entry.raw) for entry in ledger.pump.outstanding()]
            for message in self._unsent:
                ledger.drop(message, "the outbox, in memory, was closed before it was sent")
        ledger.log_rest()
        if ledger.messages and self._path is not None:
            logger.info("= %s: closed with %d messages in %s, not sent", self._where, ledger.messages, self._path)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, quickly and without raising over its exception."""
        if error is None:
            await self.close()
        elif self._ledger is None or self._state is not EndpointState.OPEN:
            pass  # somebody closes it already
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            await self._abort(self._ledger, error)
        else:
            try:
                await self._close(min(BODY_FAILED_TIMEOUT, self._options.close_timeout))
            except (AMQPError, TimeoutError, OSError) as exc:
                logger.warning("! %s: close after an error in the body: %s", self._where, exc)

    def __del__(self) -> None:
        if self._state is EndpointState.OPEN:
            warnings.warn(
                f"{self!r} was never closed: use `async with`, or await its close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def _identified(message: Message | bytes) -> tuple[bytes, MessageId]:
    """Encode a message, with a message-id if it has none; the caller's own stays as it is."""
    if not isinstance(message, Message):
        message = Message.decode(encoded(message))
    message_id = message.message_id
    if message_id is None:
        # A copy: one that is sent again and again, as a template, is a new message each time.
        message = copy.copy(message)
        message.message_id = message_id = uuid.uuid4()
    return message.encode(), message_id


def _each(error: Exception, where: str) -> Callable[[], Exception]:
    """What makes an error for each who asks why the pump ended."""
    if isinstance(error, AMQPError | TimeoutError | OSError):
        return lambda: copied(error)

    def unexpected() -> OutboxError:
        made = OutboxError(f"{where} ended: {error!r}")
        made.__cause__ = error
        return made

    return unexpected
