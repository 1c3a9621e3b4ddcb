"""The byte stream over a real WebSocket: nothing lost, nothing endless, and every end and every refusal explained."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from amqpws_async.errors import (
    AuthenticationError,
    ConnectionClosed,
    HandshakeError,
    OpenError,
    RemoteProtocolError,
)
from amqpws_async.options import ConnectionOptions
from amqpws_async.transport import MAX_INCOMING_FRAME, open_websocket

from .ports import free_port
from .websocket_peer import CLOSE, CONT, PING, PONG, TEXT, Asked, Peer, close_frame, frame, serving

CANARY = "canary-5f1d"
MIB = 2**20


def options(url: str, **arguments: Any) -> ConnectionOptions:
    return ConnectionOptions(url=url, **{"proxy": None, "close_timeout": 1.0, "ping_interval": None} | arguments)


@contextlib.asynccontextmanager
async def opened(url: str, token: str | None = None, **arguments: Any) -> AsyncIterator[Asked]:
    transport = await open_websocket(options(url, **arguments), token)
    try:
        yield Asked(transport)
    finally:
        transport.abort()


@contextlib.asynccontextmanager
async def echo(**arguments: Any) -> AsyncIterator[str]:
    """A well-made server that sends every message back."""

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(handler, "127.0.0.1", 0, subprotocols=["amqp"], **arguments) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"{'wss' if 'ssl' in arguments else 'ws'}://127.0.0.1:{port}/"


async def read(transport: Asked, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await transport.receive()
    return bytes(data)


async def until(condition: Callable[[], bool]) -> None:
    """Lets everything run until something is so that has no event to wait for."""
    while not condition():
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Lets everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- the stream -------------------------------------------------------------------


async def test_bytes_go_both_ways_and_the_close_is_in_order() -> None:
    """The plain case, with a server that checks the protocol for us."""
    async with echo() as url:
        transport = Asked(await open_websocket(options(url), None))
        assert transport.subprotocol == "amqp"
        await transport.send(b"AMQP\0\1\0\0")
        assert await read(transport, 8) == b"AMQP\0\1\0\0"
        assert "open" in repr(transport)
        await transport.close()
        assert "closed" in repr(transport)


async def test_bytes_behind_the_101_in_the_same_segment_are_not_lost() -> None:
    """A broker may speak first and at once."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"early") + frame(b" bird"))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        assert await read(transport, 10) == b"early bird"


async def test_a_fragment_arrives_before_its_message_is_complete() -> None:
    """Brokers fragment messages of a mebibyte and more; a message may never end."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        peer.writer.write(frame(b"begin", fin=False))
        assert (await peer.read_frame())[2] == b"seen"
        peer.writer.write(frame(b"middle", CONT, fin=False) + frame(b"", CONT, fin=False) + frame(b"end", CONT))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        assert await transport.receive() == b"begin"
        await transport.send(b"seen")
        assert await read(transport, 9) == b"middleend"


async def test_a_message_without_end_takes_no_memory() -> None:
    """64 MiB in one message of 1 MiB fragments pass through as they come; what waits here, waits with who asks."""
    most = 0

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        peer.writer.write(frame(b"", fin=False))
        for _ in range(64):
            peer.writer.write(frame(bytes(MIB), CONT, fin=False))
            await peer.writer.drain()
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        size = 0
        while size < 64 * MIB:
            data = await transport.receive()
            size, most = size + len(data), max(most, len(data))
        assert most <= 16 * MIB


async def test_many_small_messages_of_one_read_come_in_one_piece() -> None:
    """One call for a burst, not one for each of its messages."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        await peer.read_frame()
        peer.writer.write(b"".join(frame(b"%03d" % n) for n in range(1000)))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        await transport.send(b"go")
        pieces = [await transport.receive()]
        while sum(map(len, pieces)) < 3000:
            pieces.append(await transport.receive())
        assert b"".join(pieces) == b"".join(b"%03d" % n for n in range(1000))
        assert len(pieces) < 10


class Heard:
    """A consumer that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def _on_bytes(self, data: bytes | bytearray | memoryview) -> None:
        self.told.append(bytes(data))

    def _on_writable(self) -> None:
        self.told.append("writable")

    def _on_end(self, error: Exception) -> None:
        self.told.append(type(error))


async def test_no_byte_is_lost_whenever_the_consumer_comes() -> None:
    """Before the bytes, while they come, after them, and after the end: it hears all, in order, and the end once."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"00"))
        for n in range(1, 10):
            peer.writer.write(frame(b"%02d" % n))
            await asyncio.sleep(0)
        peer.writer.write(close_frame(1000))
        await peer.until_closed()

    async with serving(handler) as server, asyncio.timeout(20):
        for n in range(40):
            async with opened(server.url) as transport:
                await turns(n)
                heard = Heard()
                transport.start(heard)
                await until(lambda heard=heard: ConnectionClosed in heard.told)  # type: ignore[misc]
            await turns(5)
            *pieces, end = heard.told
            assert b"".join(pieces) == b"".join(b"%02d" % n for n in range(10))  # type: ignore[arg-type]
            assert end is ConnectionClosed


