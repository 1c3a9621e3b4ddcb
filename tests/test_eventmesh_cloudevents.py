"""CloudEvents in messages: what goes out is what the binding and CAP say, and what comes in is what was meant."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
import uuid
from typing import Any

import cloudevents.v1.http
import pytest
from cloudevents.core.bindings import amqp as binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from amqpws_async import Data, DecodeError, EncodeError, Message, Sequence, Value, eventmesh
from amqpws_async.codec import symbol, timestamp, uint
from amqpws_async.errors import AMQPError
from amqpws_async.eventmesh.cloudevents import Mode, NotACloudEvent, Prefix, from_message, is_cloudevent, to_message
from amqpws_async.testing import EventMesh

CANARY = "canary-9c41"
NOON = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.UTC)
CORE: dict[str, Any] = {"id": "4711", "source": "/example/shop", "type": "example.order.created.v1"}


def event(data: Any = None, **attributes: Any) -> CloudEvent:
    """An event with the least there must be."""
    return CloudEvent({**CORE, "time": NOON, **attributes}, data)


def over_the_wire(message: Message) -> Message:
    """What the peer makes of the bytes that are sent."""
    return Message.decode(message.encode())


def structured(document: Any, content_type: str | None = "application/cloudevents+json") -> Message:
    """As another client sends it."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return over_the_wire(Message(body, content_type=content_type))


def contents(event: Any) -> tuple[dict[str, Any], Any]:
    """What an event is; the package's do not compare."""
    return {name: in_utc(value) for name, value in event.get_attributes().items()}, event.get_data()


def in_utc(value: Any) -> Any:
    """A moment that a time zone has twice equals no moment of another zone (PEP 495)."""
    return value.astimezone(datetime.UTC) if isinstance(value, datetime.datetime) else value


# --- round trips ---------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
TIMES = st.datetimes(
    datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=st.timezones() | st.just(datetime.UTC)
)
CORES = st.fixed_dictionaries(
    {"id": TEXT, "source": TEXT, "type": TEXT, "time": TIMES}, optional={"subject": TEXT, "dataschema": TEXT}
)
NAMES = st.from_regex("[a-z0-9]{1,20}", fullmatch=True).filter(
    lambda name: name not in {*CORE, "time", "subject", "dataschema", "datacontenttype", "specversion", "data"}
)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
JSON = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner | st.none(), max_size=3),
    max_leaves=8,
)
JSON_TYPES = st.sampled_from(
    ["application/json", "text/json", "application/vnd.example+json", "Application/JSON; charset=utf-8"]
)
TEXT_TYPES = st.sampled_from(
    ["text/plain", "application/xml", "image/svg+xml", "text/csv; charset=UTF-16", 'x/y;charset="utf-8"']
)
OTHER_TYPES = st.sampled_from(["application/octet-stream", "image/png", "application/avro"])


@given(CORES, st.dictionaries(NAMES, TEXT | INTEGERS | st.booleans(), max_size=4), JSON, st.none() | JSON_TYPES)
def test_an_event_with_json_survives_both_modes(
    attributes: dict[str, Any], extensions: dict[str, Any], data: Any, content_type: str | None
) -> None:
    """Every attribute with value and type, the time to the microsecond, and the data."""
    if content_type is not None:
        attributes = {**attributes, "datacontenttype": content_type}
    sent = CloudEvent({**attributes, **extensions}, data)
    came = from_message(over_the_wire(to_message(sent)))
    assert contents(came) == contents(sent)
    came = from_message(over_the_wire(to_message(sent, mode="binary")))
    # JSON without a content type is the same event as with one (JSON event format 3.1.1), but not the same bytes.
    expected = {"datacontenttype": "application/json", **contents(sent)[0]}
    assert contents(came) == (expected, data)
    assert {name: type(value) for name, value in came.get_attributes().items() if name in extensions} == {
        name: type(value) for name, value in extensions.items()
    }


@given(CORES, TEXT, TEXT_TYPES, st.sampled_from(["structured", "binary"]))
def test_text_survives_both_modes(attributes: dict[str, Any], data: str, content_type: str, mode: Mode) -> None:
    """In the charset that the content type names."""
    sent = CloudEvent({**attributes, "datacontenttype": content_type}, data)
    assert contents(from_message(over_the_wire(to_message(sent, mode=mode)))) == contents(sent)


