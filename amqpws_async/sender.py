"""Sending: credit and room first, then one transfer, then exactly one fate for every delivery.

Life of a sent message::

    encode -> [credit? room?] -> Engine.transfer, synchronous -> flush ... disposition -> PendingDelivery

Nothing is sent before credit and room are there, so a cancelled wait has sent nothing. Nothing waits between taking
credit and the engine having the transfer, so a cancellation never leaves half a message. From then on the delivery is
tracked until its outcome comes or the link stops, whether or not somebody still waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

from .endpoint import EndpointState, Waiters
from .engine import AttachFields, EngineSender, RemoteAttach
from .errors import (
    DecodeError,
    DeliveryFailed,
    DeliveryUnknown,
    EndpointClosed,
    LocalProtocolError,
    MessageModified,
    MessageRejected,
    MessageReleased,
    MessageTooLarge,
    StopReason,
)
from .link import Link
from .message import ACCEPTED, Accepted, Message, Modified, Outcome, Rejected, Released, check_encoded
from .terminus import SenderSettleMode, Source, as_source

if TYPE_CHECKING:
    from .options import SenderOptions
    from .session import Session
    from .terminus import Target

__all__ = ["PendingDelivery", "SendMany", "Sender"]

MAX_TAG_SIZE = 32  # bytes, specification 2.8.7
UNLIMITED = 2**64  # bytes: above every max-message-size
TRANSFER_OVERHEAD = 28  # bytes of a transfer frame around its payload, for the account of unsent bytes


class PendingDelivery:
    """A transfer that was made; await it for its outcome.

    Any number of tasks may await it, and cancelling one of them disturbs neither the others nor the delivery.
    Awaiting gives the `Outcome`, or None for a pre-settled transfer once the transport has it.

    Raises:
        DeliveryUnknown: The link or connection stopped before the outcome came.
    """

    __slots__ = ("_sender", "_state", "_waiters", "message")

    # Set by who makes one: a call of __init__ would cost as much as all the rest of making it.
    message: Message | bytes
    _sender: Sender
    _state: Any  # `Pending`, then an outcome, None once handed over pre-settled, or why the link stopped
    _waiters: list[asyncio.Future[None]] | None

    @property
    def done(self) -> bool:
        """Whether awaiting would not wait."""
        return self._state is not Pending

    @property
    def link(self) -> EngineSender:
        """The engine's link, by which it finds the deliveries of a link that stops."""
        return self._sender._link

    def __await__(self) -> Generator[Any, None, Outcome | None]:
        while self._state is Pending:
            yield from self._wait().__await__()
        state = self._state
        if type(state) is StopReason:
            raise self._unknown(state)
        outcome: Outcome | None = state
        return outcome

    def _unknown(self, stop: StopReason) -> DeliveryUnknown:
        return DeliveryUnknown(self.message, stop, self._sender._destination(self.message))

    async def _wait(self) -> None:
        # One future for each who waits: cancelling a task cancels the future it waits on.
        future = self._sender._loop.create_future()
        if self._waiters is None:
            self._waiters = [future]
        else:
            self._waiters.append(future)
        try:
            await future
        finally:
            # Given up: waits that time out again and again must not pile up.
            if self._waiters is not None and future in self._waiters:
                self._waiters.remove(future)

    def _on_outcome(self, outcome: Fate) -> None:
        self._state = outcome
        waiters = self._waiters
        if waiters is not None:
            self._waiters = None
            for future in waiters:
                if not future.done():
                    future.set_result(None)

    def _on_handed(self) -> None:
        self._on_outcome(None)

    def _fail(self, stop: StopReason) -> None:
        self._on_outcome(stop)

    def __repr__(self) -> str:
        state = self._state
        text = "pending" if state is Pending else repr(state)
        if isinstance(state, StopReason):
            text = f"in doubt, {state}"
        return f"<PendingDelivery to {self._sender.address!r} {text}>"


class _TaggedDelivery(PendingDelivery):
    """A transfer with a tag of the user's, which is free again once it is settled."""

    __slots__ = ("tag",)

    tag: bytes

    def _on_outcome(self, outcome: Fate) -> None:
        self._sender._tags.discard(self.tag)
        super()._on_outcome(outcome)


class Pending:
    """Stands, as a class, for the outcome that has not come."""


#: What a delivery is told: its outcome, None once handed over pre-settled, why the link stopped, or to wait on.
Fate = Outcome | StopReason | type[Pending] | None


