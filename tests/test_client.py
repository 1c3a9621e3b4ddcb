"""What a client promises of its connection: opening, states, URLs, tokens, closing, against brokers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Lane, Refusal, Wire
from amqpws_async.testing.faults import (
    CloseConnection,
    DropConnection,
    ExpireToken,
    Fault,
    NoSubprotocol,
    RefuseLink,
    RefuseUpgrade,
    SlowUpgrade,
    connection_redirect,
)

from .clients import (
    CLOSED,
    CLOSING,
    CONNECTED,
    CONNECTING,
    FAST,
    RECONNECTING,
    Changes,
    Numbered,
    beside,
    made,
    opened,
    soon,
    turns,
    until,
)
from .peer import PATIENCE
from .ports import free_port

MESSAGE = amqp.Message(b"one", message_id="id-1")
UNAUTHORIZED = amqp.ErrorCondition("amqp:unauthorized-access", "the token has expired")


def nowhere() -> str:
    """A URL where nobody listens."""
    return f"ws://127.0.0.1:{free_port()}/"


async def usable(client: amqp.Client) -> None:
    """Returns when a message went through, so when the client serves."""
    async with asyncio.timeout(PATIENCE), client.sender("probe") as sender:
        assert await sender.send(b"\x00\x53\x75\xa0\x01x") == amqp.Accepted()


class Upgrades:
    """Decides over upgrades, by what a test says, and remembers them."""

    def __init__(self, *answers: int | Refusal | None) -> None:
        self.answers = list(answers)
        self.tokens: list[str | None] = []
        self.times: list[float] = []

    def __call__(self, headers: Mapping[str, str], path: str) -> int | Refusal | None:
        self.tokens.append(headers.get("Authorization"))
        self.times.append(asyncio.get_running_loop().time())
        return self.answers.pop(0) if self.answers else None


# --- opening -------------------------------------------------------------------------


async def test_a_broker_that_comes_later_is_never_found() -> None:
    """Opening waits for a broker that is not there yet, and tells meanwhile what goes wrong."""
    changes = Changes()
    broker = Broker(port=free_port())
    client = made(broker.url, changes)
    async with beside(client.open()) as opening:
        await until(lambda: any(change.error for change in changes))
        assert client.state is CONNECTING
        assert not client.ready()
        assert not opening.done()
        assert client.health().error is not None
        async with broker:
            assert await soon(opening) is client
            assert client.state is CONNECTED
            assert client.health().error is None
            await usable(client)
            await soon(client.close())
    assert RECONNECTING not in changes.states


@dataclasses.dataclass
class Final:
    """A broker that no other attempt would change, and what opening raises."""

    error: type[BaseException]
    fault: Fault | None = None
    attempts: int = 1
    status: int | None = None
    broker: dict[str, Any] = dataclasses.field(default_factory=dict)
    client: dict[str, Any] = dataclasses.field(default_factory=dict)


def closing(condition: str) -> Fault:
    return CloseConnection(error=amqp.ErrorCondition(condition, "never"), times=None)


FINALS = {
    "401": Final(amqp.HandshakeError, RefuseUpgrade(status=401, times=None), status=401),
    "403": Final(amqp.HandshakeError, RefuseUpgrade(status=403, times=None), status=403),
    "404": Final(amqp.HandshakeError, RefuseUpgrade(status=404, times=None), status=404),
    "subprotocol": Final(amqp.HandshakeError, NoSubprotocol(times=None)),
    "sasl": Final(
        amqp.AuthenticationError, broker={"users": {"me": "right"}}, client={"sasl": amqp.Plain("me", "wrong")}
    ),
    "unauthorized": Final(amqp.ConnectionClosed, closing("amqp:unauthorized-access")),
    "not-allowed": Final(amqp.ConnectionClosed, closing("amqp:not-allowed")),
    "not-found": Final(amqp.ConnectionClosed, closing("amqp:not-found")),
    "decode-error": Final(amqp.ConnectionClosed, closing("amqp:decode-error")),
}


@pytest.mark.parametrize("name", FINALS)
async def test_what_is_final_is_tried_again(name: str) -> None:
    """What another attempt would not change raises at once from opening, with the reason, and ends the client."""
    final = FINALS[name]
    changes = Changes()
    plan = [final.fault] if final.fault else []
    async with Broker(faults=plan, **final.broker) as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url, changes, backoff=amqp.Backoff(initial=60.0), **final.client)
        with pytest.raises(final.error) as caught:
            await soon(client.open())
        assert proxy.accepted == final.attempts
    if final.status is not None:
        assert isinstance(caught.value, amqp.HandshakeError)
        assert caught.value.status == final.status
    assert client.state is CLOSED
    assert changes.states[-1] is CLOSED
    assert type(changes[-1].error) is type(caught.value)
    assert client.stop is not None
    with pytest.raises(amqp.ConnectionClosed) as later:
        await client.sender("q")
    assert later.value.stop == client.stop
    assert later.value.sent is False
    await soon(client.close())


async def test_a_certificate_that_nobody_vouches_for_is_tried_again() -> None:
    """TLS that cannot be verified is final, and the reason is there to be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with Broker(ssl=context) as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url)
        with pytest.raises(amqp.OpenError) as caught:
            await soon(client.open())
        assert proxy.accepted == 1
    chain: list[BaseException | None] = [caught.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__)
    assert any(isinstance(each, ssl.SSLCertVerificationError) for each in chain)
    assert client.state is CLOSED


