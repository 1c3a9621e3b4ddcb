"""`eventmesh.connect`: one call from a key to a connection that keeps to Event Mesh's rules."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.auth.oauth2 import ClientCertificate, ClientCredentials, TokenRefresher
from amqpws_async.eventmesh.connection import EventMeshArguments
from amqpws_async.eventmesh.rules import CREDIT, MAX_LINKS, MAX_MESSAGE_SIZE
from amqpws_async.options import ConnectionArguments
from amqpws_async.testing import Broker, LinkRequest
from amqpws_async.testing.token_server import TokenAnswer, TokenServer

NAMESPACE = "example/shop/1"
QUEUE = "queue:${namespace}/orders"
NAME = f"{NAMESPACE}/orders"  # as the broker knows it


class Mesh:
    """A broker and a token server, the key for both, and every link that was asked for."""

    def __init__(self, **options: Any) -> None:
        self.tokens = TokenServer()
        self.links: list[LinkRequest] = []
        self.refused: str | None = None  # an address
        self.broker = Broker(authorize=self.tokens.authorize, authorize_link=self._authorize_link, **options)

    def _authorize_link(self, request: LinkRequest) -> amqp.ErrorCondition | None:
        self.links.append(request)
        refused = self.refused is not None and request.address == self.refused
        return amqp.ErrorCondition("amqp:not-allowed", "against the rules") if refused else None

    @property
    def key(self) -> dict[str, Any]:
        return {
            "namespace": NAMESPACE,
            "serviceinstanceid": "0000",
            "messaging": [
                {
                    "oa2": {
                        "clientid": self.tokens.client_id,
                        "clientsecret": self.tokens.client_secret,
                        "tokenendpoint": self.tokens.url,
                        "granttype": "client_credentials",
                    },
                    "protocol": ["amqp10ws"],
                    "uri": f"{self.broker.url}protocols/amqp10ws",
                }
            ],
        }

    def sent(self) -> int:
        """Messages in the queue."""
        return self.broker.statistics().queues[NAME].depth


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Mesh]:
    mesh = Mesh(**options)
    async with mesh.tokens, mesh.broker:
        yield mesh


# --- the whole way -------------------------------------------------------------------------------------------


async def test_from_a_key_to_a_message_and_back(tmp_path: Path) -> None:
    """The key as a mapping, a text, a file or loaded: the token is fetched, the namespace filled in, `to` set."""
    async with running() as mesh:
        file = tmp_path / "key.json"
        file.write_text(json.dumps(mesh.key))
        keys: list[Any] = [mesh.key, json.dumps(mesh.key), file, eventmesh.ServiceKey.load(mesh.key)]
        for number, key in enumerate(keys):
            async with eventmesh.connect(key) as connected:
                async with connected.sender(QUEUE) as sender:
                    assert await sender.send(amqp.Message(b"one", message_id=number)) == amqp.Accepted()
                async with connected.receiver(QUEUE) as receiver:
                    delivery = await receiver.receive()
                    await delivery.accept()
                assert (delivery.message.message_id, delivery.message.to) == (number, f"queue:{NAME}")
                assert connected.namespace == NAMESPACE
                assert connected.health().ok
            assert connected.health().state is amqp.EndpointState.CLOSED
        assert mesh.tokens.request_count == 4


async def test_a_bound_service_needs_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Cloud Foundry the key is in the environment; another namespace may be given."""
    async with running() as mesh:
        services = {"enterprise-messaging": [{"name": "mesh", "credentials": mesh.key}]}
        monkeypatch.setenv("VCAP_SERVICES", json.dumps(services))
        async with eventmesh.connect(namespace="other/app/2") as connected:
            async with connected.sender("queue:${namespace}/orders") as sender:
                await sender.send(amqp.Message(b"one"))
            assert sender.address == "queue:other/app/2/orders"
        connected = await eventmesh.connect(binding="mesh")
        await connected.close()
        await connected.close()  # once more does nothing


