"""What Event Mesh's users are promised, from outside: through `eventmesh.connect` against the embedded Event Mesh.

Tokens go nowhere but to the hosts in the key; the token server hardly notices any number of connections, and its
outages pass; Event Mesh's rules are kept; and whoever is cancelled, wherever it stands, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.auth import oauth2
from amqpws_async.eventmesh.management import ManagementClient, ManagementError
from amqpws_async.testing import Broker, EventMesh, TokenAnswer, TokenServer, UAABehaviour

from .key_files import load
from .peer import Peer as SilentPeer
from .peer import ignore
from .websocket_peer import Peer, Server, serving

NAMESPACE = "example/shop/1"
QUEUE = "queue:${namespace}/orders"
TOPIC = "topic:${namespace}/order/created"
PATIENCE = 10.0
MIB = 2**20


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No binding and no proxy of whoever runs the tests."""
    for name in ("VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH", "SERVICE_BINDING_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token requests may follow each other at once: for tests that are not about the pace."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[EventMesh]:
    """A mesh with a queue for all orders."""
    async with EventMesh(**{"tls": False, **options}) as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
        yield mesh


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[EventMesh, eventmesh.EventMeshConnection]]:
    """A mesh, and a connection to it by its key."""
    async with running(**options) as mesh, eventmesh.connect(mesh.service_key()) as connection:
        yield mesh, connection


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def depth(mesh: EventMesh, name: str = "orders") -> int:
    """Messages in a queue."""
    return mesh.broker.statistics().queues[f"{NAMESPACE}/{name}"].depth


# --- tokens stay with whom the key names ---------------------------------------------------------

_STATUSES = [301, 302, 303, 307, 308]


class Stranger:
    """Two servers, of which one redirects to the other, which nobody has named and which must see nothing.

    Attributes:
        status: The redirect's status.
        location: Where to; "{own}" stands for the redirecting server's own port, "{other}" for the other's.
        requests: How many requests the redirecting server had.
        other: The other server.
    """

    def __init__(self, other: Server, ca: ssl.SSLContext | None) -> None:
        self.status = 0
        self.other = other
        self.ssl = ca
        self.location = ""
        self.requests = 0
        self.own: Server | None = None

    async def handle(self, peer: Peer) -> None:
        """Redirects one request."""
        await peer.read_request()
        self.requests += 1
        length = int(peer.headers.get("content-length", "0"))
        await peer.reader.readexactly(length)
        assert self.own is not None
        location = self.location.format(own=self.own.port, other=self.other.port)
        head = f"HTTP/1.1 {self.status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        peer.writer.write(head.encode())
        await peer.writer.drain()

    def origin(self, scheme: str) -> str:
        """The redirecting server."""
        assert self.own is not None
        return f"{scheme}{'' if self.ssl is None else 's'}://127.0.0.1:{self.own.port}"


@contextlib.asynccontextmanager
async def redirecting(*, tls: bool) -> AsyncIterator[Stranger]:
    """Serves both. The other one sees connections as they come, before anything is said on them."""
    authority = await asyncio.to_thread(trustme.CA)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    async def nobody(peer: Peer) -> None:
        await peer.until_closed()

    async with serving(nobody) as other:
        stranger = Stranger(other, client if tls else None)
        async with serving(stranger.handle, tls=server if tls else None) as own:
            stranger.own = own
            yield stranger
        assert other.connections == 0, "somebody went where nobody was named"


def _locations(tls: bool, other_tls: bool) -> list[str]:
    """All the ways to name the other server, and a way down from encryption at the same place."""
    s = "s" if other_tls else ""
    hosts = ("127.0.0.1:{other}", "localhost:{other}")
    places = [f"{scheme}{s}://{host}" for scheme in ("http", "ws") for host in hosts]
    places += [f"HTTP{s.upper()}://LOCALHOST:{{other}}/", f"http{s}://127.0.0.1:{{own}}@127.0.0.1:{{other}}/"]
    places += [f"http{s}://{host}:{{other}}/" for host in ("127.1", "[::ffff:127.0.0.1]", "localhost.")]
    if tls and not other_tls:
        places += ["http://127.0.0.1:{own}/", "ws://127.0.0.1:{own}/protocols/amqp10ws"]
    if tls == other_tls:
        places += ["//127.0.0.1:{other}/", "//localhost:{other}/a/b", "//u:p@127.0.0.1:{other}"]
        places += ["///localhost:{other}/", "/\\localhost:{other}/", "\\\\localhost:{other}/"]
    return places


