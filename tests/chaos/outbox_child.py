"""The process that `outbox_kill` kills: ``python -m tests.chaos.outbox_child URL PATH DURABILITY RUN SEED``.

It sends numbered messages through an outbox on disk, from several tasks, and writes the name of each to its output as
soon as that was acknowledged. With RUN ``drain`` it only sends what is in the file, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
BACKOFF = amqp.Backoff(initial=0.02, maximum=0.1)


@contextlib.asynccontextmanager
async def opened(url: str, path: str, durability: Literal["normal", "full"]) -> AsyncIterator[Outbox]:
    """The outbox under test, which takes messages with the broker away, too."""
    async with amqp.Client(url, background=True, backoff=BACKOFF) as client:
        sender = client.sender(ADDRESS, on_unknown="resend", snd_settle_mode=amqp.SenderSettleMode.UNSETTLED)
        async with Outbox(sender, path, address=ADDRESS, durability=durability) as outbox:
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
    logging.getLogger("amqpws_async").setLevel(logging.ERROR)  # that the broker is gone is no news here
    asyncio.run(main(*sys.argv[1:]))  # type: ignore[arg-type]
