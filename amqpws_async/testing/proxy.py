"""A byte-level proxy in the event loop: the network between a client and its broker, which fails where you say.

It knows nothing of WebSocket or AMQP: bytes come in and go out, through TLS as well. Each connection has two lanes,
``up`` (from the client) and ``down`` (to the client). A `Lane` says beforehand what happens to the bytes of one, at
which byte; methods of the proxy, and of each `ProxyConnection`, do the same now.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Self

from ..urls import parse_url

__all__ = ["Action", "FaultProxy", "Lane", "ProxyConnection", "Way", "Wire"]

Way = Literal["up", "down"]
"""``"up"`` is from the client to the server, ``"down"`` is to the client."""

Action = Literal["cut", "reset", "half-close", "stall", "drop"]
"""What may happen at a byte; see `Lane`."""

CHUNK: Final = 65536  # bytes to read at once
STEPS: Final = 20  # portions a second that a limited rate comes in

_LINGER: Final = struct.pack("ii", 1, 0)  # on, for 0 seconds: a close is a RST then


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What happens to the bytes of one direction of one connection.

    ===============  =====================================================================================
    ``then``         at byte ``at``
    ===============  =====================================================================================
    ``cut``          both sides see an orderly end (FIN) in both directions
    ``reset``        both sides see a reset (RST); what was on its way may be lost with it
    ``half-close``   the receiver of this lane sees its end, the other lane goes on
    ``stall``        nothing is carried, nor taken from the sender, until `ProxyConnection.resume`
    ``drop``         what comes is taken and thrown away; neither side is told, also not of the other's end
    ===============  =====================================================================================

    Attributes:
        at: Bytes that are carried before; 0 is as soon as there is a connection. None, the default, for never.
        then: What happens there.
        delay: Seconds that each read of up to 64 KiB waits before it goes on (default 0). With TLS, a slow handshake.
        bytes_per_second: The most that is carried, or None for no limit.
        pieces: The smallest and the largest write, sizes between are drawn at random; None for what is read at once.
            The network may join small writes again.
        seed: What the sizes are drawn with, anew for each connection: a run can be repeated.

    Raises:
        ValueError: A number is out of range.
    """

    at: int | None = None
    then: Action = "cut"
    delay: float = 0.0
    bytes_per_second: float | None = None
    pieces: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.at is not None and self.at < 0) or self.delay < 0:
            raise ValueError("at and delay: not negative")
        if self.bytes_per_second is not None and self.bytes_per_second <= 0:
            raise ValueError("bytes_per_second: positive, or None")
        if self.pieces is not None and not 1 <= self.pieces[0] <= self.pieces[1]:
            raise ValueError("pieces: the smallest size, at least 1, and the largest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One connection through a `FaultProxy`: both its lanes.

    Attributes:
        up: From the client to the server.
        down: From the server to the client.
    """

    up: Lane = Lane()
    down: Lane = Lane()


class FaultProxy:
    """A TCP proxy in front of a server, which refuses, stalls, cuts, resets, slows down and chops up on demand.

    ::

        async with Broker() as broker, FaultProxy(broker.url, [Wire(down=Lane(at=500))]) as proxy:
            ...  # the first connection to proxy.url ends after 500 bytes of the broker's; the next ones are well

    For ``wss://`` the bytes pass through as they are, so the server's certificate has to be good for the proxy's host.

    Args:
        url: The server's, ``ws://`` or ``wss://``; what it says beside host and port is kept.
        wires: What happens to the first connections, one after the other. May be endless, such as a generator.
        host: The address to listen on; this machine alone by default.
        port: The port, 0 for any that is free.

    Attributes:
        wire: What happens to connections when `wires` are used up; may be assigned at any time.
        accepted: Connections so far.
        faults: How many actions, of lanes and called for, have happened to connections so far.
        connections: Those that are there now, the oldest first.

    Raises:
        ValueError: The URL is no ws:// or wss:// URL.
    """

    def __init__(self, url: str, wires: Iterable[Wire] = (), *, host: str = "127.0.0.1", port: int = 0) -> None:
        text, _, server, server_port = parse_url(url)
        self.host = host
        self.port = port
        self.wire = Wire()
        self.accepted = 0
        self.faults = 0
        self.connections: list[ProxyConnection] = []
        self._url = urllib.parse.urlsplit(text)
        self._server: tuple[str, int] = (server, server_port)
        self._wires: Iterator[Wire] = iter(wires)
        self._socket: socket.socket | None = None
        self._listening = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = {"up": 0, "down": 0}

    @property
    def url(self) -> str:
        """Where clients connect to instead."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self._url._replace(netloc=f"{host}:{self.port}").geturl()

    @property
    def bytes_up(self) -> int:
        """Bytes carried to the server, on all connections so far."""
        return self._ended["up"] + sum(connection.bytes_up for connection in self.connections)

    @property
    def bytes_down(self) -> int:
        """Bytes carried to clients, on all connections so far."""
        return self._ended["down"] + sum(connection.bytes_down for connection in self.connections)

    # --- its life --------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Listen. After `close` it listens again, on the same port.

        Returns:
            The proxy.

        Raises:
            OSError: The port cannot be had.
            RuntimeError: It is listening already.
        """
        if self._socket is not None:
            raise RuntimeError("this proxy is listening already")
        self._bind()
        self.accept()
        return self

    async def close(self) -> None:
        """Stop listening and reset every connection. Closing again does nothing.

        Cancelling stops the waiting alone.
        """
        if self._socket is None:
            return
        self.refuse()
        self._socket.close()
        self._socket = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._socket is None else f"{len(self.connections)} connections"
        return f"<FaultProxy {self.host}:{self.port} to {self._server[0]}:{self._server[1]}, {state}>"

    # --- at once ---------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new TCP connections, until `accept`; those that are there go on."""
        if self._socket is not None and self._listening:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._listening = False
            self._socket.close()
            self._bind()  # a port that is bound and not listened on refuses, and nobody else gets it meanwhile

    def accept(self) -> None:
        """Take new connections again after `refuse`.

        Raises:
            RuntimeError: The proxy is not started.
        """
        if self._socket is None:
            raise RuntimeError("start the proxy first")
        if not self._listening:
            self._socket.listen(128)
            self._listening = True
            asyncio.get_running_loop().add_reader(self._socket, self._on_connection)

    def cut(self) -> None:
        """End every connection in order (FIN)."""
        for connection in list(self.connections):
            connection.cut()

    def reset(self) -> None:
        """End every connection by a reset (RST)."""
        for connection in list(self.connections):
            connection.reset()

    def half_close(self, way: Way) -> None:
        """End one direction of every connection."""
        for connection in list(self.connections):
            connection.half_close(way)

    def stall(self, way: Way | None = None) -> None:
        """Carry nothing on the connections there are, in one direction or (None) both, until `resume`."""
        for connection in list(self.connections):
            connection.stall(way)

    def drop(self, way: Way | None = None) -> None:
        """Throw away what comes on the connections there are, in one direction or (None) both."""
        for connection in list(self.connections):
            connection.drop(way)

    def resume(self, way: Way | None = None) -> None:
        """Go on after `stall`; nothing that was held is lost."""
        for connection in list(self.connections):
            connection.resume(way)

    # --- connections -----------------------------------------------------------------------------

    def _bind(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((self.host, self.port))
        except OSError:
            made.close()
            raise
        self.port = made.getsockname()[1]
        self._socket = made

    def _on_connection(self) -> None:
        assert self._socket is not None
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it has gone again
        client.setblocking(False)
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._carry(client, next(self._wires, self.wire)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket, wire: Wire) -> None:
        with client:
            try:
                server = await self._connect()
            except OSError:
                _linger(client)
                return
            with server:
                connection = ProxyConnection(self, client, server, wire)
                self.connections.append(connection)
                try:
                    await connection._carry()
                finally:
                    self.connections.remove(connection)
                    self._ended["up"] += connection.bytes_up
                    self._ended["down"] += connection.bytes_down

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*self._server, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            await loop.sock_connect(made, address)
        except BaseException:
            made.close()
            raise
        return made


class ProxyConnection:
    """One connection through a `FaultProxy`; made by it.

    Attributes:
        wire: What it was made with.
    """

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket, wire: Wire) -> None:
        self.wire = wire
        self._proxy = proxy
        self._sockets = (client, server)
        self._up = _Carrier(self, client, server, wire.up, "up")
        self._down = _Carrier(self, server, client, wire.down, "down")
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False
        for end in self._sockets:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # so that small pieces travel as such

    @property
    def bytes_up(self) -> int:
        """Bytes carried to the server."""
        return self._up.carried

    @property
    def bytes_down(self) -> int:
        """Bytes carried to the client."""
        return self._down.carried

    def cut(self) -> None:
        """End it in order (FIN), in both directions."""
        self._proxy.faults += 1
        self._up.end()
        self._down.end()

    def reset(self) -> None:
        """End it by a reset (RST), at both sides."""
        self._proxy.faults += 1
        self._reset()

    def half_close(self, way: Way) -> None:
        """End one direction."""
        self._proxy.faults += 1
        for carrier in self._carriers(way):
            carrier.end()

    def stall(self, way: Way | None = None) -> None:
        """Carry nothing in one direction or (None) both, until `resume`."""
        self._proxy.faults += 1
        for carrier in self._carriers(way):
            carrier.gate.clear()

    def drop(self, way: Way | None = None) -> None:
        """Throw away what comes in one direction or (None) both, and tell neither side."""
        self._proxy.faults += 1
        for carrier in self._carriers(way):
            carrier.drop()

    def resume(self, way: Way | None = None) -> None:
        """Go on after `stall`; nothing that was held is lost."""
        for carrier in self._carriers(way):
            carrier.gate.set()

    def __repr__(self) -> str:
        return f"<ProxyConnection {self.bytes_up} bytes up, {self.bytes_down} bytes down>"

    def _carriers(self, way: Way | None) -> tuple[_Carrier, ...]:
        return (self._up, self._down) if way is None else (self._up if way == "up" else self._down,)

    def _act(self, action: Action, way: Way) -> None:
        if action == "cut":
            self.cut()
        elif action == "reset":
            self.reset()
        elif action == "half-close":
            self.half_close(way)
        elif action == "stall":
            self.stall(way)
        else:
            self.drop(way)

    def _reset(self) -> None:
        self._over = True
        for end in self._sockets:
            _linger(end)
        self._up.drop()
        self._down.drop()
        for task in self._tasks:
            task.cancel()

    async def _carry(self) -> None:
        """Carry in both directions until both have ended, or a reset has ended them. Cancelling is a reset."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(carrier.run()) for carrier in (self._up, self._down)]
        if self._over:  # an eager task is at the end before it is kept
            self._reset()
        try:
            await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            self._reset()
            await asyncio.wait(self._tasks)
            raise


class _Carrier:
    """One direction of one connection.

    Attributes:
        carried: Bytes so far.
        gate: Closed while it is stalled.
    """

    def __init__(
        self, connection: ProxyConnection, source: socket.socket, sink: socket.socket, lane: Lane, way: Way
    ) -> None:
        self.carried = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._connection = connection
        self._source = source
        self._sink = sink
        self._lane = lane
        self._way = way
        self._dropping = False
        self._random = random.Random(lane.seed)

    def end(self) -> None:
        """Tell the receiver that this is the end, and throw away what still comes: unread, it would make a reset."""
        if not self._dropping:
            with contextlib.suppress(OSError):  # it has gone itself
                self._sink.shutdown(socket.SHUT_WR)
        self.drop()

    def drop(self) -> None:
        """Carry nothing any more."""
        self._dropping = True
        self.gate.set()

    async def run(self) -> None:
        """Carry until the sender has ended."""
        loop = asyncio.get_running_loop()
        try:
            if self._lane.at == 0:
                self._connection._act(self._lane.then, self._way)
            while True:
                await self.gate.wait()
                data = await loop.sock_recv(self._source, CHUNK)
                await asyncio.sleep(self._lane.delay)  # at least a turn: reading may never have to wait
                await self.gate.wait()
                if not data:
                    break
                await self._send(data)
            if not self._dropping:
                self.end()
        except OSError:
            self._connection._reset()  # one side has gone without a word, so the other learns it as well

    async def _send(self, data: bytes) -> None:
        loop, lane = asyncio.get_running_loop(), self._lane
        while data and not self._dropping:
            piece = data[: self._size()]
            try:
                await loop.sock_sendall(self._sink, piece)
            except OSError:
                if self._dropping:
                    return  # ended while it waited
                raise
            data = data[len(piece) :]
            self.carried += len(piece)
            if self.carried == lane.at:
                self._connection._act(lane.then, self._way)
            await asyncio.sleep(len(piece) / lane.bytes_per_second if lane.bytes_per_second is not None else 0)
            await self.gate.wait()

    def _size(self) -> int:
        """The size of the next write."""
        lane = self._lane
        sizes = [CHUNK]
        if lane.at is not None and lane.at > self.carried:
            sizes.append(lane.at - self.carried)
        if lane.pieces is not None:
            sizes.append(self._random.randint(*lane.pieces))
        if lane.bytes_per_second is not None:
            sizes.append(max(1, int(lane.bytes_per_second / STEPS)))
        return min(sizes)


def _linger(end: socket.socket) -> None:
    """Make the close of a socket a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
