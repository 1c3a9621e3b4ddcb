"""The embedded Event Mesh as the client of this library sees it: every rule from both sides, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import amqpws_async as amqp
import amqpws_async.testing
from amqpws_async.auth.client_auth import ClientCertificate
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.testing import EventMesh, QueueStatistics, TokenServer

NS = "example/shop/1"
MIB = 2**20
STANDALONE_API, SUITE_API = "/hub/rest/api/v1/management/messaging", "/sap-event-mesh/rest/api/v1"


async def soon(awaitable: Any) -> Any:
    """Waits, and not for ever."""
    async with asyncio.timeout(10):
        return await awaitable


def opening(mesh: EventMesh) -> Any:
    """A connection, to be opened, with a token that is good."""
    return amqp.connect(mesh.url, token=mesh.token_server.make_token(), ssl=mesh.ssl)


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[EventMesh, amqp.Connection]]:
    """A mesh without TLS, with a queue for all orders, and a connection to it."""
    async with EventMesh(tls=False, **options) as mesh:
        mesh.create_queue(f"{NS}/orders")
        mesh.subscribe(f"{NS}/orders", f"{NS}/order/*")
        async with opening(mesh) as connection:
            yield mesh, connection


async def publish(connection: amqp.Connection, to: str | None, *bodies: bytes, target: str | None = "") -> None:
    async with connection.sender(target) as sender:
        for body in bodies:
            await sender.send(amqp.Message(body, to=to))


def queue(mesh: EventMesh, name: str = "orders") -> QueueStatistics:
    return mesh.broker.statistics().queues[f"{NS}/{name}"]


def proof(mesh: EventMesh) -> ClientCertificate:
    """The certificate of an x509 key."""
    uaa = mesh.service_key()["uaa"]
    return ClientCertificate(uaa["certificate"], uaa["key"])


# --- from the key to a message ---------------------------------------------------------------------


@pytest.mark.parametrize("integration_suite", [False, True])
async def test_from_the_key_to_a_received_message_over_tls(integration_suite: bool, tmp_path: Path) -> None:
    """Everything a client needs is in the two files: token, wss, topic, queue; `to` stays as it was published."""
    async with EventMesh(integration_suite=integration_suite) as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
        key_file, ca_file = await asyncio.to_thread(mesh.write_key, tmp_path)
        assert key_file.stat().st_mode & 0o777 == 0o600
        key = json.loads(await asyncio.to_thread(key_file.read_text))
        assert key == mesh.service_key()
        messaging = key["messaging"][0]
        assert messaging["protocol"] == ["amqp10ws"]
        grant = ClientCredentials(
            messaging["oa2"]["tokenendpoint"], messaging["oa2"]["clientid"], messaging["oa2"]["clientsecret"]
        )
        async with (
            TokenRefresher(grant, ssl=ca_file) as tokens,
            amqp.connect(messaging["uri"], token=tokens, ssl=ca_file) as connection,
        ):
            await publish(connection, f"topic:{NS}/order/created", b"1")
            async with connection.receiver(f"queue:{NS}/orders") as receiver:
                delivery = await soon(receiver.receive())
                assert (delivery.body, delivery.message.to) == (b"1", f"topic:{NS}/order/created")
                await delivery.accept()
        assert messaging["uri"] == mesh.url
        assert mesh.url.startswith("wss://127.0.0.1:")
        assert mesh.url.endswith("/protocols/amqp10ws")
        assert mesh.token_url == messaging["oa2"]["tokenendpoint"]
        assert mesh.management_url.startswith(key["management"][0]["uri"])
        assert mesh.management_url.endswith(SUITE_API if integration_suite else STANDALONE_API)
        assert mesh.token_server.request_count == 1


async def test_keys_are_synthetic_and_of_one_instance_alone() -> None:
    """Awkward characters where real keys have them, nothing shared by two instances, no secret in a repr."""
    async with EventMesh(tls=False) as mesh, EventMesh(tls=False, integration_suite=True) as other:
        key, second = mesh.service_key(), other.service_key()
        oa2 = key["messaging"][0]["oa2"]
        assert {"!", "|"} <= set(oa2["clientid"])
        assert set("$+/=% :!|ü") <= set(oa2["clientsecret"])
        assert key["namespace"] == NS
        assert key["management"][0]["oa2"] == oa2
        assert "uaa" not in key
        assert second["credential-type"] == "binding-secret"
        assert second["uaa"]["clientsecret"] == second["messaging"][0]["oa2"]["clientsecret"]
        for name in ("clientid", "clientsecret"):
            assert oa2[name] != second["messaging"][0]["oa2"][name]
        assert key["serviceinstanceid"] != second["serviceinstanceid"]
        assert oa2["clientsecret"] not in f"{mesh!r} {mesh.token_server!r} {mesh._credentials!r}"


async def test_a_key_with_a_certificate(tmp_path: Path) -> None:
    """No secret anywhere; without the certificate there is no token, and no AMQP with the best of tokens."""
    async with EventMesh(x509=True) as mesh:
        key = mesh.service_key()
        assert key["credential-type"] == "x509"
        assert "clientsecret" not in json.dumps(key)
        _, ca_file = await asyncio.to_thread(mesh.write_key, tmp_path)
        client_id = key["messaging"][0]["oa2"]["clientid"]
        grant = ClientCredentials(key["uaa"]["certurl"] + "/oauth/token", client_id, authentication=proof(mesh))
        async with TokenRefresher(grant, ssl=ca_file) as tokens:
            context = mesh.ssl
            assert context is not None
            await asyncio.to_thread(proof(mesh).load_into, context)
            async with amqp.connect(mesh.url, token=tokens, ssl=context) as connection:
                await publish(connection, f"topic:{NS}/order/created", b"1")
            assert mesh.token_server.requests[-1].way == "certificate"
            with pytest.raises((amqp.OpenError, OSError)):
                await soon(amqp.connect(mesh.url, token=tokens, ssl=ca_file))
        form = {"grant_type": "client_credentials", "client_id": client_id}
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.post(mesh.token_url, data=form, ssl=mesh.ssl or True) as answer,
        ):
            assert answer.status == 401


async def test_the_private_ca_is_private() -> None:
    """A client that trusts the system's authorities, or another mesh's, does not get in."""
    async with EventMesh() as mesh, EventMesh() as other:
        assert mesh.ca_pem != other.ca_pem
        for context in (None, other.ssl):
            with pytest.raises((amqp.OpenError, OSError), match="certificate"):
                await soon(amqp.connect(mesh.url, token=mesh.token_server.make_token(), ssl=context))


# --- who gets in -----------------------------------------------------------------------------------


async def test_an_upgrade_needs_the_path_and_a_token() -> None:
    """404 elsewhere, 401 with a challenge for a token that is missing, foreign or expired."""
    async with EventMesh(tls=False) as mesh, TokenServer() as foreign:
        good = mesh.token_server.make_token()
        for path in ("/", "/protocols", "/protocols/amqp10ws/", "/protocols/mqtt311ws"):
            with pytest.raises(amqp.HandshakeError) as caught:
                await amqp.connect(mesh.url.replace("/protocols/amqp10ws", path), token=good)
            assert caught.value.status == 404
        for token in (None, foreign.make_token(), mesh.token_server.make_token(lifetime=-1)):
            with pytest.raises(amqp.HandshakeError) as caught:
                await amqp.connect(mesh.url, token=token)
            assert caught.value.status == 401
            assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
        await (await amqp.connect(mesh.url + "?x=1", token=good)).close()


async def test_connections_are_limited_in_saps_words() -> None:
    """One more than allowed is closed with the text that SAP's gateway has for it."""
    async with connected(max_connections=1) as (mesh, _):
        with pytest.raises(amqp.ConnectionClosed, match=r"connection rejected \(too much connections\)"):
            async with opening(mesh) as second:
                await soon(second.sender(""))


