"""Short-lived tokens under load: connections open in parallel, again and again, and the token server hardly notices."""

from __future__ import annotations

import asyncio
import sys
import time

import amqpws_async as amqp
from amqpws_async.auth.oauth2 import ClientCredentials, TokenRefresher
from amqpws_async.testing import Broker
from amqpws_async.testing.token_server import TokenServer

PARALLEL = 200  # connections at a time
LIFETIME = 2.0  # seconds of a token
MINUTE = 60.0


async def main(tenth: bool) -> int:
    """Runs the part; how many checks failed."""
    duration = MINUTE / (10 if tenth else 1)
    opened = rounds = 0
    async with (
        TokenServer(lifetime=LIFETIME) as server,
        Broker(authorize=server.authorize) as broker,
        TokenRefresher(ClientCredentials(server.url, server.client_id, server.client_secret)) as tokens,
    ):

        async def open_one() -> None:
            async with amqp.connect(broker.url, token=tokens):
                pass

        started = time.monotonic()
        while time.monotonic() - started < duration:
            async with asyncio.TaskGroup() as group:  # a connection that fails ends the run
                for _ in range(PARALLEL):
                    group.create_task(open_one())
            opened += PARALLEL
            rounds += 1
        elapsed = time.monotonic() - started
        requests = server.request_count
    # A token is replaced before it expires, so what may be asked for follows from the shortest time between two
    # requests that the refresher's rule allows: 75 % of a life.
    expired = elapsed / (0.75 * LIFETIME)
    print(
        f"{opened} connections in {rounds} rounds and {elapsed:.1f} s: {requests} token requests, "
        f"{expired:.1f} tokens replaced at most",
        flush=True,
    )
    return int(requests > expired + 1)


if __name__ == "__main__":
    sys.exit(asyncio.run(main("--tenth" in sys.argv)))
