"""One token request: who the client says it is, where that goes, and what is made of each answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from amqpws_async.auth import Token, as_provider, oauth2
from amqpws_async.auth.adapters import CallableProvider
from amqpws_async.auth.answers import DEFAULT_LIFETIME, MAX_ANSWER, MAX_LIFETIME, Answer, Mask, read_token
from amqpws_async.auth.oauth2 import (
    ClientCertificate,
    ClientCredentials,
    Grant,
    PrivateKeyJWT,
    ResourceOwnerPassword,
    TokenRefresher,
)
from amqpws_async.errors import TokenError
from amqpws_async.testing.token_server import TokenAnswer, TokenServer, UAABehaviour
from tests.websocket_peer import Peer, serving

CANARY = "canary-9c41$+/=%41 %y"
CLIENT = "sb-app!b1|broker!b2"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests may follow each other at once: for tests that are not about the pace."""
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)


def grant(server: TokenServer, **options: Any) -> ClientCredentials:
    """For the server's own client."""
    return ClientCredentials(server.url, server.client_id, server.client_secret, **options)


async def failure(grant: Grant, **options: Any) -> TokenError:
    """The error that a token request ends with."""
    async with TokenRefresher(grant, **options) as tokens:
        with pytest.raises(TokenError) as caught:
            await tokens.token()
        return caught.value


# --- secrets with awkward characters ---------------------------------------------------------


@pytest.mark.parametrize("behaviour", UAABehaviour)
@pytest.mark.parametrize("body", [True, False], ids=["body-taken", "basic-alone"])
@pytest.mark.parametrize("secret", ["!|$=+/%: x", "a%41b", "100%", "%zz +", "sécret-ключ-🔑", "+", " ", "a:b:c", "%"])
async def test_awkward_secrets_authenticate_everywhere(
    secret: str, body: bool, behaviour: UAABehaviour, quick: None
) -> None:
    """At most three requests find the way in, and the next token costs one."""
    clients = {"sb-ünï!b1|x +%41$=/": secret}
    async with TokenServer(clients=clients, behaviour=behaviour, body=body) as server:
        async with TokenRefresher(grant(server)) as tokens:
            server.verify((await tokens.token()).value)
            assert server.request_count <= 3
            if body:
                assert server.request_count == 1
            first = server.request_count
            server.verify((await tokens.token(refresh=True)).value)
            assert server.request_count == first + 1
        # Never two at once: UAA lets the header win over a right body.
        assert all("client_secret" not in request.parameters for request in server.requests if request.way == "basic")


@pytest.mark.parametrize("way", ["body", "basic", "raw-basic"])
async def test_a_way_that_was_chosen_is_the_only_one(way: str, quick: None) -> None:
    """No guessing where the user knows."""
    async with TokenServer() as server:
        error = await failure(ClientCredentials(server.url, server.client_id, "wrong", authentication=way))  # type: ignore[arg-type]
        assert error.code == "unauthorized"
        assert [request.way for request in server.requests] == ["body" if way == "body" else "basic"]


async def test_a_wrong_secret_costs_three_requests_and_names_what_to_check(quick: None) -> None:
    """Body, encoded header, raw header, in that order; the error has code, description, client and endpoint."""
    async with TokenServer() as server:
        error = await failure(ClientCredentials(server.url, server.client_id, CANARY, scope="uaa.resource"))
        assert [(request.way, request.encoded) for request in server.requests] == [
            ("body", False),
            ("basic", True),
            ("basic", False),
        ]
        assert (error.code, error.description) == ("unauthorized", "Bad credentials")
        for part in (server.url, server.client_id, "uaa.resource", "401", "check client id and secret", "3 places"):
            assert part in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        TokenAnswer.SERVER_ERROR,
        TokenAnswer(503),
        TokenAnswer(403),
        TokenAnswer(429, b"", {"Retry-After": "1"}),
        TokenAnswer(302, b"", {"Location": "/"}),
        TokenAnswer.GARBAGE,
        TokenAnswer(delay=60.0),
        TokenAnswer(400, b'{"error":"invalid_scope"}'),
        TokenAnswer(400, b'{"error":"invalid_grant"}'),
        TokenAnswer(401, b'{"error":"unauthorized_client"}'),
    ],
)
async def test_only_a_refused_client_tries_another_way(answer: TokenAnswer, quick: None) -> None:
    """Not after a 5xx, a timeout or anything else, and not when the secret was fine and something else was not."""
    async with TokenServer() as server:
        server.answer = answer
        await failure(grant(server), timeout=0.2)
        assert server.request_count == 1


