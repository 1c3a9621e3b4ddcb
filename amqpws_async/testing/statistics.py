"""A picture of a broker at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BrokerStatistics", "QueueStatistics", "TopicStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What a queue, or one subscription of a topic, holds and has seen.

    Attributes:
        depth: Messages ready to be delivered.
        bytes: Encoded size of all messages held, ready or unsettled.
        unsettled: Messages with a consumer that has not settled them yet.
        consumers: Links that receive from it.
        enqueued: Messages that were ever put in.
        acknowledged: Messages that a consumer accepted, or got settled.
        redelivered: Times that a message came back to be delivered again.
        dead_lettered: Messages that were rejected, or failed too often.
        expired: Messages dropped because their ttl was over.
        discarded: Messages dropped with their node, or for lack of room among the dead letters.
    """

    depth: int = 0
    bytes: int = 0
    unsettled: int = 0
    consumers: int = 0
    enqueued: int = 0
    acknowledged: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    expired: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatistics:
    """What a topic has seen.

    Attributes:
        published: Messages that were sent to it.
        subscriptions: The subscriptions there are, the durable ones without a link too.
    """

    published: int = 0
    subscriptions: tuple[QueueStatistics, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatistics:
    """What a broker holds and has seen.

    Attributes:
        connections: AMQP connections that are open.
        sessions: Sessions on them.
        links: Links on these.
        connections_total: AMQP connections that were ever opened.
        queues: By name, without the ``queue:`` prefix; the dead letters are the queue ``dead-letter``.
        topics: By name, without the ``topic:`` prefix.
    """

    connections: int = 0
    sessions: int = 0
    links: int = 0
    connections_total: int = 0
    queues: Mapping[str, QueueStatistics] = field(default_factory=dict)
    topics: Mapping[str, TopicStatistics] = field(default_factory=dict)
