"""Every MUST of the AMQP WebSocket Binding 1.0 (CS01) and of RFC 6455 that a client can meet or break, with its test.

What follows is the list: section, rule in our words, test. A rule for browsers, servers or intermediaries alone is not
in it. One rule is knowingly not met: RFC 6455 4.1 (2) wants one handshake at a time per address, against web pages that
flood a host; like other clients that are no browsers, this one leaves that to its user.

Of the binding's section 4 only the heading could be had for this list: closing follows the AMQP specification 2.4.5 and
RFC 6455 7.1.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import proton
import pytest
import trustme

import amqpws_async as amqp
from amqpws_async.errors import ConnectionClosed, HandshakeError, OpenError, RedirectError, RemoteProtocolError
from amqpws_async.options import ConnectionOptions
from amqpws_async.transport import open_websocket

from .websocket_peer import BINARY, CLOSE, CONT, PING, PONG, TEXT, Asked, Peer, close_frame, frame, serving

RULES = {
    # AMQP WebSocket Binding 1.0
    "WSB 2.1 the upgrade offers the subprotocol amqp": "test_the_upgrade_offers_amqp",
    "WSB 2.1 the connection is closed unless status 101 and amqp come back": "test_without_the_subprotocol_we_close",
    "WSB 2.2 a SASL layer begins with its protocol header, as a binary message": "test_protocol_headers_are_binary",
    "WSB 2.3 the AMQP layer begins with its protocol header, as a binary message": "test_protocol_headers_are_binary",
    "WSB 2.4 frames travel as binary messages": "test_everything_we_send_is_binary",
    "WSB 2.4 text is no AMQP": "test_a_text_message_ends_the_connection",
    "WSB 2.4 a frame may be split over messages": "test_any_cut_of_the_peers_stream_is_understood",
    "WSB 2.4 a message may hold several frames": "test_any_cut_of_the_peers_stream_is_understood",
    "WSB 2.5 open carries the host name": "test_open_names_the_host_without_path_and_port",
    "WSB 3.1 a connection redirect names scheme and path": "test_a_redirect_carries_scheme_and_path",
    "WSB 4 AMQP is closed before the WebSocket is": "test_amqp_closes_before_the_websocket",
    "WSB 4 a WebSocket that ends without an AMQP close is an error": "test_a_websocket_close_without_amqp_close",
    # RFC 6455, the opening handshake
    "RFC 3 no fragment in the URI": "test_invalid_uris_are_refused",
    "RFC 4.1 invalid URIs are refused": "test_invalid_uris_are_refused",
    "RFC 4.1 a connection that cannot be opened fails": "test_a_failed_tcp_connection_fails",
    "RFC 4.1 wss: a TLS handshake that fails, fails the connection": "test_tls_comes_first_and_must_succeed",
    "RFC 4.1 wss: the server name is indicated": "test_tls_comes_first_and_must_succeed",
    "RFC 4.1 the request is GET over HTTP/1.1 with the URI's resource": "test_the_request",
    "RFC 4.1 Host, Upgrade, Connection, Sec-WebSocket-Version: 13": "test_the_request",
    "RFC 4.1 and 11.3.1 one random key of 16 bytes, new each time": "test_the_key_is_new_each_time",
    "RFC 4.1 subprotocols are distinct tokens": "test_subprotocols_are_distinct_tokens",
    "RFC 4.1 nothing is sent before the server's answer": "test_nothing_is_sent_before_the_answer",
    "RFC 4.1 an answer other than 101 is no connection": "test_an_unfit_answer_fails",
    "RFC 4.1 Upgrade, Connection and Sec-WebSocket-Accept are checked": "test_an_unfit_answer_fails",
    "RFC 4.1 and 9.1 an extension that was not offered fails": "test_an_unfit_answer_fails",
    "RFC 4.1 a subprotocol that was not offered fails": "test_an_unfit_answer_fails",
    # RFC 6455, frames
    "RFC 5.1 every frame we send is masked": "test_our_frames_are_masked_with_new_keys_and_shortest_lengths",
    "RFC 5.1 a masked frame from the server fails": "test_a_broken_frame_fails",
    "RFC 5.2 reserved bits, opcodes and lengths fail": "test_a_broken_frame_fails",
    "RFC 5.2 lengths are encoded in the fewest bytes": "test_our_frames_are_masked_with_new_keys_and_shortest_lengths",
    "RFC 5.3 the masking key is new for every frame": "test_our_frames_are_masked_with_new_keys_and_shortest_lengths",
    "RFC 5.4 fragmented and whole messages are understood": "test_any_cut_of_the_peers_stream_is_understood",
    "RFC 5.4 control frames inside a fragmented message": "test_a_ping_inside_a_fragmented_message",
    "RFC 5.4 fragments of two messages are not mixed": "test_a_broken_frame_fails",
    "RFC 5.5 control frames are short and whole": "test_a_broken_frame_fails",
    "RFC 5.5.1 a close is answered": "test_a_close_is_answered_and_nothing_follows",
    "RFC 5.5.1 no data after our close": "test_a_close_is_answered_and_nothing_follows",
    "RFC 5.5.2 and 5.5.3 a ping is answered with its own data": "test_a_ping_is_answered_with_its_own_data",
    "RFC 5.5.3 an unsolicited pong is ignored": "test_an_unsolicited_pong_is_ignored",
    "RFC 5.6 and 8.1 text that is no UTF-8 fails": "test_a_text_message_ends_the_connection",
    "RFC 6.1 data is sent only while the connection is open": "test_a_close_is_answered_and_nothing_follows",
    # RFC 6455, closing
    "RFC 7.1.1 TCP is closed after the handshake, by us if the server does not": "test_tcp_does_not_outlive_the_close",
    "RFC 7.1.5 the absence of a code is 1005, of a close 1006": "test_missing_codes_are_told_apart",
    "RFC 7.1.7 what follows a failure is not processed": "test_a_broken_frame_fails",
    "RFC 7.2.1 a lost TCP connection fails the connection": "test_missing_codes_are_told_apart",
    "RFC 7.4.1 and 7.4.2 reserved codes are never sent": "test_reserved_close_codes",
    "RFC 10.7 invalid data fails the connection": "test_a_broken_frame_fails",
}

QUICK: dict[str, Any] = {"proxy": None, "ping_interval": None, "close_timeout": 1.0}
Cut = Callable[[bytes], Iterator[bytes]]


def test_every_rule_has_its_test() -> None:
    """The list above and the tests below belong together."""
    here = vars(sys.modules[__name__])
    tests = {name for name in here if name.startswith("test_")} - {"test_every_rule_has_its_test"}
    assert set(RULES.values()) == tests


# --- two levels of peer -----------------------------------------------------------------


@asynccontextmanager
async def opened(url: str, **arguments: Any) -> AsyncIterator[Asked]:
    """The byte stream alone."""
    transport = await open_websocket(ConnectionOptions(url=url, **QUICK | arguments), None)
    try:
        yield Asked(transport)
    finally:
        transport.abort()


class Broker:
    """proton's engine as the peer: it opens, begins and attaches whatever comes, accepts every delivery, and closes."""

    def __init__(self, cut: Cut | None = None, refusal: proton.Condition | None = None) -> None:
        self.received: list[tuple[int, bool, bytes]] = []
        self.hostname: str | None = None
        self.closed = False
        self._cut = cut or whole
        self._refusal = refusal

    async def __call__(self, peer: Peer) -> None:
        """Serves one connection until the WebSocket close."""
        connection, collector = proton.Connection(), proton.Collector()
        transport = proton.Transport(proton.Transport.SERVER)
        transport.sasl().allowed_mechs("ANONYMOUS")
        connection.collect(collector)
        transport.bind(connection)
        await peer.upgrade()
        while True:
            peer.writer.write(b"".join(self._cut(_output(transport))))
            opcode, fin, payload = await peer.read_frame()
            self.received.append((opcode, fin, payload))
            if opcode == CLOSE:
                self.closed = bool(connection.state & proton.Endpoint.REMOTE_CLOSED)
                peer.writer.write(frame(payload, CLOSE))
                return
            if opcode != PONG:
                self._feed(transport, collector, payload)

    def _feed(self, transport: proton.Transport, collector: proton.Collector, data: bytes) -> None:
        while data:
            room = transport.capacity()
            transport.push(data[:room])
            data = data[room:]
            while event := collector.peek():
                self._on_event(event)
                collector.pop()

    def _on_event(self, event: Any) -> None:
        match event.type:
            case proton.Event.CONNECTION_REMOTE_OPEN:
                self.hostname = event.connection.remote_hostname
                event.connection.open()
                if self._refusal is not None:
                    event.connection.condition = self._refusal
                    event.connection.close()
            case proton.Event.SESSION_REMOTE_OPEN:
                event.session.open()
            case proton.Event.LINK_REMOTE_OPEN:
                event.link.source.copy(event.link.remote_source)
                event.link.target.copy(event.link.remote_target)
                event.link.open()
                event.link.flow(10)
            case proton.Event.DELIVERY if event.delivery.readable and not event.delivery.partial:
                event.link.recv(event.delivery.pending)
                event.delivery.update(proton.Delivery.ACCEPTED)
                event.delivery.settle()
            case proton.Event.LINK_REMOTE_CLOSE:
                event.link.close()
            case proton.Event.SESSION_REMOTE_CLOSE:
                event.session.close()
            case proton.Event.CONNECTION_REMOTE_CLOSE:
                event.connection.close()