async def test_an_outage_between_two_ways_ends_the_search(quick: None) -> None:
    """A 401 and then a 500: the third way is not tried, and the next attempt begins with the body again."""
    async with TokenServer(body=False) as server:
        behaviour = server._answered

        def answered(request: Any, form: Any, way: str) -> TokenAnswer:
            return TokenAnswer.SERVER_ERROR if way == "basic" else behaviour(request, form, way)

        server._answered = answered  # type: ignore[method-assign]
        error = await failure(grant(server))
        assert "500" in str(error)
        assert [request.way for request in server.requests] == ["body", "basic"]


async def test_a_way_that_stops_working_is_forgotten(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's new version may want another: after the refusal the search begins anew."""
    monkeypatch.setattr(oauth2, "retry_delay", lambda *_: 0.0)
    async with (
        TokenServer(clients={CLIENT: "a+b"}, body=False, behaviour=UAABehaviour.NATIVE) as server,
        TokenRefresher(grant(server)) as tokens,
    ):
        await tokens.token()
        assert server.request_count == 3
        server.behaviour = UAABehaviour.STRICT
        with pytest.raises(TokenError, match="unauthorized"):
            await tokens.token(refresh=True)
        await tokens.token(refresh=True)
        assert server.request_count == 6


# --- grants and what they send ---------------------------------------------------------------


async def test_scope_resource_and_parameters_are_sent(quick: None) -> None:
    """Several scopes are one parameter, several resources are several, and none is sent that was not given."""
    async with serving(_answering(b'{"access_token":"t","token_type":"Bearer","expires_in":60}')) as server:
        url = server.url.replace("ws:", "http:") + "token"
        asked = ClientCredentials(
            url, "c", "s", scope=["a.b", "c"], resource=["urn:x", "urn:y"], parameters={"token_format": "jwt"}
        )
        async with TokenRefresher(asked) as tokens:
            assert (await tokens.token()).value == "t"
    body = _bodies.pop()
    assert body == (
        b"grant_type=client_credentials&scope=a.b+c&resource=urn%3Ax&resource=urn%3Ay&token_format=jwt"
        b"&client_id=c&client_secret=s"
    )


_bodies: list[bytes] = []


def _answering(content: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> Any:
    """A server of one answer, written by hand."""

    async def handle(peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        _bodies.append(await peer.reader.readexactly(length))
        peer.writer.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sConnection: close\r\n\r\n%s"
            % (status, headers, content)
        )
        peer.writer.write_eof()
        await peer.reader.read()

    return handle


async def test_a_users_password_gets_a_token_with_and_without_a_client_secret(quick: None) -> None:
    """The resource owner's grant; a public client says who it is and has nothing to prove."""
    async with TokenServer(users={"ann": CANARY}) as server:
        asked = ResourceOwnerPassword(
            server.url, server.client_id, server.client_secret, username="ann", password=CANARY
        )
        async with TokenRefresher(asked) as tokens:
            assert server.verify((await tokens.token()).value)["user_name"] == "ann"
        await failure(ResourceOwnerPassword(server.url, "cf", username="ann", password=CANARY))
        assert server.requests[-1].way == "none"
        assert "client_id" in server.requests[-1].parameters


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/oauth/token",
        "http://127.0.0.1.example/oauth/token",
        f"https://user:{CANARY}@login.example/oauth/token",
        "https://login.example/token#x",
        "ftp://login.example/token",
        "login.example/oauth/token",
        " https://login.example/oauth/token",
        "https://login.example:99999/token",
        "https://login.example:0/token",
        "https:///token",
        "https://[x/token",
        None,
    ],
)
def test_an_unsafe_or_broken_token_url_is_refused(url: Any) -> None:
    """Also one that would carry the secret in the clear; no error quotes it."""
    with pytest.raises(ValueError, match="token_url") as caught:
        ClientCredentials(url, "c", "s")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"client_id": ""}, "client_id"),
        ({"client_secret": None}, "client_secret"),
        ({"client_secret": 7}, "client_secret"),
        ({"scope": 7}, "scope"),
        ({"scope": [""]}, "scope"),
        ({"resource": b"x"}, "resource"),
        ({"parameters": ["x"]}, "parameters"),
        ({"parameters": {"x": 1}}, "parameters"),
        ({"parameters": {"client_secret": "x"}}, "parameters"),
        ({"authentication": "post"}, "authentication"),
        ({"authentication": "raw-basic", "client_id": "a:b"}, "colon"),
        ({"authentication": ClientCertificate("c.pem")}, "one of the two"),
        (
            {"authentication": ClientCertificate("c.pem"), "client_secret": None, "token_url": "http://localhost/"},
            "https",
        ),
    ],
)
def test_a_grant_that_cannot_work_is_refused(options: dict[str, Any], text: str) -> None:
    """When it is made, and by the name of the argument."""
    with pytest.raises(ValueError, match=text):
        ClientCredentials(**{"token_url": "https://x.example/t", "client_id": "c", "client_secret": "s"} | options)


