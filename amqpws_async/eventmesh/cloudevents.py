"""CloudEvents 1.0 as AMQP messages and back (AMQP protocol binding 1.0.2), in structured and in binary mode.

::

    from cloudevents.core.v1.event import CloudEvent
    from amqpws_async.eventmesh import cloudevents

    event = CloudEvent({"type": "example.order.created.v1", "source": "/example/shop"}, {"order": 4711})
    await sender.send(cloudevents.to_message(event))

    async for delivery in receiver:
        event = cloudevents.from_message(delivery.message)

Structured mode puts the whole event into the body, as JSON: that is what CAP services, and so most on Event Mesh, send
and understand. Binary mode puts the data into the body and everything else into application properties, where brokers
can look at it. `from_message` tells the two apart by itself.

It needs the package cloudevents, 2.0 or later: ``pip install 'amqpws-async[cloudevents]'``.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from ..codec import timestamp
from ..errors import AMQPError, EncodeError
from ..message import Data, Message, Value

try:
    from cloudevents.core.exceptions import BaseCloudEventException
    from cloudevents.core.v1.event import CloudEvent
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "CloudEvents need the package cloudevents, 2.0 or later: pip install 'amqpws-async[cloudevents]'",
        name="cloudevents",
    ) from error

__all__ = ["Event", "Mode", "NotACloudEvent", "Prefix", "from_message", "is_cloudevent", "to_message"]

Mode = Literal["structured", "binary"]
"""Where an event's attributes are: in the body, or in application properties."""

Prefix = Literal["cloudEvents:", "cloudEvents_"]
"""What the names of these application properties begin with; JMS cannot have a colon in a name."""

_JSON_FORMAT: Final = "application/cloudevents+json"  # exactly so in CAP, which adds no charset
_PREFIXES: Final[tuple[Prefix, ...]] = ("cloudEvents_", "cloudEvents:")  # where a message has both, the last one counts
_REQUIRED: Final = ("id", "source", "type", "specversion")
_TEXTS: Final = ("datacontenttype", "dataschema", "subject")
_NAME: Final = re.compile("[a-z0-9]+")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class NotACloudEvent(AMQPError, ValueError):
    """This is no CloudEvent, or no valid one. The text says why, and shows nothing of the data."""


class Event(Protocol):
    """What `to_message` needs of an event: the CloudEvent of the package cloudevents has it, in 1.x as in 2.x."""

    def get_attributes(self) -> Mapping[str, Any]:
        """The attributes by name."""
        ...  # pragma: no cover - a signature

    def get_data(self) -> Any:
        """The data, or None."""
        ...  # pragma: no cover - a signature


def to_message(event: Event, *, mode: Mode = "structured", prefix: Prefix = "cloudEvents:") -> Message:
    """Make a message of an event.

    Data that is bytes travels as it is. Other data is encoded as the event's `datacontenttype` says. If that is JSON,
    which it is taken for where there is none, anything goes that `json.dumps` takes; a str becomes a JSON string, so
    give JSON text of your own as bytes. With any other type only a str can be encoded. Structured mode writes bytes as
    ``data_base64``, which CAP services do not look at: give them a dict.

    In binary mode a time is an AMQP timestamp where its milliseconds say it all, and RFC 3339 text where they do not;
    receivers have to take both.

    Nothing else of the message is set. An event's id is none for a message: it is unique among those of its source
    only, and brokers that drop duplicates by message-id would drop other sources' events. Set `message_id`, `durable`,
    `ttl` and the like on the message.

    Args:
        event: A CloudEvent 1.0.
        mode: ``"structured"`` (the default) or ``"binary"``.
        prefix: Of the application properties in binary mode: ``"cloudEvents:"`` (the default), or ``"cloudEvents_"``
            for receivers that use JMS.

    Raises:
        NotACloudEvent: An attribute is missing or not what the specification allows.
        EncodeError: The data cannot be encoded as its content type.
        TypeError: It is no event.
        ValueError: There is no such mode or prefix.
    """
    if not callable(getattr(event, "get_attributes", None)) or not callable(getattr(event, "get_data", None)):
        raise TypeError(f"event: a CloudEvent of the package cloudevents, not {type(event).__name__}")
    if prefix not in _PREFIXES:
        raise ValueError(f"prefix: 'cloudEvents:' or 'cloudEvents_', not {prefix!r}")
    attributes = {name: value for name, value in event.get_attributes().items() if value is not None}
    _check(attributes)
    for name, value in attributes.items():
        _check_outgoing(name, value)
    data = event.get_data()
    if mode == "structured":
        return Message(_write_json(attributes, data), content_type=_JSON_FORMAT)
    if mode == "binary":
        content_type = attributes.pop("datacontenttype", None)
        body, content_type = _encode_data(data, content_type)
        properties = {f"{prefix}{name}": _to_property(value) for name, value in attributes.items()}
        return Message(body, content_type=content_type, application_properties=properties)
    raise ValueError(f"mode: 'structured' or 'binary', not {mode!r}")


