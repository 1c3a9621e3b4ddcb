"""What a client's receiver promises, each promise over losses of its link, its session and its connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amqpws_async as amqp
from amqpws_async.testing import Broker
from amqpws_async.testing.faults import (
    CloseConnection,
    DetachLink,
    DropConnection,
    EndSession,
    Fault,
    RefuseLink,
    link_redirect,
)

from .clients import (
    CLOSED,
    CONNECTED,
    RECONNECTING,
    Changes,
    beside,
    body_of,
    made,
    opened,
    relinked,
    soon,
    turns,
    until,
)
from .peer import PATIENCE, Peer

MESSAGE = amqp.Message(b"one")

#: Every way in which a broker can end links, which then come back.
LOSSES: dict[str, Callable[[Broker], Awaitable[object]]] = {}


def loss(function: Callable[[Broker], Any]) -> Callable[[Broker], Any]:
    async def lose(broker: Broker) -> None:
        if (waiting := function(broker)) is not None and not isinstance(waiting, int):
            await waiting

    LOSSES[function.__name__] = lose
    return function


@loss
def detach(broker: Broker) -> int:
    return broker.faults.detach_links()


@loss
def end(broker: Broker) -> int:
    return broker.faults.end_sessions()


@loss
def close(broker: Broker) -> int:
    return broker.faults.close_connections()


@loss
def drop(broker: Broker) -> Awaitable[None]:
    return broker.disconnect()


losses = pytest.mark.parametrize("kind", LOSSES)


def put(broker: Broker, count: int, first: int = 0, address: str = "q") -> None:
    for number in range(first, first + count):
        broker.put(address, amqp.Message(b"%d" % number))


def depth(broker: Broker, queue: str = "q") -> int:
    """Messages that a queue still has, with a consumer or not."""
    statistics = broker.statistics().queues[queue]
    return statistics.depth + statistics.unsettled


async def accepted(delivery: amqp.Delivery) -> bool:
    """Accepts, and says whether that could reach the peer."""
    try:
        await delivery.accept()
    except amqp.SettlementLost:
        return False
    return True


# --- iteration -----------------------------------------------------------------------


@losses
async def test_iteration_ends_with_a_loss(kind: str) -> None:
    """Iteration goes on over losses, nothing is lost by them, and it ends after a local close."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q", credit=10)
        seen: list[bytes] = []

        async def consume() -> None:
            async for delivery in receiver:
                body = body_of(delivery.message)
                if await accepted(delivery):
                    seen.append(body)

        async with beside(consume()) as consuming:
            for round_ in range(4):
                put(broker, 25, 25 * round_)
                await until(lambda: len(seen) > 10)
                async with relinked(receiver):
                    await LOSSES[kind](broker)
            await until(lambda: depth(broker) == 0)
            await soon(receiver.close())
            await soon(consuming)
        assert set(seen) == {b"%d" % number for number in range(100)}
        assert broker.statistics().queues["q"].acknowledged == 100
        assert broker.statistics().connections_total == (1 if kind in ("detach", "end") else 5)


@losses
async def test_deliveries_in_hand_are_settled_after_a_loss(kind: str) -> None:
    """Deliveries in hand when the link went raise SettlementLost, by any settlement, and arrive again."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 4)
        receiver = await client.receiver("q")
        in_hand = [await soon(receiver.receive()) for _ in range(4)]
        async with relinked(receiver):
            await LOSSES[kind](broker)
        first, second, third, fourth = in_hand
        for settle in (first.accept, second.release, third.reject, fourth.modify):
            with pytest.raises(amqp.SettlementLost) as caught:
                await settle()
            assert caught.value.stop is not None
        for number, delivery in enumerate(in_hand):
            assert body_of(delivery.message) == b"%d" % number
            again = await soon(receiver.receive())
            assert again.raw != delivery.raw  # its delivery-count
            assert body_of(again.message) == b"%d" % number
            assert again.message.delivery_count == 1
            await again.accept()
        await until(lambda: depth(broker) == 0)


async def test_deliveries_nobody_took_arrive_twice() -> None:
    """What waits in the receiver when its link goes is not given any more: only its successor is."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 5)
        receiver = await client.receiver("q")
        await until(lambda: receiver.queued == 5)
        async with relinked(receiver):
            await broker.disconnect()
        await until(lambda: receiver.queued == 5)
        for number in range(5):
            delivery = await soon(receiver.receive())
            assert body_of(delivery.message) == b"%d" % number
            await delivery.accept()
        await until(lambda: depth(broker) == 0)
        assert receiver.queued == 0


