"""Bytes over a WebSocket: the only module that imports the client of ``websockets``.

A WebSocket connection is a byte stream here. "There is no mapping between an AMQP frame and a WebSocket message" (AMQP
WebSocket binding 1.0, section 2.4), so whatever a read brought is handed on in one piece: many small messages joined, a
long fragmented one before its end. `_Stream` splits what it reads itself (see `frames`), and hands the bytes to its
consumer before the read returns: a task that waited in ``recv()`` would be woken for each, a turn of the event loop
later. For the same reason a message is written without ``send()``, whose coroutines cost more than the frame itself.
Upgrade, pings, close and all that is out of order are left to ``websockets``.

What the peer sends takes a bounded amount of memory: one read of the socket (256 KiB), and before there is a
consumer `_HIGH_WATER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl as tls
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, PayloadTooBig, ProxyError, WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State
from websockets.typing import Subprotocol

from .errors import (
    AuthenticationError,
    HandshakeError,
    OpenError,
    RemoteProtocolError,
    StopReason,
    closed_error,
)
from .frames import Splitter, binary_frame
from .handshake import Secrets, handshake_error, network_text, refused, unfit
from .masking import MaskingLogger
from .options import ConnectionOptions
from .tunnel import open_tunnel
from .urls import without_password

__all__ = ["MAX_INCOMING_FRAME", "ByteConsumer", "ByteTransport", "WebSocketTransport", "open_websocket"]

MAX_INCOMING_FRAME: Final = 16 * 2**20
"""The largest WebSocket frame (one fragment of a message) that is taken, in bytes. Messages may be endless. Brokers
send 4 KiB to 1 MiB; a larger `max_frame_size` raises this with it."""

_HIGH_WATER: Final = 2**20
"""Bytes received before there is a consumer at which the socket is not read any more. A consumer takes everything as it
comes: back-pressure on the peer is link credit, never this."""

_READ: Final = 256 * 1024  # bytes of one read of the socket, as asyncio has it for other protocols
_COPIED: Final = 4096  # bytes up to which a copy costs less than work on a view

_JOINED: Final = 16384  # bytes of several frames up to which a copy into one piece costs less than a call for each

_NO_PONG: Final = "keepalive ping timeout"  # what websockets gives as its reason to close
_MAX_REDIRECTS: Final = 5  # as fetch limits of HTTP clients go (5 to 30), the low end: brokers redirect once
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

logger = logging.getLogger("amqpws_async.transport")


class ByteConsumer(Protocol):
    """Who a `ByteTransport` hands everything to, from callbacks of the event loop: nothing here may raise."""

    def _on_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes, cut anywhere, never empty; what is wanted of them has to be copied now."""
        ...  # pragma: no cover - a signature

    def _on_writable(self) -> None:
        """The socket's buffer has room again, after a `ByteTransport.write` that said it had not."""
        ...  # pragma: no cover - a signature

    def _on_end(self, error: Exception) -> None:
        """The stream has ended, in whatever way; all bytes that came before were handed over. Called once.

        Args:
            error: `ConnectionClosed`, or `RemoteProtocolError` if the peer sent a text message.
        """
        ...  # pragma: no cover - a signature


class ByteTransport(Protocol):
    """What a connection needs of the network: bytes in, bytes out, two ways to end. All but `close` is synchronous."""

    @property
    def latency(self) -> float:
        """The last WebSocket ping's round trip in seconds; 0.0 before the first."""
        ...  # pragma: no cover - a signature

    def start(self, consumer: ByteConsumer) -> None:
        """Hand over what has come, and from now on what comes, when it comes. Called once."""
        ...  # pragma: no cover - a signature

    def write(self, data: bytes | memoryview) -> bool:
        """Write bytes, as binary messages of at most ``max_websocket_message_size``.

        Args:
            data: The bytes; what is wanted of a view has to be copied now.

        Returns:
            Whether the socket's buffer has room for more; if not, wait for `ByteConsumer._on_writable`.

        Raises:
            ConnectionClosed: The stream has ended.
            RemoteProtocolError: So it has, as the peer sent a text message.
        """
        ...  # pragma: no cover - a signature

    async def close(self) -> None:
        """Close in order, within ``close_timeout``, then drop the socket. May be called again, and after `abort`.

        Cancelling drops the socket at once.
        """
        ...  # pragma: no cover - a signature

    def abort(self) -> None:
        """Drop the socket at once, without a word to the peer."""
        ...  # pragma: no cover - a signature


