"""Servers that no client should meet: each is a few lines that go wrong in one way, chosen and varied by a seed.

A server either `decides` the matter, so that the client has to raise an `AMQPError`, or leaves it open: then a timeout
is as good an end, or even none, where it happened to speak AMQP well enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..websocket_peer import BINARY, CLOSE, CONT, PING, PONG, TEXT, Peer, close_frame, frame
from .mutate import cuts, mutate
from .party import PROFILES, Party
from .stream import recordings
from .wire import SASL, pieces

Behaviour = Callable[[Peer, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Server:
    """One way to go wrong."""

    behave: Behaviour
    decides: bool
    patience: float  # seconds that the client has for opening

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.behave.__name__


SERVERS: list[Server] = []


def _decides(behave: Behaviour) -> Behaviour:
    SERVERS.append(Server(behave, decides=True, patience=5.0))
    return behave


def _leaves_open(behave: Behaviour) -> Behaviour:
    SERVERS.append(Server(behave, decides=False, patience=0.3))
    return behave


async def _endless(peer: Peer, data: bytes) -> None:
    """Writes until the client has had enough."""
    with contextlib.suppress(ConnectionError):
        while not peer.writer.is_closing():
            peer.writer.write(data)
            await peer.writer.drain()
            await asyncio.sleep(0)


def _reset(peer: Peer) -> None:
    """Makes the end of the connection a RST."""
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _end(peer: Peer, rng: random.Random) -> None:
    """Ends the connection, this way or that."""
    match rng.randrange(4):
        case 0:
            _reset(peer)
        case 1:
            peer.writer.write(close_frame(rng.choice((1000, 1001, 1011)), "enough"))
            await peer.until_closed()
        case 2:
            peer.writer.write_eof()
            await peer.until_closed()
        case _:
            await peer.writer.drain()


# --- before the upgrade ------------------------------------------------------------------------


@_leaves_open
async def silent(peer: Peer, rng: random.Random) -> None:
    """Accepts and says nothing, with or without reading."""
    if rng.random() < 0.5:
        await peer.until_closed()
    else:
        await asyncio.sleep(1.0)


@_leaves_open
async def dripping(peer: Peer, rng: random.Random) -> None:
    """Answers octet by octet, too slowly."""
    await peer.read_request()
    with contextlib.suppress(ConnectionError):
        for octet in (
            peer.switching() if rng.random() < 0.5 else b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 1000
        ):
            peer.writer.write(bytes((octet,)))
            await peer.writer.drain()
            await asyncio.sleep(0.01)
        await peer.until_closed()


@_decides
async def hanging_up(peer: Peer, rng: random.Random) -> None:
    """Ends before, within or after the request, or within the answer."""
    stage = rng.randrange(4)
    if rng.random() < 0.5:
        _reset(peer)
    if stage == 1:
        await peer.reader.readexactly(rng.randrange(1, 100))
    elif stage >= 2:
        await peer.read_request()
    if stage == 3:
        answer = peer.switching()
        peer.writer.write(answer[: rng.randrange(len(answer) - 1)])
        await peer.writer.drain()


@_decides
async def garbage(peer: Peer, rng: random.Random) -> None:
    """Answers with something that is no HTTP."""
    await peer.read_request()
    answer = peer.switching()
    peer.writer.write(
        rng.choice(
            (
                rng.randbytes(rng.randrange(1, 3000)) + b"\n\n",
                b"SSH-2.0-OpenSSH_9.6\r\n",
                b"AMQP\x00\x01\x00\x00",
                b"220 smtp.example ESMTP\r\n",
                b"\r\n" * 500,
                b"HTTP/2 200\r\n\r\n",
                b"HTTP/1.1 abc Switching\r\n\r\n",
                b"HTTP/1.1 101\r\n\r\n",
                answer.replace(b": ", b" ", 2),
                answer.replace(b"\r\n", b"\n"),
                answer.replace(b"Upgrade", b"Up\xffgrade\x00"),
                answer[: rng.randrange(20)] + rng.randbytes(50) + b"\r\n\r\n",
            )
        )
    )
    await peer.writer.drain()


@_decides
async def huge_headers(peer: Peer, rng: random.Random) -> None:
    """Sends headers without end: one, many, or a long status line."""
    await peer.read_request()
    peer.writer.write(peer.switching()[:-2] if rng.random() < 0.7 else b"HTTP/1.1 101 ")
    await _endless(peer, rng.choice((b"X-Big: " + b"a" * 5000, b"X-Many: 1\r\n" * 500)))


@_decides
async def refusing(peer: Peer, rng: random.Random) -> None:
    """Answers with another status, and with bodies of any kind."""
    await peer.read_request()
    status = rng.choice((200, 204, 206, 304, 400, 401, 403, 404, 407, 418, 426, 429, 500, 502, 503, 599, 999))
    body = rng.choice((b"", b"<html>no</html>", rng.randbytes(300), b"x" * 100_000))
    head = rng.choice(
        (
            f"Content-Length: {len(body)}",
            f"Content-Length: {rng.choice((2**62, 2**20, -1, 'x'))}",
            "Transfer-Encoding: chunked",
            "Content-Encoding: gzip",
            "WWW-Authenticate: Bearer realm=\xff",
            "Connection: close",
        )
    )
    peer.writer.write(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n\r\n".encode("latin-1") + body)
    if rng.random() < 0.3:
        await _endless(peer, b"y" * 10_000)
    await peer.writer.drain()


@_decides
async def redirecting(peer: Peer, rng: random.Random) -> None:
    """Sends the client in circles, elsewhere, or nowhere."""
    await peer.read_request()
    host = peer.headers["host"]
    place = rng.choice(
        (
            f"ws://{host}/again",
            f"http://{host}/",
            "/" + "x" * rng.choice((1, 7000)),
            "wss://elsewhere.invalid/",
            "ws://user:secret@elsewhere.invalid/",
            "ws://[::1",
            "ftp://elsewhere.invalid/",
            "\xe9\xff//%00",
            "",
            "ws://127.0.0.1:99999/",
            "javascript:alert(1)",
        )
    )
    status = rng.choice((301, 302, 303, 307, 308, 300, 305))
    peer.writer.write(
        f"HTTP/1.1 {status} Elsewhere\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    )
    await peer.writer.drain()


@_decides
async def unfit_upgrade(peer: Peer, rng: random.Random) -> None:
    """Accepts, but not as a WebSocket server has to."""
    await peer.read_request()
    good = peer.switching()
    bad = rng.choice(
        (
            peer.switching(subprotocol=None),
            peer.switching(subprotocol="mqtt"),
            peer.switching(subprotocol="AMQP"),
            peer.switching(subprotocol="amqp, mqtt"),
            peer.switching("Sec-WebSocket-Protocol: mqtt"),
            peer.switching(accept="AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            peer.switching("Sec-WebSocket-Extensions: permessage-deflate"),
            peer.switching("Sec-WebSocket-Extensions: ;;;,,x=\xff"),
            good.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
            good.replace(b"Connection: Upgrade", b"Connection: close"),
            good.replace(b"Sec-WebSocket-Accept", b"Sec-WebSocket-Reject"),
            good.replace(b"101 Switching", b"200 Switching"),
        )
    )
    peer.writer.write(bad + (frame(b"AMQP\x00\x01\x00\x00") if rng.random() < 0.5 else b""))
    if rng.random() < 0.5 and b" 101 " in bad:  # a body without length lasts until the end of the connection
        await peer.until_closed()
    await peer.writer.drain()


# --- after it --------------------------------------------------------------------------------------


@_leaves_open
async def silent_after_upgrade(peer: Peer, rng: random.Random) -> None:
    """Upgrades, and then says nothing, or nothing of AMQP."""
    await peer.upgrade(rng.choice((b"", frame(b"", PING), frame(b"x", PONG), frame(b""), frame(b"", fin=False))))
    await peer.until_closed()


@_decides
async def text(peer: Peer, rng: random.Random) -> None:
    """Sends text where binary is due."""
    await peer.upgrade()
    data = rng.choice((b"", b"hello", b'{"amqp": 1}', b"\xff\xfe", b"AMQP\x00\x01\x00\x00", b"x" * 100_000))
    peer.writer.write(frame(data, TEXT, fin=rng.random() < 0.7))
    await peer.until_closed()


@_decides
async def broken_frames(peer: Peer, rng: random.Random) -> None:
    """Breaks a rule of RFC 6455."""
    await peer.upgrade(frame(b"AMQP\x00\x01\x00\x00") if rng.random() < 0.5 else b"")
    peer.writer.write(
        rng.choice(
            (
                b"\x82\x84\x01\x02\x03\x04abcd",  # masked
                bytes((0x80 | rng.choice((3, 4, 7, 11, 15)), 0)),  # an opcode that is not assigned
                bytes((0x82 | rng.choice((0x10, 0x20, 0x40)), 1)) + b"x",  # reserved bits
                frame(b"x" * 126, rng.choice((PING, PONG, CLOSE))),
                frame(b"x" * 70_000, PING),
                frame(b"x", PING, fin=False),
                frame(b"x", CONT),
                frame(b"x", fin=False) + frame(b"y"),
                b"\x82\x7f" + struct.pack(">Q", rng.choice((2**62, 2**63 - 1, 2**63, 2**64 - 1))) + b"x" * 100,
                b"\x82\x7f" + struct.pack(">Q", 2**24 + 1),
            )
        )
    )
    await peer.until_closed()


@_decides
async def closing(peer: Peer, rng: random.Random) -> None:
    """Closes the WebSocket, well or badly."""
    await peer.upgrade()
    codes = (1000, 1001, 1002, 1003, 1005, 1006, 1007, 1011, 1015, 0, 999, 2999, 3000, 4999, 65535)
    code = struct.pack(">H", rng.choice(codes))
    content = rng.choice((b"", b"\x03", code, code + b"\xff\xfe\x80", code + b"r" * 123))
    peer.writer.write(frame(content, CLOSE) + (frame(b"more") if rng.random() < 0.3 else b""))
    if rng.random() < 0.7:
        await peer.until_closed()


@_decides
async def dropping(peer: Peer, rng: random.Random) -> None:
    """Drops the connection within a frame, with or without a RST."""
    whole = frame(b"AMQP\x00\x01\x00\x00" + rng.randbytes(rng.choice((0, 100, 70_000))))
    if rng.random() < 0.5:
        _reset(peer)
    await peer.upgrade(whole[: rng.randrange(len(whole))])
    await peer.writer.drain()


@_decides
async def endless(peer: Peer, rng: random.Random) -> None:
    """Sends one message without end, of something that is no AMQP."""
    await peer.upgrade(frame(b"", fin=False))
    await _endless(peer, frame(rng.choice((b"\xff" * 1000, bytes(30_000), rng.randbytes(5000))), CONT, fin=False))


@_leaves_open
async def flooding(peer: Peer, rng: random.Random) -> None:
    """Pings, or sends nothing in pieces, for as long as the client listens."""
    await peer.upgrade()
    await _endless(peer, rng.choice((frame(b"p" * 125, PING), frame(b"", PONG), frame(b""))) * 50)


@_decides
async def recorded_amqp(peer: Peer, rng: random.Random) -> None:
    """Plays a damaged recording, whatever the client says, and ends."""
    others = recordings(server=False)
    data = mutate(rng, rng.choice([heard for heard in others if len(heard[1]) > 8 and heard[1][5] == SASL]), others)
    await peer.upgrade()
    await peer.read_frame()
    start = 0
    for end in cuts(rng, len(data)):
        fin = rng.random() < 0.8
        peer.writer.write(frame(data[start:end], fin=fin) + (b"" if fin else frame(b"", CONT)))
        start = end
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    await peer.writer.drain()
    await _end(peer, rng)


@_leaves_open
async def damaged_amqp(peer: Peer, rng: random.Random) -> None:
    """Speaks good AMQP, of which a part is damaged on the way; ends when the client has nothing more to say."""
    party = Party(rng.choice([profile for profile in PROFILES if profile.sasl]), server=True)
    others = recordings(server=False)
    good_until = rng.randrange(1, 14)
    try:
        await peer.upgrade()
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.2):
                    opcode, _, data = await peer.read_frame()
                if opcode == CLOSE:
                    break
                if opcode == BINARY:
                    party.engine.receive_data(data)
                    party.engine.tick(asyncio.get_running_loop().time())
                while said := party.engine.data_to_send(32768):
                    good_until -= 1
                    if good_until < 0 and rng.random() < 0.5:
                        said = mutate(rng, pieces(said), others)[:65536]
                    peer.writer.write(frame(said))
    finally:
        party.engine.free()
    await _end(peer, rng)