def _redirects(tls: bool, other_tls: bool, *more: str) -> Iterator[tuple[int, str]]:
    """Each way with each status; where TLS makes it slow each way with one of them, and each of them with some."""
    locations = [*_locations(tls, other_tls), *more]
    if tls:
        yield from zip(itertools.cycle(_STATUSES), locations, strict=False)
    else:
        yield from itertools.product(_STATUSES, locations)


_TLS = [(False, False), (True, True), (True, False), (False, True)]


@pytest.mark.parametrize(("tls", "other_tls"), _TLS, ids=["http", "https", "down", "up"])
async def test_a_redirected_upgrade_takes_no_token_elsewhere(tls: bool, other_tls: bool) -> None:
    """Another host, another port, another scheme: none of them sees so much as a connection."""
    async with redirecting(tls=tls) as stranger:
        key = load("standalone", url=stranger.origin("ws") + "/protocols/amqp10ws")
        for status, location in _redirects(tls, other_tls):
            stranger.status, stranger.location, stranger.requests = status, location, 0
            with pytest.raises(amqp.HandshakeError, match="redirect"):
                await eventmesh.connect(key, token="t0k3n", ssl=stranger.ssl)
            # A backslash is part of a path, at the same server: up to the limit of redirects, and then an error.
            assert stranger.requests == 1 or (("\\" in location or "///" in location) and stranger.requests == 6)


@pytest.mark.parametrize(("tls", "other_tls"), _TLS, ids=["http", "https", "down", "up"])
async def test_a_redirected_token_request_goes_nowhere(tls: bool, other_tls: bool, quick: None) -> None:
    """Not even to another path of the same server; the error names the place."""
    async with redirecting(tls=tls) as stranger:
        key = load("standalone", token_url=stranger.origin("http") + "/oauth/token", url="wss://127.0.0.1:1/x")
        for status, location in _redirects(tls, other_tls, "/elsewhere", "?x=1", "", "http://[/"):
            stranger.status, stranger.location, stranger.requests = status, location, 0
            with pytest.raises(amqp.TokenError, match=f"{status}.*redirect"):
                await eventmesh.connect(key, ssl=stranger.ssl)
            assert stranger.requests == 1


@pytest.mark.parametrize(("tls", "other_tls"), _TLS, ids=["http", "https", "down", "up"])
async def test_a_redirected_management_request_goes_nowhere(tls: bool, other_tls: bool) -> None:
    """Whatever the method, with the management section's token or one that was given."""
    async with redirecting(tls=tls) as stranger, running() as mesh:
        key = mesh.service_key()
        key["management"][0]["uri"] = stranger.origin("http")
        async with ManagementClient(key, ssl=stranger.ssl) as management:
            calls: list[Callable[[], Awaitable[Any]]] = [
                management.queues,
                lambda: management.create_queue(QUEUE),
                lambda: management.delete_queue(QUEUE),
                management.ready,
            ]
            for (status, location), call in zip(
                _redirects(tls, other_tls, "/elsewhere", ""), itertools.cycle(calls), strict=False
            ):
                stranger.status, stranger.location, stranger.requests = status, location, 0
                with pytest.raises(ManagementError, match=f"{status}, a redirect") as caught:
                    await call()
                assert caught.value.status == status
                assert stranger.requests == 1
        assert mesh.token_server.request_count == 1
        assert mesh.broker.statistics().connections_total == 0


async def test_the_stranger_is_seen_when_somebody_goes_there() -> None:
    """The count of these tests counts: where the user names the other host, it is gone to."""
    with pytest.raises(AssertionError, match="somebody went"):
        async with redirecting(tls=False) as stranger:
            stranger.status, stranger.location = 307, "https://localhost:{other}/"
            key = load("standalone", url=stranger.origin("ws") + "/protocols/amqp10ws")
            with pytest.raises(TimeoutError):
                await eventmesh.connect(key, token="t0k3n", open_timeout=0.1, redirect_hosts=("localhost",))


async def test_amqp_redirects_are_for_the_user_to_follow() -> None:
    """A broker that sends us elsewhere by AMQP gets its say in the error, and no connection is made there."""
    seen: list[str] = []

    async def nobody(peer: Peer) -> None:
        seen.append("somebody came")

    async with serving(nobody) as other, running() as mesh:
        info = {"hostname": "localhost", "network-host": "127.0.0.1", "port": other.port, "address": "x"}
        condition = amqp.ErrorCondition("amqp:link:redirect", "over there", info)
        async with (
            TokenServer() as tokens,
            Broker(authorize=tokens.authorize, authorize_link=lambda request: condition) as broker,
        ):
            key = load(
                "standalone",
                url=broker.url + "protocols/amqp10ws",
                token_url=tokens.url,
                client_id=tokens.client_id,
                client_secret=tokens.client_secret,
            )
            async with eventmesh.connect(key) as connection:
                with pytest.raises(amqp.AMQPError, match="over there"):
                    await connection.receiver(QUEUE)
        assert mesh.token_server.request_count == other.connections == 0
    assert not seen


