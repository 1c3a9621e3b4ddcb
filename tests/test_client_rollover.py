"""What a client promises when it moves to a second connection, with and without trouble on the way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amqpws_async as amqp
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.testing import Broker, FaultProxy, TokenServer
from amqpws_async.testing.faults import (
    DelayOutcome,
    DropConnection,
    RefuseLink,
    RefuseUpgrade,
    SlowUpgrade,
)

from .clients import (
    CLOSED,
    CONNECTED,
    RECONNECTING,
    Changes,
    Numbered,
    beside,
    body_of,
    made,
    opened,
    soon,
    turns,
    until,
)
from .peer import PATIENCE, Peer, ignore

MESSAGE = amqp.Message(b"one")

DURABLE = amqp.Source("topic:t", durable=amqp.TerminusDurability.UNSETTLED_STATE, expiry_policy=amqp.ExpiryPolicy.NEVER)


def put(broker: Broker, count: int, first: int = 0, address: str = "q") -> None:
    for number in range(first, first + count):
        broker.put(address, amqp.Message(b"%d" % number))


def total(broker: Broker) -> int:
    """AMQP connections there ever were."""
    return broker.statistics().connections_total


async def one_connection(broker: Broker) -> None:
    """Waits until the old connection is gone."""
    await until(lambda: broker.statistics().connections == 1)


class Load:
    """Messages sent from one end and received at the other, while a test does things to the client."""

    def __init__(self, client: amqp.Client, *, on_unknown: Any = "raise") -> None:
        self._client = client
        self._on_unknown = on_unknown
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.failed: list[BaseException] = []
        self.lost = 0
        self.slowest = 0.0
        self._stop = False

    async def __aenter__(self) -> Load:
        self._sender = await self._client.sender("load", on_unknown=self._on_unknown)
        self._receiver = await self._client.receiver("load", credit=50)
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop = True
        try:
            await soon(self._tasks[0])
            if kind is None:
                await until(lambda: set(self.received) >= set(self.sent))
        finally:
            await soon(self._receiver.close())
            await soon(self._tasks[1])
            await soon(self._sender.close())

    async def flows(self) -> None:
        """Waits until more has come through."""
        count = len(self.received)
        await until(lambda: len(self.received) > count + 20)

    async def _send(self) -> None:
        number = 0
        while not self._stop:
            body = b"%d" % number
            began = time.monotonic()
            try:
                await self._sender.send(amqp.Message(body, message_id=number))
                self.sent.append(body)
            except amqp.AMQPError as error:
                self.failed.append(error)
            self.slowest = max(self.slowest, time.monotonic() - began)
            number += 1

    async def _receive(self) -> None:
        async for delivery in self._receiver:
            body = body_of(delivery.message)
            await asyncio.sleep(0)
            try:
                await delivery.accept()
                self.received.append(body)
            except amqp.SettlementLost:
                self.lost += 1


# --- what it does --------------------------------------------------------------------


async def test_rolling_over_loses_or_repeats_a_message() -> None:
    """Rolled over many times under load, a client loses nothing, repeats nothing, and keeps the order."""
    changes = Changes()
    async with Broker() as broker:
        async with opened(broker.url, changes) as client, Load(client) as load:
            for number in range(8):
                await load.flows()
                before = client.connection
                await soon(client.roll_over())
                assert client.connection is not before
                assert total(broker) == 2 + number
                assert client.ready()
            await load.flows()
        assert load.failed == []
        assert load.lost == 0
        assert load.received == load.sent
        assert load.slowest < 5.0
        assert changes.count_of(CONNECTED) == 9
        assert RECONNECTING not in changes.states
        statistics = broker.statistics().queues["load"]
        assert statistics.acknowledged == statistics.enqueued == len(load.sent)
        assert statistics.redelivered == 0


async def test_the_old_connection_stays() -> None:
    """Once nothing is in hand there, the old connection is closed in order, and every link is on the new one."""
    async with Broker() as broker, opened(broker.url) as client:
        sender, receiver = await client.sender("q"), await client.receiver("q")
        old = client.connection
        await soon(client.roll_over())
        assert old is not None
        assert old is not client.connection
        await one_connection(broker)
        await until(lambda: old.stop is not None)
        assert old.stop is not None
        assert (old.stop.initiator, old.stop.condition) == ("local", None)
        for link in (sender, receiver):
            assert link.settled_in
            assert link.link is not None
            assert link.link.session.connection is client.connection
        await until(lambda: broker.statistics().links == 2)


async def test_a_connection_gets_too_old() -> None:
    """`max_connection_age` replaces one connection after the other, each by chance up to a tenth earlier."""
    changes = Changes()
    times: list[float] = []
    async with Broker() as broker:
        async with opened(broker.url, changes, max_connection_age=0.3) as client, Load(client) as load:
            for number in range(1, 4):
                await changes.saw(CONNECTED, number)
                times.append(time.monotonic())
        assert load.failed == []
        assert load.received == load.sent
    for before, after in itertools.pairwise(times):
        assert 0.2 < after - before < 3.0


async def test_a_token_expires() -> None:
    """Before a token expires the client has moved to a connection with another one, and nobody notices."""
    changes = Changes()
    times: list[float] = []

    def note(change: amqp.StateChange) -> None:
        changes.append(change)
        times.append(time.time())

    async with TokenServer(lifetime=3.0) as server, Broker(authorize=server.authorize) as broker:
        grant = ClientCredentials(server.url, server.client_id, server.client_secret)
        async with TokenRefresher(grant) as tokens, opened(broker.url, token=tokens, on_state=note) as client:
            assert client.connection is not None
            first = client.connection.token
            assert first is not None
            assert first.expiry is not None
            async with Load(client) as load:
                await changes.saw(CONNECTED, 2)
                assert times[-1] < first.expiry
                await load.flows()
            assert client.connection is not None
            assert client.connection.token is not None
            assert client.connection.token.value != first.value
            assert RECONNECTING not in changes.states
            assert load.failed == []
            assert load.received == load.sent


async def test_roll_over_cannot_be_switched_off() -> None:
    """Without `roll_over` a client stays on its connection after its token's life."""

    class Brief(Numbered):
        async def token(self, *, refresh: bool = False) -> Any:
            token = await super().token(refresh=refresh)
            return amqp.Token(token.value, expiry=time.time() + 0.3)

    async with Broker() as broker, opened(broker.url, token=Brief(always=True), roll_over=False) as client:
        sender = await client.sender("q")
        await asyncio.sleep(0.5)  # what has to pass here is time itself
        await soon(sender.send(MESSAGE))
        assert total(broker) == 1