@pytest.mark.parametrize("encrypted", [False, True])
async def test_connections_read_into_the_same_memory_and_keep_apart(encrypted: bool) -> None:
    """What each has read before its consumer comes, and of a frame that is not whole yet, is its own."""
    authority = trustme.CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    more = {"ssl": server_side} if encrypted else {}
    async with echo(max_size=None, **more) as url, contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        given: dict[str, Any] = {"ssl": client_side} if encrypted else {}
        transports = [await stack.enter_async_context(opened(url, **given)) for _ in range(3)]
        sizes = [1, 4095, 4096, 4097, 70_000, 5, 300_000]
        for size in sizes:
            for number, transport in enumerate(transports):
                transport.write(bytes([number + 1]) * size)
            await turns(3)
        everybody = [Heard() for _ in transports]
        for transport, heard in zip(transports, everybody, strict=True):
            transport.start(heard)
            await turns(3)
        for number, heard in enumerate(everybody):
            await until(lambda heard=heard: sum(map(len, heard.told)) == sum(sizes))  # type: ignore[misc]
            assert b"".join(heard.told) == bytes([number + 1]) * sum(sizes)  # type: ignore[arg-type]


async def test_only_one_consumer() -> None:
    """Two would tear the stream apart, so the second is refused and the first goes on."""
    async with echo() as url, opened(url) as transport:
        heard = Heard()
        transport.start(heard)
        with pytest.raises(RuntimeError, match="started already"):
            transport.start(Heard())
        transport.write(b"x")
        await until(lambda: bool(heard.told))
        assert heard.told == [b"x"]


async def test_bytes_are_handed_over_by_the_read_itself() -> None:
    """No turn of the event loop between the socket and the consumer."""
    async with echo() as url, opened(url) as transport:
        heard = Heard()
        transport.start(heard)
        transport._stream.data_received(frame(b"one") + frame(b"two") + frame(b"begin", fin=False))
        assert b"".join(heard.told) == b"onetwobegin"  # type: ignore[arg-type]
        transport._stream.data_received(frame(b"", CONT, fin=False) + frame(b"last", CONT) + close_frame(1000))
        assert heard.told[-2:] == [b"last", ConnectionClosed]


async def test_unread_bytes_stop_the_peer_and_none_is_lost() -> None:
    """When nobody receives, the socket is not read any more; when somebody does again, all the rest comes."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        for n in range(256):
            peer.writer.write(frame(bytes([n]) * 65536))
            await peer.writer.drain()
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(20):
        tcp: Any = transport._stream.transport
        await until(lambda: not tcp.is_reading())
        data = await transport.receive()
        assert len(data) <= MIB + 2 * 256 * 1024
        data += await read(transport, 256 * 65536 - len(data))
        assert data == b"".join(bytes([n]) * 65536 for n in range(256))


async def test_send_waits_while_the_peer_does_not_read() -> None:
    """What is not read by the peer stops the sender, not the memory."""
    go_on = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while sent < 256:
                    await transport.send(bytes(MIB))
                    sent += 1
        assert sent < 256
        go_on.set()
        await transport.send(b"and on")


async def test_a_cancelled_send_goes_out_whole() -> None:
    """The wait for room is what is cancelled: half a message would break the stream."""
    go_on = asyncio.Event()
    got: list[bytes] = []

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        await go_on.wait()
        while sum(map(len, got)) < size:
            got.append((await peer.read_frame())[2])
        peer.writer.write(frame(b"all"))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport:
        size = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    size += MIB
                    await transport.send(bytes(MIB))
        go_on.set()
        assert await transport.receive() == b"all"
        assert sum(map(len, got)) == size


async def test_a_ping_measures_the_latency() -> None:
    """0.0 until the first pong, then the round trip; the peer is slow, as uvloop's clock counts milliseconds."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            opcode, _, payload = await peer.read_frame()
            assert opcode == PING
            asyncio.get_running_loop().call_later(0.05, peer.writer.write, frame(payload, PONG))

    async with serving(handler) as server, opened(server.url, ping_interval=0.01) as transport, asyncio.timeout(10):
        assert transport.latency == 0.0
        await until(lambda: transport.latency > 0)
        assert 0.04 < transport.latency < 5


# --- ends ----------------------------------------------------------------------------


async def ending(after: Callable[[Peer], Coroutine[Any, Any, None]], **arguments: Any) -> BaseException:
    """What receive() raises when the server does `after`, once b"last words" has been received."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"last words"))
        await after(peer)

    async with serving(handler) as server, opened(server.url, **arguments) as transport, asyncio.timeout(10):
        assert await read(transport, 10) == b"last words"
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the callers look at it closely
            await transport.receive()
        with pytest.raises(type(caught.value)):
            await transport.send(b"too late")
        with pytest.raises(type(caught.value)) as again:
            await transport.receive()
        assert again.value is not caught.value
        return caught.value


async def silence(peer: Peer, data: bytes = b"") -> None:
    """Writes, and then keeps the TCP connection open without a word: ends must not depend on the peer's TCP close."""
    peer.writer.write(data)
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [(1000, "bye", "code 1000 and reason 'bye'"), (1001, "", "code 1001"), (1011, "no vhost", "'no vhost'")],
)
async def test_a_close_from_the_server_names_code_and_reason(code: int, reason: str, text: str) -> None:
    """Code 1000 too: for AMQP a WebSocket that goes away is a loss, and it is known before TCP ends."""
    error = await ending(lambda peer: silence(peer, close_frame(code, reason)))
    assert isinstance(error, ConnectionClosed)
    assert (error.stop.endpoint, error.stop.initiator) == ("connection", "transport")
    assert text in str(error)


async def test_a_close_without_a_code() -> None:
    """An empty close frame is legal (RFC 6455 section 5.5.1)."""
    assert "code 1005" in str(await ending(lambda peer: silence(peer, frame(b"", CLOSE))))


