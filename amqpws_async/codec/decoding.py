"""Bytes to AMQP values."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

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

from ..errors import DecodeError
from .encoding import MAX_DEPTH, TYPES, UNDESCRIBED, unpack_u32

__all__ = ["MAX_EMPTY_ELEMENTS", "decode", "decode_from"]

#: How many elements without bytes of their own (nulls, or 0x41 "true") the arrays of one value may claim together: ten
#: bytes can otherwise ask for four billion.
MAX_EMPTY_ELEMENTS = 65_536


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
    **{kind.code: kind.number for kind in TYPES.values()},
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