async def test_a_fresh_token_is_not_used() -> None:
    """A roll-over asks for a token, and the new connection uses it."""
    tokens: list[str] = []

    def note(headers: Any, path: str) -> None:
        tokens.append(headers["Authorization"])

    async with Broker(authorize=note) as broker, opened(broker.url, token=Numbered(always=True)) as client:
        await soon(client.roll_over())
    assert tokens == ["Bearer t1", "Bearer t2"]


async def test_a_session_stays_behind() -> None:
    """A session of the user's moves with its links, and links made later are on the new connection."""
    async with Broker() as broker, opened(broker.url) as client:
        async with client.session() as session:
            sender = await session.sender("q")
            await soon(client.roll_over())
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            receiver = await session.receiver("q")
            assert receiver.link is not None
            assert sender.link is not None
            assert receiver.link.session is sender.link.session
            assert receiver.link.session.connection is client.connection
            await one_connection(broker)
        await until(lambda: broker.statistics().links == 0)


async def test_a_client_without_links_cannot_roll_over() -> None:
    """Without links there is nothing to wait for."""
    async with Broker() as broker, opened(broker.url) as client:
        for number in range(2, 5):
            await soon(client.roll_over())
            assert total(broker) == number
            await one_connection(broker)


# --- deliveries in hand --------------------------------------------------------------


