"""What the client talks to, in a process of its own: ``python -m tests.soak.peers broker|source``.

``broker`` is the embedded broker. ``source`` delivers `LARGE` messages to any receiver, as fast as its credit allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from amqpws_async.auth.sasl import Anonymous
from amqpws_async.engine import (
    AttachFields,
    Engine,
    EngineReceiver,
    EngineSender,
    EngineSession,
    RemoteAttach,
    RemoteOpen,
)
from amqpws_async.errors import ErrorCondition
from amqpws_async.message import Message
from amqpws_async.testing import Broker

LARGE: Final = 2**20  # bytes of each body of the source's


@contextlib.asynccontextmanager
async def running(kind: str) -> AsyncIterator[str]:
    """Starts a peer; its URL."""
    command = (sys.executable, "-m", "tests.soak.peers", kind)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


class Source:
    """One connection of the source."""

    def __init__(self) -> None:
        self.engine = Engine(self, container_id="source", sasl=Anonymous(), server=True)
        self._raw = Message(bytes(LARGE)).encode()
        self._handlers: list[object] = []

    def _on_opened(self, remote: RemoteOpen) -> None:
        self.engine.open()

    def _on_closed(self, error: ErrorCondition | None) -> None: ...
    def _on_failed(self, error: ErrorCondition) -> None: ...

    def _on_session(self, session: EngineSession) -> None:
        session.handler = self
        session.begin()

    def _on_begun(self) -> None: ...
    def _on_ended(self, error: ErrorCondition | None) -> None: ...
    def _on_link_released(self) -> None: ...

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        assert isinstance(link, EngineSender)
        assert link.remote is not None
        handler = _Link(link, self._raw)
        self._handlers.append(handler)
        link.handler = handler
        link.attach(AttachFields(source=link.remote.source, target=link.remote.target))

    async def serve(self, socket: ServerConnection) -> None:
        """Speaks until the client is gone."""
        try:
            async for data in socket:
                assert isinstance(data, bytes)
                self.engine.receive_data(data)
                while said := self.engine.data_to_send(65536):
                    await socket.send(said)
        except ConnectionClosed:
            pass
        finally:
            self.engine.free()


class _Link:
    def __init__(self, link: EngineSender, raw: bytes) -> None:
        self.link = link
        self._raw = raw

    def _on_attached(self, remote: RemoteAttach) -> None: ...
    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None: ...

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        if drain:
            self.link.drained()
        while self.link.credit > 0:
            self.link.transfer(self._raw, _Delivery(self.link))


class _Delivery:
    def __init__(self, link: EngineSender) -> None:
        self.link = link

    def _on_outcome(self, outcome: Any) -> None: ...
    def _fail(self, stop: Any) -> None: ...


async def main(kind: str) -> None:
    """Serves until stdin ends."""
    async with contextlib.AsyncExitStack() as stack:
        if kind == "broker":
            url = (await stack.enter_async_context(Broker())).url
        else:
            server = await stack.enter_async_context(
                serve(
                    lambda socket: Source().serve(socket),
                    "127.0.0.1",
                    0,
                    subprotocols=["amqp"],  # type: ignore[list-item]
                    compression=None,
                )
            )
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
