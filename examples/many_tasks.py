"""Many tasks share one sender, as the requests of a web service do: each waits for its own outcome alone.

python many_tasks.py ws://localhost:8672 orders 500      (AMQP_TOKEN=... for a bearer token; 500 tasks)
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import amqpws_async as amqp


async def request(sender: amqp.Sender, number: int) -> float:
    """Send one message and say how many seconds its outcome took."""
    begun = time.perf_counter()
    await sender.send(amqp.Message(b"%d" % number, message_id=f"request-{number}"))
    return time.perf_counter() - begun


async def main(url: str, address: str, count: int = 500) -> None:
    async with (
        amqp.connect(url, token=os.environ.get("AMQP_TOKEN")) as connection,
        connection.sender(address) as sender,
    ):
        # If one fails, the group cancels the others: those that still wait for credit have then sent nothing.
        async with asyncio.TaskGroup() as tasks:
            requests = [tasks.create_task(request(sender, number)) for number in range(count)]
        times = sorted(task.result() for task in requests)
    print(
        f"{count} accepted, half of them within {times[count // 2] * 1000:.1f} ms, all within {times[-1] * 1000:.1f} ms"
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
