"""Messages: their sections (specification 3.2) as Python attributes, and as bytes.

A message made by you keeps what you gave it, and `Message.encode` writes the sections. One that arrived keeps its
bytes: the sections are found once, each is decoded when you first ask for it, and as long as you change nothing
`encode` gives the very same bytes back. Change a field and only its section is written anew: the rest, the bare message
above all, which nobody on the way may alter (3.2), stays as it came.
"""

from __future__ import annotations

import datetime
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, NamedTuple, Self, TypedDict, TypeVar, Unpack, cast, overload

from . import codec
from .codec import BYTE, STR8, Guard, pack_size, symbol, timestamp, ubyte, uint, ulong, unpack_u32
from .errors import DecodeError, EncodeError
from .outcomes import ACCEPTED, RELEASED, Accepted, Modified, NoOutcome, Outcome, Received, Rejected, Released

__all__ = [
    "ACCEPTED",
    "RELEASED",
    "Accepted",
    "Body",
    "Data",
    "Message",
    "MessageFields",
    "MessageId",
    "Modified",
    "NoOutcome",
    "Outcome",
    "Received",
    "Rejected",
    "Released",
    "Sequence",
    "Value",
    "check_encoded",
    "lazy",
]

#: What identifies a message (3.2.11 to 3.2.14): a string, a ulong (any int from 0 to 2**64 - 1), a UUID or a binary.
MessageId = str | int | uuid.UUID | bytes


# --- the body -------------------------------------------------------------------


class Data:
    """A body of several data sections: `Data(b"one", b"two")`. For a single one, plain bytes do.

    Attributes:
        parts: The bytes of each section.
    """

    __slots__ = ("parts",)

    def __init__(self, *parts: bytes | bytearray | memoryview) -> None:
        for part in parts:
            if not isinstance(part, bytes | bytearray | memoryview):
                raise TypeError(f"a data section is bytes, not {type(part).__name__}: encode it, or use Value(...)")
        if not parts:
            raise ValueError("a body has one data section at least: use None for no body, b'' for an empty one")
        self.parts = tuple(bytes(part) for part in parts)

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    def __eq__(self, other: object) -> bool:
        return self.parts == other.parts if isinstance(other, Data) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        return f"Data({', '.join(f'<{len(part)} bytes>' for part in self.parts)})"


class Sequence:
    """A body of amqp-sequence sections: `Sequence([1, 2], [3])` has two.

    Attributes:
        lists: The values of each section.
    """

    __slots__ = ("lists",)

    def __init__(self, *lists: list[Any] | tuple[Any, ...]) -> None:
        for values in lists:
            if not isinstance(values, list | tuple):
                raise TypeError(f"a sequence section is a list, not {type(values).__name__}: Sequence([...], [...])")
        if not lists:
            raise ValueError("a body has one sequence section at least: use None for no body")
        self.lists = tuple(list(values) for values in lists)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.lists)

    def __eq__(self, other: object) -> bool:
        return self.lists == other.lists if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return f"Sequence({', '.join(f'<{len(values)} values>' for values in self.lists)})"


@dataclass(slots=True, repr=False)
class Value:
    """A body of one amqp-value section: any value that `codec` can carry.

    Attributes:
        value: The value, its AMQP type kept.
    """

    value: Any

    def __repr__(self) -> str:
        return f"Value(<{type(self.value).__name__}>)"


Body = bytes | Data | Sequence | Value | None


def _body(value: Any) -> Body:
    """Check a body, and bring what means the same into one form."""
    if isinstance(value, Sequence):
        return value
    if isinstance(value, Data):
        return value.parts[0] if len(value.parts) == 1 else value
    if isinstance(value, Value):
        return None if value.value is None else value
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    hints: dict[type, str] = {
        str: "encode it, or wrap it in Value(...)",
        list: "wrap it in Sequence(...) or Value(...)",
    }
    raise TypeError(
        f"a body is bytes, Data, Sequence, Value or None, not {type(value).__name__}: "
        + hints.get(type(value), "encode it (as JSON, for example), or wrap it in Value(...)")
    )


# --- what the sections hold --------------------------------------------------------------

_HEADER, _DELIVERY, _ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA, _SEQUENCE, _VALUE, _FOOTER = range(9)
_NAMES = (
    "header",
    "delivery-annotations",
    "message-annotations",
    "properties",
    "application-properties",
    "data",
    "amqp-sequence",
    "amqp-value",
    "footer",
)