async def test_a_tcp_end_without_close() -> None:
    """What Artemis does on a message that is too large for it, and proxies do on idle connections."""

    async def drop(peer: Peer) -> None:
        peer.writer.close()

    error = await ending(drop)
    assert isinstance(error, ConnectionClosed)
    assert "without a WebSocket close" in str(error)
    assert error.stop.cause is error.__cause__ is not None


async def test_a_tcp_reset() -> None:
    """The operating system's word is part of the text, its exception the cause."""

    async def reset(peer: Peer) -> None:
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writer.transport.abort()

    error = await ending(reset)
    assert isinstance(error, ConnectionClosed)
    assert "TCP connection was lost" in str(error)
    assert isinstance(error.__cause__, ConnectionResetError)


@pytest.mark.parametrize(
    "data",
    [
        b"\x83\x00",  # reserved opcode
        b"\xc2\x00",  # reserved bit
        b"\x82\x80abcd",  # masked by the server
        frame(b"x", CONT),  # nothing to continue
        frame(b"", fin=False) + frame(b"y"),  # a new message inside another
        frame(b"x" * 126, CLOSE),  # control frames are short
        frame(b"x", PONG, fin=False),  # control frames are whole
        frame(b"\x03", CLOSE),  # half a close code
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",  # a length with the sign bit
    ],
)
async def test_a_broken_websocket_protocol(data: bytes) -> None:
    """The rule that was broken is named, and we do not wait for the offender to close."""
    error = await ending(lambda peer: silence(peer, data))
    assert isinstance(error, ConnectionClosed)
    assert "WebSocket" in str(error)
    assert error.__cause__ is not None


async def test_a_frame_over_the_limit_is_refused_by_its_header() -> None:
    """Not one byte of it is kept."""
    header = b"\x82\x7f" + (MAX_INCOMING_FRAME + 1).to_bytes(8, "big")
    error = await ending(lambda peer: silence(peer, header))
    assert isinstance(error, ConnectionClosed)
    assert "over the limit" in str(error)


async def test_a_text_message_is_refused_with_1003() -> None:
    """AMQP is binary; what came before the text is still handed on, what comes after is not."""
    frames: asyncio.Queue[tuple[int, bool, bytes]] = asyncio.Queue()

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"before") + frame(b"AMQP", TEXT) + frame(b"after"))
        frames.put_nowait(await peer.read_frame())
        await asyncio.Event().wait()

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
        assert await read(transport, 6) == b"before"
        for call in (transport.receive(), transport.send(b"x")):
            with pytest.raises(RemoteProtocolError, match="text message"):
                await call
        opcode, _, payload = await frames.get()
        assert (opcode, payload[:2]) == (CLOSE, (1003).to_bytes(2, "big"))


async def test_a_missing_pong_ends_the_stream() -> None:
    """A half-open TCP connection is noticed by the ping, whoever else is silent."""
    error = await ending(silence, ping_interval=0.02, ping_timeout=0.05, close_timeout=600.0)
    assert isinstance(error, ConnectionClosed)
    assert "ping within 0.05 s" in str(error)


async def test_a_waiting_send_fails_when_the_connection_is_lost() -> None:
    """Nothing hangs on a peer that has stopped reading and then dies."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        await die.wait()

    die = asyncio.Event()
    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await transport.send(bytes(MIB))
        task = asyncio.create_task(transport.send(bytes(MIB)))
        await turns(3)
        assert not task.done()
        die.set()
        await asyncio.wait([task])
        with pytest.raises(ConnectionClosed):
            await task if task.exception() else transport.send(b"")
            await transport.send(b"next")


# --- closing ---------------------------------------------------------------------------


async def test_close_is_idempotent_and_local() -> None:
    """Again, at the same time, and after: each returns, and later calls say who closed."""
    async with echo() as url, opened(url) as transport:
        await asyncio.gather(transport.close(), transport.close())
        await transport.close()
        for call in (transport.receive(), transport.send(b"x")):
            with pytest.raises(ConnectionClosed, match="closed by us") as caught:
                await call
            assert caught.value.stop.initiator == "local"


async def test_close_ends_a_waiting_receive() -> None:
    """The reader is told, whatever the peer does."""
    async with echo() as url, opened(url) as transport:
        task = asyncio.create_task(transport.receive())
        await turns(1)
        await transport.close()
        with pytest.raises(ConnectionClosed):
            await task


async def test_close_sends_1000_and_waits_for_the_peer() -> None:
    """The peer sees an orderly close."""
    seen: list[tuple[int, bool, bytes]] = []

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        seen.append(await peer.read_frame())
        peer.writer.write(close_frame(1000))

    async with serving(handler) as server, opened(server.url) as transport:
        await transport.close()
    assert seen == [(CLOSE, True, (1000).to_bytes(2, "big"))]


@pytest.mark.parametrize("blocked", [False, True])
async def test_close_is_bounded(blocked: bool) -> None:
    """By a peer that never answers, and by one that does not even read, so that our close cannot be written."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        await asyncio.Event().wait()

    async with serving(handler) as server, opened(server.url, close_timeout=0.1) as transport, asyncio.timeout(5):
        if blocked:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    while True:
                        await transport.send(bytes(MIB))
        await transport.close()
        assert "closed" in repr(transport)


