"""Where a client is: its states, and the ways to follow them."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from ..endpoint import Waiters

if TYPE_CHECKING:
    import asyncio

__all__ = ["ClientState", "StateChange", "StateChanges"]

KEPT: Final = 1000  # changes that one who follows them may be behind; the oldest are dropped then


class ClientState(enum.Enum):
    """Where a client is in its life."""

    CONNECTING = "connecting"
    """It never had a connection yet."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """It has lost its connection, or given it up for another one."""
    CLOSING = "closing"
    CLOSED = "closed"
    """For good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """Something that happened to a client's connection.

    Attributes:
        state: Where the client is now. CONNECTED again straight after CONNECTED is a roll-over.
        origin: Scheme, host and port of the connection, or of the next attempt.
        attempt: Which retry in a row comes next, counted from 1, while CONNECTING or RECONNECTING; else 0.
        delay: Seconds until then; 0.0 for at once.
        error: What went wrong, or None. With CLOSED, why: None if it was closed by its user.
    """

    state: ClientState
    origin: str
    attempt: int = 0
    delay: float = 0.0
    error: Exception | None = None

    def __str__(self) -> str:
        text = f"{self.state.value} {self.origin}"
        if self.attempt:
            text += f", retry {self.attempt} in {self.delay:.1f} s"
        return f"{text}: {self.error}" if self.error is not None else text


class StateChanges:
    """Made by `Client.states`: an async iterator, first of where the client is, then of each change.

    It ends after CLOSED. Cancelling ``anext`` loses nothing. Who is 1 000 changes behind misses the oldest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, current: StateChange) -> None:
        self._changes: deque[StateChange] = deque([current], KEPT)
        self._waiting = Waiters(loop)
        self._ended = current.state is ClientState.CLOSED

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        """Give the next change."""
        while not self._changes:
            if self._ended:
                raise StopAsyncIteration
            await self._waiting.wait()
        return self._changes.popleft()

    def _on_change(self, change: StateChange) -> None:
        self._changes.append(change)
        self._ended = change.state is ClientState.CLOSED
        self._waiting.wake_all()
