"""What is tried again, and when: the table of conditions, and how an error is looked up in it."""

from __future__ import annotations

import email.utils
import enum
import ssl as tls
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from ..errors import (
    AttachError,
    AuthenticationError,
    EncodeError,
    EndpointClosed,
    HandshakeError,
    LocalProtocolError,
    RedirectError,
    StopReason,
    TokenError,
)

__all__ = ["RETRIES", "Retry", "retry_after", "retry_of", "stop_of"]

MAX_RETRY_AFTER: Final = 300.0
"""Seconds that a Retry-After can make us wait; a mistaken one would else stop everything for days."""


class Retry(enum.Enum):
    """What follows a failure."""

    NOW = "now"
    """The first retry is at once; if that fails as well, after a delay."""
    LATER = "later"
    """Also the first retry waits."""
    NEVER = "never"
    """Another attempt would fail likewise: it ends here, with the reason."""


RETRIES: Final[Mapping[str | int, Retry]] = MappingProxyType(
    {
        # The peer goes away, or tidies up: somebody is there to go on with (specification 2.8.15 to 2.8.18).
        "amqp:connection:forced": Retry.NOW,
        "amqp:link:detach-forced": Retry.NOW,
        "amqp:resource-deleted": Retry.NOW,  # the next attach is told whether it is there again
        # Trouble that passes.
        "amqp:internal-error": Retry.LATER,
        "amqp:resource-limit-exceeded": Retry.LATER,
        "amqp:resource-locked": Retry.LATER,
        "amqp:illegal-state": Retry.LATER,
        "amqp:connection:framing-error": Retry.LATER,
        "amqp:link:transfer-limit-exceeded": Retry.LATER,
        "amqp:session:errant-link": Retry.LATER,
        "amqp:session:handle-in-use": Retry.LATER,
        "amqp:session:unattached-handle": Retry.LATER,
        "amqp:session:window-violation": Retry.LATER,
        # What asking again does not change.
        "amqp:decode-error": Retry.NEVER,
        "amqp:frame-size-too-small": Retry.NEVER,
        "amqp:invalid-field": Retry.NEVER,
        "amqp:link:message-size-exceeded": Retry.NEVER,
        "amqp:link:stolen": Retry.NEVER,  # two that steal it from each other never stop
        "amqp:not-allowed": Retry.NEVER,
        "amqp:not-found": Retry.NEVER,
        "amqp:not-implemented": Retry.NEVER,
        "amqp:precondition-failed": Retry.NEVER,
        "amqp:unauthorized-access": Retry.NEVER,
        # HTTP statuses of the upgrade; every other below 500 is never, every other from there on is later.
        408: Retry.NOW,
        425: Retry.LATER,
        429: Retry.LATER,
    }
)
"""What follows an AMQP condition, or the HTTP status of a refused upgrade. A condition that is not here is tried again
later. `ClientOptions.retries` overrides it entry by entry."""

#: Answers of a token endpoint that another request does not change (RFC 6749 section 5.2).
_FINAL_TOKEN_ERRORS: Final = frozenset(
    "access_denied invalid_client invalid_grant invalid_request invalid_scope unauthorized_client "
    "unsupported_grant_type".split()
)


def retry_of(error: BaseException, overrides: Mapping[str | int, Retry]) -> Retry:
    """Say what follows `error`.

    Args:
        error: What an attempt to connect or to attach raised, or what a connection, session or link ended with.
        overrides: Looked at before `RETRIES`.
    """

    def look_up(key: str | int, default: Retry) -> Retry:
        return overrides.get(key) or RETRIES.get(key) or default

    if isinstance(error, RedirectError):
        return Retry.NOW
    if isinstance(error, EndpointClosed):
        if error.stop.condition is None or error.stop.initiator == "transport":
            return Retry.NOW  # the network, the idle timeout, or a peer that gave no reason
        retry = look_up(error.stop.condition, Retry.LATER)
        if error.stop.condition == "amqp:invalid-field" and error.stop.info.get("invalid-field") == "container-id":
            return Retry.LATER  # the peer has not noticed yet that our last connection is gone
        # What a lost link or session costs is a link: it worked, so the first attempt to have it back does not wait.
        return Retry.NOW if retry is Retry.LATER and error.stop.endpoint != "connection" else retry
    if isinstance(error, AttachError):
        return Retry.LATER if error.condition is None else look_up(error.condition, Retry.LATER)
    if isinstance(error, HandshakeError) and error.status is not None:
        return look_up(error.status, Retry.LATER if error.status >= 500 else Retry.NEVER)
    if isinstance(error, AuthenticationError):
        return look_up("amqp:unauthorized-access", Retry.NEVER)
    if isinstance(error, TokenError):
        return Retry.NEVER if error.code in _FINAL_TOKEN_ERRORS else Retry.LATER
    if isinstance(error.__cause__, (tls.SSLCertVerificationError, RedirectError)):
        return Retry.NEVER  # not trusted, or a redirect that may not be followed
    if isinstance(error, (EncodeError, LocalProtocolError)):
        return Retry.NEVER  # our own doing
    return Retry.LATER  # whatever a token provider of the user's raises, too


def retry_after(error: BaseException) -> float:
    """Seconds that the answer to a refused upgrade wants us to wait (RFC 9110 section 10.2.3), or 0.0."""
    if not isinstance(error, HandshakeError):
        return 0.0
    value = next((error.headers[name] for name in error.headers if name.lower() == "retry-after"), "").strip()
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def stop_of(error: Exception, endpoint: Literal["connection", "link"]) -> StopReason:
    """Make the reason of an end that `error` brings about: never that of an end by the user."""
    if isinstance(error, EndpointClosed):
        stop = error.stop
        if stop.initiator != "local" or stop.condition is not None:
            return stop
        return StopReason(endpoint, "transport", description=f"given up: {stop}", cause=error)
    if isinstance(error, AttachError):
        return StopReason("link", "remote", error.condition, str(error), error.info, cause=error)
    refused = isinstance(error, (HandshakeError, AuthenticationError))
    condition = "amqp:unauthorized-access" if isinstance(error, AuthenticationError) else None
    return StopReason(endpoint, "remote" if refused else "transport", condition, str(error), cause=error)
