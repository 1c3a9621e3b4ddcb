"""The broker's end of a WebSocket: bytes in and out, without a task."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, Final, cast

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, State

from .peer import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        self._mute = False
        self._sizes: Iterator[int] | None = None
        self._fragmented = False

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
            if self._sizes is None:
                self.protocol.send_binary(data)
            else:
                self._write_cut(data, self._sizes)
            self.send_data()

    def _write_cut(self, data: bytes, sizes: Iterator[int]) -> None:
        first = True
        while data:
            size = next(sizes)
            piece, data = data[:size], data[size:]
            if first or not self._fragmented:
                self.protocol.send_binary(piece, fin=not (self._fragmented and data))
            else:
                self.protocol.send_continuation(piece, fin=not data)
            first = False

    def cut(self, sizes: tuple[int, int], *, fragmented: bool, seed: int) -> None:
        """Cut what is sent from now on into messages, or fragments, of random sizes."""
        draw = random.Random(seed)
        self._sizes = iter(lambda: draw.randint(*sizes), None)
        self._fragmented = fragmented

    def mute(self) -> None:
        """Send nothing any more, and heed nothing that comes but the end of the TCP connection."""
        self._mute = True
        if self.keepalive_task is not None:
            self.keepalive_task.cancel()

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

    def send_data(self) -> None:
        """Write what websockets has ready."""
        if self._mute:
            self.protocol.data_to_send()
        else:
            super().send_data()

    def data_received(self, data: bytes) -> None:
        """Take bytes off the socket."""
        if self._mute:
            return
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