#: All fields and map sections by name, and the fields of the two sections that are lists, in the specification's order.
#: The fields enter themselves, below.
_FIELDS: dict[str, _Field[Any, Any]] = {}
_LISTS: dict[int, list[_Field[Any, Any]]] = {_HEADER: [], _PROPERTIES: []}
_MAPS: dict[int, str] = {}
#: Property -> its place in the list, whether it is a symbol, and its encoder: what writing the usual message needs.
_PROPERTY: dict[str, tuple[int, bool, Callable[[Any], bytes]]] = {}

_LIST_CODES, _MAP_CODES, _BINARY_CODES = b"\x45\xc0\xd0", b"\xc1\xd1", b"\xa0\xb0"
#: Section -> the constructors its value may have; an amqp-value may have any.
_CODES = (
    _LIST_CODES,
    _MAP_CODES,
    _MAP_CODES,
    _LIST_CODES,
    _MAP_CODES,
    _BINARY_CODES,
    _LIST_CODES,
    bytes(range(256)),
    _MAP_CODES,
)
#: The usual first four bytes of a section (descriptor as smallulong, constructor of a value with a size) -> section, or
#: section + 16 where the size takes four bytes.
_LAYOUTS: dict[bytes, int] = {
    bytes((0x00, 0x53, 0x70 + section, code)): section + (16 if code & 0x10 else 0)
    for section in range(9)
    for code in _CODES[section]
    if code in b"\xa0\xa1\xa3\xb0\xb1\xb3\xc0\xc1\xd0\xd1"
}
_SYMBOLS: dict[str, int] = {
    f"amqp:{name}:{kind}": section
    for section, (name, kind) in enumerate(
        zip(_NAMES, ("list", "map", "map", "list", "map", "binary", "list", "*", "map"), strict=True)
    )
}


def _odd_section(raw: bytes, position: int) -> tuple[int, int, int]:
    """Read the start of a section however it is encoded: its number, where its value starts, where it ends."""
    if raw[position]:
        raise DecodeError(f"byte {position} begins no section of a message")
    if raw[position + 1] not in b"\x53\x80\xa3\xb3":
        raise DecodeError(f"the section at byte {position} has a descriptor that is no ulong and no symbol")
    descriptor, start = codec.decode_from(raw, position + 1)
    section = _SYMBOLS.get(descriptor, -1) if isinstance(descriptor, str) else descriptor - 0x70
    if not 0 <= section <= _FOOTER:
        raise DecodeError(f"no section of a message has the descriptor {descriptor!r:.40}")
    if raw[start] not in _CODES[section]:
        raise DecodeError(f"a section {_NAMES[section]} cannot hold a value of constructor 0x{raw[start]:02x}")
    return section, start, codec.skip(raw, start)


# --- sections to bytes ------------------------------------------------------------

_DATA8 = tuple(b"\x00\x53\x75\xa0" + octet for octet in BYTE)
_PROPERTIES8 = tuple(b"\x00\x53\x73\xc0" + octet for octet in BYTE)
_APPLICATION8 = tuple(b"\x00\x53\x74\xc1" + octet for octet in BYTE)
_SMALL = {value: b"\x55" + BYTE[value & 255] for value in range(-128, 128)}
_NULLS = tuple(b"\x40" * count for count in range(14))

#: Encoded symbols and keys, and decoded keys: a program uses few, over and over. Each is emptied when full, so that a
#: peer that makes up new ones costs time and no memory.
_CACHED = 1024
_encoded_symbols: dict[str, bytes] = {}
_encoded_keys: dict[str, bytes] = {}
_decoded_keys: dict[bytes, str] = {}


