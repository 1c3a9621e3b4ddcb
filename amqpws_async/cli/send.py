"""``amqpws send``: messages from an argument, a file, standard input, or made up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import (
    AMQPError,
    DeliveryUnknown,
    MessageTooLarge,
    PendingDelivery,
    Target,
)
from ..endpoint import Endpoint
from ..errors import closed_error
from .arguments import Commands, add_command, add_connection, positive, seconds
from .composition import Composer, add_fields, filler
from .connecting import open_connection, open_mesh
from .destination import add_destination, by_key, load_key, mesh_address
from .failures import ExitStatus, Failure, complain, plain
from .interruption import Interruption
from .streams import Lines, descriptor_of, read_all
from .tally import Tally
from .terminal import Progress

if TYPE_CHECKING:
    from ..eventmesh import ServiceKey

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  one message:
    amqpws send wss://broker.example/path queue:orders '{"id": 1}' --content-type application/json
  each line of a program's output as a message:
    generate | amqpws send ws://127.0.0.1:8672 orders
  a file as one message, with properties:
    amqpws send ws://127.0.0.1:8672 images --file cat.png --property name=cat --property weight:int=4
  100 000 messages of 1 KiB, for a first idea of the throughput:
    amqpws send ws://127.0.0.1:8672 load --count 100000 --size 1024
  through the anonymous terminus: the broker routes by "to"
    amqpws send ws://127.0.0.1:8672 --to orders --file order.json
  to a topic of SAP Event Mesh, by a service key, or as a bound application:
    amqpws send --service-key key.json 'topic:${namespace}/orders/created' '{"id": 1}'
    amqpws send --env 'topic:${namespace}/orders/created' '{"id": 1}'
"""
_LOOK: Final = 0.5  # seconds between looks at whether the connection is still there, while the input is slow
_GRACE: Final = 5.0  # seconds for outcomes in flight when the work was cut short, as long as closing may take


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "send",
        "URL|--service-key FILE|--env [ADDRESS] [BODY]",
        "send messages",
        "Send messages and wait for the outcome of each. Without BODY, --file or --size, every line of standard input "
        "is a message.",
        _EXAMPLES,
    )
    add_destination(parser)
    parser.add_argument(
        "address", metavar="ADDRESS", nargs="?", help="the node; '' or nothing for the anonymous terminus"
    )
    parser.add_argument("body", metavar="BODY", nargs="?", help="the body, as UTF-8 text")
    add_fields(parser)
    parser.add_argument("--file", metavar="FILE", help="the body is the content of this file; - is standard input")
    parser.add_argument("--count", metavar="N", type=positive, help="send it so many times (default: once)")
    parser.add_argument("--settled", action="store_true", help="fire and forget: do not wait for outcomes")
    parser.add_argument(
        "--in-flight", metavar="N", type=positive, default=1000, help="messages without outcome (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help="give up when the broker makes us wait so long (default: never)",
    )
    parser.add_argument("--json", action="store_true", help="a summary on standard output, as JSON")
    add_connection(parser)
    parser.set_defaults(run=_run)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    keyed = by_key(arguments, "address", "body")
    if not arguments.address and not arguments.to:
        raise Failure(ExitStatus.USAGE, "give an ADDRESS, or --to ADDRESS for the anonymous terminus")
    key = None
    if keyed:
        key = await load_key(arguments)
        # Event Mesh has nothing but the anonymous terminus: what routes is "to".
        arguments.to = mesh_address(key, arguments.address or arguments.to, receives=False)
    composer = Composer(arguments)
    bodies = await _bodies(arguments)
    work: _Sending | None = None
    try:
        async with _way(arguments, key, composer) as way:
            work = _Sending(way, arguments, interruption)
            async with Progress(sys.stderr, work.tally.progress):
                await work.send(bodies)
            work.tally.stop()
    except (AMQPError, TimeoutError) as error:
        if work is None:
            raise
        complain(error)  # closing failed, which changes nothing for the messages
    return _report(work.tally, arguments)


@dataclass(frozen=True, slots=True)
class _Way:
    """How bodies become messages and travel.

    Attributes:
        transfer: Makes a message of a body and its number, and sends it.
        endpoint: What must be there for that.
        name: Its name, for errors.
    """

    transfer: Callable[[bytes, int], Awaitable[PendingDelivery]]
    endpoint: Endpoint
    name: str


