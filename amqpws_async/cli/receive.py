"""``amqpws receive``: messages to standard output, each accepted once it has been written."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Final

from .. import AMQPError, DecodeError, Delivery, DistributionMode, Receiver, Source, selector
from .arguments import Commands, add_command, add_connection, positive, seconds
from .connecting import open_connection, open_mesh
from .destination import add_destination, by_key, load_key, mesh_address
from .failures import BROKEN_PIPE, ExitStatus, Failure
from .interruption import Interruption
from .rendering import as_json, as_text
from .streams import Output, descriptor_of
from .terminal import Progress

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  whatever comes, until Ctrl-C:
    amqpws receive wss://broker.example/path queue:orders
  exactly ten messages, as JSON; exit status 6 if there are fewer within a minute:
    amqpws receive ws://127.0.0.1:8672 orders --count 10 --timeout 60 --json
  look at what waits, and leave it there:
    amqpws receive ws://127.0.0.1:8672 orders --browse --json | jq .properties
  one binary body into a file:
    amqpws receive ws://127.0.0.1:8672 images --count 1 --no-newline > cat.png
  only some messages:
    amqpws receive ws://127.0.0.1:8672 orders --selector "color = 'red'"
  from a queue of SAP Event Mesh, by a service key, or as a bound application:
    amqpws receive --service-key key.json 'queue:${namespace}/orders' --json
    amqpws receive --env 'queue:${namespace}/orders' --json

JSON, one line a message: header, properties, delivery_annotations, message_annotations, application_properties, footer,
tag, and one of body (UTF-8 text), body_base64 (other data), body_value, body_sequence.

A message is accepted after its line has been written. What was not written is released, for others to have.
"""
_BROWSE_TIMEOUT: Final = 2.0  # seconds: what waits comes at once, and nobody says that it was the last


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "receive",
        "URL|--service-key FILE|--env ADDRESS",
        "receive messages",
        "Receive messages and write them out.",
        _EXAMPLES,
    )
    add_destination(parser)
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help="the node to receive from")
    parser.add_argument("--count", metavar="N", type=positive, help="stop after so many (default: go on)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help=f"stop when none has come for so long (default: never; with --browse {_BROWSE_TIMEOUT:g})",
    )
    parser.add_argument("--json", action="store_true", help="write a line of JSON for each message")
    parser.add_argument("--no-newline", dest="newline", action="store_false", help="write bodies without a line end")
    parser.add_argument("--browse", action="store_true", help="look without taking: copies, and nothing is settled")
    parser.add_argument("--selector", metavar="CONDITION", help="only messages that meet this condition")
    parser.add_argument(
        "--credit", metavar="N", type=positive, default=200, help="messages on their way at once (default: %(default)s)"
    )
    add_connection(parser)
    parser.set_defaults(run=_run)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    keyed = by_key(arguments, "address")
    if not arguments.address:
        raise Failure(ExitStatus.USAGE, "give an ADDRESS to receive from")
    if keyed and (arguments.browse or arguments.selector is not None):
        raise Failure(ExitStatus.USAGE, "Event Mesh has neither copies nor filters: leave --browse and --selector out")
    output = Output(descriptor_of(sys.stdout, "output"))
    async with _receiver(arguments, keyed) as receiver:
        if arguments.browse:
            _check_copy(receiver)
        taking = _Taking(receiver, output, arguments, interruption)
        with output.when_unread(taking.unread):
            async with _progress(taking):
                await interruption.work(taking.take())
    if taking.is_unread:
        return BROKEN_PIPE
    if arguments.verbose:
        print(taking.progress(), file=sys.stderr, flush=True)
    short = arguments.count is not None and taking.written < arguments.count
    return ExitStatus.TIMED_OUT if short else ExitStatus.OK


@contextlib.asynccontextmanager
async def _receiver(arguments: Namespace, keyed: bool) -> AsyncIterator[Receiver]:
    # With a count, credit is given by hand, so that not one message more leaves the broker.
    credit = 0 if arguments.count is not None else arguments.credit
    if keyed:
        key = await load_key(arguments)
        address = mesh_address(key, arguments.address, receives=True)
        async with await open_mesh(arguments, key) as mesh, mesh.receiver(address, credit=credit) as receiver:
            yield receiver
        return
    try:
        source = Source(
            arguments.address,
            distribution_mode=DistributionMode.COPY if arguments.browse else None,
            filter=None if arguments.selector is None else selector(arguments.selector),
        )
    except ValueError as error:
        raise Failure(ExitStatus.USAGE, str(error)) from error
    async with (
        await open_connection(arguments) as connection,
        connection.receiver(source, credit=credit) as receiver,
    ):
        yield receiver


def _check_copy(receiver: Receiver) -> None:
    source = receiver.source
    if source is not None and source.distribution_mode is DistributionMode.MOVE:
        raise Failure(
            ExitStatus.REFUSED, f"the broker gives no copies of {receiver.address!r}: --browse is not possible"
        )


def _progress(taking: _Taking) -> contextlib.AbstractAsyncContextManager[object]:
    """A progress line, unless it would get in the way of the messages."""
    if sys.stdout.isatty():
        return contextlib.nullcontext()
    return Progress(sys.stderr, taking.progress, delay=2.0)


class _Taking:
    """One run of the command: messages coming in, lines going out, then settlement."""

    def __init__(self, receiver: Receiver, output: Output, arguments: Namespace, interruption: Interruption) -> None:
        self._output = output
        self.written = 0
        self.is_unread = False
        self._receiver = receiver
        self._interruption = interruption
        self._count: int | None = arguments.count
        self._credit: int = arguments.credit
        self._granted = 0
        self._browse: bool = arguments.browse
        self._timeout: float | None = arguments.timeout or (_BROWSE_TIMEOUT if arguments.browse else None)
        self._json: bool = arguments.json
        self._end = b"\n" if arguments.newline else b""
        self._terminal = sys.stdout.isatty()

    async def take(self) -> None:
        """Take messages until there are enough, or none has come for too long."""
        while self._count is None or self.written < self._count:
            await self._grant()
            try:
                async with asyncio.timeout(self._timeout):
                    delivery = await self._receiver.receive()
            except TimeoutError:
                return
            await self._write(delivery)
            if not self._browse:
                await delivery.accept()

    async def _write(self, delivery: Delivery) -> None:
        try:
            await self._output.write(self._render(delivery))
        except BaseException:
            with contextlib.suppress(AMQPError):  # it is lost only to us: the broker has it
                await delivery.release()
            raise
        self.written += 1

    def _render(self, delivery: Delivery) -> bytes:
        if self._json:
            return as_json(delivery)
        try:
            return as_text(delivery, terminal=self._terminal) + self._end
        except DecodeError as error:
            text = f"a message cannot be decoded, {error}; it stays with the broker; --json would take its raw bytes"
            raise Failure(ExitStatus.FAILED, text) from error

    async def _grant(self) -> None:
        """Keep the window of credit open, but for no more messages than are wanted in all."""
        if self._count is None:
            return
        coming = self._granted - self.written
        if coming <= self._credit // 2 and (room := min(self._credit - coming, self._count - self._granted)):
            await self._receiver.add_credit(room)
            self._granted += room

    def unread(self) -> None:
        """End, because nobody reads what we write."""
        self.is_unread = True
        self._interruption.end_work()

    def progress(self) -> str:
        """How far it has got."""
        return f"{self.written:,} received"
