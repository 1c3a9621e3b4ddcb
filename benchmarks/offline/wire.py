"""A transport without a network: a counterpart answers once, and later runs get the answers that were recorded.

What a client writes depends on nothing but the program, so the same run writes the same bytes, and the same answers
fit. What is measured then is the client alone: no socket, no WebSocket framing, no other side.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from amqpws_async.errors import StopReason, closed_error
from amqpws_async.transport import ByteConsumer

from ..counterpart import Counterpart

__all__ = ["Answer", "Diverged", "Recorder", "Replay"]


class Diverged(Exception):
    """A run wrote something else than the run that was recorded."""


class Answer(NamedTuple):
    """What came back.

    Attributes:
        size: Bytes written by the client.
        data: The answer, which may be empty.
    """

    size: int
    data: bytes


class _Wire:
    """A `ByteTransport` of this library, and as much of a WebSocket as the raw floor uses.

    To the one it hands over what came since the last turn of the event loop, as a socket does; the other asks for it.
    """

    latency = 0.0
    subprotocol = "amqp"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._consumer: ByteConsumer | None = None
        self._cut = False

    # --- this library

    def start(self, consumer: ByteConsumer) -> None:
        self._consumer = consumer

    def write(self, data: bytes | memoryview) -> bool:
        if answer := self._answer(bytes(data)):
            if not self._chunks:
                self._loop.call_soon(self._hand_over)
            self._chunks.append(answer)
        return True

    def _hand_over(self) -> None:
        if self._consumer is not None and not self._cut:
            self._consumer._on_bytes(self._take())

    async def close(self) -> None: ...

    def abort(self) -> None:
        if self._consumer is not None and not self._cut:
            self._cut = True
            stop = StopReason("connection", "transport", description="the wire was cut")
            self._loop.call_soon(self._consumer._on_end, closed_error(stop))

    # --- the raw floor

    async def recv(self) -> bytes:
        while not self._chunks:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._take()

    async def send(self, data: bytes) -> None:
        if answer := self._answer(data):
            self._chunks.append(answer)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

    def _answer(self, data: bytes) -> bytes:
        raise NotImplementedError


class Recorder(_Wire):
    """Has the counterpart answer, and notes what it says."""

    def __init__(self, counterpart: Counterpart) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self._counterpart = counterpart

    def _answer(self, data: bytes) -> bytes:
        answer = self._counterpart.answer(data)
        self.answers.append(Answer(len(data), answer))
        return answer


class Replay(_Wire):
    """Answers as recorded."""

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__()
        self._answers = answers
        self._position = 0

    def _answer(self, data: bytes) -> bytes:
        position = self._position
        self._position = position + 1
        if position >= len(self._answers):
            return b""  # after the measured part: the run is being taken down
        size, answer = self._answers[position]
        if size != len(data):
            raise Diverged(f"write {position} has {len(data)} bytes, and had {size} when it was recorded")
        return answer
