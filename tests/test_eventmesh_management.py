"""The management client: against an embedded Event Mesh where all is well, and a server of our own where nothing is."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from amqpws_async.auth import Token
from amqpws_async.auth.client_auth import ClientCertificate
from amqpws_async.errors import AMQPError, TokenError
from amqpws_async.eventmesh.key import ServiceKey, ServiceKeyError
from amqpws_async.eventmesh.management import ManagementClient, ManagementError, Queue, SubscriptionChanges
from amqpws_async.testing import EventMesh
from amqpws_async.testing.token_server import TokenAnswer, TokenServer

CANARY = "canary-9c41"
NAMESPACE = "example/shop/1"
QUEUE = "${namespace}/orders"
STANDALONE = "/hub/rest/api/v1/management/messaging"
SUITE = "/sap-event-mesh/rest/api/v1"


# --- the whole way -------------------------------------------------------------------------------


@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_queues_and_subscriptions_from_a_service_key(tmp_path: Path, x509: bool) -> None:
    """Created, listed, described, changed, deleted: over TLS with a private CA, with the key's own client."""
    async with EventMesh(x509=x509) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        async with ManagementClient(key, ssl=ca) as management:
            assert await management.ready()
            assert await management.queues() == []
            made = await management.create_queue(QUEUE, max_redelivery_count=3)
            assert (made.name, made.max_redelivery_count, made.message_count) == (f"{NAMESPACE}/orders", 3, 0)
            assert [queue.name for queue in await management.queues()] == [f"{NAMESPACE}/orders"]
            found = await management.queue(f"queue:{QUEUE}")
            assert found == made
            assert found.raw["maxRedeliveryCount"] == 3
            assert await management.subscribe(QUEUE, "topic:${namespace}/order/*")
            assert not await management.subscribe(QUEUE, "${namespace}/order/*")
            assert await management.subscriptions(QUEUE) == [f"{NAMESPACE}/order/*"]
            assert mesh.queues == {f"{NAMESPACE}/orders": frozenset({f"{NAMESPACE}/order/*"})}
            assert await management.unsubscribe(QUEUE, "${namespace}/order/*")
            assert not await management.unsubscribe(QUEUE, "${namespace}/order/*")
            assert await management.statistics()
            assert await management.delete_queue(QUEUE)
            assert not await management.delete_queue(QUEUE)
            assert await management.queue(QUEUE) is None
        assert mesh.token_server.token_count == 1


async def test_integration_suite_is_managed_in_the_same_way() -> None:
    """Below its own base, and with a body for every queue."""
    async with EventMesh(tls=False, integration_suite=True) as mesh:
        key = mesh.service_key()
        key["management"][0]["uri"] = mesh.management_url
        async with ManagementClient(key) as management:
            assert SUITE in repr(management)
            await management.create_queue(QUEUE)
            await management.set_subscriptions(QUEUE, ["${namespace}/order/*"])
        assert mesh.queues == {f"{NAMESPACE}/orders": frozenset({f"{NAMESPACE}/order/*"})}


async def test_set_subscriptions_changes_what_differs_and_no_more() -> None:
    """As CAP does at its start; a second time there is nothing to do."""
    async with EventMesh(tls=False) as mesh:
        mesh.create_queue(QUEUE)
        for topic in ("order/created", "order/old", "invoice/*"):
            mesh.subscribe(QUEUE, f"${{namespace}}/{topic}")
        async with ManagementClient(mesh.service_key()) as management:
            wanted = ["${namespace}/order/created", "topic:${namespace}/invoice/*", "${namespace}/+/cancelled"]
            changes = await management.set_subscriptions(QUEUE, wanted)
            assert changes == SubscriptionChanges((f"{NAMESPACE}/+/cancelled",), (f"{NAMESPACE}/order/old",))
            assert mesh.queues[f"{NAMESPACE}/orders"] == {
                f"{NAMESPACE}/{topic}" for topic in ("order/created", "invoice/*", "+/cancelled")
            }
            before = mesh.management.request_count
            assert await management.set_subscriptions(QUEUE, wanted) == SubscriptionChanges((), ())
            assert mesh.management.request_count == before + 1


