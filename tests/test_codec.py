"""The AMQP type system: proton's own codec is the oracle, hostile bytes are the hazard."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import math
import struct
import time
import tracemalloc
import types
import uuid
from collections import OrderedDict
from typing import Any

import proton
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpws_async import codec
from amqpws_async.codec import (
    MAX_DEPTH,
    MAX_EMPTY_ELEMENTS,
    UNDESCRIBED,
    Array,
    Described,
    array,
    byte,
    char,
    decimal32,
    decimal64,
    decimal128,
    decode,
    decode_from,
    encode,
    encoding,
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
from amqpws_async.codec.decoding import skip
from amqpws_async.errors import DecodeError, EncodeError

Data = proton.Data


def _float32(value: float) -> float32:
    return float32(struct.unpack(">f", struct.pack(">f", value))[0])


# Proton hands strings over as C strings, so the oracle's texts are without NUL; NUL has a test of its own.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
_ASCII = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=300)
_FIXED: dict[int, st.SearchStrategy[Any]] = {
    Data.BOOL: st.booleans(),
    Data.UBYTE: st.integers(0, 2**8 - 1).map(ubyte),
    Data.BYTE: st.integers(-(2**7), 2**7 - 1).map(byte),
    Data.USHORT: st.integers(0, 2**16 - 1).map(ushort),
    Data.SHORT: st.integers(-(2**15), 2**15 - 1).map(short),
    Data.UINT: st.integers(0, 2**32 - 1).map(uint),
    Data.INT: st.integers(-(2**31), 2**31 - 1).map(int32),
    Data.ULONG: st.integers(0, 2**64 - 1).map(ulong),
    Data.LONG: st.integers(-(2**63), 2**63 - 1),
    Data.FLOAT: st.floats(width=32).map(_float32),
    Data.DOUBLE: st.floats(),
    Data.CHAR: st.characters(exclude_categories=["Cs"]).map(char),
    Data.TIMESTAMP: st.integers(-(2**63), 2**63 - 1).map(timestamp),
    Data.DECIMAL32: st.integers(0, 2**32 - 1).map(decimal32),
    Data.DECIMAL64: st.integers(0, 2**64 - 1).map(decimal64),
    Data.DECIMAL128: st.binary(min_size=16, max_size=16).map(decimal128),
    Data.UUID: st.uuids(),
}
_VARIABLE: dict[int, st.SearchStrategy[Any]] = {
    Data.BINARY: st.binary(max_size=300),
    Data.STRING: _TEXT,
    Data.SYMBOL: _ASCII.map(symbol),
}
_SCALARS = st.one_of(st.none(), *_FIXED.values(), *_VARIABLE.values())
_KEYS = st.one_of(st.integers(-(2**63), 2**63 - 1), _TEXT, _ASCII.map(symbol), st.uuids())


def _arrays(elements: dict[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Array]:
    return st.one_of(
        [
            st.builds(
                lambda descriptor, values, kind=kind: Array(descriptor, kind, *values),
                st.one_of(st.just(UNDESCRIBED), _ASCII.map(symbol), st.integers(0, 2**64 - 1).map(ulong)),
                st.lists(values, max_size=4),
            )
            for kind, values in elements.items()
        ]
    )


_ARRAYS = _arrays({**_FIXED, **_VARIABLE})
_DESCRIPTORS = st.one_of(_ASCII.map(symbol), st.integers(0, 2**64 - 1).map(ulong))


def _values(described: bool) -> st.SearchStrategy[Any]:
    leaves = st.one_of(_SCALARS, _ARRAYS, st.builds(Described, _DESCRIPTORS, _SCALARS))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(_KEYS, inner, max_size=4),
            *([st.builds(Described, _DESCRIPTORS, inner)] if described else []),
        ),
        max_leaves=12,
    )


VALUES = _values(described=True)
# Proton's Python layer loses the elements that follow a described value within a described value, its own encodings
# included: the oracle sees described scalars only.
ORACLE_VALUES = _values(described=False)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal and of the same types all the way down; NaN is itself here."""
    if isinstance(right, memoryview):
        right = bytes(right)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    if isinstance(left, Described):
        return same(left.descriptor, right.descriptor) and same(left.value, right.value)
    if isinstance(left, Array):
        return (
            left.type == right.type
            and (left.descriptor is right.descriptor or same(left.descriptor, right.descriptor))
            and same(list(left.elements), list(right.elements))
        )
    return bool(left == right)


