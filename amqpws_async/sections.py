"""The sections of a message (specification 3.2) to bytes and back, and the three kinds of body.

What is here knows one section at a time: `fields` knows what is in the header and the properties, `message` the whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .codec import ulong
from .codec.decoding import Guard, decode_from, skip
from .codec.encoding import (
    BYTE,
    STR8,
    compound,
    encode,
    encode_binary,
    encode_int,
    encode_str,
    encode_symbol,
    unpack_u32,
)
from .errors import DecodeError, EncodeError

__all__ = ["Body", "Data", "Sequence", "Value", "check_encoded"]


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


def as_body(value: Any) -> Body:
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


def describe(body: Body) -> str:
    """Say what a body is and how long, and nothing of what is in it."""
    if body is None:
        return "no body"
    if isinstance(body, bytes):
        return f"<data, {len(body)} bytes>"
    if isinstance(body, Data):
        return f"<{len(body.parts)} data sections, {len(bytes(body))} bytes>"
    kind = "value" if isinstance(body, Value) else "sequence"
    try:
        return f"<{kind}, {len(encode_body(body))} bytes>"
    except EncodeError:
        return f"<{kind}, not encodable>"


# --- what the sections hold --------------------------------------------------------------

HEADER, DELIVERY, ANNOTATIONS, PROPERTIES, APPLICATION, DATA, SEQUENCE, VALUE, FOOTER = range(9)
NAMES = (
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
LAYOUTS: dict[bytes, int] = {
    bytes((0x00, 0x53, 0x70 + section, code)): section + (16 if code & 0x10 else 0)
    for section in range(9)
    for code in _CODES[section]
    if code in b"\xa0\xa1\xa3\xb0\xb1\xb3\xc0\xc1\xd0\xd1"
}
#: Section -> the first one that may follow it: a body is of one kind, and further data or sequences are seen apart.
_NEXT = (1, 2, 3, 4, 5, FOOTER, FOOTER, FOOTER, FOOTER + 1)
_SYMBOLS: dict[str, int] = {
    f"amqp:{name}:{kind}": section
    for section, (name, kind) in enumerate(
        zip(NAMES, ("list", "map", "map", "list", "map", "binary", "list", "*", "map"), strict=True)
    )
}


def odd_section(raw: bytes, position: int) -> tuple[int, int, int]:
    """Read the start of a section however it is encoded: its number, where its value starts, where it ends."""
    if raw[position]:
        raise DecodeError(f"byte {position} begins no section of a message")
    if raw[position + 1] not in b"\x53\x80\xa3\xb3":
        raise DecodeError(f"the section at byte {position} has a descriptor that is no ulong and no symbol")
    descriptor, start = decode_from(raw, position + 1)
    section = _SYMBOLS.get(descriptor, -1) if isinstance(descriptor, str) else descriptor - 0x70
    if not 0 <= section <= FOOTER:
        raise DecodeError(f"no section of a message has the descriptor {descriptor!r:.40}")
    if raw[start] not in _CODES[section]:
        raise DecodeError(f"a section {NAMES[section]} cannot hold a value of constructor 0x{raw[start]:02x}")
    return section, start, skip(raw, start)


def find_sections(raw: bytes) -> list[int]:
    """Find the sections, and check that they are ones AMQP has, in the order it has them (3.2).

    Returns:
        Where each section's value starts, 0 for none; further data or sequence sections follow at 9, 10, ...
    """
    offsets = [0, 0, 0, 0, 0, 0, 0, 0, 0]
    size = len(raw)
    position = lowest = 0
    last = -1
    try:
        while position < size:
            layout = LAYOUTS.get(raw[position : position + 4])
            if layout is None:
                section, start, position = odd_section(raw, position)
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
                lowest = _NEXT[section]
            elif section == last and section in (DATA, SEQUENCE):
                offsets.append(start)
            else:
                raise DecodeError(f"a message with a section {NAMES[section]} behind {NAMES[last]}")
    except (IndexError, struct.error):
        position = size + 1
    if position != size:
        raise DecodeError(f"a message cut short: its {size} bytes end within a section")
    return offsets


def check_encoded(data: bytes) -> bytes:
    """Check that bytes handed over as an encoded message begin like one.

    Args:
        data: The encoded message.

    Returns:
        `data`.

    Raises:
        ValueError: They begin with no section of a message.
    """
    if data[:4] in LAYOUTS:
        return data
    try:
        odd_section(data, 0)
    except (DecodeError, IndexError, struct.error):
        raise ValueError(
            "bytes that are sent as they are must be an encoded message, and these begin with no section of one: "
            "wrap a body in Message(body)"
        ) from None
    return data


# --- sections to bytes ------------------------------------------------------------

DATA8 = tuple(b"\x00\x53\x75\xa0" + octet for octet in BYTE)
_APPLICATION8 = tuple(b"\x00\x53\x74\xc1" + octet for octet in BYTE)
SMALL = {value: b"\x55" + BYTE[value & 255] for value in range(-128, 128)}

#: Encoded symbols and keys, and decoded ones: a program uses few, over and over. Each is emptied when full, so that a
#: peer that makes up new ones costs time and no memory.
CACHED = 1024
encoded_symbols: dict[str, bytes] = {}
encoded_keys: dict[str, bytes] = {}
decoded_symbols: dict[bytes, str] = {}
decoded_keys: dict[bytes, str] = {}  # by constructor, size and text


def remember(cache: dict[Any, Any], key: Any, value: Any) -> Any:
    """Put a value into one of the caches, and return it."""
    if len(key) < 256:
        if len(cache) >= CACHED:
            cache.clear()
        cache[key] = value
    return value


def cached_symbol(value: str) -> bytes:
    """Encode a symbol that is likely to be one of few."""
    return encoded_symbols.get(value) or cast(bytes, remember(encoded_symbols, value, encode_symbol(value)))


def encode_annotations(section: int, entries: Mapping[Any, Any]) -> bytes:
    """Encode the annotations of either kind, or the footer."""
    parts = []
    for key, value in entries.items():
        if isinstance(key, str):
            parts.append(cached_symbol(key))
        elif isinstance(key, ulong):
            parts.append(encode(key))
        else:
            hint = ": use ulong(...)" if isinstance(key, int) else ""
            raise EncodeError(f"keys of {NAMES[section]} are symbols or ulongs, not {type(key).__name__}{hint}")
        parts.append(encode(value))
    return bytes((0x00, 0x53, 0x70 + section)) + compound(0xC1, b"".join(parts), len(parts))


def encode_application_properties(entries: Mapping[Any, Any]) -> bytes:
    """Encode the section, the usual short strings and ints without a call for each."""
    parts: list[bytes] = []
    put = parts.append
    cached = encoded_keys.get
    for key, value in entries.items():
        put(cached(key) or _encode_key(key))
        kind = type(value)
        if kind is str:
            try:
                octets = value.encode()
            except UnicodeEncodeError:
                octets = encode_str(value)  # raises
            size = len(octets)
            put(STR8[size] + octets if size < 256 else encode_str(value))
        elif kind is int:
            put(SMALL.get(value) or encode_int(value))
        else:
            put(encode_simple(key, value))
    content = b"".join(parts)
    size = len(content) + 1
    count = 2 * len(entries)
    if size < 256 and count < 256:
        return _APPLICATION8[size] + BYTE[count] + content
    return b"\x00\x53\x74" + compound(0xC1, content, count)


def _encode_key(key: Any) -> bytes:
    if not isinstance(key, str):
        raise EncodeError(f"keys of application properties are str, not {type(key).__name__}: use str({key!r})")
    return cast(bytes, remember(encoded_keys, key, encode_str(key)))


def encode_simple(key: str, value: Any) -> bytes:
    """Encode the value of an application property, which may be of any type that is no compound."""
    octets = encode(value)
    if octets[0] >= 0xC0 or octets[0] == 0x45:
        raise EncodeError(
            f"application property {key!r} is of type {type(value).__name__}: AMQP (3.2.5) allows no lists, maps or "
            "arrays there; send JSON text, or put it into the body"
        )
    return octets


def encode_body(body: Body) -> bytes:
    """Encode the sections of a body; no body is a null amqp-value, as the specification wants one."""
    if isinstance(body, bytes):
        return b"\x00\x53\x75" + encode_binary(body)
    if isinstance(body, Data):
        return b"".join([b"\x00\x53\x75" + encode_binary(part) for part in body.parts])
    if isinstance(body, Sequence):
        return b"".join([b"\x00\x53\x76" + encode(values) for values in body.lists])
    return b"\x00\x53\x77" + encode(body.value if body is not None else None)


# --- sections from bytes ---------------------------------------------------------------------


def read_data(raw: bytes, start: int) -> bytes:
    """Cut out the bytes of a data section."""
    if raw[start] == 0xA0:
        return raw[start + 2 : start + 2 + raw[start + 1]]
    return raw[start + 5 : start + 5 + unpack_u32(raw, start + 1)[0]]


def read_rare_body(raw: bytes, offsets: list[int]) -> Body:
    """Decode a body of any kind; `Message.body` has a short way for one data section that is the last section."""
    if offsets[DATA]:
        return as_body(Data(*[read_data(raw, start) for start in (offsets[DATA], *offsets[9:])]))
    guard = Guard()
    if offsets[SEQUENCE]:
        return Sequence(*[decode_from(raw, start, guard)[0] for start in (offsets[SEQUENCE], *offsets[9:])])
    return as_body(Value(decode_from(raw, offsets[VALUE], guard)[0])) if offsets[VALUE] else None


def read_annotations(raw: bytes, start: int) -> dict[Any, Any]:
    """Decode the annotations of either kind, or the footer."""
    entries: dict[Any, Any] = decode_from(raw, start)[0]
    for key in entries:
        if not isinstance(key, str | ulong):
            raise DecodeError(f"a key of annotations is of type {type(key).__name__}, not a symbol or ulong")
    return entries


def read_opening(raw: bytes, start: int) -> tuple[int, int, int]:
    """Read where the elements of a list or map begin, how many there are, and where they have to end."""
    if raw[start] & 0x10:
        return start + 9, unpack_u32(raw, start + 5)[0], start + 5 + unpack_u32(raw, start + 1)[0]
    return start + 3, raw[start + 2], start + 2 + raw[start + 1]


def read_application_properties(raw: bytes, start: int) -> dict[str, Any]:
    """Decode the section, the usual short strings and ints without a call for each."""
    entries: dict[str, Any] = {}
    cached = decoded_keys.get
    guard: Guard | None = None
    try:
        if raw[start] == 0xC1:
            position, count, end = start + 3, raw[start + 2], start + 2 + raw[start + 1]
        else:
            position, count, end = read_opening(raw, start)
        for _ in range(count >> 1):
            after = position + 2 + raw[position + 1]
            octets = raw[position:after]
            key = cached(octets)
            if key is not None:
                position = after
            elif raw[position] == 0xA1:
                position = after
                key = remember(decoded_keys, octets, octets[2:].decode())
            else:
                key, position = decode_from(raw, position)
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
                entries[key], position = decode_from(raw, position, guard)
        if position != end or count & 1:
            raise IndexError
    except (IndexError, struct.error):
        raise DecodeError("application properties whose entries do not fill their size") from None
    except UnicodeDecodeError as error:
        raise DecodeError(f"bad text in application properties: {error.reason}") from None
    if len(entries) != count >> 1:
        raise DecodeError("application properties with two equal keys")
    return entries
