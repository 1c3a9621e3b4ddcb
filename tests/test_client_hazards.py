"""A client's links among hazards: what waits is told, what is in doubt has one fate, the innocent go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.client import receiver as client_receiver
from amqpws_async.errors import ErrorCondition
from amqpws_async.terminus import ExpiryPolicy, SenderSettleMode, TerminusDurability
from amqpws_async.testing import Broker, ServerThread
from amqpws_async.testing.faults import (
    DelayOutcome,
    DetachLink,
    EndSession,
    LoseOutcome,
    RefuseLink,
    RefuseUpgrade,
    StarveCredit,
    link_redirect,
)

from .client_frame import (
    MESSAGE,
    NOT_ALLOWED,
    NOT_FOUND,
    QUICK,
    STATES,
    fates,
    lost,
    proxied,
    relinked,
    soon,
    unplugged,
    until,
)
from .test_promises import turns

# --- the client ends while links wait -------------------------------------------------------------

FINAL: dict[str, tuple[dict[str, Any], Callable[[Broker], Any]]] = {
    "a 403": ({}, lambda broker: broker.faults.inject(RefuseUpgrade(status=403, times=None))),
    "max_attempts": (
        {"backoff": amqp.Backoff(initial=0.01, max_attempts=2)},
        lambda broker: broker.faults.inject(RefuseUpgrade(status=503, times=None)),
    ),
    "max_time": (
        {"backoff": amqp.Backoff(initial=0.01, max_time=0.02)},
        lambda broker: broker.faults.inject(RefuseUpgrade(status=503, times=None)),
    ),
    "a close": ({}, lambda broker: broker.faults.close_connections(NOT_ALLOWED)),
}


@pytest.mark.timeout(20, method="thread")  # which ends also a loop that is stuck
@pytest.mark.parametrize("name", FINAL)
async def test_links_that_wait_end_with_their_client(name: str) -> None:
    """What ends a client for good ends the links that wait for a connection, and the loop goes on."""
    options, strike = FINAL[name]
    async with Broker() as broker, amqp.Client(broker.url, **QUICK | options) as client:
        sender, receiver = await client.sender("orders"), await client.receiver("orders")
        waiting = asyncio.create_task(receiver.receive())
        strike(broker)
        if broker.faults.counts["CloseConnection"] == 0:
            await broker.disconnect()
        for link in (sender, receiver):
            await soon(link.wait_closed())
            assert link.stop == client.stop is not None
        assert client.state is STATES.CLOSED
        with pytest.raises(amqp.ConnectionClosed):
            await soon(waiting)
        with pytest.raises(amqp.ConnectionClosed):
            await sender.send(MESSAGE)


async def test_a_connection_closed_behind_the_client_is_a_loss() -> None:
    """A connection that is closed in the client's place is replaced; if that fails, iteration raises why."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, max_attempts=1)}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        receiver = await client.receiver("orders")
        assert client.connection is not None
        await lost(client, client.connection.close)
        broker.faults.inject(RefuseUpgrade(times=None))
        waiting = asyncio.create_task(receiver.__anext__())
        await client.connection.close()
        with pytest.raises(amqp.ConnectionClosed, match="503"):
            await soon(waiting)


