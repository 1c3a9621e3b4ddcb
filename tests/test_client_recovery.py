"""A client among faults: what a long run with many of them has found, one test each."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Lane, Wire
from amqpws_async.testing.faults import RefuseUpgrade

QUICK: dict[str, Any] = {
    "open_timeout": 5.0,
    "close_timeout": 1.0,
    "backoff": amqp.Backoff(initial=0.01, maximum=0.05, stable_after=0.0),
}


async def until(condition: Callable[[], object]) -> None:
    """Waits until the loop has made something true."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Waits, and not for ever."""
    async with asyncio.timeout(5):
        return await awaitable


async def test_a_link_without_a_connection_ends_with_its_client() -> None:
    """A client that is refused for good ends with its links, and the loop goes on meanwhile."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        sender = await soon(client.sender("orders"))
        broker.faults.inject(RefuseUpgrade(status=403, times=None))
        began = time.monotonic()
        await broker.disconnect()
        await soon(sender.wait_closed())
        assert time.monotonic() - began < 5  # by the clock: a loop that is stuck sees no timeout of its own
        assert client.state is amqp.ClientState.CLOSED
        with pytest.raises(amqp.ConnectionClosed, match="403"):
            await sender.send(b"")


async def test_connections_that_were_lost_are_forgotten() -> None:
    """A client that has lost many connections keeps none of them."""
    lost: weakref.WeakSet[amqp.Connection] = weakref.WeakSet()
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client, client.receiver("orders"):
        for _ in range(10):
            await until(client.ready)
            assert client.connection is not None
            lost.add(client.connection)
            await broker.disconnect()
            await until(lambda: client.connection is None)
        await until(client.ready)
        gc.collect()
        assert len(lost) <= 2  # the one in use, and one that may be about to end


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_link_with_a_name_comes_back_under_it(role: str) -> None:
    """A named link that the peer detached is detached by us as well before it is attached again."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        open_link: Any = client.sender if role == "sender" else client.receiver
        async with open_link("orders", name="the-link") as link:
            for _ in range(3):
                first = link.link
                assert broker.faults.detach_links() == 1
                await until(lambda before=first: link.attached and link.link is not before)  # type: ignore[misc]
                assert link.link.name == "the-link"
        assert client.connection is not None
        assert broker.statistics().connections_total == 1


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_client_that_has_ended_left_no_connection_behind(how: str) -> None:
    """A connection that was lost, and waits for the peer's WebSocket close, ends with its client."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        client = await amqp.Client(proxy.url, **QUICK).open()
        proxy.stall("up")  # so the broker never answers the WebSocket close
        proxy.wire = Wire(down=Lane(at=0, then="stall"))
        assert broker.faults.close_connections() == 1
        await until(lambda: client.state is amqp.ClientState.RECONNECTING)
        if how == "close":
            await soon(client.close())
        else:
            await soon(client.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None))
        assert not [task for task in asyncio.all_tasks() if client.container_id in task.get_name()]


async def test_a_place_that_refused_once_is_tried_again_after_the_next_connection() -> None:
    """What one place refused for good counts until another has been in use; then both are there again."""
    async with Broker() as first, Broker() as second:
        first.faults.inject(RefuseUpgrade(status=403))
        async with amqp.Client([first.url, second.url], **QUICK) as client:
            assert client.connection is not None
            assert client.connection.options.port == second.port
            second.faults.inject(RefuseUpgrade(times=None))
            await second.disconnect()
            await until(lambda: client.ready() and first.statistics().connections == 1)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_roll_over_without_a_connection_ends_with_its_client(how: str) -> None:
    """Who asks for a roll-over during an outage is told when the client is closed."""
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **QUICK).open()
        await broker.abort()
        await until(lambda: client.connection is None)
        rolling = asyncio.create_task(client.roll_over())
        await asyncio.sleep(0)
        if how == "close":
            await soon(client.close())
        else:
            await soon(client.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None))
        with pytest.raises(amqp.ConnectionClosed):
            await soon(rolling)
