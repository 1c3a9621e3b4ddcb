"""What is measured offline: each of these runs the real client, or the floor, on a wire without a network."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from unittest import mock

import amqpws_async as amqp

from ..mark import Mark, Unmarked
from ..peers import ours
from ..peers.raw_floor import Floor
from ..shapes import SHAPES, Shape, make, read
from .wire import Recorder, Replay

__all__ = ["WORK", "Work"]

Wire = Recorder | Replay
TASKS: Final = 100


@dataclass(frozen=True, slots=True)
class Work:
    """Something to measure.

    Attributes:
        title: How it is shown.
        shape: What is sent or received.
        run: Does it, a number of times, on a wire.
        floor: The name of the work that its figure is divided by.
        batch: Deliveries that one disposition of the peer settles.
        messages: How often it is done in one round, a multiple of half the window: a round ends as it began.
        window: How many are in flight.
    """

    title: str
    shape: Shape
    run: Callable[[Work, Wire, int, Mark], Awaitable[None]]
    floor: str
    batch: int = 10
    messages: int = 10000
    window: int = 1000

    @property
    def warm_up(self) -> int:
        """Messages after which a receiver's window, which begins small, has grown: a multiple of half the window."""
        return 5 * self.window // 2


@contextlib.asynccontextmanager
async def _connected(wire: Wire) -> AsyncIterator[amqp.Connection]:
    """A connection over a wire, which is cut at the end: no answer to a close is recorded."""

    async def open_wire(options: object, token: object) -> Wire:
        return wire

    with mock.patch("amqpws_async.connection.open_websocket", open_wire):
        connection = await amqp.connect("ws://localhost/", container_id="offline", idle_timeout=None)
    try:
        yield connection
    finally:
        wire.abort()
        await connection.close()


# --- this library ---------------------------------------------------------------------------


async def _transfer(work: Work, wire: Wire, count: int, mark: Mark, *, links: int = 1) -> None:
    async with _connected(wire) as connection:
        senders = [await connection.sender("queue", name=f"sender-{number}") for number in range(links)]
        mark.begin()
        await ours.transfer(senders, work.shape, count, work.window)
        mark.end()


async def _send_many(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    async with _connected(wire) as connection:
        sender = await connection.sender("queue", name="sender")
        mark.begin()
        await ours.send_many(sender, work.shape, count, work.window)
        mark.end()


async def _tasks(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    async with _connected(wire) as connection:
        sender = await connection.sender("queue", name="sender")
        mark.begin()
        await ours.send_from_tasks(sender, work.shape, count, TASKS)
        mark.end()


async def _one_at_a_time(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    async with _connected(wire) as connection:
        sender = await connection.sender("queue", name="sender")
        mark.begin()
        await ours.one_at_a_time(sender, work.shape, count)
        mark.end()


async def _receive(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    async with _connected(wire) as connection:
        receiver = await connection.receiver("queue", name="receiver", credit=work.window)
        await ours.receive(receiver, work.shape, work.warm_up)
        mark.begin()
        await ours.receive(receiver, work.shape, count)
        mark.end()


# --- the floor ------------------------------------------------------------------------------


async def _floor_send(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    floor = Floor(wire)
    await floor.open("queue", receive=False)
    await floor.send(
        count,
        mark,
        body=work.shape.body,
        encoded=make(work.shape, 5).encode() if work.shape.rich else b"",
        window=work.window,
    )
    await floor.stop()


async def _floor_receive(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    floor = Floor(wire)
    await floor.open("queue", receive=True)
    await floor.receive(work.warm_up, Unmarked(), window=work.window)
    await floor.receive(count, mark, window=work.window, grant=False)
    await floor.stop()


# --- the codec alone ---------------------------------------------------------------------------


async def _encode(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    mark.begin()
    for number in range(count):
        make(work.shape, number).encode()
    mark.end()


async def _decode(work: Work, wire: Wire, count: int, mark: Mark) -> None:
    raw = make(work.shape, 5).encode()

    class Arrived:
        """As much of a delivery as is read."""

        def __init__(self) -> None:
            self.message = amqp.Message.decode(raw)
            self.body = self.message.body

    arrived: Any = Arrived
    mark.begin()
    for _ in range(count):
        read(work.shape, arrived())
    mark.end()


def _work() -> Iterator[tuple[str, Work]]:
    small, rich = SHAPES["100b"], SHAPES["1k"]
    yield "floor-send", Work("floor: send 100 B", small, _floor_send, "floor-send")
    yield "transfer", Work("transfer() pipelined", small, _transfer, "floor-send")
    yield "transfer-1", Work("  one message a disposition", small, _transfer, "floor-send", batch=1)
    yield "send-many", Work("send_many()", small, _send_many, "floor-send")
    yield "tasks", Work("send() from 100 tasks", small, _tasks, "floor-send")
    yield "alone", Work("send() one at a time", small, _one_at_a_time, "floor-send", batch=1, messages=2000)
    yield "links", Work("transfer() over 500 links in turn", small, partial(_transfer, links=500), "floor-send")
    yield "floor-receive", Work("floor: receive 100 B", small, _floor_receive, "floor-receive")
    yield "receive", Work("async for, body, accept()", small, _receive, "floor-receive")
    yield "floor-send-1k", Work("floor: send 1 KiB, encoded before", rich, _floor_send, "floor-send-1k")
    yield "transfer-1k", Work("transfer() 1 KiB with id, type, properties", rich, _transfer, "floor-send-1k")
    yield "encode-1k", Work("  Message() and encode() alone", rich, _encode, "floor-send-1k")
    yield "floor-receive-1k", Work("floor: receive 1 KiB, not decoded", rich, _floor_receive, "floor-receive-1k")
    yield "receive-1k", Work("async for, body, id, property, accept()", rich, _receive, "floor-receive-1k")
    yield "decode-1k", Work("  decode and read alone", rich, _decode, "floor-receive-1k")
    for shape, window in ((SHAPES["64k"], 64), (SHAPES["1m"], 8)):
        large = partial(Work, shape=shape, messages=4 * window, window=window)
        for verb, real, bare in (("send", _transfer, _floor_send), ("receive", _receive, _floor_receive)):
            floor = f"floor-{verb}-{shape.name}"
            yield floor, large(f"floor: {verb} {shape.title}", run=bare, floor=floor)
            name = "transfer" if verb == "send" else verb
            yield f"{name}-{shape.name}", large(f"{name} {shape.title}", run=real, floor=floor)


WORK: Final[dict[str, Work]] = dict(_work())