TRANSIENT: dict[str, Fault] = {
    "503": RefuseUpgrade(status=503, times=2),
    "500": RefuseUpgrade(status=500, times=2),
    "502": RefuseUpgrade(status=502, times=2),
    "504": RefuseUpgrade(status=504, times=2),
    "429": RefuseUpgrade(status=429, times=2),
    "408": RefuseUpgrade(status=408, times=2),
    "forced": CloseConnection(times=2),
    "internal": CloseConnection(times=2, error=amqp.ErrorCondition("amqp:internal-error", "for now")),
    "limit": CloseConnection(times=2, error=amqp.ErrorCondition("amqp:resource-limit-exceeded", "for now")),
    "unknown": CloseConnection(times=2, error=amqp.ErrorCondition("com.example:moon", "for now")),
    "dropped": DropConnection(times=2),
}


@pytest.mark.parametrize("name", TRANSIENT)
async def test_what_may_pass_is_final(name: str) -> None:
    """What another attempt may change is tried again until it works."""
    async with Broker(faults=[TRANSIENT[name]]) as broker, FaultProxy(broker.url) as proxy, opened(proxy.url) as client:
        await usable(client)
        assert proxy.accepted == 3


async def test_an_attempt_that_hangs_is_waited_for_for_ever() -> None:
    """`open_timeout` ends an attempt, and the next one follows."""
    async with Broker(faults=[SlowUpgrade(seconds=9.0)]) as broker:
        began = time.monotonic()
        async with opened(broker.url, open_timeout=0.3) as client:
            await usable(client)
        assert 0.25 < time.monotonic() - began < 5.0


async def test_attempts_go_on_beyond_the_limit() -> None:
    """After `max_attempts` failures in a row opening raises the last of them, and the client has ended."""
    async with Broker(faults=[RefuseUpgrade(status=503, times=None)]) as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url, backoff=dataclasses.replace(FAST, max_attempts=4))
        with pytest.raises(amqp.HandshakeError) as caught:
            await soon(client.open())
        assert caught.value.status == 503
        assert proxy.accepted == 4
        assert client.state is CLOSED


async def test_attempts_go_on_beyond_the_time() -> None:
    """After `max_time` of failures opening raises the last of them, not much later and not much earlier."""
    async with Broker(faults=[RefuseUpgrade(status=503, times=None)]) as broker, FaultProxy(broker.url) as proxy:
        began = time.monotonic()
        client = made(proxy.url, backoff=dataclasses.replace(FAST, max_time=0.4))
        with pytest.raises(amqp.HandshakeError):
            await soon(client.open())
        assert 0.3 < time.monotonic() - began < 4.0
        assert proxy.accepted > 3
        assert client.state is CLOSED


async def test_the_limit_is_for_opening_alone() -> None:
    """The limits hold for a lost connection as well: everyone who waits raises, with the last failure as the cause."""
    broker = Broker()
    async with broker, opened(broker.url, backoff=dataclasses.replace(FAST, max_attempts=3)) as client:
        sender = await client.sender("q")
        receiver = await client.receiver("q")
        async with beside(receiver.receive()) as receiving:
            await broker.abort()
            with pytest.raises(amqp.ConnectionClosed) as caught:
                await soon(receiving)
            assert caught.value.__cause__ is not None
            assert client.stop is not None
            assert caught.value.stop == client.stop
            with pytest.raises(amqp.ConnectionClosed):
                await soon(sender.send(MESSAGE))
            assert client.state is CLOSED


async def test_failures_of_long_ago_count() -> None:
    """Failures are forgotten once a connection has lasted, so the limit is one of failures in a row."""
    changes = Changes()
    backoff = dataclasses.replace(FAST, max_attempts=2, stable_after=0.05)
    async with Broker() as broker, opened(broker.url, changes, backoff=backoff) as client:
        for number in range(1, 5):
            await changes.saw(CONNECTED, number)
            await asyncio.sleep(0.1)  # what has to pass here is time itself
            await broker.disconnect()
        await changes.saw(CONNECTED, 5)
        await usable(client)


async def test_a_broker_that_accepts_and_drops_is_asked_in_quick_succession() -> None:
    """A connection that did not last is a failure like another: delays grow, by chance up to a half shorter."""
    changes = Changes()
    backoff = amqp.Backoff(initial=0.05, factor=2.0, maximum=0.2)
    plan = [DropConnection(times=6)]
    async with Broker(faults=plan) as broker, opened(broker.url, changes, backoff=backoff):
        await until(lambda: broker.faults.counts["DropConnection"] == 6)
        await until(lambda: changes and changes[-1].state is CONNECTED)
        delays = [change.delay for change in changes if change.error is not None]
    assert len(delays) == 6
    assert delays[0] == 0.0
    for delay, full in zip(delays[1:], (0.05, 0.1, 0.2, 0.2, 0.2), strict=True):
        assert full / 2 <= delay <= full


async def test_background_waits() -> None:
    """With `background` opening returns at once, and calls wait for the first connection."""
    broker = Broker(port=free_port())
    async with opened(broker.url, background=True) as client:
        assert client.state is CONNECTING
        assert client.connection is None
        assert not client.ready()
        async with beside(usable(client)) as using:
            await turns()
            assert not using.done()
            async with broker:
                await soon(using)
                assert client.ready()


async def test_background_hides_what_is_final() -> None:
    """With `background` a final failure ends the client, and whoever waits is told why."""
    changes = Changes()
    async with Broker(faults=[RefuseUpgrade(status=403)]) as broker, opened(broker.url, changes, background=True) as it:
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await soon(it.sender("q").__aenter__())
        assert isinstance(caught.value.__cause__, amqp.HandshakeError)
        assert changes.states[-1] is CLOSED