def _output(transport: proton.Transport) -> bytes:
    data = b""
    while (pending := transport.pending()) > 0:
        data += transport.peek(pending) or b""
        transport.pop(pending)
    return data


def whole(data: bytes) -> Iterator[bytes]:
    """Everything there is in one message."""
    if data:
        yield frame(data)


def single_bytes(data: bytes) -> Iterator[bytes]:
    """Every byte a message of its own."""
    return (frame(data[at : at + 1]) for at in range(len(data)))


def fragments(data: bytes) -> Iterator[bytes]:
    """One message in fragments of three bytes, some of them empty, with a ping among them."""
    if data:
        yield frame(b"", fin=False)
        for at in range(0, len(data), 3):
            yield frame(data[at : at + 3], CONT, fin=False) + frame(b"", CONT, fin=False)
        yield frame(b"?", PING) + frame(b"", CONT)


def mixed(data: bytes) -> Iterator[bytes]:
    """Messages of 7, 1 and 100 bytes, and empty ones."""
    while data:
        for size in (7, 1, 0, 100):
            yield frame(data[:size])
            data = data[size:]


async def one_message_through(url: str, **arguments: Any) -> None:
    async with amqp.connect(url, **QUICK | arguments) as connection, connection.sender("q") as sender:
        await sender.send(amqp.Message(bytes(10_000)))


