"""Stopping gracefully at a signal, for several who listen at once, with the handlers of before put back.

Signals belong to the process, and so does `_listening`, which only the main thread touches. `loop.add_signal_handler`
would not do: it forgets the handler that was there before, and lets one receiver take the signal from another.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["stopped_by"]


@dataclass(slots=True)
class _Listening:
    """Who listens to one signal.

    Attributes:
        before: The handler to put back.
        calls: What to call in each event loop's own time.
    """

    before: Any
    calls: list[Callable[[], object]]


_listening: dict[int, _Listening] = {}


@contextlib.contextmanager
def stopped_by(
    signals: Sequence[signal.Signals], loop: asyncio.AbstractEventLoop, stop: Callable[[], None]
) -> Iterator[None]:
    """Call `stop` in the loop at any of these signals."""
    if signals and threading.current_thread() is not threading.main_thread():
        raise ValueError("signals: only the main thread gets them; pass stop=, an asyncio.Event, instead")
    call = partial(loop.call_soon_threadsafe, stop)
    try:
        for number in signals:
            listening = _listening.get(number)
            if listening is not None:
                listening.calls.append(call)
            else:  # noted first: the signal may come as soon as it is taken
                _listening[number] = _Listening(signal.getsignal(number), [call])
                signal.signal(number, _on_signal)
        yield
    finally:
        for number in signals:
            listening = _listening.get(number)
            if listening is not None and call in listening.calls:
                listening.calls.remove(call)
                if not listening.calls:
                    _put_back(number)


def _on_signal(number: int, frame: object) -> None:
    for call in _listening[number].calls:
        call()
    if number == signal.SIGINT:
        _put_back(number)


def _put_back(number: int) -> None:
    """Restore the handler of before, unless somebody has set another one since."""
    before = _listening[number].before
    if signal.getsignal(number) is _on_signal:
        signal.signal(number, signal.SIG_DFL if before is None else before)
    del _listening[number]