STAGES: dict[str, dict[str, Any]] = {
    "upgrade": {"faults": [SlowUpgrade(seconds=9.0)]},
    "delay": {"faults": [RefuseUpgrade(retry_after=200.0)]},
}


@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_opening_leaves_something(stage: str) -> None:
    """Cancelled while an attempt or a delay goes on, opening leaves no socket, no task and no client."""
    async with Broker(**STAGES[stage]) as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.open()
        assert client.state is CLOSED
        await until(lambda: not proxy.connections)
        assert proxy.accepted == 1
        with pytest.raises(amqp.ConnectionClosed):
            await client.receiver("q")


@pytest.mark.parametrize("at", [0, 150, 400])
async def test_cancelled_opening_leaves_a_socket_at_any_byte(at: int) -> None:
    """Cancelled while the broker's bytes do not come, however many came before, opening leaves no socket."""
    async with Broker() as broker, FaultProxy(broker.url, [Wire(down=Lane(at=at, then="stall"))]) as proxy:
        client = made(proxy.url)
        async with beside(client.open()) as opening:
            await until(lambda: proxy.accepted and proxy.bytes_down == at)
            opening.cancel()
            await asyncio.wait([opening], timeout=PATIENCE)
            assert opening.cancelled()
        assert client.state is CLOSED
        proxy.resume()
        await until(lambda: not proxy.connections)


@settings(max_examples=25)
@given(point=st.integers(0, 120))
async def test_a_cancelled_program_leaves_something(point: int) -> None:
    """Nested blocks of a client, cancelled at any turn of the loop, are over soon and leave nothing at the broker."""
    async with Broker() as broker:
        broker.put("q", MESSAGE)

        async def program() -> None:
            async with (
                made(broker.url) as client,
                client.sender("q", on_unknown="resend") as sender,
                client.receiver("q", credit=1) as receiver,
            ):
                await (await receiver.receive()).accept()
                await sender.send(MESSAGE)

        task = asyncio.create_task(program())
        await turns(point)
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done()
        if not task.cancelled():
            task.result()
        await until(lambda: broker.statistics().connections == 0)


# --- states --------------------------------------------------------------------------


async def test_states_come_out_of_order() -> None:
    """Callback and iterator tell the same, in order: an outage with its error and attempt, and CLOSED last."""
    changes = Changes()
    followed: list[amqp.StateChange] = []

    async def follow(client: amqp.Client) -> None:
        states = client.states()
        followed.append(await anext(states))
        followed.extend([change async for change in states])

    async with Broker() as broker:
        client = made(broker.url, changes)
        await soon(client.open())
        async with beside(follow(client)) as following:
            await until(lambda: followed)
            assert followed[0].state is CONNECTED
            await broker.disconnect()
            await changes.saw(CONNECTED, 2)
            await soon(client.close())
            await soon(following)
    assert [state for state in changes.states if state is not CONNECTING] == [
        CONNECTED,
        RECONNECTING,
        CONNECTED,
        CLOSING,
        CLOSED,
    ]
    lost = changes[changes.states.index(RECONNECTING)]
    assert isinstance(lost.error, amqp.ConnectionClosed)
    assert (lost.attempt, lost.delay) == (1, 0.0)
    assert lost.origin == broker.url.rstrip("/")
    assert changes[-1].error is None
    assert followed == changes[changes.states.index(CONNECTED) :]


async def test_states_of_the_past_are_missed() -> None:
    """The iterator begins with where the client is, also before it is opened and after it has ended."""
    async with Broker() as broker:
        client = made(broker.url)
        states = client.states()
        assert (await soon(anext(states))).state is CONNECTING
        await soon(client.open())
        rest: list[amqp.ClientState] = []
        while CONNECTED not in rest:
            rest.append((await soon(anext(states))).state)
        await soon(client.close())
        assert [change.state async for change in states] == [CLOSING, CLOSED]
        assert [change.state async for change in client.states()] == [CLOSED]


async def test_a_cancelled_step_loses_a_change() -> None:
    """A timeout round a step of the iterator loses no change."""
    async with Broker() as broker:
        changes = Changes()
        client = made(broker.url, changes)
        await soon(client.open())
        states = client.states()
        await soon(anext(states))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(states)
        async with beside(anext(states)) as step:
            await turns()
            step.cancel()
            await broker.disconnect()
        await changes.saw(CONNECTED, 2)
        assert (await soon(anext(states))).state is RECONNECTING
        assert (await soon(anext(states))).state is CONNECTED
        await soon(client.close())


async def test_a_callback_that_raises_ends_the_client(caplog: pytest.LogCaptureFixture) -> None:
    """What the callback raises is told in the log, and the client goes on."""

    def fail(change: amqp.StateChange) -> None:
        raise RuntimeError("the callback is broken")

    async with Broker() as broker, opened(broker.url, on_state=fail) as client:
        await broker.disconnect()
        await usable(client)
    assert client.state is CLOSED
    assert "the callback is broken" in caplog.text


async def test_a_callback_that_closes_the_client_hangs() -> None:
    """A callback may start the client's close, and the client ends in order."""
    closings: list[asyncio.Task[None]] = []
    states: list[amqp.ClientState] = []

    def close(change: amqp.StateChange) -> None:
        states.append(change.state)
        if change.state is RECONNECTING:
            closings.append(asyncio.create_task(client.close()))

    async with Broker() as broker:
        client = made(broker.url, on_state=close)
        await soon(client.open())
        await broker.disconnect()
        await until(lambda: closings)
        await soon(closings[0])
        assert states[-1] is CLOSED