async def test_a_client_given_up_raises_also_where_its_connection_was_closed_by_us() -> None:
    """Iteration ends with an error, and not as after a close, if the loss that is one too many was a close of ours."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, max_time=0.0)}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        receiver = await client.receiver("orders")
        assert client.connection is not None
        await lost(client, client.connection.close)
        waiting = asyncio.create_task(receiver.__anext__())
        await client.connection.close()
        with pytest.raises(amqp.ConnectionClosed, match="given up"):
            await soon(waiting)


async def test_openers_are_told_that_the_client_closes() -> None:
    """Who waits for a link, or for the client itself, when the client is closed gets an error at once."""
    client = amqp.Client("ws://127.0.0.1:1", background=True, **QUICK)
    await client.open()
    openers: list[Awaitable[Any]] = [client.sender("orders"), client.receiver("orders")]
    waiting = [asyncio.create_task(soon(opener)) for opener in openers]
    await turns()
    await client.close()
    for task in waiting:
        with pytest.raises(amqp.ConnectionClosed):
            await task
    client = amqp.Client("ws://127.0.0.1:1", **QUICK)
    opening = asyncio.create_task(client.open())
    await turns()
    await client.close()
    with pytest.raises(amqp.ConnectionClosed):
        await soon(opening)


async def test_an_open_in_the_background_can_be_cancelled() -> None:
    """A cancelled open leaves no client that runs, also where it would not have waited."""
    async with Broker() as broker:
        client = amqp.Client(broker.url, background=True, **QUICK)
        opening = asyncio.create_task(client.open())
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        if opening.cancelled():
            assert client.state is STATES.CLOSED
        else:  # an eager task was done before
            await client.close()


def test_a_loop_that_ends_ends_its_clients() -> None:
    """A loop that shuts down around open clients and links has them end, with that for a reason and no complaint."""

    async def program() -> tuple[amqp.Client, amqp.ClientSender]:
        async def handle(delivery: amqp.Delivery) -> None:
            await delivery.accept()

        client = await amqp.Client(broker.url, **QUICK).open()
        sender, receiver = await client.sender("orders", on_unknown="resend"), await client.receiver("orders")
        background.append(asyncio.create_task(receiver.process(handle)))
        await turns()
        return client, sender

    background: list[asyncio.Task[Any]] = []
    with ServerThread() as thread, warnings.catch_warnings():
        broker = thread.enter(Broker())
        warnings.simplefilter("error")
        client, sender = asyncio.run(program())
        assert client.state is STATES.CLOSED
        assert client.stop is not None
        assert client.stop.description == "the event loop is shutting down"
        assert sender.stop == client.stop
        background.clear()
        del client, sender
        gc.collect()


# --- in doubt -------------------------------------------------------------------------------------


async def resending(broker: Broker, sender: amqp.ClientSender, credit_after: float | None = None) -> list[Any]:
    """Has three messages in doubt, which wait for credit on the next link; returns the deliveries."""
    broker.faults.inject(LoseOutcome(times=3))
    pending = [await soon(sender.transfer(MESSAGE)) for _ in range(3)]
    await until(lambda: broker.faults.counts["LoseOutcome"] == 3)
    broker.faults.inject(StarveCredit(times=None, address="orders", seconds=credit_after))
    links = broker.faults.counts["StarveCredit"]
    await broker.disconnect()
    await until(lambda: broker.faults.counts["StarveCredit"] > links)
    await until(lambda: sender._links)
    assert sender.unsettled == 3
    return pending


async def test_a_sender_given_up_tells_what_waits_to_be_resent() -> None:
    """A sender whose close is cancelled tells each delivery that it has not sent again yet."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        sender = await client.sender("orders", on_unknown="resend")
        pending = await resending(broker, sender)
        told = asyncio.create_task(fates(pending))
        closing = asyncio.create_task(sender.close())
        await turns()
        assert not closing.done()
        closing.cancel()
        assert await told == ["DeliveryUnknown"] * 3
        assert sender.unsettled == 0


@pytest.mark.parametrize("scope", ["sender", "client"])
async def test_a_cancelled_body_tells_what_waits_to_be_resent(scope: str) -> None:
    """A task cancelled within ``async with`` of a sender or client leaves no delivery untold."""
    pending: list[Any] = []
    async with Broker() as broker, contextlib.AsyncExitStack() as outer:

        async def body() -> None:
            async with contextlib.AsyncExitStack() as inner:
                client = await (outer if scope == "sender" else inner).enter_async_context(
                    amqp.Client(broker.url, **QUICK)
                )
                sender = await inner.enter_async_context(client.sender("orders", on_unknown="resend"))
                pending.extend(await resending(broker, sender))
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await until(lambda: pending or task.done())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await fates(pending) == ["DeliveryUnknown"] * 3


