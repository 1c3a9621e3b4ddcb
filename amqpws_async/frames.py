"""WebSocket data frames (RFC 6455 section 5): what every byte of AMQP travels in, so the way through here is short.

Incoming frames are split where they lie, and a payload is handed on as far as it has come: ``websockets`` takes 5 µs a
frame, copies each byte twice, and waits until a frame is whole. All but the data frames of a healthy connection still
goes to it: it answers pings and closes, and it alone says what breaks the protocol.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from websockets.protocol import Protocol, State
from websockets.utils import apply_mask as slow_apply_mask

try:
    from websockets.speedups import apply_mask
except ImportError:  # as on PyPy: the same in pure Python
    apply_mask = slow_apply_mask

__all__ = ["Splitter", "binary_frame"]

_CONTINUATION, _BINARY, _FINAL = 0x00, 0x02, 0x80
_WHOLE: Final = _FINAL | _BINARY
_CONTROL: Final = frozenset({0x88, 0x89, 0x8A})  # close, ping, pong, as they have to be: final
_OPCODES: Final = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_COPIED: Final = 4096  # bytes up to which a copy costs less than a view
_OPEN: Final = State.OPEN


class Splitter:
    """Splits what a client reads from its WebSocket.

    Args:
        protocol: The state of the connection. Its `current_size`, of the message that is incomplete, is kept up.
        pass_on: Takes the bytes that are none of the splitter's; what comes of them is up to it.
    """

    __slots__ = ("_head", "_left", "_pass_on", "_protocol", "_retired")

    def __init__(self, protocol: Protocol, pass_on: Callable[[bytes], None]) -> None:
        self._protocol = protocol
        self._pass_on = pass_on
        self._left = 0  # bytes of the payload that is arriving
        self._head = b""  # of a frame that cannot be told yet
        self._retired = protocol.debug  # websockets writes frames to the log, so it has to see them

    def split(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return the pieces of payload in `data`, which goes on where the last read ended.

        Args:
            data: What was read. Of a view, no more than the pieces that are returned is kept.
        """
        payload: list[bytes | memoryview] = []
        if self._retired:
            self._pass_on(bytes(data))
            return payload
        if self._head:
            data, self._head = self._head + data, b""
        protocol, limit = self._protocol, self._protocol.max_fragment_size
        size = len(data)
        position, end = 0, self._left
        self._left = 0
        while True:
            # Here a payload goes from `position` to `end`, or they are equal and a frame begins.
            if position < end:
                stop = end if end < size else size
                if stop - position > _COPIED:
                    payload.append(memoryview(data)[position:stop])
                elif position < stop:
                    payload.append(data[position:stop])
                if end > size:
                    self._left = end - size
                    return payload
                position = end
            start = position + 2
            if start > size:
                break
            first, length = data[position], data[position + 1]
            if length == 126:
                start += 2
                length = int.from_bytes(data[start - 2 : start])
            elif length == 127:
                start += 8
                length = int.from_bytes(data[start - 8 : start])
            elif length > 127:
                first = -1  # masked, as a server's must not be
            if start > size:
                if first & 0x0F not in _OPCODES:  # known before the length has come
                    self._retire(data[position:])
                    return payload
                break
            end = start + length
            if (limit is None or length <= limit) and (
                (first == _WHOLE and protocol.current_size is None) or self._is_fragment(first, length)
            ):
                position = start
            elif first in _CONTROL and length < 126:
                if end > size:
                    break
                self._pass_on(bytes(data[position:end]))
                position = end
                if protocol.state is not _OPEN:
                    self._retire(data[position:])
                    return payload
            else:
                self._retire(data[position:])
                return payload
        self._head = bytes(data[position:])
        return payload

    def _is_fragment(self, first: int, length: int) -> bool:
        """Take note of a fragment of a message, if the first byte of its frame says that it is one and in its place."""
        before = self._protocol.current_size
        if first == _BINARY and before is None:
            self._protocol.current_size = length
        elif first == _CONTINUATION and before is not None:
            self._protocol.current_size = before + length
        elif first == _FINAL | _CONTINUATION and before is not None:
            self._protocol.current_size = None
        else:
            return False
        return True

    def _retire(self, rest: bytes | memoryview) -> None:
        """Leave this and all that comes to websockets: a close, a text, or something that breaks the protocol."""
        self._retired = True
        if rest:
            self._pass_on(bytes(rest))


def binary_frame(data: bytes | memoryview) -> bytes:
    """Make the frame of a whole binary message, masked as a client's has to be."""
    size = len(data)
    if size < 126:
        head = bytes((_WHOLE, 0x80 | size))
    elif size < 65536:
        head = b"\x82\xfe" + size.to_bytes(2)
    else:
        head = b"\x82\xff" + size.to_bytes(8)
    mask = secrets.token_bytes(4)
    return b"".join((head, mask, apply_mask(data, mask)))
