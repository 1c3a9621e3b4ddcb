"""What tests, demonstrations and development need instead of a real broker.

`Broker` is a real AMQP 1.0 broker in your process; nothing in it is shared with the client but AMQP's own rules (the
engine and the codec). Nothing of this package is loaded by `import amqpws_async`.
"""

from __future__ import annotations

from .attaching import LinkRequest
from .broker import Broker, Refusal
from .statistics import BrokerStatistics, QueueStatistics, TopicStatistics

__all__ = ["Broker", "BrokerStatistics", "LinkRequest", "QueueStatistics", "Refusal", "TopicStatistics"]
