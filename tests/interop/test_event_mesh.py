"""From a service key to messages and back, all parts real: oidc-provider, nginx with TLS and a token check, Artemis.

Artemis takes the prefixes `queue:` and `topic:`, and its diverts stand for Event Mesh's subscriptions. What it cannot
stand for, such as the rules of a message client, is tested with the embedded Event Mesh.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from cloudevents.core.v1.event import CloudEvent

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.auth.oauth2 import ClientCertificate
from amqpws_async.eventmesh import EventMeshConnection, cloudevents
from tests import cli_command, key_files
from tests.interop.brokers import NAMESPACE, SUBSCRIPTIONS
from tests.interop.gateways import CheckedGateway
from tests.interop.oidc import CERTIFIED, CLIENT, Issuer

PROMPTLY = 10.0  # seconds within which servers on the same machine answer, however busy the machine is
SECRET, X509 = "standalone", "x509-in-uaa"

MakeKey = Callable[..., Path]


@pytest.fixture
def make_key(issuer: Issuer, mesh_gateway: CheckedGateway, tmp_path: Path) -> MakeKey:
    """Writes a service key of a form, for the running servers, to a file."""

    def make(form: str, **values: str) -> Path:
        if form in key_files.CERTIFICATE_KEYS:
            certificate = issuer.certificate
            fitting = {
                "url": mesh_gateway.certificate_url,
                "client_id": CERTIFIED,
                "certificate": str(certificate.certificate),
                "key": str(certificate.key),
            }
        else:
            fitting = {"url": mesh_gateway.url, "client_id": CLIENT, "client_secret": issuer.secret}
        content = key_files.load(form, **{"token_url": issuer.token_url, **fitting, **values})
        file = tmp_path / "key.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(content))
        return file

    return make


def secrets_of(issuer: Issuer) -> tuple[str, ...]:
    """What nobody may see: the secret, and lines from the middle of each private key."""
    return issuer.secret, str(issuer.certificate.key).splitlines()[1], str(issuer.self_signed.key).splitlines()[1]


async def take(receiver: amqp.Receiver) -> amqp.Message:
    """Gives the next message, accepted; it must come promptly."""
    async with asyncio.timeout(PROMPTLY):
        delivery = await receiver.receive()
        await delivery.accept()
        return delivery.message


async def exchange(mesh: EventMeshConnection, address: str, queue: str, *messages: amqp.Message) -> list[amqp.Message]:
    """Sends messages one by one to an address, receives them from a queue, and gives them as they came."""
    received = []
    async with mesh.sender(address) as sender, mesh.receiver(queue) as receiver:
        for message in messages:
            assert await sender.send(message) == amqp.Accepted()
            received.append(await take(receiver))
    return received


# --- from the key to messages ----------------------------------------------------------------


@pytest.mark.parametrize("form", key_files.KEYS)
async def test_every_form_of_key_reaches_the_broker(make_key: MakeKey, issuer: Issuer, queue: str, form: str) -> None:
    """One token request, one upgrade that the gateway lets through, and a message there and back."""
    address = f"queue:${{namespace}}/{queue}"
    async with eventmesh.connect(make_key(form), ssl=issuer.authority_file) as mesh:
        [received] = await exchange(mesh, address, address, amqp.Message(b"order"))
    assert (received.body, received.to) == (b"order", f"queue:{NAMESPACE}/{queue}")
    way = "certificate" if form in key_files.CERTIFICATE_KEYS else "body"
    assert (issuer.asked, issuer.checked) == ([f"{way} 200"], [204])


@pytest.mark.parametrize(("form", "name"), [(SECRET, "secret"), (X509, "x509")])
async def test_what_is_published_to_a_topic_arrives_in_the_subscribed_queue(
    make_key: MakeKey, issuer: Issuer, form: str, name: str
) -> None:
    """With a secret and with a certificate, from one byte to a message of exactly 1 MiB."""
    queue = f"{NAMESPACE}/{name}"
    source, target = f"queue:{queue}", f"topic:{SUBSCRIPTIONS[queue]}"
    room = 2**20 - len(amqp.Message(bytes(1000), to=target).encode()) + 1000
    sizes = [1, 255, 65_535, 65_536, 262_144, room]
    bodies = [random.Random(size).randbytes(size) for size in sizes]
    async with eventmesh.connect(make_key(form), ssl=issuer.authority_file) as mesh:
        received = await exchange(mesh, target, source, *map(amqp.Message, bodies))
        assert [message.body == body for message, body in zip(received, bodies, strict=True)] == [True] * len(sizes)
        async with mesh.sender(target) as sender, mesh.receiver(source) as receiver:
            with pytest.raises(amqp.MessageTooLarge):
                await sender.send(amqp.Message(bytes(room + 1)))
            assert await sender.send(amqp.Message(b"still open")) == amqp.Accepted()
            assert (await take(receiver)).body == b"still open"


@pytest.mark.parametrize("qos", [0, 1])
async def test_both_qualities_of_service(make_key: MakeKey, issuer: Issuer, queue: str, qos: Literal[0, 1]) -> None:
    """QoS 0 has no outcome and deliveries come settled; QoS 1 has both; either way every message is there, in order."""
    address = f"queue:{NAMESPACE}/{queue}"
    outcome = amqp.Accepted() if qos else None
    async with eventmesh.connect(make_key(SECRET), ssl=issuer.authority_file) as mesh:
        async with mesh.sender(address, qos=qos) as sender:
            for number in range(50):
                assert await sender.send(amqp.Message(b"%d" % number)) == outcome
        async with mesh.receiver(address, qos=qos) as receiver, asyncio.timeout(PROMPTLY):
            for number in range(50):
                delivery = await receiver.receive()
                assert (delivery.body, delivery.settled) == (b"%d" % number, qos == 0)
                if not delivery.settled:
                    await delivery.accept()
        async with mesh.connection.receiver(address, credit=0) as rest, asyncio.timeout(PROMPTLY):
            await rest.add_credit(1)
            await rest.drain()
            assert rest.queued == 0


async def test_one_link_serves_every_address_and_three_receivers_are_all(
    make_key: MakeKey, issuer: Issuer, queue: str
) -> None:
    """Thirty senders need one link; a fourth receiver is refused here, until another one is closed."""
    addresses = [f"queue:{NAMESPACE}/{queue}-{number}" for number in range(30)]
    async with eventmesh.connect(make_key(SECRET), ssl=issuer.authority_file) as mesh:
        for address in addresses:
            async with mesh.sender(address) as sender:
                await sender.send(amqp.Message(address.encode()))
        assert [link.role for link in mesh.health().links] == ["sender"]
        first, second, third = [await mesh.receiver(address) for address in addresses[:3]]
        with pytest.raises(amqp.LocalProtocolError, match="3 receivers"):
            await mesh.receiver(addresses[3])
        for receiver, address in zip((first, second, third), addresses, strict=False):
            assert (await take(receiver)).body == address.encode()
        await second.close()
        fourth = await mesh.receiver(addresses[3])
        assert (await take(fourth)).body == addresses[3].encode()


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_a_cloud_event_comes_back_as_it_was(
    make_key: MakeKey, issuer: Issuer, mode: Literal["structured", "binary"]
) -> None:
    """Published to a topic in either mode, with attributes of its own, and read from the subscribed queue."""
    queue = f"{NAMESPACE}/events"
    attributes = {
        "id": "4711-grüße",
        "source": "/example/shop",
        "type": "example.order.created.v1",
        "specversion": "1.0",
        "subject": "4711",
        "datacontenttype": "application/json",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    event = CloudEvent(attributes, {"order": 4711, "text": "grüße \N{SNOWMAN}"})
    async with eventmesh.connect(make_key(SECRET), ssl=issuer.authority_file) as mesh:
        message = cloudevents.to_message(event, mode=mode)
        [received] = await exchange(mesh, f"topic:{SUBSCRIPTIONS[queue]}", f"queue:{queue}", message)
    arrived = cloudevents.from_message(received)
    expected = {name: value for name, value in event.get_attributes().items() if name in attributes}
    assert {name: value for name, value in arrived.get_attributes().items() if name in attributes} == expected
    assert arrived.get_data() == event.get_data()


async def test_connections_share_a_token(make_key: MakeKey, issuer: Issuer, queue: str) -> None:
    """What one connection has got serves the next ones; the token endpoint is asked once."""
    address = f"queue:{NAMESPACE}/{queue}"
    key = make_key(SECRET)
    async with (
        eventmesh.connect(key, ssl=issuer.authority_file) as first,
        eventmesh.connect(key, ssl=issuer.authority_file, token=first.tokens) as second,
        eventmesh.connect(key, ssl=issuer.authority_file, token=first.tokens) as third,
    ):
        async with second.sender(address) as sender:
            await sender.send(amqp.Message(b"shared"))
        async with third.receiver(address) as receiver:
            assert (await take(receiver)).body == b"shared"
    assert (issuer.asked, issuer.checked) == (["body 200"], [204] * 3)


# --- refusals ----------------------------------------------------------------------------------


async def test_a_wrong_secret_in_the_key(make_key: MakeKey, issuer: Issuer) -> None:
    """The token endpoint's reason, and no upgrade."""
    secret = "guessed-$+wrong"
    with pytest.raises(amqp.TokenError) as caught:
        await eventmesh.connect(make_key(SECRET, client_secret=secret), ssl=issuer.authority_file)
    assert caught.value.code == "invalid_client"
    assert "guessed" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert issuer.checked == []