async def test_links_are_limited_to_three_of_each_kind() -> None:
    """The fourth sender and the fourth receiver are refused, and the others go on."""
    async with connected() as (_, connection):
        senders = [await connection.sender("") for _ in range(3)]
        receivers = [await connection.receiver(f"queue:{NS}/orders") for _ in range(3)]
        for attach in (connection.sender(""), connection.receiver(f"queue:{NS}/orders")):
            with pytest.raises(amqp.AttachError, match="resource-limit-exceeded"):
                await attach
        await senders[2].send(amqp.Message(b"", to=f"topic:{NS}/order/created"))
        await receivers[0].close()


# --- addresses and rules ---------------------------------------------------------------------------

REFUSED = [
    (f"{NS}/orders", "not-allowed.*begin with 'queue:' or 'topic:'"),
    ("orders", "not-allowed.*begin with"),
    (f"queue://{NS}/orders", "not-allowed.*a segment has"),
    (f"queue:{NS}/ord ers", "not-allowed.*a segment has"),
    ("queue:", "not-allowed"),
    (f"queue:{NS}/{'q' * 150}", "not-allowed.*164 characters"),
    ("queue:other/shop/1/orders", "not-allowed.*rules of the service key"),
    (f"queue:{NS}", "not-allowed.*rules of the service key"),
    (f"queue:{NS}/nobody", "not-found.*there is no node"),
]
NO_TARGETS = [
    *REFUSED,
    (f"topic:{NS}/order/*", "not-allowed.*a segment has"),
    (f"topic:{NS}/{'t' * 140}", "not-allowed.*150 characters"),
    ("topic:orders", "not-allowed.*2 to 20 are wanted"),
    ("topic:" + "/".join("a" * 21), "not-allowed.*2 to 20 are wanted"),
    ("topic:other/shop/1/order/created", "not-allowed.*rules of the service key"),
]
NO_SOURCES = [
    *REFUSED,
    (f"topic:{NS}/order/created", "not-allowed.*subscribe a queue"),
    (f"topic:{NS}/order/*", "not-allowed.*subscribe a queue"),
]


