"""Standard input and output without blocking the event loop, so that a slow pipe never costs the connection.

The descriptors stay as they are, since other programs share them: each read or write waits until the system says that
it will not block. Regular files always are ready.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self, TextIO

from .failures import ExitStatus, Failure

__all__ = ["Lines", "Output", "descriptor_of", "read_all", "read_some"]

_READ_SIZE: Final = 65536


def descriptor_of(stream: TextIO | None, name: str) -> int:
    """The descriptor of a standard stream.

    Raises:
        Failure: The command was started with it closed.
    """
    if stream is None:
        raise Failure(ExitStatus.USAGE, f"standard {name} is closed")
    return stream.fileno()


async def read_some(descriptor: int) -> bytes:
    """Read what there is, waiting until there is something; empty at the end of the input."""
    if not select.select([descriptor], [], [], 0)[0]:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(descriptor, _signal, ready)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)
    return os.read(descriptor, _READ_SIZE)


async def read_all(descriptor: int) -> bytes:
    """Read up to the end of the input."""
    parts = []
    while part := await read_some(descriptor):
        parts.append(part)
    return b"".join(parts)


class Lines:
    """The lines of a descriptor, without their line ends; an async iterator.

    Cancelling loses nothing: the next call goes on where it stopped.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []  # the next one last
        self._rest: list[bytes] = []
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._lines:
            if self._ended:
                raise StopAsyncIteration
            self._take(await read_some(self._descriptor))
        return self._lines.pop()

    def _take(self, data: bytes) -> None:
        if not data:
            self._ended = True
            last = b"".join(self._rest)
            self._lines = [last] if last else []
            return
        self._rest.append(data)
        if b"\n" in data:
            *lines, rest = b"".join(self._rest).split(b"\n")
            self._rest = [rest]
            self._lines = [line.removesuffix(b"\r") for line in reversed(lines)]


class Output:
    """A descriptor to write to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        """Write all of `data`, and return when the system has it.

        Cancelling may leave a part of it written.

        Raises:
            BrokenPipeError: Nobody reads any more.
            OSError: As `os.write`.
        """
        descriptor = self._descriptor
        left = memoryview(data)
        while left:
            if not select.select([], [descriptor], [], 0)[1]:
                await self._ready()
            # "Ready" promises room for this much.
            left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]

    async def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._descriptor, _signal, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._descriptor)

    @contextmanager
    def when_unread(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` if the reader of a pipe goes away, even while nothing is written."""
        descriptor = self._descriptor
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            yield
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(descriptor)
            callback()

        # Nothing can be read from this end of a pipe: it becomes "readable" by an error alone.
        loop.add_reader(descriptor, gone)
        try:
            yield
        finally:
            loop.remove_reader(descriptor)


def _signal(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
