"""`Receiver.process`: every message handled and settled once, whatever handlers, brokers and callers do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import proton
import pytest

import amqpws_async as amqp
from amqpws_async import processing, signals
from amqpws_async.processing import ProcessArguments
from amqpws_async.testing import Broker

from .peer import PATIENCE, Conversation, Peer, ignore
from .test_cancellation import interrupted
from .test_promises import STOPS, connected, round_trip, soon, stops, turns

LONG = 3600.0  # seconds: what waits so long, waits for ever


class Handling:
    """A handler that notes what it gets, does as the test says, and lets the test wait for it."""

    def __init__(self, behave: Callable[[amqp.Delivery], Awaitable[object]] | None = None) -> None:
        self.bodies: list[Any] = []
        self.cancelled: list[Any] = []
        self.returned: list[Any] = []
        self.gate = asyncio.Event()
        self._behave = behave or self._pass_gate
        self._changed = asyncio.Event()

    async def _pass_gate(self, delivery: amqp.Delivery) -> None:
        await self.gate.wait()

    async def __call__(self, delivery: amqp.Delivery) -> None:
        body = delivery.body
        self.bodies.append(body)
        self._changed.set()
        try:
            await self._behave(delivery)
            self.returned.append(body)
        except asyncio.CancelledError:
            self.cancelled.append(body)
            raise
        finally:
            self._changed.set()

    async def until(self, true: Callable[[], object]) -> None:
        """Waits for what a handler makes true."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def called(self, count: int) -> None:
        await self.until(lambda: len(self.bodies) >= count)


class Scene:
    """An embedded broker with messages on one queue, and a receiver of it."""

    def __init__(self, broker: Broker, connection: amqp.Connection, receiver: amqp.Receiver) -> None:
        self.broker = broker
        self.connection = connection
        self.receiver = receiver

    async def queue(self, name: str = "orders") -> Any:
        """What the broker says of its queue, once it has read all that was written."""
        await round_trip(self.connection)
        return self.broker.statistics().queues[name]


@contextlib.asynccontextmanager
async def scene(*bodies: bytes, **options: Any) -> AsyncIterator[Scene]:
    async with Broker() as broker, connected(broker) as connection:  # type: ignore[arg-type]
        async with connection.sender("orders") as sender:
            async for _ in sender.send_many([amqp.Message(body, message_id=f"id of {body[:20]!r}") for body in bodies]):
                pass
        receiver = await connection.receiver("orders", **options)
        try:
            yield Scene(broker, connection, receiver)
        finally:
            with contextlib.suppress(amqp.AMQPError):
                await receiver.close()


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def total(statistics: amqp.ProcessStatistics) -> int:
    """Deliveries taken: each is in one place."""
    names = ("accepted", "rejected", "released", "modified", "settled", "lost", "in_flight")
    return sum(getattr(statistics, name) for name in names)


def beside(processor: amqp.Processor) -> asyncio.Task[amqp.ProcessStatistics]:
    return asyncio.create_task(processor.run())


async def nothing(delivery: amqp.Delivery) -> None:
    """A handler that is done at once."""


async def for_ever(delivery: amqp.Delivery) -> None:
    """A handler that never returns."""
    await asyncio.sleep(LONG)


manual_or_window = pytest.mark.parametrize("credit", [0, 100], ids=["manual", "window"])


# --- returning ---------------------------------------------------------------------------------------


@manual_or_window
async def test_accepts_what_its_handler_returned_from(credit: int) -> None:
    """Each message is handled once, accepted, and counted."""
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        if len(handling.bodies) == 50:
            stop.set()

    handling = Handling(behave)
    async with scene(*numbered(50), credit=credit) as here:
        statistics = await soon(here.receiver.process(handling, concurrency=4, stop=stop))
        assert sorted(handling.bodies) == sorted(numbered(50))
        queue = await here.queue()
        assert (queue.acknowledged, queue.depth, queue.unsettled, queue.redelivered) == (50, 0, 0, 0)
    assert (statistics.accepted, statistics.in_flight, statistics.failed) == (50, 0, 0)
    assert 1 <= statistics.in_flight_peak <= 4
    assert statistics.busy_time > 0
    assert total(statistics) == 50


async def test_one_handler_at_a_time_keeps_the_order() -> None:
    """concurrency=1 handles in the order of the queue."""
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        await turns(len(handling.bodies) % 3)
        if len(handling.bodies) == 30:
            stop.set()

    handling = Handling(behave)
    async with scene(*numbered(30)) as here:
        statistics = await soon(here.receiver.process(handling, concurrency=1, stop=stop))
    assert handling.bodies == numbered(30)
    assert statistics.in_flight_peak == 1


@pytest.mark.parametrize("settle", ["accept", "reject", "release", "modify"])
async def test_a_handler_may_settle_itself(settle: str) -> None:
    """What the handler settled is counted, and not settled again."""
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        await getattr(delivery, settle)()
        stop.set()

    async with scene(b"one", credit=0) as here:
        statistics = await soon(here.receiver.process(behave, concurrency=1, stop=stop))
        queue = await here.queue()
        assert (queue.acknowledged, queue.dead_lettered) == (settle == "accept", settle == "reject")
    assert statistics.settled >= 1
    assert statistics.accepted == 0