@pytest.mark.parametrize("missing", ["username", "password"])
def test_a_password_grant_needs_both_parts(missing: str) -> None:
    """An empty password is no password."""
    with pytest.raises(ValueError, match=missing):
        ResourceOwnerPassword("https://x.example/t", "c", **{"username": "u", "password": "p"} | {missing: ""})  # type: ignore[arg-type]


# --- certificates and signed assertions ------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A CA of our own."""
    return trustme.CA()


def _server_context(authority: trustme.CA, *, verify: ssl.VerifyMode = ssl.CERT_OPTIONAL) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = verify
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate in a file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def _pem(certificate: trustme.LeafCert) -> tuple[str, str]:
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    return chain.decode(), certificate.private_key_pem.bytes().decode()


async def test_a_certificate_authenticates_as_text_and_as_file_and_is_read_again_when_renewed(
    authority: trustme.CA, ca_file: Path, tmp_path: Path, quick: None
) -> None:
    """RFC 8705: client id in the body, certificate in TLS, no secret; the file of tomorrow counts tomorrow."""
    chain, key = _pem(authority.issue_cert("mtls-client", common_name="mtls-client"))
    async with TokenServer(clients={"mtls-client": None}, ssl=_server_context(authority)) as server:
        proof = ClientCertificate(chain, key)
        async with TokenRefresher(
            ClientCredentials(server.url, "mtls-client", authentication=proof), ssl=ca_file
        ) as tokens:
            server.verify((await tokens.token()).value)
        both = tmp_path / "client.pem"
        both.write_text(_pem(authority.issue_cert("somebody-else", common_name="somebody-else"))[0] + "no key yet")
        asked = ClientCredentials(server.url, "mtls-client", authentication=ClientCertificate(both))
        async with TokenRefresher(asked, ssl=ca_file) as tokens:
            with pytest.raises(TokenError, match="client certificate"):
                await tokens.token()
            assert server.request_count == 1
        both.write_text(key + chain)
        async with TokenRefresher(asked, ssl=str(ca_file)) as tokens:
            await tokens.token()
            chain_2, key_2 = _pem(authority.issue_cert("somebody-else", common_name="somebody-else"))
            both.write_text(key_2 + chain_2)
            with pytest.raises(TokenError, match="unauthorized"):
                await tokens.token(refresh=True)
        assert [request.way for request in server.requests] == ["certificate", "certificate", "none"]
        assert all(request.parameters == ("client_id", "grant_type") for request in server.requests)