async def test_a_gateway_that_wants_the_certificate_too(
    make_key: MakeKey, issuer: Issuer, mesh_gateway: CheckedGateway
) -> None:
    """A good token alone gets a 400 there, which names what is missing; the key's certificate opens the way."""
    without = make_key(SECRET, url=mesh_gateway.certificate_url)
    with pytest.raises(amqp.HandshakeError, match="it wants a client certificate") as caught:
        await eventmesh.connect(without, ssl=issuer.authority_file)
    assert caught.value.status == 400
    assert b"No required SSL certificate was sent" in caught.value.body
    alone = issuer.self_signed
    wrong = make_key(X509, certificate=str(alone.certificate), key=str(alone.key))
    with pytest.raises(amqp.TokenError) as refused:
        await eventmesh.connect(wrong, ssl=issuer.authority_file)
    assert refused.value.code == "invalid_client"
    assert issuer.checked == []


async def test_a_certificate_that_the_key_does_not_hold(
    make_key: MakeKey, issuer: Issuer, mesh_gateway: CheckedGateway, tmp_path: Path
) -> None:
    """One that is managed elsewhere, in files, takes the place of the key's at both servers."""
    certificate, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_text(str(issuer.certificate.certificate))
    private.write_text(str(issuer.certificate.key))
    key = make_key(X509, certificate=str(issuer.self_signed.certificate), key=str(issuer.self_signed.key))
    elsewhere = ClientCertificate(certificate, private)
    async with eventmesh.connect(key, certificate=elsewhere, ssl=issuer.authority_file) as mesh:
        assert mesh.health().state is amqp.EndpointState.OPEN
    assert (issuer.asked, issuer.checked) == (["certificate 200"], [204])


