"""The runner on a transport made by hand: when it writes, and that what goes wrong in a callback ends in a reason."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.connection import Connection
from amqpws_async.errors import ConnectionClosed, StopReason, closed_error
from amqpws_async.options import ConnectionOptions
from amqpws_async.runner import Runner
from amqpws_async.transport import ByteConsumer
from benchmarks.counterpart import Counterpart

PATIENCE = 10


class Wire:
    """A `ByteTransport` whose peer answers in the next turn, unless it is told to keep still."""

    latency = 0.0

    def __init__(self) -> None:
        self.peer = Counterpart()
        self.consumer: ByteConsumer | None = None
        self.written: list[bytes] = []
        self.still = False
        self.room = True
        self.broken: Exception | None = None
        self.ended = False

    def start(self, consumer: ByteConsumer) -> None:
        self.consumer = consumer

    def write(self, data: bytes | memoryview) -> bool:
        if self.broken is not None:
            raise self.broken
        self.written.append(bytes(data))
        if not self.still:
            asyncio.get_running_loop().call_soon(self.answer, self.written[-1])
        return self.room

    def answer(self, data: bytes) -> None:
        if (answer := self.peer.answer(data)) and self.consumer is not None and not self.ended:
            self.consumer._on_bytes(answer)

    def end(self) -> None:
        if not self.ended and self.consumer is not None:
            self.ended = True
            self.consumer._on_end(closed_error(StopReason("connection", "transport", description="cut")))

    async def close(self) -> None:
        self.end()

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self.end)


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[Connection, Wire]]:
    wire = Wire()
    made = ConnectionOptions(url="ws://localhost/", **{"idle_timeout": None} | options)
    connection = Connection(Runner(made, wire, None))
    async with asyncio.timeout(PATIENCE):
        await connection._wait_open()
        yield connection, wire
        connection._abandon()
        await connection._runner.finished()
    wire.peer.engine.free()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- when it writes ----------------------------------------------------------------------


async def test_a_send_that_is_alone_is_written_at_once() -> None:
    """Not a turn of the event loop later; so is the next, once it has its outcome."""
    async with connected() as (connection, wire):
        sender = await connection.sender("q")
        await turns()
        for _ in range(3):
            wire.written.clear()
            sending = sender.send(b"\x00Su\xa0\x01x")
            assert not wire.written
            future = sending.send(None)
            assert len(wire.written) == 1
            while not future.done():
                await asyncio.sleep(0)
            with pytest.raises(StopIteration):
                sending.send(None)
            await turns()


async def test_sends_in_company_are_written_together() -> None:
    """From the second round on, when it is known that they come in company; a single one is alone again after one."""
    async with connected() as (connection, wire):
        sender = await connection.sender("q")
        for _ in range(3):
            wire.written.clear()
            await asyncio.gather(*(sender.send(amqp.Message(b"x")) for _ in range(10)))
        assert len(wire.written) == 1
        await sender.send(amqp.Message(b"x"))
        sending = sender.send(amqp.Message(b"x"))
        wire.written.clear()
        sending.send(None)
        assert len(wire.written) == 1
        sending.close()


async def test_a_full_socket_stops_the_writing_and_room_resumes_it() -> None:
    """Nothing is handed to a transport without room, and senders wait once `send_buffer_bytes` are held."""
    async with connected(send_buffer_bytes=10_000, max_websocket_message_size=4096) as (connection, wire):
        sender = await connection.sender("q")
        await turns()
        wire.written.clear()
        wire.room, wire.still = False, True
        tasks = [asyncio.create_task(sender.send(amqp.Message(bytes(1000)))) for _ in range(50)]
        await turns(10)
        assert len(wire.written) == 1
        assert 10_000 <= connection.health().unsent_bytes < 12_000
        wire.room, wire.still = True, False
        wire.answer(wire.written[0])
        assert wire.consumer is not None
        wire.consumer._on_writable()
        await asyncio.gather(*tasks)
        assert connection.health().unsent_bytes == 0


async def test_the_end_of_a_full_socket() -> None:
    """Who waits for room, and who waits for an outcome, is told."""
    async with connected(send_buffer_bytes=10_000) as (connection, wire):
        sender = await connection.sender("q")
        await turns()
        wire.room, wire.still = False, True
        tasks = [asyncio.create_task(sender.send(amqp.Message(bytes(1000)))) for _ in range(50)]
        await turns(10)
        wire.end()
        await asyncio.wait(tasks)
        kinds = {type(task.exception()) for task in tasks}
        assert kinds == {amqp.DeliveryUnknown, ConnectionClosed}
        assert wire.consumer is not None
        wire.consumer._on_writable()  # too late, and harmless
        wire.consumer._on_bytes(b"late")


# --- what goes wrong in a callback -----------------------------------------------------------


class Fault(Exception):
    """A fault of our own making."""


def faulty(*_: object) -> Any:
    raise Fault("a fault")


@pytest.mark.parametrize("where", ["receive_data", "output", "tick"])
async def test_a_fault_becomes_the_stop_reason(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a read, in a write and in the timer: it is logged once, and never reaches the event loop's own handler."""
    async with connected() as (connection, _):
        sender = await connection.sender("q")
        monkeypatch.setattr(connection._runner.engine, where, faulty)
        if where == "tick":
            connection._runner._on_timer()
        with pytest.raises(amqp.AMQPError):
            await sender.send(amqp.Message(b"x"))
        stop = connection.stop
        assert stop is not None
        assert (stop.endpoint, stop.initiator, stop.description) == ("connection", "transport", "a fault")
        assert isinstance(stop.cause, Fault)
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            f"! {connection.container_id}: the connection failed"
        ]


async def test_a_write_that_fails_is_the_stop_reason() -> None:
    """Also where it is a task's own send that writes: the task is told that its delivery is in doubt."""
    async with connected() as (connection, wire):
        sender = await connection.sender("q")
        await turns()
        wire.broken = closed_error(StopReason("connection", "transport", description="gone"))
        with pytest.raises(amqp.DeliveryUnknown, match="gone"):
            await sender.send(amqp.Message(b"x"))
        assert connection.stop is not None
        assert connection.stop.description == "gone"


async def test_a_silent_peer_found_out_by_a_flush() -> None:
    """The engine's timers run behind the writing, so a flush may find out; it ends without the timer's help."""
    async with connected(idle_timeout=0.05) as (connection, wire):
        runner = connection._runner
        await turns()  # the timers know of all that came
        wire.still = True
        over = runner.loop.time() + 0.2
        while runner.loop.time() < over:
            pass
        if runner._timer is not None:
            runner._timer.cancel()
        runner.flush()
        await runner.finished()
        assert connection.stop is not None
        assert "silent" in str(connection.stop)


async def test_nothing_is_kept_once_it_is_over() -> None:
    """The runner and its engine can be collected."""
    async with connected() as (connection, wire):
        reference = weakref.ref(connection._runner)
        wire.end()
        await connection._runner.finished()
        await turns()
        wire.consumer = None
    del connection, wire
    gc.collect()
    assert reference() is None
