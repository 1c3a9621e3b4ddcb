"""``python -m tests.chaos.roll_over [--every S] [--minutes M]``; ends with a line ``N passed, N failed``.

Moving to another connection every two seconds, under load, costs no message, doubles none, and hardly any time: phases
with and without it alternate in one process, on one broker in another process, until there are as many sends of each
as were asked for and the time is over. Senders wait for each outcome; handlers take everything, and are done long
before the old connection has to go.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import amqpws_async as amqp
from tests.soak.peers import running

ADDRESS: Final = "roll-over"

SENDS: Final = 100_000  # of each kind, at least

PHASE: Final = 10.0  # seconds

TIMES: Final = 3.0  # as slow as without, at the 99th percentile

RATE: Final = 2000.0  # sends a second, by which the load stays below what the machine can do

SENDERS: Final = 4

HANDLING: Final = 0.002  # seconds that a handler takes

WAIT: Final = 30.0  # seconds for anything


@dataclass
class Kind:
    """What phases of one kind came to.

    Attributes:
        name: How they are called.
        times: Seconds that each send took.
        moves: Seconds that each roll-over took.
        seconds: How long the phases took together.
    """

    name: str
    times: array[float] = field(default_factory=lambda: array("d"))
    moves: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> str:
        """Its line of the table."""
        points = [percentile(self.times, part) * 1000 for part in (0.5, 0.99, 0.999, 1.0)]
        rate = len(self.times) / self.seconds if self.seconds else 0.0
        longest = max(self.moves, default=0.0) * 1000
        figures = "".join(f"{point:>10.2f}" for point in points)
        return f"{self.name:<20}{len(self.times):>9}{rate:>9.0f}{figures}{len(self.moves):>12}{longest:>14.1f}"


HEAD: Final = (
    f"{'phases':<20}{'sends':>9}{'per s':>9}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}{'max ms':>10}"
    f"{'roll-overs':>12}{'longest ms':>14}"
)


class Load:
    """Senders and handlers, by two clients.

    Args:
        url: The broker's.
        rate: Sends a second.
    """

    def __init__(self, url: str, rate: float) -> None:
        self._url = url
        self._rate = rate
        self._sent = 0
        self._received = bytearray()
        self.again = 0
        self.over = False
        self.kind = Kind("warming up")

    @property
    def lost(self) -> int:
        """Messages that were accepted and not received."""
        return self._sent - sum(map(bool, self._received[: self._sent]))

    async def run(self, phases: Sequence[Kind], *, every: float, enough: int, seconds: float, phase: float) -> None:
        """Go through the phases by turns, until there is enough of each.

        Args:
            phases: Those without roll-over, and those with it.
            every: Seconds from one roll-over to the next.
            enough: Sends of each kind.
            seconds: How long at least those with it.
            phase: Seconds of each.
        """
        loop = asyncio.get_running_loop()
        options = {"handover_timeout": 10.0, "close_timeout": 10.0}
        async with (
            amqp.Client(self._url, **options) as sending,  # type: ignore[arg-type]
            amqp.Client(self._url, **options) as receiving,  # type: ignore[arg-type]
            receiving.receiver(ADDRESS, credit=500) as receiver,
            asyncio.TaskGroup() as group,
        ):
            stop = asyncio.Event()
            handling = group.create_task(receiver.process(self._handle, concurrency=100, stop=stop))
            senders = [group.create_task(self._send(sending)) for _ in range(SENDERS)]
            await asyncio.sleep(min(2.0, phase))
            began = loop.time()
            while phases[-1].seconds < seconds or any(len(kind.times) < enough for kind in phases):
                for number, kind in enumerate(phases):
                    self.kind = kind
                    started = loop.time()
                    await self._phase(kind, started + phase, every if number else None, sending, receiving)
                    kind.seconds += loop.time() - started
                done = ", ".join(f"{len(kind.times)} sends {kind.name}" for kind in phases)
                print(f"[{loop.time() - began:5.0f} s] {done}, {len(phases[-1].moves)} roll-overs", flush=True)
            self.over = True
            await asyncio.wait(senders)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT):
                    while self.lost:
                        await asyncio.sleep(0.01)
            stop.set()
            await handling

    async def _phase(
        self, kind: Kind, until: float, every: float | None, sending: amqp.Client, receiving: amqp.Client
    ) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.time()
        while loop.time() < until:
            if every is not None:
                for client in (sending, receiving):
                    started = time.perf_counter()
                    async with asyncio.timeout(WAIT):
                        await client.roll_over()
                    kind.moves.append(time.perf_counter() - started)
            turn = min(until, turn + (every or until))
            await asyncio.sleep(max(0.0, turn - loop.time()))

    async def _send(self, client: amqp.Client) -> None:
        """Send one after the other, at a rate, by a sender of its own."""
        loop = asyncio.get_running_loop()
        async with client.sender(ADDRESS, on_unknown="resend") as sender:
            turn = loop.time()
            while not self.over:
                turn = max(turn + SENDERS / self._rate, loop.time() - 0.1)  # what was missed is not made up for
                if (delay := turn - loop.time()) > 0:
                    await asyncio.sleep(delay)
                number = self._sent
                self._sent += 1
                self._received.append(0)
                kind, started = self.kind, time.perf_counter()
                async with asyncio.timeout(WAIT):
                    await sender.send(amqp.Message(b"%09d" % number))
                kind.times.append(time.perf_counter() - started)

    async def _handle(self, delivery: amqp.Delivery) -> None:
        number = int(bytes(delivery.body))  # type: ignore[arg-type]
        self.again += self._received[number] != 0
        self._received[number] = 1
        await asyncio.sleep(HANDLING)


def percentile(times: Sequence[float], part: float) -> float:
    """The value below which that part of them is."""
    ranked = sorted(times)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] if ranked else 0.0


async def prove(
    *, every: float, seconds: float, enough: int = SENDS, phase: float = PHASE, rate: float = RATE, times: float = TIMES
) -> dict[str, bool]:
    """Do it, print the table, and say what holds.

    Args:
        every: Seconds from one roll-over to the next.
        seconds: How long at least the phases with it, together.
        enough: Sends of each kind, at least.
        phase: Seconds of each phase.
        rate: Sends a second.
        times: How many times as slow it may be.
    """
    without, with_it = Kind("without roll-over"), Kind("with roll-over")
    async with running("broker") as url:
        load = Load(url, rate)
        await load.run((without, with_it), every=every, enough=enough, seconds=seconds, phase=phase)
    slower = percentile(with_it.times, 0.99) / percentile(without.times, 0.99)
    print(HEAD, without.row(), with_it.row(), sep="\n")
    print(f"{load.lost} lost, {load.again} duplicated; p99 with roll-over is {slower:.2f} times that without")
    return {
        "no message is lost": load.lost == 0,
        "none comes twice": load.again == 0,
        f"p99 is at most {times:g} times as long": slower <= times,
        "there are enough sends of each kind": min(len(without.times), len(with_it.times)) >= enough,
    }


def main() -> int:
    """Runs it; 0 if everything holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.roll_over", description=__doc__)
    parser.add_argument("--every", type=float, default=2.0, help="seconds from one roll-over to the next, default 2")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long at least the phases with it, default 5")
    parser.add_argument("--rate", type=float, default=RATE, help=f"sends a second, default {RATE:g}")
    parser.add_argument("--sends", type=int, default=SENDS, help=f"of each kind at least, default {SENDS}")
    arguments = parser.parse_args()
    holds = asyncio.run(
        prove(every=arguments.every, seconds=60 * arguments.minutes, enough=arguments.sends, rate=arguments.rate)
    )
    for what, held in holds.items():
        print(f"{what:<44}{'kept' if held else 'NO':>8}")
    failed = sum(not held for held in holds.values())
    print(f"{len(holds) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
