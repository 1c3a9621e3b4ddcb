"""This library: every way it has of sending, and its way of receiving."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import amqpws_async as amqp

from ..job import Job, percentiles
from ..mark import Stopwatch, memory
from ..shapes import Shape, make, read
from .loops import paced, run

__all__ = ["one_at_a_time", "receive", "send_from_tasks", "send_many", "transfer"]


async def transfer(senders: Sequence[amqp.Sender], shape: Shape, count: int, window: int) -> None:
    """Transfer without waiting for each outcome, over the senders in turn."""
    pending: deque[amqp.PendingDelivery] = deque()
    for number in range(count):
        pending.append(await senders[number % len(senders)].transfer(make(shape, number)))
        if len(pending) >= window:
            _check(await pending.popleft())
    while pending:
        _check(await pending.popleft())


async def send_many(sender: amqp.Sender, shape: Shape, count: int, window: int) -> None:
    """Send by `Sender.send_many`."""
    messages = (make(shape, number) for number in range(count))
    async for _, outcome in sender.send_many(messages, in_flight=window):
        _check(outcome)


async def send_from_tasks(sender: amqp.Sender, shape: Shape, count: int, tasks: int) -> None:
    """Await each `Sender.send`, in many tasks."""

    async def some(numbers: range) -> None:
        for number in numbers:
            await sender.send(make(shape, number))

    async with asyncio.TaskGroup() as group:
        for first in range(tasks):
            group.create_task(some(range(first, count, tasks)))


async def one_at_a_time(sender: amqp.Sender, shape: Shape, count: int) -> list[float]:
    """Await each `Sender.send`, in one task; the seconds that each took."""
    seconds, clock = [], time.perf_counter
    for number in range(count):
        started = clock()
        await sender.send(make(shape, number))
        seconds.append(clock() - started)
    return seconds


async def receive(receiver: amqp.Receiver, shape: Shape, count: int) -> None:
    """Receive, read and accept."""
    async for delivery in receiver:
        if not read(shape, delivery):
            raise RuntimeError(f"not what was sent: {delivery}")
        await delivery.accept()
        count -= 1
        if not count:
            return


def _check(outcome: object) -> None:
    if not isinstance(outcome, amqp.Accepted):
        raise RuntimeError(f"not accepted: {outcome}")


# --- as a process -----------------------------------------------------------------------------


async def _main(job: Job) -> None:
    works = {
        "connect": _connect,
        "connections": _connections,
        "idle": _idle,
        "receive": _receive,
    }
    await works.get(job.work, _send)(job)


@contextlib.asynccontextmanager
async def _senders(job: Job) -> AsyncIterator[list[amqp.Sender]]:
    async with amqp.connect(job.url) as connection:
        addresses = [job.address if job.links == 1 else f"{job.address}-{number}" for number in range(job.links)]
        yield [await connection.sender(address) for address in addresses]


async def _send(job: Job) -> None:
    watch, shape, more = Stopwatch(), job.what, {}
    async with _senders(job) as senders:
        sender = senders[0]
        for count in (job.warm_up, job.messages):
            watch.begin()
            if job.work == "send":
                await transfer(senders, shape, count, job.window)
            elif job.work == "send-many":
                await send_many(sender, shape, count, job.window)
            elif job.work == "tasks":
                await send_from_tasks(sender, shape, count, job.tasks)
            elif job.work == "alone":
                seconds = await one_at_a_time(sender, shape, count)
                more = percentiles(seconds) if count == job.messages else {}
            else:
                raise ValueError(f"no such work: {job.work}")
            watch.end()
    job.report(watch, **more)


async def _receive(job: Job) -> None:
    watch, shape = Stopwatch(), job.what
    async with amqp.connect(job.url) as connection:
        receiver = await connection.receiver(job.address, credit=job.window)
        if job.warm_up:
            await receive(receiver, shape, job.warm_up)
        watch.begin()
        await receive(receiver, shape, job.messages)
        watch.end()
    job.report(watch)


async def _connections(job: Job) -> None:
    """The messages shared out over many connections, each with a task."""
    watch = Stopwatch()
    async with contextlib.AsyncExitStack() as stack:
        senders = []
        for number in range(job.connections):
            connection = await stack.enter_async_context(amqp.connect(job.url))
            senders.append(await connection.sender(f"{job.address}-{number}"))
        for count in (job.warm_up, job.messages):
            watch.begin()
            async with asyncio.TaskGroup() as group:
                for sender in senders:
                    group.create_task(transfer([sender], job.what, count // job.connections, job.window))
            watch.end()
    job.report(watch)


async def _connect(job: Job) -> None:
    """From nothing to the first message's outcome, again and again."""
    watch, clock = Stopwatch(), time.perf_counter
    seconds: list[float] = []
    for number in range(-job.warm_up, job.messages):
        if number == 0:
            watch.begin()
            seconds.clear()
        started = clock()
        async with amqp.connect(job.url) as connection:
            sender = await connection.sender(job.address)
            await sender.send(make(job.what, 0))
            seconds.append(clock() - started)
    watch.end()
    job.report(watch, **percentiles(seconds))


async def _idle(job: Job) -> None:
    """Connections that do nothing: what each takes, and what its pings and empty frames cost."""
    watch, before = Stopwatch(), memory()
    async with contextlib.AsyncExitStack() as stack:
        beat = job.seconds / 5
        async for _ in paced(job.connections, beat):
            connection = amqp.connect(job.url, ping_interval=beat, idle_timeout=max(2.0, 4 * beat))
            await stack.enter_async_context(connection)
        each = (memory() - before) / job.connections
        watch.begin()
        await asyncio.sleep(job.seconds)
        watch.end()
    job.report(watch, memory_each=each)


if __name__ == "__main__":
    job = Job.from_argument()
    run(_main(job), job.loop)
