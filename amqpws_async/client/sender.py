"""A client's sender: what is in doubt is reported, or sent again.

Life of a message that may be sent again::

    bytes with a message-id, made once -> transfer -> outcome
                                             ^  the link is lost before it: in doubt, until the next link
                                             +------------ in order, before anything new
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import AsyncIterable, Iterable
from copy import copy
from typing import TYPE_CHECKING, Final

from ..endpoint import EndpointState
from ..errors import EndpointClosed, MessageTooLarge, StopReason
from ..message import Accepted, Message, MessageId
from ..sender import Fate, Pending, PendingDelivery, Sender, SendMany, destination, encoded, failed_delivery
from .link import ClientLink

if TYPE_CHECKING:
    from ..connection import Connection
    from ..terminus import Target
    from .options import ClientSenderOptions
    from .session import ClientSession

__all__ = ["ClientSender", "ResentDelivery"]

logger = logging.getLogger(__name__)

DUPLICATE_ID: Final = "_AMQ_DUPL_ID"  # the application property by which Artemis knows duplicates
ARTEMIS: Final = "apache-activemq-artemis"  # the product that Artemis names in its open

ORDER_GRACE: Final = 1.0
"""Seconds that a sender without resending waits, when it moves to another connection, for outcomes on the old one
before it sends on the new: so order holds, unless an outcome is late."""


class ResentDelivery(PendingDelivery):
    """A transfer that is made again on another link, if need be, until its outcome comes.

    Awaiting it raises `DeliveryUnknown` only where the sender or its client ended first.

    Attributes:
        message_id: The message-id of what was sent: the message's own, or the UUID that was set.
    """

    __slots__ = ("_data", "_home", "_number", "_settled", "_tag", "message_id")

    message_id: MessageId
    _data: bytes
    _home: ClientSender
    _number: int
    _settled: bool | None
    _tag: bytes | None

    def _on_outcome(self, outcome: Fate) -> None:
        if self._tag is not None:
            self._sender._tags.discard(self._tag)
        super()._on_outcome(outcome)

    def _fail(self, stop: StopReason) -> None:
        self._home._on_doubt(self, stop)


class ClientSender(ClientLink):
    """A sender that outlives its links, made by `Client.sender`; any number of tasks may share it."""

    role = "sender"

    def __init__(self, session: ClientSession, target: Target | None, options: ClientSenderOptions) -> None:
        address = target.address if target is not None else None
        super().__init__(session, address, options.outage, exclusive=options.name is not None)
        self._terminus = target
        self._options = options
        self._resends = options.on_unknown == "resend"
        self._detects_duplicates = False  # whether the peer drops messages with the same DUPLICATE_ID
        self._number = 0
        self._in_doubt: list[ResentDelivery] = []  # to be sent again

    # --- what is known -----------------------------------------------------------------------

    @property
    def credit(self) -> int:
        """How many messages may be sent now; 0 while there is no link."""
        return int(self._link.credit)

    @property
    def unsettled(self) -> int:
        """Messages sent whose outcome has not come, those in doubt included."""
        sent: int = sum(link.unsettled for link in self._links)
        return sent + len(self._in_doubt)

    def _in_hand(self) -> int:
        return self.unsettled

    # --- sending -----------------------------------------------------------------------------

    async def send(
        self, message: Message | bytes, *, settled: bool | None = None, tag: bytes | None = None
    ) -> Accepted | None:
        """Send one message and wait for its outcome, through outages.

        Cancelling, and a timeout round this, sends nothing while it waits for a link, credit or room. Later it leaves
        the delivery in doubt for the caller; it stays tracked, and is sent again where `on_unknown` says so.

        Args:
            message: As for `Sender.send`.
            settled: As for `Sender.send`.
            tag: As for `Sender.send`.

        Returns:
            As `Sender.send`.

        Raises:
            MessageRejected: The peer found it invalid. A `DeliveryFailed`, as are the next two.
            MessageReleased: The peer did not take it.
            MessageModified: The peer gave it back.
            DeliveryUnknown: It was sent, and the link was lost before its outcome came; with ``on_unknown="resend"``
                only where the sender or the client ended.
            LinkClosed: The sender has ended, and nothing was sent. Likewise `ConnectionClosed`, which is also raised
                during an outage with ``outage="fail"``.
            MessageTooLarge: It is over the link's max-message-size; nothing was sent.
            LocalProtocolError: `settled` does not go with the link's settle mode, or the tag is in use.
            ValueError: The bytes are no encoded message, or the tag is too long.
        """
        pending = await self.transfer(message, settled=settled, tag=tag)
        if not pending.done:
            pending._sender._runner.hasten()
        outcome = await pending
        if outcome is None or isinstance(outcome, Accepted):
            return outcome
        raise failed_delivery(outcome, message, destination(self._address, message) or self._where)

    async def transfer(
        self, message: Message | bytes, *, settled: bool | None = None, tag: bytes | None = None
    ) -> PendingDelivery:
        """Send one message; wait only until a link is there and credit and room allow the transfer.

        Cancelling sends nothing.

        Args:
            message: As for `send`.
            settled: As for `send`.
            tag: As for `send`.

        Returns:
            The delivery; await it for its outcome. With ``on_unknown="resend"`` a `ResentDelivery`.

        Raises:
            LinkClosed: The sender has ended, and nothing was sent. Likewise `ConnectionClosed`, which is also raised
                during an outage with ``outage="fail"``.
            MessageTooLarge: It is over the link's max-message-size; nothing was sent.
            LocalProtocolError: `settled` does not go with the link's settle mode, or the tag is in use.
            ValueError: The bytes are no encoded message, or the tag is too long.
        """
        resent = self._prepare(message, settled, tag) if self._resends else None
        while True:
            link = self._link
            if link._state is not EndpointState.OPEN or self._state is not EndpointState.OPEN:
                await self._wait_attached()
                continue
            try:
                if resent is None:
                    pending: PendingDelivery = await link.transfer(message, settled=settled, tag=tag)
                    return pending
                await link._transmit(resent, resent._data, settled, tag)
                return resent
            except EndpointClosed:
                pass  # nothing was sent: to the next link

    def send_many(
        self, messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes], *, in_flight: int = 1000
    ) -> SendMany:
        """Send many messages, keeping up to `in_flight` of them without outcome, through outages.

        Args:
            messages: As for `Sender.send_many`.
            in_flight: How many may be without outcome at once, default 1000.

        Returns:
            An async iterator of ``(message, outcome)``, as `Sender.send_many` gives it. A `DeliveryUnknown` stands for
            an outcome that a loss has cost, and with ``on_unknown="resend"`` for none but the sender's own end.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        return SendMany(self, messages, in_flight)

    def _prepare(self, message: Message | bytes, settled: bool | None, tag: bytes | None) -> ResentDelivery:
        """Encode a message once for all times that it may be sent, with what tells duplicates."""
        sent = message if isinstance(message, Message) else Message.decode(encoded(message))
        identity = sent.message_id
        if identity is None or self._detects_duplicates:
            sent = copy(sent)
            if identity is None:
                sent.message_id = identity = uuid.uuid4()
            if self._detects_duplicates:
                sent.application_properties = {DUPLICATE_ID: str(identity)} | dict(sent.application_properties or {})
        self._number += 1
        resent = ResentDelivery()
        resent.message = message
        resent._state = Pending
        resent._waiters = None
        resent.message_id = identity
        resent._data = sent.encode()
        resent._home = self
        resent._number = self._number
        resent._settled = settled
        resent._tag = tag
        return resent

    # --- in doubt ----------------------------------------------------------------------------

    def _on_doubt(self, resent: ResentDelivery, stop: StopReason) -> None:
        """A delivery's link was lost before its outcome came."""
        if self._stop is not None:
            resent._on_outcome(stop)
            return
        self._in_doubt.append(resent)
        PendingDelivery._on_outcome(resent, Pending)  # who waits looks again, and waits again

    async def _resend(self, link: Sender) -> None:
        """Send again what is in doubt, in its order."""
        doubtful = self._in_doubt
        doubtful.sort(key=lambda resent: resent._number)
        if doubtful:
            logger.info("> %s: sending %d messages again that were in doubt", self._where, len(doubtful))
        while doubtful:  # each stays there until it is sent: the end of this sender tells the fate of what is left
            resent = doubtful[0]
            try:
                await link._transmit(resent, resent._data, resent._settled, resent._tag)
            except MessageTooLarge as error:  # the peer takes less than the one before
                resent._on_outcome(StopReason("link", "local", "amqp:link:message-size-exceeded", str(error)))
            del doubtful[0]

    # --- the link ----------------------------------------------------------------------------

    async def _attach_on(self, connection: Connection) -> Sender:
        session = await self._session._on(connection)
        link = await session._attach_sender(self._here(self._terminus), self._options)
        self._links.append(link)
        return link

    async def _adopt(self, link: Sender) -> None:
        self._detects_duplicates = link.session.connection.remote.properties.get("product") == ARTEMIS
        await self._resend(link)
        if self._state is EndpointState.CLOSING:
            link._hold()
        await super()._adopt(link)

    async def _leave(self, link: Sender, deadline: float) -> None:
        link._hold()
        if self._resends:
            await link._finish(deadline)
            if link.unsettled:  # in doubt from here on, and sent again before anything new
                await self._retire(link, deadline)
        else:
            await link._finish(min(deadline, self._loop.time() + ORDER_GRACE))

    async def _settled(self, link: Sender) -> None:
        await link._finish(math.inf)

    def _quiesce(self) -> None:
        self._set_state(EndpointState.CLOSING)
        for link in self._links:
            link._hold()

    async def _finish(self) -> None:
        while self._stop is None:
            busy = [link for link in self._links if link.stop is None and link._in_flight()]
            if busy:
                await busy[0]._finish(math.inf)
            elif self._in_doubt:
                await self._changed.wait()
            else:
                return

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            super()._fail(stop)
            doubtful = sorted(self._in_doubt, key=lambda resent: resent._number)
            self._in_doubt.clear()
            for resent in doubtful:
                resent._on_outcome(stop)