@pytest.mark.parametrize(("address", "reason"), NO_TARGETS)
async def test_what_cannot_be_sent_to(address: str, reason: str) -> None:
    """The same answer to an attach as to a message on the anonymous link, which lives on."""
    async with connected() as (mesh, connection):
        with pytest.raises(amqp.AttachError, match=reason):
            await connection.sender(address)
        async with connection.sender("") as sender:
            with pytest.raises(amqp.MessageRejected, match=reason):
                await sender.send(amqp.Message(b"lost", to=address))
            await sender.send(amqp.Message(b"kept", to=f"topic:{NS}/order/created"))
        assert queue(mesh).depth == 1
        assert set(mesh.queues) == {f"{NS}/orders"}


@pytest.mark.parametrize(("address", "reason"), NO_SOURCES)
async def test_what_cannot_be_received_from(address: str, reason: str) -> None:
    """Names, rules and queues that nobody has created; topics are no sources at all."""
    async with connected() as (mesh, connection):
        with pytest.raises(amqp.AttachError, match=reason):
            await connection.receiver(address)
        assert set(mesh.queues) == {f"{NS}/orders"}


async def test_there_are_no_dynamic_nodes_and_no_sources_without_address() -> None:
    """Event Mesh's clients create nothing."""
    async with connected() as (_, connection):
        with pytest.raises(amqp.AttachError, match=r"not-allowed.*dynamic"):
            await connection.sender(amqp.Target(None, dynamic=True))
        with pytest.raises(amqp.AttachError, match=r"not-allowed.*dynamic"):
            await connection.receiver(amqp.Source(None, dynamic=True))
        with pytest.raises(amqp.AttachError, match=r"not-allowed.*address"):
            await connection.receiver("")


