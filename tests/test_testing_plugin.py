"""The pytest plugin as its users have it: pytest runs of their own, with each runner for async tests there is."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, ServerThread, faults

ROOT = Path(__file__).parent.parent
PLUGIN = "amqpws_async.testing.pytest_plugin"
INSTALLED = any(point.value == PLUGIN for point in importlib.metadata.entry_points(group="pytest11"))

HEAD = """
import asyncio

import pytest

import amqpws_async as amqp
from amqpws_async.testing import faults

"""

ASYNC = """
async def test_a_message_goes_round(amqp_broker, amqp_connection):
    async with amqp_connection as connection, connection.sender("q") as sender, connection.receiver("q") as receiver:
        await sender.send(amqp.Message(b"1"))
        delivery = await receiver.receive()
        await delivery.accept()
        await receiver.drain()
    assert amqp_broker.statistics().queues["q"].acknowledged == 1


async def test_the_next_test_has_another_broker(amqp_broker, amqp_connection, amqp_faults):
    assert amqp_broker.statistics().queues == {}
    amqp_faults.inject(faults.DetachLink(on="arrival", address="q"), faults.LoseOutcome())
    connection = await amqp_connection
    sender = await connection.sender("q")
    with pytest.raises(amqp.DeliveryUnknown):
        await sender.send(amqp.Message(b"1"))
    assert [message.body for message in amqp_broker.messages("q")] == [b"1"]
    await amqp_broker.disconnect()
    with pytest.raises(amqp.ConnectionClosed):
        await connection.sender("q")
    await connection.close()


async def test_a_broker_that_closes_in_order(amqp_broker, amqp_connection):
    async with asyncio.timeout(4):  # this loop is free to answer
        connection = await amqp_connection
        await amqp_broker.close()
        with pytest.raises(amqp.ConnectionClosed, match="shutting down"):
            await connection.sender("q")
        await connection.close()
        await amqp_broker.start()
        async with amqp.connect(amqp_broker.url):
            pass


async def test_the_network_fails(amqp_proxy):
    connection = await amqp.connect(amqp_proxy.url)
    receiver = await connection.receiver("q")
    amqp_proxy.cut()
    with pytest.raises(amqp.ConnectionClosed):
        await receiver.receive()
    await connection.close()
    assert (amqp_proxy.accepted, amqp_proxy.faults) == (1, 1)


async def test_a_client_comes_back(amqp_broker, amqp_client):
    async with asyncio.timeout(4), amqp_client as client, client.sender("q", on_unknown="resend") as sender:
        await sender.send(amqp.Message(b"1"))
        await amqp_broker.disconnect()
        await sender.send(amqp.Message(b"2"))
    assert [message.body for message in amqp_broker.messages("q")] == [b"1", b"2"]


async def test_left_open(amqp_connection):
    global left
    left = await amqp_connection
"""

ANYIO = """
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"

"""

PLAIN = """
def test_with_a_loop_of_its_own(amqp_broker, amqp_connection):
    async def send():
        async with amqp_connection as connection, connection.sender("q") as sender:
            await sender.send(amqp.Message(b"1"))

    asyncio.run(send())
    assert amqp_broker.statistics().queues["q"].depth == 1
    asyncio.run(amqp_broker.disconnect())


def test_a_proxy_that_refuses(amqp_proxy):
    async def connect():
        async with amqp.connect(amqp_proxy.url):
            pass

    amqp_proxy.refuse()
    with pytest.raises(amqp.OpenError):
        asyncio.run(connect())
    amqp_proxy.accept()
    asyncio.run(connect())


class TestOptions:
    @pytest.fixture
    def amqp_broker_options(self):
        return {"users": {"me": "secret"}}

    def test_options(self, amqp_broker):
        async def connect(sasl):
            async with amqp.connect(amqp_broker.url, sasl=sasl):
                pass

        with pytest.raises(amqp.AuthenticationError):
            asyncio.run(connect(amqp.Plain("me", "guessed")))
        asyncio.run(connect(amqp.Plain("me", "secret")))
"""

MESH = """
from amqpws_async import eventmesh


@pytest.fixture
def amqp_event_mesh_options():
    return {"namespace": "example/shop/9"}