async def test_what_travels_is_what_event_mesh_wants() -> None:
    """One anonymous link with the target "" for all addresses, SASL ANONYMOUS, settle modes by quality of service."""
    lines: list[str] = []
    async with running() as mesh, eventmesh.connect(mesh.key, trace=lines.append) as connected:
        async with connected.sender(QUEUE) as first, connected.sender("topic:${namespace}/created") as second:
            await first.send(amqp.Message(b"to the queue"))
            await second.send(amqp.Message(b"to the topic"))
        async with connected.sender(QUEUE, qos=0) as unreliable:
            assert await unreliable.send(amqp.Message(b"settled")) is None
        async with connected.receiver(QUEUE, credit=1) as receiver:
            delivery = await receiver.receive()
            assert not delivery.settled
            await delivery.accept()
        async with connected.receiver(QUEUE, qos=0) as receiver:
            assert (await receiver.receive()).settled
        assert {topic: found.published for topic, found in mesh.broker.statistics().topics.items()} == {
            f"{NAMESPACE}/created": 1
        }
    assert (mesh.links[0].role, mesh.links[0].address) == ("sender", None)
    attaches = [line for line in lines if "-> @attach" in line]
    assert len(attaches) == 4
    senders = [line for line in attaches if "role=false" in line]
    receivers = [line for line in attaches if "role=true" in line]
    assert len(senders) == len(receivers) == 2
    for line in senders:
        assert '@target(41) [address=""' in line
    for reliable, unreliable_link in (senders, receivers):
        assert "snd-settle-mode=0x0, rcv-settle-mode=0x0" in reliable
        assert "snd-settle-mode=0x1, rcv-settle-mode=0x1" in unreliable_link
    assert any("mechanism=:ANONYMOUS" in line for line in lines)


async def test_three_ways_to_send() -> None:
    """As with any sender: one at a time, pipelined, and many from an iterable or an async iterable."""

    async def source() -> AsyncIterator[amqp.Message]:
        for number in range(10):
            yield amqp.Message(b"%d" % number)

    async with running() as mesh, eventmesh.connect(mesh.key) as connected, connected.sender(QUEUE) as sender:
        await sender.send(amqp.Message(b"one"), tag=b"t1")
        pending = await sender.transfer(amqp.Message(b"two"), tag=b"t2")
        assert await pending == amqp.Accepted()
        many = [amqp.Message(b"%d" % number) for number in range(10)]
        for messages in (many, source()):
            outcomes = [(message.to, outcome) async for message, outcome in sender.send_many(messages, in_flight=3)]  # type: ignore[union-attr]
            assert outcomes == [(f"queue:{NAME}", amqp.Accepted())] * 10
        assert mesh.sent() == 22
        assert sender.credit > 0
        assert many[0].to is None  # a copy was sent


async def test_a_message_that_is_forwarded_gets_the_new_address() -> None:
    """What was received keeps its own `to`; one that has the right one goes as it is, its bytes untouched."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        async with connected.sender(QUEUE) as sender:
            await sender.send(amqp.Message(b"one", to="topic:else/where", subject="s"))
        async with connected.receiver(QUEUE) as receiver, connected.sender("queue:${namespace}/copy") as forward:
            delivery = await receiver.receive()
            assert (delivery.message.to, delivery.message.subject) == (f"queue:{NAME}", "s")
            pending = await forward.transfer(delivery.message)
            assert delivery.message.to == f"queue:{NAME}"
            assert pending.message.to == f"queue:{NAMESPACE}/copy"  # type: ignore[union-attr]
            same = amqp.Message(b"same", to=f"queue:{NAMESPACE}/copy")
            assert (await forward.transfer(same)).message is same
            await delivery.accept()


# --- rules ---------------------------------------------------------------------------------------------------


async def test_a_fourth_receiver_is_refused_here() -> None:
    """Also when several are attached at once; closing one makes room."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        found = await asyncio.gather(*(connected.receiver(QUEUE) for _ in range(5)), return_exceptions=True)
        receivers = [one for one in found if isinstance(one, amqp.Receiver)]
        refused = [one for one in found if isinstance(one, amqp.LocalProtocolError)]
        assert (len(receivers), len(refused)) == (MAX_LINKS, 2)
        assert "allows 3 receivers" in str(refused[0])
        await receivers[0].close()
        async with connected.receiver(QUEUE):
            pass
        assert len(mesh.links) == 4


