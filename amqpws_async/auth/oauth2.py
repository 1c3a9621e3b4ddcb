"""OAuth 2.0 access tokens, kept fresh over HTTP, by aiohttp.

::

    async with TokenRefresher(ClientCredentials(token_url, client_id, client_secret)) as tokens:
        async with amqpws_async.connect(url, token=tokens) as connection: ...

One task asks the token endpoint, and everybody else waits for what it finds: however many connections are opened at
once, there is one request. What is asked is in `grants`, how the client proves who it is in `client_auth`, what the
answers mean in `answers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl as tls
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from ..errors import TokenError
from ..urls import without_query
from .answers import MAX_ANSWER, Answer, Mask, read_token
from .client_auth import ClientAuthentication, ClientCertificate, PrivateKeyJWT, Proof, SecretWay, secret_proof
from .grants import ClientCredentials, Grant, ResourceOwnerPassword
from .http import network_text, read_answer
from .route import find_route
from .tokens import Token

__all__ = [
    "ClientAuthentication",
    "ClientCertificate",
    "ClientCredentials",
    "Grant",
    "PrivateKeyJWT",
    "ResourceOwnerPassword",
    "TokenRefresher",
]

_MIN_INTERVAL: Final = 1.0
"""Seconds between the starts of two requests, whatever the reason for them."""

_MAX_BACKOFF: Final = 60.0
"""Seconds between attempts while the token server is down: SAP's tokens live 12 hours and are renewed 2.4 h ahead,
short ones 5 to 10 minutes."""

_MAX_RETRY_AFTER: Final = 300.0
"""Seconds that a Retry-After can make us wait; a mistaken one would else stop everything for days."""

logger = logging.getLogger("amqpws_async.auth.oauth2")


def refresh_delay(lifetime: float, spread: float) -> float:
    """Seconds after which a token is replaced: 80 % of its life, or up to 5 % of it earlier.

    A fifth of a life above 150 s is more than 30 s: time enough for a retry, and for clocks that differ.

    Args:
        lifetime: Seconds that the token lives.
        spread: From 0 to 1, by chance, so that many clients started together do not stay together.
    """
    return lifetime * (0.8 - 0.05 * spread)


def retry_delay(failures: int, asked: float, spread: float) -> float:
    """Seconds to wait after so many attempts failed in a row.

    Args:
        failures: At least 1.
        asked: What the server's Retry-After wants, or 0.
        spread: From 0 to 1, by chance.
    """
    backoff = min(_MIN_INTERVAL * 2.0 ** min(failures - 1, 16), _MAX_BACKOFF)
    return max(backoff * (1 - 0.5 * spread), min(asked, _MAX_RETRY_AFTER), _MIN_INTERVAL)


class TokenRefresher:
    """A `TokenProvider` that asks a token endpoint, and renews its token in time; use it in ``async with``.

    Nothing is requested before the first token is asked for. From then on a valid token is kept at hand: it is renewed
    after 80 % of its life (by chance up to 5 % of the life earlier), and stays in use while the server cannot be
    reached. No two requests start within the same second. After failures the waits are 1 s, 2 s and so on up to 60 s,
    by chance up to a half shorter, though never shorter than the server's Retry-After (at most 300 s); a call in
    between fails at once, with the reason.

    An answer without ``expires_in`` is good for 300 s, and none for longer than a day.

    Args:
        grant: What to ask for, and as whom.
        session: Your own aiohttp session, which stays open; by default there is one that sends nothing but what is
            needed: no cookies, no ``.netrc``.
        ssl: Whom to trust, as in `ConnectionOptions`: None for the system's CAs, the path of a PEM file of CAs, or an
            `ssl.SSLContext`.
        proxy: The way there, as in `ConnectionOptions`: True (the default) for the environment's, a URL, or None. A
            SOCKS proxy needs ``pip install 'amqpws-async[socks]'``.
        timeout: Seconds for one request and its answer, 10 by default: three fit into a connection's `open_timeout`.

    Raises:
        ValueError: The proxy or `ssl` is not usable, or the client's credentials would travel unencrypted to a proxy.
    """

    def __init__(
        self,
        grant: Grant,
        *,
        session: aiohttp.ClientSession | None = None,
        ssl: tls.SSLContext | str | Path | None = None,
        proxy: str | bool | None = True,
        timeout: float = 10.0,
    ) -> None:
        self._endpoint = _Endpoint(grant, session, ssl, proxy, timeout)
        self._listeners: list[Callable[[Token], object]] = []
        self._token: Token | None = None
        self._expires = 0.0  # the loop's clock; Token.expiry is the wall's
        self._due: float | None = None  # when to ask again by ourselves
        self._not_before = 0.0  # no attempt before: the last one failed
        self._failures = 0
        self._error: TokenError | None = None  # of the last attempt
        self._wanted = asyncio.Event()
        self._finished = asyncio.Event()  # that of the attempt under way, or next; each has its own
        self._task: asyncio.Task[None] | None = None

    async def token(self, *, refresh: bool = False) -> Token:
        """Return a token that is valid now, at once if it is at hand.

        Cancelling stops the waiting alone: the request goes on for the others.

        Args:
            refresh: Do not take the one at hand: the peer has just refused it. A request that is under way will do.

        Raises:
            TokenError: None can be had: the server refused, cannot be reached, or has failed so recently that it is too
                early to ask again. Or this is not inside its ``async with``.
        """
        if self._task is None or self._task.done():
            raise self._stopped()
        now = asyncio.get_running_loop().time()
        # Both clocks: the wall's may be set, and the loop's stands still while a machine is suspended.
        valid = self._token is not None and now < self._expires and time.time() < (self._token.expiry or 0.0)
        if self._token is not None and valid and not refresh:
            return self._token
        if self._error is not None and now < self._not_before:
            raise self._failed(f"; not asked again before {self._not_before - now:.1f} s have passed")
        self._wanted.set()
        await self._finished.wait()
        if self._error is not None or self._token is None:
            raise self._failed()
        return self._token

    def add_listener(self, listener: Callable[[Token], object]) -> Callable[[], None]:
        """Have `listener` called with every new token, from the event loop; it must not block.

        Returns:
            A function that takes it out again.
        """
        self._listeners.append(listener)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return remove

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError(
                "this TokenRefresher is in use already: one `async with` serves any number of connections"
            )
        self._wanted, self._finished = asyncio.Event(), asyncio.Event()  # those of before may be another loop's
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{type(self).__name__}")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop. A request under way is dropped, and those who wait for it get a `TokenError`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def abandon(self) -> None:
        """Stop without waiting, from any thread: for whoever is dropped with it."""
        task, self._task = self._task, None
        if task is not None and not (loop := task.get_loop()).is_closed():
            loop.call_soon_threadsafe(task.cancel)

    def __repr__(self) -> str:
        state = "stopped" if self._task is None else "failing" if self._error else "running"
        return f"<TokenRefresher {self._endpoint.where} {state} {self._token!r}>"

    # --- the task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due):
                        await self._wanted.wait()
                await self._attempt()
                # Also for those who asked while it was under way.
                self._wanted.clear()
                self._finished.set()
                self._finished = asyncio.Event()
        finally:
            self._error = self._stopped()
            self._not_before = 0.0
            self._finished.set()
            self._finished = asyncio.Event()

    async def _attempt(self) -> None:
        loop = asyncio.get_running_loop()
        endpoint = self._endpoint
        try:
            async with endpoint.session() as session:
                token, lifetime = await endpoint.exchange(session)
        except TokenError as error:
            self._failures += 1
            delay = retry_delay(self._failures, endpoint.retry_after, random.random())
            self._not_before = loop.time() + delay
            # Without a token yet, only those who want one make us ask: credentials that never worked lock accounts.
            self._due = self._not_before if self._token is not None else None
            self._error = error
            logger.warning("! %s (attempt %d; next one not before %.1f s)", error, self._failures, delay)
            return
        self._failures, self._error, self._not_before = 0, None, 0.0
        self._token = token
        self._expires = endpoint.asked + lifetime
        self._due = endpoint.asked + refresh_delay(lifetime, random.random())
        logger.info(
            "< %s: a token for %.0f s, to be renewed in %.0f s", endpoint.where, lifetime, self._due - loop.time()
        )
        for listener in tuple(self._listeners):
            try:
                listener(token)
            except Exception:
                logger.exception("! a listener for new tokens failed")

    # --- errors ----------------------------------------------------------------------------------

    def _failed(self, more: str = "") -> TokenError:
        """A new error for each raise, with the last attempt's reason."""
        error = self._error or self._stopped()
        return TokenError(f"{error}{more}", code=error.code, description=error.description)

    def _stopped(self) -> TokenError:
        return TokenError(
            f"{self._endpoint.where}: this TokenRefresher is not running: use it in `async with`, around the "
            "connections that it serves"
        )


