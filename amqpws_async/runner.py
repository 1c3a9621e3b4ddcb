"""Where engine and transport meet: bytes in, bytes out, idle timer, stop reason, and the one task of a connection.

Bytes are fed to the engine when the transport hands them over, and written once in a turn of the event loop, by
callbacks: a task for each would be woken a turn later, every time. What comes together during a turn, or while the
socket takes no more, is one batch, so batching needs no timer; the transport cuts it into messages.
Neither direction ever waits for the other, nor for a user: link credit is the only valve inwards, the account of unsent
bytes the only one outwards. The task waits for the end, and turns whatever happened into one stop reason.

The runner does not know the user's objects beyond the weak handlers of the engine. A `Connection` that its user
dropped can therefore be collected, and warns, while this task still runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .endpoint import Waiters
from .engine import Engine, EngineSender, EngineSession, RemoteOpen
from .errors import ConnectionClosed, ErrorCondition, RemoteProtocolError, StopReason

if TYPE_CHECKING:
    from .options import ConnectionOptions
    from .transport import ByteTransport

__all__ = ["Runner"]

logger = logging.getLogger(__name__)

IDLE_EXPIRED = "local-idle-timeout expired"  # proton's words in the condition it makes for a silent peer

CLOCK_STEP = 0.001  # seconds: proton counts in whole milliseconds, so a timer is armed one later


class Handed(Protocol):
    """A pre-settled delivery: done once the transport has it."""

    @property
    def link(self) -> EngineSender:
        """The link it went out on."""
        ...  # pragma: no cover - a signature

    def _on_handed(self) -> None: ...
    def _fail(self, stop: StopReason) -> None: ...


class Owner(Protocol):
    """The user's connection object."""

    def _on_opened(self, remote: RemoteOpen) -> None: ...
    def _fail(self, stop: StopReason) -> None: ...


