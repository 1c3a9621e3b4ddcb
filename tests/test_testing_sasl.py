"""The server's side of SASL, byte by byte: who gets in, who does not, and what breaks nothing."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from proton import Data

from amqpws_async.codec import UNDESCRIBED, Array, Described, decode_from, encode, symbol, ulong
from amqpws_async.testing.sasl import AMQP_HEADER, SASL_HEADER, SaslServer

INIT, RESPONSE = 0x41, 0x43
USERS = {"alice": "secret", "böb": "pässwort"}


def sasl_frame(code: int, *fields: Any, kind: int = 1, extended: bytes = b"") -> bytes:
    body = encode(Described(ulong(code), list(fields)))
    return struct.pack(">IBBH", 8 + len(extended) + len(body), 2 + len(extended) // 4, kind, 0) + extended + body


def init(mechanism: str, response: bytes | None = None) -> bytes:
    return sasl_frame(INIT, symbol(mechanism), response, None)


def performatives(data: bytes) -> list[tuple[int, list[object]]]:
    """What the server sent: the header, then frames."""
    assert data[:8] == SASL_HEADER
    data = data[8:]
    found = []
    while data:
        size, offset, kind = struct.unpack_from(">IBB", data)
        assert kind == 1
        value, end = decode_from(data, offset * 4)
        assert end == size
        found.append((int(value.descriptor), value.value))
        data = data[size:]
    return found


def run(server: SaslServer, *data: bytes) -> list[tuple[int, list[object]]]:
    for part in data:
        server.receive(part)
    return performatives(server.output())


def test_anonymous_gets_in_and_keeps_what_came_behind() -> None:
    """A client may send SASL, header and open in one go: what is not SASL's is handed on untouched."""
    server = SaslServer(None, anonymous=True)
    sent = run(server, SASL_HEADER + init("ANONYMOUS") + AMQP_HEADER + b"more")
    assert sent == [
        (0x40, [Array(UNDESCRIBED, Data.SYMBOL, symbol("ANONYMOUS"))]),
        (0x44, [0]),
    ]
    assert (server.done, server.failed, server.user) == (True, False, None)
    assert server.rest() == AMQP_HEADER + b"more"
    assert server.rest() == b""


def test_any_cut_will_do() -> None:
    """Bytes may come one by one."""
    server = SaslServer(USERS, anonymous=False)
    for octet in SASL_HEADER + init("PLAIN", b"\0alice\0secret") + b"rest":
        server.receive(bytes((octet,)))
        if server.done:
            break
    assert server.user == "alice"
    assert server.rest() == b""


@pytest.mark.parametrize(
    ("response", "user"),
    [
        (b"\0alice\0secret", "alice"),
        (b"alice\0alice\0secret", "alice"),
        ("\0böb\0pässwort".encode(), "böb"),
        (b"\0alice\0wrong", None),
        (b"\0alice\0", None),
        (b"\0nobody\0secret", None),
        (b"\0nobody\0", None),
        (b"bob\0alice\0secret", None),
        (b"alice\0secret", None),
        (b"\0alice\0secret\0", None),
        (b"", None),
        (b"\0\xff\0\xff", None),
    ],
)
def test_plain(response: bytes, user: str | None) -> None:
    """PLAIN lets in who knows the password, as nobody but themselves."""
    server = SaslServer(USERS, anonymous=False)
    server.receive(SASL_HEADER + init("PLAIN", response))
    assert server.user == user
    assert server.done is (user is not None)
    assert server.failed is (user is None)


def test_plain_after_an_empty_challenge() -> None:
    """A client that sends no initial response is asked for one."""
    server = SaslServer(USERS, anonymous=False)
    sent = run(server, SASL_HEADER, init("PLAIN"), sasl_frame(RESPONSE, b"\0alice\0secret"))
    assert [code for code, _ in sent] == [0x40, 0x42, 0x44]
    assert server.user == "alice"


def test_users_without_a_password_are_no_way_in() -> None:
    """An empty password given for a user nobody knows is not the empty password of nobody."""
    server = SaslServer({}, anonymous=False)
    assert run(server, SASL_HEADER, init("PLAIN", b"\0alice\0"))[-1] == (0x44, [1])
    assert server.failed


