"""The embedded broker as the client of this library sees it: addresses, settlement, ends of every kind, who gets in."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import trustme

import amqpws_async as amqp
from amqpws_async.testing import Broker, BrokerStatistics, LinkRequest, QueueStatistics, Refusal


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the loop has made something true."""
    async with asyncio.timeout(5):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Waits, and not for ever."""
    async with asyncio.timeout(5):
        return await awaitable


async def nothing_comes(receiver: amqp.Receiver) -> None:
    """Makes sure that no message is on its way: all that goes is here once a drain is answered."""
    await soon(receiver.drain())
    assert receiver.queued == 0


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[Broker, amqp.Connection]]:
    async with Broker(**options) as broker, amqp.connect(broker.url) as connection:
        yield broker, connection


async def send(connection: amqp.Connection, address: str | None, *messages: amqp.Message) -> None:
    async with connection.sender(address) as sender:
        for message in messages:
            await sender.send(message)


def queue(broker: Broker, name: str = "q") -> QueueStatistics:
    return broker.statistics().queues[name]


# --- the life of a broker ---------------------------------------------------------------


async def test_a_broker_comes_and_goes() -> None:
    """It has a port once it listens, says so, and is gone after the block."""
    broker = Broker()
    assert broker.statistics() == BrokerStatistics()
    async with broker:
        assert broker.port > 0
        assert broker.url == f"ws://127.0.0.1:{broker.port}/"
        assert "listening" in repr(broker)
        with pytest.raises(RuntimeError, match="already"):
            await broker.start()
    assert "closed" in repr(broker)
    await broker.close()
    await broker.abort()
    with pytest.raises(amqp.OpenError):
        await amqp.connect(broker.url)


async def test_the_url_of_an_ipv6_listener() -> None:
    """An IPv6 address stands in brackets."""
    assert Broker("::1", 5672).url == "ws://[::1]:5672/"


@pytest.mark.parametrize(
    "options",
    [
        {"max_message_size": 0},
        {"max_queue_bytes": 0},
        {"max_delivery_count": 0},
        {"max_connections": 0},
        {"max_links": 0},
        {"max_frame_size": 511},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, int]) -> None:
    """Numbers that make no sense are refused where they are given."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Broker(**options)  # type: ignore[arg-type]


async def test_close_ends_clients_in_order() -> None:
    """A client sees an AMQP close with a condition, everything still queued is kept, and start() serves it again."""
    broker = await Broker().start()
    url = broker.url
    async with amqp.connect(url) as connection:
        receiver = await connection.receiver("q")
        sender = await connection.sender("q")
        await sender.send(amqp.Message(b"kept"))
        await soon(receiver.receive())
        await soon(broker.close())
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await receiver.receive()
        assert caught.value.stop.initiator == "remote"
        assert caught.value.stop.condition == "amqp:connection:forced"
    await broker.start()
    assert broker.url == url
    async with amqp.connect(url) as connection, connection.receiver("q") as receiver:
        delivery = await soon(receiver.receive())
        assert delivery.body == b"kept"
        assert delivery.message.delivery_count == 1
        await delivery.accept()
    await broker.close()
    assert broker.statistics().connections_total == 2


async def test_abort_is_a_broker_that_died() -> None:
    """Clients lose the connection without a word, nobody can connect, and a new start has the messages."""
    broker = await Broker().start()
    connection = await amqp.connect(broker.url)
    sender = await connection.sender("q")
    await sender.send(amqp.Message(b"1"))
    await soon(broker.abort())
    await until(lambda: not connection.health().ok)
    with pytest.raises(amqp.ConnectionClosed) as caught:
        await soon(sender.send(amqp.Message(b"2")))
    assert caught.value.stop.initiator == "transport"
    with pytest.raises(amqp.OpenError):
        await amqp.connect(broker.url)
    await connection.close()
    async with broker:
        assert queue(broker).depth == 1


