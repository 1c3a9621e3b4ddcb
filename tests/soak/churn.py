"""Opening and closing: memory stays flat, and what was closed is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import amqpws_async as amqp

from .memory import FLAT, Growth
from .peers import running

OPENS = 1000  # of each kind


async def churn(name: str, count: int, use: Callable[[], contextlib.AbstractAsyncContextManager[list[Any]]]) -> bool:
    """Opens and closes so often; whether memory and objects are as they should be."""
    growth = Growth()
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    for number in range(count):
        async with use() as opened:
            alive.update(opened)
            del opened
        if number % (count // 50) == 0:
            growth.sample(number)
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    each = growth.per_thing()
    print(f"{count} {name}: {each:+.1f} bytes per open and close, {len(alive)} objects still alive", flush=True)
    return each * count < FLAT and not alive


async def main(tenth: bool) -> int:
    """Runs the part; how many checks failed."""
    count = OPENS // (10 if tenth else 1)
    async with running("broker") as url:

        @contextlib.asynccontextmanager
        async def connections() -> AsyncIterator[list[Any]]:
            async with (
                amqp.connect(url) as connection,
                connection.session() as session,
                session.sender("churn") as sender,
                session.receiver("churn") as receiver,
            ):
                await sender.send(amqp.Message(b"x"))
                delivery = await receiver.receive()
                await delivery.accept()
                yield [connection, session, sender, receiver]

        failed = [not await churn("connections", count, connections)]
        async with amqp.connect(url) as connection:

            @contextlib.asynccontextmanager
            async def sessions() -> AsyncIterator[list[Any]]:
                async with connection.session() as session:
                    yield [session]

            @contextlib.asynccontextmanager
            async def senders() -> AsyncIterator[list[Any]]:
                async with connection.sender("churn") as sender:
                    await sender.send(amqp.Message(b"x"))
                    yield [sender]

            @contextlib.asynccontextmanager
            async def receivers() -> AsyncIterator[list[Any]]:
                async with connection.receiver("churn") as receiver:
                    delivery = await receiver.receive()
                    await delivery.accept()
                    yield [receiver]

            failed.append(not await churn("sessions", count, sessions))
            failed.append(not await churn("senders", count, senders))
            failed.append(not await churn("receivers", count, receivers))
    return sum(failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main("--tenth" in sys.argv)))
