"""What the tests of the client share: options that are quick to come back, waiting, tokens, and outages on cue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import amqpws_async as amqp
from amqpws_async.errors import ErrorCondition
from amqpws_async.testing import Broker, FaultProxy

from .peer import PATIENCE

FAST = amqp.Backoff(initial=0.01, maximum=0.05)
QUICK: dict[str, Any] = {"open_timeout": PATIENCE, "close_timeout": 1.0, "backoff": FAST, "proxy": None}

MESSAGE = amqp.Message(b"one")
EXPIRED = ErrorCondition("amqp:unauthorized-access", "the token has expired")
NOT_FOUND = ErrorCondition("amqp:not-found", "there is none")
NOT_ALLOWED = ErrorCondition("amqp:not-allowed", "by an operator")

STATES = amqp.ClientState

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """Waits for something that must not hang."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def fates(pending: list[Any]) -> list[str]:
    """What became of deliveries, each of which must be told."""
    results: list[Any] = await soon(asyncio.gather(*pending, return_exceptions=True))
    return [type(result).__name__ for result in results]


async def until(true: Callable[[], object]) -> None:
    """Returns when something has become true."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


async def lost(client: amqp.Client, lose: Callable[[], Any]) -> None:
    """Loses the connection, and returns when the client is ready on another one."""
    former = client.connection
    result = lose()
    if isinstance(result, Awaitable):
        await soon(result)
    await until(lambda: client.connection is not former and client.ready())


async def relinked(link: amqp.ClientSender | amqp.ClientReceiver, lose: Callable[[], Any]) -> None:
    """Loses a link, and returns when there is another."""
    former = link.link
    lose()
    await until(lambda: link.attached and link.link is not former)


class Tokens:
    """A provider that keeps its token until it is asked for another, and counts them."""

    def __init__(self, expiry: float | None = None) -> None:
        self.issued = 0
        self._expiry = expiry
        self._current: amqp.Token | None = None

    async def token(self, *, refresh: bool = False) -> amqp.Token:
        if refresh or self._current is None:
            self.issued += 1
            self._current = amqp.Token(f"token-{self.issued}", self._expiry)
        return self._current


@contextlib.asynccontextmanager
async def proxied(**options: Any) -> AsyncIterator[tuple[Broker, FaultProxy, amqp.Client]]:
    """A broker, the network before it, and an open client."""
    async with (
        Broker() as broker,
        FaultProxy(broker.url) as proxy,
        amqp.Client(proxy.url, **QUICK | options) as client,
    ):
        yield broker, proxy, client


async def unplugged(client: amqp.Client, proxy: FaultProxy) -> None:
    """Begins an outage, which lasts until ``proxy.accept()``."""
    proxy.refuse()
    proxy.cut()
    await until(lambda: client.state is STATES.RECONNECTING)
