"""What tests, demonstrations and development need instead of a real broker.

`Broker` is a real AMQP 1.0 broker in your process; nothing in it is shared with the client but AMQP's own rules (the
engine and the codec). `TokenServer` is a token endpoint that behaves as Cloud Foundry's UAA, and `EventMesh` puts both
together, by the rules of SAP's Event Mesh. These two need aiohttp, which is loaded when they are first asked for.

What goes wrong is said beforehand or happens at once: at the broker (`amqpws_async.testing.faults`, `Broker.faults`)
and on the network (`FaultProxy`). `amqpws_async.testing.pytest_plugin` has fixtures of all this, for any test runner.
Nothing of this package is loaded by `import amqpws_async`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from .attaching import LinkRequest
from .broker import Broker, Refusal
from .injection import Injector
from .proxy import FaultProxy, Lane, ProxyConnection, Wire
from .statistics import BrokerStatistics, QueueStatistics, TopicStatistics

if TYPE_CHECKING:
    from .event_mesh import EventMesh
    from .threads import ServerThread
    from .token_server import TokenAnswer, TokenRequest, TokenServer, UAABehaviour

__all__ = [
    "Broker",
    "BrokerStatistics",
    "EventMesh",
    "FaultProxy",
    "Injector",
    "Lane",
    "LinkRequest",
    "ProxyConnection",
    "QueueStatistics",
    "Refusal",
    "ServerThread",
    "TokenAnswer",
    "TokenRequest",
    "TokenServer",
    "TopicStatistics",
    "UAABehaviour",
    "Wire",
]

_HOMES: Final = {
    "EventMesh": "event_mesh",
    "ServerThread": "threads",
    "TokenAnswer": "token_server",
    "TokenRequest": "token_server",
    "TokenServer": "token_server",
    "UAABehaviour": "token_server",
}


def __getattr__(name: str) -> Any:
    """Load what not everybody needs when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
