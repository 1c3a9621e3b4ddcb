"""A client under test: opened with short times, its state changes recorded, and ways to wait for what it causes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import amqpws_async as amqp
from amqpws_async.auth import Token

from .peer import PATIENCE

T = TypeVar("T")

#: Retries soon, so that a test of an outage takes no longer than the outage.
FAST = amqp.Backoff(initial=0.01, maximum=0.05)

#: What the client is in at the end of a test that went well.
CONNECTING, CONNECTED, RECONNECTING = (
    amqp.ClientState.CONNECTING,
    amqp.ClientState.CONNECTED,
    amqp.ClientState.RECONNECTING,
)
CLOSING, CLOSED = amqp.ClientState.CLOSING, amqp.ClientState.CLOSED


class Changes(list[amqp.StateChange]):
    """Every change of state, as `on_state` was told."""

    @property
    def states(self) -> list[amqp.ClientState]:
        """The states alone."""
        return [change.state for change in self]

    def count_of(self, state: amqp.ClientState) -> int:
        """How often the client came to this state."""
        return self.states.count(state)

    async def saw(self, state: amqp.ClientState, count: int = 1) -> None:
        """Waits until the client came to this state so often."""
        await until(lambda: self.count_of(state) >= count)


class Numbered:
    """A provider that gives t1, t2 and so on: another token for each refresh, or each time it is asked."""

    def __init__(self, *, always: bool = False) -> None:
        self.refreshes: list[bool] = []
        self._always = always

    async def token(self, *, refresh: bool = False) -> Token:
        self.refreshes.append(refresh)
        return Token(f"t{len(self.refreshes) if self._always else 1 + sum(self.refreshes)}")


def made(urls: str | Sequence[str], changes: Changes | None = None, **options: Any) -> amqp.Client:
    """A client that is not open yet."""
    defaults: dict[str, Any] = {"backoff": FAST, "open_timeout": PATIENCE, "close_timeout": 2.0}
    if changes is not None:
        defaults["on_state"] = changes.append
    return amqp.Client(urls, **defaults | options)


@contextlib.asynccontextmanager
async def opened(
    urls: str | Sequence[str], changes: Changes | None = None, **options: Any
) -> AsyncIterator[amqp.Client]:
    """A client that is open, unless opening it is what fails."""
    client = made(urls, changes, **options)
    async with asyncio.timeout(PATIENCE):
        await client.open()
    try:
        yield client
    finally:
        async with asyncio.timeout(PATIENCE):
            await client.close()


async def until(true: Callable[[], object]) -> None:
    """Waits until something is so that nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def relinked(*links: amqp.ClientSender | amqp.ClientReceiver) -> AsyncIterator[None]:
    """Waits at its end until these links, which the body has had lost, are back."""
    before = [link.link for link in links]
    yield
    await until(lambda: all(each.attached and each.link is not old for each, old in zip(links, before, strict=True)))


async def soon(wait: Awaitable[T]) -> T:
    """Waits for something that must not hang."""
    async with asyncio.timeout(PATIENCE):
        return await wait


async def turns(count: int = 20) -> None:
    """Lets every task run until it waits for the network."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def beside(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task beside the body, that does not outlive it whatever happens."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


def body_of(message: amqp.Message | bytes) -> bytes:
    """The body of a message that has one data section, encoded or not."""
    body = (amqp.Message.decode(message) if isinstance(message, bytes) else message).body
    assert isinstance(body, bytes)
    return body