@given(CORES, st.dictionaries(NAMES, st.binary() | TIMES, max_size=4), st.binary(min_size=1), st.none() | OTHER_TYPES)
def test_bytes_survive_both_modes(
    attributes: dict[str, Any], extensions: dict[str, Any], data: bytes, content_type: str | None
) -> None:
    """As data; and as attributes where AMQP has a type for them, JSON has texts."""
    if content_type is not None:
        attributes = {**attributes, "datacontenttype": content_type}
    sent = CloudEvent({**attributes, **extensions}, data)
    came = from_message(over_the_wire(to_message(sent, mode="binary")))
    assert came.get_data() == data
    for name, value in came.get_attributes().items():
        if name in extensions and isinstance(value, str):  # finer than AMQP's milliseconds
            value = datetime.datetime.fromisoformat(value)
        assert in_utc(value) == in_utc(sent.get_attributes()[name])
    came = from_message(over_the_wire(to_message(sent)))
    assert came.get_data() == data
    for name in extensions:
        value = came.get_attributes()[name]
        original = extensions[name]
        read = base64.b64decode(value) if isinstance(original, bytes) else datetime.datetime.fromisoformat(value)
        assert in_utc(read) == in_utc(original)


# --- against the package's own formats -----------------------------------------------------------


@given(CORES, st.dictionaries(NAMES, TEXT | INTEGERS | st.booleans(), max_size=4), JSON | st.binary(min_size=1))
def test_the_packages_json_format_reads_what_we_write_and_the_other_way_round(
    attributes: dict[str, Any], extensions: dict[str, Any], data: Any
) -> None:
    """The same JSON event format, by others."""
    ours = CloudEvent({**attributes, **extensions}, data)
    body = to_message(ours).body
    assert isinstance(body, bytes)
    assert contents(JSONFormat().read(CloudEvent, body)) == contents(ours)
    # It writes offsets as they are, and RFC 3339 has none with seconds.
    attributes["time"] = attributes["time"].astimezone(datetime.UTC)
    theirs = CloudEvent({**attributes, **extensions}, data)
    assert contents(from_message(structured(JSONFormat().write(theirs)))) == contents(theirs)


@given(CORES, st.dictionaries(NAMES, TEXT | INTEGERS | st.booleans(), max_size=4), st.dictionaries(TEXT, JSON))
def test_the_packages_amqp_binding_and_ours_understand_each_other(
    attributes: dict[str, Any], extensions: dict[str, Any], data: dict[str, Any]
) -> None:
    """Binary mode; its times are plain numbers of milliseconds, in properties with an underscore."""
    moment = attributes["time"].astimezone(datetime.UTC)
    attributes["time"] = moment.replace(microsecond=0)
    sent = CloudEvent({**attributes, **extensions, "datacontenttype": "application/json"}, data)
    theirs = binding.to_binary_event(sent)
    came = from_message(
        over_the_wire(
            Message(
                theirs.application_data,
                content_type=theirs.properties["content-type"],
                application_properties=theirs.application_properties,
            )
        )
    )
    assert contents(came) == contents(sent)
    ours = over_the_wire(to_message(sent, mode="binary"))
    body = ours.body
    assert isinstance(body, bytes)
    read = binding.from_binary_event(
        binding.AMQPMessage({"content-type": ours.content_type}, dict(ours.application_properties or {}), body)
    )
    assert contents(read) == contents(sent)


# --- what goes out -------------------------------------------------------------------------------