class Sender(Link):
    """The sending end of a link; any number of tasks may share it.

    Made by `Session.sender` or `Connection.sender`.
    """

    role = "sender"

    def __init__(self, session: Session, target: Target | None, options: SenderOptions) -> None:
        super().__init__(session, options.name, target.address if target is not None else None)
        self._fields = AttachFields(
            # With an address: peers built on proton take a source without one for none at all.
            source=Source(address=self._name) if options.source is None else as_source(options.source),
            target=target,
            snd_settle_mode=options.snd_settle_mode,
            rcv_settle_mode=options.rcv_settle_mode,
            max_message_size=options.max_message_size,
            properties=options.properties,
        )
        self._link: EngineSender = session._link.sender(self._name, self)
        self._waiting = Waiters(self._loop)  # for credit
        self._tags: set[bytes] = set()  # given by the user and not settled yet (specification 2.6.12)
        self._max_size = UNLIMITED
        self._presettled = False

    # --- what is known ----------------------------------------------------------------

    @property
    def unsettled(self) -> int:
        """Transfers made whose outcome has not come; pre-settled ones wait for none."""
        return self._link.unsettled if self._stop is None else 0

    def _in_hand(self) -> int:
        return self.unsettled

    def _far_terminus(self, remote: RemoteAttach) -> Target | None:
        return remote.target

    # --- sending ----------------------------------------------------------------------

    async def send(
        self, message: Message | bytes, *, settled: bool | None = None, tag: bytes | None = None
    ) -> Accepted | None:
        """Send one message and wait for its outcome.

        Cancelling while it waits for credit or room sends nothing. Cancelling later leaves the delivery in doubt for
        the caller; it stays tracked and is settled when its outcome comes.

        Args:
            message: The message, or the bytes of a complete encoded message.
            settled: True sends it settled: the peer will not answer. Default: what the link's settle mode says.
            tag: The delivery tag, 1 to 32 bytes, unique among the unsettled deliveries of the link. Default: a counter.

        Returns:
            `Accepted`, or None for a pre-settled message, which the transport has then taken and of whose fate nothing
            is known.

        Raises:
            MessageRejected: The peer found it invalid. A `DeliveryFailed`, as are the next two.
            MessageReleased: The peer did not take it.
            MessageModified: The peer gave it back.
            DeliveryUnknown: It was sent, and the link or connection stopped before the outcome came.
            LinkClosed: The link stopped before anything was sent. Likewise `SessionClosed` and `ConnectionClosed`.
            MessageTooLarge: It is over the link's max-message-size; nothing was sent.
            LocalProtocolError: `settled` does not go with the link's settle mode, or the tag is in use.
            ValueError: The bytes are no encoded message, or the tag is too long.
        """
        pending = await self.transfer(message, settled=settled, tag=tag)
        if pending._state is Pending:
            future = self._loop.create_future()  # as in its `_wait`, but nobody else knows it
            pending._waiters = [future]
            runner = self._runner
            if runner.alone:
                runner.hasten()
            await future
        outcome = pending._state
        if outcome is ACCEPTED or outcome is None:
            return outcome
        if type(outcome) is StopReason:
            raise pending._unknown(outcome)
        raise failed_delivery(outcome, message, self._destination(message))

    async def transfer(
        self, message: Message | bytes, *, settled: bool | None = None, tag: bytes | None = None
    ) -> PendingDelivery:
        """Send one message; wait only until credit and room allow the transfer.

        Cancelling sends nothing.

        Args:
            message: As for `send`.
            settled: As for `send`.
            tag: As for `send`.

        Returns:
            The delivery; await it for its outcome.

        Raises:
            LinkClosed: The link stopped before anything was sent. Likewise `SessionClosed` and `ConnectionClosed`.
            MessageTooLarge: It is over the link's max-message-size; nothing was sent.
            LocalProtocolError: `settled` does not go with the link's settle mode, or the tag is in use.
            ValueError: The bytes are no encoded message, or the tag is too long.
        """
        data = message._encode() if type(message) is Message else encoded(message)
        size = len(data)
        if size > self._max_size:
            raise MessageTooLarge(size, self._max_size, self._destination(message))
        if settled is None:
            settled = self._presettled
        else:
            self._check_settled(settled)
        if tag is not None and not 0 < len(tag) <= MAX_TAG_SIZE:
            raise ValueError(f"a delivery tag has 1 to {MAX_TAG_SIZE} bytes, not {len(tag)}")
        link, runner = self._link, self._runner
        if link.credit <= 0 or runner.unsent >= runner.high_water:
            await self._ready()
        pending = PendingDelivery() if tag is None else self._tagged(tag)
        pending.message = message
        pending._sender = self
        pending._state = Pending
        pending._waiters = None
        if settled:
            link.transfer(data, None, tag)
            runner.hand(pending)
        else:
            link.transfer(data, pending, tag)
        runner.unsent += size + TRANSFER_OVERHEAD
        if not runner.dirty:
            runner.wake()
        return pending

    async def _transmit(self, pending: PendingDelivery, data: bytes, settled: bool | None, tag: bytes | None) -> None:
        """Transfer a delivery that somebody else has made; as `transfer` otherwise."""
        size = len(data)
        if size > self._max_size:
            raise MessageTooLarge(size, self._max_size, self._destination(pending.message))
        if settled is None:
            settled = self._presettled
        else:
            self._check_settled(settled)
        link, runner = self._link, self._runner
        if link.credit <= 0 or runner.unsent >= runner.high_water:
            await self._ready()
        if tag is not None:
            self._claim(tag)
        pending._sender = self
        link.transfer(data, None if settled else pending, tag)
        if settled:
            runner.hand(pending)
        runner.unsent += size + TRANSFER_OVERHEAD
        runner.wake()

    def send_many(
        self, messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes], *, in_flight: int = 1000
    ) -> SendMany:
        """Send many messages, keeping up to `in_flight` of them without outcome.

        Args:
            messages: The messages, from an iterable or an async iterable. While an async iterable makes us wait for its
                next message, outcomes that have come wait too: for a slow source, use `send`.
            in_flight: How many may be without outcome at once, default 1000.

        Returns:
            An async iterator of ``(message, outcome)`` in the order of `messages`. The outcome is a
            `DeliveryUnknown` where the link or connection stopped first; if messages are left then, the iterator ends
            by raising `LinkClosed`, `SessionClosed` or `ConnectionClosed`. Leaving it early starts no new transfer, and
            those in flight stay tracked.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        return SendMany(self, messages, in_flight)

    def _destination(self, message: Message | bytes) -> str:
        return destination(self._address, message) or self._where

    def _tagged(self, tag: bytes) -> _TaggedDelivery:
        self._claim(tag)
        pending = _TaggedDelivery()
        pending.tag = tag
        return pending

    def _claim(self, tag: bytes) -> None:
        """Note a tag as in use, until it is settled."""
        if not 0 < len(tag) <= MAX_TAG_SIZE:
            raise ValueError(f"a delivery tag has 1 to {MAX_TAG_SIZE} bytes, not {len(tag)}")
        if tag in self._tags:
            raise LocalProtocolError(f"{self._where}: the delivery tag {tag!r} is in use by an unsettled delivery")
        self._tags.add(tag)

    def _check_settled(self, settled: bool) -> None:
        if self._fields.snd_settle_mode is SenderSettleMode.SETTLED and not settled:
            raise LocalProtocolError(
                f"{self._where} was attached with snd_settle_mode SETTLED: every transfer is settled"
            )
        if self._fields.snd_settle_mode is SenderSettleMode.UNSETTLED and settled:
            raise LocalProtocolError(f"{self._where} was attached with snd_settle_mode UNSETTLED: use MIXED to choose")

    async def _ready(self) -> None:
        """Wait for credit and for room; raise if the link stops."""
        runner = self._runner
        try:
            while True:
                self._check_open()
                if runner.unsent >= runner.high_water:
                    await runner.room.wait()
                elif self._link.credit <= 0:
                    await self._waiting.wait()
                else:
                    return
        except BaseException:
            if self._link.credit > 0:  # somebody else may use what we were woken for
                self._waiting.wake()
            raise

    # --- the engine's calls ---------------------------------------------------------------

    def _on_attached(self, remote: RemoteAttach) -> None:
        limits = (self._fields.max_message_size, remote.max_message_size)
        self._max_size = min((limit for limit in limits if limit), default=UNLIMITED)
        asked = self._fields.snd_settle_mode
        agreed = remote.snd_settle_mode if asked is SenderSettleMode.MIXED else asked
        self._presettled = agreed is SenderSettleMode.SETTLED
        super()._on_attached(remote)

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        if self._state is EndpointState.CLOSING or self._stop is not None:
            self._link.credit = 0  # no transfer may start: nobody would hear of its outcome
        elif credit > 0 and self._waiting:
            self._waiting.wake(credit)
            if drain:
                self._loop.call_soon(self._drained)  # after those woken have used it
        elif drain:
            self._drained()

    def _drained(self) -> None:
        if self._stop is None:
            self._link.drained()
            self._runner.wake()

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            for pending in self._runner.engine.take_outgoing(self._link):
                pending._fail(stop)
            super()._fail(stop)
            self._link.credit = 0
            self._waiting.wake_all()
            self._runner.room.wake_all()

    # --- closing --------------------------------------------------------------------------

    def _quiesce(self) -> None:
        self._link.credit = 0
        self._waiting.wake_all()
        self._runner.room.wake_all()

    def _in_flight(self) -> list[PendingDelivery]:
        """What was sent and is not over, pre-settled deliveries included that the transport has not taken yet."""
        return self._runner.in_flight(self._link)

    async def _finish(self, deadline: float) -> None:
        """Wait for the outcomes in flight, up to the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                for pending in self._in_flight():
                    if not pending.done:
                        await pending._wait()
        except TimeoutError:
            pass


