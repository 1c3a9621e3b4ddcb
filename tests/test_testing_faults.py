"""Faults of the embedded broker, each against the real client: what the README promises for it is what happens."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Lane, Wire, faults
from amqpws_async.testing.faults import (
    CloseConnection,
    CutMessages,
    DeclineMessage,
    DelayOutcome,
    DeliverAgain,
    DetachLink,
    DropConnection,
    End,
    EndSession,
    ExpireToken,
    FallSilent,
    Fault,
    LoseOutcome,
    NoSubprotocol,
    On,
    RefuseLink,
    RefuseUpgrade,
    SlowUpgrade,
    StarveCredit,
    connection_redirect,
    link_redirect,
)
from amqpws_async.testing.proxy import Action

ONE, TWO, THREE = (amqp.Message(text) for text in (b"1", b"2", b"3"))
QUICK: dict[str, Any] = {"open_timeout": 5.0, "close_timeout": 1.0}


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


# --- plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        (CloseConnection, {"on": "upgrade"}, "on: CloseConnection can be on open, begin"),
        (DetachLink, {"on": "begin"}, "on: DetachLink"),
        (LoseOutcome, {"on": "delivery"}, "on: LoseOutcome can be on arrival"),
        (LoseOutcome, {"after": -1}, "after"),
        (LoseOutcome, {"times": 0}, "times"),
        (EndSession, {"address": "q"}, "address"),
        (CloseConnection, {"role": "sender"}, "role"),
        (CutMessages, {"sizes": (0, 1)}, "sizes"),
        (Fault, {"on": "open"}, "on"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: type[Fault], arguments: dict[str, Any], reason: str) -> None:
    """A plan that could never come true is refused where it is written."""
    with pytest.raises(ValueError, match=reason):
        kind(**arguments)


def test_a_plan_can_be_written_down_and_repeated() -> None:
    """A fault's repr makes an equal one."""
    plan = [
        RefuseUpgrade(status=429, retry_after=1.5, times=None),
        DetachLink(on="arrival", after=9, address="orders"),
        DeclineMessage(outcome=amqp.Rejected(amqp.ErrorCondition("amqp:decode-error"))),
    ]
    names = {**vars(faults), **vars(amqp)}
    assert eval(repr(plan), names) == plan


async def test_after_and_times() -> None:
    """`after` go well, `times` do not, the rest do; each fault counts for itself, from when it was injected."""
    plan = [DeclineMessage(after=1, times=2, address="q"), DeclineMessage(after=1, address="queue:other")]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender("q") as sender, connection.sender("other") as other:
            assert await _outcomes(sender, 5) == "ARRAA"
            assert await _outcomes(other, 3) == "ARA"
            broker.faults.inject(DeclineMessage(times=None), DeclineMessage(outcome=amqp.Rejected(None)))
            assert await _outcomes(sender, 3) == "RRR"
            broker.faults.clear()
            assert await _outcomes(sender, 2) == "AA"
        assert broker.faults.counts == {"DeclineMessage": 7}
        assert broker.statistics().queues["q"].depth == 5


async def _outcomes(sender: amqp.Sender, count: int) -> str:
    """The first letters of the outcomes of so many messages."""
    found = [await soon(await sender.transfer(ONE)) for _ in range(count)]
    return "".join(type(outcome).__name__[0] for outcome in found)


# --- the upgrade -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 429, 503])
async def test_the_upgrade_is_refused(status: int) -> None:
    """connect() fails with the status and the headers; the next one is well."""
    plan = [RefuseUpgrade(status=status, retry_after=1.2, body="not now", headers={"X-Why": "fault"})]
    async with Broker(faults=plan) as broker:
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(broker.url, **QUICK)
        assert caught.value.status == status
        headers = {name.lower(): value for name, value in caught.value.headers.items()}
        assert (headers["retry-after"], headers["x-why"]) == ("2", "fault")
        assert caught.value.body == b"not now"
        async with amqp.connect(broker.url, **QUICK) as connection:
            assert connection.health().ok


