"""A progress line that is rewritten on a terminal, and how numbers are written for people."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

__all__ = ["Progress", "bar", "duration", "rate", "size", "writable"]

_INTERVAL: Final = 0.1  # seconds; the eye takes it for continuous
_CLEAR: Final = "\r\x1b[K"


class Progress:
    """Shows how far work has got while its ``async with`` runs.

    On a terminal, one line that is rewritten and gone at the end. Elsewhere nothing, or every `sparse` seconds a line.

    Args:
        stream: Where to.
        text: Gives the line.
        delay: Seconds before the first one: short work shows nothing.
        sparse: Seconds between lines where `stream` is no terminal; None for none.
    """

    def __init__(
        self, stream: TextIO, text: Callable[[], str], *, delay: float = 0.5, sparse: float | None = None
    ) -> None:
        self._stream = stream
        self._text = text
        self._delay = delay
        self._terminal = stream.isatty()
        self._interval = _INTERVAL if self._terminal else sparse
        self._task: asyncio.Task[None] | None = None
        self._shown = False

    async def __aenter__(self) -> Self:
        if self._interval is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._interval))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            failed = None if self._task.cancelled() else self._task.exception()
            if failed is not None and error is None:
                raise failed  # nobody reads the stream any more
        self._clear()

    async def _run(self, interval: float) -> None:
        await asyncio.sleep(self._delay)
        while True:
            self._show()
            await asyncio.sleep(interval)

    def _show(self) -> None:
        text = self._text()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(_CLEAR + text[:width])
            self._stream.flush()
            self._shown = True
        else:
            print(text, file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False


_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def bar(fraction: float, width: int, stream: TextIO) -> str:
    """A horizontal bar, to an eighth of a character where the stream's encoding has block characters.

    Args:
        fraction: How much of the width is filled, 0 to 1.
        width: Characters.
        stream: Where it will be written.
    """
    if not writable(_EIGHTHS, stream):
        return "#" * round(fraction * width)
    full, eighths = divmod(round(fraction * width * 8), 8)
    return "█" * full + (_EIGHTHS[eighths] if eighths else "")


def writable(text: str, stream: TextIO) -> bool:
    """Whether the stream's encoding has all characters of `text`."""
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def rate(count: int, seconds: float) -> str:
    """``"4,870/s"``."""
    return f"{count / seconds:,.0f}/s" if seconds > 0 else "-/s"


def size(count: float) -> str:
    """``"1.2 MiB"``."""
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def duration(seconds: float) -> str:
    """``"3.14 ms"``."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
