"""The queues of an Event Mesh and the topics they subscribe to, without I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ...errors import ErrorCondition
from ...outcomes import Modified, Outcome, Rejected
from ..nodes import Nodes, Topic
from ..queues import Entry, Queue
from .names import covers

__all__ = ["MeshNodes", "MeshQueue"]

_FAILED: Final = Modified(delivery_failed=True)


class MeshQueue(Queue):
    """A queue that somebody has created.

    Attributes:
        subscriptions: The patterns of topics that it gets messages of.
        properties: What it was configured with, in the words of the management API. ``maxRedeliveryCount`` and
            ``deadMsgQueue`` count here.
    """

    def __init__(self, nodes: Nodes, name: str) -> None:
        super().__init__(nodes, name)
        self.subscriptions: set[str] = set()
        self.properties: dict[str, Any] = {}

    def configure(self, properties: Mapping[str, Any]) -> None:
        """Change properties.

        Raises:
            ValueError: One that counts here has a value that it cannot have.
        """
        redeliveries = properties.get("maxRedeliveryCount", 0)
        if not isinstance(redeliveries, int) or not 0 <= redeliveries <= 255:
            raise ValueError("maxRedeliveryCount: 0, for no limit, to 255")
        if not isinstance(properties.get("deadMsgQueue", ""), str):
            raise ValueError("deadMsgQueue: the name of a queue")
        self.properties.update(properties)
        if "maxRedeliveryCount" in properties:
            self.max_delivery_count = redeliveries + 1 if redeliveries else None

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Record how a delivery ended. A rejected message comes again until `maxRedeliveryCount` is reached."""
        super().settle(entry, _FAILED if isinstance(outcome, Rejected) else outcome)


class MeshNodes(Nodes):
    """All queues of an Event Mesh, and the topics that were published to.

    Args:
        max_queue_bytes: Bytes at which a queue is full.
    """

    _queues: dict[str, MeshQueue]  # type: ignore[assignment]

    def __init__(self, max_queue_bytes: int) -> None:
        super().__init__(max_queue_bytes, None, time.monotonic)

    @property
    def by_name(self) -> Mapping[str, MeshQueue]:
        """The queues."""
        return MappingProxyType(self._queues)

    def create_queue(self, name: str, properties: Mapping[str, Any]) -> MeshQueue:
        """Create a queue, or change the properties of the one that is there.

        Raises:
            ValueError: See `MeshQueue.configure`.
        """
        queue = self._queues.get(name) or MeshQueue(self, name)
        queue.configure(properties)
        self._queues[name] = queue
        return queue

    def delete_queue(self, queue: MeshQueue) -> None:
        """Delete a queue with what it holds; who uses it is told."""
        self._queues.pop(queue.address)
        for pattern in list(queue.subscriptions):
            self.unsubscribe(queue, pattern)
        queue.delete()

    def subscribe(self, queue: MeshQueue, pattern: str) -> None:
        """Give a queue the messages of all topics that a pattern covers."""
        queue.subscriptions.add(pattern)
        for name, topic in self._topics.items():
            if covers(pattern, name):
                topic.subscriptions[queue.address] = queue

    def unsubscribe(self, queue: MeshQueue, pattern: str) -> None:
        """Undo `subscribe`; what is in the queue stays there."""
        queue.subscriptions.remove(pattern)
        for name, topic in self._topics.items():
            if not _subscribes(queue, name):
                topic.subscriptions.pop(queue.address, None)
        queue.unblock()  # a publisher may have waited for it in vain

    def find(self, address: str, *, topic: bool = False) -> Queue | Topic | None:
        """Find a queue or a topic. Queues are not created by using them, and topics are always there.

        Args:
            address: ``queue:NAME`` or ``topic:NAME``.
            topic: Makes no difference.
        """
        kind, _, name = address.partition(":")
        if kind == "queue":
            return self._queues.get(name)
        if kind != "topic":
            return None
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = Topic(self, address)
            queues = self._queues.values()
            found.subscriptions.update((queue.address, queue) for queue in queues if _subscribes(queue, name))
        return found

    def bury(self, raw: bytes, queue: Queue, error: ErrorCondition) -> None:
        """Move a message to the dead message queue of the queue that it failed in; drop it if there is none."""
        assert isinstance(queue, MeshQueue)
        dead = self._queues.get(queue.properties.get("deadMsgQueue", ""))
        if dead is not None:
            dead.put(raw)
            # Nobody can be made to wait here, so the oldest go.
            while dead.room <= 0 and dead.discard_oldest():
                pass


def _subscribes(queue: MeshQueue, topic: str) -> bool:
    return any(covers(pattern, topic) for pattern in queue.subscriptions)
