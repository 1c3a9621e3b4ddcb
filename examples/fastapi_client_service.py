"""A FastAPI service that outlives its broker: it starts without one, and goes on by itself when the broker is back.

AMQP_URL=ws://localhost:8672 uvicorn fastapi_client_service:app      (AMQP_TOKEN=... for a bearer token)

`amqpws broker` is a broker to try it with; kill and restart it meanwhile. /health/live answers 200 while the service
runs, /health/ready while it has its broker: whoever runs the service need not restart it for an outage.
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
from pydantic import BaseModel

import amqpws_async as amqp

ADDRESS = os.environ.get("AMQP_ADDRESS", "orders")
DEADLINE = float(os.environ.get("AMQP_DEADLINE", "5"))  # seconds that a request may wait for the broker
RETRY = {"Retry-After": "5"}
logger = logging.getLogger(__name__)


class Order(BaseModel):
    id: int
    item: str


@dataclass
class Service:
    """What lives as long as the application."""

    client: amqp.Client
    sender: amqp.ClientSender | None = None
    handled: list[Order] = field(default_factory=list)

    async def work(self) -> None:
        """Attach both links, however long the broker may take to be there, and handle orders until the client ends."""
        try:
            async with (
                self.client.sender(ADDRESS, on_unknown="resend") as self.sender,
                self.client.receiver(ADDRESS, credit=100) as receiver,
            ):
                await receiver.process(self.handle, on_error={ValueError: amqp.Rejected()})
        except amqp.AMQPError as error:
            logger.error("no more orders: %s", error)

    async def handle(self, delivery: amqp.Delivery) -> None:
        """Handle one order; it is accepted when this returns, and comes again if the broker is lost before."""
        body = delivery.body
        self.handled.append(Order.model_validate_json(body if isinstance(body, bytes) else b""))

    def ready(self) -> bool:
        """Whether both links are attached; once they have been, they come back by themselves."""
        return self.sender is not None and self.sender.attached and self.client.ready()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url, token = os.environ["AMQP_URL"], os.environ.get("AMQP_TOKEN")
    async with amqp.Client(url, token=token, background=True, on_state=logger.warning) as client:
        app.state.service = service = Service(client)
        working = asyncio.create_task(service.work(), name="orders")
        yield
    await working  # the client has stopped taking, let the handlers finish, and closed


app = FastAPI(lifespan=lifespan)


def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


@app.post("/orders", status_code=202)
async def create(order: Order, service: Annotated[Service, Depends(service)]) -> Order:
    """Answer once the broker has the order, or when the deadline has passed."""
    message = amqp.Message(
        order.model_dump_json().encode(),
        durable=True,
        message_id=f"order-{order.id}",  # the same if the client asks again
        content_type="application/json",
    )
    if service.sender is None:
        raise HTTPException(503, "the broker has not been there yet", RETRY)
    try:
        async with asyncio.timeout(DEADLINE):
            await service.sender.send(message)
    except amqp.DeliveryFailed as error:
        raise HTTPException(502, str(error)) from error  # the broker said no
    except (amqp.AMQPError, TimeoutError) as error:
        raise HTTPException(503, "the broker cannot be reached", RETRY) from error
    return order


@app.get("/orders")
async def handled(service: Annotated[Service, Depends(service)]) -> list[Order]:
    return service.handled


@app.get("/health/live")
async def live() -> dict[str, Any]:
    return {"ok": True}


@app.get("/health/ready")
async def ready(response: Response, service: Annotated[Service, Depends(service)]) -> dict[str, Any]:
    health = service.client.health()
    if not service.ready():
        response.status_code = 503
    return {"ok": service.ready(), "state": health.state.value, "error": str(health.error) if health.error else None}
