"""What a station's client receives, in several ways."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Final, Literal

from amqpws_async import (
    Client,
    ClientReceiver,
    ClientSession,
    Delivery,
    EndpointClosed,
    ReceiverSettleMode,
    SettlementLost,
    Source,
    TerminusDurability,
)

from .ledger import ADDRESS
from .senders import deadline

if TYPE_CHECKING:
    from .station import Station

__all__ = ["Taking", "Way", "subscription"]

Way = Literal["iterate", "process", "manual", "confirm", "durable"]

CLOSE: Final = 20.0  # seconds for what has a close_timeout of two

SHARE: Final = 0.01  # of the deliveries that are given back at first


def subscription() -> Source:
    """The source of a durable subscription."""
    return Source(address=f"topic:{ADDRESS}", durable=TerminusDurability.UNSETTLED_STATE)


class Taking:
    """Takes the messages of a station, again and again by new receivers.

    Args:
        station: Where.
        way: ``iterate``: by `async for`; ``process``: by handlers; ``manual``: with credit granted one by one;
            ``confirm``: in receiver settle mode second; ``durable``: `async for` on a durable subscription.
        draw: Decides the details.
    """

    def __init__(self, station: Station, way: Way, draw: random.Random) -> None:
        self._station = station
        self._way = way
        self._draw = draw
        self.receiver: ClientReceiver | None = None

    async def run(self, client: Client) -> None:
        """Take until cancelled, or the client or receiver ends.

        Raises:
            EndpointClosed: One of them has ended otherwise than by us. Likewise `AttachError`.
            Hang: Something did not end.
        """
        options: dict[str, Any] = {"credit": self._draw.choice((1, 10, 100, 1000))}
        source: str | Source = ADDRESS
        place: Client | ClientSession
        if self._way == "manual":
            options["credit"] = 0
        elif self._way == "confirm":
            options["rcv_settle_mode"] = ReceiverSettleMode.SECOND
        elif self._way == "durable":
            source, options["name"] = subscription(), "chaos-subscription"
        async with deadline("attaching a receiver"):
            place = await client.session() if self._station.setup.sessions else client
            self.receiver = receiver = await place.receiver(source, **options)
        try:
            await {"process": self._process, "manual": self._manual}.get(self._way, self._iterate)(receiver)
        finally:
            self.receiver = None
            async with deadline("closing a receiver", CLOSE):
                with contextlib.suppress(TimeoutError, EndpointClosed):
                    if self._way == "durable":
                        await receiver.detach()
                    else:
                        await (receiver if place is client else place).close()

    async def _iterate(self, receiver: ClientReceiver) -> None:
        left = self._draw.randrange(50, 1000)
        async for delivery in receiver:
            self._station.ledger.saw(delivery.body)
            with contextlib.suppress(SettlementLost):
                if self._draw.random() < SHARE:
                    await delivery.release()
                else:
                    async with deadline("accept"):
                        await delivery.accept(confirm=self._way == "confirm")
            left -= 1
            if not left:
                return
            if left % 100 == 0:  # what is there is still received, and then more
                async with deadline("drain"):
                    await receiver.drain()

    async def _manual(self, receiver: ClientReceiver) -> None:
        granted = 0
        for _ in range(self._draw.randrange(50, 1000)):
            if granted == 0:
                granted = self._draw.choice((1, 1, 5, 20))
                await receiver.add_credit(granted)
            delivery = await receiver.receive()
            granted -= 1
            self._station.ledger.saw(delivery.body)
            with contextlib.suppress(SettlementLost):
                await delivery.accept()

    async def _process(self, receiver: ClientReceiver) -> None:
        stop = asyncio.Event()
        left = self._draw.randrange(50, 1000)

        async def handle(delivery: Delivery) -> None:
            nonlocal left
            await asyncio.sleep(self._draw.choice((0.0, 0.0, 0.001, 0.01)))
            self._station.ledger.saw(delivery.body)
            left -= 1
            if left <= 0:
                stop.set()

        work = asyncio.create_task(receiver.process(handle, concurrency=20, drain_timeout=2.0, stop=stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            async with deadline("process, once stopped", 30.0):
                await asyncio.wait((work,))
            work.result()
        finally:
            stopped.cancel()
            work.cancel()
            async with deadline("process, once cancelled", 30.0):
                await asyncio.wait((work, stopped))
