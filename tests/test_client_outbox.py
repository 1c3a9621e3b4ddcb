"""The outbox: every message has one fate, in order, and whoever asked learns of it, whatever broker and callers do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.client.outbox import Outbox, OutboxOptions, OutboxStatistics, PoisonedMessage, disk, pump
from amqpws_async.client.outbox.ledger import copied
from amqpws_async.errors import OutboxError, OutboxFull, OutboxUnsent, StopReason
from amqpws_async.testing import Broker

from .outbox_desk import HOLD, LOST, Desk, Fate, no_thread_is_left, opened, stored, until
from .peer import PATIENCE
from .test_cancellation import interrupted
from .test_promises import soon, turns

assert no_thread_is_left

MESSAGE = amqp.Message(b"one")
LONG = 3600.0  # seconds: what waits so long, waits for ever


def message(body: bytes) -> amqp.Message:
    return amqp.Message(body)


def bodies(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


async def fill(outbox: Outbox, *numbers: int) -> None:
    for body in bodies(*numbers):
        await outbox.send(message(body))


def hold(_: amqp.Message) -> Any:
    return HOLD


def once(outcome: Any, *which: bytes) -> Callable[[amqp.Message], Any]:
    """An answer for the first time that each of these bodies comes; all else is accepted."""
    left: list[Any] = list(which)

    def answer(message: amqp.Message) -> Any:
        if message.body in left:
            left.remove(message.body)
            return outcome
        return amqp.Accepted()

    return answer


@pytest.fixture(params=["memory", "disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where messages are: both kinds behave the same, but where a test says otherwise."""
    return None if request.param == "memory" else tmp_path / "o"


# --- cancelled -----------------------------------------------------------------------------------


async def at_every_point(operation: Callable[[int], Awaitable[Coroutine[Any, Any, Any]]], woken: bool) -> int:
    """Runs what an operation gives, cancelled one point later each time, until it gets through."""
    for point in range(200):
        coroutine = await operation(point)
        task = asyncio.create_task(_cancelled(coroutine, point, woken))
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()
            return point
    raise AssertionError


async def _cancelled(coroutine: Coroutine[Any, Any, Any], point: int, woken: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    await interrupted(coroutine, point, task.cancel, woken)


woken = pytest.mark.parametrize("woken", [False, True], ids=["waiting", "woken"])


@woken
async def test_a_program_cancelled_at_every_await_leaves_something(path: Path | None, woken: bool) -> None:
    """Neither task nor thread is left, the file is free, the sender is left, and what was acknowledged is sent."""
    desks: list[Desk] = []
    acknowledged: list[bytes] = []

    async def program(point: int) -> None:
        desk = Desk(lambda given: amqp.Rejected() if given.body == b"evil" else amqp.Accepted())
        desks.append(desk)
        async with Outbox(desk, path, max_messages=2, close_timeout=0.5) as outbox:
            for number in range(4):
                body = b"%d %d" % (point, number)
                await outbox.send(message(body))
                acknowledged.append(body)
            await outbox.send(MESSAGE, wait="settled")
            await outbox.send(message(b"evil"))
            await outbox.flush()
            assert await outbox.poisoned()
            desk.answer = lambda _: amqp.Accepted()
            assert await outbox.retry_poisoned()
            await outbox.flush()

    async def operation(point: int) -> Coroutine[Any, Any, Any]:
        if desks:
            await turns()
            assert desks[-1].closed, point
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return program(point)

    assert await at_every_point(operation, woken) > (10 if path is not None else 3)
    if path is not None:
        last = await stored(path)
        assert set(acknowledged) <= {*last, *(body for desk in desks for body in desk.bodies)}


@woken
async def test_a_send_cancelled_as_it_waits_for_room_is_stored(path: Path | None, woken: bool) -> None:
    """Cancelled while it waits for room it stores nothing, and who waits behind it gets the room."""
    for point in range(2):
        desk = Desk(once(HOLD, b"one"))
        async with opened(desk, path, max_messages=1) as outbox:
            await outbox.send(MESSAGE)
            first = asyncio.create_task(_cancelled(outbox.send(message(b"first")), point, woken))
            second = asyncio.create_task(outbox.send(message(b"second")))
            await until(lambda desk=desk: desk.fates)  # type: ignore[misc]
            await turns()
            assert not second.done()
            desk.fates[0].settle()
            await soon(second)
            await asyncio.wait([first])
            await soon(outbox.flush())
            if point == 0 and not woken:
                assert first.cancelled()
                assert desk.bodies == [b"one", b"second"]
            else:
                assert {*desk.bodies, b"first"} == {b"one", b"first", b"second"}
        if path is not None:
            await stored(path)


async def test_a_send_cancelled_later_is_miscounted(path: Path | None) -> None:
    """Cancelled while it is stored, or waits for its outcome, the message is sent and counted as any other."""
    desk = Desk(hold)
    async with opened(desk, path) as outbox:
        for body, wait in ((b"0", "stored"), (b"1", "settled")):
            sending = asyncio.create_task(outbox.send(message(body), wait=wait))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])
        await until(lambda: len(desk.fates) == 2)
        assert outbox.statistics.stored == outbox.statistics.in_flight == 2
        for fate in desk.fates:
            fate.settle()
        await soon(outbox.flush())
        assert outbox.statistics == OutboxStatistics(sent=2, commits=outbox.statistics.commits)


