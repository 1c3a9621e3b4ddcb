"""Ctrl-C and SIGTERM: the first ends the work in hand, so that everything closes in order; the second aborts."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["Interruption"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
T = TypeVar("T")


class Interruption:
    """Watches for signals while a command runs.

    A command hands the part that may be cut short to `work`. What comes before it (connecting) is cancelled by the
    first signal too, what comes after it (closing) only by the second.

    Attributes:
        signal: The first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._main: asyncio.Task[Any] | None = None
        self._work: asyncio.Task[Any] | None = None
        self._worked = False

    async def guard(self, command: Coroutine[Any, Any, T]) -> T:
        """Run a whole command, with the signals going here."""
        loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            return await command
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def work(self, part: Coroutine[Any, Any, T]) -> T | None:
        """Run the part of a command that a signal cuts short.

        Returns:
            What it returned, or None if it was cut short.
        """
        self._worked = True
        if self.signal is not None:
            part.close()
            return None
        self._work = task = asyncio.get_running_loop().create_task(part)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._work = None
        return None if task.cancelled() else task.result()

    def end_work(self) -> None:
        """Cut the work short, as a signal does."""
        if self._work is not None:
            self._work.cancel()

    def _on_signal(self, number: signal.Signals) -> None:
        assert self._main is not None
        if self.signal is not None:
            for each in _SIGNALS:  # should even this take long, a third signal ends the process
                asyncio.get_running_loop().remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
            self._main.cancel()
            return
        self.signal = number
        if not self._worked:
            self._main.cancel()
            return
        self.end_work()
        if sys.stderr.isatty():
            print("\rclosing in order; once more to abort", file=sys.stderr, flush=True)