def encoded(message: Message | bytes) -> bytes:
    """Check what was given in place of a message proper."""
    if isinstance(message, Message):
        return message.encode()
    if not isinstance(message, (bytes, bytearray, memoryview)):
        kind = type(message).__name__
        raise TypeError(f"send a Message, or the bytes of an encoded one, not {kind}: try Message(...)")
    return check_encoded(bytes(message))


def destination(address: str | None, message: Message | bytes) -> str | None:
    """How errors name where a message was to go, or None where the link's own name will do.

    Args:
        address: The link's; on the anonymous terminus, which has none, the message says.
        message: What was to be sent.
    """
    if not address and isinstance(message, Message):
        with contextlib.suppress(DecodeError):
            if message.to:
                return f"sender to {message.to!r}"
    return None


def failed_delivery(outcome: Outcome, message: Message | bytes, where: str) -> DeliveryFailed:
    """The exception for an outcome other than accepted."""
    if isinstance(outcome, Rejected):
        why = str(outcome.error) if outcome.error else "no reason given"
        return MessageRejected(f"{where}: the message was rejected: {why}", outcome=outcome, message=message)
    if isinstance(outcome, Released):
        text = f"{where}: the message was released: the peer did not take it, it may be sent again"
        return MessageReleased(text, outcome=outcome, message=message)
    if isinstance(outcome, Modified):
        return MessageModified(f"{where}: the message was given back, {outcome}", outcome=outcome, message=message)
    return DeliveryFailed(f"{where}: the peer settled without an outcome", outcome=outcome, message=message)