async def test_no_subprotocol() -> None:
    """connect() refuses a server that selects none, unless it was told to accept that."""
    async with Broker(faults=[NoSubprotocol(times=2)]) as broker:
        with pytest.raises(amqp.HandshakeError):
            await amqp.connect(broker.url, **QUICK)
        async with amqp.connect(broker.url, require_subprotocol=False, **QUICK) as connection:
            assert connection.health().ok
        async with amqp.connect(broker.url, **QUICK):
            pass


async def test_a_slow_upgrade() -> None:
    """It is waited for within open_timeout, and no longer."""
    async with Broker(faults=[SlowUpgrade(seconds=30), SlowUpgrade(seconds=0.01)]) as broker:
        with pytest.raises(TimeoutError, match="open_timeout"):
            await amqp.connect(broker.url, open_timeout=0.1)
        async with amqp.connect(broker.url, **QUICK) as connection:
            assert connection.health().ok


@pytest.mark.parametrize("fragmented", [False, True])
async def test_messages_cut_at_odd_places(fragmented: bool) -> None:
    """However the broker's bytes are cut into WebSocket messages or fragments, the conversation is the same."""
    plan = [CutMessages(sizes=(1, 7), fragmented=fragmented, seed=3)]
    async with (
        Broker(faults=plan) as broker,
        amqp.connect(broker.url, **QUICK) as connection,
        connection.sender("q") as sender,
        connection.receiver("q") as receiver,
    ):
        for number in range(20):
            await soon(sender.send(amqp.Message(bytes([number]) * 100)))
            delivery = await soon(receiver.receive())
            assert delivery.body == bytes([number]) * 100
            await delivery.accept()


# --- ends ------------------------------------------------------------------------------------