async def test_close_after_the_peers_close_waits_for_nothing() -> None:
    """The handshake is over; a peer that keeps TCP open holds nobody up."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=close_frame(1000))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url, close_timeout=60.0) as transport, asyncio.timeout(5):
        with pytest.raises(ConnectionClosed):
            await transport.receive()
        await transport.close()
        assert "closed" in repr(transport)


async def test_close_is_not_held_up_by_bytes_nobody_takes() -> None:
    """The peer's close is behind megabytes in a socket that is not read: they are thrown away."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        peer.writer.write(frame(bytes(MIB)) * 16)
        while (await peer.read_frame())[0] != CLOSE:
            pass
        peer.writer.write(close_frame(1000))
        await peer.writer.drain()

    async with serving(handler) as server, opened(server.url, close_timeout=10.0) as transport, asyncio.timeout(5):
        tcp: Any = transport._stream.transport
        await until(lambda: not tcp.is_reading())
        await transport.close()


async def test_abort_with_bytes_nobody_took() -> None:
    """The socket was not being read any more when it was dropped; a late close is harmless still."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(bytes(MIB)) * 16)
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(5):
        tcp: Any = transport._stream.transport
        await until(lambda: not tcp.is_reading())
        transport.abort()
        await transport.close()
        with pytest.raises(ConnectionClosed, match="closed by us"):
            await transport.receive()


async def test_a_cancelled_close_drops_the_socket() -> None:
    """The caller has no time: TCP ends at once."""
    gone = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        await peer.until_closed()
        gone.set()

    async with serving(handler) as server, asyncio.timeout(5):
        transport = await open_websocket(options(server.url, close_timeout=60.0), None)
        task = asyncio.create_task(transport.close())
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


async def test_abort_is_immediate() -> None:
    """No close frame, no waiting; a waiting receive ends, and close() afterwards is harmless."""
    seen: list[bytes] = []

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        seen.append(await peer.reader.read())

    async with serving(handler) as server, asyncio.timeout(5):
        async with opened(server.url) as transport:
            task = asyncio.create_task(transport.receive())
            await turns(1)
            transport.abort()
            with pytest.raises(ConnectionClosed, match="closed by us"):
                await task
            await transport.close()
        await until(lambda: bool(seen))
    assert seen == [b""]


# --- opening: what we send ----------------------------------------------------------------


async def upgrade_request(token: str | None = None, **arguments: Any) -> Peer:
    peers: list[Peer] = []

    async def handler(peer: Peer) -> None:
        peers.append(peer)
        await peer.upgrade()
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url + "p/a%2Ft?q=1", token, **arguments):
        return peers[0]


async def test_the_upgrade_says_what_it_must_and_nothing_about_us() -> None:
    """Path and query as given, the subprotocol, no compression, no versions of Python and libraries."""
    peer = await upgrade_request(subprotocols=("amqp", "AMQPWSB10"))
    assert peer.request.startswith("GET /p/a%2Ft?q=1 HTTP/1.1\r\n")
    assert peer.headers["sec-websocket-protocol"] == "amqp, AMQPWSB10"
    assert "sec-websocket-extensions" not in peer.headers
    assert "authorization" not in peer.headers
    assert peer.headers["user-agent"] == "amqpws-async"


async def test_token_and_headers_travel_in_the_upgrade() -> None:
    """The token as Bearer, the user's headers as they are, also in place of our User-Agent."""
    peer = await upgrade_request("abc", headers={"X-Tenant": "ü", "User-Agent": "mine"})
    assert peer.headers["authorization"] == "Bearer abc"
    assert peer.headers["x-tenant"] == "ü"
    assert peer.headers["user-agent"] == "mine"


async def test_a_token_beside_an_authorization_header_is_refused() -> None:
    """Also when the token comes from a provider, after the options were checked."""
    with pytest.raises(ValueError, match="one of the two"):
        await open_websocket(options("wss://broker.example/", headers={"Authorization": "Basic abc"}), "abc")


async def test_a_token_on_an_open_network_is_refused_before_anything_is_sent() -> None:
    """The last gate, behind the one in the options."""
    with pytest.raises(AuthenticationError, match="unencrypted"):
        await open_websocket(options("ws://broker.example/"), CANARY)


# --- opening: what the server answers --------------------------------------------------------


def answering(response: bytes) -> Callable[[Peer], Coroutine[Any, Any, None]]:
    """Answers the request and then stays silent: no error may need the server to close."""

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(response)
        await peer.until_closed()

    return handler


async def refusal(response: bytes, token: str | None = None, **arguments: Any) -> HandshakeError:
    async with serving(answering(response)) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError) as caught:
            await open_websocket(options(server.url, **arguments), token)
        error = caught.value
        # What websockets raises would show the answer unmasked, so it is not chained.
        assert error.__cause__ is None
        assert error.__context__ is None
        return caught.value


@pytest.mark.parametrize(
    ("status", "token", "advice"),
    [
        (200, None, "ordinary web page"),
        (302, None, "leads nowhere"),
        (400, None, "check host, port and path"),
        (401, None, "pass token="),
        (401, "abc", "has it expired"),
        (403, "abc", "roles"),
        (404, None, r"/protocols/amqp10ws .*\$servicebus/websocket"),
        (407, None, "proxy"),
        (429, None, "too many"),
        (500, None, "try again"),
        (503, None, "try again"),
        (599, None, "599: the broker"),
    ],
)
async def test_a_refused_upgrade_says_what_to_do(status: int, token: str | None, advice: str) -> None:
    """Status, headers and body are there for code, advice for people."""
    head = f"HTTP/1.1 {status} No\r\nContent-Length: 4\r\nX-Request: 7\r\nX-Request: 8\r\n\r\n"
    error = await refusal(head.encode() + b"body", token)
    assert error.status == status
    assert error.body == b"body"
    assert error.headers["x-REQUEST"] == "7, 8"
    assert f"HTTP status {status}" in str(error)
    with pytest.raises(HandshakeError, match=advice):
        raise error


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        (b"<center>No required SSL certificate was sent</center>", "wants a client certificate"),
        (b"<center>The SSL certificate error</center>", "wants a client certificate"),
        (b"<center>The plain HTTP request was sent to HTTPS port</center>", "use wss://"),
    ],
)
async def test_what_nginx_answers_with_400_is_understood(body: bytes, advice: str) -> None:
    """Three quite different mistakes have one status there."""
    assert advice in str(await refusal(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body))


