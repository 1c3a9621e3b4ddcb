"""An aiohttp service: each POST sends a message, a background task consumes, a probe asks the connection.

AMQP_URL=ws://localhost:8672 python -m aiohttp.web -P 8080 aiohttp_service:make_app
                                                             (AMQP_TOKEN=... for a bearer token)

The service has one connection for its whole life, opened before the first request is taken and closed after the last.
If the connection is lost, /health answers 503, so that whoever runs the service starts it anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

import amqpws_async as amqp

ADDRESS = os.environ.get("AMQP_ADDRESS", "orders")
CONNECTION = web.AppKey("connection", amqp.Connection)
SENDER = web.AppKey("sender", amqp.Sender)
CONSUMER = web.AppKey("consumer", asyncio.Task[None])
HANDLED = web.AppKey("handled", list[dict[str, Any]])
logger = logging.getLogger(__name__)


def parse(body: object) -> dict[str, Any]:
    """Read an order, or raise ValueError."""
    order = json.loads(body) if isinstance(body, (bytes, str)) else None
    if not isinstance(order, dict) or not isinstance(order.get("id"), int):
        raise ValueError("not an order")
    return order


async def consume(receiver: amqp.Receiver, handled: list[dict[str, Any]]) -> None:
    """Handle orders until the receiver ends; each is settled only when it is done."""
    async for delivery in receiver:
        try:
            order = parse(delivery.body)
        except ValueError as error:
            await delivery.reject("amqp:decode-error", str(error))
            continue
        handled.append(order)
        await delivery.accept()


async def broker(app: web.Application) -> AsyncIterator[None]:
    """Connect before the application starts, close after it has stopped."""
    async with (
        amqp.connect(os.environ["AMQP_URL"], token=os.environ.get("AMQP_TOKEN")) as connection,
        connection.sender(ADDRESS) as sender,
        connection.receiver(ADDRESS, credit=100) as receiver,
    ):
        consumer = asyncio.create_task(consume(receiver, app[HANDLED]), name="consume orders")
        app[CONNECTION], app[SENDER], app[CONSUMER] = connection, sender, consumer
        try:
            yield
        finally:
            # A delivery whose handling this interrupts stays unsettled, so the broker delivers it again.
            consumer.cancel()
            await asyncio.wait([consumer])
            if not consumer.cancelled() and (error := consumer.exception()):
                logger.error("consuming had stopped: %s", error)


async def create(request: web.Request) -> web.Response:
    """Answer once the broker has the order."""
    try:
        order = parse(await request.read())
    except ValueError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    message = amqp.Message(
        json.dumps(order).encode(),
        durable=True,
        message_id=f"order-{order['id']}",
        content_type="application/json",
    )
    try:
        async with asyncio.timeout(5):
            await request.app[SENDER].send(message)
    except amqp.DeliveryFailed as error:
        raise web.HTTPBadGateway(text=str(error)) from error  # the broker said no
    except (amqp.AMQPError, TimeoutError) as error:
        raise web.HTTPServiceUnavailable(text=f"the broker cannot be reached: {error}") from error
    return web.json_response(order, status=202)


async def handled(request: web.Request) -> web.Response:
    return web.json_response(request.app[HANDLED])


async def health(request: web.Request) -> web.Response:
    """Answer 200 while the connection is open and orders are consumed, else 503."""
    found = request.app[CONNECTION].health()
    ok = found.ok and not request.app[CONSUMER].done()
    report = {
        "ok": ok,
        "connection": found.state.value,
        "stopped": str(found.stop) if found.stop else None,
        "last_frame_age": found.last_frame_age,
        "links": {f"{link.role} {link.address}": link.state.value for link in found.links},
    }
    return web.json_response(report, status=200 if ok else 503)


def make_app(argv: list[str] | None = None) -> web.Application:
    app = web.Application()
    app[HANDLED] = []
    app.cleanup_ctx.append(broker)
    app.add_routes([web.post("/orders", create), web.get("/orders", handled), web.get("/health", health)])
    return app
