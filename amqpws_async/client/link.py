"""What a client's senders and receivers share: the task that keeps a link attached, wherever the connection is.

Life of a link::

    attach -> in use -> lost: attach again, at its own pace
                     -> the client moves: attach there, the old link's business done, detach here
                     -> redirected: attach elsewhere

Rules:

* `_keep` is a task of the client's and the only one that attaches; it changes `_link`, the link in use.
* `_links` has every link that is not over: the one in use last, before it those that a roll-over has left behind and
  that see their deliveries out.
* What ends the link for good is in `_stop`, as in every endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from ..endpoint import Endpoint, EndpointState
from ..errors import AMQPError, AttachError, EndpointClosed, LinkClosed, OpenError, StopReason, closed_error
from ..link import LinkHealth
from ..terminus import Target
from .backoff import GivenUp, Pace
from .redirect import redirect_in, redirected
from .retry import Retry, retry_of, stop_of
from .states import ClientState

if TYPE_CHECKING:
    from ..connection import Connection
    from ..link import Link
    from ..terminus import Source
    from .options import Outage
    from .session import ClientSession

__all__ = ["NO_LINK", "ClientLink"]

logger = logging.getLogger(__name__)


class _NoLink:
    """Stands for the link in use where there is none."""

    _state = EndpointState.CLOSED
    credit = 0


NO_LINK: Final = _NoLink()


class ClientLink(Endpoint):
    """A sender or a receiver that outlives its links."""

    role: ClassVar[Literal["sender", "receiver"]]
    """Which end of the link this is."""

    _links: list[Any]

    def __init__(self, session: ClientSession, address: str | None, outage: Outage | None, *, exclusive: bool) -> None:
        client = session.client
        super().__init__(client._loop, client._places[0].close_timeout)
        self._session = session
        self._client = client
        self._carrier = client._main
        self._address = address
        self._detour: str | None = None  # the address that a redirect gave
        self._fails_fast = (outage or client.options.outage) == "fail"
        self._exclusive = exclusive  # whether a second link of its kind would disturb the first
        self._pace = Pace(client.options.backoff, self._loop.time)
        self._link: Any = NO_LINK
        self._links = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = False  # to another connection, with the link on the old one still there
        self._suspect = False  # whether the last attach ended its session
        self._refusal: Exception | None = None  # what ended it
        self._lost: Exception | None = None  # what it was lost by last, or refused

    # --- what is known -----------------------------------------------------------------------

    @property
    def address(self) -> str | None:
        """The address of the peer's node; that of a dynamic node is another one after each attach."""
        return self._address if self._link is NO_LINK else self._link.address

    @property
    def attached(self) -> bool:
        """Whether there is a link in use now."""
        return self._link._state is EndpointState.OPEN

    @property
    def settled_in(self) -> bool:
        """Whether the link in use is on the connection in use, as it is unless the client moves."""
        return self.attached and self._link.session.connection is self._carrier.connection

    @property
    def link(self) -> Link | None:
        """The link in use, or None while there is none; for what only a link can tell. It is not yours to close."""
        return None if self._link is NO_LINK else self._link

    @property
    def session(self) -> ClientSession:
        """The session that this link is on."""
        return self._session

    @property
    def source(self) -> Source | None:
        """The source as the peer's last attach said it, or None before the first."""
        return None if self._link is NO_LINK else self._link.source

    @property
    def target(self) -> Target | None:
        """The target as the peer's last attach said it, or None before the first."""
        return None if self._link is NO_LINK else self._link.target

    def health(self) -> LinkHealth:
        """Say how the link is, for readiness probes; never waits."""
        link = self._link
        state = self._state
        if state is EndpointState.OPEN and not self.attached:
            state = EndpointState.OPENING
        return LinkHealth(
            name=link.name if link is not NO_LINK else "",
            role=self.role,
            address=self.address,
            state=state,
            credit=link.credit,
            unsettled=self._in_hand(),
        )

    def _in_hand(self) -> int:
        """Deliveries that `LinkHealth.unsettled` counts."""
        raise NotImplementedError

    @property
    def _where(self) -> str:
        where = "the anonymous terminus" if not self._address else repr(self._address)
        return f"{self.role} {'to' if self.role == 'sender' else 'from'} {where}"

    def __repr__(self) -> str:
        where = "attached" if self.attached else "not attached"
        return f"<{type(self).__name__} {self._address!r} {self._state.value}, {where}>"

    # --- opening -----------------------------------------------------------------------------

    async def _open(self) -> Self:
        """Attach for the first time."""
        self._client._links.append(self)
        try:
            self._start(self._keep())
            while self._state is EndpointState.OPENING:
                if self._fails_fast and (self._carrier.connection is None or self._lost is not None):
                    raise self._outage()
                await self._changed.wait()
        except BaseException:
            self._abandon()
            raise
        if self._state is not EndpointState.OPEN:
            if self._stop is None:
                self._client._check_open()  # the client closes: say that, rather than what it does to its links
            raise self._refusal or self._error()
        return self

    def _start(self, work: Any) -> None:
        task = self._client._spawn(work, self._where)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the task ----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Keep a link attached until it is given up."""
        try:
            while self._stop is None:  # the client's end is ours, and then there is nothing to wait for
                attached = False
                try:
                    link = await self._attach_on(await self._carrier.usable())
                    attached = True
                    self._suspect = False
                    self._pace.succeeded()
                    await self._adopt(link)
                    del link  # the client may move from it while this goes on
                    await self._watch(self._link)
                except (AMQPError, TimeoutError, OSError, ValueError) as error:
                    await self._recover(error, attached)
        except GivenUp as given_up:
            self._refusal = given_up.error
            for link in self._links:
                link._abandon()
            self._fail(stop_of(given_up.error, "link"))

    async def _watch(self, link: Any) -> None:
        """Look after the link in use, and its successors on other connections, until one is lost; raise why."""
        while True:
            while link.stop is None and self._carrier.connection is link.session.connection:
                await link._changed.wait()
            if link.stop is not None:
                raise link._error()
            try:
                link = await self._move(link)
            except (AMQPError, TimeoutError) as error:
                if link.stop is not None:
                    raise
                await asyncio.sleep(self._pace.failed(Retry.LATER, error))

    async def _recover(self, error: Exception, attached: bool) -> None:
        """Do what a loss or a refusal asks for before the next attach.

        Args:
            error: The loss of a link, or why there is none.
            attached: Whether it is a loss.
        """
        self._lost = error
        self._forget_lost()
        redirect = redirect_in(error)
        if redirect is not None and redirect.stop.endpoint == "link":
            try:
                place = redirected(self._carrier.place, redirect)
            except OpenError as forbidden:
                raise GivenUp(forbidden) from None
            delay = self._pace.failed(Retry.NOW, error, lost=attached)
            logger.info("< %s: redirected to %s", self._where, place.origin)
            await asyncio.sleep(delay)
            self._carrier = self._client._detours.carrier_to(place)
            self._detour = redirect.address
            self._client._changed.wake_all()
            return
        if self._carrier is not self._client._main or self._detour is not None:
            self._carrier, self._detour = self._client._main, None
            self._client._changed.wake_all()  # for who closes connections that nobody uses
        elif isinstance(error, EndpointClosed) and error.stop.endpoint == "connection":
            self._pace.interrupted()
            return  # the connection's carrier has its own pace
        delay = self._pace.failed(self._retry_of(error, attached), error, lost=attached)
        logger.warning("! %s: lost, attaching again in %.1f s: %s", self._where, delay, error)
        if delay:
            await asyncio.sleep(delay)

    def _retry_of(self, error: Exception, attached: bool) -> Retry:
        retry = retry_of(error, self._client.options.retries)
        if retry is not Retry.NEVER or not isinstance(error, EndpointClosed) or error.stop.endpoint != "session":
            return retry
        # Some peers end the session for what one of its links did: the others are innocent. Whose attach it ends twice
        # in a row is not.
        if attached:
            return Retry.NOW
        suspected, self._suspect = self._suspect, True
        return retry if suspected else Retry.LATER

    async def _move(self, link: Any) -> Any:
        """Leave a link for one on another connection, which is there or will be; return that.

        Where a second link would steal from the first, or is refused, the first is detached before.
        """
        self._moving = True
        try:
            return await self._move_from(link)
        finally:
            self._moving = False
            self._notify()

    async def _move_from(self, link: Any) -> Any:
        deadline = self._loop.time() + self._client.options.handover_timeout
        successor = None
        if not self._exclusive and self._carrier.connection is not None:
            try:
                successor = await self._attach_on(await self._carrier.usable())
            except AttachError as refused:
                logger.info("= %s: only one at a time, as it seems: %s", self._where, refused)
        await self._leave(link, deadline)
        if successor is not None:
            await self._adopt(successor)
            self._start(self._retire(link, deadline))
        else:
            self._give_back(link)
            await self._retire(link, deadline)
            successor = await self._attach_on(await self._carrier.usable())
            await self._adopt(successor)
        self._pace.succeeded()
        return successor

    async def _retire(self, link: Any, deadline: float) -> None:
        """See a link out that a roll-over has left: detach once nothing is in hand, or its time is up."""
        in_time = True
        try:
            async with asyncio.timeout_at(deadline):
                await self._settled(link)
        except TimeoutError:
            in_time = False
            left = link._link.unsettled
            logger.warning("! %s: %d deliveries were not settled in time, when the client moved", self._where, left)
        with contextlib.suppress(AMQPError, TimeoutError):
            await link._detach(closed=not link._durable, patient=in_time)
        self._forget_lost()

    # --- to be said by each kind ----------------------------------------------------------------

    async def _attach_on(self, connection: Connection) -> Any:
        """Attach there; the link in use may still be."""
        raise NotImplementedError

    async def _adopt(self, link: Any) -> None:
        """Make a link that has just been attached the one in use."""
        self._link = link
        self._lost = None  # its traceback holds all that was lost
        if self._state is EndpointState.OPENING:
            self._set_state(EndpointState.OPEN)
        self._notify()

    async def _leave(self, link: Any, deadline: float) -> None:
        """Stop using a link that is to be left."""
        raise NotImplementedError

    def _give_back(self, link: Any) -> None:
        """Give back what nobody has in hand of a link that has to go before the next one comes."""

    async def _settled(self, link: Any) -> None:
        """Wait until nothing of a link is in hand."""
        raise NotImplementedError

    def _quiesce(self) -> None:
        """Begin to finish: take and give no more."""
        raise NotImplementedError

    async def _finish(self) -> None:
        """Finish what is in hand."""
        raise NotImplementedError

    def _forget_lost(self) -> None:
        """Drop the links that are over."""
        self._links = [link for link in self._links if link.stop is None]
        self._notify()

    def _notify(self) -> None:
        """Have everybody look again: those who wait for a link, and those who wait for all of them."""
        self._changed.wake_all()
        self._client._changed.wake_all()

    def _here(self, terminus: Any) -> Any:
        """The terminus to attach to where a redirect has led."""
        if self._detour is None:
            return terminus
        return Target(self._detour) if terminus is None else dataclasses.replace(terminus, address=self._detour)

    # --- the client's calls ------------------------------------------------------------------

    def _nudge(self) -> None:
        """Look again at which connection is in use."""
        if self._link is not NO_LINK:
            self._link._changed.wake_all()
        self._changed.wake_all()

    def _error(self) -> EndpointClosed:
        """A new exception for an operation on a link that ends or has ended: the client's, where that is the one."""
        client = self._client
        return client._error() if self._stop is None and client.state is ClientState.CLOSING else super()._error()

    async def _wait_attached(self) -> None:
        """Wait for something to change while there is no link to use; raise where it is of no use."""
        self._check_open()
        if self._fails_fast and not self._moving:
            raise self._outage()
        await self._changed.wait()

    def _outage(self) -> EndpointClosed:
        """A new exception for who does not want to wait for the link to come back."""
        connection = self._carrier.connection
        if connection is None:
            return self._client._outage()
        if connection.stop is not None:  # just now
            return closed_error(connection.stop, self._where)
        description = f"not attached now, after: {self._lost}" if self._lost is not None else "not attached yet"
        return LinkClosed(StopReason("link", "transport", description=description, cause=self._lost), self._where)

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            super()._fail(stop)
            if self in self._client._links:
                self._client._links.remove(self)
            self._client._changed.wake_all()

    # --- closing -----------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what is in hand, within `close_timeout`, then detach with ``closed=true``.

        A second call waits for the first. Cancelling detaches without waiting.

        Raises:
            LinkClosed: The peer answered with an error.
            TimeoutError: The peer did not answer within `close_timeout`; the link is given up all the same.
        """
        await self._close(closed=True)

    async def detach(self) -> None:
        """Detach with ``closed=false``: the terminus lives on at the peer, as a durable subscription does.

        Otherwise as `close`.
        """
        await self._close(closed=False)

    async def _close(self, *, closed: bool) -> None:
        if self._stop is not None:
            return
        if self._state is EndpointState.CLOSING:
            await self.wait_closed()
            return
        deadline = self._loop.time() + self._close_timeout
        self._quiesce()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._finish()
            await self._stop_tasks()
            for link in list(self._links):
                await link._detach(closed=closed, deadline=deadline)
        except BaseException:
            self._abandon()
            raise
        self._fail(StopReason("link", "local"))

    async def _stop_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _abandon(self) -> None:
        if self._stop is None:
            for task in self._tasks:
                task.cancel()
            for link in self._links:
                link._abandon()
            self._fail(StopReason("link", "local"))
