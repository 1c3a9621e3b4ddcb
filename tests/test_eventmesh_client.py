"""`eventmesh.client`: from a key to a client whose connection comes back, and that keeps to Event Mesh's rules."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.auth import oauth2
from amqpws_async.auth.oauth2 import ClientCertificate, TokenRefresher
from amqpws_async.client.options import ClientArguments
from amqpws_async.eventmesh.connection import EventMeshArguments
from amqpws_async.eventmesh.mesh_client import EventMeshClientArguments
from amqpws_async.eventmesh.rules import CREDIT, MAX_LINKS, MAX_MESSAGE_SIZE
from amqpws_async.options import ConnectionArguments
from amqpws_async.testing import EventMesh, TokenAnswer, faults

from .test_eventmesh_promises import WAYS, Way, steps

NAMESPACE = "example/shop/1"
QUEUE = "queue:${namespace}/orders"
TOPIC = "topic:${namespace}/order/created"
QUICK = amqp.Backoff(initial=0.01, maximum=0.05, stable_after=0.0)
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No binding and no proxy of whoever runs the tests; token requests may follow each other at once."""
    for name in ("VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH", "SERVICE_BINDING_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[EventMesh]:
    """A mesh with a queue for all orders."""
    async with EventMesh(**{"tls": False, **options}) as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
        yield mesh


def client(mesh: EventMesh, **options: Any) -> amqp.Opening[eventmesh.EventMeshClient]:
    """A client by the mesh's key, that is quick to come back."""
    return eventmesh.client(mesh.service_key(), **{"backoff": QUICK, **options})


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[EventMesh, eventmesh.EventMeshClient]]:
    """A mesh, and a client of it."""
    async with running(**options) as mesh, client(mesh) as connected:
        yield mesh, connected


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def depth(mesh: EventMesh) -> int:
    """Messages in the queue."""
    return mesh.broker.statistics().queues[f"{NAMESPACE}/orders"].depth


def connections(mesh: EventMesh) -> int:
    """Connections that there ever were."""
    return mesh.broker.statistics().connections_total


def task(work: Any) -> asyncio.Task[Any]:
    """What awaits an opener, as tasks want a coroutine."""

    async def run() -> Any:
        return await work

    return asyncio.ensure_future(run())


# --- losses --------------------------------------------------------------------------------------------------