async def test_what_the_peer_settled_meanwhile_is_no_accepted_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker whose lock expired settles by itself: counted as settled, and forgotten here too."""
    # Proton as a peer answers no drain behind a delivery that only it has settled.
    monkeypatch.setattr(processing, "DRAIN_ANSWER", 0.05)
    stop = asyncio.Event()
    async with Peer() as peer, connected(peer) as connection:
        sent: list[Any] = []

        def deliver(conversation: Conversation, link: Any) -> None:
            if not sent:
                sent.append(conversation.deliver(amqp.Message(b"one").encode(), link))
            conversation.react("flow", link)

        peer.on["flow"] = deliver
        receiver = await connection.receiver("orders")

        async def behave(delivery: amqp.Delivery) -> None:
            peer.conversation.settle(sent[0], None)
            await round_trip(connection)
            assert delivery.settled
            stop.set()

        statistics = await soon(receiver.process(behave, stop=stop))
    assert (statistics.settled, statistics.accepted) == (1, 0)


# --- credit --------------------------------------------------------------------------------------------


async def test_a_receiver_without_a_window_gets_what_handlers_are_free_for() -> None:
    """Manual credit follows the free handlers: nothing is prefetched, and a freed one gets the next at once."""
    handling = Handling()
    async with scene(*numbered(10), credit=0) as here:
        task = beside(amqp.Processor(here.receiver, handling, concurrency=3))
        await handling.called(3)
        queue = await here.queue()
        assert (queue.unsettled, here.receiver.queued, here.receiver.credit) == (3, 0, 0)
        handling.gate.set()
        await handling.called(10)
        await handling.until(lambda: len(handling.returned) == 10)
        await here.queue()
        await here.queue()
        assert here.receiver.credit == 3
        task.cancel()
        await asyncio.wait([task])


async def test_credit_comes_back_after_a_handler_that_cancelled_itself() -> None:
    """No way out of a handler loses the credit that it stood for."""

    async def behave(delivery: amqp.Delivery) -> None:
        if len(handling.bodies) <= 4:
            raise asyncio.CancelledError
        stop.set()

    stop = asyncio.Event()
    handling = Handling(behave)
    async with scene(b"one", b"two", credit=0) as here:
        statistics = await soon(here.receiver.process(handling, concurrency=1, stop=stop))
    assert (statistics.accepted, statistics.failed) == (1, 0)
    assert statistics.released >= 4


async def test_a_window_bounds_what_is_in_hand() -> None:
    """At most concurrency and the window are with this consumer; the rest stays with the broker."""
    handling = Handling()
    async with scene(*numbered(50), credit=8) as here:
        task = beside(amqp.Processor(here.receiver, handling, concurrency=4))
        await handling.called(4)
        assert (await here.queue()).unsettled <= 4 + 8
        assert len(handling.bodies) == 4
        task.cancel()
        await asyncio.wait([task])


@manual_or_window
async def test_bytes_in_hand_are_bounded(credit: int) -> None:
    """Handlers are free, but messages in hand are large: no more is taken until one is done, yet one always is."""
    handling = Handling()
    bodies = [bytes([number]) * 10_000 for number in range(6)]
    async with scene(*bodies, credit=credit) as here:
        processor = amqp.Processor(here.receiver, handling, concurrency=6, max_in_hand_bytes=15_000)
        task = beside(processor)
        await handling.called(2)
        await here.queue()
        assert len(handling.bodies) == 2
        handling.gate.set()
        await handling.until(lambda: len(handling.returned) == 6)
        assert processor.statistics.in_flight_peak == 2
        task.cancel()
        await asyncio.wait([task])


async def test_one_slow_handler_slows_nobody_else() -> None:
    """One of two never returns: the other handles all that comes."""

    async def behave(delivery: amqp.Delivery) -> None:
        if delivery.body == b"0":
            await handling.gate.wait()

    handling = Handling(behave)
    async with scene(*numbered(200), credit=10) as here:
        task = beside(amqp.Processor(here.receiver, handling, concurrency=2))
        await handling.until(lambda: len(handling.returned) == 199)
        task.cancel()
        await asyncio.wait([task])
        assert handling.cancelled == [b"0"]


# --- failing -------------------------------------------------------------------------------------------


async def test_a_failed_message_is_delivered_again_and_after_so_many_attempts_rejected() -> None:
    """By default the broker counts the attempt; max_delivery_count ends it without a call of the handler."""

    async def behave(delivery: amqp.Delivery) -> None:
        if delivery.body == b"bad":
            raise RuntimeError("no")

    handling = Handling(behave)
    async with scene(b"bad", b"good") as here:
        processor = amqp.Processor(here.receiver, handling, max_delivery_count=3)
        task = beside(processor)
        while "dead-letter" not in here.broker.statistics().queues:
            await soon(here.queue())
        task.cancel()
        await asyncio.wait([task])
        assert Counter(handling.bodies) == {b"bad": 3, b"good": 1}
        async with here.connection.receiver("dead-letter") as dead:
            letter = await soon(dead.receive())
            annotations = letter.message.message_annotations
            assert annotations["x-opt-dead-letter-condition"] == "amqp:resource-limit-exceeded"
    statistics = processor.statistics
    assert (statistics.failed, statistics.modified, statistics.rejected, statistics.poisoned) == (3, 3, 1, 1)
    assert (statistics.accepted, total(statistics)) == (1, 5)


class Base(Exception): ...


class Derived(Base): ...


def on_error_by_function(delivery: amqp.Delivery, error: Exception) -> amqp.Outcome | None:
    return amqp.Rejected() if isinstance(error, Derived) and delivery.body == b"one" else None


def on_error_that_fails(delivery: amqp.Delivery, error: Exception) -> amqp.Outcome:
    raise ValueError("no table")


def on_error_by_mistake(delivery: amqp.Delivery, error: Exception) -> Any:
    return "rejected"


TABLES: dict[str, tuple[Any, type[Exception], str]] = {
    "the class itself": ({Derived: amqp.Rejected(), Base: amqp.Released()}, Derived, "rejected"),
    "the nearest base": ({Exception: amqp.Released(), Base: amqp.Rejected()}, Derived, "rejected"),
    "accepted": ({Base: amqp.Accepted()}, Base, "accepted"),
    "released": ({Base: amqp.Released()}, Base, "released"),
    "not in the mapping": ({Derived: amqp.Rejected()}, Base, "modified"),
    "no table": (None, Base, "modified"),
    "function": (on_error_by_function, Derived, "rejected"),
    "function without an answer": (on_error_by_function, Base, "modified"),
    "function that fails": (on_error_that_fails, Base, "modified"),
    "function that gives no outcome": (on_error_by_mistake, Base, "modified"),
    "beyond AMQP": (
        {Base: amqp.Rejected(amqp.ErrorCondition("amqp:decode-error", info={"x": object()}))},
        Base,
        "modified",
    ),
}


@pytest.mark.parametrize("case", TABLES)
async def test_an_exception_becomes_an_outcome(case: str) -> None:
    """By the user's table; where that has no answer, or no usable one, the attempt is counted."""
    table, error, expected = TABLES[case]
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        stop.set()
        raise error

    async with scene(b"one", credit=0) as here:
        statistics = await soon(here.receiver.process(behave, concurrency=1, on_error=table, stop=stop))
    assert (getattr(statistics, expected), statistics.failed, total(statistics)) == (1, 1, 1)


