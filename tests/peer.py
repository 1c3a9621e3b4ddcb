"""A scripted AMQP 1.0 peer: it behaves unless a test says otherwise, in a line or two.

::

    async with Peer() as peer:
        peer.on["attach"] = refuse("amqp:not-found")
        async with amqp.connect(peer.url) as connection:
            ...

`Peer` listens on loopback with `websockets`; every connection gets a `Conversation`, which speaks AMQP by proton's
public engine objects. Each thing the client does is an event (`EVENTS`) with a reaction: `Peer.on` replaces the default
one by a function of the conversation and proton's object, and `ignore` never answers. A reaction that only wants to
look calls `Conversation.react` for the default.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import proton
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Reaction = Callable[["Conversation", Any], None]

#: What the client can do; the argument of the reaction is proton's connection, session, link or delivery. "settled" is
#: a message of the client's, settled by the client; "disposition" is about a delivery of the peer's.
EVENTS = ("open", "begin", "attach", "transfer", "settled", "flow", "disposition", "detach", "end", "close")

#: Seconds after which something that the client should have done counts as never done.
PATIENCE = 10.0

# The server's own log shows request headers, and tests look for secrets in every log.
_SILENT = logging.Logger("peer")  # outside the hierarchy on purpose
_SILENT.addHandler(logging.NullHandler())


class Peer:
    """The listener, and what it has seen and should do.

    Attributes:
        on: Reactions by event, in place of the defaults.
        credit: Granted to every sender that attaches, and topped up for every message settled.
        queue: Encoded messages to deliver, as credit allows, to whichever receiver asks.
        presettled: Deliver them settled.
        cut: How outgoing bytes are cut into WebSocket messages.
        script: Serves a connection in place of AMQP, or before it (see `Conversation.serve`).
        tune: Called with every new conversation before it starts, to set limits on its transport.
        seen: Every event so far, in order.
        received: Every complete message that came, encoded.
        dispositions: (state, settled) of every disposition on a delivery of ours.
        detached: (link name, closed, condition) of every detach.
        bytes_in: All AMQP bytes that came.
    """

    def __init__(self) -> None:
        self.on: dict[str, Reaction] = {}
        self.credit = 100
        self.queue: deque[bytes] = deque()
        self.presettled = False
        self.cut: Callable[[bytes], Iterable[bytes]] = lambda data: [data]
        self.script: Callable[[Conversation], Awaitable[None]] | None = None
        self.tune: Callable[[Conversation], None] = lambda conversation: None
        self.seen: list[str] = []
        self.received: list[bytes] = []
        self.dispositions: list[tuple[Any, bool]] = []
        self.detached: list[tuple[str, bool, str | None]] = []
        self.bytes_in = bytearray()
        self.conversations: list[Conversation] = []
        self.port = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def conversation(self) -> Conversation:
        """The latest connection."""
        return self.conversations[-1]

    async def __aenter__(self) -> Self:
        # No ping: what goes over the wire is the same in every run.
        self._server = await serve(
            self._accepted,
            "127.0.0.1",
            0,
            subprotocols=["amqp"],  # type: ignore[list-item]
            compression=None,
            max_size=None,
            ping_interval=None,
            close_timeout=1,
            logger=_SILENT,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for conversation in self.conversations:
            conversation.drop()
        self._server.close()
        await self._server.wait_closed()
        if self._failure is not None and error is None:
            raise self._failure

    async def until(self, true: Callable[[], object]) -> None:
        """Waits until something that the client causes has happened."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def saw(self, event: str, count: int = 1) -> None:
        """Waits until the client has done this so often."""
        await self.until(lambda: self.seen.count(event) >= count)

    async def gone(self, count: int = 1) -> None:
        """Waits until so many connections were made, and all are over."""
        await self.until(lambda: len(self.conversations) >= count and all(c.over for c in self.conversations))

    def note(self, event: str | None = None) -> None:
        """Records an event, and wakes who waits for one."""
        if event is not None:
            self.seen.append(event)
        self._changed.set()

    async def _accepted(self, socket: ServerConnection) -> None:
        conversation = Conversation(self, socket)
        self.conversations.append(conversation)
        self.note()
        try:
            self.tune(conversation)
            await (self.script(conversation) if self.script else conversation.serve())
        except ConnectionClosed:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            conversation.drop()
            conversation.over = True
            self.note()