def from_message(message: Message) -> CloudEvent:
    """Take the event out of a message, in whatever mode it came.

    Data arrives as what its content type says: JSON is parsed, text (``text/...``, XML, and all that names a charset)
    is a str, anything else bytes; empty data is None. What is binary in structured mode (``data_base64``) is bytes.

    Times become datetimes with a time zone. A JSON body with a ``specversion`` in it is an event even if it is not
    labelled as one. Attributes with names that CloudEvents forbids, such as the ``X-Correlation-ID`` that CAP
    applications add, are kept as they came; `to_message` does not write them.

    Args:
        message: What arrived.

    Raises:
        NotACloudEvent: It is none, as a CAP message with content type ``application/json``; or is not valid; or has a
            form that is not supported here: a batch, an event format other than JSON, a version other than 1.0.
        DecodeError: The message itself is malformed.
    """
    media_type = _media_type(message.content_type)
    if media_type == _JSON_FORMAT:
        return _read_json(_parse(_payload(message), _charset(message.content_type), "the body"))
    if media_type.startswith("application/cloudevents"):
        what = "a batch of CloudEvents" if "batch" in media_type else "an event format other than JSON"
        raise NotACloudEvent(f"content type {media_type!r} is {what}, which is not supported")
    properties = _properties(message)
    if "specversion" in properties:
        return _read_properties(message, properties)
    document = _unlabelled(message)
    if document is None:
        raise NotACloudEvent(
            f"content type {message.content_type!r}, and no specversion in the application properties or in a JSON "
            "body: this message is no CloudEvent"
        )
    return _read_json(document)


def is_cloudevent(message: Message) -> bool:
    """Say whether a message claims to be an event that `from_message` reads. Whether it is valid is seen there.

    Args:
        message: What arrived. A JSON body without another sign is parsed.

    Raises:
        DecodeError: The message itself is malformed.
    """
    media_type = _media_type(message.content_type)
    if media_type.startswith("application/cloudevents"):
        return media_type == _JSON_FORMAT
    return "specversion" in _properties(message) or _unlabelled(message) is not None


# --- structured mode -------------------------------------------------------------------------


def _write_json(attributes: Mapping[str, Any], data: Any) -> bytes:
    document = {name: _to_json(value) for name, value in attributes.items()}
    content_type = attributes.get("datacontenttype")
    if isinstance(data, (bytes, bytearray, memoryview)):
        document["data_base64"] = base64.b64encode(data).decode("ascii")
    elif data is not None:
        if not isinstance(data, str) and not _is_json(content_type):
            raise _not_encodable(data, content_type)
        document["data"] = data
    return _dump(document, "utf-8")


def _read_json(document: Any) -> CloudEvent:
    if not isinstance(document, dict):
        raise NotACloudEvent(f"the body is JSON, but no object: a {type(document).__name__}")
    attributes = {name: value for name, value in document.items() if value is not None}
    data = attributes.pop("data", None)
    encoded = attributes.pop("data_base64", None)
    if encoded is not None:
        if data is not None:
            raise NotACloudEvent("both data and data_base64 are there")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise NotACloudEvent("data_base64 is no base64 text") from None
    for name, value in attributes.items():
        if _NAME.fullmatch(name) and not isinstance(value, (str, int)):
            raise NotACloudEvent(f"attribute {name!r}: text, an integer or a boolean, not a {type(value).__name__}")
    return _event(attributes, data)