async def test_an_authority_that_is_not_trusted(make_key: MakeKey, issuer: Issuer) -> None:
    """With the system's authorities nothing is asked, whether by default or in a context."""
    key = make_key(SECRET)
    untrusting: list[dict[str, Any]] = [{}, {"ssl": ssl.create_default_context()}]
    for options in untrusting:
        with pytest.raises(amqp.TokenError, match="not trusted"):
            await eventmesh.connect(key, **options)
    assert (issuer.asked, issuer.checked) == ([], [])


@pytest.mark.parametrize("form", [SECRET, X509])
async def test_nothing_secret_is_logged(
    make_key: MakeKey, issuer: Issuer, queue: str, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At level DEBUG and with every frame traced: no secret, key or token, from the key to a message."""
    caplog.set_level(logging.DEBUG)
    traced: list[str] = []
    address = f"queue:{NAMESPACE}/{queue}"
    async with eventmesh.connect(make_key(form), ssl=issuer.authority_file, trace=traced.append) as mesh:
        await exchange(mesh, address, address, amqp.Message(b"order"))
        token = (await mesh.tokens.token()).value
        shown = "\n".join([caplog.text, *traced, repr(mesh), repr(mesh.tokens), repr(mesh.health())])
    assert len(caplog.records) > 5
    assert len(traced) > 10
    assert not [secret for secret in (token, *secrets_of(issuer)) if secret in shown]


# --- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [SECRET, X509])
def test_the_doctor_finds_everything_in_order(make_key: MakeKey, issuer: Issuer, form: str, queue: str) -> None:
    """Every step from the key to an attached link is ok, and no secret is shown."""
    address = f"queue:${{namespace}}/{queue}"
    done = cli_command.run(
        "doctor", "--json", "--service-key", str(make_key(form)), "--ca", str(issuer.authority_file), address
    )
    report = json.loads(done.stdout)
    assert {step["name"]: step["ok"] for step in report["steps"]} == dict.fromkeys(
        "key proxy dns tcp tls token upgrade subprotocol sasl open session attach close".split(), True
    )
    assert (report["ok"], done.returncode) == (True, 0)
    assert not [secret for secret in secrets_of(issuer) if secret in (done.stdout + done.stderr).decode()]
    assert issuer.asked == [f"{'certificate' if form == X509 else 'body'} 200"]


def test_the_doctor_finds_a_wrong_secret(make_key: MakeKey, issuer: Issuer) -> None:
    """Everything up to the token is in order; there it ends, with what to check and without the secret."""
    key = make_key(SECRET, client_secret="guessed-$+wrong")
    done = cli_command.run("doctor", "--json", "--service-key", str(key), "--ca", str(issuer.authority_file))
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert [name for name, step in steps.items() if step["ok"]] == ["key", "proxy", "dns", "tcp", "tls"]
    assert steps["token"]["ok"] is False
    assert "invalid_client" in steps["token"]["text"]
    assert done.returncode != 0
    assert b"guessed" not in done.stdout + done.stderr
    assert issuer.checked == []


def test_the_command_sends_and_receives_by_key(make_key: MakeKey, issuer: Issuer, queue: str) -> None:
    """`amqpws send` and `amqpws receive` need the key, the CA and an address."""
    options = ["--service-key", str(make_key(X509)), "--ca", str(issuer.authority_file)]
    address = f"queue:${{namespace}}/{queue}"
    assert cli_command.run("send", *options, address, "by hand").returncode == 0
    received = cli_command.run("receive", *options, address, "--count", "1")
    assert (received.returncode, received.stdout) == (0, b"by hand\n")
