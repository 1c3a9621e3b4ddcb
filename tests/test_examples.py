"""Every example runs as its reader would run it: scripts as commands, services under their servers, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.eventmesh import cloudevents
from amqpws_async.testing import Broker, EventMesh

from .ports import free_port

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {"event_mesh", "hello", "many_tasks", "receive", "send", "settlement"}
SERVICES = {"aiohttp_service", "fastapi_client_service", "fastapi_event_mesh", "fastapi_service"}
TESTS = {"test_orders"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="services are stopped by SIGTERM")


def test_every_example_is_run_here() -> None:
    """An example that is added is added to these tests."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCRIPTS | SERVICES | TESTS


@asynccontextmanager
async def _started(*command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process of its own, gone at the end whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONUNBUFFERED": "1", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(40):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _run(script: str, *arguments: str, **environment: str) -> list[str]:
    """Run a script to its end and give the lines it prints; a warning is an error in there."""
    async with _started("-W", "error", f"{script}.py", *arguments, **environment) as process:
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode().splitlines()


# --- scripts -----------------------------------------------------------------------------------------


async def test_hello_needs_no_broker() -> None:
    """It prints what it sent."""
    assert await _run("hello") == ["b'hello'", "b'world'"]


async def test_what_send_sends_receive_receives() -> None:
    """A thousand orders, all accepted on both sides; a message that is none is rejected."""
    async with Broker() as broker:
        sent = await _run("send", broker.url, "orders")
        assert sent[0] == "order 1 accepted"
        assert sent[-1] == "998 more accepted"
        assert broker.statistics().queues["orders"].depth == 1000
        async with amqp.connect(broker.url) as connection, connection.sender("orders") as sender:
            await sender.send(b"\x00Su\xa0\x04oops")
        received = await _run("receive", broker.url, "orders", "0.3")
        assert received[-1] == "nothing for 0.3 s: 1000 accepted, 1 rejected"
        assert "order 1000 {'region': 'EU'}" in received
        queue = broker.statistics().queues["orders"]
        assert (queue.depth, queue.acknowledged, queue.dead_lettered) == (0, 1000, 1)


async def test_many_tasks_share_one_sender() -> None:
    """Each task's message arrives once."""
    async with Broker() as broker:
        printed = await _run("many_tasks", broker.url, "requests", "100")
        assert printed[-1].startswith("100 accepted")
        assert broker.statistics().queues["requests"].depth == 100


async def test_settlement_shows_every_outcome() -> None:
    """What is released or modified comes back, what is rejected does not."""
    async with Broker() as broker:
        printed = await _run("settlement", broker.url, "outcomes")
        assert [line for line in printed if "sent:" in line] == [
            f"{subject} sent: Accepted()" for subject in ("accept", "reject", "release", "fail", "elsewhere")
        ]
        assert "pre-settled: None" in printed
        assert any(line.startswith("not accepted: MessageRejected") for line in printed)
        settled = [line for line in printed if "delivery-count" in line]
        assert len(settled) == 9
        assert any(line.startswith("fail (delivery-count 1) accepted") for line in settled)
        assert any(line.startswith("release (delivery-count 0) accepted") for line in settled)
        assert settled[-1].startswith("elsewhere")
        assert settled[-1].endswith("accepted: done")
        queue = broker.statistics().queues["outcomes"]
        assert (queue.depth, queue.unsettled, queue.dead_lettered, queue.redelivered) == (0, 0, 1, 3)


@asynccontextmanager
async def _event_mesh(folder: Path) -> AsyncIterator[tuple[EventMesh, str, dict[str, str]]]:
    """An Event Mesh, the file of its key, and an environment in which its certificates are trusted."""
    async with EventMesh() as mesh:
        key, authority = await asyncio.to_thread(mesh.write_key, folder)
        yield mesh, str(key), {"SSL_CERT_FILE": str(authority)}


async def test_event_mesh_goes_the_whole_way(tmp_path: Path) -> None:
    """The queue is made and subscribed, what is published to the topic comes out of it; a file and a binding alike."""
    async with _event_mesh(tmp_path) as (mesh, key, environment):
        expected = [
            "published 2",
            "received order-0 from topic:example/shop/1/ce/orders/created",
            "received order-1 from topic:example/shop/1/ce/orders/created",
        ]
        assert await _run("event_mesh", key, "2", **environment) == expected
        binding = {"enterprise-messaging": [{"name": "mesh", "credentials": mesh.service_key()}]}
        printed = await _run("event_mesh", **environment, VCAP_SERVICES=json.dumps(binding))
        assert printed[0] == "published 3"
        assert mesh.queues == {"example/shop/1/orders": {"example/shop/1/ce/orders/created"}}
        assert mesh.broker.statistics().queues["example/shop/1/orders"].depth == 0


# --- tests -------------------------------------------------------------------------------------------


async def test_what_tests_a_service_passes() -> None:
    """By the fixtures that the package brings, which pytest finds by themselves once it is installed."""
    async with _started(
        "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", "test_orders.py"
    ) as process:
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b"4 passed" in output


# --- services ----------------------------------------------------------------------------------------


class Server(NamedTuple):
    """How a service is started, as its framework's documentation says."""

    command: Callable[[int], list[str]]
    started: bytes
    stopped: bytes


SERVERS = {
    "fastapi_service": Server(
        lambda port: ["-m", "uvicorn", "fastapi_service:app", "--port", str(port)],
        b"Uvicorn running on",
        b"Application shutdown complete",
    ),
    "fastapi_client_service": Server(
        lambda port: ["-m", "uvicorn", "fastapi_client_service:app", "--port", str(port)],
        b"Uvicorn running on",
        b"Application shutdown complete",
    ),
    "fastapi_event_mesh": Server(
        lambda port: ["-m", "uvicorn", "fastapi_event_mesh:app", "--port", str(port)],
        b"Uvicorn running on",
        b"Application shutdown complete",
    ),
    "aiohttp_service": Server(
        lambda port: ["-m", "aiohttp.web", "-H", "127.0.0.1", "-P", str(port), "aiohttp_service:make_app"],
        b"Running on",
        b"",
    ),
}


@pytest.fixture(params=["aiohttp_service", "fastapi_service"])
def server(request: pytest.FixtureRequest) -> Server:
    return SERVERS[request.param]


@asynccontextmanager
async def _serving(server: Server, url: str = "", **environment: str) -> AsyncIterator[httpx.AsyncClient]:
    """Start a service, wait until it says that it is up, stop it by SIGTERM and check that it ended in order."""
    port = free_port()
    async with _started(*server.command(port), AMQP_URL=url, **environment) as process:
        assert process.stdout is not None
        log = b""
        while server.started not in log:
            line = await process.stdout.readline()
            assert line, f"ended before it was up:\n{log.decode()}"
            log += line
        # Read on: a service that logs into a full pipe stands still.
        reading = asyncio.create_task(process.stdout.read())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
                yield http
        except BaseException:
            process.kill()
            raise
        else:
            process.send_signal(signal.SIGTERM)
        finally:
            rest = await reading
        await process.wait()
        log += rest
        assert process.returncode in (0, -signal.SIGTERM), log.decode()  # uvicorn raises the signal again at its end
        assert server.stopped in log
        assert b"Traceback" not in log, log.decode()


async def _answer(http: httpx.AsyncClient, path: str, expected: Callable[[httpx.Response], bool]) -> httpx.Response:
    """Ask until the answer is the expected one; the test's timeout bounds it."""
    while not expected(answer := await http.get(path)):
        pass
    return answer


async def test_a_service_sends_consumes_and_ends_in_order(server: Server) -> None:
    """An order posted comes back through the broker; nothing stays behind at the broker after SIGTERM."""
    async with Broker() as broker:
        async with _serving(server, broker.url) as http:
            posted = await http.post("/orders", json={"id": 7, "item": "tea"})
            assert (posted.status_code, posted.json()) == (202, {"id": 7, "item": "tea"})
            handled = await _answer(http, "/orders", lambda answer: bool(answer.json()))
            assert handled.json() == [{"id": 7, "item": "tea"}]
            health = await http.get("/health")
            assert health.status_code == 200
            assert health.json()["links"] == {"sender orders": "open", "receiver orders": "open"}
        statistics = broker.statistics()
        assert (statistics.connections_total, statistics.connections, statistics.links) == (1, 0, 0)
        queue = statistics.queues["orders"]
        assert (queue.depth, queue.unsettled, queue.acknowledged) == (0, 0, 1)


async def test_a_service_answers_while_others_send(server: Server) -> None:
    """Many requests share the sender, and each is handled once."""
    async with Broker() as broker, _serving(server, broker.url) as http:
        orders = [{"id": number, "item": "tea"} for number in range(50)]
        answers = await asyncio.gather(*(http.post("/orders", json=order) for order in orders))
        assert {answer.status_code for answer in answers} == {202}
        handled = await _answer(http, "/orders", lambda answer: len(answer.json()) == 50)
        assert sorted(order["id"] for order in handled.json()) == list(range(50))


async def test_a_service_refuses_what_is_no_order(server: Server) -> None:
    """Over HTTP with 422, from the queue by rejecting it, and goes on."""
    async with Broker() as broker, _serving(server, broker.url) as http:
        assert (await http.post("/orders", json={"item": "tea"})).status_code == 422
        async with amqp.connect(broker.url) as connection, connection.sender("orders") as sender:
            await sender.send(amqp.Message(b"not json"))
            await sender.send(amqp.Message(b'{"id": 8, "item": "milk"}'))
        handled = await _answer(http, "/orders", lambda answer: bool(answer.json()))
        assert [order["id"] for order in handled.json()] == [8]
        assert broker.statistics().queues["orders"].dead_lettered == 1


async def test_a_service_that_lost_its_broker_says_so(server: Server) -> None:
    """Health and posting answer 503, and SIGTERM still ends it."""
    broker = Broker()
    async with broker:
        url = broker.url
        async with _serving(server, url) as http:
            await broker.close()
            health = await _answer(http, "/health", lambda answer: answer.status_code == 503)
            assert (health.json()["ok"], health.json()["connection"]) == (False, "closed")
            posted = await http.post("/orders", json={"id": 9, "item": "tea"})
            assert posted.status_code == 503


@asynccontextmanager
async def _broker(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The embedded broker in a process of its own, listening."""
    async with _started("-m", "amqpws_async", "broker", "--port", str(port)) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ws://127.0.0.1:%d/\n" % port
        yield process


async def test_a_service_outlives_its_broker() -> None:
    """It starts before the broker, answers while that is killed and restarted, and is ready whenever it is there."""
    port, service = free_port(), SERVERS["fastapi_client_service"]

    def status(code: int) -> Callable[[httpx.Response], bool]:
        return lambda answer: answer.status_code == code

    async def handles(number: int) -> bool:
        posted = await http.post("/orders", json={"id": number, "item": "tea"})
        handled = await _answer(http, "/orders", lambda answer: number in [order["id"] for order in answer.json()])
        return posted.status_code == 202 and handled.status_code == 200

    async def refuses(number: int) -> bool:
        assert (await http.get("/health/live")).status_code == 200
        posted = await http.post("/orders", json={"id": number, "item": "tea"})
        return posted.status_code == 503 and "Retry-After" in posted.headers

    async with _serving(service, f"ws://127.0.0.1:{port}", AMQP_DEADLINE="0.5") as http:
        assert (await http.get("/health/ready")).status_code == 503
        assert await refuses(1)
        for number in (10, 20):
            async with _broker(port) as broker:
                await _answer(http, "/health/ready", status(200))
                assert await handles(number)
                broker.kill()
                ready = await _answer(http, "/health/ready", status(503))
                assert ready.json()["state"] == "reconnecting"
                assert await refuses(number + 1)
        async with _broker(port):
            await _answer(http, "/health/ready", status(200))
            assert await handles(30)


async def test_a_service_without_a_broker_does_not_start(server: Server) -> None:
    """It ends by itself with an exit code that is not 0, and its log says what could not be reached."""
    port = free_port()
    async with _started(*server.command(free_port()), AMQP_URL=f"ws://127.0.0.1:{port}") as process:
        log, _ = await process.communicate()
    assert process.returncode not in (0, None)
    assert f"ws://127.0.0.1:{port}".encode() in log


async def test_a_service_on_event_mesh_publishes_events_and_consumes_them(tmp_path: Path) -> None:
    """A POST is an event on the topic, the queue's events are handled, what is none is rejected; ready while it is."""
    async with _event_mesh(tmp_path) as (mesh, key, environment):
        mesh.create_queue("${namespace}/dead")
        mesh.create_queue("${namespace}/orders", maxRedeliveryCount=1, deadMsgQueue="${namespace}/dead")
        mesh.subscribe("${namespace}/orders", "${namespace}/ce/orders/*")
        async with _serving(SERVERS["fastapi_event_mesh"], EVENT_MESH_KEY=key, **environment) as http:
            posted = await http.post("/orders", json={"id": 7, "item": "tea"})
            assert posted.status_code == 202
            handled = await _answer(http, "/orders", lambda answer: bool(answer.json()))
            assert handled.json() == [{"id": 7, "item": "tea"}]
            async with (
                eventmesh.connect(mesh.service_key(), ssl=mesh.ssl) as connected,
                connected.sender("topic:${namespace}/ce/orders/other") as sender,
                connected.receiver("queue:${namespace}/dead") as dead,
            ):
                await sender.send(amqp.Message(b"not an event"))
                assert (await dead.receive()).body == b"not an event"
            assert (await http.get("/ready")).status_code == 200
        assert mesh.broker.statistics().queues["example/shop/1/orders"].acknowledged == 1


async def test_a_service_on_event_mesh_survives_it(tmp_path: Path) -> None:
    """It starts without a broker, says so while there is none, and is at work again as soon as there is one."""
    async with _event_mesh(tmp_path) as (mesh, key, environment):
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/ce/orders/*")
        await mesh.broker.close()
        async with _serving(SERVERS["fastapi_event_mesh"], EVENT_MESH_KEY=key, **environment) as http:
            for number in range(2):
                ready = await _answer(http, "/ready", lambda answer: answer.status_code == 503)
                assert ready.json()["client"] == ("reconnecting" if number else "connecting")
                refused = await http.post("/orders", json={"id": 1, "item": "tea"})
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
                assert (await http.get("/orders")).status_code == 200
                await mesh.broker.start()
                await _answer(http, "/ready", lambda answer: answer.status_code == 200)
                wanted = {"id": 2 + number, "item": "tea"}
                assert (await http.post("/orders", json=wanted)).status_code == 202
                await _answer(http, "/orders", lambda answer, wanted=wanted: wanted in answer.json())  # type: ignore[misc]
                await mesh.broker.close()


async def test_events_of_the_service_are_cloudevents(tmp_path: Path) -> None:
    """Whoever else subscribes can read them."""
    async with _event_mesh(tmp_path) as (mesh, key, environment):
        for queue in ("orders", "others"):
            mesh.create_queue(f"${{namespace}}/{queue}")
        mesh.subscribe("${namespace}/others", "${namespace}/ce/orders/created")
        async with _serving(SERVERS["fastapi_event_mesh"], EVENT_MESH_KEY=key, **environment) as http:
            await http.post("/orders", json={"id": 7, "item": "tea"})
        async with (
            eventmesh.connect(mesh.service_key(), ssl=mesh.ssl) as connected,
            connected.receiver("queue:${namespace}/others") as receiver,
        ):
            event = cloudevents.from_message((await receiver.receive()).message)
        assert event.get_type() == "example.orders.created.v1"
        assert event.get_data() == {"id": 7, "item": "tea"}
