"""Fixtures for tests of a service that speaks AMQP; pytest finds them by itself once the package is installed.

=====================  ==============================================================================================
fixture                what it is
=====================  ==============================================================================================
``amqp_broker``        a running `Broker`, new for each test: ``amqp_broker.url``, ``put``, ``messages``,
                       ``statistics``, ``disconnect``
``amqp_faults``        what goes wrong at that broker: ``inject``, ``detach_links``, ``close_connections`` and more
``amqp_proxy``         a `FaultProxy` in front of it: ``amqp_proxy.url``, ``cut``, ``reset``, ``stall``, ``refuse``
``amqp_connection``    a connection to it that is yet to open: ``async with amqp_connection as connection``
``amqp_client``        a `Client` of it that is yet to open, and that is quick to come back: ``async with amqp_client``
``amqp_event_mesh``    a running `EventMesh`, new for each test: ``service_key``, ``write_key``, ``create_queue``
=====================  ==============================================================================================

To give broker, client or event mesh arguments, override ``amqp_broker_options``, ``amqp_client_options`` or
``amqp_event_mesh_options``.

None of them needs an async fixture or a certain runner: they are the same for pytest-asyncio, for anyio's plugin and
for tests that call `asyncio.run`. The servers run on a thread with a loop of their own. What the fixtures give can be
used from any thread: methods return when it is done, which takes less than a millisecond, and coroutines, such as
``amqp_broker.disconnect()``, can be awaited on any asyncio loop. Nothing is loaded before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..client import Client
    from ..connection import Connection
    from ..endpoint import Opening
    from . import Broker, EventMesh, FaultProxy, Injector
    from .threads import ServerThread


@pytest.fixture
def _amqp_thread() -> Iterator[ServerThread]:
    from .threads import ServerThread

    with ServerThread() as thread:
        yield thread


@pytest.fixture
def amqp_broker_options() -> dict[str, Any]:
    """Arguments of the broker; override it to give some."""
    return {}


@pytest.fixture
def amqp_broker(_amqp_thread: ServerThread, amqp_broker_options: dict[str, Any]) -> Broker:
    """A running `amqpws_async.testing.Broker` on a thread of its own, to be used from anywhere."""
    from .broker import Broker

    return _amqp_thread.enter(Broker(**amqp_broker_options))


@pytest.fixture
def amqp_faults(amqp_broker: Broker) -> Injector:
    """The faults of `amqp_broker`: `inject` them, or make them happen at once."""
    return amqp_broker.faults


@pytest.fixture
def amqp_proxy(_amqp_thread: ServerThread, amqp_broker: Broker) -> FaultProxy:
    """A running `amqpws_async.testing.FaultProxy` in front of `amqp_broker`; connect to its URL instead."""
    from .proxy import FaultProxy

    return _amqp_thread.enter(FaultProxy(amqp_broker.url))


@pytest.fixture
def amqp_connection(amqp_broker: Broker) -> Opening[Connection]:
    """A connection to `amqp_broker` that the test opens, on its own loop, by ``async with`` or ``await``."""
    from .. import connect

    return connect(amqp_broker.url)


@pytest.fixture
def amqp_client_options() -> dict[str, Any]:
    """Arguments of the client; override it to give some."""
    return {}


@pytest.fixture
def amqp_client(amqp_broker: Broker, amqp_client_options: dict[str, Any]) -> Client:
    """A client of `amqp_broker` that the test opens, on its own loop, by ``async with`` or its `open`."""
    from .. import Backoff, Client

    return Client(amqp_broker.url, **{"backoff": Backoff(initial=0.01, maximum=0.1), **amqp_client_options})


@pytest.fixture
def amqp_event_mesh_options() -> dict[str, Any]:
    """Arguments of the event mesh; override it to give some."""
    return {}


@pytest.fixture
def amqp_event_mesh(_amqp_thread: ServerThread, amqp_event_mesh_options: dict[str, Any]) -> EventMesh:
    """A running `amqpws_async.testing.EventMesh` on a thread of its own; needs the extra ``testing``."""
    from .event_mesh import EventMesh

    return _amqp_thread.enter(EventMesh(**amqp_event_mesh_options))
