"""An OAuth 2.0 token endpoint in your process: behaves as Cloud Foundry's UAA, hence SAP's XSUAA, and fails on cue.

What it does with HTTP Basic was measured at a UAA 4.30, and is what later ones document: see `UAABehaviour`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import enum
import hashlib
import hmac
import json
import re
import secrets
import ssl as tls
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self

from aiohttp import web

from .broker import Refusal

__all__ = ["TokenAnswer", "TokenRequest", "TokenServer", "UAABehaviour"]

_PATH: Final = "/oauth/token"
_SHUTDOWN_TIMEOUT: Final = 0.1  # seconds for what is being answered; aiohttp takes 0 for no limit
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
_BROKEN_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")


class UAABehaviour(enum.Enum):
    """What a UAA makes of an HTTP Basic header. A form-encoded body works with all three, unless there is a header too.

    ============================  ======  ======  ======
    Basic header                  NATIVE  COMPAT  STRICT
    ============================  ======  ======  ======
    raw                           yes     yes     no
    form-encoded                  no      no      yes
    form-encoded + X-CF-ENCODED…  no      yes     yes
    raw + X-CF-ENCODED…           yes     no      no
    ============================  ======  ======  ======
    """

    NATIVE = "native"
    """Takes both parts as they are (UAA 4.30)."""
    COMPAT = "compat"
    """Decodes them if ``X-CF-ENCODED-CREDENTIALS: true`` is there (``enableUriEncodingCompatibilityMode``)."""
    STRICT = "strict"
    """Always decodes them, as RFC 6749 section 2.3.1 wants (the default since UAA 74)."""


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """What a `TokenServer` answers in place of a token.

    Attributes:
        status: The HTTP status.
        body: The body.
        headers: The headers, Content-Type among them.
        delay: Seconds to wait before.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay: float = 0.0

    UNAUTHORIZED: ClassVar[TokenAnswer]
    """As a UAA refuses a client, whatever the reason."""
    SERVER_ERROR: ClassVar[TokenAnswer]
    """A page with status 500."""
    GARBAGE: ClassVar[TokenAnswer]
    """Bytes that are no JSON, with status 200."""
    SLOW: ClassVar[TokenAnswer]
    """No answer for an hour."""


