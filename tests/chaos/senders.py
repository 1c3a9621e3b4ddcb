"""What a station's client sends, in several ways, and what it notes of each message."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Literal

from amqpws_async import (
    Accepted,
    ClientSender,
    DeliveryFailed,
    DeliveryUnknown,
    EndpointClosed,
    Message,
    PendingDelivery,
)

from .ledger import Fate, Ledger

if TYPE_CHECKING:
    from .station import Station

__all__ = ["DEADLINE", "Hang", "Stream", "Style", "deadline"]

DEADLINE: Final = 60.0  # seconds for anything that waits through an outage

WINDOW: Final = 40  # messages without outcome

Style = Literal["send", "hasty", "transfer", "many"]


class Hang(Exception):
    """An operation did not end within its deadline."""


@contextlib.asynccontextmanager
async def deadline(what: str, seconds: float = DEADLINE) -> AsyncIterator[asyncio.Timeout]:
    """A limit that is far away; that it is reached is a breach."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError:
        if limit.expired():
            raise Hang(f"{what} did not end within {seconds:g} s") from None
        raise


class Stream:
    """Messages in an order, sent in one way.

    Args:
        station: Where.
        number: Its number there.
        style: ``send``: one after the other; ``hasty``: the same, but now and then not waited for; ``transfer``: many
            in flight; ``many``: by `send_many`.
        draw: Decides the details.
    """

    def __init__(self, station: Station, number: int, style: Style, draw: random.Random) -> None:
        self.style = style
        self._station = station
        self._ledger: Ledger = station.ledger
        self._number = number
        self._draw = draw
        self._held: int | None = None  # a message that was begun and not sent

    async def run(self, sender: ClientSender) -> None:
        """Send until there is nothing to send, or the sender has ended.

        Raises:
            EndpointClosed: It has, with something left to send.
            Hang: Something did not end.
        """
        await {"send": self._one, "hasty": self._one, "transfer": self._transfer, "many": self._many}[self.style](
            sender
        )

    async def _next(self, sender: ClientSender) -> int | None:
        if self._held is None:
            await self._station.gate.wait(sender)
            if not self._station.gate.take():
                return None
            self._held = self._ledger.issue(self._number)
        return self._held

    def _message(self, number: int) -> Message:
        size = self._draw.choice((0, 20, 100, 100, 1000, 20000)) if self._draw.random() < 0.2 else 10
        return self._ledger.message(number, identified=bool(self._number % 2), size=size)

    def _ended(self, number: int, fate: Fate) -> None:
        self._ledger.ended(number, fate)
        self._station.on_fate(fate)

    async def _one(self, sender: ClientSender) -> None:
        while (number := await self._next(sender)) is not None:
            hasty = self.style == "hasty" and self._draw.random() < 0.1
            fate = Fate.GIVEN_UP
            try:
                async with deadline("send"):
                    if hasty:
                        async with asyncio.timeout(self._draw.uniform(0.0, 0.02)):
                            await sender.send(self._message(number))
                    else:
                        await sender.send(self._message(number))
                fate = Fate.ACCEPTED
            except DeliveryFailed:
                fate = Fate.DECLINED
            except DeliveryUnknown as unknown:
                fate = Fate.IN_DOUBT
                self._station.on_doubt(unknown)
            except EndpointClosed:
                fate = Fate.NOT_SENT
                raise
            except TimeoutError:
                if not hasty:
                    raise
            finally:
                if fate is not Fate.NOT_SENT:
                    self._ended(number, fate)
                    self._held = None

    async def _transfer(self, sender: ClientSender) -> None:
        window: deque[tuple[int, PendingDelivery]] = deque()
        try:
            while (number := await self._next(sender)) is not None:
                async with deadline("transfer"):
                    try:
                        pending = await sender.transfer(self._message(number))
                    except asyncio.CancelledError:
                        self._ended(number, Fate.GIVEN_UP)
                        self._held = None
                        raise
                window.append((number, pending))
                self._held = None
                while window and (window[0][1].done or len(window) >= WINDOW):
                    await self._settle(window)
            while window:
                await self._settle(window)
        except EndpointClosed:
            while window:  # they end with their sender
                await self._settle(window)
            raise
        finally:
            for left, _ in window:
                self._ended(left, Fate.GIVEN_UP)

    async def _settle(self, window: deque[tuple[int, PendingDelivery]]) -> None:
        """Wait for the outcome of the oldest."""
        number, pending = window[0]
        try:
            async with deadline("the outcome of a transfer"):
                outcome = await pending
            fate = Fate.ACCEPTED if isinstance(outcome, Accepted) else Fate.DECLINED
        except DeliveryUnknown as unknown:
            fate = Fate.IN_DOUBT
            self._station.on_doubt(unknown)
        window.popleft()
        self._ended(number, fate)

    async def _many(self, sender: ClientSender) -> None:
        sent: deque[int] = deque()
        limit: asyncio.Timeout | None = None

        async def source() -> AsyncIterator[Message]:
            loop = asyncio.get_running_loop()
            while True:
                assert limit is not None
                limit.reschedule(None)  # waiting for more to send may take as long as it likes
                number = await self._next(sender)
                limit.reschedule(loop.time() + DEADLINE)
                if number is None:
                    return
                self._held = None
                sent.append(number)
                yield self._message(number)

        outcomes = sender.send_many(source(), in_flight=WINDOW)
        try:
            while True:
                async with deadline("send_many") as limit:
                    try:
                        message, outcome = await anext(outcomes)
                    except StopAsyncIteration:
                        return
                if isinstance(outcome, DeliveryUnknown):
                    fate = Fate.IN_DOUBT
                    self._station.on_doubt(outcome)
                else:
                    fate = Fate.ACCEPTED if isinstance(outcome, Accepted) else Fate.DECLINED
                number = sent.popleft()
                assert isinstance(message, Message)
                assert bytes(message.body).startswith(b"%09d" % number), "send_many changed the order"  # type: ignore[arg-type]
                self._ended(number, fate)
        except EndpointClosed:
            if len(sent) > 1:
                self._station.breach("every send has an end", f"send_many ended without the outcomes of {sent}")
            if sent:  # taken from the source, and not sent
                self._held = sent.popleft()
            raise
        finally:
            for number in sent:
                self._ended(number, Fate.GIVEN_UP)