def proton_encode(value: Any) -> bytes:
    data = Data()
    data.put_object(value)
    return data.encode()


def proton_decode(encoded: bytes, data: proton.Data) -> Any:
    """Decode by proton; its binaries are views into `data`, which has to outlive them."""
    assert data.decode(encoded) == len(encoded)
    data.rewind()
    data.next()
    return data.get_object()


# --- hostile bytes ---------------------------------------------------------------


def _decodes_or_refuses(octets: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(octets)


@given(st.binary(max_size=64))
@settings(max_examples=500)
def test_random_bytes_give_a_value_or_a_decode_error(octets: bytes) -> None:
    """No bytes whatever raise anything but DecodeError."""
    _decodes_or_refuses(octets)


@given(VALUES, st.data())
def test_mutated_bytes_give_a_value_or_a_decode_error(value: Any, data: st.DataObject) -> None:
    """One wrong byte anywhere in a good encoding raises nothing but DecodeError."""
    octets = bytearray(encode(value))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    _decodes_or_refuses(bytes(octets))


@given(VALUES, st.data())
def test_truncated_bytes_are_refused(value: Any, data: st.DataObject) -> None:
    """A value cut short anywhere is refused, never completed by guessing."""
    octets = encode(value)
    with pytest.raises(DecodeError):
        decode(octets[: data.draw(st.integers(0, len(octets) - 1))])


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"\xc0\x02\xff\x40", id="list8 of 255 elements in one byte"),
        pytest.param(b"\xc0\x00\x00", id="list8 whose size leaves no room for its count"),
        pytest.param(b"\xd0\x00\x00\x00\x05\xff\xff\xff\xff\x40", id="list32 of four billion elements"),
        pytest.param(b"\xd0\xff\xff\xff\xff\x00\x00\x00\x01\x40", id="list32 of four gigabytes"),
        pytest.param(b"\xd1\x00\x00\x00\x05\xff\xff\xff\xfe\x40", id="map32 of four billion elements"),
        pytest.param(b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40", id="array32 of four billion nulls"),
        pytest.param(b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x45", id="array32 of four billion empty lists"),
        pytest.param(b"\xf0\x00\x00\x00\x06\xff\xff\xff\xff\x50\x01", id="array32 of four billion ubytes"),
        pytest.param(b"\xb0\xff\xff\xff\xffx", id="binary of four gigabytes"),
        pytest.param(b"\xb1\xff\xff\xff\xffx", id="string of four gigabytes"),
    ],
)
def test_lying_sizes_and_counts_are_refused_without_allocating(octets: bytes) -> None:
    """A size or count that the bytes cannot hold costs neither time nor memory."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(octets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_empty_elements_share_one_allowance() -> None:
    """Many arrays of nulls, each within bounds, cannot add up to a bomb."""
    array = b"\xf0\x00\x00\x00\x05" + struct.pack(">I", MAX_EMPTY_ELEMENTS // 2) + b"\x40"
    assert len(decode(array).elements) == MAX_EMPTY_ELEMENTS // 2
    two, three = (b"\xc0" + bytes((len(array) * n + 1, n)) + array * n for n in (2, 3))
    assert len(decode(two)) == 2
    with pytest.raises(DecodeError, match="no bytes"):
        decode(three)


@pytest.mark.parametrize(
    "opening", [b"\xc0\xff\x01", b"\x00", b"\xe0\xff\x01\xe0", b"\xd0\x00\x00\xff\xff\x00\x00\x00\x01"]
)
def test_deep_nesting_is_refused(opening: bytes) -> None:
    """A hundred thousand openings end in DecodeError, not in RecursionError."""
    with pytest.raises(DecodeError):
        decode(opening * 100_000)


def _nested(levels: int) -> bytes:
    octets = b"\x40"
    for _ in range(levels):
        octets = b"\xd0" + struct.pack(">II", len(octets) + 4, 1) + octets
    return octets


def test_nesting_is_bounded_exactly() -> None:
    """MAX_DEPTH levels decode, one more does not, and encoding agrees with decoding."""
    value = decode(_nested(MAX_DEPTH))
    assert decode(encode(value)) == value
    with pytest.raises(DecodeError, match="nested"):
        decode(_nested(MAX_DEPTH + 1))
    with pytest.raises(EncodeError, match="nested"):
        encode([value])


def test_siblings_do_not_count_as_nesting() -> None:
    """A list of very many lists, arrays, maps and described values is one level deep."""
    value = [[[1], {"a": 1}, Described(symbol("d"), 1), Array(UNDESCRIBED, Data.LONG, 1)] for _ in range(MAX_DEPTH)]
    assert same(decode(encode(value)), value)


def test_decoding_takes_linear_time() -> None:
    """A megabyte of the worst: every element claims to be as long as the rest."""
    octets = b"\xd0" + struct.pack(">II", 1_000_004, 200_000) + b"\xa0\x03\x00\x00\x00" * 200_000
    started = time.perf_counter()
    assert len(decode(octets)) == 200_000
    bad = b"\xd0" + struct.pack(">II", 1_000_004, 200_000) + b"\xb0\x00\x0f\x00\x00" * 200_000
    with pytest.raises(DecodeError):
        decode(bad)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("octets", "hint"),
    [
        (b"", "cut short"),
        (b"\x40\x40", "left over"),
        (b"\x57\x00", "0x57"),
        (b"\x3f", "0x3f"),
        (b"\xff", "0xff"),
        (b"\xa1\x02\xc3\x28", "bad text"),
        (b"\xa3\x01\x80", "bad text"),
        (b"\x56\x02", "neither true nor false"),
        (b"\x73\x00\x11\x00\x00", "Unicode"),
        (b"\x73\x00\x00\xd8\x00", "Unicode"),
        (b"\xc1\x02\x01\x40", "without a value"),
        (b"\xc1\x05\x04\x40\x40\x40\x40", "equal keys"),
        (b"\xc1\x07\x04\x50\x01\x40\x55\x01\x40", "equal keys"),
        (b"\xc1\x03\x02\x45\x40", "type list"),
        (b"\xc0\x03\x01\x40\x40", "before its size"),
        (b"\xc0\x03\x01\xa0\x05", "behind its size|more than"),
        (b"\xc0\x07\x01\xc0\x04\x01\x55\x01\x40\x40", "before its size"),
        (b"\xe0\x02\x01\x00", "cut short"),
        (b"\xe0\x05\x01\x00\x53\x01\x00", "no constructor"),
        (b"\xe0\x03\x01\x99\x00", "no constructor"),
        (b"\x98" + bytes(15), "cut short"),
        (b"\x94" + bytes(15), "cut short"),
        (b"\x80" + bytes(7), "cut short"),
    ],
)
def test_malformed_values_are_refused_with_their_reason(octets: bytes, hint: str) -> None:
    """Each kind of malformed value names what is wrong with it."""
    with pytest.raises(DecodeError, match=hint):
        decode(octets)


def test_an_element_cannot_reach_beyond_its_compound() -> None:
    """A string inside a list may not take bytes that follow the list."""
    inner = b"\xc0\x04\x01\xa1\x04a"  # says 4 bytes, its list has room for 1
    with pytest.raises(DecodeError):
        decode(b"\xc0" + bytes((len(inner) + 6, 2)) + inner + b"\xa1\x03bcd")


@given(st.binary(max_size=40))
@settings(max_examples=300)
def test_skipping_agrees_with_decoding(octets: bytes) -> None:
    """Whatever decodes is skipped to the same place."""
    try:
        _, end = decode_from(octets, 0)
    except DecodeError:
        return
    assert skip(octets, 0) == end


@given(VALUES)
def test_skipping_finds_the_end_of_every_value(value: Any) -> None:
    """Skipping needs no decoding."""
    octets = encode(value)
    assert skip(b"\x40" + octets + b"\x40", 1) == len(octets) + 1


def test_skipping_refuses_what_is_no_constructor() -> None:
    """Codes below 0x40 other than the descriptor have no width."""
    with pytest.raises(DecodeError, match="0x3f"):
        skip(b"\x3f", 0)


# --- both directions -------------------------------------------------------------------


@given(VALUES)
def test_decode_gives_back_what_encode_took(value: Any) -> None:
    """Value and AMQP type survive the round trip."""
    assert same(decode(encode(value)), value)


@given(ORACLE_VALUES)
def test_proton_reads_what_we_write(value: Any) -> None:
    """Proton decodes our bytes to the same value and types."""
    data = Data()
    assert same(value, proton_decode(encode(value), data))


@given(ORACLE_VALUES)
def test_we_read_what_proton_writes(value: Any) -> None:
    """We decode proton's bytes to the same value and types."""
    assert same(decode(proton_encode(value)), value)


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        (None, "40"),
        (True, "41"),
        (False, "42"),
        (uint(0), "43"),
        (uint(255), "52ff"),
        (uint(256), "7000000100"),
        (ulong(0), "44"),
        (ulong(255), "53ff"),
        (ulong(256), "800000000000000100"),
        (-128, "5580"),
        (127, "557f"),
        (128, "810000000000000080"),
        (-129, "81ffffffffffffff7f"),
        (int32(-128), "5480"),
        (int32(128), "7100000080"),
        (ubyte(1), "5001"),
        (byte(-1), "51ff"),
        (ushort(1), "600001"),
        (short(-1), "61ffff"),
        (float32(1.0), "723f800000"),
        (1.0, "823ff0000000000000"),
        (char("€"), "73000020ac"),
        (timestamp(-1), "83ffffffffffffffff"),
        (decimal32(1), "7400000001"),
        (decimal64(1), "840000000000000001"),
        (decimal128(bytes(16)), "94" + "00" * 16),
        (uuid.UUID(int=1), "98" + "00" * 15 + "01"),
        (b"x", "a00178"),
        (b"x" * 255, "a0ff" + "78" * 255),
        (b"x" * 256, "b000000100" + "78" * 256),
        ("é", "a102c3a9"),
        ("a" * 256, "b100000100" + "61" * 256),
        ("a\0b", "a103610062"),
        (symbol("a"), "a30161"),
        (symbol("a" * 256), "b300000100" + "61" * 256),
        ([], "45"),
        ([None], "c0020140"),
        ([None] * 254, "c0fffe" + "40" * 254),
        ([None] * 255, "d000000103000000ff" + "40" * 255),
        ({}, "c10100"),
        ({"a": 1}, "c10602a101615501"),
        (Described(ulong(1), []), "00530145"),
        (Array(UNDESCRIBED, Data.INT), "e0020071"),
        (Array(UNDESCRIBED, Data.NULL, None, None), "e0020240"),
        (Array(UNDESCRIBED, Data.BOOL, True, False), "e00402560100"),
        (Array(UNDESCRIBED, Data.SYMBOL, symbol("a"), symbol("b")), "e00c02b300000001610000000162"),
        (Array(symbol("d"), Data.UBYTE, ubyte(1)), "e0070100a301645001"),
    ],
)
def test_the_bytes_are_those_of_the_specification(value: Any, octets: str) -> None:
    """Each type in its shortest form, at the edges where the form changes (1.6), and back."""
    assert encode(value).hex() == octets
    assert same(decode(bytes.fromhex(octets)), value)


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        ("5601", True),
        ("5600", False),
        ("7000000000", uint(0)),
        ("800000000000000000", ulong(0)),
        ("810000000000000001", 1),
        ("7100000001", int32(1)),
        ("b00000000178", b"x"),
        ("b10000000161", "a"),
        ("b30000000161", symbol("a")),
        ("d00000000400000000", []),
        ("c00100", []),
        ("d10000000400000000", {}),
        ("e0020341", Array(UNDESCRIBED, Data.BOOL, True, True, True)),
        ("e0020143", Array(UNDESCRIBED, Data.UINT, uint(0))),
        ("e0020144", Array(UNDESCRIBED, Data.ULONG, ulong(0))),
        ("e0020245", Array(UNDESCRIBED, Data.LIST, [], [])),
        ("e00402530102", Array(UNDESCRIBED, Data.ULONG, ulong(1), ulong(2))),
    ],
)
def test_longer_forms_are_read_too(octets: str, value: Any) -> None:
    """A peer need not choose the shortest form."""
    assert same(decode(bytes.fromhex(octets)), value)


