"""The embedded broker: AMQP 1.0 over WebSocket, in memory, in your process."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl as tls
import uuid
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, Self, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from ..errors import ErrorCondition
from ..masking import MaskingLogger
from ..message import Message
from .attaching import LinkRequest
from .faults import Fault
from .injection import Injector
from .nodes import Nodes
from .peer import Peer, ServerOptions
from .queues import Queue
from .statistics import BrokerStatistics
from .websocket import Stream

__all__ = ["Broker", "Refusal"]

logger = logging.getLogger("amqpws_async.testing")

_SHUTDOWN: Final = ErrorCondition("amqp:connection:forced", "the broker is shutting down")


@dataclass(frozen=True, slots=True)
class Refusal:
    """How `Broker(authorize=...)` refuses an upgrade.

    Attributes:
        status: The HTTP status, such as 401.
        body: The response's body, text.
        headers: Headers to add, such as ``{"WWW-Authenticate": "Bearer"}``.
    """

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


Authorize = Callable[[Mapping[str, str], str], "int | Refusal | Awaitable[int | Refusal | None] | None"]


class Broker:
    """An AMQP 1.0 broker over WebSocket for tests, demonstrations and development.

    It speaks real AMQP over a real socket, to any client, and keeps everything in memory::

        async with Broker() as broker:
            async with amqpws_async.connect(broker.url) as connection: ...

    ===========================  =================================================================================
    address                      node
    ===========================  =================================================================================
    ``NAME``, ``queue:NAME``     the same queue, created on first use; receivers compete, in turns
    ``topic:NAME``               a topic: every message goes to each subscription there is
    null or empty, of a target   the anonymous relay: each message goes to its ``to`` address
    dynamic                      a queue (a topic with capability ``temporary-topic``), deleted with its link
    ``dead-letter``              a queue for messages that were rejected or failed too often, with annotations
                                 ``x-opt-dead-letter-source``, ``-condition`` and ``-description``
    ===========================  =================================================================================

    Accepted messages leave the queue. Released ones go back as they were; modified ones with what was modified, and
    with undeliverable-here never again to that link. What a link, session or connection had not settled when it ended
    goes back with its delivery-count raised, to the place it had. A message keeps its bytes, but for the header and
    annotations that change so. The ttl in a header is heeded.

    Subscriptions with a durable source or expiry policy ``never`` outlive a detach and the connection; closing the link
    ends them. Selectors (filter ``apache.org:selector-filter:string``) and browsing (distribution mode ``copy``) work;
    other filters are not in effect, and missing in the attach that answers.

    Args:
        host: Where to listen; this machine alone by default.
        port: The port, 0 for any that is free; see `url`.
        users: Passwords by user name for SASL PLAIN; None for no PLAIN.
        anonymous: Whether SASL ANONYMOUS, or no SASL at all, will do; by default only if there are no `users`.
        ssl: A server's TLS context, for ``wss://``. A client certificate it verified is good for SASL EXTERNAL.
        subprotocols: WebSocket subprotocols to select from; an empty sequence selects none, as some relays do.
        authorize: Called with headers and path of every upgrade; may be a coroutine function. None lets the client
            in, a status or a `Refusal` does not.
        authorize_link: Called with every attach: None allows it, an error refuses it.
        max_message_size: The largest message taken, in bytes (default 16 MiB): announced, and enforced by a detach.
        max_queue_bytes: Bytes of messages at which a queue is full (default 64 MiB), so that its senders get no more
            credit until half is free. It may be passed by what was in flight then.
        max_frame_size: The largest AMQP frame taken, in bytes (default 64 KiB).
        idle_timeout: Seconds of a client's silence after which it is dropped, 0 for never (default 60).
        ping_interval: Seconds between WebSocket pings, None for none (default 20, the answer to come as soon).
        close_timeout: Seconds to wait for a client's close before it is dropped (default 5).
        max_delivery_count: Failed deliveries after which a message is a dead letter; None, the default, for no limit.
        max_connections: Connections that may be open at once; one more is closed as soon as it has opened. None, the
            default, for no limit.
        max_links: Senders, and receivers, that a connection may have at once; None, the default, for no limit.
        container_id: The broker's; made up by default.
        nodes: Where addresses lead. By default to nodes as above; others bring their own limits, and `max_queue_bytes`
            and `max_delivery_count` say nothing then.
        faults: What is to go wrong, see `amqpws_async.testing.faults`.

    Attributes:
        faults: The same, while it runs: more of them, and faults that happen at once.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        users: Mapping[str, str] | None = None,
        anonymous: bool | None = None,
        ssl: tls.SSLContext | None = None,
        subprotocols: Sequence[str] = ("amqp",),
        authorize: Authorize | None = None,
        authorize_link: Callable[[LinkRequest], ErrorCondition | None] | None = None,
        max_message_size: int = 16 * 2**20,
        max_queue_bytes: int = 64 * 2**20,
        max_frame_size: int = 65536,
        idle_timeout: float = 60.0,
        ping_interval: float | None = 20.0,
        close_timeout: float = 5.0,
        max_delivery_count: int | None = None,
        max_connections: int | None = None,
        max_links: int | None = None,
        container_id: str | None = None,
        nodes: Nodes | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        limits = (max_message_size, max_queue_bytes, max_delivery_count, max_connections, max_links)
        if any(limit is not None and limit < 1 for limit in limits):
            raise ValueError(
                "max_message_size, max_queue_bytes, max_delivery_count, max_connections and max_links: at least 1"
            )
        if max_frame_size < 512:
            raise ValueError("max_frame_size: at least 512 bytes (specification 2.4.1)")
        self.host = host
        self.port = port
        self._ssl = ssl
        self._subprotocols = [Subprotocol(name) for name in subprotocols]
        self._authorize = authorize
        self._ping_interval = ping_interval
        self._close_timeout = close_timeout
        self._max_connections = max_connections
        self._peers: set[Peer] = set()
        self.faults = Injector(faults, self._peers)
        self._options = ServerOptions(
            faults=self.faults,
            container_id=container_id or f"broker-{uuid.uuid4().hex[:12]}",
            users=MappingProxyType(dict(users)) if users is not None else None,
            anonymous=users is None if anonymous is None else anonymous,
            authorize_link=authorize_link,
            has_room=self._has_room,
            max_links=max_links,
            max_message_size=max_message_size,
            max_frame_size=max_frame_size,
            idle_timeout=idle_timeout,
        )
        self._nodes = nodes
        self._max_queue_bytes = max_queue_bytes
        self._max_delivery_count = max_delivery_count
        self._server: Server | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()  # those in the upgrade too
        self._connections_total = 0

    @property
    def url(self) -> str:
        """Where clients connect to, such as ``ws://127.0.0.1:49152/``; any path will do."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self._ssl else 'ws'}://{host}:{self.port}/"

    async def start(self) -> Self:
        """Listen. After `close` or `abort` it listens again, on the same port and with the same messages.

        Returns:
            The broker.

        Raises:
            OSError: The port cannot be had.
            RuntimeError: It is listening already.
        """
        if self._server is not None:
            raise RuntimeError("this broker is listening already")
        loop = asyncio.get_running_loop()
        if self._nodes is None:
            self._nodes = Nodes(self._max_queue_bytes, self._max_delivery_count, loop.time)
        nodes, options = self._nodes, self._options

        def make(*args: Any, **kwargs: Any) -> Stream:
            stream = Stream(options, nodes, *args, **kwargs)
            self._streams.add(stream)
            return stream

        arguments: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        self._server = await serve(
            self._serve,
            self.host,
            self.port,
            subprotocols=self._subprotocols or None,
            compression=None,
            process_request=self._process_request,
            server_header="amqpws_async.testing",
            ping_interval=self._ping_interval,
            ping_timeout=self._ping_interval,
            close_timeout=self._close_timeout,
            max_size=(None, 16 * 2**20),
            write_limit=2**17,
            logger=MaskingLogger(logger.getChild("websockets")),
            create_connection=cast(type[ServerConnection], make),
            **arguments,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and end every connection in order: ``amqp:connection:forced``, then WebSocket close 1000.

        Clients that do not answer within `close_timeout` are dropped, as all are if this is cancelled. Closing again
        does nothing.
        """
        if self._server is None:
            return
        self._server.close(close_connections=False)
        for peer in list(self._peers):
            peer.close(_SHUTDOWN)
        try:
            await self._gone()
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Drop every connection without a word and stop listening, as if the broker's process had died.

        What was not settled is in its queues again. Cancelling stops the waiting alone.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self.faults.stop()
        server.close(close_connections=False)
        for stream in list(self._streams):
            stream.abort()
        await server.wait_closed()

    async def disconnect(self) -> None:
        """Drop every connection without a word, and go on listening: clients may come back at once.

        What was not settled is in its queues again. Cancelling stops the waiting alone.
        """
        for peer in list(self._peers):
            peer.abort()
        await self._gone()

    async def _gone(self) -> None:
        peers = [peer.gone for peer in self._peers]
        if peers:
            await asyncio.wait(peers, timeout=self._close_timeout)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def put(self, address: str, message: Message | bytes) -> None:
        """Put a message where a client's sender would, for what is tested to receive.

        Raises:
            LookupError: There is no such node.
            RuntimeError: The broker was not started yet.
            ValueError: The message cannot be encoded, or the bytes are none.
        """
        nodes = self._started_nodes()
        node = nodes.find(address)
        if node is None:
            raise LookupError(f"there is no node {address!r}")
        raw = message.encode() if isinstance(message, Message) else message
        node.put(raw, nodes.expiry(raw))

    def messages(self, address: str) -> list[Message]:
        """Look at the messages that are ready in a queue, the next one first; they stay there.

        Raises:
            LookupError: There is no such queue.
            RuntimeError: The broker was not started yet.
        """
        node = self._started_nodes().find(address)
        if not isinstance(node, Queue):
            raise LookupError(f"there is no queue {address!r}")
        return [Message.decode(raw) for raw in node.ready()]

    def statistics(self) -> BrokerStatistics:
        """Take a snapshot of connections, queues and topics."""
        nodes = self._nodes
        opened = [peer for peer in self._peers if peer.opened]
        sessions = [session for peer in opened for session in peer.sessions]
        return BrokerStatistics(
            connections=len(opened),
            sessions=len(sessions),
            links=sum(len(session.links) for session in sessions),
            connections_total=self._connections_total,
            queues=dict(nodes.queues()) if nodes is not None else {},
            topics=dict(nodes.topics()) if nodes is not None else {},
        )

    def __repr__(self) -> str:
        state = "listening" if self._server is not None else "closed"
        return f"<Broker {self.url} {state}, {len(self._peers)} connections>"

    def _started_nodes(self) -> Nodes:
        if self._nodes is None:
            raise RuntimeError("start the broker first")
        return self._nodes

    def _has_room(self) -> bool:
        """Whether one more connection may open."""
        return self._max_connections is None or sum(peer.opened for peer in self._peers) < self._max_connections

    # --- what websockets calls

    async def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        refusal = await self._refusal(connection, request)
        if refusal is None:
            return None
        response = connection.respond(refusal.status, refusal.body)
        for name, value in refusal.headers.items():
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value
        return response

    async def _refusal(self, connection: ServerConnection, request: Request) -> Refusal | None:
        assert isinstance(connection, Stream)
        if (fault := await self.faults.upgrade(connection)) is not None:
            wait = {} if fault.retry_after is None else {"Retry-After": str(math.ceil(fault.retry_after))}
            return Refusal(fault.status, fault.body, wait | dict(fault.headers))
        answer = self._authorize(request.headers, request.path) if self._authorize is not None else None
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer is None or isinstance(answer, Refusal):
            return answer
        return Refusal(answer, HTTPStatus(answer).phrase + "\n")

    async def _serve(self, connection: ServerConnection) -> None:
        """Keep a connection until nothing is left to say on it; websockets closes it then, with code 1000."""
        assert isinstance(connection, Stream)
        connection.start()
        peer = connection.peer
        self._peers.add(peer)
        self._connections_total += 1
        try:
            await asyncio.wait([peer.ended])
        finally:
            self._peers.discard(peer)