class _Incoming(threading.local):
    """Where a read of the socket puts its bytes: all are taken before it returns, so a thread needs only one.

    Without it asyncio makes an object of 256 KiB for each read, however little comes: 10 µs, a tenth of a round trip.

    Attributes:
        memory: It.
    """

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_READ))


_incoming = _Incoming()


class _Stream(ClientConnection, asyncio.BufferedProtocol):
    """A WebSocket connection that hands out the payload of its data frames as one stream of bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text_received = False
        self.closed_here = False
        self._splitter = Splitter(self.protocol, super().data_received)
        self._answered = b""  # the last bytes of the answer to the upgrade
        self._chunks: list[bytes | bytearray | memoryview] = []
        self._reading_paused = False
        self._consumer: ByteConsumer | None = None
        self._end_told = False

    def start(self, consumer: ByteConsumer) -> None:
        if self._consumer is not None:
            raise RuntimeError("the transport has been started already")
        self._consumer = consumer
        self._hand_over()

    def drop(self) -> None:
        """Forget the bytes that no consumer took, and read on."""
        self._chunks.clear()
        if self._reading_paused:
            self._reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _hand_over(self) -> None:
        """Give the consumer the bytes that are here, and tell it once if no more will come."""
        consumer, chunks = self._consumer, self._chunks
        if consumer is None:
            if not self._reading_paused and sum(map(len, chunks)) > _HIGH_WATER and not self.transport.is_closing():
                self._reading_paused = True
                self.transport.pause_reading()
            return
        if chunks:
            if len(chunks) > 1 and sum(map(len, chunks)) <= _JOINED:
                consumer._on_bytes(b"".join(chunks))
            else:
                for chunk in chunks:
                    consumer._on_bytes(chunk)
            self.drop()
        if self.protocol.state is not _OPEN and not self._end_told:
            self._end_told = True
            consumer._on_end(self.stopped())

    def stopped(self) -> Exception:
        if self.text_received:
            return RemoteProtocolError(
                "the server sent a WebSocket text message; AMQP travels in binary messages only (WebSocket binding 2.4)"
            )
        return closed_error(self._reason())

    def _reason(self) -> StopReason:
        protocol, lost = self.protocol, self.connection_exc
        cause = lost or protocol.parser_exc
        if self.closed_here:
            return StopReason("connection", "local", description="the WebSocket was closed")
        if protocol.parser_exc is None and protocol.close_rcvd is not None:
            close = protocol.close_rcvd
            text = f"the server closed the WebSocket with code {close.code}" + (
                f" and reason {close.reason!r}" if close.reason else ""
            )
        elif isinstance(protocol.parser_exc, PayloadTooBig):
            text = f"the server sent a WebSocket frame over the limit: {protocol.parser_exc}"
        elif isinstance(protocol.parser_exc, WebSocketException):
            text = f"the server broke the WebSocket protocol: {protocol.parser_exc}"
        elif protocol.close_sent is not None and protocol.close_sent.reason == _NO_PONG:
            text = f"no answer to a WebSocket ping within {self.ping_timeout} s"
        elif isinstance(lost, OSError):
            text = f"the TCP connection was lost: {lost}"
        else:
            text = "the TCP connection ended without a WebSocket close (code 1006)"
        return StopReason("connection", "transport", description=text, cause=cause)

    # --- what websockets calls

    def process_event(self, event: Event) -> None:
        if self.response is None or not isinstance(event, Frame) or event.opcode in _CONTROL:
            super().process_event(event)
        elif event.opcode is _TEXT:
            self.text_received = True
            # RFC 6455 section 7.4.1: 1003 is for "a type of data it cannot accept".
            self.protocol.fail(CloseCode.UNSUPPORTED_DATA, "AMQP travels in binary messages")
            self.send_data()
        elif event.data and not self.text_received and not self.closed_here:
            self._chunks.append(event.data)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _incoming.memory

    def buffer_updated(self, nbytes: int) -> None:
        data = _incoming.memory[:nbytes]
        self.data_received(bytes(data) if nbytes <= _COPIED else data)

    def data_received(self, data: bytes | memoryview) -> None:
        if self.response is None:
            data = self._read_answer(bytes(data))
        if data:
            payload = self._splitter.split(data)
            if not self.closed_here:
                self._chunks += payload if self._consumer is not None else map(bytes, payload)
        if self.protocol.handshake_exc is not None:
            # websockets would wait for the server to close, for as long as it likes.
            self.transport.abort()
        else:
            self._hand_over()

    def _read_answer(self, data: bytes) -> bytes:
        """Give websockets the answer to the upgrade, and return what is behind it in the same read."""
        seen = self._answered + data
        end = seen.find(b"\r\n\r\n") + 4
        answer = data[: end - len(self._answered)] if end > 3 else data
        self._answered = seen[-3:]
        super().data_received(answer)
        rest = data[len(answer) :]
        if rest and self.protocol.state is not _OPEN:  # the body of a refusal
            super().data_received(rest)
            return b""
        return rest

    def send_data(self) -> None:
        super().send_data()
        sent = self.protocol.close_sent
        if sent is not None and sent.reason == _NO_PONG:
            # Who answers no ping answers no close, for which websockets would wait as long as `close_timeout`.
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._consumer is not None:
            self._consumer._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        if not hasattr(self, "transport"):
            return  # lost during TLS through a proxy: never made
        super().connection_lost(exc)
        self._hand_over()


# Looked up in their classes they cost 0.1 µs each, for every frame.
_OPEN: Final = State.OPEN
_TEXT: Final = Opcode.TEXT
_CONTROL: Final = frozenset({Opcode.CLOSE, Opcode.PING, Opcode.PONG})


class WebSocketTransport:
    """A `ByteTransport` over one WebSocket connection; made by `open_websocket`.

    Attributes:
        subprotocol: What the server selected, or None.
    """

    def __init__(self, stream: _Stream, message_size: int) -> None:
        self._stream = stream
        self._message_size = message_size  # the most bytes in one
        self.subprotocol: str | None = stream.subprotocol
        self.start = stream.start

    @property
    def latency(self) -> float:
        """The last WebSocket ping's round trip in seconds; 0.0 before the first."""
        return self._stream.latency

    def write(self, data: bytes | memoryview) -> bool:
        """Write binary messages; see `ByteTransport.write`."""
        stream = self._stream
        if stream.protocol.state is not _OPEN:
            raise stream.stopped()
        limit = self._message_size
        try:
            # A write for each: joined, they would have to be copied once more.
            for start in range(0, len(data), limit):
                message = data[start : start + limit]
                if stream.debug:  # websockets writes the frame to the log
                    stream.protocol.send_binary(message)
                    stream.send_data()
                else:
                    stream.transport.write(binary_frame(message))
        except Exception as error:  # uvloop raises on a socket that has just gone, asyncio tells connection_lost alone
            stream.set_connection_exc(error)
            stream.transport.abort()
            raise stream.stopped() from error
        return not stream.paused

    async def close(self) -> None:
        """Close with code 1000 and wait for the peer's close, at most ``close_timeout``; see `ByteTransport.close`."""
        stream = self._stream
        first, stream.closed_here = not stream.closed_here, True
        stream.drop()  # the peer's close may be behind bytes that nobody will take
        try:
            # websockets bounds the wait for the peer's close, but not the wait for room to write ours.
            async with asyncio.timeout(stream.close_timeout):
                if stream.protocol.state is _OPEN:
                    await stream.close()
                elif first:
                    # The peer has closed, or broken the protocol: our close frame is written, nothing else will come.
                    stream.transport.close()
                await stream.wait_closed()
        except TimeoutError:
            logger.debug("! no WebSocket close from the server within %s s: dropped", stream.close_timeout)
            stream.transport.abort()
            await stream.wait_closed()
        except BaseException:
            stream.transport.abort()
            raise

    def abort(self) -> None:
        """Drop the TCP connection now; see `ByteTransport.abort`."""
        self._stream.closed_here = True
        self._stream.transport.abort()

    def __repr__(self) -> str:
        return f"<WebSocketTransport {self._stream.protocol.state.name.lower()} subprotocol={self.subprotocol!r}>"