# --- few token requests -------------------------------------------------------------------------------


async def test_many_connections_make_few_token_requests() -> None:
    """200 at a time, again and again while tokens expire: one request for each token that did, and one more."""
    lifetime, duration = 1.0, 2.2
    async with running(lifetime=lifetime, max_connections=1000) as mesh:
        key = eventmesh.ServiceKey.load(mesh.service_key())
        async with eventmesh.connect(key) as first:

            async def one() -> None:
                async with eventmesh.connect(key, token=first.tokens) as connection:
                    assert connection.health().ok

            started, opened = time.monotonic(), 1
            while (elapsed := time.monotonic() - started) < duration or opened < 401:
                async with asyncio.TaskGroup() as group:
                    for _ in range(100):
                        group.create_task(one())
                opened += 100
            elapsed = time.monotonic() - started
        # A token is replaced after 75 % of its life at the earliest, which is more often than it expires.
        assert mesh.token_server.request_count <= elapsed / (0.75 * lifetime) + 1
        assert mesh.token_server.token_count >= 2
        assert mesh.broker.statistics().connections_total == opened >= 201


async def test_an_outage_of_five_lifetimes_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects meanwhile is told at once, the server is asked a handful of times, and then all is well again."""
    lifetime = 0.2
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", lifetime / 10)  # as far below the life as for one of ten seconds
    async with running() as mesh:
        server = mesh.token_server
        content = {"access_token": server.make_token(), "token_type": "bearer", "expires_in": lifetime}
        working = TokenAnswer(200, json.dumps(content).encode())
        server.answer = working
        async with eventmesh.connect(mesh.service_key()) as first:
            tokens = first.tokens
            await until(lambda: server.request_count >= 3)  # it renews itself
            server.answer = TokenAnswer.SERVER_ERROR
            started, before = time.monotonic(), server.request_count
            refusals = successes = 0
            while time.monotonic() - started < 5 * lifetime:
                found = await asyncio.gather(*(_connect(mesh, token=tokens) for _ in range(20)), return_exceptions=True)
                for one in found:
                    if isinstance(one, eventmesh.EventMeshConnection):
                        successes += 1
                        await one.close()
                    else:
                        assert isinstance(one, amqp.TokenError), one
                        refusals += 1
                await asyncio.sleep(0.005)
            asked = server.request_count - before
            # 1, 2, 4, ... times a tenth of a life, at worst half of each and never less than one: 7 fit into 5 lives.
            assert asked <= 8
            assert successes > 0, "the old token was good for a while"
            assert refusals > 100
            assert first.health().ok, "who is connected stays so"
            server.answer = working
            await until(lambda: server.request_count > before + asked)
            async with eventmesh.connect(mesh.service_key(), token=tokens) as again:
                assert again.health().ok
        assert server.request_count - before - asked <= 3


async def _connect(mesh: EventMesh, **options: Any) -> eventmesh.EventMeshConnection:
    return await eventmesh.connect(mesh.service_key(), **options)


@pytest.mark.parametrize("behaviour", UAABehaviour)
@pytest.mark.parametrize("body", [True, False], ids=["body-taken", "basic-alone"])
async def test_awkward_secrets_find_their_way(behaviour: UAABehaviour, body: bool, quick: None) -> None:
    """At most three requests bring the first connection, and one the next token."""
    client = "sb-ünï!b1|x +%41$=/&:"[:-1]
    for secret in ("!|$=+/%: x", "a%41b", "100%", "%zz +", "sécret-ключ-🔑", "+", ' "', "a:b:c", "&x=y;#", "'\\"):
        async with (
            TokenServer(clients={client: secret}, behaviour=behaviour, body=body) as server,
            Broker(authorize=server.authorize) as broker,
        ):
            key = load(
                "standalone",
                url=broker.url + "protocols/amqp10ws",
                token_url=server.url,
                client_id=client,
                client_secret=secret,
            )
            async with eventmesh.connect(json.dumps(key)) as connection:
                assert 1 <= server.request_count <= (1 if body else 3)
                first = server.request_count
                await connection.tokens.token(refresh=True)
                assert server.request_count == first + 1
                assert connection.health().ok


async def test_a_revoked_token_costs_one_more_request(quick: None) -> None:
    """A 401 at the upgrade forces a new token and one more attempt; a second one is final, and so is a 403."""
    async with connected() as (mesh, first):
        assert mesh.token_server.request_count == 1
        mesh.token_server.revoke_all()
        async with eventmesh.connect(mesh.service_key(), token=first.tokens) as second:
            assert second.health().ok
        assert mesh.token_server.request_count == 2
        expired = mesh.token_server.make_token(lifetime=-1)
        content = {"access_token": expired, "token_type": "bearer", "expires_in": 3600}
        mesh.token_server.answer = TokenAnswer(200, json.dumps(content).encode())
        with pytest.raises(amqp.HandshakeError, match="401"):
            await eventmesh.connect(mesh.service_key())
        assert mesh.token_server.request_count == 4


async def test_revoked_tokens_are_no_storm() -> None:
    """100 connections with a token that is no longer good make one request together, at the ordinary pace."""
    async with connected(max_connections=1000) as (mesh, first):
        mesh.token_server.revoke_all()
        found = await asyncio.gather(*(_connect(mesh, token=first.tokens) for _ in range(100)))
        assert mesh.token_server.request_count == 2
        await asyncio.gather(*(one.close() for one in found))


# --- the rules of Event Mesh ------------------------------------------------------------------------------


async def test_the_fourth_receiver() -> None:
    """Three of them work, the fourth is refused here; so it is when all are asked for at once, or one is cancelled."""
    async with connected() as (mesh, connection):
        found = await asyncio.gather(*(connection.receiver(QUEUE) for _ in range(6)), return_exceptions=True)
        receivers = [one for one in found if isinstance(one, amqp.Receiver)]
        assert len(receivers) == 3
        for one in found:
            assert isinstance(one, (amqp.Receiver, amqp.LocalProtocolError)), one
        async with connection.sender(TOPIC) as sender:  # senders have a count of their own
            for number in range(3):
                await sender.send(amqp.Message(b"%d" % number))
        for one in receivers:
            await one.close()
        async with connection.receiver(QUEUE), connection.receiver(QUEUE), connection.receiver(QUEUE):
            with pytest.raises(amqp.LocalProtocolError, match="3 receivers"):
                await connection.receiver(QUEUE)
        assert connection.health().ok
        assert depth(mesh) == 3


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("orders", ValueError, "queue:.*topic:"),
        ("${namespace}/orders", ValueError, "queue:.*topic:"),
        ("Queue:${namespace}/orders", ValueError, "queue:"),
        ("queue:///orders", ValueError, r"address|queue"),
        ("queue:${namespace}/a b", ValueError, r"\w"),
        ("queue:${namespace}/", ValueError, r"\w"),
        ("queue:${Namespace}/orders", ValueError, "Namespace"),
        ("queue:${namespace}/ünicode", ValueError, r"\w"),
        ("queue:" + "q" * 2000, ValueError, r"\w"),
        ("queue:other/shop/1/orders", amqp.AttachError, "not-allowed"),
        ("queue:${namespace}/nobody", amqp.AttachError, "not-found"),
    ],
)
async def test_addresses_that_cannot_be_received_from(address: str, error: type[Exception], text: str) -> None:
    """What breaks a rule is a ValueError of the call; what the service refuses has the service's reason."""
    async with connected() as (mesh, connection):
        with pytest.raises(error, match=text):
            await connection.receiver(address)
        async with connection.receiver(QUEUE):
            pass
        assert set(mesh.queues) == {f"{NAMESPACE}/orders"}


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("topic:other/shop/1/order", "not-allowed"),
        ("queue:other/shop/1/orders", "not-allowed"),
        ("queue:${namespace}/nobody", "not-found"),
    ],
)
async def test_addresses_that_cannot_be_sent_to(address: str, text: str) -> None:
    """The message is rejected with the reason, and the other addresses on the same link do not notice."""
    async with connected() as (mesh, connection):
        async with connection.sender(address) as wrong, connection.sender(TOPIC) as right:
            found = await asyncio.gather(
                *(sender.send(amqp.Message(b"x")) for _ in range(20) for sender in (wrong, right)),
                return_exceptions=True,
            )
            refused = [one for one in found if isinstance(one, amqp.MessageRejected)]
            assert len(refused) == 20 == found.count(amqp.Accepted())
            assert all(text in str(one) for one in refused)
        assert depth(mesh) == 20


