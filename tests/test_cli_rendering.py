"""How ``amqpws receive`` writes messages: every section and type as JSON, bodies as text."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from proton import Data as AmqpType

import amqpws_async as amqp
from amqpws_async.cli import main
from tests.cli_command import broker


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with broker() as (url, _):
        yield url


def put(url: str, address: str, *messages: amqp.Message | bytes) -> None:
    async def send() -> None:
        async with amqp.connect(url) as connection, connection.sender(address) as sender:
            for message in messages:
                await sender.send(message)

    asyncio.run(send())


def lines(capfd: pytest.CaptureFixture[str], url: str, address: str, *messages: amqp.Message | bytes) -> list[Any]:
    """Sends the messages, and gives what the command makes of them."""
    put(url, address, *messages)
    assert main(["receive", url, address, "--json", "--count", str(len(messages))]) == 0
    return [json.loads(line, parse_constant=pytest.fail) for line in capfd.readouterr().out.splitlines()]


def test_every_section_has_its_key(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Fields that are set are there by the specification's names, others are not."""
    message = amqp.Message(
        b"body",
        durable=True,
        ttl=60.0,
        message_id=uuid.UUID(int=1),
        user_id=b"\x00u",
        creation_time=amqp.timestamp(1_700_000_000_123),
        group_sequence=5,
        delivery_annotations={"x-opt-d": 1},
        message_annotations={"x-opt-m": amqp.symbol("s")},
        application_properties={"k": "v"},
        footer={"x-opt-f": b"\xff"},
    )
    (line,) = lines(capfd, url, "sections", message)
    assert line["body"] == "body"
    assert line["header"]["durable"] is True
    assert line["header"]["ttl"] == 60.0
    assert line["properties"] == {
        "message_id": "00000000-0000-0000-0000-000000000001",
        "user_id": {"base64": "AHU="},
        "creation_time": "2023-11-14T22:13:20.123Z",
        "group_sequence": 5,
    }
    assert line["delivery_annotations"] == {"x-opt-d": 1}
    assert line["message_annotations"] == {"x-opt-m": "s"}
    assert line["application_properties"] == {"k": "v"}
    assert line["footer"] == {"x-opt-f": {"base64": "/w=="}}
    assert bytes.fromhex(line["tag"])


def test_every_type_has_a_form_in_json(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """No value breaks the line, also none that JSON lacks."""
    values: dict[Any, Any] = {
        "null": None,
        "nan": math.nan,
        "infinity": -math.inf,
        "float": amqp.float32(1.5),
        "ulong": amqp.ulong(2**64 - 1),
        "char": amqp.char("ü"),
        "line": "a\nb\u2028\x9b",
        "old": amqp.timestamp(-1),
        "far": amqp.timestamp(2**62),
        "described": amqp.Described(amqp.symbol("d"), [1, b"x"]),
        "array": amqp.Array(amqp.UNDESCRIBED, AmqpType.LONG, 1, 2),
        "decimal": amqp.decimal128(bytes(16)),
        "map": {1: {"inner": uuid.UUID(int=2)}},
    }
    (line,) = lines(capfd, url, "types", amqp.Message(amqp.Value(values)))
    body = line["body_value"]
    assert body["null"] is None
    assert (body["nan"], body["infinity"], body["float"]) == ("nan", "-inf", 1.5)
    assert (body["ulong"], body["char"], body["line"]) == (2**64 - 1, "ü", "a\nb\u2028\x9b")
    assert (body["old"], body["far"]) == ("1969-12-31T23:59:59.999Z", 2**62)
    assert body["described"] == {"descriptor": "d", "value": [1, {"base64": "eA=="}]}
    assert body["array"] == [1, 2]
    assert body["decimal"] == {"base64": "AAAAAAAAAAAAAAAAAAAAAA=="}
    assert body["map"] == {"1": {"inner": "00000000-0000-0000-0000-000000000002"}}


def test_every_kind_of_body_has_its_key(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """A reader tells text from bytes, values and sequences by the key alone."""
    text, data, several, value, sequence, none = lines(
        capfd,
        url,
        "bodies",
        amqp.Message("é".encode()),
        amqp.Message(b"\xff"),
        amqp.Message(amqp.Data(b"a", b"b")),
        amqp.Message(amqp.Value(7)),
        amqp.Message(amqp.Sequence([1], ["two"])),
        amqp.Message(),
    )
    assert text["body"] == "é"
    assert data["body_base64"] == "/w=="
    assert several["body"] == "ab"
    assert value["body_value"] == 7
    assert sequence["body_sequence"] == [[1], ["two"]]
    assert none["body"] is None


def test_message_that_cannot_be_decoded_is_kept_as_raw_bytes(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """JSON has its bytes and the reason; text refuses it and leaves it with the broker."""
    broken = b"\x00\x53\x74\xc1\x05\x02\xa1\x01k\xff\x00\x53\x75\xa0\x01x"  # a property of a type that does not exist
    put(url, "broken", broken)
    assert main(["receive", url, "broken", "--json", "--count", "1", "--browse"]) == 0
    line = json.loads(capfd.readouterr().out)
    assert line["raw_base64"] == "AFN0wQUCoQFr/wBTdaABeA=="
    assert line["error"]


def test_text_of_bodies_that_are_no_bytes_is_json(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Values and sequences are written as JSON, no body as an empty line."""
    put(
        url,
        "texts",
        amqp.Message(amqp.Value({"a": 1})),
        amqp.Message(amqp.Sequence([1], [2])),
        amqp.Message(amqp.Data(b"a", b"b")),
        amqp.Message(b""),
    )
    assert main(["receive", url, "texts", "--count", "4"]) == 0
    assert capfd.readouterr().out == '{"a": 1}\n[[1], [2]]\nab\n\n'


def test_text_of_a_body_that_cannot_be_decoded_is_refused(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """The message goes back to the broker, and --json is named as the way out."""
    put(url, "undecodable", b"\x00\x53\x77\xa1\x01\xff")
    assert main(["receive", url, "undecodable", "--count", "1"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "--json" in captured.err
    assert main(["receive", url, "undecodable", "--count", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["raw_base64"] == "AFN3oQH/"