def _unlabelled(message: Message) -> dict[str, Any] | None:
    """The event in a body of JSON that is not labelled as one, or None: gateways set the content type as they like."""
    if message.content_type is not None and not _is_json(message.content_type):
        return None
    try:
        document = _parse(_payload(message), _charset(message.content_type), "the body")
    except NotACloudEvent:
        return None
    return document if isinstance(document, dict) and "specversion" in document else None


# --- binary mode -----------------------------------------------------------------------------


def _encode_data(data: Any, content_type: str | None) -> tuple[bytes, str | None]:
    """The body, and the content type that it has then: JSON without one is labelled, as the event means it (3.1.1)."""
    if data is None:
        return b"", content_type
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), content_type
    charset = _charset(content_type) or "utf-8"
    if _is_json(content_type):
        return _dump(data, charset), content_type or "application/json"
    if not isinstance(data, str):
        raise _not_encodable(data, content_type)
    try:
        return data.encode(charset), content_type
    except (LookupError, UnicodeError):
        raise EncodeError(f"data: this text cannot be encoded in the charset {charset!r}") from None


def _decode_data(payload: bytes | str, content_type: str | None) -> Any:
    if not payload:
        return None
    charset = _charset(content_type)
    media_type = _media_type(content_type)
    if content_type is not None and _is_json(content_type):
        return _parse(payload, charset, "the data")
    if isinstance(payload, str) or not (
        charset or media_type.startswith("text/") or media_type == "application/xml" or media_type.endswith("+xml")
    ):
        return payload
    return _decode(payload, charset or "utf-8", "the data")


def _properties(message: Message) -> dict[str, Any]:
    """The attributes in the application properties, by their names."""
    found = {}
    for prefix in _PREFIXES:
        for name, value in (message.application_properties or {}).items():
            if isinstance(name, str) and name.startswith(prefix) and value is not None:
                found[name.removeprefix(prefix)] = value
    return found


def _read_properties(message: Message, properties: Mapping[str, Any]) -> CloudEvent:
    attributes = {name: _from_property(name, value) for name, value in properties.items()}
    if message.content_type is not None:
        attributes["datacontenttype"] = message.content_type
    return _event(attributes, _decode_data(_payload(message), attributes.get("datacontenttype")))


def _to_property(value: Any) -> Any:
    if isinstance(value, datetime.datetime) and value.microsecond % 1000:
        return _rfc3339(value)
    return value


def _from_property(name: str, value: Any) -> Any:
    # The package's own binding writes the time as a plain number of milliseconds.
    if isinstance(value, timestamp) or (name == "time" and isinstance(value, int) and not isinstance(value, bool)):
        try:
            return _EPOCH + datetime.timedelta(milliseconds=int(value))
        except OverflowError:
            raise NotACloudEvent(f"attribute {name!r}: a time beyond the year 9999, or before the year 1") from None
    match value:
        case bool() | bytes() | datetime.datetime():
            return value
        case int():
            return int(value)
        case str():
            return str.__str__(value)
        case uuid.UUID():
            return str(value)
    raise NotACloudEvent(f"attribute {name!r}: an AMQP {type(value).__name__} stands for no type of CloudEvents")


# --- attributes ------------------------------------------------------------------------------


def _check(attributes: Mapping[str, Any]) -> None:
    """Check what the specification says of its own attributes, but for the time."""
    missing = [name for name in _REQUIRED if name not in attributes]
    if missing:
        raise NotACloudEvent(f"attributes that every CloudEvent has are missing: {', '.join(missing)}")
    for name in (*_REQUIRED, *_TEXTS):
        value = attributes.get(name, "text")
        if not isinstance(value, str) or not value:
            raise NotACloudEvent(f"attribute {name!r}: text that is not empty, not {_shown(value)}")
    if attributes["specversion"] != "1.0":
        raise NotACloudEvent(f"specversion {attributes['specversion']!r:.20}: only 1.0 is supported")


def _shown(value: object) -> str:
    return "''" if value == "" else f"a {type(value).__name__}"


