"""AMQP frames as trees that can be changed anywhere, and written back wrong.

Nothing of the package is used here: a fuzzer that encodes by the code under test would only say what that code can say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

#: Constructors of fixed width (specification 1.6): code -> octets that follow.
FIXED = {0x40: 0, 0x41: 0, 0x42: 0, 0x43: 0, 0x44: 0, 0x45: 0}
FIXED |= dict.fromkeys((0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56), 1)
FIXED |= {0x60: 2, 0x61: 2} | dict.fromkeys((0x70, 0x71, 0x72, 0x73, 0x74), 4)
FIXED |= dict.fromkeys((0x80, 0x81, 0x82, 0x83, 0x84), 8) | {0x94: 16, 0x98: 16}

AMQP, SASL = 0, 1  # frame types (specification 2.3.1)
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)


@dataclass
class Compound:
    """A list or a map; `lie_size` and `lie_count` are added to what the header says."""

    items: list[Node]
    kind: int = 0xC0  # 0xC0 list, 0xC1 map
    wide: bool = False
    lie_size: int = 0
    lie_count: int = 0


@dataclass
class Described:
    """A descriptor and the value it describes."""

    descriptor: Node
    value: Node


Node = bytes | Compound | Described  # bytes: a value complete with its constructor


@dataclass
class Frame:
    """One frame; `size_lie` is added to its size field."""

    body: Node
    payload: bytes = b""
    channel: int = 0
    type: int = AMQP
    offset: int = 2  # of the body, in words of four octets
    size_lie: int = field(default=0)

    def encode(self) -> bytes:
        """The frame's octets."""
        content = encode(self.body) + self.payload
        size = (8 + len(content) + self.size_lie) & 0xFFFFFFFF
        return struct.pack(">IBBH", size, self.offset & 0xFF, self.type & 0xFF, self.channel & 0xFFFF) + content


def encode(node: Node) -> bytes:
    """The octets of a value."""
    if isinstance(node, bytes):
        return node
    if isinstance(node, Described):
        return b"\x00" + encode(node.descriptor) + encode(node.value)
    content = b"".join(map(encode, node.items))
    size, count = len(content) + node.lie_size, len(node.items) + node.lie_count
    if node.wide or size > 254 or count > 255:
        return struct.pack(">BII", node.kind + 0x10, (size + 4) & 0xFFFFFFFF, count & 0xFFFFFFFF) + content
    return struct.pack(">BBB", node.kind, (size + 1) & 0xFF, count & 0xFF) + content


def parse(data: bytes, at: int = 0) -> tuple[Node, int]:
    """The value at a position of well-formed data, and where it ends."""
    code = data[at]
    if code == 0x00:
        descriptor, at = parse(data, at + 1)
        value, at = parse(data, at)
        return Described(descriptor, value), at
    if code in FIXED:
        end = at + 1 + FIXED[code]
    elif code in (0xC0, 0xC1):
        return _items(data, at + 3, data[at + 2], code), at + 2 + data[at + 1]
    elif code in (0xD0, 0xD1):
        size, count = struct.unpack_from(">II", data, at + 1)
        return _items(data, at + 9, count, code - 0x10, wide=True), at + 5 + size
    elif code in (0xA0, 0xA1, 0xA3, 0xE0):
        end = at + 2 + data[at + 1]
    else:  # 0xB0, 0xB1, 0xB3, 0xF0
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
    return data[at:end], end


def _items(data: bytes, at: int, count: int, kind: int, *, wide: bool = False) -> Compound:
    items = []
    for _ in range(count):
        item, at = parse(data, at)
        items.append(item)
    return Compound(items, kind, wide)


def parse_frame(data: bytes) -> Frame:
    """A well-formed frame with a body."""
    body, end = parse(data, 8)
    return Frame(body, data[end:], int.from_bytes(data[6:8], "big"), data[5])


def is_frame(piece: bytes) -> bool:
    """Whether a piece of a recording is a frame with a body, rather than a protocol header or an empty frame."""
    return len(piece) > 10


def pieces(data: bytes) -> list[bytes]:
    """A recording, cut into protocol headers and frames."""
    found = []
    while data:
        size = 8 if data[:4] == b"AMQP" else max(8, int.from_bytes(data[:4], "big"))
        found.append(data[:size])
        data = data[size:]
    return found