async def test_a_close_out_of_time_tells_what_waits_to_be_resent() -> None:
    """A client whose close_timeout passes tells each delivery, also of a sender that it did not come to."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK | {"close_timeout": 0.2}) as client:
        other = await client.sender("other")
        sender = await client.sender("orders", on_unknown="resend")
        pending = await resending(broker, sender)
        await until(lambda: other.attached)
        broker.faults.inject(LoseOutcome(times=None))
        pending.append(await soon(other.transfer(MESSAGE)))
        await soon(client.close())
        assert await fates(pending) == ["DeliveryUnknown"] * 4


@pytest.mark.parametrize("scope", ["sender", "client"])
async def test_a_close_waits_for_what_is_sent_again(scope: str) -> None:
    """A sender that is closed while it sends again goes on with that, and its deliveries have their outcomes."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK | {"close_timeout": 10.0}) as client:
        sender = await client.sender("orders", on_unknown="resend")
        pending = await resending(broker, sender, credit_after=0.2)
        await soon((sender if scope == "sender" else client).close())
        assert await fates(pending) == ["Accepted"] * 3
        assert len(broker.messages("orders")) >= 3


# --- sessions -------------------------------------------------------------------------------------


async def test_the_end_of_a_session_spares_the_innocent() -> None:
    """Where one attach ends the session of all, for good, the others come back, and it has two attempts."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver, sender = await client.receiver("innocent"), await client.sender("innocent")
        broker.faults.inject(EndSession(on="attached", address="culprit", error=NOT_FOUND, times=None))
        with pytest.raises(amqp.SessionClosed, match="not-found"):
            await soon(client.receiver("culprit"))
        assert broker.faults.counts["EndSession"] == 2
        await until(client.ready)
        await soon(sender.send(MESSAGE))
        await soon((await soon(receiver.receive())).accept())
        assert client.state is STATES.CONNECTED
        assert receiver.stop is sender.stop is None


async def test_a_session_closes_all_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session goes on closing, in order, when one of its links fails to, and then raises the first failure."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        session = await client.session()
        first, second = await session.receiver("a"), await session.sender("b")
        broker.faults.inject(DelayOutcome(seconds=0.1))
        pending = await second.transfer(MESSAGE)
        close = first.close

        async def fails() -> None:
            await close()
            raise TimeoutError("the peer did not answer the detach")

        monkeypatch.setattr(first, "close", fails)
        with pytest.raises(TimeoutError, match="did not answer"):
            await soon(session.close())
        assert second.stop is not None
        assert await fates([pending]) == ["Accepted"]
        with pytest.raises(amqp.LocalProtocolError):
            await session.sender("c")
        await soon((await client.sender("d")).send(MESSAGE))
        await until(lambda: broker.statistics().links == 1)


async def test_a_session_whose_close_is_cancelled_is_over() -> None:
    """Cancelling a session's close gives every link of it up, also those that it had not come to."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK | {"close_timeout": 10.0}) as client:
        session = await client.session()
        links = [await session.receiver("a"), await session.sender("b"), await session.sender("c")]
        broker.faults.inject(LoseOutcome(times=None))
        sender = links[1]
        assert isinstance(sender, amqp.ClientSender)
        pending = await sender.transfer(MESSAGE)
        closing = asyncio.create_task(session.close())
        await until(lambda: links[0].stop is not None)
        assert not closing.done()
        closing.cancel()
        await asyncio.wait([closing])
        assert all(link.stop is not None for link in links)
        assert await fates([pending]) == ["DeliveryUnknown"]
        await until(lambda: broker.statistics().sessions == 0)


# --- receivers ------------------------------------------------------------------------------------


async def test_a_drain_in_an_outage_leaves_no_receiver_deaf() -> None:
    """A receiver that is drained while it has no link, and while somebody waits, has credit on the next link."""
    async with proxied() as (broker, proxy, client):
        receiver = await client.receiver("orders")
        await unplugged(client, proxy)
        waiting = asyncio.create_task(receiver.receive())
        await turns()
        await soon(receiver.drain())
        proxy.accept()
        await until(lambda: receiver.attached)
        broker.put("orders", MESSAGE)
        await soon((await soon(waiting)).accept())