def test_the_event_mesh(amqp_event_mesh, tmp_path):
    mesh = amqp_event_mesh
    mesh.create_queue("${namespace}/orders")
    mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
    key, ca = mesh.write_key(tmp_path)
    assert mesh.queues == {"example/shop/9/orders": frozenset({"example/shop/9/order/*"})}

    async def story():
        async with eventmesh.connect(key, ssl=mesh.ssl) as connection:
            async with connection.sender("topic:${namespace}/order/created") as sender:
                await sender.send(amqp.Message(b"1"))

    asyncio.run(story())
    assert mesh.token_server.token_count == 1
    assert [message.body for message in mesh.broker.messages("queue:example/shop/9/orders")] == [b"1"]
    with pytest.raises(LookupError, match="no queue"):
        mesh.delete_queue("example/shop/9/nothing")
"""


def run(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A pytest run of a user's, where warnings are errors."""
    (folder / "test_users.py").write_text(HEAD + text, encoding="utf-8")
    loaded = () if INSTALLED else ("-p", PLUGIN)
    arguments = arguments or ("-p", "no:asyncio")  # which warns of what is not configured, used or not
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *loaded, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=50)


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tests have passed, if all have."""
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    return int(last.partition(" passed")[0])


# --- the runners -----------------------------------------------------------------------------


def test_with_loops_of_their_own(tmp_path: Path) -> None:
    """Plain tests, which call asyncio.run."""
    assert passed(run(tmp_path, PLAIN)) == 3


def test_with_anyio(tmp_path: Path) -> None:
    """Tests that anyio's plugin runs; a connection left open hinders nobody, and the warning is for its owner."""
    assert passed(run(tmp_path, ANYIO + ASYNC, "-W", "ignore::ResourceWarning", "-p", "no:asyncio")) == 6


def test_with_pytest_asyncio(tmp_path: Path) -> None:
    """Tests that pytest-asyncio runs, in its automatic mode."""
    scope = "asyncio_default_fixture_loop_scope=function"
    options = ("--asyncio-mode=auto", "-o", scope, "-W", "ignore::ResourceWarning")
    assert passed(run(tmp_path, ASYNC, *options)) == 6


def test_the_event_mesh(tmp_path: Path) -> None:
    """Its methods, its parts, its key and its certificates are as usual."""
    assert passed(run(tmp_path, MESH)) == 1


# --- who does not use it ---------------------------------------------------------------------


def test_a_run_that_does_not_use_it(tmp_path: Path) -> None:
    """Nothing is loaded for it but the package, there is no thread, and no warning."""
    text = """
import sys
import threading


def test_nothing_happens():
    assert not {"aiohttp", "trustme", "amqpws_async.eventmesh", "amqpws_async.testing.threads"} & set(sys.modules)
    assert threading.active_count() == 1
"""
    (tmp_path / "test_other.py").write_text(text, encoding="utf-8")
    assert passed(run(tmp_path, "", "test_other.py", "-p", "no:asyncio")) == 1


# --- servers on a thread ---------------------------------------------------------------------


def test_a_server_on_a_thread() -> None:
    """Values, errors, attributes and parts pass between the threads; at the end the thread is gone."""
    with ServerThread() as thread:
        broker = thread.enter(Broker())
        proxy = thread.enter(FaultProxy(broker.url))
        assert repr(broker) == f"<Broker {broker.url} listening, 0 connections>"
        broker.put("q", amqp.Message(b"1"))
        broker.put("queue:q", amqp.Message(b"2").encode())
        assert [message.body for message in broker.messages("q")] == [b"1", b"2"]
        with pytest.raises(LookupError, match="no node"):
            broker.put("", amqp.Message(b"1"))
        with pytest.raises(LookupError, match="no queue"):
            broker.messages("topic:t")
        broker.faults.inject(faults.RefuseUpgrade())
        proxy.host = "127.0.0.2"
        assert proxy.url.startswith("ws://127.0.0.2:")
        proxy.host = "127.0.0.1"

        async def story() -> None:
            with pytest.raises(amqp.HandshakeError):
                await amqp.connect(proxy.url)

        asyncio.run(story())
        assert broker.faults.counts == {"RefuseUpgrade": 1}
        with pytest.raises(RuntimeError, match="already"):
            asyncio.run(broker.start())
        assert any(one.name == "amqpws_async.testing" for one in threading.enumerate())
    assert not any(one.name == "amqpws_async.testing" for one in threading.enumerate())


def test_a_server_that_cannot_start() -> None:
    """The error is the caller's, and the thread ends."""
    with pytest.raises(OSError, match=r"192\.0\.2\.1"), ServerThread() as thread:
        thread.enter(Broker("192.0.2.1"))
    assert not any(one.name == "amqpws_async.testing" for one in threading.enumerate())


def test_a_broker_that_was_not_started() -> None:
    """It has no nodes yet."""
    with pytest.raises(RuntimeError, match="start"):
        Broker().messages("q")
