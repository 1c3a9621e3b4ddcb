"""The reconnecting client against real brokers, with toxiproxy between them, and with the broker killed.

The brokers are the judges: a direct connection sees what really arrived, in which order and how often.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import amqpws_async as amqp
from tests.chaos import broker_kill
from tests.chaos.account import Account
from tests.chaos.watch import Watch
from tests.interop.brokers import Peer
from tests.interop.toxiproxy import Proxy, Toxiproxy

brokers = pytest.mark.parametrize("peer", ["artemis", "broker-j"], indirect=True)
one_each = pytest.mark.parametrize("own_peer", ["artemis", "broker-j"], indirect=True)

ROUNDS = 12  # faults of a test, every kind at least twice
BETWEEN = 150  # messages that get through from one fault to the next
SOON = 5_000  # bytes after which a connection ends: an upgrade and an open take 1 000, an outcome 20
BACKLOG = 1000  # messages that wait for receivers
IN_TIME = 90.0  # seconds for a whole test, in which nothing may hang
SEED = 20

pytestmark = pytest.mark.timeout(IN_TIME + 90)  # a broker starts within that too


# --- what goes wrong --------------------------------------------------------------------------


async def reset(proxy: Proxy, chance: random.Random) -> None:
    """Both sides see a reset."""
    await proxy.add("reset_peer", chance.choice(("upstream", "downstream")), timeout=chance.randrange(50))


async def stall(proxy: Proxy, chance: random.Random) -> None:
    """What one side sends goes nowhere, and nobody is told."""
    await proxy.add("timeout", chance.choice(("upstream", "downstream")), timeout=0)


async def cut(proxy: Proxy, chance: random.Random) -> None:
    """The connection ends at some byte, and so do those that follow: in a frame, in an open, in an upgrade."""
    await proxy.add("limit_data", chance.choice(("upstream", "downstream")), bytes=chance.randrange(1, SOON))


async def refuse(proxy: Proxy, chance: random.Random) -> None:
    """The connection ends, and nobody listens any more."""
    await proxy.disable()


async def linger(proxy: Proxy, chance: random.Random) -> None:
    """The connection ends at some byte, of which the other side learns later, while a new one is there already."""
    await proxy.add("slow_close", "upstream", delay=chance.randrange(100, 500))
    await proxy.add("limit_data", "downstream", bytes=chance.randrange(1_000, SOON))


async def crawl(proxy: Proxy, chance: random.Random) -> None:
    """Everything is slow and comes in pieces, before the connection ends."""
    await proxy.add("latency", "downstream", latency=20, jitter=10)
    await proxy.add("bandwidth", "upstream", rate=100)
    await proxy.add("slicer", "upstream", average_size=500, size_variation=400, delay=100)
    await proxy.add("limit_data", "upstream", bytes=chance.randrange(1_000, SOON))


FAULTS: list[Callable[[Proxy, random.Random], Awaitable[None]]] = [reset, stall, cut, refuse, linger, crawl]


async def break_again_and_again(
    proxy: Proxy, watches: list[Watch], between: Callable[[], Awaitable[None]], *, seed: int
) -> None:
    """Injects one fault after the other, each until every client has noticed; then all must come back and go on."""
    chance = random.Random(seed)
    faults = [FAULTS[number % len(FAULTS)] for number in range(ROUNDS)]
    chance.shuffle(faults)
    for fault in faults:
        await between()
        seen = [watch.outages for watch in watches]
        await fault(proxy, chance)
        for watch, outages in zip(watches, seen, strict=True):
            await watch.until_lost(outages + 1)
        await proxy.clear()
        await proxy.enable()
        for watch in watches:
            await watch.until_connected()
    await between()


# --- who takes part ---------------------------------------------------------------------------


def client(url: str, watch: Watch | None = None) -> amqp.Client:
    """Makes a client that soon notices a silence, and comes back soon."""
    return amqp.Client(
        url,
        backoff=amqp.Backoff(initial=0.02, maximum=0.5),
        ping_interval=0.5,
        ping_timeout=1.0,
        open_timeout=3.0,
        close_timeout=1.0,
        on_state=watch,
    )


async def send(client: amqp.Client, queue: str, name: str, account: Account, done: asyncio.Event) -> None:
    """Sends in order, many in flight, until `done`; what is in doubt is sent again."""
    async with client.sender(queue, on_unknown="resend") as sender:
        messages = account.messages(name, lambda number: not done.is_set())
        async for message, outcome in sender.send_many(messages, in_flight=100):
            account.sent(message, outcome)


async def send_once(client: amqp.Client, queue: str, name: str, account: Account, done: asyncio.Event) -> None:
    """Sends one by one until `done`, and never the same message again."""
    async with client.sender(queue, on_unknown="raise") as sender:
        for message in account.messages(name, lambda number: not done.is_set()):
            try:
                account.sent(message, await sender.send(message))
            except amqp.DeliveryUnknown as error:
                account.sent(error.message, error)


@contextlib.asynccontextmanager
async def observed(url: str, queue: str, account: Account, *, in_order: bool) -> AsyncIterator[None]:
    """Takes everything that arrives, over a direct connection that nothing happens to."""

    async def observe(receiver: amqp.Receiver) -> None:
        async for delivery in receiver:
            account.arrived(delivery.message, in_order=in_order)
            await delivery.accept()

    async with (
        amqp.connect(url) as connection,
        connection.receiver(queue, credit=500) as receiver,
        asyncio.TaskGroup() as group,
    ):
        observing = group.create_task(observe(receiver))
        yield
        await account.until_missing(0)
        observing.cancel()


async def take_what_is_left(url: str, queue: str, account: Account) -> None:
    """Empties the queue."""
    async with amqp.connect(url) as connection, connection.receiver(queue, credit=0) as receiver:
        while True:
            await receiver.add_credit(100)
            await receiver.drain()
            if not receiver.queued:
                return
            while receiver.queued:
                delivery = await receiver.receive()
                account.arrived(delivery.message, in_order=False)
                await delivery.accept()


# --- sending ------------------------------------------------------------------------------------


@brokers
async def test_what_is_sent_again_arrives_at_least_once(peer: Peer, toxiproxy: Toxiproxy, queue: str) -> None:
    """Through faults of every kind nothing is lost, a duplicate has the same message-id, each sender's order stays.

    Not quite on Artemis: while it still works on what a lost connection had sent, it takes the next one's resends for
    duplicates and drops them, but not what follows, which so comes before.
    """
    account, done = Account(), asyncio.Event()
    watches = [Watch(), Watch()]
    async with (
        asyncio.timeout(IN_TIME),
        toxiproxy.proxy(peer.url) as proxy,
        observed(peer.url, queue, account, in_order=peer.name != "artemis"),
        client(proxy.url, watches[0]) as first,
        client(proxy.url, watches[1]) as second,
        asyncio.TaskGroup() as group,
    ):
        for name, sending in (("one", first), ("two", first), ("three", second)):
            group.create_task(send(sending, queue, name, account, done))
        await break_again_and_again(proxy, watches, lambda: account.until_accepted(BETWEEN), seed=SEED)
        done.set()
    assert account.verdict() == []
    assert len(account.accepted) >= ROUNDS * BETWEEN
    assert not account.in_doubt


@brokers
async def test_what_is_never_sent_again_is_accounted_for_or_in_doubt(
    peer: Peer, toxiproxy: Toxiproxy, queue: str
) -> None:
    """Through faults of every kind a message that was accepted arrives, any other is reported, and none comes twice."""
    account, done, watch = Account(), asyncio.Event(), Watch()
    async with (
        asyncio.timeout(IN_TIME),
        toxiproxy.proxy(peer.url) as proxy,
        observed(peer.url, queue, account, in_order=False),
        client(proxy.url, watch) as sending,
        asyncio.TaskGroup() as group,
    ):
        for number in range(20):
            group.create_task(send_once(sending, queue, f"sender {number}", account, done))
        await break_again_and_again(proxy, [watch], lambda: account.until_accepted(BETWEEN), seed=SEED + 1)
        done.set()
    assert account.verdict() == []
    assert account.duplicates == 0
    assert account.in_doubt


@brokers
async def test_a_lost_outcome_has_the_message_sent_again(peer: Peer, toxiproxy: Toxiproxy, queue: str) -> None:
    """The broker has every message and its answers never come: Artemis drops the second ones by their duplicate id."""
    account, watch, count = Account(), Watch(), 50
    async with (
        asyncio.timeout(IN_TIME),
        toxiproxy.proxy(peer.url) as proxy,
        client(proxy.url, watch) as sending,
        sending.sender(queue, on_unknown="resend") as sender,
    ):
        await sender.send(account.message("before", 0))
        await proxy.add("timeout", "downstream", timeout=0)
        pending = [await sender.transfer(message) for message in account.messages("x", lambda number: number < count)]
        async with observed(peer.url, queue, account, in_order=True):
            await account.until_arrived(1 + count)
            assert not any(delivery.done for delivery in pending)
            await proxy.clear()
            for delivery in pending:
                account.sent(delivery.message, await delivery)
            await sender.send(account.message("after", 0))
            await account.until_arrived(1 + count + 1)
    assert watch.outages == 1
    assert account.duplicates == (0 if peer.name == "artemis" else count)
    assert account.problems == []


# --- receiving ----------------------------------------------------------------------------------


@brokers
async def test_receivers_go_on_over_reconnects(peer: Peer, toxiproxy: Toxiproxy, queue: str) -> None:
    """Through faults of every kind an iteration and a handler runner get everything, and leave the queue empty."""
    account, done, stop = Account(), asyncio.Event(), asyncio.Event()
    watches = [Watch(), Watch()]

    async def supply() -> AsyncIterator[amqp.Message]:
        for message in account.messages("x", lambda number: not done.is_set()):
            await account.until_missing(BACKLOG)
            yield message

    async def send(sender: amqp.Sender) -> None:
        async for message, outcome in sender.send_many(supply()):
            account.sent(message, outcome)

    async def iterate(receiver: amqp.ClientReceiver) -> None:
        async for delivery in receiver:
            account.arrived(delivery.message, in_order=False)
            with contextlib.suppress(amqp.SettlementLost):
                await delivery.accept()

    async def handle(delivery: amqp.Delivery) -> None:
        account.arrived(delivery.message, in_order=False)

    async def between() -> None:
        await account.until_arrived(len(account.arrivals) + BETWEEN)

    async with asyncio.timeout(IN_TIME), toxiproxy.proxy(peer.url) as proxy:
        async with (
            amqp.connect(peer.url) as connection,
            connection.sender(queue) as sender,
            client(proxy.url, watches[0]) as first,
            client(proxy.url, watches[1]) as second,
            first.receiver(queue, credit=20) as iterated,
            second.receiver(queue, credit=20) as processed,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(send(sender))
            group.create_task(iterate(iterated))
            processing = group.create_task(processed.process(handle, concurrency=10, stop=stop))
            await break_again_and_again(proxy, watches, between, seed=SEED + 2)
            done.set()
            await account.until_missing(0)
            stop.set()
            await iterated.close()
        await take_what_is_left(peer.url, queue, account)
    assert account.verdict() == []
    assert processing.result().accepted > 0


# --- moving and staying ------------------------------------------------------------------------


@brokers
async def test_a_roll_over_loses_and_doubles_nothing(peer: Peer, queue: str) -> None:
    """Amid sending and receiving the client moves to a second connection, again and again; nothing is sent again."""
    account, done, stop, watch = Account(), asyncio.Event(), asyncio.Event(), Watch()

    async def handle(delivery: amqp.Delivery) -> None:
        account.arrived(delivery.message, in_order=False)

    async with (
        asyncio.timeout(IN_TIME),
        client(peer.url, watch) as moving,
        moving.receiver(queue) as receiver,
        asyncio.TaskGroup() as group,
    ):
        sending = [group.create_task(send_once(moving, queue, f"sender {n}", account, done)) for n in range(10)]
        processing = group.create_task(receiver.process(handle, stop=stop))
        for _ in range(ROUNDS):
            await account.until_accepted(BETWEEN)
            await moving.roll_over()
        await account.until_accepted(BETWEEN)
        done.set()
        await asyncio.wait(sending)
        await account.until_missing(0)
        stop.set()
    assert account.verdict() == []
    assert (account.duplicates, account.in_doubt, watch.outages) == (0, set(), 0)
    assert sum(change.state is amqp.ClientState.CONNECTED for change in watch.changes) == 1 + ROUNDS
    assert processing.result().lost == 0


@pytest.mark.parametrize("own_peer", ["artemis"], indirect=True)
async def test_a_durable_subscription_goes_on_by_its_name(own_peer: Peer, queue: str) -> None:
    """The broker is killed with messages in the subscription: they arrive, and those that are published afterwards."""
    topic, account = f"topic:{queue}", Account(durable=True)
    source = amqp.Source(topic, durable=amqp.TerminusDurability.UNSETTLED_STATE, expiry_policy=amqp.ExpiryPolicy.NEVER)
    async with (
        asyncio.timeout(IN_TIME),
        client(own_peer.url) as subscribed,
        client(own_peer.url) as publishing,
        subscribed.receiver(source, name="subscription", credit=0) as receiver,
        publishing.sender(topic, on_unknown="resend") as sender,
    ):
        for number in range(20):
            if number == 10:
                await asyncio.to_thread(own_peer.server.restart)
            message = account.message("x", number)
            account.sent(message, await sender.send(message))
        await receiver.add_credit(20)
        for _ in range(20):
            delivery = await receiver.receive()
            account.arrived(delivery.message, in_order=True)
            await delivery.accept()
    assert account.verdict() == []
    assert account.duplicates == 0


# --- the broker's end ---------------------------------------------------------------------------


@one_each
@pytest.mark.timeout(360)
async def test_a_broker_that_is_killed_loses_nothing_that_was_accepted(own_peer: Peer) -> None:
    """Two kills and restarts amid sending and receiving: durable messages are all there."""
    report = await broker_kill.run(own_peer, kills=2, seed=SEED, say=lambda line: None)
    assert report.problems == []
    assert report.kills == 2
    if own_peer.name == "artemis":
        assert report.resent_twice == 0