async def test_a_cancelled_flush_or_close_disturbs_others(path: Path | None) -> None:
    """Cancelling one of two who flush leaves the other; a cancelled close closes at once, for all who wait for it."""
    desk = Desk(hold)
    async with opened(desk, path, close_timeout=LONG) as outbox:
        await outbox.send(MESSAGE)
        flushes = [asyncio.create_task(outbox.flush()) for _ in range(2)]
        await until(lambda: desk.fates)
        flushes[0].cancel()
        await turns()
        assert not flushes[1].done()
        closes = [asyncio.create_task(outbox.close()) for _ in range(2)]
        await turns()
        with pytest.raises(amqp.LinkClosed, match="outbox to 'orders': link closed by us"):
            await soon(flushes[1])
        closes[0].cancel()
        assert await soon(closes[1]) == (0 if path is None else 1)
        assert outbox.state is amqp.EndpointState.CLOSED
        assert desk.closed == ["abandon"]


@pytest.mark.parametrize("seed", range(6))
async def test_random_events_lose_or_miscount_a_message(
    path: Path | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever peers, links and callers do at random: each message has one fate, and its caller knows."""
    dice = random.Random(seed)
    monkeypatch.setattr(pump, "READY_MESSAGES", dice.choice([1, 3, 1000]))
    kinds = [amqp.Accepted()] * 8 + [amqp.Released(), amqp.Rejected(), amqp.ConnectionClosed(LOST), HOLD, HOLD]
    desk = Desk(lambda _: dice.choice(kinds))
    accepted: list[Any] = []
    dropped: list[Any] = []
    told: dict[Any, str] = {}

    def settle() -> None:
        for fate in desk.fates:
            if fate.open and dice.random() < 0.5:
                fate.settle(dice.choice([*kinds[:10], amqp.DeliveryUnknown(fate.message, LOST)]))

    async def send(outbox: Outbox, task: int) -> None:
        for number in range(25):
            body = b"%d %d" % (task, number)
            wait: Any = dice.choice(["stored", "settled"])
            sending = asyncio.create_task(outbox.send(message(body), wait=wait))
            if dice.random() < 0.2:
                await turns(dice.randrange(4))
                sending.cancel()
            await asyncio.wait([sending])
            if sending.cancelled():
                continue
            error = sending.exception()
            told[body] = wait if error is None else type(error).__name__

    async with opened(
        desk,
        path,
        max_messages=dice.choice([1, 5, 1000]),
        overflow=dice.choice(["wait", "raise", "drop_oldest"]),
        in_flight=dice.choice([1, 4, 1000]),
        max_attempts=3,
        retry_interval=0.001,
        on_drop=lambda given, _: dropped.append(given.body),
    ) as outbox:
        senders = [asyncio.create_task(send(outbox, task)) for task in range(6)]
        async with asyncio.timeout(PATIENCE):
            while outbox.statistics.stored or not all(sender.done() for sender in senders):
                settle()
                await asyncio.sleep(0.001)
        for sender in senders:
            sender.result()
        accepted = [fate.message.body for fate in desk.fates if fate._outcome == amqp.Accepted()]
        poisoned = [poison.message.body for poison in await outbox.poisoned()]
        now = outbox.statistics
    assert (now.stored, now.bytes, now.in_flight) == (0, 0, 0)
    assert (now.sent, now.poisoned, now.dropped) == (len(accepted), len(poisoned), len(dropped))
    fates = [*accepted, *poisoned, *dropped]
    assert len(set(fates)) == len(fates), "one fate each"
    refused = {body for body, how in told.items() if how == "OutboxFull" and body not in dropped}
    assert refused.isdisjoint(fates)
    assert told.keys() - refused <= set(fates)
    assert {body for body, how in told.items() if how == "settled"} <= set(accepted)
    assert {body for body, how in told.items() if how.startswith("Message")} <= {*poisoned, *dropped}
    assert set(told.values()) <= {"stored", "settled", "OutboxFull", "MessageRejected", "MessageReleased"}
    ids: dict[Any, Any] = {}
    for fate in desk.fates:
        assert ids.setdefault(fate.message.body, fate.message.message_id) == fate.message.message_id
    for task in range(6):
        numbers = [int(body.split()[1]) for body in ids if body.startswith(b"%d " % task)]
        assert numbers == sorted(numbers), "in order, where they come for the first time"
    if path is not None:
        assert await stored(path) == []


# --- sending -------------------------------------------------------------------------------------


async def test_stored_waits_for_the_broker(path: Path | None) -> None:
    """`send` returns when the message is stored, with the broker away; settled, it waits for the outcome."""
    desk = Desk(hold)
    desk.starve()
    async with opened(desk, path) as outbox:
        await soon(outbox.send(MESSAGE))
        settled = asyncio.create_task(outbox.send(message(b"two"), wait="settled"))
        await until(lambda: outbox.statistics.stored == 2)
        desk.feed()
        await until(lambda: len(desk.fates) == 2)
        desk.fates[0].settle()
        await turns()
        assert not settled.done()
        desk.fates[1].settle()
        assert await soon(settled) == desk.fates[1].message.message_id


async def test_a_message_changes_or_has_no_id(path: Path | None) -> None:
    """A message without an id gets one of its own each time, and what the caller has stays as it was."""
    desk = Desk()
    template = amqp.Message(b"x", subject="s")
    raw = amqp.Message(b"y").encode()
    async with opened(desk, path) as outbox:
        given: tuple[Any, ...] = (template, template, raw, bytearray(raw))
        ids = [await outbox.send(one) for one in given]
        assert await outbox.send(amqp.Message(b"z", message_id="mine")) == "mine"
        assert await outbox.send(amqp.Message(b"z", message_id=7).encode()) == 7
        await outbox.flush()
    assert template == amqp.Message(b"x", subject="s")
    assert len({type(one) for one in ids}) == 1
    assert isinstance(ids[0], uuid.UUID)
    assert len(set(ids)) == 4
    assert [fate.message.message_id for fate in desk.fates] == [*ids, "mine", 7]
    assert [fate.message.body for fate in desk.fates] == [b"x", b"x", b"y", b"y", b"z", b"z"]
    assert desk.fates[0].message.subject == "s"


async def test_what_is_no_message_is_stored(path: Path | None) -> None:
    """It raises, and nothing is stored."""
    async with opened(Desk(), path) as outbox:
        with pytest.raises(TypeError, match="not str: try Message"):
            await outbox.send("text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="wrap a body in Message"):
            await outbox.send(b"text")
        with pytest.raises(ValueError, match="'stored' or 'settled', not 'sent'"):
            await outbox.send(MESSAGE, wait="sent")  # type: ignore[arg-type]
        with pytest.raises(amqp.EncodeError):
            await outbox.send(amqp.Message(amqp.Value(2**70)))
        assert outbox.statistics.stored == 0


async def test_the_order_is_lost(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages come in the order in which they were stored, also those that the pump has to read from the store."""
    monkeypatch.setattr(pump, "READY_MESSAGES", 5)
    desk = Desk()
    desk.starve()
    async with opened(desk, path) as outbox:
        await fill(outbox, *range(40))
        settled = asyncio.create_task(outbox.send(message(b"40"), wait="settled"))
        await until(lambda: outbox.statistics.stored == 41)
        desk.feed()
        await soon(settled)
        await soon(outbox.flush())
    assert desk.bodies == bodies(*range(41))


async def test_a_restart_forgets_or_reorders(tmp_path: Path) -> None:
    """What was not accepted is sent at the next start, the same bytes, before what is new."""
    first = Desk(lambda given: amqp.Accepted() if given.body == b"1" else HOLD)
    async with opened(first, tmp_path / "o", close_timeout=0.05) as outbox:
        await fill(outbox, 0, 1, 2, 3)
        await until(lambda: len(first.fates) == 4)
        first.fates[0].settle()
        await until(lambda: outbox.statistics.sent == 2)
    second = Desk()
    async with opened(second, tmp_path / "o") as outbox:
        await fill(outbox, 4)
        await outbox.flush()
        assert outbox.statistics.sent == 3
    assert second.bodies == bodies(2, 3, 4)
    assert [fate.message for fate in second.fates[:2]] == [fate.message for fate in first.fates[2:]]
    assert await stored(tmp_path / "o") == []


async def test_more_is_in_flight_than_asked(path: Path | None) -> None:
    """At most `in_flight` messages are without outcome, and each outcome lets one more go."""
    desk = Desk(hold)
    async with opened(desk, path, in_flight=3) as outbox:
        await fill(outbox, *range(6))
        await until(lambda: len(desk.fates) == 3)
        await turns()
        assert len(desk.fates) == outbox.statistics.in_flight == 3
        desk.fates[0].settle()
        await until(lambda: len(desk.fates) == 4)


async def test_a_real_broker_sees_something_else(path: Path | None) -> None:
    """With a broker and a sender of a connection, everything arrives once, and in order."""
    async with (
        Broker() as broker,
        amqp.connect(broker.url) as connection,
        Outbox(connection.sender("orders"), path, address="orders") as outbox,
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(outbox.send(message(b"%d" % number), wait="settled" if number % 3 else "stored"))
        await soon(outbox.flush())
        assert sorted(bytes(given.body) for given in broker.messages("orders")) == sorted(bodies(*range(100)))  # type: ignore[arg-type]
        broker.faults.detach_links()
        await until(lambda: outbox.error is not None)
        with pytest.raises(amqp.LinkClosed, match="detach-forced"):
            await outbox.send(MESSAGE)
        with contextlib.suppress(OutboxUnsent):
            await outbox.close()


async def test_an_outage_loses_or_reorders(path: Path | None) -> None:
    """With a client, messages are taken before there was a connection, and sent through outages, each in its turn."""
    broker = Broker(close_timeout=0.2)
    await broker.start()
    await broker.abort()
    backoff = amqp.Backoff(initial=0.01, maximum=0.02)
    async with amqp.Client(broker.url, background=True, backoff=backoff) as client:
        sender = client.sender("orders", on_unknown="resend", snd_settle_mode=amqp.SenderSettleMode.UNSETTLED)
        async with Outbox(sender, path, address="orders") as outbox:
            await fill(outbox, *range(10))
            for outage in range(1, 4):
                await broker.start()
                await outbox.send(message(b"%d" % (outage * 10)), wait="settled")
                await fill(outbox, *range(outage * 10 + 1, outage * 10 + 10))
                await broker.abort()
            await broker.start()
            await soon(outbox.flush())
    came = [int(bytes(given.body)) for given in broker.messages("orders")]  # type: ignore[arg-type]
    assert list(dict.fromkeys(came)) == list(range(40))
    ids = {(int(bytes(given.body)), given.message_id) for given in broker.messages("orders")}  # type: ignore[arg-type]
    assert len(ids) == 40
    await broker.close()


async def test_a_close_waits_for_a_broker_that_is_away_twice(tmp_path: Path) -> None:
    """When `close_timeout` has passed, the sender is not waited for, too."""
    desk = Desk(hold)
    outbox = await Outbox(desk, tmp_path / "o", close_timeout=0.05).open()
    await outbox.send(MESSAGE)
    await until(lambda: desk.fates)
    assert await soon(outbox.close()) == 1
    assert desk.closed == ["abandon"]


# --- room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_messages": 2}, {"max_bytes": 300}], ids=["messages", "bytes"])
async def test_a_full_outbox_takes_more(path: Path | None, limit: dict[str, Any]) -> None:
    """Full by count or by bytes, it takes nothing more until there is room, and then first come, first served."""
    desk = Desk(hold)
    async with opened(desk, path, **limit) as outbox:
        for _ in range(2):
            await outbox.send(message(bytes(100)))
        waiting = [asyncio.create_task(outbox.send(message(b"%d" % n + bytes(100)))) for n in range(3)]
        await until(lambda: len(desk.fates) == 2)
        await turns()
        assert outbox.statistics.stored == 2
        for count in range(3):
            desk.fates[count].settle()
            await soon(waiting[count])
            assert not any(task.done() for task in waiting[count + 1 :])
        await until(lambda: len(desk.fates) == 5)
        assert [bytes(fate.message.body)[:1] for fate in desk.fates[2:]] == bodies(0, 1, 2)  # type: ignore[arg-type]


async def test_a_full_outbox_raises_without_saying_why(path: Path | None) -> None:
    """It says which limit it is, and nothing is stored; a message that never fits raises by any policy."""
    desk = Desk(hold)
    async with opened(desk, path, max_messages=2, max_bytes=1000, overflow="raise") as outbox:
        with pytest.raises(OutboxFull, match=r"no room for \d+ bytes: it holds 0 of 1000 \(max_bytes\)") as caught:
            await outbox.send(message(bytes(2000)))
        assert caught.value.size > 2000
        await outbox.send(message(bytes(700)))
        with pytest.raises(OutboxFull, match="max_bytes") as caught:
            await outbox.send(message(bytes(700)))
        assert caught.value.size > 1400
        assert caught.value.limit == 1000
        await outbox.send(MESSAGE)
        with pytest.raises(OutboxFull, match=r"it holds 2 messages \(max_messages\)") as caught:
            await outbox.send(MESSAGE)
        assert (caught.value.size, caught.value.limit) == (3, 2)
        await until(lambda: len(desk.fates) == 2)
    async with opened(Desk(), max_bytes=1000) as outbox:
        with pytest.raises(OutboxFull):
            await soon(outbox.send(message(bytes(2000))))


async def test_the_wrong_message_is_dropped(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest that is not in flight is dropped, also if it has to be read first, and is reported."""
    monkeypatch.setattr(pump, "READY_MESSAGES", 2)
    dropped: list[Any] = []
    desk = Desk(hold)
    async with opened(
        desk, path, max_messages=8, overflow="drop_oldest", in_flight=1, on_drop=lambda *given: dropped.append(given)
    ) as outbox:
        await fill(outbox, 0)
        await until(lambda: desk.fates)
        settled = asyncio.create_task(outbox.send(message(b"1"), wait="settled"))
        await until(lambda: outbox.statistics.stored == 2)
        await fill(outbox, *range(2, 14))
        with pytest.raises(OutboxFull) as caught:
            await soon(settled)
        assert caught.value.__notes__ == ["the message was dropped for a newer one"]
        assert [given.body for given, _ in dropped] == bodies(*range(1, 7))
        assert "newer messages came (overflow)" in dropped[0][1]
        assert outbox.statistics.dropped == 6
        assert outbox.statistics.stored == 8
        desk.answer = lambda _: amqp.Accepted()
        desk.fates[0].settle()
        await soon(outbox.flush())
        assert desk.bodies == bodies(0, *range(7, 14))
    if path is not None:
        assert await stored(path) == []


async def test_a_message_in_flight_is_dropped(path: Path | None) -> None:
    """While all is in flight there is nothing to drop, and `send` waits."""
    desk = Desk(hold)
    async with opened(desk, path, max_messages=2, overflow="drop_oldest") as outbox:
        await fill(outbox, 0, 1)
        await until(lambda: len(desk.fates) == 2)
        third = asyncio.create_task(outbox.send(message(b"2")))
        await turns()
        assert not third.done()
        desk.fates[0].settle(amqp.Released())  # it waits to be sent again, so now there is one
        await soon(third)
        assert outbox.statistics.dropped == 1


async def test_a_report_that_fails_stops_the_outbox(path: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    """What `on_drop` and `on_poison` raise is logged, and all goes on."""

    def fails(*_: object) -> Any:
        raise RuntimeError("by the test")

    async with opened(Desk(lambda _: amqp.Rejected()), path, on_drop=fails, on_poison=fails) as outbox:
        await outbox.send(MESSAGE)
        await outbox.flush()
        assert outbox.statistics.poisoned == 1
    async with opened(Desk(lambda _: amqp.Rejected()), path, on_drop=fails, on_poison="drop") as outbox:
        await outbox.send(MESSAGE)
        await outbox.flush()
        assert outbox.statistics.dropped == 1
    assert "on_poison failed" in caplog.text
    assert "on_drop failed" in caplog.text


# --- not accepted --------------------------------------------------------------------------------

AGAIN = [amqp.Released(), amqp.Modified(delivery_failed=True), amqp.NoOutcome()]


@pytest.mark.parametrize("outcome", AGAIN, ids=lambda outcome: type(outcome).__name__)
async def test_what_comes_back_overtakes_or_is_overtaken(path: Path | None, outcome: Any) -> None:
    """What was not taken is sent again, the same bytes, before anything new and in its order."""
    desk = Desk(once(outcome, b"1", b"3"))
    async with opened(desk, path, in_flight=5) as outbox:
        desk.starve()
        await fill(outbox, *range(8))
        desk.feed()
        await soon(outbox.flush())
        assert outbox.statistics.retried == 2
    assert desk.bodies == bodies(0, 1, 2, 3, 4, 1, 3, 5, 6, 7)
    assert desk.fates[5].message == desk.fates[1].message


async def test_what_comes_back_comes_at_once_or_for_ever(path: Path | None) -> None:
    """The time doubles with every attempt, up to the limit; after so many attempts it is poison."""
    times: list[float] = []
    loop = asyncio.get_running_loop()

    def answer(_: amqp.Message) -> Any:
        times.append(loop.time())
        return amqp.Released()

    async with opened(
        Desk(answer), path, max_attempts=5, retry_interval=0.02, max_retry_interval=0.05, wait="settled"
    ) as outbox:
        with pytest.raises(amqp.MessageReleased):
            await soon(outbox.send(MESSAGE))
        (poison,) = await outbox.poisoned()
        assert poison.attempts == 5
    delays = [after - before for before, after in itertools.pairwise(times)]
    assert len(delays) == 4
    assert all(delay >= least - 0.002 for delay, least in zip(delays, (0.02, 0.04, 0.05, 0.05), strict=True))


async def test_a_restart_forgets_the_attempts(tmp_path: Path) -> None:
    """How often a message came back is kept in the file."""
    desk = Desk(lambda _: amqp.Released())
    async with opened(desk, tmp_path / "o", max_attempts=100, retry_interval=0.001) as outbox:
        await outbox.send(MESSAGE)
        await until(lambda: len(desk.fates) >= 4)
    async with opened(Desk(lambda _: amqp.Released()), tmp_path / "o", max_attempts=4) as outbox:
        await soon(outbox.flush())
        (poison,) = await outbox.poisoned()
        assert poison.attempts >= 4


POISONS = [
    (amqp.Rejected(amqp.ErrorCondition("amqp:decode-error", "no good")), amqp.MessageRejected, "no good"),
    (amqp.Modified(undeliverable_here=True), amqp.MessageModified, "given back"),
    (amqp.MessageTooLarge(9, 3), amqp.MessageTooLarge, "max-message-size of 3"),
]


@pytest.mark.parametrize(("answer", "error", "reason"), POISONS, ids=["rejected", "undeliverable", "too large"])
async def test_poison_blocks_or_vanishes(
    path: Path | None, answer: Any, error: type[Exception], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is set aside at once, out of the way and over restarts; whoever waits is told; it can be sent or deleted."""
    desk = Desk(lambda given: answer if bytes(given.body).startswith(b"evil") else amqp.Accepted())  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(opened(desk, path))
        with pytest.raises(error, match=reason):
            await soon(outbox.send(message(b"evil 0"), wait="settled"))
        for body in (b"evil 1", b"good", b"evil 2"):
            await outbox.send(message(body))
        await soon(outbox.flush())
        assert caplog.text.count("set aside message UUID") == 1
        assert "evil" not in caplog.text
        if path is not None:
            await stack.aclose()
            desk.stop = None
            outbox = await stack.enter_async_context(opened(desk, path))
        poisons = await outbox.poisoned()
        assert [poison.message.body for poison in poisons] == [b"evil 0", b"evil 1", b"evil 2"]
        assert all(reason in poison.reason and poison.poisoned_at >= poison.stored_at > 0 for poison in poisons)
        assert outbox.statistics.poisoned == 3
        assert await outbox.poisoned(after=poisons[0].sequence, limit=1) == poisons[1:2]
        assert await outbox.discard_poisoned([poisons[0].sequence, 999]) == 1
        before = len(desk.fates)
        desk.answer = lambda _: amqp.Accepted()
        assert await outbox.retry_poisoned() == 2
        assert await outbox.retry_poisoned() == 0
        await soon(outbox.flush())
        assert desk.bodies[before:] == [b"evil 1", b"evil 2"]
        assert outbox.statistics.poisoned == 0
        await outbox.send(MESSAGE, wait="settled")
    if path is not None:
        assert await stored(path) == []


async def test_poison_moved_back_is_never_sent(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved back in the same turn as others are stored, every message is sent."""
    monkeypatch.setattr(pump, "READY_MESSAGES", 3)
    desk = Desk(lambda _: amqp.Rejected())
    async with opened(desk, path) as outbox:
        for _ in range(3):
            await fill(outbox, *range(5))
            await soon(outbox.flush())
        desk.answer = lambda _: amqp.Accepted()
        before = len(desk.fates)
        async with asyncio.TaskGroup() as group:
            group.create_task(outbox.send(message(b"5")))
            group.create_task(outbox.retry_poisoned())
            group.create_task(outbox.send(message(b"6")))
        await soon(outbox.flush())
        assert sorted(desk.bodies[before:]) == sorted(bodies(*range(5)) * 3 + bodies(5, 6))
        assert outbox.statistics.poisoned == 0


async def test_poison_is_kept_against_the_policy(path: Path | None) -> None:
    """`on_poison` drops it, or asks; and what there is no room for is dropped, too."""
    seen: list[PoisonedMessage] = []
    dropped: list[Any] = []

    def on_drop(given: amqp.Message, reason: str) -> None:
        dropped.append((given.body, reason))

    def verdict(poison: PoisonedMessage) -> Any:
        seen.append(poison)
        return "drop" if poison.message.body == b"1" else None

    desk = Desk(lambda _: amqp.Rejected())
    async with opened(
        desk,
        path,
        on_poison=verdict,
        max_messages=2,
        on_drop=on_drop,
    ) as outbox:
        await fill(outbox, 0, 1, 2, 3)
        await soon(outbox.flush())
        assert [poison.message.body for poison in await outbox.poisoned()] == bodies(0, 2)
        assert [body for body, _ in dropped] == bodies(1, 3)
        assert "there is no room to set it aside" in dropped[1][1]
    assert [poison.message.body for poison in seen] == bodies(0, 1, 2, 3)


# --- the sender ends, or seems to ----------------------------------------------------------------


async def test_a_sender_that_ended_is_used(path: Path | None) -> None:
    """What waits is told, by its own state; `send` raises the sender's error; the file keeps all that was not sent."""
    desk = Desk(hold)
    async with opened(desk, path, in_flight=1) as outbox:
        await outbox.send(message(b"0"))
        in_flight = asyncio.create_task(outbox.send(message(b"1"), wait="settled"))
        behind = asyncio.create_task(outbox.send(message(b"2"), wait="settled"))
        await until(lambda: outbox.statistics.stored == 3 and desk.fates)
        desk.fates[0].settle()
        await until(lambda: len(desk.fates) == 2)
        flush = asyncio.create_task(outbox.flush())
        await turns()
        desk.lose()
        with pytest.raises(amqp.DeliveryUnknown, match="the cable is cut"):
            await soon(in_flight)
        with pytest.raises(amqp.ConnectionClosed, match="the cable is cut") as caught:
            await soon(behind)
        assert hasattr(caught.value, "__notes__") is (path is not None)
        for call in (flush, outbox.send(MESSAGE), outbox.send(MESSAGE, wait="settled")):
            with pytest.raises(amqp.ConnectionClosed, match="outbox to 'orders': connection lost: the cable is cut"):
                await soon(call)
        assert isinstance(outbox.error, amqp.ConnectionClosed)
        assert outbox.error is not outbox.error
        if path is None:
            with pytest.raises(OutboxUnsent, match="closed with 2 messages in memory, not sent") as lost:
                await outbox.close()
            assert [given.body for given in lost.value.messages] == bodies(1, 2)
            assert isinstance(lost.value.__cause__, amqp.ConnectionClosed)
        else:
            assert await outbox.close() == 2
            assert await stored(path) == bodies(1, 2)


async def test_an_end_is_noticed_by_nobody(path: Path | None) -> None:
    """With nothing to send, the end of the sender is seen by the next `send`, which stores nothing."""
    desk = Desk()
    async with opened(desk, path) as outbox:
        await outbox.send(MESSAGE, wait="settled")
        desk.lose(StopReason("link", "remote", "amqp:not-found"))
        with pytest.raises(amqp.LinkClosed, match="not-found"):
            await outbox.send(MESSAGE)
        assert outbox.statistics.stored == 0
        await outbox.flush()


async def test_waiting_for_room_goes_on_after_the_end(path: Path | None) -> None:
    """Who waits for room is told that there will be none."""
    desk = Desk(hold)
    async with opened(desk, path, max_messages=1) as outbox:
        await outbox.send(MESSAGE)
        waiting = [asyncio.create_task(outbox.send(MESSAGE)) for _ in range(2)]
        await until(lambda: desk.fates)
        desk.lose()
        for task in waiting:
            with pytest.raises(amqp.ConnectionClosed):
                await soon(task)
        assert outbox.statistics.stored == 1


async def test_a_passing_loss_ends_or_reorders(path: Path | None) -> None:
    """In doubt or not made while the sender goes on, messages are sent again, in order, and no attempt is counted."""
    desk = Desk(hold)
    async with opened(desk, path, in_flight=3, max_attempts=1) as outbox:
        await fill(outbox, *range(5))
        await until(lambda: len(desk.fates) == 3)
        desk.fates[1].settle()
        desk.answer = once(amqp.ConnectionClosed(LOST), b"2")
        desk.break_off()
        await soon(outbox.flush())
        assert outbox.statistics.retried == 2
        assert outbox.statistics.sent == 5
    assert desk.bodies == bodies(0, 1, 2, 0, 2, 3, 4)


async def test_an_outcome_that_nobody_knows_is_taken_for_accepted(path: Path | None) -> None:
    """A sender that sends settled is no use, and the outbox ends with a word about that; the message stays."""
    desk = Desk(lambda _: None)
    async with opened(desk, path) as outbox:
        with pytest.raises((amqp.DeliveryUnknown, amqp.LocalProtocolError)):
            await soon(outbox.send(MESSAGE, wait="settled"))
        with pytest.raises(amqp.LocalProtocolError, match="snd_settle_mode UNSETTLED"):
            await outbox.send(MESSAGE)
        assert outbox.statistics.stored == 1


async def test_a_sender_with_a_fault_stops_the_outbox_in_silence(
    path: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What should not happen ends the outbox, in the log and for everybody who asks."""
    desk = Desk(lambda _: RuntimeError("a bug"))
    async with opened(desk, path) as outbox:
        await outbox.send(MESSAGE)
        await until(lambda: outbox.error is not None)
        with pytest.raises(OutboxError, match=r"outbox to 'orders' ended: RuntimeError\('a bug'\)"):
            await outbox.send(MESSAGE)
        assert "ends, with 1 messages not sent: a bug" in caplog.text


# --- opening -------------------------------------------------------------------------------------


async def test_an_outbox_waits_for_its_sender(path: Path | None) -> None:
    """With a sender that is still to be opened, messages are stored at once, and sent when it is there."""
    there = asyncio.Event()
    desk = Desk()

    async def opening() -> Desk:
        await there.wait()
        return desk

    async with opened(opening(), path, address="orders") as outbox:
        assert outbox.address == "orders"
        await soon(outbox.send(MESSAGE))
        there.set()
        await soon(outbox.flush())
    assert desk.bodies == [b"one"]
    assert desk.closed == ["close"]


async def test_an_outbox_closed_before_its_sender_came_waits(path: Path | None) -> None:
    """On disk the opening is cancelled at once, and the message stays; from memory it would be lost, so that waits."""
    cancelled = asyncio.Event()

    async def opening() -> Desk:
        try:
            await asyncio.sleep(LONG)
        finally:
            cancelled.set()
        raise AssertionError

    outbox = await Outbox(opening(), path, close_timeout=0.05 if path is None else LONG).open()
    await outbox.send(MESSAGE)
    await turns()
    if path is None:
        with pytest.raises(OutboxUnsent):
            await soon(outbox.close())
    else:
        assert await soon(outbox.close()) == 1
    assert cancelled.is_set()


async def test_messages_in_memory_are_lost_as_their_sender_comes() -> None:
    """A sender that is there within `close_timeout` gets all that is in memory; with nothing there, nothing waits."""
    desk = Desk()

    async def opening() -> Desk:
        await asyncio.sleep(0.05)
        return desk

    outbox = await Outbox(opening()).open()
    await fill(outbox, 0, 1)
    await soon(outbox.close())
    assert desk.bodies == bodies(0, 1)
    assert desk.closed == ["close"]

    async def never() -> Desk:
        await asyncio.sleep(LONG)
        raise AssertionError

    await soon((await Outbox(never(), close_timeout=LONG).open()).close())


async def test_a_sender_that_cannot_be_opened_is_waited_for(path: Path | None) -> None:
    """Its error ends the outbox, and each who asks gets one of his own."""

    async def refused() -> Desk:
        raise amqp.AttachError("no such queue", address="orders", error=amqp.ErrorCondition("amqp:not-found"))

    async with opened(refused(), path) as outbox:
        errors = []
        await until(lambda: outbox.error is not None)
        for _ in range(2):
            with pytest.raises(amqp.AttachError, match="no such queue") as caught:
                await outbox.send(MESSAGE)
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert errors[0].condition == "amqp:not-found"


async def test_an_outbox_that_is_not_open_takes_messages(path: Path | None) -> None:
    """Not open yet, opened twice, or closed, it says so."""
    desk = Desk()
    outbox = Outbox(desk, path)
    assert repr(outbox) == f"<Outbox 'orders' in {path or 'memory'} opening stored=0>"
    assert outbox.statistics == OutboxStatistics()
    assert outbox.error is None
    with pytest.raises(amqp.LocalProtocolError, match="not open yet"):
        await outbox.send(MESSAGE)
    with pytest.raises(amqp.LocalProtocolError, match="not open yet"):
        await outbox.poisoned()
    async with outbox:
        assert repr(outbox) == f"<Outbox 'orders' in {path or 'memory'} open stored=0>"
        with pytest.raises(amqp.LocalProtocolError, match="opens once"):
            await outbox.open()
    for call in (outbox.send(MESSAGE), outbox.send(MESSAGE, wait="settled")):
        with pytest.raises(amqp.LinkClosed, match="closed by us"):
            await call
    if path is not None:
        with pytest.raises(OutboxError, match="is closed"):
            await outbox.poisoned()
    assert await outbox.close() == 0


async def test_a_failed_opening_leaves_the_sender_to_be_opened(tmp_path: Path) -> None:
    """A sender that was never asked for is not opened, and nobody complains that it was not."""

    async def opening() -> Desk:
        raise AssertionError

    with pytest.raises(OutboxError, match="its folder does not exist"):
        await Outbox(opening(), tmp_path / "missing" / "o").open()


async def test_an_outbox_is_closed_while_it_is_opened(tmp_path: Path) -> None:
    """That is refused, and the opening goes on; cancelling it is the way."""
    outbox = Outbox(Desk(), tmp_path / "o")
    opening = asyncio.create_task(outbox.open())
    await asyncio.sleep(0)
    with pytest.raises(amqp.LocalProtocolError, match="cancel that to close it"):
        await outbox.close()
    with pytest.raises(amqp.LocalProtocolError, match="not open yet"):
        await outbox.send(MESSAGE)
    await soon(opening)
    await outbox.close()


async def test_an_outbox_that_was_never_opened_keeps_its_sender(path: Path | None) -> None:
    """Closing it closes the sender, and it cannot be opened any more."""
    desk = Desk()
    outbox = Outbox(desk, path)
    assert await outbox.close() == 0
    assert desk.closed == ["close"]
    with pytest.raises(amqp.LocalProtocolError):
        await outbox.open()


# --- closing -------------------------------------------------------------------------------------


async def test_a_close_gives_up_what_is_in_flight(path: Path | None) -> None:
    """It waits for outcomes; on disk nothing new is transferred meanwhile, and from memory everything is."""
    desk = Desk(hold)
    outbox = await Outbox(desk, path, in_flight=2).open()
    await fill(outbox, *range(4))
    await until(lambda: len(desk.fates) == 2)
    closing = asyncio.create_task(outbox.close())
    await turns()
    with pytest.raises(amqp.LinkClosed):
        await outbox.send(MESSAGE)
    desk.answer = lambda _: amqp.Accepted()
    for fate in desk.fates:
        fate.settle()
    assert await soon(closing) == (0 if path is None else 2)
    assert desk.bodies == bodies(0, 1, 2, 3)[: 4 if path is None else 2]
    assert desk.closed == ["close"]
    if path is not None:
        assert await stored(path) == bodies(2, 3)


class Reluctant(Desk):
    """Takes some turns to give up a transfer."""

    async def transfer(self, message: amqp.Message | bytes, /) -> Fate:
        try:
            return await super().transfer(message)
        finally:
            await turns(5)


@pytest.mark.parametrize("kind", [Desk, Reluctant])
async def test_a_close_waits_for_credit(tmp_path: Path, kind: type[Desk]) -> None:
    """On disk, what waits for credit or through an outage is safe: it does not hold up the close."""
    desk = kind()
    desk.starve()
    outbox = await Outbox(desk, tmp_path / "o", close_timeout=LONG).open()
    await fill(outbox, 0, 1)
    await until(lambda: desk.waiting)
    assert await soon(outbox.close()) == 2
    assert await stored(tmp_path / "o") == bodies(0, 1)


async def test_messages_in_memory_are_lost_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """What could not be sent by the end is handed over, reported and logged."""
    dropped: list[Any] = []
    desk = Desk(hold)
    outbox = await Outbox(desk, close_timeout=0.05, in_flight=1, on_drop=lambda given, _: dropped.append(given)).open()
    await fill(outbox, 0, 1)
    settled = asyncio.create_task(outbox.send(message(b"2"), wait="settled"))
    await until(lambda: desk.fates)
    with pytest.raises(OutboxUnsent, match="3 messages in memory") as caught:
        await outbox.close()
    assert [given.body for given in caught.value.messages] == bodies(0, 1, 2)
    assert [given.body for given in dropped] == bodies(0, 1, 2)
    assert caplog.text.count("was closed before it was sent") == 1
    assert "dropped 2 others since the last such line" in caplog.text
    with pytest.raises(amqp.LinkClosed):
        await soon(settled)
    assert await outbox.close() == 0


async def test_a_failed_body_is_hidden_by_the_close(path: Path | None) -> None:
    """Its exception comes out as it is, soon, and what is in the file stays there."""
    desk = Desk(hold)
    with pytest.raises(RuntimeError, match="the body"):
        async with Outbox(desk, path, close_timeout=0.05) as outbox:
            await outbox.send(MESSAGE)
            await until(lambda: desk.fates)
            raise RuntimeError("the body")
    assert outbox.state is amqp.EndpointState.CLOSED
    if path is not None:
        assert await stored(path) == [b"one"]


async def test_settled_is_waited_for_in_a_closed_outbox(path: Path | None) -> None:
    """Who waits for an outcome when the outbox is closed is told, in flight or not, stored or on the way there."""
    desk = Desk(hold)
    outbox = await Outbox(desk, path, close_timeout=0.05, in_flight=1).open()
    first = asyncio.create_task(outbox.send(MESSAGE, wait="settled"))
    await until(lambda: desk.fates)
    second = asyncio.create_task(outbox.send(MESSAGE, wait="settled"))
    await asyncio.sleep(0)
    with contextlib.suppress(OutboxUnsent):
        await outbox.close()
    with pytest.raises(amqp.DeliveryUnknown):
        await soon(first)
    with pytest.raises(amqp.LinkClosed):
        await soon(second)


async def test_a_dropped_outbox_is_silent(tmp_path: Path) -> None:
    """An outbox that nobody closes warns."""
    desk = Desk()
    outbox: Any = await Outbox(desk, tmp_path / "o").open()
    await outbox.send(MESSAGE, wait="settled")
    with pytest.warns(ResourceWarning, match="was never closed"):
        outbox.__del__()
    await outbox.close()
    outbox.__del__()
    del outbox
    gc.collect()


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": ""},
        {"durability": "full"},
        {"path": "o", "durability": "some"},
        {"max_messages": 0},
        {"max_bytes": 1.5},
        {"in_flight": 0},
        {"max_attempts": 0},
        {"overflow": "drop"},
        {"wait": "sent"},
        {"on_poison": "send"},
        {"on_drop": 1},
        {"retry_interval": 0},
        {"retry_interval": 31},
        {"close_timeout": -1},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_taken(wrong: dict[str, Any]) -> None:
    """Options are checked as they are given."""
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        OutboxOptions(**wrong)
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        Outbox(Desk(), **wrong)


async def test_statistics_are_wrong(path: Path | None) -> None:
    """They tell what is in the outbox, how old it is, and what was done."""
    desk = Desk(hold)
    async with opened(desk, path) as outbox:
        await outbox.send(MESSAGE)
        await until(lambda: desk.fates)
        await asyncio.sleep(0.02)
        now = outbox.statistics
        assert (now.stored, now.in_flight, now.sent, now.commits) == (1, 1, 0, 0 if path is None else 1)
        assert now.bytes == len(desk.fates[0].message.raw or b"")
        assert now.oldest_age is not None
        assert 0.02 <= now.oldest_age < PATIENCE
        assert outbox.options.max_messages == 10_000
        assert outbox.path == path
    if path is not None:
        async with opened(Desk(hold), path) as outbox:
            await until(lambda: outbox.statistics.in_flight == 1)
            assert outbox.statistics.stored == 1
            age = outbox.statistics.oldest_age
            assert age is not None
            assert age > now.oldest_age, "over restarts"


def test_an_error_that_is_raised_again_is_the_same() -> None:
    """Each raise has an object of its own, of the same class where that can be, and with its cause."""
    cause = OSError("x")
    stop = StopReason("session", "remote", cause=cause)
    for error in (amqp.SessionClosed(stop, "here"), OutboxError("why"), TimeoutError("late")):
        twin = copied(error)
        assert twin is not error
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.__cause__ is (error.__cause__ or error)
    other = copied(amqp.DeliveryUnknown(b"", stop))
    assert type(other) is OutboxError
    assert "in doubt" in str(other)


async def test_a_removal_lags_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent leaves the file a little later, though nothing else is stored."""
    monkeypatch.setattr(disk, "LAG", 0.01)
    async with opened(Desk(), tmp_path / "o") as outbox:
        await outbox.send(MESSAGE, wait="settled")
        await until(lambda: outbox.statistics.commits == 2)


async def test_the_log_is_flooded(path: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    """One line a second tells of messages that were dropped, and how many; the last of them at the close."""
    async with opened(Desk(lambda _: amqp.Rejected()), path, on_poison="drop") as outbox:
        await fill(outbox, *range(50))
        await outbox.flush()
        assert caplog.text.count("dropped") == 1
        for what, (_, others) in outbox._ledger._logged.items():  # type: ignore[union-attr]
            outbox._ledger._logged[what] = 0.0, others  # type: ignore[union-attr] # a second later
        await fill(outbox, *range(3))
        await outbox.flush()
        assert "no reason given, and 49 others since the last such line" in caplog.text
    assert "dropped 2 others since the last such line" in caplog.text


async def test_bodies_are_logged(path: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    """Log lines name messages by their id."""
    caplog.set_level(logging.DEBUG, "amqpws_async")
    with contextlib.suppress(RuntimeError):
        async with Outbox(Desk(lambda _: amqp.Rejected()), path, on_poison="drop") as outbox:
            await outbox.send(amqp.Message(b"canary", subject="canary", message_id="the-id"))
            await outbox.flush()
            raise RuntimeError
    assert "dropped message 'the-id'" in caplog.text
    assert "canary" not in caplog.text
