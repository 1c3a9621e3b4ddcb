"""How to test a service: the one below confirms orders, and its broker fails in several ways.

The fixtures come with the package: run it with ``pytest test_orders.py``.
"""

from __future__ import annotations

import asyncio
import contextlib

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Injector, faults

# --- the service -------------------------------------------------------------------------------------


async def confirm_orders(url: str, count: int) -> None:
    """Confirm so many orders, once each, whatever happens on the way."""
    confirmed: set[str] = set()
    async with (
        amqp.Client(url) as client,
        client.receiver("orders") as orders,
        client.sender("confirmations", on_unknown="resend") as confirmations,
    ):
        while len(confirmed) < count:
            order = await orders.receive()
            number = str(order.message.message_id)
            if number not in confirmed:  # it may come again
                await confirmations.send(amqp.Message(order.body, correlation_id=number))
                confirmed.add(number)
            with contextlib.suppress(amqp.SettlementLost):
                await order.accept()


# --- its tests ---------------------------------------------------------------------------------------


def place(broker: Broker, count: int) -> None:
    """Put orders where the service finds them."""
    for number in range(count):
        broker.put("orders", amqp.Message(b"one pencil", message_id=f"order-{number}"))


def numbers(broker: Broker) -> list[str]:
    """Which orders were confirmed."""
    return [str(message.correlation_id) for message in broker.messages("confirmations")]


def test_orders_are_confirmed(amqp_broker: Broker) -> None:
    """In their order, and nothing is left."""
    place(amqp_broker, 3)
    asyncio.run(confirm_orders(amqp_broker.url, 3))
    assert numbers(amqp_broker) == ["order-0", "order-1", "order-2"]
    assert amqp_broker.statistics().queues["orders"].acknowledged == 3


def test_an_order_that_comes_twice_is_confirmed_once(amqp_broker: Broker, amqp_faults: Injector) -> None:
    """The broker forgets that the first order was accepted."""
    amqp_faults.inject(faults.DeliverAgain(address="orders"))
    place(amqp_broker, 2)
    asyncio.run(confirm_orders(amqp_broker.url, 2))
    assert sorted(numbers(amqp_broker)) == ["order-0", "order-1"]


def test_a_broker_that_is_busy_and_moody(amqp_broker: Broker, amqp_faults: Injector) -> None:
    """It refuses two upgrades, detaches the link of confirmations, and then closes the connection."""
    amqp_faults.inject(
        faults.RefuseUpgrade(status=503, times=2),
        faults.DetachLink(on="arrival", address="confirmations", after=1),
        faults.CloseConnection(on="arrival", after=4),
    )
    place(amqp_broker, 9)
    asyncio.run(confirm_orders(amqp_broker.url, 9))
    assert set(numbers(amqp_broker)) == {f"order-{number}" for number in range(9)}
    assert amqp_faults.counts.total() == 4


def test_the_network_fails_in_the_middle(amqp_broker: Broker, amqp_proxy: FaultProxy) -> None:
    """First nothing can be reached, then the connection is cut, and orders come in all the while."""

    async def story() -> None:
        amqp_proxy.refuse()
        place(amqp_broker, 3)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(confirm_orders(amqp_proxy.url, 4))
            await asyncio.sleep(0.05)
            amqp_proxy.accept()
            await asyncio.sleep(0.1)
            amqp_proxy.cut()
            amqp_broker.put("orders", amqp.Message(b"ink", message_id="order-3"))

    asyncio.run(story())
    assert set(numbers(amqp_broker)) == {f"order-{number}" for number in range(4)}