async def test_the_servers_challenge_is_part_of_the_text() -> None:
    """It often says what is wrong with the token."""
    error = await refusal(
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer error="invalid_token"\r\nContent-Length: 0\r\n\r\n', "abc"
    )
    assert 'error="invalid_token"' in str(error)


async def test_the_body_of_a_refusal_is_bounded() -> None:
    """The first 4 KiB are enough for an error page."""
    assert len((await refusal(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n" + bytes(100000))).body) == 4096


@pytest.mark.parametrize(("offered", "selected"), [(("amqp",), None), (("AMQPWSB10",), None)])
async def test_a_server_that_selects_no_subprotocol(offered: tuple[str, ...], selected: str | None) -> None:
    """The binding says to close; relays that select none are served on request."""
    closed = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.upgrade(subprotocol=selected)
        await peer.until_closed()
        closed.set()

    async with serving(handler) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError, match=r"selected no subprotocol.*AMQPWSB10.*require_subprotocol") as caught:
            await open_websocket(options(server.url, subprotocols=offered), None)
        assert caught.value.status == 101
        assert caught.value.subprotocol is None
        await closed.wait()
        for relaxed in ({"require_subprotocol": False}, {"require_subprotocol": False, "subprotocols": ()}):
            async with opened(server.url, **relaxed) as transport:
                assert transport.subprotocol is None


@pytest.mark.parametrize(("offered", "selected"), [(("AMQPWSB10",), "amqp"), (("amqp",), "mqtt"), ((), "amqp")])
async def test_a_server_that_selects_what_was_not_offered(offered: tuple[str, ...], selected: str) -> None:
    """The error names both sides; Broker-J selects amqp whatever was offered."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(subprotocol=selected)
        await peer.until_closed()

    async with serving(handler) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError, match=f"selected the subprotocol '{selected}', we offered") as caught:
            await open_websocket(options(server.url, subprotocols=offered, require_subprotocol=False), None)
        assert caught.value.subprotocol == selected


GARBAGE = {
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP/1.0": b"HTTP/1.0 101 Switching Protocols\r\n\r\n",
    "binary": bytes(range(256)) * 64,
    "zeros": bytes(100_000),
    "an AMQP header": b"AMQP\0\1\0\0" + bytes(9000),
    "a status that is none": b"HTTP/1.1 abc No\r\n\r\n",
    "an endless line": b"HTTP/1.1 101 " + b"x" * 100_000,
    "an endless header": b"HTTP/1.1 101 x\r\nX: " + b"y" * 100_000,
    "endless headers": b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 10_000,
    "a bad header": b"HTTP/1.1 101 x\r\n: y\r\n\r\n",
    "a bad length": b"HTTP/1.1 404 x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"HTTP/1.1 404 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a huge body": b"HTTP/1.1 404 x\r\nContent-Length: 99999999999\r\n\r\n",
    "a huge chunk": b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    "an unknown coding": b"HTTP/1.1 404 x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "nothing upgraded": b"HTTP/1.1 101 x\r\n\r\n",
    "a wrong accept": b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
}


@pytest.mark.parametrize("response", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_for_an_answer_ends_at_once(response: bytes) -> None:
    """In a typed error, although the server keeps the connection open and would for ever."""
    error = await refusal(response)
    assert len(str(error)) < 500


async def test_an_answer_that_ends_early() -> None:
    """Before the first byte, and in the middle."""
    for response in (
        b"",
        b"HTTP/1.1 10",
        b"HTTP/1.1 101 x\r\nUpgrade:",
        b"HTTP/1.1 404 x\r\nContent-Length: 5\r\n\r\nab",
    ):

        async def handler(peer: Peer, response: bytes = response) -> None:
            await peer.read_request()
            peer.writer.write(response)
            await peer.writer.drain()
            peer.writer.close()

        async with serving(handler) as server, asyncio.timeout(10):
            with pytest.raises(OpenError, match="ended the connection before"):
                await open_websocket(options(server.url), None)


async def test_mutated_answers_end_in_a_typed_error_or_an_open_stream() -> None:
    """Some hundred 101 answers with bytes changed, dropped, doubled and cut: never a hang, never another exception."""
    randomness = random.Random(6455)
    extra = frame(b"AMQP\0\1\0\0") + close_frame(1000)

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        data = bytearray(peer.switching() + extra)
        for _ in range(randomness.randint(1, 4)):
            at = randomness.randrange(len(data))
            match randomness.randrange(4):
                case 0:
                    data[at] = randomness.randrange(256)
                case 1:
                    del data[at : at + randomness.randint(1, 20)]
                case 2:
                    data[at:at] = data[at : at + randomness.randint(1, 20)]
                case _:
                    del data[at:]
            data = data or bytearray(b"\0")
        peer.writer.write(bytes(data))
        await peer.writer.drain()
        peer.writer.close()

    outcomes = {"open": 0, "refused": 0}
    async with serving(handler) as server:
        for _ in range(300):
            async with asyncio.timeout(10):
                try:
                    transport = Asked(await open_websocket(options(server.url), None))
                except OpenError:
                    outcomes["refused"] += 1
                    continue
                outcomes["open"] += 1
                with pytest.raises((ConnectionClosed, RemoteProtocolError)):
                    while True:
                        await transport.receive()
                transport.abort()
    assert min(outcomes.values()) > 10


# --- redirects -------------------------------------------------------------------------------


def redirecting(location: str, status: int = 307) -> Callable[[Peer], Coroutine[Any, Any, None]]:
    return answering(f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))


@pytest.mark.parametrize("location", ["/new?x=1", "ws://127.0.0.1:{port}/new?x=1", "http://127.0.0.1:{port}/new?x=1"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_the_same_server_is_followed(location: str, status: int) -> None:
    """Relative, absolute, and with the scheme that web servers write; the token goes along."""
    requests: list[Peer] = []

    async def handler(peer: Peer) -> None:
        requests.append(peer)
        if len(requests) == 1:
            await redirecting(location.format(port=server.port), status)(peer)
        await peer.upgrade()
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url, "abc") as transport:
        assert transport.subprotocol == "amqp"
    assert requests[1].request.startswith("GET /new?x=1 ")
    assert requests[1].headers["authorization"] == "Bearer abc"


async def test_a_redirect_to_another_host_is_refused_unless_allowed() -> None:
    """No header of ours, and no connection, goes to a host that the user has not named."""

    async def target(peer: Peer) -> None:
        seen.append(peer)
        await peer.upgrade()
        await peer.until_closed()

    seen: list[Peer] = []
    async with serving(target) as elsewhere, serving(redirecting(f"{elsewhere.url}x?secret=1")) as server:
        for hosts in ((), ("other.example",), (f"127.0.0.1:{server.port}",)):
            with pytest.raises(HandshakeError, match=rf"127\.0\.0\.1:{elsewhere.port}/x.*redirect_hosts") as caught:
                await open_websocket(options(server.url, redirect_hosts=hosts), "abc")
            assert "secret" not in str(caught.value)
            assert caught.value.status == 307
        assert elsewhere.connections == 0
        async with opened(server.url, "abc", redirect_hosts=("127.0.0.1",)):
            pass
        async with opened(server.url, "abc", redirect_hosts=(f"127.0.0.1:{elsewhere.port}",)):
            pass
    assert [peer.headers["authorization"] for peer in seen] == ["Bearer abc"] * 2


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("ftp://127.0.0.1/", "no place to go"),
        ("ws://user:secret@127.0.0.1/", "user name or password"),
        ("//", "gave up"),
        ("ws://?", "no place to go|gave up"),
        ("ws://127.0.0.1:99999/", "no place to go"),
        ("/a b", "percent-encoded"),
        ("/#fragment", "fragment"),
        ("wss://10.0.0.1/", "another host"),
        ("ws://[::1]:80/", "another host"),
        ("\xff\xfe", "no place to go|gave up"),
    ],
)
async def test_a_redirect_to_nonsense_is_refused(location: str, problem: str) -> None:
    """Whatever the server writes there ends in a typed error that shows no password."""
    async with serving(redirecting(location)) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError, match=problem) as caught:
            await open_websocket(options(server.url), None)
        assert "secret" not in str(caught.value)


async def test_redirects_come_to_an_end() -> None:
    """A server that redirects to itself is given up after a few rounds."""
    async with serving(redirecting("/again")) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError, match="gave up after 5 redirects"):
            await open_websocket(options(server.url), None)
        assert server.connections == 6


async def test_a_redirect_from_wss_to_ws_is_refused(certificates: Certificates) -> None:
    """Even to an allowed host: the token would travel in the clear."""
    async with serving(redirecting("ws://localhost:1/"), tls=certificates.server) as server, asyncio.timeout(10):
        url = f"wss://localhost:{server.port}/"
        for location_options in ({"redirect_hosts": ("localhost",)}, {}):
            with pytest.raises(HandshakeError, match="not encrypted"):
                await open_websocket(options(url, ssl=certificates.client, **location_options), CANARY)


# --- TLS ----------------------------------------------------------------------------------------


class Certificates:
    """A private CA, a server with a certificate for localhost, and a client that trusts the CA."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        self.ca.configure_trust(self.client)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


async def test_wss_with_a_private_ca(certificates: Certificates) -> None:
    """Trusted by context; bytes go both ways, and the close is in order."""
    async with echo(ssl=certificates.server) as url:
        url = url.replace("127.0.0.1", "localhost")
        transport = Asked(await open_websocket(options(url, ssl=certificates.client), CANARY))
        await transport.send(bytes(100_000))
        assert await read(transport, 100_000) == bytes(100_000)
        await transport.close()


async def test_an_untrusted_certificate_says_how_to_trust_it(certificates: Certificates) -> None:
    """The most common first error with an own broker."""
    async with echo(ssl=certificates.server) as url:
        with pytest.raises(OpenError, match=r"not trusted.*ssl='ca\.pem'") as caught:
            await open_websocket(options(url.replace("127.0.0.1", "localhost")), None)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_certificate_for_another_host(certificates: Certificates) -> None:
    """A CA file would not help here, so the text does not suggest one."""
    async with echo(ssl=certificates.server) as url:
        with pytest.raises(OpenError, match=r"for another host") as caught:
            await open_websocket(options(url, ssl=certificates.client), None)
        assert "ca.pem" not in str(caught.value)


async def test_wss_to_a_port_without_tls() -> None:
    """The text asks whether it should have been ws://."""
    async with serving(answering(b"")) as server:

        async def handler(peer: Peer) -> None:
            await peer.reader.read(1)
            peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await peer.until_closed()

        async with serving(handler) as plain:
            with pytest.raises(OpenError, match="does not speak TLS"):
                await open_websocket(options(plain.url.replace("ws:", "wss:")), None)
        assert server.connections == 0


async def test_other_tls_failures_are_open_errors(certificates: Certificates) -> None:
    """A server that has no version of TLS in common with us, whether it says so or just hangs up."""
    old = ssl.create_default_context()
    certificates.ca.configure_trust(old)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.ca.issue_cert("localhost").configure_cert(new)
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    async with echo(ssl=new) as url:
        with pytest.raises(OpenError, match="TLS"):
            await open_websocket(options(url.replace("127.0.0.1", "localhost"), ssl=old), None)


# --- the network -----------------------------------------------------------------------------------


async def test_nothing_listens() -> None:
    """By address, and by a name with several addresses."""
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(OpenError, match=r"nothing listens there") as caught:
            await open_websocket(options(f"ws://{host}:{free_port()}/"), None)
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_host_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS says no; the resolver is replaced so that the test needs none."""

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(OpenError, match=r"wss://broker\.example:443.*cannot be resolved: Name or service"):
        await open_websocket(options("wss://broker.example/"), None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(110, "Connection timed out"), "did not answer the TCP connection"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (OSError(), "OSError"),
        (ConnectionResetError(), "before TLS was established"),
        (ssl.SSLError(1, "[SSL] odd"), "TLS failed: .*odd"),
        (RuntimeError(f"odd: {CANARY}"), r"could not be opened: odd: \*\*\*"),
    ],
)
async def test_whatever_the_network_raises_is_an_open_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    """Also the system's own connect timeout, and what nobody has thought of."""

    async def create_connection(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    with pytest.raises(OpenError, match=text) as caught:
        await open_websocket(options("wss://broker.example/"), CANARY)
    assert isinstance(caught.value.__cause__, OSError) is isinstance(error, OSError)  # what others say is not chained


async def test_the_callers_deadline_is_the_only_one() -> None:
    """A server that says nothing is waited for until the caller's timeout, which comes out as it is."""
    async with serving(answering(b"")) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await open_websocket(options(server.url), None)


# --- cancelling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss", "proxied wss"])
async def test_cancelling_at_any_moment_of_the_opening_leaves_nothing_behind(
    scheme: str, certificates: Certificates
) -> None:
    """Cancelled after each number of turns of the loop, up to success: every connection ends, no task stays."""
    gone: list[int] = []

    async def handler(peer: Peer) -> None:
        try:
            await peer.upgrade()
            await peer.until_closed()
        finally:
            gone.append(1)

    tls = None if scheme == "ws" else certificates.server
    async with serving(handler, tls=tls) as server, proxying() as proxy, asyncio.timeout(30):
        arguments: dict[str, Any] = {} if tls is None else {"ssl": certificates.client}
        if "proxied" in scheme:
            arguments["proxy"] = f"http://127.0.0.1:{proxy.port}"
        url = f"{'ws' if tls is None else 'wss'}://localhost:{server.port}/"
        for count in range(10_000):
            task = asyncio.create_task(open_websocket(options(url, **arguments), None))
            await turns(count)
            if task.done():
                (await task).abort()
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert count > 3
        await until(lambda: len(gone) == server.connections)


# --- proxies -------------------------------------------------------------------------------------------


class ConnectProxy:
    """An HTTP proxy that knows CONNECT alone."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Peer] = []


@contextlib.asynccontextmanager
async def proxying(refusal: bytes | None = None) -> AsyncIterator[ConnectProxy]:
    """A proxy that gives `refusal` to every CONNECT and ends the connection, or opens a tunnel if there is none."""
    proxy = ConnectProxy()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        proxy.requests.append(peer)
        peer.writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if refusal is None else refusal)
        await peer.writer.drain()
        if refusal is not None:
            return
        host, _, port = peer.request.split(" ")[1].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(pipe(peer.reader, writer), pipe(reader, peer.writer))
        finally:
            writer.transport.abort()

    async with serving(handler) as server:
        proxy.port = server.port
        yield proxy


async def test_through_an_http_proxy(certificates: Certificates) -> None:
    """CONNECT with the proxy's credentials; the token goes inside the tunnel only."""
    async with echo(ssl=certificates.server) as url, proxying() as proxy:
        async with opened(
            url.replace("127.0.0.1", "localhost"),
            CANARY,
            ssl=certificates.client,
            proxy=f"http://user:p%40ss@127.0.0.1:{proxy.port}",
        ) as transport:
            await transport.send(b"x")
            assert await transport.receive() == b"x"
        peer = proxy.requests[0]
        assert peer.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
        assert CANARY not in peer.request


async def test_plain_ws_goes_through_a_tunnel_too() -> None:
    """RFC 6455 section 4.1 asks for CONNECT in both cases."""
    async with echo() as url, proxying() as proxy, opened(url, proxy=f"http://127.0.0.1:{proxy.port}") as transport:
        await transport.send(b"x")
        assert await transport.receive() == b"x"
        assert proxy.requests[0].request.startswith("CONNECT 127.0.0.1:")


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "status 407: it wants"),
        (b"HTTP/1.1 403 No\r\n\r\n", "status 403: it does not let us through"),
        (b"HTTP/1.1 200 Yes\r\n\r\nmore", "4 bytes too many"),
        (b"SSH-2.0\r\n", "no HTTP"),
        (b"HTTP/1.1 502 " + b"x" * 100_000, "no HTTP"),
        (b"", "without an answer"),
    ],
)
async def test_a_proxy_that_refuses(response: bytes, text: str) -> None:
    """The error is about the proxy, by name and without its password."""
    async with proxying(response) as proxy, asyncio.timeout(10):
        with pytest.raises(OpenError, match=text) as caught:
            await open_websocket(
                options("wss://broker.example/", proxy=f"http://user:{CANARY}@127.0.0.1:{proxy.port}"), None
            )
        assert f"http://127.0.0.1:{proxy.port}" in str(caught.value)
        assert CANARY not in f"{caught.value} {caught.value.__cause__}"


