"""The same scenarios, through the public API, against every peer that can play its part in them.

`everywhere` are all peers; `brokers` leaves rhea's server out, which keeps its messages in arrays and knows no more.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import uuid
from collections import Counter
from typing import Any

import pytest
from proton import Data

import amqpws_async as amqp
from amqpws_async.codec import (
    UNDESCRIBED,
    Array,
    Described,
    byte,
    char,
    decimal32,
    decimal64,
    decimal128,
    float32,
    int32,
    short,
    symbol,
    timestamp,
    ubyte,
    uint,
    ulong,
    ushort,
)
from tests.interop.brokers import IDLE_TIMEOUT, ONE_ATTEMPT, PASSWORD, USER, Peer
from tests.interop.gateways import Gateway

BROKERS = ["artemis", "broker-j", "embedded"]
everywhere = pytest.mark.parametrize("peer", [*BROKERS, "rhea"], indirect=True)
brokers = pytest.mark.parametrize("peer", BROKERS, indirect=True)
one_each = pytest.mark.parametrize("own_peer", [*BROKERS, "rhea"], indirect=True)

PROMPTLY = 10.0  # seconds within which a peer on the same machine answers, however busy the machine is


async def take(receiver: amqp.Receiver) -> amqp.Delivery:
    """Gives the next delivery, which must come promptly."""
    async with asyncio.timeout(PROMPTLY):
        return await receiver.receive()


async def nothing_left(connection: amqp.Connection, address: str) -> bool:
    """Asks the peer, by a drain, whether the queue has anything to give."""
    async with connection.receiver(address, credit=0) as receiver, asyncio.timeout(PROMPTLY):
        await receiver.add_credit(1)
        await receiver.drain()
        return receiver.queued == 0


async def exchange(connection: amqp.Connection, address: str, *messages: amqp.Message) -> list[amqp.Message]:
    """Sends messages one by one, receives them again, and gives them as they came."""
    received = []
    async with connection.sender(address) as sender, connection.receiver(address) as receiver:
        for message in messages:
            assert await sender.send(message) == amqp.Accepted()
            delivery = await take(receiver)
            await delivery.accept()
            received.append(delivery.message)
    return received


# --- messages ------------------------------------------------------------------------------


@everywhere
async def test_bodies_from_one_byte_to_five_mebibytes(peer: Peer, queue: str) -> None:
    """A body comes back byte for byte, on either side of every boundary of encodings, frames and WebSocket messages."""
    sizes = [1, 255, 256, 4_096, 16_384, 32_767, 32_768, 65_535, 65_536, 131_072, 1_048_576, 5 * 1_048_576]
    bodies = [random.Random(size).randbytes(size) for size in sizes]
    async with amqp.connect(peer.url) as connection:
        received = await exchange(connection, queue, *map(amqp.Message, bodies))
    assert [message.body == body for message, body in zip(received, bodies, strict=True)] == [True] * len(sizes)


BODIES: list[Any] = [
    b"",
    b"one section",
    amqp.Data(b"two", b"sections"),
    amqp.Sequence([1, "two", None]),
    amqp.Sequence([True], [], [b"three lists"]),
    amqp.Value("text, grüße, \N{SNOWMAN}, \N{GRINNING FACE}"),
    amqp.Value(42),
    amqp.Value([1, [2, [3]]]),
    amqp.Value({"key": {"nested": [1.5, False]}, symbol("by symbol"): ulong(7)}),
    amqp.Value(Described(symbol("example:point"), [int32(1), int32(2)])),
    amqp.Value(None),
]


@everywhere
async def test_every_kind_of_body(peer: Peer, queue: str) -> None:
    """Data, sequence and value sections, one or several, come back as what they were."""
    async with amqp.connect(peer.url) as connection:
        received = await exchange(connection, queue, *map(amqp.Message, BODIES))
    assert [message.body for message in received[:-1]] == BODIES[:-1]
    assert received[-1].body in (None, amqp.Value(None))


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "ubyte": ubyte(255),
    "ushort": ushort(65_535),
    "uint": uint(2**32 - 1),
    "ulong": ulong(2**64 - 1),
    "byte": byte(-128),
    "short": short(-32_768),
    "int": int32(-(2**31)),
    "long": -(2**63),
    "float": float32(0.5),
    "double": 1.1,
    "char": char("\N{SNOWMAN}"),
    "timestamp": timestamp(1_700_000_000_123),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "binary": bytes(range(256)),
    "string": "grüße \N{SNOWMAN}",
    "symbol": symbol("symbolic"),
}
MORE_VALUES: dict[str, Any] = {
    "decimal32": decimal32(0x22500001),
    "decimal64": decimal64(0x2238000000000001),
    "decimal128": decimal128(bytes([0x22, 0x08, *bytes(13), 1])),
    "list": [1, "two", [None]],
    "map": {"one": 1},
    "array": Array(UNDESCRIBED, Data.INT, 1, 2, 3),
}


def typed(values: dict[Any, Any]) -> dict[Any, tuple[type, Any]]:
    """Pairs each value with its type: `ubyte(1) == ulong(1)` as Python sees it."""
    return {key: (type(value), value) for key, value in values.items()}


@everywhere
async def test_every_section_and_type(peer: Peer, queue: str) -> None:
    """Header, properties, annotations and application properties of every type come back, types included."""
    expiry = int(time.time() * 1000) + 3_600_000
    sent = amqp.Message(
        b"body",
        durable=True,
        priority=7,
        ttl=3600.0,
        message_id="id-1",
        user_id=USER.encode(),
        to=queue,
        subject="subject",
        reply_to="replies",
        correlation_id=uuid.UUID(int=5),
        content_type="application/json",
        content_encoding="identity",
        absolute_expiry_time=expiry,
        creation_time=1_700_000_000_000,
        group_id="group",
        group_sequence=3,
        reply_to_group_id="other group",
        message_annotations={"x-opt-test": ulong(9), "x-opt-text": "text"},
        application_properties=VALUES,
        footer={"x-opt-checksum": ulong(2**40)},
    )
    async with amqp.connect(peer.url) as connection:
        [received] = await exchange(connection, queue, sent)
    for name in ("durable", "priority", "message_id", "user_id", "to", "subject", "reply_to", "correlation_id"):
        assert getattr(received, name) == getattr(sent, name), name
    for name in ("content_type", "content_encoding", "creation_time", "group_id", "group_sequence"):
        assert getattr(received, name) == getattr(sent, name), name
    assert received.reply_to_group_id == "other group"
    assert received.absolute_expiry_time == expiry
    assert received.ttl is not None
    assert 3590.0 < received.ttl <= 3600.0
    assert typed(received.application_properties) == typed(VALUES)
    # A broker may add annotations of its own.
    assert {name: received.message_annotations[name] for name in ("x-opt-test", "x-opt-text")} == {
        "x-opt-test": ulong(9),
        "x-opt-text": "text",
    }
    assert received.footer == sent.footer


@everywhere
async def test_every_type_in_a_value_body(peer: Peer, queue: str) -> None:
    """Every AMQP type, compound ones included, comes back in a body as the type it was."""
    values = VALUES | MORE_VALUES
    async with amqp.connect(peer.url) as connection:
        [received] = await exchange(connection, queue, amqp.Message(amqp.Value(values)))
    body = received.body
    assert isinstance(body, amqp.Value)
    assert typed(body.value) == typed(values)


@everywhere
@pytest.mark.parametrize(
    "identity", ["text", ulong(2**63), uuid.UUID(int=2**127), b"\x00\xff"], ids=["string", "ulong", "uuid", "binary"]
)
async def test_every_type_of_message_id(peer: Peer, queue: str, identity: Any) -> None:
    """All four types of message-id and correlation-id come back."""
    async with amqp.connect(peer.url) as connection:
        [received] = await exchange(connection, queue, amqp.Message(b"x", message_id=identity, correlation_id=identity))
    assert (received.message_id, received.correlation_id) == (identity, identity)


# --- many ----------------------------------------------------------------------------------


@everywhere
@pytest.mark.timeout(180)
async def test_twenty_thousand_messages_are_all_accounted_for(peer: Peer, queue: str) -> None:
    """8 senders and 8 receivers on 4 connections: every id arrives once, every send is accepted."""
    links, each = 8, 2_500
    arrived: Counter[Any] = Counter()
    accepted: list[Any] = []
    receivers: list[amqp.Receiver] = []

    def messages(number: int) -> list[amqp.Message]:
        sizes = random.Random(number)
        return [
            amqp.Message(sizes.randbytes(sizes.choice((10, 100, 1_000, 5_000))), message_id=f"{number}-{position}")
            for position in range(each)
        ]

    async def send(connection: amqp.Connection, number: int) -> None:
        async with connection.session() as session, session.sender(queue) as sender:
            async for message, outcome in sender.send_many(messages(number), in_flight=500):
                assert outcome == amqp.Accepted()
                assert isinstance(message, amqp.Message)
                accepted.append(message.message_id)

    async def receive(connection: amqp.Connection) -> None:
        async with connection.session() as session, session.receiver(queue, credit=200) as receiver:
            receivers.append(receiver)
            async for delivery in receiver:
                arrived[delivery.message.message_id] += 1
                await delivery.accept()
                if arrived.total() == links * each:
                    # A detach each: what nobody took would be released, and there is nothing left.
                    await asyncio.gather(*(one.detach() for one in receivers))

    async with (
        amqp.connect(peer.url) as first,
        amqp.connect(peer.url) as second,
        amqp.connect(peer.url) as third,
        amqp.connect(peer.url) as fourth,
    ):
        connections = (first, second, third, fourth)
        async with asyncio.TaskGroup() as group:
            for number in range(links):
                group.create_task(receive(connections[number % 4]))
                group.create_task(send(connections[number % 4], number))
        assert await nothing_left(first, queue)
    expected = {f"{number}-{position}" for number in range(links) for position in range(each)}
    assert set(accepted) == expected
    assert len(accepted) == len(expected)
    assert set(arrived) == expected
    assert arrived.total() == len(expected)


@everywhere
async def test_many_links_on_one_session(peer: Peer, queue: str) -> None:
    """60 senders and 60 receivers share a session, each with an address of its own."""
    links = 60

    async def work(session: amqp.Session, number: int) -> list[Any]:
        address = f"{queue}-{number}"
        async with session.receiver(address) as receiver, session.sender(address) as sender:
            for position in range(5):
                await sender.send(amqp.Message(f"{number}-{position}".encode()))
            bodies = []
            for _ in range(5):
                delivery = await take(receiver)
                await delivery.accept()
                bodies.append(delivery.body)
            return bodies

    async with amqp.connect(peer.url) as connection, connection.session() as session:
        results = await asyncio.gather(*(work(session, number) for number in range(links)))
    assert results == [[f"{number}-{position}".encode() for position in range(5)] for number in range(links)]


@everywhere
async def test_a_hundred_tasks_share_one_sender(peer: Peer, queue: str) -> None:
    """Concurrent sends on one sender each get their own outcome, and nothing is lost or doubled."""
    async with amqp.connect(peer.url) as connection, connection.sender(queue) as sender:
        outcomes = await asyncio.gather(*(sender.send(amqp.Message(b"%d" % number)) for number in range(100)))
        assert outcomes == [amqp.Accepted()] * 100
        async with connection.receiver(queue, credit=30) as receiver:
            bodies = []
            for _ in range(100):
                delivery = await take(receiver)
                await delivery.accept()
                bodies.append(delivery.body)
    assert sorted(bodies, key=repr) == sorted((b"%d" % number for number in range(100)), key=repr)


# --- settlement ------------------------------------------------------------------------------


@everywhere
async def test_a_released_message_comes_again_uncounted(peer: Peer, queue: str) -> None:
    """Release gives the message back as it was: it is not a failed attempt."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"again"))
        async with connection.receiver(queue, credit=1) as receiver:
            await (await take(receiver)).release()
            again = await take(receiver)
            assert (again.body, again.message.delivery_count) == (b"again", 0)
            await again.accept()
        assert await nothing_left(connection, queue)


