"""``amqpws demo``: the embedded broker, senders and receivers, and every message accounted for."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import Final, TextIO

from .arguments import Commands, add_command, positive
from .failures import ExitStatus
from .histogram import histogram, quantile
from .interruption import Interruption
from .mesh_demo import DEFAULT_MESSAGES, run_mesh_demo
from .terminal import Progress, bar, duration, rate, size
from .workload import QUEUE, Ledger, measure_latency, run_load

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  the whole of it, in a few seconds:
    amqpws demo
  larger, and for a machine to read:
    amqpws demo --messages 1000000 --size 1024 --json
  SAP Event Mesh, from a service key to messages (pip install 'amqpws-async[testing]'):
    amqpws demo --event-mesh
"""
_MESSAGES: Final = 60_000
_LINKS: Final = 4  # senders, and receivers
_QUIET_RATE: Final = 1000  # messages a second: far from what the machine can do, so that nothing queues
_QUIET_SECONDS: Final = 2


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "demo",
        "",
        "see it work: a broker, senders and receivers",
        "Start the embedded broker, run senders and receivers over real WebSocket connections, show every outcome, and "
        "account for every message by its id. Exit status 0 says that the account is exact.",
        _EXAMPLES,
    )
    parser.add_argument("--event-mesh", action="store_true", help="SAP Event Mesh in place of a plain broker")
    parser.add_argument(
        "--messages",
        metavar="N",
        type=positive,
        help=f"default: {_MESSAGES}; with --event-mesh {DEFAULT_MESSAGES}",
    )
    parser.add_argument("--senders", metavar="N", type=positive, help=f"default: {_LINKS}")
    parser.add_argument("--receivers", metavar="N", type=positive, help=f"default: {_LINKS}")
    parser.add_argument("--size", metavar="BYTES", type=positive, default=256, help="of a body (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the result on standard output, as JSON")
    parser.set_defaults(run=_run)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    if arguments.event_mesh:
        return await run_mesh_demo(arguments, interruption)
    arguments.messages = arguments.messages or _MESSAGES
    arguments.senders = arguments.senders or _LINKS
    arguments.receivers = arguments.receivers or _LINKS
    shown = _Demonstration(arguments, sys.stderr if arguments.json else sys.stdout)
    exact = await interruption.work(shown.run())
    return ExitStatus.OK if exact else ExitStatus.FAILED


class _Demonstration:
    """One run of the command."""

    def __init__(self, arguments: Namespace, stream: TextIO) -> None:
        self._arguments = arguments
        self._stream = stream
        self._ledger = Ledger(arguments.messages)
        self._started = 0.0

    async def run(self) -> bool:
        """Run all of it; say whether the account is exact."""
        from ..testing import Broker

        arguments, ledger = self._arguments, self._ledger
        async with Broker() as broker:
            self._introduce(broker.url)
            self._started = time.perf_counter()
            async with Progress(self._stream, self._progress, delay=0.2, sparse=None if arguments.json else 1.0):
                await run_load(broker.url, ledger, arguments.senders, arguments.receivers, arguments.size)
            elapsed = time.perf_counter() - self._started
            queue = broker.statistics().queues[QUEUE]
            exact = ledger.exact and queue.enqueued == ledger.messages and queue.depth == 0
            self._conclude(elapsed, exact)
            quiet = min(ledger.messages, _QUIET_RATE * _QUIET_SECONDS)
            self._say(f"latency at {_QUIET_RATE:,} messages a second, from send to the receiver")
            latencies = sorted(await measure_latency(broker.url, quiet, _QUIET_RATE, arguments.size))
        self._picture(latencies)
        if arguments.json:
            print(json.dumps(self._result(elapsed, exact, latencies)), flush=True)
        return exact

    def _say(self, line: str = "") -> None:
        if not self._arguments.json:
            print(line, file=self._stream, flush=True)

    def _introduce(self, url: str) -> None:
        arguments = self._arguments
        self._say("AMQP 1.0 over WebSocket: a broker, senders and receivers, all in this process")
        self._say()
        self._say(f"  broker     {url}  embedded, in memory")
        self._say(f"  senders    {arguments.senders}, each on a connection of its own")
        self._say(
            f"  receivers  {arguments.receivers}, likewise; of every 100 messages one is rejected, released, modified"
        )
        self._say()

    def _progress(self) -> str:
        ledger = self._ledger
        fraction = ledger.done / ledger.messages
        speed = rate(ledger.done, time.perf_counter() - self._started)
        text = f"{fraction:4.0%}   {ledger.done:>9,} of {ledger.messages:,}   {speed:>9}"
        return f"  {bar(fraction, 30, self._stream):<30} {text}" if self._stream.isatty() else text

    def _conclude(self, elapsed: float, exact: bool) -> None:
        ledger, bytes_ = self._ledger, self._arguments.size
        speed = f"{rate(ledger.messages, elapsed)}, {size(ledger.messages * bytes_ / elapsed)}/s"
        self._say(f"{ledger.messages:,} messages of {size(bytes_)} in {elapsed:.1f} s: {speed}")
        self._say()
        rows = [
            (sum(ledger.accepted), "accepted"),
            (sum(ledger.rejected), "rejected: came out of the dead-letter queue"),
            (sum(ledger.released), "released: delivered again as they were, then accepted"),
            (sum(ledger.modified), "modified: delivered again with delivery-count 1, then accepted"),
        ]
        for count, what in rows:
            self._say(f"  {count:>9,}  {what}")
        self._say()
        found = ledger.messages - ledger.missing
        twice = f"{ledger.duplicates:,} twice" if ledger.duplicates else "none twice"
        verdict = "" if exact else "   THE ACCOUNT IS NOT EXACT"
        self._say(f"  accounted for by id: {found:,} of {ledger.messages:,}, {twice}{verdict}")
        self._say()

    def _picture(self, latencies: list[float]) -> None:
        self._say()
        for line in histogram(latencies, self._stream):
            self._say(f"  {line}")
        self._say()
        median, most, longest = (duration(quantile(latencies, fraction)) for fraction in (0.5, 0.99, 1.0))
        self._say(f"  median {median}, 99 % within {most}, longest {longest}")

    def _result(self, elapsed: float, exact: bool, latencies: list[float]) -> dict[str, object]:
        ledger, arguments = self._ledger, self._arguments
        return {
            "messages": ledger.messages,
            "size": arguments.size,
            "senders": arguments.senders,
            "receivers": arguments.receivers,
            "seconds": round(elapsed, 3),
            "rate": round(ledger.messages / elapsed, 1),
            "accepted": sum(ledger.accepted),
            "rejected": sum(ledger.rejected),
            "dead_lettered": sum(ledger.dead),
            "released": sum(ledger.released),
            "modified": sum(ledger.modified),
            "missing": ledger.missing,
            "duplicates": ledger.duplicates,
            "exact": exact,
            "latency": {
                "rate": _QUIET_RATE,
                "messages": len(latencies),
                "median": quantile(latencies, 0.5),
                "p99": quantile(latencies, 0.99),
                "longest": latencies[-1],
            },
        }