@pytest.mark.parametrize("qos", [0, 1])
async def test_one_mebibyte(qos: Any) -> None:
    """To the byte, encoded, address included, both ways; one byte more does not travel and harms nobody."""
    async with connected() as (mesh, connection):
        async with connection.sender(QUEUE, qos=qos) as sender, connection.receiver(QUEUE) as receiver:
            address = QUEUE.replace("${namespace}", NAMESPACE)
            size = MIB - (len(amqp.Message(bytes(2**17), to=address).encode()) - 2**17)
            for body in (bytes(size + 1), bytes(2 * MIB), bytes(size)):
                message = amqp.Message(body)
                if len(body) == size:
                    assert await sender.send(message) == (amqp.Accepted() if qos else None)
                else:
                    with pytest.raises(amqp.MessageTooLarge) as caught:
                        await sender.send(message)
                    assert caught.value.limit == MIB
                assert message.to is None, "the message is the caller's"
            async with asyncio.timeout(PATIENCE):
                delivery = await receiver.receive()
            assert delivery.raw is not None
            assert len(delivery.raw) == MIB
            await delivery.accept()
        await until(lambda: depth(mesh) == 0)


@pytest.mark.parametrize("idle_timeout", [299.9, 1.0, 60])
async def test_idle_timeouts_below_five_minutes(idle_timeout: float) -> None:
    """They work; five minutes and more, and none at all, are refused by the call with the reason."""
    async with running() as mesh:
        async with eventmesh.connect(mesh.service_key(), idle_timeout=idle_timeout) as connection:
            assert connection.health().ok
        for refused in (300, 301.0, 1e9, 0, None, float("inf")):
            with pytest.raises(ValueError, match="five minutes"):
                eventmesh.connect(mesh.service_key(), idle_timeout=refused)
        for nonsense in (-1, float("nan"), "60"):
            with pytest.raises((ValueError, TypeError)):
                await eventmesh.connect(mesh.service_key(), idle_timeout=nonsense)  # type: ignore[arg-type]