@everywhere
async def test_a_modified_message_comes_again_counted(peer: Peer, queue: str) -> None:
    """Modify with delivery_failed raises the delivery-count that the next receiver sees."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"again"))
        async with connection.receiver(queue, credit=1) as receiver:
            await (await take(receiver)).modify(delivery_failed=True)
            again = await take(receiver)
            assert (again.body, again.message.delivery_count) == (b"again", 1)
            await again.accept()
        assert await nothing_left(connection, queue)


@everywhere
async def test_a_received_state_leaves_the_delivery_open(peer: Peer, queue: str) -> None:
    """Telling the peer how far we got settles nothing: the outcome that follows is what counts."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"x" * 10_000))
        async with connection.receiver(queue, credit=1) as receiver:
            delivery = await take(receiver)
            await delivery.received(0, 5_000)
            await delivery.release()
            again = await take(receiver)
            assert again.body == b"x" * 10_000
            await again.received(0, 10_000)
            await again.accept()
        assert await nothing_left(connection, queue)


@everywhere
async def test_a_rejected_message_does_not_come_again(peer: Peer, queue: str) -> None:
    """Reject with an error takes the message off the queue; the next one follows."""
    queue = ONE_ATTEMPT + queue
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"bad"))
            await sender.send(amqp.Message(b"good"))
        async with connection.receiver(queue, credit=1) as receiver:
            bad = await take(receiver)
            assert bad.body == b"bad"
            await bad.reject("amqp:decode-error", "not what was agreed", {"position": 3})
            good = await take(receiver)
            assert good.body == b"good"
            await good.accept()
        assert await nothing_left(connection, queue)


