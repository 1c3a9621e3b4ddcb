"""The AMQP 1.0 type system (specification part 1), to bytes and back.

=====================================  =====================================================
Python, going out                      AMQP
=====================================  =====================================================
None, bool, str, uuid.UUID             null, boolean, string, uuid
int                                    long, in 64 bits
float                                  double
bytes, bytearray, memoryview           binary
datetime.datetime with a time zone     timestamp, cut to milliseconds
list, tuple / Mapping                  list / map
`Array`, `Described`                   array, described value
`ubyte` `ushort` `uint` `ulong`        the type of that name; likewise `byte` `short` `int32`
                                       (int), `float32` (float), `char`, `symbol`, `timestamp`
`decimal32` `decimal64` `decimal128`   the type of that name, as the raw bits of IEEE 754:
                                       decimal.Decimal itself is refused, not converted
=====================================  =====================================================

Coming in, every value keeps its AMQP type: where Python has none, the typed subclass stands for it (an AMQP uint is a `uint`, which is
an int; a symbol is a `symbol`, which is a str). So `decode(encode(value))` gives the value and its type back, but for the three that
have no AMQP type of their own: a tuple comes back as a list, a bytearray as bytes, a datetime as a `timestamp`.

Decoding trusts nothing: every size and count is checked against the bytes that are there, values nest at most `MAX_DEPTH` deep, and
array elements that take no bytes are limited to `MAX_EMPTY_ELEMENTS`. Whatever is wrong with the input is a `DecodeError`.
"""

from __future__ import annotations