async def test_a_delivery_in_hand_is_lost() -> None:
    """The old connection stays for a delivery in hand; its late settlement arrives, and the connection goes then."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 3)
        receiver = await client.receiver("q", credit=2)
        first, second = await soon(receiver.receive()), await soon(receiver.receive())
        await soon(client.roll_over())
        assert broker.statistics().connections == 2
        # What comes by the new link meanwhile comes once.
        third = await soon(receiver.receive())
        assert body_of(third.message) == b"2"
        await third.accept()
        await first.accept()
        await until(lambda: broker.statistics().queues["q"].acknowledged == 2)
        assert broker.statistics().connections == 2
        await second.release()
        await one_connection(broker)
        again = await soon(receiver.receive())
        assert body_of(again.message) == b"1"
        assert again.message.delivery_count == 0
        assert broker.statistics().queues["q"].redelivered <= 1


async def test_the_old_connection_stays_for_ever() -> None:
    """After `handover_timeout` the old connection goes; what is in hand is lost then, and comes again."""
    async with Broker() as broker, opened(broker.url, handover_timeout=0.3) as client:
        put(broker, 1)
        receiver = await client.receiver("q")
        delivery = await soon(receiver.receive())
        began = time.monotonic()
        await soon(client.roll_over())
        await one_connection(broker)
        assert 0.2 < time.monotonic() - began < 5.0
        with pytest.raises(amqp.SettlementLost):
            await delivery.accept()
        again = await soon(receiver.receive())
        assert body_of(again.message) == b"0"
        assert again.message.delivery_count == 1
        await again.accept()
        await until(lambda: broker.statistics().queues["q"].acknowledged == 1)


async def test_deliveries_nobody_took_are_lost_or_repeated() -> None:
    """What waits in the receiver at a roll-over is taken afterwards, in its order, each once."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 20)
        receiver = await client.receiver("q", credit=10)
        await until(lambda: receiver.queued == 10)
        await soon(client.roll_over())
        seen: list[bytes] = []
        for _ in range(20):
            delivery = await soon(receiver.receive())
            seen.append(body_of(delivery.message))
            await delivery.accept()
        assert seen == [b"%d" % number for number in range(20)]
        await one_connection(broker)
        assert broker.statistics().queues["q"].acknowledged == 20


async def test_manual_credit_is_lost_or_doubled() -> None:
    """Manual credit moves with the receiver."""
    async with Broker() as broker, opened(broker.url) as client:
        receiver = await client.receiver("q", credit=0)
        await receiver.add_credit(3)
        await soon(client.roll_over())
        put(broker, 10)
        await until(lambda: receiver.queued == 3)
        await soon(client.roll_over())
        for _ in range(3):
            await (await soon(receiver.receive())).accept()
        await one_connection(broker)
        assert receiver.queued == 0
        assert broker.statistics().queues["q"].depth == 7


async def test_processing_notices() -> None:
    """Handlers of `process` go on over roll-overs, and each message is handled once."""
    async with Broker() as broker, opened(broker.url) as client:
        put(broker, 200)
        receiver = await client.receiver("q", credit=10)
        handled: Counter[bytes] = Counter()

        async def handle(delivery: amqp.Delivery) -> None:
            handled[body_of(delivery.message)] += 1
            await asyncio.sleep(0.005)  # the work

        async with beside(receiver.process(handle, concurrency=5)) as processing:
            for count in (20, 60, 100, 140):
                await until(lambda count=count: sum(handled.values()) >= count)  # type: ignore[misc]
                await soon(client.roll_over())
            await until(lambda: broker.statistics().queues["q"].acknowledged == 200)
            await soon(receiver.close())
            statistics = await soon(processing)
        assert set(handled.values()) == {1}
        assert len(handled) == 200
        assert (statistics.accepted, statistics.lost) == (200, 0)


# --- outcomes in flight --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["raise", "resend"])
async def test_an_outcome_in_flight_is_lost(mode: Any) -> None:
    """An outcome that comes late on the old connection is given, and nothing is sent twice."""
    async with Broker(faults=[DelayOutcome(seconds=0.4)]) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        pending = await soon(sender.transfer(amqp.Message(b"0")))
        await until(lambda: len(broker.messages("q")) == 1)
        await soon(client.roll_over())
        assert await soon(sender.send(amqp.Message(b"1"))) == amqp.Accepted()
        assert await soon(pending) == amqp.Accepted()
        await one_connection(broker)
        assert [body_of(message) for message in broker.messages("q")] == [b"0", b"1"]


@pytest.mark.parametrize("mode", ["raise", "resend"])
async def test_an_outcome_that_never_comes_holds_the_old_connection(mode: Any) -> None:
    """An outcome that does not come within `handover_timeout` is in doubt: raised, or sent again."""
    async with Peer() as peer, opened(peer.url, handover_timeout=0.3, close_timeout=PATIENCE) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown=mode)
        pending = await soon(sender.transfer(MESSAGE))
        await peer.saw("transfer")
        del peer.on["transfer"]
        began = time.monotonic()
        await soon(client.roll_over())
        if mode == "raise":
            with pytest.raises(amqp.DeliveryUnknown):
                await soon(pending)
        else:
            assert await soon(pending) == amqp.Accepted()
            assert peer.received[0] == peer.received[1]
        await peer.until(lambda: sum(not each.over for each in peer.conversations) == 1)
        assert 0.2 < time.monotonic() - began < 5.0
        assert sender.unsettled == 0


