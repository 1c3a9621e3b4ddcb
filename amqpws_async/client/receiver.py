"""A client's receiver: one queue of deliveries to its user, from whichever links there are.

Deliveries wait in the queues of the links that they came by, and are settled there: a delivery of a link that is gone
raises `SettlementLost` and comes again by the next one. A roll-over has two links at a time: the old one gets no more
credit, what it has is taken first, and it stays until that is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from typing import TYPE_CHECKING, Self, Unpack

from ..endpoint import EndpointState, Waiters
from ..errors import EndpointClosed, LocalProtocolError
from ..processing import DRAIN_ANSWER, FAILED, Processor
from ..terminus import lasting
from .link import ClientLink

if TYPE_CHECKING:
    from ..connection import Connection
    from ..errors import StopReason
    from ..outcomes import Outcome
    from ..processing import Handler, ProcessArguments, ProcessStatistics
    from ..receiver import Delivery, Receiver
    from ..terminus import Source
    from .options import ClientReceiverOptions
    from .session import ClientSession

__all__ = ["ClientReceiver"]


class ClientReceiver(ClientLink):
    """A receiver that outlives its links, and an async iterator of its deliveries; any number of tasks may share it.

    Made by `Client.receiver`. Iteration goes on over reconnections, ends after `close` or `detach`, and raises where
    the receiver or its client ended for another reason.

    Attributes:
        failure_outcome: How `process` ends a delivery whose handler failed and to which its `on_error` has no answer:
            ``Modified(delivery_failed=True)``, unless this is set, or the receiver is one of `eventmesh`.
    """

    role = "receiver"

    _links: list[Receiver]

    def __init__(self, session: ClientSession, source: Source, options: ClientReceiverOptions) -> None:
        if options.name is None and lasting(source):
            # The peer knows what outlives the link by its name.
            options = dataclasses.replace(options, name=f"receiver-{uuid.uuid4().hex}")
        super().__init__(session, source.address, options.outage, exclusive=options.name is not None)
        self.failure_outcome: Outcome = FAILED
        self._terminus = source
        self._options = options
        self._automatic = options.credit > 0
        self._waiting = Waiters(self._loop)  # for deliveries, by any link
        self._paused = False  # after a drain, until somebody waits for a delivery again
        self._allowed = 0  # with manual credit: deliveries allowed and not taken yet
        self._processors: set[Processor] = set()

    # --- what is known -----------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Deliveries that have arrived and wait to be taken."""
        return sum(len(link._queue) for link in self._links)

    @property
    def credit(self) -> int:
        """How many messages the peer may still send; with manual credit also what a next link will be granted."""
        return int(self._link.credit) if self._automatic else max(0, self._allowed - self.queued)

    def _in_hand(self) -> int:
        return self.queued

    # --- receiving ---------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """Give the next delivery, waiting through outages.

        Cancelling loses nothing: the next call gives the next delivery.

        Raises:
            LinkClosed: The receiver has ended otherwise than by you. Likewise `ConnectionClosed`, which is also raised
                during an outage with ``outage="fail"``; the next call may succeed then.
        """
        while True:
            for link in self._links:
                if link._queue:
                    return self._take(link)
            if self._stop is not None:
                if self._stop.initiator == "local" and self._stop.condition is None:
                    raise StopAsyncIteration
                raise self._error()
            if self._fails_fast and not self.attached and not self._moving:
                raise self._outage()
            if self._paused:
                self._paused = False
                if self.attached and not self._moving:
                    self._link._resume()
            await self._waiting.wait()

    async def receive(self) -> Delivery:
        """Wait for the next delivery, through outages.

        Cancelling, or a timeout round this, loses nothing: the next call gives the next delivery.

        Raises:
            LinkClosed: The receiver has ended, by us or by the peer. Likewise `ConnectionClosed`, which is also raised
                during an outage with ``outage="fail"``; the next call may succeed then.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise self._error() from None

    def _take(self, link: Receiver) -> Delivery:
        delivery = link._take()
        if not self._automatic:
            self._allowed = max(0, self._allowed - 1)
        if link.stop is not None:
            self._forget_lost()
        return delivery

    async def process(self, handler: Handler, **options: Unpack[ProcessArguments]) -> ProcessStatistics:
        """Call `handler` with each delivery, many at a time, until stopped: as `Receiver.process`, through outages.

        Cancelling aborts at once, as there. Settlements that an outage costs are counted as lost, and the peer delivers
        those messages again. Closing the receiver or the client stops it gracefully; what handlers have not done within
        their `close_timeout` can no more be settled, and comes again.

        Args:
            handler: As for `Receiver.process`.
            **options: The fields of `ProcessOptions`.

        Returns:
            What was done.

        Raises:
            LinkClosed: The receiver has ended for good. Likewise `ConnectionClosed`.
            ValueError: An option is out of range, or `signals` are asked for outside of the main thread.
            TypeError: The handler is no coroutine function.
            BaseException: What a handler raised that is no `Exception`; processing is aborted by it.
        """
        processor = Processor(self, handler, **options)
        self._processors.add(processor)
        try:
            return await processor.run()
        finally:
            self._processors.discard(processor)
            self._changed.wake_all()

    # --- credit ------------------------------------------------------------------------------

    async def add_credit(self, credit: int) -> None:
        """Allow the peer `credit` more deliveries; for receivers attached with ``credit=0``.

        This does not wait. What a lost link had not used is granted to the next one.

        Raises:
            LocalProtocolError: The receiver manages its window by itself.
            LinkClosed: The receiver has ended. Likewise `ConnectionClosed`.
            ValueError: `credit` is not positive.
        """
        if credit < 1:
            raise ValueError(f"credit must be at least 1, not {credit}")
        if self._automatic:
            raise LocalProtocolError(
                f"{self._where} manages its window by itself: attach with credit=0 for manual credit"
            )
        self._check_open()
        self._allowed += credit
        if self.attached:
            await self._link.add_credit(credit)

    async def drain(self) -> None:
        """Have the peer use up the credit or give it back, and wait until it has; without a link there is none.

        As `Receiver.drain` otherwise. Cancelling stops the waiting alone.

        Raises:
            LinkClosed: The receiver has ended. Likewise `ConnectionClosed`.
        """
        if self._stop is not None:
            raise self._error()
        self._paused = self._automatic
        if self.attached:
            with contextlib.suppress(EndpointClosed):  # its credit is gone with it
                await self._link.drain()
        self._allowed = min(self._allowed, self.queued)

    # --- the link ----------------------------------------------------------------------------

    async def _attach_on(self, connection: Connection) -> Receiver:
        session = await self._session._on(connection)
        source = self._here(self._terminus)
        # Without credit yet: while the client moves, what the old link has comes first.
        link = await session._attach_receiver(source, self._options, waiting=self._waiting, paused=True)
        self._links.append(link)
        return link

    async def _adopt(self, link: Receiver) -> None:
        await super()._adopt(link)
        if self._waiting:
            self._paused = False  # as with a link that is there
        elif any(lost.stop is not None for lost in self._links):
            self._paused = self._automatic  # what came settled by lost links is taken first, lest it pile up
        link._paused = self._paused
        if self._state is EndpointState.CLOSING:
            link._hold()
        elif self._automatic:
            link._top_up()
        elif self.credit:
            await link.add_credit(self.credit)

    async def _leave(self, link: Receiver, deadline: float) -> None:
        link._first_mode_link = None  # every settlement the long way, which tells those who wait for the last
        with contextlib.suppress(EndpointClosed, TimeoutError):
            async with asyncio.timeout(min(DRAIN_ANSWER, max(0.0, deadline - self._loop.time()))):
                await link.drain()

    def _give_back(self, link: Receiver) -> None:
        # Whoever should take it may be the one who waits for the move, or long about it; the next link brings it again.
        if link.stop is None:
            link._release_queue()
            link._runner.wake()

    async def _settled(self, link: Receiver) -> None:
        while link.stop is None and link._link.unsettled:
            await link._changed.wait()

    def _quiesce(self) -> None:
        self._set_state(EndpointState.CLOSING)
        for processor in self._processors:
            processor._begin_stop()
        for link in self._links:
            link._hold()

    async def _finish(self) -> None:
        while self._processors and self._stop is None:
            await self._changed.wait()

    def _forget_lost(self) -> None:
        # What came settled is nobody's to send again: it waits to be taken.
        self._links = [link for link in self._links if link.stop is None or link._queue]
        self._notify()

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            super()._fail(stop)
            self._waiting.wake_all()