class Conversation:
    """One connection: proton's engine as a server, and what a test may do with it at any moment."""

    def __init__(self, peer: Peer, socket: ServerConnection) -> None:
        self.peer = peer
        self.socket = socket
        self.over = False
        self.connection = proton.Connection()
        self.connection.container = "peer"
        self.transport = proton.Transport(proton.Transport.SERVER)
        self.links: dict[str, Any] = {}
        self._collector: Any = proton.Collector()
        self.connection.collect(self._collector)
        self._outgoing: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._held = False
        self._tags = 0
        self._reading: dict[Any, bytearray] = {}

    # --- what a test may do at any moment ---

    def close(self, condition: str | None = None, description: str | None = None, info: Any = None) -> None:
        """Closes the connection."""
        self._stop(self.connection, condition, description, info)
        self.connection.close()
        self.flush()

    def end(self, condition: str | None = None, session: Any = None) -> None:
        """Ends a session, the first unless given."""
        session = session or self.connection.session_head(proton.Endpoint.LOCAL_ACTIVE)
        self._stop(session, condition, "so it was scripted", None)
        session.close()
        self.flush()

    def detach(self, link: Any = None, condition: str | None = None, *, closed: bool = True, info: Any = None) -> None:
        """Detaches a link, the only one unless given."""
        link = link or next(iter(self.links.values()))
        self._stop(link, condition, "so it was scripted", info)
        if closed:
            link.close()
        else:
            link.detach()
        self.flush()

    def grant(self, credit: int, link: Any = None) -> None:
        """Gives a sender credit."""
        (link or next(iter(self.links.values()))).flow(credit)
        self.flush()

    def settle(self, delivery: Any, state: Any = proton.Delivery.ACCEPTED) -> None:
        """Settles a message that came."""
        if state is not None:
            delivery.update(state)
        delivery.settle()
        self.flush()

    def deliver(self, raw: bytes, link: Any = None, *, settled: bool = False, whole: bool = True) -> Any:
        """Delivers a message, or its beginning only; needs credit."""
        link = link or next(iter(self.links.values()))
        self._tags += 1
        delivery = link.delivery(f"t{self._tags}")
        link.stream(raw)
        if whole:
            link.advance()
            if settled:
                delivery.settle()
        self.flush()
        return delivery

    def raw(self, data: bytes | str) -> None:
        """Sends bytes, or a text message, past proton."""
        self._outgoing.put_nowait(data)

    def drop(self) -> None:
        """Drops the TCP connection."""
        self.socket.transport.abort()

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Sends all that is done inside in one WebSocket message."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.flush()

    # --- the machinery ---

    async def serve(self, *, sasl: bool = True) -> None:
        """Speaks AMQP until the client is gone."""
        if sasl:
            self.transport.sasl().allowed_mechs("ANONYMOUS")
        self.transport.bind(self.connection)
        writer = asyncio.ensure_future(self._write())
        try:
            async for message in self.socket:
                assert isinstance(message, bytes), "AMQP travels in binary messages"
                self.peer.bytes_in += message
                self._push(message)
        finally:
            writer.cancel()
            await asyncio.wait([writer])

    def flush(self) -> None:
        """Sends what proton has to say."""
        if self._held or self.over:
            return
        out = b""
        while (size := self.transport.pending()) > 0:
            out += self.transport.peek(size) or b""
            self.transport.pop(size)
        if out:
            for piece in self.peer.cut(out):
                self._outgoing.put_nowait(piece)

    def react(self, event: str, subject: Any) -> None:
        """The default reaction to an event."""
        getattr(self, f"_on_{event}")(subject)

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (data := await self._outgoing.get()) is not None:
                await self.socket.send(data)

    def _push(self, data: bytes) -> None:
        while data and (room := self.transport.capacity()) > 0:
            self.transport.push(data[:room])
            data = data[room:]
            self._dispatch()
        self.flush()
        self.peer.note()

    def _dispatch(self) -> None:
        while event := self._collector.peek():
            kind: Any = event.type
            link: Any = event.link
            if kind == proton.Event.CONNECTION_REMOTE_OPEN:
                self._happened("open", event.connection)
            elif kind == proton.Event.SESSION_REMOTE_OPEN:
                self._happened("begin", event.session)
            elif kind == proton.Event.LINK_REMOTE_OPEN:
                self.links[link.name] = link
                self._happened("attach", link)
            elif kind == proton.Event.LINK_FLOW:
                self._happened("flow", link)
            elif kind == proton.Event.DELIVERY:
                self._delivery(event.delivery)
            elif kind in (proton.Event.LINK_REMOTE_CLOSE, proton.Event.LINK_REMOTE_DETACH):
                condition = link.remote_condition
                closed = kind == proton.Event.LINK_REMOTE_CLOSE
                self.peer.detached.append((link.name, closed, condition.name if condition else None))
                self._happened("detach", link)
            elif kind == proton.Event.SESSION_REMOTE_CLOSE:
                self._happened("end", event.session)
            elif kind == proton.Event.CONNECTION_REMOTE_CLOSE:
                self._happened("close", event.connection)
            self._collector.pop()

    def _happened(self, event: str, subject: Any) -> None:
        if reaction := self.peer.on.get(event):
            reaction(self, subject)
        else:
            self.react(event, subject)
        self.peer.note(event)

    def _delivery(self, delivery: Any) -> None:
        link = delivery.link
        if link.is_sender:
            self.peer.dispositions.append((delivery.remote_state, delivery.settled))
            self._happened("disposition", delivery)
        elif delivery.readable and link.current == delivery:
            parts = self._reading.setdefault(link.name, bytearray())
            parts += link.recv(delivery.pending) or b""
            if delivery.partial:
                return
            del self._reading[link.name]
            link.advance()
            self.peer.received.append(bytes(parts))
            self._happened("transfer", delivery)
        elif delivery.updated and delivery.settled:
            self._happened("settled", delivery)

    @staticmethod
    def _stop(endpoint: Any, condition: str | None, description: str | None, info: Any) -> None:
        if condition is not None:
            symbols: Any = {proton.symbol(key): value for key, value in (info or {}).items()}
            endpoint.condition = proton.Condition(condition, description, symbols or None)

    # --- the default reactions ---

    def _on_open(self, connection: Any) -> None:
        connection.open()

    def _on_begin(self, session: Any) -> None:
        session.open()

    def _on_attach(self, link: Any) -> None:
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        terminus = link.source if link.is_sender else link.target
        if terminus.dynamic:
            terminus.address = f"made-for-{link.name}"
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.open()
        if link.is_receiver and self.peer.credit:
            link.flow(self.peer.credit)

    def _on_transfer(self, delivery: Any) -> None:
        link = delivery.link
        if not delivery.settled:
            delivery.update(proton.Delivery.ACCEPTED)
        delivery.settle()
        if self.peer.credit:
            link.flow(1)

    def _on_settled(self, delivery: Any) -> None:
        delivery.settle()

    def _on_flow(self, link: Any) -> None:
        if link.is_sender:
            while link.credit > 0 and self.peer.queue:
                self.deliver(self.peer.queue.popleft(), link, settled=self.peer.presettled)
            if link.drain_mode:
                link.drained()

    def _on_disposition(self, delivery: Any) -> None:
        if delivery.settled or delivery.remote_state:
            delivery.settle()

    def _on_detach(self, link: Any) -> None:
        # Nothing is ever freed by hand here: proton frees a link twice if its wrapper outlives its freed session.
        link.close()
        self.links.pop(link.name, None)

    def _on_end(self, session: Any) -> None:
        session.close()

    def _on_close(self, connection: Any) -> None:
        connection.close()


