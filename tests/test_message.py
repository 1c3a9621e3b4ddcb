"""Messages and their sections: proton.Message is the oracle, malformed sections and silent changes are the hazards."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import pickle
import types
import uuid
from typing import Any

import proton
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpws_async import message, outcomes, sections
from amqpws_async.codec import (
    Described,
    array,
    char,
    decimal128,
    encode,
    encoding,
    int32,
    symbol,
    timestamp,
    ubyte,
    uint,
    ulong,
)
from amqpws_async.codec.decoding import skip
from amqpws_async.errors import DecodeError, EncodeError, ErrorCondition
from amqpws_async.message import (
    ACCEPTED,
    RELEASED,
    Accepted,
    Data,
    Message,
    Modified,
    NoOutcome,
    Received,
    Rejected,
    Released,
    Sequence,
    Value,
    check_encoded,
    lazy,
)

HEADER, DELIVERY, ANNOTATIONS, PROPERTIES, APPLICATION, DATA, SEQUENCE, VALUE, FOOTER = range(0x70, 0x79)


def section(code: int, value: Any) -> bytes:
    """Encode one section as plainly as can be."""
    return b"\x00\x53" + bytes((code,)) + encode(value)


BODY = section(DATA, b"body")

# Without NUL, at which proton's Python layer ends a string.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
_ASCII = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=300)
_IDS = st.one_of(_TEXT, st.integers(0, 2**64 - 1).map(ulong), st.uuids(), st.binary(max_size=300))
_SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    _TEXT,
    st.uuids(),
    st.integers(0, 2**32 - 1).map(uint),
    st.integers(-(2**63), 2**63 - 1).map(timestamp),
    _ASCII.map(symbol),
)
_TIMES = st.integers(0, 2**63 - 1).map(timestamp)
_ANNOTATION_KEYS = st.one_of(_ASCII.map(symbol), st.integers(0, 2**64 - 1).map(ulong))
_ANNOTATION_MAPS = st.dictionaries(_ANNOTATION_KEYS, st.one_of(_SIMPLE, st.lists(_SIMPLE, max_size=2)), max_size=4)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "durable": st.booleans(),
    "priority": st.integers(0, 255),
    "ttl": st.integers(0, 2**32 - 1).map(lambda milliseconds: milliseconds / 1000),
    "first_acquirer": st.booleans(),
    "delivery_count": st.integers(0, 2**32 - 1),
    "message_id": _IDS,
    "user_id": st.binary(min_size=1, max_size=300),
    "to": _TEXT,
    "subject": _TEXT,
    "reply_to": _TEXT,
    "correlation_id": _IDS,
    "content_type": _ASCII,
    "content_encoding": _ASCII,
    "absolute_expiry_time": _TIMES,
    "creation_time": _TIMES,
    "group_id": _TEXT,
    "group_sequence": st.integers(0, 2**31 - 1),
    "reply_to_group_id": _TEXT,
    "delivery_annotations": _ANNOTATION_MAPS,
    "message_annotations": _ANNOTATION_MAPS,
    "application_properties": st.dictionaries(_TEXT, _SIMPLE, max_size=4),
    "footer": _ANNOTATION_MAPS,
}
_BODIES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.binary(max_size=300),
    st.builds(Value, _SIMPLE.filter(lambda value: value is not None)),
    st.builds(Value, st.dictionaries(_TEXT, _SIMPLE, max_size=3)),
    st.lists(st.binary(max_size=300), min_size=2, max_size=3).map(lambda parts: Data(*parts)),
    st.lists(st.lists(_SIMPLE, max_size=3), min_size=1, max_size=3).map(lambda lists: Sequence(*lists)),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message at all, its fields given in any order."""
    names = draw(st.lists(st.sampled_from(list(FIELDS)), unique=True, max_size=8))
    return Message(draw(_BODIES), **{name: draw(FIELDS[name]) for name in names})


# --- nothing changes on the way ----------------------------------------------------------


@given(messages())
def test_a_message_survives_the_round_trip(sent: Message) -> None:
    """Every field, section and body comes back equal, and so does the order of the maps."""
    received = Message.decode(sent.encode())
    assert received == sent
    assert list(received.application_properties) == list(sent.application_properties)
    assert Message.decode(received.encode()) == sent


@given(messages())
def test_reading_changes_no_byte(sent: Message) -> None:
    """A message that was read all over, yet not changed, is encoded to the very bytes it came as."""
    raw = sent.encode()
    received = Message.decode(raw)
    assert received.encode() is raw
    assert received == sent
    assert repr(received)
    assert received.encode() is raw
    assert received.raw is raw


def test_reading_changes_no_byte_of_a_peer_with_other_habits() -> None:
    """Longer forms than ours (list32, map32, str32, long descriptors, explicit defaults) stay as they are."""
    raw = b"".join(
        (
            b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x70",
            b"\xd0\x00\x00\x00\x06\x00\x00\x00\x02\x42\x40",
            b"\x00\xa3\x14amqp:properties:list",
            b"\xd0\x00\x00\x00\x0a\x00\x00\x00\x01\xb1\x00\x00\x00\x01i",
            b"\x00\x53\x74",
            b"\xd1\x00\x00\x00\x13\x00\x00\x00\x02\xb1\x00\x00\x00\x01k\x81\x00\x00\x00\x00\x00\x00\x00\x07",
            b"\x00\x53\x77",
            b"\xd1\x00\x00\x00\x0e\x00\x00\x00\x02\x43\x80\x00\x00\x00\x00\x00\x00\x00\x00",
        )
    )
    received = Message.decode(raw)
    assert received.durable is False
    assert received.message_id == "i"
    assert received.application_properties == {"k": 7}
    assert received.body == Value({uint(0): ulong(0)})
    assert received.encode() is raw


