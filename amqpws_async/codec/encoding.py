"""AMQP values to bytes, and the table of AMQP's types."""

from __future__ import annotations

import datetime
import decimal
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
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

from ..errors import EncodeError

__all__ = ["MAX_DEPTH", "UNDESCRIBED", "array", "encode", "to_timestamp"]

#: Lists, maps, arrays and described values may nest this deep, both ways. Real messages stay below 10; JSON parsers
#: stop between 100 and 1000, but each level costs a Python frame here, and the caller needs some too.
MAX_DEPTH = 64

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
        value: Any value of the package's table, nested as you like up to `MAX_DEPTH`.

    Returns:
        The constructor and the value, in the shortest form AMQP has.

    Raises:
        EncodeError: AMQP has no type for it, it is out of its type's range, or it is nested too deep or in itself.
    """
    return encode_at(value, 0)


def array(kind: type[Any], values: Iterable[Any], *, descriptor: Any = None) -> Array:
    """Make an array, whose values are all of one type (specification 1.6.24): `array(int32, [1, 2])`.

    Args:
        kind: bool, int (AMQP's long), float (double), str, bytes, uuid.UUID, list, dict, `Array`, or an explicit type
            such as `uint`, `symbol` or `timestamp`.
        values: Values of that type; plain ints, floats and strs will do for the explicit types.
        descriptor: A symbol or ulong that describes every value, or None.

    Returns:
        An `Array`, the same that decoding gives.

    Raises:
        EncodeError: No array has that type, or a value is not of it.
    """
    found = KINDS.get(kind) if isinstance(kind, type) else None
    if found is None:
        name = kind.__name__ if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise EncodeError(
            f"no array has the type {name}: use bool, int, float, str, bytes, uuid.UUID, list, dict, Array, or an "
            "explicit type such as int32"
        )
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise EncodeError(f"the values of an array are a list or the like, not a {type(values).__name__}")
    made = Array(UNDESCRIBED if descriptor is None else descriptor, found.number, *values)
    encode(made)  # what is wrong with it shows here, where it is made
    made.elements = tuple([value if type(value) is kind else kind(value) for value in made.elements])
    return made


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
    kind = TYPES.get(array.type)
    if kind is None:
        raise EncodeError(f"no array has the type {array.type!r}: make it with array(int32, [1, 2]), for example")
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
#: The types by proton's number, and by the Python type they are decoded to.
TYPES = {kind.number: kind for kind in (_NULL, _BOOLEAN, _UINT, _INT32, _ULONG, _LONG, *_SIMPLE, *_VARIABLE)}
KINDS = {kind.takes[0]: kind for kind in TYPES.values()}


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