@pytest.mark.parametrize("receives", [0, 1])
@pytest.mark.parametrize("sends", [0, 1])
async def test_qualities_of_service(sends: Any, receives: Any) -> None:
    """0 is done as it is written and taken as it comes; 1 is settled at both ends; they go together in any way."""
    async with connected() as (mesh, connection):
        async with (
            connection.sender(TOPIC, qos=sends) as sender,
            connection.receiver(QUEUE, qos=receives) as receiver,
        ):
            for number in range(5):
                outcome = await sender.send(amqp.Message(b"%d" % number))
                assert outcome == (amqp.Accepted() if sends else None)
            async with asyncio.timeout(PATIENCE):
                for number in range(5):
                    delivery = await receiver.receive()
                    assert delivery.body == b"%d" % number
                    assert delivery.settled == (receives == 0)
                    if receives:
                        await delivery.accept()
        await until(lambda: depth(mesh) == 0)


async def test_what_is_not_settled_comes_again() -> None:
    """With qos 1 nothing is lost by a consumer that is gone; with qos 0 it is."""
    async with running() as mesh:
        for qos, left in ((1, 3), (0, 0)):
            async with eventmesh.connect(mesh.service_key()) as connection:
                async with connection.sender(QUEUE) as sender:
                    while depth(mesh) < 3:
                        await sender.send(amqp.Message(b"x"))
                receiver = await connection.receiver(QUEUE, qos=qos)  # type: ignore[arg-type]
                async with asyncio.timeout(PATIENCE):
                    for _ in range(3):
                        await receiver.receive()
            assert depth(mesh) == left


async def test_subscriptions_with_wildcards() -> None:
    """+ is one segment, * at the end all that follow, and a message comes once however many cover it."""
    patterns = {
        "one": ["${namespace}/+/created"],
        "rest": ["${namespace}/order/*"],
        "both": ["${namespace}/order/*", "${namespace}/+/created", "${namespace}/order/created"],
        "exact": ["${namespace}/order/created"],
        "none": [],
    }
    topics = ["order/created", "order/created/eu", "invoice/created", "order/deleted", "invoice/deleted"]
    expected = {
        "one": ["order/created", "invoice/created"],
        "rest": ["order/created", "order/created/eu", "order/deleted"],
        "both": ["order/created", "order/created/eu", "invoice/created", "order/deleted"],
        "exact": ["order/created"],
        "none": [],
    }
    async with running() as mesh, ManagementClient(mesh.service_key()) as management:
        for queue, subscriptions in patterns.items():
            await management.create_queue("${namespace}/" + queue)
            for pattern in subscriptions:
                assert await management.subscribe("${namespace}/" + queue, pattern)
        async with eventmesh.connect(mesh.service_key()) as connection:
            for topic in topics:
                async with connection.sender("topic:${namespace}/" + topic) as sender:
                    await sender.send(amqp.Message(topic.encode()))
            for queue, bodies in expected.items():
                assert depth(mesh, queue) == len(bodies), queue
                async with connection.receiver("queue:${namespace}/" + queue) as receiver:
                    for body in bodies:
                        delivery = await receiver.receive()
                        assert (delivery.body, delivery.message.to) == (
                            body.encode(),
                            f"topic:{NAMESPACE}/{body}",
                        )
                        await delivery.accept()