# --- health --------------------------------------------------------------------------


async def test_ready_lies() -> None:
    """A client is ready when it is connected and each of its links is attached, and not at any other time."""
    changes = Changes()
    broker = Broker()
    async with broker:
        client = made(broker.url, changes)
        assert not client.ready()
        await soon(client.open())
        assert client.ready()
        sender = await soon(client.sender("q").__aenter__())
        receiver = await soon(client.receiver("r", credit=7).__aenter__())
        health = client.health()
        assert client.ready()
        assert health.ready
        assert (health.state, health.attempt, health.error) == (CONNECTED, 0, None)
        assert health.connection is not None
        assert {(link.role, link.address) for link in health.links} == {("sender", "q"), ("receiver", "r")}
        assert sender.attached
        assert receiver.attached

        # A link that cannot come back makes the client not ready, and is no matter of its connection.
        broker.faults.inject(RefuseLink(address="q", times=None))
        broker.faults.detach_links("q")
        await until(lambda: not client.ready())
        await until(lambda: not sender.attached)
        assert receiver.attached
        assert client.state is CONNECTED
        broker.faults.clear()
        await until(client.ready)
        assert sender.attached

        changes.clear()
        await broker.abort()
        await changes.saw(RECONNECTING, 2)
        health = client.health()
        assert not health.ready
        assert not client.ready()
        assert (health.state, health.connection) == (RECONNECTING, None)
        assert health.attempt >= 1
        assert health.error is not None
        assert len(health.links) == 2
        assert not receiver.attached
        assert client.connection is None
        await broker.start()
        await until(client.ready)
        await soon(client.close())
        assert not client.ready()
        assert client.connection is None
        assert client.health().state is CLOSED
        assert client.health().links == ()


# --- where to ------------------------------------------------------------------------


async def test_urls_are_tried_in_any_order() -> None:
    """Several URLs are tried in their order and without a wait; after a loss the one in use is the first."""
    changes = Changes()
    second, third = Broker(port=free_port()), Broker()
    urls = [nowhere(), second.url, ""]
    async with third:
        urls[2] = third.url
        client = made(urls, changes, backoff=amqp.Backoff(initial=60.0, stable_after=0.0))
        await soon(client.open())
        origins = [url.rstrip("/") for url in urls]
        assert changes[-1].state is CONNECTED
        assert changes[-1].origin == origins[2]
        tried = [change.origin for change in changes if change.state is CONNECTING]
        assert list(dict.fromkeys(tried)) == origins[:2]
        async with second:
            await third.disconnect()
            await changes.saw(CONNECTED, 2)
            assert changes[-1].origin == origins[2]
            await third.abort()
            await changes.saw(CONNECTED, 3)
            assert changes[-1].origin == origins[1]
            await usable(client)
            await soon(client.close())


async def test_a_round_of_urls_is_followed_by_no_delay() -> None:
    """A delay comes between the rounds through all URLs, not within one."""
    changes = Changes()
    client = made([nowhere(), nowhere(), nowhere()], changes, backoff=amqp.Backoff(initial=60.0), background=True)
    await soon(client.open())
    await until(lambda: any(change.delay for change in changes))
    failed = [change for change in changes if change.error is not None]
    await soon(client.close())
    assert failed[-1].delay >= 15.0
    assert all(change.delay == 0.0 for change in failed[:-1])
    assert len(failed) == 3


async def test_randomised_urls_always_begin_with_the_first() -> None:
    """With `randomize` clients spread over the URLs."""
    async with contextlib.AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(Broker()) for _ in range(3)]
        for _ in range(20):
            async with opened([broker.url for broker in brokers], randomize=True) as client:
                assert client.connection is not None
        assert sum(broker.statistics().connections_total > 0 for broker in brokers) > 1


@pytest.mark.parametrize("after_open", [False, True])
async def test_a_redirect_is_not_followed(after_open: bool) -> None:
    """A redirect to an allowed host is followed, when opening and later."""
    changes = Changes()
    async with Broker() as there:
        redirect = CloseConnection(error=connection_redirect(there.url), after=1 if after_open else 0)
        allowed = ("127.0.0.1",)
        async with Broker(faults=[redirect]) as broker, opened(broker.url, changes, redirect_hosts=allowed) as client:
            if after_open:
                await broker.disconnect()
            await until(lambda: there.statistics().connections == 1)
            await usable(client)
            assert changes[-1].origin == there.url.rstrip("/")
            assert "probe" in there.statistics().queues


async def test_a_redirect_is_followed_to_anywhere() -> None:
    """A redirect to a host that is not allowed is final, and names it."""
    async with Broker() as there, Broker(faults=[CloseConnection(error=connection_redirect(there.url))]) as broker:
        client = made(broker.url)
        with pytest.raises(amqp.OpenError, match="redirect_hosts") as caught:
            await soon(client.open())
        assert isinstance(caught.value.__cause__, amqp.RedirectError)
        assert caught.value.__cause__.port == there.port
        assert client.state is CLOSED
        assert there.statistics().connections_total == 0
        assert broker.statistics().connections_total == 1


