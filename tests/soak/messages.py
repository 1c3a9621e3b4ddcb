"""Sending and receiving: memory stays flat."""

from __future__ import annotations

import asyncio
import sys
import time

import amqpws_async as amqp

from .memory import FLAT, Growth
from .peers import running

MESSAGES = 1_000_000
SAMPLES = 200
LIMIT = 1.0  # bytes per message that the memory may grow by


async def main(tenth: bool) -> int:
    """Runs the part; 1 if it failed."""
    count = MESSAGES // (10 if tenth else 1)
    growth = Growth()
    started = time.monotonic()

    async def send(sender: amqp.Sender) -> None:
        messages = (amqp.Message(b"x" * 100, message_id=f"m-{n}") for n in range(count))
        async for _, outcome in sender.send_many(messages):
            assert isinstance(outcome, amqp.Accepted)

    async def receive(receiver: amqp.Receiver) -> None:
        for number in range(count):
            delivery = await receiver.receive()
            assert delivery.message.message_id == f"m-{number}"
            await delivery.accept()
            if number % (count // SAMPLES) == 0:
                size = growth.sample(number)
            if number % (count // 10) == 0:
                rate = number / (time.monotonic() - started)
                print(f"{number} of {count} messages, {rate:.0f}/s, {size / 2**20:.1f} MiB", flush=True)

    async with (
        running("broker") as url,
        amqp.connect(url) as connection,
        connection.sender("soak") as sender,
        connection.receiver("soak") as receiver,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(send(sender))
        tasks.create_task(receive(receiver))
    each = growth.per_thing()
    print(f"{count} messages: {each:+.3f} bytes per message over the last four fifths", flush=True)
    return int(each >= (FLAT / count if tenth else LIMIT))


if __name__ == "__main__":
    sys.exit(asyncio.run(main("--tenth" in sys.argv)))