@pytest.mark.parametrize("mode", ["raise", "resend"])
async def test_the_order_of_a_sender_is_lost(mode: Any) -> None:
    """Many tasks and send_many over roll-overs: everything arrives once and in order."""
    async with Broker() as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        rolled = 0

        async def messages() -> AsyncIterator[amqp.Message]:
            nonlocal rolled
            for number in range(400):
                if number % 80 == 40:
                    rolled += 1
                    rolls.append(asyncio.create_task(client.roll_over()))
                yield amqp.Message(b"%d" % number)

        rolls: list[asyncio.Task[None]] = []
        async with asyncio.timeout(PATIENCE):
            results = [result async for _, result in sender.send_many(messages(), in_flight=30)]
            await asyncio.gather(*rolls)
        assert results == [amqp.Accepted()] * 400
        assert [body_of(message) for message in broker.messages("q")] == [b"%d" % number for number in range(400)]
        assert total(broker) > 1


# --- break before make ---------------------------------------------------------------


async def test_a_durable_subscription_steals_from_itself() -> None:
    """A durable subscription moves by being detached before, keeps its messages, and is never there twice."""
    async with Broker() as broker, opened(broker.url, container_id="me") as client:
        receiver = await client.receiver(DURABLE, name="subscription")
        seen: list[bytes] = []
        for number in range(6):
            broker.put("topic:t", amqp.Message(b"%d" % number))
            if number % 2:
                await soon(client.roll_over())
            delivery = await soon(receiver.receive())
            seen.append(body_of(delivery.message))
            await delivery.accept()
            (subscription,) = broker.statistics().topics["t"].subscriptions
            assert subscription.consumers <= 1
        await one_connection(broker)
        assert seen == [b"%d" % number for number in range(6)]
        assert receiver.stop is None


async def test_a_named_link_is_stolen() -> None:
    """Links with names of the user's move as well, the names with them, and nothing is lost."""
    async with Broker() as broker, opened(broker.url, container_id="me") as client:
        sender = await client.sender("q", name="mine", on_unknown="resend")
        receiver = await client.receiver("q", name="mine")
        for _ in range(3):
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            await soon(client.roll_over())
            delivery = await soon(receiver.receive())
            assert delivery.message.delivery_count == 0
            await delivery.accept()
        assert {link.name for link in client.health().links} == {"mine"}
        await one_connection(broker)
        await until(lambda: broker.statistics().queues["q"].acknowledged == 3)


async def test_a_durable_subscription_loses_what_is_in_hand() -> None:
    """A delivery of a durable subscription in hand is waited for before it moves."""
    async with Broker() as broker, opened(broker.url, container_id="me") as client:
        receiver = await client.receiver(DURABLE, name="subscription")
        broker.put("topic:t", amqp.Message(b"0"))
        delivery = await soon(receiver.receive())
        async with beside(client.roll_over()) as rolling:
            await until(lambda: total(broker) == 2)
            await turns(50)
            assert not rolling.done()
            await delivery.accept()
            await soon(rolling)
        await one_connection(broker)
        (subscription,) = broker.statistics().topics["t"].subscriptions
        assert (subscription.acknowledged, subscription.redelivered) == (1, 0)


async def test_a_broker_that_allows_one_connection_is_left_for_ever() -> None:
    """Where a second connection is refused the first is left before, and that is announced as RECONNECTING."""
    changes = Changes()
    async with Broker(max_connections=1) as broker:
        async with opened(broker.url, changes) as client, Load(client, on_unknown="resend") as load:
            await load.flows()
            changes.clear()
            await soon(client.roll_over())
            await load.flows()
            assert changes.states[:2] == [RECONNECTING, CONNECTED]
            assert changes[0].error is not None
            assert client.ready()
        assert load.failed == []
        assert Counter(load.received) == Counter(load.sent)
        assert broker.statistics().queues["load"].enqueued == len(load.sent)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_move_waits_for_what_nobody_took(durable: bool) -> None:
    """Where the old link has to go first, what nobody took is given back unharmed, and does not hold the client."""
    limit = None if durable else 1
    async with Broker(max_connections=limit) as broker, opened(broker.url, container_id="me") as client:
        receiver = await (client.receiver(DURABLE, name="s") if durable else client.receiver("q"))
        address = "topic:t" if durable else "q"
        put(broker, 10, address=address)
        await until(lambda: receiver.queued == 10)
        in_hand = await soon(receiver.receive())
        async with beside(client.roll_over()) as rolling:
            await until(lambda: receiver.queued == 0)
            await in_hand.accept()
            await soon(rolling)
        for number in range(1, 10):
            delivery = await soon(receiver.receive())
            assert body_of(delivery.message) == b"%d" % number
            assert delivery.message.delivery_count == 0
            await delivery.accept()
        await one_connection(broker)


