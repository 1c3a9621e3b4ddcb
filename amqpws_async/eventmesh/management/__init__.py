"""Queues and what they subscribe to, over Event Mesh's management REST API.

::

    async with ManagementClient("key.json") as management:
        await management.create_queue("${namespace}/orders", max_ttl=86400)
        await management.set_subscriptions("${namespace}/orders", ["${namespace}/order/*"])

The service key has a section ``management`` for it, with a client of its own, if the service descriptor asks for one.
The paths are those of SAP's "Messaging Management REST", of which Integration Suite has the same below another base.
Every request may be made again: it says what is to be there, not what is to be done.

`client` has the operations, `queues` what they give back, `api` the requests.
"""

from __future__ import annotations

from .api import ManagementError
from .client import ManagementClient
from .queues import Queue, QueueProperties, SubscriptionChanges

__all__ = ["ManagementClient", "ManagementError", "Queue", "QueueProperties", "SubscriptionChanges"]