@pytest.mark.parametrize("name", list(FIELDS))
def test_changing_one_field_leaves_the_other_sections_as_they_came(name: str) -> None:
    """Only the section that was changed is written anew; the rest keeps the peer's own bytes."""
    parts = {
        "header": b"\x00\x53\x70\xd0\x00\x00\x00\x05\x00\x00\x00\x01\x41",
        "delivery_annotations": b"\x00\x53\x71\xd1\x00\x00\x00\x08\x00\x00\x00\x02\xa3\x01d\x40",
        "message_annotations": b"\x00\x53\x72\xd1\x00\x00\x00\x08\x00\x00\x00\x02\xa3\x01m\x40",
        "properties": b"\x00\x53\x73\xd0\x00\x00\x00\x07\x00\x00\x00\x01\xa1\x01i",
        "application_properties": b"\x00\x53\x74\xd1\x00\x00\x00\x08\x00\x00\x00\x02\xa1\x01a\x40",
        "body": b"\x00\x53\x75\xb0\x00\x00\x00\x01x" + b"\x00\x53\x75\xb0\x00\x00\x00\x01y",
        "footer": b"\x00\x53\x78\xd1\x00\x00\x00\x08\x00\x00\x00\x02\xa3\x01f\x40",
    }
    new: dict[str, Any] = {"durable": False, "message_id": "j", "correlation_id": 7, "user_id": b"u"}
    value: Any = new.get(name, {"k": 1} if name in parts else 5 if "count" in name or "sequence" in name else None)
    if value is None:
        value = {"priority": 9, "ttl": 1.5, "first_acquirer": True, "creation_time": 1, "absolute_expiry_time": 1}.get(
            name, "t"
        )
    received = Message.decode(b"".join(parts.values()))
    setattr(received, name, value)
    assert getattr(received, name) == value
    again = Message.decode(received.encode())
    assert getattr(again, name) == value
    touched = name if name in parts else "header" if name in list(FIELDS)[:5] else "properties"
    for part, octets in parts.items():
        assert (octets in received.encode()) == (part != touched)
    assert received == again
    assert received.raw == b"".join(parts.values())


def test_changing_the_body_leaves_the_other_sections_as_they_came() -> None:
    """A new body replaces all the old sections of it."""
    header = b"\x00\x53\x70\xd0\x00\x00\x00\x05\x00\x00\x00\x01\x41"
    footer = b"\x00\x53\x78\xd1\x00\x00\x00\x08\x00\x00\x00\x02\xa3\x01f\x40"
    for old in (Data(b"x", b"y"), Sequence([1], [2]), Value(1), b"x"):
        received = Message.decode(header + Message(old).encode() + footer)
        received.body = Value("new")
        assert received.encode() == header + section(VALUE, "new") + footer


@pytest.mark.parametrize("name", ["delivery_annotations", "message_annotations", "application_properties", "footer"])
def test_a_change_inside_a_dict_is_not_lost(name: str) -> None:
    """A dict that was handed out may be changed in place, also where the section was absent."""
    given: Any = {name: {"a": 1, "b": 2}}
    for raw in (BODY, Message(b"body", **given).encode()):
        received = Message.decode(raw)
        entries = getattr(received, name)
        before = dict(entries)
        entries["new"] = "entry"
        assert getattr(Message.decode(received.encode()), name) == before | {"new": "entry"}
        del entries["new"]
        assert received.encode() is raw


def test_a_change_of_type_alone_is_not_lost() -> None:
    """1, True and ulong(1) are equal in Python and three things in AMQP."""
    received = Message.decode(Message(b"", application_properties={"a": 1}).encode())
    received.application_properties["a"] = ulong(1)
    assert type(Message.decode(received.encode()).application_properties["a"]) is ulong


def test_a_change_inside_a_body_is_not_lost() -> None:
    """A list or map of a body may be changed in place too."""
    received = Message.decode(Message(Value({"a": [1]})).encode())
    assert isinstance(received.body, Value)
    received.body.value["a"].append(2)
    assert Message.decode(received.encode()).body == Value({"a": [1, 2]})
    received = Message.decode(Message(Sequence([1])).encode())
    assert isinstance(received.body, Sequence)
    received.body.lists[0].append(2)
    assert Message.decode(received.encode()).body == Sequence([1, 2])


def test_emptying_a_section_removes_it() -> None:
    """A section without anything in it is not sent."""
    sent = Message(b"body", durable=True, subject="s", application_properties={"a": 1}, footer={"f": 1})
    received = Message.decode(sent.encode())
    received.durable = False
    received.subject = None
    received.application_properties = {}
    received.footer.clear()
    assert received.encode() == BODY


def test_a_copy_is_independent() -> None:
    """Setting a field of a copy leaves the original alone, lazy or not."""
    for original in (Message(b"x", subject="old"), Message.decode(Message(b"x", subject="old").encode())):
        twin = copy.copy(original)
        assert twin == original
        twin.subject = "new"
        twin.body = b"y"
        assert (original.subject, original.body) == ("old", b"x")
        assert (twin.subject, Message.decode(twin.encode()).subject) == ("new", "new")


@pytest.mark.parametrize("read", [False, True])
def test_messages_can_be_pickled_and_deep_copied(read: bool) -> None:
    """A message may be handed to another process, decoded or not."""
    sent = Message(Value([1]), message_id="i", application_properties={"a": 1})
    received = Message.decode(sent.encode())
    if read:
        assert received == sent
    assert pickle.loads(pickle.dumps(received)) == sent
    assert copy.deepcopy(received) == sent


# --- malformed messages ------------------------------------------------------------------------


def read_all(raw: bytes) -> None:
    """Read every attribute, each of a fresh message, and allow DecodeError alone."""
    for name in (*FIELDS, "body"):
        try:
            getattr(Message.decode(raw), name)
        except DecodeError:
            continue
    assert repr(Message.decode(raw))
    try:
        received = Message.decode(raw)
        assert received == received
    except DecodeError:
        return
    assert received.encode() is raw