@pytest.mark.parametrize("case", [case for case, (_, _, expected) in TABLES.items() if expected == "modified"])
@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (amqp.Rejected(), "rejected"),
        (amqp.Rejected(amqp.ErrorCondition("amqp:decode-error", info={"x": object()})), "modified"),
    ],
    ids=["rejects", "beyond AMQP"],
)
async def test_a_receiver_says_what_becomes_of_failures(case: str, outcome: amqp.Outcome, expected: str) -> None:
    """Where the table has no usable answer; and the attempt is counted where the receiver has none either."""
    table, error, _ = TABLES[case]
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        stop.set()
        raise error

    async with scene(b"one", credit=0) as here:
        here.receiver.failure_outcome = outcome
        statistics = await soon(here.receiver.process(behave, concurrency=1, on_error=table, stop=stop))
    assert (getattr(statistics, expected), statistics.failed, total(statistics)) == (1, 1, 1)


async def test_a_failure_is_logged_once_with_the_id_and_without_the_body(caplog: pytest.LogCaptureFixture) -> None:
    """Who operates a service finds the message, and nothing that was in it."""
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        stop.set()
        raise RuntimeError("what went wrong")

    async with scene(credit=0) as here:
        async with here.connection.sender("orders") as sender:
            await sender.send(amqp.Message(b"canary", message_id="order-17"))
        with caplog.at_level(logging.DEBUG, "amqpws_async.processing"):
            await soon(here.receiver.process(behave, concurrency=1, stop=stop))
    (record,) = [record for record in caplog.records if record.name == "amqpws_async.processing"]
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("the handler failed on message 'order-17', settled as modified")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
    assert "canary" not in caplog.text


async def test_a_message_that_cannot_be_decoded_is_a_failure_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """Also where only its header is looked at, for the delivery-count, and where its id cannot be told."""
    stop = asyncio.Event()
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.append(b"\x00\x53\x70\xc0\x02\x01")
        receiver = await connection.receiver("orders")

        def decide(delivery: amqp.Delivery, error: Exception) -> amqp.Outcome:
            stop.set()
            return amqp.Rejected(amqp.ErrorCondition("amqp:decode-error"))

        statistics = await soon(receiver.process(nothing, on_error=decide, stop=stop, max_delivery_count=1))
        await round_trip(connection)
        assert peer.dispositions == [(proton.Delivery.REJECTED, True)]
    assert (statistics.rejected, statistics.failed, statistics.poisoned) == (1, 1, 0)
    assert "cannot be decoded" in caplog.text


async def test_an_error_of_no_exception_class_ends_it_unwrapped() -> None:
    """What is no Exception is nobody's outcome: the others are cancelled, all is released, it is raised as it is."""

    class Fatal(BaseException): ...

    async def behave(delivery: amqp.Delivery) -> None:
        if len(handling.bodies) == 3:
            raise Fatal
        await asyncio.sleep(LONG)

    handling = Handling(behave)
    async with scene(*numbered(3), credit=0) as here:
        processor = amqp.Processor(here.receiver, handling)
        with pytest.raises(Fatal):
            await soon(processor.run())
        await here.receiver.close()
        queue = await here.queue()
        assert (queue.depth, queue.unsettled) == (3, 0)
    assert sorted(handling.cancelled) == sorted(handling.bodies[:2])
    assert (processor.statistics.released, processor.statistics.in_flight) == (3, 0)


