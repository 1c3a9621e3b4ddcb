"""A client is closed within close_timeout, wherever it is: no peer, network, provider or handler makes it longer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy
from amqpws_async.testing.faults import LoseOutcome, RefuseLink, SlowUpgrade, StarveCredit

from .client_frame import MESSAGE, NOT_FOUND, QUICK, STATES, fates, soon, until
from .test_promises import turns

State = AsyncIterator[amqp.Client]
Options = dict[str, Any]


class Hanging:
    """A provider that has no answer."""

    async def token(self, *, refresh: bool = False) -> amqp.Token:
        await asyncio.Event().wait()
        raise AssertionError


async def a_hanging_token(options: Options) -> State:
    client = await amqp.Client("ws://127.0.0.1:1", background=True, token=Hanging(), **options).open()
    await turns()
    yield client


async def a_stalled_upgrade(options: Options) -> State:
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        broker.faults.inject(SlowUpgrade(seconds=9.0))
        client = await amqp.Client(proxy.url, background=True, **options).open()
        await until(lambda: broker.faults.counts["SlowUpgrade"])
        yield client


async def a_long_delay(options: Options) -> State:
    backoff = amqp.Backoff(initial=3600.0, maximum=3600.0)
    client = amqp.Client("ws://127.0.0.1:1", background=True, **options | {"backoff": backoff})
    await client.open()
    await until(lambda: client.health().attempt)
    yield client


async def an_outage(options: Options) -> State:
    broker = await Broker().start()
    client = await amqp.Client(broker.url, **options).open()
    await client.sender("orders")
    waiting = asyncio.create_task((await client.receiver("orders")).receive())
    await broker.abort()
    await until(lambda: client.state is STATES.RECONNECTING)
    yield client
    with pytest.raises(amqp.AMQPError):
        await soon(waiting)


async def an_outage_in_doubt(options: Options) -> State:
    broker = await Broker(faults=[LoseOutcome(times=None)]).start()
    client = await amqp.Client(broker.url, **options).open()
    sender = await client.sender("orders", on_unknown="resend")
    pending = [await soon(sender.transfer(MESSAGE)) for _ in range(3)]
    await until(lambda: broker.faults.counts["LoseOutcome"] == 3)
    await broker.abort()
    await until(lambda: client.state is STATES.RECONNECTING)
    yield client
    assert await fates(pending) == ["DeliveryUnknown"] * 3


async def an_outcome_that_does_not_come(options: Options) -> State:
    async with Broker(faults=[LoseOutcome(times=None)]) as broker:
        client = await amqp.Client(broker.url, **options).open()
        senders = [await client.sender(f"orders-{number}") for number in range(4)]
        pending = [await soon(sender.transfer(MESSAGE)) for sender in senders]
        yield client
        assert await fates(pending) == ["DeliveryUnknown"] * 4


async def a_send_without_credit(options: Options) -> State:
    async with Broker(faults=[StarveCredit()]) as broker:
        client = await amqp.Client(broker.url, **options).open()
        sending = asyncio.create_task((await client.sender("orders")).send(MESSAGE))
        await turns()
        yield client
        assert await fates([sending]) == ["ConnectionClosed"]


async def handlers_at_work(options: Options) -> State:
    done = asyncio.Event()

    async def handle(delivery: amqp.Delivery) -> None:
        started.append(delivery)
        await done.wait()

    started: list[amqp.Delivery] = []
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **options).open()
        receiver = await client.receiver("orders")
        for _ in range(3):
            broker.put("orders", MESSAGE)
        processing = asyncio.create_task(receiver.process(handle, drain_timeout=9.0))
        await until(lambda: len(started) == 3)
        yield client
        done.set()
        with contextlib.suppress(amqp.AMQPError):
            await soon(processing)
        await until(lambda: len(broker.messages("orders")) == 3)


async def a_roll_over(options: Options) -> State:
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **options).open()
        await client.sender("orders")
        broker.faults.inject(SlowUpgrade(seconds=9.0))
        moving = asyncio.create_task(client.roll_over())
        await until(lambda: broker.faults.counts["SlowUpgrade"])
        yield client
        assert await fates([moving]) == ["ConnectionClosed"]


async def an_old_connection_with_a_delivery_in_hand(options: Options) -> State:
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **options).open()
        receiver = await client.receiver("orders")
        broker.put("orders", MESSAGE)
        delivery = await soon(receiver.receive())
        await soon(client.roll_over())
        yield client
        with pytest.raises(amqp.SettlementLost):
            await delivery.accept()


async def a_silent_peer(options: Options) -> State:
    async with Broker(close_timeout=0.1) as broker:
        client = await amqp.Client(broker.url, **options).open()
        for number in range(3):
            await client.sender(f"orders-{number}")
            await client.receiver(f"orders-{number}")
        broker.faults.silence()
        yield client


async def a_link_that_is_refused(options: Options) -> State:
    async with Broker(faults=[RefuseLink(times=None)]) as broker:
        client = await amqp.Client(broker.url, **options).open()
        opening = asyncio.create_task(soon(client.sender("orders")))
        await until(lambda: broker.faults.counts["RefuseLink"] > 1)
        yield client
        assert await fates([opening]) == ["ConnectionClosed"]


async def an_end(options: Options) -> State:
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **options).open()
        broker.faults.close_connections(NOT_FOUND)
        await until(lambda: client.state is STATES.CLOSED)
        yield client


WHERE: list[Callable[[Options], State]] = [
    a_hanging_token,
    a_stalled_upgrade,
    a_long_delay,
    an_outage,
    an_outage_in_doubt,
    an_outcome_that_does_not_come,
    a_send_without_credit,
    handlers_at_work,
    a_roll_over,
    an_old_connection_with_a_delivery_in_hand,
    a_silent_peer,
    a_link_that_is_refused,
    an_end,
]


@pytest.mark.parametrize("where", WHERE)
async def test_a_client_closes_in_time(where: Callable[[Options], State]) -> None:
    """Whatever a client waits for, its close takes no longer than close_timeout, and nothing of it goes on."""
    async with contextlib.asynccontextmanager(where)(QUICK | {"close_timeout": 1.0}) as client:
        began = time.monotonic()
        await soon(client.close())
        assert time.monotonic() - began < 1.9  # and not two of them, or more
        assert client.state is STATES.CLOSED
        assert not [task for task in asyncio.all_tasks() if client.container_id in task.get_name()]


@pytest.mark.parametrize("where", [where for where in WHERE if where is not an_end])
async def test_a_close_that_is_cancelled_ends_at_once(where: Callable[[Options], State]) -> None:
    """Whatever a client waits for, cancelling its close ends it without a wait, and nothing of it goes on."""
    async with contextlib.asynccontextmanager(where)(QUICK | {"close_timeout": 9.0}) as client:
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        began = time.monotonic()
        closing.cancel()
        await asyncio.wait([closing])
        assert time.monotonic() - began < 4.0
        assert client.state is STATES.CLOSED
        assert not [task for task in asyncio.all_tasks() if client.container_id in task.get_name()]


async def test_a_second_close_waits_for_the_first() -> None:
    """Two that close one client both return when it is closed."""
    async with Broker(faults=[LoseOutcome()]) as broker:
        client = await amqp.Client(broker.url, **QUICK).open()
        pending = await (await client.sender("orders")).transfer(MESSAGE)
        first, second = (asyncio.create_task(client.close()) for _ in range(2))
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert client.state is STATES.CLOSED
        await soon(asyncio.gather(first, second))
        assert await fates([pending]) == ["DeliveryUnknown"]
