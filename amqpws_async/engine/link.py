"""The ends of a link in the engine, and the path that every message takes.

Functions of the binding are bound as default arguments where they run once per message: a look-up in `lib` costs a
quarter of the call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import proton
from cproton_ffi import ffi, lib

from ..errors import EncodeError, ErrorCondition
from ..outcomes import NoOutcome, Outcome, Received, Rejected
from . import attach
from .attach import AttachFields, RemoteAttach

if TYPE_CHECKING:
    from .handlers import LinkHandler, OutgoingDelivery, ReceiverHandler, SenderHandler
    from .session import EngineSession

__all__ = ["EngineReceiver", "EngineSender"]

SCRATCH_SIZE: Final = 65536  # one read of a delivery; larger ones take several

_ACCEPTED = lib.PN_ACCEPTED


class _EngineLink:
    """What sending and receiving links share.

    Attributes:
        credit: Messages that may still go over the link, as each end counts them.
        detaching: Whether our detach is queued.
        released: Whether proton's link is freed; nothing may touch it then.
        remote: What the peer's attach said.
    """

    __slots__ = (
        "_handler",
        "_waiting_detach",
        "credit",
        "detaching",
        "engine",
        "name",
        "pointer",
        "released",
        "remote",
        "session",
    )

    def __init__(self, session: EngineSession, public: proton.Link, handler: LinkHandler | None) -> None:
        self.session = session
        self.engine = session.engine
        self.credit = 0
        self.detaching = False
        self.released = False
        self._waiting_detach: tuple[ErrorCondition | None, bool] | None = None
        self.remote: RemoteAttach | None = None
        self.handler = handler
        self.name = attach.link_name(public)
        self.pointer = public._impl
        self.engine._links[self.pointer] = self  # type: ignore[assignment]

    @property
    def _public(self) -> Any:
        """A wrapper of proton's for set-up: made for each use, see `Engine.free`."""
        return (proton.Sender if lib.pn_link_is_sender(self.pointer) else proton.Receiver)(self.pointer)

    @property
    def handler(self) -> Any:
        """Who hears about this link, if it is still there: a `SenderHandler` or a `ReceiverHandler`."""
        return self._handler()

    @handler.setter
    def handler(self, handler: Any) -> None:
        self._handler: Callable[[], Any] = weakref.ref(handler) if handler is not None else nobody

    def attach(self, fields: AttachFields) -> None:
        """Queue our attach, the first or the answer to the peer's.

        Raises:
            EncodeError: A field cannot be encoded; the link is freed.
        """
        public = self._public
        problem = ""
        try:
            attach.put_link(public, fields)
        except (ValueError, TypeError) as exc:
            problem = str(exc) or type(exc).__name__
        if not problem:
            # What is queued is framed first: proton sends attaches before detaches, and the name may have been in use.
            lib.pn_transport_pending(self.engine._t)
            public.open()
            return
        # A new exception, not chained: the traceback of the first holds the wrapper, which must not outlive the link.
        del public
        self._release()
        raise EncodeError(problem)

    @property
    def unsettled(self) -> int:
        """A sender's transfers without outcome that nobody has taken; a receiver's deliveries that are not settled."""
        return 0 if self.released else int(lib.pn_link_unsettled(self.pointer))

    def detach(self, error: ErrorCondition | None = None, *, closed: bool = True) -> None:
        """Queue our detach, once; the link is freed when the peer's is here as well.

        Before the peer's attach nothing is sent yet: its late answer could otherwise be taken for that to another
        attach of the same name.
        """
        if self.released or self.detaching:
            return
        self.detaching = True
        self.credit = 0
        public = self._public
        if public.state & proton.Endpoint.REMOTE_UNINIT:
            self._waiting_detach = (error, closed)
            return
        self._send_detach(public, error, closed)

    def _send_detach(self, public: Any, error: ErrorCondition | None, closed: bool) -> None:
        public.condition = attach.condition_out(error)
        if closed:
            public.close()
        else:
            public.detach()

    def _read_remote(self) -> None:
        self.remote = attach.remote_attach(self._public)

    def _on_remote_attach(self) -> None:
        self._read_remote()
        if self._waiting_detach is not None:
            self._send_detach(self._public, *self._waiting_detach)
            return
        handler = self.handler
        if handler is not None:
            handler._on_attached(self.remote)

    def _on_remote_detach(self, *, closed: bool) -> None:
        error = attach.condition_in(self._public)
        handler = self.handler
        if handler is not None:
            handler._on_detached(error, closed=closed)
        self.detach(closed=closed)
        self._release()

    def _release(self) -> None:
        if not self.released:
            self.released = True
            self.engine._links.pop(self.pointer, None)
            self._forget()
            self._public.free()
            handler = self.session.handler
            if handler is not None:
                handler._on_link_released()

    def _forget(self) -> None:
        """Drop our tables' pointers into the link before it is freed."""


