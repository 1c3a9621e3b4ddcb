"""The fault proxy between two plain sockets, where every byte is seen, and between client and embedded broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trustme

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Lane, Wire
from amqpws_async.testing.proxy import Action, Way

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

QUICK: dict[str, Any] = {"open_timeout": 5.0, "close_timeout": 1.0}


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the loop has made something true."""
    async with asyncio.timeout(5):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Waits, and not for ever."""
    async with asyncio.timeout(5):
        return await awaitable


@contextlib.asynccontextmanager
async def piped(*wires: Wire) -> AsyncIterator[tuple[FaultProxy, Streams, Streams]]:
    """A plain server behind a proxy and one connection through both: proxy, client's end, server's end."""
    accepted: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: accepted.set_result(streams), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(f"ws://127.0.0.1:{port}/", wires) as proxy:
        client = await asyncio.open_connection("127.0.0.1", proxy.port)
        behind = await soon(accepted)
        try:
            yield proxy, client, behind
        finally:
            for _, writer in (client, behind):
                writer.transport.abort()
            server.close()
            await server.wait_closed()


# --- as a plain proxy ------------------------------------------------------------------------


async def test_without_faults_it_is_not_there() -> None:
    """Bytes pass in both directions, are counted, and the end of one side is the end of the other."""
    async with piped() as (proxy, (reader, writer), (server_reader, server_writer)):
        writer.write(b"up" * 100_000)
        assert await soon(server_reader.readexactly(200_000)) == b"up" * 100_000
        server_writer.write(b"down")
        assert await soon(reader.readexactly(4)) == b"down"
        assert (proxy.accepted, proxy.bytes_up, proxy.bytes_down, proxy.faults) == (1, 200_000, 4, 0)
        [connection] = proxy.connections
        assert (connection.bytes_up, connection.bytes_down) == (200_000, 4)
        writer.write_eof()
        assert await soon(server_reader.read()) == b""
        server_writer.write(b"still")  # a half-closed connection goes on the other way
        assert await soon(reader.readexactly(5)) == b"still"
        server_writer.close()
        assert await soon(reader.read()) == b""
        await until(lambda: not proxy.connections)
        assert proxy.bytes_down == 9


async def test_a_peer_that_dies_is_dead_at_the_other_side_as_well() -> None:
    """A reset is passed on as a reset."""
    async with piped() as (proxy, (_, writer), (_, server_writer)):
        server_writer.write(b"x" * 8_000_000)  # more than anybody reads
        await until(lambda: proxy.bytes_down > 0)
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            await soon(_write_on(server_writer))
        await until(lambda: not proxy.connections)


async def _write_on(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def test_a_server_that_is_not_there() -> None:
    """The client's connection is reset, and the proxy lives on."""
    async with Broker() as broker:
        url = broker.url
    async with FaultProxy(url) as proxy:
        for _ in range(2):
            with pytest.raises(amqp.OpenError):
                await soon(amqp.connect(proxy.url, **QUICK))
        assert proxy.accepted == 2


async def test_a_url_keeps_its_path_and_scheme() -> None:
    """Only host and port are others."""
    proxy = FaultProxy("wss://broker.example/protocols/amqp10ws?a=b")
    assert proxy.url == "wss://127.0.0.1:0/protocols/amqp10ws?a=b"
    assert FaultProxy("ws://[::1]:5672/", host="::1").url == "ws://[::1]:0/"
    assert repr(proxy) == "<FaultProxy 127.0.0.1:0 to broker.example:443, closed>"
    with pytest.raises(ValueError, match="url"):
        FaultProxy("https://broker.example/")


@pytest.mark.parametrize(
    "lane",
    [{"at": -1}, {"delay": -0.1}, {"bytes_per_second": 0}, {"pieces": (0, 1)}, {"pieces": (3, 2)}],
    ids=str,
)
def test_lanes_out_of_range(lane: dict[str, Any]) -> None:
    """Numbers that make no sense are refused where they are given."""
    with pytest.raises(ValueError, match=next(iter(lane))):
        Lane(**lane)


