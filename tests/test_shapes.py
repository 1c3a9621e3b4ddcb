"""Made encoders: the long way is the oracle; wrong bytes, names that become code and endless growth are the hazards."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpws_async import shapes
from amqpws_async.codec import int32, symbol, ubyte, uint, ulong
from amqpws_async.errors import EncodeError
from amqpws_async.fields import FIELDS, encode_sections
from amqpws_async.message import Message

TEXT = st.text(max_size=20) | st.sampled_from(["", "x" * 255, "x" * 256, "é" * 200, "x" * 5000])
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200)
IDS = TEXT | st.uuids() | st.integers(0, 2**64 - 1) | st.binary(max_size=20)
WHEN = st.integers(0, 2**40) | st.just(datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
SYMBOLS = st.sampled_from(["application/json", "", "text/" + "x" * 300])

#: Field -> the values it may have; None is one of them for all.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "durable": st.booleans(),
    "priority": st.integers(0, 255),
    "ttl": st.floats(0, 1000),
    "first_acquirer": st.booleans(),
    "delivery_count": st.integers(0, 2**32 - 1),
    "message_id": IDS,
    "user_id": st.binary(max_size=300),
    "to": TEXT,
    "subject": TEXT,
    "reply_to": TEXT,
    "correlation_id": IDS,
    "content_type": SYMBOLS,
    "content_encoding": SYMBOLS,
    "absolute_expiry_time": WHEN,
    "creation_time": WHEN,
    "group_id": TEXT,
    "group_sequence": st.integers(0, 2**32 - 1),
    "reply_to_group_id": TEXT,
}
SIMPLE = (
    TEXT
    | NUMBERS
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False)
    | st.uuids()
    | st.binary(max_size=300)
    | st.sampled_from([symbol("s"), uint(7), ulong(2**63), ubyte(0), int32(-1)])
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of two messages of one shape, in any order of names."""
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, min_size=1, max_size=6))
    keys = draw(st.lists(TEXT, unique=True, max_size=5))
    if draw(st.booleans()):
        names.insert(draw(st.integers(0, len(names))), "application_properties")
    both = []
    for _ in range(2):
        values: dict[str, Any] = {}
        for name in names:
            if name == "application_properties":
                values[name] = {key: draw(SIMPLE) for key in keys}
            else:
                values[name] = draw(VALUES[name]) if draw(st.integers(0, 9)) else None
        both.append(Message(b"", **values)._fields)
    return both[0], both[1]