@given(
    st.lists(
        st.sampled_from([b"\x00", b"\x53", b"\x70", b"\x73", b"\x74", b"\x75", b"\xc0", b"\xc1", b"\xa0"]), max_size=20
    )
)
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_decode_errors(parts: list[bytes]) -> None:
    """Whatever the bytes, reading them ends in a value or DecodeError."""
    read_all(b"".join(parts))


@given(messages(), st.data())
def test_mutated_messages_raise_nothing_but_decode_errors(sent: Message, data: st.DataObject) -> None:
    """One wrong byte in a good message ends in a value or DecodeError."""
    octets = bytearray(sent.encode())
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    read_all(bytes(octets))


@given(messages(), st.data())
def test_truncated_messages_are_refused_or_end_between_sections(sent: Message, data: st.DataObject) -> None:
    """A message cut short within a section is refused as a whole."""
    raw = sent.encode()
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    ends, position = {0}, 0
    while position < len(raw):
        position = skip(raw, position)
        ends.add(position)
    if len(cut) in ends:
        assert isinstance(Message.decode(cut).application_properties, dict)
    else:
        with pytest.raises(DecodeError):
            _ = Message.decode(cut).application_properties


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"hello", "begins no section"),
        (b"\x00", "cut short"),
        (b"\x00\x53", "cut short"),
        (b"\x00\x53\x75", "cut short"),
        (b"\x00\x53\x75\xa0", "cut short"),
        (b"\x00\x53\x75\xa0\x05abc", "cut short"),
        (b"\x00\x53\x75\xb0\x00\x00", "cut short"),
        (b"\x00\x53\x75\xb0\xff\xff\xff\xff", "cut short"),
        (b"\x00\x53\x79\xa0\x00", "descriptor ulong.121"),
        (b"\x00\x53\x6f\xa0\x00", "descriptor ulong.111"),
        (b"\x00\xa3\x04nope\xa0\x00", "descriptor symbol.'nope'"),
        (b"\x00\xa1\x01x\xa0\x00", "no ulong and no symbol"),
        (b"\x00\x00\x53\x75\x40\xa0\x00", "no ulong and no symbol"),
        (BODY + b"\x40", "begins no section"),
        (BODY + b"\x00\x53\x70\x45", "header behind data"),
        (BODY + section(VALUE, 1), "amqp-value behind data"),
        (BODY + section(SEQUENCE, []), "amqp-sequence behind data"),
        (section(VALUE, 1) * 2, "amqp-value behind amqp-value"),
        (section(HEADER, []) * 2, "header behind header"),
        (section(FOOTER, {}) * 2, "footer behind footer"),
        (section(FOOTER, {}) + BODY, "data behind footer"),
        (section(APPLICATION, {}) + section(PROPERTIES, []), "properties behind application-properties"),
        (section(DATA, "text"), "data cannot hold"),
        (section(DATA, None), "data cannot hold"),
        (section(SEQUENCE, {}), "amqp-sequence cannot hold"),
        (section(HEADER, {}), "header cannot hold"),
        (section(PROPERTIES, None), "properties cannot hold"),
        (section(APPLICATION, []), "application-properties cannot hold"),
        (section(FOOTER, 1), "footer cannot hold"),
        (section(VALUE, 1)[:3] + b"\x3f", "no AMQP constructor"),
    ],
)
def test_malformed_structure_is_refused_with_its_reason(raw: bytes, hint: str) -> None:
    """Unknown, misplaced, repeated, mistyped and truncated sections each say so, whichever attribute is read."""
    for name in ("body", "message_id", "priority", "application_properties", "footer"):
        with pytest.raises(DecodeError, match=hint):
            getattr(Message.decode(raw), name)
    assert "malformed" in repr(Message.decode(raw))


@pytest.mark.parametrize(
    ("raw", "name", "hint"),
    [
        (section(HEADER, [True, ubyte(4), None, None, uint(1), 6]), "durable", "6 fields"),
        (section(PROPERTIES, [None] * 14), "subject", "14 fields"),
        (section(HEADER, ["yes"]), "durable", "durable cannot be a str"),
        (section(HEADER, [None, 4]), "priority", "priority cannot be a int"),
        (section(PROPERTIES, [1.5]), "message_id", "message_id cannot be a float"),
        (section(PROPERTIES, [None, "user"]), "user_id", "user_id cannot be a str"),
        (section(PROPERTIES, [None, None, b"q"]), "to", "to cannot be a bytes"),
        (section(PROPERTIES, [None] * 8 + [1]), "creation_time", "absolute_expiry_time cannot be a int"),
        (section(ANNOTATIONS, {1: 1}), "message_annotations", "key of annotations is of type int"),
        (section(DELIVERY, {None: 1}), "delivery_annotations", "key of annotations is of type NoneType"),
        (section(FOOTER, {b"k": 1}), "footer", "key of annotations is of type bytes"),
        (section(APPLICATION, {1: 1}), "application_properties", "key of application properties is of type int"),
        (
            b"\x00\x53\x74\xc1\x05\x02\x45\xa1\x01a",
            "application_properties",
            "key of application properties is of type list",
        ),
        (b"\x00\x53\x74\xc1\x00", "application_properties", "fill"),
        (b"\x00\x53\x74\xd1\x00\x00\x00\x03abc", "application_properties", "fill"),
        (b"\x00\x53\x72\xc1\x00", "message_annotations", "cut short"),
        (b"\x00\x53\x70\xc0\x00", "durable", "fill"),
        (b"\x00\x53\x73\xd0\x00\x00\x00\x03abc", "subject", "fill"),
        (b"\x00\x53\x73\xc0\x02\x00\x40", "subject", "properties whose fields do not fill"),
        (b"\x00\x53\x73\xd0\x00\x00\x00\x05\xff\xff\xff\xff\x40", "subject", "4294967295 fields"),
        (section(PROPERTIES, [None, None, char("q")]), "to", "to cannot be a char"),
        (section(PROPERTIES, [None, decimal128(bytes(16))]), "user_id", "user_id cannot be a decimal128"),
        (b"\x00\x53\x74\xc1\x04\x01\xa1\x01a", "application_properties", "fill"),
        (b"\x00\x53\x74\xc1\x05\x02\xa1\x01a", "application_properties", "cut short"),
        (b"\x00\x53\x74\xc1\x05\xff\xa1\x01a\x40", "application_properties", "fill"),
        (b"\x00\x53\x74\xd1\x00\x00\x00\x08\xff\xff\xff\xfe\xa1\x01a\x40", "application_properties", "fill"),
        (b"\x00\x53\x74\xc1\x09\x04\xa1\x01a\x40\xa1\x01a\x40", "application_properties", "equal keys"),
        (b"\x00\x53\x74\xc1\x05\x02\xa1\x01\xff\x40", "application_properties", "bad text"),
        (b"\x00\x53\x74\xc1\x07\x02\xa1\x01a\xa1\x01\xff", "application_properties", "bad text"),
        (b"\x00\x53\x74\xc1\x07\x02\xa1\x01a\xa1\x05b", "application_properties", "fill"),
        (b"\x00\x53\x73\xc0\x04\x01\xa1\x01\xff", "message_id", "bad text"),
        (b"\x00\x53\x73\xc0\x04\x01\xa1\x05a", "message_id", "fill"),
        (b"\x00\x53\x77\xa1\x01\xff", "body", "bad text"),
        (b"\x00\x53\x77\x57\x00", "body", "no AMQP constructor"),
        (b"\x00\x53\x76\xc0\x02\x05\x40", "body", "claims 5"),
    ],
)
def test_malformed_contents_are_refused_when_they_are_read(raw: bytes, name: str, hint: str) -> None:
    """A section whose structure is sound and contents are not is refused on first access."""
    received = Message.decode(raw)
    for _ in range(2):
        with pytest.raises(DecodeError, match=hint):
            getattr(received, name)
    assert received.encode() is raw


