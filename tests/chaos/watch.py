"""Watches clients: how often they lost the connection, and whether they have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import amqpws_async as amqp


class Watch:
    """For `Client(on_state=...)`.

    Attributes:
        outages: How often the connection was lost.
        changes: Every change of state so far.
    """

    def __init__(self) -> None:
        self.outages = 0
        self.changes: list[amqp.StateChange] = []
        self._connected = False
        self._changed = asyncio.Event()

    def __call__(self, change: amqp.StateChange) -> None:
        self.changes.append(change)
        self.outages += self._connected and change.state is amqp.ClientState.RECONNECTING
        self._connected = change.state is amqp.ClientState.CONNECTED
        self._changed.set()

    async def until_lost(self, outages: int) -> None:
        """Waits until the connection was lost so often, or is not there now."""
        await self._until(lambda: self.outages >= outages or not self._connected)

    async def until_connected(self) -> None:
        """Waits until there is a connection."""
        await self._until(lambda: self._connected)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