async def test_disconnect_drops_clients_and_keeps_the_rest() -> None:
    """Clients lose the connection, what they had not settled is back, and they may come again at once."""
    async with Broker() as broker:
        connection = await amqp.connect(broker.url)
        await send(connection, "q", amqp.Message(b"1"))
        receiver = await connection.receiver("q")
        await soon(receiver.receive())
        assert broker.statistics().connections == 1
        assert broker.statistics().links == 1
        await soon(broker.disconnect())
        assert broker.statistics().connections == 0
        with pytest.raises(amqp.ConnectionClosed):
            await receiver.receive()
        await connection.close()
        async with amqp.connect(broker.url) as connection, connection.receiver("q") as receiver:
            assert (await soon(receiver.receive())).message.delivery_count == 1


async def test_a_closed_client_leaves_nothing() -> None:
    """Connections, sessions and links are forgotten on both sides of the count, and collected."""
    async with Broker() as broker:
        for _ in range(3):
            async with amqp.connect(broker.url) as connection:
                async with connection.sender("q"), connection.receiver("q"):
                    pass
                links = await connection.sender("q"), await connection.receiver("q")
                assert broker.statistics().links == len(links)
                (peer,) = broker._peers
                reference = weakref.ref(peer)
                del peer
        await until(lambda: not broker._peers)
        statistics = broker.statistics()
        assert (statistics.connections, statistics.sessions, statistics.links) == (0, 0, 0)
        assert statistics.queues["q"].consumers == 0
        await until(lambda: gc.collect() >= 0 and reference() is None)


# --- queues -------------------------------------------------------------------------------


async def test_one_message_through_a_queue() -> None:
    """What goes in comes out byte for byte, under both spellings of the address."""
    message = amqp.Message(b"x" * 1000, subject="s", application_properties={"a": 1}, durable=True)
    async with connected() as (broker, connection):
        sender = await connection.sender("queue:q")
        assert await sender.send(message) == amqp.Accepted()
        assert queue(broker) == QueueStatistics(depth=1, bytes=len(message.encode()), enqueued=1)
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        assert delivery.raw == message.encode()
        assert queue(broker).unsettled == 1
        await delivery.accept()
        await until(lambda: queue(broker).acknowledged == 1)
        assert queue(broker).bytes == 0


async def test_a_message_of_many_frames() -> None:
    """A message larger than every frame and buffer comes out whole."""
    body = bytes(range(256)) * 4096 * 5
    async with connected(max_frame_size=4096) as (_, connection):
        sender = await connection.sender("q")
        await soon(sender.send(amqp.Message(body)))
        receiver = await connection.receiver("q")
        assert (await soon(receiver.receive())).body == body


