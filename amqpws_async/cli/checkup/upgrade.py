"""The WebSocket: what the upgrade is answered with, and the subprotocol."""

from __future__ import annotations

import http
from typing import Any, Final

from ...errors import HandshakeError
from ...transport import open_websocket
from ...urls import without_query
from ..connecting import in_options
from .steps import Finding, Patient, Trouble

__all__ = ["subprotocol", "upgrade"]

_MAX_BODY: Final = 300  # characters: enough for a reason, and for seeing whose error page it is


async def upgrade(patient: Patient) -> Finding:
    """The request, with the token if there is one; what is left open is the subprotocol."""
    options = patient.options
    try:
        websocket = await open_websocket(options, patient.token)
    except HandshakeError as error:
        if error.status == 101 and "subprotocol" in str(error):  # the upgrade itself is in order
            patient.selection = _unfit(patient, error)
            return Finding("HTTP status 101", {"status": 101})
        raise _refused(patient, error) from error
    patient.websocket = websocket
    patient.resources.callback(websocket.abort)
    offered, selected = list(options.subprotocols), websocket.subprotocol
    advice = None if selected else "the binding demands one: other clients may refuse this server"
    patient.selection = Finding(
        selected or "none selected, and none required", {"offered": offered, "selected": selected}, advice
    )
    return Finding("HTTP status 101", {"status": 101})


async def subprotocol(patient: Patient) -> Finding:
    """What the server selected."""
    selection = patient.selection
    assert selection is not None
    if isinstance(selection, Trouble):
        raise selection
    return selection


def _unfit(patient: Patient, error: HandshakeError) -> Trouble:
    offered = ", ".join(patient.options.subprotocols)
    details = {"offered": list(patient.options.subprotocols), "selected": error.subprotocol}
    if error.subprotocol:
        return Trouble(
            f"the server selected {error.subprotocol!r}, we offered {offered}",
            f"if that is AMQP by another name, offer it: --subprotocol {error.subprotocol}",
            details,
        )
    return Trouble(
        f"the server selected none (we offered {offered}), so it may not speak AMQP here",
        "check the path; offer what the server knows by --subprotocol (Azure: AMQPWSB10); go on without by "
        "--no-require-subprotocol, as some relays want",
        details,
    )


def _refused(patient: Patient, error: HandshakeError) -> Trouble:
    status = error.status
    text = in_options(str(error)).removeprefix(f"{patient.options.origin}: ")
    if status is None or status == 101 or 300 <= status < 400:
        return Trouble(text, None, {"status": status})
    challenge = error.headers.get("WWW-Authenticate")
    body = _readable(error.body)
    try:
        phrase = f" ({http.HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    shown = f"HTTP status {status}{phrase}"
    if challenge:
        shown += f", WWW-Authenticate: {challenge[:_MAX_BODY]}"
    if body:
        shown += f", body: {body!r}"
    details: dict[str, Any] = {"status": status, "www_authenticate": challenge, "body": body}
    return Trouble(shown, _advice(patient, status, body.lower()), details)


def _readable(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= _MAX_BODY else f"{text[:_MAX_BODY]}..."


def _advice(patient: Patient, status: int, body: str) -> str:
    has_token = patient.token is not None
    match status:
        case 400 if "ssl certificate" in body:  # nginx's words, as in the next
            return "it wants a client certificate: take a service key of the type x509"
        case 400 if "plain http request" in body:
            return "this port speaks TLS: write wss://"
        case 401 if has_token:
            return (
                "the token was not accepted: is it of the token endpoint that this broker trusts, with its scope, and "
                "not expired (see the token step)? After a service key was deleted, make a new one"
            )
        case 401:
            return "it wants to know who you are: --token-env NAME, --header-file FILE, or --service-key FILE"
        case 403:
            return (
                "you are known, and may not connect: check roles and scopes (see the token step), the list of allowed "
                "addresses, and whether the instance has its messaging plan enabled"
            )
        case 404:
            return (
                f"no broker at {without_query(patient.options.url)}: usual paths are /protocols/amqp10ws (SAP Event "
                "Mesh), /$servicebus/websocket (Azure), /ws (RabbitMQ) and / (Artemis, Broker-J)"
            )
        case 407:
            return "a proxy on the way wants credentials: put its URL with them into https_proxy or http_proxy"
        case 426:
            return (
                "the server did not see an upgrade: something on the way (a proxy, a gateway of HTTP/2) drops the "
                "Upgrade header, or it wants another subprotocol"
            )
        case 429:
            return "too many connections or attempts: close some, wait, and look at the service's limits"
        case 502 | 503 | 504:
            return "a gateway answers, and the broker behind it does not: is it starting, stopped, or overloaded?"
        case _ if status < 300:
            return "an ordinary web page lives here, no WebSocket: check host, port and path"
        case _ if status >= 500:
            return "the server is in trouble: try again later, and look at its log"
    return "the server does not take this for a WebSocket upgrade: check host, port and path"
