"""Servers for the ``amqpws`` command when it runs in the test's own thread: they run on a loop in another one."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

import trustme

from .cli_command import TIMEOUT

T = TypeVar("T")


@contextmanager
def running(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Runs a server; gives what its ``async with`` gives. Its plain attributes may be set from here."""
    started: Future[T] = Future()
    ended = asyncio.Event()

    async def serve() -> None:
        try:
            async with make() as server:
                started.set_result(server)
                await ended.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=[serve()])
        thread.start()
        try:
            yield started.result(TIMEOUT)
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join()


def context_of(ca: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    """A server's context, with a certificate for these names."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names, **options).configure_cert(context)
    return context


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def listening(handler: Handler, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Runs a TCP server made of one coroutine function; gives its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.transport.abort()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    class Listener:
        async def __aenter__(self) -> int:
            self._server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
            return int(self._server.sockets[0].getsockname()[1])

        async def __aexit__(self, *_: object) -> None:
            self._server.close()
            for task in list(tasks):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    with running(Listener) as port:
        yield port


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and never says a word."""
    while await reader.read(65536):
        pass
