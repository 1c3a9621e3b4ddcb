"""A client's connection among hazards: tokens, places, roll-overs and detours, each with faults of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.auth import oauth2
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.testing import Broker, FaultProxy, TokenServer
from amqpws_async.testing.faults import (
    CloseConnection,
    DelayOutcome,
    RefuseLink,
    RefuseUpgrade,
    SlowUpgrade,
    link_redirect,
)

from .client_frame import EXPIRED, MESSAGE, QUICK, STATES, Tokens, lost, soon, until
from .test_promises import turns

# --- tokens ---------------------------------------------------------------------------------------


async def test_a_clock_ahead_of_the_servers_causes_no_storm() -> None:
    """A token that the peer takes, and that has expired by our clock, is used for as long as the peer likes it."""
    tokens = Tokens(expiry=time.time() - 5)
    async with Broker() as broker, amqp.Client(broker.url, token=tokens, **QUICK) as client:
        sender, connection = await client.sender("orders"), client.connection
        for _ in range(100):  # a connection takes less time than these
            await soon(sender.send(MESSAGE))
        assert client.connection is connection
        assert broker.statistics().connections_total == 1
        assert tokens.issued == 1


async def test_a_token_is_replaced_before_it_expires() -> None:
    """The connection is replaced by one with another token, once for each, before its token expires."""
    expiry = time.time() + 1.5
    used: list[str] = []

    class Renewed(Tokens):
        async def token(self, *, refresh: bool = False) -> amqp.Token:
            token = await super().token(refresh=refresh)
            return amqp.Token(token.value, expiry if self.issued == 1 else expiry + 3600)

    def authorize(headers: Any, path: str) -> None:
        used.append(headers["Authorization"])

    states: list[amqp.StateChange] = []
    async with (
        Broker(authorize=authorize) as broker,
        amqp.Client(broker.url, token=Renewed(), on_state=states.append, **QUICK) as client,
    ):
        sender, former = await client.sender("orders"), client.connection
        while client.connection is former:
            await soon(sender.send(MESSAGE))
        assert time.time() < expiry
        assert used == ["Bearer token-1", "Bearer token-2"]
        assert [change.state for change in states] == [STATES.CONNECTED] * 2


@pytest.mark.parametrize("when", ["first", "again"])
async def test_unauthorized_straight_after_the_open_costs_one_token(when: str) -> None:
    """A peer that closes as unauthorized as soon as it has opened is shown one other token."""
    tokens = Tokens()
    async with Broker() as broker:
        client = amqp.Client(broker.url, token=tokens, **QUICK)
        fault = CloseConnection(on="open", error=EXPIRED, after=when == "again")
        broker.faults.inject(fault)
        async with client:
            if when == "again":
                await lost(client, broker.disconnect)
            assert broker.faults.counts["CloseConnection"] == 1
            assert tokens.issued == 2


@pytest.mark.parametrize("when", ["first", "again"])
async def test_unauthorized_with_another_token_is_final(when: str) -> None:
    """A peer that likes the other token no better ends the client, after these two."""
    tokens = Tokens()
    async with Broker() as broker:
        client = amqp.Client(broker.url, token=tokens, **QUICK)
        broker.faults.inject(CloseConnection(on="open", error=EXPIRED, after=when == "again", times=None))
        if when == "first":
            with pytest.raises(amqp.ConnectionClosed, match="unauthorized"):
                await soon(client.open())
        else:
            await client.open()
            await broker.disconnect()
            await until(lambda: client.state is STATES.CLOSED)
        assert client.stop is not None
        assert client.stop.condition == "amqp:unauthorized-access"
        assert broker.faults.counts["CloseConnection"] == tokens.issued == 2
        await client.close()


async def test_unauthorized_without_a_token_is_final_at_once() -> None:
    """Where there is no token, there is none to replace."""
    async with Broker() as broker:
        broker.faults.inject(CloseConnection(on="open", error=EXPIRED, times=None))
        with pytest.raises(amqp.ConnectionClosed, match="unauthorized"):
            await soon(amqp.Client(broker.url, **QUICK).open())
        assert broker.faults.counts["CloseConnection"] == 1


async def test_a_connection_closed_for_its_token_comes_back_with_another_once() -> None:
    """A connection in use that is closed as unauthorized is replaced by one with another token; soon after, it ends."""
    tokens = Tokens()
    async with Broker() as broker, amqp.Client(broker.url, token=tokens, **QUICK) as client:
        await lost(client, lambda: broker.faults.close_connections(EXPIRED))
        assert tokens.issued == 2
        broker.faults.close_connections(EXPIRED)
        await until(lambda: client.state is STATES.CLOSED)
        assert tokens.issued == 2


async def test_revoked_tokens_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose token is revoked asks the token server for one more, and its sender goes on."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)
    async with TokenServer() as server, Broker(authorize=server.authorize) as broker:
        grant = ClientCredentials(server.url, server.client_id, server.client_secret)
        async with TokenRefresher(grant) as tokens, amqp.Client(broker.url, token=tokens, **QUICK) as client:
            sender = await client.sender("orders")
            server.revoke_all()
            broker.faults.close_connections(EXPIRED)
            await until(lambda: not sender.attached)
            await soon(sender.send(MESSAGE))
            assert server.request_count == 2


@pytest.mark.parametrize("error", [ValueError("<html>502 Bad Gateway"), KeyError("access_token"), OSError("no route")])
async def test_what_a_token_provider_raises_is_tried_again(error: Exception) -> None:
    """Whatever a provider of the user's raises is trouble that passes, and no end of the client."""

    class Troubled(Tokens):
        calls = 0

        async def token(self, *, refresh: bool = False) -> amqp.Token:
            self.calls += 1
            if self.calls in (2, 4):
                raise error
            return await super().token(refresh=refresh)

    async with Broker() as broker, amqp.Client(broker.url, token=(tokens := Troubled()), **QUICK) as client:
        sender = await client.sender("orders")
        await lost(client, broker.disconnect)
        assert tokens.calls == 3
        with pytest.raises(type(error)):
            await soon(client.roll_over())
        await soon(sender.send(MESSAGE))
        assert broker.statistics().connections == 1