async def test_a_process_stopped_in_an_outage_leaves_no_receiver_deaf() -> None:
    """Whoever waits for a delivery gets it, though `process` was stopped beside it while there was no link."""
    async with proxied() as (broker, proxy, client):
        receiver = await client.receiver("orders")
        stop = asyncio.Event()

        async def handle(delivery: amqp.Delivery) -> None:
            await delivery.accept()

        processing = asyncio.create_task(receiver.process(handle, stop=stop))
        await turns()
        waiting = asyncio.create_task(receiver.receive())
        await turns()
        await unplugged(client, proxy)
        stop.set()
        await soon(processing)
        proxy.accept()
        await until(lambda: receiver.attached)
        broker.put("orders", MESSAGE)
        await soon((await soon(waiting)).accept())


async def test_settled_deliveries_do_not_pile_up() -> None:
    """Pre-settled deliveries that nobody takes stay no more than the credit allows, however often the link is lost."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver = await client.receiver("orders", credit=10, snd_settle_mode=SenderSettleMode.SETTLED)
        for number in range(100):
            broker.put("orders", amqp.Message(b"%d" % number))
        await until(lambda: receiver.queued == 10)
        for _ in range(5):
            await relinked(receiver, lambda: broker.faults.detach_links("orders"))
            await soon((await client.sender("other")).send(MESSAGE))  # by then the broker would have sent more
            assert receiver.queued == 10
            assert len(receiver._links) <= 2
        bodies = [(await soon(receiver.receive())).message.body for _ in range(100)]
        assert bodies == [b"%d" % number for number in range(100)]


async def test_manual_credit_is_granted_once_at_a_roll_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credit that a peer does not give back in time is not granted a second time on the next connection."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver = await client.receiver("orders", credit=0)
        await receiver.add_credit(1)
        monkeypatch.setattr(client_receiver, "DRAIN_ANSWER", 0.05)

        async def unanswered(self: Any) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(amqp.Receiver, "drain", unanswered)
            await soon(client.roll_over())
        for number in range(4):
            broker.put("orders", amqp.Message(b"%d" % number))
        await until(lambda: receiver.queued)
        await soon((await client.sender("other")).send(MESSAGE))
        assert receiver.queued == 1


async def test_a_durable_subscription_without_a_name_keeps_the_one_made_up() -> None:
    """A durable subscription comes back under the name that it had, also where its user gave none."""
    async with Broker() as broker, amqp.Client(broker.url, container_id="reader", **QUICK) as client:
        source = amqp.Source("topic:news", durable=TerminusDurability.UNSETTLED_STATE, expiry_policy=ExpiryPolicy.NEVER)
        receiver = await client.receiver(source)
        assert receiver.link is not None
        name = receiver.link.name
        for lose in (broker.disconnect, client.roll_over):
            await lost(client, lose)
            assert receiver.link.name == name
            broker.put("topic:news", MESSAGE)
            await soon((await soon(receiver.receive())).accept())


# --- links, each for itself -----------------------------------------------------------------------


async def test_the_failure_of_a_link_is_its_own() -> None:
    """A link that is given up says so for itself, and not that the connection has ended."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, max_attempts=2)}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        receiver = await client.receiver("orders")
        trouble = ErrorCondition("amqp:internal-error", "it is broken")
        broker.faults.inject(RefuseLink(times=None, error=trouble, address="orders"))
        waiting = asyncio.create_task(receiver.receive())
        broker.faults.detach_links("orders")
        with pytest.raises(amqp.LinkClosed, match="it is broken"):
            await soon(waiting)
        assert client.state is STATES.CONNECTED