async def test_a_certificate_that_cannot_be_used_says_why_and_shows_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """Missing file, key of another, encrypted key (which OpenSSL would ask the terminal about), a key for a path."""
    chain, key = _pem(authority.issue_cert("a", common_name="a"))
    other = _pem(authority.issue_cert("b", common_name="b"))[1]
    encrypted = _rsa_key(serialization.BestAvailableEncryption(b"secret"))
    cases = {
        "No such file": ClientCertificate(tmp_path / "missing.pem"),
        "mismatch": ClientCertificate(chain, other),
        "encrypted": ClientCertificate(chain, encrypted),
        "cannot be": ClientCertificate("".join(key.splitlines()[1:-1])),
    }
    for text, proof in cases.items():
        asked = ClientCredentials("https://localhost:1/token", "c", authentication=proof)
        error = await failure(asked)
        assert text in str(error)
        for secret in (key, other, encrypted):
            for line in secret.split()[4:6]:
                assert line not in "".join(traceback.format_exception(error)) + repr(asked)


def _rsa_key(encryption: serialization.KeySerializationEncryption | None = None) -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,  # PKCS#1, as SAP's bindings have it
        encryption or serialization.NoEncryption(),
    ).decode()


async def test_a_signed_assertion_authenticates_and_is_new_each_time(tmp_path: Path, quick: None) -> None:
    """RFC 7523: issuer and subject are the client, the audience the endpoint, short-lived, with an id of its own."""
    pem = _rsa_key()
    public = serialization.load_pem_private_key(pem.encode(), None).public_key()
    seen: list[dict[str, Any]] = []

    def verify(assertion: str, url: str) -> str | None:
        claims = jwt.decode(assertion, public, algorithms=["RS256"], audience=url)  # type: ignore[arg-type]
        seen.append(claims | jwt.get_unverified_header(assertion))
        return str(claims["sub"])

    path = tmp_path / "key.pem"
    path.write_text(pem)
    async with TokenServer(clients={"jwt-client": None}, verify_assertion=verify) as server:
        for key in (pem, path):
            proof = PrivateKeyJWT(key, headers={"kid": "key-1"})
            async with TokenRefresher(ClientCredentials(server.url, "jwt-client", authentication=proof)) as tokens:
                server.verify((await tokens.token()).value)
    assert [(claims["iss"], claims["kid"]) for claims in seen] == [("jwt-client", "key-1")] * 2
    assert 0 < seen[0]["exp"] - seen[0]["iat"] <= 300
    assert seen[0]["jti"] != seen[1]["jti"]


@pytest.mark.parametrize(
    "key", ["-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----", "missing.pem"]
)
async def test_an_assertion_that_cannot_be_signed_says_so(key: str) -> None:
    """The key is not quoted."""
    asked = ClientCredentials("https://localhost:1/token", "c", authentication=PrivateKeyJWT(key))
    error = await failure(asked)
    assert "private_key_jwt: the key" in str(error)
    assert "canary" not in "".join(traceback.format_exception(error)) + repr(asked)


def test_without_pyjwt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the grant is made, not hours later."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"amqpws-async\[jwt\]"):
        PrivateKeyJWT("key.pem")


@pytest.mark.parametrize("value", ["", " ", None, 7, "MIIE\nabc", "EC PRIVATE KEY MIIE"])
def test_what_is_neither_pem_nor_path_is_refused_unseen(value: Any) -> None:
    """A key without its BEGIN line must not become a path that errors quote."""
    for make in (ClientCertificate, PrivateKeyJWT):
        with pytest.raises(ValueError, match="PEM") as caught:
            make(value)
        assert "MIIE" not in str(caught.value)


def test_a_symmetric_algorithm_is_no_private_key() -> None:
    """HS256 would sign with the PEM's text."""
    with pytest.raises(ValueError, match="algorithm"):
        PrivateKeyJWT("key.pem", "HS256")


