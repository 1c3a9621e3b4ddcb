"""The fields of a message: what each takes, how it arrives, and how it is written.

`Message` declares them, as descriptors. `Fields`, which it derives from, holds their values: those that were given, and
those that have been decoded so far of the bytes that arrived.
"""

from __future__ import annotations

import datetime
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from .codec import symbol, timestamp, ubyte, uint, ulong
from .codec.decoding import decode_from
from .codec.encoding import BYTE, ENCODERS, STR8, compound, encode, encode_str, to_timestamp
from .errors import DecodeError, EncodeError
from .sections import (
    ANNOTATIONS,
    APPLICATION,
    DELIVERY,
    FOOTER,
    HEADER,
    NAMES,
    PROPERTIES,
    cached_symbol,
    decoded_symbols,
    encode_annotations,
    encode_application_properties,
    encoded_symbols,
    find_sections,
    read_annotations,
    read_application_properties,
    read_opening,
    remember,
)

__all__ = ["MessageId"]

#: What identifies a message (3.2.11 to 3.2.14): a string, a ulong (any int from 0 to 2**64 - 1), a UUID or a binary.
MessageId = str | int | uuid.UUID | bytes


# --- what a field takes -----------------------------------------------------------


class Kind(NamedTuple):
    """What a field takes from you, how it arrives, and how it is written."""

    #: The exact types that need no second look.
    takes: frozenset[type]
    #: Checks and converts anything else; is given the field's name for its errors.
    convert: Callable[[str, Any], Any]
    #: The types it may arrive as, and what makes plain Python of each; None where it is that already. A string may come
    #: for a symbol and the other way round: peers mix them up, and nothing is lost.
    arrives: Mapping[type, Callable[[Any], Any] | None]
    encode: Callable[[Any], bytes]


def _encoder(kind: type) -> Callable[[Any], bytes]:
    """Make what writes a plain value as the type that the specification fixes."""
    encoder = ENCODERS[kind]
    return lambda value: encoder(value, 0)


def _flag(name: str, value: Any) -> bool:
    raise TypeError(f"{name} is True or False, not {type(value).__name__}")


def _number(highest: int, kind: type[int] = int) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is an int, not {type(value).__name__}")
        if not 0 <= value <= highest:
            raise EncodeError(f"{name} is out of range: it goes from 0 to {highest}")
        return kind(value)

    return convert


def _milliseconds(name: str, value: Any) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= 0xFFFFFFFF / 1000:
        raise EncodeError(f"{name} is out of range: it goes from 0 to 4294967.295 seconds")
    return round(value * 1000)


def _str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {type(value).__name__}")
    return str.__str__(value)


_ulong = _number(0xFFFFFFFFFFFFFFFF, ulong)


def _message_id(name: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return _ulong(name, value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, uuid.UUID):
        return value
    raise TypeError(f"{name} is a str, int, UUID or bytes, not {type(value).__name__}")


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    hint = ": use .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{name} is bytes, not {type(value).__name__}{hint}")


def _timestamp(name: str, value: Any) -> int:
    if isinstance(value, datetime.datetime):
        return int(to_timestamp(value))
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is milliseconds since 1970 or an aware datetime, not {type(value).__name__}")
    if not -(1 << 63) <= value < 1 << 63:
        raise EncodeError(f"{name} is out of range: it has 64 bits, sign included")
    return int(value)


def _dict(name: str, value: Any) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a mapping, not {type(value).__name__}")
    return value if isinstance(value, dict) else dict(value)


_NONE = type(None)
_TEXT: dict[type, Callable[[Any], Any] | None] = {str: None, symbol: str}
FLAG = Kind(frozenset((bool, _NONE)), _flag, {bool: None}, _encoder(bool))
PRIORITY = Kind(frozenset((_NONE,)), _number(0xFF), {ubyte: int}, _encoder(ubyte))
MILLISECONDS = Kind(frozenset((_NONE,)), _milliseconds, {uint: int}, _encoder(uint))
UINT = Kind(frozenset((_NONE,)), _number(0xFFFFFFFF), {uint: int}, _encoder(uint))
ID = Kind(
    frozenset((str, uuid.UUID, bytes, _NONE)),
    _message_id,
    {**_TEXT, ulong: None, uuid.UUID: None, bytes: None},
    encode,
)
BINARY = Kind(frozenset((bytes, _NONE)), _bytes, {bytes: None}, _encoder(bytes))
STRING = Kind(frozenset((str, _NONE)), _str, _TEXT, encode_str)
SYMBOL = Kind(frozenset((str, _NONE)), _str, _TEXT, cached_symbol)
TIMESTAMP = Kind(frozenset((_NONE,)), _timestamp, {timestamp: int}, _encoder(timestamp))
_MAP = Kind(frozenset((dict,)), _dict, {}, encode)