async def test_losses_in_a_stream_cost_no_message() -> None:
    """While connections are dropped, links detached and sessions ended, what is sent arrives, once or more often."""
    async with connected() as (mesh, survivor), AsyncExitStack() as stack:
        sender = await stack.enter_async_context(survivor.sender(TOPIC, on_unknown="resend"))
        receiver = await stack.enter_async_context(survivor.receiver(QUEUE))
        seen: set[object] = set()

        async def handle(delivery: amqp.Delivery) -> None:
            seen.add(delivery.body)

        processing = asyncio.create_task(receiver.process(handle))
        blows: list[Callable[[], Any]] = [
            mesh.broker.faults.end_sessions,
            mesh.broker.faults.detach_links,
            mesh.broker.faults.close_connections,
        ]
        wanted = {b"%d" % number for number in range(400)}
        for number in range(400):
            if number % 50 == 49:
                await mesh.disconnect()
            elif number % 50 in (12, 24, 36):
                blows[number % 50 // 12 - 1]()
            assert await sender.send(amqp.Message(b"%d" % number)) == amqp.Accepted()
        await until(lambda: seen >= wanted)
        assert seen == wanted
        assert connections(mesh) >= 9
        await survivor.close()
        statistics = await processing
        assert statistics.failed == statistics.rejected == 0
        assert depth(mesh) == 0


async def test_a_broker_that_is_away_is_waited_for() -> None:
    """Readiness says so, a deadline ends the waiting with nothing sent, and who waits on goes on when it is back."""
    async with connected() as (mesh, survivor), survivor.sender(TOPIC) as sender:
        assert survivor.ready()
        await mesh.broker.close()
        await until(lambda: not survivor.ready())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sender.send(amqp.Message(b"too late"))
        waiting = task(sender.send(amqp.Message(b"in time")))
        opening = task(survivor.receiver(QUEUE))
        await mesh.broker.start()
        await waiting
        async with await opening as receiver:
            assert (await receiver.receive()).body == b"in time"
        assert survivor.ready()
        assert survivor.health().state is amqp.ClientState.CONNECTED


async def test_a_message_in_doubt_is_said_to_be() -> None:
    """By default what was sent and has no outcome is the caller's to decide; the same sender goes on."""
    async with connected() as (mesh, survivor), survivor.sender(TOPIC) as sender:
        mesh.broker.faults.inject(faults.DropConnection(on="arrival"))
        with pytest.raises(amqp.DeliveryUnknown, match="topic:example/shop/1/order/created"):
            await sender.send(amqp.Message(b"one"))
        assert await sender.send(amqp.Message(b"two")) == amqp.Accepted()


async def test_a_message_in_doubt_is_sent_again() -> None:
    """Where that is asked for: the same message-id twice, and one accepted outcome."""
    async with connected() as (mesh, survivor), survivor.sender(TOPIC, on_unknown="resend") as sender:
        mesh.broker.faults.inject(faults.LoseOutcome(), faults.DropConnection(on="arrival", after=1))
        pending = [await sender.transfer(amqp.Message(b"%d" % number)) for number in range(2)]
        assert [await one for one in pending] == [amqp.Accepted()] * 2
        arrived = depth(mesh)
        async with survivor.receiver(QUEUE) as receiver:
            found = [(await receiver.receive()).message for _ in range(arrived)]
        assert [one.body for one in found][-2:] == [b"0", b"1"]
        assert len({one.message_id for one in found}) == 2


async def test_a_service_may_start_before_event_mesh_does(tmp_path: Path) -> None:
    """With `background` it is there at once, and not ready; neither broker nor token endpoint has to be up."""
    async with running() as mesh:
        key, _ = await asyncio.to_thread(mesh.write_key, tmp_path)
        await mesh.close()
        async with eventmesh.client(key, background=True, backoff=QUICK) as survivor:
            assert survivor.health().state is amqp.ClientState.CONNECTING
            sending = task(_send(survivor, b"one"))
            states = survivor.states()
            async for change in states:
                if change.error is not None:
                    break
            assert not survivor.ready()
            await mesh.start()
            await sending
            assert survivor.ready()
            assert depth(mesh) == 1


async def _send(survivor: eventmesh.EventMeshClient, body: bytes, **options: Any) -> None:
    async with survivor.sender(TOPIC, **options) as sender:
        await sender.send(amqp.Message(body))


async def test_calls_need_not_wait() -> None:
    """With ``outage="fail"`` they raise at once; a receiver may have it its own way."""
    async with (
        running() as mesh,
        client(mesh, outage="fail") as survivor,
        survivor.receiver(QUEUE, outage="wait") as receiver,
        survivor.sender(TOPIC) as sender,
    ):
        await mesh.broker.close()
        await until(lambda: not survivor.ready())
        for opener in (survivor.sender(TOPIC, qos=0), survivor.receiver(QUEUE)):
            with pytest.raises(amqp.ConnectionClosed):
                await opener
        with pytest.raises(amqp.ConnectionClosed):
            await sender.send(amqp.Message(b"one"))
        receiving = task(receiver.receive())
        await mesh.broker.start()
        await until(survivor.ready)
        await sender.send(amqp.Message(b"two"))
        await (await receiving).accept()


async def test_one_who_gives_up_attaching_leaves_it_to_the_next() -> None:
    """In an outage, where the first waits for the shared link and the others for the first."""
    async with running() as mesh, client(mesh) as survivor:
        await mesh.broker.close()
        await until(lambda: not survivor.ready())
        first, second, third = (task(_send(survivor, b"%d" % number)) for number in range(3))
        await until(lambda: len(survivor.health().links) == 1)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        await mesh.broker.start()
        await third
        assert depth(mesh) == 1


async def test_a_shared_link_that_was_ended_for_good_is_replaced() -> None:
    """Readiness fails until a sender is opened anew: the senders of before say what has happened."""
    async with connected() as (mesh, survivor):
        sender = await survivor.sender(TOPIC)
        mesh.broker.faults.detach_links(error=amqp.ErrorCondition("amqp:not-allowed", "against the rules"))
        await until(lambda: not survivor.ready())
        with pytest.raises(amqp.LinkClosed, match="against the rules"):
            await sender.send(amqp.Message(b"one"))
        assert survivor.client.ready()
        await _send(survivor, b"two")
        assert survivor.ready()


# --- tokens --------------------------------------------------------------------------------------------------


async def test_it_moves_before_the_token_expires() -> None:
    """Lives of two seconds: connections follow each other, and who sends and receives notices nothing."""
    changes: list[amqp.StateChange] = []
    async with (
        running(lifetime=2.0) as mesh,
        client(mesh, on_state=changes.append) as survivor,
        survivor.sender(TOPIC) as sender,
        survivor.receiver(QUEUE) as receiver,
    ):
        number = 0
        async with asyncio.timeout(PATIENCE):
            while len(changes) < 3:
                await sender.send(amqp.Message(b"%d" % number))
                delivery = await receiver.receive()
                await delivery.accept()
                assert delivery.body == b"%d" % number
                number += 1
                await asyncio.sleep(0.01)  # not more messages than are of use
        assert {change.state for change in changes} == {amqp.ClientState.CONNECTED}
        assert mesh.token_server.token_count >= 3
        await until(survivor.ready)
        await survivor.close()
        assert depth(mesh) == 0


@pytest.mark.parametrize("says", [True, False], ids=["told", "dropped"])
async def test_a_token_that_expired_is_replaced(says: bool) -> None:
    """A gateway that ends the connection then, with a word or without, sees it come back with another token."""
    async with (
        running(lifetime=1.0) as mesh,
        client(mesh, roll_over=False) as survivor,
        survivor.sender(TOPIC) as sender,
    ):
        connection = survivor.client.connection
        assert connection is not None
        token = connection.token
        assert token is not None
        assert token.expiry is not None
        expiry = token.expiry
        await until(lambda: time.time() > expiry)
        if says:
            mesh.broker.faults.close_connections(faults.EXPIRED)
        else:
            await mesh.disconnect()
        await until(lambda: connections(mesh) == 2)
        await sender.send(amqp.Message(b"one"))
        assert survivor.client.connection is not None
        assert survivor.client.connection.token is not None
        assert survivor.client.connection.token.value != token.value


async def test_a_token_of_ones_own_is_used() -> None:
    """Clients and connections may share a refresher, which is not theirs to stop."""
    async with running() as mesh:
        grant = eventmesh.ServiceKey.load(mesh.service_key()).messaging.grant
        assert grant is not None
        async with TokenRefresher(grant) as tokens:
            async with client(mesh, token=tokens), client(mesh, token=tokens):
                pass
            await tokens.token()
        assert mesh.token_server.request_count == 1


async def test_a_secret_that_was_replaced_needs_no_restart(tmp_path: Path) -> None:
    """The file is read anew for the next connection; while it cannot be read, the key of before is good."""
    async with running() as mesh:
        key, _ = await asyncio.to_thread(mesh.write_key, tmp_path)
        content = mesh.service_key()
        oa2 = content["messaging"][0]["oa2"]
        async with (
            eventmesh.client(key, backoff=QUICK) as survivor,
            survivor.sender(TOPIC, on_unknown="resend") as sender,
        ):
            await asyncio.to_thread(key.write_text, "{ half a file")
            await mesh.disconnect()
            await until(lambda: connections(mesh) == 2)
            await sender.send(amqp.Message(b"one"))
            assert mesh.token_server.token_count == 1
            oa2["clientsecret"] = "another"
            mesh.token_server._clients[oa2["clientid"]] = "another"
            mesh.token_server.revoke_all()
            await asyncio.to_thread(key.write_text, json.dumps(content))
            await mesh.disconnect()
            await sender.send(amqp.Message(b"two"))
            assert connections(mesh) == 3
            assert [request.status for request in mesh.token_server.requests] == [200, 200]


# --- certificates --------------------------------------------------------------------------------------------


async def test_a_certificate_survives_losses(tmp_path: Path) -> None:
    """Each connection shows it, and each token request."""
    async with running(tls=True, x509=True) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        async with (
            eventmesh.client(key, ssl=ca, backoff=QUICK) as survivor,
            survivor.sender(TOPIC, on_unknown="resend") as sender,
        ):
            await sender.send(amqp.Message(b"one"))
            await mesh.disconnect()
            await sender.send(amqp.Message(b"two"))
            mesh.token_server.revoke_all()
            await mesh.disconnect()
            await sender.send(amqp.Message(b"three"))
            await survivor.client.roll_over()
            await sender.send(amqp.Message(b"four"))
        assert (depth(mesh), connections(mesh)) == (4, 4)
        assert {request.way for request in mesh.token_server.requests} == {"certificate"}


@pytest.mark.parametrize("own", [False, True], ids=["in the key", "a file"])
async def test_a_certificate_that_was_replaced_needs_no_restart(own: bool, tmp_path: Path) -> None:
    """One that is of no use, as it will be after its days, gives way to another: for tokens and for the broker."""
    async with running(tls=True, x509=True) as mesh, running(tls=True, x509=True) as stranger:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        good, bad = (one.service_key()["uaa"] for one in (mesh, stranger))
        content = mesh.service_key()
        pem = tmp_path / "own.pem"

        def show(uaa: dict[str, str]) -> None:
            pem.write_text(uaa["certificate"] + uaa["key"])
            if not own:
                content["uaa"] |= {name: uaa[name] for name in ("certificate", "key")}
                key.write_text(json.dumps(content))

        await asyncio.to_thread(show, bad)
        certificate = ClientCertificate(pem) if own else None
        async with eventmesh.client(key, certificate=certificate, ssl=ca, background=True, backoff=QUICK) as survivor:
            async for change in survivor.states():
                if change.error is not None:
                    break
            sending = task(_send(survivor, b"one"))
            await asyncio.to_thread(show, good)
            await sending
        assert depth(mesh) == 1


# --- the rules of Event Mesh ---------------------------------------------------------------------------------


async def test_a_roll_over_has_room_for_every_link() -> None:
    """Three senders and three receivers move to a second connection, and the rules hold before and after."""
    async with connected() as (mesh, survivor), AsyncExitStack() as stack:
        senders = [
            await stack.enter_async_context(survivor.sender(TOPIC, **options))
            for options in ({}, {"qos": 0}, {"on_unknown": "resend"})
        ]
        receivers = [await stack.enter_async_context(survivor.receiver(QUEUE)) for _ in range(MAX_LINKS)]
        held = []
        for sender in senders:
            await sender.send(amqp.Message(b"before"))
        async for delivery in receivers[0]:
            held.append(delivery)
            if len(held) + sum(receiver.queued for receiver in receivers[1:]) == 3:
                break
        for _ in range(2):
            moving = task(survivor.client.roll_over())
            while not moving.done():
                with pytest.raises(amqp.LocalProtocolError, match="3 receivers"):
                    await survivor.receiver(QUEUE)
                await asyncio.sleep(0)
            await moving
        assert mesh.broker.statistics().connections >= 2  # the first waits for what is held
        with pytest.raises(amqp.LocalProtocolError, match="3 senders"):
            survivor._relays.clear()
            await survivor.sender(TOPIC)
        for delivery in held:
            await delivery.accept()
        for receiver in receivers[1:]:
            while receiver.queued:
                await (await receiver.receive()).accept()
        await until(lambda: mesh.broker.statistics().connections == 1)
        assert survivor.ready()
        assert mesh.broker.statistics().links == 6
        await until(lambda: depth(mesh) == 0)


async def test_without_room_for_a_second_connection_the_first_makes_way() -> None:
    """A service instance has so many connections; the last of them is left before the next is opened."""
    async with (
        connected(max_connections=1) as (_, survivor),
        survivor.sender(TOPIC) as sender,
        survivor.receiver(QUEUE) as receiver,
    ):
        states = survivor.states()
        await survivor.client.roll_over()
        await sender.send(amqp.Message(b"one"))
        await (await receiver.receive()).accept()
        assert (await anext(states)).state is amqp.ClientState.CONNECTED
        assert (await anext(states)).state is amqp.ClientState.RECONNECTING


async def test_a_fourth_receiver_is_refused_here() -> None:
    """Several at once, and in an outage too; closing one makes room."""
    async with connected() as (mesh, survivor):
        found = await asyncio.gather(*(survivor.receiver(QUEUE) for _ in range(5)), return_exceptions=True)
        receivers = [one for one in found if isinstance(one, amqp.ClientReceiver)]
        refused = [one for one in found if isinstance(one, amqp.LocalProtocolError)]
        assert (len(receivers), len(refused)) == (MAX_LINKS, 2)
        await receivers[0].close()
        await mesh.broker.close()
        await until(lambda: not survivor.ready())
        opening = [task(survivor.receiver(QUEUE)) for _ in range(2)]
        await asyncio.wait(opening, return_when=asyncio.FIRST_COMPLETED)
        await mesh.broker.start()
        outcomes = await asyncio.gather(*opening, return_exceptions=True)
        assert [type(one) for one in outcomes] == [amqp.ClientReceiver, amqp.LocalProtocolError]


async def test_senders_share_a_link_of_each_kind() -> None:
    """Any number of addresses, and one link for each quality of service and each way with what is in doubt."""
    async with connected() as (mesh, survivor):
        for options in ({}, {"on_unknown": "raise"}, {"qos": 0}, {"on_unknown": "resend"}):
            found = await asyncio.gather(
                *(survivor.sender(f"topic:${{namespace}}/order/{number}", **options) for number in range(20))
            )
            await found[7].send(amqp.Message(b"one"))
        assert mesh.broker.statistics().links == MAX_LINKS
        assert depth(mesh) == 4
        assert repr(found[0]) == "<EventMeshSender to 'topic:example/shop/1/order/0' open>"
        await found[0].close()
        with pytest.raises(amqp.LocalProtocolError, match="closed"):
            await found[0].send(amqp.Message(b"one"))


async def test_what_travels_is_what_event_mesh_wants() -> None:
    """The same on each connection: the target "", settle modes, the address in `to`, SASL ANONYMOUS."""
    lines: list[str] = []
    async with running() as mesh, client(mesh, trace=lines.append) as survivor, AsyncExitStack() as stack:
        sender = await stack.enter_async_context(survivor.sender(TOPIC))
        receiver = await stack.enter_async_context(survivor.receiver(QUEUE))
        for _ in range(2):
            await sender.send(amqp.Message(b"one"))
            delivery = await receiver.receive()
            assert delivery.message.to == f"topic:{NAMESPACE}/order/created"
            await delivery.accept()
            await survivor.client.roll_over()
        many = [pair async for pair in sender.send_many(amqp.Message(b"x") for _ in range(CREDIT))]
        assert len(many) == CREDIT
    attaches = [line for line in lines if "-> @attach" in line]
    assert len(attaches) == 6
    assert all("snd-settle-mode=0x0, rcv-settle-mode=0x0" in line for line in attaches)
    assert sum('@target(41) [address=""' in line for line in attaches) == 3
    assert sum("mechanism=:ANONYMOUS" in line for line in lines) == 3


async def test_a_message_may_have_a_mebibyte() -> None:
    """One byte more is refused with nothing sent, and the error says where it was to go."""
    async with connected() as (mesh, survivor), survivor.sender(TOPIC, on_unknown="resend") as sender:
        with pytest.raises(amqp.MessageTooLarge, match="topic:example/shop/1/order/created"):
            await sender.send(amqp.Message(bytes(MAX_MESSAGE_SIZE)))
        assert depth(mesh) == 0


async def test_errors_name_the_address_and_not_the_shared_link() -> None:
    """With fifty topics on one link, who reads the log wants to know which."""
    async with connected() as (_, survivor), survivor.sender("topic:other/shop/1/order") as sender:
        with pytest.raises(amqp.MessageRejected, match="sender to 'topic:other/shop/1/order': the message was"):
            await sender.send(amqp.Message(b"one"))


@pytest.mark.parametrize("address", ["orders", "queue://orders", "topic:a", "topic:a/b c", "topic:a/*", b"queue:a"])
async def test_an_address_that_breaks_a_rule_does_not_travel(address: Any) -> None:
    """The call itself says what is wrong, before anything is awaited."""
    async with connected() as (mesh, survivor):
        with pytest.raises(ValueError, match=r"address|topic"):
            survivor.sender(address)
        wrong: list[Any] = [{"qos": 2}, {"qos": True}, {"on_unknown": "lose"}, {"qos": 0, "on_unknown": "resend"}]
        for options in wrong:
            with pytest.raises(ValueError, match=r"qos|on_unknown"):
                survivor.sender(TOPIC, **options)
        with pytest.raises(ValueError, match="credit"):
            survivor.receiver(QUEUE, credit=-1)
        assert mesh.broker.statistics().links == 0


def test_the_options_are_those_of_connect_and_of_a_client() -> None:
    """But for those that the key or the service decides; what is wrong is said before anything is awaited."""
    ours, theirs = get_type_hints(EventMeshClientArguments), get_type_hints(ClientArguments)
    own = {name: kind for name, kind in theirs.items() if name not in get_type_hints(ConnectionArguments)}
    del own["randomize"]
    assert ours == get_type_hints(EventMeshArguments) | own
    with pytest.raises(TypeError, match=r"client\(\).*'sasl'"):
        eventmesh.client({}, sasl=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="silent for five minutes"):
        eventmesh.client({}, idle_timeout=300)
    with pytest.raises(ValueError, match="three segments"):
        eventmesh.client({}, namespace="a/b")


async def test_another_namespace_may_be_given() -> None:
    """In place of the key's own, as with `connect`."""
    async with running() as mesh, client(mesh, namespace="other/app/2") as survivor:
        assert survivor.namespace == "other/app/2"
        assert (await survivor.sender(TOPIC)).address == "topic:other/app/2/order/created"
        assert repr(survivor) == f"<EventMeshClient <Client {mesh.broker.url.rstrip('/')} connected>>"


# --- handlers ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def receiving(mesh: EventMesh, surviving: bool) -> AsyncIterator[Any]:
    """A receiver of a client or of a connection, with a message in the queue."""
    opener: Any = client(mesh) if surviving else eventmesh.connect(mesh.service_key())
    async with opener as survivor, survivor.receiver(QUEUE) as receiver:
        await _send(survivor, b"one")
        yield receiver


async def _fail(delivery: amqp.Delivery) -> None:
    raise RuntimeError("a fault of the handler")


async def _hang(delivery: amqp.Delivery) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("surviving", [True, False], ids=["client", "connection"])
@pytest.mark.parametrize(("handler", "timeout"), [(_fail, None), (_hang, 0.01)], ids=["raises", "hangs"])
async def test_a_handler_that_fails_rejects(handler: Any, timeout: float | None, surviving: bool) -> None:
    """That is what Event Mesh counts; after maxRedeliveryCount the message is in the dead message queue."""
    async with running() as mesh:
        mesh.create_queue("${namespace}/dead")
        mesh.create_queue("${namespace}/orders", maxRedeliveryCount=2, deadMsgQueue="${namespace}/dead")
        async with receiving(mesh, surviving) as receiver:
            processor = amqp.Processor(receiver, handler, timeout=timeout, drain_timeout=PATIENCE)
            work = task(processor.run())
            await until(lambda: mesh.broker.statistics().queues[f"{NAMESPACE}/dead"].depth == 1)
            processor._begin_stop()
            statistics = await work
        assert (statistics.rejected, statistics.modified, statistics.failed + statistics.timed_out) == (3, 0, 3)


@pytest.mark.parametrize("surviving", [True, False], ids=["client", "connection"])
async def test_a_table_of_errors_comes_first(surviving: bool) -> None:
    """What `on_error` has no answer to is rejected, and so is what AMQP cannot carry."""
    answers: list[Any] = [amqp.Modified(message_annotations={"x": object()}), None, amqp.Released(), amqp.Accepted()]
    async with running() as mesh, receiving(mesh, surviving) as receiver:
        stop = asyncio.Event()

        def on_error(delivery: amqp.Delivery, error: Exception) -> Any:
            answer = answers.pop(0)
            if not answers:
                stop.set()
            return answer

        statistics = await receiver.process(_fail, concurrency=1, on_error=on_error, stop=stop)
        assert (statistics.rejected, statistics.released, statistics.accepted) == (2, 1, 1)
        await until(lambda: depth(mesh) == 0)


async def test_the_poison_guard_needs_no_handler() -> None:
    """What has failed too often is rejected unseen, as with any receiver."""
    async with running() as mesh:
        mesh.create_queue("${namespace}/dead")
        mesh.create_queue("${namespace}/orders", maxRedeliveryCount=1, deadMsgQueue="${namespace}/dead")
        async with receiving(mesh, True) as receiver:
            processor = amqp.Processor(receiver, _fail, max_delivery_count=1)
            work = task(processor.run())
            await until(lambda: mesh.broker.statistics().queues[f"{NAMESPACE}/dead"].depth == 1)
            processor._begin_stop()
            statistics = await work
        assert (statistics.failed, statistics.poisoned, statistics.rejected) == (1, 1, 2)


# --- ends ----------------------------------------------------------------------------------------------------


async def test_what_is_final_ends_the_opening(tmp_path: Path) -> None:
    """A bad key, credentials that are refused, a token that is: with the reason, and nothing left behind."""
    bad: tuple[Any, ...] = ({}, "{}", tmp_path / "none.json", {"messaging": []})
    for key in bad:
        with pytest.raises(eventmesh.ServiceKeyError):
            await eventmesh.client(key)
    async with running() as mesh:
        body = b'{"error":"invalid_client","error_description":"no such client"}'
        mesh.token_server.answer = TokenAnswer(401, body)
        with pytest.raises(amqp.TokenError, match="no such client"):
            await client(mesh)
        mesh.token_server.answer = None
        mesh.broker._authorize = lambda headers, path: 401
        with pytest.raises(amqp.HandshakeError, match="401"):
            await client(mesh)
        assert mesh.token_server.token_count == 2
        assert connections(mesh) == 0


async def test_a_final_failure_ends_whoever_waits() -> None:
    """With the reason for each of them; closing afterwards is quiet."""
    async with running() as mesh, client(mesh) as survivor, survivor.receiver(QUEUE) as receiver:
        mesh.broker._authorize = lambda headers, path: 403
        await mesh.disconnect()
        with pytest.raises(amqp.ConnectionClosed, match="403"):
            await receiver.receive()
        with pytest.raises(amqp.ConnectionClosed, match="403"):
            await survivor.sender(TOPIC)
        assert survivor.health().state is amqp.ClientState.CLOSED
        assert not survivor.ready()


@pytest.mark.parametrize("state", ["never connected", "connected", "reconnecting", "moving", "ended"])
async def test_closing_in_every_state(state: str) -> None:
    """It takes no longer than it should, ends whoever waits, may be done again, and leaves nothing behind."""
    async with running() as mesh:
        if state == "never connected":
            await mesh.broker.close()
        survivor = await client(mesh, background=True, close_timeout=2.0, handover_timeout=60.0)
        waiting = [task(survivor.receiver(QUEUE))]
        if state != "never connected":
            receiver = await waiting.pop()
            await _send(survivor, b"one")
            held = await receiver.receive()
            waiting.append(task(receiver.receive()))
        if state == "reconnecting":
            await mesh.broker.close()
            await until(lambda: survivor.health().state is amqp.ClientState.RECONNECTING)
            waiting.append(task(_send(survivor, b"two")))
        elif state == "moving":
            await survivor.client.roll_over()
            assert mesh.broker.statistics().connections == 2
        elif state == "ended":
            mesh.broker._authorize = lambda headers, path: 403
            await mesh.disconnect()
            await until(lambda: survivor.health().state is amqp.ClientState.CLOSED)
        refresher = survivor._access.refresher
        assert refresher is not None
        async with asyncio.timeout(PATIENCE):
            await survivor.close()
            await survivor.close()
        assert survivor.health().state is amqp.ClientState.CLOSED
        assert "stopped" in repr(refresher)
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, amqp.ConnectionClosed), one
        if state == "connected":
            with pytest.raises(amqp.SettlementLost):
                await held.accept()
        await until(lambda: mesh.broker.statistics().connections == 0)
        with pytest.raises(amqp.ConnectionClosed):
            await survivor.sender(TOPIC, qos=0)


async def test_the_bodys_error_is_not_hidden() -> None:
    """And leaves nothing behind, in an outage too."""
    async with running() as mesh:
        with pytest.raises(ZeroDivisionError):
            async with client(mesh):
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            async with client(mesh):
                await mesh.close()
                raise ZeroDivisionError


@pytest.mark.parametrize("way", WAYS)
async def test_opening_cancelled_anywhere(way: Way, tmp_path: Path) -> None:
    """From the key's file to the first outcome: no task and no connection stays behind."""
    async with running() as mesh:
        key, _ = await asyncio.to_thread(mesh.write_key, tmp_path)

        async def use() -> None:
            async with eventmesh.client(key, backoff=QUICK) as survivor:
                await _send(survivor, b"one")

        await use()
        tasks = asyncio.all_tasks()
        reached = 0
        async for number in steps(use, way):
            reached = number
            await until(lambda: mesh.broker.statistics().connections == 0)
            await until(lambda: not (asyncio.all_tasks() - tasks))
        assert reached > 5
        await use()