def _remember(cache: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(key) < 256:
        if len(cache) >= _CACHED:
            cache.clear()
        cache[key] = value
    return value


def _encode_symbol(value: str) -> bytes:
    return _encoded_symbols.get(value) or cast(bytes, _remember(_encoded_symbols, value, codec.encode_symbol(value)))


def _encode_sections(fields: dict[str, Any], head: bytes, body: bytes) -> bytes:
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
            index, is_symbol, encode = place
            if index != count:
                if index < count:
                    break
                properties += _NULLS[index - count]
            if type(value) is not str:
                properties += encode(value)
            elif is_symbol:
                properties += _encoded_symbols.get(value) or encode(value)
            else:
                try:
                    octets = value.encode()
                except UnicodeEncodeError:
                    octets = codec.encode_str(value)  # raises
                size = len(octets)
                properties += STR8[size] + octets if size < 256 else codec.encode_str(value)
            count = index + 1
        elif name == "application_properties":
            if value:
                application = _encode_application_properties(value)
        else:
            break
    else:
        if not count:
            return b"".join((application, head, body))
        size = len(properties) + 1
        if size < 256:
            return b"".join((_PROPERTIES8[size], BYTE[count], properties, application, head, body))
        return b"".join((b"\x00\x53\x73", codec.compound(0xC0, properties, count), application, head, body))
    front = (_HEADER, _DELIVERY, _ANNOTATIONS, _PROPERTIES, _APPLICATION)
    return b"".join(
        (*[_encode_section(section, fields) for section in front], head, body, _encode_section(_FOOTER, fields))
    )


def _encode_section(section: int, fields: dict[str, Any]) -> bytes:
    """Encode any section but the body, to nothing if nothing is in it."""
    if section in _LISTS:
        parts: list[bytes] = []
        count = 0
        for field in _LISTS[section]:
            value = fields.get(field.name)
            if value is None or value == field.default:
                parts.append(b"\x40")
            else:
                parts.append(field.encode(value))
                count = field.index + 1
        return (
            bytes((0x00, 0x53, 0x70 + section)) + codec.compound(0xC0, b"".join(parts[:count]), count) if count else b""
        )
    entries = fields.get(_MAPS[section])
    if not entries:
        return b""
    return _encode_application_properties(entries) if section == _APPLICATION else _encode_annotations(section, entries)


def _encode_annotations(section: int, entries: Mapping[Any, Any]) -> bytes:
    parts = []
    for key, value in entries.items():
        if isinstance(key, str):
            parts.append(_encode_symbol(key))
        elif isinstance(key, ulong):
            parts.append(codec.encode(key))
        else:
            hint = ": use ulong(...)" if isinstance(key, int) else ""
            raise EncodeError(f"keys of {_NAMES[section]} are symbols or ulongs, not {type(key).__name__}{hint}")
        parts.append(codec.encode(value))
    return bytes((0x00, 0x53, 0x70 + section)) + codec.compound(0xC1, b"".join(parts), len(parts))


def _encode_application_properties(entries: Mapping[Any, Any]) -> bytes:
    parts: list[bytes] = []
    put = parts.append
    cached = _encoded_keys.get
    for key, value in entries.items():
        put(cached(key) or _encode_key(key))
        kind = type(value)
        if kind is str:
            try:
                octets = value.encode()
            except UnicodeEncodeError:
                octets = codec.encode_str(value)  # raises
            size = len(octets)
            put(STR8[size] + octets if size < 256 else codec.encode_str(value))
        elif kind is int:
            put(_SMALL.get(value) or codec.encode_int(value))
        else:
            put(_encode_simple(key, value))
    content = b"".join(parts)
    size = len(content) + 1
    count = 2 * len(entries)
    if size < 256 and count < 256:
        return _APPLICATION8[size] + BYTE[count] + content
    return b"\x00\x53\x74" + codec.compound(0xC1, content, count)


def _encode_key(key: Any) -> bytes:
    if not isinstance(key, str):
        raise EncodeError(f"keys of application properties are str, not {type(key).__name__}: use str({key!r})")
    return cast(bytes, _remember(_encoded_keys, key, codec.encode_str(key)))


def _encode_simple(key: str, value: Any) -> bytes:
    octets = codec.encode(value)
    if octets[0] >= 0xC0 or octets[0] == 0x45:
        raise EncodeError(
            f"application property {key!r} is of type {type(value).__name__}: AMQP (3.2.5) allows no lists, maps or "
            "arrays there; send JSON text, or put it into the body"
        )
    return octets


def _encode_body(body: Body) -> bytes:
    if isinstance(body, bytes):
        return b"\x00\x53\x75" + codec.encode_binary(body)
    if isinstance(body, Data):
        return b"".join([b"\x00\x53\x75" + codec.encode_binary(part) for part in body.parts])
    if isinstance(body, Sequence):
        return b"".join([b"\x00\x53\x76" + codec.encode(values) for values in body.lists])
    return b"\x00\x53\x77" + codec.encode(body.value if body is not None else None)


# --- sections from bytes ---------------------------------------------------------------------


def _read_data(raw: bytes, start: int) -> bytes:
    if raw[start] == 0xA0:
        return raw[start + 2 : start + 2 + raw[start + 1]]
    return raw[start + 5 : start + 5 + unpack_u32(raw, start + 1)[0]]


def _read_rare_body(raw: bytes, offsets: list[int]) -> Body:
    """Decode any body but one data section."""
    if offsets[_DATA]:
        return Data(*[_read_data(raw, start) for start in (offsets[_DATA], *offsets[9:])])
    guard = Guard()
    if offsets[_SEQUENCE]:
        return Sequence(*[codec.decode_from(raw, start, guard)[0] for start in (offsets[_SEQUENCE], *offsets[9:])])
    return _body(Value(codec.decode_from(raw, offsets[_VALUE], guard)[0])) if offsets[_VALUE] else None


def _read_annotations(raw: bytes, start: int) -> dict[Any, Any]:
    entries: dict[Any, Any] = codec.decode_from(raw, start)[0]
    for key in entries:
        if not isinstance(key, str | ulong):
            raise DecodeError(f"a key of annotations is of type {type(key).__name__}, not a symbol or ulong")
    return entries


def _read_application_properties(raw: bytes, start: int) -> dict[str, Any]:
    """Decode the section, the usual short strings and ints without a call for each."""
    entries: dict[str, Any] = {}
    if raw[start] == 0xC1:
        end = start + 2 + raw[start + 1]
        count = raw[start + 2]
        position = start + 3
    else:
        end = start + 5 + unpack_u32(raw, start + 1)[0]
        count = unpack_u32(raw, start + 5)[0]
        position = start + 9
    cached = _decoded_keys.get
    guard: Guard | None = None
    try:
        for _ in range(count >> 1):
            if raw[position] == 0xA1:
                begin = position + 2
                position = begin + raw[position + 1]
                octets = raw[begin:position]
                key = cached(octets) or _remember(_decoded_keys, octets, octets.decode())
            else:
                key, position = codec.decode_from(raw, position)
                if not isinstance(key, str):
                    raise DecodeError(f"a key of application properties is of type {type(key).__name__}, not a string")
            code = raw[position]
            if code == 0xA1:
                begin = position + 2
                position = begin + raw[position + 1]
                entries[key] = raw[begin:position].decode()
            elif code == 0x55:
                octet = raw[position + 1]
                entries[key] = octet if octet < 128 else octet - 256
                position += 2
            else:
                guard = guard or Guard()
                entries[key], position = codec.decode_from(raw, position, guard)
    except IndexError:
        position = end + 1
    except UnicodeDecodeError as error:
        raise DecodeError(f"bad text in application properties: {error.reason}") from None
    if position != end or count & 1:
        raise DecodeError("application properties whose entries do not fill their size")
    if len(entries) != count >> 1:
        raise DecodeError("application properties with two equal keys")
    return entries


# --- what a field takes -----------------------------------------------------------


class _Kind(NamedTuple):
    """What a field takes from you, how it arrives, and how it is written."""

    #: The exact types that need no second look.
    takes: frozenset[type]
    #: Checks and converts anything else; is given the field's name for its errors.
    convert: Callable[[str, Any], Any]
    #: The types it may arrive as. A string may come for a symbol and the other way round: peers mix them up, and
    #: nothing is lost.
    arrives: type | tuple[type, ...]
    encode: Callable[[Any], bytes] = codec.encode


def _flag(name: str, value: Any) -> bool:
    raise TypeError(f"{name} is True or False, not {type(value).__name__}")


def _number(highest: int, kind: type[int]) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is an int, not {type(value).__name__}")
        if not 0 <= value <= highest:
            raise EncodeError(f"{name} is out of range: it goes from 0 to {highest}")
        return kind(value)

    return convert


def _milliseconds(name: str, value: Any) -> uint:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= 0xFFFFFFFF / 1000:
        raise EncodeError(f"{name} is out of range: it goes from 0 to 4294967.295 seconds")
    return uint(round(value * 1000))


def _str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {type(value).__name__}")
    return value


_ulong = _number(0xFFFFFFFFFFFFFFFF, ulong)


def _message_id(name: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return _ulong(name, value)
    if isinstance(value, str | bytes | uuid.UUID):
        return value
    raise TypeError(f"{name} is a str, int, UUID or bytes, not {type(value).__name__}")


def _encode_message_id(value: Any) -> bytes:
    # A symbol is a str, and no message-id: only the four types of 3.2.11 to 3.2.14 are.
    return codec.encode_str(value) if isinstance(value, str) else codec.encode(value)


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    hint = ": use .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{name} is bytes, not {type(value).__name__}{hint}")


def _timestamp(name: str, value: Any) -> timestamp:
    if isinstance(value, datetime.datetime):
        return codec.to_timestamp(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is milliseconds since 1970 or an aware datetime, not {type(value).__name__}")
    if not -(1 << 63) <= value < 1 << 63:
        raise EncodeError(f"{name} is out of range: it has 64 bits, sign included")
    return timestamp(value)


def _dict(name: str, value: Any) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a mapping, not {type(value).__name__}")
    return value if isinstance(value, dict) else dict(value)


_NONE = type(None)
_FLAG = _Kind(frozenset((bool, _NONE)), _flag, bool)
_PRIORITY = _Kind(frozenset((_NONE,)), _number(255, ubyte), ubyte)
_MILLISECONDS = _Kind(frozenset((_NONE,)), _milliseconds, uint)
_UINT = _Kind(frozenset((_NONE,)), _number(0xFFFFFFFF, uint), uint)
_ID = _Kind(frozenset((str, uuid.UUID, bytes, _NONE)), _message_id, (str, ulong, uuid.UUID, bytes), _encode_message_id)
_BINARY = _Kind(frozenset((bytes, _NONE)), _bytes, bytes)
_STRING = _Kind(frozenset((str, _NONE)), _str, str, codec.encode_str)
_SYMBOL = _Kind(frozenset((str, symbol, _NONE)), _str, str, _encode_symbol)
_TIMESTAMP = _Kind(frozenset((timestamp, _NONE)), _timestamp, timestamp)
_MAP = _Kind(frozenset((dict,)), _dict, dict)


# --- the fields -------------------------------------------------------------------


class _Unread:
    """Stands, as a class, for what has not been decoded yet: unlike an instance it survives copy and pickle."""


_Get = TypeVar("_Get")
_Set = TypeVar("_Set")


class _Field(Generic[_Get, _Set]):
    """One field of a message: decodes its section when it is read first, marks it as changed when it is set."""

    name: str
    index: int

    def __init__(self, section: int, kind: _Kind, doc: str, default: Any = None) -> None:
        self.section = section
        self.takes, self.convert, self.arrives, self.encode = kind
        self.default = default
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        _FIELDS[name] = self
        if self.section in _LISTS:
            self.index = len(_LISTS[self.section])
            _LISTS[self.section].append(self)
            if self.section == _PROPERTIES:
                _PROPERTY[name] = self.index, self.encode is _encode_symbol, self.encode
        else:
            _MAPS[self.section] = name

    @overload
    def __get__(self, message: None, owner: type) -> Self: ...
    @overload
    def __get__(self, message: Message, owner: type) -> _Get: ...
    def __get__(self, message: Message | None, owner: type) -> Any:
        if message is None:
            return self
        value = message._fields.get(self.name, _Unread)
        if value is _Unread:
            value = self._read(message)
        return self.default if value is None else value

    def _read(self, message: Message) -> Any:
        if message._raw is None:
            return None
        message._read_list(self.section)
        return message._fields[self.name]

    def __set__(self, message: Message, value: _Set) -> None:
        checked = value if type(value) in self.takes else self.convert(self.name, value)
        if message._raw is not None:
            if self.section in _LISTS:
                message._read_list(self.section)
            message._edited |= 1 << self.section
        message._fields[self.name] = checked


class _SecondsField(_Field[float | None, float | None]):
    """Seconds for you, the wire's milliseconds within."""

    def __get__(self, message: Any, owner: type) -> Any:
        value = super().__get__(message, owner)
        return value if value is None or message is None else value / 1000


class _MessageIdField(_Field[MessageId | None, MessageId | None]):
    """The field that is read most, and the first of its section: read without the others."""

    def _read(self, message: Message) -> Any:
        raw = message._raw
        if raw is not None:
            start = (message._offsets or message._scan())[_PROPERTIES]
            try:
                if start and raw[start] == 0xC0 and raw[start + 3] == 0xA1 and raw[start + 2]:
                    end = start + 5 + raw[start + 4]
                    if end <= start + 2 + raw[start + 1]:
                        value = message._fields["message_id"] = raw[start + 5 : end].decode()
                        return value
            except (IndexError, UnicodeDecodeError):
                pass  # decoding the whole list says what is wrong
        return super()._read(message)


class _MapField(_Field[dict[Any, Any], Mapping[Any, Any] | None]):
    """A section that is a map: always a dict, so that neither reading nor adding an entry needs a check for None."""

    def __init__(self, section: int, doc: str) -> None:
        super().__init__(section, _MAP, doc)
        self.read_section = _read_application_properties if section == _APPLICATION else _read_annotations

    def _read(self, message: Message) -> Any:
        raw = message._raw
        entries: dict[Any, Any] = {}
        if raw is not None:
            start = (message._offsets or message._scan())[self.section]
            if start:
                entries = self.read_section(raw, start)
        message._fields[self.name] = entries
        return entries


class MessageFields(TypedDict, total=False):
    """The keyword arguments of `Message`; the attributes of the same names say what each is."""

    durable: bool | None
    priority: int | None
    ttl: float | None
    first_acquirer: bool | None
    delivery_count: int | None
    message_id: MessageId | None
    user_id: bytes | None
    to: str | None
    subject: str | None
    reply_to: str | None
    correlation_id: MessageId | None
    content_type: str | None
    content_encoding: str | None
    absolute_expiry_time: int | datetime.datetime | None
    creation_time: int | datetime.datetime | None
    group_id: str | None
    group_sequence: int | None
    reply_to_group_id: str | None
    delivery_annotations: Mapping[Any, Any] | None
    message_annotations: Mapping[Any, Any] | None
    application_properties: Mapping[str, Any] | None
    footer: Mapping[Any, Any] | None


class Message:
    """An AMQP message.

    Args:
        body: bytes (one data section), `Data` (several), `Sequence`, `Value`, or None for no body, which travels as a
            null amqp-value since the specification wants one of the three. Text and objects are refused rather than
            guessed at: encode them, or wrap them in `Value`.
        **fields: Any of the attributes below, by name. None means not given. A dict is kept, not copied.

    Raises:
        TypeError: A body or field of the wrong type, or an unknown field.
        EncodeError: A number beyond the field's range.

    Reading an attribute of a message that arrived raises DecodeError if the bytes it needs are malformed.
    """

    __slots__ = ("_body", "_edited", "_fields", "_offsets", "_raw")

    #: The bytes it was decoded from, for good.
    _raw: bytes | None
    #: A bit for each section that is not taken from them any more.
    _edited: int
    #: Where each section's value starts, 0 for none; further data or sequence sections follow at 9, 10, ...
    _offsets: list[int] | None
    #: Fields and map sections by name: those that were given, or those that have been decoded so far.
    _fields: dict[str, Any]
    _body: Any

    def __init__(self, body: Body | bytearray | memoryview = None, **fields: Unpack[MessageFields]) -> None:
        self._raw = self._offsets = None
        self._edited = 0
        self._body = body if type(body) is bytes else _body(body)
        self._fields = checked = cast("dict[str, Any]", fields)
        for name, value in checked.items():
            field = _FIELDS.get(name)
            if field is None:
                raise TypeError(f"Message() got an unexpected keyword argument {name!r}")
            if type(value) not in field.takes:
                checked[name] = field.convert(name, value)

    # header (3.2.1)
    durable = _Field[bool, bool | None](_HEADER, _FLAG, "Whether it must survive a restart of the broker.", False)
    priority = _Field[int, int | None](_HEADER, _PRIORITY, "0 to 255, higher is more urgent; 4 if not given.", 4)
    ttl = _SecondsField(
        _HEADER, _MILLISECONDS, "Seconds to live, to the millisecond, up to 49.7 days; None is for ever."
    )
    first_acquirer = _Field[bool, bool | None](_HEADER, _FLAG, "Whether no other link acquired it before.", False)
    delivery_count = _Field[int, int | None](_HEADER, _UINT, "How many attempts to deliver it failed before.", 0)

    # properties (3.2.4)
    message_id = _MessageIdField(_PROPERTIES, _ID, "What identifies it: str, int (ulong), UUID or bytes.")
    user_id = _Field[bytes | None, bytes | None](_PROPERTIES, _BINARY, "Who is responsible for it, as bytes.")
    to = _Field[str | None, str | None](_PROPERTIES, _STRING, "The address of the node it is meant for.")
    subject = _Field[str | None, str | None](_PROPERTIES, _STRING, "What it is about.")
    reply_to = _Field[str | None, str | None](_PROPERTIES, _STRING, "The address for replies.")
    correlation_id = _Field[MessageId | None, MessageId | None](_PROPERTIES, _ID, "The message-id it belongs to.")
    content_type = _Field[str | None, str | None](_PROPERTIES, _SYMBOL, "The MIME type of its data sections.")
    content_encoding = _Field[str | None, str | None](_PROPERTIES, _SYMBOL, 'How they are compressed, such as "gzip".')
    absolute_expiry_time = _Field[int | None, int | datetime.datetime | None](
        _PROPERTIES,
        _TIMESTAMP,
        "When it expires: milliseconds since 1970, as a `timestamp`; takes an aware datetime too.",
    )
    creation_time = _Field[int | None, int | datetime.datetime | None](
        _PROPERTIES,
        _TIMESTAMP,
        "When it was made: milliseconds since 1970, as a `timestamp`; takes an aware datetime too.",
    )
    group_id = _Field[str | None, str | None](_PROPERTIES, _STRING, "The group it belongs to.")
    group_sequence = _Field[int | None, int | None](_PROPERTIES, _UINT, "Its place in the group, 0 to 2**32 - 1.")
    reply_to_group_id = _Field[str | None, str | None](_PROPERTIES, _STRING, "The group that replies belong to.")

    # sections that are maps (3.2.2, 3.2.3, 3.2.5, 3.2.10)
    delivery_annotations = _MapField(_DELIVERY, "For the next hop; keys are symbols (a str will do) or ulongs.")
    message_annotations = _MapField(_ANNOTATIONS, "For every hop; keys are symbols (a str will do) or ulongs.")
    application_properties = _MapField(_APPLICATION, "Yours: str keys; values other than lists, maps and arrays.")
    footer = _MapField(_FOOTER, "What is known only after the body, such as hashes; keys as in annotations.")

    @property
    def body(self) -> Body:
        """The body: bytes for exactly one data section, else `Data`, `Sequence`, `Value` or None."""
        body = self._body
        return self._read_body() if body is _Unread else body

    @body.setter
    def body(self, body: Body) -> None:
        self._body = _body(body)
        self._edited |= 1 << _DATA

    @property
    def raw(self) -> bytes | None:
        """The bytes this message was decoded from, whatever was changed since; None for one made here."""
        return self._raw

    # --- decoding ---

    @classmethod
    def decode(cls, raw: bytes | bytearray | memoryview) -> Message:
        """Make a message of its encoded bytes, decoding nothing yet.

        Args:
            raw: The whole encoded message.

        Returns:
            The message. What is malformed raises DecodeError when an attribute that needs it is read.
        """
        return lazy(raw if type(raw) is bytes else bytes(raw))

    def _scan(self) -> list[int]:
        """Find the sections, and check that they are ones AMQP has, in the order it has them (3.2)."""
        raw = self._source()
        offsets = [0, 0, 0, 0, 0, 0, 0, 0, 0]
        size = len(raw)
        position = lowest = 0
        last = -1
        try:
            while position < size:
                layout = _LAYOUTS.get(raw[position : position + 4])
                if layout is None:
                    section, start, position = _odd_section(raw, position)
                elif layout < 16:
                    section = layout
                    start = position + 3
                    position += 5 + raw[position + 4]
                else:
                    section = layout - 16
                    start = position + 3
                    position += 8 + unpack_u32(raw, position + 4)[0]
                if section >= lowest:
                    offsets[section] = start
                    last = section
                    lowest = section + 1 if section < _DATA else _FOOTER + (section == _FOOTER)
                elif section == last and section in (_DATA, _SEQUENCE):
                    offsets.append(start)
                else:
                    raise DecodeError(f"a message with a section {_NAMES[section]} behind {_NAMES[last]}")
        except (IndexError, struct.error):
            position = size + 1
        if position != size:
            raise DecodeError(f"a message cut short: its {size} bytes end within a section")
        self._offsets = offsets
        return offsets

    def _source(self) -> bytes:
        assert self._raw is not None
        return self._raw

    def _read_list(self, section: int) -> None:
        """Decode the header or the properties into `_fields`; what is there already stays."""
        fields = _LISTS[section]
        start = (self._offsets or self._scan())[section]
        values = codec.decode_from(self._source(), start)[0] if start else []
        if len(values) > len(fields):
            raise DecodeError(f"{_NAMES[section]} of {len(values)} fields: AMQP has {len(fields)}")
        for field, value in zip(fields, values, strict=False):
            if value is not None and not isinstance(value, field.arrives):
                raise DecodeError(f"{field.name} cannot be a {type(value).__name__}")
        for field, value in zip_longest(fields, values):
            self._fields.setdefault(field.name, value)

    def _read_body(self) -> Body:
        raw = self._source()
        if raw[:4] == b"\x00\x53\x75\xa0" and len(raw) > 4 and len(raw) == 5 + raw[4]:
            self._body = body = raw[5:]  # one small data section and nothing else
            return body
        offsets = self._offsets or self._scan()
        start = offsets[_DATA]
        if start and len(offsets) == 9:
            self._body = body = _read_data(raw, start)
            return body
        self._body = rare = _read_rare_body(raw, offsets)
        return rare

    # --- encoding ---

    def encode(self) -> bytes:
        """Encode the message: the bytes it came from if nothing was changed.

        Raises:
            EncodeError: A value that AMQP cannot carry, or not in that place.
        """
        raw = self._raw
        body = self._body
        if raw is not None:
            untouched = not (self._fields or self._edited) and (body is _Unread or type(body) is bytes)
            return raw if untouched else self._encode_changes()
        if type(body) is bytes:
            size = len(body)
            head = _DATA8[size] if size < 256 else b"\x00\x53\x75\xb0" + pack_size(size)
        else:
            head = b""
            body = _encode_body(body)
        fields = self._fields
        return _encode_sections(fields, head, body) if fields else head + body

    def _encode_changes(self) -> bytes:
        """Encode a message that arrived: each section as it came, unless it was changed."""
        raw = self._source()
        offsets = self._offsets or self._scan()
        body = [offsets[_DATA] or offsets[_SEQUENCE] or offsets[_VALUE], *offsets[9:]]
        changed = False
        parts: list[bytes] = []
        begin = 0
        for section in (_HEADER, _DELIVERY, _ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA, _FOOTER):
            start = body[-1] if section == _DATA else offsets[section]
            end = codec.skip(raw, start) if start else begin
            part = self._changed(section, start)
            if part is None:
                parts.append(raw[begin:end])
            else:
                changed = True
                parts.append(part)
            begin = end
        return b"".join(parts) if changed else raw

    def _changed(self, section: int, start: int) -> bytes | None:
        """Encode a section that was set, or a dict or list in it changed; None if it is as it came."""
        edited = self._edited >> section & 1
        if section == _DATA:
            body = self._body
            if edited:
                return _encode_body(body)
            if not isinstance(body, Sequence | Value):
                return None
            # Compared by their encodings: 1 == True == ulong(1), yet they are three things to send.
            encoded = _encode_body(body)
            arrived = _encode_body(_read_rare_body(self._source(), self._offsets or self._scan()))
            return None if encoded == arrived else encoded
        if not edited:
            entries = self._fields.get(_MAPS[section]) if section in _MAPS else None
            if entries is None:
                return None
            before = codec.decode_from(self._source(), start)[0] if start else {}
            if codec.encode(entries) == codec.encode(before):
                return None
        return _encode_section(section, self._fields)

    # --- the object ---

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self.body == other.body and all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __copy__(self) -> Message:
        twin = _new(Message)
        twin._raw, twin._offsets, twin._edited, twin._body = self._raw, self._offsets, self._edited, self._body
        twin._fields = dict(self._fields)
        return twin

    def __repr__(self) -> str:
        # Bodies and properties carry what must not end up in logs: kind and size only.
        try:
            parts = [_describe(self.body)]
            shown = [(name, getattr(self, name)) for name in ("message_id", "subject", "to")]
        except DecodeError:
            return f"Message(<{len(self._source())} bytes, malformed>)"
        return f"Message({', '.join(parts + [f'{name}={value!r}' for name, value in shown if value is not None])})"


_new = object.__new__


def lazy(raw: bytes) -> Message:
    """Make a message of its encoded bytes at the least cost: what `Message.decode` does for `bytes` proper."""
    message = _new(Message)
    message._raw = raw
    message._body = _Unread
    message._offsets = None
    message._edited = 0
    message._fields = {}
    return message


def check_encoded(data: bytes) -> bytes:
    """Check that bytes handed over as an encoded message begin like one.

    Args:
        data: The encoded message.

    Returns:
        `data`.

    Raises:
        ValueError: They begin with no section of a message.
    """
    if data[:4] in _LAYOUTS:
        return data
    try:
        _odd_section(data, 0)
    except (DecodeError, IndexError, struct.error):
        raise ValueError(
            "bytes that are sent as they are must be an encoded message, and these begin with no section of one: "
            "wrap a body in Message(body)"
        ) from None
    return data


def _describe(body: Body) -> str:
    """Say what a body is and how long, and nothing of what is in it."""
    if body is None:
        return "no body"
    if isinstance(body, bytes):
        return f"<data, {len(body)} bytes>"
    if isinstance(body, Data):
        return f"<{len(body.parts)} data sections, {len(bytes(body))} bytes>"
    kind = "value" if isinstance(body, Value) else "sequence"
    try:
        return f"<{kind}, {len(_encode_body(body))} bytes>"
    except EncodeError:
        return f"<{kind}, not encodable>"