async def test_it_starts_and_closes_again() -> None:
    """The port stays; starting twice is a mistake, closing twice is none."""
    async with Broker() as broker:
        proxy = FaultProxy(broker.url)
        with pytest.raises(RuntimeError, match="start"):
            proxy.accept()
        await proxy.start()
        with pytest.raises(RuntimeError, match="already"):
            await proxy.start()
        url = proxy.url
        connection = await amqp.connect(url, **QUICK)
        await soon(proxy.close())
        await soon(proxy.close())
        await until(lambda: connection.state is amqp.EndpointState.CLOSED)
        assert proxy.connections == []
        with pytest.raises(amqp.OpenError):
            await amqp.connect(url, **QUICK)
        async with proxy:
            assert proxy.url == url
            async with amqp.connect(url, **QUICK):
                assert "1 connections" in repr(proxy)


# --- at a byte -------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 7, 10])
async def test_cut_at_a_byte(at: int) -> None:
    """Exactly so many bytes come, then an orderly end at both sides, whatever is still written."""
    async with piped(Wire(up=Lane(at=at))) as (proxy, (reader, writer), (server_reader, server_writer)):
        server_writer.write(b"unread")  # what nobody carries any more must not turn the end into a reset
        writer.write(b"0123456789")
        assert await soon(server_reader.read()) == b"0123456789"[:at]
        writer.write(b"more")
        assert await soon(reader.read()) in (b"", b"unread")
        assert (proxy.bytes_up, proxy.faults) == (at, 1)


async def test_reset_at_a_byte() -> None:
    """Both sides are reset, not ended in order."""
    async with piped(Wire(down=Lane(at=3, then="reset"))) as (proxy, (reader, _), (server_reader, server_writer)):
        server_writer.write(b"012345")
        with pytest.raises(ConnectionResetError):
            await soon(reader.read())
        with pytest.raises(ConnectionResetError):
            await soon(server_reader.read())
        assert (proxy.bytes_down, proxy.faults) == (3, 1)


async def test_reset_at_once() -> None:
    """At byte 0 there is nothing to wait for."""
    async with FaultProxy("ws://127.0.0.1:1/", [Wire(up=Lane(at=0, then="reset"))]) as proxy, Broker() as broker:
        proxy._server = ("127.0.0.1", broker.port)
        with pytest.raises(amqp.OpenError):
            await soon(amqp.connect(proxy.url, **QUICK))
        async with amqp.connect(proxy.url, **QUICK):
            assert (proxy.accepted, proxy.faults) == (2, 1)


async def test_half_close_at_a_byte() -> None:
    """One direction ends, the other goes on."""
    lane = Lane(at=2, then="half-close")
    async with piped(Wire(up=lane)) as (_, (reader, writer), (server_reader, server_writer)):
        writer.write(b"0123")
        assert await soon(server_reader.read()) == b"01"
        server_writer.write(b"goes on")
        assert await soon(reader.readexactly(7)) == b"goes on"


async def test_stall_at_a_byte_and_resume() -> None:
    """Nothing passes, nothing is lost, the other direction goes on."""
    lane = Lane(at=4, then="stall")
    async with piped(Wire(up=lane)) as (proxy, (reader, writer), (server_reader, server_writer)):
        writer.write(b"0123456789")
        writer.write_eof()
        assert await soon(server_reader.readexactly(4)) == b"0123"
        server_writer.write(b"down")
        assert await soon(reader.readexactly(4)) == b"down"
        assert proxy.bytes_up == 4
        proxy.resume()
        assert await soon(server_reader.read()) == b"456789"


async def test_drop_at_a_byte() -> None:
    """What comes behind is taken and gone, and the end of the sender as well: the receiver sees nothing."""
    lane = Lane(at=4, then="drop")
    async with piped(Wire(up=lane)) as (proxy, (reader, writer), (server_reader, server_writer)):
        writer.write(b"0123" + bytes(1_000_000))
        assert await soon(server_reader.readexactly(4)) == b"0123"
        await soon(writer.drain())
        writer.write_eof()
        server_writer.write(b"down")
        assert await soon(reader.readexactly(4)) == b"down"
        assert proxy.bytes_up == 4
        assert not server_reader.at_eof()