def test_structured_mode_is_what_cap_services_read() -> None:
    """One data section of JSON with the attributes and the data beside them, and this content type to the letter."""
    message = over_the_wire(to_message(event({"order": 4711}, datacontenttype="application/json", shopid="7")))
    assert message.content_type == "application/cloudevents+json"
    assert isinstance(message.body, bytes)
    assert json.loads(message.body) == {
        **CORE,
        "specversion": "1.0",
        "time": "2026-01-31T12:00:00Z",
        "datacontenttype": "application/json",
        "shopid": "7",
        "data": {"order": 4711},
    }
    assert not message.application_properties


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
def test_binary_mode_has_amqp_types_in_the_application_properties(prefix: Prefix) -> None:
    """The table of 3.1.3.2: boolean, long, string, binary, timestamp."""
    sent = event(b"\x00\x01", datacontenttype="image/png", flag=True, number=-7, raw=b"\xff", until=NOON)
    message = over_the_wire(to_message(sent, mode="binary", prefix=prefix))
    assert (message.body, message.content_type) == (b"\x00\x01", "image/png")
    values = dict(message.application_properties or {})
    assert values == {
        **{f"{prefix}{name}": value for name, value in CORE.items()},
        f"{prefix}specversion": "1.0",
        f"{prefix}time": int(NOON.timestamp()) * 1000,
        f"{prefix}flag": True,
        f"{prefix}number": -7,
        f"{prefix}raw": b"\xff",
        f"{prefix}until": int(NOON.timestamp()) * 1000,
    }
    types = {name.removeprefix(prefix): type(value) for name, value in values.items()}
    assert (types["time"], types["until"], types["flag"], types["number"]) == (timestamp, timestamp, bool, int)
    assert contents(from_message(message)) == contents(sent)


def test_a_time_finer_than_milliseconds_is_text() -> None:
    """AMQP's timestamp would cut it off, and the binding allows both forms."""
    moment = NOON.replace(microsecond=1)
    message = to_message(event(time=moment), mode="binary")
    assert (message.application_properties or {})["cloudEvents:time"] == "2026-01-31T12:00:00.000001Z"
    assert from_message(over_the_wire(message)).get_time() == moment


def test_nothing_else_of_the_message_is_set() -> None:
    """An event's id is unique among those of its source alone; as message-id it could be dropped as a duplicate."""
    for mode in ("structured", "binary"):
        message = over_the_wire(to_message(event(), mode=mode))
        assert (message.message_id, message.creation_time, message.subject, message.to) == (None,) * 4


def test_an_event_of_the_older_api_goes_out_too() -> None:
    """Its attributes are all texts, the time among them."""
    old = cloudevents.v1.http.CloudEvent({**CORE, "time": "2026-01-31T12:00:00.123456789Z"}, {"order": 4711})
    for mode in ("structured", "binary"):
        came = from_message(over_the_wire(to_message(old, mode=mode)))
        assert came.get_data() == {"order": 4711}
        assert came.get_time() == NOON.replace(microsecond=123456)
        assert came.get_id() == "4711"


def test_bytes_of_json_are_not_encoded_again() -> None:
    """Data that is JSON text already is given as bytes."""
    message = over_the_wire(to_message(event(b'{"order":4711}', datacontenttype="application/json"), mode="binary"))
    assert message.body == b'{"order":4711}'
    assert from_message(message).get_data() == {"order": 4711}


class Plain:
    """An event of no package, whose attributes nobody has checked."""

    def __init__(self, data: Any = None, /, **attributes: Any) -> None:
        self.attributes = {**CORE, "specversion": "1.0", **attributes}
        self.data = data

    def get_attributes(self) -> dict[str, Any]:
        return self.attributes

    def get_data(self) -> Any:
        return self.data


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"id": None}, "missing: id"),
        ({"source": ""}, "'source': text that is not empty, not ''"),
        ({"type": 7}, "'type': text that is not empty, not a int"),
        ({"specversion": "0.3"}, "specversion '0.3': only 1.0"),
        ({"datacontenttype": ""}, "'datacontenttype': text that is not empty"),
        ({"datacontenttype": "text/plän"}, "ASCII"),
        ({"X-Correlation-ID": "1"}, "lower-case letters and digits"),
        ({"data": "1"}, "'data' is none"),
        ({"number": 2**31}, "32 bits"),
        ({"number": -(2**31) - 1}, "32 bits"),
        ({"share": 0.5}, "not float: write it as text"),
        ({"tags": ["a"]}, "not list: write it as text"),
        ({"time": datetime.datetime(2026, 1, 31)}, "no time zone"),
        ({"time": "31.1.2026"}, "RFC 3339"),
        ({"time": "2026-01-31T12:00:00"}, "RFC 3339"),
        ({"time": "2026-02-31T12:00:00Z"}, "'time': day"),
        ({"time": 0}, "RFC 3339"),
    ],
)
def test_an_event_that_breaks_the_specification_is_not_sent(
    attributes: dict[str, Any], reason: str, mode: Mode
) -> None:
    """The binding wants senders to be strict."""
    with pytest.raises(NotACloudEvent, match=reason) as caught:
        to_message(Plain(**attributes), mode=mode)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AMQPError)


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize(
    ("data", "content_type", "reason"),
    [
        ({"order": object()}, None, "object is not JSON serializable"),
        ({"share": float("nan")}, "application/json", "JSON"),
        ({"order": 4711}, "text/plain", "a dict cannot be encoded as 'text/plain'"),
        ("\ud800", None, "charset 'utf-8'"),
    ],
)
def test_data_that_cannot_be_encoded_is_an_error(data: Any, content_type: str | None, reason: str, mode: Mode) -> None:
    """And nothing is guessed: the repr of a dict is no text/plain."""
    with pytest.raises(EncodeError, match=reason):
        to_message(Plain(data, datacontenttype=content_type), mode=mode)