import datetime
import decimal
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from proton import (
    UNDESCRIBED,
    Array,
    Data,
    Described,
    byte,
    char,
    decimal32,
    decimal64,
    decimal128,
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

from .errors import DecodeError, EncodeError

__all__ = [
    "MAX_DEPTH",
    "MAX_EMPTY_ELEMENTS",
    "UNDESCRIBED",
    "Array",
    "Described",
    "byte",
    "char",
    "decimal128",
    "decimal32",
    "decimal64",
    "decode",
    "encode",
    "float32",
    "int32",
    "short",
    "symbol",
    "timestamp",
    "ubyte",
    "uint",
    "ulong",
    "ushort",
]

#: Lists, maps, arrays and described values may nest this deep, both ways: JSON parsers stop between 100 and 1000, real
#: messages below 10, and each level costs a Python frame.
MAX_DEPTH = 64

#: How many elements without bytes of their own (nulls, or 0x41 "true") the arrays of one value may claim together: ten bytes can
#: otherwise ask for four billion.
MAX_EMPTY_ELEMENTS = 65_536

_MAX_SIZE = 0xFFFFFFFF
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MILLISECOND = datetime.timedelta(milliseconds=1)

pack_u32 = struct.Struct(">I").pack
unpack_u32 = struct.Struct(">I").unpack_from

#: Constructor and size byte for each short length, and every one-byte string: concatenating constants is the fastest there is.
STR8 = tuple(bytes((0xA1, n)) for n in range(256))
SYM8 = tuple(bytes((0xA3, n)) for n in range(256))
BIN8 = tuple(bytes((0xA0, n)) for n in range(256))
BYTE = tuple(bytes((n,)) for n in range(256))


def encode(value: Any) -> bytes:
    """Encode one value.

    Args:
        value: Any value of the module's table, nested as you like up to `MAX_DEPTH`.

    Returns:
        The constructor and the value, in the shortest form AMQP has.

    Raises:
        EncodeError: AMQP has no type for it, it is out of its type's range, or it is nested too deep or in itself.
    """
    return encode_at(value, 0)


def decode(data: bytes | bytearray | memoryview) -> Any:
    """Decode the one value that `data` consists of.

    Args:
        data: A constructor and its value, and nothing behind it.

    Raises:
        DecodeError: The bytes are no AMQP value, or more than one.
    """
    octets = data if type(data) is bytes else bytes(data)
    value, end = decode_from(octets, 0)
    if end != len(octets):
        raise DecodeError(f"{len(octets) - end} bytes left over behind a value of {end} bytes")
    return value


def decode_from(data: bytes, position: int, guard: Guard | None = None) -> tuple[Any, int]:
    """Decode the value that starts at `position`.

    Args:
        data: Bytes that hold a value, and may hold more behind it.
        position: Where its constructor is.
        guard: Limits shared with other values of the same message, or None for limits of its own.

    Returns:
        The value, and the position behind it.

    Raises:
        DecodeError: There is no AMQP value at `position`.
    """
    try:
        value, end = READERS[data[position]](data, position + 1, guard or Guard())
    except (IndexError, struct.error):
        raise DecodeError(f"value at byte {position} is cut short: the data ends at byte {len(data)}") from None
    except UnicodeDecodeError as error:
        raise DecodeError(f"bad text in the value at byte {position}: {error.reason}") from None
    if end > len(data):
        raise DecodeError(f"value at byte {position} needs {end - len(data)} bytes more than there are")
    return value, end


# --- encoding ------------------------------------------------------------------


def encode_at(value: Any, depth: int) -> bytes:
    """Encode a value that stands `depth` levels deep."""
    encoder = ENCODERS.get(type(value))
    if encoder is None:
        encoder = _encoder_of_base(value)
    return encoder(value, depth)


def _encoder_of_base(value: Any) -> Callable[[Any, int], bytes]:
    """Find the encoder of a subclass (IntEnum, OrderedDict, ...) by its bases, or say what to use instead."""
    for kind in type(value).__mro__:
        if kind in ENCODERS:
            return ENCODERS[kind]
    if isinstance(value, Mapping):
        return _encode_map
    name = type(value).__name__
    for kind, hint in _HINTS.items():
        if isinstance(value, kind):
            raise EncodeError(f"AMQP cannot carry a {name}: {hint}")
    raise EncodeError(f"AMQP cannot carry a {name}: turn it into str, bytes, a number, a list or a dict first")


_HINTS: dict[type, str] = {
    decimal.Decimal: "use str(value), or decimal32, decimal64 or decimal128, which hold the raw IEEE 754 bits",
    datetime.date: "use a datetime.datetime with a time zone, or value.isoformat()",
    datetime.time: "use value.isoformat()",
    datetime.timedelta: "use value.total_seconds()",
    complex: "use a list of two floats",
    set: "use a list",
    frozenset: "use a list",
}


def encode_str(value: str, depth: int = 0) -> bytes:
    """Encode a string."""
    try:
        octets = str.encode(value)
    except UnicodeEncodeError as error:
        raise EncodeError(f"a string that UTF-8 cannot carry ({error.reason}): use bytes") from None
    size = len(octets)
    return STR8[size] + octets if size < 256 else _wide(0xB1, octets)


def encode_symbol(value: str, depth: int = 0) -> bytes:
    """Encode any str as a symbol."""
    try:
        octets = str.encode(value, "ascii")
    except UnicodeEncodeError:
        raise EncodeError("symbols are ASCII, and this one is not: use a plain str for text") from None
    size = len(octets)
    return SYM8[size] + octets if size < 256 else _wide(0xB3, octets)


def encode_binary(value: bytes, depth: int = 0) -> bytes:
    """Encode bytes or what has their buffer."""
    octets = value if type(value) is bytes else bytes(value)
    size = len(octets)
    return BIN8[size] + octets if size < 256 else _wide(0xB0, octets)


def _wide(code: int, octets: bytes) -> bytes:
    if len(octets) > _MAX_SIZE:
        raise EncodeError(f"{len(octets)} bytes are over the 4 GiB of AMQP's largest value")
    return BYTE[code] + pack_u32(len(octets)) + octets


def encode_int(value: int, depth: int = 0) -> bytes:
    """Encode an int as a long."""
    if -128 <= value < 128:
        return b"\x55" + BYTE[value & 255]
    if -(1 << 63) <= value < 1 << 63:
        return b"\x81" + int.to_bytes(value, 8, "big", signed=True)
    if 0 < value < 1 << 64:
        raise EncodeError("an int beyond 2**63 - 1, the end of AMQP's long: use ulong(...)")
    raise EncodeError("an int beyond the 64 bits of AMQP's largest integer: send it as a str or as bytes")


def _encode_uint(value: int, depth: int = 0) -> bytes:
    if value == 0:
        return b"\x43"
    if 0 < value < 256:
        return b"\x52" + BYTE[value]
    return b"\x70" + _pack("uint", value)


def encode_ulong(value: int, depth: int = 0) -> bytes:
    """Encode any int as a ulong."""
    if value == 0:
        return b"\x44"
    if 0 < value < 256:
        return b"\x53" + BYTE[value]
    return b"\x80" + _pack("ulong", value)


def _encode_int32(value: int, depth: int = 0) -> bytes:
    if -128 <= value < 128:
        return b"\x54" + BYTE[value & 255]
    return b"\x71" + _pack("int32", value)


def _encode_datetime(value: datetime.datetime, depth: int = 0) -> bytes:
    return b"\x83" + _pack("timestamp", to_timestamp(value))


def to_timestamp(value: datetime.datetime) -> timestamp:
    """Turn a datetime into AMQP's milliseconds since 1970 (specification 1.6.17), cutting what is finer.

    Raises:
        EncodeError: It has no time zone, so it names no point in time.
    """
    if value.utcoffset() is None:
        raise EncodeError(
            "a datetime without a time zone names no point in time: use datetime.now(timezone.utc) or replace(tzinfo=...)"
        )
    return timestamp((value - _EPOCH) // _MILLISECOND)


def _pack_char(value: str) -> bytes:
    if len(value) != 1 or 0xD800 <= ord(value) < 0xE000:
        raise EncodeError("char holds exactly one Unicode character, surrogates excluded: use a plain str")
    return pack_u32(ord(value))


def _pack_decimal128(value: bytes) -> bytes:
    if len(value) != 16:
        raise EncodeError(f"decimal128 holds the 16 bytes of an IEEE 754 decimal128, not {len(value)}")
    return bytes(value)


def _packer(name: str, layout: str) -> Callable[[Any], bytes]:
    pack = struct.Struct(layout).pack

    def packed(value: Any) -> bytes:
        try:
            return pack(value)
        except (struct.error, OverflowError):
            raise EncodeError(f"a {type(value).__name__} out of range for {name}") from None

    return packed


#: Fixed-width types by name: constructor code, packer without the constructor.
_FIXED: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "boolean": (0x56, _packer("boolean", ">?")),
    "ubyte": (0x50, _packer("ubyte", ">B")),
    "byte": (0x51, _packer("byte", ">b")),
    "ushort": (0x60, _packer("ushort", ">H")),
    "short": (0x61, _packer("short", ">h")),
    "uint": (0x70, _packer("uint", ">I")),
    "int32": (0x71, _packer("int32", ">i")),
    "ulong": (0x80, _packer("ulong", ">Q")),
    "long": (0x81, _packer("long", ">q")),
    "float32": (0x72, _packer("float32", ">f")),
    "double": (0x82, _packer("double", ">d")),
    "char": (0x73, _pack_char),
    "timestamp": (0x83, _packer("timestamp", ">q")),
    "decimal32": (0x74, _packer("decimal32", ">I")),
    "decimal64": (0x84, _packer("decimal64", ">Q")),
    "decimal128": (0x94, _pack_decimal128),
    "uuid": (0x98, lambda value: value.bytes),
}


def _pack(name: str, value: Any) -> bytes:
    return _FIXED[name][1](value)


def _fixed_encoder(name: str) -> Callable[[Any, int], bytes]:
    code, pack = _FIXED[name]
    constructor = BYTE[code]
    return lambda value, depth: constructor + pack(value)


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise EncodeError(f"a value nested more than {MAX_DEPTH} deep, or in itself")
    return depth + 1


def compound(code8: int, content: bytes, count: int) -> bytes:
    """Put constructor (0xC0 list, 0xC1 map, 0xE0 array), size and count in front; the 32-bit forms are 0x10 higher."""
    size = len(content) + 1
    if size < 256 and count < 256:
        return BYTE[code8] + BYTE[size] + BYTE[count] + content
    return BYTE[code8 + 0x10] + _compound32(content, count)


def _compound32(content: bytes, count: int) -> bytes:
    size = len(content) + 4
    if size > _MAX_SIZE:
        raise EncodeError(f"{size} bytes are over the 4 GiB of AMQP's largest value")
    return pack_u32(size) + pack_u32(count) + content


def _list_content(value: Any, depth: int) -> bytes:
    inner = _deeper(depth)
    return b"".join([encode_at(element, inner) for element in value])


def _map_content(value: Mapping[Any, Any], depth: int) -> bytes:
    inner = _deeper(depth)
    return b"".join([encode_at(part, inner) for entry in value.items() for part in entry])


def _encode_list(value: Any, depth: int) -> bytes:
    return compound(0xC0, _list_content(value, depth), len(value)) if value else b"\x45"


def _encode_map(value: Mapping[Any, Any], depth: int) -> bytes:
    return compound(0xC1, _map_content(value, depth), 2 * len(value))


def _encode_described(value: Described, depth: int) -> bytes:
    inner = _deeper(depth)
    return b"\x00" + encode_at(value.descriptor, inner) + encode_at(value.value, inner)


def _encode_array(value: Array, depth: int) -> bytes:
    return compound(0xE0, _array_content(value, depth), len(value.elements))


def _array_content(array: Array, depth: int) -> bytes:
    """Encode the elements' one constructor, and the elements without it (specification 1.6.24)."""
    inner = _deeper(depth)
    kind = _ELEMENTS.get(array.type)
    if kind is None:
        raise EncodeError(
            f"Array type {array.type!r}: use one of proton.Data's types, such as Data.INT; described elements share `descriptor`"
        )
    name, types = kind
    elements = array.elements
    for element in elements:
        if type(element) not in types:
            raise EncodeError(
                f"an array of {name} holds nothing else, not a {type(element).__name__}: use a list for mixed types"
            )
    if name in _FIXED:
        code, pack = _FIXED[name]
        content = b"".join(map(pack, elements))
    elif name == "null":
        code, content = 0x40, b""
    elif name in _VARIABLE:
        code, octets = _VARIABLE[name], [_text_of(element, name) for element in elements]
        if any(len(text) > 255 for text in octets):
            code, content = code + 0x10, b"".join([pack_u32(len(text)) + text for text in octets])
        else:
            content = b"".join([BYTE[len(text)] + text for text in octets])
    elif name == "list":
        code, content = (
            0xD0,
            b"".join([_compound32(_list_content(element, inner), len(element)) for element in elements]),
        )
    elif name == "map":
        code, content = (
            0xD1,
            b"".join([_compound32(_map_content(element, inner), 2 * len(element)) for element in elements]),
        )
    else:
        code, content = (
            0xF0,
            b"".join([_compound32(_array_content(element, inner), len(element.elements)) for element in elements]),
        )
    if array.descriptor is UNDESCRIBED or array.descriptor is None:
        return BYTE[code] + content
    return b"\x00" + encode_at(array.descriptor, inner) + BYTE[code] + content


_VARIABLE = {"binary": 0xA0, "string": 0xA1, "symbol": 0xA3}


def _text_of(value: Any, name: str) -> bytes:
    """Encode the octets of a binary, string or symbol without its constructor and size."""
    encoded = {"binary": encode_binary, "string": encode_str, "symbol": encode_symbol}[name](value)
    return encoded[2:] if encoded[0] < 0xB0 else encoded[5:]


#: Array element types: proton's number -> the type's name, and the Python types its elements may have.
_ELEMENTS: dict[int, tuple[str, frozenset[type]]] = {
    Data.NULL: ("null", frozenset({type(None)})),
    Data.BOOL: ("boolean", frozenset({bool})),
    Data.UBYTE: ("ubyte", frozenset({ubyte, int})),
    Data.BYTE: ("byte", frozenset({byte, int})),
    Data.USHORT: ("ushort", frozenset({ushort, int})),
    Data.SHORT: ("short", frozenset({short, int})),
    Data.UINT: ("uint", frozenset({uint, int})),
    Data.INT: ("int32", frozenset({int32, int})),
    Data.ULONG: ("ulong", frozenset({ulong, int})),
    Data.LONG: ("long", frozenset({int})),
    Data.FLOAT: ("float32", frozenset({float32, float})),
    Data.DOUBLE: ("double", frozenset({float})),
    Data.CHAR: ("char", frozenset({char, str})),
    Data.TIMESTAMP: ("timestamp", frozenset({timestamp, int})),
    Data.DECIMAL32: ("decimal32", frozenset({decimal32})),
    Data.DECIMAL64: ("decimal64", frozenset({decimal64})),
    Data.DECIMAL128: ("decimal128", frozenset({decimal128})),
    Data.UUID: ("uuid", frozenset({uuid.UUID})),
    Data.BINARY: ("binary", frozenset({bytes, bytearray, memoryview})),
    Data.STRING: ("string", frozenset({str})),
    Data.SYMBOL: ("symbol", frozenset({symbol, str})),
    Data.LIST: ("list", frozenset({list, tuple})),
    Data.MAP: ("map", frozenset({dict})),
    Data.ARRAY: ("array", frozenset({Array})),
}

ENCODERS: dict[type, Callable[[Any, int], bytes]] = {
    type(None): lambda value, depth: b"\x40",
    bool: lambda value, depth: b"\x41" if value else b"\x42",
    int: encode_int,
    float: _fixed_encoder("double"),
    str: encode_str,
    bytes: encode_binary,
    bytearray: encode_binary,
    memoryview: encode_binary,
    symbol: encode_symbol,
    uint: _encode_uint,
    ulong: encode_ulong,
    int32: _encode_int32,
    **{
        kind: _fixed_encoder(kind.__name__)
        for kind in (ubyte, byte, ushort, short, float32, char, timestamp, decimal32, decimal64, decimal128)
    },
    uuid.UUID: _fixed_encoder("uuid"),
    datetime.datetime: _encode_datetime,
    list: _encode_list,
    tuple: _encode_list,
    dict: _encode_map,
    Described: _encode_described,
    Array: _encode_array,
}


# --- decoding ------------------------------------------------------------------
#
# A reader takes the data, the position behind its constructor, and the guard; it returns the value and the position behind it.
# Readers of scalars do not check where they end: a position beyond its compound, or beyond the data, is seen by whoever called,
# since every compound demands that its elements end where it ends. Slicing never reads beyond the data, indexing raises IndexError.


class Guard:
    """What one value, or all sections of one message, may still claim."""

    __slots__ = ("depth", "empty")

    def __init__(self) -> None:
        self.depth = MAX_DEPTH
        self.empty = MAX_EMPTY_ELEMENTS

    def enter(self) -> None:
        """Go one level deeper; whoever leaves it adds one to `depth`."""
        self.depth -= 1
        if self.depth < 0:
            raise DecodeError(f"a value nested more than {MAX_DEPTH} deep")


Reader = Callable[[bytes, int, Guard], tuple[Any, int]]


def _constant(value: Any) -> Reader:
    return lambda data, position, guard: (value, position)


def _fixed_reader(layout: str, wrap: Callable[[Any], Any] | None = None) -> Reader:
    unpack = struct.Struct(layout).unpack_from
    width = struct.calcsize(layout)
    if wrap is None:
        return lambda data, position, guard: (unpack(data, position)[0], position + width)
    return lambda data, position, guard: (wrap(unpack(data, position)[0]), position + width)


def _boolean(octet: int) -> bool:
    if octet > 1:
        raise DecodeError(f"0x{octet:02x} is neither true nor false")
    return octet == 1


def _char(code: int) -> char:
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise DecodeError(f"0x{code:x} is no Unicode character")
    return char(chr(code))


def _octets8(wrap: Callable[[bytes], Any]) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 1 + data[position]
        return wrap(data[position + 1 : end]), end

    return read


def _octets32(wrap: Callable[[bytes], Any]) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 4 + int(unpack_u32(data, position)[0])
        if end > len(data):
            raise IndexError
        return wrap(data[position + 4 : end]), end

    return read


def _octets16(wrap: Callable[[bytes], Any]) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 16
        if end > len(data):
            raise IndexError
        return wrap(data[position:end]), end

    return read


def _binary(octets: bytes) -> bytes:
    return octets


def to_str(octets: bytes) -> str:
    """Decode UTF-8."""
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"bad text: {error.reason}") from None


