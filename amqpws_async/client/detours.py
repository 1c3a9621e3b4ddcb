"""Where links were redirected to: a carrier for each such place, for as long as a link uses it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..errors import AMQPError
from .carrier import Carrier

if TYPE_CHECKING:
    from ..options import ConnectionOptions
    from .client import Client

__all__ = ["Detours"]

ATTEMPTS: Final = 3  # to connect there; who is sent elsewhere comes back soon if nobody is there


class Detours:
    """The carriers of a client beside its main one; iterating gives them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._carriers: dict[tuple[str, str | None], Carrier] = {}

    def __iter__(self) -> Iterator[Carrier]:
        return iter(list(self._carriers.values()))

    def carrier_to(self, place: ConnectionOptions) -> Carrier:
        """The carrier that is connected to a place, the client's main one included; one is made if need be."""
        client, key = self._client, _key(place)
        for carrier in client._carriers():
            if carrier.connection is not None and _key(carrier.connection.options) == key:
                return carrier
        known = self._carriers.get(key)
        if known is not None and known.stop is None:
            return known
        backoff = dataclasses.replace(client.options.backoff, max_attempts=ATTEMPTS)
        made = self._carriers[key] = Carrier(client, [place], backoff)
        client._spawn(self._run(key, made), "detour")
        return made

    async def _run(self, key: tuple[str, str | None], carrier: Carrier) -> None:
        """Run a carrier for as long as links use it."""
        client = self._client
        await asyncio.sleep(0)  # an eager task would look before the link that asked for the carrier has it
        task = client._spawn(carrier.run(), "redirected connection")
        try:
            while carrier.stop is None and any(link._carrier is carrier for link in client._links):
                await client._changed.wait()
            if self._carriers.get(key) is carrier:  # before anything is awaited: no link may come to it any more
                del self._carriers[key]
            task.cancel()
            await asyncio.wait([task])
            for connection in carrier.connections():
                with contextlib.suppress(AMQPError, TimeoutError):
                    await connection.close()
        finally:
            for connection in carrier.connections():
                connection._abandon()


def _key(place: ConnectionOptions) -> tuple[str, str | None]:
    return place.url, place.hostname
