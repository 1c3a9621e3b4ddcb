"""Everything this library raises.

::

    AMQPError
    +- OpenError                 the connection never came up
    |  +- HandshakeError         the WebSocket upgrade was refused or unfit: .status, .headers, .body
    |  +- AuthenticationError    SASL refused us, or our own rules forbid the mechanism
    |  +- TokenError             no access token could be had
    +- EndpointClosed            .stop says who stopped what, and why
    |  +- ConnectionClosed       the connection stopped first
    |  +- SessionClosed          the session stopped first
    |  +- LinkClosed             the link stopped first
    |  +- RedirectError          also one of the three above: the peer says where to go instead
    +- AttachError               the peer refused the terminus
    +- DeliveryFailed            the peer settled the delivery otherwise than accepted: .outcome
    |  +- MessageRejected, MessageReleased, MessageModified
    +- DeliveryUnknown           in doubt: .message was sent, its outcome never came: .stop
    +- SettlementLost            your accept, reject, ... cannot reach the peer any more: .stop
    +- LocalProtocolError        you asked for what AMQP forbids now; nothing was sent
    |  +- MessageTooLarge
    +- OutboxError               an outbox cannot store or read: locked, full disk, foreign or damaged file
    |  +- OutboxFull             no room: .size, .limit
    |  +- OutboxUnsent           closed with messages in memory that were not sent: .messages
    +- RemoteProtocolError       the peer broke the protocol
    +- DecodeError               bytes that are no AMQP value or message (also a ValueError)
    +- EncodeError               a value that AMQP cannot carry (also a ValueError)

Timeouts are the builtin `TimeoutError`, bad arguments `ValueError` or `TypeError`.
No message, repr or attribute of any of them carries a token, password or Authorization value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from .message import Message, Outcome

__all__ = [
    "AMQPError",
    "AttachError",
    "AuthenticationError",
    "ConnectionClosed",
    "DecodeError",
    "DeliveryFailed",
    "DeliveryUnknown",
    "EncodeError",
    "EndpointClosed",
    "ErrorCondition",
    "HandshakeError",
    "LinkClosed",
    "LocalProtocolError",
    "MessageModified",
    "MessageRejected",
    "MessageReleased",
    "MessageTooLarge",
    "OpenError",
    "OutboxError",
    "OutboxFull",
    "OutboxUnsent",
    "RedirectError",
    "RemoteProtocolError",
    "SessionClosed",
    "SettlementLost",
    "StopReason",
    "TokenError",
]

Initiator = Literal["local", "remote", "transport"]
EndpointKind = Literal["connection", "session", "link"]

_NO_INFO: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ErrorCondition:
    """An AMQP error (specification 2.8.14), as it travels in rejected, detach, end and close.

    Attributes:
        condition: The symbol, such as ``"amqp:not-found"``.
        description: Text for people, or None.
        info: The peer's (or your) map of details; keys are symbols.
    """

    condition: str
    description: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.condition}: {self.description}" if self.description else self.condition


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why an endpoint stopped, recorded once and shared by every error built from it.

    Attributes:
        endpoint: Which level stopped first: ``"connection"``, ``"session"`` or ``"link"``.
        initiator: ``"local"`` (we closed it), ``"remote"`` (the peer did) or ``"transport"`` (the network did).
        condition: The AMQP error condition, or None for a stop without an error.
        description: Text for people, or None.
        info: The details that came with the condition.
        cause: The exception behind it, chained to every error raised from this reason.
    """

    endpoint: EndpointKind
    initiator: Initiator
    condition: str | None = None
    description: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    cause: BaseException | None = None

    def __str__(self) -> str:
        who = {"local": "closed by us", "remote": "closed by the peer", "transport": "lost"}[self.initiator]
        text = f"{self.endpoint} {who}"
        if self.condition:
            text += f" ({self.condition})"
        if self.description:
            text += f": {self.description}"
        elif self.cause is not None:
            text += f": {str(self.cause) or type(self.cause).__name__}"
        return text


class AMQPError(Exception):
    """Root of every error of this library."""