@pytest.mark.parametrize(
    "array",
    [
        Array(UNDESCRIBED, Data.LIST, [], [1, "a"], [[2]]),
        Array(UNDESCRIBED, Data.MAP, {}, {"a": 1}),
        Array(UNDESCRIBED, Data.ARRAY, Array(UNDESCRIBED, Data.INT, int32(1)), Array(symbol("d"), Data.STRING)),
        Array(UNDESCRIBED, Data.STRING, "a" * 300, "b"),
        Array(UNDESCRIBED, Data.BINARY, b"a" * 300, b"b"),
        Array(UNDESCRIBED, Data.LONG, *range(300)),
    ],
)
def test_arrays_of_every_width_come_back(array: Array) -> None:
    """Arrays of compound and of long elements, which need the four-byte forms."""
    assert same(decode(encode(array)), array)
    assert same(decode(proton_encode(array)), array)


@pytest.mark.parametrize(
    ("kind", "values", "number"),
    [
        (bool, [True, False], Data.BOOL),
        (int, [1, -(2**63)], Data.LONG),
        (float, [1.0, -0.5], Data.DOUBLE),
        (str, ["a", ""], Data.STRING),
        (bytes, [b"a", bytearray(b"b")], Data.BINARY),
        (uuid.UUID, [uuid.UUID(int=1)], Data.UUID),
        (ubyte, [1, ubyte(2)], Data.UBYTE),
        (byte, [-1], Data.BYTE),
        (ushort, [1], Data.USHORT),
        (short, [-1], Data.SHORT),
        (uint, [1], Data.UINT),
        (int32, [1, 2], Data.INT),
        (ulong, [2**64 - 1], Data.ULONG),
        (float32, [0.5], Data.FLOAT),
        (char, ["a", char("b")], Data.CHAR),
        (symbol, ["a", symbol("b")], Data.SYMBOL),
        (timestamp, [-1], Data.TIMESTAMP),
        (decimal32, [decimal32(1)], Data.DECIMAL32),
        (decimal64, [decimal64(1)], Data.DECIMAL64),
        (decimal128, [decimal128(bytes(16))], Data.DECIMAL128),
        (list, [[1], ("a", 2)], Data.LIST),
        (dict, [{"a": 1}, {}], Data.MAP),
        (Array, [array(int, [1]), array(str, [])], Data.ARRAY),
        (type(None), [None, None], Data.NULL),
        (int32, range(3), Data.INT),
        (int32, iter([1, 2]), Data.INT),
        (int32, [], Data.INT),
    ],
)
@pytest.mark.parametrize("descriptor", [None, symbol("d"), ulong(7)])
def test_an_array_is_made_of_a_type_and_its_values(kind: type, values: Any, number: int, descriptor: Any) -> None:
    """No constant of proton is needed, and what was made is what arrives, types included."""
    made = array(kind, values, descriptor=descriptor)
    assert made.type == number
    assert {type(element) for element in made.elements} <= {kind}
    assert same(decode(encode(made)), made)
    data = Data()
    assert same(made, proton_decode(encode(made), data))


