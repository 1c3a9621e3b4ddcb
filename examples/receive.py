"""Receive until nothing comes for a while; what cannot be understood is rejected.

python receive.py ws://localhost:8672 orders 5      (AMQP_TOKEN=... for a bearer token; 5 is seconds)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import amqpws_async as amqp


async def handle(delivery: amqp.Delivery) -> bool:
    """Settle one delivery: accept it when the work is done, reject it when it will never be."""
    body = delivery.body
    try:
        if not isinstance(body, bytes):
            raise ValueError("the body is not one data section")
        order = json.loads(body)
    except ValueError as error:
        await delivery.reject("amqp:decode-error", str(error))  # as a rule it goes to a dead-letter queue
        return False
    if order["id"] % 100 == 0:
        print("order", order["id"], delivery.message.application_properties)
    await delivery.accept()
    return True


async def main(url: str, address: str, patience: float = 5.0) -> None:
    accepted = rejected = 0
    async with (
        amqp.connect(url, token=os.environ.get("AMQP_TOKEN")) as connection,
        connection.receiver(address, credit=100) as receiver,
    ):
        try:
            while True:
                async with asyncio.timeout(patience):  # a timeout loses nothing: the link stays attached
                    delivery = await receiver.receive()
                if await handle(delivery):
                    accepted += 1
                else:
                    rejected += 1
        except TimeoutError:
            print(f"nothing for {patience} s: {accepted} accepted, {rejected} rejected")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
