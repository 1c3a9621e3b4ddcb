"""SAP Event Mesh, the whole way: a queue that subscribes to a topic, events published, received and settled.

python event_mesh.py key.json [COUNT]      (without a file: the service that the application is bound to)

The service key needs the management part ("options": {"management": true} in the service descriptor) for the queue;
without it, make queue and subscription in the cockpit and leave `prepare` out.
"""

from __future__ import annotations

import asyncio
import json
import sys

from amqpws_async import Accepted, Message, eventmesh
from amqpws_async.eventmesh.management import ManagementClient

QUEUE = "${namespace}/orders"
TOPIC = "${namespace}/ce/orders/created"  # a queue may also subscribe to a pattern: ${namespace}/ce/orders/*


async def prepare(key: eventmesh.ServiceKey) -> None:
    async with ManagementClient(key) as management:
        await management.create_queue(QUEUE)
        await management.subscribe(QUEUE, TOPIC)


async def publish(mesh: eventmesh.EventMeshConnection, count: int) -> None:
    orders = [
        Message(json.dumps({"id": number}).encode(), message_id=f"order-{number}", content_type="application/json")
        for number in range(count)
    ]
    async with mesh.sender(f"topic:{TOPIC}") as sender:
        async for order, outcome in sender.send_many(orders):
            if not isinstance(outcome, Accepted):
                print(f"{order!r}: {outcome!r}")
    print(f"published {count}")


async def consume(mesh: eventmesh.EventMeshConnection, count: int) -> None:
    async with mesh.receiver(f"queue:{QUEUE}") as receiver:
        for _ in range(count):
            delivery = await receiver.receive()
            print("received", delivery.message.message_id, "from", delivery.message.to)
            await delivery.accept()


async def main(path: str | None, count: int) -> None:
    key = await asyncio.to_thread(eventmesh.ServiceKey.load, path)  # a file, or what the platform binds
    await prepare(key)
    async with eventmesh.connect(key) as mesh:
        await publish(mesh, count)
        await consume(mesh, count)


if __name__ == "__main__":
    file, number = (*sys.argv[1:], None, None)[:2]
    asyncio.run(main(file, int(number or 3)))