# --- trouble on the way --------------------------------------------------------------


async def test_the_second_connection_refused_ends_the_first() -> None:
    """A second connection refused for a time: by demand that raises, and the first stays in use."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client, Load(client) as load:
        broker.faults.inject(RefuseUpgrade(status=503))
        before = client.connection
        with pytest.raises(amqp.HandshakeError) as caught:
            await soon(client.roll_over())
        assert caught.value.status == 503
        assert client.connection is before
        await load.flows()
        await soon(client.roll_over())
        assert client.connection is not before
    assert load.failed == []
    assert load.received == load.sent
    assert RECONNECTING not in changes.states


async def test_the_second_connection_is_tried_once() -> None:
    """By age, a second connection refused for a time is tried again, and the first stays in use meanwhile."""
    changes = Changes()
    async with Broker() as broker:
        async with opened(broker.url, changes, max_connection_age=0.3) as client, Load(client) as load:
            broker.faults.inject(RefuseUpgrade(status=503, times=2))
            await until(lambda: total(broker) >= 2)
            await load.flows()
        assert broker.faults.counts["RefuseUpgrade"] == 2
        assert RECONNECTING not in changes.states
        assert load.failed == []
        assert load.received == load.sent


@pytest.mark.parametrize("when", ["opening", "moving", "settling"])
async def test_the_old_connection_dies_meanwhile(when: str) -> None:
    """The loss of the old connection during a roll-over costs what a loss costs, and the client goes on."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy, opened(proxy.url) as client:
        put(broker, 1)
        receiver = await client.receiver("q")
        sender = await client.sender("other", on_unknown="resend")
        delivery = await soon(receiver.receive())
        old = proxy.connections[0]
        if when == "opening":
            broker.faults.inject(SlowUpgrade(seconds=0.2))
        async with beside(client.roll_over()) as rolling:
            if when == "opening":
                await until(lambda: proxy.accepted == 2)
            elif when == "moving":
                await until(lambda: total(broker) == 2)
            else:
                await soon(rolling)
            old.reset()
            with pytest.raises(amqp.SettlementLost):
                while True:
                    await asyncio.sleep(0.002)
                    if client.connection is not None and delivery.receiver.stop is not None:
                        await delivery.accept()
            await soon(asyncio.wait([rolling]))
        again = await soon(receiver.receive())
        assert body_of(again.message) == b"0"
        await again.accept()
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        await until(client.ready)
        await one_connection(broker)
        await until(lambda: broker.statistics().queues["q"].acknowledged == 1)


async def test_the_new_connection_dies_at_once() -> None:
    """The loss of the new connection straight after it opened is a loss like another."""
    async with Broker() as broker:
        async with opened(broker.url) as client, Load(client, on_unknown="resend") as load:
            await load.flows()
            broker.faults.inject(DropConnection(on="begin"))
            with contextlib.suppress(amqp.AMQPError):
                await soon(client.roll_over())
            await load.flows()
            await until(client.ready)
        assert load.failed == []
        assert set(load.received) == set(load.sent)
        await until(lambda: broker.statistics().connections == 0)


async def test_a_link_refused_on_the_new_connection_is_lost() -> None:
    """A link that the new connection refuses for a time gets there later; the others do not wait for it."""
    async with Broker() as broker, opened(broker.url) as client:
        one, two = await client.sender("one"), await client.sender("two")
        broker.faults.inject(RefuseLink(address="one", times=3))
        async with beside(client.roll_over()) as rolling:
            assert await soon(two.send(MESSAGE)) == amqp.Accepted()
            await soon(rolling)
        assert await soon(one.send(MESSAGE)) == amqp.Accepted()
        assert one.settled_in
        assert two.settled_in
        await one_connection(broker)