async def test_a_topic_that_breaks_a_rule_changes_nothing() -> None:
    """It is found before the first request."""
    async with EventMesh(tls=False) as mesh:
        mesh.create_queue(QUEUE)
        async with ManagementClient(mesh.service_key()) as management:
            with pytest.raises(ValueError, match="stands at the end"):
                await management.set_subscriptions(QUEUE, ["${namespace}/a", "${namespace}/*/b"])
            with pytest.raises(TypeError, match="not one string"):
                await management.set_subscriptions(QUEUE, "${namespace}/a")
            assert mesh.management.request_count == 0


async def test_what_the_rules_forbid_is_an_error_with_the_servers_words() -> None:
    """Status, request and advice are in it; the secrets of the key are not."""
    async with EventMesh(tls=False) as mesh:
        key = mesh.service_key()
        async with ManagementClient(key) as management:
            with pytest.raises(ManagementError) as caught:
                await management.create_queue("other/shop/1/orders")
        error = caught.value
        assert isinstance(error, AMQPError)
        assert (error.status, error.method, error.path) == (403, "PUT", "/queues/other%2Fshop%2F1%2Forders")
        assert error.description is not None
        assert "other/shop/1/orders" in error.description
        assert error.description in str(error)
        assert "rules and the namespace of the service descriptor" in str(error)
        assert key["management"][0]["oa2"]["clientsecret"] not in str(error)


async def test_subscriptions_of_a_queue_that_is_missing_are_an_error() -> None:
    """Unlike `queue`, which says None: an empty list would be taken for one that has none."""
    async with EventMesh(tls=False) as mesh, ManagementClient(mesh.service_key()) as management:
        for call in (management.subscriptions(QUEUE), management.subscribe(QUEUE, "${namespace}/a")):
            with pytest.raises(ManagementError, match="there is no such queue or subscription") as caught:
                await call
            assert caught.value.status == 404


# --- the service key -----------------------------------------------------------------------------


async def test_a_key_without_management_says_how_to_get_one() -> None:
    """The part of the service descriptor, to be copied."""
    async with EventMesh(tls=False) as mesh:
        key = mesh.service_key()
        del key["management"]
        with pytest.raises(ServiceKeyError, match=r'set "options": \{"management": true\} in the service'):
            async with ManagementClient(key):
                pass


async def test_a_key_without_a_token_endpoint_needs_a_token() -> None:
    """And works with one."""
    async with EventMesh(tls=False) as mesh:
        key = mesh.service_key()
        del key["management"][0]["oa2"]
        with pytest.raises(ServiceKeyError, match="give token="):
            async with ManagementClient(key):
                pass
        token = mesh.token_server.make_token()
        async with ManagementClient(ServiceKey.load(key), token=token, namespace="example/shop/1") as management:
            assert await management.queue(QUEUE) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"namespace": "two/segments"}, "three segments"),
        ({"timeout": 0}, "timeout: seconds, more than 0"),
        ({"timeout": True}, "timeout: seconds, more than 0"),
        ({"token": "Bearer x"}, "without the word Bearer"),
    ],
)
def test_arguments_are_checked_at_once(arguments: dict[str, Any], reason: str) -> None:
    """Before anything is read or sent."""
    with pytest.raises(ValueError, match=reason):
        ManagementClient({}, **arguments)


async def test_it_runs_inside_its_async_with_alone() -> None:
    """Once at a time; but again afterwards."""
    async with EventMesh(tls=False) as mesh:
        key = ServiceKey.load(mesh.service_key())
        with pytest.raises(ValueError, match="loaded already"):
            ManagementClient(key, binding="my-mesh")
        management = ManagementClient(key)
        assert repr(management) == "<ManagementClient not running>"
        for _ in range(2):
            with pytest.raises(RuntimeError, match="use it in `async with`"):
                await management.queues()
            async with management:
                assert mesh.management.origin in repr(management)
                assert await management.queues() == []
                with pytest.raises(RuntimeError, match="in use already"):
                    await management.__aenter__()