def _string(octets: bytes) -> str:
    return octets.decode()


def _symbol(octets: bytes) -> symbol:
    return symbol(octets.decode("ascii"))


def _uuid(octets: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=octets)


Contents = Callable[[bytes, int, int, int, Guard], Any]


def _compound8(contents: Contents) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 1 + data[position]
        return contents(data, position + 2, end, data[position + 1], guard), end

    return read


def _compound32_reader(contents: Contents) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 4 + int(unpack_u32(data, position)[0])
        return contents(data, position + 8, end, int(unpack_u32(data, position + 4)[0]), guard), end

    return read


def _open(data: bytes, position: int, end: int, count: int, guard: Guard) -> None:
    """Check a compound before its first element: each element takes a byte at least."""
    if end > len(data):
        raise DecodeError(f"a compound value needs {end - len(data)} bytes more than there are")
    if count > end - position:
        raise DecodeError(f"a compound value claims {count} elements in {max(0, end - position)} bytes")
    guard.enter()


def _close(position: int, end: int, guard: Guard) -> None:
    """Check that the elements of a compound end where its size says."""
    if position != end:
        raise DecodeError(
            f"the elements of a compound value end {abs(position - end)} bytes {'behind' if position > end else 'before'} its size"
        )
    guard.depth += 1