async def test_a_function_that_is_no_coroutine_function_is_a_mistake_and_no_failure_of_each_message() -> None:
    """It says so at the first delivery, which is released."""
    async with scene(b"one", credit=0) as here:
        with pytest.raises(TypeError, match="must be a coroutine function: it returned NoneType"):
            await soon(here.receiver.process(lambda delivery: None))  # type: ignore[arg-type,return-value]
        await here.receiver.close()
        assert (await here.queue()).depth == 1


# --- time limit -----------------------------------------------------------------------------------------


async def _swallows(delivery: amqp.Delivery) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(LONG)


async def _fails_in_its_cleanup(delivery: amqp.Delivery) -> None:
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        raise KeyError("cleanup") from None


stubborn = pytest.mark.parametrize("behave", [for_ever, _swallows, _fails_in_its_cleanup])


@stubborn
async def test_the_time_limit_cancels_a_handler_and_asks_the_table(
    behave: Callable[[amqp.Delivery], Awaitable[None]],
) -> None:
    """It is a TimeoutError, whatever the handler made of its cancellation; the others go on."""
    stop = asyncio.Event()
    asked: list[Exception] = []

    def decide(delivery: amqp.Delivery, error: Exception) -> amqp.Outcome:
        asked.append(error)
        stop.set()
        return amqp.Rejected()

    async with scene(b"one", credit=0) as here:
        statistics = await soon(here.receiver.process(behave, timeout=0.01, on_error=decide, stop=stop))
        assert (await here.queue()).dead_lettered == 1
    assert [type(error) for error in asked] == [TimeoutError]
    assert "longer than 0.01 s" in str(asked[0])
    assert (statistics.timed_out, statistics.failed, statistics.rejected) == (1, 0, 1)


async def test_a_timeout_error_of_the_handlers_own_is_a_failure() -> None:
    """Only what took too long counts as timed out."""
    stop = asyncio.Event()

    async def behave(delivery: amqp.Delivery) -> None:
        stop.set()
        raise TimeoutError

    async with scene(b"one", credit=0) as here:
        statistics = await soon(here.receiver.process(behave, timeout=LONG, stop=stop))
    assert (statistics.timed_out, statistics.failed) == (0, 1)


# --- stopping -------------------------------------------------------------------------------------------


@manual_or_window
async def test_stop_while_it_waits_for_messages(credit: int) -> None:
    """Nothing has come: it ends at once, and has withdrawn its credit."""
    stop = asyncio.Event()
    async with scene(credit=credit) as here:
        task = asyncio.create_task(here.receiver.process(nothing, stop=stop))
        await here.queue()
        assert here.receiver.credit > 0
        stop.set()
        assert await soon(task) == amqp.ProcessStatistics()
        assert here.receiver.credit == 0


async def test_a_stop_that_was_set_before_takes_nothing() -> None:
    """What the window had brought goes back."""
    stop = asyncio.Event()
    stop.set()
    async with scene(*numbered(5)) as here:
        await here.queue()
        assert here.receiver.queued == 5
        statistics = await soon(here.receiver.process(for_ever, stop=stop))
        queue = await here.queue()
        assert (queue.depth, queue.unsettled) == (5, 0)
    assert (statistics.released, statistics.in_flight_peak) == (5, 0)


async def test_stop_lets_handlers_finish_and_releases_what_none_has() -> None:
    """What waits is given back while handlers are still at work; they end in their own time."""
    stop = asyncio.Event()
    handling = Handling()
    async with scene(*numbered(20), credit=10) as here:
        processor = amqp.Processor(here.receiver, handling, concurrency=3, stop=stop)
        task = beside(processor)
        await handling.called(3)
        stop.set()
        async with asyncio.timeout(PATIENCE):
            while (await here.queue()).unsettled != 3:
                pass
        assert not task.done()
        stop.set()
        handling.gate.set()
        statistics = await soon(task)
        assert (await here.queue()).depth == 17
        assert here.receiver.credit == 0
    assert len(handling.bodies) == statistics.accepted == 3
    assert statistics.released + statistics.accepted == total(statistics)


@stubborn
async def test_the_drain_deadline_cancels_and_releases(behave: Callable[[amqp.Delivery], Awaitable[None]]) -> None:
    """A handler that is not done by then did not process its message, whatever it made of the cancellation."""
    stop = asyncio.Event()
    handling = Handling(behave)
    async with scene(*numbered(3), credit=0) as here:
        task = beside(amqp.Processor(here.receiver, handling, stop=stop, drain_timeout=0.05))
        await handling.called(3)
        stop.set()
        statistics = await soon(task)
        queue = await here.queue()
        assert (queue.depth, queue.unsettled, queue.acknowledged) == (3, 0, 0)
    assert (statistics.released, statistics.failed, statistics.timed_out) == (3, 0, 0)