@pytest.mark.parametrize(
    ("kind", "values", "hint"),
    [
        (int32, [1, "a"], "an array of int32 cannot hold a str: mixed types need a list"),
        (int, [1, True], "an array of long cannot hold a bool"),
        (float, [1.0, 1], "an array of double cannot hold a int"),
        (str, ["a", None], "an array of string cannot hold a NoneType"),
        (symbol, ["é"], "ASCII"),
        (char, ["ab"], "one Unicode"),
        (ubyte, [256], "out of range for ubyte"),
        (uint, [-1], "out of range for uint"),
        (int, [2**63], "out of range for long"),
        (list, [[{1}]], "use a list"),
        (str, "abc", "a list or the like, not a str"),
        (int, b"abc", "a list or the like, not a bytes"),
        (tuple, [(1,)], "no array has the type tuple: use bool, int"),
        (datetime.datetime, [], "no array has the type datetime: .* such as int32"),
        (Described, [], "no array has the type Described"),
        ([1, 2], int32, "no array has the type a list"),
        (Data.INT, [1], "no array has the type a int"),
    ],
)
def test_what_no_array_holds_is_refused_where_it_is_made(kind: Any, values: Any, hint: str) -> None:
    """A wrong type, value or range is an error of the line that made the array, not of the one that sends it."""
    with pytest.raises(EncodeError, match=hint):
        array(kind, values)


