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
`array(...)`, `Described`              array, described value
`ubyte` `ushort` `uint` `ulong`        the type of that name; likewise `byte` `short` `int32`
                                       (int), `float32` (float), `char`, `symbol`, `timestamp`
`decimal32` `decimal64` `decimal128`   the type of that name, as the raw bits of IEEE 754:
                                       decimal.Decimal itself is refused, not converted
=====================================  =====================================================

Coming in, every value keeps its AMQP type: where Python has none, the typed subclass stands for it (an AMQP uint is a
`uint`, which is an int; a symbol is a `symbol`, which is a str), and an array is an `Array`. So `decode(encode(value))`
gives value and type back, except for what has no AMQP type of its own: tuples come back as lists, bytearrays as bytes,
datetimes as `timestamp`.

Decoding trusts nothing: every size and count is checked against the bytes that are there, values nest at most
`MAX_DEPTH` deep, and array elements that take no bytes are limited to `MAX_EMPTY_ELEMENTS`. Bad input is always a
`DecodeError`, and so is a map that no dict can hold: with two keys that Python finds equal, or a key it cannot hash.
"""

from __future__ import annotations

from proton import (
    Array,
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

from .decoding import MAX_EMPTY_ELEMENTS, decode, decode_from
from .encoding import MAX_DEPTH, UNDESCRIBED, array, encode

__all__ = [
    "MAX_DEPTH",
    "MAX_EMPTY_ELEMENTS",
    "UNDESCRIBED",
    "Array",
    "Described",
    "array",
    "byte",
    "char",
    "decimal32",
    "decimal64",
    "decimal128",
    "decode",
    "decode_from",
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
