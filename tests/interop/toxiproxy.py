"""Starts toxiproxy, a TCP proxy of others that breaks connections on demand, and speaks its HTTP API."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from tests.interop import fetch
from tests.interop.brokers import Server, StartError, free_port

PROMPTLY = 10.0  # seconds within which a process that is up listens
Stream = Literal["upstream", "downstream"]
"""``"upstream"`` is from the client to the broker, ``"downstream"`` is to the client."""
Kind = Literal["bandwidth", "latency", "limit_data", "reset_peer", "slicer", "slow_close", "timeout"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy of a running toxiproxy."""

    url: str
    """Where clients connect to instead of the broker."""
    session: aiohttp.ClientSession
    path: str

    async def add(self, kind: Kind, stream: Stream = "downstream", **attributes: int) -> None:
        """Adds a toxic, to the connections that are there and to those that come.

        ============  ===============================================================================================
        bandwidth     ``rate``: KB a second
        latency       ``latency``, ``jitter``: milliseconds
        limit_data    closes a connection after ``bytes``, counted from when the toxic and the connection are there
        reset_peer    resets connections after ``timeout`` milliseconds
        slicer        pieces of ``average_size``, more or less by ``size_variation``, ``delay`` microseconds apart
        slow_close    the end of a connection comes ``delay`` milliseconds late
        timeout       nothing passes, connections are closed after ``timeout`` milliseconds; 0 is when it is removed
        ============  ===============================================================================================
        """
        await self._call("POST", f"{self.path}/toxics", type=kind, stream=stream, attributes=attributes)

    async def clear(self) -> None:
        """Removes all toxics."""
        for toxic in await self._call("GET", f"{self.path}/toxics"):
            await self._call("DELETE", f"{self.path}/toxics/{toxic['name']}")

    async def disable(self) -> None:
        """Closes all connections and refuses new ones."""
        await self._call("POST", self.path, enabled=False)

    async def enable(self) -> None:
        """Listens again, on the same port."""
        await self._call("POST", self.path, enabled=True)

    async def _call(self, method: str, path: str, **content: Any) -> Any:
        async with self.session.request(method, path, json=content or None) as response:
            response.raise_for_status()
            return await response.json() if response.status != 204 else None


@dataclass(frozen=True, slots=True)
class Toxiproxy:
    """A running toxiproxy."""

    server: Server
    api: str

    @contextlib.asynccontextmanager
    async def proxy(self, url: str) -> AsyncIterator[Proxy]:
        """Puts a proxy before the server at a ``ws://`` URL, for as long as it is wanted."""
        upstream = urllib.parse.urlsplit(url)
        async with aiohttp.ClientSession(self.api) as session:
            name = uuid.uuid4().hex
            content = {"name": name, "listen": "127.0.0.1:0", "upstream": upstream.netloc, "enabled": True}
            async with session.post("/proxies", json=content) as response:
                response.raise_for_status()
                listen = (await response.json())["listen"]
            proxy = Proxy(upstream._replace(netloc=listen).geturl(), session, f"/proxies/{name}")
            try:
                yield proxy
            finally:
                await proxy._call("DELETE", proxy.path)


def start_toxiproxy(folder: Path) -> Toxiproxy:
    """Starts toxiproxy; its proxies are made by `Toxiproxy.proxy`."""
    port = free_port()
    command = [str(fetch.toxiproxy()), "-host=127.0.0.1", f"-port={port}"]
    server = Server(command, folder=folder, ready="Starting HTTP server", environment={"LOG_LEVEL": "info"})
    _wait_listening(port)  # which it says a moment before it does
    return Toxiproxy(server, f"http://127.0.0.1:{port}")


def _wait_listening(port: int) -> None:
    deadline = time.monotonic() + PROMPTLY
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PROMPTLY).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise StartError(f"toxiproxy does not listen on port {port}") from None
        else:
            return