async def test_a_peer_that_never_answers_the_drain_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some brokers do not know drain: what is queued is released all the same, long before the deadline."""
    monkeypatch.setattr(processing, "DRAIN_ANSWER", 0.05)
    stop = asyncio.Event()
    handling = Handling()
    async with Peer() as peer, connected(peer) as connection:
        peer.queue += [amqp.Message(body).encode() for body in numbered(4)]
        receiver = await connection.receiver("orders")
        task = beside(amqp.Processor(receiver, handling, concurrency=1, stop=stop, drain_timeout=LONG))
        await handling.called(1)
        peer.on["flow"] = ignore
        stop.set()
        handling.gate.set()
        statistics = await soon(task)
    assert (statistics.accepted, statistics.released) == (1, 3)


async def test_what_came_settled_is_handled_before_it_stops() -> None:
    """Nobody would send it again: released, it would be lost."""
    stop = asyncio.Event()
    handling = Handling()
    async with scene(*numbered(6), snd_settle_mode=amqp.SenderSettleMode.SETTLED) as here:
        task = beside(amqp.Processor(here.receiver, handling, concurrency=2, stop=stop))
        await handling.called(2)
        await here.queue()
        stop.set()
        await turns()
        handling.gate.set()
        statistics = await soon(task)
    assert sorted(handling.returned) == numbered(6)
    assert statistics == dataclasses.replace(
        amqp.ProcessStatistics(), settled=6, in_flight_peak=2, busy_time=statistics.busy_time
    )


@manual_or_window
async def test_a_receiver_can_be_processed_again(credit: int) -> None:
    """Stopping leaves it attached, and the next one opens its credit again."""
    async with scene(*numbered(8), credit=credit) as here:
        done: list[Any] = []
        for count in (3, 8):
            stop = asyncio.Event()

            async def behave(delivery: amqp.Delivery, count: int = count, stop: asyncio.Event = stop) -> None:
                done.append(delivery.body)
                if len(done) >= count:
                    stop.set()

            await soon(here.receiver.process(behave, concurrency=1, stop=stop))
        assert sorted(done) == numbered(8)


async def test_closing_the_receiver_ends_it_as_it_ends_an_iteration() -> None:
    """It returns; a handler that is at work then settles too late, which is counted."""
    handling = Handling()
    async with scene(b"one", credit=0) as here:
        task = beside(amqp.Processor(here.receiver, handling))
        await handling.called(1)
        await here.receiver.close()
        handling.gate.set()
        statistics = await soon(task)
    assert (statistics.lost, statistics.accepted) == (1, 0)


# --- signals --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before
    assert signals._listening == {}


async def test_a_signal_stops_everyone_who_listens() -> None:
    """Two receivers of one process both stop gracefully, and again means nothing more."""
    handling = Handling()
    async with scene(*numbered(4), credit=2) as one, scene(*numbered(4), credit=2) as two:
        tasks = [
            beside(amqp.Processor(here.receiver, handling, concurrency=1, signals=[signal.SIGTERM]))
            for here in (one, two)
        ]
        await handling.called(2)
        os.kill(os.getpid(), signal.SIGTERM)
        await turns()
        os.kill(os.getpid(), signal.SIGTERM)
        await turns()
        handling.gate.set()
        for task in tasks:
            assert (await soon(task)).accepted == 1


async def test_a_signal_wakes_a_loop_that_waits() -> None:
    """Nothing else happens: the signal alone ends it."""
    async with scene() as here:
        task = asyncio.create_task(here.receiver.process(nothing, signals=[signal.SIGUSR1]))
        await here.queue()
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        await soon(task)
        await asyncio.to_thread(timer.join)


async def test_the_handler_of_the_loop_is_kept() -> None:
    """Who had called `add_signal_handler` before is called as well, and afterwards again."""
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    came = asyncio.Event()

    def note() -> None:
        seen.append("loop")
        came.set()

    loop.add_signal_handler(signal.SIGUSR1, note)
    try:
        async with scene() as here:
            task = asyncio.create_task(here.receiver.process(nothing, signals=[signal.SIGUSR1]))
            await here.queue()
            os.kill(os.getpid(), signal.SIGUSR1)
            await soon(task)
        came.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        await soon(came.wait())
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    assert len(seen) >= 1


async def test_a_second_interrupt_does_what_it_did_before() -> None:
    """The first Ctrl-C is graceful; from then on the handler of before has the word, while handlers still finish."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        handling = Handling()
        async with scene(b"one") as here:
            task = beside(amqp.Processor(here.receiver, handling, signals=[signal.SIGINT, signal.SIGTERM]))
            await handling.called(1)
            for expected in (0, 1):
                os.kill(os.getpid(), signal.SIGINT)
                await turns()
                assert len(heard) == expected
            handling.gate.set()
            assert (await soon(task)).accepted == 1
    finally:
        signal.signal(signal.SIGINT, before)


async def test_only_the_main_thread_has_signals() -> None:
    """Elsewhere it is refused before anything has begun."""

    async def elsewhere() -> None:
        async with scene(b"one") as here:
            with pytest.raises(ValueError, match="only the main thread"):
                await here.receiver.process(nothing, signals=[signal.SIGTERM])

    await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_signal_that_cannot_be_caught_leaves_the_others_as_they_were() -> None:
    """SIGKILL is refused by the system; SIGTERM, which was taken first, is given back."""
    async with scene(b"one") as here:
        with pytest.raises(OSError, match="nvalid"):
            await here.receiver.process(nothing, signals=[signal.SIGTERM, signal.SIGKILL])
        assert (await soon(here.receiver.receive())).body == b"one"


