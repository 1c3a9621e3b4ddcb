"""A connection as its user sees it: `connect`, sessions and links, health, close."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from .auth.tokens import Token, TokenProvider, as_provider
from .endpoint import Endpoint, EndpointState, Opening
from .errors import AuthenticationError, HandshakeError, StopReason
from .link import LinkHealth
from .options import ConnectionOptions, SessionOptions
from .runner import Runner
from .session import Session
from .transport import open_websocket

if TYPE_CHECKING:
    from .engine import RemoteOpen
    from .options import ConnectionArguments, ReceiverArguments, SenderArguments, SessionArguments
    from .receiver import Receiver
    from .sender import Sender
    from .terminus import Source, Target

__all__ = ["Connection", "Health", "LinkHealth", "another_token", "connect", "open_connection"]

_trace_logger = logging.getLogger("amqpws_async.trace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A connection, as a readiness probe sees it.

    Attributes:
        state: Where the connection is in its life.
        last_frame_age: Seconds since anything came from the peer.
        round_trip: Seconds that the last WebSocket ping took, or None before the first.
        unsent_bytes: Bytes of messages that wait to be written.
        links: Every link of every session.
        stop: Why the connection stopped, or None.
    """

    state: EndpointState
    last_frame_age: float
    round_trip: float | None
    unsent_bytes: int
    links: tuple[LinkHealth, ...]
    stop: StopReason | None

    @property
    def ok(self) -> bool:
        """Whether the connection is open."""
        return self.state is EndpointState.OPEN


def connect(url: str, **options: Unpack[ConnectionArguments]) -> Opening[Connection]:
    """Open a connection; await it, or use it in ``async with``.

    ::

        async with connect("wss://broker.example/protocols/amqp10ws", token=tokens) as connection:
            ...

    Cancelling drops what was begun; no socket and no task stay behind.

    Args:
        url: ``ws://`` or ``wss://`` with the broker's path.
        **options: The fields of `ConnectionOptions`, where each is explained.

    Raises:
        HandshakeError: The upgrade was refused or unfit: see its status, headers and body. After a 401 the token's
            provider is asked once for another, for one more attempt. An `OpenError`, as are the next two.
        AuthenticationError: SASL refused us.
        TokenError: No access token could be had.
        OpenError: The host cannot be reached, or its certificate is not trusted.
        ConnectionClosed: The peer closed straight away; the error has its condition. `RedirectError` if it says where
            to go instead.
        TimeoutError: It took longer than `open_timeout`.
        EncodeError: AMQP cannot carry one of the connection properties.
        ValueError: An option is out of range or unsafe. Raised by the call itself, before anything is awaited.
    """
    made = ConnectionOptions(url=url, **options)
    return Opening(lambda: open_connection(made))


async def open_connection(options: ConnectionOptions, *, stale: Token | None = None) -> Connection:
    """Open a connection with these options; all that `connect` does once it has them.

    Args:
        options: Where to, and how.
        stale: A token that is of no use any more: another one is asked for.
    """
    phase = "the access token"
    try:
        async with asyncio.timeout(options.open_timeout):
            provider = None if options.token is None else as_provider(options.token)
            token = None if provider is None else await _token(provider, stale)
            phase = "the WebSocket upgrade"
            try:
                transport = await open_websocket(options, None if token is None else token.value)
            except HandshakeError as refusal:
                # Tokens are revoked, and keys change, before their time: one new token, one more attempt.
                if provider is None or token is None or refusal.status != 401:
                    raise
                phase = "another access token, as the first was refused,"
                renewed = await another_token(provider, token)
                if renewed.value == token.value:
                    raise
                phase = "the WebSocket upgrade with another token"
                token = renewed
                transport = await open_websocket(options, token.value)
            phase = "the AMQP open"
            try:
                connection = Connection(Runner(options, transport, _trace(options)), token)
            except BaseException:
                await transport.close()
                raise
            await connection._wait_open()
            return connection
    except TimeoutError as exc:
        raise TimeoutError(
            f"{options.origin}: {phase} was not done within {options.open_timeout} s (open_timeout)"
        ) from exc


async def _token(provider: TokenProvider, stale: Token | None) -> Token:
    return await provider.token() if stale is None else await another_token(provider, stale)


async def another_token(provider: TokenProvider, stale: Token) -> Token:
    """Get a token other than `stale`, or `stale` itself where the provider has no other.

    Raises:
        TokenError: None can be had.
    """
    token = await provider.token()  # renewed already, on behalf of another connection?
    return token if token.value != stale.value else await provider.token(refresh=True)


def _trace(options: ConnectionOptions) -> Callable[[str], None] | None:
    trace = options.trace
    if callable(trace):
        return trace
    if trace:
        return lambda line: _trace_logger.info("%s %s", options.container_id, line)
    return None


