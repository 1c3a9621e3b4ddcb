"""A slow receiver of large messages: its window bounds the memory, whatever the peer would send.

It takes a message only when all that it has credit for is here, so that at every moment as much waits as ever can.
"""

from __future__ import annotations

import asyncio
import sys
import time

import amqpws_async as amqp

from .memory import peak, resident
from .peers import LARGE, running

MESSAGES = 10_000
LIMIT = 64 * 2**20  # bytes that the memory may grow by


async def main(tenth: bool) -> int:
    """Runs the part; 1 if it failed."""
    count = MESSAGES // (10 if tenth else 1)
    started = time.monotonic()
    async with running("source") as url, amqp.connect(url) as connection:
        before = max(resident(), peak())
        queued = 0
        async with connection.receiver("large") as receiver:
            for number in range(count):
                while receiver.credit:
                    await asyncio.sleep(0)
                queued = max(queued, receiver.queued)
                delivery = await receiver.receive()
                assert len(delivery.body or b"") == LARGE  # type: ignore[arg-type]
                await delivery.accept()
                if number % (count // 10) == 0:
                    rate = number * LARGE / 2**20 / (time.monotonic() - started)
                    print(f"{number} of {count} messages, {rate:.0f} MiB/s, {resident() / 2**20:.1f} MiB", flush=True)
        grown = peak() - before
    print(
        f"{count} messages of {LARGE >> 20} MiB, at most {queued} waiting: {grown / 2**20:+.1f} MiB at the peak",
        flush=True,
    )
    return int(grown >= LIMIT)


if __name__ == "__main__":
    sys.exit(asyncio.run(main("--tenth" in sys.argv)))
