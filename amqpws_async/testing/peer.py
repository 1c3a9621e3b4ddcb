"""One client of the broker: its bytes, its SASL, its AMQP connection and sessions.

Everything runs in callbacks of the event loop: what comes in is worked off at once, on whichever connections it
touches, and each connection touched writes once, at the end of the loop's turn. So there is no task per connection or
message, and what belongs together goes out together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..engine import Engine, EngineReceiver, EngineSender, EngineSession, RemoteOpen
from ..errors import ErrorCondition
from .attaching import LinkRequest, attach, route
from .sasl import SaslServer

if TYPE_CHECKING:
    from .injection import Injector
    from .links import IncomingLink, OutgoingLink
    from .nodes import Nodes, Topic
    from .queues import Queue
    from .websocket import Stream

__all__ = ["Peer", "PeerSession", "ServerOptions"]

logger = logging.getLogger("amqpws_async.testing")

WEBSOCKET_MESSAGE: Final = 32768  # bytes; Artemis takes 64 KiB at most, clients may be like that too

HIGH_WATER: Final = 262144
"""Bytes of messages given to the engine and not yet to the socket, at which its receivers get no more for now."""

PATIENCE: Final = 10.0
"""Seconds for SASL and open, as websockets has for the upgrade, and then for taking the last words."""

_TOO_MANY: Final = ErrorCondition("amqp:resource-limit-exceeded", "connection rejected (too much connections)")

CLOCK_STEP: Final = 0.001  # seconds: proton counts in whole milliseconds, so a timer is armed one later


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a broker says and allows on its connections; see `Broker`."""

    faults: Injector
    container_id: str
    users: Mapping[str, str] | None
    anonymous: bool
    authorize_link: Callable[[LinkRequest], ErrorCondition | None] | None
    has_room: Callable[[], bool]
    max_links: int | None
    max_message_size: int
    max_frame_size: int
    idle_timeout: float