async def test_presettled_both_ways() -> None:
    """Settled transfers are stored, and a receiver that wants settled ones gets them so."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q", snd_settle_mode=amqp.SenderSettleMode.SETTLED)
        assert await sender.send(amqp.Message(b"1")) is None
        receiver = await connection.receiver("q", snd_settle_mode=amqp.SenderSettleMode.SETTLED)
        delivery = await soon(receiver.receive())
        assert delivery.settled
        assert queue(broker).acknowledged == 1


async def test_settle_mode_second_both_ways() -> None:
    """The sender settles after the outcome, and the receiver hears that the broker has settled."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        assert await soon(sender.send(amqp.Message(b"1"))) == amqp.Accepted()
        receiver = await connection.receiver("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        delivery = await soon(receiver.receive())
        await soon(delivery.accept(confirm=True))
        assert queue(broker).acknowledged == 1


async def test_receivers_compete_and_share() -> None:
    """Each message goes to one receiver, and nobody starves."""
    async with connected() as (_, connection):
        sender = await connection.sender("q")
        receivers = [await connection.receiver("q", credit=0) for _ in range(3)]
        for receiver in receivers:
            await receiver.add_credit(10)
        for number in range(30):
            await sender.send(amqp.Message(b"%d" % number))
        bodies = [[(await soon(receiver.receive())).body for _ in range(10)] for receiver in receivers]
        assert sorted(int(body) for some in bodies for body in some) == list(range(30))


async def test_credit_is_honoured_and_drained() -> None:
    """No more comes than was asked for, and a drain ends when the queue has no more."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q")
        for _ in range(5):
            await sender.send(amqp.Message(b"1"))
        receiver = await connection.receiver("q", credit=0)
        await receiver.add_credit(2)
        await until(lambda: receiver.queued == 2)
        assert queue(broker).depth == 3
        await receiver.add_credit(10)
        await soon(receiver.drain())
        assert receiver.queued == 5
        assert receiver.credit == 0
        await sender.send(amqp.Message(b"later"))
        assert queue(broker).depth == 1


async def test_the_outcomes() -> None:
    """Released comes again as it was, modified comes again counted and annotated, rejected is a dead letter."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q")
        await sender.send(amqp.Message(b"1"))
        receiver = await connection.receiver("q")
        first = await soon(receiver.receive())
        await first.release()
        second = await soon(receiver.receive())
        assert second.raw == first.raw
        await second.modify(delivery_failed=True, message_annotations={"x-why": "busy"})
        third = await soon(receiver.receive())
        assert third.message.delivery_count == 1
        assert third.message.message_annotations == {"x-why": "busy"}
        await third.reject("app:bad", "cannot read it")
        dead = await connection.receiver("dead-letter")
        letter = await soon(dead.receive())
        assert letter.message.message_annotations["x-opt-dead-letter-condition"] == "app:bad"
        assert letter.message.message_annotations["x-opt-dead-letter-source"] == "q"
        assert queue(broker).dead_lettered == 1


async def test_undeliverable_here_goes_elsewhere() -> None:
    """A message is not offered again to the link that cannot take it, and another link gets it."""
    async with connected() as (_, connection):
        sender = await connection.sender("q")
        one = await connection.receiver("q")
        await sender.send(amqp.Message(b"1"))
        await (await soon(one.receive())).modify(undeliverable_here=True)
        await nothing_comes(one)
        other = await connection.receiver("q")
        assert (await soon(other.receive())).body == b"1"


@pytest.mark.parametrize("end", ["close", "detach", "session", "connection", "lost"])
async def test_what_was_not_settled_comes_again(end: str) -> None:
    """However a receiver ends, what it had not settled goes to the next one, counted, in order, exactly once."""
    async with connected() as (broker, keeper):
        sender = await keeper.sender("q")
        for number in range(20):
            await sender.send(amqp.Message(b"%d" % number))
        connection = await amqp.connect(broker.url)
        session = await connection.session()
        first = await session.receiver("q", credit=0)
        second = await session.receiver("q", credit=0)
        await first.add_credit(5)
        deliveries = [await soon(first.receive()) for _ in range(5)]
        await second.add_credit(5)
        deliveries += [await soon(second.receive()) for _ in range(5)]
        await first.add_credit(100)  # must not get what the other leaves, as both end
        deliveries += [await soon(first.receive()) for _ in range(10)]
        assert [delivery.body for delivery in deliveries] == [b"%d" % number for number in range(20)]
        if end == "close":
            await second.close()
            await first.close()
        elif end == "detach":
            await second.detach()
            await first.detach()
        elif end == "session":
            await session.close()
        elif end == "connection":
            await connection.close()
        else:
            connection._runner.transport.abort()
        await until(lambda: queue(broker).depth == 20)
        receiver = await keeper.receiver("q")
        again = [await soon(receiver.receive()) for _ in range(20)]
        assert [delivery.body for delivery in again] == [b"%d" % number for number in range(20)]
        assert [delivery.message.delivery_count for delivery in again] == [1] * 20
        await connection.close()


async def test_max_delivery_count() -> None:
    """A message that failed too often is a dead letter."""
    async with connected(max_delivery_count=2) as (broker, connection):
        await send(connection, "q", amqp.Message(b"1"))
        receiver = await connection.receiver("q")
        for _ in range(2):
            await (await soon(receiver.receive())).modify(delivery_failed=True)
        await until(lambda: queue(broker).dead_lettered == 1)
        assert broker.statistics().queues["dead-letter"].depth == 1