# --- from the environment ------------------------------------------------------------------------------------


def _vcap(mesh: EventMesh, folder: Path) -> dict[str, str]:
    binding = {"name": "mesh", "label": "enterprise-messaging", "credentials": mesh.service_key()}
    other = {"name": "db", "label": "postgresql", "credentials": {"uri": "postgres://x"}}
    return {"VCAP_SERVICES": json.dumps({"postgresql": [other], "enterprise-messaging": [binding]})}


def _vcap_file(mesh: EventMesh, folder: Path) -> dict[str, str]:
    file = folder / "vcap.json"
    file.write_text(_vcap(mesh, folder)["VCAP_SERVICES"])
    return {"VCAP_SERVICES_FILE_PATH": str(file), "VCAP_SERVICES": "{}"}


def _user_provided(mesh: EventMesh, folder: Path) -> dict[str, str]:
    binding = {"name": "mesh", "label": "user-provided", "credentials": mesh.service_key()}
    return {"VCAP_SERVICES": json.dumps({"user-provided": [binding]})}


def _mounted(mesh: EventMesh, folder: Path) -> dict[str, str]:
    key = mesh.service_key()
    place = folder / "bindings" / "mesh"
    place.mkdir(parents=True)
    credentials = []
    for name, value in key.items():
        is_text = isinstance(value, str)
        (place / name).write_text(value if is_text else json.dumps(value))
        credentials.append({"name": name, "format": "text" if is_text else "json"})
    (place / "type").write_text("enterprise-messaging")
    (place / "tags").write_text('["mesh"]')
    described = [{"name": "type", "format": "text"}, {"name": "tags", "format": "json"}]
    (place / ".metadata").write_text(json.dumps({"metaDataProperties": described, "credentialProperties": credentials}))
    return {"SERVICE_BINDING_ROOT": str(folder / "bindings")}


@pytest.mark.parametrize("place", [_vcap, _vcap_file, _user_provided, _mounted])
@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_from_the_environment_to_a_received_message(
    place: Callable[[EventMesh, Path], dict[str, str]], x509: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument but the private CA; a user-provided service by its name."""
    async with running(tls=True, x509=x509) as mesh:
        for name, value in place(mesh, tmp_path).items():
            monkeypatch.setenv(name, value)
        ca = tmp_path / "ca.pem"
        ca.write_text(mesh.ca_pem)
        binding = "mesh" if place is _user_provided else None
        async with eventmesh.connect(binding=binding, ssl=ca) as connection:
            async with connection.sender(TOPIC) as sender, connection.receiver(QUEUE) as receiver:
                await sender.send(amqp.Message(b"one"))
                delivery = await receiver.receive()
                await delivery.accept()
            assert delivery.body == b"one"
        async with ManagementClient(binding=binding, ssl=ca) as management:
            assert [queue.name for queue in await management.queues()] == [f"{NAMESPACE}/orders"]
        with pytest.raises(eventmesh.ServiceKeyError, match="other"):
            await eventmesh.connect(binding="other", ssl=ca)


# --- cancelled at every await ----------------------------------------------------------------------------------


Way = Literal["once", "again", "late"]
"""How to cancel: at one await; at that and all that follow, so that cleaning up is cancelled too; or just when what was
awaited is there, and would be lost with the one who waited for it."""

WAYS: tuple[Way, ...] = ("once", "again", "late")


class Step:
    """Awaits a coroutine and cancels the task at its await of that number.

    Attributes:
        reached: How many awaits there were.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, way: Way) -> None:
        self._coroutine = coroutine
        self._number = number
        self._way = way
        self.reached = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        move: Callable[[Any], Any] = inner.send
        value: Any = None
        while True:
            try:
                future = move(value)
            except StopIteration as end:
                return end.value
            self.reached += 1
            task = asyncio.current_task()
            assert task is not None
            if self._way == "late" and self.reached == self._number:
                if future is None:
                    asyncio.get_running_loop().call_soon(task.cancel)
                else:  # before the task's own callback, which would let it go on
                    future.add_done_callback(lambda _, task=task: task.cancel())
            elif self.reached == self._number or (self._way == "again" and self.reached > self._number):
                task.cancel()
            try:
                move, value = inner.send, (yield future)
            except BaseException as error:  # to where it was awaited
                move, value = inner.throw, error


async def steps(make: Callable[[], Coroutine[Any, Any, Any]], way: Way) -> AsyncIterator[int]:
    """Runs what `make` makes, each time cancelled one await later, until it gets through.

    Yields:
        The number of the await.
    """
    for number in itertools.count(1):
        step = Step(make(), number, way)

        async def run(step: Step = step) -> Any:
            return await step

        task = asyncio.ensure_future(run())
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        assert task.cancelled() == (step.reached >= number), "it went on as if nothing had happened"
        yield number
        if step.reached < number:
            return


