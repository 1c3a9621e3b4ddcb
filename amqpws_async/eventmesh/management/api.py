"""Requests to the management API: encoded, authenticated, bounded, and refusals as errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import aiohttp
from yarl import URL

from ...auth import TokenProvider
from ...auth.answers import Answer, Mask
from ...auth.client_auth import ClientCertificate
from ...auth.http import network_text, read_answer
from ...auth.route import Route
from ...errors import AMQPError, TokenError
from ...urls import without_query
from ..key import Endpoint

__all__ = ["API", "ManagementError", "encoded_path"]

MAX_ANSWER: Final = 2**20
"""The largest answer that is read, in bytes: 250 queues, as many as there may be, are described in about 100 KB."""

_ADVICE: Final = {
    400: "a name or a property has a value that Event Mesh does not allow",
    401: "the token is not accepted: is the key still valid, and is its management section for this URL?",
    403: "the rules and the namespace of the service descriptor do not allow it, or the key's client lacks the scope",
    404: "there is no such queue or subscription, or this is not the URL of the management API",
    409: "it does not go together with what is there: access_type, say, cannot change while the queue is in use",
    413: "this is too much for one request",
    429: "too many requests, or the service plan's number of queues or subscriptions is reached",
    503: "Event Mesh is not ready: try again later",
}

logger = logging.getLogger("amqpws_async.eventmesh.management")


class ManagementError(AMQPError):
    """The management API refused a request, or could not be asked.

    Attributes:
        status: The HTTP status, or None if there was no answer.
        method: The request's method, such as ``"PUT"``.
        path: Its path below the management URL, encoded, such as ``"/queues/example%2Fshop%2F1%2Forders"``.
        description: What the server says, in one short line, or None.
        retry_after: Seconds to wait before the next attempt, if the server says so (429, 503), or None.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status: int | None = None,
        description: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.method = method
        self.path = path
        self.description = description
        self.retry_after = retry_after


