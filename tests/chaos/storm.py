"""Many clients lose one broker at the same moment, and come back at the same: ``python -m tests.chaos.storm``.

Each client has a token of its own from one OAuth server, as so many instances of a service would; while the broker is
away all these tokens become invalid as well. A door in front of the broker counts who knocks. What may come at most
follows from the backoff: see `most_attempts`. Ends with exit status 0 if it was not more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import amqpws_async as amqp
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.testing import Broker, FaultProxy, TokenServer

PATIENCE = 60.0  # seconds for all clients to be connected, beyond the longest delay
TICK = 1  # seconds of a row


@dataclass(frozen=True, slots=True)
class Row:
    """What came in one second.

    Attributes:
        event: What had just happened, or "".
        attempts: Connections to the door.
        tokens: Requests to the token server.
        ready: Clients that are ready, at its end.
    """

    event: str
    attempts: int
    tokens: int
    ready: int


@dataclass(slots=True)
class Report:
    """What a storm came to.

    Attributes:
        clients: How many took part.
        away: What came while the broker was away, second by second.
        back: What came from its return until all had it again.
        attempts_bound: The most attempts that the backoff allows while it is away, second by second, all clients.
        problems: What went wrong, in words; empty if nothing did.
    """

    clients: int
    away: list[Row] = field(default_factory=list)
    back: list[Row] = field(default_factory=list)
    attempts_bound: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        away, back = ([row.attempts for row in rows] for rows in (self.away, self.back))
        half = away[len(away) // 2 :]
        tokens = [row.tokens for row in self.away + self.back]
        return (
            f"{self.clients} clients; attempts while the broker was away: {sum(away)} (the backoff allows "
            f"{self.attempts_bound[-1]}), at most {max(away)} in a second, {sum(half) / len(half):.1f} a second in the "
            f"second half; from its return: {sum(back)}, at most {max(back)} in a second, all after {len(back)} s; "
            f"token requests: {sum(tokens)}, at most {max(tokens)} in a second"
        )


def most_attempts(backoff: amqp.Backoff, seconds: float) -> int:
    """Says how many attempts one client can make in the first so many seconds of an outage.

    The first is at once; the others come after delays that are by chance up to a half shorter.
    """
    attempts, at, delay = 1, 0.0, backoff.initial
    while (at := at + min(delay, backoff.maximum) / 2) <= seconds:
        attempts += 1
        delay *= backoff.factor
    return attempts


async def run(clients: int, outage: float, backoff: amqp.Backoff, say: Callable[[str], None]) -> Report:
    """Connects, takes the broker away for `outage` seconds, and waits until all have it back.

    Args:
        clients: How many.
        outage: Seconds, whole ones.
        backoff: That of every client.
        say: Called with each line of the table.

    Raises:
        TimeoutError: Not all clients came back.
    """
    report = Report(clients)
    say(f"{'second':>6} {'attempts':>9} {'tokens':>7} {'ready':>6}  what happened")
    async with (
        TokenServer() as tokens,
        Broker(authorize=tokens.authorize) as broker,
        FaultProxy(broker.url) as door,
        contextlib.AsyncExitStack() as stack,
    ):
        everybody = [await _client(stack, tokens, door.url, backoff) for _ in range(clients)]
        second, before = 0, (0, 0)

        async def row(event: str = "") -> Row:
            nonlocal second, before
            await asyncio.sleep(TICK)
            now = (door.accepted, tokens.request_count)
            made = Row(event, now[0] - before[0], now[1] - before[1], sum(one.ready() for one in everybody))
            before, second = now, second + 1
            say(f"{second:6} {made.attempts:9} {made.tokens:7} {made.ready:6}  {event}".rstrip())
            return made

        async def until_ready(event: str) -> list[Row]:
            async with asyncio.timeout(backoff.maximum + PATIENCE):
                rows = [await row(event)]
                while rows[-1].ready < clients:
                    rows.append(await row())
            return rows

        await until_ready("all start")
        await broker.abort()
        tokens.revoke_all()
        while len(report.away) * TICK < outage:
            report.away.append(await row("" if report.away else "the broker goes away, all tokens become invalid"))
        await broker.start()
        report.back = await until_ready("the broker comes back")
    _judge(report, backoff)
    return report


async def _client(
    stack: contextlib.AsyncExitStack, tokens: TokenServer, url: str, backoff: amqp.Backoff
) -> amqp.Client:
    grant = ClientCredentials(tokens.url, tokens.client_id, tokens.client_secret)
    refresher = await stack.enter_async_context(TokenRefresher(grant, proxy=None))
    return await stack.enter_async_context(amqp.Client(url, token=refresher, backoff=backoff, background=True))


def _judge(report: Report, backoff: amqp.Backoff) -> None:
    clients, problems = report.clients, report.problems
    attempts = 0
    for number, row in enumerate(report.away, 1):
        attempts += row.attempts
        # A second more: the outage began a little before the first row, and rows are a little longer than a second.
        report.attempts_bound.append(clients * most_attempts(backoff, (number + 1) * TICK))
        if attempts > report.attempts_bound[-1]:
            problems.append(f"{attempts} attempts in the first {number} s, of {report.attempts_bound[-1]}")
    if report.away[-1].ready:
        problems.append(f"{report.away[-1].ready} clients are ready while there is no broker")
    # From its return: one attempt that the broker refuses for the token, and one with a fresh token.
    if (returned := sum(row.attempts for row in report.back)) > 3 * clients:
        problems.append(f"{returned} attempts to come back, of {clients} clients")
    if (asked := sum(row.tokens for row in report.away + report.back)) > 2 * clients:
        problems.append(f"{asked} token requests, of {clients} clients")


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.storm",
        description="Many clients lose one broker at the same moment; their attempts are counted, second by second.",
    )
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--outage", type=int, default=60, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument(
        "--maximum",
        type=float,
        default=amqp.Backoff().maximum,
        metavar="SECONDS",
        help="the longest delay of the backoff, default: %(default)s",
    )
    arguments = parser.parse_args()
    logging.getLogger("amqpws_async").setLevel(logging.ERROR)  # the outages are wanted
    backoff = amqp.Backoff(maximum=arguments.maximum)
    report = asyncio.run(run(arguments.clients, arguments.outage, backoff, partial(print, flush=True)))
    print(report)
    for problem in report.problems:
        print(f"FAILED: {problem}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