def _list(data: bytes, position: int, end: int, count: int, guard: Guard) -> list[Any]:
    _open(data, position, end, count, guard)
    elements = []
    for _ in range(count):
        value, position = READERS[data[position]](data, position + 1, guard)
        elements.append(value)
    _close(position, end, guard)
    return elements


def _map(data: bytes, position: int, end: int, count: int, guard: Guard) -> dict[Any, Any]:
    _open(data, position, end, count, guard)
    if count & 1:
        raise DecodeError(f"a map of {count} elements has a key without a value")
    entries: dict[Any, Any] = {}
    for _ in range(count >> 1):
        key, position = READERS[data[position]](data, position + 1, guard)
        value, position = READERS[data[position]](data, position + 1, guard)
        try:
            entries[key] = value
        except TypeError:
            raise DecodeError(f"a map with a key of type {type(key).__name__}, which no dict can hold") from None
    if len(entries) != count >> 1:
        raise DecodeError("a map with two equal keys")
    _close(position, end, guard)
    return entries


def _array(data: bytes, position: int, end: int, count: int, guard: Guard) -> Array:
    _open(data, position, end, 0, guard)
    descriptor: Any = UNDESCRIBED
    code = data[position]
    if code == 0:
        descriptor, position = READERS[data[position + 1]](data, position + 2, guard)
        code = data[position]
    position += 1
    kind = _ELEMENT_CODES.get(code)
    if kind is None:
        raise DecodeError(f"0x{code:02x} is no constructor for the elements of an array")
    if code >> 4 == 4:
        guard.empty -= count
        if guard.empty < 0:
            raise DecodeError(f"arrays claim more than {MAX_EMPTY_ELEMENTS} elements that take no bytes")
    elif count > end - position:
        raise DecodeError(f"an array claims {count} elements in {max(0, end - position)} bytes")
    read = READERS[code]
    elements = []
    for _ in range(count):
        value, position = read(data, position, guard)
        elements.append(value)
    _close(position, end, guard)
    array = Array(descriptor, kind)
    array.elements = tuple(elements)
    return array


