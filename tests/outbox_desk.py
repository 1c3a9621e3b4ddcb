"""A sender that does what a test says, for outboxes; and what their tests share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

import amqpws_async as amqp
from amqpws_async.client.outbox import Outbox
from amqpws_async.errors import StopReason, closed_error
from amqpws_async.message import ACCEPTED

from .peer import PATIENCE

HOLD: Final = object()  # what `Desk.answer` gives for an outcome that is to come later
LOST: Final = StopReason("connection", "transport", description="the cable is cut")


class Fate:
    """A delivery of the desk's: await it for its outcome."""

    def __init__(self, message: amqp.Message) -> None:
        self.message = message
        self._come = asyncio.Event()
        self._outcome: Any = None

    def settle(self, outcome: Any = ACCEPTED) -> None:
        """Ends it: with an outcome, None, or an exception to raise."""
        self._outcome = outcome
        self._come.set()

    @property
    def open(self) -> bool:
        return not self._come.is_set()

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self._come.wait().__await__()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Desk:
    """Takes messages as a sender does, and settles each as `answer` says."""

    address: str | None = "orders"

    def __init__(self, answer: Callable[[amqp.Message], Any] = lambda _: amqp.Accepted()) -> None:
        self.answer = answer
        self.stop: StopReason | None = None
        self.fates: list[Fate] = []
        self.waiting = 0
        self.closed: list[str] = []
        self._credit = asyncio.Event()
        self._credit.set()
        self._changed = asyncio.Condition()

    @property
    def bodies(self) -> list[Any]:
        """What has come, in order."""
        return [fate.message.body for fate in self.fates]

    def starve(self) -> None:
        """Give no credit from now on."""
        self._credit.clear()

    def feed(self) -> None:
        """Give credit again."""
        self._credit.set()

    def lose(self, stop: StopReason = LOST) -> None:
        """End for good."""
        self.stop = stop
        self.break_off(stop)
        self.feed()

    def break_off(self, stop: StopReason = LOST) -> None:
        """Leave what is in flight in doubt."""
        for fate in self.fates:
            if fate.open:
                fate.settle(amqp.DeliveryUnknown(fate.message, stop))

    async def transfer(self, message: amqp.Message | bytes, /) -> Fate:
        self.waiting += 1
        try:
            await self._credit.wait()
        finally:
            self.waiting -= 1
        if self.stop is not None:
            raise closed_error(self.stop, "the desk")
        assert isinstance(message, bytes)
        decoded = amqp.Message.decode(message)
        answer = self.answer(decoded)
        if isinstance(answer, Exception):
            raise answer
        fate = Fate(decoded)
        self.fates.append(fate)
        if answer is not HOLD:
            fate.settle(answer)
        return fate

    async def close(self) -> None:
        self.closed.append("close")
        self.stop = self.stop or StopReason("link", "local")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.closed.append("abandon" if isinstance(error, asyncio.CancelledError) else "close")
        self.stop = self.stop or StopReason("link", "local")


async def until(true: Callable[[], object]) -> None:
    """Returns when something has become true, in this task or on a thread."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def opened(sender: Any, path: Path | None = None, **options: Any) -> AsyncIterator[Outbox]:
    """An outbox that gives up soon; what is left in memory at its end is no matter here."""
    outbox = Outbox(sender, path, **{"close_timeout": 0.2, "retry_interval": 0.01} | options)
    await outbox.open()
    try:
        yield outbox
    finally:
        with contextlib.suppress(amqp.errors.OutboxUnsent):
            await outbox.close()


async def stored(path: Path, address: str = "orders") -> list[Any]:
    """The bodies of what is in a file, which nobody may have open."""
    desk = Desk()
    desk.address = address
    async with opened(desk, path) as outbox:
        await outbox.flush()
    return desk.bodies


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fails a test that leaves the thread of a file behind."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("outbox")] == []
