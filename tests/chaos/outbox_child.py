"""The process that `outbox_kill` kills: ``python -m tests.chaos.outbox_child URL PATH DURABILITY RUN SEED``.

It sends numbered messages through an outbox on disk, from several tasks, and writes the name of each to its output as
soon as that was acknowledged. With RUN ``drain`` it only sends what is in the file, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator
from typing import Literal

import amqpws_async as amqp
from amqpws_async.client.outbox import Outbox

ADDRESS = "outbox-kill"
TASKS = 16
SIZES = (10, 100, 1000, 20_000)  # bytes of a body
PAUSE = 0.004  # seconds at most between two messages of a task
RETRY = 0.02  # seconds between attempts to connect


class ReconnectingSender:
    """A sender that connects again whenever its connection is gone.

    What was in doubt then is the outbox's to send again, and first: so the transfer that finds the link gone fails, and
    only the next one makes another.
    """

    address = ADDRESS
    stop = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: amqp.Connection | None = None
        self._sender: amqp.Sender | None = None

    async def transfer(self, message: amqp.Message | bytes, /) -> amqp.PendingDelivery:
        """Sends once there is a link."""
        sender = self._sender or await self._connect()
        try:
            return await sender.transfer(message)
        except amqp.EndpointClosed:
            self._sender = None
            raise

    async def _connect(self) -> amqp.Sender:
        await self.close()
        while True:
            try:
                self._connection = await amqp.connect(self._url)
                self._sender = await self._connection.sender(ADDRESS)
                return self._sender
            except (amqp.AMQPError, OSError, TimeoutError):
                await asyncio.sleep(RETRY)

    async def close(self) -> None:
        """Closes the connection there is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextlib.asynccontextmanager
async def opened(url: str, path: str, durability: Literal["normal", "full"]) -> AsyncIterator[Outbox]:
    """The outbox under test."""
    async with Outbox(ReconnectingSender(url), path, durability=durability) as outbox:
        yield outbox


async def send(outbox: Outbox, run: str, task: int, chance: random.Random) -> None:
    """Sends one numbered message after the other, for ever; each name is written when it was acknowledged."""
    number = 0
    while True:
        number += 1
        name = f"{run}.{task}.{number}"
        body = bytes(chance.choice(SIZES))
        wait: Literal["stored", "settled"] = "settled" if chance.random() < 0.1 else "stored"
        await outbox.send(amqp.Message(body, subject=name), wait=wait)
        os.write(sys.stdout.fileno(), f"{name}\n".encode())
        await asyncio.sleep(chance.random() * PAUSE)


async def main(url: str, path: str, durability: Literal["normal", "full"], run: str, seed: str) -> None:
    """Sends until killed, or until all is sent."""
    async with opened(url, path, durability) as outbox:
        if run == "drain":
            await outbox.flush()
            return
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(send(outbox, run, task, random.Random(f"{seed} {run} {task}")))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))  # type: ignore[arg-type]