async def test_a_proxy_that_is_not_there() -> None:
    """The error says that it is the proxy that does not answer, not the broker."""
    with pytest.raises(OpenError, match=r"through the proxy .*the proxy refused") as caught:
        await open_websocket(options("wss://broker.example/", proxy=f"http://u:{CANARY}@127.0.0.1:{free_port()}"), None)
    assert CANARY not in f"{caught.value} {caught.value.__cause__}"


async def test_through_a_socks_proxy() -> None:
    """SOCKS 5 with a name that the proxy resolves (socks5h), in a server of twenty lines."""
    names: list[bytes] = []

    async def socks(peer: Peer) -> None:
        await peer.reader.readexactly((await peer.reader.readexactly(2))[1])
        peer.writer.write(b"\x05\x00")
        assert (await peer.reader.readexactly(4))[3] == 3
        names.append(await peer.reader.readexactly((await peer.reader.readexactly(1))[0]))
        await peer.reader.readexactly(2)
        peer.writer.write(b"\x05\x00\x00\x01\x7f\0\0\1\0\0")
        await peer.upgrade(extra=frame(b"through"))
        await peer.until_closed()

    async with (
        asyncio.timeout(10),
        serving(socks) as server,
        opened("ws://broker.example/", proxy=f"socks5h://127.0.0.1:{server.port}") as transport,
    ):
        assert await transport.receive() == b"through"
    assert names == [b"broker.example"]