# --- opening ---------------------------------------------------------------------------------


async def open_websocket(options: ConnectionOptions, token: str | None) -> WebSocketTransport:
    """Connect, upgrade, and agree on the subprotocol.

    There is no time limit in here: the caller has one for all of opening. Cancelling leaves no socket and no task
    behind.

    Args:
        options: Where to, and how.
        token: The access token for this attempt, or None.

    Raises:
        HandshakeError: The server answered, and not as it has to.
        AuthenticationError: The token would travel in the clear.
        OpenError: There was no usable answer: DNS, TCP, TLS, proxy.
        ValueError: There is both a token and an Authorization header.
    """
    headers = dict(options.headers)
    if token is not None:
        if any(name.lower() == "authorization" for name in headers):
            raise ValueError("token: headers= has an Authorization of its own; give one of the two")
        headers["Authorization"] = f"Bearer {token}"
    secrets = Secrets(token, options)
    for _ in range(_MAX_REDIRECTS + 1):
        if token is not None and not options.private and not options.allow_insecure_auth:
            raise AuthenticationError(
                f"{options.origin}: a token would travel unencrypted: use wss://, or say allow_insecure_auth=True"
            )
        stream_or_location = await _upgrade(options, headers, secrets)
        if isinstance(stream_or_location, _Stream):
            return WebSocketTransport(stream_or_location, options.max_websocket_message_size)
        options = stream_or_location
    raise HandshakeError(f"{options.origin}: gave up after {_MAX_REDIRECTS} redirects of the upgrade")


