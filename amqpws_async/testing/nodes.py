"""The nodes of the embedded broker by address, without I/O: queues, topics, dynamic nodes, dead letters."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import DecodeError, ErrorCondition
from ..message import check_encoded, lazy
from ..terminus import Source
from .queues import Publisher, Queue, Selector, deleted, matches, rewritten
from .statistics import QueueStatistics, TopicStatistics

__all__ = ["DEAD_LETTER", "Durable", "Nodes", "Topic"]

#: The queue for messages that were rejected, or failed too often.
DEAD_LETTER: Final = "dead-letter"

_QUEUE, _TOPIC, _DYNAMIC = "queue:", "topic:", "dynamic/"


class Topic:
    """A topic: every message goes to every subscription there is at that moment.

    Attributes:
        address: Its name, with the prefix.
        subscriptions: The queue of each subscription, by what identifies it.
        publishers: Who sends to it.
    """

    def __init__(self, nodes: Nodes, address: str) -> None:
        self.address = address
        self.subscriptions: dict[Any, Queue] = {}
        self.publishers: dict[Publisher, None] = {}
        self._nodes = nodes
        self._published = 0

    @property
    def room(self) -> int:
        """Bytes until the fullest subscription is full."""
        return min((queue.room for queue in self.subscriptions.values()), default=self._nodes.max_queue_bytes)

    def fullest(self) -> Queue | None:
        """The subscription with the least room."""
        return min(self.subscriptions.values(), key=lambda queue: queue.room, default=None)

    def put(self, raw: bytes, expires: float | None = None) -> None:
        """Give a message to every subscription whose selector takes it."""
        self._published += 1
        for queue in list(self.subscriptions.values()):
            if queue.selector is None or matches(queue.selector, raw):
                queue.put(raw, expires)

    def subscribe(self, key: Any, selector: Selector | None = None) -> Queue:
        """Add a subscription."""
        self.subscriptions[key] = queue = Queue(self._nodes, self.address, selector)
        return queue

    def unsubscribe(self, key: Any) -> None:
        """Remove a subscription and what it holds."""
        queue = self.subscriptions.pop(key, None)
        if queue is not None:
            queue.delete()

    def delete(self) -> None:
        """End everybody who uses it, and remove every subscription."""
        for publisher in list(self.publishers):
            publisher.evict(deleted(self.address))
        for key in list(self.subscriptions):
            self.unsubscribe(key)

    def statistics(self) -> TopicStatistics:
        """Count what was published, and each subscription."""
        return TopicStatistics(
            published=self._published,
            subscriptions=tuple(queue.statistics() for queue in self.subscriptions.values()),
        )


@dataclass(frozen=True, slots=True)
class Durable:
    """A subscription that outlives its link.

    Attributes:
        topic: What is subscribed to.
        queue: Its messages.
        source: What the client asked for.
        expression: Its selector, or None.
    """

    topic: Topic
    queue: Queue
    source: Source
    expression: str | None


class Nodes:
    """All nodes of a broker, by address.

    Args:
        max_queue_bytes: Bytes at which a queue is full.
        max_delivery_count: Failed attempts after which a message is a dead letter, or None for no limit.
        clock: Seconds, for the expiry of messages.
    """

    def __init__(self, max_queue_bytes: int, max_delivery_count: int | None, clock: Callable[[], float]) -> None:
        self.max_queue_bytes = max_queue_bytes
        self.max_delivery_count = max_delivery_count
        self.clock = clock
        #: Durable subscriptions by container id and link name, with what each was made of.
        self.durable: dict[tuple[str, str], Durable] = {}
        self._queues: dict[str, Queue] = {}
        self._topics: dict[str, Topic] = {}

    def find(self, address: str, *, topic: bool = False) -> Queue | Topic | None:
        """Find a node, and create it on first use; None for an address that cannot have one.

        Args:
            address: ``topic:NAME``, ``queue:NAME`` or NAME, which is a queue.
            topic: Whether a NAME without prefix is a topic.
        """
        name = address.removeprefix(_QUEUE)
        if address.startswith(_TOPIC) or (topic and name == address):
            name = address.removeprefix(_TOPIC)
            node = self._topics.get(name)
            if node is None and name and not name.startswith(_DYNAMIC):
                node = self._topics[name] = Topic(self, _TOPIC + name)
            return node
        queue = self._queues.get(name)
        if queue is None and name and not name.startswith(_DYNAMIC):
            queue = self._queues[name] = Queue(self, name)
        return queue

    def create_dynamic(self, *, topic: bool = False) -> tuple[str, Queue | Topic]:
        """Create a node with an address of our choice."""
        name = _DYNAMIC + uuid.uuid4().hex
        if topic:
            self._topics[name] = made = Topic(self, _TOPIC + name)
            return made.address, made
        self._queues[name] = queue = Queue(self, name)
        return name, queue

    def delete(self, node: Queue | Topic) -> None:
        """Remove a dynamic node: what it holds is lost, who receives from it is told."""
        nodes: dict[str, Any] = self._topics if isinstance(node, Topic) else self._queues
        nodes.pop(node.address.removeprefix(_TOPIC), None)
        node.delete()

    def subscribe_durably(
        self, key: tuple[str, str], topic: Topic, source: Source, expression: str | None, selector: Selector | None
    ) -> Queue:
        """Find the durable subscription of that container and link, or make it; one to something else is replaced."""
        durable = self.durable.get(key)
        if durable is not None:
            if durable.topic is topic and durable.expression == expression:
                stolen = ErrorCondition("amqp:link:stolen", "the same container attached this link again")
                for consumer in list(durable.queue.consumers):
                    consumer.evict(stolen, closed=False)
                return durable.queue
            self.unsubscribe_durably(key)
        queue = topic.subscribe(key, selector)
        self.durable[key] = Durable(topic, queue, source, expression)
        return queue

    def unsubscribe_durably(self, key: tuple[str, str]) -> None:
        """Remove a durable subscription and what it holds."""
        durable = self.durable.pop(key, None)
        if durable is not None:
            durable.topic.unsubscribe(key)

    def expiry(self, raw: bytes) -> float | None:
        """When a message that arrives now expires, by the ttl of its header.

        Raises:
            DecodeError: The bytes are no message, as far as they were looked at.
        """
        try:
            check_encoded(raw)
        except ValueError as exc:
            raise DecodeError("these bytes begin with no section of a message") from exc
        if raw[1] == 0x53 and raw[2] != 0x70:
            return None  # there is no header
        ttl = lazy(raw).ttl
        return self.clock() + ttl if ttl else None  # 0 is "for ever" to most clients

    def bury(self, raw: bytes, queue: Queue, error: ErrorCondition) -> None:
        """Move a message to the dead letters; from there it can only be dropped."""
        if queue.address == DEAD_LETTER:
            return
        annotations = {
            "x-opt-dead-letter-source": queue.address,
            "x-opt-dead-letter-condition": error.condition,
            "x-opt-dead-letter-description": error.description or "",
        }
        dead = self.find(DEAD_LETTER)
        assert isinstance(dead, Queue)
        dead.put(rewritten(raw, annotations=annotations))
        # Nobody can be made to wait here, so the oldest go.
        while dead.room <= 0 and dead.discard_oldest():
            pass

    def queues(self) -> Iterator[tuple[str, QueueStatistics]]:
        """Statistics by name of the queue."""
        return ((name, queue.statistics()) for name, queue in self._queues.items())

    def topics(self) -> Iterator[tuple[str, TopicStatistics]]:
        """Statistics by name of the topic."""
        return ((name, topic.statistics()) for name, topic in self._topics.items())