async def test_a_redirect_leads_out_of_tls() -> None:
    """A redirect from wss to ws is not followed, whatever the allowed hosts."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with Broker() as there:
        redirect = CloseConnection(error=connection_redirect(there.url), times=None)
        async with Broker(ssl=server, faults=[redirect]) as broker:
            client = made(broker.url, ssl=context, redirect_hosts=("127.0.0.1",))
            with pytest.raises((amqp.RedirectError, amqp.OpenError)):
                await soon(client.open())
            assert client.state is CLOSED
        assert there.statistics().connections_total == 0


async def test_redirects_in_a_circle_go_on_for_ever() -> None:
    """Brokers that redirect to each other are not asked in quick succession without an end."""
    port = free_port()
    other = f"ws://127.0.0.1:{port}/"
    async with Broker(faults=[CloseConnection(error=connection_redirect(other), times=None)]) as broker:
        back = CloseConnection(error=connection_redirect(broker.url), times=None)
        async with Broker(port=port, faults=[back]) as second:
            backoff = amqp.Backoff(initial=0.05, maximum=0.1, max_attempts=5)
            client = made(broker.url, redirect_hosts=("127.0.0.1",), backoff=backoff)
            with pytest.raises((amqp.RedirectError, amqp.OpenError)):
                await soon(client.open())
            assert client.state is CLOSED
            total = broker.statistics().connections_total + second.statistics().connections_total
            assert total <= 60


# --- how soon ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_not_heeded(status: int) -> None:
    """The server's Retry-After is waited for where the backoff would come sooner."""
    changes = Changes()
    upgrades = Upgrades(Refusal(status, headers={"Retry-After": "1"}))
    async with Broker(authorize=upgrades) as broker, opened(broker.url, changes) as client:
        await usable(client)
    assert upgrades.times[1] - upgrades.times[0] >= 0.95
    assert 0.95 <= next(change.delay for change in changes if change.error is not None) <= 1.5


async def test_retry_after_puts_a_client_to_sleep_for_a_day() -> None:
    """Retry-After is heeded up to 300 s."""
    changes = Changes()
    upgrades = Upgrades(Refusal(503, headers={"Retry-After": "86400"}))
    async with Broker(authorize=upgrades) as broker, opened(broker.url, changes, background=True):
        await until(lambda: any(change.error for change in changes))
        assert 299 <= next(change.delay for change in changes if change.error is not None) <= 300


async def test_a_lost_connection_is_waited_for() -> None:
    """The first retry is at once, whatever the backoff."""
    changes = Changes()
    backoff = amqp.Backoff(initial=60.0, maximum=60.0)
    async with Broker() as broker, opened(broker.url, changes, backoff=backoff) as client:
        await broker.disconnect()
        await changes.saw(CONNECTED, 2)
        await usable(client)


# --- tokens --------------------------------------------------------------------------


async def test_an_attempt_uses_the_token_of_the_last_one() -> None:
    """Each attempt asks for a token and uses what it is given."""
    upgrades = Upgrades(503, 503)
    provider = Numbered(always=True)
    changes = Changes()
    async with Broker(authorize=upgrades) as broker, opened(broker.url, changes, token=provider):
        await broker.disconnect()
        await changes.saw(CONNECTED, 2)
    assert upgrades.tokens == [f"Bearer t{number}" for number in range(1, 5)]
    assert not any(provider.refreshes)


async def test_a_401_is_final_before_the_token_is_renewed() -> None:
    """A 401 is answered by one forced refresh, when opening and when reconnecting."""
    upgrades = Upgrades(401, None, 401)
    provider = Numbered()
    changes = Changes()
    async with Broker(authorize=upgrades) as broker, opened(broker.url, changes, token=provider) as client:
        assert upgrades.tokens == ["Bearer t1", "Bearer t2"]
        await broker.disconnect()
        await changes.saw(CONNECTED, 2)
        assert upgrades.tokens[2:] == ["Bearer t2", "Bearer t3"]
        assert sum(provider.refreshes) == 2
        await usable(client)


@pytest.mark.parametrize("connected", [False, True])
async def test_a_second_401_is_tried_again(connected: bool) -> None:
    """A 401 with a token that was just made is final, when opening and when reconnecting."""
    upgrades = Upgrades(*[None] * connected, *[401] * 9)
    provider = Numbered()
    async with Broker(authorize=upgrades) as broker:
        client = made(broker.url, token=provider)
        if connected:
            await soon(client.open())
            receiver = await client.receiver("q")
            await broker.disconnect()
            with pytest.raises(amqp.ConnectionClosed) as caught:
                await soon(receiver.receive())
            assert isinstance(caught.value.__cause__, amqp.HandshakeError)
            assert caught.value.__cause__.status == 401
        else:
            with pytest.raises(amqp.HandshakeError):
                await soon(client.open())
        assert client.state is CLOSED
        assert upgrades.tokens[connected:] == ["Bearer t1", "Bearer t2"]
        assert sum(provider.refreshes) == 1
        await soon(client.close())


async def test_a_token_service_that_is_down_ends_the_client() -> None:
    """A provider that cannot be reached is tried again, like a broker."""

    class Down(Numbered):
        async def token(self, *, refresh: bool = False) -> Any:
            token = await super().token(refresh=refresh)
            if len(self.refreshes) < 3:
                raise ConnectionError("the token service is down")
            return token

    async with Broker() as broker, opened(broker.url, token=Down()) as client:
        await usable(client)


