"""The broker's ends of links: what a client's sender sends comes in here, what its receiver gets goes out here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from ..engine import AttachFields, EngineReceiver, EngineSender, RemoteAttach
from ..errors import DecodeError, ErrorCondition
from ..outcomes import ACCEPTED, Modified, Outcome, Rejected
from ..terminus import ReceiverSettleMode
from .faults import DeclineMessage, DelayOutcome, DeliverAgain, LoseOutcome, StarveCredit
from .nodes import Topic
from .queues import Consumer, Entry, Queue, Selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from .peer import PeerSession

__all__ = ["IncomingLink", "OutgoingLink"]

WINDOW: Final = 1000  # the most credit a sender gets, what rhea and Qpid JMS use

FIRST_SIZE: Final = 65536  # bytes that a message is taken to have before the first has come


class OutgoingLink(Consumer):
    """Delivers from a queue to a client's receiver.

    Args:
        session: Its session.
        link: The engine's link, on which the client has attached.
        queue: Where its messages come from.
        on_end: Called once it has ended, with whether it was closed for good.
        selector: Picks the messages it wants, or None for all.
        browsing: Whether it looks without taking.
        settled: Whether its deliveries are settled as they go out.
        max_message_size: The largest message it takes, in bytes, or None for no limit.
    """

    role: ClassVar[Literal["receiver"]] = "receiver"  # the client's
    link: EngineSender

    def __init__(
        self,
        session: PeerSession,
        link: EngineSender,
        queue: Queue,
        on_end: Callable[[bool], None],
        *,
        selector: Selector | None,
        browsing: bool,
        settled: bool,
        max_message_size: int | None,
    ) -> None:
        super().__init__(
            (session.peer.container_id, link.name),
            selector=selector,
            browsing=browsing,
            settled=settled,
            max_message_size=max_message_size,
        )
        self.session = session
        self.peer = session.peer
        self.link = link
        self.queue = queue
        self._on_end = on_end
        self._faults = session.peer.options.faults
        self._drain = False
        self._ended = False
        link.handler = self
        session.links.add(self)
        queue.join(self)

    @property
    def address(self) -> str:
        """The node's."""
        return self.queue.address

    def deliver(self, entry: Entry) -> None:
        """Send one message."""
        if self._faults.deliveries:
            self._misdeliver(entry)
            return
        peer, link, raw = self.peer, self.link, entry.raw
        link.transfer(raw, None if self.settled else entry if not self.browsing else _Browsed(link))
        self.credit = link.credit
        if peer.sent(len(raw)):
            self.credit = 0
            peer.choked[self] = None

    def _misdeliver(self, entry: Entry) -> None:
        """Send one message as the faults that wait for it say."""
        due = self._faults.due("delivery", self.address, self.role)
        delivery: Entry | _Browsed | _Forgotten | None = _Browsed(self.link) if self.browsing else entry
        if delivery is entry and any(isinstance(fault, DeliverAgain) for fault in due):
            delivery = _Forgotten(entry)
        self.link.transfer(entry.raw, None if self.settled else delivery)
        self.credit = self.link.credit
        if self.peer.sent(len(entry.raw)):
            self.credit = 0
            self.peer.choked[self] = None
        if due:
            # Not now: the queue is in the middle of handing out what it has.
            self.peer.loop.call_soon(self._faults.end, due, self.peer, self.session, self)

    def resume(self) -> None:
        """Go on after the connection could not take more."""
        self._feed(self.link.credit)

    def evict(self, error: ErrorCondition, *, closed: bool = True) -> None:
        """Detach with an error, because the node is gone or another link takes this one's place."""
        self.end(closed=closed)
        self.link.detach(error)
        self.peer.wake()

    def stop(self) -> None:
        """Take no more, because the session is about to end."""
        self.credit = 0

    def end(self, *, closed: bool) -> None:
        """Leave the queue; what was not settled goes back there."""
        if self._ended:
            return
        self._ended = True
        self.session.links.discard(self)
        self.peer.choked.pop(self, None)
        taken = self.peer.engine.take_outgoing(self.link)
        entries = (item.entry if isinstance(item, _Forgotten) else item for item in taken)
        self.queue.leave(self, [entry for entry in entries if isinstance(entry, Entry)])
        self._on_end(closed)

    def _feed(self, credit: int) -> None:
        self.credit = credit
        self.queue.feed(self)
        if self._drain and self.credit > 0:  # the queue has no more for it
            self.link.drained()
            self.credit = 0
            self.peer.wake()

    # --- what the engine calls

    def _on_attached(self, remote: RemoteAttach) -> None:
        """Not called: the client attached first."""

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        self._drain = drain
        if self._ended:
            return
        if self.peer.is_choked:
            self.peer.choked[self] = None
        else:
            self._feed(credit)

    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None:
        self.end(closed=closed)


