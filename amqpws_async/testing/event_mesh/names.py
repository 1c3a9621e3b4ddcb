"""What Event Mesh calls a name: queues, topics, patterns of topics, and which pattern covers which."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NAMESPACE", "check_namespace", "check_pattern", "check_queue", "check_topic", "covers"]

#: What stands for the namespace in names and rules.
NAMESPACE: Final = "${namespace}"

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_.-]+")
_LENGTHS: Final = {"namespace": 63, "queue": 164, "topic": 150}  # characters, as SAP documents them
_SEGMENTS: Final = {"namespace": (3, 3), "queue": (1, 20), "topic": (2, 20)}


def check_namespace(name: str) -> None:
    """Check a namespace.

    Raises:
        ValueError: It breaks a rule; which one is said.
    """
    _check("namespace", name, name.split("/"))


def check_queue(name: str) -> None:
    """Check the name of a queue, without ``queue:``.

    Raises:
        ValueError: It breaks a rule; which one is said.
    """
    _check("queue", name, name.split("/"))


def check_topic(name: str) -> None:
    """Check the name of a topic to publish to, without ``topic:``.

    Raises:
        ValueError: It breaks a rule; which one is said.
    """
    _check("topic", name, name.split("/"))


def check_pattern(name: str) -> None:
    """Check a pattern of topics, as queues subscribe to: ``+`` is one segment, ``*`` at the end is all that follow.

    Raises:
        ValueError: It breaks a rule; which one is said.
    """
    *inner, last = name.split("/")
    last = "x" if last == "*" else last
    _check("topic", name, ["x" if segment == "+" else segment for segment in [*inner, last]])


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern has all topics in it that `name`, a topic or a pattern itself, stands for."""
    wanted, given = pattern.split("/"), name.split("/")
    for index, segment in enumerate(wanted):
        if index == len(given):
            return False
        if segment == "*" and index == len(wanted) - 1:
            return True
        if given[index] == "*" or segment not in ("+", given[index]):
            return False
    return len(wanted) == len(given)


def _check(kind: str, name: str, segments: list[str]) -> None:
    least, most = _SEGMENTS[kind]
    if len(name) > _LENGTHS[kind]:
        raise ValueError(f"{kind} {name!r}: more than {_LENGTHS[kind]} characters")
    if not least <= len(segments) <= most:
        wanted = least if least == most else f"{least} to {most}"
        raise ValueError(f"{kind} {name!r}: {len(segments)} segments, and {wanted} are wanted")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(f"{kind} {name!r}: a segment has one or more of letters, digits, '_', '.' and '-'")