async def test_deliveries_that_came_settled_are_lost() -> None:
    """What came settled, and waits when the link goes, is nobody's to send again: it is given all the same, once."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.presettled = True
        peer.queue.extend(amqp.Message(b"%d" % number).encode() for number in range(5))
        receiver = await client.receiver("q", snd_settle_mode=amqp.SenderSettleMode.SETTLED)
        await until(lambda: receiver.queued == 5)
        async with relinked(receiver):
            peer.conversation.drop()
        seen = [await soon(receiver.receive()) for _ in range(5)]
        assert [body_of(delivery.message) for delivery in seen] == [b"%d" % number for number in range(5)]
        assert all(delivery.settled for delivery in seen)
        peer.queue.append(amqp.Message(b"5").encode())
        peer.conversation.react("flow", next(iter(peer.conversation.links.values())))
        assert body_of((await soon(receiver.receive())).message) == b"5"


async def test_the_address_of_a_dynamic_node_is_forgotten() -> None:
    """A dynamic node is another one after each attach, and the receiver knows its address."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver(amqp.Source(dynamic=True))
        sender = await client.sender(None)
        addresses = set()
        for _ in range(2):
            addresses.add(receiver.address)
            await soon(sender.send(amqp.Message(b"x", to=receiver.address)))
            await (await soon(receiver.receive())).accept()
            async with relinked(receiver, sender):
                await broker.disconnect()
        assert None not in addresses
        assert len(addresses) == 2


async def test_a_body_that_fails_in_an_outage_waits() -> None:
    """The end of a block with a failed body is quick during an outage, and hides nothing."""
    changes = Changes()
    async with Broker() as broker:
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            async with made(broker.url, changes) as client, client.session() as session, session.receiver("q") as it:
                await broker.abort()
                await changes.saw(RECONNECTING)
                assert not it.attached
                _ = 1 / 0
        assert time.monotonic() - began < 5.0
        assert client.state is CLOSED


async def test_waiting_for_a_delivery_ends_with_a_loss() -> None:
    """A receive that waits, waits on over an outage."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        receiver = await client.receiver("q")
        async with beside(receiver.receive()) as receiving:
            await turns()
            await broker.abort()
            await changes.saw(RECONNECTING, 2)
            assert not receiving.done()
            await broker.start()
            put(broker, 1)
            assert body_of((await soon(receiving)).message) == b"0"


async def test_a_timed_out_receive_loses_a_message() -> None:
    """Receives that time out or are cancelled, before, in and after an outage, lose nothing."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        receiver = await client.receiver("q", credit=1)
        seen: list[bytes] = []

        async def receive() -> bytes:
            delivery = await receiver.receive()
            body = body_of(delivery.message)
            assert await accepted(delivery)
            return body

        for round_ in range(3):
            for outage in (False, True):
                if outage:
                    changes.clear()
                    await broker.abort()
                    await changes.saw(RECONNECTING)
                for step in (receiver.receive, receiver.__anext__):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await step()
            put(broker, 5, 5 * round_)
            await broker.start()
            async with asyncio.timeout(PATIENCE):
                for point in itertools.count(1):
                    if len(seen) == 5 * (round_ + 1):
                        break
                    task = asyncio.create_task(receive())
                    await turns(point % 40)
                    task.cancel()
                    await asyncio.wait([task])
                    if not task.cancelled():
                        seen.append(task.result())
        assert Counter(seen) == Counter(b"%d" % number for number in range(15))


