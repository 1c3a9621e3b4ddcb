"""A FastAPI service on SAP Event Mesh: each POST publishes a CloudEvent, a queue is consumed in the background.

uvicorn fastapi_event_mesh:app      (the key: the service bound to the application, or the file in EVENT_MESH_KEY)

It starts before Event Mesh can be reached, and outlives the loss of its connection: /ready answers 503 meanwhile, and a
POST waits a few seconds before it does. The queue and its subscription are the operator's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from cloudevents.core.v1.event import CloudEvent
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError

from amqpws_async import AMQPError, Delivery, DeliveryFailed, eventmesh
from amqpws_async.eventmesh import cloudevents

QUEUE = os.environ.get("EVENT_MESH_QUEUE", "queue:${namespace}/orders")
TOPIC = os.environ.get("EVENT_MESH_TOPIC", "topic:${namespace}/ce/orders/created")
PUBLISH_TIMEOUT = 3.0  # seconds that a POST waits for Event Mesh
RETRY_AFTER = "5"  # seconds after which who was told 503 may try again
logger = logging.getLogger(__name__)


class Order(BaseModel):
    id: int
    item: str


@dataclass
class Service:
    """What lives as long as the application."""

    mesh: eventmesh.EventMeshClient
    consumer: asyncio.Task[None] = field(init=False)
    handled: list[Order] = field(default_factory=list)

    async def consume(self) -> None:
        """Handle orders, through outages, until the client is closed."""
        async with self.mesh.receiver(QUEUE, credit=50) as receiver:
            await receiver.process(self.handle, concurrency=10, timeout=30)

    async def handle(self, delivery: Delivery) -> None:
        """Handle one order: returning accepts it, and raising rejects it.

        After as many attempts as the queue allows it is in the dead message queue.
        """
        try:
            order = Order.model_validate(cloudevents.from_message(delivery.message).get_data())
        except (cloudevents.NotACloudEvent, ValidationError) as error:
            logger.warning("rejected: %s", error)
            await delivery.reject("amqp:decode-error", "not an order")  # with a reason, and no traceback in the log
        else:
            self.handled.append(order)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with eventmesh.client(os.environ.get("EVENT_MESH_KEY"), background=True) as mesh:
        app.state.service = running = Service(mesh)
        running.consumer = asyncio.create_task(running.consume(), name="consume orders")
        try:
            yield
        finally:
            await mesh.close()  # handlers may finish what they have, within close_timeout
            await asyncio.wait([running.consumer])
            if error := running.consumer.exception():
                logger.error("consuming had stopped: %s", error)


app = FastAPI(lifespan=lifespan)


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


@app.post("/orders", status_code=202)
async def create(order: Order, service: Annotated[Service, Depends(service)]) -> Order:
    """Answer once Event Mesh has the event.

    One that took too long may still arrive, and again by the POST that repeats it: consumers can tell by its id.
    """
    event = CloudEvent(
        {"id": str(order.id), "source": "/example/shop", "type": "example.orders.created.v1", "specversion": "1.0"},
        order.model_dump(),
    )
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT), service.mesh.sender(TOPIC, on_unknown="resend") as sender:
            await sender.send(cloudevents.to_message(event))
    except DeliveryFailed as error:
        raise HTTPException(502, str(error)) from error  # Event Mesh said no
    except (AMQPError, TimeoutError) as error:
        text = f"Event Mesh cannot be reached: {error or service.mesh.health().error}"
        raise HTTPException(503, text, {"Retry-After": RETRY_AFTER}) from error
    return order


@app.get("/orders")
async def handled(service: Annotated[Service, Depends(service)]) -> list[Order]:
    return service.handled


@app.get("/ready")
async def ready(response: Response, service: Annotated[Service, Depends(service)]) -> dict[str, Any]:
    """Answer 200 while there is a connection and orders are consumed, else 503."""
    ok = service.mesh.ready() and not service.consumer.done()
    if not ok:
        response.status_code = 503
    found = service.mesh.health()
    return {"ok": ok, "client": found.state.value, "error": str(found.error) if found.error else None}
