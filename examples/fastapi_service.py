"""A FastAPI service: each POST sends a message, a background task consumes, a probe asks the connection.

AMQP_URL=ws://localhost:8672 uvicorn fastapi_service:app      (AMQP_TOKEN=... for a bearer token)

The service has one connection for its whole life, opened before the first request is taken and closed after the last.
If the connection is lost, /health answers 503, so that whoever runs the service starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError

import amqpws_async as amqp

ADDRESS = os.environ.get("AMQP_ADDRESS", "orders")
logger = logging.getLogger(__name__)


class Order(BaseModel):
    id: int
    item: str


@dataclass
class Service:
    """What lives as long as the application."""

    connection: amqp.Connection
    sender: amqp.Sender
    consumer: asyncio.Task[None]
    handled: list[Order] = field(default_factory=list)


async def consume(receiver: amqp.Receiver, handled: list[Order]) -> None:
    """Handle orders until the receiver ends; each is settled only when it is done."""
    async for delivery in receiver:
        body = delivery.body
        try:
            order = Order.model_validate_json(body if isinstance(body, bytes) else b"")
        except ValidationError:
            await delivery.reject("amqp:decode-error", "not an order")
            continue
        handled.append(order)
        await delivery.accept()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with (
        amqp.connect(os.environ["AMQP_URL"], token=os.environ.get("AMQP_TOKEN")) as connection,
        connection.sender(ADDRESS) as sender,
        connection.receiver(ADDRESS, credit=100) as receiver,
    ):
        handled: list[Order] = []
        consumer = asyncio.create_task(consume(receiver, handled), name="consume orders")
        app.state.service = Service(connection, sender, consumer, handled)
        try:
            yield
        finally:
            # A delivery whose handling this interrupts stays unsettled, so the broker delivers it again.
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
    """Answer once the broker has the order."""
    message = amqp.Message(
        order.model_dump_json().encode(),
        durable=True,
        message_id=f"order-{order.id}",
        content_type="application/json",
    )
    try:
        async with asyncio.timeout(5):
            await service.sender.send(message)
    except amqp.DeliveryFailed as error:
        raise HTTPException(502, str(error)) from error  # the broker said no
    except (amqp.AMQPError, TimeoutError) as error:
        raise HTTPException(503, f"the broker cannot be reached: {error}") from error
    return order


@app.get("/orders")
async def handled(service: Annotated[Service, Depends(service)]) -> list[Order]:
    return service.handled


@app.get("/health")
async def health(response: Response, service: Annotated[Service, Depends(service)]) -> dict[str, Any]:
    """Answer 200 while the connection is open and orders are consumed, else 503."""
    found = service.connection.health()
    ok = found.ok and not service.consumer.done()
    if not ok:
        response.status_code = 503
    return {
        "ok": ok,
        "connection": found.state.value,
        "stopped": str(found.stop) if found.stop else None,
        "last_frame_age": found.last_frame_age,
        "links": {f"{link.role} {link.address}": link.state.value for link in found.links},
    }
