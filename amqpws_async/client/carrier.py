"""One connection to one place, kept alive: attempts, backoff, redirects, roll-over.

Life of a carrier::

    attempts -> a connection in use -> lost: attempts again
                                    -> due: a second connection -> the links move -> the first is closed

Rules:

* `run` is a task of the client's and the only one that changes `connection`. Everybody else waits for `changed` and
  looks again.
* A connection that was rolled over stays until its links have left it, or its time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..auth.tokens import Token, as_provider
from ..connection import Connection, another_token, open_connection
from ..endpoint import EndpointState, Waiters
from ..errors import AMQPError, ConnectionClosed, EndpointClosed, HandshakeError, OpenError, StopReason, closed_error
from ..options import ConnectionOptions
from .backoff import Backoff, GivenUp, Pace
from .redirect import redirect_in, redirected
from .retry import Retry, retry_after, retry_of, stop_of
from .states import ClientState, StateChange

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Carrier"]

logger = logging.getLogger(__name__)

MAX_REDIRECTS: Final = 5  # in a row

LIFE_USED: Final = (0.85, 0.9)
"""Of the life that a token has left when a connection opens with it, the part after which the connection is replaced,
by chance between these two. Providers that renew at 80 %, as `TokenRefresher` does, have another token by then."""

LEAST_LIFE: Final = 1.0  # seconds; a token with less left has no successor, and is used until the peer ends it

UNAUTHORIZED: Final = "amqp:unauthorized-access"

CONFLICT: Final = 409  # the HTTP status by which a second connection is refused

ONLY_ONE: Final = frozenset(
    f"amqp:{name}" for name in ("invalid-field", "not-allowed", "resource-limit-exceeded", "resource-locked")
)
"""Conditions by which a second connection is refused."""


class Carrier:
    """Keeps one connection alive.

    Attributes:
        places: Where it may connect to.
        connection: The connection in use, or None while there is none; it may have stopped just now.
        stop: Why there will be no other any more, or None.
        changed: Woken at every change of these two.
    """

    def __init__(self, client: Client, places: Sequence[ConnectionOptions], backoff: Backoff) -> None:
        self._client = client
        self._loop = client._loop
        self._options = client.options
        self.places = tuple(places)
        self.connection: Connection | None = None
        self.stop: StopReason | None = None
        self.changed = Waiters(self._loop)
        self._pace = Pace(backoff, self._loop.time)
        self._round: deque[ConnectionOptions] = deque()  # places that this round has not tried yet
        self._ruled_out: list[ConnectionOptions] = []  # places that have refused us for good, since the last connection
        self._busy: dict[str, float] = {}  # when, by the loop's clock, URLs whose server asked us to wait may be tried
        self._last = self.places[0]  # the place in use, or tried last
        self._stale: Token | None = None  # one that the peer has had enough of
        self._connections: list[Connection] = []
        self._asked: list[asyncio.Future[None]] = []  # who wants a roll-over

    # --- for the links -----------------------------------------------------------------------

    async def usable(self) -> Connection:
        """Wait for an open connection; cancelling stops the waiting alone.

        Raises:
            ConnectionClosed: There will be none.
        """
        while True:
            connection = self.connection
            if connection is not None and connection.state is EndpointState.OPEN:
                return connection
            if self.stop is not None:
                raise closed_error(self.stop, self.origin)
            await self.changed.wait()

    def connections(self) -> list[Connection]:
        """Every connection that has a task: the one in use, those that links are still to leave, those just lost."""
        self._connections = [connection for connection in self._connections if not connection._runner.over]
        return self._connections

    @property
    def place(self) -> ConnectionOptions:
        """Where it is connected, or was last, or tries to be."""
        return self._last

    @property
    def origin(self) -> str:
        """Scheme, host and port of `place`."""
        return self._last.origin

    async def roll_over(self) -> None:
        """Have the connection replaced, and wait until it is; cancelling stops the waiting alone.

        Raises:
            OpenError: No second connection came about, and the first stays in use. Likewise what else `connect` raises.
            ConnectionClosed: There will be none.
        """
        connection = await self.usable()
        replaced: asyncio.Future[None] = self._loop.create_future()
        self._asked.append(replaced)
        connection._changed.wake_all()
        await replaced

    # --- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection until it is given up."""
        error: Exception | None = None
        retry = Retry.NOW
        try:
            while True:
                self._use(await self._establish(error, retry))
                error = None  # its traceback holds all that was lost
                error, retry = await self._carry()
        except GivenUp as given_up:
            self._end(given_up.error)
        finally:
            self._answer(None)
            if self.stop is None:  # the client ends: who waits for a connection need not any more
                self.stop = StopReason("connection", "local")
                self.changed.wake_all()

    def _use(self, connection: Connection) -> None:
        self._pace.succeeded()
        self._round.clear()
        self._ruled_out.clear()
        self._connections = [*(other for other in self.connections() if other is not connection), connection]
        self.connection = connection
        self._answer(None)
        self.changed.wake_all()
        self._announce(ClientState.CONNECTED)

    def _end(self, error: Exception) -> None:
        self.connection = None
        self.stop = stop_of(error, "connection")
        self._answer(error)
        self.changed.wake_all()
        self._client._on_carrier_ended(self, self.stop, error)

    def give_up(self, stop: StopReason) -> None:
        """The client has ended: tell whoever waits for a connection that there will be none."""
        self.connection = None
        self.stop = self.stop or stop
        self.changed.wake_all()

    def _answer(self, error: Exception | None) -> None:
        """Tell those who asked for a roll-over."""
        asked, self._asked = self._asked, []
        for replaced in asked:
            if replaced.done():
                continue
            if error is None:
                replaced.set_result(None)
            else:
                replaced.set_exception(error)

    def _announce(self, state: ClientState, *, delay: float = 0.0, error: Exception | None = None) -> None:
        attempt = 0 if state is ClientState.CONNECTED else max(1, self._pace.failures)
        change = StateChange(state=state, origin=self.origin, attempt=attempt, delay=delay, error=error)
        self._client._on_carrier_changed(self, change)

    # --- connecting --------------------------------------------------------------------------

    async def _establish(self, error: Exception | None, retry: Retry) -> Connection:
        """Connect, in as many attempts as it takes.

        Args:
            error: What the last connection ended with, or None where nothing went wrong.
            retry: What follows that.

        Raises:
            GivenUp: An error is final, or there were too many.
        """
        lost = True
        while True:
            detour = redirect_in(error) if error is not None else None
            place = self._last
            if error is not None:
                more = bool(self._round) and detour is None
                delay = self._pace.failed(retry, error, asked=self._asked_to_wait(), more=more, lost=lost)
                waiting = self._client.state is ClientState.CONNECTING
                self._announce(
                    ClientState.CONNECTING if waiting else ClientState.RECONNECTING, delay=delay, error=error
                )
                if delay:
                    await asyncio.sleep(delay)
            try:
                place = self._next() if detour is None else redirected(place, detour)
                return await self._open(place, self._stale)
            except Exception as failure:
                error, lost = failure, False
                self._busy[place.url] = self._loop.time() + retry_after(failure)
                retry = await self._judge(failure, place)

    async def _judge(self, failure: Exception, place: ConnectionOptions) -> Retry:
        """Say what follows an attempt that failed."""
        retry = retry_of(failure, self._options.retries)
        if retry is not Retry.NEVER:
            return retry
        if _unauthorized(failure) and place.token is not None and self._stale is None:
            # The upgrade took the token, and AMQP did not: another one, once.
            with contextlib.suppress(Exception):  # the next attempt shows it
                async with asyncio.timeout(place.open_timeout):
                    self._stale = await as_provider(place.token).token()
            return Retry.NOW
        # Another place may have us.
        self._ruled_out.append(place)
        self._round = deque(other for other in self._round if other not in self._ruled_out)
        left = [other for other in self.places if other not in self._ruled_out]
        return Retry.LATER if left and place in self.places else Retry.NEVER

    async def _open(self, place: ConnectionOptions, stale: Token | None) -> Connection:
        """One attempt, redirects included."""
        for _ in range(MAX_REDIRECTS):
            self._last = place
            try:
                return await open_connection(place, stale=stale)
            except ConnectionClosed as closed:
                redirect = redirect_in(closed)
                if redirect is None:
                    raise
                place = redirected(place, redirect)
                logger.info("< %s: redirected to %s", self._last.origin, place.origin)
        raise OpenError(f"{place.origin}: gave up after {MAX_REDIRECTS} redirects of the connection")

    def _next(self) -> ConnectionOptions:
        """The next place of the round; a new round begins with the place that was in use."""
        if not self._round:
            places = list(self.places)
            if self._options.randomize:
                random.shuffle(places)
            elif self._last in places:
                first = places.index(self._last)
                places = places[first:] + places[:first]
            places = [place for place in places if place not in self._ruled_out]
            now = self._loop.time()
            self._round.extend([place for place in places if self._busy.get(place.url, 0.0) <= now] or places)
        return self._round.popleft()

    def _asked_to_wait(self) -> float:
        """Seconds until the first place may be tried."""
        free = [self._busy.get(place.url, 0.0) for place in self.places if place not in self._ruled_out]
        return max(0.0, min(free, default=0.0) - self._loop.time())

    # --- a connection in use -----------------------------------------------------------------

    async def _carry(self) -> tuple[Exception | None, Retry]:
        """Look after the connection in use, and its successors, until none is left.

        Returns:
            What it ended with, None if it was given up for the next one, and what follows.
        """
        connection = self.connection
        assert connection is not None
        opened = self._loop.time()
        age_due, token_due = self._dues(connection)
        pace = Pace(Backoff(), self._loop.time)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(age_due, token_due)):
                    while connection.stop is None and not self._asked:
                        await connection._changed.wait()
            if connection.stop is not None:
                return self._lost(connection, opened)
            # By which of the two is due, as a timer may be a little early by the clock that set it.
            due_for_token = token_due <= (self._loop.time() if self._asked else age_due)
            successor = await self._second(connection, connection.token if due_for_token else None)
            now = self._loop.time()
            if connection.stop is not None and not isinstance(successor, Connection):
                return self._lost(connection, opened)
            if successor is None:  # there is no other token yet
                left = _left(connection)
                token_due = now + left / 2 if left > LEAST_LIFE else math.inf
            elif isinstance(successor, Connection):
                former, connection, opened = connection, successor, now
                age_due, token_due = self._dues(connection)
                pace.succeeded()
                self._use(connection)
                self._client._nudge()
                with contextlib.suppress(EndpointClosed):  # the client closes, and both connections with it
                    self._client._spawn(self._retire(former), "roll-over")
                del former, successor  # not kept for as long as this one lasts
            elif _wants_one(successor):
                await self._make_way(connection, successor)
                return None, Retry.NOW
            else:
                self._answer(successor)
                delay = pace.failed(Retry.LATER, successor, asked=retry_after(successor))
                logger.warning(
                    "! %s: no second connection to move to, next attempt in %.1f s: %s", self.origin, delay, successor
                )
                age_due, token_due = (due if due > now else now + delay for due in (age_due, token_due))

    async def _second(self, connection: Connection, stale: Token | None) -> Connection | Exception | None:
        """Open a second connection beside the one in use, whose loss is noticed meanwhile.

        Args:
            connection: The one in use.
            stale: Its token, where it is to be replaced for that.

        Returns:
            The second connection, why there is none, or None where there is no other token yet.
        """
        found: list[Connection | Exception | None] = []

        async def attempt() -> None:
            try:
                if stale is not None and not await self._has_successor(connection):
                    found.append(None)
                    return
                second = await self._open(connection.options, stale)
                self.connections().append(second)  # from here on the client closes it, whatever comes
                found.append(second)
            except Exception as failure:
                self._last = connection.options
                found.append(failure)
            finally:
                connection._changed.wake_all()

        task = self._client._spawn(attempt(), "roll-over")
        try:
            while not found and connection.stop is None:
                await connection._changed.wait()
        finally:
            task.cancel()  # if the first is lost, the next attempt is an ordinary one, which knows other places
        await asyncio.wait([task])
        return found[0] if found else None

    def _dues(self, connection: Connection) -> tuple[float, float]:
        """When to replace a connection that has just opened: for its age, and for its token's; on the loop's clock."""
        now, options = self._loop.time(), self._options
        age, token = options.max_connection_age, math.inf
        if options.roll_over and connection.token is not None and connection.token.expiry is not None:
            left = _left(connection)
            if left > LEAST_LIFE:  # else it has expired by our clock, and was taken all the same
                token = now + left * random.uniform(*LIFE_USED)
        return math.inf if age is None else now + age * random.uniform(0.9, 1.0), token

    async def _has_successor(self, connection: Connection) -> bool:
        """Whether there is another token than the connection's."""
        assert connection.token is not None
        assert connection.options.token is not None
        async with asyncio.timeout(connection.options.open_timeout):
            token = await another_token(as_provider(connection.options.token), connection.token)
        return token.value != connection.token.value

    def _lost(self, connection: Connection, opened: float) -> tuple[Exception, Retry]:
        """The connection in use has stopped: say with what, and what follows."""
        self.connection = None
        stop, self._stale, refused_before = self._stop_of(connection), None, self._stale is not None
        self.changed.wake_all()
        error = closed_error(stop, self.origin)
        retry = retry_of(error, self._options.retries)
        if stop.initiator == "remote" and stop.condition == UNAUTHORIZED and connection.token is not None:
            # An expired token looks like this. With another one, a second time soon after is final.
            stable = self._loop.time() - opened >= self._options.backoff.stable_after
            if stable or not refused_before:
                self._stale, retry = connection.token, Retry.NOW
        return error, retry

    def _stop_of(self, connection: Connection) -> StopReason:
        stop = connection.stop
        assert stop is not None
        return stop

    async def _make_way(self, connection: Connection, refusal: Exception) -> None:
        """The peer allows no second connection: leave the first one in order, before the next."""
        self.connection = None
        logger.info("= %s: only one connection at a time, as it seems: leaving it for the next", self.origin)
        self._announce(ClientState.RECONNECTING, error=refusal)
        self._client._nudge()
        await self._retire(connection)

    async def _retire(self, connection: Connection) -> None:
        """Close a connection once its links have left it, or their time is up."""
        timeout = self._options.handover_timeout
        try:
            async with asyncio.timeout(timeout):
                while connection.stop is None and connection.health().links:
                    await self._client._changed.wait()
        except TimeoutError:
            logger.info("! %s: what was in hand on the old connection was not done after %g s", self.origin, timeout)
        with contextlib.suppress(AMQPError, TimeoutError):
            await connection.close()


def _left(connection: Connection) -> float:
    """Seconds until the connection's token expires."""
    assert connection.token is not None
    assert connection.token.expiry is not None
    return connection.token.expiry - time.time()


def _wants_one(failure: Exception) -> bool:
    """Whether the peer refuses a second connection, rather than being in trouble."""
    if isinstance(failure, HandshakeError):
        return failure.status == CONFLICT
    return isinstance(failure, ConnectionClosed) and failure.stop.condition in ONLY_ONE


def _unauthorized(failure: Exception) -> bool:
    """Whether the peer closed, straight after the open, because of who we are."""
    return isinstance(failure, ConnectionClosed) and failure.stop.condition == UNAUTHORIZED
