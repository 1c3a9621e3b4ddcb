"""What is sent: the same bodies and properties for every client, in every language."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import amqpws_async as amqp

__all__ = ["SHAPES", "TENANT", "TRACE", "Shape", "make", "read"]

TENANT: Final = "acme-eu"
TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of message.

    Attributes:
        name: How it is asked for.
        title: How it is shown.
        body: Its one data section.
        rich: Whether it has a message-id, a content-type and three application properties, which its receiver reads.
    """

    name: str
    title: str
    body: bytes
    rich: bool = False


def _json(size: int) -> bytes:
    fields: dict[str, str] = {}
    while len(json.dumps(fields)) < size - 32:
        fields[f"k{len(fields)}"] = f"value-{len(fields) * 7919}"
    return json.dumps(fields).encode().ljust(size)


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape("100b", "100 B", b"x" * 100),
        Shape("1k", "1 KiB JSON, id, content type, 3 properties", _json(1024), rich=True),
        Shape("64k", "64 KiB", bytes(range(256)) * 256),
        Shape("1m", "1 MiB", bytes(range(256)) * 4096),
    )
}


def make(shape: Shape, number: int) -> amqp.Message:
    """Make one message, as a user would: all of it new, each time."""
    if not shape.rich:
        return amqp.Message(shape.body)
    return amqp.Message(
        shape.body,
        message_id=f"order-{number:012d}",
        content_type="application/json",
        application_properties={"tenant": TENANT, "attempt": number & 127, "trace": TRACE},
    )


def read(shape: Shape, delivery: amqp.Delivery) -> bool:
    """Read from a delivery what its receiver wants to know; whether it is what was sent."""
    if not shape.rich:
        return len(delivery.body) == len(shape.body)  # type: ignore[arg-type]
    message = delivery.message
    right = len(message.body) == len(shape.body) and message.message_id is not None  # type: ignore[arg-type]
    return right and message.application_properties["tenant"] == TENANT