# --- answers ---------------------------------------------------------------------------------


def _answer(status: int = 200, body: bytes | None = None, **content: Any) -> Answer:
    token = {"access_token": "t", "token_type": "bearer", "expires_in": 60}
    return Answer(status, json.dumps(token | content).encode() if body is None else body, "application/json")


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (60, 60.0),
        ("60", 60.0),
        (1.5, 1.5),
        (None, DEFAULT_LIFETIME),
        (86401, MAX_LIFETIME),
        (10**400, MAX_LIFETIME),
        (float("inf"), MAX_LIFETIME),
        ("1e999", MAX_LIFETIME),
    ],
)
def test_a_lifetime_is_what_the_server_says_within_reason(expires_in: Any, lifetime: float) -> None:
    """Missing: the documented default. Absurdly long: a day. Text: some servers write it so."""
    token, found = read_token(_answer(expires_in=expires_in), Mask(()), 1000.0)
    assert (found, token.expiry) == (lifetime, 1000.0 + lifetime)


@pytest.mark.parametrize("expires_in", [0, -1, -0.0, "-5", float("-inf"), float("nan"), "soon", True, [], {}])
def test_a_token_that_is_dead_on_arrival_is_refused(expires_in: Any) -> None:
    """Zero, negative and nonsense: used, it would end in a riddle at the broker."""
    with pytest.raises(TokenError, match="expires_in"):
        read_token(_answer(expires_in=expires_in), Mask(()), 0.0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (_answer(token_type="mac"), "only bearer"),
        (_answer(token_type=7), "only bearer"),
        (_answer(access_token=""), "without an access_token"),
        (_answer(access_token=7), "without an access_token"),
        (_answer(access_token="a\r\nb"), "cannot stand in a header"),
        (_answer(body=b"[]"), "no JSON object"),
        (_answer(body=b""), "no JSON object"),
        (_answer(body=b"[" * 60000), "no JSON object"),
        (_answer(body=b'{"expires_in": ' + b"9" * 60000 + b"}"), "no JSON object"),
        (_answer(body=b"x" * (MAX_ANSWER + 1)), "longer than"),
        (Answer(200, b"<html>Log in</html>", "text/html"), "text/html.*is this the token endpoint"),
        (_answer(error="invalid_client"), "invalid_client.*check client id"),
        (Answer(400, b'{"error":"invalid_scope","error_description":"x"}'), "invalid_scope: x.*scope"),
        (Answer(404, b""), "not the token endpoint"),
        (Answer(405, b""), "not the token endpoint"),
        (Answer(403, b""), "not let in"),
        (Answer(407, b""), "proxy="),
        (Answer(418, b""), "token URL"),
        (Answer(429, b""), "wait"),
        (Answer(502, b"<html>"), "try again later"),
        (Answer(307, location="https://evil.example/t?secret=1"), r"redirect to 'https://evil.example/t'"),
    ],
)
def test_an_answer_without_a_usable_token_says_what_to_do(answer: Answer, text: str) -> None:
    """Each with its own hint."""
    with pytest.raises(TokenError, match=text):
        read_token(answer, Mask(()), 0.0)


def test_a_byte_order_mark_and_a_missing_type_are_forgiven() -> None:
    """Servers do both."""
    token, _ = read_token(Answer(200, b'\xef\xbb\xbf{"access_token":"t"}'), Mask(()), 0.0)
    assert token.value == "t"