@brokers
async def test_an_undeliverable_message_goes_to_another_receiver(peer: Peer, queue: str) -> None:
    """Modify with undeliverable_here keeps the message from the receiver that said so, and from no other."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"not for me"))
        async with connection.receiver(queue) as receiver:
            await (await take(receiver)).modify(delivery_failed=True, undeliverable_here=True)
            async with connection.receiver(queue) as other:
                delivery = await take(other)
                assert delivery.body == b"not for me"
                await delivery.accept()
            assert receiver.queued == 0


@everywhere
async def test_closing_a_receiver_gives_back_what_nobody_took(peer: Peer, queue: str) -> None:
    """Deliveries that were prefetched and never taken are there for the next receiver, in order, uncounted."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            for number in range(20):
                await sender.send(amqp.Message(b"%d" % number))
        async with connection.receiver(queue, credit=100) as receiver:
            first = await take(receiver)
            await first.accept()
        async with connection.receiver(queue) as receiver:
            rest = [await take(receiver) for _ in range(19)]
            assert [delivery.body for delivery in rest] == [b"%d" % number for number in range(1, 20)]
            assert {delivery.message.delivery_count for delivery in rest} == {0}
            for delivery in rest:
                await delivery.accept()
        assert await nothing_left(connection, queue)


@everywhere
async def test_pre_settled_sends_arrive(peer: Peer, queue: str) -> None:
    """A pre-settled send has no outcome, and on a healthy connection the message arrives all the same."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue, snd_settle_mode=amqp.SenderSettleMode.SETTLED) as sender:
            for number in range(50):
                assert await sender.send(amqp.Message(b"%d" % number)) is None
        async with connection.receiver(queue) as receiver:
            for number in range(50):
                delivery = await take(receiver)
                assert delivery.body == b"%d" % number
                await delivery.accept()


@brokers
async def test_a_receiver_that_asks_for_settled_deliveries(peer: Peer, queue: str) -> None:
    """At most once: deliveries come settled, and the queue is empty without any answer of ours."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"once"))
        async with connection.receiver(queue, snd_settle_mode=amqp.SenderSettleMode.SETTLED) as receiver:
            delivery = await take(receiver)
            assert (delivery.body, delivery.settled) == (b"once", True)
        assert await nothing_left(connection, queue)