# --- what is sent --------------------------------------------------------------------------------

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Scripted:
    """A server that answers as a test says, and keeps what it was asked."""

    def __init__(self, *answers: web.Response | Handler) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path, await request.read(), dict(request.headers)))
        answer = self.answers.pop(0) if self.answers else web.json_response({})
        return answer if isinstance(answer, web.StreamResponse) else await answer(request)

    def key(self, base: str = STANDALONE, **oa2: str) -> dict[str, Any]:
        """A key whose management is here, and nothing else anywhere."""
        return {
            "namespace": NAMESPACE,
            "messaging": [{"protocol": ["amqp10ws"], "uri": "wss://messaging.example/protocols/amqp10ws"}],
            "management": [{"uri": self.url + base, **({"oa2": oa2} if oa2 else {})}],
        }


@asynccontextmanager
async def scripted(*answers: web.Response | Handler) -> AsyncIterator[Scripted]:
    """Starts such a server."""
    script = Scripted(*answers)
    server = web.Server(script.handle, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        listener.close()
        await server.shutdown(0.1)
        await listener.wait_closed()


@asynccontextmanager
async def asking(script: Scripted, base: str = STANDALONE, **options: Any) -> AsyncIterator[ManagementClient]:
    """A client of it, with a token at hand."""
    async with ManagementClient(script.key(base), **{"token": "t0", **options}) as management:
        yield management


@pytest.mark.parametrize("base", [STANDALONE, SUITE, "/management/v1/"])
async def test_every_segment_is_encoded_as_a_whole_below_either_base(base: str) -> None:
    """Slashes too, and `+`, which is a blank to some servers; nothing on the way decodes them again."""
    answers = (web.json_response({}), web.json_response({}, status=201), web.Response(status=204))
    async with scripted(*answers) as script, asking(script, base) as management:
        await management.create_queue(QUEUE)
        assert await management.subscribe(QUEUE, "${namespace}/+/or.der_s-1/*")
        assert await management.delete_queue(QUEUE)
    base = base.rstrip("/")
    queue = f"{base}/queues/example%2Fshop%2F1%2Forders"
    assert [(method, path) for method, path, _, _ in script.seen] == [
        ("PUT", queue),
        ("PUT", f"{queue}/subscriptions/example%2Fshop%2F1%2F%2B%2For.der_s-1%2F*"),
        ("DELETE", queue),
    ]


async def test_properties_go_out_by_the_apis_names_and_what_is_not_given_not_at_all() -> None:
    """An empty object at least, which Integration Suite wants; a dead message queue is named as any other."""
    async with scripted() as script, asking(script) as management:
        await management.create_queue(QUEUE)
        await management.create_queue(
            QUEUE,
            {"maxTtl": 1, "something": None},
            access_type="EXCLUSIVE",
            dead_msg_queue="queue:${namespace}/dead",
            max_delivered_unacked_msgs_per_flow=1,
            max_message_size_in_bytes=2,
            max_queue_message_count=3,
            max_queue_size_in_bytes=4,
            max_redelivery_count=5,
            max_ttl=6,
            respect_ttl=True,
        )
        with pytest.raises(TypeError, match="unexpected keyword argument 'max_tll'"):
            await management.create_queue(QUEUE, max_tll=6)  # type: ignore[call-arg]
    bodies = [json.loads(body) for _, _, body, _ in script.seen]
    assert bodies == [
        {},
        {
            "something": None,
            "accessType": "EXCLUSIVE",
            "deadMsgQueue": f"{NAMESPACE}/dead",
            "maxDeliveredUnackedMsgsPerFlow": 1,
            "maxMessageSizeInBytes": 2,
            "maxQueueMessageCount": 3,
            "maxQueueSizeInBytes": 4,
            "maxRedeliveryCount": 5,
            "maxTtl": 6,
            "respectTtl": True,
        },
    ]
    assert {headers["Content-Type"] for *_, headers in script.seen} == {"application/json"}


@pytest.mark.parametrize("name", ["", "a//b", "a b", "ä", "/a", "..", "a/../b", "topic:a/b", "q" * 165, "queue://a/b"])
async def test_a_name_that_breaks_a_rule_never_travels(name: str) -> None:
    """Nor one that a proxy on the way could take for another path."""
    async with scripted() as script, asking(script) as management:
        for call in (
            management.queue(name),
            management.create_queue(name),
            management.create_queue("a/b", dead_msg_queue=name),
            management.delete_queue(name),
            management.subscriptions(name),
            management.subscribe(name, "a/b"),
            management.unsubscribe(name, "a/b"),
        ):
            with pytest.raises(ValueError, match=r"queue|'\.'"):
                await call
        with pytest.raises(ValueError, match=r"topic|'\.'"):
            await management.subscribe("a/b", name.removeprefix("topic:").replace("/b", ""))
    assert script.seen == []


async def test_what_the_server_tells_is_taken_as_it_is() -> None:
    """Fields that are missing, null, or of another type than documented do no harm; all is in `raw`."""
    told = {"name": "q", "respectTtl": None, "deadMsgQueue": False, "messageCount": 7, "maxTtl": "1", "more": [1]}
    async with scripted(web.json_response([told])) as script, asking(script) as management:
        (queue,) = await management.queues()
    assert queue == Queue("q", message_count=7)
    assert queue.raw == told
    with pytest.raises(TypeError):
        queue.raw["name"] = "r"  # type: ignore[index]


async def test_your_own_session_is_used_and_stays_open() -> None:
    """Its own headers and its raise_for_status do not get in the way."""
    async with (
        scripted(web.Response(status=404)) as script,
        aiohttp.ClientSession(headers={"X-Mine": "1"}, raise_for_status=True) as session,
    ):
        async with asking(script, session=session) as management:
            assert await management.queue(QUEUE) is None
        assert not session.closed
    assert script.seen[0][3]["X-Mine"] == "1"


# --- tokens --------------------------------------------------------------------------------------


class Tokens:
    """A provider that counts, and gives another token when asked to."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.number = 0

    async def token(self, *, refresh: bool = False) -> Token:
        self.asked.append(refresh)
        self.number += refresh
        return Token(f"{CANARY}-{self.number}")


async def test_a_401_is_answered_with_another_token_once() -> None:
    """What is refused again is final."""
    tokens = Tokens()
    async with scripted(web.Response(status=401)) as script, asking(script, token=tokens) as management:
        assert await management.statistics() == {}
    assert [headers["Authorization"] for *_, headers in script.seen] == [f"Bearer {CANARY}-0", f"Bearer {CANARY}-1"]
    assert tokens.asked == [False, False, True]
    refusal = web.Response(status=401, text=f"no: {CANARY}-2")
    async with scripted(web.Response(status=401), refusal) as script, asking(script, token=tokens) as management:
        with pytest.raises(ManagementError, match="the token is not accepted") as caught:
            await management.queues()
    assert len(script.seen) == 2
    assert caught.value.status == 401
    assert CANARY not in str(caught.value)


async def test_a_token_that_another_task_has_renewed_is_not_renewed_again() -> None:
    """One refusal each must not become a request for a token each."""
    tokens = Tokens()

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        tokens.number += 1
        return web.Response(status=401)

    async with scripted(refuse) as script, asking(script, token=tokens) as management:
        await management.statistics()
    assert tokens.asked == [False, False]
    assert len(script.seen) == 2


async def test_a_token_that_cannot_be_renewed_is_not_tried_twice() -> None:
    """A fixed one stays what it is."""
    async with scripted(web.Response(status=401)) as script, asking(script) as management:
        with pytest.raises(ManagementError):
            await management.queues()
    assert len(script.seen) == 1


async def test_without_a_token_nothing_is_asked() -> None:
    """The token server's refusal is what the caller gets."""
    async with TokenServer() as server, scripted() as script:
        server.answer = TokenAnswer.SERVER_ERROR
        key = script.key(clientid=server.client_id, clientsecret=server.client_secret, tokenendpoint=server.url)
        async with ManagementClient(key) as management:
            with pytest.raises(TokenError):
                await management.queues()
    assert script.seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The token would go along, to a host that nobody named."""
    async with scripted() as elsewhere:
        answer = web.Response(status=status, headers={"Location": f"{elsewhere.url}/queues?secret={CANARY}"})
        async with scripted(answer) as script, asking(script) as management:
            with pytest.raises(ManagementError, match=r"a redirect to .*, which is not followed") as caught:
                await management.queues()
        assert elsewhere.seen == []
    assert caught.value.status == status
    assert CANARY not in str(caught.value)


# --- refusals and worse --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "description", "advice"),
    [
        (web.json_response({"code": "404", "message": "Queue not found"}, status=404), "Queue not found", "no such"),
        (web.json_response({"error": {"message": "in use"}}, status=409), "in use", "does not go together"),
        (web.json_response({"error": "x", "error_description": "y"}, status=400), "y", "does not allow"),
        (web.Response(status=413, text="too\r\n large\x00"), "too large", "too much"),
        (web.Response(status=502, text="<h1>gateway</h1>", content_type="text/html"), None, "in trouble"),
        (web.Response(status=500, body=b"\xff", content_type="text/plain"), "\ufffd", "in trouble"),
        (web.json_response([1], status=422), None, "does not take this request"),
        (web.Response(status=400, body=b"[" * 100_000, content_type="application/json"), None, "does not allow"),
    ],
)
async def test_a_refusal_tells_what_the_server_says_and_what_to_do(
    answer: web.Response, description: str | None, advice: str
) -> None:
    """In one short line, whatever form it has."""
    async with scripted(answer) as script, asking(script) as management:
        with pytest.raises(ManagementError) as caught:
            await management.subscriptions(QUEUE)
    assert caught.value.description == description
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"GET /queues/{NAMESPACE.replace('/', '%2F')}%2Forders/subscriptions" in str(caught.value)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", 0.0), (None, None)])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_for_now_carries_how_long_to_wait(
    status: int, header: str | None, seconds: float | None
) -> None:
    """So that a caller's retry need not guess."""
    headers = {} if header is None else {"Retry-After": header}
    async with scripted(web.Response(status=status, headers=headers)) as script, asking(script) as management:
        with pytest.raises(ManagementError) as caught:
            await management.queues()
    assert (caught.value.status, caught.value.retry_after) == (status, seconds)


async def test_readiness_is_no_error() -> None:
    """503 says not yet; anything else than that and success is an error."""
    answers = (web.Response(status=503), web.Response(status=200), web.Response(status=500))
    async with scripted(*answers) as script, asking(script) as management:
        assert not await management.ready()
        assert await management.ready()
        with pytest.raises(ManagementError):
            await management.ready()
    assert {path for _, path, _, _ in script.seen} == {f"{STANDALONE}/readinessCheck"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (web.Response(text="<html>", content_type="text/html"), r"no JSON \(text/html"),
        (web.Response(body=b"[" * 100_000), "no JSON"),
        (web.Response(body=b"9" * 5000), "no JSON"),
        (web.json_response({}), "no list of objects with 'name'"),
        (web.json_response([{"name": "q"}, "r"]), "no list of objects with 'name'"),
        (web.json_response([{}]), "no list of objects with 'name'"),
        (web.Response(status=204), "no list of objects with 'name'"),
        (web.Response(body=b" " * (2**20 + 1)), "longer than 1048576 bytes"),
        (web.Response(body=b" " * (2**20 + 1), status=400), "longer than 1048576 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(answer: web.Response, reason: str) -> None:
    """A cockpit's page, a stream without end: never a wrong list, never memory without bound."""
    async with scripted(answer) as script, asking(script) as management:
        with pytest.raises(ManagementError, match=reason):
            await management.queues()


async def test_an_answer_without_end_is_cut_off() -> None:
    """It is not read to its end, nor waited for."""
    gone = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65536)
        except ConnectionError:
            return response
        finally:
            gone.set()

    async with scripted(endless) as script, asking(script) as management:
        with pytest.raises(ManagementError, match="longer than"):
            await management.queues()
        await gone.wait()


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    """Also one that stops in the middle; whether a change was made is not known then."""
    over = asyncio.Event()

    async def nothing(request: web.BaseRequest) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"[")
        await over.wait()
        return response

    async with scripted(nothing, half) as script, asking(script, timeout=0.2) as management:
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"GET /queues: no answer within 0\.2 s"):
                await management.queues()
        over.set()


