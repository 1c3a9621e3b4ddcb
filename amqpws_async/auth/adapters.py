"""Tokens from anything that can be called: other libraries' credentials, your own cache, a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import TokenError
from .tokens import Token

__all__ = ["CallableProvider"]


class CallableProvider:
    """A `TokenProvider` that calls a coroutine function before every upgrade.

    ::

        async def fetch() -> str: ...

        connect(url, token=CallableProvider(fetch))

        # azure.identity.aio's credentials
        scope = "https://servicebus.azure.net//.default"
        connect(url, token=CallableProvider(lambda: credential.get_token(scope)))

    The function is the one to cache: it is asked every time, also when the peer has just refused its last token.

    Args:
        function: Called without arguments; gives a token's text, a `Token`, or an object with ``token`` and
            ``expires_on`` (seconds since the epoch), as the credentials of azure-identity do.
    """

    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        if not callable(function):
            raise TypeError(f"function: a coroutine function, not {type(function).__name__}")
        self._function = function

    async def token(self, *, refresh: bool = False) -> Token:
        """Call the function. Cancelling cancels it.

        Args:
            refresh: Changes nothing: the function is called either way.

        Raises:
            TokenError: What it returned is no token. What the function raises goes through as it is.
        """
        found = await self._function()
        try:
            if isinstance(found, Token):
                return found
            if isinstance(found, str):
                return Token(found)
            return Token(found.token, found.expires_on)
        except (AttributeError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"a {type(found).__name__} is none"
            raise TokenError(f"the function of a CallableProvider returned no token: {reason}") from None

    def __repr__(self) -> str:
        # Not the function's own repr: that of a partial shows its arguments.
        return f"CallableProvider({getattr(self._function, '__qualname__', type(self._function).__name__)})"
