"""Keeps account of messages: what became of each that was sent, and what arrived."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import amqpws_async as amqp

SIZES = (10, 100, 1_000, 5_000)  # bytes of a body

Key = tuple[str, int]
"""A message, by the name of its sender and its number there, from 0."""


class Account:
    """One account for any number of senders and receivers, on one event loop.

    Args:
        durable: Whether messages are durable.

    Attributes:
        accepted: Messages that a broker took.
        in_doubt: Messages whose outcome never came, so that the sender does not know.
        arrivals: How often each message arrived.
        problems: What must not happen, and did.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self.accepted: set[Key] = set()
        self.in_doubt: set[Key] = set()
        self.arrivals: Counter[Key] = Counter()
        self.problems: list[str] = []
        self._identities: dict[Key, Any] = {}
        self._last: defaultdict[str, int] = defaultdict(lambda: -1)
        self._missing: defaultdict[str, set[int]] = defaultdict(set)
        self._changed = asyncio.Event()

    @property
    def duplicates(self) -> int:
        """Arrivals of messages that had arrived before."""
        return self.arrivals.total() - len(self.arrivals)

    # --- what senders and receivers tell --------------------------------------------------------

    def message(self, name: str, number: int) -> amqp.Message:
        """Makes a message, without a message-id; its body follows from its name and number."""
        properties = {"name": name, "number": number}
        return amqp.Message(_body(name, number), durable=self._durable, application_properties=properties)

    def messages(self, name: str, more: Callable[[int], bool]) -> Iterator[amqp.Message]:
        """Makes messages for as long as `more`, which is asked with the number of the next, says so."""
        number = 0
        while more(number):
            yield self.message(name, number)
            number += 1

    def sent(self, message: amqp.Message | bytes, outcome: object) -> None:
        """Notes what became of a message: an outcome, or the error in its place."""
        assert isinstance(message, amqp.Message)
        key = _key(message)
        if isinstance(outcome, amqp.Accepted):
            self.accepted.add(key)
            if key not in self.arrivals:
                name, number = key
                self._missing[name].add(number)
        elif isinstance(outcome, amqp.DeliveryUnknown):
            self.in_doubt.add(key)
        else:
            self.problems.append(f"{key} ended as {outcome!r}")
        self._changed.set()

    def arrived(self, message: amqp.Message, *, in_order: bool) -> None:
        """Notes an arrival; `in_order` says that each sender's messages must arrive for the first time in order."""
        key = name, number = _key(message)
        if message.body != _body(name, number):
            self.problems.append(f"{key} arrived with another body")
        identity = self._identities.setdefault(key, message.message_id)
        if message.message_id != identity:
            self.problems.append(f"{key} arrived as {identity!r}, and as {message.message_id!r}")
        if in_order and number > self._last[name] + 1:
            self.problems.append(f"{key} arrived after {self._last[name]}")
        self._last[name] = max(number, self._last[name])
        self.arrivals[key] += 1
        self._missing[name].discard(number)
        self._changed.set()

    # --- waiting -----------------------------------------------------------------------------

    async def until_accepted(self, more: int) -> None:
        """Waits until so many more messages were accepted."""
        wanted = len(self.accepted) + more
        await self._until(lambda: len(self.accepted) >= wanted)

    async def until_arrived(self, count: int) -> None:
        """Waits until so many different messages have arrived."""
        await self._until(lambda: len(self.arrivals) >= count)

    async def until_missing(self, count: int, name: str | None = None) -> None:
        """Waits until no more than so many messages were accepted and have not arrived: of one sender, or of all."""
        if name is None:
            await self._until(lambda: sum(map(len, self._missing.values())) <= count)
        else:
            await self._until(lambda: len(self._missing[name]) <= count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- the verdict ----------------------------------------------------------------------------

    def verdict(self) -> list[str]:
        """Says what is wrong, at the end; an empty list if nothing is."""
        problems = list(self.problems)
        if lost := sorted((name, number) for name, missing in self._missing.items() for number in missing):
            problems.append(f"{len(lost)} messages were accepted and never arrived: {lost[:10]}")
        if unknown := sorted(self.arrivals.keys() - self.accepted - self.in_doubt):
            problems.append(f"{len(unknown)} messages arrived and are not accounted for: {unknown[:10]}")
        return problems


def _key(message: amqp.Message) -> Key:
    properties = message.application_properties
    return properties["name"], properties["number"]


def _body(name: str, number: int) -> bytes:
    generator = random.Random(f"{name} {number}")
    return generator.randbytes(generator.choice(SIZES))
