"""The counterpart as a process: ``python -m benchmarks.server`` prints its URL and serves until it is ended.

The path of an upgrade says what it is to be:

=================  ================================================================================
path               what answers
=================  ================================================================================
``/SHAPE``         AMQP: takes everything and keeps nothing; receivers get messages of that shape
``/swift``         AMQP that answers each transfer with bytes made by hand, to be as quick as an echo
``/echo``          a bare WebSocket that sends back what it gets
``/sink``          a bare WebSocket that reads, and answers text messages alone
``/source/SHAPE``  a bare WebSocket that sends the bytes of that shape without end
``/beat``          a bare WebSocket that sends 8 bytes as often as its query ``seconds`` says
=================  ================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import struct
import urllib.parse

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from .counterpart import Counterpart
from .shapes import SHAPES, make

__all__ = ["MESSAGE_SIZE", "Swift"]

MESSAGE_SIZE = 32768  # bytes of a WebSocket message, at most


class Swift(Counterpart):
    """Settles each transfer without the engine, which only sees how the link begins and ends."""

    credit = 2**30

    def answer(self, data: bytes) -> bytes:
        """Give the answer to what the client said: whole frames."""
        answers = []
        position = 0
        while position < len(data):
            size = int.from_bytes(data[position : position + 4], "big")
            if data[position + 8 : position + 11] != b"\x00\x53\x14":
                return super().answer(data)
            answers.append(_accepted(_delivery_id(data, position + 11)))
            position += size
        return b"".join(answers)


def _delivery_id(data: bytes, position: int) -> int:
    """The second field of a transfer (specification 2.7.5); the first is the handle."""
    position += 3 if data[position] == 0xC0 else 9  # list8 or list32, with size and count
    position += {0x43: 1, 0x52: 2, 0x70: 5}[data[position]]
    if data[position] == 0x43:
        return 0
    if data[position] == 0x52:
        return data[position + 1]
    return int.from_bytes(data[position + 1 : position + 5], "big")


def _accepted(delivery_id: int) -> bytes:
    """A disposition of the receiver: settled, accepted (specification 2.7.6, 3.4.2)."""
    fields = struct.pack(">BBI", 0x41, 0x70, delivery_id) + b"\x40\x41\x00\x53\x24\x45"
    body = b"\x00\x53\x15\xc0" + bytes((len(fields) + 1, 5)) + fields
    return struct.pack(">IBBH", len(body) + 8, 2, 0, 0) + body


async def _serve(socket: ServerConnection) -> None:
    assert socket.request is not None
    url = urllib.parse.urlsplit(socket.request.path)
    what, _, shape = url.path.strip("/").partition("/")
    with contextlib.suppress(ConnectionClosed):
        if what == "echo":
            async for data in socket:
                await socket.send(data)
        elif what == "sink":
            async for data in socket:
                if isinstance(data, str):
                    await socket.send(data)
        elif what == "source":
            chunks = _cut(make(SHAPES[shape], 5).encode())
            for chunk in itertools.cycle(chunks):
                await socket.send(chunk)
        elif what == "beat":
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(_beat(socket, float(url.query.partition("=")[2])))
                async for _ in socket:
                    pass
                beating.cancel()
        else:
            await _serve_amqp(socket, Swift() if what == "swift" else Counterpart(make(SHAPES[what], 5).encode()))


async def _serve_amqp(socket: ServerConnection, counterpart: Counterpart) -> None:
    loop, engine = asyncio.get_running_loop(), counterpart.engine
    beating: asyncio.Task[None] | None = None
    try:
        async for data in socket:
            assert isinstance(data, bytes)
            for chunk in _cut(counterpart.answer(data)):
                await socket.send(chunk)
            if engine.finished:
                break
            if beating is None and engine.remote is not None and engine.remote.idle_timeout:
                engine.tick(loop.time())
                beating = asyncio.create_task(_tick(socket, counterpart))
    finally:
        if beating is not None:
            beating.cancel()
            await asyncio.wait([beating])
        engine.free()


async def _tick(socket: ServerConnection, counterpart: Counterpart) -> None:
    """Keep the connection alive by empty frames, as often as the client asked for."""
    loop = asyncio.get_running_loop()
    while deadline := counterpart.engine.tick(loop.time()):
        if data := counterpart.answer(b""):
            await socket.send(data)
            counterpart.engine.sent(loop.time())
        else:
            await asyncio.sleep(deadline - loop.time() + 0.001)


async def _beat(socket: ServerConnection, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await socket.send(bytes(8))


def _cut(data: bytes) -> list[bytes]:
    if len(data) <= MESSAGE_SIZE:
        return [data] if data else []
    return [data[start : start + MESSAGE_SIZE] for start in range(0, len(data), MESSAGE_SIZE)]


async def main() -> None:
    """Serve until the process is ended."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with serve(
        _serve,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol("amqp")],
        compression=None,
        max_size=None,
        ping_interval=None,
        select_subprotocol=_select,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(f"serving on ws://127.0.0.1:{port}/", flush=True)
        await server.serve_forever()


def _select(_: ServerConnection, offered: object) -> Subprotocol | None:
    return Subprotocol("amqp") if "amqp" in offered else None  # type: ignore[operator]


if __name__ == "__main__":
    asyncio.run(main())
