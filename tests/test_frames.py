"""Splitting WebSocket frames: the same bytes as websockets' own parser gives, whatever the frames and however cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from amqpws_async.frames import Splitter, binary_frame

from .websocket_peer import BINARY, CLOSE, CONT, PING, PONG, TEXT, close_frame, frame

LIMIT = 200_000
DATA = (Opcode.CONT, Opcode.BINARY)


def protocol() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=(None, LIMIT))


class Reader:
    """What reads from a splitter and from the parser behind it, as the transport does."""

    def __init__(self) -> None:
        self.protocol = protocol()
        self.splitter = Splitter(self.protocol, self._pass_on)
        self.payload = bytearray()
        self.late = bytearray()  # what the parser has found in a read comes behind what the splitter has
        self.others: list[Frame] = []
        self.passed = 0

    def _pass_on(self, data: bytes) -> None:
        self.passed += len(data)
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode in DATA:
                self.late += event.data
            else:
                self.others.append(event)

    def read(self, data: bytes) -> None:
        memory = bytearray(data)
        for piece in self.splitter.split(memoryview(memory) if len(data) % 2 else data):
            assert len(piece)
            self.payload += piece
        memory[:] = bytes(len(memory))  # the next read has it
        self.payload += self.late
        self.late.clear()


def as_websockets_has_it(data: bytes) -> tuple[bytes, list[Frame], ClientProtocol]:
    """Payload of the frames that are whole, the other frames, and how it ended."""
    oracle = protocol()
    oracle.receive_data(data)
    events = [event for event in oracle.events_received() if isinstance(event, Frame)]
    payload = b"".join(event.data for event in events if event.opcode in DATA)
    return payload, [event for event in events if event.opcode not in DATA], oracle


payloads = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([125, 126, 127, 4096, 4097, 65535, 65536]).map(lambda size: bytes([size & 255]) * size),
)
opcodes = st.sampled_from([BINARY, BINARY, BINARY, CONT, CONT, PING, PONG, TEXT])
healthy = st.builds(
    lambda parts, ping: b"".join(
        frame(part, CONT if n else BINARY, fin=n == len(parts) - 1) + ping for n, part in enumerate(parts)
    ),
    st.lists(payloads, min_size=1, max_size=4),
    st.sampled_from([b"", frame(b"?", PING), frame(b"", PONG)]),
)
odd = st.one_of(
    st.builds(frame, payloads, opcodes, fin=st.booleans()),
    st.builds(close_frame, st.sampled_from([1000, 1005]), st.just("bye")),
    st.just(frame(b"", CLOSE)),
    st.just(b"\x82\x7f" + (LIMIT + 1).to_bytes(8)),
    st.binary(min_size=1, max_size=12),
)


@given(st.lists(st.one_of(healthy, healthy, odd), max_size=6), st.data())
def test_it_splits_as_websockets_does(frames: list[bytes], data: st.DataObject) -> None:
    """Payload, control frames, answers, and what breaks the protocol and how: all of it the same, for any cut."""
    stream = b"".join(frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    reader = Reader()
    for begin, end in pairwise([0, *sorted(cuts), len(stream)]):
        if begin < end:
            reader.read(stream[begin:end])
    payload, others, oracle = as_websockets_has_it(stream)
    # It may be ahead: by what has come of the frame that is arriving.
    assert reader.payload[: len(payload)] == payload
    ahead = bytes(reader.payload[len(payload) :])
    assert ahead in stream
    assert not ahead or (oracle.state is State.OPEN and stream.endswith(ahead)) or oracle.parser_exc is not None
    assert reader.others == others
    assert reader.protocol.state is oracle.state
    assert repr(reader.protocol.parser_exc) == repr(oracle.parser_exc)
    assert (reader.protocol.close_rcvd, reader.protocol.close_sent) == (oracle.close_rcvd, oracle.close_sent)


@pytest.mark.parametrize("head", [b"\x03\x7e", b"\x0b\x7f", b"\x87\x01", b"\x82\xfe", b"\x02\xff", b"\x82\x81"])
def test_two_bytes_that_break_the_protocol_do_so_at_once(head: bytes) -> None:
    """An opcode that there is not, or a mask: the length that would follow is not waited for."""
    reader = Reader()
    reader.read(frame(b"before") + head)
    payload, _, oracle = as_websockets_has_it(frame(b"before") + head)
    assert reader.payload == payload == b"before"
    assert repr(reader.protocol.parser_exc) == repr(oracle.parser_exc)
    assert reader.protocol.state is oracle.state is State.CLOSING


def test_single_bytes() -> None:
    """The finest cut."""
    stream = frame(b"one") + frame(b"t", fin=False) + frame(b"?" * 125, PING) + frame(b"wo", CONT) + frame(b"x" * 70000)
    reader = Reader()
    for octet in stream:
        reader.read(bytes([octet]))
    assert reader.payload == b"onetwo" + b"x" * 70000
    assert [other.data for other in reader.others] == [b"?" * 125]


def test_data_frames_are_not_passed_on() -> None:
    """That is the point of it; large pieces are not copied either."""
    reader = Reader()
    stream = frame(b"a" * 100) + frame(b"b" * 40000, fin=False) + frame(b"c" * 70000, CONT)
    pieces = reader.splitter.split(stream[:-30000])
    assert [(type(piece), len(piece)) for piece in pieces] == [(bytes, 100), (memoryview, 40000), (memoryview, 40000)]
    assert reader.protocol.current_size is None
    assert not reader.passed


def test_a_message_that_is_incomplete_is_known_to_websockets() -> None:
    """A close inside a fragmented message breaks the protocol, and its parser says so."""
    reader = Reader()
    reader.read(frame(b"begin", fin=False) + close_frame(1000) + frame(b"late"))
    assert "incomplete fragmented message" in str(reader.protocol.parser_exc)
    assert reader.payload == b"begin"


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_what_we_send_is_read_by_a_server(size: int, kind: Callable[[bytes], bytes | memoryview]) -> None:
    """Masked, with a key of its own each time, by the parser of a server."""
    from websockets.server import ServerProtocol

    server = ServerProtocol(state=State.OPEN, max_size=None)
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    server.receive_data(binary_frame(kind(data)) + binary_frame(kind(data)))
    events = server.events_received()
    assert [(event.opcode, bytes(event.data), event.fin) for event in events if isinstance(event, Frame)] == 2 * [
        (Opcode.BINARY, data, True)
    ]
    assert len(events) == 2
    assert len({binary_frame(b"x") for _ in range(8)}) > 4