async def test_a_token_service_that_hangs_holds_an_attempt() -> None:
    """A provider that does not answer is given up with `open_timeout`, like a broker that does not."""

    class Hanging(Numbered):
        async def token(self, *, refresh: bool = False) -> Any:
            token = await super().token(refresh=refresh)
            if len(self.refreshes) == 1:
                await asyncio.Event().wait()
            return token

    async with Broker() as broker, opened(broker.url, token=Hanging(), open_timeout=0.3) as client:
        await usable(client)


async def test_a_provider_that_fails_is_not_told() -> None:
    """What a provider raises is tried again, up to the limit, and is there to be read meanwhile and at the end."""

    class Broken(Numbered):
        async def token(self, *, refresh: bool = False) -> Any:
            await super().token(refresh=refresh)
            raise ValueError("the answer is no JSON")

    provider, changes = Broken(), Changes()
    async with Broker() as broker:
        client = made(broker.url, changes, token=provider, backoff=dataclasses.replace(FAST, max_attempts=3))
        with pytest.raises(ValueError, match="the answer is no JSON"):
            await soon(client.open())
        assert len(provider.refreshes) == 3
        assert all("the answer is no JSON" in str(change.error) for change in changes if change.error is not None)
        assert client.state is CLOSED


async def test_an_expired_token_ends_the_client() -> None:
    """A connection closed because its token expired comes back at once with a new one; soon again, that is final."""
    provider = Numbered()
    upgrades = Upgrades()
    changes = Changes()
    async with Broker(authorize=upgrades) as broker, opened(broker.url, changes, token=provider) as client:
        receiver = await client.receiver("q")
        broker.faults.close_connections(UNAUTHORIZED)
        await changes.saw(CONNECTED, 2)
        assert sum(provider.refreshes) == 1
        assert upgrades.tokens == ["Bearer t1", "Bearer t2"]
        await usable(client)
        broker.faults.close_connections(UNAUTHORIZED)
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await soon(receiver.receive())
        assert caught.value.stop.condition == "amqp:unauthorized-access"
        assert client.state is CLOSED
        assert upgrades.tokens == ["Bearer t1", "Bearer t2"]


async def test_a_broker_that_expires_tokens_on_its_own_ends_the_client() -> None:
    """The same by the broker's own clock: one connection after the other ends so, each after a time that it lasted."""
    provider = Numbered()
    changes = Changes()
    backoff = dataclasses.replace(FAST, stable_after=0.05)
    plan = [ExpireToken(delay=0.15, times=3)]
    async with Broker(faults=plan) as broker, opened(broker.url, changes, token=provider, backoff=backoff) as client:
        await changes.saw(CONNECTED, 4)
        await usable(client)
    assert sum(provider.refreshes) == 3


# --- what is tried again -------------------------------------------------------------


async def test_the_table_cannot_be_changed() -> None:
    """`retries` overrides the table for statuses, both ways."""
    later = {403: amqp.Retry.LATER}
    plan = [RefuseUpgrade(status=403, times=2)]
    async with Broker(faults=plan) as broker, opened(broker.url, retries=later) as client:
        await usable(client)
    async with Broker(faults=[RefuseUpgrade(status=503)]) as broker:
        with pytest.raises(amqp.HandshakeError):
            await soon(made(broker.url, retries={503: amqp.Retry.NEVER}).open())


async def test_the_table_is_for_statuses_alone() -> None:
    """`retries` overrides the table for conditions of connections and links, both ways."""
    retries = {
        "amqp:not-allowed": amqp.Retry.NOW,
        "amqp:not-found": amqp.Retry.LATER,
        "amqp:connection:forced": amqp.Retry.NEVER,
        "amqp:link:detach-forced": amqp.Retry.NEVER,
    }
    not_found = RefuseLink(error=amqp.ErrorCondition("amqp:not-found", "for now"), times=2)
    plan = [dataclasses.replace(closing("amqp:not-allowed"), times=1), not_found]
    async with Broker(faults=plan) as broker, opened(broker.url, retries=retries) as client:
        sender = await soon(client.sender("q").__aenter__())
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        broker.faults.detach_links("q")
        await until(lambda: sender.stop)
        with pytest.raises(amqp.LinkClosed):
            await soon(sender.send(MESSAGE))
        assert client.state is CONNECTED
        broker.faults.close_connections()
        await until(lambda: client.state is CLOSED)
        assert client.stop is not None
        assert client.stop.condition == "amqp:connection:forced"


