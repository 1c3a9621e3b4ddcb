"""What became of every message: as its sender knows it, as it came to the broker, as it came to the receiver.

All of it is in arrays of a fixed size, so that a run's own memory does not grow.
"""

from __future__ import annotations

import enum
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from amqpws_async import Message
from amqpws_async.testing.nodes import Nodes, Topic
from amqpws_async.testing.queues import Queue

__all__ = ["ADDRESS", "Fate", "Ledger", "RecordingNodes"]

ADDRESS: Final = "chaos"
DIGITS: Final = 9  # of the number that a body begins with


class Fate(enum.IntEnum):
    """What a sender knows of a message."""

    NOT_SENT = 0
    ACCEPTED = 1
    DECLINED = 2  # released, rejected or modified
    IN_DOUBT = 3  # reported as such
    GIVEN_UP = 4  # the wait for it was cancelled


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that must not be.

    Attributes:
        rule: Which of the rules is broken.
        text: How.
    """

    rule: str
    text: str


class Ledger:
    """The messages of one station.

    Args:
        capacity: How many there may be.
        resend: Whether its senders send again what is in doubt.
        report: Called with every breach.
    """

    def __init__(self, capacity: int, *, resend: bool, report: Callable[[Breach], None]) -> None:
        self.resend = resend
        self.issued = 0
        self.duplicates = 0
        self.excused = 0  # declined by the broker: their senders may not have been told, and send them again
        self.fates = bytearray(capacity)
        self._arrivals = bytearray(capacity)
        self._seen = bytearray(capacity)
        self._streams = bytearray(capacity)
        self._contents = array("q", bytes(8 * capacity))
        self._latest: dict[int, int] = {}  # by stream, the last that arrived for the first time
        self._report = report

    # --- at the sender -----------------------------------------------------------------------

    def issue(self, stream: int) -> int:
        """The number of the next message of a stream."""
        number = self.issued
        self.issued += 1
        self._streams[number] = stream
        return number

    def message(self, number: int, *, identified: bool, size: int) -> Message:
        """The message of that number."""
        message = Message(b"%0*d" % (DIGITS, number) + b"." * size)
        if identified:
            message.message_id = f"m-{number}"
        return message

    def ended(self, number: int, fate: Fate) -> None:
        """Note what the sender was told."""
        self.fates[number] = fate
        if fate is Fate.ACCEPTED and not self._arrivals[number]:
            self._report(Breach("accepted means arrived", f"message {number} was accepted and did not arrive"))

    # --- at the broker -----------------------------------------------------------------------

    def arrived(self, raw: bytes) -> None:
        """Note that a message has come to the broker."""
        message = Message.decode(raw)
        number = number_of(message.body)
        stream = self._streams[number]
        content = hash((message.message_id, raw))
        if self._arrivals[number]:
            self.duplicates += 1
            self._arrivals[number] = min(255, self._arrivals[number] + 1)
            if not self.resend:
                self._report(Breach("sent once with raise", f"message {number} arrived twice"))
            elif content != self._contents[number]:
                self._report(Breach("duplicates are the same", f"message {number} came again as {message!r}"))
            return
        self._arrivals[number] = 1
        self._contents[number] = content
        if not self.resend:
            return
        if message.message_id is None:
            self._report(Breach("duplicates are the same", f"message {number} has no message-id"))
        latest = self._latest.get(stream, -1)
        if number < latest and self.fates[number] not in (Fate.IN_DOUBT, Fate.GIVEN_UP):
            if self.excused:
                self.excused -= 1
            else:
                text = f"message {number} of stream {stream} came after {latest}"
                self._report(Breach("order is kept", text))
        self._latest[stream] = max(number, latest)

    # --- at the receiver ---------------------------------------------------------------------

    def saw(self, body: Any) -> None:
        """Note that a receiver got a message."""
        number = number_of(body)
        self._seen[number] = min(255, self._seen[number] + 1)
        if not self._arrivals[number]:
            self._report(Breach("nothing is made up", f"message {number} was received and never arrived"))

    @property
    def unseen(self) -> int:
        """How many arrived that no receiver has got."""
        return sum(1 for arrivals, seen in zip(self._arrivals, self._seen, strict=True) if arrivals and not seen)

    # --- at the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Look at every message."""
        for number in range(self.issued):
            fate, arrivals, seen = Fate(self.fates[number]), self._arrivals[number], self._seen[number]
            if fate is Fate.NOT_SENT:
                self._report(Breach("every send has an end", f"message {number} has no fate, arrived {arrivals} times"))
            if fate is Fate.ACCEPTED and not arrivals:
                self._report(Breach("accepted means arrived", f"message {number} was accepted and is not there"))
            if fate is Fate.DECLINED and arrivals and not self.resend:
                self._report(Breach("declined means not there", f"message {number} was declined and arrived"))
            if arrivals and not seen:
                self._report(Breach("receivers see everything", f"message {number} arrived and was never received"))

    def counts(self) -> Counter[str]:
        """How many messages came to what."""
        counts: Counter[str] = Counter(
            {fate.name.lower(): self.fates[: self.issued].count(fate) for fate in Fate},
        )
        counts["arrived"] = sum(map(bool, self._arrivals))
        counts["duplicates"] = self.duplicates
        counts["received"] = sum(map(bool, self._seen))
        counts["received again"] = sum(max(0, seen - 1) for seen in self._seen)
        return counts


def number_of(body: Any) -> int:
    """The number of the message with this body."""
    return int(bytes(body)[:DIGITS])


class RecordingNodes(Nodes):
    """The nodes of a station's brokers, with one that tells the ledger of everything that arrives.

    Args:
        ledger: Whom to tell.
        clock: The loop's.
        topic: Whether the node is a topic.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float], *, topic: bool) -> None:
        super().__init__(64 * 2**20, None, clock)
        if topic:
            self._topics[ADDRESS] = _RecordingTopic(self, ledger)
        else:
            self._queues[ADDRESS] = _RecordingQueue(self, ledger)

    def chaos(self) -> Iterator[Queue]:
        """The queues that hold the station's messages."""
        if ADDRESS in self._queues:
            yield self._queues[ADDRESS]
        for topic in self._topics.values():
            yield from topic.subscriptions.values()


class _RecordingQueue(Queue):
    def __init__(self, nodes: Nodes, ledger: Ledger) -> None:
        super().__init__(nodes, ADDRESS)
        self._ledger = ledger

    def put(self, raw: bytes, expires: float | None = None) -> None:
        self._ledger.arrived(raw)
        super().put(raw, expires)


class _RecordingTopic(Topic):
    def __init__(self, nodes: Nodes, ledger: Ledger) -> None:
        super().__init__(nodes, f"topic:{ADDRESS}")
        self._ledger = ledger

    def put(self, raw: bytes, expires: float | None = None) -> None:
        self._ledger.arrived(raw)
        super().put(raw, expires)
