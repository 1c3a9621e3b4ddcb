"""How deliveries end: every outcome from both sides, and what a broker makes of it.

python settlement.py ws://localhost:8672 outcomes      (AMQP_TOKEN=... for a bearer token)
"""

from __future__ import annotations

import asyncio
import os
import sys

import amqpws_async as amqp

SUBJECTS = ("accept", "reject", "release", "fail", "elsewhere")


async def settle(delivery: amqp.Delivery, first: bool) -> str:
    """Settle by what the subject says; what comes a second time is accepted."""
    subject = delivery.message.subject
    if subject == "reject":
        await delivery.reject("amqp:decode-error", "not an order", {"field": "id"})
        return "rejected: as a rule a dead letter now, some brokers try a few times more"
    if first and subject == "release":
        await delivery.release()
        return "released: anyone may have it, as it was"
    if first and subject == "fail":
        await delivery.modify(delivery_failed=True, message_annotations={"x-opt-reason": "no stock"})
        return "modified: given back, one failed attempt counted"
    if first and subject == "elsewhere":
        await delivery.modify(undeliverable_here=True)
        return "modified: given back, and not for this receiver again"
    await delivery.accept()
    return "accepted: done"


async def receive(connection: amqp.Connection, address: str, seen: set[str], count: int) -> None:
    """Take `count` deliveries by a link of its own."""
    async with connection.receiver(address) as receiver:
        for _ in range(count):
            delivery = await receiver.receive()
            message = delivery.message
            subject = message.subject or ""
            result = await settle(delivery, first=subject not in seen)
            print(f"{subject} (delivery-count {message.delivery_count}) {result}")
            seen.add(subject)


async def main(url: str, address: str) -> None:
    async with amqp.connect(url, token=os.environ.get("AMQP_TOKEN")) as connection:
        async with connection.sender(address) as sender:
            for subject in SUBJECTS:
                outcome = await sender.send(amqp.Message(b"order", subject=subject))
                print(f"{subject} sent: {outcome}")
            # Fire and forget: the peer does not answer, so there is no outcome.
            print("pre-settled:", await sender.send(amqp.Message(b"order", subject="accept"), settled=True))

        # A sender hears of a refusal by an exception that has the outcome. Some brokers detach the link instead, and
        # then the fate of what was under way is unknown.
        async with connection.sender(None) as relay:
            try:
                await relay.send(amqp.Message(b"to nobody"))
            except amqp.DeliveryFailed as error:
                print(f"not accepted: {type(error).__name__} {error.outcome}")
            except amqp.DeliveryUnknown as error:
                print(f"not known: {error.stop}")

        seen: set[str] = set()
        await receive(connection, address, seen, count=8)  # six messages, two of which come back
        await receive(connection, address, seen, count=1)  # the third was for another receiver


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