BAD: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "retries-key": ({"retries": {1.5: amqp.Retry.NOW}}, ValueError),
    "retries-value": ({"retries": {503: "later"}}, ValueError),
    "outage": ({"outage": "perhaps"}, ValueError),
    "age": ({"max_connection_age": 0}, ValueError),
    "handover": ({"handover_timeout": -1.0}, ValueError),
    "backoff": ({"backoff": 3.0}, ValueError),
    "on-state": ({"on_state": "tell me"}, ValueError),
    "unknown": ({"colour": "red"}, TypeError),
    "connection": ({"open_timeout": -1.0}, ValueError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_option_is_found_later(name: str) -> None:
    """A bad option raises from the constructor, and names itself."""
    options, error = BAD[name]
    with pytest.raises(error, match=next(iter(options))):
        amqp.Client("ws://127.0.0.1/", **options)


@pytest.mark.parametrize("urls", [[], ["ws://127.0.0.1/", "http://127.0.0.1/"], ["ws://127.0.0.1/", 3], ()])
def test_a_bad_url_is_found_later(urls: Any) -> None:
    """Each URL is checked by the constructor."""
    with pytest.raises((ValueError, TypeError)):
        amqp.Client(urls)


@pytest.mark.parametrize(
    "options",
    [
        {"initial": -1.0},
        {"factor": 0.5},
        {"maximum": -1.0},
        {"stable_after": -1.0},
        {"max_attempts": 0},
        {"max_time": -1.0},
        {"initial": float("nan")},
    ],
)
def test_a_bad_backoff_is_found_later(options: dict[str, Any]) -> None:
    """A backoff checks its values."""
    with pytest.raises(ValueError, match=next(iter(options))):
        amqp.Backoff(**options)


# --- closing -------------------------------------------------------------------------


async def test_closing_twice_fails() -> None:
    """Closing is the same once, at the same time, and again; nothing is left at the broker."""
    async with Broker() as broker:
        client = made(broker.url)
        await soon(client.open())
        await client.sender("q")
        await client.receiver("q")
        await soon(asyncio.gather(*(client.close() for _ in range(5))))
        assert client.state is CLOSED
        await soon(client.close())
        assert client.stop is not None
        assert client.stop.initiator == "local"
        await until(lambda: broker.statistics().connections == 0)


async def test_closing_before_opening_hangs() -> None:
    """Closing a client that was never opened is nothing to do."""
    await soon(made(nowhere()).close())


async def test_closing_waits_for_an_outage_to_end() -> None:
    """During an outage closing does not wait for the broker; who waits raises."""
    changes = Changes()
    broker = Broker()
    async with broker:
        client = made(broker.url, changes, backoff=amqp.Backoff(initial=60.0), close_timeout=5.0)
        await soon(client.open())
        sender = await client.sender("q")
        await broker.abort()
        await until(lambda: any(change.delay for change in changes))
        async with beside(sender.send(MESSAGE)) as sending:
            await turns()
            began = time.monotonic()
            await soon(client.close())
            assert time.monotonic() - began < 2.0
            with pytest.raises((amqp.LinkClosed, amqp.ConnectionClosed)) as caught:
                await soon(sending)
            assert caught.value.sent is False
        assert changes.states[-2:] == [CLOSING, CLOSED]


async def test_closing_waits_for_a_silent_broker_for_ever() -> None:
    """A broker that says nothing any more keeps closing for `close_timeout`, and not much longer."""
    async with Broker() as broker:
        client = made(broker.url, close_timeout=0.3)
        await soon(client.open())
        await client.sender("q")
        await client.receiver("q")
        broker.faults.silence()
        began = time.monotonic()
        await soon(client.close())
        assert time.monotonic() - began < 2.0
        assert client.state is CLOSED


async def test_cancelled_closing_goes_on_waiting() -> None:
    """Cancelled, closing drops the connection at once, and raises the cancellation."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url, close_timeout=60.0)
        await soon(client.open())
        await client.sender("q")
        broker.faults.silence()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.close()
        assert client.state is CLOSED
        await until(lambda: not proxy.connections)
        await soon(client.close())


async def test_a_cancelled_second_closer_disturbs_the_first() -> None:
    """Each of several who close may be cancelled, and the others are not told that it went well if it did not."""
    async with Broker() as broker:
        client = made(broker.url, close_timeout=1.0)
        await soon(client.open())
        broker.faults.silence()
        async with beside(client.close()) as first, beside(client.close()) as second:
            await turns()
            second.cancel()
            await asyncio.wait([first, second], timeout=PATIENCE)
            assert second.cancelled()
            assert first.done()
            assert not first.cancelled()
        assert client.state is CLOSED


async def test_closing_while_opening_hangs() -> None:
    """Closed by another task while it is opened, the opener raises ConnectionClosed."""
    async with Broker(faults=[SlowUpgrade(seconds=9.0)]) as broker, FaultProxy(broker.url) as proxy:
        client = made(proxy.url)
        async with beside(client.open()) as opening:
            await until(lambda: proxy.connections)
            await soon(client.close())
            with pytest.raises(amqp.ConnectionClosed):
                await soon(opening)
        assert client.state is CLOSED
        await until(lambda: not proxy.connections)


async def test_a_failed_body_is_hidden_by_closing() -> None:
    """What the body raised comes out as it is, soon, also where the broker is silent."""
    async with Broker() as broker:
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            async with made(broker.url, close_timeout=0.3) as client:
                await client.sender("q")
                broker.faults.silence()
                _ = 1 / 0
        assert time.monotonic() - began < 5.0
        assert client.state is CLOSED


async def test_a_cancelled_body_waits_for_the_broker() -> None:
    """A cancelled body drops the connection at once."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy:
        ready = asyncio.Event()

        async def body() -> None:
            async with made(proxy.url, close_timeout=60.0) as client, client.sender("q"):
                broker.faults.silence()
                ready.set()
                await asyncio.Event().wait()

        async with beside(body()) as task:
            await soon(ready.wait())
            task.cancel()
            await asyncio.wait([task], timeout=PATIENCE)
            assert task.cancelled()
        await until(lambda: not proxy.connections)


async def test_a_client_closed_from_within_a_block_fails_at_its_end() -> None:
    """The end of the block finds the client closed, by the body or by a final failure, and says nothing about it."""
    async with Broker() as broker:
        async with made(broker.url) as client:
            await soon(client.close())
        async with made(broker.url) as client, client.sender("q") as sender:
            broker.faults.close_connections(amqp.ErrorCondition("amqp:not-allowed", "go away"))
            await until(lambda: client.state is CLOSED)
            assert sender.stop is not None
        assert client.stop is not None
        assert client.stop.condition == "amqp:not-allowed"


# --- use at the wrong time -----------------------------------------------------------


async def test_use_before_opening_hangs() -> None:
    """Before it is opened a client makes no links, and says what to do."""
    client = made("ws://127.0.0.1:1/")
    for use in (client.sender("q"), client.receiver("q"), client.session()):
        with pytest.raises(amqp.LocalProtocolError):
            await soon(use.__aenter__())
    with pytest.raises(amqp.LocalProtocolError):
        await soon(client.roll_over())
    assert not client.ready()


async def test_use_after_closing_hangs() -> None:
    """After its end a client, its sessions and its links raise at once, and nothing was sent."""
    async with Broker() as broker:
        client = made(broker.url)
        await soon(client.open())
        session = await client.session()
        sender = await session.sender("q")
        receiver = await session.receiver("q")
        await soon(client.close())
        for use in (client.sender("q"), client.receiver("q"), client.session(), session.sender("q")):
            with pytest.raises((amqp.ConnectionClosed, amqp.SessionClosed)):
                await soon(use.__aenter__())
        with pytest.raises(amqp.ConnectionClosed):
            await soon(client.roll_over())
        with pytest.raises(amqp.EndpointClosed) as caught:
            await soon(sender.send(MESSAGE))
        assert caught.value.sent is False
        with pytest.raises((amqp.EndpointClosed, StopAsyncIteration)):
            await soon(receiver.receive())
        await soon(sender.close())
        await soon(receiver.close())
        await soon(session.close())


async def test_opening_twice_makes_two_connections() -> None:
    """A client is opened once."""
    async with Broker() as broker, opened(broker.url) as client:
        with pytest.raises(amqp.LocalProtocolError):
            await soon(client.open())
        await usable(client)
        assert broker.statistics().connections_total == 1
    with pytest.raises(amqp.AMQPError):
        await soon(client.open())


async def test_two_loops_share_a_client() -> None:
    """Another loop that uses a client is told so, and the client goes on in its own."""

    def elsewhere(use: Callable[[], Any]) -> BaseException | None:
        async def main() -> None:
            async with asyncio.timeout(2.0):
                await use()

        try:
            asyncio.run(main())
        except BaseException as error:
            return error
        return None

    async with Broker() as broker, opened(broker.url) as client:
        session = await client.session()
        uses: list[Callable[[], Any]] = [client.open, client.roll_over, client.close, client.session]
        uses += [lambda: client.sender("q"), lambda: client.receiver("q"), lambda: session.sender("q")]
        for use in uses:
            error = await asyncio.to_thread(elsewhere, use)
            assert isinstance(error, amqp.LocalProtocolError), error
        await usable(client)


# --- sessions ------------------------------------------------------------------------


async def test_a_session_is_the_default_one() -> None:
    """Links of a session are on a session of their own, on each connection; closing it ends them alone."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        common = await client.sender("common")
        async with client.session() as session:
            sender = await session.sender("own")
            await until(lambda: broker.statistics().sessions == 2)
            await broker.disconnect()
            await changes.saw(CONNECTED, 2)
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            await until(lambda: broker.statistics().sessions == 2)
        await until(lambda: broker.statistics().sessions == 1)
        with pytest.raises(amqp.EndpointClosed):
            await soon(sender.send(MESSAGE))
        assert await soon(common.send(MESSAGE)) == amqp.Accepted()


# --- secrets -------------------------------------------------------------------------


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Everything logged, at DEBUG, as one text; but for the log of the broker's end, which shows the headers it got."""

    def text() -> str:
        ours = [each for each in caplog.get_records("call") if not each.name.startswith("amqpws_async.testing")]
        return "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)

    with caplog.at_level(logging.DEBUG):
        yield text


async def test_a_secret_is_told(records: Callable[[], str]) -> None:
    """No token, password, header or query is in a repr, a log record, a state change, health or an error."""
    secrets = ("canary-token-11", "canary-header-22", "canary-query-33")
    changes = Changes()
    said: list[object] = []
    upgrades = Upgrades(503, None, 503, None, 403)

    async with Broker(authorize=upgrades) as broker:
        options: dict[str, Any] = {"token": secrets[0], "headers": {"X-Api-Key": secrets[1]}}
        async with opened(f"{broker.url}?key={secrets[2]}", changes, **options) as client:
            said.append(client)
            sender = await client.sender("q", on_unknown="resend")
            receiver = await client.receiver("q")
            await broker.disconnect()
            await changes.saw(CONNECTED, 2)
            said += [client, sender, receiver, client.health(), client.connection]
            await until(client.ready)
            await broker.disconnect()
            with pytest.raises(amqp.ConnectionClosed) as caught:
                await soon(receiver.receive())
            said += [caught.value, caught.value.__cause__, client.stop, client, client.health()]
    assert upgrades.tokens == [f"Bearer {secrets[0]}"] * 5
    text = "\n".join([*map(repr, said), *map(str, said), *map(repr, changes), *map(str, changes), records()])
    text += "".join(str(change.error) for change in changes)
    assert text
    assert "q" in text
    for secret in secrets:
        assert secret not in text


async def test_reprs_say_nothing() -> None:
    """A client and its links show where they are."""
    async with Broker() as broker:
        client = made([broker.url, "ws://127.0.0.1:2/"])
        assert "127.0.0.1" in repr(client)
        await soon(client.open())
        sender = await client.sender("queue-one")
        assert "connected" in repr(client).lower()
        assert "queue-one" in repr(sender)
        await soon(client.close())
        assert "closed" in repr(client).lower()
