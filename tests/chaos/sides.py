"""The two clients of a station: each is made, used, ended in one way or another, and made again."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final

from amqpws_async import (
    AMQPError,
    AttachError,
    Client,
    ClientSender,
    ClientSession,
    ClientState,
    EndpointClosed,
    OpenError,
)

from .receivers import Taking
from .senders import Hang, Stream, deadline

if TYPE_CHECKING:
    from .station import Station

__all__ = ["Receiving", "Sending", "Side", "alive"]

CLOSE: Final = 20.0  # seconds for a close whose close_timeout is two

TURNS: Final = 20  # of the loop, for tasks that are cancelled to end

#: Clients and connections there are.
alive: weakref.WeakSet[Any] = weakref.WeakSet()


class Ended(Exception):
    """The client has ended for good."""


class Side:
    """One client after the other."""

    name: ClassVar[str]

    def __init__(self, station: Station) -> None:
        self.station = station
        self.client: Client | None = None
        self._life: asyncio.Task[None] | None = None
        self._leaving = False  # in order

    @property
    def ready(self) -> bool:
        """Whether it is connected and has its links, or has come to its end."""
        raise NotImplementedError

    async def run(self) -> None:
        """Live again and again, until the station is over."""
        while not self.done:
            self._leaving = False
            self._life = asyncio.create_task(self._live(), name=f"life of {self.name} {self.station.number}")
            try:
                await asyncio.wait((self._life,))
            except asyncio.CancelledError:
                self._life.cancel()
                await asyncio.wait((self._life,))
                self._life = None
                raise
            life, self._life = self._life, None
            if not life.cancelled():
                self._on_error(life.exception())
            del life  # its exception holds all that was

    def _on_error(self, error: BaseException | None) -> None:
        rule = "no operation hangs" if isinstance(error, Hang) else "nothing unexpected is raised"
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                self._on_error(inner)
        elif error is not None and not isinstance(error, Ended):
            trace = _where(error)
            self.station.breach(rule, f"{self.name}: {type(error).__name__}: {error}{trace}")

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        raise NotImplementedError

    async def restart(self, how: str) -> None:
        """End the client: ``close`` it while it is at work, ``abort`` it by cancelling, or ``leave`` it in order."""
        life, client = self._life, self.client
        if life is None or client is None or life.done():
            return
        try:
            if how == "close":
                async with deadline(f"close of {self.name}", CLOSE):
                    await client.close()
            elif how == "abort":
                life.cancel()
            else:
                self._leaving = True
                self._leave()
            async with deadline(f"the end of {self.name} by {how}"):
                await asyncio.wait((life,))
        except Hang as hang:
            self.station.breach("no operation hangs", str(hang))
            life.cancel()

    def _leave(self) -> None:
        """Let the work come to its end."""
        raise NotImplementedError

    async def _live(self) -> None:
        station = self.station
        client = self.client = Client(station.urls, **station.client_options(self.name))
        alive.add(client)
        try:
            async with deadline(f"open of {self.name}"):
                await client.open()
        except (OpenError, EndpointClosed) as error:
            station.on_end(f"{self.name} client", error)
            await self._check_tasks(client)
            raise Ended from None
        try:
            work = asyncio.create_task(self._work(client), name=f"work of {self.name} {station.number}")
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError:
                work.cancel()
                await asyncio.wait((work,))
                async with deadline("abort", 10.0):  # as leaving `async with` by a cancellation does it
                    await client.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
                raise
            async with deadline(f"close of {self.name}", CLOSE):
                await client.close()
            work.result()
        finally:
            self.client = None
            await self._check_tasks(client)

    async def _check_tasks(self, client: Client) -> None:
        """See that a client that has ended left no task."""
        for _ in range(TURNS):
            left = [task for task in asyncio.all_tasks() if client.container_id in task.get_name()]
            if not left or self.station.setup.way == "durable":  # whose clients have one container id
                return
            await asyncio.sleep(0)
        self.station.breach("no task is left", f"{self.name}: {left}")

    async def _work(self, client: Client) -> None:
        raise NotImplementedError

    def _check_ended(self, client: Client, what: str, error: Exception) -> None:
        """Note the end of a link; raise if it is the client's."""
        closing = client.state in (ClientState.CLOSING, ClientState.CLOSED)
        if closing and (client.stop is None or client.stop.initiator == "local"):
            raise Ended from error  # by us
        if client.stop is not None:
            self.station.on_end(f"{self.name} client", error)
            raise Ended from error
        self.station.on_end(what, error)