@settings(max_examples=10)
@given(data=st.data())
async def test_a_cancellation_somewhere_loses_a_message(data: st.DataObject) -> None:
    """Random losses and cancelled receives: each message is accepted in the end, and none settled twice."""
    kinds = st.sampled_from([DropConnection, DetachLink, EndSession, CloseConnection])
    drawn = data.draw(st.lists(st.tuples(kinds, st.integers(0, 50)), max_size=5))
    plan = [kind(on="delivery", after=after) for kind, after in drawn]
    points = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=10))
    async with Broker(faults=plan) as broker, opened(broker.url) as client:
        put(broker, 30)
        receiver = await client.receiver("q", credit=data.draw(st.integers(1, 8)))
        settled: list[bytes] = []

        async def receive() -> None:
            async for delivery in receiver:
                body = body_of(delivery.message)
                if await accepted(delivery):
                    settled.append(body)

        async with asyncio.timeout(PATIENCE):
            number = 0
            while depth(broker):
                task = asyncio.create_task(receive())
                await turns(points[number % len(points)] + number // 10)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                number += 1
                await asyncio.sleep(0.001)
        assert set(settled) == {b"%d" % number for number in range(30)}
        assert broker.statistics().queues["q"].acknowledged == 30


async def test_tasks_that_share_a_receiver_lose_messages() -> None:
    """Many tasks receive over losses, and all messages are processed."""
    plan: list[Fault] = [DropConnection(on="delivery", after=n) for n in (40, 90)]
    plan += [DetachLink(on="delivery", after=60), EndSession(on="delivery", after=120)]
    async with Broker(faults=plan) as broker, opened(broker.url) as client:
        put(broker, 150)
        receiver = await client.receiver("q", credit=20)
        done: list[bytes] = []

        async def work() -> None:
            async for delivery in receiver:
                await asyncio.sleep(0)
                if await accepted(delivery):
                    done.append(body_of(delivery.message))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(work())
            await until(lambda: depth(broker) == 0)
            await soon(receiver.close())
        assert set(done) == {b"%d" % number for number in range(150)}


# --- how it ends ---------------------------------------------------------------------


async def test_failing_fast_waits() -> None:
    """With ``outage="fail"`` waiting raises at once during an outage, and may be tried again after it."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        receiver = await client.receiver("q", outage="fail")
        async with beside(receiver.receive()) as receiving:
            await turns()
            await broker.abort()
            with pytest.raises(amqp.ConnectionClosed):
                await soon(receiving)
        for step in (receiver.receive, receiver.__anext__):
            with pytest.raises(amqp.ConnectionClosed):
                await soon(step())
        await broker.start()
        put(broker, 1)
        await until(lambda: receiver.attached)
        assert body_of((await soon(receiver.receive())).message) == b"0"
        broker.faults.inject(RefuseLink(times=None))
        broker.faults.detach_links()
        await until(lambda: not receiver.attached)
        with pytest.raises(amqp.LinkClosed):
            await soon(receiver.receive())
        assert client.state is CONNECTED


@pytest.mark.parametrize("condition", ["amqp:not-found", "amqp:link:stolen", "amqp:unauthorized-access"])
async def test_a_final_end_ends_iteration_without_a_word(condition: str) -> None:
    """What another attach would not change raises from iteration, with the reason; the client goes on."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q")
        async with beside(receiver.receive()) as receiving:
            await turns()
            broker.faults.detach_links("q", amqp.ErrorCondition(condition, "for good"))
            with pytest.raises(amqp.LinkClosed) as caught:
                await soon(receiving)
            assert caught.value.stop.condition == condition
        for _ in range(2):
            with pytest.raises(amqp.LinkClosed):
                await soon(anext(receiver))
        assert client.state is CONNECTED
        assert client.ready()


async def test_the_end_of_the_client_ends_iteration_without_a_word() -> None:
    """A client closed by its user ends iteration; a client that failed raises from it."""

    async def consume(receiver: amqp.ClientReceiver) -> int:
        return len([delivery async for delivery in receiver])

    async with Broker() as broker:
        client = made(broker.url)
        await soon(client.open())
        receiver = await client.receiver("q")
        async with beside(consume(receiver)) as consuming:
            await turns()
            await soon(client.close())
            assert await soon(consuming) == 0
        async with opened(broker.url) as client:
            receiver = await client.receiver("q")
            async with beside(consume(receiver)) as consuming:
                await turns()
                broker.faults.close_connections(amqp.ErrorCondition("amqp:not-allowed", "go"))
                with pytest.raises(amqp.ConnectionClosed) as caught:
                    await soon(consuming)
                assert caught.value.stop.condition == "amqp:not-allowed"


