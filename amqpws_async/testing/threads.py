"""The servers of this package on a thread of their own, to be used from any other thread and any event loop.

A test's fixtures are set up before its event loop is there, or on another one, and which runner makes it is the user's
choice. So a server gets a loop that is nobody else's, and `ServerThread.share` makes an object that passes calls on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import enum
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self, TypeVar, cast

__all__ = ["ServerThread"]

PATIENCE: Final = 30.0  # seconds for one call; most take less than a millisecond

_T = TypeVar("_T")


class ServerThread:
    """A thread with an event loop, for servers.

    ::

        with ServerThread() as thread:
            broker = thread.enter(Broker())  # a Broker to all intents
            broker.faults.detach_links("orders")
            asyncio.run(broker.disconnect())
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._thread = threading.Thread(target=self._run, name="amqpws_async.testing", daemon=True)
        self._entered: list[AbstractAsyncContextManager[Any]] = []

    def __enter__(self) -> Self:
        self._loop = self._runner.get_loop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for manager in reversed(self._entered):
                self.run(_leave(manager))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)

    def enter(self, manager: AbstractAsyncContextManager[_T]) -> _T:
        """Start a server; it is closed with the thread, the last one first.

        Returns:
            What it is, to be used from anywhere, as by `share`.
        """
        entered = self.run(manager.__aenter__())
        self._entered.append(manager)
        return self.share(entered)

    def share(self, server: _T) -> _T:
        """Make an object that can be used like the server, from any thread and any event loop.

        Its methods are called on the server's own loop, and return what they return there: a method waits, for a
        moment, a coroutine can be awaited on any loop. The same for what it gives out that is of this package.
        """
        return cast(_T, _Shared(self, server))

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function on the thread and wait for what it returns.

        Raises:
            TimeoutError: It took too long.
        """

        async def run() -> _T:
            return function()

        return self.run(run())

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the thread's loop and wait for what it returns.

        Raises:
            TimeoutError: It took too long.
        """
        return self.submit(coroutine).result(PATIENCE)

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the thread's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self) -> None:
        with self._runner:
            self._loop.run_forever()


async def _leave(manager: AbstractAsyncContextManager[Any]) -> None:
    # Clients may be on a loop that has ended, and would not answer a close in order.
    if (disconnect := getattr(manager, "disconnect", None)) is not None:
        await disconnect()
    await manager.__aexit__(None, None, None)


class _Shared:
    """Stands for an object that belongs to the loop of a `ServerThread`."""

    __slots__ = ("_target", "_thread")

    def __init__(self, thread: ServerThread, target: Any) -> None:
        object.__setattr__(self, "_thread", thread)
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        thread, target = self._thread, self._target
        value = thread.call(lambda: getattr(target, name))
        if not inspect.ismethod(value):
            return self._shared(value)
        if inspect.iscoroutinefunction(value):

            @functools.wraps(value)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return self._shared(await asyncio.wrap_future(thread.submit(value(*args, **kwargs))))

            return awaited

        @functools.wraps(value)
        def called(*args: Any, **kwargs: Any) -> Any:
            return self._shared(thread.call(functools.partial(value, *args, **kwargs)))

        return called

    def __setattr__(self, name: str, value: Any) -> None:
        self._thread.call(lambda: setattr(self._target, name, value))

    def __repr__(self) -> str:
        text: str = self._thread.call(lambda: repr(self._target))
        return text

    def _shared(self, value: Any) -> Any:
        """Share what belongs to the loop as well; what is a plain value may go anywhere."""
        if value is self._target:
            return self
        if isinstance(value, list):
            return [self._shared(item) for item in value]
        return self._thread.share(value) if _belongs(value) else value


def _belongs(value: object) -> bool:
    kind = type(value)
    plain = dataclasses.is_dataclass(kind) or isinstance(value, (enum.Enum, Exception))
    return kind.__module__.startswith("amqpws_async.testing.") and not plain
