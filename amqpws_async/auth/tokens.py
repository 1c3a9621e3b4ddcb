"""Access tokens: what one is, and the one method that anything which supplies them must have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["StaticToken", "Token", "TokenProvider", "as_provider"]


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, ready for an ``Authorization: Bearer`` header.

    Attributes:
        value: The token itself, without ``Bearer``; never shown by `repr`.
        expiry: When it expires, in seconds since the epoch, or None where that is not known.

    Raises:
        ValueError: The value could not stand in a header (RFC 6750 section 2.1), or the expiry is no number.
    """

    value: str
    expiry: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.value, str) or not self.value:
            raise ValueError("token: must be a string that is not empty")
        if self.value[:7].lower() == "bearer ":
            raise ValueError("token: give the token alone, without the word Bearer")
        if not all("!" <= character <= "~" for character in self.value):
            # Also what keeps a line break, and with it a header of someone else's making, out of the request.
            raise ValueError("token: only visible ASCII characters, no spaces or line ends (was it read from a file?)")
        if self.expiry is not None and (
            isinstance(self.expiry, bool) or not isinstance(self.expiry, (int, float)) or not math.isfinite(self.expiry)
        ):
            raise ValueError("token: expiry is in seconds since the epoch, or None")

    def __repr__(self) -> str:
        return f"Token(value='***', expiry={self.expiry!r})"


class TokenProvider(Protocol):
    """Anything that supplies access tokens. The library asks before every upgrade, so an implementation may cache."""

    async def token(self, *, refresh: bool = False) -> Token:
        """Return a token that is valid now.

        Args:
            refresh: Get a new one even if the one at hand looks valid: the peer has just refused it.

        Raises:
            TokenError: None can be had.
        """
        ...  # pragma: no cover - a signature


class StaticToken:
    """One token for ever: for tests, short scripts, and tokens that someone else renews by reconnecting."""

    def __init__(self, token: str | Token) -> None:
        self._token = token if isinstance(token, Token) else Token(token)

    async def token(self, *, refresh: bool = False) -> Token:
        """Return the token; `refresh` changes nothing, as there is no other."""
        return self._token

    def __repr__(self) -> str:
        return f"StaticToken({self._token!r})"


def as_provider(token: str | Token | TokenProvider) -> TokenProvider:
    """Make a provider of whatever a user may give as ``token=``.

    Args:
        token: A token's text, a `Token`, or a provider, which is returned as it is.

    Raises:
        TypeError: It is none of these.
        ValueError: The text is no token.
    """
    if isinstance(token, (str, Token)):
        return StaticToken(token)
    if callable(getattr(token, "token", None)):
        return token
    raise TypeError(
        f"token: a string, a Token, or an object with `async def token(self, *, refresh=False) -> Token`, "
        f"not {type(token).__name__}"
    )
