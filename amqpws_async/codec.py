"""The AMQP 1.0 type system (specification part 1), to bytes and back.

=====================================  =====================================================
Python, going out                      AMQP
=====================================  =====================================================
None, bool, str, uuid.UUID             null, boolean, string, uuid
int                                    long, within 64 bits
float                                  double
bytes, bytearray, memoryview           binary
datetime.datetime with a time zone     timestamp, cut to milliseconds
list, tuple; Mapping                   list; map
`Array`, `Described`                   array, described value
`ubyte` `ushort` `uint` `ulong`        the type of that name; likewise `byte` `short` `int32`
                                       (int), `float32` (float), `char`, `symbol`, `timestamp`
`decimal32` `decimal64` `decimal128`   the type of that name, as the raw bits of IEEE 754:
                                       decimal.Decimal itself is refused, not converted
=====================================  =====================================================

Coming in, every value keeps its AMQP type: where Python has none, the typed subclass stands for it (an AMQP uint is a
`uint`, which is an int; a symbol is a `symbol`, which is a str). So `decode(encode(value))` gives value and type back,
except for what has no AMQP type of its own: tuples come back as lists, bytearrays as bytes, datetimes as `timestamp`.

Decoding trusts nothing: every size and count is checked against the bytes that are there, values nest at most
`MAX_DEPTH` deep, and array elements that take no bytes are limited to `MAX_EMPTY_ELEMENTS`. Bad input is always a
`DecodeError`, and so is a map that no dict can hold: with two keys that Python finds equal, or a key it cannot hash.
"""

from __future__ import annotations

import datetime
import decimal
import struct
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import proton
from proton import (
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
    "decimal32",
    "decimal64",
    "decimal128",
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

#: Lists, maps, arrays and described values may nest this deep, both ways. Real messages stay below 10; JSON parsers
#: stop between 100 and 1000, but each level costs a Python frame here, and the caller needs some too.
MAX_DEPTH = 64

#: How many elements without bytes of their own (nulls, or 0x41 "true") the arrays of one value may claim together: ten
#: bytes can otherwise ask for four billion.
MAX_EMPTY_ELEMENTS = 65_536

#: The descriptor of an `Array` that has none.
UNDESCRIBED: Any = proton.UNDESCRIBED  # proton's own stubs do not let it be a descriptor

_MAX_SIZE = 0xFFFFFFFF
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)

pack_u32 = struct.Struct(">I").pack
unpack_u32 = struct.Struct(">I").unpack_from

#: Constructor and size byte for each short length, and every single byte: adding up constants is the fastest there is.
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


def _encoder_of_base(value: Any) -> Packer:
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
    return STR8[size] + octets if size < 256 else _long(0xB1, octets)


def encode_symbol(value: str, depth: int = 0) -> bytes:
    """Encode any str as a symbol."""
    try:
        octets = str.encode(value, "ascii")
    except UnicodeEncodeError:
        raise EncodeError("symbols are ASCII, and this one is not: use a plain str for text") from None
    size = len(octets)
    return SYM8[size] + octets if size < 256 else _long(0xB3, octets)


def encode_binary(value: bytes, depth: int = 0) -> bytes:
    """Encode bytes or what has their buffer."""
    octets = value if type(value) is bytes else bytes(value)
    size = len(octets)
    return BIN8[size] + octets if size < 256 else _long(0xB0, octets)


def _long(code: int, octets: bytes) -> bytes:
    return BYTE[code] + pack_size(len(octets)) + octets


def pack_size(size: int) -> bytes:
    """Encode a size of four bytes."""
    if size > _MAX_SIZE:
        raise EncodeError(f"{size} bytes are over the 4 GiB of AMQP's largest value")
    return pack_u32(size)


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
    return pack_size(len(content) + 4) + pack_u32(count) + content


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
    kind = _TYPES.get(array.type)
    if kind is None:
        raise EncodeError(f"no array has the type {array.type!r}: use a type of proton.Data, such as Data.INT")
    for element in array.elements:
        if type(element) not in kind.takes:
            raise EncodeError(
                f"an array of {kind.name} cannot hold a {type(element).__name__}: mixed types need a list"
            )
    content = BYTE[kind.code] + b"".join([kind.pack(element, inner) for element in array.elements])
    if array.descriptor is UNDESCRIBED or array.descriptor is None:
        return content
    return b"\x00" + encode_at(array.descriptor, inner) + content


