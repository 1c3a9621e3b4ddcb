"""The connection of the engine: bytes, timers, dispatch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import proton
from cproton_ffi import ffi, lib

from ..auth.sasl import Plain, SaslMechanism
from ..errors import DecodeError, ErrorCondition, LocalProtocolError
from ..outcomes import ACCEPTED, RELEASED, Outcome
from . import attach
from .handlers import ConnectionHandler, OutgoingDelivery, RemoteOpen, SessionHandler
from .link import SCRATCH_SIZE, EngineReceiver, EngineSender, rare_outcome
from .session import EngineSession
from .trace import tracer

__all__ = ["Engine"]

REQUIRED: Final = (
    "pn_collector_peek pn_collector_pop pn_data_encoded_size pn_decref pn_delivery pn_delivery_aborted "
    "pn_delivery_link pn_delivery_partial pn_delivery_readable pn_delivery_remote_state pn_delivery_settle "
    "pn_delivery_settled pn_delivery_tag pn_delivery_update pn_delivery_updated pn_event_delivery pn_event_link "
    "pn_event_session pn_event_type pn_incref pn_link_advance pn_link_credit pn_link_current pn_link_drain "
    "pn_link_drained pn_link_draining pn_link_flow pn_link_get_drain pn_link_is_sender pn_link_recv pn_link_send "
    "pn_link_session pn_link_state pn_link_unsettled pn_session_outgoing_bytes pn_session_state "
    "pn_transport_capacity pn_transport_close_tail pn_transport_closed pn_transport_peek pn_transport_pending "
    "pn_transport_pop pn_transport_push pn_transport_tick"
).split()

_COPIED: Final = 4096  # bytes up to which a copy costs less than a view

EMPTY_FRAME: Final = b"\x00\x00\x00\x08\x02\x00\x00\x00"  # specification 2.3.1: a frame with an empty body

#: The events that `Engine._on_event` knows, among many that tell nothing new.
_RARE_EVENTS: Final = frozenset(
    (
        lib.PN_CONNECTION_REMOTE_OPEN,
        lib.PN_CONNECTION_REMOTE_CLOSE,
        lib.PN_SESSION_REMOTE_OPEN,
        lib.PN_SESSION_REMOTE_CLOSE,
        lib.PN_SESSION_FINAL,
        lib.PN_LINK_REMOTE_OPEN,
        lib.PN_LINK_REMOTE_CLOSE,
        lib.PN_LINK_REMOTE_DETACH,
        lib.PN_TRANSPORT_ERROR,
        lib.PN_TRANSPORT_TAIL_CLOSED,
        lib.PN_TRANSPORT_HEAD_CLOSED,
    )
)

_SIMPLE: dict[int, Outcome] = {lib.PN_ACCEPTED: ACCEPTED, lib.PN_RELEASED: RELEASED}


class _Scratch(threading.local):
    """Where proton copies bytes to on their way to Python: used and left within one call, so a thread needs only one.

    Attributes:
        memory: It.
        view: A slice of this is bytes, at half the cost of ``ffi.unpack``.
        window: A slice of this is a view, and no copy.
    """

    def __init__(self) -> None:
        self.memory = ffi.new("char[]", SCRATCH_SIZE)
        self.view = ffi.buffer(self.memory)
        self.window = memoryview(self.view)


_scratch = _Scratch()


class Engine:
    """One AMQP connection without its I/O; it belongs to the thread that made it.

    Args:
        handler: Hears about the connection.
        container_id: Our container id.
        hostname: The hostname field of our open, or None.
        max_frame_size: The largest frame we take, in bytes.
        channel_max: The highest channel we take.
        idle_timeout: Seconds of the peer's silence after which the connection fails, 0 for never.
        sasl: The mechanism to authenticate with, or None for no SASL layer.
        server: True to answer instead of to begin.
        properties: Connection properties of our open.
        offered_capabilities: Capabilities of our open.
        desired_capabilities: Capabilities of our open.
        trace: Called with one line per frame, credentials and payloads masked, or None.
    """

    def __init__(
        self,
        handler: ConnectionHandler,
        *,
        container_id: str,
        hostname: str | None = None,
        max_frame_size: int = 65536,
        channel_max: int = 65535,
        idle_timeout: float = 0.0,
        sasl: SaslMechanism | None = None,
        server: bool = False,
        properties: Mapping[str, Any] | None = None,
        offered_capabilities: Sequence[str] = (),
        desired_capabilities: Sequence[str] = (),
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.handler = handler
        self._idle_timeout = idle_timeout
        self._connection = connection = proton.Connection()
        self._collector = proton.Collector()
        connection.collect(self._collector)
        connection.container = container_id
        if hostname is not None:
            connection.hostname = hostname
        attach.put_connection(connection, properties, offered_capabilities, desired_capabilities)
        self._transport = transport = proton.Transport(proton.Transport.SERVER if server else proton.Transport.CLIENT)
        # A tracer is always set: without one proton writes to stderr.
        transport.tracer = tracer(trace)
        transport.trace(proton.Transport.TRACE_FRM if trace else proton.Transport.TRACE_OFF)
        transport.max_frame_size = max_frame_size
        transport.channel_max = channel_max
        transport.idle_timeout = idle_timeout  # seconds; proton announces half of it
        self._sasl: proton.SASL | None = None
        if sasl is not None:
            self._sasl = layer = transport.sasl()
            layer.allowed_mechs(sasl.name)  # explicitly: proton prefers EXTERNAL where it is offered
            if isinstance(sasl, Plain):
                connection.user = sasl.username
                connection.password = sasl.password
                layer.allow_insecure_mechs = True  # TLS is outside proton; options.py refuses open networks
        transport.bind(connection)
        self._t = transport._impl
        self._c = self._collector._impl
        self._sessions: dict[Any, EngineSession] = {}
        self._kept: set[Any] = set()  # sessions that proton has not done with
        self._final: list[Any] = []  # those it has, until the events about them are gone
        self._links: dict[Any, EngineSender | EngineReceiver] = {}
        self._outgoing: dict[Any, OutgoingDelivery] = {}
        self._scratch, self._view, self._window = _scratch.memory, _scratch.view, _scratch.window
        self._remote: RemoteOpen | None = None
        self._failed = False
        self._close_sent = False
        self._extra = b""
        self._keep_alive = 0.0  # seconds without output after which an empty frame is due
        self._quiet_deadline = 0.0

    # --- bytes -----------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> bool:
        """Feed bytes from the peer, in any cut; handlers are called before this returns.

        Data after the end of the stream is dropped, as the peer has said or done all that counts by then.

        Returns:
            False if nothing came of it, as of an empty frame: there is nothing new to write.
        """
        transport = self._t
        size = len(data)
        if size <= lib.pn_transport_capacity(transport):
            # Plain bytes go as they are, at half the cost.
            lib.pn_transport_push(transport, data if type(data) is bytes else ffi.from_buffer(data), size)
            return self._dispatch() or lib.pn_transport_pending(transport) != 0
        view = ffi.from_buffer(data)
        offset = 0
        while offset < size:
            capacity = lib.pn_transport_capacity(transport)
            if capacity <= 0:
                break
            pushed = lib.pn_transport_push(transport, view + offset, min(capacity, size - offset))
            if pushed <= 0:
                break
            offset += pushed
            self._dispatch()
        self._dispatch()
        return True

    def receive_eof(self) -> None:
        """Tell that no more bytes will come."""
        lib.pn_transport_close_tail(self._t)
        self._dispatch()
        if not self._failed and not self._connection.state & proton.Endpoint.REMOTE_CLOSED:
            self._fail("amqp:connection:framing-error", "the stream ended without an AMQP close")

    def data_to_send(self, limit: int) -> bytes:
        """Take pending output, at most `limit` bytes and at most 64 KiB; ``b""`` when there is none."""
        return bytes(self.output(limit))

    def output(self, limit: int = SCRATCH_SIZE) -> bytes | memoryview:
        """Take pending output as `data_to_send` does, and where that saves time without a copy.

        Args:
            limit: The most bytes to take; above 64 KiB it means no more than that.

        Returns:
            Bytes, or a view of memory that is written to again by whatever an engine of this thread does next.
        """
        transport = self._t
        pending = lib.pn_transport_pending(transport)
        if pending <= 0:
            if pending < 0:
                self._dispatch()  # proton found out while writing, as it does where no SASL mechanism fits
            if self._extra:
                extra, self._extra = self._extra, b""
                return extra
            return b""
        size = lib.pn_transport_peek(transport, self._scratch, min(pending, limit, SCRATCH_SIZE))
        if size <= 0:
            return b""
        data: bytes | memoryview = self._view[:size] if size <= _COPIED else self._window[:size]
        lib.pn_transport_pop(transport, size)
        return data

    def tick(self, now: float) -> float | None:
        """Run the idle timers; call after input and before output, always with the same monotonic clock.

        Args:
            now: Seconds.

        Returns:
            When to call again at the latest, in the same seconds, or None for no timer.
        """
        deadline = lib.pn_transport_tick(self._t, int(now * 1000)) / 1000.0
        if self._keep_alive and not self._close_sent:
            if now >= self._quiet_deadline:
                if self._quiet_deadline and lib.pn_transport_pending(self._t) == 0:
                    self._extra = EMPTY_FRAME
                self._quiet_deadline = now + self._keep_alive
            deadline = min(deadline, self._quiet_deadline) if deadline else self._quiet_deadline
        self._dispatch_local()
        return deadline or None

    def sent(self, now: float) -> None:
        """Tell that output was just written, so that no keep-alive is due for a while.

        Args:
            now: Seconds, of the clock of `tick`.
        """
        self._quiet_deadline = now + self._keep_alive

    # --- intentions ---------------------------------------------------------------

    def open(self) -> None:
        """Queue our open."""
        self._connection.open()

    def close(self, error: ErrorCondition | None = None) -> None:
        """Queue our close, with an error if given."""
        if self._connection.state & proton.Endpoint.LOCAL_ACTIVE:
            self._connection.condition = attach.condition_out(error)
            self._connection.close()
        self._close_sent = True

    def begin(self, handler: SessionHandler, *, incoming_capacity: int = 0) -> EngineSession:
        """Queue a begin and return the session.

        Raises:
            LocalProtocolError: All channels are in use.
        """
        limit = min(self._transport.channel_max, self._remote.channel_max if self._remote else 65535)
        if len(self._sessions) > limit:
            raise LocalProtocolError(
                f"all {limit + 1} channels are in use (channel-max {limit}): end a session before beginning another"
            )
        self._write_ends()
        session = EngineSession(self, self._connection.session(), handler)
        session.begin(incoming_capacity)
        return session

    def _write_ends(self) -> None:
        """Have proton write detaches and ends now that are queued, as in one go it writes attaches and begins first.

        A link that is attached again by its name would else be attached twice for a moment, which is an error.
        """
        lib.pn_transport_pending(self._t)

    @property
    def unsettled(self) -> int:
        """How many deliveries are without outcome, on all links."""
        return len(self._outgoing)

    def outgoing(self) -> list[OutgoingDelivery]:
        """The deliveries without outcome, oldest first."""
        return list(self._outgoing.values())

    def take_outgoing(self, link: EngineSender | None = None) -> list[OutgoingDelivery]:
        """Forget the deliveries without outcome, of one link or of all, and return them, oldest first."""
        outgoing = self._outgoing
        if link is None:
            taken = list(outgoing.values())
            outgoing.clear()
            return taken
        pointers = [pointer for pointer, delivery in outgoing.items() if delivery.link is link]
        return [outgoing.pop(pointer) for pointer in pointers]

    def handlers(self) -> list[Any]:
        """The handlers that are still there, links before sessions."""
        endpoints: list[Any] = [*self._links.values(), *self._sessions.values()]
        return [handler for endpoint in endpoints if (handler := endpoint.handler) is not None]

    def unsent_bytes(self) -> int:
        """Bytes of messages that proton holds because a session window or a credit is shut."""
        return sum(session.unsent_bytes for session in self._sessions.values())

    @property
    def remote(self) -> RemoteOpen | None:
        """What the peer announced, once its open is here."""
        return self._remote

    @property
    def finished(self) -> bool:
        """Whether both directions have ended and nothing is left to write."""
        return bool(lib.pn_transport_closed(self._t))

    def free(self) -> None:
        """Give back proton's memory; the engine is not usable afterwards.

        Sessions, links and deliveries keep proton's pointers and never its wrappers: the garbage collector finalizes a
        cycle in any order, and a wrapper that gives its reference back after its parent is gone corrupts the heap.
        """
        for endpoint in (*self._links.values(), *self._sessions.values()):
            endpoint.released = True
        self._links.clear()
        self._sessions.clear()
        self._outgoing.clear()
        self._transport.unbind()
        self._connection.free()
        while lib.pn_collector_pop(self._c):
            pass
        for session in list(self._kept):
            self._let_go(session)

    # --- dispatch -------------------------------------------------------------------

    def _dispatch(
        self,
        peek: Any = lib.pn_collector_peek,
        pop: Any = lib.pn_collector_pop,
        event_type: Any = lib.pn_event_type,
        event_delivery: Any = lib.pn_event_delivery,
        event_link: Any = lib.pn_event_link,
        remote_state: Any = lib.pn_delivery_remote_state,
        settle: Any = lib.pn_delivery_settle,
        flow_type: int = lib.PN_LINK_FLOW,
    ) -> bool:
        """Dispatch all events; whether there were any."""
        collector, links, outgoing, simple = self._c, self._links, self._outgoing, _SIMPLE
        event = peek(collector)
        if not event:
            return False
        while event:
            pointer = event_delivery(event)  # NULL for every other kind of event
            delivery = outgoing.get(pointer)
            if delivery is not None:
                outcome = simple.get(remote_state(pointer))
                if outcome is None:
                    outcome = self._rare_outcome(pointer)
                if outcome is not None:
                    del outgoing[pointer]
                    settle(pointer)
                    delivery._on_outcome(outcome)
            elif pointer:
                link = links.get(event_link(event))
                if link is not None:
                    following = link._on_delivery(pointer)
                    if following is not None:
                        event = following
                        continue
            elif (kind := event_type(event)) == flow_type:
                link = links.get(event_link(event))
                if link is not None:
                    link._on_flow()
            elif kind in _RARE_EVENTS:
                try:
                    self._on_event(kind, event)
                except DecodeError as exc:
                    self._fail("amqp:decode-error", str(exc))
            pop(collector)
            event = peek(collector)
        while self._final:
            self._let_go(self._final.pop())
        return True

    def _dispatch_local(
        self,
        peek: Any = lib.pn_collector_peek,
        pop: Any = lib.pn_collector_pop,
        event_type: Any = lib.pn_event_type,
        telling_nothing: frozenset[int] = frozenset((lib.PN_LINK_FLOW, lib.PN_TRANSPORT)),
    ) -> None:
        """Dispatch what is not of the peer's making: among it a flow event for each link that was written to."""
        collector = self._c
        while event := peek(collector):
            if event_type(event) not in telling_nothing:
                self._dispatch()
                return
            pop(collector)

    def _keep(self, session: Any) -> None:
        """Keep a session until proton has done with it and with its links.

        Otherwise a link that ends last frees its session, which frees the link in turn, while its own end still runs.
        """
        lib.pn_incref(session)
        self._kept.add(session)

    def _let_go(self, session: Any) -> None:
        if session in self._kept:
            self._kept.remove(session)
            lib.pn_decref(session)

    def _rare_outcome(self, pointer: Any) -> Outcome | None:
        try:
            return rare_outcome(pointer)
        except DecodeError as exc:
            self._fail("amqp:decode-error", str(exc))
            return None

    def _on_event(self, kind: int, event: Any) -> None:
        if kind == lib.PN_LINK_REMOTE_OPEN:
            self._on_link_open(event)
        elif kind in (lib.PN_LINK_REMOTE_CLOSE, lib.PN_LINK_REMOTE_DETACH):
            link = self._links.get(lib.pn_event_link(event))
            if link is not None:
                link._on_remote_detach(closed=kind == lib.PN_LINK_REMOTE_CLOSE)
        elif kind == lib.PN_SESSION_REMOTE_OPEN:
            pointer = lib.pn_event_session(event)
            session = self._sessions.get(pointer)
            if session is not None:
                session._on_remote_begin()
            elif lib.pn_session_state(pointer) & lib.PN_LOCAL_UNINIT:
                session = EngineSession(self, proton.Session(pointer), None)
                self.handler._on_session(session)
        elif kind == lib.PN_SESSION_FINAL:
            self._final.append(lib.pn_event_session(event))
        elif kind == lib.PN_SESSION_REMOTE_CLOSE:
            session = self._sessions.get(lib.pn_event_session(event))
            if session is not None:
                session._on_remote_end()
        elif kind == lib.PN_CONNECTION_REMOTE_OPEN:
            self._remote = attach.remote_open(self._connection, self._transport, RemoteOpen)
            # Half of what the peer asks for (2.4.5), else of what we give up after, which keeps proxies content.
            self._keep_alive = (self._remote.idle_timeout or self._idle_timeout) / 2
            self.handler._on_opened(self._remote)
        elif kind == lib.PN_CONNECTION_REMOTE_CLOSE:
            error = attach.condition_in(self._connection)
            self.close()
            self.handler._on_closed(error)
        elif kind in (lib.PN_TRANSPORT_ERROR, lib.PN_TRANSPORT_TAIL_CLOSED, lib.PN_TRANSPORT_HEAD_CLOSED):
            self._on_transport_end(kind)

    def _on_transport_end(self, kind: int) -> None:
        """Find out why a direction ended: proton says so by an event with an error, by one without, or by neither.

        A refusal of SASL and a performative that cannot be decoded end the stream without an error.
        """
        if self._failed or self._connection.state & proton.Endpoint.REMOTE_CLOSED:
            return
        error = attach.condition_in(self._transport, "condition")
        refused = self._sasl is not None and self._sasl.outcome not in (None, proton.SASL.OK)
        if error is None and refused:
            error = ErrorCondition("amqp:unauthorized-access", "user name or password")
        elif error is None and kind == lib.PN_TRANSPORT_HEAD_CLOSED:
            return  # our close is out
        self._failed = True
        self.handler._on_failed(
            error or ErrorCondition("amqp:connection:framing-error", "the peer sent bytes that are no AMQP frame")
        )

    def _on_link_open(self, event: Any) -> None:
        pointer = lib.pn_event_link(event)
        link = self._links.get(pointer)
        if link is not None:
            link._on_remote_attach()
            return
        session = self._sessions.get(lib.pn_link_session(pointer))
        if session is None or session.handler is None or not lib.pn_link_state(pointer) & lib.PN_LOCAL_UNINIT:
            return
        new: EngineSender | EngineReceiver
        if lib.pn_link_is_sender(pointer):
            new = EngineSender(session, proton.Sender(pointer))
        else:
            new = EngineReceiver(session, proton.Receiver(pointer))
        new._read_remote()
        session.handler._on_link(new)

    def _fail(self, condition: str, description: str) -> None:
        """Close with an error because the peer broke the protocol."""
        if self._failed:
            return
        self._failed = True
        error = ErrorCondition(condition, description)
        self.close(error)
        self.handler._on_failed(error)