# --- one exchange ----------------------------------------------------------------------------


class _Endpoint:
    """A token endpoint, and how to get there.

    Attributes:
        where: Its URL, for people.
        asked: When the last request began, on the loop's clock.
        retry_after: Seconds that the last answer wants us to wait, or 0.
    """

    def __init__(
        self,
        grant: Grant,
        session: aiohttp.ClientSession | None,
        ssl: tls.SSLContext | str | Path | None,
        proxy: str | bool | None,
        timeout: float,
    ) -> None:
        if not isinstance(grant, Grant):
            raise ValueError(f"grant: ClientCredentials(...) or ResourceOwnerPassword(...), not {type(grant).__name__}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 86400:
            raise ValueError(f"timeout: seconds, more than 0, not {timeout!r}")
        self._grant = grant
        self._session = session
        self._timeout = timeout
        self._certificate = grant.authentication if isinstance(grant.authentication, ClientCertificate) else None
        self._route = route = find_route(grant.token_url, ssl, proxy, shows_certificate=self._certificate is not None)
        if route.socks is not None and session is not None:
            raise ValueError("session: a SOCKS proxy is its connector's business; give it one for that, and proxy=None")
        self._way: SecretWay | None = None  # the one that has worked
        self.where = without_query(grant.token_url)
        self.asked = float("-inf")
        self.retry_after = 0.0

    @contextlib.asynccontextmanager
    async def session(self) -> Any:
        """The session for one attempt."""
        if self._session is not None:
            yield self._session
            return
        # Requests are hours apart: no connection is worth keeping, and a renewed certificate needs a new one. The
        # session's end waits for its connections' (which `force_close` alone would leave to the loop's end).
        socks = self._route.socks
        connector = aiohttp.TCPConnector() if socks is None else socks()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield session

    async def exchange(self, session: aiohttp.ClientSession) -> tuple[Token, float]:
        """Ask for a token, as ``auto`` goes: another place for the secret only if the server refused the client.

        Returns:
            The token, and how many seconds it lives from `asked` on.

        Raises:
            TokenError: There is none.
        """
        self.retry_after = 0.0
        first: tuple[Answer, Mask, float] | None = None
        ways = (self._way,) if self._way is not None else self._grant.ways
        for way in ways or (None,):
            proof = await self._proof(way)
            mask = Mask((*self._grant.secrets(), *proof.secrets))
            answer, now = await self._request(session, proof, mask)
            if not answer.refuses_client:
                self._way = way if answer.status < 300 else self._way
                return self._read(answer, mask, now)
            # What works may change, with a new version of the server: start from the beginning next time.
            self._way = None
            first = first or (answer, mask, now)
        assert first is not None
        return self._read(*first, tried=len(ways))

    async def _proof(self, way: SecretWay | None) -> Proof:
        grant = self._grant
        try:
            if isinstance(grant.authentication, PrivateKeyJWT):
                return await asyncio.to_thread(grant.authentication.proof, grant.client_id, grant.token_url)
            if self._certificate is not None:
                assert self._route.context is not None
                await asyncio.to_thread(self._certificate.load_into, self._route.context)
        except TokenError as error:
            raise TokenError(f"{self.where}: not asked for a token: {error}") from None
        return secret_proof(way or "body", grant.client_id, grant.client_secret if way else None)

    async def _request(self, session: aiohttp.ClientSession, proof: Proof, mask: Mask) -> tuple[Answer, float]:
        """Send one request; the answer, and when it was sent on the wall's clock."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self.asked + _MIN_INTERVAL - loop.time()))
        self.asked, now = loop.time(), time.time()
        form = urllib.parse.urlencode([*self._grant.form(), *proof.form.items()])
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a small bomb makes a large answer
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "amqpws-async",
            **proof.headers,
        }
        logger.debug("> %s: asking for a token (%s, %r)", self.where, self._grant.grant_type, proof)
        try:
            async with (
                asyncio.timeout(self._timeout),
                session.post(
                    self._grant.token_url,
                    data=form.encode("ascii"),
                    headers=headers,
                    allow_redirects=False,
                    raise_for_status=False,
                    auto_decompress=False,
                    proxy=self._route.proxy,
                    proxy_headers=self._route.proxy_headers,
                    ssl=self._route.context or True,
                    timeout=aiohttp.ClientTimeout(),
                ) as response,
            ):
                answer = await read_answer(response, MAX_ANSWER)
            logger.debug("< %s: HTTP status %d, %d bytes", self.where, answer.status, len(answer.body))
            self.retry_after = answer.delay(time.time())
            return answer, now
        except TimeoutError:
            failure = f"no answer to the token request within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            failure = network_text(error, self._route.proxy, mask)
        except Exception as error:  # whatever else a session or a proxy's connector may come up with
            failure = f"the token request failed: {type(error).__name__}: {mask.text(error)}"
        # Raised here, so that it is not chained to an error that has the request's headers.
        raise TokenError(f"{self.where}: {failure}")

    def _read(self, answer: Answer, mask: Mask, now: float, tried: int = 1) -> tuple[Token, float]:
        try:
            return read_token(answer, mask, now)
        except TokenError as error:
            asked = f"client {self._grant.client_id!r}"
            if self._grant.scope:
                asked += f", scope {self._grant.scope!r}"
            if tried > 1:
                asked += f", the secret in {tried} places"
            text = f"{self.where} ({asked}): {error}"
            raise TokenError(text, code=error.code, description=error.description) from None