class Peer:
    """One client.

    Args:
        options: What the broker says and allows.
        nodes: The broker's nodes.
        stream: The WebSocket.

    Attributes:
        ended: Done when nothing is left to say, and the WebSocket may be closed.
        gone: Done when the TCP connection has ended.
        container_id: The client's.
        user: Who it is, or None.
        sessions: Its sessions.
        choked: Receivers to go on with when the socket has taken what there is.
    """

    engine: Engine

    def __init__(self, options: ServerOptions, nodes: Nodes, stream: Stream) -> None:
        self.loop = asyncio.get_running_loop()
        self.options = options
        self.nodes = nodes
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.container_id = ""
        self.user: str | None = None
        self.sessions: set[PeerSession] = set()
        self.choked: dict[OutgoingLink, None] = {}
        self._stream = stream
        self._sasl: SaslServer | None = None
        self._unsent = 0
        self._awake = False
        self._ending = False
        self._admitted = False
        self._lost = False
        self._silent = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def start(self) -> None:
        """Begin, once the WebSocket is open."""
        options = self.options
        self.engine = Engine(
            self,
            container_id=options.container_id,
            max_frame_size=options.max_frame_size,
            idle_timeout=options.idle_timeout,
            server=True,
            properties={"product": "amqpws_async.testing"},
            offered_capabilities=("ANONYMOUS-RELAY",),
        )
        self._sasl = SaslServer(options.users, anonymous=options.anonymous, external=self._stream.tls_identity())
        self._deadline = self.loop.call_later(PATIENCE, self.abort)

    @property
    def opened(self) -> bool:
        """Whether the AMQP connection is open, and may be."""
        return self._admitted and not self._ending

    # --- bytes ------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the client, in any cut."""
        if self._ending:
            return
        sasl = self._sasl
        if sasl is None:
            self.engine.receive_data(data)
        else:
            sasl.receive(data)
            self._stream.write(sasl.output())
            if sasl.failed:
                self.finish()
            elif sasl.done:
                self._sasl = None
                self.user = sasl.user
                if rest := sasl.rest():
                    self.engine.receive_data(rest)
        self.wake()

    def lost(self) -> None:
        """The TCP connection has ended."""
        self._lost = True
        self._ending = True
        self._deadline.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        self.engine.free()
        self._say_ended()
        self.gone.set_result(None)

    def wake(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._awake:
            self._awake = True
            self.loop.call_soon(self._flush)

    def sent(self, size: int) -> bool:
        """Account for a message given to the engine; True if it should be the last for now."""
        self._unsent += size
        if not self._awake:
            self.wake()
        return self._unsent > HIGH_WATER

    @property
    def is_choked(self) -> bool:
        """Whether receivers have to wait until the socket has taken more."""
        return self._unsent > HIGH_WATER

    def _flush(self) -> None:
        self._awake = False
        if self._lost or self._silent:
            return
        self._tick()
        stream, take = self._stream, self.engine.data_to_send
        while stream.writable and (data := take(WEBSOCKET_MESSAGE)):
            stream.write(data)
        if stream.paused:
            return  # `wake` is called when there is room
        self._unsent = self.engine.unsent_bytes()
        if self._ending:
            self._say_ended()
        elif self.choked and not self.is_choked:
            choked, self.choked = self.choked, {}
            for link in choked:
                link.resume()

    def _say_ended(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _tick(self) -> None:
        deadline = self.engine.tick(self.loop.time())
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline + CLOCK_STEP, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._flush()

    def route(self, raw: bytes) -> Queue | Topic:
        """Find where a message on an anonymous link goes; see `attaching.route`."""
        return route(self, raw)

    # --- ending -----------------------------------------------------------------------

    def close(self, error: ErrorCondition) -> None:
        """Send a close; the connection ends when the client has answered."""
        if self._silent:
            self.abort()
        elif self.opened:
            self._leave()
            self.engine.close(error)
        else:
            self.finish()
        self.wake()

    def abort(self) -> None:
        """Drop the TCP connection."""
        self._stream.abort()

    def silence(self) -> None:
        """Say nothing any more, and heed nothing but the end of the TCP connection."""
        self._silent = True
        if self._timer is not None:
            self._timer.cancel()
        self._stream.mute()

    def finish(self) -> None:
        """Let everybody go, and the WebSocket be closed when everything is written."""
        if not self._ending:
            self._ending = True
            self._leave()
            self._deadline.cancel()
            self._deadline = self.loop.call_later(PATIENCE, self.abort)
            self.wake()

    def _leave(self) -> None:
        for session in self.sessions:
            session.stop()
        for session in list(self.sessions):
            session.end()

    # --- what the engine calls ------------------------------------------------------------

    def _on_opened(self, remote: RemoteOpen) -> None:
        self.container_id = remote.container_id
        self.engine.open()
        if self.options.has_room():
            self._admitted = True
            self._deadline.cancel()
            self.options.faults.end(self.options.faults.due("open"), self)
        else:
            self.engine.close(_TOO_MANY)

    def _on_closed(self, error: ErrorCondition | None) -> None:
        self.finish()

    def _on_failed(self, error: ErrorCondition) -> None:
        logger.info("! %s: %s", self.container_id or "a client", error)
        self.finish()

    def _on_session(self, session: EngineSession) -> None:
        if self._admitted:
            made = PeerSession(self, session)
            self.sessions.add(made)
            self.options.faults.end(self.options.faults.due("begin"), self, made)


class PeerSession:
    """A session that a client began.

    Args:
        peer: The client.
        session: The engine's session.

    Attributes:
        peer: The client.
        links: Its links.
    """

    def __init__(self, peer: Peer, session: EngineSession) -> None:
        self.peer = peer
        self.links: set[IncomingLink | OutgoingLink] = set()
        self._session = session
        session.handler = self
        session.begin()

    def stop(self) -> None:
        """Deliver no more: what one of its links had must not go to another."""
        for link in self.links:
            link.stop()

    def end(self) -> None:
        """End its links: what they had not settled goes back."""
        self.stop()
        for link in list(self.links):
            link.end(closed=False)
        self.peer.sessions.discard(self)

    def fail(self, error: ErrorCondition) -> None:
        """End with an error."""
        self.end()
        self._session.end(error)
        self.peer.wake()

    def _on_begun(self) -> None:
        """Not called: the client began first."""

    def _on_link_released(self) -> None:
        """Names of links are the client's to manage."""

    def _on_ended(self, error: ErrorCondition | None) -> None:
        self.end()

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        attach(self, link)