async def test_an_expired_message_is_not_delivered() -> None:
    """The ttl of a message is heeded."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q")
        await sender.send(amqp.Message(b"1", ttl=0.001))
        await asyncio.sleep(0.01)
        await sender.send(amqp.Message(b"2"))
        receiver = await connection.receiver("q")
        assert (await soon(receiver.receive())).body == b"2"
        assert queue(broker).expired == 1


async def test_a_selector() -> None:
    """The receiver gets what it selects, and the attach says that the filter is in effect."""
    async with connected() as (_, connection):
        sender = await connection.sender("q")
        for color in ("red", "blue", "red"):
            await sender.send(amqp.Message(color.encode(), application_properties={"color": color}))
        source = amqp.Source(
            "q", filter={"x:unknown": amqp.Described(amqp.symbol("x:unknown"), 1), **amqp.selector("color = 'blue'")}
        )
        receiver = await connection.receiver(source)
        assert receiver.remote is not None
        assert receiver.remote.source is not None
        assert list(receiver.remote.source.filter or {}) == ["apache.org:selector-filter:string"]
        assert (await soon(receiver.receive())).body == b"blue"
        await nothing_comes(receiver)


async def test_a_selector_that_is_none() -> None:
    """A malformed selector refuses the attach."""
    async with connected() as (_, connection):
        with pytest.raises(amqp.AttachError, match="invalid-field"):
            await soon(connection.receiver(amqp.Source("q", filter=amqp.selector("color = "))))


async def test_browsing() -> None:
    """Distribution mode copy looks without taking, whatever the outcome, and without counting."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q")
        for number in range(3):
            await sender.send(amqp.Message(b"%d" % number))
        source = amqp.Source("q", distribution_mode=amqp.DistributionMode.COPY)
        browser = await connection.receiver(source)
        for number in range(3):
            delivery = await soon(browser.receive())
            assert delivery.body == b"%d" % number
            await (delivery.accept() if number else delivery.reject())
        await nothing_comes(browser)
        assert queue(broker).depth == 3
        await browser.close()
        assert queue(broker).redelivered == 0


async def test_a_receiver_that_takes_small_messages_only() -> None:
    """A message over the receiver's max-message-size is not sent to it."""
    async with connected() as (broker, connection):
        sender = await connection.sender("q")
        await sender.send(amqp.Message(b"x" * 1000))
        await sender.send(amqp.Message(b"small"))
        receiver = await connection.receiver("q", max_message_size=500)
        assert (await soon(receiver.receive())).body == b"small"
        assert queue(broker).depth == 1


async def test_a_message_that_is_too_large() -> None:
    """The limit is announced, and the client keeps to it by itself."""
    async with connected(max_message_size=1000) as (_, connection):
        sender = await connection.sender("q")
        assert sender.remote is not None
        assert sender.remote.max_message_size == 1000
        with pytest.raises(amqp.MessageTooLarge):
            await sender.send(amqp.Message(b"x" * 1000))


# --- bounded memory -----------------------------------------------------------------------


async def test_a_full_queue_holds_its_senders_back() -> None:
    """Credit is withheld while a queue is full, and comes again as it empties; nothing is lost."""
    limit = 256 * 1024
    async with connected(max_queue_bytes=limit) as (broker, connection):
        sender = await connection.sender("q")
        sent = 0

        async def send() -> None:
            nonlocal sent
            async for _ in sender.send_many(amqp.Message(b"%06d" % number + b"x" * 10_000) for number in range(200)):
                sent += 1

        task = asyncio.create_task(send())
        await until(lambda: queue(broker).bytes >= limit - 20_000 and sender.credit == 0)
        assert not task.done()
        assert queue(broker).bytes < 3 * limit
        async with connection.session() as session, session.receiver("q", credit=5) as receiver:
            for number in range(200):
                delivery = await soon(receiver.receive())
                assert isinstance(delivery.body, bytes)
                assert delivery.body.startswith(b"%06d" % number)
                await delivery.accept()
        await soon(task)
        assert sent == 200