@pytest.mark.parametrize("who", ["receiver", "client"])
async def test_closing_keeps_what_nobody_took(who: str) -> None:
    """Closing releases what nobody took, unharmed, and leaves what was taken to its taker until the end."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 5)
        receiver = await client.receiver("q")
        delivery = await soon(receiver.receive())
        await until(lambda: receiver.queued == 4)
        await delivery.accept()
        await soon((receiver if who == "receiver" else client).close())
        await until(lambda: broker.statistics().queues["q"].depth == 4)
        messages = broker.messages("q")
        assert [body_of(message) for message in messages] == [b"1", b"2", b"3", b"4"]
        assert [message.delivery_count for message in messages] == [0] * 4
        assert (client.state is CLOSED) == (who == "client")


@pytest.mark.parametrize("how", ["close", "detach"])
async def test_closing_waits_for_an_outage_to_end(how: str) -> None:
    """Closed during an outage, a receiver is over at once, iteration ends, and it does not come back."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        receiver = await client.receiver("q")
        async with beside(anext(receiver, None)) as step:
            await broker.abort()
            await changes.saw(RECONNECTING)
            began = time.monotonic()
            await soon(getattr(receiver, how)())
            assert time.monotonic() - began < 1.0
            assert await soon(step) is None
        with pytest.raises(amqp.LinkClosed):
            await soon(receiver.receive())
        await broker.start()
        await until(client.ready)
        put(broker, 1)
        async with client.receiver("q") as second:
            assert body_of((await soon(second.receive())).message) == b"0"
            assert broker.statistics().links == 1


async def test_closing_between_loss_and_attach_leaves_a_link() -> None:
    """Closed or cancelled at any moment of a repair, a receiver leaves no link at the broker."""
    async with Broker() as broker, opened(broker.url) as client:
        for point in range(0, 60, 3):
            receiver = await soon(client.receiver("q").__aenter__())
            broker.faults.detach_links()
            await turns(point)
            if point % 2:
                await soon(receiver.close())
            else:
                task = asyncio.create_task(receiver.close())
                await turns(2)
                task.cancel()
                await asyncio.wait([task])
            await until(lambda: broker.statistics().links == 0)
            assert client.health().links == ()
        assert broker.statistics().connections_total == 1


# --- credit --------------------------------------------------------------------------


@losses
async def test_manual_credit_is_lost(kind: str) -> None:
    """Manual credit that a lost link had not used is granted to the next, no more and no less."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q", credit=0)
        await receiver.add_credit(5)
        put(broker, 2)
        for _ in range(2):
            await (await soon(receiver.receive())).accept()
        await until(lambda: depth(broker) == 0)
        for _ in range(2):
            async with relinked(receiver):
                await LOSSES[kind](broker)
        put(broker, 10, 2)
        for number in range(2, 5):
            delivery = await soon(receiver.receive())
            assert body_of(delivery.message) == b"%d" % number
            await delivery.accept()
        await until(lambda: depth(broker) == 7)
        assert broker.statistics().queues["q"].unsettled == 0
        await receiver.add_credit(1)
        assert body_of((await soon(receiver.receive())).message) == b"5"


async def test_manual_credit_in_an_outage_is_lost() -> None:
    """Credit added during an outage is granted after it; a delivery that comes again costs no further credit."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        put(broker, 10)
        receiver = await client.receiver("q", credit=0)
        await receiver.add_credit(2)
        taken = await soon(receiver.receive())
        await until(lambda: receiver.queued == 1)
        await broker.abort()
        await changes.saw(RECONNECTING)
        assert not await accepted(taken)
        await receiver.add_credit(3)
        await broker.start()
        await until(lambda: receiver.attached)
        # One of the two was never taken, and comes again by its own credit.
        bodies = [body_of((await soon(receiver.receive())).message) for _ in range(4)]
        assert bodies == [b"0", b"1", b"2", b"3"]