# --- places ---------------------------------------------------------------------------------------


async def test_one_place_that_is_busy_does_not_delay_another() -> None:
    """The Retry-After of one URL is no reason to wait before the next."""
    states: list[amqp.StateChange] = []
    busy = Broker(faults=[RefuseUpgrade(status=503, retry_after=120, times=None)])
    async with busy, Broker() as other:
        client = amqp.Client([busy.url, other.url], on_state=states.append, **QUICK)
        await soon(client.open())
        assert client.connection is not None
        assert client.connection.options.url == other.url
        assert [(change.state, change.delay) for change in states] == [(STATES.CONNECTING, 0), (STATES.CONNECTED, 0)]
        await client.close()


@pytest.mark.parametrize("order", [1, -1])
async def test_a_place_that_is_busy_is_left_alone_for_as_long_as_it_asks(order: int) -> None:
    """A URL with a Retry-After is not asked before, while the rounds go on with the others, which need not wait."""
    states: list[amqp.StateChange] = []
    busy = Broker(faults=[RefuseUpgrade(status=503, retry_after=120, times=None)])
    async with busy, Broker() as broker, FaultProxy(broker.url) as proxy:
        proxy.refuse()
        urls = [busy.url, proxy.url][::order]
        client = amqp.Client(urls, on_state=states.append, background=True, **QUICK)
        await client.open()
        await until(lambda: len(states) > 5)
        assert busy.faults.counts["RefuseUpgrade"] == 1
        proxy.accept()
        await until(client.ready)
        await client.close()


async def test_places_that_are_all_busy_are_asked_when_the_first_of_them_may() -> None:
    """Where every URL has a Retry-After, the shortest of them is heeded."""
    states: list[amqp.StateChange] = []
    one = Broker(faults=[RefuseUpgrade(status=503, retry_after=60, times=None)])
    other = Broker(faults=[RefuseUpgrade(status=429, retry_after=90, times=None)])
    async with one, other:
        client = amqp.Client([one.url, other.url], on_state=states.append, background=True, **QUICK)
        await client.open()
        await until(lambda: len(states) == 2)
        assert [round(change.delay) for change in states] == [0, 60]
        await client.close()


async def test_one_place_that_is_none_does_not_end_the_client() -> None:
    """A URL that answers 404 is left aside while another works."""
    async with (
        Broker(authorize=lambda headers, path: 404) as nobody,
        Broker() as broker,
        amqp.Client([nobody.url, broker.url], **QUICK) as client,
    ):
        for _ in range(3):
            await lost(client, broker.disconnect)
        assert client.connection is not None
        assert client.connection.options.url == broker.url


