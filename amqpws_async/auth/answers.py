"""What a token endpoint answered: a token, or why there is none (RFC 6749 sections 5.1 and 5.2). No input or output."""

from __future__ import annotations

import datetime
import email.utils
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import TokenError
from .tokens import Token

__all__ = ["DEFAULT_LIFETIME", "MAX_ANSWER", "MAX_LIFETIME", "Answer", "Mask", "read_token"]

MAX_ANSWER: Final = 65536
"""The largest answer that is read, in bytes. Tokens with many scopes have 2 to 10 KB; headers take 16 KB as a rule."""

DEFAULT_LIFETIME: Final = 300.0
"""Seconds that a token is taken to live if the server does not say (RFC 6749 only recommends that it does)."""

MAX_LIFETIME: Final = 86400.0
"""Seconds after which a token is replaced whatever the server says, so that an absurd figure does no harm."""

_MAX_TEXT: Final = 300
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Errors that are not about who the client is: the same from whatever place the secret stands in.
_AUTHENTICATED: Final = frozenset(
    {"invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_target"}
)
_HINTS: Final = {
    "invalid_client": "check client id and secret, and how the client has to authenticate",
    "unauthorized": "check client id and secret, and that both are of this token endpoint",
    "invalid_grant": "check user name and password, and whether the user is locked",
    "invalid_scope": "the client does not have this scope; leave scope out for all that it has",
    "invalid_target": "the server does not know this resource",
    "unauthorized_client": "the client may not use this grant type",
    "unsupported_grant_type": "the server does not offer this grant type",
    "invalid_request": "the server misses a parameter, or has one twice",
    "temporarily_unavailable": "try again later",
}


class Mask:
    """Hides secrets in what others wrote: a server may quote what it was sent.

    Args:
        secrets: The texts to hide, also where they are spelled as in a form, a URL or JSON.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first, so that no part of one is left over; shorter ones are words rather than secrets.
        self._secrets = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def text(self, value: object) -> str:
        """Make one short printable line of `value`, without secrets."""
        text = str(value)
        for secret in self._secrets:
            text = re.sub("".join(map(_spellings, secret)), "***", text)
        text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."

    def __repr__(self) -> str:
        return "Mask(***)"


def _spellings(character: str) -> str:
    """A pattern for a character of a secret: itself, as in a URL or form (%2F, %2f, +), as in JSON."""
    if character.isascii() and character.isalnum():
        return character
    percent = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    units = character.encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(rf"\\+u{units[start : start + 4]}" for start in range(0, len(units), 4))
    plus = r"|\+" if character == " " else ""
    return rf"(?:\\*{re.escape(character)}{plus}|(?i:{percent}|{escaped}))"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came.

    Attributes:
        status: The HTTP status.
        body: At most `MAX_ANSWER` bytes, and one more if there are more.
        content_type: The header, or "".
        location: The header, or "".
        retry_after: The header, or "".
    """

    status: int
    body: bytes = b""
    content_type: str = ""
    location: str = ""
    retry_after: str = ""

    def __repr__(self) -> str:
        return f"Answer(status={self.status}, {len(self.body)} bytes)"

    @property
    def refuses_client(self) -> bool:
        """Whether the client was not recognised, so that another way to authenticate may do better."""
        if self.status not in (400, 401):
            return False
        return _object(self.body).get("error") not in _AUTHENTICATED

    def delay(self, now: float) -> float:
        """Seconds that ``Retry-After`` asks to wait (RFC 9110 section 10.2.3), 0 if it does not.

        Args:
            now: Seconds since the epoch.
        """
        text = self.retry_after.strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return 0.0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0.0, moment.timestamp() - now)


def read_token(answer: Answer, mask: Mask, now: float) -> tuple[Token, float]:
    """Take the token out of an answer.

    Args:
        answer: The answer.
        mask: What must not be quoted.
        now: When it was asked for, in seconds since the epoch.

    Returns:
        The token, and how many seconds it lives from `now` on.

    Raises:
        TokenError: There is none, or none that can be used; the text says why and what to do.
    """
    if answer.status in _REDIRECTS:
        place = mask.text(answer.location.partition("?")[0].partition("#")[0].rpartition("@")[2])
        raise TokenError(
            f"HTTP status {answer.status}, a redirect to {place!r}, which is not followed since the client's "
            "credentials would go along: if you trust that address, make it the token URL"
        )
    content = _object(answer.body)
    if not 200 <= answer.status < 300 or "error" in content:
        raise _refused(answer, content, mask)
    if len(answer.body) > MAX_ANSWER:
        raise TokenError(f"the answer is longer than {MAX_ANSWER} bytes: is this the token endpoint?")
    if not content:
        raise TokenError(
            f"HTTP status {answer.status}, but no JSON object ({mask.text(answer.content_type) or 'no content type'}): "
            "is this the token endpoint? Its path often ends in /oauth/token or /oauth2/token"
        )
    kind = content.get("token_type", "bearer")  # required by RFC 6749, and yet left out by some
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenError(f"the token is of type {mask.text(kind)!r}: only bearer tokens can be used")
    lifetime = _lifetime(content.get("expires_in"), mask)
    value = content.get("access_token")
    if not isinstance(value, str) or not value:
        raise TokenError("the answer is JSON without an access_token")
    try:
        return Token(value, now + lifetime), lifetime
    except ValueError as error:
        raise TokenError(f"the access_token cannot stand in a header: {error}") from None


def _refused(answer: Answer, content: dict[str, Any], mask: Mask) -> TokenError:
    code = mask.text(content["error"]) if isinstance(content.get("error"), str) else None
    description = content.get("error_description")
    description = mask.text(description) if isinstance(description, str) and description else None
    text = f"HTTP status {answer.status}"
    if code or description:
        text += f", {': '.join(part for part in (code, description) if part)}"
    return TokenError(f"{text}: {_hint(answer.status, code)}", code=code, description=description)


def _hint(status: int, code: str | None) -> str:
    if code in _HINTS:
        return _HINTS[code]
    match status:
        case 401:
            return _HINTS["unauthorized"]
        case 403:
            return "the client, or this machine's address, is not let in"
        case 404 | 405 | 406:
            return "this is not the token endpoint: its path often ends in /oauth/token or /oauth2/token"
        case 407:
            return "a proxy on the way wants credentials: proxy='http://user:password@host:port'"
        case 429:
            return "too many requests: wait before the next"
        case _ if status >= 500:
            return "the token server, or a gateway before it, is in trouble: try again later"
    return "the server does not take this for a token request: check the token URL"


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is, or an empty one."""
    if len(body) > MAX_ANSWER:
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, digits without end, brackets without end
        return {}
    return content if isinstance(content, dict) else {}


def _lifetime(value: object, mask: Mask) -> float:
    """Seconds; RFC 6749 wants a JSON number, and some send it as text."""
    if value is None:
        return DEFAULT_LIFETIME
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.inf
    except (TypeError, ValueError):
        seconds = math.nan
    if math.isnan(seconds):
        raise TokenError(f"expires_in is no number of seconds but {mask.text(value)!r}")
    if seconds <= 0:
        raise TokenError(f"the token is no longer valid as it comes: its expires_in is {mask.text(value)}")
    return min(seconds, MAX_LIFETIME)
