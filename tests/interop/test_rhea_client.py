"""rhea, an independent implementation, as the client of the embedded broker, and of what our client puts there."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.codec import int32, symbol, ubyte, ulong
from tests.interop import fetch
from tests.interop.brokers import CREDENTIALS, HERE, Peer

RHEA_TIMEOUT = 20.0  # seconds for one run of the script


@pytest.fixture
def broker(running: Callable[[str], Peer]) -> Peer:
    """The embedded broker, and the certainty that rhea is there."""
    try:
        fetch.node_modules()
    except fetch.MissingTool as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    return running("embedded")


async def rhea(*arguments: str, **environment: str) -> list[Any]:
    """Runs the script as a client, and gives the JSON lines it prints."""
    process = await asyncio.create_subprocess_exec(
        fetch.tool("node", "Node.js"),
        str(HERE / "rhea_peer.js"),
        *arguments,
        env={**os.environ, "NODE_PATH": str(fetch.node_modules()), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RHEA_TIMEOUT):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, errors.decode()) == (0, "")
    return [json.loads(line) for line in output.splitlines()]


async def test_rhea_sends_what_we_receive(broker: Peer, queue: str) -> None:
    """Every message of rhea's sender is accepted by the broker, and read by our client as rhea meant it."""
    count = 2_000
    assert await rhea("send", broker.url, queue, str(count)) == [{"sent": count, "outcomes": {"accepted": count}}]
    seen: Counter[int] = Counter()
    async with amqp.connect(broker.url) as connection, connection.receiver(queue) as receiver:
        for number in range(count):
            async with asyncio.timeout(RHEA_TIMEOUT):
                delivery = await receiver.receive()
            message = delivery.message
            assert message.message_id == f"id-{number}"
            assert (message.subject, message.content_type) == ("from rhea", "application/json")
            assert message.creation_time == 1_700_000_000_000 + number
            assert message.application_properties == {
                "number": number,
                "even": number % 2 == 0,
                "text": "grüße",
                "half": number + 0.5,
            }
            assert message.message_annotations == {"x-opt-number": number}
            if number % 2:
                assert message.body == json.dumps({"number": number}, separators=(",", ":")).encode()
            else:
                assert message.body == amqp.Value({"number": number, "list": [1, "two", None, True]})
            seen[number] += 1
            await delivery.accept()
    assert seen == Counter(range(count))


async def test_rhea_receives_what_we_send(broker: Peer, queue: str) -> None:
    """What our codec writes, rhea reads: properties, annotations, and every kind of body."""
    async with amqp.connect(broker.url) as connection, connection.sender(queue) as sender:
        await sender.send(
            amqp.Message(
                "grüße".encode(),
                durable=True,
                priority=9,
                message_id="id",
                to="somewhere",
                subject="subject",
                reply_to="back",
                correlation_id="other",
                content_type="text/plain",
                creation_time=1_700_000_000_000,
                group_id="group",
                group_sequence=3,
                message_annotations={"x-opt-a": ulong(5)},
                application_properties={
                    "yes": True,
                    "small": ubyte(7),
                    "text": "ü",
                    "half": 0.5,
                    "symbol": symbol("s"),
                },
            )
        )
        await sender.send(amqp.Message(amqp.Value({"list": [1, None, "three"], "deep": {"int": int32(-1)}})))
        await sender.send(amqp.Message(amqp.Sequence([1, "two"])))
        await sender.send(amqp.Message(amqp.Value("x" * 100_000)))
    first, second, third, fourth, summary = await rhea("receive", broker.url, queue, "4")
    assert first.pop("body") == {"section": 0x75, "content": "grüße"}
    assert first == {
        "durable": True,
        "priority": 9,
        "message_id": "id",
        "to": "somewhere",
        "subject": "subject",
        "reply_to": "back",
        "correlation_id": "other",
        "content_type": "text/plain",
        "creation_time": "2023-11-14T22:13:20.000Z",
        "group_id": "group",
        "group_sequence": 3,
        "message_annotations": {"x-opt-a": 5},
        "application_properties": {"yes": True, "small": 7, "text": "ü", "half": 0.5, "symbol": "s"},
    }
    assert second["body"] == {"list": [1, None, "three"], "deep": {"int": -1}}
    assert third["body"] == {"section": 0x76, "content": [1, "two"]}
    assert fourth["body"] == "x" * 100_000
    assert summary == {"received": 4}


async def test_rhea_settles_in_every_way(broker: Peer, queue: str) -> None:
    """Released comes back uncounted, modified comes back counted, rejected is a dead letter with rhea's reason."""
    async with amqp.connect(broker.url) as connection, connection.sender(queue) as sender:
        await sender.send(amqp.Message(b"handed about", message_id=queue))
        [summary] = await rhea("settle", broker.url, queue, "release,modify,release,modify,reject")
        assert summary == {"delivery_counts": [0, 0, 1, 1, 2]}
        async with connection.receiver("dead-letter") as receiver, asyncio.timeout(RHEA_TIMEOUT):
            async for delivery in receiver:  # other tests reject too
                await delivery.accept()
                if delivery.message.message_id == queue:
                    break
    annotations = delivery.message.message_annotations
    assert annotations["x-opt-dead-letter-condition"] == "amqp:not-allowed"
    assert annotations["x-opt-dead-letter-description"] == "by rhea"


async def test_rhea_asks_and_our_client_answers(broker: Peer, queue: str) -> None:
    """Rhea's dynamic source gets an address from the broker; our replies to it arrive there."""

    async def answer() -> None:
        async with (
            amqp.connect(broker.url) as connection,
            connection.receiver(queue) as questions,
            connection.sender(None) as answers,
        ):
            for _ in range(20):
                question = await questions.receive()
                body = question.body
                assert isinstance(body, amqp.Value)
                await answers.send(
                    amqp.Message(
                        amqp.Value(f"re: {body.value}"),
                        to=question.message.reply_to,
                        correlation_id=question.message.message_id,
                    )
                )
                await question.accept()

    async with asyncio.timeout(RHEA_TIMEOUT), asyncio.TaskGroup() as group:
        group.create_task(answer())
        asked = group.create_task(rhea("request", broker.url, queue, "20"))
    assert asked.result() == [{"replies": [[f"request-{number}", f"re: question {number}"] for number in range(20)]}]


async def test_rhea_logs_in_with_plain(broker: Peer, queue: str) -> None:
    """Rhea's PLAIN is accepted by the broker that demands it."""
    assert await rhea("send", broker.login_url, queue, "10", **CREDENTIALS) == [
        {"sent": 10, "outcomes": {"accepted": 10}}
    ]


async def test_four_of_each_share_a_queue(broker: Peer, queue: str) -> None:
    """Four rhea senders and four rhea receivers, all at once: every message arrives once."""
    each = 500
    async with asyncio.TaskGroup() as group:
        senders = [group.create_task(rhea("send", broker.url, queue, str(each))) for _ in range(4)]
        receivers = [group.create_task(rhea("receive", broker.url, queue, str(each))) for _ in range(4)]
    assert [task.result()[-1]["outcomes"] for task in senders] == [{"accepted": each}] * 4
    arrived = Counter(line["message_id"] for task in receivers for line in task.result()[:-1])
    assert arrived == {f"id-{number}": 4 for number in range(each)}
