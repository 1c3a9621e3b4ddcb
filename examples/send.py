"""The three ways to send: wait for the outcome, wait for it later, or keep many in flight.

python send.py ws://localhost:8672 orders      (AMQP_TOKEN=... for a bearer token)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator

import amqpws_async as amqp


def order(number: int) -> amqp.Message:
    return amqp.Message(
        json.dumps({"id": number}).encode(),
        durable=True,  # the broker is to keep it across its own restart
        message_id=f"order-{number}",
        content_type="application/json",
        application_properties={"region": "EU"},
    )


def orders(start: int, count: int) -> Iterator[amqp.Message]:
    for number in range(start, start + count):
        yield order(number)


async def main(url: str, address: str) -> None:
    async with (
        amqp.connect(url, token=os.environ.get("AMQP_TOKEN")) as connection,
        connection.sender(address) as sender,
    ):
        # One: returns when the broker has accepted the message, raises when it has not.
        try:
            await sender.send(order(1))
            print("order 1 accepted")
        except amqp.DeliveryFailed as error:
            print("the broker did not take it:", error.outcome)
        except amqp.DeliveryUnknown as error:
            print("it was sent and may or may not have arrived:", error.stop)

        # Two steps: `transfer` waits for credit alone, the outcome comes when it is asked for.
        pending = await sender.transfer(order(2))
        print("order 2 is on its way")
        print("order 2:", await pending)

        # Many: a bounded number in flight, each message with its outcome, in order.
        accepted = 0
        async for message, outcome in sender.send_many(orders(3, 998), in_flight=200):
            if isinstance(outcome, amqp.Accepted):
                accepted += 1
            else:
                print(message, outcome)
        print(accepted, "more accepted")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