# --- topics -------------------------------------------------------------------------------


async def test_a_topic_reaches_every_subscriber() -> None:
    """Each subscription of the moment gets its own copy; who comes later gets what comes later."""
    async with connected() as (broker, connection):
        sender = await connection.sender("topic:t")
        await sender.send(amqp.Message(b"nobody"))
        receivers = [await connection.receiver("topic:t") for _ in range(3)]
        await sender.send(amqp.Message(b"all"))
        for receiver in receivers:
            delivery = await soon(receiver.receive())
            assert delivery.body == b"all"
            await delivery.accept()
        statistics = broker.statistics().topics["t"]
        assert (statistics.published, len(statistics.subscriptions)) == (2, 3)
        for receiver in receivers:
            await receiver.close()
        assert broker.statistics().topics["t"].subscriptions == ()


async def test_the_capability_topic_is_as_good_as_the_prefix() -> None:
    """JMS clients ask for a topic by capability."""
    async with connected() as (_, connection):
        receiver = await connection.receiver("topic:t")
        sender = await connection.sender(amqp.Target("t", capabilities=("topic",)))
        await sender.send(amqp.Message(b"1"))
        assert (await soon(receiver.receive())).body == b"1"


async def test_a_selector_on_a_topic() -> None:
    """A subscription keeps what it selects."""
    async with connected() as (broker, connection):
        receiver = await connection.receiver(amqp.Source("topic:t", filter=amqp.selector("JMSType = 'b'")))
        sender = await connection.sender("topic:t")
        for subject in "abc":
            await sender.send(amqp.Message(subject.encode(), subject=subject))
        assert (await soon(receiver.receive())).body == b"b"
        assert broker.statistics().topics["t"].subscriptions[0].enqueued == 1


async def test_a_durable_subscription() -> None:
    """It outlives a detach and the connection, collects meanwhile, and ends when its link is closed."""
    source = amqp.Source(
        "topic:t", durable=amqp.TerminusDurability.CONFIGURATION, expiry_policy=amqp.ExpiryPolicy.NEVER
    )
    async with connected() as (broker, publisher):
        sender = await publisher.sender("topic:t")
        async with amqp.connect(broker.url, container_id="subscriber") as connection:
            receiver = await connection.receiver(source, name="subscription")
            await sender.send(amqp.Message(b"1"))
            await (await soon(receiver.receive())).accept()
            await receiver.detach()
            await sender.send(amqp.Message(b"2"))
        await sender.send(amqp.Message(b"3"))
        async with amqp.connect(broker.url, container_id="subscriber") as connection:
            receiver = await connection.receiver(source, name="subscription")
            for body in (b"2", b"3"):
                delivery = await soon(receiver.receive())
                assert delivery.body == body
                await delivery.accept()
            await receiver.close()
            assert broker.statistics().topics["t"].subscriptions == ()


async def test_a_durable_subscription_is_stolen() -> None:
    """The same container and link name takes the subscription over, and the old link is told."""
    source = amqp.Source("topic:t", expiry_policy=amqp.ExpiryPolicy.NEVER)
    async with Broker() as broker:
        old = await amqp.connect(broker.url, container_id="subscriber")
        new = await amqp.connect(broker.url, container_id="subscriber")
        first = await old.receiver(source, name="subscription")
        second = await new.receiver(source, name="subscription")
        with pytest.raises(amqp.LinkClosed, match="stolen"):
            await soon(first.receive())
        await send(new, "topic:t", amqp.Message(b"1"))
        assert (await soon(second.receive())).body == b"1"
        await old.close()
        await new.close()


# --- anonymous, dynamic, refused ---------------------------------------------------------------