@pytest.mark.parametrize("mechanism", ["ANONYMOUS", "EXTERNAL", "CRAM-MD5", "plain"])
def test_a_mechanism_that_is_not_offered_is_refused(mechanism: str) -> None:
    """With users given, nobody else gets in; names are compared as they are."""
    server = SaslServer(USERS, anonymous=False)
    sent = run(server, SASL_HEADER, init(mechanism, b"x"))
    assert sent == [(0x40, [Array(UNDESCRIBED, Data.SYMBOL, symbol("PLAIN"))]), (0x44, [1])]
    assert server.failed


@pytest.mark.parametrize(("response", "user"), [(None, "cn"), (b"", "cn"), (b"cn", "cn"), (b"other", None)])
def test_external_is_who_tls_says(response: bytes | None, user: str | None) -> None:
    """EXTERNAL takes the identity of the certificate, and no other."""
    server = SaslServer(None, anonymous=True, external="cn")
    assert server.mechanisms == ("EXTERNAL", "ANONYMOUS")
    server.receive(SASL_HEADER + init("EXTERNAL", response))
    assert (server.user, server.done) == (user, user is not None)


def test_without_the_sasl_layer() -> None:
    """The AMQP header at once is fine where anybody is, and it is handed on."""
    server = SaslServer(None, anonymous=True)
    server.receive(AMQP_HEADER[:3])
    assert not server.done
    server.receive(AMQP_HEADER[3:] + b"more")
    assert server.done
    assert server.output() == b""
    assert server.rest() == AMQP_HEADER + b"more"


@pytest.mark.parametrize("data", [AMQP_HEADER, b"AMQP\x00\x00\x09\x01", b"GET / HT", b"\0" * 8, b"X"])
def test_another_header_gets_ours_as_the_answer(data: bytes) -> None:
    """Where the header is not one we speak, we send ours and end (2.2)."""
    server = SaslServer(USERS, anonymous=False)
    server.receive(data)
    assert server.failed
    assert server.output() == SASL_HEADER


@pytest.mark.parametrize(
    "frame",
    [
        init("ANONYMOUS")[:5] + b"\x00" + init("ANONYMOUS")[6:],  # an AMQP frame
        struct.pack(">IBBH", 7, 2, 1, 0),
        struct.pack(">IBBH", 2**31, 2, 1, 0),
        struct.pack(">IBBH", 513, 2, 1, 0),
        struct.pack(">IBBH", 16, 5, 1, 0) + b"\0" * 8,
        struct.pack(">IBBH", 16, 1, 1, 0) + b"\0" * 8,
        struct.pack(">IBBH", 8, 2, 1, 0),
        struct.pack(">IBBH", 9, 2, 1, 0) + b"\x40",
        sasl_frame(INIT),
        sasl_frame(RESPONSE, b"x"),
        sasl_frame(0x44, 0),
        sasl_frame(INIT, symbol("PLAIN"), 5),
        struct.pack(">IBBH", 8 + 6, 2, 1, 0) + b"\x00\x53\x41\xc1\x01\x00",
    ],
    ids=range(13),
)
def test_what_is_no_sasl_ends_it(frame: bytes) -> None:
    """Frames that are malformed, too large or out of order end SASL, and raise nothing."""
    server = SaslServer(USERS, anonymous=True)
    server.receive(SASL_HEADER + frame)
    assert server.failed
    assert not server.done


def test_an_extended_header_is_skipped() -> None:
    """The data offset says where the body begins."""
    server = SaslServer(None, anonymous=True)
    server.receive(SASL_HEADER + sasl_frame(INIT, symbol("ANONYMOUS"), extended=b"\0" * 8))
    assert server.done


def test_random_bytes_never_get_in_with_users_given() -> None:
    """Whatever comes, nobody gets in without a password, and nothing is raised."""
    source = random.Random(5)
    whole = init("PLAIN", b"\0alice\0wrong")
    for _ in range(3000):
        mutated = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            mutated[source.randrange(len(mutated))] = source.randrange(256)
        server = SaslServer(USERS, anonymous=False)
        server.receive(SASL_HEADER + bytes(mutated))
        assert not server.done