Packer = Callable[[Any, int], bytes]


class _Type(NamedTuple):
    """An AMQP type in the one form that holds all its values, which is the form of an array's elements."""

    name: str
    #: Proton's number, which is what `Array.type` holds.
    number: int
    #: The constructor.
    code: int
    #: The Python types of its values; the first one is the type it is decoded to.
    takes: tuple[type, ...]
    #: Encodes a value without its constructor.
    pack: Packer


def _fixed(name: str, number: int, code: int, layout: str, *takes: type) -> _Type:
    pack_value = struct.Struct(">" + layout).pack

    def pack(value: Any, depth: int) -> bytes:
        try:
            return pack_value(value)
        except (struct.error, OverflowError):
            raise EncodeError(f"a {type(value).__name__} out of range for {name}") from None

    return _Type(name, number, code, takes, pack)


def _pack_char(value: str, depth: int) -> bytes:
    if len(value) != 1 or 0xD800 <= ord(value) < 0xE000:
        raise EncodeError("char holds exactly one Unicode character, surrogates excluded: use a plain str")
    return pack_u32(ord(value))


def _pack_decimal128(value: bytes, depth: int) -> bytes:
    if len(value) != 16:
        raise EncodeError(f"decimal128 holds the 16 bytes of an IEEE 754 decimal128, not {len(value)}")
    return bytes(value)


def _wide(encoder: Packer) -> Packer:
    """Make the four-byte form of a binary, string or symbol of the shortest one."""

    def pack(value: Any, depth: int) -> bytes:
        octets = encoder(value, depth)
        return b"\0\0\0" + octets[1:] if octets[0] < 0xB0 else octets[1:]

    return pack


_NULL = _Type("null", Data.NULL, 0x40, (type(None),), lambda value, depth: b"")
_BOOLEAN = _fixed("boolean", Data.BOOL, 0x56, "?", bool)
_UINT = _fixed("uint", Data.UINT, 0x70, "I", uint, int)
_INT32 = _fixed("int32", Data.INT, 0x71, "i", int32, int)
_ULONG = _fixed("ulong", Data.ULONG, 0x80, "Q", ulong, int)
_LONG = _fixed("long", Data.LONG, 0x81, "q", int)
#: Types with one form only, of fixed width.
_SIMPLE = (
    _fixed("ubyte", Data.UBYTE, 0x50, "B", ubyte, int),
    _fixed("byte", Data.BYTE, 0x51, "b", byte, int),
    _fixed("ushort", Data.USHORT, 0x60, "H", ushort, int),
    _fixed("short", Data.SHORT, 0x61, "h", short, int),
    _fixed("float32", Data.FLOAT, 0x72, "f", float32, float),
    _fixed("double", Data.DOUBLE, 0x82, "d", float),
    _fixed("timestamp", Data.TIMESTAMP, 0x83, "q", timestamp, int),
    _fixed("decimal32", Data.DECIMAL32, 0x74, "I", decimal32),
    _fixed("decimal64", Data.DECIMAL64, 0x84, "Q", decimal64),
    _Type("decimal128", Data.DECIMAL128, 0x94, (decimal128,), _pack_decimal128),
    _Type("char", Data.CHAR, 0x73, (char, str), _pack_char),
    _Type("uuid", Data.UUID, 0x98, (uuid.UUID,), lambda value, depth: value.bytes),
)
_VARIABLE = (
    _Type("binary", Data.BINARY, 0xB0, (bytes, bytearray, memoryview), _wide(encode_binary)),
    _Type("string", Data.STRING, 0xB1, (str,), _wide(encode_str)),
    _Type("symbol", Data.SYMBOL, 0xB3, (symbol, str), _wide(encode_symbol)),
    _Type("list", Data.LIST, 0xD0, (list, tuple), lambda v, depth: _compound32(_list_content(v, depth), len(v))),
    _Type("map", Data.MAP, 0xD1, (dict,), lambda v, depth: _compound32(_map_content(v, depth), 2 * len(v))),
    _Type("array", Data.ARRAY, 0xF0, (Array,), lambda v, depth: _compound32(_array_content(v, depth), len(v.elements))),
)
_TYPES = {kind.number: kind for kind in (_NULL, _BOOLEAN, _UINT, _INT32, _ULONG, _LONG, *_SIMPLE, *_VARIABLE)}