# --- the link is lost ----------------------------------------------------------------------------------


@stops
async def test_what_ends_the_link_is_raised_to_one_who_waits(stop: str) -> None:
    """Detach, end, close and a cut: the error of each, not wrapped."""
    break_it, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("orders")
        task = asyncio.create_task(receiver.process(nothing))
        await round_trip(connection)
        break_it(peer.conversation)
        with pytest.raises(error) as caught:
            await soon(task)
        assert caught.value.stop == receiver.stop


@pytest.mark.parametrize("finishes", [True, False], ids=["finishes", "hangs"])
@stops
async def test_handlers_may_finish_when_the_link_is_lost(stop: str, finishes: bool) -> None:
    """Within drain_timeout; their settlements are counted as lost, and the reason of the end is raised."""
    break_it, error = STOPS[stop]
    handling = Handling()
    async with Peer() as peer, connected(peer) as connection:
        peer.queue += [amqp.Message(body).encode() for body in numbered(3)]
        receiver = await connection.receiver("orders")
        processor = amqp.Processor(receiver, handling, concurrency=2, drain_timeout=LONG if finishes else 0.02)
        task = beside(processor)
        await handling.called(2)
        break_it(peer.conversation)
        while receiver.stop is None:
            await asyncio.sleep(0)
        await turns()
        assert not task.done()
        if finishes:
            handling.gate.set()
        with pytest.raises(error):
            await soon(task)
    assert len(handling.returned if finishes else handling.cancelled) == 2
    assert (processor.statistics.lost, total(processor.statistics)) == (2, 2)


@manual_or_window
async def test_the_connection_is_lost_in_every_turn_of_the_loop(credit: int) -> None:
    """At whatever stage: the reason is raised, no task is left, and each delivery taken is in one place."""
    for turn in range(0, 80, 4):
        async with Peer() as peer, connected(peer) as connection:
            peer.queue += [amqp.Message(body).encode() for body in numbered(20)]
            receiver = await connection.receiver("orders", credit=credit)
            processor = amqp.Processor(receiver, lambda delivery: turns(3), concurrency=3)
            task = beside(processor)
            await turns(turn)
            peer.conversation.drop()
            with pytest.raises(amqp.ConnectionClosed):
                await soon(task)
            statistics = processor.statistics
            assert statistics.accepted + statistics.lost == total(statistics) <= 20
            assert {task for task in asyncio.all_tasks() if "orders" in task.get_name()} == set()


async def test_what_came_settled_is_handled_after_the_link_is_lost() -> None:
    """It is complete, and nobody sends it again."""
    handling = Handling()
    async with Peer() as peer, connected(peer) as connection:
        peer.presettled = True
        peer.queue += [amqp.Message(body).encode() for body in numbered(4)]
        receiver = await connection.receiver("orders")
        processor = amqp.Processor(receiver, handling, concurrency=1)
        task = beside(processor)
        await handling.called(1)
        await round_trip(connection)
        peer.conversation.drop()
        while receiver.stop is None:
            await asyncio.sleep(0)
        handling.gate.set()
        with pytest.raises(amqp.ConnectionClosed):
            await soon(task)
    assert handling.returned == numbered(4)
    assert (processor.statistics.settled, processor.statistics.lost) == (4, 0)


