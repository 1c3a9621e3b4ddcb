"""Fills and empties queues of a broker, outside what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import amqpws_async as amqp

from .peers.ours import transfer
from .shapes import Shape

__all__ = ["UnexpectedCount", "empty", "fill"]

PATIENCE: Final = 10.0  # seconds without a message that has to be there


class UnexpectedCount(Exception):
    """A queue has not what it should have."""


async def fill(url: str, address: str, shape: Shape, count: int) -> None:
    """Send so many messages to a queue."""
    async with amqp.connect(url) as connection, connection.sender(address) as sender:
        await transfer([sender], shape, count, 1000)


async def empty(url: str, counts: Mapping[str, int]) -> None:
    """Take so many messages out of queues, and look whether there are more.

    Args:
        url: The broker's.
        counts: How many there are to be, by address.

    Raises:
        UnexpectedCount: There were fewer or more.
    """
    async with amqp.connect(url) as connection:
        for address, count in counts.items():
            async with connection.receiver(address, credit=0) as receiver:
                left = count
                while left:
                    credit = min(left, 1000)
                    await receiver.add_credit(credit)
                    try:
                        async with asyncio.timeout(PATIENCE):
                            for _ in range(credit):
                                await (await receiver.receive()).accept()
                                left -= 1
                    except TimeoutError:
                        raise UnexpectedCount(f"{count - left} messages in the queue instead of {count}") from None
                await receiver.add_credit(1)
                await receiver.drain()
                if receiver.queued:
                    raise UnexpectedCount(f"more than {count} messages in the queue")