def test_a_malformed_section_spoils_no_other() -> None:
    """The body stays readable behind application properties that are not."""
    received = Message.decode(section(PROPERTIES, ["id"]) + section(APPLICATION, {1: 1}) + BODY)
    assert received.body == b"body"
    assert received.message_id == "id"
    for _ in range(2):
        with pytest.raises(DecodeError):
            _ = received.application_properties


def test_many_sequence_sections_share_one_allowance() -> None:
    """Sections of arrays of nulls, each within bounds, cannot add up to a bomb."""
    array = b"\xf0\x00\x00\x00\x05\x00\x00\xff\xff\x40"
    raw = (b"\x00\x53\x76\xc0" + bytes((len(array) + 1, 1)) + array) * 3
    with pytest.raises(DecodeError, match="no bytes"):
        _ = Message.decode(raw).body


@pytest.mark.parametrize(
    "descriptor",
    [b"\x53%c", b"\x80\x00\x00\x00\x00\x00\x00\x00%c", b"\xa3%c%s", b"\xb3\x00\x00\x00%c%s"],
)
def test_descriptors_of_every_spelling_are_read(descriptor: bytes) -> None:
    """Smallulong, ulong and the symbolic descriptors mean the same (1.3, 3.2)."""
    names = {
        HEADER: ("amqp:header:list", [True]),
        DELIVERY: ("amqp:delivery-annotations:map", {symbol("d"): 1}),
        ANNOTATIONS: ("amqp:message-annotations:map", {symbol("m"): 1}),
        PROPERTIES: ("amqp:properties:list", ["i"]),
        APPLICATION: ("amqp:application-properties:map", {"a": 1}),
        DATA: ("amqp:data:binary", b"x"),
        SEQUENCE: ("amqp:amqp-sequence:list", [1]),
        VALUE: ("amqp:amqp-value:*", "v"),
        FOOTER: ("amqp:footer:map", {symbol("f"): 1}),
    }
    for kind, body in ((DATA, b"x"), (SEQUENCE, Sequence([1])), (VALUE, Value("v"))):
        raw = b""
        for code, (name, value) in names.items():
            if code not in {DATA, SEQUENCE, VALUE} - {kind}:
                octets = descriptor % (len(name), name.encode()) if b"%s" in descriptor else descriptor % code
                raw += b"\x00" + octets + encode(value)
        assert check_encoded(raw) is raw
        received = Message.decode(raw)
        assert received == Message(
            body,
            durable=True,
            delivery_annotations={"d": 1},
            message_annotations={"m": 1},
            message_id="i",
            application_properties={"a": 1},
            footer={"f": 1},
        )
        assert received.encode() is raw


def test_a_message_without_a_body_is_read() -> None:
    """The specification wants a body; proton and others send messages without, and losing them helps nobody."""
    assert Message.decode(b"").body is None
    assert Message.decode(section(HEADER, [])).body is None
    assert Message.decode(proton.Message().encode()) == Message()


@given(st.binary(max_size=300))
def test_the_message_id_alone_is_that_of_the_whole_list(octets: bytes) -> None:
    """The short cut to the first property never reads what the list does not hold."""
    raw = b"\x00\x53\x73\xc0" + bytes((min(len(octets), 255),)) + octets[:255]
    try:
        fields = Message.decode(raw)
        _ = fields.subject
        whole: Any = fields.message_id
    except DecodeError:
        return
    assert Message.decode(raw).message_id == whole


# --- proton as the oracle --------------------------------------------------------------------------

_PROTON = {"message_id": "id", "absolute_expiry_time": "expiry_time", "application_properties": "properties"}
_PROTON |= {"delivery_annotations": "instructions", "message_annotations": "annotations", "to": "address"}
#: Fields whose proton attribute has the same meaning; first_acquirer and the footer it does not write.
_SHARED = [name for name in FIELDS if name not in {"footer", "absolute_expiry_time", "creation_time", "first_acquirer"}]


