"""The way to a token endpoint: whom to trust, and which proxy to go through, as the broker's connection does."""

from __future__ import annotations

import base64
import ssl as tls
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..urls import is_loopback, resolve_proxy

__all__ = ["Route", "find_route"]


@dataclass(frozen=True, slots=True)
class Route:
    """How requests travel.

    Attributes:
        context: For TLS, or None for the default verification.
        proxy: The URL of an HTTP proxy, without credentials: aiohttp quotes it in its errors. Or None.
        proxy_headers: The credentials for it, or None.
        socks: Makes an aiohttp connector that goes through a SOCKS proxy, or None.
    """

    context: tls.SSLContext | None
    proxy: str | None = None
    proxy_headers: Mapping[str, str] | None = field(default=None, repr=False)
    socks: Callable[[], Any] | None = None


def find_route(
    token_url: str, ssl: tls.SSLContext | str | Path | None, proxy: str | bool | None, *, shows_certificate: bool
) -> Route:
    """Work out the way to `token_url`.

    Args:
        token_url: The endpoint.
        ssl: As in `ConnectionOptions`.
        proxy: As in `ConnectionOptions`.
        shows_certificate: Whether a client certificate will be loaded into the context.

    Raises:
        ValueError: One of the two is not usable, or the client's credentials would travel unencrypted to a proxy.
    """
    context = _context(ssl, shows_certificate)
    url = urllib.parse.urlsplit(token_url)
    assert url.hostname is not None  # the grant has checked it
    found = resolve_proxy(proxy, url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80))
    if found is None:
        return Route(context)
    parts = urllib.parse.urlsplit(found)
    assert parts.hostname is not None  # resolve_proxy() checked it and wrote the port out
    assert parts.port is not None
    if url.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("proxy: credentials would travel unencrypted to the proxy: use an https:// token URL")
    user, password = urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or "")
    if parts.scheme.startswith("socks"):
        return Route(context, socks=_socks(parts.scheme, parts.hostname, parts.port, user, password))
    headers = None
    if parts.username is not None:
        headers = {"Proxy-Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode('ascii')}"}
    return Route(context, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", headers)


def _context(ssl: tls.SSLContext | str | Path | None, shows_certificate: bool) -> tls.SSLContext | None:
    if isinstance(ssl, tls.SSLContext):
        if shows_certificate:
            # It would then show the certificate wherever else the context is used.
            raise ValueError("ssl: with a ClientCertificate, give the path of a CA file or None in place of a context")
        return ssl
    if ssl is None:
        return tls.create_default_context() if shows_certificate else None
    if not isinstance(ssl, (str, Path)):
        raise ValueError(f"ssl: an ssl.SSLContext, the path of a CA file, or None to verify as usual, not {ssl!r}")
    try:
        return tls.create_default_context(cafile=ssl)
    except (OSError, tls.SSLError) as error:
        raise ValueError(f"ssl: {str(ssl)!r} cannot be read as a PEM file of CA certificates: {error}") from error


def _socks(scheme: str, host: str, port: int, user: str, password: str) -> Callable[[], Any]:
    try:
        import aiohttp_socks
    except ImportError:
        raise ValueError(
            "proxy: a SOCKS proxy needs the package aiohttp-socks for token requests: pip install 'amqpws-async[socks]'"
        ) from None
    kind = aiohttp_socks.ProxyType.SOCKS5 if scheme.startswith("socks5") else aiohttp_socks.ProxyType.SOCKS4
    return lambda: aiohttp_socks.ProxyConnector(
        host=host,
        port=port,
        proxy_type=kind,
        username=user or None,
        password=password or None,
        rdns=scheme in ("socks4a", "socks5h"),
    )