# --- opening ---------------------------------------------------------------


class OpenError(AMQPError):
    """The connection never came up."""


class HandshakeError(OpenError):
    """The WebSocket upgrade was refused, or what it agreed on is not usable.

    Attributes:
        status: The HTTP status, or None if there was no HTTP answer.
        headers: The response's headers.
        body: At most the first bytes of the response's body.
        subprotocol: What the server selected, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] = _NO_INFO,
        body: bytes = b"",
        subprotocol: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body
        self.subprotocol = subprotocol


class AuthenticationError(OpenError):
    """SASL refused us, or our own rules forbid sending this credential here."""


class TokenError(OpenError):
    """No access token could be had.

    Attributes:
        code: The error code of the token endpoint (RFC 6749 section 5.2), or None.
        description: The token endpoint's description, or None.
    """

    def __init__(self, message: str, *, code: str | None = None, description: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.description = description


# --- an endpoint stopped -----------------------------------------------------


class EndpointClosed(AMQPError):
    """The connection, session or link is not there any more.

    Attributes:
        stop: Why.
        sent: False where the operation that raised had sent nothing yet.
    """

    kind: ClassVar[str] = "endpoint"

    def __init__(self, stop: StopReason, where: str = "") -> None:
        super().__init__(f"{where}: {stop}" if where else str(stop))
        self.stop = stop
        self.sent = False
        self.__cause__ = stop.cause


class ConnectionClosed(EndpointClosed):
    """The connection stopped, and all that was on it."""

    kind = "connection"


class SessionClosed(EndpointClosed):
    """The session stopped, and the links on it; the connection is still there."""

    kind = "session"


class LinkClosed(EndpointClosed):
    """The link stopped; its session is still there."""

    kind = "link"


class RedirectError(EndpointClosed):
    """The peer says to go elsewhere (``amqp:connection:redirect`` or ``amqp:link:redirect``).

    It is also a `ConnectionClosed` or a `LinkClosed`, or the cause of an `AttachError`, by what was redirected.

    Attributes:
        hostname: The value for the hostname field of the new open, or None.
        network_host: The host to connect to, or None.
        port: The port to connect to, or None.
        scheme: ``ws`` or ``wss``, or None (WebSocket binding).
        path: The path of the new URL, or None (WebSocket binding).
        address: The address to attach to there, or None (link redirects).
    """

    def __init__(self, stop: StopReason, where: str = "") -> None:
        super().__init__(stop, where)
        info = stop.info
        self.hostname = _text(info.get("hostname"))
        self.network_host = _text(info.get("network-host"))
        self.scheme = _text(info.get("scheme"))
        self.path = _text(info.get("path"))
        self.address = _text(info.get("address"))
        port = info.get("port")
        self.port = int(port) if isinstance(port, int) else None


class _ConnectionRedirect(RedirectError, ConnectionClosed):
    """A connection redirect (specification 2.8.16)."""


class _LinkRedirect(RedirectError, LinkClosed):
    """A link redirect (specification 2.8.18)."""


_REDIRECTS = {"amqp:connection:redirect": _ConnectionRedirect, "amqp:link:redirect": _LinkRedirect}
_CLOSED: dict[str, type[EndpointClosed]] = {
    "connection": ConnectionClosed,
    "session": SessionClosed,
    "link": LinkClosed,
}


def closed_error(stop: StopReason, where: str = "") -> EndpointClosed:
    """Build the exception for `stop`: a new object for every raise, so that none collects tracebacks."""
    kind = _REDIRECTS.get(stop.condition or "")
    if kind is not None and issubclass(kind, _CLOSED[stop.endpoint]):
        return kind(stop, where)
    return _CLOSED[stop.endpoint](stop, where)


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str) else None


class AttachError(AMQPError):
    """The peer refused to attach the link.

    Attributes:
        address: The address that was asked for, or None (anonymous or dynamic).
        error: The peer's condition, or None if it gave none.
    """

    def __init__(self, message: str, *, address: str | None = None, error: ErrorCondition | None = None) -> None:
        super().__init__(message)
        self.address = address
        self.error = error

    @property
    def condition(self) -> str | None:
        """The symbol of the peer's error, or None."""
        return self.error.condition if self.error else None

    @property
    def description(self) -> str | None:
        """The peer's description, or None."""
        return self.error.description if self.error else None

    @property
    def info(self) -> Mapping[str, Any]:
        """The details that came with the error."""
        return self.error.info if self.error else _NO_INFO