@st.composite
def shared_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that proton.Message has too."""
    names = draw(st.lists(st.sampled_from(_SHARED), unique=True, max_size=8))
    return {name: draw(FIELDS[name]) for name in names}


@given(shared_fields(), st.binary(max_size=300))
def test_proton_reads_what_we_write(fields: dict[str, Any], body: bytes) -> None:
    """Proton decodes our message to the same fields."""
    oracle = proton.Message()
    oracle.decode(Message(body, **fields).encode())
    assert oracle.body == body
    assert oracle.inferred
    for name, value in fields.items():
        seen = getattr(oracle, _PROTON.get(name, name))
        if isinstance(value, dict):
            assert (seen or {}) == value
        elif name == "ttl":
            assert seen == pytest.approx(value)
        else:
            assert (bytes(seen) if isinstance(seen, memoryview) else seen) == value


@given(shared_fields(), st.binary(max_size=300))
def test_we_read_what_proton_writes(fields: dict[str, Any], body: bytes) -> None:
    """We decode proton's message to the same fields."""
    oracle = proton.Message(body, inferred=True)
    for name, value in fields.items():
        setattr(oracle, _PROTON.get(name, name), value)
    received = Message.decode(oracle.encode())
    assert received.body == body
    for name, value in fields.items():
        seen = getattr(received, name)
        if name in {"ttl", "group_sequence"}:  # for which 0 and nothing are the same to proton
            assert (seen or 0) == pytest.approx(value, abs=0.001)
        else:
            assert seen == value


@pytest.mark.parametrize(
    ("body", "inferred", "ours"),
    [
        (b"bytes", True, b"bytes"),
        (b"bytes", False, Value(b"bytes")),
        ("text", False, Value("text")),
        ([1, "a"], True, Sequence([1, "a"])),
        ([1, "a"], False, Value([1, "a"])),
        ({"a": 1}, False, Value({"a": 1})),
        (Described(symbol("d"), 1), False, Value(Described(symbol("d"), 1))),
        (array(int32, [1]), False, Value(array(int32, [1]))),
    ],
)
def test_bodies_are_those_of_proton(body: Any, inferred: bool, ours: Any) -> None:
    """Proton and we mean the same by each kind of body, both ways."""
    oracle = proton.Message(body, inferred=inferred)
    assert Message.decode(oracle.encode()).body == ours
    back = proton.Message()
    back.decode(Message(ours).encode())
    assert (bytes(back.body) if isinstance(back.body, memoryview) else back.body) == body


# --- what goes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "raw"),
    [
        (Message(), section(VALUE, None)),
        (Message(b""), section(DATA, b"")),
        (Message(b"x" * 255), section(DATA, b"x" * 255)),
        (Message(b"x" * 256), section(DATA, b"x" * 256)),
        (Message(Data(b"a", b"b")), section(DATA, b"a") + section(DATA, b"b")),
        (Message(Sequence([1], [])), section(SEQUENCE, [1]) + section(SEQUENCE, [])),
        (Message(Value({"a": 1})), section(VALUE, {"a": 1})),
        (Message(b"", durable=True), section(HEADER, [True]) + section(DATA, b"")),
        (Message(b"", priority=4, durable=False, delivery_count=0), section(DATA, b"")),
        (Message(b"", ttl=0.0015), section(HEADER, [None, None, uint(2)]) + section(DATA, b"")),
        (Message(b"", ttl=0), section(HEADER, [None, None, uint(0)]) + section(DATA, b"")),
        (
            Message(b"", delivery_count=1, priority=9),
            section(HEADER, [None, ubyte(9), None, None, uint(1)]) + section(DATA, b""),
        ),
        (Message(b"", message_id=7), section(PROPERTIES, [ulong(7)]) + section(DATA, b"")),
        (Message(b"", message_id=symbol("s")), section(PROPERTIES, ["s"]) + section(DATA, b"")),
        (
            Message(b"", content_type="a/b", message_id="i"),
            section(PROPERTIES, ["i", None, None, None, None, None, symbol("a/b")]) + section(DATA, b""),
        ),
        (
            Message(b"", message_annotations={"a": 1, symbol("b"): 2, ulong(3): 3}),
            section(ANNOTATIONS, {symbol("a"): 1, symbol("b"): 2, ulong(3): 3}) + section(DATA, b""),
        ),
        (Message(b"", application_properties={}, footer={}), section(DATA, b"")),
        (
            Message(b"", application_properties={symbol("k"): symbol("v")}),
            section(APPLICATION, {"k": symbol("v")}) + section(DATA, b""),
        ),
        (
            Message(b"", application_properties={"k" * 300: "v" * 300}),
            section(APPLICATION, {"k" * 300: "v" * 300}) + section(DATA, b""),
        ),
        (
            Message(b"", application_properties={str(i): 1000 for i in range(200)}),
            section(APPLICATION, {str(i): 1000 for i in range(200)}) + section(DATA, b""),
        ),
        (Message(b"", subject="s" * 300), section(PROPERTIES, [None] * 3 + ["s" * 300]) + section(DATA, b"")),
    ],
)
def test_the_bytes_are_those_of_the_specification(sent: Message, raw: bytes) -> None:
    """Each section in its place and shortest form, absent when there is nothing in it."""
    assert sent.encode() == raw
    assert check_encoded(raw) is raw


def test_many_small_properties_count_beyond_a_byte() -> None:
    """128 entries make 256 elements, one more than the short form of a map can count."""
    entries = dict.fromkeys(map(chr, range(0x41, 0x41 + 128)), None)
    for number in (127, 128):
        some = dict(list(entries.items())[:number])
        assert Message.decode(Message(b"", application_properties=some).encode()).application_properties == some


