"""Event Mesh's names: queues, topics, namespaces, and what an address looks like.

The rules are those of SAP's documentation ("Syntax for Naming Queues, Topics, and Topic Patterns" and the message
client's descriptor). A name that breaks one is refused here, where the reason can be said, and not by the broker, whose
answer is ``amqp:not-allowed``.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "NAMESPACE",
    "check_namespace",
    "check_queue_name",
    "check_source",
    "check_subscription",
    "check_target",
    "check_topic",
    "expand",
]

NAMESPACE: Final = "${namespace}"
"""What stands for the service instance's own namespace in a name."""

QUEUE: Final = "queue:"
TOPIC: Final = "topic:"

MAX_TOPIC: Final = 150  # characters
MAX_QUEUE: Final = 164
MAX_NAMESPACE: Final = 63
MIN_SEGMENTS, MAX_SEGMENTS = 2, 20  # of a topic

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_.-]+")
_FOREIGN: Final = ("queue://", "topic://")  # message-queuing's and Advanced Event Mesh's spelling


def expand(name: str, namespace: str | None) -> str:
    """Fill in the namespace.

    Args:
        name: A queue, topic or address, with or without ``${namespace}`` in it.
        namespace: What stands for it, or None if there is none.

    Raises:
        ValueError: It is wanted and there is none.
    """
    if not isinstance(name, str):
        raise ValueError(f"address: a string such as 'queue:{NAMESPACE}/orders', not {type(name).__name__}")
    if NAMESPACE not in name:
        return name
    if namespace is None:
        raise ValueError(f"{name!r}: the service key has no namespace: write it out, or give namespace=")
    return name.replace(NAMESPACE, namespace)


def check_target(address: str) -> str:
    """Check an address to send to, ``queue:NAME`` or ``topic:NAME``, and return it.

    Raises:
        ValueError: It has no prefix, or its name breaks a rule.
    """
    prefix, name = _split(address)
    if prefix == QUEUE:
        check_queue_name(name)
    else:
        check_topic(name)
    return address


def check_source(address: str) -> str:
    """Check an address to receive from, and return it: a queue, or a topic, which may have wildcards.

    Raises:
        ValueError: It has no prefix, or its name breaks a rule.
    """
    prefix, name = _split(address)
    if prefix == QUEUE:
        check_queue_name(name)
    else:
        check_subscription(name)
    return address


def check_topic(name: str) -> str:
    """Check the name of a topic to publish to, without prefix, and return it.

    Raises:
        ValueError: It breaks a rule.
    """
    _check_length("topic", name, MAX_TOPIC)
    segments = name.split("/")
    if any(wildcard in segments for wildcard in ("*", "+")):
        raise ValueError(f"topic {name!r}: wildcards are for subscriptions; a message is published to one topic")
    _check_topic_segments(name, segments)
    return name


def check_subscription(name: str) -> str:
    """Check what a queue subscribes to, without prefix, and return it.

    ``+`` stands for one segment; ``*``, at the end, for all that follow.

    Raises:
        ValueError: It breaks a rule.
    """
    _check_length("topic", name, MAX_TOPIC)
    segments = name.split("/")
    if "*" in segments[:-1]:
        raise ValueError(f"topic {name!r}: '*' stands at the end, for all that follows; '+' is one segment anywhere")
    fixed = ["x" if segment == "+" else segment for segment in segments[:-1]]
    fixed.append("x" if segments[-1] in ("*", "+") else segments[-1])
    _check_topic_segments(name, fixed)
    return name


def check_queue_name(name: str) -> str:
    """Check the name of a queue, without prefix, and return it.

    Raises:
        ValueError: It breaks a rule.
    """
    _check_length("queue", name, MAX_QUEUE)
    _check_segments("queue", name, name.split("/"))
    return name


def check_namespace(namespace: str) -> str:
    """Check a namespace, and return it: three segments, such as ``example/shop/1``.

    Raises:
        ValueError: It breaks a rule.
    """
    _check_length("namespace", namespace, MAX_NAMESPACE)
    segments = namespace.split("/")
    if len(segments) != 3:
        raise ValueError(f"namespace {namespace!r}: three segments, such as 'example/shop/1'")
    _check_segments("namespace", namespace, segments)
    return namespace


def _split(address: str) -> tuple[str, str]:
    for foreign in _FOREIGN:
        if address.startswith(foreign):
            prefix, name = foreign.removesuffix("//"), address.removeprefix(foreign)
            raise ValueError(f"address {address!r}: Event Mesh has no slashes after the prefix: '{prefix}{name}'")
    for prefix in (QUEUE, TOPIC):
        if address.startswith(prefix):
            return prefix, address.removeprefix(prefix)
    raise ValueError(f"address {address!r}: say what it is: '{QUEUE}{address}' or '{TOPIC}{address}'")


def _check_length(kind: str, name: str, most: int) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{kind}: a name that is not empty, not {name!r}")
    if len(name) > most:
        raise ValueError(f"{kind} {name!r}: {len(name)} characters, and {most} are allowed")


def _check_topic_segments(name: str, segments: list[str]) -> None:
    if not MIN_SEGMENTS <= len(segments) <= MAX_SEGMENTS:
        raise ValueError(
            f"topic {name!r}: {MIN_SEGMENTS} to {MAX_SEGMENTS} segments are allowed, and it has {len(segments)}"
            f"{f' (does it lack the namespace? {NAMESPACE}/{name})' if len(segments) < MIN_SEGMENTS else ''}"
        )
    _check_segments("topic", name, segments)


def _check_segments(kind: str, name: str, segments: list[str]) -> None:
    for segment in segments:
        if not segment:
            raise ValueError(f"{kind} {name!r}: a segment is empty; one slash between segments, and none at the ends")
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(f"{kind} {name!r}: {segment!r} has more than letters, digits, '_', '.' and '-' in it")