class EngineSender(_EngineLink):
    """The sending end of a link.

    Its credit is what the peer allows now, less the transfers already made.
    """

    role = "sender"

    __slots__ = ("_number", "_outgoing", "_tag", "_tag_number", "_tag_value")

    def __init__(self, session: EngineSession, public: proton.Link, handler: SenderHandler | None = None) -> None:
        super().__init__(session, public, handler)
        self._outgoing = self.engine._outgoing
        # A counter as tag: a struct made once, whose bytes are counted up.
        self._number = 0
        octets = ffi.new("char[4]")
        self._tag_number = memoryview(ffi.buffer(octets)).cast("I")
        self._tag = ffi.new("pn_bytes_t*", (4, octets))
        self._tag_value = self._tag[0]

    def transfer(
        self,
        data: bytes | Iterable[bytes],
        delivery: OutgoingDelivery | None,
        tag: bytes | None = None,
        new: Any = lib.pn_delivery,
        send: Any = lib.pn_link_send,
        advance: Any = lib.pn_link_advance,
    ) -> None:
        """Queue one message, within the credit that `credit` shows.

        Args:
            data: The encoded message, in one piece or several.
            delivery: Gets the outcome; None for a pre-settled transfer.
            tag: The delivery tag, 1 to 32 bytes, or None for a counter.
            new: Bound, not given; likewise the next two.
            send: Bound.
            advance: Bound.
        """
        link = self.pointer
        if tag is None:
            self._number = self._tag_number[0] = (self._number + 1) & 0xFFFFFFFF
            pointer = new(link, self._tag_value)
        else:
            pointer = new(link, _bytes_value(tag))
        if type(data) is bytes:
            send(link, data, len(data))
        else:
            piece: Any
            for piece in data:
                send(link, piece, len(piece))
        advance(link)
        self.credit -= 1
        if delivery is None:
            lib.pn_delivery_settle(pointer)
        else:
            self._outgoing[pointer] = delivery

    def drained(self) -> None:
        """Answer a drain: give back the credit that is left."""
        if not self.released and lib.pn_link_drained(self.pointer):
            self.credit = 0

    def _on_flow(self, credit_of: Any = lib.pn_link_credit, wants_drain: Any = lib.pn_link_get_drain) -> None:
        link = self.pointer
        credit, drain = credit_of(link), bool(wants_drain(link))
        if (credit == self.credit and not drain) or self.detaching:
            return  # proton makes this event also when it has written a transfer
        self.credit = credit
        handler = self._handler()
        if handler is not None:
            handler._on_credit(credit, drain=drain)

    def _on_delivery(self, pointer: Any) -> Any:
        if lib.pn_delivery_updated(pointer) and lib.pn_link_is_sender(lib.pn_delivery_link(pointer)):
            # A late disposition for a delivery whose outcome nobody waits for any more.
            lib.pn_delivery_settle(pointer)
            return
        self.engine._fail("amqp:not-allowed", f"transfer on link {self.name!r}, whose sender we are")

    def _forget(self) -> None:
        self.engine.take_outgoing(self)