# --- the binding ------------------------------------------------------------------------


async def test_the_upgrade_offers_amqp() -> None:
    """Without being told to."""
    peers: list[Peer] = []

    async def handler(peer: Peer) -> None:
        peers.append(peer)
        await peer.upgrade()
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url):
        assert peers[0].headers["sec-websocket-protocol"] == "amqp"


@pytest.mark.parametrize("selected", [None, "AMQPWSB10", "mqtt", "amqp, amqp", ""])
async def test_without_the_subprotocol_we_close(selected: str | None) -> None:
    """TCP ends, without a byte of AMQP having been sent."""
    rest: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(peer: Peer) -> None:
        await peer.upgrade(subprotocol=selected)
        try:
            rest.put_nowait(await peer.reader.read())
        except ConnectionResetError:
            rest.put_nowait(b"")

    async with serving(handler) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError):
            await amqp.connect(server.url, **QUICK)
        assert await rest.get() == b""


async def test_protocol_headers_are_binary() -> None:
    """First SASL's, then AMQP's, each the begin of a binary message."""
    broker = Broker()
    async with serving(broker) as server:
        await one_message_through(server.url)
    opcode, _, first = broker.received[0]
    assert (opcode, first[:8]) == (BINARY, b"AMQP\x03\x01\x00\x00")
    later = b"".join(payload for opcode, _, payload in broker.received if opcode == BINARY)
    assert b"AMQP\x00\x01\x00\x00" in later


async def test_everything_we_send_is_binary() -> None:
    """Binary, whole, and no larger than the limit, however large the AMQP frames are."""
    broker = Broker()
    async with serving(broker) as server:
        await one_message_through(server.url, max_websocket_message_size=4096)
    data = [received for received in broker.received if received[0] != CLOSE]
    assert {opcode for opcode, _, _ in data} == {BINARY}
    assert max(len(payload) for _, _, payload in data) == 4096
    assert all(fin for _, fin, _ in data)