async def test_places_that_are_all_none_end_the_client() -> None:
    """Where every URL answers 404, also one that was in use, the client ends, and each was asked once."""
    asked: list[str] = []

    def refuse(headers: Any, path: str) -> int:
        asked.append(headers["Host"])
        return 404

    async with Broker(authorize=refuse) as one, Broker(authorize=refuse) as other:
        with pytest.raises(amqp.HandshakeError, match="404"):
            await soon(amqp.Client([one.url, other.url], **QUICK).open())
        assert asked == [f"{broker.host}:{broker.port}" for broker in (one, other)]
        async with Broker() as good, amqp.Client([one.url, good.url], **QUICK) as client:
            good.faults.inject(RefuseUpgrade(status=404, times=None))
            await good.disconnect()
            await until(lambda: client.state is STATES.CLOSED)
            assert good.faults.counts["RefuseUpgrade"] == 1


@pytest.mark.parametrize("attempts", [1, 3])
async def test_max_attempts_counts_attempts(attempts: int) -> None:
    """So many attempts are made after a loss, which is none itself, before the client is given up."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, max_attempts=attempts)}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        for _ in range(3):
            await lost(client, broker.disconnect)
        broker.faults.inject(RefuseUpgrade(times=None))
        await broker.disconnect()
        await until(lambda: client.state is STATES.CLOSED)
        assert broker.faults.counts["RefuseUpgrade"] == attempts


async def test_every_place_is_tried_before_the_client_is_given_up() -> None:
    """With several URLs, max_attempts does not keep the client from one that works."""
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, max_attempts=1)}
    async with Broker() as broker:
        client = amqp.Client(["ws://127.0.0.1:1", "ws://127.0.0.1:2", broker.url], **options)
        async with asyncio.timeout(5), client:
            await lost(client, broker.disconnect)
            broker.faults.inject(RefuseUpgrade(times=None))
            await broker.disconnect()
            await until(lambda: client.state is STATES.CLOSED)
            assert broker.faults.counts["RefuseUpgrade"] == 1


# --- roll-over ------------------------------------------------------------------------------------


async def test_max_connection_age_replaces_connections() -> None:
    """A connection is replaced when it is so old, without an outage, and so is its successor."""
    states: list[amqp.StateChange] = []
    async with (
        Broker() as broker,
        amqp.Client(broker.url, max_connection_age=0.1, outage="fail", on_state=states.append, **QUICK) as client,
    ):
        sender = await client.sender("orders")
        began = time.monotonic()
        while len(states) < 4:
            await soon(sender.send(MESSAGE))
        assert time.monotonic() - began > 0.2
        assert {change.state for change in states} == {STATES.CONNECTED}
    assert broker.statistics().connections_total >= 4


async def test_a_roll_over_is_no_outage() -> None:
    """While the client moves, it is ready, and nobody who does not want to wait for an outage gets an error."""
    async with Broker() as broker, amqp.Client(broker.url, outage="fail", **QUICK) as client:
        sender, receiver = await client.sender("orders"), await client.receiver("invoices")
        waiting = asyncio.create_task(receiver.receive())
        broker.faults.inject(DelayOutcome(seconds=0.2))
        slow = asyncio.create_task(sender.send(MESSAGE))
        await until(lambda: broker.faults.counts["DelayOutcome"])
        unready = 0
        moving = asyncio.create_task(client.roll_over())

        async def watch() -> None:
            nonlocal unready
            while not moving.done():
                unready += not client.ready()
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        while not moving.done():
            await soon(sender.send(MESSAGE))
        await moving
        await watching
        assert unready == 0
        await soon(slow)
        broker.put("invoices", MESSAGE)
        await soon((await soon(waiting)).accept())


async def test_a_loss_during_a_roll_over_is_noticed_at_once() -> None:
    """A connection lost while the attempt for a second one hangs is an outage like any other."""
    async with Broker() as broker, amqp.Client(broker.url, outage="fail", **QUICK) as client:
        sender = await client.sender("orders")
        broker.faults.inject(SlowUpgrade(seconds=9.0))
        moving = asyncio.create_task(client.roll_over())
        await until(lambda: broker.faults.counts["SlowUpgrade"])
        broker.faults.inject(RefuseUpgrade(times=None))
        began = time.monotonic()
        broker.faults.close_connections()
        await until(lambda: client.connection is None)
        assert client.state is STATES.RECONNECTING
        assert not client.ready()
        with pytest.raises(amqp.ConnectionClosed):
            await sender.send(MESSAGE)
        await until(lambda: broker.faults.counts["RefuseUpgrade"])
        broker.faults.clear()
        await until(client.ready)
        assert time.monotonic() - began < 5  # and not after the attempt that hangs
        await soon(moving)
        await soon(sender.send(MESSAGE))


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_for_now_keeps_the_connection(status: int) -> None:
    """A server that is too busy for a second connection is asked again after its Retry-After, and the first goes on."""
    states: list[amqp.StateChange] = []
    options = QUICK | {"max_connection_age": 0.05, "on_state": states.append}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        sender, former = await client.sender("orders"), client.connection
        broker.faults.inject(RefuseUpgrade(status=status, retry_after=1.0))
        await until(lambda: broker.faults.counts["RefuseUpgrade"])
        began = time.monotonic()
        assert client.connection is former
        await soon(sender.send(MESSAGE))
        await until(lambda: client.connection is not former)
        assert time.monotonic() - began > 0.9
        assert {change.state for change in states} == {STATES.CONNECTED}


async def test_refused_roll_overs_come_at_longer_intervals() -> None:
    """A server that refuses second connections, for no reason that asks for another way, is asked less and less."""
    times: list[float] = []

    def authorize(headers: Any, path: str) -> int | None:
        times.append(time.monotonic())
        return 503 if len(times) > 1 else None

    async with (
        Broker(authorize=authorize) as broker,
        amqp.Client(broker.url, max_connection_age=0.05, **QUICK) as client,
    ):
        former = client.connection
        await until(lambda: len(times) == 4)
        assert times[2] - times[1] >= 0.1  # half of what a Backoff begins with
        assert times[3] - times[2] >= 0.2
        assert client.connection is former


@pytest.mark.parametrize("status", [429, 503])
async def test_a_roll_over_that_is_refused_raises(status: int) -> None:
    """Who asks for a roll-over is told why there is none, and the connection stays."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        former = client.connection
        broker.faults.inject(RefuseUpgrade(status=status, retry_after=60.0))
        with pytest.raises(amqp.HandshakeError, match=str(status)):
            await soon(client.roll_over())
        assert client.connection is former
        await soon(client.roll_over())  # asked for, so at once
        assert client.connection is not former