async def test_a_key_can_allow_other_things() -> None:
    """The rules of the service descriptor, per kind and direction; what they do not name is not allowed."""
    rules = {
        "queueRules": {"publishFilter": ["${namespace}/in", "other/app/2/+"]},
        "topicRules": {"publishFilter": ["${namespace}/order/+/created", "ce/*"], "subscribeFilter": ["*"]},
    }
    async with connected(rules=rules) as (mesh, connection):
        for name in (f"{NS}/in", "other/app/2/q", "other/app/2/q/r"):
            mesh.create_queue(name)
        for to in (f"queue:{NS}/in", "queue:other/app/2/q", f"topic:{NS}/order/7/created", "topic:ce/a/b"):
            await publish(connection, to, b"1")
        for to in (f"queue:{NS}/orders", "queue:other/app/2/q/r", f"topic:{NS}/order/7/deleted", "topic:cf/a"):
            with pytest.raises(amqp.MessageRejected, match="not-allowed"):
                await publish(connection, to, b"1")
        with pytest.raises(amqp.AttachError, match="do not allow receiving from"):
            await connection.receiver(f"queue:{NS}/orders")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"namespace": "example/shop"}, "3 are wanted"),
        ({"namespace": "example//1"}, "a segment has"),
        ({"namespace": f"example/{'s' * 60}/1"}, "63 characters"),
        ({"rules": {"queueRules": {"inboundFilter": ["*"]}}}, "publishFilter and subscribeFilter"),
        ({"rules": {"queues": {"publishFilter": ["*"]}}}, "queueRules and topicRules"),
        ({"rules": {"queueRules": {"publishFilter": "*"}}}, "lists"),
        ({"x509": True, "tls": False}, "needs tls"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    """They are refused where they are given."""
    with pytest.raises(ValueError, match=reason):
        EventMesh(**options)


async def test_the_python_side_has_the_same_rules_for_names() -> None:
    """A queue that no client could name cannot be created, and what is not there cannot be changed."""
    mesh = EventMesh(tls=False)
    with pytest.raises(ValueError, match="a segment has"):
        mesh.create_queue("a b")
    with pytest.raises(ValueError, match="maxRedeliveryCount"):
        mesh.create_queue(f"{NS}/orders", maxRedeliveryCount=256)
    with pytest.raises(ValueError, match="deadMsgQueue"):
        mesh.create_queue(f"{NS}/orders", deadMsgQueue=None)
    assert mesh.queues == {}
    mesh.create_queue(f"{NS}/orders")
    with pytest.raises(ValueError, match="a segment has"):
        mesh.subscribe(f"{NS}/orders", f"{NS}/*/created")
    for change in (mesh.subscribe, mesh.unsubscribe):
        with pytest.raises(LookupError, match="no queue"):
            change(f"{NS}/nobody", f"{NS}/order/*")
    with pytest.raises(LookupError):
        mesh.unsubscribe(f"{NS}/orders", f"{NS}/order/*")
    with pytest.raises(LookupError, match="no queue"):
        mesh.delete_queue(f"{NS}/nobody")


# --- messages --------------------------------------------------------------------------------------


async def test_a_message_goes_once_to_each_queue_that_subscribes() -> None:
    """Overlapping subscriptions of a queue count once; a topic without any takes its messages and drops them."""
    async with connected() as (mesh, connection):
        mesh.create_queue("${namespace}/audit")
        for pattern in ("*", "order/+", "order/created"):
            mesh.subscribe("${namespace}/audit", "${namespace}/" + pattern)
        mesh.create_queue("${namespace}/bystander")
        mesh.subscribe("${namespace}/bystander", "${namespace}/order/+/created")
        await publish(connection, f"topic:{NS}/order/created", b"1")
        await publish(connection, f"topic:{NS}/invoice", b"2")
        await publish(connection, "topic:example/shop/1/x", b"3", target=None)
        depths = {name: statistics.depth for name, statistics in mesh.broker.statistics().queues.items()}
        assert depths == {f"{NS}/orders": 1, f"{NS}/audit": 3, f"{NS}/bystander": 0}
        mesh.unsubscribe("${namespace}/audit", "${namespace}/*")
        await publish(connection, f"topic:{NS}/invoice", b"4")
        await publish(connection, f"topic:{NS}/order/created", b"5")
        mesh.unsubscribe("${namespace}/audit", "${namespace}/order/+")
        await publish(connection, f"topic:{NS}/order/created", b"6")
        assert (queue(mesh, "audit").depth, queue(mesh).depth) == (5, 3)
        assert mesh.queues[f"{NS}/audit"] == {f"{NS}/order/created"}
        assert mesh.broker.statistics().topics[f"{NS}/invoice"].published == 2


async def test_a_subscription_counts_for_those_who_send_already() -> None:
    """A sender attached to a topic reaches a queue that subscribes later, and no longer one that is deleted."""
    async with connected() as (mesh, connection):
        async with connection.sender(f"topic:{NS}/invoice") as sender:
            await sender.send(amqp.Message(b"nobody"))
            mesh.subscribe(f"{NS}/orders", f"{NS}/invoice")
            await sender.send(amqp.Message(b"somebody"))
            assert queue(mesh).depth == 1
            mesh.delete_queue(f"{NS}/orders")
            await sender.send(amqp.Message(b"nobody"))
        assert mesh.queues == {}


async def test_sending_to_a_queue_directly() -> None:
    """By a link of its own, and by the anonymous one."""
    async with connected() as (mesh, connection):
        await publish(connection, f"queue:{NS}/orders", b"1")
        await publish(connection, None, b"2", target=f"queue:{NS}/orders")
        with pytest.raises(amqp.MessageRejected, match="not-found"):
            await publish(connection, None, b"3")
        assert queue(mesh).depth == 2


async def test_deleting_a_queue_tells_those_who_use_it() -> None:
    """Receiver and sender end with resource-deleted, and the connection lives."""
    async with connected() as (mesh, connection):
        receiver = await connection.receiver(f"queue:{NS}/orders")
        sender = await connection.sender(f"queue:{NS}/orders")
        mesh.delete_queue("${namespace}/orders")
        for use in (receiver.receive(), sender.send(amqp.Message(b""))):
            with pytest.raises(amqp.LinkClosed, match="resource-deleted"):
                await soon(use)
        assert connection.health().ok


async def test_a_message_has_one_mebibyte_at_most() -> None:
    """The limit is announced; a client that does not heed it loses its link."""
    async with connected() as (mesh, connection):
        async with connection.sender("") as sender:
            assert sender.remote is not None
            assert sender.remote.max_message_size == MIB
            fits = amqp.Message(bytes(MIB - 200), to=f"topic:{NS}/order/created")
            await soon(sender.send(fits))
            with pytest.raises(amqp.MessageTooLarge):
                await sender.send(amqp.Message(bytes(MIB), to=f"topic:{NS}/order/created"))
        assert queue(mesh).depth == 1


async def test_a_rejected_message_comes_again_and_is_dead_in_the_end() -> None:
    """maxRedeliveryCount redeliveries, each marked as one, and then the dead message queue."""
    async with connected() as (mesh, connection):
        mesh.create_queue("${namespace}/dead")
        mesh.create_queue("${namespace}/orders", maxRedeliveryCount=2, deadMsgQueue="${namespace}/dead")
        assert mesh.queues[f"{NS}/orders"] == {f"{NS}/order/*"}
        await publish(connection, f"topic:{NS}/order/created", b"1")
        counts = []
        async with connection.receiver(f"queue:{NS}/orders") as receiver:
            for _ in range(3):
                delivery = await soon(receiver.receive())
                counts.append(delivery.message.delivery_count)
                await delivery.reject()
            async with connection.receiver(f"queue:{NS}/dead") as dead:
                delivery = await soon(dead.receive())
                assert (delivery.body, delivery.message.to) == (b"1", f"topic:{NS}/order/created")
                await delivery.accept()
        assert counts == [0, 1, 2]
        assert (queue(mesh).dead_lettered, queue(mesh).redelivered) == (1, 2)


@pytest.mark.parametrize("dead", [{}, {"deadMsgQueue": ""}, {"deadMsgQueue": f"{NS}/nobody"}], ids=str)
async def test_a_dead_message_without_a_place_to_go_is_dropped(dead: dict[str, str]) -> None:
    """A dead message queue may be missing, in the properties or among the queues; what follows is delivered."""
    async with connected() as (mesh, connection):
        mesh.create_queue(f"{NS}/orders", maxRedeliveryCount=1, **dead)
        await publish(connection, f"queue:{NS}/orders", b"1")
        async with connection.receiver(f"queue:{NS}/orders") as receiver:
            for _ in range(2):
                await (await soon(receiver.receive())).reject()
            await publish(connection, f"queue:{NS}/orders", b"2")
            delivery = await soon(receiver.receive())
            assert delivery.body == b"2"
            await delivery.accept()
        assert (queue(mesh).dead_lettered, queue(mesh).enqueued) == (1, 2)


async def test_without_a_count_a_rejected_message_comes_for_ever() -> None:
    """Zero, which takes back a count that was there, is for no limit; releasing does not count at all."""
    async with connected() as (mesh, connection):
        mesh.create_queue(f"{NS}/orders", maxRedeliveryCount=1)
        mesh.create_queue(f"{NS}/orders", maxRedeliveryCount=0)
        await publish(connection, f"queue:{NS}/orders", b"1")
        async with connection.receiver(f"queue:{NS}/orders") as receiver:
            for _ in range(20):
                await (await soon(receiver.receive())).reject()
            mesh.create_queue(f"{NS}/orders", accessType="EXCLUSIVE")
            delivery = await soon(receiver.receive())
            assert delivery.message.delivery_count == 20
            await delivery.release()
            delivery = await soon(receiver.receive())
            assert delivery.message.delivery_count == 20
            await delivery.accept()


async def test_a_full_queue_stops_publishers_until_it_no_longer_subscribes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for room in a queue that nobody empties goes on when the subscription is gone."""
    monkeypatch.setattr("amqpws_async.testing.event_mesh.mesh.MAX_QUEUE_BYTES", 4096)
    async with connected() as (mesh, connection), connection.sender(f"topic:{NS}/order/created") as sender:
        async with asyncio.TaskGroup() as group:

            async def send_many() -> None:
                for _ in range(200):
                    await sender.send(amqp.Message(bytes(512)))

            sending = group.create_task(send_many())
            async with asyncio.timeout(10):
                while queue(mesh).bytes < 4096 - 1024 or sender.credit:
                    await asyncio.sleep(0)
            assert not sending.done()
            mesh.unsubscribe(f"{NS}/orders", f"{NS}/order/*")
        assert mesh.broker.statistics().topics[f"{NS}/order/created"].published == 200


# --- its life --------------------------------------------------------------------------------------


async def test_a_restart_keeps_queues_messages_ports_and_key() -> None:
    """As the service does: what was there before is there again, and clients find it where it was."""
    mesh = EventMesh()
    async with mesh:
        mesh.create_queue(f"{NS}/orders")
        mesh.subscribe(f"{NS}/orders", f"{NS}/order/*")
        key, authority, token = mesh.service_key(), mesh.ca_pem, mesh.token_server.make_token()
        async with opening(mesh) as connection:
            await publish(connection, f"topic:{NS}/order/created", b"1")
        with pytest.raises(RuntimeError, match="running already"):
            await mesh.start()
        assert "listening" in repr(mesh)
    assert "closed" in repr(mesh)
    with pytest.raises((amqp.OpenError, OSError)):
        await amqp.connect(mesh.url, token=token, ssl=mesh.ssl)
    await mesh.close()
    with pytest.raises(RuntimeError, match="start"):
        mesh.service_key()
    async with mesh:
        assert mesh.service_key() == key
        assert mesh.ca_pem == authority
        async with (
            amqp.connect(mesh.url, token=token, ssl=mesh.ssl) as connection,
            connection.receiver(f"queue:{NS}/orders") as receiver,
        ):
            delivery = await soon(receiver.receive())
            assert delivery.body == b"1"
            await delivery.accept()


async def test_before_the_first_start_there_are_queues_and_no_addresses(tmp_path: Path) -> None:
    """Queues can be prepared; key and CA want ports and certificates."""
    mesh = EventMesh()
    mesh.create_queue("${namespace}/orders")
    mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
    assert mesh.queues == {f"{NS}/orders": {f"{NS}/order/*"}}
    with pytest.raises(RuntimeError, match="start"):
        mesh.service_key()
    with pytest.raises(RuntimeError, match="start"):
        _ = mesh.ca_pem
    with pytest.raises(RuntimeError, match="start"):
        _ = mesh.ssl
    assert list(tmp_path.iterdir()) == []


async def test_closing_while_clients_are_attached() -> None:
    """They are told, nothing is left running, and what was not settled is in the queue again."""
    mesh = await EventMesh(tls=False).start()
    mesh.create_queue(f"{NS}/orders")
    async with opening(mesh) as connection:
        await publish(connection, f"queue:{NS}/orders", b"1")
        receiver = await connection.receiver(f"queue:{NS}/orders")
        await soon(receiver.receive())
        await soon(mesh.close())
        with pytest.raises(amqp.ConnectionClosed, match="connection:forced"):
            await soon(receiver.receive())
    assert queue(mesh).depth == 1


async def test_disconnecting_drops_connections_and_lets_them_come_back() -> None:
    """As a network that breaks."""
    async with connected() as (mesh, connection):
        receiver = await connection.receiver(f"queue:{NS}/orders")
        await mesh.disconnect()
        with pytest.raises(amqp.ConnectionClosed):
            await soon(receiver.receive())
        async with opening(mesh) as again:
            await publish(again, f"topic:{NS}/order/created", b"1")


async def test_a_port_that_is_taken_leaves_nothing_behind() -> None:
    """What was started before the broker failed is stopped again, and it can be tried again."""
    async with EventMesh(tls=False) as first:
        second = EventMesh(port=first.broker.port, tls=False)
        with pytest.raises(OSError, match=r"[Aa]ddress"):
            await second.start()
        assert "closed" in repr(second.token_server)
    async with second:
        assert second.url == first.url


async def test_without_tls_there_are_no_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ws and http on this machine, and trustme need not be there; with tls it is asked for by its extra's name."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"amqpws-async\[testing\]"):
        EventMesh()
    async with EventMesh(tls=False) as mesh:
        assert (mesh.ca_pem, mesh.ssl) == ("", None)
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        assert ca is None
        assert [path.name for path in tmp_path.iterdir()] == [key.name]
        assert mesh.url.startswith("ws://")
        assert mesh.token_url.startswith("http://")


async def test_a_key_file_is_private_even_where_another_was(tmp_path: Path) -> None:
    """A file that everybody could read is replaced, not filled."""
    async with EventMesh(tls=False) as mesh:
        (tmp_path / "service-key.json").touch(0o644)
        key, _ = await asyncio.to_thread(mesh.write_key, tmp_path)
        assert key.stat().st_mode & 0o777 == 0o600


async def test_the_certificates_are_for_this_machine_by_each_of_its_names() -> None:
    """127.0.0.1, localhost and ::1, checked as strictly as Python 3.13 does."""
    async with EventMesh() as mesh:
        context = mesh.ssl
        assert context is not None
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        _, _, port = mesh.management.origin.rpartition(":")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            for name in ("127.0.0.1", "localhost", "::1"):
                async with session.get(f"https://127.0.0.1:{port}/", ssl=context, server_hostname=name) as answer:
                    assert answer.status == 404


# --- the package -----------------------------------------------------------------------------------


def test_the_broker_comes_without_an_http_library() -> None:
    """What needs aiohttp is loaded when it is asked for, and is listed before."""
    program = (
        "import sys, amqpws_async.testing as testing\n"
        "assert {'EventMesh', 'TokenServer', 'Broker'} <= set(dir(testing))\n"
        "assert not {'aiohttp', 'trustme'} & set(sys.modules)\n"
        "from amqpws_async.testing import TokenServer\n"
        "assert 'aiohttp' in sys.modules and 'amqpws_async.testing.event_mesh' not in sys.modules\n"
        "from amqpws_async.testing import *\n"
        "EventMesh(tls=False), TokenAnswer, TokenRequest, UAABehaviour\n"
        "assert 'trustme' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_name_that_there_is_not() -> None:
    """The error is that of any module, and what is loaded late is listed."""
    assert set(amqpws_async.testing.__all__) <= set(dir(amqpws_async.testing))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = amqpws_async.testing.Nothing
