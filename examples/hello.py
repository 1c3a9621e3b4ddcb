"""Send and receive with no broker at hand: the embedded one runs in this process.

python hello.py
"""

from __future__ import annotations

import asyncio

import amqpws_async as amqp
from amqpws_async.testing import Broker


async def main() -> None:
    async with Broker() as broker, amqp.connect(broker.url) as connection:
        async with connection.sender("greetings") as sender:
            for text in (b"hello", b"world"):
                await sender.send(amqp.Message(text))  # returns once the broker has accepted it

        async with connection.receiver("greetings") as receiver:
            for _ in range(2):
                delivery = await receiver.receive()
                print(delivery.body)
                await delivery.accept()


if __name__ == "__main__":
    asyncio.run(main())