def sockets() -> set[str]:
    """The descriptors of this process that are sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(name)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_connecting_cancelled_anywhere(x509: bool, way: Way, tmp_path: Path) -> None:
    """From the key's file over token and TLS to the Open: no task, no socket, no connection at the broker."""
    async with running(tls=True, x509=x509) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)

        async def connect() -> None:
            await (await eventmesh.connect(key, ssl=ca)).close()

        await connect()
        await until(lambda: mesh.broker.statistics().connections == 0)
        tasks = asyncio.all_tasks()
        await until(lambda: len(asyncio.all_tasks()) <= len(tasks))
        before, reached = sockets(), 0
        async for number in steps(connect, way):
            reached = number
            await until(lambda: mesh.broker.statistics().connections == 0)
            await until(lambda: not (asyncio.all_tasks() - tasks))
            await until(lambda: len(sockets()) <= len(before))
        assert reached > 5
        await connect()


@pytest.mark.parametrize("way", WAYS)
async def test_closing_cancelled_anywhere(way: Way) -> None:
    """With a sender, a receiver and a message on the way; by `close` and by leaving `async with`."""
    async with running() as mesh:

        async def use() -> None:
            async with eventmesh.connect(mesh.service_key()) as connection:
                async with connection.sender(QUEUE) as sender, connection.receiver(QUEUE) as receiver:
                    await sender.transfer(amqp.Message(b"x"))
                    await (await receiver.receive()).accept()
                await connection.close()

        await use()
        tasks = asyncio.all_tasks()
        reached = 0
        async for number in steps(use, way):
            reached = number
            await until(lambda: mesh.broker.statistics().connections == 0)
            await until(lambda: not (asyncio.all_tasks() - tasks))
        assert reached > 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["sender", "receiver", "send", "receive"])
async def test_using_cancelled_anywhere(what: str, way: Way) -> None:
    """The connection stays as it was: no half-open link counts, no message is lost, and it works at once again."""
    async with connected() as (mesh, connection):
        sender = await connection.sender(TOPIC, qos=0) if what != "sender" else None
        received: list[Any] = []

        async def attach_sender() -> None:
            async with connection.sender(QUEUE, qos=1):
                pass
            await connection._relays.pop(1).close()  # so that the next attaches anew

        async def attach_receiver() -> None:
            await (await connection.receiver(QUEUE)).close()

        async def send() -> None:
            assert sender is not None
            await sender.send(amqp.Message(b"x"))

        async def receive() -> None:
            async with connection.receiver(QUEUE, credit=1) as receiver:
                delivery = await receiver.receive()
                received.append(delivery.body)
                await delivery.accept()

        if what == "receive":
            assert sender is not None
            for _ in range(40):
                await sender.send(amqp.Message(b"x"))
        works = {"sender": attach_sender, "receiver": attach_receiver, "send": send, "receive": receive}
        reached = 0
        async for number in steps(works[what], way):
            reached = number
            assert connection.health().ok
            await until(lambda: _receivers(connection) == 0)
        assert reached > (1 if what == "send" else 2)
        async with connection.sender(QUEUE) as again, connection.receiver(QUEUE) as receiver:
            await again.send(amqp.Message(b"last"))
            async with asyncio.timeout(PATIENCE):
                while (delivery := await receiver.receive()).body != b"last":
                    await delivery.accept()
                await delivery.accept()
        await until(lambda: depth(mesh) == 0)


def _receivers(connection: eventmesh.EventMeshConnection) -> int:
    return sum(link.role == "receiver" for link in connection.health().links)


# --- at once, and after a loss -------------------------------------------------------------------------------------


async def test_everything_at_once() -> None:
    """A hundred tasks open senders of both qualities, send and close them, while three receive; nothing is lost."""
    async with connected() as (_, connection):
        received: set[bytes] = set()

        async def publish(number: int) -> None:
            async with connection.sender(f"topic:${{namespace}}/order/{number}", qos=number % 2) as sender:  # type: ignore[arg-type]
                for part in range(5):
                    await sender.send(amqp.Message(b"%d.%d" % (number, part)))

        async def consume() -> None:
            async with connection.receiver(QUEUE, credit=10) as receiver:
                async for delivery in receiver:
                    assert isinstance(delivery.body, bytes)
                    received.add(delivery.body)
                    await delivery.accept()
                    if len(received) == 500:
                        raise EOFError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(consume())
                for number in range(100):
                    group.create_task(publish(number))
        assert caught.group_contains(EOFError)
        assert len(caught.value.exceptions) == 1
        assert connection.health().ok
        assert _receivers(connection) == 0
        assert len(received) == 500


