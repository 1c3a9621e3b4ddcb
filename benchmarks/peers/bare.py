"""``websockets`` without AMQP: what the bytes alone cost, and how quick an echo is."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.parse
from typing import Any

import proton
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ..job import Job, percentiles
from ..mark import Stopwatch, memory
from ..shapes import make
from .loops import paced, run

MESSAGE_SIZE = 32768  # bytes of a WebSocket message, at most


async def _main(job: Job) -> None:
    works = {"alone": _echo, "send": _send, "receive": _receive, "idle": _idle, "idle-proton": _idle_proton}
    await works[job.work](job)


def _connect(job: Job, path: str, **options: Any) -> connect:
    url = urllib.parse.urljoin(job.url, path)
    return connect(url, compression=None, max_size=None, **options)


async def _echo(job: Job) -> None:
    data, watch, clock = make(job.what, 0).encode(), Stopwatch(), time.perf_counter
    seconds: list[float] = []
    async with _connect(job, "/echo") as socket:
        for number in range(-job.warm_up, job.messages):
            if number == 0:
                watch.begin()
                seconds.clear()
            started = clock()
            await socket.send(data)
            await socket.recv()
            seconds.append(clock() - started)
        watch.end()
    job.report(watch, **percentiles(seconds))


async def _send(job: Job) -> None:
    data, watch = make(job.what, 0).encode(), Stopwatch()
    async with _connect(job, "/sink") as socket:
        for count in (job.warm_up, job.messages):
            watch.begin()
            for _ in range(count):
                for start in range(0, len(data), MESSAGE_SIZE):
                    await socket.send(data[start : start + MESSAGE_SIZE])
            await socket.send("done")
            await socket.recv()
            watch.end()
    job.report(watch)


async def _receive(job: Job) -> None:
    size, watch = len(make(job.what, 5).encode()), Stopwatch()
    async with _connect(job, f"/source/{job.shape}") as socket:
        for count in (job.warm_up, job.messages):
            left = count * size
            watch.begin()
            while left > 0:
                left -= len(await socket.recv())
            watch.end()
        socket.transport.abort()
    job.report(watch)


async def _idle(job: Job) -> None:
    """Idle connections that exchange the pings and empty frames that ours do."""
    watch, before, beat = Stopwatch(), memory(), job.seconds / 5
    async with contextlib.AsyncExitStack() as stack:
        path = f"/beat?seconds={beat}"
        tasks: list[asyncio.Task[None]] = []
        async for _ in paced(job.connections, beat):
            socket = await stack.enter_async_context(_connect(job, path, ping_interval=beat))
            tasks += asyncio.create_task(_read(socket)), asyncio.create_task(_beat(socket, 2 * beat))
        each = (memory() - before) / job.connections
        watch.begin()
        await asyncio.sleep(job.seconds)
        watch.end()
    await asyncio.wait(tasks)
    job.report(watch, memory_each=each)


async def _read(socket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for _ in socket:
            pass


async def _beat(socket: ClientConnection, seconds: float) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await asyncio.sleep(seconds)
            await socket.send(bytes(8))


async def _idle_proton(job: Job) -> None:
    """Idle connections, each with an engine of proton's that is open; nothing beats but the pings."""
    watch, before, beat, kept = Stopwatch(), memory(), job.seconds / 5, []
    async with contextlib.AsyncExitStack() as stack:
        async for _ in paced(job.connections, beat):
            socket = await stack.enter_async_context(
                _connect(job, "/100b", ping_interval=beat, subprotocols=[Subprotocol("amqp")])
            )
            kept.append(await _open(socket))
        each = (memory() - before) / job.connections
        watch.begin()
        await asyncio.sleep(job.seconds)
        watch.end()
        for socket, *_ in kept:
            socket.transport.abort()
    job.report(watch, memory_each=each)


async def _open(socket: ClientConnection) -> tuple[ClientConnection, proton.Connection, proton.Transport]:
    connection, transport, collector = proton.Connection(), proton.Transport(), proton.Collector()
    connection.collect(collector)
    connection.container, connection.hostname = "bare", "localhost"
    transport.sasl().allowed_mechs("ANONYMOUS")
    transport.max_frame_size = 65536
    transport.bind(connection)
    connection.open()
    while not connection.state & proton.Endpoint.REMOTE_ACTIVE:
        while (size := transport.pending()) > 0:
            await socket.send(transport.peek(size) or b"")
            transport.pop(size)
        transport.push(await socket.recv(decode=False))
    return socket, connection, transport


if __name__ == "__main__":
    job = Job.from_argument()
    run(_main(job), job.loop)