def _check_outgoing(name: str, value: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ("data", "data_base64"):
        raise NotACloudEvent(f"attribute {name!r}: names have lower-case letters and digits, and 'data' is none")
    if name == "datacontenttype" and not value.isascii():
        raise NotACloudEvent(f"attribute {name!r}: a media type is ASCII")
    if name == "time" and not isinstance(value, datetime.datetime):
        _parse_time(value)
    match value:
        case bool() | str() | bytes():
            return
        case int():
            if not -(2**31) <= value < 2**31:
                raise NotACloudEvent(f"attribute {name!r}: integers of CloudEvents have 32 bits; write it as text")
        case datetime.datetime():
            if value.utcoffset() is None:
                raise NotACloudEvent(f"attribute {name!r}: the time has no time zone")
        case _:
            raise NotACloudEvent(
                f"attribute {name!r}: a str, bool, int, bytes or datetime, not {type(value).__name__}: write it as text"
            )


def _to_json(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case datetime.datetime():
            return _rfc3339(value)
    return value


def _event(attributes: dict[str, Any], data: Any) -> CloudEvent:
    """Make the package's event of attributes that arrived."""
    _check(attributes)
    if "time" in attributes and not isinstance(attributes["time"], datetime.datetime):
        attributes["time"] = _parse_time(attributes["time"])
    foreign = {name: attributes.pop(name) for name in tuple(attributes) if not _NAME.fullmatch(name)}
    timed = "time" in attributes
    try:
        event = CloudEvent(attributes, data)
    except BaseCloudEventException as error:
        raise NotACloudEvent(str(error)) from None
    made = event.get_attributes()
    if not timed:
        del made["time"]  # the package gives the present one to an event that has none
    made.update(foreign)
    return event


def _parse_time(value: object) -> datetime.datetime:
    """Read RFC 3339, which is less than ISO 8601; beyond microseconds it is cut off."""
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise NotACloudEvent("attribute 'time': RFC 3339 text with a time zone, such as 2026-01-31T08:15:00Z")
    try:
        return datetime.datetime.fromisoformat(value.upper())
    except ValueError as error:
        raise NotACloudEvent(f"attribute 'time': {error}") from None


def _rfc3339(value: datetime.datetime) -> str:
    try:
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    except OverflowError:
        raise NotACloudEvent("a time beyond the year 9999, or before the year 1, in UTC") from None


# --- bodies ----------------------------------------------------------------------------------


def _payload(message: Message) -> bytes | str:
    """The body; an amqp-value will do, as JMS sends texts."""
    match message.body:
        case bytes() as body:
            return body
        case Data() as body:
            return bytes(body)
        case None:
            return b""
        case Value(value=bytes() | str() as body):
            return body
    raise NotACloudEvent("the body of a CloudEvent is a data section, and this message has values in it")


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _is_json(content_type: str | None) -> bool:
    """Whether this is JSON, as it is if nothing is said (JSON event format 3.1)."""
    media_type = _media_type(content_type)
    return content_type is None or media_type.endswith(("/json", "+json"))


def _charset(content_type: str | None) -> str | None:
    found = _CHARSET.search(content_type or "")
    return found.group(1).lower() if found else None


def _decode(payload: bytes, charset: str, what: str) -> str:
    try:
        return payload.decode(charset)
    except (LookupError, UnicodeError):
        raise NotACloudEvent(f"{what} cannot be decoded with the charset {charset!r:.40}") from None


def _parse(payload: bytes | str, charset: str | None, what: str) -> Any:
    if charset is not None and isinstance(payload, bytes):
        payload = _decode(payload, charset, what)
    try:
        return json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # not JSON, not Unicode, digits or brackets without end
        raise NotACloudEvent(f"{what} should be JSON, and is not") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump(value: Any, charset: str) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(charset)
    except UnicodeError:
        raise EncodeError(f"this event has text that cannot be encoded in the charset {charset!r}") from None
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise EncodeError(f"data: cannot be written as JSON: {error}") from None


def _not_encodable(data: object, content_type: str | None) -> EncodeError:
    return EncodeError(
        f"data: a {type(data).__name__} cannot be encoded as {content_type!r}: give bytes, or a datacontenttype of JSON"
    )