def _described(data: bytes, position: int, guard: Guard) -> tuple[Described, int]:
    guard.enter()
    descriptor, position = READERS[data[position]](data, position + 1, guard)
    value, position = READERS[data[position]](data, position + 1, guard)
    guard.depth += 1
    return Described(descriptor, value), position


def _unknown(code: int) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        raise DecodeError(f"0x{code:02x} at byte {position - 1} is no AMQP constructor")

    return read


#: Constructor code -> proton's number of the type, for all but described values.
_ELEMENT_CODES: dict[int, int] = {
    0x40: Data.NULL,
    **dict.fromkeys((0x41, 0x42, 0x56), Data.BOOL),
    0x50: Data.UBYTE,
    0x51: Data.BYTE,
    0x60: Data.USHORT,
    0x61: Data.SHORT,
    **dict.fromkeys((0x43, 0x52, 0x70), Data.UINT),
    **dict.fromkeys((0x44, 0x53, 0x80), Data.ULONG),
    **dict.fromkeys((0x54, 0x71), Data.INT),
    **dict.fromkeys((0x55, 0x81), Data.LONG),
    0x72: Data.FLOAT,
    0x82: Data.DOUBLE,
    0x73: Data.CHAR,
    0x83: Data.TIMESTAMP,
    0x74: Data.DECIMAL32,
    0x84: Data.DECIMAL64,
    0x94: Data.DECIMAL128,
    0x98: Data.UUID,
    **dict.fromkeys((0xA0, 0xB0), Data.BINARY),
    **dict.fromkeys((0xA1, 0xB1), Data.STRING),
    **dict.fromkeys((0xA3, 0xB3), Data.SYMBOL),
    **dict.fromkeys((0x45, 0xC0, 0xD0), Data.LIST),
    **dict.fromkeys((0xC1, 0xD1), Data.MAP),
    **dict.fromkeys((0xE0, 0xF0), Data.ARRAY),
}