async def test_a_socks_proxy_that_refuses() -> None:
    """python-socks' own errors come out as ours."""

    async def socks(peer: Peer) -> None:
        await peer.reader.readexactly(3)
        peer.writer.write(b"\x05\xff")
        await peer.until_closed()

    async with serving(socks) as server, asyncio.timeout(10):
        with pytest.raises(OpenError, match=r"through the proxy socks5://.*SOCKS"):
            await open_websocket(options("ws://broker.example/", proxy=f"socks5://127.0.0.1:{server.port}"), None)


# --- secrets ---------------------------------------------------------------------------------------------


async def test_no_log_record_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Everything at DEBUG: header values, the query, payloads (SASL travels in them), cookies set by the server."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "amqpws_async")
    secrets = [f"{CANARY}{n}" for n in range(6)]

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        cookie, echoed = f"Set-Cookie: s={secrets[3]}", f"X-Echo: {peer.headers['authorization']}"
        peer.writer.write(peer.switching(cookie, echoed) + frame(secrets[4].encode()))
        await peer.read_frame()
        peer.writer.write(close_frame(1000, "bye"))
        await peer.until_closed()

    async with (
        serving(handler) as server,
        opened(f"{server.url}?sig={secrets[1]}", secrets[0], headers={"X-Key": secrets[2]}) as transport,
    ):
        assert await transport.receive() == secrets[4].encode()
        await transport.send(secrets[5].encode())
        with pytest.raises(ConnectionClosed):
            await transport.receive()
    ours = [record for record in caplog.records if record.name.startswith(("amqpws_async", "websockets"))]
    lines = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in ours)
    assert {record.name for record in ours} == {"amqpws_async.transport.websockets"}
    assert CANARY not in lines
    assert secrets[5].encode().hex(" ")[:20] not in lines
    for line in (
        "> Authorization: ***",
        "> X-Key: ***",
        "> GET / HTTP/1.1",
        "< Set-Cookie: ***",
        "> BINARY [12 bytes]",
    ):
        assert line in lines
    assert "CLOSE 1000 (OK) bye" in lines


