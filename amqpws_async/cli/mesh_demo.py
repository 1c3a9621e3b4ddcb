"""``amqpws demo --event-mesh``: from a service key to messages, against an embedded Event Mesh, step by step."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from ..message import Message
from ..outcomes import Accepted
from .composition import filler
from .event_mesh import key_files, new_mesh
from .failures import ExitStatus, Failure
from .interruption import Interruption
from .terminal import Progress, rate, size

if TYPE_CHECKING:
    from ..eventmesh import EventMeshConnection
    from ..receiver import Receiver

__all__ = ["DEFAULT_MESSAGES", "run_mesh_demo"]

DEFAULT_MESSAGES: Final = 20_000
_QUEUE: Final = "${namespace}/orders"
_PATTERN: Final = "${namespace}/orders/*"
_TOPIC: Final = "${namespace}/orders/created"
_STALLED: Final = 20.0  # seconds without any progress, after which the run is given up


async def run_mesh_demo(arguments: Namespace, interruption: Interruption) -> int:
    """Run it; the exit status says whether every message is accounted for."""
    if arguments.senders is not None or arguments.receivers is not None:
        raise Failure(ExitStatus.USAGE, "--senders and --receivers do not go with --event-mesh, which has one of each")
    exact = await interruption.work(_Demonstration(arguments).run())
    return ExitStatus.OK if exact else ExitStatus.FAILED


class _Demonstration:
    """One run of the command."""

    def __init__(self, arguments: Namespace) -> None:
        self._json: bool = arguments.json
        self._messages: int = arguments.messages or DEFAULT_MESSAGES
        self._size: int = arguments.size
        self._steps: list[dict[str, Any]] = []
        self._arrived = bytearray(self._messages)
        self._accepted = 0
        self._done = 0
        self._started = 0.0

    async def run(self) -> bool:
        """Run all of it; say whether the account is exact."""
        from ..auth.oauth2 import TokenRefresher
        from ..eventmesh import ServiceKey, connect
        from ..eventmesh.management import ManagementClient

        self._say("SAP Event Mesh, from a service key to messages; its part is played in this process")
        self._say()
        async with AsyncExitStack() as stack:
            async with self._step("mesh") as found:
                mesh = await stack.enter_async_context(new_mesh())
                files = stack.enter_context(key_files(mesh, None))
                found.append(f"{mesh.url}: broker, token server and REST, with a CA of their own")
            async with self._step("key") as found:
                key = await asyncio.to_thread(ServiceKey.load, files.key)
                found.append(f"namespace {key.namespace}, from a file as SAP's cockpit gives it")
            async with self._step("token") as found:
                assert key.messaging.grant is not None  # it is in the key
                tokens = await stack.enter_async_context(TokenRefresher(key.messaging.grant, ssl=files.ca))
                first = await tokens.token()
                hours = ((first.expiry or 0.0) - time.time()) / 3600
                found.append(f"{key.messaging.grant.token_url}: valid for {hours:.0f} hours")
            async with self._step("queue") as found:
                async with ManagementClient(key, ssl=files.ca) as management:
                    await management.create_queue(_QUEUE)
                    await management.subscribe(_QUEUE, _PATTERN)
                found.append(f"{_QUEUE} subscribes to {_PATTERN}, by REST")
            async with self._step("connect") as found:
                connecting = connect(key, token=tokens, ssl=files.ca)
                connection = await stack.enter_async_context(connecting)
                found.append("TLS, the token in the WebSocket's upgrade, SASL ANONYMOUS, AMQP open")
            receiver = await self._first_message(connection)
            async with self._step("refresh") as found:
                renewed = await tokens.token(refresh=True)
                if renewed.value == first.value:
                    raise Failure(ExitStatus.FAILED, "the token server gave the same token again")
                found.append("another token, which comes by itself when one grows old; the connection stays open")
            self._say()
            self._started = time.perf_counter()
            stream, sparse = (sys.stderr, None) if self._json else (sys.stdout, 1.0)
            async with Progress(stream, self._progress, delay=0.5, sparse=sparse):
                await self._load(connection, receiver)
            elapsed = time.perf_counter() - self._started
        return self._conclude(elapsed)

    async def _first_message(self, connection: EventMeshConnection) -> Receiver:
        """Publish one message to the topic, and take it from the queue."""
        async with self._step("publish") as found, connection.sender(f"topic:{_TOPIC}") as sender:
            await sender.send(Message(b'{"order": 1}', content_type="application/json"))
            found.append(f"to topic:{_TOPIC}: accepted")
        async with self._step("receive") as found:
            receiver = await connection.receiver(f"queue:{_QUEUE}")
            async with asyncio.timeout(_STALLED):
                delivery = await receiver.receive()
            await delivery.accept()
            body = delivery.body
            assert isinstance(body, bytes)  # we have just sent it
            found.append(f"from queue:{_QUEUE}: {body.decode()}, accepted")
        return receiver

    async def _load(self, connection: EventMeshConnection, receiver: Receiver) -> None:
        """Publish many messages as fast as they go, and take all of them from the queue."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish(connection))
                group.create_task(self._take(receiver))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _publish(self, connection: EventMeshConnection) -> None:
        body = filler(self._size)
        messages = (Message(body, message_id=number) for number in range(self._messages))
        async with connection.sender(f"topic:{_TOPIC}") as sender:
            async for _, outcome in sender.send_many(messages):
                self._accepted += isinstance(outcome, Accepted)

    async def _take(self, receiver: Receiver) -> None:
        while self._done < self._messages:
            try:
                async with asyncio.timeout(_STALLED):
                    delivery = await receiver.receive()
            except TimeoutError:
                raise TimeoutError(
                    f"nothing came for {_STALLED:g} s, after {self._done:,} of {self._messages:,} messages"
                ) from None
            number = delivery.message.message_id
            assert isinstance(number, int)
            self._done += not self._arrived[number]
            self._arrived[number] += 1
            await delivery.accept()

    # --- what is shown -------------------------------------------------------------------------

    def _say(self, line: str = "") -> None:
        if not self._json:
            print(line, flush=True)

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[list[str]]:
        """Time a step, which says what it found by appending a text."""
        started = time.perf_counter()
        found: list[str] = []
        yield found
        seconds = time.perf_counter() - started
        self._steps.append({"name": name, "seconds": round(seconds, 6), "text": found[0]})
        self._say(f"  {name:<8} {seconds * 1000:>8,.1f} ms  {found[0]}")

    def _progress(self) -> str:
        speed = rate(self._done, time.perf_counter() - self._started)
        return f"  {self._done / self._messages:4.0%}   {self._done:>9,} of {self._messages:,}   {speed:>9}"

    def _conclude(self, elapsed: float) -> bool:
        missing = self._arrived.count(0)
        duplicates = sum(count > 1 for count in self._arrived)
        exact = not missing and not duplicates and self._accepted == self._messages
        if self._json:
            print(json.dumps(self._result(elapsed, missing, duplicates, exact)), flush=True)
            return exact
        for line in self._account(elapsed, missing, duplicates, exact):
            self._say(line)
        return exact

    def _account(self, elapsed: float, missing: int, duplicates: int, exact: bool) -> Iterator[str]:
        count = self._messages
        yield f"{count:,} messages of {size(self._size)} in {elapsed:.1f} s: {rate(count, elapsed)}, topic to queue"
        twice = f"{duplicates:,} twice" if duplicates else "none twice"
        verdict = "" if exact else "   THE ACCOUNT IS NOT EXACT"
        yield f"  accounted for by id: {count - missing:,} of {count:,}, {twice}{verdict}"

    def _result(self, elapsed: float, missing: int, duplicates: int, exact: bool) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "messages": self._messages,
            "size": self._size,
            "seconds": round(elapsed, 3),
            "rate": round(self._messages / elapsed, 1),
            "accepted": self._accepted,
            "missing": missing,
            "duplicates": duplicates,
            "exact": exact,
        }