class Connection(Endpoint):
    """A connection, made by `connect`: exactly one, as AMQP has it; it does not reconnect.

    Any number of tasks of its event loop may share it and everything on it.
    """

    _kind = "connection"

    def __init__(self, runner: Runner, token: Token | None = None) -> None:
        super().__init__(runner.loop, runner.options.close_timeout)
        self._runner = runner
        self._token = token
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._default: Session | None = None
        self._default_begun: asyncio.Lock = asyncio.Lock()
        runner.owner = weakref.ref(self)
        runner.start()

    # --- what is known ----------------------------------------------------------------------

    @property
    def options(self) -> ConnectionOptions:
        """The options this connection was made with."""
        return self._runner.options

    @property
    def container_id(self) -> str:
        """Our container id."""
        return self._runner.options.container_id

    @property
    def remote(self) -> RemoteOpen:
        """What the peer's open said: container id, capabilities, properties, limits."""
        remote = self._runner.engine.remote
        assert remote is not None  # an open connection has it
        return remote

    @property
    def token(self) -> Token | None:
        """The access token that the connection was opened with, or None: see its `Token.expiry`."""
        return self._token

    @property
    def _where(self) -> str:
        return self._runner.options.origin

    def __repr__(self) -> str:
        return f"<Connection {self._where} {self._state.value}>"

    def health(self) -> Health:
        """Say how the connection is, for readiness probes; never waits."""
        runner = self._runner
        links = [link for session in self._sessions for link in session._links if link.stop is None]
        return Health(
            state=self._state,
            last_frame_age=self._loop.time() - runner.last_received,
            round_trip=runner.transport.latency or None,
            unsent_bytes=runner.unsent,
            links=tuple(link.health() for link in links),
            stop=self._stop,
        )

    # --- sessions and links ---------------------------------------------------------------------

    def session(self, **options: Unpack[SessionArguments]) -> Opening[Session]:
        """Begin a session; await it, or use it in ``async with``.

        Cancelling ends the half-open session.

        Args:
            **options: The fields of `SessionOptions`.

        Raises:
            ConnectionClosed: The connection has stopped.
            LocalProtocolError: All channels are in use.
            TimeoutError: The peer did not answer within `open_timeout`.
            ValueError: An option is out of range.
        """
        made = SessionOptions(**options)
        return Opening(lambda: self._begin(made))

    def sender(self, target: str | Target | None, **options: Unpack[SenderArguments]) -> Opening[Sender]:
        """Attach a sender on this connection's default session, which begins with its first link.

        Arguments, errors and cancelling as for `Session.sender`.
        """

        async def open() -> Sender:
            session = await self._default_session()
            return await session.sender(target, **options)

        return Opening(open)

    def receiver(self, source: str | Source, **options: Unpack[ReceiverArguments]) -> Opening[Receiver]:
        """Attach a receiver on this connection's default session, which begins with its first link.

        Arguments, errors and cancelling as for `Session.receiver`.
        """

        async def open() -> Receiver:
            session = await self._default_session()
            return await session.receiver(source, **options)

        return Opening(open)

    async def _begin(self, options: SessionOptions) -> Session:
        self._check_open()
        session = Session(self, options)
        self._sessions.add(session)
        return await session._begin()

    async def _default_session(self) -> Session:
        timeout = self.options.open_timeout
        try:
            # Around the lock: who waits behind somebody else's attempt has no more time than that one.
            async with asyncio.timeout(timeout), self._default_begun:
                if self._default is None or self._default.stop is not None:
                    self._default = await self._begin(SessionOptions())
                return self._default
        except TimeoutError:
            raise TimeoutError(f"session: the peer did not answer the begin within {timeout:g} s") from None

    # --- opening ---------------------------------------------------------------------------------

    async def _wait_open(self) -> None:
        try:
            while self._state is EndpointState.OPENING:
                await self._changed.wait()
        except BaseException:
            self._abandon()
            await self._runner.finished()
            raise
        stop = self._stop
        if stop is None:
            return
        await self._runner.finished()
        if stop.condition == "amqp:unauthorized-access" and self._runner.engine.remote is None:
            raise AuthenticationError(_refused(self._runner.options, stop))
        raise self._error()

    # --- the runner's calls ----------------------------------------------------------------------

    def _on_opened(self, remote: RemoteOpen) -> None:
        if self._state is EndpointState.OPENING:
            self._set_state(EndpointState.OPEN)

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            super()._fail(stop)
            for session in list(self._sessions):
                session._fail(stop)

    # --- closing ------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close in order: finish what is in hand on every link, AMQP close both ways, WebSocket close.

        Senders wait for the outcomes in flight, receivers release what nobody took, all within `close_timeout`. A
        second call waits for the first. Cancelling drops the network connection at once.

        Raises:
            ConnectionClosed: The peer answered with an error.
            TimeoutError: The peer did not answer within `close_timeout`; the network connection is dropped.
        """
        runner = self._runner
        if self._stop is not None or self._state is EndpointState.CLOSING:
            await runner.finished()
            return
        deadline = self._loop.time() + self._close_timeout
        self._set_state(EndpointState.CLOSING)
        try:
            async with asyncio.timeout_at(deadline):
                for session in list(self._sessions):
                    if session.state is EndpointState.OPEN:
                        await session._finish(deadline)
                runner.closing = True
                runner.engine.close()
                runner.wake()
                await runner.finished()
        except TimeoutError:
            self._abandon()
            await runner.finished()
            raise TimeoutError(
                f"{self._where}: the peer did not answer the close within {self._close_timeout:g} s (close_timeout)"
            ) from None
        except BaseException:
            self._abandon()
            raise
        stop: StopReason | None = self._stop
        if stop is not None and stop.initiator == "remote" and stop.condition:
            raise self._error()

    def _abandon(self) -> None:
        self._runner.abort(StopReason("connection", "local"))

    def __del__(self) -> None:
        if getattr(self, "_stop", self) is None:
            self._warn_unclosed(self)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._runner.abort, StopReason("connection", "local"))


def _refused(options: ConnectionOptions, stop: StopReason) -> str:
    mechanism = options.sasl.name if options.sasl is not None else "none"
    text = f"{options.origin}: the peer refused SASL {mechanism}"
    if stop.description:
        text += f" ({stop.description})"
    hints: dict[str, str] = {
        "ANONYMOUS": "it may want sasl=Plain(username, password)",
        "PLAIN": "check user name and password, and that the broker offers PLAIN",
        "EXTERNAL": "check the client certificate in ssl=",
    }
    return f"{text}: {hints.get(mechanism, 'the broker wants a SASL layer: give sasl=')}"