_KNOWN: dict[int, Reader] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(uint(0)),
    0x44: _constant(ulong(0)),
    0x45: lambda data, position, guard: ([], position),
    0x50: _fixed_reader(">B", ubyte),
    0x51: _fixed_reader(">b", byte),
    0x52: _fixed_reader(">B", uint),
    0x53: _fixed_reader(">B", ulong),
    0x54: _fixed_reader(">b", int32),
    0x55: _fixed_reader(">b"),
    0x56: _fixed_reader(">B", _boolean),
    0x60: _fixed_reader(">H", ushort),
    0x61: _fixed_reader(">h", short),
    0x70: _fixed_reader(">I", uint),
    0x71: _fixed_reader(">i", int32),
    0x72: _fixed_reader(">f", float32),
    0x73: _fixed_reader(">I", _char),
    0x74: _fixed_reader(">I", decimal32),
    0x80: _fixed_reader(">Q", ulong),
    0x81: _fixed_reader(">q"),
    0x82: _fixed_reader(">d"),
    0x83: _fixed_reader(">q", timestamp),
    0x84: _fixed_reader(">Q", decimal64),
    0x94: _octets16(decimal128),
    0x98: _octets16(_uuid),
    0xA0: _octets8(_binary),
    0xA1: _octets8(_string),
    0xA3: _octets8(_symbol),
    0xB0: _octets32(_binary),
    0xB1: _octets32(_string),
    0xB3: _octets32(_symbol),
    0xC0: _compound8(_list),
    0xC1: _compound8(_map),
    0xD0: _compound32_reader(_list),
    0xD1: _compound32_reader(_map),
    0xE0: _compound8(_array),
    0xF0: _compound32_reader(_array),
}

READERS: tuple[Reader, ...] = tuple(_KNOWN.get(code) or _unknown(code) for code in range(256))


def skip(data: bytes, position: int) -> int:
    """Return the position behind the value at `position`, looking at sizes only.

    It may lie beyond the data: whoever calls checks that.

    Raises:
        DecodeError: No AMQP constructor at that place.
        IndexError, struct.error: The data ends before the value's size.
    """
    wanted = 1
    while wanted:
        code = data[position]
        position += 1
        width = code >> 4
        if code == 0:
            wanted += 1  # a descriptor and a value in the place of one
            continue
        if width < 4:
            raise DecodeError(f"0x{code:02x} at byte {position - 1} is no AMQP constructor")
        if width >= 0xA:
            position += 1 + data[position] if not width & 1 else 4 + int(unpack_u32(data, position)[0])
        elif width > 4:
            position += 1 << (width - 5)
        wanted -= 1
    return position
