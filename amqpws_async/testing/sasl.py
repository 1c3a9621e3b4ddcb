"""The server's side of SASL, frame by frame (specification 5.3): proton without Cyrus cannot serve PLAIN.

`SaslServer` takes the bytes of a client until it is known who that is, and hands the rest on. A client may go without
the SASL layer, where anybody is welcome.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from typing import Any, Final

from proton import Data

from ..codec import UNDESCRIBED, Array, Described, decode_from, encode, symbol, ubyte, ulong
from ..errors import DecodeError

__all__ = ["AMQP_HEADER", "SASL_HEADER", "SaslServer"]

AMQP_HEADER: Final = b"AMQP\x00\x01\x00\x00"
SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"

MAX_FRAME: Final = 512  # MIN-MAX-FRAME-SIZE: the most a SASL frame may have (5.3.3)

_MECHANISMS, _INIT, _CHALLENGE, _RESPONSE, _OUTCOME = 0x40, 0x41, 0x42, 0x43, 0x44
_OK, _AUTH = 0, 1  # 5.3.3.6


class SaslServer:
    """Authenticates one client.

    Args:
        users: Passwords by user name, which PLAIN checks; None for no PLAIN.
        anonymous: Whether ANONYMOUS, and no SASL at all, will do.
        external: The identity that TLS has shown, or None for no EXTERNAL.

    Attributes:
        done: Whether the client is in; `user` is who it is.
        failed: Whether it is not, and the connection has to end once `output` is written.
        user: The authenticated name, or None for an anonymous client.
    """

    def __init__(self, users: Mapping[str, str] | None, *, anonymous: bool, external: str | None = None) -> None:
        self.done = False
        self.failed = False
        self.user: str | None = None
        self._users = users or {}
        self._anonymous = anonymous
        self._external = external
        self._buffer = b""
        self._output = b""
        self._layered = False  # whether the client has asked for the SASL layer
        self._challenged = False

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What is offered, the best first."""
        offered = (("EXTERNAL", self._external is not None), ("PLAIN", self._users), ("ANONYMOUS", self._anonymous))
        return tuple(name for name, wanted in offered if wanted)

    def receive(self, data: bytes) -> None:
        """Feed bytes of the client; stops at the end of SASL, see `rest`."""
        self._buffer += data
        try:
            while not (self.done or self.failed) and self._step():
                pass
        except (DecodeError, ValueError, TypeError, LookupError, AttributeError):
            self.failed = True

    def output(self) -> bytes:
        """Take the bytes to send."""
        output, self._output = self._output, b""
        return output

    def rest(self) -> bytes:
        """Take what came behind SASL; it belongs to AMQP."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _step(self) -> bool:
        """Do one thing with the buffer; False if more bytes are needed."""
        buffer = self._buffer
        if not self._layered:
            return self._start(buffer[:8])
        if len(buffer) < 8:
            return False
        size, offset, kind = struct.unpack_from(">IBB", buffer)
        if not 8 <= 4 * offset <= size <= MAX_FRAME or kind != 1:
            raise DecodeError("this is no SASL frame")
        if len(buffer) < size:
            return False
        self._buffer = buffer[size:]
        performative, _ = decode_from(buffer[:size], 4 * offset)
        self._perform(int(performative.descriptor), performative.value)
        return True

    def _start(self, header: bytes) -> bool:
        if len(header) < 8 and (SASL_HEADER.startswith(header) or AMQP_HEADER.startswith(header)):
            return False
        if header == AMQP_HEADER and self._anonymous:
            self.done = True
        elif header == SASL_HEADER:
            self._buffer = self._buffer[8:]
            self._layered = True
            self._output += SASL_HEADER
            names: Any = (symbol(name) for name in self.mechanisms)
            self._send(_MECHANISMS, Array(UNDESCRIBED, Data.SYMBOL, *names))
        else:
            # 2.2: answer with the header that would do, and close.
            self._output += SASL_HEADER
            self.failed = True
        return True

    def _perform(self, code: int, fields: list[Any]) -> None:
        if code == _INIT and not self._challenged:
            mechanism = str(fields[0])
            response = _binary(fields[1]) if len(fields) > 1 else None
            if mechanism not in self.mechanisms:
                self._finish(ok=False)
            elif mechanism == "ANONYMOUS":
                self._finish(ok=True)
            elif mechanism == "EXTERNAL":
                # RFC 4422: a response names an identity to act as; only its own will do.
                self._finish(ok=not response or response.decode() == self._external, user=self._external)
            elif response is None:
                # The client speaks first in PLAIN; one that did not is asked to by an empty challenge.
                self._challenged = True
                self._send(_CHALLENGE, b"")
            else:
                self._plain(response)
        elif code == _RESPONSE and self._challenged:
            self._plain(_binary(fields[0]) or b"")
        else:
            raise DecodeError("a SASL frame out of order")

    def _plain(self, response: bytes) -> None:
        """RFC 4616: an identity to act as, which may be empty, the user name and the password."""
        parts = response.split(b"\0")
        if len(parts) != 3:
            self._finish(ok=False)
            return
        identity, user, password = parts
        known = self._users.get(user.decode())
        # Compared in any case, so that the time says nothing about which users there are.
        right = hmac.compare_digest(password, (known or "").encode())
        self._finish(ok=right and known is not None and identity in (b"", user), user=user.decode())

    def _finish(self, *, ok: bool, user: str | None = None) -> None:
        self._send(_OUTCOME, ubyte(_OK if ok else _AUTH))
        self.done = ok
        self.failed = not ok
        self.user = user if ok else None

    def _send(self, code: int, field: Any) -> None:
        body = encode(Described(ulong(code), [field]))
        self._output += struct.pack(">IBBH", 8 + len(body), 2, 1, 0) + body


def _binary(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    raise DecodeError("a SASL response is a binary")