@everywhere
async def test_receiver_settle_mode_second(peer: Peer, queue: str) -> None:
    """Where the peer agrees to mode second, confirm waits for its settlement; where not, confirm is refused."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            await sender.send(amqp.Message(b"exactly once"))
        second = amqp.ReceiverSettleMode.SECOND
        async with connection.receiver(queue, rcv_settle_mode=second) as receiver, asyncio.timeout(PROMPTLY):
            delivery = await take(receiver)
            assert receiver.remote is not None
            if receiver.remote.rcv_settle_mode is second:
                await delivery.accept(confirm=True)
            else:
                with pytest.raises(amqp.LocalProtocolError, match="SECOND"):
                    await delivery.accept(confirm=True)
                await delivery.accept()
        assert await nothing_left(connection, queue)


# --- credit and termini ------------------------------------------------------------------------


@everywhere
async def test_manual_credit_and_drain(peer: Peer, queue: str) -> None:
    """No more comes than credit allows; drain returns once all there is has come."""
    async with amqp.connect(peer.url) as connection, connection.sender(queue) as sender:
        for number in range(5):
            await sender.send(amqp.Message(b"%d" % number))
        async with connection.receiver(queue, credit=0) as receiver, asyncio.timeout(PROMPTLY):
            await receiver.add_credit(2)
            bodies = [(await take(receiver)).body, (await take(receiver)).body]
            assert (bodies, receiver.credit, receiver.queued) == ([b"0", b"1"], 0, 0)
            await receiver.add_credit(10)
            await receiver.drain()
            assert (receiver.credit, receiver.queued) == (0, 3)
            await sender.send(amqp.Message(b"later"))
            # The peer has settled it and has no credit: whatever it sends now comes after the answer to this drain.
            await receiver.add_credit(1)
            await receiver.drain()
            assert [(await take(receiver)).body for _ in range(4)] == [b"2", b"3", b"4", b"later"]


@everywhere
async def test_request_and_reply_through_a_dynamic_node(peer: Peer, queue: str) -> None:
    """A client's dynamic source gets an address from the peer, and replies to it find their way."""

    async def serve(connection: amqp.Connection) -> None:
        async with connection.receiver(queue) as requests, connection.sender(None) as replies:
            for _ in range(10):
                request = await take(requests)
                question = request.message
                answer = amqp.Message(b"re: " + bytes(question.body), to=question.reply_to)  # type: ignore[arg-type]
                answer.correlation_id = question.message_id
                await replies.send(answer)
                await request.accept()

    async with amqp.connect(peer.url) as server, amqp.connect(peer.url) as client, asyncio.TaskGroup() as group:
        group.create_task(serve(server))
        async with (
            client.receiver(amqp.Source(dynamic=True)) as replies,
            client.sender(queue) as requests,
        ):
            assert replies.source is not None
            address = replies.source.address
            assert address
            for number in range(10):
                await requests.send(amqp.Message(b"%d" % number, message_id=f"q-{number}", reply_to=address))
                reply = await take(replies)
                await reply.accept()
                assert (reply.message.correlation_id, reply.body) == (f"q-{number}", b"re: %d" % number)