class Sending(Protocol):
    """What sends for `SendMany`: a `Sender`, or a client's."""

    _stop: StopReason | None
    _link: Any

    async def transfer(self, message: Message | bytes) -> PendingDelivery: ...


class SendMany:
    """Made by `Sender.send_many`: an async iterator of every message with its outcome, in order.

    Cancelling ``anext`` loses nothing: the next call goes on where it stopped.
    """

    __slots__ = ("_async", "_exhausted", "_held", "_in_flight", "_sender", "_sync", "_window")

    def __init__(
        self,
        sender: Sending,
        messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes],
        in_flight: int,
    ) -> None:
        self._sender = sender
        self._in_flight = in_flight
        self._window: deque[PendingDelivery] = deque()
        self._held: Message | bytes | None = None  # taken from the source and not transferred yet
        self._exhausted = False
        self._sync: Iterator[Message | bytes] | None = None
        self._async: AsyncIterator[Message | bytes] | None = None
        if isinstance(messages, AsyncIterable):
            self._async = messages.__aiter__()
        else:
            self._sync = iter(messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Message | bytes, Outcome | DeliveryUnknown | None]:
        """Give the next message with its outcome.

        Raises:
            LinkClosed: The link stopped with messages left. Likewise `SessionClosed` and `ConnectionClosed`.
        """
        window, sender, source = self._window, self._sender, self._sync
        while not self._exhausted and len(window) < self._in_flight:
            if window:
                if sender._stop is not None:
                    break
                if (source is None or sender._link.credit <= 0) and window[0].done:
                    break  # an outcome is here, and going on might wait
            message: Any = self._held
            if message is None:
                try:
                    message = next(source) if source is not None else await anext(self._async)  # type: ignore[arg-type]
                except (StopIteration, StopAsyncIteration):
                    self._exhausted = True
                    break
                self._held = message
            try:
                window.append(await sender.transfer(message))
            except EndpointClosed:
                if window:
                    break
                raise
            self._held = None
        if not window:
            raise StopAsyncIteration
        pending = window[0]
        while pending._state is Pending:
            await pending._wait()
        window.popleft()
        state = pending._state
        return pending.message, pending._unknown(state) if type(state) is StopReason else state

    async def aclose(self) -> None:
        """Start no new transfer; those in flight stay tracked. Iteration then gives their outcomes and ends.

        This does not wait, so there is nothing to cancel.
        """
        self._exhausted = True
        self._held = None