async def program(url: str, done: list[str]) -> None:
    """Sends three messages and receives them, each step noted when it is done."""
    async with amqp.connect(url, **QUICK) as connection:
        done.append("connect")
        async with connection.sender("q") as sender, connection.receiver("q") as receiver:
            for _ in range(3):
                await sender.send(amqp.Message(b"1"))
                done.append("send")
                delivery = await receiver.receive()
                await delivery.accept()
    done.append("closed")


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("then", ["cut", "reset", "half-close"])
async def test_an_end_anywhere(way: Way, then: Action) -> None:
    """Wherever the conversation ends, the client says so at once, and what it was told is accepted is there."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        await program(proxy.url, [])
        total = {"up": proxy.bytes_up, "down": proxy.bytes_down}[way]
    for at in range(1, total, 61):
        lane, done = Lane(at=at, then=then), list[str]()
        wire = Wire(up=lane) if way == "up" else Wire(down=lane)
        async with Broker(close_timeout=1.0) as broker, FaultProxy(broker.url, [wire]) as proxy:
            try:
                await soon(program(proxy.url, done))
            except* amqp.AMQPError:
                pass
            assert "closed" in done or proxy.faults == 1, f"at byte {at} of {total}"
            if "send" in done:
                queue = broker.statistics().queues["q"]
                assert queue.enqueued >= done.count("send")


# --- shaped ----------------------------------------------------------------------------------


async def test_pieces() -> None:
    """All bytes come, however they are chopped up."""
    data = bytes(random.Random(1).randbytes(5000))
    async with piped(Wire(up=Lane(pieces=(1, 9), seed=5))) as (_, (_, writer), (server_reader, _)):
        writer.write(data)
        assert await soon(server_reader.readexactly(5000)) == data


async def test_a_limited_rate_and_a_delay_take_their_time() -> None:
    """A tenth of a second of bytes takes about that long, and a delay is waited for."""
    wire = Wire(up=Lane(bytes_per_second=20_000), down=Lane(delay=0.05))
    async with piped(wire) as (_, (reader, writer), (server_reader, server_writer)):
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.write(bytes(3000))
        await soon(server_reader.readexactly(3000))
        assert loop.time() - began >= 0.09
        began = loop.time()
        server_writer.write(b"late")
        await soon(reader.readexactly(4))
        assert loop.time() - began >= 0.045


# --- called for ------------------------------------------------------------------------------


async def test_wires_are_for_one_connection_each() -> None:
    """The first connections get theirs, one after the other; `wire` is for all that come later."""
    endless = (Wire(up=Lane(at=at)) for at in itertools.count(1))
    async with Broker() as broker, FaultProxy(broker.url, itertools.islice(endless, 3)) as proxy:
        for count in range(1, 4):
            with pytest.raises(amqp.OpenError):
                await soon(amqp.connect(proxy.url, **QUICK))
            assert (proxy.accepted, proxy.bytes_up) == (count, count * (count + 1) // 2)
        async with amqp.connect(proxy.url, **QUICK):
            pass
        proxy.wire = Wire(down=Lane(at=0))
        with pytest.raises(amqp.OpenError):
            await soon(amqp.connect(proxy.url, **QUICK))
        assert proxy.faults == 4


async def test_refuse_and_accept() -> None:
    """New connections are refused by TCP itself, those that are there go on, and the port is kept."""
    async with (
        Broker() as broker,
        FaultProxy(broker.url) as proxy,
        amqp.connect(proxy.url, **QUICK) as connection,
        connection.sender("q") as sender,
    ):
        for _ in range(2):
            proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(amqp.OpenError):
            await amqp.connect(proxy.url, **QUICK)
        await soon(sender.send(amqp.Message(b"x")))
        for _ in range(2):
            proxy.accept()
        async with amqp.connect(proxy.url, **QUICK):
            assert len(proxy.connections) == 2


@pytest.mark.parametrize("end", ["cut", "reset", "half_close"])
async def test_an_end_puts_what_is_in_flight_in_doubt(end: str) -> None:
    """A send whose outcome cannot come fails at once, the rest with it, and a new connection is well."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        connection = await amqp.connect(proxy.url, **QUICK)
        sender, receiver = await connection.sender("q"), await connection.receiver("other")
        proxy.stall("down")
        pending = await sender.transfer(amqp.Message(b"1"))
        waiting = asyncio.ensure_future(receiver.receive())
        await until(lambda: broker.statistics().queues["q"].enqueued == 1)
        if end == "half_close":
            proxy.half_close("down")
        else:
            getattr(proxy, end)()
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            await soon(pending)
        assert caught.value.stop.initiator == "transport"
        with pytest.raises(amqp.ConnectionClosed):
            await soon(waiting)
        with pytest.raises(amqp.ConnectionClosed) as lost:
            await soon(sender.send(amqp.Message(b"2")))
        assert lost.value.sent is False
        await connection.close()
        await until(lambda: not proxy.connections)
        async with amqp.connect(proxy.url, **QUICK) as again, again.receiver("q") as inbox:
            assert (await soon(inbox.receive())).body == b"1"


