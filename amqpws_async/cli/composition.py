"""A message from arguments: its fields, and its application properties with their AMQP types."""

from __future__ import annotations

import argparse
import datetime
import re
import uuid
from collections.abc import Callable
from typing import Any, Final

from .. import (
    EncodeError,
    Message,
    byte,
    float32,
    int32,
    short,
    symbol,
    timestamp,
    ubyte,
    uint,
    ulong,
    ushort,
)
from .arguments import positive, seconds
from .failures import ExitStatus, Failure

__all__ = ["Composer", "add_fields", "filler"]


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _timestamp(text: str) -> datetime.datetime | timestamp:
    if text.isdecimal():
        return timestamp(int(text))
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.astimezone()


_TYPES: Final[dict[str, Callable[[str], Any]]] = {
    "string": str,
    "boolean": _boolean,
    "byte": lambda text: byte(int(text)),
    "short": lambda text: short(int(text)),
    "int": lambda text: int32(int(text)),
    "long": int,
    "ubyte": lambda text: ubyte(int(text)),
    "ushort": lambda text: ushort(int(text)),
    "uint": lambda text: uint(int(text)),
    "ulong": lambda text: ulong(int(text)),
    "float": lambda text: float32(float(text)),
    "double": float,
    "symbol": symbol,
    "uuid": uuid.UUID,
    "timestamp": _timestamp,
}
"""The types that ``--property name:type=value`` knows, with the way from text to each."""

_TYPED: Final = re.compile(rf"(.+):({'|'.join(_TYPES)})")
_NUMBER: Final = "{n}"


def _property(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"write name=value or name:type=value, not {text!r}")
    typed = _TYPED.fullmatch(name)
    if typed is None:
        return name, value
    name, kind = typed.groups()
    try:
        return name, _TYPES[kind](value)
    except (ValueError, OverflowError, AssertionError):
        raise argparse.ArgumentTypeError(f"{value!r} is no AMQP {kind}, for property {name!r}") from None


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add the options that fill in the message's fields."""
    group = parser.add_argument_group("message")
    group.add_argument(
        "--property",
        metavar="NAME[:TYPE]=VALUE",
        action="append",
        default=[],
        type=_property,
        help=f"application property; may be repeated; a string unless TYPE is one of {', '.join(list(_TYPES)[1:])}",
    )
    group.add_argument("--content-type", metavar="TYPE", help="MIME type of the body, such as application/json")
    group.add_argument("--subject", metavar="TEXT", help="what the message is about")
    group.add_argument("--to", metavar="ADDRESS", help="the node it is meant for; routes it if ADDRESS is left out")
    group.add_argument("--reply-to", metavar="ADDRESS", help="the node for replies")
    group.add_argument("--message-id", metavar="ID", help=f"its id; {_NUMBER} in it is the message's number, from 1")
    group.add_argument("--correlation-id", metavar="ID", help="the id of the message it belongs to")
    group.add_argument("--group-id", metavar="ID", help="the group it belongs to")
    group.add_argument("--durable", action="store_true", default=None, help="it must survive a restart of the broker")
    group.add_argument("--priority", metavar="0-255", type=int, help="4 if not given, higher is more urgent")
    group.add_argument("--ttl", metavar="SECONDS", type=seconds, help="how long it lives (default: for ever)")
    group.add_argument("--size", metavar="BYTES", type=positive, help="a body of this size, instead of a BODY")


_FIELDS: Final = (
    "content_type",
    "subject",
    "to",
    "reply_to",
    "message_id",
    "correlation_id",
    "group_id",
    "durable",
    "priority",
    "ttl",
)


class Composer:
    """Makes messages of bodies, with the fields that the arguments say."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        fields = {name: getattr(arguments, name) for name in _FIELDS}
        self._fields: Any = {name: value for name, value in fields.items() if value is not None}
        if arguments.property:
            self._fields["application_properties"] = dict(arguments.property)
        self._id = arguments.message_id
        self._numbered = self._id is not None and _NUMBER in self._id
        self._last: tuple[bytes, bytes] | None = None
        try:
            self.encoded(b"", 1)
        except (EncodeError, TypeError, ValueError) as error:
            raise Failure(ExitStatus.USAGE, str(error)) from error

    def message(self, body: bytes, number: int) -> Message:
        """The message with this body."""
        if self._numbered:
            self._fields["message_id"] = self._id.replace(_NUMBER, str(number))
        return Message(body, **self._fields)

    def encoded(self, body: bytes, number: int) -> bytes:
        """The message with this body, encoded; the same bytes again where nothing differs from the last one."""
        if self._last is not None and self._last[0] is body:
            return self._last[1]
        encoded = self.message(body, number).encode()
        if not self._numbered:
            self._last = (body, encoded)
        return encoded


def filler(size: int) -> bytes:
    """A body of `size` bytes that is easy on the eye."""
    pattern = b"0123456789abcdefghijklmnopqrstuvwxyz"
    return (pattern * (size // len(pattern) + 1))[:size]
