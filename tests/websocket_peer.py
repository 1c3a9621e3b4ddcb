"""A WebSocket server made by hand, which can do what a well-made one never would: break rules, stop in the middle."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from amqpws_async.transport import WebSocketTransport

BINARY, TEXT, CONT, CLOSE, PING, PONG = 2, 1, 0, 8, 9, 10


class Peer:
    """One accepted TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.request = ""

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers, names in lower case."""
        lines = self.request.split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}

    async def read_request(self) -> str:
        """Reads the upgrade request."""
        self.request = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        return self.request

    def switching(self, *lines: str, subprotocol: str | None = "amqp", accept: str | None = None) -> bytes:
        """The 101 answer to the request read before."""
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = accept or base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        head.append(f"Sec-WebSocket-Accept: {accept}")
        if subprotocol is not None:
            head.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        return "\r\n".join([*head, *lines, "", ""]).encode("latin-1")

    async def upgrade(self, extra: bytes = b"", subprotocol: str | None = "amqp") -> None:
        """Accepts the upgrade; `extra` travels in the same write."""
        await self.read_request()
        self.writer.write(self.switching(subprotocol=subprotocol) + extra)

    async def read_frame(self) -> tuple[int, bool, bytes]:
        """Reads one masked frame: opcode, FIN, payload."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
        assert second & 0x80, "RFC 6455 section 5.1: a client masks every frame"
        mask = await self.reader.readexactly(4)
        data = await self.reader.readexactly(size)
        keys = (mask * (size // 4 + 1))[:size]
        return (
            first & 0x0F,
            bool(first & 0x80),
            (int.from_bytes(data, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big"),
        )

    async def until_closed(self) -> None:
        """Reads, and throws away, until the client is gone."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


def frame(data: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    """A frame as a server sends it: not masked."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 65536:
        return head + b"\x7e" + struct.pack(">H", len(data)) + data
    return head + b"\x7f" + struct.pack(">Q", len(data)) + data


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame."""
    return frame(struct.pack(">H", code) + reason.encode(), CLOSE)


class Server:
    """A listening server: where, and what went wrong in its handlers."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0

    @property
    def url(self) -> str:
        """Its ws:// URL."""
        return f"ws://127.0.0.1:{self.port}/"


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Peer], Awaitable[None]], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serves `handler` on loopback; at the end every connection is dropped, and a failed handler fails the test."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await handler(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away: tests look at that from the client's side
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(accepted(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await listener.wait_closed()
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


class Asked:
    """A transport that is asked for its bytes, as tests like it, and told of room: everything else is the transport's.

    It becomes the transport's consumer with the first `receive` or `send`, not before; `start` is for other consumers.
    """

    def __init__(self, transport: WebSocketTransport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._ended: Exception | None = None
        self._changed = asyncio.Event()
        self._started = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def __repr__(self) -> str:
        return repr(self._transport)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._transport.start(self)

    async def receive(self) -> bytes:
        """The bytes that have come, once there are some; raises when the stream has ended."""
        self._start()
        while not self._pieces:
            if self._ended is not None:
                self._transport.write(b"")
                raise AssertionError("the end was told, and a write goes through")
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    async def send(self, data: bytes) -> None:
        """Writes, and waits until there is room for more; raises when the stream has ended."""
        self._start()
        self._room = self._transport.write(data)
        while not self._room:
            if self._ended is not None:
                self._transport.write(b"")
                raise AssertionError("the end was told, and a write goes through")
            self._changed.clear()
            await self._changed.wait()

    # --- what the transport calls

    def _on_bytes(self, data: bytes | bytearray | memoryview) -> None:
        assert data
        assert self._ended is None
        self._pieces.append(bytes(data))
        self._changed.set()

    def _on_writable(self) -> None:
        self._room = True
        self._changed.set()

    def _on_end(self, error: Exception) -> None:
        assert self._ended is None
        self._ended = error
        self._changed.set()
