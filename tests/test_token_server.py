"""The token server: what a UAA makes of each way to authenticate, asked by a client that is not ours."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from amqpws_async.testing.token_server import TokenAnswer, TokenServer, UAABehaviour

SECRET = "a$b+c/d=%41 %y"  # with the characters of the measurement at a real UAA
CLIENT = "sb-app!b1|broker!b2"
FLAG = {"X-CF-ENCODED-CREDENTIALS": "true"}

NATIVE, COMPAT, STRICT = UAABehaviour


@asynccontextmanager
async def asking(server: TokenServer) -> AsyncIterator[Any]:
    """A function that sends one request and gives status, headers and JSON (or None)."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with server, aiohttp.ClientSession(connector=connector) as session:

        async def ask(
            form: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None, body: str | None = None
        ) -> tuple[int, Mapping[str, str], Any]:
            if body is None:
                body = urllib.parse.urlencode({"grant_type": "client_credentials", **(form or {})})
            sent = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
            async with session.post(server.url, data=body.encode(), headers=sent) as response:
                data = await response.read()
                try:
                    content = json.loads(data)
                except ValueError:
                    content = None
                return response.status, response.headers, content

        yield ask


def basic(*, encoded: bool) -> dict[str, str]:
    """An Authorization header."""
    parts = (CLIENT, SECRET)
    pair = ":".join(map(urllib.parse.quote_plus, parts) if encoded else parts)
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


IN_BODY = {"client_id": CLIENT, "client_secret": SECRET}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"form": IN_BODY}, (200, 200, 200)),
        ({"body": f"grant_type=client_credentials&client_id={CLIENT}&client_secret={SECRET}"}, (401, 401, 401)),
        ({"headers": basic(encoded=False)}, (200, 200, 401)),
        ({"headers": basic(encoded=True)}, (401, 401, 200)),
        ({"headers": basic(encoded=True) | FLAG}, (401, 200, 200)),
        ({"headers": basic(encoded=False) | FLAG}, (200, 401, 401)),
        ({"headers": basic(encoded=True), "form": IN_BODY}, (401, 401, 200)),
    ],
    ids=["body", "body-unencoded", "raw", "encoded", "encoded-flag", "raw-flag", "encoded-and-body"],
)
async def test_each_way_to_authenticate_fares_as_at_a_real_uaa(
    request_: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    """The table of the measurement, row by row, for the three behaviours."""
    found = []
    for behaviour in UAABehaviour:
        async with asking(TokenServer(clients={CLIENT: SECRET}, behaviour=behaviour)) as ask:
            status, headers, content = await ask(**request_)
            found.append(status)
            if status == 401:
                assert headers["WWW-Authenticate"].startswith('Basic realm="UAA/client"')
                assert content["error"] == "unauthorized"
    assert tuple(found) == expected


async def test_a_strict_server_says_that_a_raw_header_cannot_be_decoded() -> None:
    """`%y` is no escape: the one failure that a UAA tells apart."""
    async with asking(TokenServer(clients={CLIENT: SECRET}, behaviour=STRICT)) as ask:
        _, _, content = await ask(headers=basic(encoded=False))
        assert content["error_description"] == "Failed to URL Decode credentials"


async def test_a_token_has_the_form_and_the_claims_of_an_xsuaa() -> None:
    """Lower-case bearer, whole seconds, no refresh token, and a JWT that the server itself takes."""
    server = TokenServer(scopes=("app.read", "app.write"))
    async with asking(server) as ask:
        status, headers, content = await ask({"client_id": server.client_id, "client_secret": server.client_secret})
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert headers["Cache-Control"] == "no-store"
        assert sorted(content) == ["access_token", "expires_in", "jti", "scope", "token_type"]
        assert (content["token_type"], content["expires_in"], content["scope"]) == (
            "bearer",
            43199,
            "app.read app.write",
        )
        claims = server.verify(content["access_token"])
        assert claims["client_id"] == server.client_id
        assert claims["scope"] == ["app.read", "app.write"]
        assert "app" in claims["aud"]
        assert (server.request_count, server.token_count) == (1, 1)


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"scope": "nobody.has.this"}, 400, "invalid_scope"),
        ({"grant_type": "urn:unknown"}, 400, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "ann", "password": "wrong"}, 401, "unauthorized"),
        ({"client_secret": "wrong"}, 401, "unauthorized"),
        ({"client_id": "nobody"}, 401, "unauthorized"),
    ],
)
async def test_what_a_request_may_not_have_is_refused_by_rfc_6749(form: dict[str, str], status: int, code: str) -> None:
    """The error codes of section 5.2."""
    async with asking(TokenServer(clients={CLIENT: SECRET}, users={"ann": "right"})) as ask:
        found, _, content = await ask(IN_BODY | form)
        assert (found, content["error"]) == (status, code)


