"""Kills a real broker (SIGKILL) and restarts it, again and again, amid sending and receiving.

``python -m tests.chaos.broker_kill --broker artemis --kills 20``

One sender's messages are received while it sends, another's stay in their queue over every kill and are received at the
end. All are durable, and nothing that a broker accepted may be lost. Ends with exit status 0 if nothing was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import amqpws_async as amqp
from tests.chaos.account import Account
from tests.chaos.watch import Watch
from tests.interop.brokers import PEERS, Peer

BROKERS = ("artemis", "broker-j")
MESSAGES = (100, 1_500)  # accepted from one kill to the next, at least and at most
IN_TIME = 120.0  # seconds for anything to go on: the start of a broker, and what waits for it
BACKLOG = 1_000  # messages of the live queue that wait to be received
IN_FLIGHT = 100
LIVE, KEPT = "live", "kept"  # queues, and the names of their senders


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to.

    Attributes:
        kills: How often the broker was killed.
        accepted: Messages that it took.
        arrived: Messages that arrived, each counted once.
        redelivered: Arrivals that were not the first, in the queue that was received from all the time.
        resent_twice: The same in the other queue: what the sender had sent again, and the broker kept twice.
        longest_gap: The most seconds from a kill to the first message accepted after it.
        seconds: How long it all took.
        problems: What went wrong, in words; empty if nothing did.
    """

    kills: int
    accepted: int
    arrived: int
    redelivered: int
    resent_twice: int
    longest_gap: float
    seconds: float
    problems: list[str]

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.seconds:.0f} s: {self.accepted} messages accepted, {self.arrived} arrived, "
            f"{self.redelivered} redelivered, {self.resent_twice} kept twice, at most {self.longest_gap:.1f} s "
            "from a kill to the next message"
        )


async def run(peer: Peer, *, kills: int, seed: int, say: Callable[[str], None]) -> Report:
    """Kills the broker so often, after numbers of messages that follow from the seed.

    Args:
        peer: The broker, which is running, with nothing in its queues.
        kills: How often.
        seed: Of the random numbers.
        say: Called with a line for each kill.

    Raises:
        TimeoutError: Something did not go on in time.
    """
    started, chance = time.monotonic(), random.Random(seed)
    account, watch, done = Account(durable=True), Watch(), asyncio.Event()
    longest = 0.0
    async with (
        amqp.Client(peer.url, backoff=amqp.Backoff(maximum=1.0), open_timeout=10.0, on_state=watch) as client,
        asyncio.TaskGroup() as group,
    ):
        senders = [group.create_task(_send(client, name, account, done)) for name in (LIVE, KEPT)]
        receiver = group.create_task(_receive(client, LIVE, account))
        for number in range(1, kills + 1):
            async with asyncio.timeout(IN_TIME):
                await account.until_accepted(chance.randint(*MESSAGES))
                killed = time.monotonic()
                await asyncio.to_thread(peer.server.restart)
                restarted = time.monotonic()
                await account.until_accepted(1)
            gap = time.monotonic() - killed
            longest = max(longest, gap)
            say(
                f"kill {number} of {kills}: {len(account.accepted)} accepted; the broker was back after "
                f"{restarted - killed:.1f} s, the first message accepted after {gap:.1f} s"
            )
        done.set()
        async with asyncio.timeout(IN_TIME):
            await asyncio.wait(senders)
            await account.until_missing(0, LIVE)
            redelivered = account.duplicates
            receiver.cancel()
            await asyncio.wait([receiver])
            say(f"receiving the {sum(name == KEPT for name, _ in account.accepted)} messages that were kept")
            await _drain(client, KEPT, account)
    problems = account.verdict()
    if watch.outages < kills:
        problems.append(f"the connection was lost {watch.outages} times, for {kills} kills")
    return Report(
        kills=kills,
        accepted=len(account.accepted),
        arrived=len(account.arrivals),
        redelivered=redelivered,
        resent_twice=account.duplicates - redelivered,
        longest_gap=longest,
        seconds=time.monotonic() - started,
        problems=problems,
    )


async def _send(client: amqp.Client, name: str, account: Account, done: asyncio.Event) -> None:
    async with client.sender(name, on_unknown="resend") as sender:
        messages = account.messages(name, lambda number: not done.is_set())
        async for message, outcome in sender.send_many(messages, in_flight=IN_FLIGHT):
            account.sent(message, outcome)
            if name == LIVE:
                await account.until_missing(BACKLOG, LIVE)


async def _receive(client: amqp.Client, name: str, account: Account) -> None:
    async with client.receiver(name) as receiver:
        async for delivery in receiver:
            account.arrived(delivery.message, in_order=False)
            with contextlib.suppress(amqp.SettlementLost):
                await delivery.accept()


async def _drain(client: amqp.Client, name: str, account: Account) -> None:
    async with client.receiver(name, credit=0) as receiver:
        while True:
            await receiver.add_credit(1_000)
            await receiver.drain()
            if not receiver.queued:
                return
            while receiver.queued:
                delivery = await receiver.receive()
                account.arrived(delivery.message, in_order=True)
                await delivery.accept()


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.broker_kill",
        description="Kills a real broker and restarts it, amid sending and receiving; nothing accepted may be lost.",
    )
    parser.add_argument("--broker", choices=BROKERS, default="artemis", help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="default: another one each time")
    arguments = parser.parse_args()
    logging.getLogger("amqpws_async").setLevel(logging.ERROR)  # the outages are wanted
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"{arguments.broker}, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="broker-kill-") as folder:
        peer = PEERS[arguments.broker](Path(folder))
        try:
            report = asyncio.run(run(peer, kills=arguments.kills, seed=seed, say=partial(print, flush=True)))
        finally:
            peer.server.kill()
    print(report)
    for problem in report.problems:
        print(f"FAILED: {problem}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