async def test_senders_share_a_link_and_do_not_run_out() -> None:
    """Any number of addresses, one link; what was attached on the AMQP connection itself counts."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        senders = await asyncio.gather(*(connected.sender(f"topic:a/{number}") for number in range(50)))
        assert len(mesh.links) == 1
        own = [await connected.connection.sender(f"queue:{number}") for number in range(2)]
        with pytest.raises(amqp.LocalProtocolError, match="allows 3 senders"):
            await connected.sender("topic:a/b", qos=0)
        await own[0].close()
        async with connected.sender("topic:a/b", qos=0):
            pass
        assert repr(senders[0]) == "<EventMeshSender to 'topic:a/0' open>"


@pytest.mark.parametrize("address", ["orders", "queue://orders", "topic:a", "topic:a/b c", "topic:a/*", b"queue:a"])
async def test_an_address_that_breaks_a_rule_does_not_travel(address: Any) -> None:
    """The call itself says what is wrong, before anything is awaited."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        with pytest.raises(ValueError, match=r"address|topic"):
            connected.sender(address)
        if address != "topic:a/*":
            with pytest.raises(ValueError, match=r"address|topic"):
                connected.receiver(address)
        for qos in (2, True, "1", None):
            with pytest.raises(ValueError, match="at least once"):
                connected.receiver(QUEUE, qos=qos)  # type: ignore[arg-type]
        assert mesh.links == []


async def test_a_message_may_have_a_mebibyte() -> None:
    """To the byte; one more is refused with nothing sent, and so is what the peer's own smaller limit forbids."""
    address = f"queue:{NAME}"
    overhead = len(amqp.Message(bytes(2**16), to=address).encode()) - 2**16
    async with running() as mesh, eventmesh.connect(mesh.key) as connected, connected.sender(QUEUE) as sender:
        await sender.send(amqp.Message(bytes(MAX_MESSAGE_SIZE - overhead)))
        with pytest.raises(amqp.MessageTooLarge) as caught:
            await sender.send(amqp.Message(bytes(MAX_MESSAGE_SIZE - overhead + 1)))
        assert (caught.value.size, caught.value.limit) == (MAX_MESSAGE_SIZE + 1, MAX_MESSAGE_SIZE)
        assert mesh.sent() == 1
    async with (
        running(max_message_size=1000) as mesh,
        eventmesh.connect(mesh.key) as connected,
        connected.sender(QUEUE) as sender,
    ):
        with pytest.raises(amqp.MessageTooLarge, match="of 1000 bytes"):
            await sender.send(amqp.Message(bytes(1000)))


async def test_errors_name_the_address_and_not_the_shared_link() -> None:
    """With fifty topics on one link, who reads the log wants to know which."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        mesh.refused = f"queue:{NAME}"
        async with connected.sender(QUEUE) as sender:
            with pytest.raises(amqp.MessageRejected, match=f"sender to 'queue:{NAME}': the message was rejected"):
                await sender.send(amqp.Message(b"one"))
            with pytest.raises(amqp.MessageTooLarge, match=f"sender to 'queue:{NAME}'"):
                await sender.send(amqp.Message(bytes(MAX_MESSAGE_SIZE)))


async def test_a_receiver_has_saps_window() -> None:
    """255 messages, unless another is asked for."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        async with connected.receiver(QUEUE) as receiver:
            async with connected.sender(QUEUE) as sender:
                async for _ in sender.send_many(amqp.Message(b"x") for _ in range(2 * CREDIT)):
                    pass
            for _ in range(CREDIT):  # the window has grown once it is known that they are small
                await (await receiver.receive()).accept()
            assert CREDIT / 2 <= receiver.credit + receiver.queued <= CREDIT == 255
        async with connected.receiver(QUEUE, credit=10, max_prefetch_bytes=2**30, name="mine") as receiver:
            assert receiver.name == "mine"
            assert receiver.credit + receiver.queued == 10


@pytest.mark.parametrize("idle_timeout", [300, 300.0, 3600, None, 0])
def test_an_idle_timeout_of_five_minutes_is_refused_with_the_reason(idle_timeout: float | None) -> None:
    """Event Mesh would close first."""
    with pytest.raises(ValueError, match="silent for five minutes"):
        eventmesh.connect({}, idle_timeout=idle_timeout)