async def test_draining_in_an_outage_hangs() -> None:
    """Draining returns the credit; without a link there is none, and it returns at once, or with the loss."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        receiver = await client.receiver("q", credit=0)
        await receiver.add_credit(5)
        put(broker, 1)
        await soon(receiver.drain())
        assert receiver.queued == 1
        put(broker, 1, 1)
        await (await soon(receiver.receive())).accept()
        await until(lambda: depth(broker) == 1)
        await receiver.add_credit(3)
        assert body_of((await soon(receiver.receive())).message) == b"1"
        await broker.abort()
        await changes.saw(RECONNECTING)
        await soon(receiver.drain())
        await broker.start()
        await until(lambda: receiver.attached)
        await turns(50)
        assert receiver.queued == 0
        assert broker.statistics().queues["q"].unsettled == 0


async def test_a_drain_ends_in_a_loss_for_ever() -> None:
    """A drain that the broker does not answer is over with the link."""
    async with Peer() as peer, opened(peer.url) as client:
        receiver = await client.receiver("q", credit=0)
        await receiver.add_credit(5)
        await peer.saw("flow")
        peer.on["flow"] = lambda conversation, link: None
        async with beside(receiver.drain()) as draining:
            await peer.saw("flow", 2)
            peer.conversation.drop()
            await soon(draining)


async def test_credit_of_a_window_is_manual() -> None:
    """Adding credit to a window is refused; so is no credit at all, and any after the end."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q")
        with pytest.raises(amqp.LocalProtocolError):
            await receiver.add_credit(1)
        manual = await client.receiver("q", credit=0)
        with pytest.raises(ValueError, match="credit"):
            await manual.add_credit(0)
        await soon(manual.close())
        with pytest.raises(amqp.LinkClosed):
            await manual.add_credit(1)
        with pytest.raises(amqp.LinkClosed):
            await soon(manual.drain())


# --- names ---------------------------------------------------------------------------


DURABLE = amqp.Source("topic:t", durable=amqp.TerminusDurability.UNSETTLED_STATE, expiry_policy=amqp.ExpiryPolicy.NEVER)


@losses
async def test_a_durable_subscription_is_made_anew(kind: str) -> None:
    """A durable subscription is attached again by its name, and has what was published meanwhile."""
    async with Broker() as broker:
        async with opened(broker.url, container_id="me") as client:
            receiver = await client.receiver(DURABLE, name="subscription")
            broker.put("topic:t", amqp.Message(b"0"))
            delivery = await soon(receiver.receive())
            await delivery.accept()
            await until(lambda: broker.statistics().topics["t"].subscriptions[0].acknowledged == 1)
            async with relinked(receiver):
                await LOSSES[kind](broker)
                broker.put("topic:t", amqp.Message(b"1"))
            second = await soon(receiver.receive())
            assert body_of(second.message) == b"1"
            await second.accept()
            assert len(broker.statistics().topics["t"].subscriptions) == 1
            await soon(receiver.detach())
        broker.put("topic:t", amqp.Message(b"2"))
        async with opened(broker.url, container_id="me") as client:
            receiver = await client.receiver(DURABLE, name="subscription")
            assert body_of((await soon(receiver.receive())).message) == b"2"
            await soon(receiver.close())
            await until(lambda: not broker.statistics().topics["t"].subscriptions)


async def test_a_durable_subscription_without_a_name_is_made_anew() -> None:
    """A durable subscription keeps the name that it was given, also where that was made up."""
    async with Broker() as broker, opened(broker.url, container_id="me") as client:
        receiver = await client.receiver(DURABLE)
        async with relinked(receiver):
            await broker.disconnect()
            broker.put("topic:t", amqp.Message(b"1"))
        assert body_of((await soon(receiver.receive())).message) == b"1"
        assert len(broker.statistics().topics["t"].subscriptions) == 1