async def test_a_redirect_that_is_not_followed_ends_the_link_alone() -> None:
    """A link sent to a host that is not trusted ends, as a link, and its client goes on."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver = await client.receiver("orders")
        waiting = asyncio.create_task(receiver.receive())
        await turns()
        broker.faults.detach_links("orders", error=link_redirect("ws://elsewhere.example:1/"))
        with pytest.raises(amqp.LinkClosed, match=r"elsewhere\.example") as caught:
            await soon(waiting)
        assert caught.value.stop.endpoint == "link"
        await soon((await client.sender("orders")).send(MESSAGE))


async def test_a_redirect_of_the_anonymous_terminus_harms_nobody() -> None:
    """A sender without an address that is sent to one sends there, and the client goes on."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver, sender = await client.receiver("other"), await client.sender(None)
        broker.faults.inject(DetachLink(on="arrival", error=link_redirect(broker.url, "elsewhere")))
        with contextlib.suppress(amqp.DeliveryUnknown):
            await soon(sender.send(amqp.Message(b"one", to="orders")))
        await until(client.ready)
        await soon(sender.send(amqp.Message(b"two", to="orders")))
        assert [message.body for message in broker.messages("elsewhere")] == [b"two"]
        assert receiver.stop is client.stop is None


async def test_a_refused_attach_is_raised_where_waiting_is_not_wanted() -> None:
    """With outage="fail" the first attach that is refused for now raises that, as the link's."""
    async with Broker() as broker, amqp.Client(broker.url, outage="fail", **QUICK) as client:
        broker.faults.inject(RefuseLink())
        with pytest.raises(amqp.LinkClosed, match="resource-locked"):
            await soon(client.sender("orders"))
        await soon((await soon(client.sender("orders"))).send(MESSAGE))


async def test_a_link_closes_within_one_timeout() -> None:
    """A sender whose outcome does not come is closed after one close_timeout, not after one for each step."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        sender = await client.sender("orders")
        broker.faults.inject(LoseOutcome())
        pending = await sender.transfer(MESSAGE)
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await soon(sender.close())
        assert time.monotonic() - began < 1.8
        assert await fates([pending]) == ["DeliveryUnknown"]


async def test_the_roll_over_of_a_link_does_not_restart_its_stable_time() -> None:
    """A link's earlier failures are forgotten after stable_after seconds, though it moved meanwhile."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, stable_after=0.2)}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        sender = await client.sender("orders")
        await relinked(sender, lambda: broker.faults.detach_links("orders"))
        assert sender._pace.failures == 1
        began = time.monotonic()
        while time.monotonic() - began < 0.25:
            await soon(client.roll_over())
        await relinked(sender, lambda: broker.faults.detach_links("orders"))
        assert sender._pace.failures == 1


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["loss", "roll-over"])
async def test_connections_that_are_over_are_forgotten(way: str) -> None:
    """Neither client nor links keep connections that were lost or rolled over, or what was on them."""
    kept: weakref.WeakSet[Any] = weakref.WeakSet()
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        links = [await client.sender("orders", on_unknown="resend"), await client.receiver("orders")]
        for _ in range(10):
            assert client.connection is not None
            kept.add(client.connection)
            kept.update(link.link for link in links)
            await lost(client, broker.disconnect if way == "loss" else client.roll_over)
        await until(lambda: len(client._main.connections()) == broker.statistics().connections == 1)
        await until(lambda: all(len(link._links) == 1 for link in links))
        assert len(client._main._connections) == 1
        await turns()
        gc.collect()
        assert len(kept) <= 1  # the last, of which a session knows until it begins again


async def test_a_link_that_is_closed_is_forgotten() -> None:
    """A client keeps none of the links that were closed."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        kept: weakref.WeakSet[Any] = weakref.WeakSet()
        for _ in range(5):
            async with client.sender("orders") as sender, client.receiver("orders") as receiver:
                kept.update((sender, receiver))
        del sender, receiver
        await turns()
        gc.collect()
        assert not client._links
        assert len(kept) == 0
        assert client.state is STATES.CONNECTED
