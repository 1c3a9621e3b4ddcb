"""Receiving: a window of credit bounded in messages and in bytes, a queue, and settlement.

Life of a received message::

    Engine -> Receiver._on_delivery -> queue, one waiter woken -> the user takes it -> window topped up -> settlement

The window is what is on its way plus what waits in the queue. It is topped up once half of it has been taken. It starts
at `FIRST_WINDOW`, doubles at each top-up while messages are small, and shrinks as they grow: never more messages than
`max_prefetch_bytes` holds of the largest one seen lately. So the worst case in memory is the budget plus the credit
already granted times the largest message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from .endpoint import EndpointState, Waiters
from .engine import AttachFields, EngineReceiver, RemoteAttach
from .errors import ErrorCondition, LocalProtocolError, SettlementLost, StopReason
from .link import Link
from .message import ACCEPTED, DATA8, RELEASED, Message, Modified, Outcome, Received, Rejected, lazy
from .processing import FAILED, Processor
from .terminus import ReceiverSettleMode, as_target

if TYPE_CHECKING:
    from .message import Body
    from .options import ReceiverOptions
    from .processing import Handler, ProcessArguments, ProcessStatistics
    from .session import Session
    from .terminus import Source

__all__ = ["Delivery", "Receiver"]

FIRST_WINDOW: Final = (
    16  # messages: at the default max_message_size and budget, a first burst of 256 MiB at the very worst
)


class Delivery:
    """A message that arrived, and the way to settle it.

    Attributes:
        raw: The encoded message as it came.
    """

    __slots__ = ("_message", "_pointer", "_receiver", "_tag", "raw")

    # Set by who makes one: a call of __init__ would cost as much as all the rest of making it.
    raw: bytes
    _receiver: Receiver
    _pointer: Any  # None once settled
    _tag: bytes | None
    _message: Message | None

    @property
    def message(self) -> Message:
        """The message, decoded section by section as it is read."""
        message = self._message
        if message is None:
            message = self._message = lazy(self.raw)
        return message

    @property
    def body(self) -> Body:
        """The message's body: bytes for one data section, else `Data`, `Sequence`, `Value`, or None."""
        if self._message is None:
            raw = self.raw  # a message of one small data section, of which this alone is wanted, need not be made
            size = len(raw) - 5
            if size < 256 and raw[:5] == DATA8[size]:
                return raw[5:]
        return self.message.body

    @property
    def tag(self) -> bytes:
        """The delivery tag, read on first use: once the delivery is settled, only a tag that was read before is known.

        Raises:
            LocalProtocolError: The delivery is settled or its link gone, and the tag was never read. (Copying each tag
                would add a tenth to the cost of every message.)
        """
        tag = self._tag
        if tag is None:
            tag = self._tag = self._receiver._tag_of(self._pointer)
        return tag

    @property
    def receiver(self) -> Receiver:
        """The receiver it came by."""
        return self._receiver

    @property
    def settled(self) -> bool:
        """Whether it is settled, by us or by the peer."""
        pointer = self._pointer
        return pointer is None or self._receiver._settled_by_peer(pointer)

    async def accept(self, *, confirm: bool = False) -> None:
        """Settle as accepted: the message is processed, the peer forgets it.

        This returns once the settlement is queued, and it is written soon. Cancelling the wait for a confirmation
        changes nothing of the settlement itself. A delivery that came settled needs none of this: it is then ignored.

        Args:
            confirm: Wait until the peer has settled as well. Needs `rcv_settle_mode` SECOND on both sides.

        Raises:
            SettlementLost: The link is gone, so the peer will deliver the message again.
            LocalProtocolError: It was settled before, or `confirm` does not go with the settle mode.
        """
        if not confirm:
            receiver, pointer = self._receiver, self._pointer
            link = receiver._first_mode_link
            if link is not None and pointer is not None:
                self._pointer = None
                link.accept(pointer)
                runner = receiver._runner
                if not runner.dirty:
                    runner.wake()
                return
        await self._receiver._settle(self, ACCEPTED, confirm)

    async def reject(
        self,
        condition: str | ErrorCondition | None = None,
        description: str | None = None,
        info: Mapping[str, Any] | None = None,
        *,
        confirm: bool = False,
    ) -> None:
        """Settle as rejected: the message is invalid; brokers move it to a dead-letter queue or drop it.

        Args:
            condition: The error's symbol, such as ``"amqp:decode-error"``, or a whole `ErrorCondition`, or None.
            description: Text for people.
            info: Details.
            confirm: As for `accept`.

        Raises:
            SettlementLost: The link is gone, so the peer will deliver the message again.
            LocalProtocolError: As for `accept`.
            ValueError: A description or details without a condition.
            EncodeError: AMQP cannot carry one of the details; the delivery is not settled.
        """
        if isinstance(condition, ErrorCondition):
            error: ErrorCondition | None = condition
        elif condition is not None:
            error = ErrorCondition(condition, description, info or {})
        elif description is not None or info is not None:
            raise ValueError("reject: a description or info needs a condition, such as 'amqp:decode-error'")
        else:
            error = None
        await self._receiver._settle(self, Rejected(error), confirm)

    async def release(self, *, confirm: bool = False) -> None:
        """Settle as released: not processed, and anyone may have it, as it was.

        Args:
            confirm: As for `accept`.

        Raises:
            SettlementLost: The link is gone, so the peer will deliver the message again.
            LocalProtocolError: As for `accept`.
        """
        await self._receiver._settle(self, RELEASED, confirm)

    async def modify(
        self,
        *,
        delivery_failed: bool = False,
        undeliverable_here: bool = False,
        message_annotations: Mapping[str, Any] | None = None,
        confirm: bool = False,
    ) -> None:
        """Settle as modified: not processed, given back with changes.

        Args:
            delivery_failed: Count this as a failed attempt (raises the delivery-count).
            undeliverable_here: Do not send it to this receiver again.
            message_annotations: Entries to merge into the message's annotations.
            confirm: As for `accept`.

        Raises:
            SettlementLost: The link is gone, so the peer will deliver the message again.
            LocalProtocolError: As for `accept`.
            EncodeError: AMQP cannot carry one of the annotations; the delivery is not settled.
        """
        await self._receiver._settle(self, Modified(delivery_failed, undeliverable_here, message_annotations), confirm)

    async def received(self, section_number: int, section_offset: int) -> None:
        """Tell the peer how far this receiver has got (specification 3.4.1); settles nothing.

        Args:
            section_number: The section, counted from 0.
            section_offset: Bytes into that section.

        Raises:
            SettlementLost: The link is gone.
            LocalProtocolError: It is settled already.
        """
        await self._receiver._settle(self, Received(section_number, section_offset), False)

    def __repr__(self) -> str:
        state = "settled" if self._pointer is None else "unsettled"
        return f"<Delivery from {self._receiver.address!r} {len(self.raw)} bytes {state}>"