async def test_the_end_of_a_client_deletes_a_subscription() -> None:
    """Closing the client keeps durable subscriptions, as a broker's restart does; closing the receiver deletes them."""
    async with Broker() as broker:
        async with opened(broker.url, container_id="me") as client:
            await client.receiver(DURABLE, name="subscription")
        assert len(broker.statistics().topics["t"].subscriptions) == 1


async def test_a_redirected_receiver_stays() -> None:
    """A receiver sent elsewhere receives there."""
    async with Broker() as there, Broker() as broker:
        broker.faults.inject(RefuseLink(error=link_redirect(there.url), address="q"))
        async with opened(broker.url, redirect_hosts=("127.0.0.1",)) as client:
            put(there, 2)
            async with client.receiver("q") as receiver:
                for number in range(2):
                    delivery = await soon(receiver.receive())
                    assert body_of(delivery.message) == b"%d" % number
                    await delivery.accept()
                    await until(lambda: there.statistics().queues["q"].acknowledged > number)  # noqa: B023
                    broker.faults.inject(RefuseLink(error=link_redirect(there.url), address="q"))
                    async with relinked(receiver):
                        await there.disconnect()
                assert client.state is CONNECTED


# --- processing ----------------------------------------------------------------------


@losses
async def test_processing_ends_with_a_loss(kind: str) -> None:
    """`process` goes on over losses: each message is handled, and settlements that a loss costs are counted."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 60)
        receiver = await client.receiver("q", credit=10)
        handled: list[bytes] = []
        stop = asyncio.Event()
        gate = asyncio.Event()

        async def handle(delivery: amqp.Delivery) -> None:
            handled.append(body_of(delivery.message))
            await gate.wait()

        async with beside(receiver.process(handle, concurrency=4, stop=stop)) as processing:
            await until(lambda: len(handled) == 4)
            async with relinked(receiver):
                await LOSSES[kind](broker)
            gate.set()
            await until(lambda: depth(broker) == 0)
            stop.set()
            statistics = await soon(processing)
        assert set(handled) == {b"%d" % number for number in range(60)}
        assert statistics.lost == 4
        assert statistics.accepted == 60
        assert statistics.in_flight == 0
        assert receiver.attached


@pytest.mark.parametrize("who", ["receiver", "client"])
async def test_closing_aborts_processing(who: str) -> None:
    """Closing stops processing gracefully: handlers finish and their deliveries are accepted, the rest is released."""
    async with Broker() as broker, opened(broker.url, close_timeout=PATIENCE) as client:
        put(broker, 20)
        receiver = await client.receiver("q", credit=10)
        gate = asyncio.Event()
        begun: list[bytes] = []

        async def handle(delivery: amqp.Delivery) -> None:
            begun.append(body_of(delivery.message))
            await gate.wait()

        async with beside(receiver.process(handle, concurrency=3)) as processing:
            await until(lambda: len(begun) == 3)
            async with beside((receiver if who == "receiver" else client).close()) as closing:
                await turns(50)
                assert not closing.done()
                gate.set()
                await soon(closing)
            statistics = await soon(processing)
        assert statistics.accepted == 3
        await until(lambda: broker.statistics().queues["q"].depth == 17)
        assert broker.statistics().queues["q"].acknowledged == 3
        assert all(message.delivery_count == 0 for message in broker.messages("q"))


async def test_closing_waits_for_a_handler_for_ever() -> None:
    """A handler that takes longer than `close_timeout` does not keep a client; its settlement is lost."""
    async with Broker() as broker, opened(broker.url, close_timeout=0.3) as client:
        put(broker, 1)
        receiver = await client.receiver("q")
        begun, gate = asyncio.Event(), asyncio.Event()

        async def handle(delivery: amqp.Delivery) -> None:
            begun.set()
            await gate.wait()

        async with beside(receiver.process(handle)) as processing:
            await soon(begun.wait())
            began = time.monotonic()
            await soon(client.close())
            assert time.monotonic() - began < 4.0
            gate.set()
            statistics = await soon(processing)
        assert (statistics.accepted, statistics.lost) == (0, 1)
        await until(lambda: broker.statistics().queues["q"].depth == 1)


async def test_closing_gives_handlers_no_end() -> None:
    """Handlers not done within `drain_timeout` are cancelled while there is time to release their deliveries."""
    async with Broker() as broker, opened(broker.url, close_timeout=PATIENCE) as client:
        put(broker, 2)
        receiver = await client.receiver("q")
        running = 0

        async def handle(delivery: amqp.Delivery) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.Event().wait()
            finally:
                running -= 1

        async with beside(receiver.process(handle, drain_timeout=0.1)) as processing:
            await until(lambda: running == 2)
            await soon(client.close())
            statistics = await soon(processing)
        assert (statistics.released, statistics.lost, running) == (2, 0, 0)
        assert [message.delivery_count for message in broker.messages("q")] == [0, 0]


async def test_processing_an_outage_hangs() -> None:
    """Stopped during an outage, processing is over as soon as its handlers are."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        put(broker, 1)
        receiver = await client.receiver("q")
        stop, gate, begun = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def handle(delivery: amqp.Delivery) -> None:
            begun.set()
            await gate.wait()

        async with beside(receiver.process(handle, stop=stop)) as processing:
            await soon(begun.wait())
            await broker.abort()
            await changes.saw(RECONNECTING)
            stop.set()
            gate.set()
            statistics = await soon(processing)
            assert (statistics.accepted, statistics.lost) == (0, 1)


