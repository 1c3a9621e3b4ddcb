"""The handler runner behind `Receiver.process`: deliveries to handlers, what came of them to outcomes.

Life of a delivery::

    receiver -> intake task -> `_taken` -> worker task: handler, in time? -> outcome -> settled and counted

Rules:

* `Processor.run` owns every task: the intake, the wait for `stop`, and one worker for each delivery in hand. It awaits
  them all before it returns or raises, however often it is cancelled meanwhile.
* The receiver is the valve. The intake takes a delivery only where a handler is free and there is room in bytes, and a
  window is topped up by what is taken; a receiver without a window gets one credit for each free handler.
* A delivery goes to its worker through `_taken`: a task that is cancelled before its first step never runs, and what it
  would have taken is then still there to be released.
* A handler that was cancelled did not process its delivery, whatever it made of the cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict, TypeVar, Unpack

from .endpoint import Waiters
from .errors import (
    AMQPError,
    EncodeError,
    EndpointClosed,
    ErrorCondition,
    LocalProtocolError,
    SettlementLost,
    StopReason,
)
from .outcomes import ACCEPTED, RELEASED, Accepted, Modified, Outcome, Rejected, Released
from .signals import stopped_by

if TYPE_CHECKING:
    from .receiver import Delivery

__all__ = ["FAILED", "ProcessArguments", "ProcessOptions", "ProcessStatistics", "Processor"]

logger = logging.getLogger(__name__)

FAILED: Final[Outcome] = Modified(delivery_failed=True)
"""What a receiver's `failure_outcome` is as a rule: given back, and counted as a failed attempt."""

DRAIN_ANSWER: Final = 5.0  # seconds for the peer to use up or give back the credit; some brokers never answer a drain

_COUNTED: Final = {Accepted: "accepted", Rejected: "rejected", Released: "released", Modified: "modified"}

T = TypeVar("T")

Handler = Callable[["Delivery"], Awaitable[object]]
OnError = Mapping[type[Exception], Outcome] | Callable[["Delivery", Exception], Outcome | None]


