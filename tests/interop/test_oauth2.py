"""Tokens of a certified OpenID provider, oidc-provider: every way to prove who the client is, and what refusals say.

Requests are a second apart at least, as the refresher keeps them.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest

import amqpws_async as amqp
from amqpws_async.auth.oauth2 import ClientCredentials, Grant, PrivateKeyJWT, TokenRefresher
from tests.interop.brokers import NAMESPACE
from tests.interop.gateways import CheckedGateway
from tests.interop.oidc import (
    CERTIFIED,
    CLIENT,
    MESH,
    OTHER,
    SELF_SIGNED,
    SHORT,
    SHORT_LIFETIME,
    SIGNING,
    STRANGER,
    Issuer,
)

PROMPTLY = 10.0  # seconds within which a server on the same machine answers, however busy the machine is


def secret_grant(issuer: Issuer, client_id: str = CLIENT, **options: Any) -> ClientCredentials:
    """A grant of a client with a secret."""
    return ClientCredentials(issuer.token_url, client_id, issuer.secret, **options)


def refresher(issuer: Issuer, grant: Grant) -> TokenRefresher:
    """One that trusts the issuer's authority."""
    return TokenRefresher(grant, ssl=issuer.authority_file)


async def refused(issuer: Issuer, grant: Grant) -> amqp.TokenError:
    """The error that a token request ends with."""
    async with refresher(issuer, grant) as tokens, asyncio.timeout(PROMPTLY):
        with pytest.raises(amqp.TokenError) as caught:
            await tokens.token()
    return caught.value


async def revoke(issuer: Issuer, token: str) -> None:
    """Has the issuer take a token back, as an administrator would."""
    form = {"client_id": CLIENT, "client_secret": issuer.secret, "token": token}
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=issuer.authority_file))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(issuer.revocation_url, data=form) as response,
    ):
        assert response.status == 200


# --- who the client is -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auto", "body", "basic"])
async def test_a_secret_with_every_awkward_character(issuer: Issuer, way: Any) -> None:
    """Form-encoded in the body or in both parts of a Basic header it is taken at once; `auto` begins with the body."""
    async with refresher(issuer, secret_grant(issuer, authentication=way)) as tokens, asyncio.timeout(PROMPTLY):
        await tokens.token()
    assert issuer.asked == ["basic 200" if way == "basic" else "body 200"]


async def test_auto_finds_the_header_and_keeps_to_it(issuer: Issuer) -> None:
    """Where a secret in the body is refused, the second request has it in the header; the next token costs one."""
    grant = ClientCredentials(issuer.basic_url, CLIENT, issuer.secret)
    async with refresher(issuer, grant) as tokens, asyncio.timeout(PROMPTLY):
        first = await tokens.token()
        assert issuer.asked == ["body 401", "basic 200"]
        assert await tokens.token(refresh=True) != first
    assert issuer.asked == ["body 401", "basic 200", "basic 200"]


async def test_a_signed_assertion(issuer: Issuer) -> None:
    """private_key_jwt: what PyJWT signs for the token endpoint's URL is verified, once for each request."""
    grant = ClientCredentials(issuer.token_url, SIGNING, authentication=PrivateKeyJWT(issuer.key))
    async with refresher(issuer, grant) as tokens, asyncio.timeout(PROMPTLY):
        first = await tokens.token()
        assert await tokens.token(refresh=True) != first  # a replayed assertion would be refused
    assert issuer.asked == ["assertion 200", "assertion 200"]


@pytest.mark.parametrize("client_id", [CERTIFIED, SELF_SIGNED])
async def test_a_certificate(issuer: Issuer, client_id: str) -> None:
    """RFC 8705, both kinds: a chain up to the server's authority, and a certificate that the server knows."""
    certificate = issuer.certificate if client_id == CERTIFIED else issuer.self_signed
    grant = ClientCredentials(issuer.token_url, client_id, authentication=certificate)
    async with refresher(issuer, grant) as tokens, asyncio.timeout(PROMPTLY):
        await tokens.token()
    assert issuer.asked == ["certificate 200"]


