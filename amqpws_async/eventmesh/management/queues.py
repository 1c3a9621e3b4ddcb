"""What the management API tells of a queue, and what may be set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal, TypedDict

__all__ = ["Queue", "QueueProperties", "SubscriptionChanges", "as_queue", "camel_case"]


class QueueProperties(TypedDict, total=False):
    """What `ManagementClient.create_queue` sets; the attributes of `Queue` with these names say what each is."""

    access_type: Literal["EXCLUSIVE", "NON_EXCLUSIVE"]
    dead_msg_queue: str
    max_delivered_unacked_msgs_per_flow: int
    max_message_size_in_bytes: int
    max_queue_message_count: int
    max_queue_size_in_bytes: int
    max_redelivery_count: int
    max_ttl: int
    respect_ttl: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as the management API describes it. What it does not tell is None; the two services tell different parts.

    Attributes:
        name: The full name, namespace included.
        access_type: ``"NON_EXCLUSIVE"``: its consumers share the messages; ``"EXCLUSIVE"``: one at a time gets all.
        dead_msg_queue: The queue for messages that expired or came back too often.
        max_delivered_unacked_msgs_per_flow: Messages that one consumer may hold unsettled; a receiver gets no more,
            whatever its credit. 10 000 by default.
        max_message_size_in_bytes: The largest message.
        max_queue_message_count: The most messages.
        max_queue_size_in_bytes: The most bytes of messages; Event Mesh rounds up to a multiple of 1 MiB.
        max_redelivery_count: 0 to 255: how often a message may be delivered again; 0 is no limit.
        max_ttl: Seconds after which a message expires.
        respect_ttl: Whether messages expire at all.
        message_count: Messages in it now.
        queue_size_in_bytes: Bytes of messages in it now.
        unacknowledged_message_count: Messages that consumers have and did not settle yet.
        raw: All that the server told, by its own names.
    """

    name: str
    access_type: str | None = None
    dead_msg_queue: str | None = None
    max_delivered_unacked_msgs_per_flow: int | None = None
    max_message_size_in_bytes: int | None = None
    max_queue_message_count: int | None = None
    max_queue_size_in_bytes: int | None = None
    max_redelivery_count: int | None = None
    max_ttl: int | None = None
    respect_ttl: bool | None = None
    message_count: int | None = None
    queue_size_in_bytes: int | None = None
    unacknowledged_message_count: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


_KINDS: Final = {"str | None": str, "int | None": int, "bool | None": bool}
_FIELDS: Final = {item.name: _KINDS[str(item.type)] for item in fields(Queue) if item.type in _KINDS}


def camel_case(name: str) -> str:
    """The API's spelling: ``max_ttl`` is ``maxTtl`` there."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def as_queue(raw: Mapping[str, Any]) -> Queue:
    """Make a queue of what the server told, which has a name at least; what is of another type stays in `raw`."""
    told: dict[str, Any] = {
        name: value for name, kind in _FIELDS.items() if type(value := raw.get(camel_case(name))) is kind
    }
    return Queue(name=str(raw["name"]), raw=MappingProxyType(dict(raw)), **told)


@dataclass(frozen=True, slots=True)
class SubscriptionChanges:
    """What `ManagementClient.set_subscriptions` did.

    Attributes:
        added: Topics that the queue did not subscribe to before.
        removed: Topics that it does not subscribe to any more.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