class Sending(Side):
    name = "sending"

    def __init__(self, station: Station) -> None:
        super().__init__(station)
        styles = station.setup.styles
        self._streams = [Stream(station, number, style, station.draw) for number, style in enumerate(styles)]
        self._senders: set[ClientSender] = set()
        self._finished = False

    @property
    def ready(self) -> bool:
        if self.done:
            return True
        return self.client is not None and self.client.ready() and len(self._senders) == len(self._pairs())

    @property
    def done(self) -> bool:
        return self._finished

    def _pairs(self) -> list[list[Stream]]:
        return [self._streams[start : start + 2] for start in range(0, len(self._streams), 2)]

    def _leave(self) -> None:
        self.station.gate.paused = True
        self.station.gate.pulse()

    async def _work(self, client: Client) -> None:
        self.station.gate.paused = False
        results = await gathered(*(self._lane(client, pair) for pair in self._pairs()))
        raise_all(results)
        self._finished = not self.station.gate.open

    async def _lane(self, client: Client, streams: list[Stream]) -> None:
        """Send by one sender, and by the next when that has ended."""
        station = self.station
        place: Client | ClientSession
        on_unknown: Any = "resend" if station.setup.resend else "raise"
        while True:
            try:
                async with deadline("attaching a sender"):
                    place = await client.session() if station.setup.sessions else client
                    sender = await place.sender(station.target, on_unknown=on_unknown)
            except (AttachError, EndpointClosed, OpenError) as error:
                self._check_ended(client, "sender", error)
                continue
            self._senders.add(sender)
            try:
                results = await gathered(*(stream.run(sender) for stream in streams), on_error=self.station.gate.pulse)
            finally:
                self._senders.discard(sender)
            ends = [error for error in results if isinstance(error, EndpointClosed)]
            raise_all([error for error in results if not isinstance(error, EndpointClosed)])
            if not ends and sender.stop is None:
                async with deadline("closing a sender", CLOSE):
                    with contextlib.suppress(TimeoutError, AMQPError):
                        await (sender.close() if place is client else place.close())
                return
            self._check_ended(client, "sender", ends[0] if ends else sender._error())


class Receiving(Side):
    name = "receiving"

    def __init__(self, station: Station) -> None:
        super().__init__(station)
        self._taking = Taking(station, station.setup.way, station.draw)
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.client is not None and self.client.ready() and self._taking.receiver is not None

    @property
    def done(self) -> bool:
        return self.station.over

    def _leave(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _work(self, client: Client) -> None:
        while not self._leaving:
            self._task = asyncio.create_task(self._taking.run(client), name=f"taking {self.station.number}")
            try:
                await asyncio.wait((self._task,))
            except asyncio.CancelledError:
                self._task.cancel()
                await asyncio.wait((self._task,))
                raise
            try:
                if not self._task.cancelled():
                    self._task.result()
                if client.stop is not None or client.state is ClientState.CLOSING:
                    return
            except (AttachError, EndpointClosed, OpenError) as error:
                self._check_ended(client, "receiver", error)
            finally:
                self._task = None


async def gathered(*works: Any, on_error: Any = None) -> list[BaseException]:
    """Do several things, see all of them to their end, and say what they raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if on_error is not None:
            on_error()
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    return [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]


def raise_all(errors: list[BaseException]) -> None:
    """Raise them together."""
    if errors:
        raise BaseExceptionGroup("several", errors)


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    lines = []
    while trace is not None:
        lines.append(f"\n    {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return "".join(lines[-8:])