async def test_a_place_for_one_connection_is_left_first() -> None:
    """Where a second connection is refused for being one, the first makes way, and that is said."""
    states: list[amqp.StateChange] = []
    async with (
        Broker(max_connections=1) as broker,
        amqp.Client(broker.url, on_state=states.append, **QUICK) as client,
    ):
        sender, former = await client.sender("orders"), client.connection
        await soon(client.roll_over())
        assert client.connection is not former
        await soon(sender.send(MESSAGE))
        assert [change.state for change in states] == [STATES.CONNECTED, STATES.RECONNECTING, STATES.CONNECTED]


async def test_an_old_connection_goes_with_its_last_link() -> None:
    """The connection that was left is closed as soon as its last link is gone, long before handover_timeout."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver, former = await client.receiver("orders"), client.connection
        assert former is not None
        broker.put("orders", MESSAGE)
        delivery = await soon(receiver.receive())
        await soon(client.roll_over())
        assert former.stop is None
        assert not delivery.settled
        await soon(receiver.close())
        await soon(former.wait_closed())


async def test_roll_overs_do_not_restart_the_stable_time() -> None:
    """Failures are forgotten once there has been a connection for stable_after seconds, though it was replaced."""
    states: list[amqp.StateChange] = []
    options = QUICK | {"backoff": amqp.Backoff(initial=0.01, stable_after=0.3), "on_state": states.append}
    async with Broker() as broker, amqp.Client(broker.url, **options) as client:
        await lost(client, broker.disconnect)
        began = time.monotonic()
        while time.monotonic() - began < 0.35:
            await soon(client.roll_over())
        await lost(client, broker.disconnect)
        assert [change.attempt for change in states if change.state is STATES.RECONNECTING] == [1, 1]


async def test_a_dynamic_node_is_another_one_after_a_roll_over() -> None:
    """A receiver with a dynamic source says the address of the node that it has now, and receives from there."""
    async with Broker() as broker, amqp.Client(broker.url, **QUICK) as client:
        receiver = await client.receiver(amqp.Source(dynamic=True))
        former = receiver.address
        await soon(client.roll_over())
        assert receiver.address not in (None, former)
        broker.put(receiver.address or "", MESSAGE)
        await soon((await soon(receiver.receive())).accept())


@pytest.mark.parametrize("turn", range(16))
@pytest.mark.parametrize("connections", [1, 2])
async def test_a_close_during_a_roll_over_is_no_fault(
    connections: int, turn: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A client closed at any moment of a roll-over ends by its user's wish, and closes both connections."""
    async with Broker() as broker:
        client = await amqp.Client(broker.url, **QUICK).open()
        await client.sender("orders")
        await client.receiver("orders")
        moving = asyncio.create_task(client.roll_over())
        while broker.statistics().connections < connections:
            await asyncio.sleep(0)
        await turns(turn)
        await soon(client.close())
        await asyncio.wait([moving])
        assert moving.cancelled() or moving.exception() is None or isinstance(moving.exception(), amqp.ConnectionClosed)
        assert client.stop is not None
        assert client.stop.initiator == "local"
        assert client.stop.condition is None
        await until(lambda: not broker._peers)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# --- detours --------------------------------------------------------------------------------------