_BAD_CREDENTIALS: Final = TokenAnswer(
    401,
    b'{"error":"unauthorized","error_description":"Bad credentials"}',
    {"Content-Type": "application/json", "WWW-Authenticate": 'Basic realm="UAA/client", error="unauthorized"'},
)
TokenAnswer.UNAUTHORIZED = _BAD_CREDENTIALS
TokenAnswer.SERVER_ERROR = TokenAnswer(500, b"<html>Internal Server Error</html>", {"Content-Type": "text/html"})
TokenAnswer.GARBAGE = TokenAnswer(200, b'\xff\x00{"access_token":')
TokenAnswer.SLOW = TokenAnswer(503, delay=3600.0)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request that a `TokenServer` got; no secret is in it.

    Attributes:
        time: When, on the event loop's clock.
        way: How the client authenticated: ``"body"``, ``"basic"``, ``"certificate"``, ``"assertion"`` or ``"none"``.
        encoded: Whether ``X-CF-ENCODED-CREDENTIALS: true`` was there.
        grant_type: What was asked for.
        parameters: The names of all parameters in the body.
        status: The HTTP status of the answer.
    """

    time: float
    way: str
    encoded: bool
    grant_type: str
    parameters: tuple[str, ...]
    status: int


class TokenServer:
    """A token endpoint for tests, demonstrations and development.

    ::

        async with TokenServer() as server:
            grant = ClientCredentials(server.url, server.client_id, server.client_secret)
            async with TokenRefresher(grant) as tokens, Broker(authorize=server.authorize) as broker:
                async with amqpws_async.connect(broker.url, token=tokens) as connection: ...

    Its tokens are JWTs with the claims of an XSUAA, signed (HS256) with a key made at start.

    Args:
        host: Where to listen; this machine alone by default.
        port: The port, 0 for any that is free; see `url`.
        clients: Secrets by client id. A secret of None means a client that shows a TLS certificate with its id as
            common name, or an assertion. By default there is one client, see `client_id` and `client_secret`.
        users: Passwords by user name, for the password grant; none by default.
        scopes: What may be asked for, and what a request gets that asks for nothing.
        behaviour: What to make of HTTP Basic.
        body: Whether a client may authenticate in the body (RFC 6749 leaves that to the server).
        lifetime: Seconds that a token lives, 43 199 by default, as an XSUAA's. ``expires_in`` has no fractions.
        verify_assertion: Called with a client assertion and the endpoint's URL: the client's id, or None.
        ssl: A server's TLS context, for ``https://``.

    Attributes:
        answer: What to answer in place of a token, such as `TokenAnswer.SERVER_ERROR`; None for tokens.
        lifetime: As above; may be changed.
        client_id: The first client.
        client_secret: Its secret, "" if it has none. The default's has every awkward character in it.
        request_count: Requests so far.
        token_count: Tokens so far.
        requests: The last thousand requests.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clients: Mapping[str, str | None] | None = None,
        users: Mapping[str, str] | None = None,
        scopes: Iterable[str] = ("uaa.resource",),
        behaviour: UAABehaviour = UAABehaviour.STRICT,
        body: bool = True,
        lifetime: float = 43199.0,
        verify_assertion: Callable[[str, str], str | None] | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        if clients is None:
            clients = {"sb-default-0000!b1|xbem-service-broker-!b2": f"{secrets.token_urlsafe(16)}$+/=%41 %y:!|ü"}
        if not clients:
            raise ValueError("clients: at least one")
        self.host = host
        self.port = port
        self.behaviour = behaviour
        self.lifetime = lifetime
        self.answer: TokenAnswer | None = None
        self.client_id, secret = next(iter(clients.items()))
        self.client_secret = secret or ""
        self.request_count = 0
        self.token_count = 0
        self.requests: deque[TokenRequest] = deque(maxlen=1000)
        self._clients = dict(clients)
        self._users = dict(users or {})
        self._scopes = tuple(scopes)
        self._body = body
        self._verify_assertion = verify_assertion
        self._ssl = ssl
        self._key = secrets.token_bytes(32)
        self._closing = asyncio.Event()
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The token endpoint."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}{_PATH}"

    async def start(self) -> Self:
        """Listen. After `close` it listens again, on the same port, and its tokens are still good.

        Returns:
            The server.

        Raises:
            OSError: The port cannot be had.
            RuntimeError: It is listening already.
        """
        if self._listener is not None:
            raise RuntimeError("this token server is listening already")
        self._closing = asyncio.Event()
        # Without its access log: a log of a test is not the place for what clients send.
        self._web = web.Server(self._handle, access_log=None)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._web, self.host, self.port, ssl=self._ssl)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and drop every connection. Closing again does nothing. Cancelling stops the waiting alone."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        assert self._web is not None
        listener.close()
        self._closing.set()
        await self._web.shutdown(_SHUTDOWN_TIMEOUT)
        await listener.wait_closed()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "listening" if self._listener is not None else "closed"
        return f"<TokenServer {self.url} {state}, {self.request_count} requests>"

    # --- tokens ------------------------------------------------------------------------------

    def make_token(
        self,
        client_id: str | None = None,
        *,
        lifetime: float | None = None,
        claims: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """Make a token without being asked for it.

        Args:
            client_id: For whom; the first client by default.
            lifetime: Seconds that it lives, less than 0 for one that has expired; `lifetime` by default.
            claims: More of them, or others for the same.
        """
        now = time.time()
        client_id = client_id or self.client_id
        content: dict[str, object] = {
            "jti": uuid.uuid4().hex,
            "sub": client_id,
            "azp": client_id,
            "cid": client_id,
            "client_id": client_id,
            "grant_type": "client_credentials",
            "scope": list(self._scopes),
            "aud": [client_id, *sorted({scope.rpartition(".")[0] for scope in self._scopes} - {""})],
            "iss": self.url,
            "iat": int(now),
            "exp": now + (self.lifetime if lifetime is None else lifetime),  # RFC 7519 allows fractions
            **claims,
        }
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, content))
        return f"{signed}.{self._signature(signed)}"

    def verify(self, token: str) -> dict[str, Any]:
        """Return a token's claims.

        Raises:
            ValueError: It is not one of ours, or has expired.
        """
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(signed).encode(), signature.encode("utf-8", "replace")):
            raise ValueError("the token's signature is not ours")
        claims: dict[str, Any] = json.loads(_decoded(signed.partition(".")[2]))
        if claims["exp"] <= time.time():
            raise ValueError("the token has expired")
        return claims

    def revoke_all(self) -> None:
        """Make every token given so far invalid, as a new signing key does."""
        self._key = secrets.token_bytes(32)

    def authorize(self, headers: Mapping[str, str], path: str) -> Refusal | None:
        """Let in who has a valid token: for ``Broker(authorize=server.authorize)``.

        Args:
            headers: Of the upgrade.
            path: Of the upgrade; it makes no difference.
        """
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return Refusal(401, "a bearer token is wanted\n", {"WWW-Authenticate": "Bearer"})
        try:
            self.verify(token.strip())
        except ValueError as error:
            challenge = f'Bearer error="invalid_token", error_description="{error}"'  # RFC 6750 section 3
            return Refusal(401, f"{error}\n", {"WWW-Authenticate": challenge})
        return None

    def _signature(self, signed: str) -> str:
        return _encoded(hmac.new(self._key, signed.encode("utf-8", "replace"), hashlib.sha256).digest())

    # --- requests ----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != _PATH:
            return _response(TokenAnswer(404, b"not here", {"Content-Type": "text/plain"}))
        self.request_count += 1
        began = asyncio.get_running_loop().time()
        form = {name: str(value) for name, value in (await request.post()).items()}
        way = _way(request, form)
        answer = self.answer
        if answer is not None:
            if answer.delay:
                await self._wait(request, answer.delay)
        else:
            answer = self._answered(request, form, way)
        encoded = request.headers.get("X-CF-ENCODED-CREDENTIALS", "").lower() == "true"
        self.requests.append(
            TokenRequest(began, way, encoded, form.get("grant_type", ""), tuple(sorted(form)), answer.status)
        )
        return _response(answer)

    async def _wait(self, request: web.BaseRequest, delay: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._closing.wait()
            if request.transport is not None:
                request.transport.abort()

    def _answered(self, request: web.BaseRequest, form: Mapping[str, str], way: str) -> TokenAnswer:
        if request.method != "POST":
            return TokenAnswer(405, b"", {"Allow": "POST"})
        accept = request.headers.get("Accept", "*/*")
        if "*/*" not in accept and "application/json" not in accept:
            return TokenAnswer(406, b"<html>Not Acceptable</html>", {"Content-Type": "text/html"})
        client_id = self._client(request, form, way)
        if isinstance(client_id, TokenAnswer):
            return client_id
        grant_type = form.get("grant_type")
        subject: dict[str, object] = {}
        if grant_type == "password":
            user, password = form.get("username", ""), form.get("password", "")
            if not _same(self._users.get(user), password):
                return _error(401, "unauthorized", "Bad credentials")
            subject = {"sub": user, "user_name": user}
        elif grant_type is None:
            return _error(400, "invalid_request", "Missing grant type")
        elif grant_type != "client_credentials":
            return _error(400, "unsupported_grant_type", f"Unsupported grant type: {grant_type}")
        scopes = form.get("scope", "").split() or list(self._scopes)
        if not set(scopes) <= set(self._scopes):
            return _error(400, "invalid_scope", f"{scopes} is invalid. This client may ask for {list(self._scopes)}")
        token = self.make_token(client_id, claims={"grant_type": grant_type, "scope": scopes, **subject})
        self.token_count += 1
        content = {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": int(self.lifetime),
            "scope": " ".join(scopes),
            "jti": uuid.uuid4().hex,
        }
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}  # RFC 6749 section 5.1
        return TokenAnswer(200, json.dumps(content).encode(), headers)

    def _client(self, request: web.BaseRequest, form: Mapping[str, str], way: str) -> str | TokenAnswer:
        """The client that asks, or why there is none."""
        client_id: str | None = form.get("client_id", "")
        if way == "basic":  # also when the body has credentials: the header wins
            try:
                client_id, secret = self._basic(request)
            except ValueError as error:
                return _error(401, "unauthorized", str(error))
            known = _same(self._clients.get(client_id), secret)
        elif way == "body":
            known = self._body and _same(self._clients.get(client_id or ""), form["client_secret"])
        elif way == "assertion":
            verify = self._verify_assertion
            client_id = verify(form["client_assertion"], self.url) if verify is not None else None
            known = client_id in self._clients
        elif way == "certificate":
            known = client_id in self._clients and self._clients[client_id] is None
        else:
            known = False
        return client_id if known and client_id else _BAD_CREDENTIALS

    def _basic(self, request: web.BaseRequest) -> tuple[str, str]:
        try:
            pair = base64.b64decode(request.headers["Authorization"].partition(" ")[2], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("Invalid basic authentication token") from None
        client_id, _, secret = pair.partition(":")
        flagged = request.headers.get("X-CF-ENCODED-CREDENTIALS", "").lower() == "true"
        if self.behaviour is UAABehaviour.STRICT or (self.behaviour is UAABehaviour.COMPAT and flagged):
            if _BROKEN_ESCAPE.search(pair):
                raise ValueError("Failed to URL Decode credentials")
            return urllib.parse.unquote_plus(client_id), urllib.parse.unquote_plus(secret)
        return client_id, secret


def _way(request: web.BaseRequest, form: Mapping[str, str]) -> str:
    if request.headers.get("Authorization", "").lower().startswith("basic "):
        return "basic"
    if form.get("client_assertion_type") == _ASSERTION_TYPE and "client_assertion" in form:
        return "assertion"
    if "client_secret" in form:
        return "body"
    certificate = request.get_extra_info("peercert") or {}
    names = [value for rdn in certificate.get("subject", ()) for name, value in rdn if name == "commonName"]
    return "certificate" if form.get("client_id") in names else "none"


def _same(known: str | None, given: str) -> bool:
    return known is not None and hmac.compare_digest(known.encode(), given.encode("utf-8", "replace"))


def _error(status: int, code: str, description: str) -> TokenAnswer:
    body = json.dumps({"error": code, "error_description": description}).encode()
    headers = _BAD_CREDENTIALS.headers if status == 401 else {"Content-Type": "application/json"}
    return TokenAnswer(status, body, headers)


def _response(answer: TokenAnswer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
