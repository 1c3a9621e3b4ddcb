"""`Client`: a connection that comes back, and the senders and receivers that outlive it.

Tasks: the client creates one, `_run`, keeps it and awaits it. In it a TaskGroup holds one task for each carrier and
each link, and those that see an old link or connection out after a roll-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import uuid
import weakref
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from ..connection import Connection, Health
from ..endpoint import BODY_FAILED_TIMEOUT, Opening, Waiters
from ..errors import (
    AMQPError,
    ConnectionClosed,
    EndpointClosed,
    LocalProtocolError,
    StopReason,
    closed_error,
)
from ..link import LinkHealth
from ..options import ConnectionOptions, SessionOptions
from ..terminus import SenderSettleMode, as_source, as_target
from .carrier import Carrier
from .detours import Detours
from .options import ClientOptions, ClientReceiverOptions, ClientSenderOptions
from .outbox import Outbox, OutboxOptions
from .receiver import ClientReceiver
from .sender import ClientSender
from .session import ClientSession
from .states import ClientState, StateChange, StateChanges

if TYPE_CHECKING:
    from ..options import SessionArguments
    from ..terminus import Source, Target
    from .link import ClientLink
    from .options import ClientArguments, ClientReceiverArguments, ClientSenderArguments
    from .outbox import OutboxArguments

__all__ = ["Client", "ClientHealth"]

logger = logging.getLogger(__name__)

_OWN: Final = tuple(field.name for field in dataclasses.fields(ClientOptions))


class _Over(Exception):
    """Ends the client's task group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """A client, as probes see it.

    Attributes:
        state: Where the client is.
        ready: Whether it is connected and every link attached: what a readiness probe asks.
        attempt: Which retry in a row comes next, counted from 1; 0 while connected.
        error: What went wrong last, or None while connected.
        connection: The connection in use, or None.
        links: Every link of the client.
    """

    state: ClientState
    ready: bool
    attempt: int
    error: Exception | None
    connection: Health | None
    links: tuple[LinkHealth, ...]


class Client:
    """Keeps a connection to a broker alive; its senders and receivers outlive connections.

    ::

        async with Client("wss://broker.example/protocols/amqp10ws", token=tokens) as client:
            async with client.sender("queue:orders", on_unknown="resend") as sender:
                await sender.send(Message(b"one"))  # waits through an outage

    Lost connections, sessions and links come back by themselves, each at its own level: what a lost link costs is a
    link. Every attempt asks for a valid token. What another attempt would not change, such as a wrong password, ends
    the client (or the link) at once, with the reason; `RETRIES` says what that is.

    It belongs to the event loop it is opened in, and any number of its tasks may share it. It can be made without a
    loop, and is opened once.

    Args:
        urls: The broker's URL, or several to choose from: see `ClientOptions.randomize`.
        **options: The fields of `ClientOptions`, and those of `ConnectionOptions` beside `url`.

    Raises:
        TypeError: An unknown option.
        ValueError: An option is out of range or unsafe.
    """

    def __init__(self, urls: str | Sequence[str], **options: Unpack[ClientArguments]) -> None:
        given: dict[str, Any] = dict(options)
        self.options = ClientOptions(**{name: given.pop(name) for name in _OWN if name in given})
        # One container id for all connections: brokers know durable subscriptions by it.
        given.setdefault("container_id", f"amqpws-async-{uuid.uuid4().hex}")
        places = [urls] if isinstance(urls, str) else list(urls)
        if not places:
            raise ValueError("urls: at least one")
        self._places = tuple(ConnectionOptions(url=url, **given) for url in places)
        self._change = StateChange(state=ClientState.CONNECTING, origin=self._places[0].origin)
        self._stop: StopReason | None = None
        self._final: Exception | None = None
        self._ending: list[Connection] = []  # those that the client's end has aborted
        self._task: asyncio.Task[None] | None = None
        self._watching: weakref.WeakSet[StateChanges] = weakref.WeakSet()

    # --- what is known -----------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """Where the client is in its life."""
        return self._change.state

    @property
    def stop(self) -> StopReason | None:
        """Why the client has ended, or None while it has not."""
        return self._stop

    @property
    def connection(self) -> Connection | None:
        """The connection in use now, or None; for what only a connection can tell. It is not yours to close."""
        return self._main.connection if self._task is not None else None

    @property
    def container_id(self) -> str:
        """Our container id, the same on every connection."""
        return self._places[0].container_id

    def ready(self) -> bool:
        """Whether the client is connected and every link attached, for readiness probes; never waits."""
        if self._task is None or self.state is not ClientState.CONNECTED:
            return False
        return self._main.connection is not None and all(link.attached or link._moving for link in self._links)

    def health(self) -> ClientHealth:
        """Say how the client is, for probes; never waits."""
        connection, change = self.connection, self._change
        return ClientHealth(
            state=change.state,
            ready=self.ready(),
            attempt=change.attempt,
            error=change.error,
            connection=None if connection is None else connection.health(),
            links=tuple(link.health() for link in self._links) if self._task is not None else (),
        )

    def states(self) -> StateChanges:
        """Follow the client's states: an async iterator, which begins with where it is and ends after CLOSED."""
        changes = StateChanges(asyncio.get_running_loop(), self._change)
        self._watching.add(changes)
        return changes

    def __repr__(self) -> str:
        return f"<Client {self._change.origin} {self.state.value}>"

    # --- opening -----------------------------------------------------------------------------

    async def open(self) -> Self:
        """Start, and wait for the first connection, unless `ClientOptions.background` says otherwise.

        Cancelling ends the client; no socket and no task stay behind.

        Returns:
            The client.

        Raises:
            OpenError: The failure is final, or the backoff's limits are reached; likewise what else `connect` raises.
                What is tried again is not raised, but logged, and shown by `states`.
            LocalProtocolError: It was opened before.
        """
        if self._task is not None:
            raise LocalProtocolError("a Client is opened once: make another one")
        self._loop = loop = asyncio.get_running_loop()
        self._changed = Waiters(loop)
        self._over = asyncio.Event()
        self._links: list[ClientLink] = []
        self._main = Carrier(self, self._places, self.options.backoff)
        self._detours = Detours(self)
        self._default = ClientSession(self, SessionOptions())
        self._group: asyncio.TaskGroup | None = None
        self._task = loop.create_task(self._run(), name=f"amqpws_async client {self.container_id}")
        try:
            if self.options.background:
                await asyncio.sleep(0)
                return self
            while self.state in (ClientState.CONNECTING, ClientState.CLOSING) and self._stop is None:
                await self._changed.wait()
        except BaseException:
            await self._abort()
            raise
        if self._stop is not None:
            await asyncio.wait([self._task])
            raise self._final or self._error()
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, quickly, and if it was cancelled, at once."""
        if error is None:
            await self.close()
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            await self._abort()
        else:
            try:
                async with asyncio.timeout(BODY_FAILED_TIMEOUT):
                    await self.close()
            except TimeoutError:
                logger.info("= %s: close after an error in the body took too long", self._change.origin)

    # --- sessions and links ------------------------------------------------------------------

    def session(self, **options: Unpack[SessionArguments]) -> Opening[ClientSession]:
        """Make a session for links of its own; await it, or use it in ``async with``.

        It begins with its first link, and again on each connection.

        Args:
            **options: The fields of `SessionOptions`.

        Raises:
            ConnectionClosed: The client has ended.
            ValueError: An option is out of range.
        """
        made = SessionOptions(**options)

        async def open() -> ClientSession:
            self._check_open()
            return ClientSession(self, made)

        return Opening(open)

    def sender(self, target: str | Target | None, **options: Unpack[ClientSenderArguments]) -> Opening[ClientSender]:
        """Attach a sender that outlives connections; await it, or use it in ``async with``.

        Cancelling detaches the half-open link.

        Args:
            target: As for `Session.sender`.
            **options: The fields of `ClientSenderOptions`.

        Raises:
            AttachError: The peer refused the terminus, finally (`RETRIES`).
            ConnectionClosed: The client has ended, or, with ``outage="fail"``, there is no connection now.
            ValueError: An option is out of range.
        """
        made, terminus = ClientSenderOptions(**options), as_target(target)

        async def open() -> ClientSender:
            self._check_open()
            return await ClientSender(self._default, terminus, made)._open()

        return Opening(open)

    def receiver(self, source: str | Source, **options: Unpack[ClientReceiverArguments]) -> Opening[ClientReceiver]:
        """Attach a receiver that outlives connections; await it, or use it in ``async with``.

        Cancelling detaches the half-open link.

        Args:
            source: As for `Session.receiver`.
            **options: The fields of `ClientReceiverOptions`.

        Raises:
            AttachError: The peer refused the terminus, finally (`RETRIES`).
            ConnectionClosed: The client has ended, or, with ``outage="fail"``, there is no connection now.
            ValueError: An option is out of range.
        """
        made, terminus = ClientReceiverOptions(**options), as_source(source)

        async def open() -> ClientReceiver:
            self._check_open()
            return await ClientReceiver(self._default, terminus, made)._open()

        return Opening(open)

    def outbox(
        self, target: str | Target | None, path: str | Path | None = None, **options: Unpack[OutboxArguments]
    ) -> Opening[Outbox]:
        """Open an outbox: messages are stored first, then sent; await it, or use it in ``async with``.

        It takes messages at once, whether there is a connection or not. Cancelling leaves no file open.

        Args:
            target: As for `Session.sender`.
            path: The file to store in, new or from before; None, the default, stores in memory.
            **options: The other fields of `OutboxOptions`.

        Raises:
            OutboxError: The file cannot be used; the text says why.
            ConnectionClosed: The client has ended.
            ValueError: An option is out of range.
        """
        OutboxOptions(path=path, **options)
        terminus = as_target(target)

        async def open() -> Outbox:
            self._check_open()
            # Not awaited here: what is to be sent is stored before there is a link.
            sender = self.sender(
                terminus, on_unknown="resend", outage="wait", snd_settle_mode=SenderSettleMode.UNSETTLED
            )
            address = terminus.address if terminus is not None else None
            return await Outbox(sender, path, address=address, **options).open()

        return Opening(open)

    async def roll_over(self) -> None:
        """Move to a second connection now, opened with a valid token, and close the first one behind.

        Returns once the second is in use and every link has moved; the first may stay for `handover_timeout`, for
        deliveries in hand. While there is no connection this waits for the next one. Cancelling stops the waiting
        alone.

        Raises:
            OpenError: No second connection came about, and the first stays in use. Likewise what else `connect` raises.
            ConnectionClosed: The client has ended.
        """
        self._check_open()
        await self._main.roll_over()
        while self._stop is None and not all(link.settled_in for link in self._links):
            await self._changed.wait()
        self._check_open()

    # --- closing -----------------------------------------------------------------------------

    async def close(self) -> None:
        """Close in order, within `close_timeout`.

        Receivers take no more: `process` finishes what its handlers have, who may send for it, for at most half of the
        time; what nobody took is released. Then no new message is sent; outcomes in flight are waited for, and so are
        resends while there is time. Then every link and connection is closed. What a peer says to that is only logged.
        Who still waits for an outcome afterwards gets `DeliveryUnknown`. A second call waits for the first. Cancelling
        drops the network connection at once.
        """
        task = self._task
        if task is None:  # never opened
            return
        self._check_loop()
        if self._stop is not None or self.state is ClientState.CLOSING:
            await asyncio.wait([task])
            return
        self._announce(StateChange(state=ClientState.CLOSING, origin=self._change.origin))
        deadline = self._loop.time() + self._places[0].close_timeout
        try:
            async with asyncio.timeout_at(deadline):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at((self._loop.time() + deadline) / 2):
                        await _finish([link for link in self._links if link.role == "receiver"])
                await _finish([link for link in self._links if link.role == "sender"])
                self._over.set()
                await asyncio.wait([task])
        except TimeoutError:
            logger.info("! %s: not everything was done when close_timeout had passed", self._change.origin)
            await self._abort()
        except BaseException:
            await self._abort()
            raise

    async def _abort(self) -> None:
        """End at once, and wait for the task, which then takes no time."""
        assert self._task is not None
        self._end(StopReason("connection", "local"), None)
        await asyncio.wait([self._task])

    def _end(self, stop: StopReason, error: Exception | None) -> None:
        """Record why the client ends, fail everybody, and let the task end; only the first reason counts."""
        if self._stop is not None:
            return
        self._stop, self._final = stop, error
        links = list(self._links)  # kept until their connections are given up: a link that is dropped before warns
        for link in links:
            link._fail(stop)
        self._ending = self._connections()
        for connection in self._ending:
            connection._abandon()
        for carrier in self._carriers():
            carrier.give_up(stop)
        self._over.set()
        self._announce(StateChange(state=ClientState.CLOSED, origin=self._change.origin, error=error))

    # --- the task ----------------------------------------------------------------------------

    async def _run(self) -> None:
        """Hold every other task of the client until it ends."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._spawn(self._main.run(), "connection")
                await self._over.wait()
                raise _Over
        except* _Over:
            self._group = None
            connections = self._connections()  # those that `close` has left to be closed in order
            for connection in connections:
                if connection.stop is not None:  # lost just now, and perhaps waiting for the peer's WebSocket close
                    connection._abandon()
            for connection in connections:
                with contextlib.suppress(AMQPError, TimeoutError):
                    await connection.close()
        except* Exception as failed:
            cause = failed.exceptions[0]
            logger.error("! %s: the client failed", self._change.origin, exc_info=cause)
            text = f"a fault in the client: {type(cause).__name__}"
            self._end(StopReason("connection", "local", "amqp:internal-error", text, cause=cause), None)
        finally:
            self._group = None
            closing = self.state is ClientState.CLOSING
            why = None if closing else "the event loop is shutting down"
            self._end(StopReason("connection", "local", description=why), None)
            for connection in self._ending:
                await connection._runner.finished()
            self._ending = []

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Start a task of the client's."""
        group = self._group
        if group is None:
            work.close()
            raise self._error()
        return group.create_task(work, name=f"{what} of {self.container_id}")

    # --- for carriers and links --------------------------------------------------------------

    def _carriers(self) -> list[Carrier]:
        return [self._main, *self._detours]

    def _connections(self) -> list[Connection]:
        return [connection for carrier in self._carriers() for connection in carrier.connections()]

    def _on_carrier_changed(self, carrier: Carrier, change: StateChange) -> None:
        if carrier is self._main and self.state not in (ClientState.CLOSING, ClientState.CLOSED):
            self._announce(change)
        else:
            logger.info("= %s", change)

    def _on_carrier_ended(self, carrier: Carrier, stop: StopReason, error: Exception) -> None:
        if carrier is self._main:
            self._end(stop, error)

    def _announce(self, change: StateChange) -> None:
        self._change = change
        troubled = change.error is not None
        logger.log(logging.WARNING if troubled else logging.INFO, "%s %s", "!" if troubled else "=", change)
        for changes in list(self._watching):
            changes._on_change(change)
        if self.options.on_state is not None:
            try:
                self.options.on_state(change)
            except Exception:
                logger.exception("! on_state failed")
        self._changed.wake_all()

    def _nudge(self) -> None:
        """Have every link look again at which connection is in use."""
        for link in self._links:
            link._nudge()

    def _check_open(self) -> None:
        if self._task is None:
            raise LocalProtocolError("open the client first: use it in `async with`, or await its open()")
        self._check_loop()
        if self._stop is not None or self.state is ClientState.CLOSING:
            raise self._error()

    def _check_loop(self) -> None:
        """Refuse another event loop before it has put the client out of order: tasks and futures are of one loop."""
        if asyncio.get_running_loop() is not self._loop:
            raise LocalProtocolError("this client was opened in another event loop: make a Client for each")

    def _error(self) -> EndpointClosed:
        """A new exception for whoever wants something of a client that ends or has ended."""
        return closed_error(self._stop or StopReason("connection", "local"), self._change.origin)

    def _outage(self) -> EndpointClosed:
        """A new exception for who does not want to wait for a connection."""
        error = self._change.error
        description = f"there is no connection now, after: {error}" if error is not None else "not connected yet"
        stop = StopReason("connection", "transport", description=description, cause=error)
        return ConnectionClosed(stop, self._change.origin)


async def _finish(links: list[ClientLink]) -> None:
    """Finish what is in hand on links, all at the same time."""
    for link in links:
        link._quiesce()
    for link in links:
        await link._finish()
