"""SAP Event Mesh: from a service key or a binding to messages flowing.

::

    from amqpws_async import Message, eventmesh

    async with eventmesh.connect("key.json") as mesh:  # without an argument: the service bound to this application
        async with mesh.sender("topic:${namespace}/orders/created") as sender:
            await sender.send(Message(b"{}", content_type="application/json"))
        async with mesh.receiver("queue:${namespace}/orders") as receiver:
            async for delivery in receiver:
                await delivery.accept()

* `key`: what a service key says. `bindings`: where one is found, on Cloud Foundry and Kubernetes.
* `addresses`: queues, topics and namespaces, and the rules for their names.
* `connection`: `connect`, and the connection that keeps to Event Mesh's rules.
* `management`: queues and their subscriptions, over REST. `cloudevents`: CloudEvents to messages and back, with the
  extra ``cloudevents``. Both are imported by their names.

Nothing of this package is loaded by ``import amqpws_async``.
"""

from __future__ import annotations

from .connection import EventMeshConnection, EventMeshSender, connect
from .key import Endpoint, ServiceKey, ServiceKeyError

__all__ = ["Endpoint", "EventMeshConnection", "EventMeshSender", "ServiceKey", "ServiceKeyError", "connect"]