ENDS: dict[str, tuple[End, type[amqp.EndpointClosed], str | None]] = {
    "close": (CloseConnection(on="arrival", after=1), amqp.ConnectionClosed, "amqp:connection:forced"),
    "drop": (DropConnection(on="arrival", after=1), amqp.ConnectionClosed, None),
    "end": (EndSession(on="arrival", after=1), amqp.SessionClosed, "amqp:internal-error"),
    "detach": (DetachLink(on="arrival", after=1), amqp.LinkClosed, "amqp:link:detach-forced"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_end_with_the_second_message(end: str) -> None:
    """What was sent with no outcome is in doubt, what comes later was not sent; the next link is well."""
    fault, kind, condition = ENDS[end]
    async with Broker(faults=[LoseOutcome(after=1), fault]) as broker:
        connection = await amqp.connect(broker.url, **QUICK)
        sender = await connection.sender("q")
        await soon(sender.send(ONE))
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            await soon(sender.send(TWO))
        assert caught.value.message is TWO
        assert caught.value.stop.condition == condition
        with pytest.raises(kind) as lost:
            await soon(sender.send(THREE))
        assert lost.value.sent is False
        assert lost.value.stop.endpoint == kind.kind
        if kind is amqp.ConnectionClosed:
            await connection.close()
            connection = await amqp.connect(broker.url, **QUICK)
        async with connection.sender("q") as again:
            await soon(again.send(THREE))
        await connection.close()
        assert broker.statistics().queues["q"].depth == 3
        assert broker.faults.counts == {"LoseOutcome": 1, type(fault).__name__: 1}


@pytest.mark.parametrize("end", ENDS)
async def test_an_end_with_a_delivery(end: str) -> None:
    """What was delivered and not settled cannot be settled any more, and is delivered again."""
    fault, kind, _ = ENDS[end]
    fault = dataclasses.replace(fault, on="delivery", after=0, delay=0.02)
    async with Broker() as broker:
        connection = await amqp.connect(broker.url, **QUICK)
        async with connection.sender("q") as sender:
            await soon(sender.send(ONE))
        broker.faults.inject(fault)
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        with pytest.raises(kind):
            await soon(receiver.receive())
        with pytest.raises(amqp.SettlementLost):
            await delivery.accept()
        await connection.close()
        async with amqp.connect(broker.url, **QUICK) as other, other.receiver("q") as again:
            delivery = await soon(again.receive())
            assert (delivery.body, delivery.message.delivery_count) == (b"1", 1)
            await delivery.accept()
        assert broker.statistics().queues["q"].acknowledged == 1


async def test_ends_when_something_opens() -> None:
    """A connection, session or link that is ended as soon as it is there says why; the next is well."""
    error = amqp.ErrorCondition("amqp:resource-limit-exceeded", "too many")
    plan = [CloseConnection(error=error), EndSession(error=error), DetachLink(error=error, role="receiver")]
    async with Broker(faults=plan) as broker:
        with pytest.raises((amqp.OpenError, amqp.ConnectionClosed), match="too many"):
            async with amqp.connect(broker.url, **QUICK) as connection:
                await connection.session()
        async with amqp.connect(broker.url, **QUICK) as connection:
            with pytest.raises(amqp.SessionClosed, match="too many"):
                async with connection.session() as session:
                    await session.receiver("q")
            async with connection.sender("q") as sender:
                await soon(sender.send(ONE))
            with pytest.raises((amqp.AttachError, amqp.LinkClosed), match="too many"):  # as it happens to come
                async with connection.receiver("q") as receiver:
                    for _ in range(2):
                        await soon(receiver.receive())
            async with connection.receiver("q") as again:
                assert (await soon(again.receive())).body == b"1"


async def test_a_token_expires() -> None:
    """The connection is closed that long after it has opened, with a condition that says why."""
    async with Broker(faults=[ExpireToken(delay=0.05)]) as broker, asyncio.timeout(5):
        connection = await amqp.connect(broker.url, **QUICK)
        receiver = await connection.receiver("q")
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await receiver.receive()
        assert caught.value.stop.condition == "amqp:unauthorized-access"
        await connection.close()
        async with amqp.connect(broker.url, **QUICK) as connection, connection.receiver("q") as receiver:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await receiver.receive()


async def test_an_end_that_comes_too_late() -> None:
    """Nothing happens to who has gone by then, nor after the broker has."""
    async with Broker() as broker:
        broker.faults.inject(EndSession(delay=0.02), DetachLink(delay=0.02))
        async with amqp.connect(broker.url, **QUICK) as connection:
            async with connection.session() as session, session.sender("q"):
                pass
            await asyncio.sleep(0.05)  # until it would have happened
            assert connection.health().ok
        broker.faults.inject(ExpireToken(delay=0.02, times=None), DetachLink(delay=0.02, times=None))
        async with amqp.connect(broker.url, **QUICK) as connection, connection.sender("q"):
            pass
        async with amqp.connect(broker.url, **QUICK) as connection:
            sender = await connection.sender("q")
            await broker.abort()
            with pytest.raises((amqp.ConnectionClosed, amqp.DeliveryUnknown)):
                await soon(sender.send(ONE))
        await asyncio.sleep(0.05)  # until it would have happened
        assert broker.faults.counts == {"ExpireToken": 2, "DetachLink": 3, "EndSession": 1}


@pytest.mark.parametrize("way", ["idle", "ping"])
async def test_a_broker_that_falls_silent(way: str) -> None:
    """The client gives it up after idle_timeout, or without a pong after ping_timeout; the broker ends at once."""
    options: dict[str, Any] = {"idle": {"idle_timeout": 0.2, "ping_interval": None}}.get(
        way, {"idle_timeout": None, "ping_interval": 0.1, "ping_timeout": 0.1}
    )
    async with asyncio.timeout(5), Broker(faults=[FallSilent(on="arrival", after=1)]) as broker:
        connection = await amqp.connect(broker.url, close_timeout=0.1, **options)
        sender = await connection.sender("q")
        await sender.send(ONE)
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            await sender.send(TWO)
        assert caught.value.stop.initiator != "remote"
        with pytest.raises(amqp.ConnectionClosed):
            await sender.send(THREE)
        other = await amqp.connect(broker.url, **QUICK)
        assert broker.faults.silence() >= 1
        began = asyncio.get_running_loop().time()
        await broker.close()
        assert asyncio.get_running_loop().time() - began < 1
        await until(lambda: other.state is amqp.EndpointState.CLOSED)


# --- links -----------------------------------------------------------------------------------


async def test_a_link_is_refused() -> None:
    """The attach fails with the condition, for the address and the role that were meant."""
    plan = [RefuseLink(address="q", role="receiver", times=2)]
    async with (
        Broker(faults=plan) as broker,
        amqp.connect(broker.url, **QUICK) as connection,
        connection.sender("q"),
        connection.receiver("other"),
    ):
        for address in ("q", "queue:q"):
            with pytest.raises(amqp.AttachError) as caught:
                await connection.receiver(address)
            assert caught.value.condition == "amqp:resource-locked"
        async with connection.receiver("q"):
            pass


async def test_starved_credit() -> None:
    """send() waits, and sends nothing when its time is up; credit that comes late is used."""
    plan = [StarveCredit(), StarveCredit(after=1, seconds=0.05)]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender("q") as sender:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await sender.send(ONE)
            assert sender.credit == 0
        async with connection.sender("q") as late:
            await soon(late.send(TWO))
        assert broker.statistics().queues["q"].enqueued == 1


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(amqp.ReceiverSettleMode))
async def test_a_late_outcome(mode: amqp.ReceiverSettleMode) -> None:
    """send() waits for it; those behind it are settled before."""
    plan = [DelayOutcome(seconds=0.1)]
    async with (
        Broker(faults=plan) as broker,
        amqp.connect(broker.url, **QUICK) as connection,
        connection.sender("q", rcv_settle_mode=mode) as sender,
    ):
        late = await sender.transfer(ONE)
        await soon(sender.send(TWO))
        assert not late.done
        assert await soon(late) == amqp.Accepted()


async def test_a_late_outcome_for_a_link_that_has_gone() -> None:
    """It is in doubt then, and stays so."""
    plan = [DelayOutcome(seconds=0.05)]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        sender = await connection.sender("q")
        late = await sender.transfer(ONE)
        await until(lambda: broker.statistics().queues["q"].depth == 1)
        broker.faults.detach_links("q")
        with pytest.raises(amqp.DeliveryUnknown):
            await soon(late)
        await asyncio.sleep(0.1)  # until the outcome would have come
        assert connection.health().ok


async def test_a_message_is_declined() -> None:
    """send() raises what the outcome stands for, and the message is nowhere."""
    error = amqp.ErrorCondition("amqp:precondition-failed", "no")
    plan = [
        DeclineMessage(),
        DeclineMessage(after=1, outcome=amqp.Rejected(error)),
        DeclineMessage(after=2, outcome=amqp.Modified(delivery_failed=True)),
    ]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender("q") as sender:
            with pytest.raises(amqp.MessageReleased):
                await soon(sender.send(ONE))
            with pytest.raises(amqp.MessageRejected) as caught:
                await soon(sender.send(ONE))
            assert caught.value.outcome == amqp.Rejected(error)
            with pytest.raises(amqp.MessageModified):
                await soon(sender.send(ONE))
            await soon(sender.send(ONE, settled=True))
            await soon(sender.send(TWO))
        assert broker.statistics().queues["q"].depth == 2


async def test_delivered_again_although_accepted() -> None:
    """A duplicate is marked by its delivery-count, and what was rejected is no duplicate."""
    plan = [DeliverAgain(address="q", after=1, times=2)]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender("q") as sender, connection.receiver("q") as receiver:
            for message in (ONE, TWO, THREE):
                await soon(sender.send(message))
            seen = []
            for _ in range(4):
                delivery = await soon(receiver.receive())
                seen.append((delivery.body, delivery.message.delivery_count))
                if delivery.body == b"3":
                    await delivery.reject("amqp:decode-error")
                else:
                    await delivery.accept()
            await soon(receiver.drain())
            assert receiver.queued == 0
            assert sorted(seen) == [(b"1", 0), (b"2", 0), (b"2", 1), (b"3", 0)]
        assert broker.statistics().queues["dead-letter"].depth == 1


async def test_forgotten_acceptances_go_back_with_their_link() -> None:
    """A delivery that would be forgotten and is never settled goes back like any other."""
    async with Broker(faults=[DeliverAgain()]) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender("q") as sender, connection.receiver("q") as receiver:
            await soon(sender.send(ONE))
            await soon(receiver.receive())
            assert broker.faults.detach_links(role="receiver") == 1
            with pytest.raises(amqp.LinkClosed):
                await soon(receiver.receive())
        queue = broker.statistics().queues["q"]
        assert (queue.depth, queue.unsettled) == (1, 0)


async def test_an_address_is_the_message_s_own_on_the_anonymous_relay() -> None:
    """There the link has none."""
    plan = [DeclineMessage(address="q")]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        async with connection.sender(None) as relay:
            await soon(relay.send(amqp.Message(b"1", to="other")))
            with pytest.raises(amqp.MessageReleased):
                await soon(relay.send(amqp.Message(b"2", to="q")))
        assert broker.faults.detach_links("q") == 0


# --- at once ---------------------------------------------------------------------------------


async def test_detach_links() -> None:
    """Only those of the address and role end; a durable subscription is there again after it."""
    source = amqp.Source("topic:t", expiry_policy=amqp.ExpiryPolicy.NEVER)
    async with Broker() as broker, amqp.connect(broker.url, container_id="subscriber", **QUICK) as connection:
        kept = await connection.sender("topic:t")
        receiver = await connection.receiver(source, name="subscription")
        assert broker.faults.detach_links("topic:t", role="receiver") == 1
        assert broker.faults.detach_links("nowhere") == 0
        with pytest.raises(amqp.LinkClosed) as caught:
            await soon(receiver.receive())
        assert caught.value.stop.condition == "amqp:link:detach-forced"
        await soon(kept.send(ONE))
        async with connection.receiver(source, name="subscription") as again:
            assert (await soon(again.receive())).body == b"1"
        assert broker.faults.counts == {"DetachLink": 1}


async def test_end_sessions_and_close_connections() -> None:
    """Each session ends for itself; a closed connection takes everything along."""
    async with Broker() as broker:
        connection = await amqp.connect(broker.url, **QUICK)
        first, second = await connection.session(), await connection.session()
        assert broker.faults.end_sessions() == 2
        for session in (first, second):
            with pytest.raises(amqp.SessionClosed):
                await session.sender("q")
        error = amqp.ErrorCondition("amqp:connection:forced", "maintenance")
        assert broker.faults.close_connections(error) == 1
        await until(lambda: connection.state is amqp.EndpointState.CLOSED)
        with pytest.raises(amqp.ConnectionClosed, match="maintenance"):
            await connection.session()
        await connection.close()


# --- redirects -------------------------------------------------------------------------------


async def test_a_connection_is_redirected() -> None:
    """The error says where to, and going there works."""
    async with Broker() as other, Broker() as broker:
        broker.faults.inject(CloseConnection(on="begin", error=connection_redirect(other.url + "path")))
        connection = await amqp.connect(broker.url, **QUICK)
        with pytest.raises(amqp.RedirectError) as caught:
            await connection.session()
        there = caught.value
        assert isinstance(there, amqp.ConnectionClosed)
        assert (there.hostname, there.network_host, there.port) == ("127.0.0.1", "127.0.0.1", other.port)
        assert (there.scheme, there.path) == ("ws", "/path")
        await connection.close()


async def test_a_link_is_redirected() -> None:
    """Refused, or detached later, the error says where to and under which address."""
    there = link_redirect("wss://other.example", "elsewhere")
    plan: list[Fault] = [RefuseLink(error=there), DetachLink(error=there, delay=0.02)]
    async with Broker(faults=plan) as broker, amqp.connect(broker.url, **QUICK) as connection:
        with pytest.raises(amqp.AttachError) as caught:
            await connection.receiver("q")
        assert caught.value.condition == "amqp:link:redirect"
        receiver = await connection.receiver("q")
        with pytest.raises(amqp.RedirectError) as lost:
            await soon(receiver.receive())
        assert isinstance(lost.value, amqp.LinkClosed)
        assert (lost.value.network_host, lost.value.port, lost.value.address) == ("other.example", 443, "elsewhere")


# --- many of them ----------------------------------------------------------------------------


def random_plan(seed: int) -> list[Fault]:
    """A plan of everything that a client may go on after, the same for a seed."""
    draw = random.Random(seed)
    ends: list[On] = ["open", "begin", "attached", "arrival", "delivery"]
    outcomes: list[amqp.Outcome] = [amqp.Released(), amqp.Rejected(None)]
    kinds: list[Callable[[int], Fault]] = [
        lambda after: RefuseUpgrade(after=after, status=draw.choice([401, 429, 503])),
        lambda after: NoSubprotocol(after=after),
        lambda after: CutMessages(after=after, fragmented=draw.random() < 0.5, seed=draw.randrange(99)),
        lambda after: CloseConnection(after=after, on=draw.choice(ends), delay=draw.choice([0, 0.01])),
        lambda after: DropConnection(after=after, on=draw.choice(ends)),
        lambda after: EndSession(after=after, on=draw.choice(ends[1:])),
        lambda after: DetachLink(after=after, on=draw.choice(ends[2:]), address=draw.choice([None, "q"])),
        lambda after: RefuseLink(after=after),
        lambda after: LoseOutcome(after=after),
        lambda after: DelayOutcome(after=after, seconds=0.01),
        lambda after: DeclineMessage(after=after, outcome=draw.choice(outcomes)),
        lambda after: DeliverAgain(after=after),
    ]
    return [draw.choice(kinds)(draw.randrange(8)) for _ in range(30)]


def random_wires(seed: int) -> list[Wire]:
    """Wires that end somewhere in the conversation, and chop it up, the same for a seed."""
    draw = random.Random(seed)
    actions: list[Action] = ["cut", "reset", "half-close"]

    def lane() -> Lane:
        at = draw.randrange(1500) if draw.random() < 0.5 else None
        pieces = (1, draw.randrange(1, 99)) if draw.random() < 0.5 else None
        return Lane(at=at, then=draw.choice(actions), pieces=pieces, seed=draw.randrange(99))

    return [Wire(up=lane(), down=lane()) for _ in range(10)]


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_plan_is_survived(seed: int) -> None:
    """Whatever comes together, every operation ends in time, in a typed error; what was accepted arrives."""
    assert random_plan(seed) == random_plan(seed)
    sent, received = set[bytes](), set[bytes]()
    before = asyncio.all_tasks()
    async with (
        asyncio.timeout(30),
        Broker(faults=random_plan(seed), close_timeout=0.5) as broker,
        FaultProxy(broker.url, random_wires(seed)) as proxy,
    ):
        while len(sent) < 40 or not sent <= received:
            try:
                async with amqp.connect(proxy.url, open_timeout=2.0, close_timeout=0.3) as connection:
                    await _some_more(connection, sent, received)
            except* (amqp.AMQPError, TimeoutError):
                pass
        assert broker.faults.counts.total() + proxy.faults > 10
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    assert left == []


async def _some_more(connection: amqp.Connection, sent: set[bytes], received: set[bytes]) -> None:
    """Send five and receive what there is, on links of their own."""
    async with connection.session() as session, session.sender("q") as sender, session.receiver("q") as receiver:
        async with asyncio.timeout(0.3):
            for _ in range(5):
                if len(sent) < 40:
                    body = b"%d" % len(sent)
                    await sender.send(amqp.Message(body))
                    sent.add(body)
            while not sent <= received:
                delivery = await receiver.receive()
                assert isinstance(delivery.body, bytes)
                received.add(delivery.body)
                await delivery.accept()
