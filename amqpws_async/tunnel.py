"""A way through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6), after which the proxy is a plain TCP connection.

``websockets`` has one too, but its protocol calls the event loop's exception handler when a proxy ends the connection
early, or when the attempt is cancelled.
"""

from __future__ import annotations

import asyncio
import base64
import re
import urllib.parse
from typing import Final

from .errors import OpenError

__all__ = ["open_tunnel"]

_MAX_ANSWER: Final = 65536
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")


class _Answer(asyncio.Protocol):
    """Collects the proxy's answer; `complete` only signals that it is there, is too long, or will not come."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if b"\r\n\r\n" in self.data or len(self.data) > _MAX_ANSWER:
            self._complete()

    def eof_received(self) -> None:
        self._complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._complete()

    def _complete(self) -> None:
        if not self.complete.done():
            self.complete.set_result(None)


async def open_tunnel(proxy_url: str, host: str, port: int) -> asyncio.Transport:
    """Connect to `host` and `port` by way of a proxy.

    Args:
        proxy_url: ``http://`` or ``https://``, perhaps with credentials, which go to the proxy alone.
        host: The destination, resolved by the proxy.
        port: Its port.

    Returns:
        A transport that has no use for its protocol any more: give it another with ``set_protocol``.

    Raises:
        OpenError: The proxy refused, or did not answer in HTTP.
        OSError: It cannot be reached.
    """
    proxy = urllib.parse.urlsplit(proxy_url)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
    if proxy.username is not None:
        credentials = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
    assert proxy.hostname is not None  # options.py checked the URL and wrote the port out
    assert proxy.port is not None
    transport, answer = await asyncio.get_running_loop().create_connection(
        _Answer, proxy.hostname, proxy.port, ssl=True if proxy.scheme == "https" else None
    )
    try:
        transport.write(f"{request}\r\n".encode("ascii"))
        await answer.complete
        _check(answer.data, f"{authority} through the proxy {proxy.scheme}://{proxy.hostname}:{proxy.port}")
    except BaseException:
        transport.abort()
        raise
    return transport


def _check(data: bytearray, where: str) -> None:
    head, end, rest = bytes(data).partition(b"\r\n\r\n")
    status_line = _STATUS_LINE.match(head + b"\r\n")
    if not data:
        raise OpenError(f"{where}: the proxy ended the connection without an answer")
    if not end or status_line is None:
        raise OpenError(f"{where}: the proxy's answer is no HTTP: is it a SOCKS proxy, or another port?")
    status = int(status_line[1])
    if status == 407:
        raise OpenError(f"{where}: the proxy answered with HTTP status 407: it wants (other) credentials")
    if not 200 <= status < 300:
        raise OpenError(f"{where}: the proxy answered with HTTP status {status}: it does not let us through to there")
    if rest:
        # We have not said anything yet, so this is not from the broker.
        raise OpenError(f"{where}: the proxy sent {len(rest)} bytes too many")
