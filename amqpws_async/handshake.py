"""What is said about an upgrade that failed: errors that tell what to do, without a secret in them."""

from __future__ import annotations

import http
import socket
import ssl as tls
import urllib.parse
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidMessage
from websockets.http11 import Response

from .errors import HandshakeError
from .masking import SECRET_HEADERS
from .options import ConnectionOptions

__all__ = ["Secrets", "handshake_error", "network_text", "refused", "unfit"]

_MAX_BODY: Final = 4096


class Secrets:
    """What must not be seen: by name where it stands in a header, by value everywhere else."""

    def __init__(self, token: str | None, options: ConnectionOptions) -> None:
        self.names = SECRET_HEADERS | {name.lower() for name in options.headers}
        self.authorized = token is not None or any(name.lower() == "authorization" for name in options.headers)
        values = [token or "", urllib.parse.urlsplit(options.url).query, *options.headers.values()]
        values += [part for value in options.headers.values() for part in value.split()]
        # Longest first, so that no part of one is left over; shorter ones are words rather than secrets.
        self._values = sorted({value for value in values if len(value) >= 6}, key=len, reverse=True)

    def mask(self, text: str) -> str:
        """Replace every secret value in `text`."""
        for value in self._values:
            text = text.replace(value, "***")
        return text


# --- errors ---------------------------------------------------------------------------------


def refused(options: ConnectionOptions, response: Response, secrets: Secrets) -> HandshakeError:
    """The error for an HTTP status other than 101."""
    status = response.status_code
    try:
        phrase = f" ({http.HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    text = f"{options.origin}: the upgrade was answered with HTTP status {status}{phrase}: {_advice(response, secrets)}"
    challenge = ", ".join(response.headers.get_all("WWW-Authenticate"))
    if challenge:
        text += f"; the server says {secrets.mask(challenge)[:300]!r}"
    return handshake_error(text, response, secrets)


def _advice(response: Response, secrets: Secrets) -> str:
    status = response.status_code
    match status:
        # What nginx says; others say nothing that could be told from a wrong path.
        case 400 if b"ssl certificate" in bytes(response.body).lower():
            return "it wants a client certificate that it knows: pass ssl= a context that has one loaded"
        case 400 if b"plain http request" in bytes(response.body).lower():
            return "this port speaks TLS: use wss://"
        case 401 if secrets.authorized:
            return (
                "the token or Authorization header was not accepted: has it expired, and does it come from the token "
                "endpoint, and with the scope, that this broker trusts?"
            )
        case 401:
            return "it wants to know who you are: pass token= (or headers={'Authorization': ...})"
        case 403:
            return "you are known, and may not connect: check roles, scopes, and the broker's list of allowed addresses"
        case 404:
            return (
                "wrong path? Usual ones are /protocols/amqp10ws (SAP Event Mesh), /$servicebus/websocket (Azure "
                "Service Bus, Event Hubs), /$iothub/websocket (IoT Hub), /ws (RabbitMQ) and / (Artemis, Broker-J)"
            )
        case 407:
            return "a proxy on the way wants credentials: proxy='http://user:password@host:port'"
        case 429:
            return "too many connections or attempts: wait before the next"
        case _ if status < 300:
            return "an ordinary web page lives here, no WebSocket: check host, port and path"
        case _ if status < 400:
            return "a redirect that leads nowhere"
        case _ if status >= 500:
            return "the broker, or a gateway before it, is in trouble: try again later"
    return "the server does not take this request for a WebSocket upgrade: check host, port and path"


def unfit(
    options: ConnectionOptions, error: InvalidHandshake, response: Response | None, secrets: Secrets
) -> HandshakeError:
    """The error for an answer that is no valid upgrade, or no HTTP at all."""
    selected = response.headers.get_all("Sec-WebSocket-Protocol") if response is not None else []
    if response is not None and "subprotocol" in str(error):
        name = secrets.mask(", ".join(selected))[:200]
        return handshake_error(
            f"{options.origin}: the server selected the subprotocol {name!r}, we offered "
            f"{', '.join(options.subprotocols) or 'none'}: offer it by subprotocols= if it is AMQP by another name",
            response,
            secrets,
        )
    if isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError):
        text = "the server ended the connection before it had answered the upgrade"
    elif isinstance(error, InvalidMessage):
        problem = _brief(error.__cause__, secrets)
        text = f"the server's answer to the upgrade is no HTTP ({problem}): check host and port"
    else:
        text = f"the server's answer to the upgrade is not valid: {_brief(error, secrets)}"
    if response is None:
        return HandshakeError(f"{options.origin}: {text}")
    return handshake_error(f"{options.origin}: {text}", response, secrets)


def handshake_error(text: str, response: Response, secrets: Secrets) -> HandshakeError:
    """An error with what the server answered: a server may echo our headers, so that is masked too."""
    headers = Headers()  # looks names up in any case
    for name in dict.fromkeys(name.lower() for name in response.headers):
        headers[name] = secrets.mask(", ".join(response.headers.get_all(name)))
    body = secrets.mask(bytes(response.body).decode("utf-8", "surrogateescape"))  # masked before it is cut
    return HandshakeError(
        text,
        status=response.status_code,
        headers=headers,
        body=body.encode("utf-8", "surrogateescape")[:_MAX_BODY],
        subprotocol=headers.get("Sec-WebSocket-Protocol"),
    )


def network_text(options: ConnectionOptions, error: OSError) -> str:
    """What failed below HTTP, DNS, TCP or TLS, and what to do."""
    where = options.origin
    peer = "the server"
    if options.proxy_url is not None:
        proxy = urllib.parse.urlsplit(options.proxy_url)
        where += f" through the proxy {proxy.scheme}://{proxy.hostname}:{proxy.port}"
        peer = "the proxy"
    if isinstance(error, tls.SSLCertVerificationError):
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return f"{where}: the certificate is for another host: {error.verify_message}"
        return (
            f"{where}: the server's certificate is not trusted: {error.verify_message}; "
            "if its CA is your own, pass the CA's PEM file: ssl='ca.pem'"
        )
    if isinstance(error, tls.SSLError):
        if getattr(error, "reason", None) in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"{where}: the server does not speak TLS at this port: is it ws://, or another port?"
        return f"{where}: TLS failed: {error}"
    if isinstance(error, socket.gaierror):
        return f"{where}: the host name of {peer} cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return f"{where}: nothing listens there: {peer} refused the TCP connection or cannot be reached"
    if isinstance(error, TimeoutError):
        return f"{where}: {peer} did not answer the TCP connection in the time the operating system gives it"
    if options.encrypted and isinstance(error, ConnectionError):
        return (
            f"{where}: the connection was ended before TLS was established: is there a version in common, "
            "is a client certificate wanted, or is there a firewall on the way?"
        )
    return f"{where}: the network failed: {error.strerror or str(error) or type(error).__name__}"


def _brief(error: BaseException | None, secrets: Secrets) -> str:
    """An error as a short text: parts of it may be the peer's."""
    return secrets.mask(str(error))[:200] or type(error).__name__
