"""A FastAPI service on SAP Event Mesh: each POST publishes a CloudEvent, a background task consumes a queue.

uvicorn fastapi_event_mesh:app      (the key: the service bound to the application, or the file in EVENT_MESH_KEY)

One connection lives as long as the application, with a token that is renewed ahead of time. If it is lost, /ready
answers 503, so that the platform starts the instance anew. The queue and its subscription are the operator's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from cloudevents.core.v1.event import CloudEvent
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError

from amqpws_async import AMQPError, DeliveryFailed, Receiver, eventmesh
from amqpws_async.eventmesh import cloudevents

QUEUE = os.environ.get("EVENT_MESH_QUEUE", "queue:${namespace}/orders")
TOPIC = os.environ.get("EVENT_MESH_TOPIC", "topic:${namespace}/ce/orders/created")
logger = logging.getLogger(__name__)


class Order(BaseModel):
    id: int
    item: str


@dataclass
class Service:
    """What lives as long as the application."""

    mesh: eventmesh.EventMeshConnection
    sender: eventmesh.EventMeshSender
    consumer: asyncio.Task[None]
    handled: list[Order] = field(default_factory=list)


async def consume(receiver: Receiver, handled: list[Order]) -> None:
    """Handle orders until the receiver ends; what is none is rejected, so that it reaches the dead-message queue."""
    async for delivery in receiver:
        try:
            event = cloudevents.from_message(delivery.message)
            order = Order.model_validate(event.get_data())
        except (cloudevents.NotACloudEvent, ValidationError) as error:
            logger.warning("rejected: %s", error)
            await delivery.reject("amqp:decode-error", "not an order")
            continue
        handled.append(order)
        await delivery.accept()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with (
        eventmesh.connect(os.environ.get("EVENT_MESH_KEY")) as mesh,
        mesh.sender(TOPIC) as sender,
        mesh.receiver(QUEUE, credit=50) as receiver,
    ):
        handled: list[Order] = []
        consumer = asyncio.create_task(consume(receiver, handled), name="consume orders")
        app.state.service = Service(mesh, sender, consumer, handled)
        try:
            yield
        finally:
            # A delivery whose handling this interrupts stays unsettled, so Event Mesh delivers it again.
            consumer.cancel()
            await asyncio.wait([consumer])
            if not consumer.cancelled() and (error := consumer.exception()):
                logger.error("consuming had stopped: %s", error)


app = FastAPI(lifespan=lifespan)


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


@app.post("/orders", status_code=202)
async def create(order: Order, service: Annotated[Service, Depends(service)]) -> Order:
    """Answer once Event Mesh has the event."""
    event = CloudEvent(
        {"id": str(uuid.uuid4()), "source": "/example/shop", "type": "example.orders.created.v1", "specversion": "1.0"},
        order.model_dump(),
    )
    try:
        async with asyncio.timeout(5):
            await service.sender.send(cloudevents.to_message(event))
    except DeliveryFailed as error:
        raise HTTPException(502, str(error)) from error  # Event Mesh said no
    except (AMQPError, TimeoutError) as error:
        raise HTTPException(503, f"Event Mesh cannot be reached: {error}") from error
    return order


@app.get("/orders")
async def handled(service: Annotated[Service, Depends(service)]) -> list[Order]:
    return service.handled


@app.get("/ready")
async def ready(response: Response, service: Annotated[Service, Depends(service)]) -> dict[str, Any]:
    """Answer 200 while the connection is open and orders are consumed, else 503."""
    found = service.mesh.health()
    ok = found.ok and not service.consumer.done()
    if not ok:
        response.status_code = 503
    return {"ok": ok, "connection": found.state.value, "stopped": str(found.stop) if found.stop else None}