class API:
    """The API at one URL, used in ``async with``: sends a request with a token, and makes errors of refusals.

    Attributes:
        where: Its URL, for people.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        route: Route,
        certificate: ClientCertificate | None,
        tokens: TokenProvider,
        session: aiohttp.ClientSession | None,
        timeout: float,
    ) -> None:
        self._base = endpoint.url.rstrip("/")
        self._secrets = endpoint.grant.secrets() if endpoint.grant is not None else ()
        self._route = route
        self._certificate = certificate
        self._tokens = tokens
        self._given_session = session
        self._timeout = timeout
        self.where = without_query(self._base)

    async def __aenter__(self) -> Self:
        session = self._given_session
        if session is None:
            connector = aiohttp.TCPConnector() if self._route.socks is None else self._route.socks()
            session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._session = session
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not self._given_session:
            await self._session.close()

    async def request(
        self, method: str, *segments: str, body: Mapping[str, Any] | None = None, allowed: tuple[int, ...] = ()
    ) -> tuple[int, Any]:
        """Send a request, and once more with another token if the first is refused.

        Args:
            method: The method.
            segments: Of the path, not yet encoded.
            body: What is sent as JSON, or None.
            allowed: Statuses beside 2xx that are no error.

        Returns:
            The status, and what the JSON of the answer says; None if there is none.
        """
        path = encoded_path(segments)
        token = (await self._tokens.token()).value
        answer = await self._send(method, path, body, token)
        if answer.status == 401:
            used, token = token, (await self._tokens.token()).value  # renewed already, on behalf of another task?
            if token == used:
                token = (await self._tokens.token(refresh=True)).value
            if token != used:
                answer = await self._send(method, path, body, token)
        if answer.status in allowed:
            return answer.status, None
        mask = Mask((*self._secrets, token))
        if len(answer.body) > MAX_ANSWER:
            raise self.error(method, path, f"the answer is longer than {MAX_ANSWER} bytes", answer.status)
        if 200 <= answer.status < 300:
            return answer.status, self._parse(method, path, answer, mask)
        raise self._refused(method, path, answer, mask)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, token: str) -> Answer:
        await self._show_certificate(method, path)
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a small bomb makes a large answer
            "Authorization": f"Bearer {token}",
            "User-Agent": "amqpws-async",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode("ascii")
        logger.debug("> %s %s%s", method, self.where, path)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._session.request(
                    method,
                    URL(f"{self._base}{path}", encoded=True),  # or %2F would become a slash again
                    data=data,
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
            logger.debug(
                "< %s %s%s: HTTP status %d, %d bytes", method, self.where, path, answer.status, len(answer.body)
            )
            return answer
        except TimeoutError:
            failure: Exception = TimeoutError(f"{self.where}: {method} {path}: no answer within {self._timeout:g} s")
        except Exception as error:  # also what a user's session or a proxy's connector may come up with
            text = network_text(error, self._route.proxy, Mask((*self._secrets, token)))
            failure = self.error(method, path, text)
        raise failure  # here, so that it is not chained to an error that has the request's headers

    async def _show_certificate(self, method: str, path: str) -> None:
        """Load the client certificate, which may have been renewed since."""
        if self._certificate is None or self._route.context is None:
            return
        try:
            await asyncio.to_thread(self._certificate.load_into, self._route.context)
            return
        except TokenError as error:
            failure = self.error(method, path, f"not asked: {error}")
        raise failure

    def _parse(self, method: str, path: str, answer: Answer, mask: Mask) -> Any:
        if not answer.body.strip():
            return None
        # Not JSON, not UTF-8, digits without end, brackets without end; those errors have the whole answer in them.
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(answer.body)
        kind = mask.text(answer.content_type) or "no content type"
        text = f"HTTP status {answer.status}, but no JSON ({kind}): is this the URL of the management API?"
        raise self.error(method, path, text, answer.status)

    def _refused(self, method: str, path: str, answer: Answer, mask: Mask) -> ManagementError:
        status = answer.status
        if 300 <= status < 400:
            place = mask.text(answer.location.partition("?")[0].partition("#")[0].rpartition("@")[2])
            text = (
                f"HTTP status {status}, a redirect to {place!r}, which is not followed since the token would go along"
            )
            return self.error(method, path, text, status)
        description = _description(answer, mask)
        advice = _ADVICE.get(status) or (
            "Event Mesh, or a gateway before it, is in trouble: try again later"
            if status >= 500
            else "the management API does not take this request: check the URL"
        )
        text = f"HTTP status {status}{f', {description}' if description else ''}: {advice}"
        asked = answer.delay(time.time()) if answer.retry_after else None
        return ManagementError(
            f"{self.where}: {method} {path}: {text}",
            method=method,
            path=path,
            status=status,
            description=description,
            retry_after=asked,
        )

    def error(self, method: str, path: str, text: str, status: int | None = None) -> ManagementError:
        """An error of this request."""
        return ManagementError(f"{self.where}: {method} {path}: {text}", method=method, path=path, status=status)


def _description(answer: Answer, mask: Mask) -> str | None:
    """What the server says, from whatever it says it in."""
    try:
        text = _said(json.loads(answer.body))
    except (ValueError, RecursionError):
        is_text = answer.content_type.partition(";")[0].strip().lower() == "text/plain"
        text = answer.body.decode("utf-8", "replace") if is_text else ""
    return mask.text(text) or None


def _said(content: Any) -> str:
    if isinstance(content, dict):
        for member in ("message", "error_description", "error", "detail"):
            if member in content:
                return _said(content[member])
    return content if isinstance(content, str) else ""


def encoded_path(segments: Iterable[str]) -> str:
    """Make a path of its segments."""
    # As encodeURIComponent in SAP's own client: slashes are encoded, the wildcard * is not.
    return "".join(f"/{urllib.parse.quote(segment, safe='*')}" for segment in segments)
