"""The embedded Event Mesh's management API, asked by a client that is not ours."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

import amqpws_async as amqp
from amqpws_async.testing import EventMesh

NS = "example/shop/1"
Ask = Callable[..., Awaitable[tuple[int, Any]]]

BASES = ("/hub/rest/api/v1/management/messaging", "/sap-event-mesh/rest/api/v1")


def encoded(*names: str) -> str:
    """A path of names, each of them encoded as a whole."""
    return "".join("/" + urllib.parse.quote(name, safe="") for name in names)


@contextlib.asynccontextmanager
async def asking(mesh: EventMesh, base: str = BASES[0], *, authorized: bool = True) -> AsyncIterator[Ask]:
    """A function that sends one request below a base and gives status and JSON (or None)."""
    headers = {"Authorization": f"Bearer {mesh.token_server.make_token()}"} if authorized else {}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(method: str, path: str, **options: Any) -> tuple[int, Any]:
            url = URL(f"{mesh.management.origin}{base}{path}", encoded=True)
            async with session.request(method, url, ssl=mesh.ssl or True, **options) as answer:
                text = await answer.read()
                return answer.status, await answer.json() if text else None

        yield ask


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[EventMesh, Ask]]:
    async with EventMesh(tls=False, **options) as mesh, asking(mesh) as ask:
        yield mesh, ask


QUEUE = encoded("queues", f"{NS}/orders")


async def test_the_life_of_a_queue() -> None:
    """Created once, changed after that, shown with what it was given, gone when it is deleted."""
    async with running() as (mesh, ask):
        assert await ask("GET", "/queues") == (200, [])
        status, shown = await ask("PUT", QUEUE)
        assert (status, shown["name"]) == (201, f"{NS}/orders")
        status, shown = await ask("PUT", QUEUE, json={"maxRedeliveryCount": 3, "name": "other"})
        assert (status, shown["maxRedeliveryCount"], shown["name"]) == (200, 3, f"{NS}/orders")
        status, shown = await ask("PUT", QUEUE, json={"accessType": "EXCLUSIVE"})
        assert (status, shown["maxRedeliveryCount"], shown["accessType"]) == (200, 3, "EXCLUSIVE")
        assert await ask("GET", QUEUE) == (200, shown)
        assert await ask("GET", "/queues") == (200, [shown])
        assert mesh.queues == {f"{NS}/orders": frozenset()}
        assert await ask("DELETE", QUEUE) == (204, None)
        for method in ("GET", "DELETE"):
            status, error = await ask(method, QUEUE)
            assert (status, error) == (404, {"code": "404", "message": f"there is no queue '{NS}/orders'"})
        assert mesh.management.request_count == 9


async def test_the_life_of_a_subscription() -> None:
    """Created once, listed with queue and pattern, wildcards and slashes encoded, gone when it is deleted."""
    async with running() as (mesh, ask):
        mesh.create_queue(f"{NS}/orders")
        path = QUEUE + encoded("subscriptions", f"{NS}/order/+/*")
        shown = {"queueName": f"{NS}/orders", "topicPattern": f"{NS}/order/+/*"}
        assert await ask("GET", path) == (
            404,
            {"code": "404", "message": f"queue '{NS}/orders' does not subscribe to '{NS}/order/+/*'"},
        )
        assert await ask("PUT", path) == (201, shown)
        assert await ask("PUT", path) == (200, shown)
        assert await ask("GET", path) == (200, shown)
        assert await ask("GET", QUEUE + "/subscriptions") == (200, [shown])
        assert mesh.queues[f"{NS}/orders"] == {f"{NS}/order/+/*"}
        assert await ask("DELETE", path) == (204, None)
        assert (await ask("DELETE", path))[0] == 404
        assert await ask("GET", QUEUE + "/subscriptions") == (200, [])
        assert (await ask("GET", encoded("queues", f"{NS}/nobody", "subscriptions")))[0] == 404
        assert (await ask("PUT", encoded("queues", f"{NS}/nobody", "subscriptions", f"{NS}/order/*")))[0] == 404


async def test_what_is_managed_is_what_amqp_sees() -> None:
    """A message goes where the API has said, and the API counts it."""
    async with running() as (mesh, ask):
        await ask("PUT", QUEUE)
        await ask("PUT", QUEUE + encoded("subscriptions", f"{NS}/order/*"))
        async with (
            amqp.connect(mesh.url, token=mesh.token_server.make_token()) as connection,
            connection.sender("") as sender,
            connection.receiver(f"queue:{NS}/orders", credit=1) as receiver,
        ):
            for _ in range(3):
                await sender.send(amqp.Message(bytes(100), to=f"topic:{NS}/order/created"))
            delivery = await receiver.receive()
            _, shown = await ask("GET", QUEUE)
            assert shown["messageCount"] == 3
            assert shown["queueSizeInBytes"] > 300
            assert 1 <= shown["unacknowledgedMessageCount"] <= 2
            status, statistics = await ask("GET", "/statistics")
            assert (status, statistics["queueCount"], statistics["messageCount"]) == (200, 1, 3)
            assert (await ask("DELETE", QUEUE))[0] == 204
            with pytest.raises(amqp.AMQPError, match="resource-deleted"):
                await delivery.accept()
                async for _ in receiver:
                    pass
        assert await ask("GET", "/readinessCheck") == (200, None)


@pytest.mark.parametrize("base", BASES)
async def test_both_bases_are_there_and_integration_suite_wants_a_body(base: str) -> None:
    """`{}` will do; without one a queue is created at the standalone base alone."""
    async with EventMesh(tls=False, integration_suite=base == BASES[1]) as mesh, asking(mesh, base) as ask:
        assert mesh.management_url == f"{mesh.management.origin}{base}"
        assert (await ask("PUT", QUEUE))[0] == (201 if base == BASES[0] else 400)
        assert (await ask("PUT", QUEUE, json={}))[0] == (200 if base == BASES[0] else 201)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", encoded("queues", f"{NS}/ord ers"), 400),
        ("PUT", encoded("queues", f"{NS}/{'q' * 164}"), 400),
        ("GET", encoded("queues", ""), 400),
        ("PUT", encoded("queues", "other/shop/1/orders"), 403),
        ("GET", encoded("queues", "other/shop/1/orders"), 403),
        ("DELETE", encoded("queues", NS), 403),
        ("PUT", QUEUE + encoded("subscriptions", f"{NS}/*/created"), 400),
        ("PUT", QUEUE + encoded("subscriptions", "orders"), 400),
        ("DELETE", QUEUE + encoded("subscriptions", "orders"), 400),
        ("PUT", QUEUE + encoded("subscriptions", "other/shop/1/order/*"), 403),
        ("PUT", QUEUE + encoded("subscriptions", "+/shop/1/order"), 403),
        ("POST", "/queues", 405),
        ("POST", QUEUE, 405),
        ("PUT", "/readinessCheck", 405),
        ("PUT", "/statistics", 405),
        ("DELETE", QUEUE + "/subscriptions", 405),
        ("POST", QUEUE + encoded("subscriptions", f"{NS}/order/*"), 405),
        ("GET", "/", 404),
        ("GET", "/topics", 404),
        ("GET", f"/queues/{NS}/orders", 404),
        ("GET", QUEUE + "/subscriptions/" + f"{NS}/order/*", 404),
    ],
)
async def test_requests_that_are_refused(method: str, path: str, status: int) -> None:
    """Bad names, foreign namespaces, unknown methods and paths, slashes that are not encoded; always with a reason."""
    async with running() as (mesh, ask):
        mesh.create_queue(f"{NS}/orders")
        found, error = await ask(method, path, json={})
        assert (found, list(error)) == (status, ["code", "message"])
        assert mesh.queues == {f"{NS}/orders": frozenset()}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b"\xff", b'{"maxRedeliveryCount": "3"}', b'{"deadMsgQueue": 1}']
)
async def test_a_queue_that_is_described_badly_is_not_created(body: bytes) -> None:
    """No JSON, no object, no fit values."""
    async with running() as (mesh, ask):
        status, error = await ask("PUT", QUEUE, data=body)
        assert (status, list(error)) == (400, ["code", "message"])
        assert mesh.queues == {}


async def test_a_foreign_queue_is_not_listed() -> None:
    """A key sees its namespace, in the list, in the statistics and by name."""
    async with running() as (mesh, ask):
        mesh.create_queue("other/shop/1/orders")
        mesh.create_queue(f"{NS}/orders")
        assert [queue["name"] for queue in (await ask("GET", "/queues"))[1]] == [f"{NS}/orders"]
        assert (await ask("GET", "/statistics"))[1]["queueCount"] == 1


async def test_every_request_needs_a_token() -> None:
    """Readiness as well; the challenge is that of the upgrade."""
    async with EventMesh(tls=False) as mesh, asking(mesh, authorized=False) as ask:
        for path in ("/queues", "/readinessCheck", QUEUE):
            status, error = await ask("GET", path)
            assert (status, error) == (401, {"code": "401", "message": "a bearer token is wanted"})
        status, error = await ask("PUT", QUEUE, headers={"Authorization": "Bearer x.y.z"})
        assert (status, error) == (401, {"code": "401", "message": "the token's signature is not ours"})
        assert mesh.queues == {}


async def test_there_is_nothing_beside_the_api() -> None:
    """Another base is another service."""
    async with EventMesh(tls=False) as mesh, asking(mesh, "/rest/api/v1") as ask:
        for path in ("/queues", "", "/management/messaging/queues"):
            assert (await ask("GET", path))[0] == 404


async def test_over_tls_and_by_a_name_in_brackets() -> None:
    """https with the private CA; the URL of an IPv6 listener has brackets."""
    async with EventMesh() as mesh, asking(mesh) as ask:
        assert mesh.management.origin.startswith("https://127.0.0.1:")
        assert (await ask("PUT", QUEUE))[0] == 201
    assert EventMesh("::1", tls=False).management.origin.startswith("http://[::1]:")


async def test_closing_twice_and_starting_again() -> None:
    """The port stays."""
    mesh = EventMesh(tls=False)
    await mesh.management.close()
    async with mesh:
        origin = mesh.management.origin
        await mesh.management.close()
    async with mesh, asking(mesh) as ask:
        assert mesh.management.origin == origin
        assert (await ask("GET", "/queues"))[0] == 200