@pytest.fixture(autouse=True)
def no_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shape has been seen when a test begins."""
    monkeypatch.setattr(shapes, "_encoders", {})
    monkeypatch.setattr(shapes, "_seen", {})


def after_many(**fields: Any) -> None:
    """Encode so many messages with these fields that there is an encoder for them."""
    for _ in range(shapes.WORTHWHILE):
        Message(b"", **fields).encode()
    assert [encoder for encoder in shapes._encoders.values() if encoder is not encode_sections]


def test_every_field_has_values_here() -> None:
    """A field that is added is tried, too."""
    maps = {"delivery_annotations", "message_annotations", "application_properties", "footer"}
    assert set(VALUES) | maps == set(FIELDS)


@given(pairs())
def test_a_made_encoder_gives_the_bytes_of_the_long_way(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """For the message it was made after, and for any other of its shape."""
    for model in pair:
        encoder = shapes._Source(model).compiled()
        for fields in pair:
            assert encoder(fields, b"head", b"body") == encode_sections(fields, b"head", b"body")


def test_the_usual_message_gets_an_encoder_and_keeps_its_bytes() -> None:
    """Message by message, before and after there is one."""
    for number in range(2 * shapes.WORTHWHILE):
        sent = Message(
            b"{}",
            durable=True,
            message_id=f"order-{number}",
            content_type="application/json",
            application_properties={"tenant": "é", "attempt": number * 100, "trace": "t" * number},
        )
        assert sent.encode() == encode_sections(sent._fields, b"\x00\x53\x75\xa0\x02", b"{}")
    assert len(shapes._encoders) == 1
    assert encode_sections not in shapes._encoders.values()
    assert shapes._seen == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"message_annotations": {"x-opt": 1}},
        {"footer": {"x": 1}},
        {"subject": None},
        {"durable": False},
        {"application_properties": {}},
        {"application_properties": {symbol("key"): 1}},
        {"message_id": "a", "message_annotations": {}},
    ],
)
def test_rarer_shapes_go_the_long_way(fields: dict[str, Any]) -> None:
    """And are told apart once, not for each message."""
    want = encode_sections(Message(b"", **fields)._fields, b"\x00\x53\x75\xa0\x00", b"")
    for _ in range(2 * shapes.WORTHWHILE):
        assert Message(b"", **fields).encode() == want
    assert len(shapes._encoders) == 1
    assert shapes._seen == {}


class Speaking:
    """Something that can be encoded, but not by AMQP."""

    def encode(self) -> bytes:
        return b"\x40"


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1,), Speaking(), "\ud800", 2**63, datetime.date(2026, 1, 2)])
def test_errors_are_those_of_the_long_way(value: Any) -> None:
    """A value that AMQP cannot carry in that place is no less an error for the shape being known."""
    after_many(application_properties={"key": "text"})
    bad = Message(b"", application_properties={"key": value})
    with pytest.raises(EncodeError) as expected:
        encode_sections(bad._fields, b"", b"")
    with pytest.raises(EncodeError) as error:
        bad.encode()
    assert str(error.value) == str(expected.value)


def test_text_that_utf8_cannot_carry_is_an_error_in_fields() -> None:
    """Likewise where a property of the message has it."""
    after_many(subject="text", message_id="id", content_type="a/b")
    for name, text in (("subject", "\ud800"), ("message_id", "\ud800"), ("content_type", "é")):
        sent = Message(b"", subject="text", message_id="id", content_type="a/b")
        setattr(sent, name, text)
        with pytest.raises(EncodeError):
            sent.encode()


@pytest.mark.parametrize(
    "key", ["'", '"', "\\", "\n", "{size}", "'''", "\0", "é", "'); raise SystemExit(", "field0", "#", "\N{BOM}", "%s"]
)
def test_keys_are_never_code(key: str) -> None:
    """Whatever a key looks like, it is a key."""
    fields: dict[str, Any] = {"subject": "s", "application_properties": {key: "value", f"{key}2": 2}}
    want = encode_sections(Message(b"", **fields)._fields, b"\x00\x53\x75\xa0\x00", b"")
    after_many(**fields)
    assert Message(b"", **fields).encode() == want


def test_keys_that_show_themselves_as_code_are_not_written_into_it() -> None:
    """The repr of a subclass of str may be anything."""

    class Key(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "1/0"

    for _ in range(2 * shapes.WORTHWHILE):
        sent = Message(b"", application_properties={Key("key"): "value"})
        assert Message.decode(sent.encode()).application_properties == {"key": "value"}


def test_keys_that_are_equal_are_encoded_alike() -> None:
    """An enumeration's member equals its text, and finds the encoder of that."""

    class Header(enum.StrEnum):
        TENANT = "tenant"

    after_many(application_properties={"tenant": "a"})
    sent = Message(b"", application_properties={Header.TENANT: "b"})
    assert Message.decode(sent.encode()).application_properties == {"tenant": "b"}


def test_names_of_fields_and_keys_are_not_confused() -> None:
    """A key may be called as a field is, and stand where the field would."""
    after_many(message_id="m", application_properties={"subject": "key"}, subject="field")
    sent = Message(b"", message_id="m", application_properties={"subject": "key", "to": "there"})
    back = Message.decode(sent.encode())
    assert (back.subject, back.application_properties) == (None, {"subject": "key", "to": "there"})
    sent = Message(b"", message_id="m", subject="field", application_properties={"subject": "key"})
    back = Message.decode(sent.encode())
    assert (back.subject, back.application_properties) == ("field", {"subject": "key"})


def test_a_changed_message_is_encoded_anew() -> None:
    """Setting a field changes the shape, and so does a new key."""
    after_many(subject="a", application_properties={"k": 1})
    sent = Message(b"", subject="a", application_properties={"k": 1})
    sent.encode()
    sent.to = "there"
    sent.application_properties["more"] = uuid.UUID(int=1)
    sent.subject = None
    back = Message.decode(sent.encode())
    assert (back.subject, back.to, back.application_properties) == (None, "there", {"k": 1, "more": uuid.UUID(int=1)})


def test_ever_new_shapes_take_a_bounded_amount_of_memory() -> None:
    """Neither what was seen grows for ever, nor what was made."""
    for number in range(3 * shapes.MOST_SHAPES):
        Message(b"", application_properties={f"key-{number}": 1}).encode()
        assert len(shapes._seen) <= shapes.MOST_SHAPES
    for number in range(shapes.MOST_SHAPES + 3):
        sent = Message(b"", application_properties={f"key-{number}": 1})
        for _ in range(shapes.WORTHWHILE):
            sent.encode()
    assert len(shapes._encoders) == shapes.MOST_SHAPES
    assert Message.decode(sent.encode()).application_properties == {f"key-{number}": 1}


def test_long_keys_and_crowds_of_them_are_not_kept() -> None:
    """Keys may come from a peer, whose messages are passed on."""
    for keys in (["k" * 256], [f"key-{number}" for number in range(shapes.MOST_NAMES)]):
        sent = Message(b"", application_properties=dict.fromkeys(keys, "value"))
        for _ in range(2 * shapes.WORTHWHILE):
            assert Message.decode(sent.encode()).application_properties == dict.fromkeys(keys, "value")
    assert shapes._encoders == {}
    assert shapes._seen == {}
