"""What connection, session and link share: opening, the stop reason, waiting, closing.

Rules:

* `_stop` is written once, by `_fail`; from then on every operation raises an exception built from it.
* A waiter is only ever *signalled*: whoever waits looks again at the state after waking. So nothing is lost when a
  waiter is cancelled, and no future carries an exception that might never be retrieved.
* Closing is idempotent; leaving ``async with`` never hides the exception of its body.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from .errors import AMQPError, EndpointClosed, StopReason, closed_error

__all__ = ["Endpoint", "EndpointState", "Opening"]

logger = logging.getLogger(__name__)

BODY_FAILED_TIMEOUT = 1.0  # seconds for a close whose `async with` body raised: the body's exception is what matters


class EndpointState(enum.Enum):
    """Where an endpoint is in its life."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Waiters(deque["asyncio.Future[None]"]):
    """Tasks waiting for the same thing, woken in the order they came; false while there are none."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def wake(self, count: int = 1) -> None:
        """Signal the first `count` waiters."""
        while count > 0 and self:
            future = self.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1

    def wake_all(self) -> None:
        """Signal every waiter."""
        if self:
            self.wake(len(self))

    async def wait(self) -> None:
        """Wait for a signal; cancelling passes a signal already given on to the next waiter."""
        future = self._loop.create_future()
        self.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                if future in self:
                    self.remove(future)
            else:
                self.wake()
            raise


class Endpoint:
    """A connection, session or link."""

    def __init__(self, loop: asyncio.AbstractEventLoop, close_timeout: float) -> None:
        self._loop = loop
        self._close_timeout = close_timeout
        self._state = EndpointState.OPENING
        self._stop: StopReason | None = None  # written once, by _fail
        self._changed = Waiters(loop)  # woken at every change of state

    # --- to be said by each kind --------------------------------------------------

    @property
    def _where(self) -> str:
        """How errors name this endpoint."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the endpoint."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Give the endpoint up without waiting: what can be queued at once is, nothing is awaited."""
        raise NotImplementedError

    # --- state --------------------------------------------------------------------

    @property
    def state(self) -> EndpointState:
        """Where this endpoint is in its life."""
        return self._state

    @property
    def stop(self) -> StopReason | None:
        """Why this endpoint stopped, or None while it has not."""
        return self._stop

    def _set_state(self, state: EndpointState) -> None:
        self._state = state
        self._changed.wake_all()

    def _fail(self, stop: StopReason) -> None:
        """Record why the endpoint stopped and wake everybody; only the first reason counts."""
        if self._stop is None:
            self._stop = stop
            self._set_state(EndpointState.CLOSED)

    def _error(self) -> EndpointClosed:
        """A new exception for an operation on an endpoint that stops or has stopped."""
        stop = self._stop or StopReason(self._kind, "local")
        return closed_error(stop, self._where)

    _kind: Any = "link"

    def _check_open(self) -> None:
        if self._state is not EndpointState.OPEN:
            raise self._error()

    async def wait_closed(self) -> None:
        """Wait until this endpoint has stopped, however that comes; `stop` then says why.

        Cancelling stops the waiting alone.
        """
        while self._stop is None:
            await self._changed.wait()

    # --- async with -----------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, quickly and without raising over its exception."""
        if error is None:
            await self.close()
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._abandon()
        else:
            try:
                async with asyncio.timeout(BODY_FAILED_TIMEOUT):
                    await self.close()
            except (AMQPError, TimeoutError, OSError) as exc:
                logger.info("= %s: close after an error in the body failed: %s", self._where, exc)
                self._abandon()

    def _warn_unclosed(self, dropped: Any) -> None:
        warnings.warn(
            f"{dropped!r} was never closed: use `async with`, or await its close()",
            ResourceWarning,
            stacklevel=3,
            source=dropped,
        )


E = TypeVar("E", bound=AbstractAsyncContextManager[Any, Any])


class Opening(Generic[E]):
    """What an opener returns: await it, or use it in ``async with``, for the open endpoint.

    An endpoint that was awaited is the caller's to close. Cancelling undoes what was begun.
    """

    __slots__ = ("_endpoint", "_open")

    def __init__(self, open: Callable[[], Awaitable[E]]) -> None:
        self._open = open
        self._endpoint: E | None = None

    def __await__(self) -> Generator[Any, None, E]:
        return self._open().__await__()

    async def __aenter__(self) -> E:
        self._endpoint = await self._open()
        return self._endpoint

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        endpoint = self._endpoint
        assert endpoint is not None
        self._endpoint = None
        await endpoint.__aexit__(kind, error, traceback)