class _Browsed:
    """A delivery of a message that stays where it is, whatever becomes of it."""

    __slots__ = ("link",)

    def __init__(self, link: EngineSender) -> None:
        self.link = link

    def _on_outcome(self, outcome: Outcome) -> None: ...
    def _fail(self, stop: object) -> None: ...


class _Forgotten:
    """A delivery whose acceptance is forgotten, so that its message is delivered again."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @property
    def link(self) -> Any:
        """The engine's link that it went out on."""
        return self.entry.link

    def _on_outcome(self, outcome: Outcome) -> None:
        self.entry.queue.settle(self.entry, Modified(delivery_failed=True) if outcome is ACCEPTED else outcome)

    def _fail(self, stop: object) -> None: ...


class IncomingLink:
    """Takes the messages of a client's sender, and keeps it supplied with credit.

    Args:
        session: Its session.
        link: The engine's link, on which the client has attached.
        node: Where the messages go; None sends each to its ``to`` address.
        on_end: Called once it has ended, with whether it was closed for good.
    """

    role: ClassVar[Literal["sender"]] = "sender"  # the client's

    def __init__(
        self, session: PeerSession, link: EngineReceiver, node: Queue | Topic | None, on_end: Callable[[bool], None]
    ) -> None:
        self.session = session
        self.peer = session.peer
        self._faults = session.peer.options.faults
        self.link = link
        self.node = node
        self._on_end = on_end
        self._nodes = session.peer.nodes
        self._last: Queue | Topic | None = node  # where the last message went
        self._ended = False
        self._low = 0
        self._window = max(1, min(WINDOW, self._nodes.max_queue_bytes // FIRST_SIZE))
        self._arrived = 0  # messages since credit was granted
        self._received = 0  # their bytes
        self._blocked_by: Queue | None = None
        remote = link.remote
        self._second = remote is not None and remote.rcv_settle_mode is ReceiverSettleMode.SECOND
        link.handler = self
        session.links.add(self)
        if node is not None:
            node.publishers[self] = None

    def attach(self, fields: AttachFields) -> None:
        """Answer the client's attach, and grant the first credit."""
        self.link.max_message_size = fields.max_message_size
        self.link.attach(fields)
        due = self._faults.due("attached", self.address, self.role)
        starvation = next((fault for fault in due if isinstance(fault, StarveCredit)), None)
        if starvation is None:
            self._grant()
        elif starvation.seconds is not None:
            self.peer.loop.call_later(starvation.seconds, self._sate)
        self._faults.end(due, self.peer, self.session, self)

    @property
    def address(self) -> str | None:
        """The node's, or None if each message names its own."""
        return self.node.address if self.node is not None else None

    def unblock(self) -> None:
        """Go on, as the queue that was full has room again."""
        self._blocked_by = None
        self._grant()
        self.peer.wake()

    def evict(self, error: ErrorCondition, *, closed: bool = True) -> None:
        """Detach with an error, because the node is gone."""
        self.end(closed=closed)
        self.link.detach(error)
        self.peer.wake()

    def stop(self) -> None:
        """Nothing stops a sender that has credit; what still comes is not accepted."""

    def end(self, *, closed: bool) -> None:
        """Forget the link."""
        if self._ended:
            return
        self._ended = True
        if self.node is not None:
            self.node.publishers.pop(self, None)
        if self._blocked_by is not None:
            self._blocked_by.blocked.pop(self, None)
        self.session.links.discard(self)
        self._on_end(closed)

    def _grant(self) -> None:
        """Top up the credit, as far as the node has room for messages like the last ones."""
        node, link = self._last, self.link
        if node is None:
            room = self._nodes.max_queue_bytes
        elif (room := node.room) <= 0:
            self._block(node)
            return
        if self._received:
            size = self._received // self._arrived
            self._window = max(1, min(WINDOW, room // size)) if size else WINDOW
            self._received = self._arrived = 0
        more = self._window - link.credit
        if more > 0 or link.draining:
            link.flow(max(more, 1))  # proton tells of the end of a drain only along with new credit
        self._low = self._window // 2

    def _block(self, node: Queue | Topic) -> None:
        """Wait until a full node has room, and call back the credit that is out."""
        queue = node.fullest()
        if self._blocked_by is not None or queue is None:
            return
        self._blocked_by = queue
        queue.blocked[self] = None
        if self.link.credit > 0:
            self.link.drain()

    # --- what the engine calls

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None:
        node = self.node
        try:
            expires = self._nodes.expiry(raw)
            if node is None:
                node = self._last = self.peer.route(raw)
        except DecodeError as exc:
            self._reject(pointer, settled, ErrorCondition("amqp:decode-error", str(exc)))
            return
        except Unroutable as exc:
            info = {} if settled else {"delivery-tag": self.link.tag(pointer)}
            self._reject(pointer, settled, ErrorCondition(exc.error.condition, exc.error.description, info))
            return
        if self._faults.arrivals:
            self._mistake(node, pointer, raw, expires, settled)
            return
        node.put(raw, expires)
        self._arrived += 1
        self._received += len(raw)
        if settled:
            pass
        elif self._second:
            self.link.settle(pointer, ACCEPTED, _nothing)
        else:
            self.link.accept(pointer)
        if self.link.credit <= self._low or node.room <= 0:
            self._grant()

    def _mistake(self, node: Queue | Topic, pointer: Any, raw: bytes, expires: float | None, settled: bool) -> None:
        """Take a message as the faults that wait for it say."""
        due = self._faults.due("arrival", node.address, self.role)
        outcome = next((fault.outcome for fault in due if isinstance(fault, DeclineMessage)), ACCEPTED)
        if outcome is ACCEPTED:
            node.put(raw, expires)
        self._arrived += 1
        self._received += len(raw)
        lost = any(isinstance(fault, LoseOutcome) for fault in due)
        seconds = next((fault.seconds for fault in due if isinstance(fault, DelayOutcome)), None)
        if settled or lost:
            pass
        elif seconds is not None:
            self.peer.loop.call_later(seconds, self._settle_late, pointer, outcome)
        else:
            self.link.settle(pointer, outcome, _nothing if self._second else None)
        if self.link.credit <= self._low or node.room <= 0:
            self._grant()
        self._faults.end(due, self.peer, self.session, self)

    def _settle_late(self, pointer: Any, outcome: Outcome) -> None:
        if not self._ended:
            self.link.settle(pointer, outcome, _nothing if self._second else None)
            self.peer.wake()

    def _sate(self) -> None:
        """Grant the credit that was due at the attach."""
        if not self._ended:
            self._grant()
            self.peer.wake()

    def _reject(self, pointer: Any, settled: bool, error: ErrorCondition) -> None:
        if not settled:
            self.link.settle(pointer, Rejected(error), _nothing if self._second else None)
        if self.link.credit <= self._low:
            self._grant()

    def _on_aborted(self) -> None:
        if self.link.credit <= self._low:
            self._grant()

    def _on_drained(self) -> None:
        """The sender has given back its credit; where it has to wait for room, `unblock` gives it some again."""
        if self._blocked_by is None and self.link.credit <= self._low and not self._ended:
            self._grant()

    def _on_refused(self, error: ErrorCondition) -> None:
        self.end(closed=True)

    def _on_attached(self, remote: RemoteAttach) -> None:
        """Not called: the client attached first."""

    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None:
        self.end(closed=closed)


class Unroutable(Exception):
    """A message on an anonymous link has no place to go.

    Attributes:
        error: What an attach to that place would have been told.
    """

    def __init__(self, error: ErrorCondition) -> None:
        super().__init__(str(error))
        self.error = error


def _nothing() -> None:
    """Nothing is left to do once the sender settles: the message is in its queue already."""