@pytest.mark.parametrize(
    "body", ["text", 1, 1.5, True, {"a": 1}, [1], (1,), {1}, object(), datetime.datetime.now(datetime.UTC)]
)
def test_a_body_that_would_need_guessing_is_refused(body: Any) -> None:
    """Text and objects are neither encoded nor wrapped silently."""
    with pytest.raises(TypeError, match=r"encode it|wrap it"):
        Message(body)
    known = Message(b"x")
    with pytest.raises(TypeError, match=r"encode it|wrap it"):
        known.body = body
    assert known.body == b"x"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (bytearray(b"x"), b"x"),
        (memoryview(b"xyz")[::2], b"xz"),
        (Data(b"x"), b"x"),
        (Value(None), None),
        (decimal128(bytes(16)), bytes(16)),
    ],
)
def test_bodies_that_mean_the_same_become_the_same(given: Any, kept: Any) -> None:
    """One data section is bytes and a null value is None, going out as coming in."""
    sent = Message(given)
    assert sent.body == kept
    assert type(sent.body) is type(kept)
    assert Message.decode(sent.encode()).body == kept


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("user_id", "me", r"\.encode\(\)"),
        ("user_id", 1, "bytes"),
        ("subject", b"s", "str"),
        ("to", 1, "str"),
        ("content_type", b"text/plain", "str"),
        ("message_id", 1.5, "UUID"),
        ("correlation_id", True, "UUID"),
        ("durable", 1, "True or False"),
        ("first_acquirer", "no", "True or False"),
        ("priority", True, "int"),
        ("priority", "high", "int"),
        ("delivery_count", 1.0, "int"),
        ("ttl", "1", "seconds"),
        ("ttl", True, "seconds"),
        ("ttl", datetime.timedelta(1), "seconds"),
        ("creation_time", 1.5, "milliseconds"),
        ("creation_time", "2020", "milliseconds"),
        ("application_properties", [("a", 1)], "mapping"),
        ("footer", "f", "mapping"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_at_once(name: str, value: Any, hint: str) -> None:
    """The error comes from the line that made the mistake, and names the field and what it takes."""
    with pytest.raises(TypeError, match=f"{name} is .*{hint}"):
        Message(b"", **{name: value})
    known = Message(b"")
    with pytest.raises(TypeError, match=f"{name} is .*{hint}"):
        setattr(known, name, value)
    assert known == Message(b"")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", -1),
        ("priority", 256),
        ("delivery_count", -1),
        ("delivery_count", 2**32),
        ("group_sequence", 2**32),
        ("group_sequence", 10**5000),
        ("message_id", -1),
        ("correlation_id", 2**64),
        ("ttl", -0.001),
        ("ttl", 2**32 / 1000),
        ("ttl", float("nan")),
        ("ttl", float("inf")),
        ("ttl", 10**400),
        ("creation_time", 2**63),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}",
)
def test_a_number_out_of_range_is_refused_at_once(name: str, value: Any) -> None:
    """What the wire's type cannot hold is an EncodeError, which is a ValueError."""
    with pytest.raises(EncodeError, match=f"{name} is out of range"):
        Message(b"", **{name: value})


def test_a_naive_datetime_is_refused() -> None:
    """A time without a time zone is no point in time."""
    with pytest.raises(EncodeError, match="time zone"):
        Message(b"", creation_time=datetime.datetime(2020, 1, 1))


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"application_properties": {1: "a"}}, r"str, not int: use str\("),
        ({"application_properties": {None: "a"}}, "str, not NoneType"),
        ({"application_properties": {"a": [1]}}, "'a' is of type list.*3.2.5"),
        ({"application_properties": {"a": []}}, "'a' is of type list"),
        ({"application_properties": {"a": {}}}, "'a' is of type dict"),
        ({"application_properties": {"a": array(int32, [])}}, "'a' is of type Array"),
        ({"application_properties": {"a": object()}}, "object"),
        ({"application_properties": {"a": 2**63}}, "ulong"),
        ({"application_properties": {"a": "\ud800"}}, "UTF-8"),
        ({"application_properties": {"\ud800": 1}}, "UTF-8"),
        ({"message_annotations": {1: "a"}}, r"not int: use ulong\("),
        ({"footer": {b"a": "a"}}, "symbols or ulongs, not bytes"),
        ({"delivery_annotations": {"é": "a"}}, "ASCII"),
        ({"content_type": "é"}, "ASCII"),
        ({"subject": "\ud800"}, "UTF-8"),
        ({"message_id": "\ud800", "durable": True}, "UTF-8"),
    ],
)
def test_what_a_section_cannot_carry_is_refused_on_encoding(fields: dict[str, Any], hint: str) -> None:
    """Keys and values that AMQP forbids in their section never reach the wire."""
    with pytest.raises(EncodeError, match=hint):
        Message(b"", **fields).encode()


def test_a_body_over_the_largest_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes have four bytes; the bound is lowered here, as the real one takes 4 GiB to pass."""
    monkeypatch.setattr(encoding, "_MAX_SIZE", 299)
    with pytest.raises(EncodeError, match="4 GiB"):
        Message(b"x" * 300).encode()


def test_an_unknown_field_is_refused() -> None:
    """A misspelt field is no silent loss: not in the constructor, not as an attribute."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'correlationid'"):
        Message(b"", correlationid="x")  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Message(b"").correlationid = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["absolute_expiry_time", "creation_time"])
def test_times_are_taken_as_datetimes(field: str) -> None:
    """An aware datetime becomes the milliseconds it names."""
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, 678_000, datetime.UTC)
    given: Any = {field: when}
    sent = Message(b"", **given)
    assert getattr(sent, field) == getattr(Message.decode(sent.encode()), field) == timestamp(1704164645678)


@pytest.mark.parametrize("value", ["text", 0, 2**64 - 1, uuid.UUID(int=5), b"\x00\xff", ""])
def test_message_ids_keep_their_type(value: Any) -> None:
    """A str, ulong, UUID and binary stay apart as message-id and correlation-id."""
    received = Message.decode(Message(b"", message_id=value, correlation_id=value).encode())
    assert received.message_id == value
    assert received.correlation_id == value
    assert isinstance(received.message_id, ulong if type(value) is int else type(value))


