"""``python -m tests.chaos [--short] [--seed N]``; ends with a line ``N passed, N failed``, one for each rule.

A seed repeats the plan of faults and what the traffic draws. Which byte or message a fault meets depends on real time
as well, so a breach may take several runs of its seed to come back; its report has the history of the station.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import ssl
import sys
import time
import tracemalloc
from typing import Any, Final

import trustme

from .ledger import Breach
from .memory import Memory
from .report import Breaches, tables
from .sides import alive
from .station import RULES, SETUPS, Station

FAULTS: Final = 12_000
MESSAGES: Final = 260_000
SHORT: Final = 30  # the short form is this part of the whole
COPIES: Final = 2  # stations of each setup

PROGRESS: Final = 5.0  # seconds between lines

MEMORY: Final = "memory is flat"


def main() -> int:
    """Runs every station; 0 if no rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, add_help=True)
    parser.add_argument("--short", action="store_true", help=f"a {SHORT}th of the whole, below a minute")
    parser.add_argument("--seed", type=int, help="repeat an earlier plan (default: a new seed, which is printed)")
    parser.add_argument("--faults", type=int, default=FAULTS, help=f"steps of all stations, default {FAULTS}")
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"of all stations, default {MESSAGES}")
    parser.add_argument("--copies", type=int, default=COPIES, help=f"stations of each setup, default {COPIES}")
    parser.add_argument("--station", type=int, help="this one alone, counted from 0")
    parser.add_argument("--show-plan", action="store_true", help="print every step as it begins")
    parser.add_argument("--trace-memory", action="store_true", help="say where memory grows (slow)")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.randrange(2**32)
    if arguments.short:
        arguments.faults //= SHORT
        arguments.messages //= SHORT
    return asyncio.run(Run(arguments).run())


class Run:
    """A run of all stations."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._started = time.monotonic()
        self._memory = Memory()
        self.breaches = Breaches(arguments.seed, self.say)

    def say(self, text: str) -> None:
        """Print, with the time."""
        print(f"[{time.monotonic() - self._started:5.0f} s] {text}", flush=True)

    async def run(self) -> int:
        """Do it, and tell."""
        arguments = self._arguments
        self.say(f"seed {arguments.seed}: {arguments.faults} steps, {arguments.messages} messages")
        stations = self._stations()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._on_complaint(stations, context))
        logs = _Logs(stations)
        logging.getLogger("amqpws_async").addHandler(logs)
        logging.getLogger("amqpws_async").setLevel(logging.INFO)
        logging.getLogger("amqpws_async").propagate = False
        if arguments.trace_memory:
            tracemalloc.start()
        works = [loop.create_task(station.run(), name=f"station {station.number}") for station in stations]
        watching = loop.create_task(self._watch(stations))
        await asyncio.wait(works)
        watching.cancel()
        await asyncio.wait([watching])
        for work in works:
            if not work.cancelled() and (error := work.exception()) is not None:
                raise error
        await self._check_left(stations[0])
        for line in tables(stations, self.breaches.counts):
            print(line)
        return self._verdict(stations)

    def _stations(self) -> list[Station]:
        arguments = self._arguments
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        numbers = range(len(SETUPS) * arguments.copies) if arguments.station is None else [arguments.station]
        setups = {number: SETUPS[number % len(SETUPS)] for number in numbers}
        faults = max(1, arguments.faults // len(setups))
        shares = sum(setup.share for setup in setups.values())
        return [
            Station(
                arguments.seed,
                number,
                setup,
                faults=faults,
                per_fault=arguments.messages / shares / faults,
                contexts=(server, client),
                report=self._on_breach,
                show=self.say if arguments.show_plan else None,
            )
            for number, setup in setups.items()
        ]

    def _on_breach(self, station: Station, breach: Breach) -> None:
        self.breaches.report(station, breach)

    def _on_complaint(self, stations: list[Station], context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, (ssl.SSLError, ConnectionError)) and "transport" in context:
            return  # a broken TLS handshake at the server's side
        rule, text = "nothing unexpected is raised", f"the loop complains: {context['message']}: {error!r}"
        self.breaches.report(stations[0], Breach(rule, f"{text} {context.get('task') or context.get('future') or ''}"))

    async def _watch(self, stations: list[Station]) -> None:
        """Tell of progress, and sample the memory."""
        total = sum(station.faults for station in stations)
        before: tracemalloc.Snapshot | None = None
        while True:
            await asyncio.sleep(PROGRESS)
            steps = sum(station.saboteur.planned.total() for station in stations)
            memory = self._memory.sample(steps)
            messages = sum(station.ledger.issued for station in stations)
            strikes = sum(station.saboteur.strikes for station in stations)
            self.say(
                f"{steps} of {total} steps, {strikes} faults, {messages} messages, {memory}, "
                f"{len(asyncio.all_tasks())} tasks, {len(alive)} clients"
            )
            if self._arguments.trace_memory:
                now = tracemalloc.take_snapshot()
                if before is None:
                    before = now
                for line in now.compare_to(before, "lineno")[:8]:
                    self.say(f"    {line}")

    async def _check_left(self, station: Station) -> None:
        """See that no task and no client is left."""
        me = asyncio.current_task()
        for _ in range(50):
            left = asyncio.all_tasks() - {me}
            if not left:
                break
            await asyncio.sleep(0)
        else:
            names = "\n    ".join(repr(task) for task in left)
            station.breach("no task is left", f"{len(left)} at the end of the run:\n    {names}")
        gc.collect()
        if alive:
            station.breach("no task is left", f"{len(alive)} clients are still alive: {list(alive)[:3]}")

    def _verdict(self, stations: list[Station]) -> int:
        seconds = time.monotonic() - self._started
        rules = list(RULES)
        failed = sum(bool(self.breaches.counts[rule]) for rule in rules)
        if (memory := self._memory.verdict()) is not None:
            flat, text = memory
            rules.append(MEMORY)
            failed += not flat
            print(f"{MEMORY:<44}{'kept' if flat else 'NO':>8}   {text}")
        strikes = sum(station.saboteur.strikes for station in stations)
        messages = sum(station.ledger.issued for station in stations)
        print(f"{strikes} faults, {messages} messages in {seconds:.0f} s, seed {self._arguments.seed}")
        print(f"{len(rules) - failed} passed, {failed} failed")
        return 1 if failed else 0


class _Logs(logging.Handler):
    """Puts the library's log lines into the histories, and takes its errors for breaches."""

    def __init__(self, stations: list[Station]) -> None:
        super().__init__(logging.INFO)
        self._stations = stations

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("amqpws_async.testing"):
            return
        text = record.getMessage()
        for station in self._stations:
            if station.concerns(text):
                break
        else:
            station = self._stations[0]
        if record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else None
            station.breach("nothing unexpected is raised", f"{record.name}: {text} {error!r}")
        elif record.levelno >= logging.WARNING:
            station.note(f"{record.name}: {text}")


if __name__ == "__main__":
    sys.exit(main())