async def test_a_server_that_echoes_our_secrets_gets_them_masked() -> None:
    """In the error's text, headers and body: error pages of proxies do that."""
    body = f"<{CANARY}>"
    head = f"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer token={CANARY}\r\nContent-Length: {len(body)}"
    response = f"{head}\r\n\r\n{body}"
    error = await refusal(response.encode(), CANARY)
    assert CANARY not in f"{error} {dict(error.headers)} {error.body!r} {error!r}"
    assert error.body == b"<***>"


async def test_a_redirect_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the query of the new place nor what stands before the @ in it, in errors and in logs."""
    caplog.set_level(logging.DEBUG)
    async with serving(redirecting(f"wss://10.0.0.1/x?sig={CANARY}")) as server:
        with pytest.raises(HandshakeError) as caught:
            await open_websocket(options(server.url), None)
    assert CANARY not in str(caught.value)
    assert CANARY not in caplog.text


async def test_nothing_is_formatted_when_nobody_logs(caplog: pytest.LogCaptureFixture) -> None:
    """With logging off, not one record is made."""
    caplog.set_level(logging.WARNING)
    async with echo() as url, opened(url) as transport:
        await transport.send(b"x")
        assert await transport.receive() == b"x"
    assert not [record for record in caplog.records if record.name.startswith("amqpws_async")]
