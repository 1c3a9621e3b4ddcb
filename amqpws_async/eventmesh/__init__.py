"""SAP Event Mesh: from a service key or a binding to messages flowing.

::

    from amqpws_async import Message, eventmesh

    async with eventmesh.client("key.json") as mesh:  # without an argument: the service bound to this application
        async with mesh.sender("topic:${namespace}/orders/created") as sender:
            await sender.send(Message(b"{}", content_type="application/json"))
        async with mesh.receiver("queue:${namespace}/orders") as receiver:
            async for delivery in receiver:
                await delivery.accept()

* `key`: what a service key says. `bindings`: where one is found, on Cloud Foundry and Kubernetes.
* `addresses`: queues, topics and namespaces, and the rules for their names.
* `rules`: what Event Mesh allows. `access`: what a key gives to connections, also after it was replaced.
* `mesh_client`: `client`, whose connection comes back. `connection`: `connect`, for one connection, as AMQP has it.
  `sender`: what both send by.
* `management`: queues and their subscriptions, over REST. `cloudevents`: CloudEvents to messages and back, with the
  extra ``cloudevents``. Both are imported by their names.

Nothing of this package is loaded by ``import amqpws_async``.
"""

from __future__ import annotations

from .connection import EventMeshConnection, EventMeshSender, connect
from .key import Endpoint, ServiceKey, ServiceKeyError
from .mesh_client import EventMeshClient, client

__all__ = [
    "Endpoint",
    "EventMeshClient",
    "EventMeshConnection",
    "EventMeshSender",
    "ServiceKey",
    "ServiceKeyError",
    "client",
    "connect",
]