@pytest.mark.parametrize(("moment", "hours"), [(datetime.datetime.max, -1), (datetime.datetime.min, 1)])
def test_a_time_that_utc_does_not_have_is_not_sent(moment: datetime.datetime, hours: int) -> None:
    """It would be in a year of five digits, or in none."""
    zone = datetime.timezone(datetime.timedelta(hours=hours))
    with pytest.raises(NotACloudEvent, match="in UTC"):
        to_message(event(time=moment.replace(tzinfo=zone)))


@pytest.mark.parametrize("charset", ["ascii", "no-such"])
def test_text_beyond_its_charset_is_an_error(charset: str) -> None:
    """Also where the charset is unknown; structured mode has no charset but its own."""
    sent = event("ключ", datacontenttype=f"text/plain; charset={charset}")
    with pytest.raises(EncodeError, match=charset):
        to_message(sent, mode="binary")
    assert from_message(over_the_wire(to_message(sent))).get_data() == "ключ"


def test_what_is_no_event_no_mode_or_no_prefix_is_refused() -> None:
    """With what would be one."""
    with pytest.raises(TypeError, match="a CloudEvent of the package cloudevents, not dict"):
        to_message({"id": "1"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'structured' or 'binary', not 'batch'"):
        to_message(event(), mode="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cloudEvents:' or 'cloudEvents_', not 'ce-'"):
        to_message(event(), mode="binary", prefix="ce-")  # type: ignore[arg-type]


# --- what comes in -------------------------------------------------------------------------------

FULL = {**CORE, "specversion": "1.0"}


def test_an_event_without_a_time_gets_none() -> None:
    """The package would give it the present time, in both modes."""
    for message in (
        structured(FULL),
        over_the_wire(Message(b"", application_properties={f"cloudEvents:{name}": FULL[name] for name in FULL})),
    ):
        assert contents(from_message(message)) == (FULL, None)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
        "application/json",
        "application/json; charset=utf-8",
        None,
    ],
)
def test_json_with_a_specversion_is_an_event_however_it_is_labelled(content_type: str | None) -> None:
    """Gateways and SAP's own services set the content type as they like."""
    message = structured({**FULL, "data": {"KEY": [1]}}, content_type)
    assert is_cloudevent(message)
    assert from_message(message).get_data() == {"KEY": [1]}


def test_headers_that_cap_applications_add_are_kept() -> None:
    """CAP writes them beside the attributes, though CloudEvents forbids such names; they do not go out again."""
    message = structured({**FULL, "X-Correlation-ID": "c-1", "x-sap": {"a": 1}, "sappassport": "p", "data": {}})
    came = from_message(message)
    assert came.get_attributes() == {**FULL, "X-Correlation-ID": "c-1", "x-sap": {"a": 1}, "sappassport": "p"}
    with pytest.raises(NotACloudEvent, match="X-Correlation-ID"):
        to_message(came)