@pytest.mark.parametrize("address", [None, ""])
async def test_the_anonymous_relay(address: str | None) -> None:
    """Each message goes where it says, and one that cannot go anywhere is rejected."""
    async with connected() as (broker, connection):
        assert "ANONYMOUS-RELAY" in connection.remote.offered_capabilities
        sender = await connection.sender(amqp.Target(address))
        await sender.send(amqp.Message(b"1", to="queue:a"))
        await sender.send(amqp.Message(b"2", to="b"))
        for to in (None, "", "dynamic/none"):
            with pytest.raises(amqp.MessageRejected, match="not-found"):
                await sender.send(amqp.Message(b"3", to=to))
        assert {name: statistics.depth for name, statistics in broker.statistics().queues.items()} == {"a": 1, "b": 1}


async def test_request_and_reply_over_a_dynamic_node() -> None:
    """A dynamic source has an address to reply to, for as long as its link is there."""
    async with connected() as (broker, connection):
        replies = await connection.receiver(amqp.Source(dynamic=True))
        address = replies.address
        assert address is not None
        assert address.startswith("dynamic/")
        requests = await connection.receiver("requests")
        sender = await connection.sender("requests")
        await sender.send(amqp.Message(b"ping", reply_to=address, correlation_id="c"))
        request = await soon(requests.receive())
        replier = await connection.sender(None)
        await replier.send(amqp.Message(b"pong", to=request.message.reply_to, correlation_id="c"))
        assert (await soon(replies.receive())).body == b"pong"
        fixed = await connection.sender(address)
        await replies.close()
        with pytest.raises(amqp.LinkClosed, match="resource-deleted"):
            await soon(fixed.send(amqp.Message(b"late")))
        with pytest.raises(amqp.MessageRejected, match="not-found"):
            await replier.send(amqp.Message(b"late", to=address))
        with pytest.raises(amqp.AttachError, match="not-found"):
            await connection.sender(address)
        assert address not in broker.statistics().queues


async def test_a_dynamic_target() -> None:
    """A sender may have a node made as well; receivers of it are told when it is deleted."""
    async with connected() as (_, connection):
        sender = await connection.sender(amqp.Target(dynamic=True, capabilities=("temporary-topic",)))
        address = sender.address
        assert address is not None
        assert address.startswith("topic:dynamic/")
        receiver = await connection.receiver(address)
        await sender.send(amqp.Message(b"1"))
        assert (await soon(receiver.receive())).body == b"1"
        await sender.close()
        with pytest.raises(amqp.LinkClosed, match="resource-deleted"):
            await soon(receiver.receive())


async def test_links_are_authorised() -> None:
    """The hook sees who wants what, and a refusal reaches the client; an anonymous link is asked for each message."""
    seen: list[LinkRequest] = []

    def authorize_link(request: LinkRequest) -> amqp.ErrorCondition | None:
        seen.append(request)
        if request.address == "broken":
            raise RuntimeError("the hook is broken")
        return amqp.ErrorCondition("amqp:unauthorized-access", "not yours") if request.address == "secret" else None

    async with (
        Broker(users={"alice": "pw"}, authorize_link=authorize_link) as broker,
        amqp.connect(broker.url, sasl=amqp.Plain("alice", "pw"), container_id="me") as connection,
    ):
        await send(connection, "open")
        with pytest.raises(amqp.AttachError, match=r"unauthorized-access.*not yours"):
            await connection.sender("secret")
        with pytest.raises(amqp.AttachError, match="unauthorized-access"):
            await connection.receiver("secret")
        with pytest.raises(amqp.AttachError, match="internal-error"):
            await connection.receiver("broken")
        with pytest.raises(amqp.MessageRejected, match="unauthorized-access"):
            await send(connection, None, amqp.Message(b"", to="secret"))
    assert seen[0] == LinkRequest(role="sender", address="open", user="alice", container_id="me")
    assert [(request.role, request.address) for request in seen[1:]] == [
        ("sender", "secret"),
        ("receiver", "secret"),
        ("receiver", "broken"),
        ("sender", None),
        ("sender", "secret"),
    ]