# --- reactions ---------------------------------------------------------------------


def ignore(conversation: Conversation, subject: Any) -> None:
    """Never answers."""


def after(event: str, then: Callable[[Conversation], None]) -> Reaction:
    """Behaves, and then does something as well."""

    def reaction(conversation: Conversation, subject: Any) -> None:
        conversation.react(event, subject)
        then(conversation)

    return reaction


def refuse(condition: str, info: Any = None) -> Reaction:
    """Refuses an attach as the specification says (2.6.3): null terminus, then a detach with the error."""

    def reaction(conversation: Conversation, link: Any) -> None:
        (link.source if link.is_sender else link.target).type = proton.Terminus.UNSPECIFIED
        other, remote = (link.target, link.remote_target) if link.is_sender else (link.source, link.remote_source)
        other.copy(remote)
        link.open()
        conversation.detach(link, condition, info=info)

    return reaction


def outcome(state: Any, **fields: Any) -> Reaction:
    """Settles every transfer with this state; the fields are those of proton's `Delivery.local`."""

    def reaction(conversation: Conversation, delivery: Any) -> None:
        for name, value in fields.items():
            setattr(delivery.local, name, value)
        conversation.settle(delivery, state)

    return reaction


# --- the wire ------------------------------------------------------------------------


def sized(*sizes: int) -> Callable[[bytes], Iterable[bytes]]:
    """Cuts outgoing bytes into WebSocket messages of these sizes, over and over."""
    turn = 0

    def cut(data: bytes) -> Iterator[bytes]:
        nonlocal turn
        while data:
            size = sizes[turn % len(sizes)]
            turn += 1
            yield data[:size]
            data = data[size:]

    return cut