@pytest.mark.parametrize(
    "message",
    [
        structured({"data": {"order": 4711}, "X-Correlation-ID": "c-1"}, "application/json"),
        structured([FULL], "application/json"),
        structured(b"specversion", None),
        structured(b'{"specversion": "1.0"', "application/json"),
        structured(FULL, "text/plain"),
        Message(b"", application_properties={"specversion": "1.0", "cloudEvents:id": "1"}),
        Message(Sequence([1]), content_type="application/json"),
        Message(Value({"specversion": "1.0"})),
        Message(None),
    ],
)
def test_what_is_no_event_is_told_so(message: Message) -> None:
    """Such as what CAP sends as application/json for messages that are none."""
    message = over_the_wire(message)
    assert not is_cloudevent(message)
    with pytest.raises(NotACloudEvent, match="this message is no CloudEvent"):
        from_message(message)


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        ("application/cloudevents-batch+json", "a batch of CloudEvents, which is not supported"),
        ("application/cloudevents+avro", "an event format other than JSON"),
        ("application/cloudevents", "an event format other than JSON"),
    ],
)
def test_forms_that_are_not_supported_are_named(content_type: str, reason: str) -> None:
    """Not read as something else."""
    message = structured([FULL], content_type)
    assert not is_cloudevent(message)
    with pytest.raises(NotACloudEvent, match=reason):
        from_message(message)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "the body should be JSON"),
        (b"\xff", "the body should be JSON"),
        (b"[" * 100_000, "the body should be JSON"),
        (b"9" * 5000, "the body should be JSON"),
        (b'{"specversion": NaN}', "the body should be JSON"),
        ([], "no object: a list"),
        ({}, "missing: id, source, type, specversion"),
        ({**FULL, "id": None}, "missing: id"),
        ({**FULL, "id": 4711}, "'id': text that is not empty, not a int"),
        ({**FULL, "subject": ""}, "'subject': text that is not empty, not ''"),
        ({**FULL, "specversion": "0.1"}, "specversion '0.1'"),
        ({**FULL, "time": "yesterday"}, "'time': RFC 3339"),
        ({**FULL, "time": "20260131T120000Z"}, "'time': RFC 3339"),
        ({**FULL, "time": "2026-01-31T12:00:60Z"}, "'time': second"),
        ({**FULL, "share": 0.5}, "'share': text, an integer or a boolean, not a float"),
        ({**FULL, "tags": []}, "'tags': text, an integer or a boolean, not a list"),
        ({**FULL, "data": 1, "data_base64": "AA=="}, "both data and data_base64"),
        ({**FULL, "data_base64": "A"}, "no base64"),
        ({**FULL, "data_base64": "äöü"}, "no base64"),
        ({**FULL, "data_base64": 7}, "no base64"),
    ],
)
def test_a_structured_event_that_is_not_valid_says_why(document: Any, reason: str) -> None:
    """And nothing else escapes from a body that anyone may have written."""
    message = structured(document)
    assert is_cloudevent(message)
    with pytest.raises(NotACloudEvent, match=reason):
        from_message(message)


def binary(
    body: Any = b"", content_type: str | None = None, prefix: str = "cloudEvents:", **attributes: Any
) -> Message:
    """As another client sends it."""
    properties = {f"{prefix}{name}": value for name, value in {**FULL, **attributes}.items()}
    return over_the_wire(Message(body, content_type=content_type, application_properties=properties))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"source": None}, "missing: source"),
        ({"id": 7}, "'id': text that is not empty, not a int"),
        ({"time": "soon"}, "'time': RFC 3339"),
        ({"time": True}, "'time': RFC 3339"),
        ({"time": timestamp(2**62)}, "beyond the year 9999"),
        ({"until": timestamp(-(2**62))}, "before the year 1"),
        ({"share": 0.5}, "'share': an AMQP float stands for no type"),
        ({"data": "x"}, "data"),
    ],
)
def test_a_binary_event_that_is_not_valid_says_why(attributes: dict[str, Any], reason: str) -> None:
    """Attributes of other types than CloudEvents has, and values out of range."""
    message = binary(**attributes)
    assert is_cloudevent(message)
    with pytest.raises(NotACloudEvent, match=reason):
        from_message(message)