async def test_cancelling_a_request_leaves_the_client_usable() -> None:
    """The connection of the one that was dropped is not used for the next."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        arrived.set()
        await over.wait()
        return web.Response()

    async with scripted(late, web.json_response([])) as script, asking(script) as management:
        request = asyncio.create_task(management.queues())
        await arrived.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert await management.queues() == []
        over.set()


async def test_a_server_that_cannot_be_reached_or_trusted_is_named() -> None:
    """With the URL, and what to do about the certificate."""
    async with scripted() as script:
        pass
    async with asking(script) as management:
        with pytest.raises(ManagementError, match="cannot be reached") as caught:
            await management.queues()
        assert caught.value.status is None
        assert script.url in str(caught.value)
    async with EventMesh() as mesh:
        token = mesh.token_server.make_token()
        async with ManagementClient(mesh.service_key(), token=token) as management:
            with pytest.raises(ManagementError, match=r"certificate is not trusted: .*ssl='ca.pem'"):
                await management.queues()


async def test_a_client_certificate_that_cannot_be_read_is_an_error_of_the_request(tmp_path: Path) -> None:
    """It is read anew for each, as it is renewed every few days."""
    missing = ClientCertificate(tmp_path / CANARY)
    async with scripted() as script, asking(script, certificate=missing) as management:
        with pytest.raises(ManagementError, match="not asked: client certificate: a file cannot be read") as caught:
            await management.queues()
    assert script.seen == []
    assert CANARY not in str(caught.value)


async def test_a_context_of_your_own_stays_as_it_is(tmp_path: Path) -> None:
    """The key's certificate is not loaded into it, where it would be shown to others too."""
    missing = ClientCertificate(tmp_path / "missing.pem")
    context = ssl.create_default_context()
    answer = web.json_response([])
    async with scripted(answer) as script, asking(script, certificate=missing, ssl=context) as management:
        assert await management.queues() == []