@pytest.mark.parametrize("text", [b"AMQP", b"\xff\xfe"])
async def test_a_text_message_ends_the_connection(text: bytes) -> None:
    """Also where the text is no UTF-8; whoever waits is told at once."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(text, TEXT))
        await peer.until_closed()

    async with serving(handler) as server, asyncio.timeout(10):
        async with opened(server.url) as transport:
            with pytest.raises(RemoteProtocolError):
                await transport.receive()
        with pytest.raises(ConnectionClosed, match="text message") as caught:
            await amqp.connect(server.url, **QUICK)
        assert isinstance(caught.value.__cause__, RemoteProtocolError)


@pytest.mark.parametrize("cut", [whole, single_bytes, fragments, mixed])
async def test_any_cut_of_the_peers_stream_is_understood(cut: Cut) -> None:
    """Frames over several messages, several frames in one, fragments, empty ones: a whole dialogue each."""
    broker = Broker(cut)
    async with serving(broker) as server, asyncio.timeout(10):
        await one_message_through(server.url)
    assert broker.closed


async def test_open_names_the_host_without_path_and_port() -> None:
    """As on TCP, brokers choose a virtual host by it."""
    broker = Broker()
    async with serving(broker) as server:
        await one_message_through(f"ws://localhost:{server.port}/protocols/amqp10ws")
    assert broker.hostname == "localhost"


async def test_a_redirect_carries_scheme_and_path() -> None:
    """Beside AMQP's own hostname, network-host and port."""
    info = {"hostname": "vhost", "network-host": "other.example", "port": 8443, "scheme": "wss", "path": "/amqp"}
    symbols: Any = {proton.symbol(key): value for key, value in info.items()}
    broker = Broker(refusal=proton.Condition("amqp:connection:redirect", "go there", symbols))
    async with serving(broker) as server, asyncio.timeout(10):
        with pytest.raises(RedirectError) as caught:
            async with amqp.connect(server.url, **QUICK) as connection:
                await connection.sender("q")
    error = caught.value
    found = (error.hostname, error.network_host, error.port, error.scheme, error.path)
    assert found == tuple(info.values())


async def test_amqp_closes_before_the_websocket() -> None:
    """When the WebSocket's close comes, AMQP's has come and gone; the code is 1000."""
    broker = Broker()
    async with serving(broker) as server, asyncio.timeout(10):
        await one_message_through(server.url)
    assert broker.closed
    assert broker.received[-1] == (CLOSE, True, (1000).to_bytes(2, "big"))


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_a_websocket_close_without_amqp_close(code: int) -> None:
    """Even code 1000 is no orderly end of an AMQP connection."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=close_frame(code, "so be it"))
        await peer.until_closed()

    async with serving(handler) as server, asyncio.timeout(10):
        with pytest.raises(ConnectionClosed, match=f"code {code} and reason 'so be it'") as caught:
            await amqp.connect(server.url, **QUICK)
        assert caught.value.stop.initiator == "transport"


# --- RFC 6455: the opening handshake -------------------------------------------------------


@pytest.mark.parametrize("url", ["ws://h/#f", "ws://h/#", "http://h/", "ws:///p", "ws://h:x/", "ws://h/a b", "h"])
async def test_invalid_uris_are_refused(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match=r"^url:"):
        await amqp.connect(url)


async def test_a_failed_tcp_connection_fails() -> None:
    """In a typed error."""
    async with serving(Broker()) as server:
        pass
    with pytest.raises(OpenError):
        await amqp.connect(server.url, **QUICK)


async def test_tls_comes_first_and_must_succeed() -> None:
    """With the server's name in it; an untrusted certificate ends it before a byte of HTTP."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    names: list[str] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    broker = Broker()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(None)  # the server side reports our refusal in debug mode
    async with serving(broker, tls=context) as server:
        url = f"wss://localhost:{server.port}/"
        with pytest.raises(OpenError, match="not trusted"):
            await amqp.connect(url, **QUICK)
        assert server.connections == 0
        await one_message_through(url, ssl=trusting)
    assert names == ["localhost", "localhost"]


async def request_of(url: str = "", **arguments: Any) -> Peer:
    peers: list[Peer] = []

    async def handler(peer: Peer) -> None:
        peers.append(peer)
        await peer.upgrade()
        await peer.until_closed()

    async with serving(handler) as server, opened(f"{server.url}{url}", **arguments):
        peers[0].request = peers[0].request.replace(str(server.port), "PORT")
        return peers[0]