@everywhere
@pytest.mark.parametrize("address", [None, ""], ids=["null", "empty"])
async def test_an_anonymous_sender_reaches_every_address(peer: Peer, queue: str, address: str | None) -> None:
    """The anonymous terminus, spelled either way, routes each message by its `to`."""
    addresses = [f"{queue}-{number}" for number in range(3)]
    async with amqp.connect(peer.url) as connection:
        for one in addresses:  # an anonymous send does not make queues everywhere
            async with connection.receiver(one, credit=0):
                pass
        async with connection.sender(address) as sender:
            for one in addresses:
                await sender.send(amqp.Message(one.encode(), to=one))
        for one in addresses:
            async with connection.receiver(one) as receiver:
                delivery = await take(receiver)
                assert delivery.body == one.encode()
                await delivery.accept()


@brokers
async def test_a_selector_takes_what_fits_and_leaves_the_rest(peer: Peer, queue: str) -> None:
    """A receiver with a filter gets the messages it selects; the others stay for the next."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            for number in range(10):
                properties = {"color": "red" if number % 2 else "blue", "weight": number}
                await sender.send(amqp.Message(b"%d" % number, application_properties=properties))
        heavy_red = amqp.Source(queue, filter=amqp.selector("color = 'red' AND weight > 4"))
        async with connection.receiver(heavy_red) as receiver:
            for expected in (b"5", b"7", b"9"):
                delivery = await take(receiver)
                assert delivery.body == expected
                await delivery.accept()
            assert receiver.queued == 0
        async with connection.receiver(queue) as receiver:
            rest = [await take(receiver) for _ in range(7)]
            for delivery in rest:
                await delivery.accept()
        assert [delivery.body for delivery in rest] == [b"0", b"1", b"2", b"3", b"4", b"6", b"8"]


@brokers
async def test_browsing_takes_nothing_away(peer: Peer, queue: str) -> None:
    """A source with distribution mode copy shows the messages and leaves them."""
    async with amqp.connect(peer.url) as connection:
        async with connection.sender(queue) as sender:
            for number in range(3):
                await sender.send(amqp.Message(b"%d" % number))
        for source in (amqp.Source(queue, distribution_mode=amqp.DistributionMode.COPY), amqp.Source(queue)):
            async with connection.receiver(source) as receiver:
                for number in range(3):
                    delivery = await take(receiver)
                    assert delivery.body == b"%d" % number
                    await delivery.accept()
        assert await nothing_left(connection, queue)


# --- time and loss -------------------------------------------------------------------------------


@everywhere
async def test_idle_for_longer_than_both_idle_timeouts(peer: Peer, queue: str) -> None:
    """Empty frames alone keep an idle connection, also at Broker-J, which advertises no idle timeout."""
    ours = 2.0
    async with (
        amqp.connect(peer.url, idle_timeout=ours, ping_interval=None) as connection,
        connection.sender(queue) as sender,
        connection.receiver(queue) as receiver,
    ):
        assert bool(connection.remote.idle_timeout) == (peer.name != "broker-j")
        await asyncio.sleep(max(ours, IDLE_TIMEOUT) * 1.5)
        await sender.send(amqp.Message(b"still there"))
        assert (await take(receiver)).body == b"still there"


async def stuck(connection: amqp.Connection, queue: str) -> tuple[amqp.Sender, list[asyncio.Task[Any]]]:
    """Gives a sender, and tasks that wait for the peer in every way there is."""
    receiver = await connection.receiver(queue, credit=10)
    async with connection.sender(queue) as first:
        await first.send(amqp.Message(b"held"))
    held = await take(receiver)
    manual = await connection.receiver(f"{queue}-empty", credit=0)
    sender = await connection.sender(f"{queue}-aside")  # what is sent from here on must not reach who waits
    await sender.send(amqp.Message(b"there is credit"))

    async def settle_afterwards() -> None:
        with pytest.raises(amqp.ConnectionClosed):
            await receiver.receive()
        await held.accept()

    waiting = [receiver.receive(), receiver.receive(), manual.receive(), settle_afterwards()]
    return sender, [asyncio.create_task(one) for one in waiting]


def expect_lost(results: list[Any]) -> None:
    """Checks what `stuck` ends with when the connection is lost."""
    *waits, settlement = results
    assert [type(result) for result in waits] == [amqp.ConnectionClosed] * 3
    assert isinstance(settlement, amqp.SettlementLost)
    assert all(result.stop.initiator == "transport" for result in results)


@one_each
async def test_a_killed_broker_fails_every_waiter_at_once(own_peer: Peer, queue: str) -> None:
    """The broker dies without a word: receives, sends and settlements end with an error that says so."""
    connection = await amqp.connect(own_peer.url)
    sender, waiting = await stuck(connection, queue)
    own_peer.server.kill()
    async with asyncio.timeout(PROMPTLY):
        expect_lost(await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await sender.send(amqp.Message(b"too late"))
        assert caught.value.sent is False
        await connection.close()
        with pytest.raises(amqp.OpenError):
            await amqp.connect(own_peer.url)


@one_each
async def test_a_frozen_broker_is_given_up_after_the_idle_timeout(own_peer: Peer, queue: str) -> None:
    """The broker answers nothing any more, sockets open: everything ends after the idle timeout, sends in doubt."""
    idle_timeout = 3.0
    connection = await amqp.connect(own_peer.url, idle_timeout=idle_timeout, ping_interval=None, close_timeout=1.0)
    sender, waiting = await stuck(connection, queue)
    own_peer.server.freeze()
    started = time.monotonic()
    async with asyncio.timeout(idle_timeout + PROMPTLY):
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            while True:  # a moment passes before the signal has stopped every thread of the broker
                await sender.send(amqp.Message(b"in doubt"))
        assert caught.value.stop.initiator == "transport"
        assert time.monotonic() - started < idle_timeout * 2 + 1
        expect_lost(await asyncio.gather(*waiting, return_exceptions=True))
        await connection.close()


# --- who we are ------------------------------------------------------------------------------------


@everywhere
async def test_plain_is_accepted(peer: Peer, queue: str) -> None:
    """The right user name and password open a connection that works."""
    async with amqp.connect(peer.login_url, sasl=amqp.Plain(USER, PASSWORD)) as connection:
        [received] = await exchange(connection, queue, amqp.Message(b"let in"))
    assert received.body == b"let in"


@everywhere
@pytest.mark.parametrize("user", [USER, "mallory"])
async def test_plain_is_refused(peer: Peer, user: str) -> None:
    """A wrong user name or password is an AuthenticationError, which does not show the password."""
    secret = "guessed-wrong"
    with pytest.raises(amqp.AuthenticationError) as caught:
        await amqp.connect(peer.login_url, sasl=amqp.Plain(user, secret))
    assert "PLAIN" in str(caught.value)
    assert secret not in repr(caught.value)


@everywhere
async def test_wss_with_a_private_authority_and_a_token(peer: Peer, gateway: Gateway, queue: str) -> None:
    """Through a TLS gateway that checks the token, messages of any size travel as they do without."""
    async with amqp.connect(gateway.url, ssl=gateway.trust, token=gateway.token) as connection:
        bodies = [random.Random(size).randbytes(size) for size in (1, 100_000, 2_000_000)]
        received = await exchange(connection, queue, *map(amqp.Message, bodies))
    assert [message.body == body for message, body in zip(received, bodies, strict=True)] == [True] * 3


@pytest.mark.parametrize("peer", ["artemis"], indirect=True)
async def test_wss_refusals(peer: Peer, gateway: Gateway) -> None:
    """A missing or wrong token is an error with status and body, an unknown authority one with its cause."""
    for token, status, body in (
        (None, 401, b"no valid"),
        ("x", 401, b"no valid"),
        (gateway.forbidden_token, 403, b"not"),
    ):
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(gateway.url, ssl=gateway.trust, token=token)
        assert caught.value.status == status
        assert caught.value.body.startswith(body)
        assert token is None or token not in str(caught.value).split() + repr(caught.value.headers).split()
    with pytest.raises(amqp.OpenError) as distrusted:
        await amqp.connect(gateway.url, token=gateway.token)
    assert isinstance(distrusted.value.__cause__, ssl.SSLCertVerificationError)