def test_what_follows_from_event_mesh_cannot_be_chosen() -> None:
    """The options are those of a connection, but for those that the key or the service decides."""
    decided = {"url", "sasl", "subprotocols", "require_subprotocol", "allow_insecure_auth"}
    ours, theirs = get_type_hints(EventMeshArguments), get_type_hints(ConnectionArguments)
    assert ours == {name: kind for name, kind in theirs.items() if name not in decided}
    with pytest.raises(TypeError, match="'sasl'"):
        eventmesh.connect({}, sasl=None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="three segments"):
        eventmesh.connect({}, namespace="a/b")


async def test_a_key_that_is_loaded_takes_no_more_instructions() -> None:
    """Binding and certificate are for the loading."""
    async with running() as mesh:
        key = eventmesh.ServiceKey.load(mesh.key)
    for options in ({"binding": "mesh"}, {"certificate": ClientCertificate("c.pem", "k.pem")}):
        with pytest.raises(ValueError, match="loaded already"):
            eventmesh.connect(key, **options)


# --- what goes wrong -------------------------------------------------------------------------------------------


async def test_a_bad_key_is_an_open_error(tmp_path: Path) -> None:
    """Whatever opening needs and cannot have ends in one family of errors."""
    keys: tuple[Any, ...] = ({}, "{}", tmp_path / "none.json", {"messaging": []})
    for key in keys:
        with pytest.raises(eventmesh.ServiceKeyError):
            await eventmesh.connect(key)
    assert issubclass(eventmesh.ServiceKeyError, amqp.OpenError)


async def test_a_key_without_a_token_endpoint_needs_a_token() -> None:
    """Any provider will do; then the key's own endpoint is not asked."""
    async with running() as mesh:
        key = mesh.key
        grant = ClientCredentials(mesh.tokens.url, mesh.tokens.client_id, mesh.tokens.client_secret)
        async with TokenRefresher(grant) as tokens:
            async with eventmesh.connect(key, token=tokens) as one, eventmesh.connect(key, token=one.tokens) as two:
                assert one.tokens is two.tokens is tokens
            await tokens.token()  # it is not theirs to stop
            del key["messaging"][0]["oa2"]
            async with eventmesh.connect(key, token=(await tokens.token()).value) as third:
                assert third.health().ok
        assert mesh.tokens.request_count == 1
        with pytest.raises(eventmesh.ServiceKeyError, match="token="):
            await eventmesh.connect(key)


@pytest.mark.parametrize("answer", [TokenAnswer.UNAUTHORIZED, TokenAnswer.SERVER_ERROR, TokenAnswer.GARBAGE])
async def test_without_a_token_nothing_is_left_behind(answer: TokenAnswer) -> None:
    """The refresher's task ends with the attempt; the broker was not asked."""
    async with running() as mesh:
        mesh.tokens.answer = answer
        with pytest.raises(amqp.TokenError):
            await eventmesh.connect(mesh.key)
        assert mesh.broker.statistics().connections_total == 0


async def test_a_refused_upgrade_leaves_nothing_behind() -> None:
    """A 401 twice, with another token in between, is final."""
    async with running() as mesh:
        mesh.tokens.lifetime = 43199.0
        mesh.broker._authorize = lambda headers, path: 401
        with pytest.raises(amqp.HandshakeError):
            await eventmesh.connect(mesh.key)
        assert mesh.tokens.request_count == 2


@pytest.mark.parametrize("stage", ["key", "token", "upgrade"])
async def test_cancelled_while_it_opens(stage: str) -> None:
    """No task and no socket stay behind, wherever it stood."""
    reached, enough = asyncio.Event(), asyncio.Event()
    async with running() as mesh:

        async def stuck(headers: Any, path: str) -> int:
            reached.set()
            await enough.wait()
            return 500

        if stage == "token":
            mesh.tokens.answer = TokenAnswer.SLOW
        elif stage == "upgrade":
            mesh.broker._authorize = stuck
        task = asyncio.ensure_future(_opened(mesh.key))
        if stage == "upgrade":
            await reached.wait()
        elif stage == "token":
            while not mesh.tokens.request_count:
                await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        enough.set()
        assert mesh.broker.statistics().connections_total == 0


async def _opened(key: dict[str, Any]) -> eventmesh.EventMeshConnection:
    return await eventmesh.connect(key)