@contextlib.asynccontextmanager
async def _way(arguments: Namespace, key: ServiceKey | None, composer: Composer) -> AsyncIterator[_Way]:
    settled = True if arguments.settled else None
    if key is None:
        async with (
            await open_connection(arguments) as connection,
            connection.sender(Target(arguments.address)) as sender,
        ):
            yield _Way(
                lambda body, number: sender.transfer(composer.encoded(body, number), settled=settled),
                sender,
                f"sender to {sender.address or 'anonymous'!r}",
            )
    else:
        async with (
            await open_mesh(arguments, key) as mesh,
            mesh.sender(arguments.to, qos=0 if settled else 1) as publisher,
        ):
            yield _Way(
                lambda body, number: publisher.transfer(composer.message(body, number)),
                mesh.connection,
                f"sender to {publisher.address!r}",
            )


def _report(tally: Tally, arguments: Namespace) -> int:
    for failure in tally.failures:
        complain(failure)
    if tally.failed > len(tally.failures):
        complain(f"and {tally.failed - len(tally.failures):,} more")
    if tally.error is not None:
        complain(tally.error)
    if arguments.json:
        print(json.dumps(tally.as_json()), flush=True)
    elif arguments.verbose or sys.stderr.isatty() or tally.status() is not ExitStatus.OK:
        print(plain(tally.summary()), file=sys.stderr, flush=True)
    return tally.status()


class _Sending:
    """One run of the command: transfers going out, outcomes coming in."""

    def __init__(self, way: _Way, arguments: Namespace, interruption: Interruption) -> None:
        self.tally = Tally()
        self._way = way
        self._timeout: float | None = arguments.timeout
        self._interruption = interruption
        self._in_flight: asyncio.Queue[tuple[int, PendingDelivery]] = asyncio.Queue(arguments.in_flight)

    async def send(self, bodies: AsyncIterator[bytes]) -> None:
        """Send every body as a message, and collect the outcomes of all that were sent."""
        collecting = asyncio.get_running_loop().create_task(self._collect())
        try:
            await self._interruption.work(self._work(bodies))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):  # it takes time only where the work was cut short
                    await self._in_flight.join()
        finally:
            collecting.cancel()
            await asyncio.wait({collecting})

    async def _work(self, bodies: AsyncIterator[bytes]) -> None:
        await self._transfer(bodies)
        await self._in_flight.join()

    async def _transfer(self, bodies: AsyncIterator[bytes]) -> None:
        number = 0
        async for body in bodies:
            number += 1
            try:
                async with asyncio.timeout(self._timeout):
                    pending = await self._way.transfer(body, number)
            except MessageTooLarge as error:
                self.tally.refused += 1
                self.tally.fail(number, str(error))
                continue
            except TimeoutError:
                self._fail(TimeoutError(f"the broker gave no credit for {self._timeout:g} s (--timeout)"))
                return
            except AMQPError as error:
                self._fail(error)
                return
            self.tally.sent += 1
            await self._in_flight.put((number, pending))

    async def _collect(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    number, pending = await self._in_flight.get()
            except TimeoutError:  # nothing in flight, as when the input is slow
                if (stop := self._way.endpoint.stop) is not None:
                    self._fail(closed_error(stop, self._way.name))
                continue
            if self.tally.error is None or pending.done:
                await self._outcome(number, pending)
            self._in_flight.task_done()

    async def _outcome(self, number: int, pending: PendingDelivery) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                self.tally.count(number, await pending)
        except TimeoutError:
            self._fail(TimeoutError(f"message {number}: no outcome for {self._timeout:g} s (--timeout)"))
        except DeliveryUnknown as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.tally.error is None:
            self.tally.error = error
        self._interruption.end_work()


async def _bodies(arguments: Namespace) -> AsyncIterator[bytes]:
    """The bodies of the messages; complaints come before anything is connected."""
    body: str | None = arguments.body
    if sum(source is not None for source in (body, arguments.file, arguments.size)) > 1:
        raise Failure(ExitStatus.USAGE, "BODY, --file and --size exclude each other")
    if arguments.file == "-":
        return _repeated(await read_all(descriptor_of(sys.stdin, "input")), arguments.count)
    if arguments.file is not None:
        try:
            return _repeated(Path(arguments.file).read_bytes(), arguments.count)  # noqa: ASYNC240 - nothing else runs yet
        except OSError as error:
            raise Failure(ExitStatus.USAGE, f"--file {arguments.file}: {error.strerror}") from error
    if arguments.size is not None:
        return _repeated(filler(arguments.size), arguments.count)
    if body is not None:
        return _repeated(body.encode("utf-8", "surrogateescape"), arguments.count)
    if arguments.count is not None:
        raise Failure(ExitStatus.USAGE, "--count goes with BODY, --file or --size; a line is sent once")
    lines = Lines(descriptor_of(sys.stdin, "input"))
    if sys.stdin.isatty():
        print("each line is a message; Ctrl-D ends", file=sys.stderr, flush=True)
    return lines


async def _repeated(body: bytes, count: int | None) -> AsyncIterator[bytes]:
    for _ in range(count or 1):
        yield body