async def test_a_session_of_your_own_cannot_be_sent_through_a_socks_proxy() -> None:
    """Its connector would have to."""
    async with scripted() as script, aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="session: a SOCKS proxy"):
            async with asking(script, session=session, proxy="socks5://127.0.0.1:1"):
                pass


async def test_a_proxy_is_used_and_its_refusal_told() -> None:
    """It is asked for a tunnel with its own credentials, which are in no error, and never sees the token."""
    async with scripted(web.Response(status=407, text=CANARY)) as proxy, scripted() as script:
        script.url = "https://management.example"
        async with asking(script, proxy=proxy.url.replace("http://", f"http://user:{CANARY}@")) as management:
            with pytest.raises(ManagementError, match="the proxy answered with HTTP status 407") as caught:
                await management.statistics()
    (request,) = proxy.seen
    assert request[:2] == ("CONNECT", "management.example:443")
    assert request[3]["Proxy-Authorization"].startswith("Basic ")
    assert "Authorization" not in request[3]
    assert proxy.url in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_no_secret_is_in_logs_or_errors(caplog: pytest.LogCaptureFixture) -> None:
    """With DEBUG on, through success and refusal, also where the server quotes what it was sent."""
    caplog.set_level(logging.DEBUG)

    async def quote(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"message": f"{CANARY}: {request.headers['Authorization']}"}, status=403)

    async with scripted(web.json_response([]), quote) as script, TokenServer(clients={"c": CANARY}) as server:
        key = script.key(clientid="c", clientsecret=CANARY, tokenendpoint=server.url)
        async with ManagementClient(key) as management:
            await management.queues()
            with pytest.raises(ManagementError) as caught:
                await management.queues()
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(management)
    token = script.seen[0][3]["Authorization"].removeprefix("Bearer ")
    for secret in (CANARY, token):
        assert secret not in shown
        assert secret not in (caught.value.description or "")
        assert secret not in caplog.text
    assert "GET" in caplog.text