def _encoder(kind: _Type, narrow: int | None = None, signed: bool = False, zero: bytes = b"") -> Packer:
    """Make the encoder of a fixed-width type.

    Args:
        kind: The type in its wide form.
        narrow: The constructor of its one-byte form, or None if it has none.
        signed: Whether the byte of that form has a sign.
        zero: The form without a byte, for 0; empty if it has none.
    """
    constructor, pack = BYTE[kind.code], kind.pack
    if narrow is None:
        return lambda value, depth: constructor + pack(value, depth)
    low, high = (-128, 128) if signed else (0, 256)
    prefix = BYTE[narrow]

    def encoder(value: int, depth: int = 0) -> bytes:
        if low <= value < high:
            return (prefix + BYTE[value & 255]) if value or not zero else zero
        return constructor + pack(value, depth)

    return encoder


encode_ulong = _encoder(_ULONG, 0x53, zero=b"\x44")
_encode_long = _encoder(_LONG, 0x55, signed=True)


def encode_int(value: int, depth: int = 0) -> bytes:
    """Encode an int as a long."""
    if -(1 << 63) <= value < 1 << 63:
        return _encode_long(value, depth)
    if 0 < value < 1 << 64:
        raise EncodeError("an int beyond 2**63 - 1, the end of AMQP's long: use ulong(...)")
    raise EncodeError("an int beyond the 64 bits of AMQP's largest integer: send it as a str or as bytes")