def test_fields_whose_type_is_fixed_are_plain_python() -> None:
    """A uint or symbol that the specification puts there says nothing: f-strings and reprs show 1, not uint(1)."""
    plain: dict[str, Any] = {
        "durable": True,
        "priority": 9,
        "ttl": 1.0,
        "first_acquirer": True,
        "delivery_count": 1,
        "user_id": b"u",
        "to": "t",
        "subject": "s",
        "reply_to": "r",
        "content_type": "a/b",
        "content_encoding": "gzip",
        "absolute_expiry_time": 1704164645678,
        "creation_time": -1,
        "group_id": "g",
        "group_sequence": 2**32 - 1,
        "reply_to_group_id": "h",
    }
    typed: dict[str, Any] = plain | {
        "priority": ubyte(9),
        "delivery_count": uint(1),
        "to": symbol("t"),
        "content_type": symbol("a/b"),
        "creation_time": timestamp(-1),
        "group_sequence": uint(2**32 - 1),
    }
    for fields in (plain, typed):
        sent = Message(b"", **fields)
        for known in (sent, Message.decode(sent.encode())):
            for name, value in plain.items():
                assert type(getattr(known, name)) is type(value), name
                assert repr(getattr(known, name)) == repr(value)
        assert sent.encode() == Message(b"", **plain).encode()


@pytest.mark.parametrize("long", [False, True])
def test_symbols_and_strings_that_peers_mix_up_are_read(long: bool) -> None:
    """A string in the place of a symbol, and the other way round, is the text that it is."""
    text = "t" * (300 if long else 1)
    raw = section(PROPERTIES, [symbol(text), None, symbol(text), text, None, symbol(text), text, symbol("")]) + BODY
    received = Message.decode(raw)
    shown = [received.subject, received.message_id, received.to, received.correlation_id, received.content_type]
    assert shown == [text] * 5
    assert {type(each) for each in shown} == {str}
    assert received.content_encoding == ""
    assert received.encode() is raw


def test_what_was_not_given_reads_as_its_default() -> None:
    """Defaults are those of the specification, for a message made here and for one that arrived bare."""
    for bare in (Message(b"body"), Message.decode(BODY)):
        assert (bare.durable, bare.priority, bare.ttl, bare.first_acquirer, bare.delivery_count) == (
            False,
            4,
            None,
            False,
            0,
        )
        assert all(getattr(bare, name) is None for name in list(FIELDS)[5:18])
        assert all(getattr(bare, name) == {} for name in list(FIELDS)[18:])


def test_none_means_not_given() -> None:
    """Every field may be given as None, so that optional values need no juggling."""
    everything: Any = dict.fromkeys(FIELDS)
    assert Message(b"body", **everything).encode() == BODY


def test_entries_can_be_added_to_a_message_without_any() -> None:
    """The map sections are always dicts."""
    sent = Message(b"body")
    sent.application_properties["a"] = 1
    assert Message.decode(sent.encode()).application_properties == {"a": 1}


class _Subject(enum.StrEnum):
    ORDER = "order"


class _Order(uuid.UUID):
    pass


@pytest.mark.parametrize(
    ("name", "value", "back"),
    [
        ("subject", _Subject.ORDER, "order"),
        ("content_type", _Subject.ORDER, "order"),
        ("message_id", _Subject.ORDER, "order"),
        ("message_id", decimal128(bytes(16)), bytes(16)),
        ("message_id", _Order(int=5), uuid.UUID(int=5)),
        ("user_id", bytearray(b"u"), b"u"),
        ("priority", uint(7), 7),
        ("ttl", 3, 3.0),
    ],
)
def test_relatives_of_a_fields_type_are_taken(name: str, value: Any, back: Any) -> None:
    """Subclasses and look-alikes travel as what they are like."""
    sent = Message(b"", **{name: value})
    assert getattr(sent, name) == back
    assert getattr(Message.decode(sent.encode()), name) == back


def test_mappings_of_any_kind_are_taken() -> None:
    """A read-only view is as good as a dict."""
    sent = Message(b"body", application_properties=types.MappingProxyType({"a": 1}))
    assert Message.decode(sent.encode()).application_properties == {"a": 1}


def test_the_caches_stay_small() -> None:
    """Ever new keys, content types and received keys make no memory grow."""
    for number in range(5000):
        sent = Message(b"", content_type=f"a/{number}", application_properties={f"k{number}": 1, "k" * 300: 2})
        received = Message.decode(sent.encode())
        assert len(received.application_properties) == 2
        assert received.content_type == f"a/{number}"
    caches = (sections.encoded_keys, sections.encoded_symbols, sections.decoded_keys, sections.decoded_symbols)
    for cache in caches:
        assert 0 < len(cache) <= sections.CACHED
        assert all(len(key) < 256 for key in cache)


# --- large bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [255, 256, 4095, 4096, 70_000])
@pytest.mark.parametrize(
    "fields",
    [{}, {"subject": "s"}, {"durable": True, "message_annotations": {"x-opt": 1}}, {"footer": {"x-hash": b"h"}}],
)
def test_a_large_body_is_encoded_like_a_small_one(size: int, fields: dict[str, Any]) -> None:
    """In one piece or two: the same bytes, whose length is known before."""
    sent = Message(bytes(index % 251 for index in range(size)), **fields)
    encoded = sent.encode()
    pieces = sent._encode()
    assert len(pieces) == len(encoded)
    assert (pieces if isinstance(pieces, bytes) else b"".join(pieces)) == encoded
    assert isinstance(pieces, bytes) == (size < 4096 or "footer" in fields)
    assert Message.decode(encoded) == sent
    oracle = proton.Message()
    oracle.decode(encoded)
    assert oracle.body == sent.body