@pytest.mark.parametrize("event", ["begin", "attach"])
async def test_a_service_that_does_not_answer_keeps_nobody_longer_than_its_timeout(event: str) -> None:
    """All who want a link at once share one session and one anonymous link, and not the sum of their patience."""
    async with SilentPeer() as peer:
        peer.on[event] = ignore
        key = load("standalone", url=f"{peer.url.rstrip('/')}/protocols/amqp10ws")
        connection = await eventmesh.connect(key, token="t0k3n", open_timeout=0.2, close_timeout=0.1)
        openings: list[Any] = [connection.sender(f"topic:a/{number}", qos=number % 2) for number in range(20)]  # type: ignore[arg-type]
        openings += [connection.receiver(QUEUE)]
        async with asyncio.timeout(2.0):
            found = await asyncio.gather(*map(_awaited, openings), return_exceptions=True)
        assert {type(one) for one in found} == {TimeoutError}
        with contextlib.suppress(TimeoutError):
            await connection.close()


async def _awaited(opening: Awaitable[Any]) -> Any:
    return await opening


async def test_many_connections_of_one_key_at_once() -> None:
    """Each by its own call, each with its own token; one more than the service allows is refused with its words."""
    async with running(max_connections=10) as mesh:
        key = mesh.service_key()
        found = await asyncio.gather(*(_connect(mesh) for _ in range(10)))
        assert len({id(one.connection) for one in found}) == 10
        with pytest.raises(amqp.AMQPError, match="too much connections"):
            async with eventmesh.connect(key) as eleventh:
                await eleventh.receiver(QUEUE)
        await asyncio.gather(*(one.close() for one in found))
        async with eventmesh.connect(key) as again:
            assert again.health().ok


async def test_a_lost_connection_is_seen_by_all_and_another_takes_over() -> None:
    """Whoever waits is told, nobody hangs, closing is quiet, and what was not settled comes on the next connection."""
    async with running() as mesh:
        key = eventmesh.ServiceKey.load(mesh.service_key())
        delivered = 0
        async with eventmesh.connect(key) as first:
            for _ in range(3):
                async with eventmesh.connect(key, token=first.tokens) as connection:
                    sender, receiver = await connection.sender(QUEUE), await connection.receiver(QUEUE)
                    await sender.send(amqp.Message(b"x"))
                    delivery = await receiver.receive()
                    waiting = [
                        asyncio.ensure_future(receiver.receive()),
                        asyncio.ensure_future(_all(sender.send_many(amqp.Message(b"y") for _ in itertools.count()))),
                    ]
                    await until(lambda: depth(mesh) > 5)
                    await mesh.disconnect()
                    async with asyncio.timeout(PATIENCE):
                        found = await asyncio.gather(*waiting, return_exceptions=True)
                        for one in found[1:]:
                            assert isinstance(one, (amqp.ConnectionClosed, amqp.DeliveryUnknown)), one
                        with pytest.raises(amqp.SettlementLost):
                            await delivery.accept()
                        with pytest.raises(amqp.ConnectionClosed):
                            while True:
                                await receiver.receive()
                        for opening in (connection.sender(TOPIC), connection.receiver(QUEUE)):
                            with pytest.raises(amqp.ConnectionClosed):
                                await opening
                    assert not connection.health().ok
                    delivered += 1
            assert delivered == 3
            with pytest.raises(amqp.ConnectionClosed):
                await first.receiver(QUEUE)
            waited = time.monotonic()
        assert time.monotonic() - waited < 1.0
        left = depth(mesh)
        async with eventmesh.connect(key) as last, last.receiver(QUEUE) as receiver:
            async with asyncio.timeout(PATIENCE):
                for _ in range(left):
                    await (await receiver.receive()).accept()
        assert depth(mesh) == 0


async def _all(sending: Any) -> None:
    async for _ in sending:
        pass


async def test_a_service_that_was_restarted() -> None:
    """The same key, the same token, the same queues: only the connection is another."""
    async with running() as mesh:
        async with eventmesh.connect(mesh.service_key()) as first:
            async with first.sender(QUEUE) as sender:
                await sender.send(amqp.Message(b"kept"))
            key = mesh.service_key()
            await mesh.close()
            with pytest.raises(amqp.OpenError):
                await eventmesh.connect(key, token=first.tokens)
            await mesh.start()
            opening = eventmesh.connect(mesh.service_key(), token=first.tokens)
            async with opening as second, second.receiver(QUEUE) as receiver:
                assert (await receiver.receive()).body == b"kept"
        assert mesh.token_server.request_count == 1