async def test_a_dynamic_node_is_asked_about_too() -> None:
    """Its address is not known yet; the request says that a node is wanted."""
    seen: list[LinkRequest] = []

    def authorize_link(request: LinkRequest) -> amqp.ErrorCondition | None:
        seen.append(request)
        return amqp.ErrorCondition("amqp:not-allowed", "no") if request.dynamic else None

    async with connected(authorize_link=authorize_link) as (_, connection):
        with pytest.raises(amqp.AttachError, match="not-allowed"):
            await connection.sender(amqp.Target(None, dynamic=True))
        with pytest.raises(amqp.AttachError, match="not-allowed"):
            await connection.receiver(amqp.Source(None, dynamic=True))
        await (await connection.sender(None)).close()
    assert [(request.role, request.address, request.dynamic) for request in seen] == [
        ("sender", None, True),
        ("receiver", None, True),
        ("sender", None, False),
    ]


# --- who gets in ------------------------------------------------------------------------------


async def test_one_connection_too_many_is_closed_and_harms_nobody() -> None:
    """It opens and is closed with a condition; who was there stays, and a place that is left is free again."""
    async with Broker(max_connections=2) as broker:
        first = await amqp.connect(broker.url)
        async with amqp.connect(broker.url) as second:
            with pytest.raises(amqp.ConnectionClosed, match="too much connections") as caught:
                async with amqp.connect(broker.url) as third:
                    await soon(third.receiver("q"))
            assert caught.value.stop.condition == "amqp:resource-limit-exceeded"
            assert (broker.statistics().connections, broker.statistics().connections_total) == (2, 3)
            assert "q" not in broker.statistics().queues
            assert first.health().ok
            assert second.health().ok
        async with amqp.connect(broker.url) as connection:
            await send(connection, "q", amqp.Message(b""))
        await first.close()


async def test_links_are_limited_by_role_and_connection() -> None:
    """On all sessions together; senders do not count as receivers, and a link that is closed leaves its place."""
    async with connected(max_links=2) as (broker, connection):
        session = await connection.session()
        senders = [await connection.sender("q"), await session.sender("q")]
        with pytest.raises(amqp.AttachError, match=r"resource-limit-exceeded.*2 senders"):
            await connection.sender("q")
        receivers = [await connection.receiver("q"), await session.receiver("q")]
        with pytest.raises(amqp.AttachError, match=r"resource-limit-exceeded.*2 receivers"):
            await session.receiver("q")
        await senders[0].close()
        await receivers[1].detach()
        await send(connection, "q", amqp.Message(b"1"))
        receivers.append(await connection.receiver("q"))
        async with amqp.connect(broker.url) as other:
            await send(other, "q", amqp.Message(b"2"))


async def test_plain() -> None:
    """With users given, PLAIN lets them in and nobody else, unless anonymous clients are welcome as well."""
    async with Broker(users={"alice": "secret"}) as broker:
        async with amqp.connect(broker.url, sasl=amqp.Plain("alice", "secret")) as connection:
            await send(connection, "q")
        for sasl in (amqp.Plain("alice", "wrong"), amqp.Anonymous()):
            with pytest.raises(amqp.AMQPError):
                await soon(amqp.connect(broker.url, sasl=sasl))
    async with Broker(users={"alice": "secret"}, anonymous=True) as broker:
        await (await amqp.connect(broker.url, sasl=amqp.Anonymous())).close()


async def test_the_upgrade_is_authorised_by_headers_and_path() -> None:
    """The hook may say no with a status, or with status, body and headers."""
    answers: dict[str, int | Refusal | None] = {
        "/": None,
        "/status": 403,
        "/whole": Refusal(401, "who are you?", {"WWW-Authenticate": "Bearer", "Content-Type": "text/x"}),
    }
    seen: list[str | None] = []

    def authorize(headers: Mapping[str, str], path: str) -> int | Refusal | None:
        seen.append(headers.get("Authorization"))
        return answers[path]

    async with Broker(authorize=authorize) as broker:
        await (await amqp.connect(broker.url, token="t0ken")).close()
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(broker.url + "status")
        assert caught.value.status == 403
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(broker.url + "whole")
        assert (caught.value.status, caught.value.body) == (401, b"who are you?")
        assert caught.value.headers["WWW-Authenticate"] == "Bearer"
    assert seen == ["Bearer t0ken", None, None]


