"""``amqpws broker``: the embedded broker, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..urls import is_loopback
from .arguments import Commands, add_command, whole
from .credentials import read_users
from .event_mesh import queue, start_mesh
from .failures import ExitStatus, Failure, complain, plain
from .interruption import Interruption
from .terminal import size

if TYPE_CHECKING:
    from ..testing import Broker, BrokerStatistics

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  for this machine, at the usual port:
    amqpws broker
  at any free port, and its URL into a file for a script:
    amqpws broker --port 0 > broker.url
  for others too, with TLS and passwords:
    amqpws broker --host 0.0.0.0 --port 8673 --tls cert.pem key.pem --users-file users
  SAP Event Mesh: tokens, TLS, its rules, and a service key; what to run next is in the output:
    amqpws broker --event-mesh
  the same, with the key where a program looks for it, and a queue that subscribes to two topics:
    amqpws broker --event-mesh --key-file key.json --queue invoices=orders/paid,orders/cancelled

A users file has a line 'name:password' for each user. Queues are created on first use, "topic:NAME" goes to every
subscriber, rejected messages go to the queue "dead-letter". Everything is in memory, and gone when the broker ends.
Ctrl-C or SIGTERM ends it, with exit status 0.

With --event-mesh the second line of the output is the file of the service key, the third that of the CA (--ca). Queues
are those of --queue, or "orders", which subscribes to "orders/*"; names and topics are below the key's namespace.
"""
_PORT: Final = 8672


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "broker",
        "",
        "run a small broker, in memory",
        "Run a small broker for tests and development. Its URL is the first line of the output.",
        _EXAMPLES,
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=whole, default=_PORT, help="0 for any that is free (default: %(default)s)")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), type=Path, help="PEM files, for wss://")
    parser.add_argument(
        "--users-file", metavar="FILE", type=Path, help="who may connect by SASL PLAIN (default: anyone)"
    )
    group = parser.add_argument_group("SAP Event Mesh (pip install 'amqpws-async[testing]')")
    group.add_argument("--event-mesh", action="store_true", help="behave as SAP Event Mesh, with a service key")
    group.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="where to write the service key, such as key.json; the CA goes to key-ca.pem (default: in a new folder)",
    )
    group.add_argument(
        "--queue",
        metavar="NAME=TOPIC,...",
        type=queue,
        action="append",
        help="a queue, and what it subscribes to; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="statistics at the end on standard output, as JSON")
    parser.set_defaults(run=_run, runs_until_signal=True)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    if not arguments.event_mesh and (arguments.key_file is not None or arguments.queue):
        raise Failure(ExitStatus.USAGE, "--key-file and --queue go with --event-mesh")
    try:
        async with _mesh(arguments) if arguments.event_mesh else _started(arguments) as broker:
            if sys.stderr.isatty() and not arguments.event_mesh:
                print("Ctrl-C ends the broker", file=sys.stderr, flush=True)
            await interruption.work(asyncio.Event().wait())
            statistics = broker.statistics()
    except BrokenPipeError:
        raise
    except (OSError, OverflowError) as error:
        text = f"cannot listen at {arguments.host}, port {arguments.port}: {error} (--port 0 takes any that is free)"
        raise Failure(ExitStatus.CANNOT_CONNECT, text) from error
    if arguments.json:
        print(json.dumps(asdict(statistics)), flush=True)
    else:
        for line in _lines(statistics):
            print(plain(line), file=sys.stderr)
    return ExitStatus.OK


@contextlib.asynccontextmanager
async def _mesh(arguments: Namespace) -> AsyncIterator[Broker]:
    async with start_mesh(arguments) as mesh:
        yield mesh.broker


@contextlib.asynccontextmanager
async def _started(arguments: Namespace) -> AsyncIterator[Broker]:
    from ..testing import Broker

    users = read_users(arguments.users_file)
    async with Broker(arguments.host, arguments.port, users=users, ssl=_tls(arguments.tls)) as broker:
        print(broker.url, flush=True)
        if users is None and not is_loopback(arguments.host):
            complain("anyone who reaches this port may connect: consider --users-file")
        yield broker


def _tls(files: list[Path] | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        certificate, key = files
        context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise Failure(ExitStatus.USAGE, f"--tls: no certificate and key in PEM form: {error.strerror}") from error
    return context


def _lines(statistics: BrokerStatistics) -> Iterator[str]:
    """The statistics for people: a line for each node."""
    yield f"{statistics.connections_total:,} connections served"
    for name, each in statistics.queues.items():
        left = f"{each.depth:,} left ({size(each.bytes)})" if each.depth else "empty"
        parts = [f"{each.enqueued:,} messages", f"{each.acknowledged:,} accepted"]
        for count, what in (
            (each.redelivered, "redelivered"),
            (each.dead_lettered, "to dead-letter"),
            (each.expired, "expired"),
            (each.discarded, "discarded"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        yield f"queue {name}: {', '.join(parts)}, {left}"
    for name, topic in statistics.topics.items():
        yield f"topic {name}: {topic.published:,} messages, {len(topic.subscriptions):,} subscriptions"