async def test_a_request_needs_a_grant_type_post_and_a_taste_for_json() -> None:
    """400, 405 and the 406 that a browser's Accept brings; another path is not there at all."""
    server = TokenServer(clients={CLIENT: SECRET})
    async with asking(server) as ask, aiohttp.ClientSession() as session:
        missing = urllib.parse.urlencode(IN_BODY)
        assert (await ask(body=missing))[2]["error"] == "invalid_request"
        assert (await ask(IN_BODY, headers={"Accept": "text/html"}))[0] == 406
        async with session.get(server.url) as response:
            assert response.status == 405
        async with session.post(server.url.replace("/oauth/token", "/elsewhere")) as response:
            assert response.status == 404


async def test_a_user_gets_a_token_of_their_own() -> None:
    """The password grant: subject and user name are the user, the client stays the client."""
    server = TokenServer(clients={CLIENT: SECRET}, users={"ann": "pässword"})
    async with asking(server) as ask:
        form = {"grant_type": "password", "username": "ann", "password": "pässword"}
        _, _, content = await ask(IN_BODY | form)
        claims = server.verify(content["access_token"])
        assert (claims["user_name"], claims["client_id"]) == ("ann", CLIENT)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(TokenAnswer.UNAUTHORIZED, 401), (TokenAnswer.SERVER_ERROR, 500), (TokenAnswer.GARBAGE, 200)],
)
async def test_failures_are_switched_on_and_off(answer: TokenAnswer, status: int) -> None:
    """While `answer` is set there are no tokens; requests are counted all the same."""
    server = TokenServer(clients={CLIENT: SECRET})
    async with asking(server) as ask:
        server.answer = answer
        found, _, content = await ask(IN_BODY)
        assert found == status
        assert "access_token" not in (content or {})
        server.answer = None
        assert (await ask(IN_BODY))[0] == 200
        assert (server.request_count, server.token_count) == (2, 1)


async def test_a_slow_server_can_be_closed_while_it_thinks() -> None:
    """Closing drops the request; nothing is left behind."""
    server = TokenServer(clients={CLIENT: SECRET})
    async with asking(server) as ask:
        server.answer = TokenAnswer.SLOW
        request = asyncio.get_running_loop().create_task(ask(IN_BODY))
        while not server.request_count:
            await asyncio.sleep(0)
        await server.close()
        with pytest.raises(aiohttp.ClientError):
            await request


async def test_it_comes_back_on_the_same_port_with_its_tokens_still_good() -> None:
    """A restart is an outage, not a new identity."""
    server = TokenServer(clients={CLIENT: SECRET})
    async with asking(server) as ask:
        url = server.url
        token = (await ask(IN_BODY))[2]["access_token"]
        await server.close()
        await server.close()
        await server.start()
        assert server.url == url
        server.verify(token)
        with pytest.raises(RuntimeError, match="already"):
            await server.start()
        assert (await ask(IN_BODY))[0] == 200


def test_a_token_of_anybody_else_is_refused() -> None:
    """Forged, expired, revoked or no token at all: 401 with the reason in the challenge, as RFC 6750 says."""
    server = TokenServer()
    good = server.make_token()
    assert server.authorize({"Authorization": f"Bearer {good}"}, "/") is None
    head, claims, signature = good.split(".")
    forged = base64.urlsafe_b64encode(b'{"exp":9999999999}').rstrip(b"=").decode()
    for bad in (f"{head}.{forged}.{signature}", f"{head}.{claims}.", "x", "ü.ü.ü", server.make_token(lifetime=-1.0)):
        refusal = server.authorize({"Authorization": f"Bearer {bad}"}, "/")
        assert refusal is not None
        assert refusal.status == 401
        assert 'error="invalid_token"' in refusal.headers["WWW-Authenticate"]
    without = server.authorize({}, "/")
    assert without is not None
    assert without.headers == {"WWW-Authenticate": "Bearer"}
    server.revoke_all()
    assert server.authorize({"Authorization": f"Bearer {good}"}, "/") is not None


async def test_nothing_it_shows_has_a_secret_in_it() -> None:
    """Neither the server's repr nor what it keeps of its requests."""
    server = TokenServer(clients={CLIENT: SECRET}, users={"ann": "canary-77"})
    async with asking(server) as ask:
        await ask(IN_BODY | {"grant_type": "password", "username": "ann", "password": "canary-77"})
        shown = f"{server!r} {server.requests!r}"
        assert SECRET not in shown
        assert "canary-77" not in shown
        assert server.requests[0].way == "body"


def test_there_is_at_least_one_client() -> None:
    """A server that nobody can use is a mistake."""
    with pytest.raises(ValueError, match="at least one"):
        TokenServer(clients={})
