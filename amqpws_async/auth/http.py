"""What requests over HTTP have in common: answers read within bounds, and failures in words."""

from __future__ import annotations

import socket
import ssl as tls
from typing import Final

import aiohttp

from .answers import Answer, Mask

__all__ = ["network_text", "read_answer"]

_CREDENTIALS_FOR_PROXY: Final = "it wants (other) credentials: proxy='http://user:password@host:port'"


async def read_answer(response: aiohttp.ClientResponse, limit: int) -> Answer:
    """Read an answer, and no more of its body than a byte above the limit."""
    body = bytearray()
    while len(body) <= limit and (chunk := await response.content.read(limit + 1 - len(body))):
        body += chunk
    header = response.headers.get
    return Answer(
        response.status, bytes(body), header("Content-Type", ""), header("Location", ""), header("Retry-After", "")
    )


def network_text(error: Exception, proxy: str | None, mask: Mask) -> str:
    """What failed below the answer, DNS, TCP, TLS or a proxy, and what to do.

    Args:
        error: What aiohttp raised.
        proxy: The proxy on the way, or None.
        mask: Hides secrets in what others have written.
    """
    where = f"through the proxy {proxy}: " if proxy else ""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        advice = _CREDENTIALS_FOR_PROXY if error.status == 407 else "it does not let us through to there"
        return f"{where}the proxy answered with HTTP status {error.status}: {advice}"
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(cause, tls.SSLCertVerificationError):
        return (
            f"{where}the server's certificate is not trusted: {cause.verify_message}; "
            "if its CA is your own, pass the CA's PEM file: ssl='ca.pem'"
        )
    if isinstance(cause, tls.SSLError):
        return f"{where}TLS failed: {mask.text(cause)}: is it this port, and is a client certificate wanted?"
    if isinstance(cause, socket.gaierror):
        return f"{where}the host name cannot be resolved: {cause.strerror}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return f"{where}the server ended the connection without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{where}the answer is no HTTP: check host and port"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{where}cannot be reached: {mask.text(getattr(cause, 'strerror', None) or cause)}"
    return f"{where}the request failed: {mask.text(error) or type(error).__name__}"