async def _upgrade(
    options: ConnectionOptions, headers: Mapping[str, str], secrets: Secrets
) -> _Stream | ConnectionOptions:
    """Try once; a redirect that we may follow comes back as options with another URL."""
    streams: list[_Stream] = []  # the one that was made, for what a failed handshake's error does not carry

    def make(*args: Any, **kwargs: Any) -> _Stream:
        streams.append(_Stream(*args, **kwargs))
        return streams[-1]

    tls_arguments: dict[str, Any] = {} if options.ssl_context is None else {"ssl": options.ssl_context}
    message_size = options.max_websocket_message_size
    stream: _Stream | None = None
    answer: Response | None = None
    failure: OpenError | None = None
    try:
        stream = cast(
            _Stream,
            await _Connect(
                options.url,
                subprotocols=[Subprotocol(name) for name in options.subprotocols] or None,
                compression=None,  # brokers turn it off, and it costs memory per connection
                additional_headers=headers,
                user_agent_header="amqpws-async",
                proxy=options.proxy_url,
                open_timeout=None,
                ping_interval=options.ping_interval,
                ping_timeout=options.ping_timeout,
                close_timeout=options.close_timeout,
                max_size=(None, max(MAX_INCOMING_FRAME, options.max_frame_size)),
                write_limit=max(65536, 2 * message_size),  # one message on its way while the next is made
                logger=MaskingLogger(logger.getChild("websockets"), secrets.names, secrets.mask),
                create_connection=cast(type[ClientConnection], make),
                **tls_arguments,
            ),
        )
    except InvalidStatus as error:
        answer = error.response
    except ProxyError as error:  # SOCKS; an HTTP proxy's refusal is an OpenError already
        proxy = without_password(options.proxy_url or "")
        raise OpenError(f"{options.origin} through the proxy {proxy}: {error}: {error.__cause__}") from error
    except OpenError:
        raise
    except InvalidHandshake as error:
        response = streams[-1].response if streams else None
        failure = unfit(options, error, response, secrets)
    except OSError as error:
        raise OpenError(network_text(options, error)) from error
    except Exception as error:  # whatever else the library may come up with, now or later
        failure = OpenError(f"{options.origin}: the WebSocket could not be opened: {secrets.mask(str(error))}")
    # Raised here, so that nothing chained to it shows unmasked what the server may have quoted.
    if failure is not None:
        raise failure
    if answer is not None:
        followed = _redirect(options, answer, secrets)
        if followed is not None:
            return followed
        raise refused(options, answer, secrets)
    assert stream is not None
    if stream.subprotocol is None and options.require_subprotocol:
        # Binding 2.1: without the subprotocol in the answer "the Client MUST close the socket connection".
        stream.transport.abort()
        await stream.wait_closed()
        assert stream.response is not None
        raise handshake_error(
            f"{options.origin}: the server selected no subprotocol, so it may not speak AMQP (we offered "
            f"{', '.join(options.subprotocols)}): offer what it knows by subprotocols=, such as ('AMQPWSB10',) for "
            "Azure, or say require_subprotocol=False for a relay that selects none",
            stream.response,
            secrets,
        )
    return stream