async def test_the_hook_for_the_upgrade_may_be_a_coroutine_function() -> None:
    """It may take its time, to ask somebody else."""

    async def authorize(headers: Mapping[str, str], path: str) -> int | None:
        await asyncio.sleep(0)
        return None if path == "/" else 404

    async with Broker(authorize=authorize) as broker:
        await (await amqp.connect(broker.url)).close()
        with pytest.raises(amqp.HandshakeError):
            await amqp.connect(broker.url + "x")


async def test_subprotocols() -> None:
    """The first that both know is selected; a broker that selects none leaves it to the client to mind."""
    async with Broker(subprotocols=("AMQPWSB10", "amqp")) as broker:
        await (await amqp.connect(broker.url, subprotocols=("AMQPWSB10",))).close()
        with pytest.raises(amqp.HandshakeError):
            await amqp.connect(broker.url, subprotocols=("mqtt",))
    async with Broker(subprotocols=()) as broker:
        with pytest.raises(amqp.HandshakeError, match="subprotocol"):
            await amqp.connect(broker.url)
        await (await amqp.connect(broker.url, require_subprotocol=False)).close()


async def test_tls_and_external() -> None:
    """Over wss:// a client certificate is an identity for EXTERNAL."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(client)
    users: list[str | None] = []

    def authorize_link(request: LinkRequest) -> None:
        users.append(request.user)

    async with Broker(ssl=server, authorize_link=authorize_link) as broker:
        assert broker.url.startswith("wss://")
        async with amqp.connect(broker.url, ssl=client) as connection:
            await send(connection, "q")
        authority.issue_cert("alice@example.org", common_name="alice").configure_cert(client)
        async with amqp.connect(broker.url, ssl=client, sasl=amqp.External()) as connection:
            await send(connection, "q")
    assert users == [None, "alice"]


async def test_a_silent_client_is_dropped_and_a_living_one_is_not() -> None:
    """The idle timeout ends clients that say nothing at all, and keeps those whose engine sends empty frames."""
    async with Broker(idle_timeout=0.4) as broker, amqp.connect(broker.url) as connection:
        assert connection.remote.idle_timeout == pytest.approx(0.2)
        await asyncio.sleep(0.9)
        assert connection.health().ok
        assert broker.statistics().connections == 1
        await send(connection, "q", amqp.Message(b"1"))


async def test_many_tasks_many_links() -> None:
    """Senders and receivers on several connections at once: every message arrives exactly once."""
    number, total = 4, 2000
    received: list[bytes] = []
    async with Broker() as broker:
        connections = [await amqp.connect(broker.url) for _ in range(number)]

        async def send_some(index: int) -> None:
            messages = (amqp.Message(b"%d" % item) for item in range(index, total, number))
            async with connections[index].sender("q") as sender:
                async for _, outcome in sender.send_many(messages):
                    assert outcome == amqp.Accepted()

        async def receive(index: int) -> None:
            async with connections[index].receiver("q", credit=20) as receiver:
                async for delivery in receiver:
                    assert isinstance(delivery.body, bytes)
                    received.append(delivery.body)
                    await delivery.accept()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            consumers = [group.create_task(receive(index)) for index in range(number)]
            async with asyncio.TaskGroup() as senders:
                for index in range(number):
                    senders.create_task(send_some(index))
            await until(lambda: len(received) == total)
            for consumer in consumers:
                consumer.cancel()
        assert sorted(int(body) for body in received) == list(range(total))
        await asyncio.gather(*(connection.close() for connection in connections))
