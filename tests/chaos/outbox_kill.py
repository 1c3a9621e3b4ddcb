"""SIGKILL for the process that sends through an outbox on disk, at random moments; nothing acknowledged may be lost.

::

    python -m tests.chaos.outbox_kill [--kills 100] [--seed N] [--durability full]

The broker is in this process, and is dropped and started again at random as well. The child writes the name of every
message that was acknowledged to it. After the last kill it sends what is left in the file, and then the broker's queue
is checked:

* every acknowledged message arrived;
* all that arrived under one name has one message-id, and no two names have the same;
* the messages of each of the child's tasks arrived in the order in which they were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amqpws_async.message import Message
from amqpws_async.testing import Broker

from .outbox_child import ADDRESS

PATIENCE = 30.0  # seconds for the child to write its first line, or to send what is left
RUN_TIME = 0.6  # seconds at most from the first acknowledgement to the kill
EARLY = 0.2  # of the kills come before any acknowledgement: while the file is opened and repaired
START_TIME = 0.8  # seconds at most from the start of the child to an early kill
OUTAGE = 0.3  # of the runs have a broker that goes away in between
OUTAGE_TIME = 0.2  # seconds at most that it is away


@dataclass
class Tally:
    """What was seen.

    Attributes:
        acknowledged: Names that the child has written.
        arrived: Message-ids of each name that arrived.
        messages: All messages that arrived, duplicates included.
        disordered: Names that arrived behind a later one of the same task.
    """

    acknowledged: set[str] = field(default_factory=set)
    arrived: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    messages: int = 0
    disordered: list[str] = field(default_factory=list)

    def count(self, messages: Iterable[Message]) -> None:
        """Takes what arrived, in the order of arrival."""
        newest: dict[str, int] = {}
        for message in messages:
            name = message.subject
            assert name is not None
            self.messages += 1
            if name not in self.arrived:
                task, _, number = name.rpartition(".")
                if int(number) < newest.get(task, 0):
                    self.disordered.append(name)
                newest[task] = int(number)
            self.arrived[name].add(message.message_id)

    @property
    def lost(self) -> set[str]:
        """What was acknowledged and never arrived."""
        return self.acknowledged - self.arrived.keys()

    @property
    def renamed(self) -> list[str]:
        """What arrived under more than one message-id, or under one that is not its own."""
        owners: dict[Any, set[str]] = defaultdict(set)
        for name, ids in self.arrived.items():
            for message_id in ids:
                owners[message_id].add(name)
        return [
            name
            for name, ids in self.arrived.items()
            if len(ids) != 1 or None in ids or any(len(owners[message_id]) > 1 for message_id in ids)
        ]

    @property
    def failed(self) -> bool:
        """Whether a promise was broken, or nothing was tried."""
        return bool(self.lost or self.renamed or self.disordered or not self.acknowledged)

    def __str__(self) -> str:
        duplicates = self.messages - len(self.arrived)
        unacknowledged = len(self.arrived.keys() - self.acknowledged)
        return (
            f"{len(self.acknowledged)} acknowledged, {len(self.lost)} lost, {duplicates} duplicates, "
            f"{len(self.renamed)} with another message-id, {len(self.disordered)} out of order, "
            f"{unacknowledged} arrived unacknowledged"
        )


async def start(broker: Broker, path: Path, durability: str, run: str, seed: int) -> asyncio.subprocess.Process:
    """Starts the child."""
    arguments = ("-W", "error", "-m", "tests.chaos.outbox_child", broker.url, str(path), durability, run, str(seed))
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)


async def one_run(child: asyncio.subprocess.Process, broker: Broker, chance: random.Random, tally: Tally) -> None:
    """Lets the child send for a while, with or without the broker, and kills it."""
    assert child.stdout is not None
    read = asyncio.create_task(acknowledgements(child.stdout, tally))
    if chance.random() < EARLY:
        await asyncio.sleep(chance.random() * START_TIME)
    else:
        known = len(tally.acknowledged)
        async with asyncio.timeout(PATIENCE):
            while len(tally.acknowledged) == known and child.returncode is None:
                await asyncio.sleep(0.001)
        await asyncio.sleep(chance.random() * RUN_TIME)
        if chance.random() < OUTAGE:
            await broker.abort()
            await asyncio.sleep(chance.random() * OUTAGE_TIME)
            if chance.random() < 0.5:  # else the kill finds it away
                await broker.start()
                await asyncio.sleep(chance.random() * RUN_TIME)
    if child.returncode is not None:
        raise RuntimeError(f"the child ended by itself, with {child.returncode}")
    child.kill()
    await child.wait()
    await read  # what was in the pipe was acknowledged, too


async def acknowledgements(output: asyncio.StreamReader, tally: Tally) -> None:
    """Takes down what the child writes, up to its end; a line cut short by the kill does not count."""
    async for line in output:
        if line.endswith(b"\n"):
            tally.acknowledged.add(line.decode().strip())


async def main(
    kills: int, seed: int, durability: str = "normal", show: Callable[[str], object] = lambda _: None
) -> Tally:
    """Kills so often, drains and counts."""
    chance = random.Random(seed)
    tally = Tally()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="outbox-kill-") as folder:
        path = Path(folder) / "messages.outbox"
        async with Broker(max_queue_bytes=2**40, close_timeout=0.2) as broker:
            for run in range(kills):
                child = await start(broker, path, durability, f"run-{run}", seed)
                try:
                    await one_run(child, broker, chance, tally)
                finally:
                    if child.returncode is None:
                        child.kill()
                        await child.wait()
                await broker.abort()
                await broker.start()
                elapsed = time.monotonic() - started
                show(f"{run + 1} of {kills} kills, {len(tally.acknowledged)} acknowledged, {elapsed:.0f} s")
            child = await start(broker, path, durability, "drain", seed)
            try:
                async with asyncio.timeout(PATIENCE):
                    if await child.wait():
                        raise RuntimeError(f"the last child ended with {child.returncode}")
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
            tally.count(broker.messages(ADDRESS))
    return tally


def command() -> int:
    """Runs it from the command line; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.outbox_kill",
        description="Kill -9 for a process that sends through an outbox on disk: nothing acknowledged may be lost.",
    )
    parser.add_argument("--kills", type=int, default=100, help="how often, 100 by default: two minutes or so")
    parser.add_argument("--seed", type=int, default=None, help="what chance begins with; shown, to repeat a run")
    parser.add_argument("--durability", choices=("normal", "full"), default="normal", help="of the outbox")
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    tally = asyncio.run(main(arguments.kills, seed, arguments.durability, lambda text: print(text, flush=True)))
    print(tally)
    print("FAILED" if tally.failed else "passed")
    return int(tally.failed)


if __name__ == "__main__":
    sys.exit(command())