class _SettledDelivery(Delivery):
    """A delivery that came settled: nothing is left to settle."""

    __slots__ = ()


class Receiver(Link):
    """The receiving end of a link, and an async iterator of its deliveries; any number of tasks may share it.

    Made by `Session.receiver` or `Connection.receiver`. Iteration ends after `close` or `detach`; if the peer or the
    network ends the link, it raises. Deliveries that wait in the queue when the link stops are dropped, as the peer
    will deliver them again, except those that came settled.

    Attributes:
        failure_outcome: How `process` ends a delivery whose handler failed and to which its `on_error` has no answer:
            ``Modified(delivery_failed=True)``, unless this is set, or the receiver is one of `eventmesh`.
    """

    role = "receiver"

    def __init__(
        self,
        session: Session,
        source: Source,
        options: ReceiverOptions,
        *,
        waiting: Waiters | None = None,
        paused: bool = False,
    ) -> None:
        super().__init__(session, options.name, source.address)
        self.failure_outcome: Outcome = FAILED
        self._fields = AttachFields(
            source=source,
            target=as_target(options.target),
            snd_settle_mode=options.snd_settle_mode,
            rcv_settle_mode=options.rcv_settle_mode,
            max_message_size=options.max_message_size,
            properties=options.properties,
        )
        self._link: EngineReceiver = session._link.receiver(self._name, self)
        self._link.max_message_size = options.max_message_size
        self._first_mode_link: EngineReceiver | None = None  # the way of the plain accept; None sends it the long way
        self._second = False  # whether receiver settle mode second was agreed
        self._waiting = Waiters(self._loop) if waiting is None else waiting  # for deliveries
        self._queue: deque[Delivery] = deque()
        self._limit = options.credit
        self._budget = options.max_prefetch_bytes
        self._automatic = options.credit > 0
        self._window = 0
        self._taken = 0  # since the last top-up
        self._half = 1
        self._paused = paused  # after a drain, until somebody waits for a delivery again
        self._largest = 1  # bytes of the largest message lately
        self._round_largest = 1  # and since the last top-up

    # --- what is known -------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Deliveries that have arrived and wait to be taken."""
        return len(self._queue)

    def _in_hand(self) -> int:
        return len(self._queue)

    # --- receiving -------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """Give the next delivery.

        Cancelling loses nothing: the link stays attached and the next call gives the next delivery.

        Raises:
            LinkClosed: The peer ended the link. Likewise `SessionClosed` and `ConnectionClosed`.
        """
        queue = self._queue
        if not queue and not await self._wait():
            raise StopAsyncIteration
        self._taken = taken = self._taken + 1
        delivery = queue.popleft()
        if taken >= self._half:
            self._top_up()
        return delivery

    def _take(self) -> Delivery:
        """Take a delivery out of the queue, which has one."""
        self._taken += 1
        delivery = self._queue.popleft()
        if self._taken >= self._half:
            self._top_up()
        return delivery

    async def receive(self) -> Delivery:
        """Wait for the next delivery.

        Cancelling, or a timeout round this, loses nothing: the link stays attached and the next call gives the next
        delivery.

        Raises:
            LinkClosed: The link has ended, by us or by the peer. Likewise `SessionClosed` and `ConnectionClosed`.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise self._error() from None

    async def _wait(self) -> bool:
        """Wait until the queue has something; False where iteration ends."""
        queue = self._queue
        while not queue:
            if self._stop is not None:
                if self._stop.initiator == "local" and self._stop.condition is None:
                    return False
                raise self._error()
            self._resume()
            await self._waiting.wait()
        return True

    def _resume(self) -> None:
        """Open the window that a drain has shut, as somebody waits."""
        if self._paused and self._state is EndpointState.OPEN:
            self._paused = False
            self._top_up()

    async def process(self, handler: Handler, **options: Unpack[ProcessArguments]) -> ProcessStatistics:
        """Call `handler` with each delivery, many at a time, and settle by what comes of it, until stopped.

        A delivery is accepted when its handler returns, unless the handler settled it itself. If the handler raises, or
        takes longer than `timeout`, `on_error` says how it ends: by default the broker delivers it again and counts the
        attempt (`failure_outcome`). If the handler is cancelled, it is released. The errors of handlers are logged,
        once, with the message's id.

        It ends gracefully by `stop`, a signal of `signals` or the receiver's `close`: credit is withdrawn, what no
        handler has yet is released, and handlers may finish within `drain_timeout`; those that do not are cancelled.
        Likewise where the link is lost, before the error is raised: settlements that it costs are counted as lost, and
        the peer delivers those messages again. To close the receiver, stop first: settlements cannot follow a detach.

        Cancelling aborts at once: handlers are cancelled, their deliveries released where the link still stands, and no
        task is left when the cancellation has come through. What was not taken yet stays in the receiver.

        Args:
            handler: A coroutine function of the delivery. It must let a cancellation through: one that does not is
                waited for, however long it takes.
            **options: The fields of `ProcessOptions`.

        Returns:
            What was done; a `Processor` has it also meanwhile, and after an error.

        Raises:
            LinkClosed: The peer ended the link. Likewise `SessionClosed` and `ConnectionClosed`.
            ValueError: An option is out of range, or `signals` are asked for outside of the main thread.
            TypeError: The handler is no coroutine function.
            BaseException: What a handler raised that is no `Exception`; processing is aborted by it.
        """
        return await Processor(self, handler, **options).run()

    # --- credit ----------------------------------------------------------------------------

    async def add_credit(self, credit: int) -> None:
        """Allow the peer `credit` more deliveries; for receivers attached with ``credit=0``.

        This does not wait: it is queued at once and written soon.

        Raises:
            LocalProtocolError: The receiver manages its window by itself.
            LinkClosed: The link has ended. Likewise `SessionClosed` and `ConnectionClosed`.
            ValueError: `credit` is not positive.
        """
        if credit < 1:
            raise ValueError(f"credit must be at least 1, not {credit}")
        if self._automatic:
            raise LocalProtocolError(
                f"{self._where} manages its window by itself: attach with credit=0 for manual credit"
            )
        self._check_open()
        self._link.flow(credit)
        self._runner.wake()

    async def drain(self) -> None:
        """Have the peer use up the credit or give it back, and wait until it has.

        What arrived by then waits to be taken, see `queued`. An automatic window opens again when somebody next waits
        for a delivery, or waits already, and none is there. Cancelling stops the waiting alone.

        Raises:
            LinkClosed: The link ended meanwhile. Likewise `SessionClosed` and `ConnectionClosed`.
        """
        self._check_open()
        self._paused = self._automatic
        self._begin_drain()
        if not self._link.draining:
            self._waiting.wake()  # whoever waits already may open the window again; see also _on_drained
        while self._stop is None and self._link.draining:
            await self._changed.wait()
        if self._stop is not None:
            raise self._error()

    def _begin_drain(self) -> None:
        if self._link.credit > 0:
            self._link.drain()
            self._runner.wake()

    def _top_up(self) -> None:
        """Open the window for what was taken, as far as messages and bytes allow."""
        self._taken = 0
        if not self._automatic or self._paused or self._state is not EndpointState.OPEN:
            return
        # The largest of this round, or half of what it was: a burst of large messages is forgotten in a few rounds.
        self._largest = largest = max(self._round_largest, self._largest // 2)
        self._round_largest = 1
        window = min(self._limit, max(FIRST_WINDOW, 2 * self._window), max(1, self._budget // largest))
        self._window = window
        self._half = max(1, window // 2)
        room = window - self._link.credit - len(self._queue)
        if room > 0:
            self._link.flow(room)
            self._runner.wake()

    # --- the engine's calls -------------------------------------------------------------------

    def _far_terminus(self, remote: RemoteAttach) -> Source | None:
        return remote.source

    def _on_attached(self, remote: RemoteAttach) -> None:
        asked = self._fields.rcv_settle_mode
        self._second = asked is ReceiverSettleMode.SECOND and remote.rcv_settle_mode is ReceiverSettleMode.SECOND
        super()._on_attached(remote)

    def _set_open(self) -> None:
        super()._set_open()
        if self._state is EndpointState.OPEN:
            self._first_mode_link = None if self._second else self._link
            self._top_up()  # only now: some peers send on credit before their own attach

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None:
        size = len(raw)
        if size > self._round_largest:
            self._round_largest = size
        if settled:
            delivery: Delivery = _SettledDelivery()
            delivery._pointer = None
            delivery._tag = self._link.tag(pointer)
        else:
            delivery = Delivery()
            delivery._pointer = pointer
            delivery._tag = None
        delivery.raw = raw
        delivery._receiver = self
        delivery._message = None
        self._queue.append(delivery)
        if self._waiting:
            self._waiting.wake()

    def _on_aborted(self) -> None:
        self._taken += 1
        if self._taken >= self._half:
            self._top_up()

    def _on_drained(self) -> None:
        self._changed.wake_all()
        self._waiting.wake()

    def _on_refused(self, error: ErrorCondition) -> None:
        self._fail(StopReason("link", "local", error.condition, error.description, error.info))

    # --- settlement -----------------------------------------------------------------------------

    async def _settle(self, delivery: Delivery, outcome: Outcome | Received, confirm: bool) -> None:
        pointer = delivery._pointer
        if pointer is None:
            if isinstance(delivery, _SettledDelivery):
                return
            raise LocalProtocolError(f"{self._where}: this delivery is settled already")
        if self._stop is not None or self._link.detaching:
            raise SettlementLost(self._stop or StopReason("link", "local"), self._where)
        if confirm and not self._second:
            raise LocalProtocolError(
                f"{self._where}: confirm=True needs rcv_settle_mode SECOND, asked for by us and agreed by the peer"
            )
        link = self._link
        if isinstance(outcome, Received):
            link.settle(pointer, outcome, None)
            self._runner.wake()
            return
        if not self._second:
            link.settle(pointer, outcome, None)
            delivery._pointer = None
            self._runner.wake()
            self._changed.wake_all()  # for who waits until nothing is in hand
            return
        settled = False

        def on_settled() -> None:
            nonlocal settled
            settled = True
            self._changed.wake_all()

        link.settle(pointer, outcome, on_settled)
        delivery._pointer = None
        self._runner.wake()
        if confirm:
            while not settled:
                if self._stop is not None:
                    raise SettlementLost(self._stop, self._where)
                await self._changed.wait()

    def _tag_of(self, pointer: Any) -> bytes:
        if pointer is None or self._stop is not None:
            raise LocalProtocolError(
                f"{self._where}: read a delivery's tag before settling it, it is not kept afterwards"
            )
        return self._link.tag(pointer)

    def _settled_by_peer(self, pointer: Any) -> bool:
        return self._stop is None and self._link.settled_by_peer(pointer)

    # --- the end ---------------------------------------------------------------------------------

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            self._first_mode_link = None
            self._drop_queue()
            super()._fail(stop)
            self._waiting.wake_all()

    def _drop_queue(self) -> list[Delivery]:
        """Take the unsettled deliveries out of the queue; those that came settled stay: nobody sends them again."""
        dropped = [delivery for delivery in self._queue if delivery._pointer is not None]
        kept = [delivery for delivery in self._queue if delivery._pointer is None]
        self._queue.clear()
        self._queue.extend(kept)
        return dropped

    def _release_queue(self) -> None:
        for delivery in self._drop_queue():
            self._link.settle(delivery._pointer, RELEASED, None)

    def _abandon(self) -> None:
        if self._stop is None and not self._link.detaching:
            self._release_queue()
        super()._abandon()

    def _quiesce(self) -> None:
        self._begin_drain()

    async def _finish(self, deadline: float) -> None:
        """Wait for the drain, at most half of the time there is, and release what nobody took."""
        try:
            async with asyncio.timeout_at((self._loop.time() + deadline) / 2):
                while self._stop is None and self._link.draining:
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._release_queue()
