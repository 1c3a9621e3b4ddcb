"""The broker's end of a WebSocket: bytes in and out, without a task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

from .peer import Peer

if TYPE_CHECKING:
    from .nodes import Nodes
    from .peer import ServerOptions

__all__ = ["Stream"]

logger = logging.getLogger("amqpws_async.testing")

_CONTROL: Final = frozenset({Opcode.CLOSE, Opcode.PING, Opcode.PONG})


class Stream(ServerConnection):
    """A WebSocket connection that hands the payload of its binary frames to a `Peer` as they come.

    Args:
        options: For the peer.
        nodes: For the peer.
        *args: What websockets makes a connection with.
        **kwargs: Likewise.
    """

    def __init__(self, options: ServerOptions, nodes: Nodes, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer = Peer(options, nodes, self)
        self._started = False
        self._text_received = False

    def start(self) -> None:
        """Begin AMQP; the upgrade is done."""
        if not self._started:
            self._started = True
            self.peer.start()

    @property
    def writable(self) -> bool:
        """Whether the socket takes more now."""
        return not self.paused and self.protocol.state is State.OPEN

    def write(self, data: bytes) -> None:
        """Send one binary message."""
        if data and self.protocol.state is State.OPEN:
            self.protocol.send_binary(data)
            self.send_data()

    def abort(self) -> None:
        """Drop the TCP connection, if there is one yet."""
        transport = getattr(self, "transport", None)  # set when the TLS handshake is done
        if transport is not None:
            transport.abort()

    def tls_identity(self) -> str | None:
        """The common name of the client's certificate, if it has shown one."""
        certificate = self.transport.get_extra_info("peercert") or {}
        names = (pair for rdn in certificate.get("subject", ()) for pair in rdn)
        return next((value for name, value in names if name == "commonName"), None)

    # --- what websockets and asyncio call

    def process_event(self, event: Event) -> None:
        """Take a frame: data goes to the peer, the rest is websockets' business."""
        if self.request is None or not isinstance(event, Frame) or event.opcode in _CONTROL:
            super().process_event(event)
        elif event.opcode is Opcode.TEXT:
            # RFC 6455 section 7.4.1: 1003 is for "a type of data it cannot accept".
            self._text_received = True
            self.protocol.fail(CloseCode.UNSUPPORTED_DATA, "AMQP travels in binary messages")
            self.send_data()
        elif not self._text_received:
            self.start()
            self.peer.receive(cast(bytes, event.data))

    def data_received(self, data: bytes) -> None:
        """Take bytes off the socket."""
        super().data_received(data)
        # The client has closed the WebSocket, or broken its rules. What came before in `data` has been worked off.
        if self._started and self.protocol.state is not State.OPEN:
            self.peer.finish()

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        if self._started:
            self.peer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the peer."""
        super().connection_lost(exc)
        if self._started:
            self.peer.lost()