# --- pre-encoded bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"{}", b"\x00", b"\x00\x53", b"\x00\x53\x75", b"\x00\x53\x79\xa0\x00", b"\x00\x53\x75\x40"]
)
def test_bytes_that_are_no_message_are_refused_with_a_hint(data: bytes) -> None:
    """Handing a body over in the place of an encoded message is the likely mistake."""
    with pytest.raises(ValueError, match=r"wrap a body in Message\(body\)"):
        check_encoded(data)


# --- the objects ----------------------------------------------------------------------------------------------


def test_reprs_show_no_payload() -> None:
    """Bodies and properties may be secret: kinds, sizes and addresses only."""
    secret = "canary"
    for body in (b"canary", Data(b"canary", b"canary"), Sequence([secret]), Value(secret), Value({secret: secret})):
        sent = Message(body, message_id="i", to="q", application_properties={secret: secret}, reply_to=secret)
        for shown in (repr(sent), repr(Message.decode(sent.encode())), repr(body) if body != b"canary" else ""):
            assert secret not in shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (Message(), "Message(no body)"),
        (Message(b"abc", subject="s"), "Message(<data, 3 bytes>, subject='s')"),
        (Message(Data(b"abc", b"d"), to="q"), "Message(<2 data sections, 4 bytes>, to='q')"),
        (Message(Value("abc"), message_id=7), "Message(<value, 8 bytes>, message_id=ulong(7))"),
        (Message(Sequence([1], [2])), "Message(<sequence, 16 bytes>)"),
        (Message(Value({1, 2})), "Message(<value, not encodable>)"),
        (Message.decode(b"junk"), "Message(<4 bytes, malformed>)"),
        (Data(b"abc", b"d"), "Data(<3 bytes>, <1 bytes>)"),
        (Sequence([1, 2]), "Sequence(<2 values>)"),
        (Value("abc"), "Value(<str>)"),
    ],
)
def test_reprs_say_what_it_is(shown: object, expected: str) -> None:
    """The repr of every state of a message, a broken one included."""
    assert repr(shown) == expected


def test_equality_is_by_content() -> None:
    """Made here or received, defaults given or not: what counts is what it says."""
    assert Message(b"x", priority=4) == Message(b"x") == Message.decode(Message(b"x").encode())
    assert Message(b"x") != Message(b"y")
    assert Message(b"x", subject="a") != Message(b"x", subject="b")
    assert Message(b"x") != Message(Value(b"x"))
    assert Message(b"x") != b"x"
    assert Data(b"a", b"b") == Data(b"a", b"b")
    assert Data(b"a", b"b") != Data(b"ab", b"")
    assert hash(Data(b"a", b"b")) == hash(Data(b"a", b"b"))
    assert Sequence([1]) == Sequence((1,))
    assert Sequence([1]) != Data(b"1")
    assert Data(b"1") != Sequence([1])
    assert Value(1) != Value(2)
    with pytest.raises(TypeError):
        hash(Message(b"x"))


def test_body_sections_are_handy() -> None:
    """Parts and lists can be iterated, and data joined."""
    assert bytes(Data(b"a", bytearray(b"b"))) == b"ab"
    assert list(Data(b"a", b"b")) == [b"a", b"b"]
    assert list(Sequence([1], [2])) == [[1], [2]]


@pytest.mark.parametrize(
    ("make", "error", "hint"),
    [
        (lambda: Data(), ValueError, "one data section"),
        (lambda: Sequence(), ValueError, "one sequence section"),
        (lambda: Data("text"), TypeError, "Value"),  # type: ignore[arg-type]
        (lambda: Data(5), TypeError, "bytes, not int"),  # type: ignore[arg-type]
        (lambda: Sequence(1), TypeError, r"Sequence\(\["),  # type: ignore[arg-type]
        (lambda: Sequence("text"), TypeError, r"Sequence\(\["),  # type: ignore[arg-type]
    ],
)
def test_body_sections_refuse_the_wrong_things(make: Any, error: type[Exception], hint: str) -> None:
    """Empty bodies and wrong types are refused where they are made."""
    with pytest.raises(error, match=hint):
        make()


def test_lazy_and_decode_are_the_same() -> None:
    """The receive path's short cut gives the message that decode gives."""
    assert lazy(BODY) == Message.decode(bytearray(BODY)) == Message.decode(memoryview(BODY)) == Message(b"body")
    assert lazy(BODY).raw is BODY
    assert Message(b"body").raw is None


def test_fields_document_themselves() -> None:
    """`help(Message)` explains every field."""
    for name in FIELDS:
        assert len(getattr(Message, name).__doc__) > 10
    assert set(message.MessageFields.__annotations__) == set(FIELDS)


def test_outcomes_are_plain_frozen_values() -> None:
    """Outcomes compare by content, can be hashed and matched, and cannot be changed."""
    error = ErrorCondition("amqp:not-allowed", "no")
    for outcome in (Accepted(), Rejected(), Released(), Modified(True), NoOutcome()):
        assert isinstance(outcome, outcomes.Outcome)
        assert outcome == dataclasses.replace(outcome)
    assert Accepted() == ACCEPTED
    assert Released() == RELEASED
    assert Rejected(error).error is error
    assert not isinstance(Received(1, 2), outcomes.Outcome)
    assert repr(Modified(undeliverable_here=True)) == (
        "Modified(delivery_failed=False, undeliverable_here=True, message_annotations=None)"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        Modified().delivery_failed = True  # type: ignore[misc]
    match Rejected(error):
        case Rejected(ErrorCondition(condition)):
            assert condition == "amqp:not-allowed"


def test_every_public_name_is_there() -> None:
    """`__all__` is what the modules promise, and message hands on all of outcomes."""
    assert all(hasattr(message, name) for name in message.__all__)
    assert set(outcomes.__all__) <= set(message.__all__)