async def test_a_silent_old_connection_holds_the_client() -> None:
    """An old connection that says nothing any more does not keep the client from the new one."""
    async with Broker() as broker:
        options: dict[str, Any] = {"handover_timeout": 0.5, "close_timeout": 0.5}
        async with opened(broker.url, **options) as client:
            sender = await client.sender("q", on_unknown="resend")
            receiver = await client.receiver("q", credit=1)
            broker.faults.silence()
            await soon(client.roll_over())
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            assert body_of((await soon(receiver.receive())).message) == b"one"
            await one_connection(broker)


async def test_cancelled_rolling_over_leaves_a_connection() -> None:
    """Cancelled at any moment, roll_over leaves the client in order: one connection, all links on it."""
    async with Broker() as broker, opened(broker.url) as client, Load(client) as load:
        for point in range(0, 100, 7):
            task = asyncio.create_task(client.roll_over())
            await turns(point)
            task.cancel()
            await asyncio.wait([task])
        await load.flows()
        await until(client.ready)
        await one_connection(broker)
        await soon(client.roll_over())
        await one_connection(broker)
    assert load.failed == []
    assert load.received == load.sent


async def test_rolling_over_at_the_same_time_makes_many_connections() -> None:
    """Several tasks that ask for a roll-over at the same time get one, or one after the other, and all return."""
    async with Broker() as broker, opened(broker.url) as client:
        sender = await client.sender("q")
        await soon(asyncio.gather(*(client.roll_over() for _ in range(5))))
        assert 2 <= total(broker) <= 6
        await soon(sender.send(MESSAGE))
        await one_connection(broker)


@pytest.mark.parametrize("point", range(0, 60, 6))
async def test_closing_during_a_roll_over_leaves_something(point: int) -> None:
    """Closed at any moment of a roll-over, the client is over, and both connections are."""
    async with Broker() as broker:
        client = made(broker.url)
        await soon(client.open())
        sender = await client.sender("q", on_unknown="resend")
        await client.receiver("r")
        sends = [await soon(sender.transfer(amqp.Message(b"%d" % number))) for number in range(5)]
        async with beside(client.roll_over()) as rolling:
            await turns(point)
            await soon(client.close())
            await soon(asyncio.wait([rolling]))
            if not rolling.cancelled() and rolling.exception() is not None:
                assert isinstance(rolling.exception(), amqp.ConnectionClosed)
        assert client.state is CLOSED
        for pending in sends:
            assert await soon(pending) == amqp.Accepted()
        await until(lambda: broker.statistics().connections == 0)
        assert len(broker.messages("q")) == 5


async def test_rolling_over_in_an_outage_hangs() -> None:
    """Asked for during an outage, a roll-over waits for the next connection; the client's end ends the wait."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        await broker.abort()
        await changes.saw(RECONNECTING)
        async with beside(client.roll_over()) as rolling:
            await turns()
            assert not rolling.done()
            await broker.start()
            await soon(rolling)
        changes.clear()
        await broker.abort()
        await changes.saw(RECONNECTING)
        async with beside(client.roll_over()) as rolling:
            await turns()
            await soon(client.close())
            with pytest.raises(amqp.ConnectionClosed):
                await soon(rolling)
        await broker.start()


@settings(max_examples=8)
@given(data=st.data())
async def test_trouble_somewhere_breaks_the_promise(data: st.DataObject) -> None:
    """Random roll-overs and losses at random moments: with "resend" each message arrives, and the client is whole."""
    steps = data.draw(st.lists(st.tuples(st.sampled_from("rrrcdse"), st.integers(0, 60)), min_size=1, max_size=6))
    async with Broker() as broker:
        async with opened(broker.url) as client, Load(client, on_unknown="resend") as load:
            rolls: list[asyncio.Task[None]] = []
            for step, pause in steps:
                await turns(pause)
                if step == "r":
                    rolls.append(asyncio.create_task(client.roll_over()))
                elif step == "c":
                    broker.faults.close_connections()
                elif step == "d":
                    broker.faults.detach_links()
                elif step == "s":
                    broker.faults.end_sessions()
                else:
                    await broker.disconnect()
            await soon(asyncio.wait(rolls)) if rolls else None
            for roll in rolls:
                assert roll.exception() is None or isinstance(roll.exception(), amqp.AMQPError)
            await load.flows()
            await until(client.ready)
            await one_connection(broker)
            assert len(client.health().links) == 2
            await until(lambda: broker.statistics().links == 2)
        assert load.failed == []
        assert set(load.received) == set(load.sent)