async def test_a_black_hole_ends_with_the_idle_timeout() -> None:
    """Where nothing comes any more, and nobody says why, the client's own timers end it."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        connection = await amqp.connect(proxy.url, idle_timeout=0.2, ping_interval=None, close_timeout=0.1)
        sender = await connection.sender("q")
        proxy.drop()
        pending = await sender.transfer(amqp.Message(b"1"))
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            await soon(pending)
        assert caught.value.stop.condition == "amqp:resource-limit-exceeded"
        assert broker.statistics().queues["q"].enqueued == 0


async def test_a_connection_for_itself() -> None:
    """A cut of one is none of the others, also while it waits for somebody to read."""
    async with piped() as (proxy, (reader, writer), (server_reader, server_writer)):
        async with Broker() as broker, FaultProxy(broker.url) as other:
            writer.write(bytes(20_000_000))
            stuck = -1
            while stuck != proxy.bytes_up:  # nobody reads there
                stuck = proxy.bytes_up
                await asyncio.sleep(0.05)
            assert repr(proxy.connections[0]) == f"<ProxyConnection {stuck} bytes up, 0 bytes down>"
            async with amqp.connect(other.url, **QUICK) as connection:
                proxy.connections[0].cut()
                assert len(await soon(server_reader.read())) >= stuck
                assert await soon(reader.read()) == b""
                assert connection.health().ok
        server_writer.close()


async def test_a_port_that_is_taken() -> None:
    """It says so, and can be started once the port is free."""
    async with FaultProxy("ws://127.0.0.1:1/") as first:
        second = FaultProxy("ws://127.0.0.1:1/", port=first.port)
        with pytest.raises(OSError, match=r"in use"):
            await second.start()
        await first.close()
        async with second:
            assert second.port == first.port


async def test_a_stall_is_waited_out() -> None:
    """Within the timeouts a network that hangs for a while loses nothing."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        async with amqp.connect(proxy.url, **QUICK) as connection, connection.sender("q") as sender:
            proxy.stall()
            pending = await sender.transfer(amqp.Message(b"1"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pending
            proxy.resume()
            await soon(sender.send(amqp.Message(b"2")))
        assert broker.statistics().queues["q"].depth == 2


async def test_delivered_and_not_settled_comes_again() -> None:
    """The network goes while a delivery is in hand: settling it raises, and it is delivered again, marked."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        connection = await amqp.connect(proxy.url, **QUICK)
        async with connection.sender("q") as sender:
            await sender.send(amqp.Message(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        proxy.connections[0].cut()
        with pytest.raises(amqp.ConnectionClosed):
            await soon(receiver.receive())
        with pytest.raises(amqp.SettlementLost):
            await delivery.accept()
        await connection.close()
        async with amqp.connect(proxy.url, **QUICK) as again, again.receiver("q") as inbox:
            delivery = await soon(inbox.receive())
            assert (delivery.body, delivery.message.delivery_count) == (b"1", 1)
            await delivery.accept()


async def test_tls_passes_through_and_is_slow() -> None:
    """A slow TLS handshake is waited for within open_timeout, and no longer."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with Broker(ssl=context) as broker:
        wires = [Wire(down=Lane(delay=0.02, pieces=(1, 40))), Wire(down=Lane(delay=30))]
        async with FaultProxy(broker.url, wires) as proxy:
            async with amqp.connect(proxy.url, ssl=trust, **QUICK) as connection:
                assert connection.health().ok
            with pytest.raises(TimeoutError, match="open_timeout"):
                await amqp.connect(proxy.url, ssl=trust, open_timeout=0.2)
