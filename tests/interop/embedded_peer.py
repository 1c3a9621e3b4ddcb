"""The embedded broker as a process of its own: one that takes anybody, and one that wants a password."""

from __future__ import annotations

import asyncio
import os

from amqpws_async.testing import Broker
from tests.interop.brokers import IDLE_TIMEOUT


async def main() -> None:
    """Serves until it is ended."""
    users = {os.environ["PEER_USER"]: os.environ["PEER_PASSWORD"]}
    async with Broker(idle_timeout=IDLE_TIMEOUT) as anonymous, Broker(users=users) as login:
        print(f"anonymous {anonymous.url} login {login.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