class Runner:
    """Drives one engine over one transport.

    Attributes:
        engine: The engine.
        alone: Whether there was one delivery under way when there was any to write lately; else `hasten` does nothing.
        unsent: Bytes of messages handed to the engine and not yet to the transport, counted by the senders.
        dirty: Whether a `flush` is to come; `wake` sets it.
        room: Senders waiting for `unsent` to fall.
        stop: Why the connection stopped; written once, by `fail`.
        closing: Whether we have asked for the close.
        owner: Weak reference to the connection's user object.
        last_received: Loop time of the last incoming bytes.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        transport: ByteTransport,
        trace: Callable[[str], None] | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.options = options
        self.transport = transport
        self.engine = Engine(
            self,
            container_id=options.container_id,
            hostname=options.hostname,
            max_frame_size=options.max_frame_size,
            channel_max=options.channel_max,
            idle_timeout=options.idle_timeout or 0.0,
            sasl=options.sasl,
            properties=options.properties,
            offered_capabilities=options.offered_capabilities,
            desired_capabilities=options.desired_capabilities,
            trace=trace,
        )
        self.unsent = 0
        self.high_water = options.send_buffer_bytes
        self.room = Waiters(self.loop)
        self.stop: StopReason | None = None
        self.last_received = self.loop.time()
        self.owner: Callable[[], Owner | None] = _nobody
        self.closing = False
        self._handed: list[Handed] = []
        self.dirty = False
        self.alone = True
        self._full = False  # whether the socket takes no more; `_on_writable` ends that
        self._ending = False
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._reason = StopReason("connection", "local")  # why it is over, unless `fail` was told before
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Queue our open and start the task."""
        self.engine.open()
        self._task = self.loop.create_task(self._run(), name=f"amqpws_async {self.options.container_id}")

    @property
    def over(self) -> bool:
        """Whether the task has ended, and the network connection with it."""
        return self._task is not None and self._task.done()

    async def finished(self) -> None:
        """Wait for the task's end; cancelling stops the waiting alone."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def abort(self, stop: StopReason) -> None:
        """Stop now: fail everybody and drop the network connection."""
        self.fail(stop)
        self.transport.abort()

    # --- for the endpoints ------------------------------------------------------------

    def wake(self) -> None:
        """Say that the engine has something to write."""
        if not self.dirty:
            self.dirty = True
            self.loop.call_soon(self._flush_once)

    def hasten(self) -> None:
        """Write at once what is alone under way, and was lately; else wait for company (RFC 896, Nagle's rule)."""
        if self.alone and self.engine.unsettled == 1:
            self.flush()

    def flush(self) -> None:
        """Write what is pending, as far as the socket takes it."""
        if self._full or self._over.done():
            return
        self.dirty = False
        if under_way := self.engine.unsettled:
            self.alone = under_way == 1
        try:
            now = self.loop.time()
            if self._write(now):
                self._written()
                self._tick(now)
            else:
                self._full = self.dirty = True
        except Exception as error:
            self._broke(error)

    def hand(self, delivery: Handed) -> None:
        """Tell `delivery` when everything queued so far has been handed to the transport."""
        self._handed.append(delivery)

    def in_flight(self, link: EngineSender) -> list[Any]:
        """The deliveries of a link that are not over, as `Engine.transfer` and `hand` were given them."""
        deliveries: list[Any] = [*self.engine.outgoing(), *self._handed]
        return [delivery for delivery in deliveries if delivery.link is link]

    def fail(self, stop: StopReason) -> None:
        """Record why the connection stopped and fail everybody on it; only the first reason counts."""
        if self.stop is not None:
            return
        self.stop = stop
        if stop.initiator != "local":
            logger.info("! %s: %s", self.options.container_id, stop)
        for delivery in self.engine.take_outgoing():
            delivery._fail(stop)
        handed, self._handed = self._handed, []
        for waiting in handed:
            waiting._fail(stop)
        for handler in self.engine.handlers():
            handler._fail(stop)
        self.room.wake_all()
        owner = self.owner()
        if owner is not None:
            owner._fail(stop)

    # --- the engine's connection handler ---------------------------------------------------

    def _on_opened(self, remote: RemoteOpen) -> None:
        owner = self.owner()
        if owner is not None:
            owner._on_opened(remote)

    def _on_closed(self, error: ErrorCondition | None) -> None:
        self._ending = True
        self.wake()
        if error is None:
            self.fail(StopReason("connection", "local" if self.closing else "remote"))
        else:
            self.fail(StopReason("connection", "remote", error.condition, error.description, error.info))

    def _on_failed(self, error: ErrorCondition) -> None:
        self._ending = True
        self.wake()  # it may be found out behind the writing, by the engine's timers
        if error.description == IDLE_EXPIRED:
            seconds = self.options.idle_timeout
            description = f"the peer was silent for {seconds:g} s (idle_timeout)"
            self.fail(StopReason("connection", "transport", error.condition, description))
        else:
            self.fail(
                StopReason(
                    "connection",
                    "transport",
                    error.condition,
                    error.description,
                    error.info,
                    RemoteProtocolError(str(error)),
                )
            )

    def _on_session(self, session: EngineSession) -> None:
        """The peer began a session: nothing here serves one."""
        session.begin()
        session.end(ErrorCondition("amqp:not-allowed", "this container takes no incoming sessions"))

    # --- the task -------------------------------------------------------------------------

    async def _run(self) -> None:
        """Read and write until the connection ends; turns whatever happened into one stop reason."""
        try:
            self.flush()  # a peer that has spoken already hears our header by itself first
            self.transport.start(self)
            await self._over
            self.fail(self._reason)
            await self.transport.close()
        except asyncio.CancelledError:
            self.fail(StopReason("connection", "local", description="the event loop is shutting down"))
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.transport.abort()
            self.engine.free()

    def _end(self, reason: StopReason) -> None:
        """Let the task go on to the end; only the first reason counts."""
        if not self._over.done():
            self._reason = reason
            self._over.set_result(None)

    def _broke(self, error: Exception) -> None:
        """End because of an error: none of a callback reaches the event loop."""
        if isinstance(error, ConnectionClosed):
            self._end(error.stop)
            return
        if not isinstance(error, RemoteProtocolError):
            logger.error("! %s: the connection failed", self.options.container_id, exc_info=error)
        self._end(StopReason("connection", "transport", description=str(error) or type(error).__name__, cause=error))

    # --- the transport's calls ------------------------------------------------------------

    def _on_bytes(self, data: bytes | bytearray | memoryview) -> None:
        if self._over.done():
            return
        self.last_received = now = self.loop.time()
        try:
            if not self.engine.receive_data(data):
                self._tick(now)
            elif not self.dirty:
                self.wake()
        except Exception as error:
            self._broke(error)

    def _on_writable(self) -> None:
        self._full = False
        if self.dirty:
            self.flush()

    def _on_end(self, error: Exception) -> None:
        if self.dirty:
            self.flush()  # nothing goes out, but only when asked for output proton finds out that SASL was refused
        self._broke(error)

    # --- writing --------------------------------------------------------------------------

    def _flush_once(self) -> None:
        if self.dirty:  # else somebody was quicker
            self.flush()

    def _write(self, now: float) -> bool:
        """Write what is pending; whether the socket has taken all of it."""
        engine, write = self.engine, self.transport.write
        while data := engine.output():
            room = write(data)
            engine.sent(now)
            if not room:
                return False
        if self._ending:
            self._end(self._reason)
        return True

    def _written(self) -> None:
        """Everything that could be written has been: senders may go on, pre-settled deliveries are done."""
        if not self.unsent:
            return
        self.unsent = held = self.engine.unsent_bytes()
        if held < self.high_water:
            self.room.wake_all()
        if self._handed and not held:  # else the peer's session window is shut
            handed, self._handed = self._handed, []
            for delivery in handed:
                delivery._on_handed()

    def _tick(self, now: float) -> None:
        """Run the engine's timers; one handle is armed for the next, and left alone while the deadline only recedes."""
        deadline = self.engine.tick(now)
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline + CLOCK_STEP, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.stop is None:
            try:
                self._tick(self.loop.time())
            except Exception as error:
                self._broke(error)
            self.flush()


def _nobody() -> None:
    """The weak reference to no owner."""