# --- where the values are ---------------------------------------------------------


class Unread:
    """Stands, as a class, for what has not been decoded yet: unlike an instance it survives copy and pickle."""


class Fields:
    """The values of a message's fields."""

    __slots__ = ("_edited", "_fields", "_offsets", "_raw")

    #: The bytes it was decoded from, for good; None for a message made here.
    _raw: bytes | None
    #: A bit for each section that is not taken from them any more.
    _edited: int
    #: Where each section's value starts, as `find_sections` has it.
    _offsets: list[int] | None
    #: Fields and map sections by name: those that were given, or those that have been decoded so far.
    _fields: dict[str, Any]

    def _scan(self, raw: bytes) -> list[int]:
        self._offsets = offsets = find_sections(raw)
        return offsets

    def _read_list(self, raw: bytes, section: int) -> None:
        """Decode the header or the properties into `_fields`; what is there already stays."""
        start = (self._offsets or self._scan(raw))[section]
        values = _decode_list(raw, start, section) if start else []
        known = self._fields
        for field in LISTS[section]:
            if field.name not in known:
                known[field.name] = values[field.index] if field.index < len(values) else None


def _decode_list(raw: bytes, start: int, section: int) -> list[Any]:
    """Decode the header or the properties, the usual short texts without a call for each."""
    if raw[start] == 0x45:
        return []
    fields = LISTS[section]
    values: list[Any] = []
    cached = decoded_symbols.get
    try:
        position, count, end = read_opening(raw, start)
        if count > len(fields):
            raise DecodeError(f"{NAMES[section]} of {count} fields: AMQP has {len(fields)}")
        for field in fields[:count]:
            code = raw[position]
            if code == 0x40:
                position += 1
                values.append(None)
                continue
            begin = position + 2
            value: Any
            if code == 0xA1:
                position = begin + raw[position + 1]
                value = raw[begin:position].decode()
            elif code == 0xA3:
                position = begin + raw[position + 1]
                octets = raw[begin:position]
                value = cached(octets) or remember(decoded_symbols, octets, octets.decode("ascii"))
            else:
                value, position = decode_from(raw, position)
            if type(value) not in field.arrives:
                raise DecodeError(f"{field.name} cannot be a {type(value).__name__}")
            plain = field.arrives[type(value)]
            values.append(value if plain is None else plain(value))
        if position != end:
            raise IndexError
    except (IndexError, struct.error):
        raise DecodeError(f"{NAMES[section]} whose fields do not fill their size") from None
    except UnicodeDecodeError as error:
        raise DecodeError(f"bad text in {NAMES[section]}: {error.reason}") from None
    return values


# --- the fields -------------------------------------------------------------------

#: All fields and map sections by name, and the fields of the two sections that are lists, in the specification's order.
#: They enter themselves.
FIELDS: dict[str, Field[Any, Any]] = {}
LISTS: dict[int, list[Field[Any, Any]]] = {HEADER: [], PROPERTIES: []}
MAPS: dict[int, str] = {}
#: Field -> the types that it takes as they are: what making the usual message needs.
TAKES: dict[str, frozenset[type]] = {}
#: Property -> its place in the list, whether it is a symbol, and its encoder: what writing the usual message needs.
_PROPERTY: dict[str, tuple[int, bool, Callable[[Any], bytes]]] = {}

_Get = TypeVar("_Get")
_Set = TypeVar("_Set")


class Field(Generic[_Get, _Set]):
    """One field of a message: decodes its section when it is read first, marks it as changed when it is set."""

    name: str
    index: int

    def __init__(self, section: int, kind: Kind, doc: str, default: Any = None) -> None:
        self.section = section
        self.takes, self.convert, self.arrives, self.encode = kind
        self.default = default
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        FIELDS[name] = self
        TAKES[name] = self.takes
        if self.section in LISTS:
            self.index = len(LISTS[self.section])
            LISTS[self.section].append(self)
            if self.section == PROPERTIES:
                _PROPERTY[name] = self.index, self.encode is cached_symbol, self.encode
        else:
            MAPS[self.section] = name

    @overload
    def __get__(self, message: None, owner: type) -> Self: ...
    @overload
    def __get__(self, message: Fields, owner: type) -> _Get: ...
    def __get__(self, message: Fields | None, owner: type) -> Any:
        if message is None:
            return self
        value = message._fields.get(self.name, Unread)
        if value is Unread:
            value = self._read(message)
        return self.default if value is None else value

    def _read(self, message: Fields) -> Any:
        raw = message._raw
        if raw is None:
            return None
        message._read_list(raw, self.section)
        return message._fields[self.name]

    def __set__(self, message: Fields, value: _Set) -> None:
        checked = value if type(value) in self.takes else self.convert(self.name, value)
        raw = message._raw
        if raw is not None:
            if self.section in LISTS:
                message._read_list(raw, self.section)
            message._edited |= 1 << self.section
        message._fields[self.name] = checked