def test_a_binary_event_may_spell_its_attributes_in_several_ways() -> None:
    """Times as timestamps or text, any integer type, symbols for strings, both prefixes."""
    came = from_message(binary(time="2026-01-31t12:00:00z", number=uint(7), kind=symbol("a"), key=uuid.UUID(int=1)))
    assert came.get_time() == NOON
    assert came.get_extension("number") == 7
    assert [type(came.get_extension(name)) for name in ("number", "kind", "key")] == [int, str, str]
    assert from_message(binary(time=timestamp(1769860800000), prefix="cloudEvents_")).get_time() == NOON
    both = Message(b"", application_properties={f"cloudEvents_{name}": value for name, value in FULL.items()})
    (both.application_properties or {})["cloudEvents:id"] = "the colon's"
    assert from_message(over_the_wire(both)).get_id() == "the colon's"


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b"", "application/json", None),
        (b"{}", "application/json", {}),
        (b"{}", None, b"{}"),
        (b"text", "application/octet-stream", b"text"),
        ("ключ".encode("cp1251"), "text/plain; charset=windows-1251", "ключ"),
        (Data(b"te", b"xt"), "text/plain", "text"),
        (Value("text"), "text/plain", "text"),
        (Value("{}"), "application/json", {}),
        (Value(b"{}"), "application/json", {}),
        (None, "application/json", None),
    ],
)
def test_data_arrives_as_its_content_type_says(body: Any, content_type: str | None, data: Any) -> None:
    """Never by what it looks like; a JMS text is one, too."""
    came = from_message(binary(body, content_type))
    assert came.get_data() == data
    assert came.get_datacontenttype() == content_type


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"hello", "application/json", "the data should be JSON"),
        (b"\xff", "text/plain", "cannot be decoded with the charset 'utf-8'"),
        (b"a", "text/plain; charset=no-such", "charset 'no-such'"),
        (b"{}", "application/json; charset=hex", "charset 'hex'"),
        (Sequence([1]), None, "data section"),
        (Value(7), None, "data section"),
    ],
)
def test_data_that_is_not_what_it_is_said_to_be_is_an_error(body: Any, content_type: str | None, reason: str) -> None:
    """Better than a str one time and bytes another."""
    with pytest.raises(NotACloudEvent, match=reason):
        from_message(binary(body, content_type))


def test_a_malformed_message_is_the_codecs_error() -> None:
    """Not an event that is none: the caller may want to reject it for another reason."""
    message = Message.decode(to_message(event({})).encode()[:-1])
    with pytest.raises(DecodeError):
        from_message(message)
    with pytest.raises(DecodeError):
        is_cloudevent(message)


@given(
    st.binary() | st.text().map(str.encode), st.sampled_from([None, "application/json", "application/cloudevents+json"])
)
def test_no_body_makes_anything_else_escape(body: bytes, content_type: str | None) -> None:
    """Whatever is in it."""
    message = over_the_wire(Message(body, content_type=content_type))
    with pytest.raises(NotACloudEvent):
        from_message(message)


@pytest.mark.parametrize(
    "message",
    [
        structured({**FULL, "data": CANARY, "time": CANARY}),
        structured({**FULL, "data_base64": CANARY}),
        structured(CANARY.encode()),
        binary(CANARY.encode(), "application/json"),
        binary(b"{}", time=CANARY),
    ],
)
def test_errors_show_nothing_of_an_event(message: Message) -> None:
    """Neither its data nor its attributes: errors end up in logs."""
    with pytest.raises(NotACloudEvent) as caught:
        from_message(message)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


# --- the whole way -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_an_event_goes_through_an_event_mesh(mode: Mode) -> None:
    """Published to a topic, received from a queue that subscribes to it, the same event."""
    async with EventMesh(tls=False) as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/ce/*")
        sent = event({"order": 4711}, datacontenttype="application/json")
        async with eventmesh.connect(mesh.service_key()) as connection:
            async with connection.sender("topic:${namespace}/ce/order/created") as sender:
                await sender.send(to_message(sent, mode=mode))
            async with connection.receiver("queue:${namespace}/orders") as receiver:
                delivery = await receiver.receive()
                assert contents(from_message(delivery.message)) == contents(sent)
                await delivery.accept()


# --- without the package -------------------------------------------------------------------------


def test_without_the_package_the_import_says_what_to_install() -> None:
    """Also with one of 1.x, which lacks the part that is used."""
    program = "import sys; sys.modules['cloudevents.core'] = None; import amqpws_async.eventmesh.cloudevents"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'amqpws-async[cloudevents]'" in run.stderr.splitlines()[-1]
