"""A transport without a network: a counterpart answers once, and later runs get the answers that were recorded.

What a client writes depends on nothing but the program, so the same run writes the same bytes, and the same answers
fit. What is measured then is the client alone: no socket, no WebSocket framing, no other side.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from amqpws_async.errors import StopReason, closed_error

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
    """A `ByteTransport` of this library, and as much of a WebSocket as the raw floor uses."""

    latency = 0.0
    subprotocol = "amqp"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._cut = False

    async def receive(self) -> bytes:
        while not self._chunks:
            if self._cut:
                raise closed_error(StopReason("connection", "transport", description="the wire was cut"))
            self._waiter = self._loop.create_future()
            await self._waiter
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

    recv = receive

    async def send(self, data: bytes) -> None:
        if answer := self._answer(data):
            self._chunks.append(answer)
            self._wake()

    def _answer(self, data: bytes) -> bytes:
        raise NotImplementedError

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def close(self) -> None: ...

    def abort(self) -> None:
        self._cut = True
        self._wake()


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