def test_a_descriptor_that_amqp_cannot_carry_is_refused() -> None:
    """The descriptor of an array is a value like any other."""
    with pytest.raises(EncodeError, match="object"):
        array(int, [1], descriptor=object())


def test_an_array_without_descriptor_may_say_none() -> None:
    """None as an array's descriptor means no descriptor, as proton's documentation has it."""
    assert decode(encode(Array(None, Data.LONG, 1))).descriptor is UNDESCRIBED


# --- what Python has and AMQP has not ------------------------------------------------------


class _Level(enum.IntEnum):
    HIGH = 7


class _Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ((1, 2), [1, 2]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (OrderedDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (_Level.HIGH, 7),
        (_Colour.RED, "red"),
        (datetime.datetime(1970, 1, 1, 0, 0, 1, 999, datetime.UTC), timestamp(1000)),
        (datetime.datetime(1970, 1, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))), timestamp(0)),
        (datetime.datetime(1969, 12, 31, 23, 59, 59, 999_500, datetime.UTC), timestamp(-1)),
        (datetime.datetime.max.replace(tzinfo=datetime.UTC), timestamp(253402300799999)),
        (proton.AnnotationDict({"a": 1}), {symbol("a"): 1}),
    ],
)
def test_relatives_of_the_known_types_are_carried(value: Any, back: Any) -> None:
    """Subclasses and look-alikes travel as the AMQP type of their kind."""
    assert same(decode(encode(value)), back)