# --- one delivery --------------------------------------------------------------


class DeliveryFailed(AMQPError):
    """The peer settled the delivery, and not as accepted.

    Attributes:
        outcome: How it was settled.
        message: What was sent: a `Message`, or the encoded bytes.
    """

    def __init__(self, text: str, *, outcome: Outcome, message: Message | bytes) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.message = message


class MessageRejected(DeliveryFailed):
    """The peer found the message invalid; sending it again unchanged will fail again."""


class MessageReleased(DeliveryFailed):
    """The peer did not take the message; it may be sent again."""


class MessageModified(DeliveryFailed):
    """The peer gave the message back, changed: see `.outcome` for the three fields."""


class DeliveryUnknown(AMQPError):
    """The transfer was made and its outcome never came: the message may or may not have arrived.

    Attributes:
        message: What was sent: a `Message`, or the encoded bytes.
        stop: What ended the wait.
        sent: Always True: the engine had the transfer.
    """

    sent = True

    def __init__(self, message: Message | bytes, stop: StopReason, where: str = "") -> None:
        place = f"{where}: " if where else ""
        super().__init__(
            f"{place}delivery in doubt, {stop}; it may or may not have arrived: "
            "send it again only if the receiver can tell duplicates"
        )
        self.message = message
        self.stop = stop
        self.__cause__ = stop.cause


class SettlementLost(AMQPError):
    """The delivery's link is gone, so its settlement cannot reach the peer, which will deliver it again.

    Attributes:
        stop: What ended the link.
    """

    def __init__(self, stop: StopReason, where: str = "") -> None:
        place = f"{where}: " if where else ""
        super().__init__(f"{place}settlement lost, {stop}; the peer will deliver the message again")
        self.stop = stop
        self.__cause__ = stop.cause


# --- outbox ----------------------------------------------------------------------


class OutboxError(AMQPError):
    """An outbox cannot store or read; the text says why, and what to do."""


class OutboxFull(OutboxError):
    """There is no room in the outbox: nothing was stored, or an older message was dropped for a newer one.

    Attributes:
        size: What there would be with the message: messages or bytes, by which limit it is.
        limit: The limit, `max_messages` or `max_bytes`.
    """

    def __init__(self, text: str, *, size: int, limit: int) -> None:
        super().__init__(text)
        self.size = size
        self.limit = limit


class OutboxUnsent(OutboxError):
    """An outbox in memory was closed with messages that the peer has not accepted.

    Attributes:
        messages: The messages, in their order. Those that were in flight may have arrived.
    """

    def __init__(self, text: str, *, messages: Sequence[Message]) -> None:
        super().__init__(text)
        self.messages = messages


# --- protocol --------------------------------------------------------------------


class LocalProtocolError(AMQPError):
    """You asked for what AMQP forbids in this state; nothing was sent."""


class MessageTooLarge(LocalProtocolError):
    """The encoded message is larger than the peer takes, or than the sender said it would send; nothing was sent.

    Attributes:
        size: Encoded size in bytes.
        limit: The link's max-message-size in bytes: the smaller of both ends'.
    """

    def __init__(self, size: int, limit: int, where: str = "") -> None:
        place = f"{where}: " if where else ""
        super().__init__(f"{place}encoded message of {size} bytes is over the link's max-message-size of {limit} bytes")
        self.size = size
        self.limit = limit


class RemoteProtocolError(AMQPError):
    """The peer broke the protocol; the connection is closing."""


class DecodeError(AMQPError, ValueError):
    """These bytes are no AMQP value or message."""


class EncodeError(AMQPError, ValueError):
    """AMQP cannot carry this value; the text says which explicit type would."""