async def test_a_settlement_of_the_handlers_own_that_is_lost_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The handler did its part."""

    async def behave(delivery: amqp.Delivery) -> None:
        await handling.gate.wait()
        await delivery.accept()

    handling = Handling(behave)
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.append(amqp.Message(b"one").encode())
        receiver = await connection.receiver("orders")
        processor = amqp.Processor(receiver, handling)
        task = beside(processor)
        await handling.called(1)
        peer.conversation.drop()
        while receiver.stop is None:
            await asyncio.sleep(0)
        handling.gate.set()
        with pytest.raises(amqp.ConnectionClosed):
            await soon(task)
    assert (processor.statistics.lost, processor.statistics.failed) == (1, 0)
    assert "handler failed" not in caplog.text


async def test_the_link_is_lost_while_it_stops() -> None:
    """Who asked to stop gets the statistics, which tell what was lost."""
    stop = asyncio.Event()
    handling = Handling()
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.append(amqp.Message(b"one").encode())
        receiver = await connection.receiver("orders")
        task = beside(amqp.Processor(receiver, handling, stop=stop))
        await handling.called(1)
        peer.on["flow"] = lambda conversation, link: conversation.drop()
        stop.set()
        while receiver.stop is None:
            await asyncio.sleep(0)
        handling.gate.set()
        assert (await soon(task)).lost == 1


# --- cancelling -----------------------------------------------------------------------------------------


async def _check_nothing_lost(here: Scene, processor: amqp.Processor, count: int) -> None:
    """Every message is accepted or back in its queue, no task is left, and the numbers add up."""
    assert {task for task in asyncio.all_tasks() if "orders" in task.get_name()} == set()
    statistics = processor.statistics
    assert statistics.in_flight == 0
    assert (await here.queue()).unsettled == here.receiver.queued
    await here.receiver.close()
    queue = await here.queue()
    assert (queue.depth + queue.acknowledged, queue.unsettled) == (count, 0)
    assert (queue.acknowledged, statistics.lost) == (statistics.accepted, 0)


@pytest.mark.parametrize("woken", [False, True], ids=["waiting", "woken"])
@manual_or_window
async def test_cancelled_at_every_await(credit: int, woken: bool) -> None:
    """At each suspension point of its owner: handlers are cancelled, deliveries released, nothing is left."""
    point, through = 0, False
    while not through:
        stop = asyncio.Event()

        async def behave(delivery: amqp.Delivery, stop: asyncio.Event = stop) -> None:
            await turns(2)
            if delivery.body == b"3":
                stop.set()

        async with scene(*numbered(8), credit=credit) as here:
            handling = Handling(behave)
            processor = amqp.Processor(here.receiver, handling, concurrency=2, stop=stop)

            async def operation(processor: amqp.Processor = processor, point: int = point) -> None:
                me = asyncio.current_task()
                assert me is not None
                await interrupted(processor.run(), point, me.cancel, woken)

            task = asyncio.create_task(operation())
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([task])
            through = not task.cancelled()
            if through:
                task.result()
            await _check_nothing_lost(here, processor, 8)
        point += 1
    assert point > 2


@manual_or_window
async def test_cancelled_in_every_turn_of_the_loop(credit: int) -> None:
    """Also between a delivery's being taken and its handler's first step."""
    count, turn = 6, 0
    accepted = 0
    while accepted < count:
        async with scene(*numbered(count), credit=credit) as here:
            await here.queue()

            async def behave(delivery: amqp.Delivery) -> None:
                await turns(2)

            processor = amqp.Processor(here.receiver, Handling(behave), concurrency=2)
            task = beside(processor)
            await turns(turn)
            task.cancel()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([task])
            assert task.cancelled()
            await _check_nothing_lost(here, processor, count)
            accepted = processor.statistics.accepted
        turn += 1 if turn < 30 else 20


@manual_or_window
async def test_cancelled_between_a_delivery_and_the_first_step_of_its_handler(credit: int) -> None:
    """A task that is cancelled before it began never runs: its delivery is released all the same."""
    began: list[int] = []
    for turn in range(8):
        handling = Handling()
        async with scene(b"0", b"1", credit=credit) as here:
            processor = amqp.Processor(here.receiver, handling, concurrency=1)
            task = beside(processor)
            await handling.called(1)
            await here.queue()
            loop = asyncio.get_running_loop()

            def cancel_after(turns_left: int, task: asyncio.Task[Any] = task) -> None:
                if turns_left:
                    asyncio.get_running_loop().call_soon(cancel_after, turns_left - 1)
                else:
                    task.cancel()

            loop.call_soon(cancel_after, turn)  # in each turn before what the gate sets going
            handling.gate.set()
            handling.gate = asyncio.Event()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([task])
            began.append(len(handling.bodies))
            await _check_nothing_lost(here, processor, 2)
    assert began[0] == 1


async def test_a_cancellation_grants_no_credit_for_what_it_releases() -> None:
    """Nothing new is asked for on the way out."""
    handling = Handling()
    async with scene(*numbered(5), credit=0) as here:
        task = beside(amqp.Processor(here.receiver, handling, concurrency=3))
        await handling.called(3)
        assert here.receiver.credit == 0
        task.cancel()
        await asyncio.wait([task])
        await here.queue()
        assert (here.receiver.credit, here.receiver.queued) == (0, 0)


async def test_cancelled_again_and_again_it_still_waits_for_its_handlers() -> None:
    """A handler that cleans up has its time, unless it is cancelled in that too; no task outlives the owner."""
    cleaning = asyncio.Event()
    interrupted_cleaning: list[Any] = []

    async def behave(delivery: amqp.Delivery) -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaning.set()
            try:
                await asyncio.sleep(LONG)
            finally:
                interrupted_cleaning.append(delivery.body)
                await turns()

    handling = Handling(behave)
    async with scene(b"one", credit=0) as here:
        processor = amqp.Processor(here.receiver, handling)
        task = beside(processor)
        await handling.called(1)
        task.cancel()
        await soon(cleaning.wait())
        await turns()
        assert not task.done()
        task.cancel()
        await turns(3)
        task.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        assert task.cancelled()
        assert interrupted_cleaning == [b"one"]
        await _check_nothing_lost(here, processor, 1)
        assert processor.statistics.released == 1


async def test_a_timeout_round_it_works_as_everywhere() -> None:
    """`asyncio.timeout` cancels, and is told of it."""
    async with scene(*numbered(3), credit=0) as here:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await here.receiver.process(for_ever)
        await here.receiver.close()
        queue = await here.queue()
        assert (queue.depth, queue.unsettled) == (3, 0)


# --- many ------------------------------------------------------------------------------------------------


async def test_ten_thousand_messages_each_once_in_flat_memory() -> None:
    """All are accepted exactly once, and deliveries alive are never more than handlers and window."""
    count, concurrency, window = 10_000, 20, 200
    stop = asyncio.Event()
    seen: Counter[Any] = Counter()
    alive: list[int] = []

    async def behave(delivery: amqp.Delivery) -> None:
        seen[delivery.body] += 1
        handled = seen.total()
        if handled % 3 == 0:
            await asyncio.sleep(0)
        if handled % 1000 == 0:
            alive.append(sum(isinstance(item, amqp.Delivery) for item in gc.get_objects()))
        if handled == count:
            stop.set()

    async with scene(*numbered(count), credit=window) as here:
        async with asyncio.timeout(50):
            statistics = await here.receiver.process(behave, concurrency=concurrency, stop=stop)
        queue = await here.queue()
        assert (queue.acknowledged, queue.redelivered, queue.depth, queue.unsettled) == (count, 0, 0, 0)
    assert set(seen.values()) == {1}
    assert (statistics.accepted, total(statistics)) == (count, count)
    assert statistics.in_flight_peak <= concurrency
    assert max(alive) <= concurrency + window


@manual_or_window
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_handlers_do_the_numbers_add_up(seed: int, credit: int) -> None:
    """Handlers of every kind, a stop at some moment: the broker and the statistics tell the same story."""
    chance = random.Random(seed)
    count = 60
    stop = asyncio.Event()
    own: list[Any] = []

    async def behave(delivery: amqp.Delivery) -> None:
        await turns(chance.randrange(4))
        match chance.randrange(8):
            case 0:
                raise KeyError("any")
            case 1:
                raise ValueError("rejected")
            case 2:
                raise asyncio.CancelledError
            case 3:
                await delivery.accept()
                own.append(delivery.body)
            case 4:
                await delivery.release()
                raise KeyError("after settling")
            case 5:
                await _swallows(delivery)
        if len(handling.bodies) >= end:
            stop.set()

    end = chance.randrange(count)
    handling = Handling(behave)
    async with scene(*numbered(count), credit=credit) as here:
        options: dict[str, Any] = {"stop": stop, "timeout": 0.01, "drain_timeout": chance.choice([0, 0.01, LONG])}
        processor = amqp.Processor(
            here.receiver,
            handling,
            concurrency=7,
            on_error={ValueError: amqp.Rejected()},
            max_delivery_count=2,
            **options,
        )
        statistics = await soon(processor.run())
        await here.receiver.close()
        queue = await here.queue()
        assert queue.acknowledged == statistics.accepted + len(own)
        assert queue.dead_lettered == statistics.rejected
        assert (queue.depth, queue.unsettled) == (count - queue.acknowledged - queue.dead_lettered, 0)
    assert len(handling.bodies) <= total(statistics) - statistics.poisoned
    assert (statistics.in_flight, statistics.lost) == (0, 0)
    assert statistics.settled >= len(own)


# --- the object --------------------------------------------------------------------------------------------


async def test_a_processor_tells_how_it_stands_and_runs_once() -> None:
    """Statistics are readable before, meanwhile and after; its repr says in which of the three it is."""
    handling = Handling()
    stop = asyncio.Event()
    async with scene(b"one") as here:
        processor = amqp.Processor(here.receiver, handling, stop=stop)
        assert processor.statistics == amqp.ProcessStatistics()
        assert "not started" in repr(processor)
        task = beside(processor)
        await handling.called(1)
        assert (processor.statistics.in_flight, processor.statistics.accepted) == (1, 0)
        assert "running in_flight=1" in repr(processor)
        stop.set()
        handling.gate.set()
        assert await soon(task) == processor.statistics
        assert "stopping" in repr(processor)
        with pytest.raises(amqp.LocalProtocolError, match="once"):
            await processor.run()


async def test_an_event_of_another_loop_is_an_error_and_not_a_stop_that_never_comes() -> None:
    """Its RuntimeError is raised, with nothing left behind."""
    stop = asyncio.Event()

    async def elsewhere() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await stop.wait()

    await asyncio.to_thread(asyncio.run, elsewhere())
    async with scene() as here:
        with pytest.raises(RuntimeError, match="different event loop"):
            await soon(here.receiver.process(nothing, stop=stop))


WRONG: list[dict[str, Any]] = [
    {"concurrency": 0},
    {"concurrency": 1.5},
    {"max_in_hand_bytes": 0},
    {"max_delivery_count": 0},
    {"timeout": 0},
    {"drain_timeout": -1},
    {"on_error": {Exception: amqp.NoOutcome()}},
    {"on_error": {Exception: amqp.Rejected}},
    {"on_error": {BaseException: amqp.Rejected()}},
    {"on_error": {ValueError("x"): amqp.Rejected()}},
    {"on_error": amqp.Rejected()},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, Any]) -> None:
    """A ValueError that begins with the option."""
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}:"):
        amqp.ProcessOptions(**options)


def test_options_and_arguments_agree() -> None:
    """The same names in the same order with the same types, all keyword-only and with a default."""
    fields = dataclasses.fields(amqp.ProcessOptions)
    assert {item.name: item.type for item in fields} == {
        name: kind.__forward_arg__ for name, kind in ProcessArguments.__annotations__.items()
    }
    assert [item.name for item in fields] == list(ProcessArguments.__annotations__)
    assert not ProcessArguments.__required_keys__
    assert all(item.kw_only and item.default is not dataclasses.MISSING for item in fields)