def _unchecked(kind: type[int], value: int) -> int:
    """Build a proton integer past its constructor's own check."""
    return int.__new__(kind, value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (2**63, r"ulong\("),
        (-(2**63) - 1, "64 bits"),
        pytest.param(10**5000, "64 bits", id="5001 digits"),
        pytest.param(uint(10**5000), "out of range for uint", id="uint of 5001 digits"),
        (_unchecked(uint, -1), "out of range for uint"),
        (uint(2**32), "out of range for uint"),
        (_unchecked(ulong, -1), "out of range for ulong"),
        (ulong(2**64), "out of range for ulong"),
        (ubyte(256), "out of range for ubyte"),
        (byte(128), "out of range for byte"),
        (ushort(2**16), "out of range for ushort"),
        (short(2**15), "out of range for short"),
        (int32(2**31), "out of range for int32"),
        (timestamp(2**63), "out of range for timestamp"),
        (decimal32(2**32), "out of range for decimal32"),
        (decimal64(-1), "out of range for decimal64"),
        (decimal128(b"short"), "16 bytes"),
        (float32(1e300), "float32"),
        (char(""), "one Unicode"),
        (char("ab"), "one Unicode"),
        (char("\ud800"), "surrogates"),
        ("\ud800", "UTF-8"),
        (symbol("é"), "ASCII"),
        (decimal.Decimal(1), "IEEE 754"),
        (datetime.datetime(2020, 1, 1), "time zone"),
        (datetime.date(2020, 1, 1), "isoformat"),
        (datetime.time(1), "isoformat"),
        (datetime.timedelta(1), "total_seconds"),
        ({1}, "use a list"),
        (frozenset(), "use a list"),
        (1j, "two floats"),
        (object(), "object"),
        (Array(UNDESCRIBED, Data.INT, int32(1), "a"), "mixed"),
        (Array(UNDESCRIBED, Data.LONG, 1, True), "mixed"),
        (Array(UNDESCRIBED, Data.UBYTE, 1, 256), "out of range for ubyte"),
        (Array(UNDESCRIBED, Data.DESCRIBED, Described(1, 2)), r"array\(int32"),
        (Array(UNDESCRIBED, 99, 1), r"array\(int32"),
        ([{"a": {1}}], "use a list"),
    ],
)
def test_what_amqp_cannot_carry_is_refused_with_a_hint(value: Any, hint: str) -> None:
    """Nothing is coerced silently: the error names what to use instead."""
    with pytest.raises(EncodeError, match=hint):
        encode(value)


