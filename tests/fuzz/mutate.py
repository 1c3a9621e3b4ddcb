"""From recordings to bad input, by a seeded `random.Random` alone: a seed and a number give the same bytes again."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .wire import (
    AMQP,
    ATTACH,
    CLOSE,
    DISPOSITION,
    FLOW,
    OPEN,
    SASL,
    TRANSFER,
    Compound,
    Described,
    Frame,
    Node,
    encode,
    is_frame,
    parse_frame,
)

__all__ = ["cuts", "mutate"]

MAX_STREAM = 256 * 1024  # octets: what a mutation may blow a stream up to

EDGES = (0, 1, 2, 3, 5, 7, 8, 127, 128, 255, 256, 511, 512, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


def mutate(rng: random.Random, recording: list[bytes], others: list[list[bytes]]) -> bytes:
    """One bad stream, made of the pieces of a recording and now and then of others."""
    if rng.random() < 0.02:
        return rng.choice((b"", recording[0])) + rng.randbytes(rng.randrange(2000))
    pieces = list(recording)
    if rng.random() < 0.25:
        del pieces[rng.randrange(len(pieces)) + 1 :]
    for _ in range(1 + min(int(rng.expovariate(0.7)), 12)):
        if pieces:
            rng.choice(_PIECEWISE)(rng, pieces, others)
    data = b"".join(pieces)[:MAX_STREAM]
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):
        data = rng.choice(_BYTEWISE)(rng, data, others)
    return data[:MAX_STREAM]


def cuts(rng: random.Random, size: int) -> list[int]:
    """Where a stream is cut into reads: ascending, the last one its size."""
    style = rng.random()
    if style < 0.5 or size < 2:
        return [size]
    if style < 0.55 and size < 4000:
        return list(range(1, size + 1))
    return sorted({*(rng.randrange(1, size) for _ in range(rng.randrange(1, 30))), size})


# --- values ------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> Node:
    """Any value, well formed or not."""
    return rng.choice(_VALUES[: -4 if depth > 3 else None])(rng, depth)


def _integer(rng: random.Random, _: int) -> Node:
    number = rng.choice(EDGES) if rng.random() < 0.8 else rng.getrandbits(32)
    match rng.randrange(5):
        case 0:
            return struct.pack(">BI", 0x70, number)  # uint
        case 1:
            return struct.pack(">BQ", 0x80, number << rng.choice((0, 0, 31, 32)))  # ulong
        case 2:
            return bytes((rng.choice((0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56)), number & 0xFF))
        case 3:
            return struct.pack(">BH", rng.choice((0x60, 0x61)), number & 0xFFFF)
        case _:
            return struct.pack(">BQ", rng.choice((0x81, 0x82, 0x83)), number)


def _octets(rng: random.Random, _: int) -> Node:
    size = rng.choice((0, 1, 2, 16, 32, 33, 200, 255, 300, 5000))
    content = rng.choice(
        (b"a" * size, rng.randbytes(size), b"\xff" * size, b"\x00" * size, "é€\U0001f600".encode() * (size // 9))
    )
    narrow = len(content) < 256 and rng.random() < 0.7
    code = rng.choice((0xA0, 0xA1, 0xA3) if narrow else (0xB0, 0xB1, 0xB3))
    claimed = len(content) if rng.random() < 0.85 else rng.choice(EDGES)
    return struct.pack(">BB" if narrow else ">BI", code, claimed & (0xFF if narrow else 0xFFFFFFFF)) + content


def _simple(rng: random.Random, _: int) -> Node:
    return bytes((rng.choice((0x40, 0x41, 0x42, 0x43, 0x44, 0x45)),))


def _any_fixed(rng: random.Random, _: int) -> Node:
    code = rng.choice((0x56, 0x72, 0x73, 0x74, 0x82, 0x84, 0x94, 0x98, 0x83))
    width = {0x5: 1, 0x7: 4, 0x8: 8, 0x9: 16}[code >> 4]
    return bytes((code,)) + rng.choice((bytes(width), b"\xff" * width, rng.randbytes(width)))


def _junk(rng: random.Random, _: int) -> Node:
    return rng.randbytes(rng.randrange(1, 12))


def _array(rng: random.Random, depth: int) -> Node:
    element = encode(value(rng, depth + 1)) or b"\x40"
    content = element[:1] + element[1:] * rng.randrange(4)
    count = rng.choice((0, 1, 2, 3, 255, 2**16, 2**31, 2**32 - 1))
    size = (len(content) + 4 if rng.random() < 0.8 else rng.choice(EDGES)) & 0xFFFFFFFF
    return struct.pack(">BII", 0xF0, size, count) + content


def _compound(rng: random.Random, depth: int) -> Node:
    items = [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 7, 20)))]
    lie = rng.random() < 0.15
    return Compound(
        items,
        rng.choice((0xC0, 0xC0, 0xC1)),
        rng.random() < 0.3,
        rng.choice((-1, 1, 255, 2**31)) if lie else 0,
        rng.choice((-1, 1, 200, 2**31)) if lie else 0,
    )


def _described(rng: random.Random, depth: int) -> Node:
    number = rng.choice((*range(0x10, 0x19), *range(0x23, 0x2C), 0x30, 0x34, *range(0x40, 0x45), *range(0x70, 0x79)))
    descriptor: Node = bytes((0x53, number)) if rng.random() < 0.7 else value(rng, depth + 1)
    return Described(descriptor, value(rng, depth + 1))


def _bomb(rng: random.Random, depth: int) -> Node:
    levels = rng.choice((5, 30, 100, 1000, 7000))
    match rng.randrange(4):
        case 0:  # descriptors of descriptors
            return b"\x00" * levels + b"\x40" * levels
        case 1:  # values described by null, each the value of the one before
            return b"\x00\x40" * levels + b"\x40"
        case 2:
            return _nested(levels, b"\x40", lambda size: struct.pack(">BII", 0xD0, size, 1))
        case _:  # arrays of one array each
            return b"\xf0" + _nested(levels, b"", lambda size: struct.pack(">IIB", size, 1, 0xF0))[:60000]


def _nested(levels: int, core: bytes, header: Callable[[int], bytes]) -> bytes:
    heads, size = [], len(core)
    for _ in range(levels):
        heads.append(header(size + 4))
        size += 9
    return b"".join(reversed(heads)) + core


_VALUES: list[Callable[[random.Random, int], Node]] = [
    _integer,
    _integer,
    _octets,
    _octets,
    _simple,
    _any_fixed,
    _junk,
    _array,
    _compound,
    _described,
    _bomb,
]


def performative(rng: random.Random) -> Frame:
    """A frame of its own, each field plausible or not."""
    kind = rng.randrange(OPEN, CLOSE + 1)
    fields: list[Node] = [
        bytes((0x52, rng.randrange(8))) if rng.random() < 0.6 else value(rng)
        for _ in range(rng.choice((0, 1, 3, 6, 10, 14)))
    ]
    match kind:
        case _ if rng.random() < 0.3:
            pass
        case _ if kind == ATTACH:  # name, handle, role
            fields[:3] = [b"\xa1\x01" + rng.choice(b"abc").to_bytes(1, "big"), bytes((0x52, rng.randrange(4))), b"\x41"]
        case _ if kind == FLOW:  # windows and ids before the handle
            fields[:4] = [b"\x43", b"\x60\x08\x00", b"\x43", b"\x60\x08\x00"]
        case _ if kind == TRANSFER:  # handle, id, tag
            fields[:3] = [bytes((0x52, rng.randrange(4))), bytes((0x52, rng.randrange(9))), b"\xa0\x01t"]
        case _ if kind == DISPOSITION:  # role, first, last
            fields[:3] = [rng.choice((b"\x41", b"\x42")), *(_integer(rng, 0) for _ in range(2))]
    payload = rng.randbytes(rng.randrange(40)) if kind == TRANSFER else b""
    frame = Frame(Described(bytes((0x53, kind)), Compound(fields)), payload, rng.choice((0, 0, 0, 1, 2, 8, 65535)))
    if rng.random() < 0.05:
        frame.body, frame.type = Described(bytes((0x53, rng.randrange(0x40, 0x45))), Compound(fields)), SASL
    return frame


# --- pieces ----------------------------------------------------------------------------------


def _frame_at(rng: random.Random, pieces: list[bytes]) -> tuple[int, Frame] | None:
    """A frame to change, of any kind: rare kinds as often as frequent ones."""
    by_kind: dict[int, list[int]] = {}
    for index, piece in enumerate(pieces):
        if is_frame(piece):
            by_kind.setdefault(piece[10], []).append(index)
    if not by_kind:
        return None
    index = rng.choice(by_kind[rng.choice(list(by_kind))])
    try:
        return index, parse_frame(pieces[index])
    except (IndexError, struct.error, RecursionError):  # changed already
        return None


def _places(node: Node, found: list[tuple[list[Node], int]]) -> list[tuple[list[Node], int]]:
    if isinstance(node, Compound):
        for index, item in enumerate(node.items):
            found.append((node.items, index))
            _places(item, found)
    elif isinstance(node, Described):
        _places(node.value, found)
    return found


def _field(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    if (found := _frame_at(rng, pieces)) is None:
        return
    index, frame = found
    body = frame.body
    if not isinstance(body, Described) or rng.random() < 0.05:
        frame.body = value(rng)
    elif rng.random() < 0.05:
        body.descriptor = rng.choice((value(rng), bytes((0x53, rng.randrange(0x10, 0x19)))))
    elif isinstance(body.value, Compound):
        items = body.value.items
        places = _places(body.value, [])
        match rng.randrange(10):
            case 0:
                items.extend(value(rng) for _ in range(rng.choice((1, 2, 20))))
            case 1 if items:
                del items[rng.randrange(len(items)) :]
            case 2 if items:
                items.pop(rng.randrange(len(items)))
            case 3:
                body.value.lie_count = rng.choice((-1, 1, 3, 200, 2**31))
                body.value.lie_size = rng.choice((0, 0, -1, 1, 200, 2**31))
            case 4 if places:
                home, place = rng.choice(places)
                home[place] = b"\x40"
            case _ if places:
                home, place = rng.choice(places)
                old = home[place]
                if isinstance(old, bytes) and old[0] in (0x43, 0x52, 0x70, 0x60, 0x50) and rng.random() < 0.7:
                    home[place] = struct.pack(">BI", 0x70, rng.choice(EDGES))
                else:
                    home[place] = value(rng)
    pieces[index] = frame.encode()


def _header(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    if (found := _frame_at(rng, pieces)) is None:
        return
    index, frame = found
    match rng.randrange(5):
        case 0:
            frame.size_lie = rng.choice((-9, -8, -4, -1, 1, 8, 100, 65536, 2**31 - 8, rng.getrandbits(32)))
        case 1:
            frame.offset = rng.choice((0, 1, 3, 255))
        case 2:
            frame.type = rng.choice((SASL, 2, 255, AMQP))
        case _:
            frame.channel = rng.choice((0, 1, 2, 7, 8, 255, 65535))
    pieces[index] = frame.encode()


def _payload(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    transfers = [index for index, piece in enumerate(pieces) if is_frame(piece) and piece[10] == TRANSFER]
    if not transfers:
        return
    index = rng.choice(transfers)
    try:
        frame = parse_frame(pieces[index])
    except (IndexError, struct.error, RecursionError):
        return
    match rng.randrange(4):
        case 0:
            frame.payload = rng.randbytes(rng.randrange(200))
        case 1:
            frame.payload = frame.payload[: rng.randrange(len(frame.payload) + 1)]
        case 2:
            section = bytes((0x53, rng.randrange(0x70, 0x79)))
            frame.payload = encode(Described(section, value(rng))) + rng.choice((b"", frame.payload))
        case _:
            frame.payload = rng.choice(_BYTEWISE)(rng, frame.payload, [])
    pieces[index] = frame.encode()


def _repeat(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    index = rng.randrange(len(pieces))
    pieces[index:index] = [pieces[index]] * min(
        rng.choice((1, 1, 1, 2, 20, 300)), MAX_STREAM // (len(pieces[index]) + 1)
    )


def _drop(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    start = rng.randrange(len(pieces))
    del pieces[start : start + rng.choice((1, 1, 2, 5))]


def _swap(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    first, second = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    pieces[first], pieces[second] = pieces[second], pieces[first]


def _borrow(rng: random.Random, pieces: list[bytes], others: list[list[bytes]]) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(other))
    at = rng.randrange(len(pieces) + 1)
    pieces[at:at] = other[start : start + rng.choice((1, 1, 3, 10))]


def _invent(rng: random.Random, pieces: list[bytes], _: list[list[bytes]]) -> None:
    at = rng.randrange(min(3, len(pieces)), len(pieces) + 1)
    pieces[at:at] = [performative(rng).encode() for _ in range(rng.choice((1, 1, 2, 8)))]


_Piecewise = Callable[[random.Random, list[bytes], list[list[bytes]]], None]
_PIECEWISE: list[_Piecewise] = [
    *[_field] * 8,
    *[_header] * 2,
    *[_payload] * 2,
    _repeat,
    _drop,
    _swap,
    _borrow,
    *[_invent] * 2,
]


# --- bytes ---------------------------------------------------------------------------------------


def _flip(rng: random.Random, data: bytes, _: list[list[bytes]]) -> bytes:
    changed = bytearray(data)
    for _i in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, _: list[list[bytes]]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(rng: random.Random, data: bytes, _: list[list[bytes]]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 1, 4, 40)) :]


def _insert(rng: random.Random, data: bytes, _: list[list[bytes]]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.randbytes(rng.randrange(1, 40)), b"\xff" * 4, bytes(4))) + data[at:]


def _overwrite(rng: random.Random, data: bytes, _: list[list[bytes]]) -> bytes:
    at = rng.randrange(len(data) + 1)
    new = struct.pack(">I", rng.choice(EDGES))[rng.choice((0, 2, 3)) :]
    return data[:at] + new + data[at + len(new) :]


def _splice(rng: random.Random, data: bytes, others: list[list[bytes]]) -> bytes:
    if not others:
        return data + data
    other = b"".join(rng.choice(others))
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


_BYTEWISE: list[Callable[[random.Random, bytes, list[list[bytes]]], bytes]] = [
    _flip,
    _truncate,
    _remove,
    _insert,
    _overwrite,
    _splice,
]