class SecondsField(Field[float | None, float | None]):
    """Seconds for you, the wire's milliseconds within."""

    def __get__(self, message: Any, owner: type) -> Any:
        value = super().__get__(message, owner)
        return value if value is None or message is None else value / 1000


class MessageIdField(Field[MessageId | None, MessageId | None]):
    """The field that is read most, and the first of its section: read without the others."""

    def __get__(self, message: Any, owner: type) -> Any:
        if message is None:
            return self
        value = message._fields.get("message_id", Unread)
        if value is not Unread:
            return value
        raw = message._raw
        if raw is not None:
            start = (message._offsets or message._scan(raw))[PROPERTIES]
            try:
                if start and raw[start] == 0xC0 and raw[start + 3] == 0xA1 and raw[start + 2]:
                    end = start + 5 + raw[start + 4]
                    if end <= start + 2 + raw[start + 1]:
                        value = message._fields["message_id"] = raw[start + 5 : end].decode()
                        return value
            except (IndexError, UnicodeDecodeError):
                pass  # decoding the whole list says what is wrong
        return self._read(message)


class MapField(Field[dict[Any, Any], Mapping[Any, Any] | None]):
    """A section that is a map: always a dict, so that neither reading nor adding an entry needs a check for None."""

    def __init__(self, section: int, doc: str) -> None:
        super().__init__(section, _MAP, doc)
        self.read_section = read_application_properties if section == APPLICATION else read_annotations

    def __get__(self, message: Any, owner: type) -> Any:
        if message is None:
            return self
        entries: dict[Any, Any] | None = message._fields.get(self.name)
        if entries is None:
            raw = message._raw
            start = (message._offsets or message._scan(raw))[self.section] if raw is not None else 0
            message._fields[self.name] = entries = self.read_section(raw, start) if start else {}
        return entries


# --- fields to bytes ----------------------------------------------------------------

_PROPERTIES8 = tuple(b"\x00\x53\x73\xc0" + octet for octet in BYTE)
_NULLS = tuple(b"\x40" * count for count in range(14))


def encode_sections(fields: dict[str, Any], head: bytes, body: bytes) -> bytes:
    """Put the sections in front of and behind an encoded body, which comes in two pieces.

    The usual message, properties in the order of the specification and application properties, is written in one pass.
    """
    properties = application = b""
    count = 0
    for name, value in fields.items():
        if value is None:
            continue
        place = _PROPERTY.get(name)
        if place is not None:
            index, is_symbol, write = place
            if index != count:
                if index < count:
                    break
                properties += _NULLS[index - count]
            if type(value) is not str:
                properties += write(value)
            elif is_symbol:
                properties += encoded_symbols.get(value) or write(value)
            else:
                try:
                    octets = value.encode()
                except UnicodeEncodeError:
                    octets = encode_str(value)  # raises
                size = len(octets)
                properties += STR8[size] + octets if size < 256 else encode_str(value)
            count = index + 1
        elif name == "application_properties":
            if value:
                application = encode_application_properties(value)
        else:
            break
    else:
        if not count:
            return b"".join((application, head, body))
        size = len(properties) + 1
        if size < 256:
            return b"".join((_PROPERTIES8[size], BYTE[count], properties, application, head, body))
        return b"".join((b"\x00\x53\x73", compound(0xC0, properties, count), application, head, body))
    front = (HEADER, DELIVERY, ANNOTATIONS, PROPERTIES, APPLICATION)
    return b"".join(
        (*[encode_section(section, fields) for section in front], head, body, encode_section(FOOTER, fields))
    )


def encode_section(section: int, fields: dict[str, Any]) -> bytes:
    """Encode any section but the body, to nothing if nothing is in it."""
    if section in LISTS:
        parts: list[bytes] = []
        count = 0
        for field in LISTS[section]:
            value = fields.get(field.name)
            if value is None or value == field.default:
                parts.append(b"\x40")
            else:
                parts.append(field.encode(value))
                count = field.index + 1
        return bytes((0x00, 0x53, 0x70 + section)) + compound(0xC0, b"".join(parts[:count]), count) if count else b""
    entries = fields.get(MAPS[section])
    if not entries:
        return b""
    return encode_application_properties(entries) if section == APPLICATION else encode_annotations(section, entries)