@pytest.mark.parametrize("value", [b"x" * 300, "x" * 300, symbol("x" * 300), [b"x" * 200, b"x" * 100]])
def test_a_value_over_the_largest_size_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes have four bytes; the bound is lowered here, as the real one takes 4 GiB to pass."""
    monkeypatch.setattr(encoding, "_MAX_SIZE", 299)
    with pytest.raises(EncodeError, match="4 GiB"):
        encode(value)


@pytest.mark.parametrize("kind", ["list", "map", "described", "array"])
def test_a_value_nested_in_itself_is_refused(kind: str) -> None:
    """A cycle ends in EncodeError, not in RecursionError."""
    inner: list[Any] = []
    outer: Any = {
        "list": inner,
        "map": {"a": inner},
        "described": Described(1, inner),
        "array": Array(UNDESCRIBED, Data.LIST, inner),
    }[kind]
    inner.append(outer)
    with pytest.raises(EncodeError, match="in itself"):
        encode(outer)


def test_errors_are_value_errors_too() -> None:
    """Code that expects ValueError of bad input keeps working."""
    with pytest.raises(ValueError, match="cut short"):
        decode(b"")
    with pytest.raises(ValueError, match="object"):
        encode(object())


def test_errors_quote_no_values() -> None:
    """Values may be secrets: an error names types and positions only."""
    with pytest.raises(EncodeError) as caught:
        encode("canary-1234\ud800")
    assert "canary" not in str(caught.value)
    with pytest.raises(DecodeError) as refused:
        decode(b"\xa1\x0ccanary-1234\xff")
    assert "canary" not in str(refused.value)


def test_decode_takes_any_buffer() -> None:
    """A bytearray or memoryview is as good as bytes."""
    assert decode(bytearray(b"\xa0\x01x")) == b"x"
    assert decode(memoryview(b"\xa0\x01x")) == b"x"


def test_every_public_name_is_there() -> None:
    """`__all__` is what the module promises."""
    assert all(hasattr(codec, name) for name in codec.__all__)