async def test_a_link_that_was_refused_can_be_asked_for_again() -> None:
    """A refusal of the shared link is the error of everyone who asked for it; the next one attaches anew."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        mesh.refused = f"queue:{NAME}"
        with pytest.raises(amqp.AttachError, match="against the rules"):
            await connected.receiver(QUEUE)
        mesh.refused = None
        async with connected.receiver(QUEUE):
            pass


async def test_a_shared_link_or_session_that_ended_is_replaced() -> None:
    """A sender whose link has stopped says so; opening it again attaches another."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        sender = await connected.sender(QUEUE)
        await sender._relay.close()
        with pytest.raises(amqp.LinkClosed):
            await sender.send(amqp.Message(b"one"))
        sender = await connected.sender(QUEUE)
        await sender.send(amqp.Message(b"one"))
        session = connected.connection._default
        assert session is not None
        await session.close()
        with pytest.raises((amqp.SessionClosed, amqp.LinkClosed)):
            await sender.send(amqp.Message(b"two"))
        async with connected.sender(QUEUE) as again, connected.receiver(QUEUE) as receiver:
            await again.send(amqp.Message(b"two"))
            assert (await receiver.receive()).body == b"one"


async def test_one_who_is_cancelled_attaching_leaves_the_link_to_the_next() -> None:
    """The lock that keeps it to one link is given on."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        first = asyncio.ensure_future(_sender(connected))
        second = asyncio.ensure_future(_sender(connected))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        await second.result().send(amqp.Message(b"one"))
        assert mesh.sent() == 1


async def _sender(connected: eventmesh.EventMeshConnection) -> eventmesh.EventMeshSender:
    return await connected.sender(QUEUE)


async def test_a_lost_connection_fails_everyone_and_closes_quietly() -> None:
    """Senders, receivers and whoever opens one get the reason; leaving `async with` is quick."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        sender = await connected.sender(QUEUE)
        receiver = await connected.receiver(QUEUE)
        await mesh.broker.disconnect()
        with pytest.raises(amqp.ConnectionClosed):
            await receiver.receive()
        with pytest.raises(amqp.ConnectionClosed):
            await sender.send(amqp.Message(b"one"))
        with pytest.raises(amqp.ConnectionClosed):
            await connected.sender("topic:a/b", qos=0)
        assert not connected.health().ok


async def test_one_that_is_dropped_stops_asking_for_tokens() -> None:
    """It warns, as any connection does, and its refresher ends with it."""
    async with running() as mesh:
        connected = await eventmesh.connect(mesh.key)
        refresher = connected._access.refresher
        assert refresher is not None
        task = refresher._task
        assert task is not None
        with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031 - both drop it
            del connected, refresher
            gc.collect()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_the_body_s_error_is_not_hidden() -> None:
    """And the refresher ends with it."""
    async with running() as mesh:
        with pytest.raises(ZeroDivisionError):
            async with eventmesh.connect(mesh.key):
                raise ZeroDivisionError
        assert mesh.broker.statistics().connections == 0


async def test_what_cannot_be_sent_is_refused_at_once() -> None:
    """Encoded bytes cannot be given an address; a closed sender sends nothing."""
    async with running() as mesh, eventmesh.connect(mesh.key) as connected:
        async with connected.sender(QUEUE) as sender:
            for wrong in (b"\x00Su\xa0\x01x", "text", None):
                with pytest.raises(TypeError, match="send a Message"):
                    await sender.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(amqp.LocalProtocolError, match="closed"):
            await sender.send(amqp.Message(b"one"))
        with pytest.raises(amqp.LocalProtocolError, match="closed"):
            await sender.transfer(amqp.Message(b"one"))
        await sender.close()
        assert NAME not in mesh.broker.statistics().queues


async def test_a_certificate_that_cannot_be_used_says_so() -> None:
    """Before anything travels, and without a word of the key."""
    async with running() as mesh:
        key = mesh.key
        key["messaging"][0]["oa2"] |= {
            "certificate": "-----BEGIN CERTIFICATE-----\nCANARY\n-----END CERTIFICATE-----\n",
            "key": "-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----\n",
            "certurl": "https://127.0.0.1:1",
        }
        del key["messaging"][0]["oa2"]["clientsecret"]
        with pytest.raises(amqp.TokenError, match="certificate") as caught:
            await eventmesh.connect(key)
        assert "CANARY" not in repr(caught.value) + repr(caught.value.__context__)
