"""From a service key to what a connection needs: where the broker is, access tokens, and what to show in TLS.

Platforms rotate keys: secrets are replaced, and certificates live for days. So a key is a file or a binding to be read
when something is opened, and by `Access`, as a `TokenProvider`, also when a client connects anew.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as tls
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, cast

from ..auth import Anonymous, Token, TokenProvider
from ..auth.client_auth import ClientCertificate
from ..auth.oauth2 import TokenRefresher
from ..auth.tokens import as_provider
from ..errors import AMQPError
from ..options import ConnectionArguments
from .addresses import check_namespace
from .key import ServiceKey, ServiceKeyError
from .rules import IDLE_LIMIT

__all__ = ["Access", "EventMeshArguments", "KeySource", "check_options", "within"]

logger = logging.getLogger("amqpws_async.eventmesh")


class EventMeshArguments(TypedDict, total=False):
    """The fields of `ConnectionOptions` that may be chosen here; the others follow from the key or from Event Mesh."""

    token: str | Token | TokenProvider | None
    headers: Mapping[str, str]
    ssl: tls.SSLContext | str | Path | None
    proxy: str | bool | None
    redirect_hosts: tuple[str, ...]
    hostname: str | None
    container_id: str
    properties: Mapping[str, Any] | None
    offered_capabilities: tuple[str, ...]
    desired_capabilities: tuple[str, ...]
    open_timeout: float | None
    close_timeout: float
    idle_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    max_frame_size: int
    channel_max: int
    max_websocket_message_size: int
    send_buffer_bytes: int
    trace: bool | Callable[[str], None] | None


def check_options(opener: str, known: Any, options: Mapping[str, Any], namespace: str | None) -> None:
    """Refuse at once what could only fail later.

    Args:
        opener: The function that was called.
        known: The TypedDict of its options.
        options: What was given.
        namespace: Likewise.

    Raises:
        TypeError: There is no such option.
        ValueError: One does not suit Event Mesh, or the namespace is none.
    """
    unknown = options.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{opener}() got an unexpected keyword argument {min(unknown)!r}")
    idle_timeout = options.get("idle_timeout", 60.0)
    if not idle_timeout or idle_timeout >= IDLE_LIMIT:
        raise ValueError(
            f"idle_timeout: less than {IDLE_LIMIT:g} s, not {idle_timeout!r}: Event Mesh closes a connection that is "
            "silent for five minutes"
        )
    if namespace is not None:
        check_namespace(namespace)


@dataclass(frozen=True, slots=True, repr=False)
class KeySource:
    """Where a service key is; the arguments of `ServiceKey.load`, or a key that is loaded already.

    Raises:
        ValueError: There are instructions for a key that is loaded already.
    """

    key: ServiceKey | Mapping[str, Any] | str | Path | None
    binding: str | None
    certificate: ClientCertificate | None

    def __post_init__(self) -> None:
        if isinstance(self.key, ServiceKey) and (self.binding is not None or self.certificate is not None):
            raise ValueError("binding and certificate: for ServiceKey.load(); this key is loaded already")

    async def read(self) -> ServiceKey:
        """Read it: in a thread, as keys are files. Cancelling drops what was read."""
        if isinstance(self.key, ServiceKey):
            return self.key
        return await asyncio.to_thread(ServiceKey.load, self.key, binding=self.binding, certificate=self.certificate)


class Access:
    """What a service key gives to connections.

    It is a `TokenProvider` that reads the key anew before it gives a token: a new secret or certificate is good for the
    next connection, and a key that cannot be read leaves the one before in use. What stays as it was read first are the
    broker's URL, the namespace, and whether there is a certificate.

    Attributes:
        key: The key, as it was read last.
        refresher: What asks the key's own token endpoint; None if tokens come from elsewhere.
    """

    def __init__(self, source: KeySource, key: ServiceKey, options: EventMeshArguments) -> None:
        self.key = key
        self._source = source
        self._options = options
        self._context: tls.SSLContext | None = None  # ours, that shows the certificate
        self._renewing = asyncio.Lock()
        given = options.get("token")
        self._given = None if given is None else as_provider(given)
        self.refresher = None if self._given is not None else self._make_refresher(key)

    @classmethod
    async def open(cls, source: KeySource, options: EventMeshArguments) -> Self:
        """Read the key, and begin to keep a token of its own endpoint, unless there is another.

        Cancelling leaves nothing behind.

        Raises:
            ServiceKeyError: The key is missing, ambiguous or unfit.
            TokenError: Its certificate cannot be used.
            ValueError: An option is out of range.
            TimeoutError: It took longer than `open_timeout`.
        """
        async with within(options.get("open_timeout", 30.0), "the service key"):
            key = await source.read()
        access = cls(source, key, options)
        ssl = options.get("ssl")
        if key.certificate is not None and not isinstance(ssl, tls.SSLContext):
            access._context = await asyncio.to_thread(_showing, key.certificate, ssl)
        if access.refresher is not None:
            await access.refresher.__aenter__()
        return access

    def _make_refresher(self, key: ServiceKey) -> TokenRefresher:
        if key.messaging.grant is None:
            raise ServiceKeyError(f"{key.origin}: no token endpoint for {key.messaging.url}: give token=")
        options = self._options
        return TokenRefresher(key.messaging.grant, ssl=options.get("ssl"), proxy=options.get("proxy", True))

    @property
    def tokens(self) -> TokenProvider:
        """What supplies tokens by the key as it was read last."""
        if self._given is not None:
            return self._given
        assert self.refresher is not None
        return self.refresher

    def arguments(self, tokens: TokenProvider) -> ConnectionArguments:
        """Make the options of a connection that gets its tokens there."""
        made: dict[str, Any] = {**self._options, "token": tokens, "sasl": Anonymous(), "subprotocols": ("amqp",)}
        if self._context is not None:
            made["ssl"] = self._context
        return cast(ConnectionArguments, made)

    async def token(self, *, refresh: bool = False) -> Token:
        """Read the key anew, and return a token that is valid now. Cancelling stops the waiting alone.

        Args:
            refresh: Do not take the one at hand: the peer has just refused it.

        Raises:
            TokenError: None can be had.
        """
        async with self._renewing:
            try:
                await self._renew()
            except (AMQPError, ValueError, OSError) as error:
                logger.warning("! the service key cannot be read anew, and stays as it was: %s", error)
        return await self.tokens.token(refresh=refresh)

    async def _renew(self) -> None:
        key = await self._source.read()
        if key.certificate is not None and self._context is not None:
            # Also if it is the same: it may be the path of a file that is not.
            await asyncio.to_thread(key.certificate.load_into, self._context)
        former = self.refresher
        if former is not None and key.messaging.grant != self.key.messaging.grant:
            self.refresher = self._make_refresher(key)
            self.key = key
            await self.refresher.__aenter__()
            await former.__aexit__()
            logger.info("= %s: other credentials than before", key.origin)
        self.key = key

    async def close(self) -> None:
        """Stop renewing tokens."""
        if self.refresher is not None:
            await self.refresher.__aexit__()

    def abandon(self) -> None:
        """Stop without waiting, from any thread."""
        if self.refresher is not None:
            self.refresher.abandon()


def _showing(certificate: ClientCertificate, ssl: str | Path | None) -> tls.SSLContext:
    """A context that shows the certificate to the broker, as it is shown to the token endpoint."""
    context = tls.create_default_context(cafile=ssl)
    certificate.load_into(context)
    return context


@asynccontextmanager
async def within(timeout: float | None, what: str) -> AsyncIterator[None]:
    """Allow only so many seconds; None is no limit."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise TimeoutError(
            str(error) or f"Event Mesh: {what} was not done within {timeout:g} s (open_timeout)"
        ) from None
