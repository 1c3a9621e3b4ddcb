"""``amqpws broker``: the embedded broker, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..urls import is_loopback
from .arguments import Commands, add_command, whole
from .credentials import read_users
from .failures import ExitStatus, Failure, complain, plain
from .interruption import Interruption
from .terminal import size

if TYPE_CHECKING:
    from ..testing import BrokerStatistics

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  for this machine, at the usual port:
    amqpws broker
  at any free port, and its URL into a file for a script:
    amqpws broker --port 0 > broker.url
  for others too, with TLS and passwords:
    amqpws broker --host 0.0.0.0 --port 8673 --tls cert.pem key.pem --users-file users

A users file has a line 'name:password' for each user. Queues are created on first use, "topic:NAME" goes to every
subscriber, rejected messages go to the queue "dead-letter". Everything is in memory, and gone when the broker ends.
Ctrl-C or SIGTERM ends it, with exit status 0.
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
    parser.add_argument("--json", action="store_true", help="statistics at the end on standard output, as JSON")
    parser.set_defaults(run=_run, runs_until_signal=True)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    from ..testing import Broker

    users = read_users(arguments.users_file)
    try:
        async with Broker(arguments.host, arguments.port, users=users, ssl=_tls(arguments.tls)) as broker:
            print(broker.url, flush=True)
            if users is None and not is_loopback(arguments.host):
                complain("anyone who reaches this port may connect: consider --users-file")
            if sys.stderr.isatty():
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
    for name, queue in statistics.queues.items():
        left = f"{queue.depth:,} left ({size(queue.bytes)})" if queue.depth else "empty"
        parts = [f"{queue.enqueued:,} messages", f"{queue.acknowledged:,} accepted"]
        for count, what in (
            (queue.redelivered, "redelivered"),
            (queue.dead_lettered, "to dead-letter"),
            (queue.expired, "expired"),
            (queue.discarded, "discarded"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        yield f"queue {name}: {', '.join(parts)}, {left}"
    for name, topic in statistics.topics.items():
        yield f"topic {name}: {topic.published:,} messages, {len(topic.subscriptions):,} subscriptions"