async def test_processing_failing_fast_waits() -> None:
    """With ``outage="fail"`` an outage ends processing with its reason."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q", outage="fail")

        async def handle(delivery: amqp.Delivery) -> None:
            pass

        async with beside(receiver.process(handle)) as processing:
            await turns()
            await broker.abort()
            with pytest.raises(amqp.ConnectionClosed):
                await soon(processing)


async def test_a_final_end_leaves_processing() -> None:
    """The end of the link for good is raised from processing, after its handlers have ended."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 1)
        receiver = await client.receiver("q")
        ended = asyncio.Event()
        begun = asyncio.Event()

        async def handle(delivery: amqp.Delivery) -> None:
            begun.set()
            await turns(5)
            ended.set()

        async with beside(receiver.process(handle)) as processing:
            await soon(begun.wait())
            broker.faults.detach_links("q", amqp.ErrorCondition("amqp:not-found", "deleted"))
            with pytest.raises(amqp.LinkClosed):
                await soon(processing)
        assert ended.is_set()


async def test_cancelled_processing_leaves_tasks() -> None:
    """Cancelled in an outage as well, processing cancels its handlers and is over."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        put(broker, 3)
        receiver = await client.receiver("q")
        running = 0

        async def handle(delivery: amqp.Delivery) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.Event().wait()
            finally:
                running -= 1

        async with beside(receiver.process(handle)) as processing:
            await until(lambda: running == 3)
            await broker.abort()
            await changes.saw(RECONNECTING)
            processing.cancel()
            await asyncio.wait([processing], timeout=PATIENCE)
            assert processing.cancelled()
            assert running == 0
        await broker.start()
        assert body_of((await soon(receiver.receive())).message) == b"0"


async def test_handlers_may_send_while_the_client_closes() -> None:
    """What a handler has in hand when the client begins to close is finished, replies and settlement included."""
    async with Broker() as broker:
        begun, go_on = asyncio.Event(), asyncio.Event()
        async with amqp.Client(broker.url) as client:
            receiver, replies = await client.receiver("requests"), await client.sender("replies")

            async def answer(delivery: amqp.Delivery) -> None:
                begun.set()
                await go_on.wait()
                await replies.send(amqp.Message(b"done"))

            broker.put("requests", amqp.Message(b"do"))
            processing = asyncio.create_task(receiver.process(answer))
            await begun.wait()
            closing = asyncio.create_task(client.close())
            while client.state is not amqp.ClientState.CLOSING:
                await asyncio.sleep(0)
            go_on.set()
            await closing
            assert (await processing).accepted == 1
        assert [message.body for message in broker.messages("replies")] == [b"done"]
        assert broker.statistics().queues["requests"].acknowledged == 1
