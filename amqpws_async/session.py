"""A session: the begin and end, and the links on it."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Self, Unpack

from .endpoint import Endpoint, EndpointState, Opening
from .engine import AttachFields
from .errors import ErrorCondition, LocalProtocolError, StopReason, closed_error
from .options import ReceiverOptions, SenderOptions
from .receiver import Receiver
from .sender import Sender
from .terminus import Source, Target, as_source, as_target

if TYPE_CHECKING:
    from .connection import Connection
    from .endpoint import Waiters
    from .engine import EngineReceiver, EngineSender
    from .link import Link
    from .options import ReceiverArguments, SenderArguments, SessionOptions

__all__ = ["Session"]

_ATTACHED = (EndpointState.OPEN, EndpointState.CLOSING)


class Session(Endpoint):
    """A session of a connection (specification 2.5), made by `Connection.session`."""

    _kind = "session"

    def __init__(self, connection: Connection, options: SessionOptions) -> None:
        runner = connection._runner
        super().__init__(runner.loop, runner.options.close_timeout)
        self._connection = connection
        self._runner = runner
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._link = runner.engine.begin(self, incoming_capacity=options.incoming_window_bytes)

    @property
    def connection(self) -> Connection:
        """The connection that this session is on."""
        return self._connection

    @property
    def _where(self) -> str:
        return "session"

    def __repr__(self) -> str:
        return f"<Session {self._state.value} links={len(self._links)}>"

    # --- links ----------------------------------------------------------------------------

    def sender(self, target: str | Target | None, **options: Unpack[SenderArguments]) -> Opening[Sender]:
        """Attach a sender; await it, or use it in ``async with``.

        Cancelling detaches the half-open link as soon as the peer answers.

        Args:
            target: The address to send to, a whole `Target`, or None for the anonymous terminus, where each message
                goes to its `to`. ``""`` is the anonymous terminus as SAP Event Mesh wants it.
            **options: The fields of `SenderOptions`.

        Raises:
            AttachError: The peer refused the terminus; the error has its condition.
            SessionClosed: The session has ended. Likewise `ConnectionClosed`.
            LocalProtocolError: A sender of this name is attached already.
            TimeoutError: The peer did not answer within `open_timeout`.
            ValueError: An option is out of range.
        """
        made = SenderOptions(**options)
        terminus = as_target(target)

        return Opening(lambda: self._attach_sender(terminus, made))

    def receiver(self, source: str | Source, **options: Unpack[ReceiverArguments]) -> Opening[Receiver]:
        """Attach a receiver; await it, or use it in ``async with``.

        Cancelling detaches the half-open link as soon as the peer answers.

        Args:
            source: The address to receive from, or a whole `Source`.
            **options: The fields of `ReceiverOptions`.

        Raises:
            AttachError: The peer refused the terminus; the error has its condition.
            SessionClosed: The session has ended. Likewise `ConnectionClosed`.
            LocalProtocolError: A receiver of this name is attached already.
            TimeoutError: The peer did not answer within `open_timeout`.
            ValueError: An option is out of range.
        """
        made = ReceiverOptions(**options)
        terminus = as_source(source)

        return Opening(lambda: self._attach_receiver(terminus, made))

    async def _attach_sender(self, target: Target | None, options: SenderOptions) -> Sender:
        await self._free_name("sender", options.name)
        sender = Sender(self, target, options)
        self._links.add(sender)
        return await sender._attach()

    async def _attach_receiver(
        self, source: Source, options: ReceiverOptions, *, waiting: Waiters | None = None, paused: bool = False
    ) -> Receiver:
        await self._free_name("receiver", options.name)
        receiver = Receiver(self, source, options, waiting=waiting, paused=paused)
        self._links.add(receiver)
        return await receiver._attach()

    async def _free_name(self, role: str, name: str | None) -> None:
        """Refuse a name that is in use; wait for one whose link is not detached on both sides yet."""
        self._check_open()
        while name is not None:
            taken = [link for link in self._link.links if link.role == role and link.name == name]
            if not taken:
                break
            if not taken[0].detaching:
                raise LocalProtocolError(
                    f"a {role} named {name!r} is attached to this session already: "
                    "names are unique between two containers"
                )
            try:
                async with asyncio.timeout(self._runner.options.open_timeout):
                    await self._changed.wait()
            except TimeoutError:
                raise TimeoutError(f"the peer did not answer the detach of the {role} {name!r} of before") from None
            self._check_open()

    # --- opening ----------------------------------------------------------------------------

    async def _begin(self) -> Self:
        timeout = self._runner.options.open_timeout
        self._runner.wake()
        try:
            async with asyncio.timeout(timeout):
                while self._state is EndpointState.OPENING:
                    await self._changed.wait()
        except TimeoutError:
            self._abandon()
            raise TimeoutError(f"session: the peer did not answer the begin within {timeout:g} s") from None
        except BaseException:
            self._abandon()
            raise
        self._check_open()
        return self

    # --- the engine's calls --------------------------------------------------------------------

    def _on_begun(self) -> None:
        if self._state is EndpointState.OPENING:
            self._set_state(EndpointState.OPEN)

    def _on_ended(self, error: ErrorCondition | None) -> None:
        if error is not None:
            self._fail(StopReason("session", "remote", error.condition, error.description, error.info))
        else:
            self._fail(StopReason("session", "local" if self._state is EndpointState.CLOSING else "remote"))

    def _on_link_released(self) -> None:
        self._changed.wake_all()

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        """The peer attached a link of its own: refused, as nothing here serves one (specification 2.6.3)."""
        link.attach(AttachFields(source=None, target=None))
        link.detach(ErrorCondition("amqp:not-allowed", "this container takes no incoming links"))

    # --- closing ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session: finish what is in hand on its links, send an end and wait for the peer's.

        A second call waits for the first. Cancelling ends without waiting.

        Raises:
            SessionClosed: The peer answered with an error.
            TimeoutError: The peer did not answer within `close_timeout`; the session is given up all the same.
        """
        if self._stop is not None:
            return
        if self._state is EndpointState.CLOSING:
            await self.wait_closed()
            return
        deadline = self._loop.time() + self._close_timeout
        self._set_state(EndpointState.CLOSING)
        try:
            await self._finish(deadline)
            self._link.end()
            self._runner.wake()
            async with asyncio.timeout_at(deadline):
                await self.wait_closed()
        except TimeoutError:
            self._fail(StopReason("session", "local"))
            raise TimeoutError(
                f"session: the peer did not answer the end within {self._close_timeout:g} s (close_timeout)"
            ) from None
        except BaseException:
            self._abandon()
            raise
        stop: StopReason | None = self._stop
        if stop is not None and stop.endpoint == "session" and stop.initiator == "remote" and stop.condition:
            raise closed_error(stop, self._where)

    async def _finish(self, deadline: float) -> None:
        """Finish what is in hand on all links, up to the deadline."""
        links = [link for link in self._links if link.state in _ATTACHED and not link._detaching]
        for link in links:
            link._hold()
        for link in links:
            await link._finish(deadline)

    def _abandon(self) -> None:
        if self._stop is None:
            for link in list(self._links):
                link._abandon()
            self._link.end()
            self._runner.wake()
            self._fail(StopReason("session", "local"))

    def _fail(self, stop: StopReason) -> None:
        if self._stop is None:
            super()._fail(stop)
            for link in list(self._links):
                link._fail(stop)

    def __del__(self) -> None:
        if getattr(self, "_stop", self) is None and self._state is not EndpointState.OPENING:
            self._warn_unclosed(self)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_end_dropped, self._link, self._runner)


def _end_dropped(session: Any, runner: Any) -> None:
    session.end()
    runner.wake()