@given(st.integers(100, 599), st.binary(max_size=200), st.text(max_size=50))
def test_no_answer_whatever_crashes_the_reader(status: int, body: bytes, text: str) -> None:
    """A token or a TokenError, for random bytes, and for random JSON."""
    fields = ("access_token", "token_type", "expires_in", "error", "error_description")
    for content in (body, json.dumps(dict.fromkeys(fields, text)).encode(), json.dumps({"error": [text]}).encode()):
        answer = Answer(status, content, text, text, text)
        assert answer.delay(0.0) >= 0.0
        with contextlib.suppress(TokenError):
            assert read_token(answer, Mask((text,)), 0.0)[0].value == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("9" * 400, 999999999.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:01:40", 90.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("-7", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("²", 0.0),
        ("Thu, 01 Jan 99999 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    """Anything else is as if it were not there."""
    assert Answer(503, retry_after=text).delay(10.0) == seconds


# --- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int, quick: None) -> None:
    """The secret would go along with a 307; the error names the place without its query."""
    async with TokenServer() as elsewhere, TokenServer() as server:
        place = f"{elsewhere.url}?code=canary"
        server.answer = TokenAnswer(status, b"", {"Location": place})
        error = await failure(grant(server))
        assert elsewhere.request_count == 0
        assert elsewhere.url in str(error)
        assert "canary" not in str(error)


@pytest.mark.parametrize("headers", [b"", b"Content-Encoding: gzip\r\n"])
async def test_an_endless_answer_is_cut_off(headers: bytes, quick: None) -> None:
    """64 KiB are read, not 64 MiB; a compressed one is not unpacked."""
    sent = 0

    async def pour(peer: Peer) -> None:
        nonlocal sent
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + headers + b"\r\n")
        for _ in range(1024):
            peer.writer.write(bytes(65536))
            sent += 65536
            await peer.writer.drain()

    async with serving(pour) as server:
        error = await failure(ClientCredentials(server.url.replace("ws:", "http:"), "c", "s"))
        assert "longer than 65536 bytes" in str(error)
    assert sent < 2**25


async def test_a_slow_answer_is_given_up(quick: None) -> None:
    """Also one that trickles: the limit is for all of it."""

    async def trickle(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            peer.writer.write(b" ")
            await peer.writer.drain()
            await asyncio.sleep(0.05)

    async with serving(trickle) as server:
        error = await failure(ClientCredentials(server.url.replace("ws:", "http:"), "c", "s"), timeout=0.3)
        assert "within 0.3 s" in str(error)


async def test_network_failures_say_what_and_where(authority: trustme.CA, ca_file: Path, quick: None) -> None:
    """Nobody there, no HTTP, no answer, no trust, no TLS."""

    async def hang_up(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")

    async def babble(peer: Peer) -> None:
        await peer.reader.read(1)
        peer.writer.write(b"AMQP\x00\x01\x00\x00" * 10)
        await peer.writer.drain()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = await failure(ClientCredentials(f"http://127.0.0.1:{free.getsockname()[1]}/t", "c", CANARY))
        assert "cannot be reached" in str(error)
    for handler, text in ((hang_up, "without an answer"), (babble, "no HTTP")):
        async with serving(handler) as peer:
            url = peer.url.replace("ws:", "http:")
            assert text in str(await failure(ClientCredentials(url, "c", CANARY)))
            if handler is babble:
                error = await failure(ClientCredentials(url.replace("http:", "https:"), "c", CANARY))
                assert "TLS failed" in str(error)
    # In debug mode asyncio reports a client that breaks the TLS handshake off, as ours must.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with TokenServer(ssl=_server_context(authority)) as server:
        assert "ssl='ca.pem'" in str(await failure(grant(server)))
        async with TokenRefresher(grant(server), ssl=ca_file) as tokens:
            await tokens.token()
        async with TokenRefresher(grant(server), ssl=ssl.create_default_context(cafile=ca_file)) as tokens:
            await tokens.token()


@pytest.mark.parametrize("answer", [b"200 OK", b"407 Proxy Authentication Required", b"403 Forbidden"])
async def test_requests_go_through_the_proxy_with_its_credentials_alone(
    answer: bytes, authority: trustme.CA, ca_file: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """CONNECT with the proxy's user, never with the client's; a refusal is the proxy's, and shows no password."""
    caplog.set_level(logging.DEBUG)
    heads: list[bytes] = []
    async with TokenServer(ssl=_server_context(authority)) as server:

        async def proxy(peer: Peer) -> None:
            heads.append(await peer.reader.readuntil(b"\r\n\r\n"))
            peer.writer.write(b"HTTP/1.1 " + answer + b"\r\n\r\n")
            if answer.startswith(b"200"):
                await _relay(peer, server.port)

        async with serving(proxy) as listening:
            way = f"http://user:p%40ss-canary@127.0.0.1:{listening.port}"
            if answer.startswith(b"200"):
                async with TokenRefresher(grant(server), ssl=ca_file, proxy=way) as tokens:
                    server.verify((await tokens.token()).value)
            else:
                error = await failure(grant(server), ssl=ca_file, proxy=way)
                assert f"the proxy answered with HTTP status {answer[:3].decode()}" in str(error)
                assert "canary" not in "".join(traceback.format_exception(error))
    assert heads[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"Basic dXNlcjpwQHNzLWNhbmFyeQ==" in heads[0]
    assert "canary" not in caplog.text
    assert "dXNlcj" not in caplog.text


async def _relay(peer: Peer, port: int) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(peer.reader, writer))
            group.create_task(pump(reader, peer.writer))
    except* OSError:
        pass
    finally:
        writer.transport.abort()


async def test_a_socks_proxy_is_used_for_tokens_too(quick: None) -> None:
    """The same proxy as the broker's; the name is resolved there (socks5h)."""
    asked: list[bytes] = []
    async with TokenServer() as server:

        async def proxy(peer: Peer) -> None:
            assert await peer.reader.readexactly(3) == b"\5\1\0"
            peer.writer.write(b"\5\0")
            head = await peer.reader.readexactly(5)
            asked.append(await peer.reader.readexactly(head[4] + 2))
            peer.writer.write(b"\5\0\0\1\0\0\0\0\0\0")
            await _relay(peer, server.port)

        async with serving(proxy) as listening:
            url = server.url.replace("127.0.0.1", "localhost")
            way = f"socks5h://127.0.0.1:{listening.port}"
            async with TokenRefresher(
                ClientCredentials(url, server.client_id, server.client_secret), proxy=way
            ) as tokens:
                server.verify((await tokens.token()).value)
    assert asked[0][:-2] == b"localhost"


def test_a_route_that_is_not_safe_or_cannot_be_taken_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the constructor, before anything is sent."""
    local = ClientCredentials("http://localhost/token", "c", "s")
    mtls = ClientCredentials("https://localhost/token", "c", authentication=ClientCertificate("c.pem"))
    cases: Iterable[tuple[Grant, dict[str, Any], str]] = [
        (local, {"proxy": "http://proxy.example:3128"}, "unencrypted to the proxy"),
        (local, {"proxy": "ftp://x"}, "proxy"),
        (local, {"ssl": 7}, "ssl"),
        (local, {"ssl": tmp_path / "missing.pem"}, "cannot be read"),
        (mtls, {"ssl": ssl.create_default_context()}, "ClientCertificate"),
        (local, {"timeout": 0}, "timeout"),
        (local, {"timeout": True}, "timeout"),
        ("https://x", {}, "grant"),  # type: ignore[list-item]
    ]
    for asked, options, text in cases:
        with pytest.raises(ValueError, match=text):
            TokenRefresher(asked, **options)
    monkeypatch.setitem(sys.modules, "aiohttp_socks", None)
    with pytest.raises(ValueError, match=r"amqpws-async\[socks\]"):
        TokenRefresher(mtls, proxy="socks5://localhost:1080")


async def test_the_users_session_is_used_and_stays_open(quick: None) -> None:
    """Even one that follows redirects, raises for a status and has a short timeout of its own."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        TokenServer() as server,
        aiohttp.ClientSession(connector=connector, raise_for_status=True) as session,
    ):
        async with TokenRefresher(grant(server), session=session) as tokens:
            await tokens.token()
        assert not session.closed
        error = await failure(
            ClientCredentials(server.url, server.client_id, "no", authentication="body"), session=session
        )
        assert error.code == "unauthorized"
    assert "closed" in str(await failure(grant(server), session=session))


# --- what is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        None,
        TokenAnswer.UNAUTHORIZED,
        TokenAnswer(400, json.dumps({"error": CANARY, "error_description": f"bad\r\nsecret {CANARY}"}).encode()),
        TokenAnswer(200, json.dumps({"access_token": "x", "expires_in": CANARY}).encode()),
        TokenAnswer(200, json.dumps({"access_token": f"a {CANARY}"}).encode()),
        TokenAnswer(200, json.dumps({"access_token": "x", "token_type": CANARY}).encode()),
        TokenAnswer(200, CANARY.encode(), {"Content-Type": "text/html"}),
        TokenAnswer(307, b"", {"Location": "https://x.example/canary-9c41%24%2B%2F%3D%2541+%25y"}),
        TokenAnswer(500, CANARY.encode()),
    ],
)
@pytest.mark.parametrize("way", ["auto", "basic", "raw-basic"])
async def test_no_secret_is_ever_shown(
    way: Any, answer: TokenAnswer | None, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, through success and failure, even if the server quotes it: not in logs, reprs, errors, tracebacks."""
    caplog.set_level(logging.DEBUG)
    clients = {CLIENT: CANARY}
    async with TokenServer(clients=clients, users={"ann": f"pw-{CANARY}"}, behaviour=UAABehaviour.COMPAT) as server:
        server.answer = answer
        asked = ResourceOwnerPassword(
            f"{server.url}?key=canary-9c41",
            CLIENT,
            CANARY,
            username="ann",
            password=f"pw-{CANARY}",
            parameters={"x": f"x-{CANARY}"},
            authentication=way,
        )
        shown = [repr(asked), str(asked)]
        async with TokenRefresher(asked) as tokens:
            try:
                token: Token | None = await tokens.token()
            except TokenError as error:
                token = None
                shown += [*traceback.format_exception(error), repr(error), str(error.code), str(error.description)]
            shown += [repr(tokens), caplog.text, *(str(record.__dict__) for record in caplog.records)]
        assert (token is None) == (answer is not None)
    text = "\n".join(shown)
    secrets = ["canary", "Y2FuYXJ5", *([token.value] if token else [])]
    assert [secret for secret in secrets if secret in text] == []


# --- other providers -------------------------------------------------------------------------


async def test_any_coroutine_function_is_a_provider() -> None:
    """Text, a Token, or what azure-identity's credentials return; asked anew each time."""
    calls = 0

    def giving(value: object) -> Any:
        async def fetch() -> object:
            nonlocal calls
            calls += 1
            return value

        return fetch

    azure = SimpleNamespace(token="t", expires_on=1234)
    for value, token in (("t", Token("t")), (Token("t", 5.0), Token("t", 5.0)), (azure, Token("t", 1234))):
        provider = as_provider(CallableProvider(giving(value)))
        assert await provider.token() == token == await provider.token(refresh=True)
    assert calls == 6


@pytest.mark.parametrize("value", ["", "Bearer x", None, 7, SimpleNamespace(token=f"a {CANARY}", expires_on=1)])
async def test_what_is_no_token_is_refused_unseen(value: object) -> None:
    """A TokenError, as from any provider."""

    async def fetch() -> object:
        return value

    with pytest.raises(TokenError, match="CallableProvider") as caught:
        await CallableProvider(fetch).token()
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_what_the_function_raises_goes_through() -> None:
    """Its own errors say more than ours would."""

    async def fetch() -> str:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await CallableProvider(fetch).token()
    with pytest.raises(TypeError, match="coroutine function"):
        CallableProvider("x")  # type: ignore[arg-type]


def test_a_callable_providers_repr_shows_no_arguments() -> None:
    """A partial's own repr would."""
    from functools import partial

    async def fetch(secret: str) -> str:
        return secret

    assert CANARY not in repr(CallableProvider(partial(fetch, CANARY)))


def test_importing_auth_loads_no_http_client() -> None:
    """aiohttp takes a quarter of a second: only who asks for tokens pays."""
    program = "import sys, amqpws_async, amqpws_async.auth; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