def redirect(broker: Broker, *addresses: str, to: Broker) -> None:
    """Sends the links to these addresses elsewhere, now."""
    for address in addresses:
        broker.faults.inject(RefuseLink(error=link_redirect(to.url), address=address))
        broker.faults.detach_links(address)


async def test_links_sent_elsewhere_share_a_connection_for_as_long_as_they_use_it() -> None:
    """Links that are redirected to one place have one connection there, which is closed after the last."""
    options = QUICK | {"redirect_hosts": ("127.0.0.1",)}
    async with Broker() as broker, Broker() as other, amqp.Client(broker.url, **options) as client:
        senders = [await client.sender(f"orders-{number}") for number in range(2)]
        redirect(broker, "orders-0", "orders-1", to=other)
        await until(lambda: other.statistics().links == 2)
        for sender in senders:
            await soon(sender.send(MESSAGE))
        assert other.statistics().connections_total == 1
        await soon(senders[0].close())
        await soon(senders[1].send(MESSAGE))
        await soon(senders[1].close())
        await until(lambda: other.statistics().connections == 0)
        assert not list(client._detours)
        assert client.ready()


async def test_a_link_sent_elsewhere_arrives_with_eager_tasks() -> None:
    """A redirect is followed also where the task for the new connection begins before its maker goes on."""
    loop, factory = asyncio.get_running_loop(), getattr(asyncio, "eager_task_factory", None)  # Python 3.12 and later
    if factory is not None and isinstance(loop, asyncio.BaseEventLoop):  # uvloop's is none, and knows no eager tasks
        loop.set_task_factory(factory)
    options = QUICK | {"redirect_hosts": ("127.0.0.1",)}
    async with Broker() as broker, Broker() as other, amqp.Client(broker.url, **options) as client:
        sender = await client.sender("orders")
        redirect(broker, "orders", to=other)
        await until(lambda: other.statistics().links == 1)
        await soon(sender.send(MESSAGE))
        assert len(other.messages("orders")) == 1


@pytest.mark.parametrize("turn", range(0, 40, 4))
async def test_a_detour_taken_while_another_leaves_it_arrives(turn: int) -> None:
    """A link that is sent to a place just as the last one leaves it has a connection there."""
    options = QUICK | {"redirect_hosts": ("127.0.0.1",)}
    async with Broker() as broker, Broker() as other, amqp.Client(broker.url, **options) as client:
        one, two = await client.sender("one"), await client.sender("two")
        redirect(broker, "one", to=other)
        await until(lambda: other.statistics().links == 1 and one.attached)
        other.faults.detach_links("one")
        await turns(turn)
        redirect(broker, "two", to=other)
        await until(lambda: other.statistics().links == 1 and one.attached and two.attached)
        for sender in (one, two):
            await soon(sender.send(MESSAGE))
        assert client.ready()


# --- options --------------------------------------------------------------------------------------


async def test_a_coroutine_function_for_on_state_is_refused() -> None:
    """A function that nobody would await is refused, and not called in vain."""

    async def on_state(change: amqp.StateChange) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="on_state"):
        amqp.Client("ws://127.0.0.1:1", on_state=on_state)