class EngineReceiver(_EngineLink):
    """The receiving end of a link.

    Its credit is what was granted and not yet used by a delivery that began to arrive.

    Attributes:
        max_message_size: Deliveries over this many bytes end the link; 0 for no limit.
    """

    role = "receiver"

    __slots__ = ("_arriving", "_asked_drain", "_parts", "_scratch", "_settling", "_size", "_view", "max_message_size")

    def __init__(self, session: EngineSession, public: proton.Link, handler: ReceiverHandler | None = None) -> None:
        super().__init__(session, public, handler)
        self.max_message_size = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._arriving = False
        self._asked_drain = False
        self._settling: dict[Any, Callable[[], None] | None] = {}
        self._scratch = self.engine._scratch
        self._view = self.engine._view

    def flow(self, credit: int) -> None:
        """Grant `credit` more; ends a drain."""
        if not self.detaching and not self.released:
            self.credit += credit
            lib.pn_link_flow(self.pointer, credit)

    def drain(self) -> None:
        """Ask the peer to use its credit now or give it back; `ReceiverHandler._on_drained` tells when."""
        if not self.detaching and not self.released:
            self._asked_drain = True
            lib.pn_link_drain(self.pointer, 0)

    @property
    def draining(self) -> bool:
        """Whether a drain is not answered yet."""
        return not self.released and bool(lib.pn_link_draining(self.pointer))

    def accept(self, pointer: Any, update: Any = lib.pn_delivery_update, settle: Any = lib.pn_delivery_settle) -> None:
        """Settle a delivery as accepted (receiver settle mode first)."""
        update(pointer, _ACCEPTED)
        settle(pointer)

    def settle(self, pointer: Any, outcome: Outcome | Received | None, on_settled: Callable[[], None] | None) -> None:
        """Give a delivery its state.

        Args:
            pointer: The delivery.
            outcome: Its state; None changes nothing but the settlement.
            on_settled: None settles now. Otherwise the delivery stays unsettled until the peer settles it (receiver
                settle mode second), and this is called then.
        """
        if outcome is not None:
            attach.put_disposition(pointer, outcome)
        if isinstance(outcome, Received):
            return
        if on_settled is None or lib.pn_delivery_settled(pointer):
            lib.pn_delivery_settle(pointer)
            if on_settled is not None:
                on_settled()
        else:
            self._settling[pointer] = on_settled

    def settled_by_peer(self, pointer: Any) -> bool:
        """Whether the peer has settled the delivery already."""
        return bool(lib.pn_delivery_settled(pointer))

    def tag(self, pointer: Any) -> bytes:
        """The delivery tag of an unsettled delivery."""
        tag = lib.pn_delivery_tag(pointer)
        size = tag.size
        return ffi.unpack(tag.start, size) if size else b""

    def _on_flow(self) -> None:
        self.credit -= lib.pn_link_drained(self.pointer)
        if self._asked_drain:
            self._check_drained()

    def _check_drained(self) -> None:
        """Tell when a drain has ended: by a flow, or by the transfer that used the last credit (2.6.7)."""
        if not lib.pn_link_draining(self.pointer):
            self._asked_drain = False
            handler = self._handler()
            if handler is not None:
                handler._on_drained()

    def _on_delivery(
        self,
        pointer: Any,
        readable: Any = lib.pn_delivery_readable,
        partial: Any = lib.pn_delivery_partial,
        receive: Any = lib.pn_link_recv,
        advance: Any = lib.pn_link_advance,
        settled_by_peer: Any = lib.pn_delivery_settled,
        current: Any = lib.pn_link_current,
        peek: Any = lib.pn_collector_peek,
        pop: Any = lib.pn_collector_pop,
        event_delivery: Any = lib.pn_event_delivery,
    ) -> Any:
        """Take a delivery, and those in a row behind it, whose events are popped here.

        Returns:
            The event behind the row, NULL if there is none; or None to have the one that was dispatched popped.
        """
        if not readable(pointer):
            self._on_disposition(pointer)
            return None
        handler = self._handler()
        if handler is None:
            return None
        link, scratch, view, collector = self.pointer, self._scratch, self._view, self.engine._c
        while True:
            if not self._arriving:
                self.credit = credit = self.credit - 1
                if credit < 0:
                    self._refuse(
                        "amqp:link:transfer-limit-exceeded", "the peer sent more deliveries than it had credit for"
                    )
                    return None
            size = receive(link, scratch, SCRATCH_SIZE)
            raw = view[:size] if size > 0 else b""
            unfinished = partial(pointer)
            if unfinished or size == SCRATCH_SIZE or self._arriving:
                whole = self._gather(raw, unfinished)
                if whole is None:
                    return None
                raw = whole
            elif self.max_message_size and size > self.max_message_size:
                self._refuse(
                    "amqp:link:message-size-exceeded",
                    f"delivery of {size} bytes, over the max-message-size of {self.max_message_size}",
                )
                return None
            settled = settled_by_peer(pointer)
            if settled and lib.pn_delivery_aborted(pointer):
                lib.pn_delivery_settle(pointer)
                handler._on_aborted()
            else:
                advance(link)
                handler._on_delivery(pointer, raw, settled)
                if settled:
                    lib.pn_delivery_settle(pointer)
            if self._asked_drain:
                self._check_drained()
            pop(collector)
            event = peek(collector)
            if not event:
                return event
            pointer = event_delivery(event)
            if not pointer or self.released or current(link) != pointer:
                return event

    def _gather(self, raw: bytes, unfinished: bool) -> bytes | None:
        """Add to the delivery that is arriving; return it once it is whole."""
        parts = self._parts
        if raw:
            parts.append(raw)
        self._size += len(raw)
        size = len(raw)
        while size == SCRATCH_SIZE:
            size = lib.pn_link_recv(self.pointer, self._scratch, SCRATCH_SIZE)
            if size > 0:
                parts.append(self._view[:size])
                self._size += size
        if self.max_message_size and self._size > self.max_message_size:
            self._refuse(
                "amqp:link:message-size-exceeded",
                f"delivery of more than {self.max_message_size} bytes, which was announced as max-message-size",
            )
            return None
        self._arriving = bool(unfinished)
        if unfinished:
            return None
        self._parts = []
        self._size = 0
        return b"".join(parts)

    def _on_disposition(self, pointer: Any) -> None:
        """The peer settled a delivery of ours that is complete."""
        if lib.pn_delivery_settled(pointer) and pointer in self._settling:
            on_settled = self._settling.pop(pointer)
            lib.pn_delivery_settle(pointer)
            if on_settled is not None:
                on_settled()

    def _refuse(self, condition: str, description: str) -> None:
        """Detach with an error, and drop what is arriving."""
        self._parts = []
        if not self.detaching:
            error = ErrorCondition(condition, description)
            handler = self.handler
            self.detach(error)
            if handler is not None:
                handler._on_refused(error)

    def _forget(self) -> None:
        self._settling.clear()
        self._parts = []


def rare_outcome(pointer: Any) -> Outcome | None:
    """The outcome of an outgoing delivery in its rarer forms, or None while there is none."""
    state = lib.pn_delivery_remote_state(pointer)
    if state == lib.PN_REJECTED:
        return Rejected(attach.condition_in(proton.Delivery(pointer).remote, "condition"))
    if state == lib.PN_MODIFIED:
        return attach.modified_in(proton.Delivery(pointer).remote)
    return NoOutcome() if lib.pn_delivery_settled(pointer) else None


def nobody() -> None:
    """The weak reference to no handler."""


def _bytes_value(data: bytes) -> Any:
    value = ffi.new("pn_bytes_t*")
    value.size = len(data)
    value.start = ffi.cast("const char*", ffi.from_buffer(data))
    return value[0]
