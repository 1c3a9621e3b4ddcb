"""What the demonstration runs: senders and receivers over real connections, and an account of every message."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import amqpws_async as amqp

from .composition import filler

__all__ = ["Ledger", "measure_latency", "run_load"]

QUEUE: Final = "demo"
DEAD_LETTERS: Final = "dead-letter"  # where the embedded broker puts rejected messages
_QUIET: Final = "quiet"

# Of every hundred messages, by id, these are not accepted at once. The others are.
_REJECT, _RELEASE, _MODIFY = 25, 50, 75
_IN_FLIGHT: Final = 250  # per sender: enough to keep the pipes full, and little enough to show a queue that is short
_STALLED: Final = 20.0  # seconds without any progress, after which the run is given up


class Ledger:
    """What is known of each message; its id, from 0, is the index.

    Attributes:
        messages: How many there are.
        sent: How often the broker accepted it from a sender.
        accepted, rejected, released, modified: How often a receiver settled it so.
        dead: How often it came out of the dead-letter queue.
        counted_again: How many came back after "modified" with their delivery-count raised.
        done: How many have come to their end: accepted, or out of the dead-letter queue.
    """

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.sent = bytearray(messages)
        self.accepted = bytearray(messages)
        self.rejected = bytearray(messages)
        self.released = bytearray(messages)
        self.modified = bytearray(messages)
        self.dead = bytearray(messages)
        self.counted_again = 0
        self.done = 0
        self.complete = asyncio.Event()

    def finish(self) -> None:
        """Count one more that has come to its end."""
        self.done += 1
        if self.done == self.messages:
            self.complete.set()

    @property
    def missing(self) -> int:
        """Messages that were not sent once, or of which the end is not known."""
        ends = zip(self.sent, self.accepted, self.dead, strict=True)
        return sum(sent != 1 or not (accepted or dead) for sent, accepted, dead in ends)

    @property
    def duplicates(self) -> int:
        """Messages that came to an end more than once."""
        return sum(accepted + dead > 1 for accepted, dead in zip(self.accepted, self.dead, strict=True))

    @property
    def exact(self) -> bool:
        """Whether every message came to the one end that it was meant for, and none to another."""
        return (
            not self.missing
            and not self.duplicates
            and self.rejected == self.dead
            and self.counted_again == sum(self.modified)
        )


async def run_load(url: str, ledger: Ledger, senders: int, receivers: int, size: int) -> None:
    """Send the ledger's messages as fast as they go, and settle each as its id says.

    Every sender and receiver has a connection of its own.
    """
    body = filler(size)
    ids = iter(range(ledger.messages))  # shared: whoever is free takes the next
    async with AsyncExitStack() as stack:
        dead = await stack.enter_async_context(_receiver(url, DEAD_LETTERS))
        opened = [await stack.enter_async_context(_receiver(url, QUEUE)) for _ in range(receivers)]
        parts: list[Coroutine[Any, Any, None]] = [_bury(dead, ledger)]
        parts += [_settle(receiver, ledger) for receiver in opened]
        for _ in range(senders):
            sender = await stack.enter_async_context(_sender(url, QUEUE))
            parts.append(_send(sender, ledger, ids, body))
        await _together(parts, ledger, [*opened, dead])


async def _together(parts: list[Coroutine[Any, Any, None]], ledger: Ledger, receivers: list[amqp.Receiver]) -> None:
    """Run the parts until the ledger is complete, then close the receivers, which ends theirs."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
            await _complete(ledger)
            for receiver in receivers:
                await receiver.close()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the first is what ended the others


async def _complete(ledger: Ledger) -> None:
    done = -1
    while not ledger.complete.is_set():
        if ledger.done == done:
            raise TimeoutError(f"nothing moved for {_STALLED:g} s, after {done:,} of {ledger.messages:,} messages")
        done = ledger.done
        try:
            async with asyncio.timeout(_STALLED):
                await ledger.complete.wait()
        except TimeoutError:
            pass


async def _send(sender: amqp.Sender, ledger: Ledger, ids: Iterator[int], body: bytes) -> None:
    messages = (amqp.Message(body, message_id=number) for number in ids)
    async for message, outcome in sender.send_many(messages, in_flight=_IN_FLIGHT):
        if isinstance(outcome, amqp.Accepted) and isinstance(message, amqp.Message):
            ledger.sent[_id(message)] += 1


async def _settle(receiver: amqp.Receiver, ledger: Ledger) -> None:
    async for delivery in receiver:
        message = delivery.message
        number = _id(message)
        fate = number % 100
        if fate == _REJECT:
            ledger.rejected[number] += 1
            await delivery.reject("demo:unwanted", "every hundredth is refused, to show the dead-letter queue")
        elif fate == _RELEASE and not ledger.released[number]:
            ledger.released[number] += 1
            await delivery.release()
        elif fate == _MODIFY and not ledger.modified[number]:
            ledger.modified[number] += 1
            await delivery.modify(delivery_failed=True)
        else:
            if fate == _MODIFY and message.delivery_count == 1:
                ledger.counted_again += 1
            ledger.accepted[number] += 1
            await delivery.accept()
            ledger.finish()


async def _bury(receiver: amqp.Receiver, ledger: Ledger) -> None:
    async for delivery in receiver:
        ledger.dead[_id(delivery.message)] += 1
        await delivery.accept()
        ledger.finish()


async def measure_latency(url: str, messages: int, rate: float, size: int) -> list[float]:
    """Send at a steady rate, and time each message from the call of ``send`` until a receiver has it.

    Returns:
        Seconds for each message.
    """
    sent = array("d", bytes(8 * messages))
    latencies: list[float] = []
    body = filler(size)

    async def send(sender: amqp.Sender) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(messages):
            await asyncio.sleep(start + number / rate - loop.time())
            sent[number] = time.perf_counter()
            await sender.transfer(amqp.Message(body, message_id=number))

    async def receive(receiver: amqp.Receiver) -> None:
        while len(latencies) < messages:
            delivery = await receiver.receive()
            latencies.append(time.perf_counter() - sent[_id(delivery.message)])
            await delivery.accept()

    async with _receiver(url, _QUIET) as receiver, _sender(url, _QUIET) as sender:
        try:
            async with asyncio.timeout(messages / rate + _STALLED), asyncio.TaskGroup() as group:
                group.create_task(receive(receiver))
                group.create_task(send(sender))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return latencies


@asynccontextmanager
async def _sender(url: str, address: str) -> AsyncIterator[amqp.Sender]:
    async with amqp.connect(url, proxy=None) as connection, connection.sender(address) as sender:
        yield sender


@asynccontextmanager
async def _receiver(url: str, address: str) -> AsyncIterator[amqp.Receiver]:
    async with amqp.connect(url, proxy=None) as connection, connection.receiver(address, credit=_IN_FLIGHT) as receiver:
        yield receiver


def _id(message: amqp.Message) -> int:
    number = message.message_id
    assert isinstance(number, int)
    return number