def frame(code: int, *fields: bytes, payload: bytes = b"", channel: int = 0, kind: int = 0) -> bytes:
    """A frame with this performative and its encoded fields, for peers that send what proton would not."""
    values = b"".join(fields)
    body = b"\x00\x53" + bytes([code]) + b"\xc0" + bytes([len(values) + 1, len(fields)]) + values + payload
    return struct.pack(">IBBH", 8 + len(body), 2, kind, channel) + body


def transfer(number: int, payload: bytes, *, handle: int = 0, channel: int = 0) -> bytes:
    """An encoded, settled transfer (specification 2.7.5); its number is delivery-id and tag."""
    tag = b"\xa0\x04" + struct.pack(">I", number)
    fields = (b"\x52" + bytes([handle]), b"\x52" + bytes([number]), tag, b"\x43", b"\x41")
    return frame(0x14, *fields, payload=payload, channel=channel)


def mechanisms(name: str) -> bytes:
    """An encoded sasl-mechanisms that offers one (specification 5.3.3.1): an array8 of one sym8."""
    array = b"\xe0" + bytes([len(name) + 3, 1]) + b"\xa3" + bytes([len(name)]) + name.encode()
    return frame(0x40, array, kind=1)


#: The protocol header of the SASL layer, and its outcomes (specification 5.3.3.6).
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
SASL_OK = frame(0x44, b"\x50\x00", kind=1)
SASL_REFUSED = frame(0x44, b"\x50\x01", kind=1)


class Wire:
    """A TCP relay that counts, and cuts the connection after so many bytes in one direction."""

    def __init__(self, target: int, limits: dict[str, int]) -> None:
        self.port = 0
        self.passed = {"up": 0, "down": 0}
        self._target = target
        self._limits = limits

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"ws://127.0.0.1:{self.port}/"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection until either side, or the limit, ends it."""
        try:
            reader_up, writer_up = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ways = (self._pass("up", reader, writer_up), self._pass("down", reader_up, writer))
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for each in (writer, writer_up):
                each.close()

    async def _pass(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self._limits.get(way)
        with contextlib.suppress(ConnectionError):
            while limit is None or self.passed[way] < limit:
                room = 65536 if limit is None else limit - self.passed[way]
                if not (data := await reader.read(room)):
                    break
                self.passed[way] += len(data)
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def wired(peer: Peer, **limits: int) -> AsyncIterator[Wire]:
    """A way to the peer that ends after `up` or `down` bytes."""
    wire = Wire(peer.port, limits)
    carrying: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrying.add(asyncio.ensure_future(wire.carry(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        if carrying:
            await asyncio.wait(carrying)