async def test_what_a_token_is_for(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """A scope and a resource (RFC 8707) reach the server: its token is a JWT for that resource, and opens the way."""
    grant = secret_grant(issuer, scope="messages", resource=MESH)
    async with refresher(issuer, grant) as tokens, asyncio.timeout(PROMPTLY):
        assert (await tokens.token()).value.count(".") == 2
        async with amqp.connect(mesh_gateway.url, ssl=issuer.authority_file, token=tokens):
            assert issuer.checked == [204]


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auto", "body", "basic"])
async def test_a_wrong_secret(issuer: Issuer, way: Any) -> None:
    """invalid_client, with what to check and without the secret; `auto` gives up after three places."""
    secret = "guessed-$+wrong"
    grant = ClientCredentials(issuer.token_url, CLIENT, secret, authentication=way)
    error = await refused(issuer, grant)
    assert error.code == "invalid_client"
    for part in ("401", issuer.token_url, CLIENT, "check client id and secret"):
        assert part in str(error)
    assert not re.search("guessed|wrong", f"{error!r} {error} {error.__cause__!r} {error.__context__!r} {grant!r}")
    assert issuer.asked == {"auto": ["body 401", "basic 401", "basic 401"]}.get(way, [f"{way} 401"])


@pytest.mark.parametrize("proof", ["certificate", "assertion"])
async def test_a_wrong_certificate_or_key(issuer: Issuer, proof: str) -> None:
    """One request, and invalid_client: there is no other place for a certificate or a key."""
    if proof == "certificate":
        grant = ClientCredentials(issuer.token_url, CERTIFIED, authentication=issuer.self_signed)
    else:
        grant = ClientCredentials(issuer.token_url, CLIENT, authentication=PrivateKeyJWT(issuer.key))
    error = await refused(issuer, grant)
    assert error.code == "invalid_client"
    assert issuer.asked == [f"{proof} 401"]


async def test_a_resource_that_does_not_exist(issuer: Issuer) -> None:
    """invalid_target is about the request and not the client: the secret is not tried elsewhere."""
    error = await refused(issuer, secret_grant(issuer, resource="urn:example:nowhere"))
    assert error.code == "invalid_target"
    assert issuer.asked == ["body 400"]


async def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    """Even to the same server: the error names the place, and nothing arrives there."""
    error = await refused(issuer, ClientCredentials(issuer.moved_url, CLIENT, issuer.secret))
    assert "307" in str(error)
    assert repr(issuer.token_url) in str(error)
    assert issuer.asked == []


async def test_an_unknown_authority(issuer: Issuer) -> None:
    """Without the CA file there is no request, and the error says how to give it."""
    async with TokenRefresher(secret_grant(issuer)) as tokens, asyncio.timeout(PROMPTLY):
        with pytest.raises(amqp.TokenError, match=r"not trusted.*ssl='ca\.pem'"):
            await tokens.token()
    assert issuer.asked == []


# --- a token's life ------------------------------------------------------------------------------


async def test_a_token_is_renewed_before_it_expires(issuer: Issuer) -> None:
    """By itself, with one request, while the old one is still good."""
    renewed: asyncio.Queue[amqp.Token] = asyncio.Queue()
    async with refresher(issuer, secret_grant(issuer, SHORT)) as tokens, asyncio.timeout(PROMPTLY):
        tokens.add_listener(renewed.put_nowait)
        first = await tokens.token()
        assert await renewed.get() == first
        second = await renewed.get()
        assert second != first
        assert first.expiry is not None
        assert second.expiry is not None
        assert 0 < second.expiry - first.expiry < SHORT_LIFETIME
        assert await tokens.token() == second
    assert issuer.asked == ["body 200", "body 200"]


async def test_a_revoked_token_costs_one_request_and_one_attempt(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """A token that looks valid is refused at the upgrade: a new one is asked for, and opens the connection."""
    async with refresher(issuer, secret_grant(issuer)) as tokens, asyncio.timeout(PROMPTLY):
        await revoke(issuer, (await tokens.token()).value)
        async with amqp.connect(mesh_gateway.url, ssl=issuer.authority_file, token=tokens):
            assert issuer.checked == [401, 204]
    assert issuer.asked == ["body 200", "body 200"]


async def test_an_expired_token_is_refused_at_the_upgrade(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """A connection outlives its token; the next upgrade with it gets a 401, once where there is no other token."""
    async with refresher(issuer, secret_grant(issuer, SHORT)) as tokens, asyncio.timeout(PROMPTLY):
        token = await tokens.token()
    assert token.expiry is not None
    options: Any = {"ssl": issuer.authority_file, "token": token}
    async with amqp.connect(mesh_gateway.url, **options) as connection, connection.sender("") as sender:
        await asyncio.sleep(token.expiry + 1 - time.time())  # the server's clock goes by full seconds
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(mesh_gateway.url, **options)
        assert caught.value.status == 401
        assert await sender.send(amqp.Message(b"late", to=f"topic:{NAMESPACE}/nobody")) == amqp.Accepted()
    assert issuer.checked == [204, 401]


async def test_a_second_refusal_is_final(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """Tokens for another resource: two attempts with two tokens, and the gateway's challenge in the error."""
    async with refresher(issuer, secret_grant(issuer, resource=OTHER)) as tokens, asyncio.timeout(PROMPTLY):
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(mesh_gateway.url, ssl=issuer.authority_file, token=tokens)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert (issuer.asked, issuer.checked) == (["body 200", "body 200"], [401, 401])


async def test_a_client_that_may_not_send_messages(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """403 is final at once: another token of the same client would do no better."""
    async with refresher(issuer, secret_grant(issuer, STRANGER)) as tokens, asyncio.timeout(PROMPTLY):
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(mesh_gateway.url, ssl=issuer.authority_file, token=tokens)
    assert caught.value.status == 403
    assert (issuer.asked, issuer.checked) == (["body 200"], [403])


async def test_many_connections_ask_for_one_token(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """Twenty opened at once share the request; when its token has been revoked, they share the next one too."""

    async def open_twenty() -> None:
        opening = [amqp.connect(mesh_gateway.url, ssl=issuer.authority_file, token=tokens) for _ in range(20)]
        for connection in await asyncio.gather(*opening):
            await connection.close()

    async with refresher(issuer, secret_grant(issuer)) as tokens, asyncio.timeout(PROMPTLY * 2):
        await open_twenty()
        assert issuer.asked == ["body 200"]
        await revoke(issuer, (await tokens.token()).value)
        await open_twenty()
    assert issuer.asked == ["body 200"] * 2
    assert Counter(issuer.checked) == {204: 40, 401: 20}


async def test_a_token_goes_where_the_user_said(issuer: Issuer, mesh_gateway: CheckedGateway) -> None:
    """A redirect of the upgrade is followed to the same host and port; elsewhere only if the user has named it."""
    elsewhere = mesh_gateway.certificate_url.removeprefix("wss://").partition("/")[0]
    trust = ssl.create_default_context(cafile=issuer.authority_file)
    await asyncio.to_thread(issuer.certificate.load_into, trust)
    async with refresher(issuer, secret_grant(issuer)) as tokens, asyncio.timeout(PROMPTLY):
        async with amqp.connect(mesh_gateway.moved_url, ssl=trust, token=tokens):
            assert issuer.checked == [204]
        with pytest.raises(amqp.HandshakeError, match="redirect_hosts") as caught:
            await amqp.connect(mesh_gateway.elsewhere_url, ssl=trust, token=tokens)
        assert (caught.value.status, issuer.checked) == (307, [204])
        async with amqp.connect(mesh_gateway.elsewhere_url, ssl=trust, token=tokens, redirect_hosts=(elsewhere,)):
            assert issuer.checked == [204, 204]
