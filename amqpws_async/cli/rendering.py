"""A received message, as a line of JSON or as its body alone."""

from __future__ import annotations

import base64
import datetime
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from .. import Array, Data, DecodeError, Delivery, Described, Message, Sequence, Value, float32, timestamp
from .failures import plain

__all__ = ["as_json", "as_text"]

_HEADER: Final = ("durable", "priority", "ttl", "first_acquirer", "delivery_count")
_PROPERTIES: Final = (
    "message_id",
    "user_id",
    "to",
    "subject",
    "reply_to",
    "correlation_id",
    "content_type",
    "content_encoding",
    "absolute_expiry_time",
    "creation_time",
    "group_id",
    "group_sequence",
    "reply_to_group_id",
)
_SECTIONS: Final = ("delivery_annotations", "message_annotations", "application_properties", "footer")


def as_json(delivery: Delivery) -> bytes:
    """The message as one line of JSON, in UTF-8.

    Its keys: ``header``, ``properties``, ``delivery_annotations``, ``message_annotations``, ``application_properties``,
    ``footer``, ``tag`` (hexadecimal), and one of ``body`` (data that is UTF-8 text), ``body_base64`` (other data),
    ``body_value``, ``body_sequence``. Fields without a value are left out, sections never are. Bytes below the body are
    ``{"base64": ...}``, times ISO 8601. A message that cannot be decoded has ``error`` and ``raw_base64`` instead.
    """
    try:
        shown = _message(delivery.message)
    except DecodeError as error:
        shown = {"error": str(error), "raw_base64": _base64(delivery.raw)}
    shown["tag"] = delivery.tag.hex()
    return _dumps(shown) + b"\n"


def as_text(delivery: Delivery, *, terminal: bool) -> bytes:
    """The body alone: the bytes of data sections as they are, other bodies as JSON.

    Args:
        delivery: What to render.
        terminal: Spell out what might drive the terminal, and what is not UTF-8.
    """
    body = delivery.body
    if isinstance(body, Data):
        body = bytes(body)
    if isinstance(body, bytes):
        return plain(body.decode("utf-8", "backslashreplace")).encode() if terminal else body
    if body is None:
        return b""
    _, value = _body(body)
    return _dumps(value)


# What JSON allows in a string as it is, and a terminal or a program that cuts text into lines takes for more.
_ODD: Final = re.compile("[\x7f-\x9f\u2028\u2029]")


def _dumps(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _ODD.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8", "backslashreplace")


def _message(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    key, value = _body(message.body)
    shown[key] = value
    shown["header"] = _fields(message, _HEADER)
    shown["properties"] = _fields(message, _PROPERTIES)
    for name in _SECTIONS:
        shown[name] = _value(getattr(message, name) or {})
    return shown


def _fields(message: Message, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in names}
    return {
        name: _time(value) if name.endswith("_time") else _value(value)
        for name, value in values.items()
        if value is not None
    }


def _body(body: Any) -> tuple[str, Any]:
    if isinstance(body, Value):
        return "body_value", _value(body.value)
    if isinstance(body, Sequence):
        return "body_sequence", [_value(each) for each in body]
    if body is None:
        return "body", None
    data = bytes(body)
    try:
        return "body", data.decode()
    except UnicodeDecodeError:
        return "body_base64", _base64(data)


def _value(value: Any) -> Any:
    """What JSON has for an AMQP value."""
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case timestamp():
            return _time(value)
        case float32() | float():
            return float(value) if math.isfinite(value) else str(float(value))
        case bytes() | memoryview():
            return {"base64": _base64(bytes(value))}
        case Described():
            return {"descriptor": _value(value.descriptor), "value": _value(value.value)}
        case Array():
            return [_value(each) for each in value.elements]
        case Mapping():
            return {key if isinstance(key, str) else str(_value(key)): _value(each) for key, each in value.items()}
        case list() | tuple():
            return [_value(each) for each in value]
        case int():
            return int(value)
        case _:  # a UUID
            return str(value)


def _time(milliseconds: int) -> str | int:
    try:
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return int(milliseconds)  # beyond the year 9999
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
