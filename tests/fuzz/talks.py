"""The process in which the client meets odd servers: many at once, in batches, nothing left behind after each."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import traceback
import warnings
from typing import Any

import amqpws_async as amqp

from ..websocket_peer import Peer, serving
from .servers import SERVERS, Server

BATCH = 40  # conversations at a time
HANG = 20.0  # seconds for a whole conversation: the slowest opens for 5, and closes for 1
SETTLE = 3.0  # seconds for sockets that are closed to be gone


class Failure(AssertionError):
    """A conversation did not end as it should."""


async def client(url: str, patience: float) -> None:
    """What a user would do, as far as the server lets it."""
    async with amqp.connect(url, open_timeout=patience, close_timeout=0.2, proxy=None, idle_timeout=5.0) as connection:
        connection.health()
        session = await connection.session()
        # The names are those of the recordings that the servers damage.
        async with session.receiver("q", name="r-one") as receiver, session.sender("q", name="s-one") as sender:
            for size in (1, 500, 3000):
                with contextlib.suppress(amqp.DeliveryFailed):
                    await sender.send(amqp.Message(bytes(size)))
            for _ in range(3):
                delivery = await receiver.receive()
                try:
                    delivery.message.message_id, delivery.body, delivery.tag  # noqa: B018 - reading is the test
                except amqp.DecodeError:
                    await delivery.reject("amqp:decode-error")
                else:
                    await delivery.accept()
            await receiver.drain()


async def converse(seed: int, number: int, server: Server) -> str:
    """One conversation; the kind of its end.

    Raises:
        Failure: It was the wrong one.
    """
    rng = random.Random(f"{seed}:{number}")

    async def behave(peer: Peer) -> None:
        await server.behave(peer, rng)

    async with serving(behave) as listener:
        try:
            async with asyncio.timeout(HANG) as limit:
                await client(listener.url, server.patience)
        except (amqp.AMQPError, TimeoutError) as error:
            if limit.expired():
                raise Failure(f"it hangs: not over within {HANG:g} s") from error
            if server.decides and isinstance(error, TimeoutError):
                raise Failure(f"a timeout, where the server's behaviour calls for an error: {error}") from error
            return type(error).__name__
        if server.decides:
            raise Failure("no error at all")
        return "no error"


def descriptors() -> set[str]:
    """Open file descriptors, by number."""
    return set(os.listdir("/dev/fd"))


async def batch(seed: int, numbers: range) -> dict[int, tuple[str, str]]:
    """Conversations at once: for each its server's name and, if it failed, how."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(_complaint(context)))
    before = len(descriptors())
    servers = {number: SERVERS[number % len(SERVERS)] for number in numbers}
    ends = await asyncio.gather(
        *(converse(seed, number, server) for number, server in servers.items()), return_exceptions=True
    )
    report = {}
    for (number, server), end in zip(servers.items(), ends, strict=True):
        failed = "".join(traceback.format_exception(end)) if isinstance(end, BaseException) else ""
        report[number] = (f"{server.name}: {end if isinstance(end, str) else 'failed'}", failed)
    ends.clear()
    gc.collect()
    try:
        async with asyncio.timeout(SETTLE):
            while len(asyncio.all_tasks()) > 1 or len(descriptors()) > before:
                await asyncio.sleep(0.01)
    except TimeoutError:
        complaints += [f"left behind: {task!r}" for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if (after := len(descriptors())) > before:
            complaints.append(f"left behind: {after - before} file descriptors")
    if complaints:
        first = numbers[0]
        report[first] = (report[first][0], f"conversations {first} to {numbers[-1]}:\n" + "\n".join(complaints))
    return report


def _complaint(context: dict[str, Any]) -> str:
    return f"the loop's exception handler: {context['message']}: {context.get('exception')!r}"


async def main(seed: int, first: int, end: int) -> None:
    """Runs conversations; a line of JSON on stdout for each."""
    for start in range(first, end, BATCH):
        report = await batch(seed, range(start, min(end, start + BATCH)))
        for number, (kind, failure) in report.items():
            print(json.dumps({"number": number, "kind": kind, "failure": failure}), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("always")  # to stderr, where the parent looks for them
    asyncio.run(main(*map(int, sys.argv[1:4])))