def to_timestamp(value: datetime.datetime) -> timestamp:
    """Turn a datetime into AMQP's milliseconds since 1970 (specification 1.6.17), cutting what is finer.

    Raises:
        EncodeError: It has no time zone, so it names no point in time.
    """
    if value.utcoffset() is None:
        raise EncodeError("a datetime without a time zone names no point in time: use datetime.now(UTC), for example")
    return timestamp((value - _EPOCH) // _MILLISECOND)


ENCODERS: dict[type, Packer] = {
    type(None): lambda value, depth: b"\x40",
    bool: lambda value, depth: b"\x41" if value else b"\x42",
    **{kind.takes[0]: _encoder(kind) for kind in _SIMPLE},
    int: encode_int,
    uint: _encoder(_UINT, 0x52, zero=b"\x43"),
    ulong: encode_ulong,
    int32: _encoder(_INT32, 0x54, signed=True),
    datetime.datetime: lambda value, depth: encode_at(to_timestamp(value), depth),
    str: encode_str,
    symbol: encode_symbol,
    **dict.fromkeys((bytes, bytearray, memoryview), encode_binary),
    **dict.fromkeys((list, tuple), _encode_list),
    dict: _encode_map,
    Described: _encode_described,
    Array: _encode_array,
}


# --- decoding ------------------------------------------------------------------
#
# A reader takes the data, the position behind its constructor, and the guard; it returns the value and the position
# behind it. Readers of scalars do not check where they end: a position beyond their compound, or beyond the data, is
# seen by the caller, since every compound demands that its elements end where it ends. Slices never reach beyond the
# data, indexing and unpacking raise there; `decode_from` turns that into DecodeError.


class Guard:
    """What one value, or all sections of one body, may still claim."""

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


def _unpacked(layout: str, wrap: Callable[[Any], Any] | None = None) -> Reader:
    unpack = struct.Struct(layout).unpack_from
    width = struct.calcsize(layout)
    if wrap is None:
        return lambda data, position, guard: (unpack(data, position)[0], position + width)
    return lambda data, position, guard: (wrap(unpack(data, position)[0]), position + width)


def _as(kind: type[int]) -> Callable[[Any], Any]:
    # Past the constructors of proton's unsigned types, which cost five times as much to check what cannot be.
    return partial(int.__new__, kind)


def _boolean(octet: int) -> bool:
    if octet > 1:
        raise DecodeError(f"0x{octet:02x} is neither true nor false")
    return octet == 1


def _char(code: int) -> char:
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise DecodeError(f"0x{code:x} is no Unicode character")
    return char(chr(code))


def _octets(size_width: int, wrap: Callable[[bytes], Any]) -> Reader:
    """Make the reader of a size in one or four bytes, and that many bytes."""

    def read8(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 1 + data[position]
        return wrap(data[position + 1 : end]), end

    def read32(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 4 + unpack_u32(data, position)[0]
        return wrap(data[position + 4 : end]), end

    return read8 if size_width == 1 else read32


def _octets16(wrap: Callable[[bytes], Any]) -> Reader:
    def read(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 16
        if end > len(data):
            raise IndexError
        return wrap(data[position:end]), end

    return read


def _binary(octets: bytes) -> bytes:
    return octets


def _symbol(octets: bytes) -> symbol:
    return symbol(octets.decode("ascii"))


Contents = Callable[[bytes, int, int, int, Guard], Any]


def _compound(size_width: int, contents: Contents) -> Reader:
    """Make the reader of a size and a count in one or four bytes each, and that many elements."""

    def read8(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 1 + data[position]
        return contents(data, position + 2, end, data[position + 1], guard), end

    def read32(data: bytes, position: int, guard: Guard) -> tuple[Any, int]:
        end = position + 4 + unpack_u32(data, position)[0]
        return contents(data, position + 8, end, unpack_u32(data, position + 4)[0], guard), end

    return read8 if size_width == 1 else read32


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
        side = "behind" if position > end else "before"
        raise DecodeError(f"the elements of a compound value end {abs(position - end)} bytes {side} its size")
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
    descriptor = UNDESCRIBED
    code = data[position]
    if code == 0:
        descriptor, position = READERS[data[position + 1]](data, position + 2, guard)
        code = data[position]
    position += 1
    number = _NUMBERS.get(code)
    if number is None:
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
    array = Array(descriptor, number)
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


#: Constructor -> proton's number of the type, for all but described values: each type's widest form, then the others.
_NUMBERS: dict[int, int] = {
    **{kind.code: kind.number for kind in _TYPES.values()},
    **dict.fromkeys((0x41, 0x42), Data.BOOL),
    **dict.fromkeys((0x43, 0x52), Data.UINT),
    **dict.fromkeys((0x44, 0x53), Data.ULONG),
    **dict.fromkeys((0x45, 0xC0), Data.LIST),
    0x54: Data.INT,
    0x55: Data.LONG,
    0xA0: Data.BINARY,
    0xA1: Data.STRING,
    0xA3: Data.SYMBOL,
    0xC1: Data.MAP,
    0xE0: Data.ARRAY,
}

_KNOWN: dict[int, Reader] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(uint(0)),
    0x44: _constant(ulong(0)),
    0x45: lambda data, position, guard: ([], position),
    0x50: _unpacked(">B", _as(ubyte)),
    0x51: _unpacked(">b", byte),
    0x52: _unpacked(">B", _as(uint)),
    0x53: _unpacked(">B", _as(ulong)),
    0x54: _unpacked(">b", int32),
    0x55: _unpacked(">b"),
    0x56: _unpacked(">B", _boolean),
    0x60: _unpacked(">H", _as(ushort)),
    0x61: _unpacked(">h", short),
    0x70: _unpacked(">I", _as(uint)),
    0x71: _unpacked(">i", int32),
    0x72: _unpacked(">f", float32),
    0x73: _unpacked(">I", _char),
    0x74: _unpacked(">I", decimal32),
    0x80: _unpacked(">Q", _as(ulong)),
    0x81: _unpacked(">q"),
    0x82: _unpacked(">d"),
    0x83: _unpacked(">q", timestamp),
    0x84: _unpacked(">Q", decimal64),
    0x94: _octets16(decimal128),
    0x98: _octets16(lambda octets: uuid.UUID(bytes=octets)),
    0xA0: _octets(1, _binary),
    0xA1: _octets(1, bytes.decode),
    0xA3: _octets(1, _symbol),
    0xB0: _octets(4, _binary),
    0xB1: _octets(4, bytes.decode),
    0xB3: _octets(4, _symbol),
    0xC0: _compound(1, _list),
    0xC1: _compound(1, _map),
    0xD0: _compound(4, _list),
    0xD1: _compound(4, _map),
    0xE0: _compound(1, _array),
    0xF0: _compound(4, _array),
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
            position += 4 + unpack_u32(data, position)[0] if width & 1 else 1 + data[position]
        elif width > 4:
            position += 1 << (width - 5)
        wanted -= 1
    return position