async def test_the_request() -> None:
    """Request line and the headers with a fixed value, each once."""
    peer = await request_of("a/b?c=d")
    lines = peer.request.split("\r\n")
    assert lines[0] == "GET /a/b?c=d HTTP/1.1"
    for line in ("Host: 127.0.0.1:PORT", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"):
        assert lines.count(line) == 1
    assert len(peer.headers) == len([line for line in lines[1:] if line])


async def test_the_key_is_new_each_time() -> None:
    """16 bytes in base64, one header, and no two alike."""
    keys = set()
    for _ in range(5):
        peer = await request_of()
        assert peer.request.lower().count("sec-websocket-key:") == 1
        keys.add(peer.headers["sec-websocket-key"])
    assert len(keys) == 5
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


async def test_subprotocols_are_distinct_tokens() -> None:
    """In the order given; doubles and other characters are refused."""
    assert (await request_of(subprotocols=("amqp", "x.y"))).headers["sec-websocket-protocol"] == "amqp, x.y"
    for wrong in (("amqp", "amqp"), ("a,b",), ("",), ("a b",)):
        with pytest.raises(ValueError, match="subprotocols"):
            ConnectionOptions(url="ws://h/", subprotocols=wrong)


async def test_nothing_is_sent_before_the_answer() -> None:
    """After the request's empty line there is silence until the 101."""
    quiet: list[bytes] = []

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        try:
            async with asyncio.timeout(0.1):
                quiet.append(await peer.reader.read(1))
        except TimeoutError:
            quiet.append(b"")
        peer.writer.write(peer.switching())
        await peer.until_closed()

    async with serving(handler) as server:
        with pytest.raises(TimeoutError):
            await amqp.connect(server.url, **QUICK, open_timeout=0.5)
    assert quiet == [b""]


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.replace(b"101 Switching Protocols", b"200 OK\r\nContent-Length: 0"),
        lambda answer: answer.replace(b"Upgrade: websocket\r\n", b""),
        lambda answer: answer.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        lambda answer: answer.replace(b"Connection: Upgrade\r\n", b""),
        lambda answer: answer.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        lambda answer: answer.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
        lambda answer: answer.replace(b"Sec-WebSocket-Accept", b"X"),
        lambda answer: answer.replace(b"Upgrade\r\n", b"Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
        lambda answer: answer.replace(b"Protocol: amqp", b"Protocol: mqtt"),
    ],
)
async def test_an_unfit_answer_fails(change: Callable[[bytes], bytes]) -> None:
    """One header missing or wrong is enough."""

    async def handler(peer: Peer) -> None:
        await peer.read_request()
        answer = peer.switching()
        assert change(answer) != answer
        peer.writer.write(change(answer))
        await peer.until_closed()

    async with serving(handler) as server, asyncio.timeout(10):
        with pytest.raises(HandshakeError):
            async with opened(server.url, require_subprotocol=False):
                pass