class _Connect(connect):
    """One attempt, without redirects: websockets has rules of its own about hosts and headers, ours are stricter."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc

    async def open_tcp_connection(self) -> ClientConnection:
        if not isinstance(self.proxy, str) or not self.proxy.startswith("http"):
            return await super().open_tcp_connection()
        uri = self.ws_uri
        transport = await open_tunnel(self.proxy, uri.host, uri.port)
        stream = self.factory(uri)
        try:
            transport.set_protocol(stream)
            if uri.secure:
                context = self.create_connection_kwargs.get("ssl") or tls.create_default_context()
                secured = await stream.loop.start_tls(transport, stream, context, server_hostname=uri.host)
                assert secured is not None  # it raises; only its annotation says otherwise
                transport = secured
        except BaseException:
            transport.abort()
            raise
        stream.connection_made(transport)
        return stream


def _redirect(options: ConnectionOptions, response: Response, secrets: Secrets) -> ConnectionOptions | None:
    """Return the options for the next attempt, or None if this is no redirect; raise if we may not follow it."""
    locations = response.headers.get_all("Location")
    if response.status_code not in _REDIRECTS or not locations:
        return None
    place = locations[0].strip()
    with contextlib.suppress(ValueError):  # the check of the URL says what is wrong with it
        place = urllib.parse.urljoin(options.url, place)
    for http_scheme, scheme in (("https:", "wss:"), ("http:", "ws:")):
        if place.lower().startswith(http_scheme):
            place = scheme + place[len(http_scheme) :]
    shown = repr(secrets.mask(place.partition("?")[0].rpartition("@")[2])[:200])
    try:
        followed = dataclasses.replace(options, url=place, ssl=options.ssl if place.startswith("wss:") else None)
    except ValueError as error:
        raise handshake_error(
            f"{options.origin}: the upgrade was redirected to {shown}, which is no place to go: {error}",
            response,
            secrets,
        ) from error
    if options.encrypted and not followed.encrypted:
        problem = "which is not encrypted, while wss:// was asked for"
    elif not options.allows_redirect(followed.host, followed.port):
        problem = f"another host; if it is to be trusted, say redirect_hosts=({followed.host!r},)"
    else:
        logger.info("< %s: the upgrade was redirected to %s", options.origin, followed.origin)
        return followed
    raise handshake_error(f"{options.origin}: the upgrade was redirected to {shown}, {problem}", response, secrets)