class ProcessArguments(TypedDict, total=False):
    """The fields of `ProcessOptions`."""

    concurrency: int
    max_in_hand_bytes: int
    timeout: float | None
    on_error: OnError | None
    max_delivery_count: int | None
    stop: asyncio.Event | None
    signals: Sequence[signal.Signals]
    drain_timeout: float


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How to process what a receiver gets.

    Attributes:
        concurrency: Handlers that run at the same time, 20 by default; 1 keeps the order. What is in hand is at most so
            many deliveries and the receiver's own window (its `credit` and `max_prefetch_bytes`); with ``credit=0`` no
            delivery comes that no handler waits for, at the price of a round trip for each.
        max_in_hand_bytes: Encoded bytes of the messages in the handlers' hands at which no further one is taken, 64 MiB
            by default. At least one is always taken, so the worst case is this plus the largest message; what waits in
            the receiver comes on top, see `concurrency`.
        timeout: Seconds a handler may take; then it is cancelled, and `on_error` is asked about a `TimeoutError`. None,
            the default, is no limit: a handler that hangs then holds its place for ever.
        on_error: What becomes of a delivery whose handler raised: a mapping of exception classes to outcomes, of which
            the nearest base class counts, or a function of delivery and exception, which must not block. By default,
            and where either has no answer, it is the receiver's `failure_outcome`, as a rule
            ``Modified(delivery_failed=True)``: the broker delivers the message again, counts the attempts, and by its
            own limit moves it to a dead-letter queue. ``Rejected()`` ends a message at the first failure, and a broker
            without such a queue drops it; on SAP Event Mesh it is the default, as there it is what counts an attempt.
            ``Released()`` counts nothing, so a message that always fails comes back for ever.
        max_delivery_count: Failed attempts after which a message is rejected without calling the handler. None, the
            default, leaves that to the broker.
        stop: Set it to stop gracefully; several receivers may share one.
        signals: Signals that stop gracefully, such as ``[signal.SIGTERM, signal.SIGINT]``, none by default. Only in the
            main thread. The handlers of before are back in place when processing ends, and from the first SIGINT on: a
            second Ctrl-C does what it would do without this.
        drain_timeout: Seconds for handlers to finish once no more is taken; then they are cancelled and their
            deliveries released. 25 by default, below the 30 that Kubernetes gives (Cloud Foundry gives 10).

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    concurrency: int = 20
    max_in_hand_bytes: int = 64 * 2**20
    timeout: float | None = None
    on_error: OnError | None = None
    max_delivery_count: int | None = None
    stop: asyncio.Event | None = None
    signals: Sequence[signal.Signals] = ()
    drain_timeout: float = 25.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_in_hand_bytes", "max_delivery_count"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: a whole number of at least 1, not {value!r}")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout: more than 0 seconds, or None for no limit, not {self.timeout!r}")
        if not self.drain_timeout >= 0:
            raise ValueError(f"drain_timeout: at least 0 seconds, not {self.drain_timeout!r}")
        if isinstance(self.on_error, Mapping):
            for kind, outcome in self.on_error.items():
                if not isinstance(kind, type) or not issubclass(kind, Exception) or type(outcome) not in _COUNTED:
                    raise ValueError(f"on_error: exception classes to outcomes that settle, not {kind!r}: {outcome!r}")
        elif self.on_error is not None and not callable(self.on_error):
            raise ValueError(f"on_error: a mapping or a function, not {self.on_error!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatistics:
    """What processing has done so far; each delivery taken is in one of the first six, or in flight.

    Attributes:
        accepted: Deliveries accepted, because their handler returned.
        rejected: Deliveries rejected, by `on_error` or because they had failed too often.
        released: Deliveries released: never handled, or their handler was cancelled.
        modified: Deliveries modified.
        settled: Deliveries that were settled already: by the handler itself, by the peer, or before they came.
        lost: Deliveries whose settlement could not reach the peer, which will deliver them again.
        failed: Handlers that raised, and were in time.
        timed_out: Handlers that took longer than `timeout`.
        poisoned: Deliveries rejected for their delivery-count, without a handler; part of `rejected`.
        in_flight: Deliveries in the handlers' hands now.
        in_flight_peak: The most there ever were.
        busy_time: Seconds that handlers took, one by one; divided by the time that passed, how many were at work.
    """

    accepted: int = 0
    rejected: int = 0
    released: int = 0
    modified: int = 0
    settled: int = 0
    lost: int = 0
    failed: int = 0
    timed_out: int = 0
    poisoned: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    busy_time: float = 0.0


class Supply(Protocol):
    """What a `Processor` takes deliveries from: a `Receiver`, or a client's."""

    failure_outcome: Outcome
    _automatic: bool
    _loop: asyncio.AbstractEventLoop

    @property
    def stop(self) -> StopReason | None: ...
    @property
    def queued(self) -> int: ...
    @property
    def credit(self) -> int: ...
    @property
    def _where(self) -> str: ...
    def _error(self) -> EndpointClosed: ...
    async def __anext__(self) -> Delivery: ...
    async def add_credit(self, credit: int) -> None: ...
    async def drain(self) -> None: ...
    async def wait_closed(self) -> None: ...


class Processor:
    """Calls a handler for each delivery of a receiver; `Receiver.process` is this in one call.

    Use it where the statistics should be read meanwhile::

        processor = amqp.Processor(receiver, handle, concurrency=50, stop=stop)
        async with asyncio.TaskGroup() as group:
            group.create_task(processor.run())
            ...
            print(processor.statistics.in_flight)

    Args:
        receiver: Where deliveries come from; no one else should take from it meanwhile.
        handler: Called with each delivery; see `Receiver.process`.
        **options: The fields of `ProcessOptions`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, receiver: Supply, handler: Handler, **options: Unpack[ProcessArguments]) -> None:
        self._options = ProcessOptions(**options)
        self._receiver = receiver
        self._handler = handler
        self._failed = receiver.failure_outcome
        self._loop = receiver._loop
        self._counts: Counter[str] = Counter()
        self._busy_time = 0.0
        self._in_flight = 0
        self._in_flight_peak = 0
        self._bytes = 0  # of the deliveries in flight or in `_taken`
        self._taken: deque[Delivery] = deque()  # on the way to the workers, see the rules above
        self._workers: set[asyncio.Task[None]] = set()
        self._intake: asyncio.Task[None] | None = None
        self._stopping = False
        self._fatal: BaseException | None = None  # of a worker
        self._worker_ended = Waiters(self._loop)

    @property
    def statistics(self) -> ProcessStatistics:
        """What was done so far: at any time, also after an error or a cancellation."""
        return ProcessStatistics(
            **self._counts,
            in_flight=self._in_flight,
            in_flight_peak=self._in_flight_peak,
            busy_time=self._busy_time,
        )

    def __repr__(self) -> str:
        state = "not started" if self._intake is None else "stopping" if self._stopping else "running"
        return f"<Processor {self._receiver!r} {state} in_flight={self._in_flight}>"

    # --- the owner ------------------------------------------------------------------------

    async def run(self) -> ProcessStatistics:
        """Process until stopped; see `Receiver.process`, of which this is all. It runs once.

        Cancelling aborts at once: handlers are cancelled, and their deliveries released where the link still stands.
        """
        if self._intake is not None:
            raise LocalProtocolError("a Processor runs once: make another one")
        receiver, stop = self._receiver, self._options.stop
        with stopped_by(self._options.signals, self._loop, self._begin_stop):
            self._intake = intake = self._task(self._take(), "intake")
            watched: set[asyncio.Task[Any]] = {intake, self._task(receiver.wait_closed(), "end")}
            if stop is not None:
                watched.add(self._task(stop.wait(), "stop"))
            try:
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                asked = self._stops
                for task in done - {intake}:
                    task.result()  # an event of another loop, say
                self._begin_stop()
                await asyncio.wait([intake])
                await self._finish()
            finally:
                await self._reap(watched)
        error = self._fatal or (None if intake.cancelled() else intake.exception())
        if error is None and _lost(receiver.stop):
            error = receiver._error()
        if error is not None and not (asked and isinstance(error, EndpointClosed)):
            raise error
        return self.statistics

    @property
    def _stops(self) -> bool:
        """Whether to take no more: also in the turn in which `stop` was set, so that no handler begins after it."""
        stop = self._options.stop
        return self._stopping or (stop is not None and stop.is_set())

    def _begin_stop(self) -> None:
        """Take no more; harmless when called again."""
        self._stopping = True
        if self._intake is not None:
            self._intake.cancel()

    def _task(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        return self._loop.create_task(work, name=f"{what} of {self._receiver._where}")

    async def _finish(self) -> None:
        """Give back what no handler has, and let the handlers finish, up to the deadline."""
        deadline = self._loop.time() + self._options.drain_timeout
        try:
            async with asyncio.timeout_at(deadline):
                if self._fatal is None:
                    await self._give_back()
                while self._workers and self._fatal is None:
                    await self._worker_ended.wait()
        except TimeoutError:
            if self._workers:
                logger.warning(
                    "! %s: %d handlers were not done after %g s (drain_timeout): they are cancelled",
                    self._receiver._where,
                    len(self._workers),
                    self._options.drain_timeout,
                )

    async def _give_back(self) -> None:
        """Withdraw the credit and release what is queued; what came settled is handled, as nobody sends it again."""
        receiver = self._receiver
        try:
            async with asyncio.timeout(DRAIN_ANSWER):
                await receiver.drain()
        except TimeoutError:
            logger.info("! %s: the peer did not answer the drain within %g s", receiver._where, DRAIN_ANSWER)
        except EndpointClosed:
            pass  # then only what came settled is still queued
        while receiver.queued:
            delivery = await receiver.__anext__()  # it is there, so this does not wait
            if delivery.settled:
                self._receive(delivery)
                await self._room()
                self._start_worker()
            else:
                await self._settle(delivery, RELEASED)

    async def _reap(self, watched: set[asyncio.Task[Any]]) -> None:
        """Cancel every task there still is, wait for them all, release what they left."""
        self._stopping = True  # so that no worker grants more credit
        tasks = {task for task in (*watched, *self._workers) if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError:
                await self._reap(watched)  # cancelled again, so are they
                raise
        for task in watched:
            if not task.cancelled():
                task.exception()  # taken note of, as a cancellation hides it
        while self._taken:
            await self._settle(self._taken.popleft(), RELEASED)

    # --- taking -----------------------------------------------------------------------------

    async def _take(self) -> None:
        """The intake task: ends with the receiver's iteration, or is cancelled to stop."""
        while True:
            await self._room()
            if self._stops:
                return
            await self._grant()
            try:
                delivery = await self._receiver.__anext__()
            except StopAsyncIteration:
                return
            self._receive(delivery)
            self._start_worker()

    async def _room(self) -> None:
        """Wait until a handler is free and there is room in bytes."""
        options = self._options
        while self._workers and (len(self._workers) >= options.concurrency or self._bytes >= options.max_in_hand_bytes):
            await self._worker_ended.wait()

    async def _grant(self) -> None:
        """Give a receiver without a window credit for each free handler; this never waits."""
        receiver = self._receiver
        if receiver._automatic or self._stops:
            return
        free = self._options.concurrency - self._in_flight - len(self._taken) - receiver.queued - receiver.credit
        if free > 0:
            with contextlib.suppress(EndpointClosed):  # the intake is the one to learn of it
                await receiver.add_credit(free)

    def _receive(self, delivery: Delivery) -> None:
        self._taken.append(delivery)
        self._bytes += len(delivery.raw)

    def _start_worker(self) -> None:
        worker = self._task(self._work(), "handler")
        self._workers.add(worker)
        worker.add_done_callback(self._on_worker_done)

    def _on_worker_done(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (error := worker.exception()) is not None:
            self._fatal = self._fatal or error
            self._begin_stop()
        self._worker_ended.wake()

    # --- one delivery -----------------------------------------------------------------------

    async def _work(self) -> None:
        """A worker task: handles one delivery; it fails only by what no handler may raise."""
        delivery = self._taken.popleft()
        self._in_flight += 1
        self._in_flight_peak = max(self._in_flight_peak, self._in_flight)
        started = perf_counter()  # a loop's clock may stand still for a whole turn
        try:
            outcome = await self._handle(delivery)
        except BaseException:
            await self._settle(delivery, RELEASED)
            raise
        else:
            await self._settle(delivery, outcome)
        finally:
            self._busy_time += perf_counter() - started
            self._in_flight -= 1
            self._bytes -= len(delivery.raw)
            await self._grant()

    async def _handle(self, delivery: Delivery) -> Outcome:
        """Call the handler, and say how the delivery ends."""
        timeout = asyncio.timeout(self._options.timeout)
        misuse = error = None
        try:
            limit = self._options.max_delivery_count
            if limit is not None and delivery.message.delivery_count >= limit:
                return self._poisoned(delivery, limit)
            async with timeout:
                awaitable = self._handler(delivery)
                if inspect.isawaitable(awaitable):
                    await awaitable
                else:
                    misuse = f"the handler must be a coroutine function: it returned {type(awaitable).__name__}"
        except Exception as exc:
            error = exc
        if misuse is not None:
            raise TypeError(misuse)
        task = asyncio.current_task()
        assert task is not None
        if task.cancelling():
            return RELEASED
        if timeout.expired():
            self._counts["timed_out"] += 1
            late = TimeoutError(f"the handler took longer than {self._options.timeout:g} s")
            late.__cause__ = error
            error = late
        elif error is None:
            return ACCEPTED
        elif not (isinstance(error, SettlementLost) and delivery.receiver.stop is not None):
            self._counts["failed"] += 1
        else:
            return RELEASED  # the handler's own settlement was late; this one will be, too, and is counted so
        outcome = self._outcome_of(delivery, error)
        logger.error(
            "! %s: the handler failed on %s, settled as %s",
            self._receiver._where,
            _named(delivery),
            type(outcome).__name__.lower(),
            exc_info=error,
        )
        return outcome

    def _poisoned(self, delivery: Delivery, limit: int) -> Outcome:
        self._counts["poisoned"] += 1
        text = f"failed {delivery.message.delivery_count} times, and max_delivery_count is {limit}"
        logger.warning("! %s: %s %s: rejected", self._receiver._where, _named(delivery), text)
        return Rejected(ErrorCondition("amqp:resource-limit-exceeded", text))

    def _outcome_of(self, delivery: Delivery, error: Exception) -> Outcome:
        """What the user's table says of an error."""
        table = self._options.on_error
        if table is None:
            return self._failed
        if isinstance(table, Mapping):
            return next((table[kind] for kind in type(error).__mro__ if kind in table), self._failed)
        try:
            outcome = table(delivery, error)
        except Exception:
            logger.exception("! %s: on_error failed on %s", self._receiver._where, _named(delivery))
            return self._failed
        if outcome is not None and type(outcome) not in _COUNTED:
            logger.error("! %s: on_error gave no outcome, but %s", self._receiver._where, type(outcome).__name__)
            return self._failed
        return outcome or self._failed

    async def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle and count; this never waits."""
        # What the peer has settled is settled here all the same, so that the link can forget it.
        counted = "settled" if delivery.settled else _COUNTED[type(outcome)]
        try:
            await _apply(delivery, outcome)
        except SettlementLost:
            counted = "lost"
        except LocalProtocolError:
            counted = "settled"  # by the handler
        except EncodeError as error:
            logger.error("! %s: on_error gave what AMQP cannot carry: %s", self._receiver._where, error)
            await self._settle(delivery, FAILED if outcome is self._failed else self._failed)
            return
        self._counts[counted] += 1


def _lost(stop: StopReason | None) -> bool:
    """Whether the link has ended otherwise than by our closing it."""
    return stop is not None and (stop.initiator != "local" or stop.condition is not None)


async def _apply(delivery: Delivery, outcome: Outcome) -> None:
    match outcome:
        case Rejected(error):
            await delivery.reject(error)
        case Released():
            await delivery.release()
        case Modified(delivery_failed, undeliverable_here, message_annotations):
            await delivery.modify(
                delivery_failed=delivery_failed,
                undeliverable_here=undeliverable_here,
                message_annotations=message_annotations,
            )
        case _:
            await delivery.accept()


def _named(delivery: Delivery) -> str:
    """How log lines name a message: by its id, never by anything of its body."""
    try:
        return f"message {delivery.message.message_id!r:.100}"
    except AMQPError:
        return "a message that cannot be decoded"