# --- RFC 6455: frames ---------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "head"), [(125, 2), (126, 4), (65535, 4), (65536, 10)])
async def test_our_frames_are_masked_with_new_keys_and_shortest_lengths(size: int, head: int) -> None:
    """The same payload five times: the mask bit is set, the keys differ, the length field is as short as can be."""
    heads: asyncio.Queue[list[bytes]] = asyncio.Queue()

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        found = []
        for _ in range(5):
            found.append(await peer.reader.readexactly(head + 4))
            await peer.reader.readexactly(size)
        heads.put_nowait(found)

    async with (
        serving(handler) as server,
        opened(server.url, max_websocket_message_size=2**17) as transport,
        asyncio.timeout(10),
    ):
        for _ in range(5):
            await transport.send(bytes(size))
        found = await heads.get()
        assert len({line[head:] for line in found}) == 5
        for line in found:
            assert line[0] == 0x82
            assert line[1] & 0x80
            assert (line[1] & 0x7F, int.from_bytes(line[2:head], "big")) == {
                2: (size, 0),
                4: (126, size),
                10: (127, size),
            }[head]


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x81\0\0\0\0x",  # masked
        b"\xc2\x00",  # RSV1
        b"\xa2\x00",  # RSV2
        b"\x92\x00",  # RSV3
        b"\x83\x00",  # a reserved data opcode
        b"\x8b\x00",  # a reserved control opcode
        b"\x82\x7f\x80\0\0\0\0\0\0\0",  # the top bit of a 64-bit length
        frame(b"x", CONT),  # a continuation of nothing
        frame(b"", fin=False) + frame(b"x"),  # a message inside a message
        frame(b"", PING, fin=False),  # a control frame in fragments
        frame(b"x" * 126, PING),  # a control frame that is too long
        frame(b"\x03", CLOSE),  # half a code
        close_frame(1005),  # a code that may not travel
        frame(b"\x03\xe8\xff", CLOSE),  # a reason that is no UTF-8
    ],
)
async def test_a_broken_frame_fails(data: bytes) -> None:
    """The stream ends, and a valid message after the broken frame is not handed on."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=data + frame(b"after"))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
        with pytest.raises(ConnectionClosed, match="WebSocket"):
            await transport.receive()


async def test_a_ping_inside_a_fragmented_message() -> None:
    """Answered before the message ends, and no part of it."""
    answers: list[tuple[int, bool, bytes]] = []

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"one", fin=False) + frame(b"?", PING))
        answers.append(await peer.read_frame())
        peer.writer.write(frame(b"two", CONT))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
        data = await transport.receive()
        while len(data) < 6:
            data += await transport.receive()
        assert data == b"onetwo"
    assert answers == [(PONG, True, b"?")]


async def test_a_close_is_answered_and_nothing_follows() -> None:
    """The answer has the same code, and a send after it raises and reaches nobody."""
    rest: asyncio.Queue[bytes] = asyncio.Queue()
    answers: list[tuple[int, bool, bytes]] = []

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=close_frame(1001, "bye"))
        answers.append(await peer.read_frame())
        rest.put_nowait(await peer.reader.read())

    async with serving(handler) as server, asyncio.timeout(10):
        async with opened(server.url) as transport:
            with pytest.raises(ConnectionClosed):
                await transport.receive()
            with pytest.raises(ConnectionClosed):
                await transport.send(b"late")
            await transport.close()
        assert await rest.get() == b""
    assert answers == [(CLOSE, True, (1001).to_bytes(2, "big") + b"bye")]


@pytest.mark.parametrize("data", [b"", b"?", b"x" * 125])
async def test_a_ping_is_answered_with_its_own_data(data: bytes) -> None:
    """Without anybody waiting in receive()."""
    answers: asyncio.Queue[tuple[int, bool, bytes]] = asyncio.Queue()

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(data, PING))
        answers.put_nowait(await peer.read_frame())
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url), asyncio.timeout(10):
        assert await answers.get() == (PONG, True, data)


async def test_an_unsolicited_pong_is_ignored() -> None:
    """A peer may send them as a sign of life."""

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=frame(b"unasked", PONG) + frame(b"data"))
        await peer.until_closed()

    async with serving(handler) as server, opened(server.url, ping_interval=60.0) as transport, asyncio.timeout(10):
        assert await transport.receive() == b"data"


# --- RFC 6455: closing -------------------------------------------------------------------------------


async def test_tcp_does_not_outlive_the_close() -> None:
    """The server answers our close and then keeps TCP open: we end it ourselves."""
    gone = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.upgrade()
        _, _, payload = await peer.read_frame()
        peer.writer.write(frame(payload, CLOSE))
        await peer.until_closed()
        gone.set()

    async with serving(handler) as server, opened(server.url, close_timeout=0.1) as transport, asyncio.timeout(10):
        await transport.close()
        await gone.wait()


async def test_missing_codes_are_told_apart() -> None:
    """A close without a code is reported as 1005, an end without a close as 1006."""
    for data, code in ((frame(b"", CLOSE), "1005"), (b"", "1006")):

        async def handler(peer: Peer, data: bytes = data) -> None:
            await peer.upgrade(extra=data)
            await peer.writer.drain()
            peer.writer.close()

        async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
            with pytest.raises(ConnectionClosed, match=code):
                await transport.receive()


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(b"", CLOSE), b""), (b"\x83\x00", b"\x03\xea"), (frame(b"x", TEXT), b"\x03\xeb"), (b"", b"\x03\xe8")],
)
async def test_reserved_close_codes(data: bytes, code: bytes) -> None:
    """We answer an empty close with an empty one, and send 1000, 1002 and 1003 of our own."""
    closes: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(peer: Peer) -> None:
        await peer.upgrade(extra=data)
        opcode, _, payload = await peer.read_frame()
        assert opcode == CLOSE
        closes.put_nowait(payload[:2])

    async with serving(handler) as server, opened(server.url) as transport, asyncio.timeout(10):
        if data:
            with pytest.raises((ConnectionClosed, RemoteProtocolError)):
                await transport.receive()
        await transport.close()
        assert await closes.get() == code
