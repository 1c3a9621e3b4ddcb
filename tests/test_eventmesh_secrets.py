"""Nothing of a service key that is secret is ever shown, whatever goes wrong between the key and the messages.

Client secrets in all their spellings, access tokens, private keys and Authorization values are looked for in all that
is said by any way: log records at DEBUG with asyncio's debug mode, the frame trace, the repr of every public object,
errors with all that hangs on them, and what ``amqpws doctor`` prints. The servers here are hostile: they quote what
they were sent, in every place that an answer has.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import datetime
import gc
import html
import json
import logging
import os
import pprint
import re
import ssl
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cloudevents.core.v1.event import CloudEvent

import amqpws_async as amqp
from amqpws_async import eventmesh
from amqpws_async.auth import Anonymous, Plain, StaticToken, Token, oauth2
from amqpws_async.auth.adapters import CallableProvider
from amqpws_async.auth.oauth2 import (
    ClientCertificate,
    ClientCredentials,
    PrivateKeyJWT,
    ResourceOwnerPassword,
    TokenRefresher,
)
from amqpws_async.eventmesh import ServiceKey, ServiceKeyError, cloudevents
from amqpws_async.eventmesh.management import ManagementClient, ManagementError
from amqpws_async.testing import EventMesh, TokenAnswer

from .cli_command import COMMAND, TIMEOUT
from .key_files import KEYS, load
from .test_secrets import Everything
from .websocket_peer import Peer, serving

QUEUE = "queue:${namespace}/orders"
TOPIC = "topic:${namespace}/order/created"
CANARY = "canary-9c41$+/=%41 y"
CORE = "canary-9c41"  # in every spelling of it


# --- what listens --------------------------------------------------------------------------------


class Listener(Everything):
    """All that was said, and what must not be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def guard(self, *secrets: str) -> None:
        """Adds texts that nobody may see."""
        assert all(len(secret) > 8 for secret in secrets)
        self.secrets.update(secrets)

    def guard_client(self, client_id: str, secret: str) -> None:
        """Adds a client secret and what it looks like on the way."""
        quoted = f"{urllib.parse.quote_plus(client_id)}:{urllib.parse.quote_plus(secret)}"
        basics = [base64.b64encode(pair.encode()).decode() for pair in (f"{client_id}:{secret}", quoted)]
        json_text = json.dumps(secret)[1:-1]
        # The beginning is letters and digits, the same in each spelling, and in a part of one.
        self.guard(secret, secret[:11], urllib.parse.quote(secret), urllib.parse.quote_plus(secret), json_text)
        self.guard(*basics, *(basic[-32:-4] for basic in basics))

    def guard_token(self, token: str) -> None:
        """Adds a token, and what of it is worth as much: the first part of it ends in the signature."""
        self.guard(token, token.rpartition(".")[2][:16])

    def guard_private_key(self, pem: str) -> None:
        """Adds each line of a private key."""
        self.guard(*(line for line in pem.splitlines() if line and "---" not in line))

    def say(self, *things: object) -> None:
        """Adds what these things show, and what their public attributes show."""
        super().say(*things)
        for thing in things:
            self.lines += [f"{thing}", pprint.pformat(thing)]
            for name in dir(type(thing)):
                with contextlib.suppress(Exception):
                    value = None if name.startswith("_") else getattr(thing, name)
                    if not (isinstance(value, (str, dict, list)) and name in _SECRET_BY_NATURE):
                        self.lines.append(repr(value))

    def error(self, error: BaseException) -> None:
        """Adds an error with all that hangs on it: causes, contexts, members of a group, attributes and theirs."""
        seen: list[object] = []
        todo: list[object] = [error]
        while todo:
            each = todo.pop()
            if any(each is other for other in seen):
                continue
            seen.append(each)
            self.lines += [repr(each), str(each)]
            if isinstance(each, BaseException):
                super().error(each)
                todo += [each.__cause__, each.__context__, *getattr(each, "__notes__", ())]
                todo += getattr(each, "exceptions", ())
            if isinstance(each, (BaseException, amqp.StopReason)) or "aiohttp" in type(each).__module__:
                names = (name for name in dir(each) if not name.startswith("_"))
                for name in names:
                    with contextlib.suppress(Exception):
                        todo.append(getattr(each, name))

    def printed(self, error: BaseException) -> None:
        """Adds an error as it is printed: what hides behind it, such as a parser's own error, has the data."""
        self.lines += [*traceback.format_exception(error), repr(error), str(error), repr(vars(error))]

    def found(self) -> list[str]:
        """Lines with a secret in them."""
        return [line for line in self.lines if any(secret in line for secret in self.secrets)]


_SECRET_BY_NATURE = {"value", "client_secret", "password", "parameters", "headers", "key", "certificate"}
"""Attributes that are there to hold a secret: what is tested is that the object does not show them by itself."""


def _records(said: Listener, records: list[logging.LogRecord]) -> None:
    """Adds all that a handler could make of these records: also what came as ``extra``."""
    formatter = logging.Formatter("%(message)s")
    for record in records:
        said.lines += [record.getMessage(), formatter.format(record), *map(repr, vars(record).values())]
        if record.exc_info and record.exc_info[1] is not None:
            said.error(record.exc_info[1])
        for argument in record.args or () if isinstance(record.args, tuple) else ():
            if isinstance(argument, BaseException):
                said.error(argument)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Listener]:
    """Collects what is said anywhere, and fails if there is a secret in it."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    listener = Listener()
    try:
        with caplog.at_level(logging.DEBUG):
            yield listener
            gc.collect()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    _records(listener, caplog.get_records("call"))
    captured = capfd.readouterr()
    listener.lines += [captured.out, captured.err]
    assert listener.secrets, "nothing was guarded"
    assert len(listener.lines) > 5
    for line in listener.found():
        pytest.fail(f"a secret is shown: {line[:1500]}")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No binding and no proxy of whoever runs the tests; requests may follow each other at once."""
    for name in ("VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH", "SERVICE_BINDING_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(oauth2, "_MIN_INTERVAL", 0.001)


@contextlib.asynccontextmanager
async def guarded(said: Listener, *, debug: bool = False, **options: Any) -> AsyncIterator[EventMesh]:
    """An Event Mesh all of whose secrets are guarded, the tokens that it will make too.

    Args:
        said: Where they are guarded.
        debug: Whether asyncio logs every step of each task, with its arguments.
        **options: Of the Event Mesh.
    """
    loop = asyncio.get_running_loop()
    was_debug = loop.get_debug()
    if debug:
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
    async with EventMesh(**options) as mesh:
        key = mesh.service_key()
        oa2 = key["messaging"][0]["oa2"]
        if "clientsecret" in oa2:
            said.guard_client(oa2["clientid"], oa2["clientsecret"])
        if "key" in key.get("uaa", {}):
            said.guard_private_key(key["uaa"]["key"])
        make = mesh.token_server.make_token

        def recording(*args: Any, **kwargs: Any) -> str:
            token = make(*args, **kwargs)
            said.guard_token(token)
            return token

        mesh.token_server.make_token = recording  # type: ignore[method-assign]
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
        said.say(mesh, mesh.token_server, mesh.broker, mesh.management)
        try:
            yield mesh
        finally:
            loop.set_debug(was_debug)  # in debug mode a server's refused TLS handshake is an error of the loop
        said.say(mesh, *mesh.token_server.requests)


def chosen(said: Listener, mesh: EventMesh, **more: Any) -> dict[str, Any]:
    """Options with the trace switched on, and a deadline."""
    return {"ssl": mesh.ssl, "trace": said.lines.append, "open_timeout": 5.0, "close_timeout": 0.5} | more


async def refused(said: Listener, key: Any, **options: Any) -> BaseException:
    """The error that `eventmesh.connect` ends with, all of it said."""
    with pytest.raises((amqp.AMQPError, TimeoutError, ValueError, OSError)) as caught:
        await eventmesh.connect(key, **options)
    said.error(caught.value)
    return caught.value


# --- where all is well ---------------------------------------------------------------------------


@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_the_whole_way_shows_a_secret(said: Listener, x509: bool, tmp_path: Path) -> None:
    """Token, upgrade, sending, receiving and managing show none, nor does any object that takes part."""
    async with guarded(said, debug=True, x509=x509) as mesh:
        key = ServiceKey.load(mesh.service_key())
        trusting = tmp_path / "ca.pem"
        trusting.write_text(mesh.ca_pem)
        said.say(key, key.messaging, key.management, key.messaging.grant, key.certificate)
        async with eventmesh.connect(key, **chosen(said, mesh, ssl=trusting)) as connected:
            said.say(connected, connected.tokens, connected.connection, connected.connection.options)
            for qos in (0, 1):
                async with (
                    connected.sender(TOPIC, qos=qos) as sender,
                    connected.receiver(QUEUE, qos=qos) as receiver,
                ):
                    event = CloudEvent({"type": "a.b.v1", "source": "/s"}, {"order": 1})
                    await sender.send(cloudevents.to_message(event))
                    delivery = await receiver.receive()
                    said.say(sender, receiver, delivery, delivery.message, cloudevents.from_message(delivery.message))
                    if qos:
                        await delivery.accept()
            said.lines += [repr(task) for task in asyncio.all_tasks()]
            said.say(await connected.tokens.token(), await connected.tokens.token(refresh=True))
        async with ManagementClient(key, ssl=trusting) as management:
            said.say(management, await management.queues(), await management.queue(QUEUE))
            said.lines += [repr(task) for task in asyncio.all_tasks()]
        said.say(connected, connected.tokens, management)
        assert mesh.token_server.token_count == 3
        assert len(said.secrets) > 6


@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_a_client_that_survives_shows_a_secret(said: Listener, x509: bool, tmp_path: Path) -> None:
    """Nor while it is lost, cannot read its key, gets another token, moves, and is refused for good at last."""
    async with guarded(said, debug=True, x509=x509) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        content = await asyncio.to_thread(key.read_text)
        backoff = amqp.Backoff(initial=0.01, maximum=0.05)
        options = chosen(said, mesh, ssl=ca, backoff=backoff, on_state=said.say)
        async with eventmesh.client(key, **options) as survivor:
            access = survivor._access
            said.say(survivor, survivor.client, survivor.client.options, survivor.health(), survivor.states())
            said.say(access, access.key, access.tokens, access._source)
            async with survivor.sender(TOPIC, on_unknown="resend") as sender, survivor.receiver(QUEUE) as receiver:
                pending = await sender.transfer(cloudevents.to_message(CloudEvent({"type": "a", "source": "/s"}, {})))
                said.say(sender, receiver, pending, await pending, await receiver.receive())
                await asyncio.to_thread(key.write_text, content[: len(content) // 2])
                await mesh.disconnect()
                await receiver.receive()
                await asyncio.to_thread(key.write_text, content)
                mesh.token_server.revoke_all()
                await mesh.disconnect()
                await receiver.receive()
                await survivor.client.roll_over()
                said.lines += [repr(task) for task in asyncio.all_tasks()]
                mesh.token_server.answer = TokenAnswer(401, b'{"error":"invalid_client"}')
                mesh.token_server.revoke_all()
                await mesh.disconnect()
                with pytest.raises(amqp.ConnectionClosed) as caught:
                    while True:
                        await receiver.receive()
                said.error(caught.value)
            said.say(survivor.health(), survivor.client.stop, survivor)


def test_objects_that_hold_secrets_show_them(said: Listener) -> None:
    """Not one of those in eventmesh and auth does, by repr, str, format, pprint, nor inside another object."""
    said.guard(CORE)
    pem = f"-----BEGIN PRIVATE KEY-----\n{CORE}\n-----END PRIVATE KEY-----\n"
    certificate = ClientCertificate(pem, pem)
    url = f"https://login.example/oauth/token?key={CORE}"
    token = Token(CORE)
    grants = [
        ClientCredentials(url, "id", CANARY, parameters={"assertion": CANARY}),
        ClientCredentials(url, "id", authentication=certificate),
        ClientCredentials(url, "id", authentication=PrivateKeyJWT(pem, headers={"x": CANARY})),
        ResourceOwnerPassword(url, "id", CANARY, username="u", password=CANARY),
    ]
    said.say(*grants, certificate, PrivateKeyJWT(pem), token, StaticToken(token), StaticToken(CORE))
    said.say(Plain("user", CANARY), Anonymous())
    said.say(*(TokenRefresher(grant, proxy=f"https://user:{CORE}@proxy.example:3128") for grant in grants))
    said.say({"grants": grants, "tokens": [token, CallableProvider(lambda: asyncio.sleep(0, CORE))]})
    for name in KEYS:
        forms = load(name, client_secret=CANARY, management_client_secret=CANARY, key=pem, certificate=pem)
        key = ServiceKey.load(forms)
        said.say(key, key.messaging, key.management, key.certificate, ManagementClient(key), ManagementClient(forms))
        said.say(eventmesh.connect(key), eventmesh.connect(forms))
        for copied in (copy.copy, copy.deepcopy):
            with contextlib.suppress(TypeError):
                said.say(copied(key))


# --- keys that cannot be used ----------------------------------------------------------------------

_WRONG: list[Any] = [
    None,
    "",
    7,
    True,
    [],
    {},
    [CANARY],
    [[CANARY]],
    {CANARY: CANARY},
    [{"a": CANARY}],
    CANARY,
    f"{CANARY}\ud800",
    f"{CANARY}\r\nX: y",
    f"wss://user:{CORE}@host.example/",
    f"https://user:{CORE}@host.example/",
    f"https://host.example:99999/{CORE}",
    f"https://host.example/?key={CORE}",
    f"https://host.example/#{CORE}",
    f"http://host.example/{CORE}",
    f"ftp://{CORE}/",
    f"https://[{CORE}/",
    f"https://{CORE} x/",
    f"-----BEGIN PRIVATE KEY-----\n{CORE}\n-----END PRIVATE KEY-----\n",
    f"/no/such/{CORE}",
]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a key."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _leaves(item, (*path, name))


def _changed(key: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(key)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", ["own-management-client", "x509-in-uaa", "x509-at-root", "vcap-services"])
def test_a_key_with_a_wrong_field_shows_a_secret(said: Listener, name: str) -> None:
    """Whatever stands wherever: the complaint, and all that hangs on it, tells the place and not the value."""
    said.guard(CORE)
    pem = f"-----BEGIN PRIVATE KEY-----\n{CORE}\n-----END PRIVATE KEY-----\n"
    key = load(name, client_secret=CANARY, management_client_secret=CANARY, key=pem)
    complaints = 0
    for path in _leaves(key):
        for wrong in _WRONG:
            if _public(path):
                continue
            try:
                loaded = ServiceKey.load(_changed(key, path, wrong))
            except ServiceKeyError as error:
                said.error(error)
                complaints += 1
            else:
                said.lines.append(repr(loaded))
        if said.found():
            return  # the fixture shows it
    assert complaints > 50


_PUBLIC = {"namespace", "serviceinstanceid", "instanceid", "clientid", "name", "binding_name", "instance_name", "label"}


def _public(path: tuple[Any, ...]) -> bool:
    """Whether what stands there is no secret by nature, and may be shown: names, and the place of a server."""
    return str(path[-1]).lower().replace("-", "").replace("_", "") in {
        *(name.replace("_", "") for name in _PUBLIC),
    }


def test_a_text_that_is_no_key_shows_a_secret(said: Listener, tmp_path: Path) -> None:
    """Cut off anywhere, in the wrong encoding, given in the wrong place: neither the text nor what is in it."""
    said.guard(CORE)
    text = json.dumps(load("standalone", client_secret=CANARY))
    texts: list[Any] = [text[:end] for end in range(1, len(text), 37)]
    texts += [f"\ufeff{text}x", f"[{text}]", f"({text}", text.replace('"', "'"), f"x={text}", f'"{CORE}"']
    texts += [text.encode(), [text], 7, ("a", text)]
    for number, broken in enumerate(texts):
        with pytest.raises((ServiceKeyError, TypeError)) as caught:
            ServiceKey.load(broken)
        said.error(caught.value)
        if not isinstance(broken, str):
            continue
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            file = tmp_path / f"{number}-{encoding}.json"
            file.write_bytes(broken.encode(encoding))
            for environ in ({}, {"VCAP_SERVICES_FILE_PATH": str(file)}, {"VCAP_SERVICES": broken}):
                with pytest.raises(ServiceKeyError) as found:
                    if environ:
                        ServiceKey.from_environment(environ=environ, mount=tmp_path / "none")
                    else:
                        ServiceKey.load(file)
                said.error(found.value)
    for raw in (b"\xff" + text.encode(), text.encode() + b"\xff", text.encode("latin-1") + b"\0"):
        (tmp_path / "raw.json").write_bytes(raw)
        with pytest.raises(ServiceKeyError) as found:
            ServiceKey.load(tmp_path / "raw.json")
        said.error(found.value)


@pytest.mark.parametrize("metadata", [False, True])
def test_a_folder_that_is_no_binding_shows_a_secret(said: Listener, tmp_path: Path, metadata: bool) -> None:
    """Nor do files of a mounted binding that say nonsense."""
    said.guard(CORE)
    key = load("standalone", client_secret=CANARY)
    folder = tmp_path / "root" / "mesh"
    folder.mkdir(parents=True)
    environ = {"SERVICE_BINDING_ROOT": str(tmp_path / "root")}
    described = [{"name": name, "format": "json"} for name in ("messaging", "management")]
    if metadata:
        described += [{"name": "namespace", "format": "text"}]
        content = {
            "metaDataProperties": [{"name": "type", "format": "text"}],
            "credentialProperties": described,
        }
        (folder / ".metadata").write_text(json.dumps(content))
    (folder / "type").write_text("enterprise-messaging")
    (folder / "namespace").write_text(key["namespace"])
    messaging = json.dumps(key["messaging"])
    loaded = 0
    for wrong in (messaging, messaging[:-5], messaging[20:], CANARY, f"[{CANARY}]", f'"{CANARY}"', f'["{CANARY}"]'):
        for name in ("messaging", "management", ".metadata"):
            if name == ".metadata" and not metadata:
                continue
            for each in ("messaging", "management"):
                (folder / each).write_text(json.dumps(key[each]))
            before = (folder / name).read_text()
            (folder / name).write_text(wrong)
            try:
                said.say(ServiceKey.from_environment(environ=environ, mount=tmp_path / "none"))
                loaded += 1
            except ServiceKeyError as error:
                said.error(error)
            (folder / name).write_text(before)
    assert loaded


async def test_wrong_arguments_show_a_secret(said: Listener, tmp_path: Path) -> None:
    """Nor do options that `eventmesh.connect` and `ManagementClient` refuse, with secrets in the wrong places."""
    async with guarded(said, tls=False) as mesh:
        said.guard(CORE)
        key = mesh.service_key()
        wrong: list[dict[str, Any]] = [
            {"token": f"Bearer {CORE}"},
            {"token": f"{CORE}\r\n"},
            {"headers": {"Authorization": f"Bearer {CORE}"}},
            {"headers": {"X-Key": f"{CORE}\n"}},
            {"proxy": f"ftp://user:{CORE}@proxy.example"},
            {"proxy": f"http://user:{CORE}@127.0.0.1:1"},
            {"ssl": tmp_path / "none.pem"},
            {"certificate": ClientCertificate(tmp_path / "none.pem", tmp_path / "none.key")},
            {"binding": "no-such"},
        ]
        for options in wrong:
            with pytest.raises((amqp.AMQPError, ValueError, OSError)) as caught:
                await eventmesh.connect(key, **options)
            said.error(caught.value)
            if options.keys() & {"headers"}:
                continue
            with pytest.raises((amqp.AMQPError, ValueError, OSError)) as caught:
                async with ManagementClient(key, **options) as management:
                    await management.queues()
            said.error(caught.value)
        for address in (f"orders-{CORE}?", CORE):
            async with eventmesh.connect(key) as connected:
                with pytest.raises(ValueError, match="address"):
                    connected.sender(address)  # an address is no secret: this only must not raise anything else
        for argument in (7, [CANARY], CANARY.encode()):
            with pytest.raises(TypeError) as bad:
                await eventmesh.connect(argument)  # type: ignore[arg-type]
            said.error(bad.value)


# --- the token endpoint ------------------------------------------------------------------------------

_JSON = {"Content-Type": "application/json"}


def _quoting(status: int, content: Any, headers: dict[str, str] | None = None) -> Callable[[str], TokenAnswer]:
    """An answer with what was sent in it."""

    def answer(sent: str) -> TokenAnswer:
        body = content if isinstance(content, str) else json.dumps(content)
        inner = json.dumps(sent)[1:-1] if not isinstance(content, str) else sent
        made = {name: value.replace("{sent}", sent) for name, value in (headers or _JSON).items()}
        return TokenAnswer(status, body.replace("{sent}", inner).encode("utf-8", "replace"), made)

    return answer


_TOKEN_ANSWERS: dict[str, Callable[[str], TokenAnswer]] = {
    "401": _quoting(401, {"error": "unauthorized", "error_description": "Bad credentials {sent}"}),
    "401-code": _quoting(401, {"error": "{sent}", "error_description": "no"}),
    "401-page": _quoting(401, "<html>{sent}</html>", {"Content-Type": "text/html"}),
    "400-scope": _quoting(400, {"error": "invalid_scope", "error_description": "{sent}"}),
    "500": _quoting(500, "<html>{sent}</html>", {"Content-Type": "text/html; x={sent}"}),
    "503": _quoting(503, "{sent}", {"Retry-After": "{sent}"}),
    "page": _quoting(200, "<html>{sent}</html>", {"Content-Type": "text/html; charset={sent}"}),
    "garbage": _quoting(200, '{"access_token": "{sent}', _JSON),
    "type": _quoting(200, {"access_token": "x", "token_type": "{sent}"}),
    "life": _quoting(200, {"access_token": "x", "token_type": "bearer", "expires_in": "{sent}"}),
    "not-a-token": _quoting(200, {"access_token": "{sent} \r\n", "token_type": "bearer"}),
    "long": _quoting(200, {"access_token": "{sent}", "more": "x" * 70000}),
    "redirect-path": _quoting(302, "{sent}", {"Location": "https://elsewhere.example/{sent}"}),
    "redirect-query": _quoting(307, "{sent}", {"Location": "https://elsewhere.example/?a={sent}"}),
    "redirect-user": _quoting(308, "{sent}", {"Location": "https://u:{sent}@elsewhere.example/"}),
    "redirect-host": _quoting(301, "{sent}", {"Location": "//{sent}/"}),
}


@pytest.mark.parametrize("answer", _TOKEN_ANSWERS)
@pytest.mark.parametrize("way", ["body", "basic", "raw-basic"])
async def test_a_token_endpoint_that_quotes_us_shows_a_secret(said: Listener, answer: str, way: str) -> None:
    """Nor do answers of any kind, with the secret in whatever spelling it was sent, in whatever place they have."""
    async with guarded(said, tls=False) as mesh:
        key = mesh.service_key()
        client, secret = mesh.token_server.client_id, mesh.token_server.client_secret
        pair = f"{client}:{secret}"
        if way == "basic":
            pair = f"{urllib.parse.quote_plus(client)}:{urllib.parse.quote_plus(secret)}"
        spellings = [base64.b64encode(pair.encode()).decode()]
        if way == "body":
            spellings = [secret, urllib.parse.quote_plus(secret)]
        for spelling in spellings:
            mesh.token_server.answer = _TOKEN_ANSWERS[answer](spelling)
            grant = ClientCredentials(mesh.token_url, client, secret, authentication=way)  # type: ignore[arg-type]
            async with TokenRefresher(grant) as tokens:
                with pytest.raises(amqp.TokenError) as caught:
                    await tokens.token()
                said.error(caught.value)
                said.say(tokens)
            if way == "body":
                assert isinstance(await refused(said, key, **chosen(said, mesh)), amqp.TokenError)
        assert mesh.token_server.request_count >= 1


@pytest.mark.parametrize(
    "spelling",
    [
        urllib.parse.quote,
        lambda secret: re.sub("%..", lambda match: match[0].lower(), urllib.parse.quote_plus(secret)),
        lambda secret: json.dumps(json.dumps(secret))[1:-1],
        html.escape,
        repr,
    ],
    ids=["percent", "lower", "json", "html", "repr"],
)
async def test_a_secret_in_another_spelling_is_shown(said: Listener, spelling: Callable[[str], str]) -> None:
    """Nor is one that the server has decoded and written down in a way of its own."""
    async with guarded(said, tls=False) as mesh:
        spelled = spelling(mesh.token_server.client_secret)
        content = {"error": "unauthorized", "error_description": f"no client with {spelled}"}
        mesh.token_server.answer = TokenAnswer(401, json.dumps(content).encode())
        error = await refused(said, mesh.service_key(), **chosen(said, mesh))
        assert isinstance(error, amqp.TokenError)
        assert error.description is not None


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage {basic}\r\n\r\n",
        b"HTTP/1.1 {basic} x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n{basic}\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: {basic}\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{basic}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{basic}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: {basic}\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000 + b"{basic}\r\n\r\n",
        b"",
    ],
    ids=range(9),
)
async def test_a_token_endpoint_that_is_no_http_shows_a_secret(said: Listener, answer: bytes) -> None:
    """Nor does nonsense in place of HTTP, and what aiohttp says about it; its errors carry the request's headers."""
    client, secret = "sb-app!b1|x", f"{CANARY}-and-more"
    said.guard_client(client, secret)
    basics: list[str] = []

    async def handle(peer: Peer) -> None:
        head = (await peer.reader.readuntil(b"\r\n\r\n")).decode()
        peer.request = head
        basic = peer.headers["authorization"].partition(" ")[2]
        basics.append(basic)
        peer.writer.write(answer.replace(b"{basic}", basic.encode()))
        await peer.writer.drain()

    async with serving(handle) as server:
        url = server.url.replace("ws:", "http:")
        grant = ClientCredentials(url, client, secret, authentication="basic")
        async with TokenRefresher(grant, timeout=2.0) as tokens:
            with pytest.raises(amqp.TokenError) as caught:
                await tokens.token()
            said.error(caught.value)
            said.say(tokens)
    assert basics
    assert basics[0] in said.secrets


async def test_a_slow_token_endpoint_shows_a_secret(said: Listener) -> None:
    """Nor does the end of patience, of a connection and of a request."""
    async with guarded(said, tls=False) as mesh:
        mesh.token_server.answer = TokenAnswer.SLOW
        error = await refused(said, mesh.service_key(), **chosen(said, mesh, open_timeout=0.1))
        assert isinstance(error, TimeoutError)
        grant = ServiceKey.load(mesh.service_key()).messaging.grant
        assert grant is not None
        async with TokenRefresher(grant, timeout=0.1) as tokens:
            with pytest.raises(amqp.TokenError) as caught:
                await tokens.token()
            said.error(caught.value)
        assert mesh.token_server.request_count == 2


# --- the upgrade -----------------------------------------------------------------------------------------

_BODY = "{token} Authorization: Bearer {token}"
_UPGRADES: dict[str, str] = {
    "200": "200 OK\r\n",
    "301": "301 Moved Permanently\r\nLocation: wss://elsewhere.example/{token}/{token}?t={token}#{token}\r\n",
    "302": "302 Found\r\nLocation: //u:{token}@elsewhere.example/{token}\r\n",
    "303": "303 See Other\r\nLocation: http://{token}.example/\r\n",
    "307": "307 Temporary Redirect\r\nLocation: gopher://{token}/{token}\r\n",
    "308": "308 Permanent Redirect\r\nLocation: https://127.0.0.1:99999/{token}\r\n",
    "400": "400 Bad Request\r\nX-Echo: {token}\r\n",
    "401": '401 {token}\r\nWWW-Authenticate: Bearer error="invalid_token", error_description="{token}"\r\n',
    "403": "403 Forbidden {token}\r\nSet-Cookie: session={token}\r\n",
    "404": "404 Not Found\r\n{token}: {token}\r\n",
    "500": "500 {token}\r\nServer: {token}\r\n",
    "no-status": "{token} {token}\r\n",
    "no-header": "403 No\r\n{token}\r\n",
    "accept": "101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {token}\r\n",
    "connection": "101 Switching Protocols\r\nUpgrade: {token}\r\nConnection: {token}\r\n",
    "subprotocol": "101 {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    "Sec-WebSocket-Protocol: {token}\r\n",
    "extension": "101 {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    "Sec-WebSocket-Protocol: amqp\r\nSec-WebSocket-Extensions: {token}; {token}={token}\r\n",
}


@pytest.mark.parametrize("answer", _UPGRADES)
async def test_an_upgrade_that_quotes_the_token_shows_it(said: Listener, answer: str) -> None:
    """Nor do answers with the token in status line, headers and body, nor what websockets says about them."""
    seen: list[str] = []

    async def handle(peer: Peer) -> None:
        await peer.read_request()
        token = peer.headers["authorization"].partition(" ")[2]
        seen.append(token)
        accept = peer.switching().decode().partition("Sec-WebSocket-Accept: ")[2].partition("\r\n")[0]
        head = "HTTP/1.1 " + _UPGRADES[answer].replace("{token}", token).replace("{accept}", accept)
        body = _BODY.replace("{token}", token)
        peer.writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await peer.writer.drain()

    async with guarded(said, tls=False) as mesh, serving(handle) as server:
        key = mesh.service_key()
        key["messaging"][0]["uri"] = f"{server.url}protocols/amqp10ws"
        error = await refused(said, key, **chosen(said, mesh))
        assert isinstance(error, amqp.OpenError)
        assert set(seen) <= said.secrets
        assert len(seen) == (2 if answer == "401" else 1)  # once more with a new token


@pytest.mark.parametrize("place", ["body", "challenge", "location"])
async def test_a_token_cut_off_in_the_middle_shows_its_beginning(said: Listener, place: str) -> None:
    """Nor is a part of the token left where a text is cut off within it: first masked, then cut."""
    token = "canary-" + "t0k3n-" * 20
    said.guard(token[:40])

    async def handle(peer: Peer) -> None:
        await peer.read_request()
        assert token in peer.headers["authorization"]
        pads = {"body": 4096, "challenge": 300, "location": 200}
        lines = {name: "p" * (pads[name] - 60) for name in pads}
        body = lines["body"] + token if place == "body" else ""
        status, header = "403 Forbidden", "X: y"
        if place == "challenge":
            status, header = "401 No", f"WWW-Authenticate: {lines['challenge']}{token}"
        elif place == "location":
            status, header = "307 Go", f"Location: wss://elsewhere.example/{lines['location'][40:]}{token}"
        head = f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        peer.writer.write((head + body).encode())
        await peer.writer.drain()

    async with serving(handle) as server:
        key = load("standalone", url=f"{server.url}protocols/amqp10ws")
        error = await refused(said, key, token=token)
        assert isinstance(error, amqp.HandshakeError)


# --- TLS and certificates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("x509", [False, True], ids=["secret", "x509"])
async def test_a_server_that_is_not_trusted_shows_a_secret(said: Listener, x509: bool) -> None:
    """Nor does a private CA that nobody gave, or a port that does not speak TLS; neither gets anything either."""
    async with guarded(said, x509=x509) as mesh, EventMesh(tls=False) as unencrypted:
        key = mesh.service_key()
        for context in (None, *(() if x509 else (ssl.create_default_context(),))):
            error = await refused(said, key, **chosen(said, mesh, ssl=context))
            assert isinstance(error, amqp.TokenError)
            token = mesh.token_server.make_token()
            error = await refused(said, key, **chosen(said, mesh, ssl=context, token=token))
            assert isinstance(error, amqp.OpenError)
            for management in (ManagementClient(key, ssl=context), ManagementClient(key, ssl=context, token=token)):
                with pytest.raises((amqp.TokenError, ManagementError)) as caught:
                    async with management:
                        await management.queues()
                said.error(caught.value)
        assert mesh.token_server.request_count == mesh.management.request_count == 0
        key["messaging"][0]["uri"] = unencrypted.url.replace("ws:", "wss:")
        if not x509:
            error = await refused(said, key, **chosen(said, mesh))
            assert isinstance(error, amqp.OpenError)
        assert mesh.broker.statistics().connections_total == 0


@contextlib.asynccontextmanager
async def _wanting_certificates(authority: trustme.CA) -> AsyncIterator[str]:
    """Where a server wants a client certificate of that authority, and would say 200."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    async def handle(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await peer.writer.drain()

    async with serving(handle, tls=context) as server:
        yield f"127.0.0.1:{server.port}"


async def test_a_client_certificate_that_is_refused_shows_its_key(said: Listener, tmp_path: Path) -> None:
    """Nor does one that has expired, is of another authority, does not fit its key, is encrypted or no certificate."""
    authority, other = await asyncio.to_thread(lambda: (trustme.CA(), trustme.CA()))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)

    def make() -> dict[str, tuple[str, str]]:
        made = {
            "good": authority.issue_cert("client.invalid", common_name="c"),
            "expired": authority.issue_cert(
                "client.invalid", common_name="c", not_before=past - datetime.timedelta(days=9), not_after=past
            ),
            "foreign": other.issue_cert("client.invalid", common_name="c"),
        }
        pairs = {
            name: (
                b"".join(blob.bytes() for blob in each.cert_chain_pems).decode(),
                each.private_key_pem.bytes().decode(),
            )
            for name, each in made.items()
        }
        pairs["mismatched"] = (pairs["good"][0], pairs["foreign"][1])
        pairs["swapped"] = (pairs["good"][1], pairs["good"][0])
        pairs["cut"] = (pairs["good"][0], pairs["good"][1][: len(pairs["good"][1]) // 2])
        return pairs

    pairs = await asyncio.to_thread(make)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.cert_pem.bytes())
    token = "canary-token-for-the-broker"
    said.guard(token)
    async with _wanting_certificates(authority) as place:
        for name, (certificate, private) in pairs.items():
            said.guard_private_key(private if name != "swapped" else certificate)
            key = load(
                "x509-in-uaa",
                url=f"wss://{place}/protocols/amqp10ws",
                token_url=f"https://{place}/oauth/token",
                management_url=f"https://{place}",
                certificate=certificate,
                key=private,
            )
            for options in ({}, {"token": token}):
                with pytest.raises(amqp.OpenError) as caught:
                    await eventmesh.connect(key, ssl=ca, open_timeout=3.0, **options)  # type: ignore[arg-type]
                said.error(caught.value)
                with pytest.raises(amqp.AMQPError) as refusal:
                    async with ManagementClient(key, ssl=ca, **options) as management:  # type: ignore[arg-type]
                        await management.queues()
                said.error(refusal.value)
    assert len(said.lines) > 50


# --- a connection in use -----------------------------------------------------------------------------------


async def test_what_goes_wrong_on_a_connection_shows_a_secret(said: Listener) -> None:
    """Nor do refused links, rejected and too large messages, one link too many, a revoked token, a lost connection."""
    async with guarded(said) as mesh:
        key = mesh.service_key()
        async with eventmesh.connect(key, **chosen(said, mesh)) as connected:
            sender = await connected.sender(QUEUE)
            receiver = await connected.receiver(QUEUE)
            foreign = await connected.sender("topic:other/shop/1/x")
            more = [await connected.receiver(QUEUE) for _ in range(2)]
            errors: list[Any] = []
            errors += await asyncio.gather(
                connected.receiver("queue:${namespace}/nobody"),
                connected.receiver(QUEUE),
                sender.send(amqp.Message(bytes(2**20))),
                foreign.send(amqp.Message(b"x")),
                sender.send(b"\x00Su\xa0\x01x"),  # type: ignore[arg-type]
                return_exceptions=True,
            )
            for one in more:
                await one.close()
            errors += await asyncio.gather(
                connected.receiver("queue:${namespace}/nobody"),
                connected.connection.sender("nowhere"),
                return_exceptions=True,
            )
            mesh.token_server.revoke_all()
            mesh.token_server.answer = TokenAnswer.UNAUTHORIZED
            errors.append(await refused(said, key, **chosen(said, mesh, token=connected.tokens)))
            lost = [
                asyncio.ensure_future(receiver.receive()),
                asyncio.ensure_future(sender.send(amqp.Message(b"x"))),
            ]
            await asyncio.sleep(0)
            await mesh.disconnect()
            errors += await asyncio.gather(*lost, receiver.receive(), return_exceptions=True)
            errors += await asyncio.gather(
                connected.sender(TOPIC, qos=0), connected.receiver(QUEUE), return_exceptions=True
            )
            said.say(connected, connected.tokens, sender, receiver, *more)
        wrong = [error for error in errors if isinstance(error, BaseException)]
        assert len(wrong) >= len(errors) - 2
        for error in wrong:
            said.error(error)
        assert mesh.token_server.token_count >= 1


# --- management --------------------------------------------------------------------------------------------

_MANAGEMENT: list[bytes] = [
    b"401 {token}\r\nWWW-Authenticate: Bearer {token}\r\n|{token}",
    b'403 No\r\nContent-Type: application/json\r\n|{"message":"{token} and {secret}"}',
    b'409 No\r\nContent-Type: application/json\r\n|{"error":{"message":"{token} {secret}"}}',
    b"500 No\r\nContent-Type: text/plain\r\n|{token}",
    b"500 No\r\nContent-Type: text/html; x={token}\r\n|<p>{token}</p>",
    b"503 No\r\nRetry-After: {token}\r\n|{token}",
    b"302 No\r\nLocation: https://elsewhere.example/{token}?a={token}\r\n|{token}",
    b"307 No\r\nLocation: //u:{token}@elsewhere.example/{token}\r\n|{token}",
    b"200 OK\r\nContent-Type: {token}\r\n|{token}",
    b'200 OK\r\nContent-Type: application/json\r\n|{"{token}": "{token}"',
    b'200 OK\r\nContent-Type: application/json\r\n|["{token}"]',
    b"{token} {token}\r\n|{token}",
    b"200 OK\r\n{token}\r\n|{token}",
    b"200 OK\r\nTransfer-Encoding: chunked\r\n|{token}",
    b"200 OK\r\nContent-Encoding: {token}\r\n|{token}",
    b"|",
]


@pytest.mark.parametrize("answer", _MANAGEMENT, ids=range(len(_MANAGEMENT)))
async def test_a_management_server_that_quotes_us_shows_a_secret(said: Listener, answer: bytes) -> None:
    """Nor do answers with the token in every part, nor what aiohttp says about them: it keeps the request's headers."""
    seen: list[str] = []
    async with guarded(said, tls=False) as mesh:
        secret = mesh.token_server.client_secret

        async def handle(peer: Peer) -> None:
            await peer.read_request()
            seen.append(peer.headers["authorization"].partition(" ")[2])
            head, _, body = answer.partition(b"|")
            framed = b"" if b"chunked" in head else b"Content-Length: %d\r\n"
            made = body.replace(b"{token}", seen[-1].encode()).replace(b"{secret}", json.dumps(secret)[1:-1].encode())
            head = head.replace(b"{token}", seen[-1].encode())
            framed = framed % len(made) if framed else b""
            if head:
                peer.writer.write(b"HTTP/1.1 " + head + framed + b"Connection: close\r\n\r\n" + made)
            await peer.writer.drain()

        async with serving(handle) as server:
            key = mesh.service_key()
            key["management"][0]["uri"] = f"http://127.0.0.1:{server.port}"
            async with ManagementClient(key, timeout=2.0) as management:
                for call in (management.queues, lambda: management.create_queue(QUEUE)):
                    try:
                        said.say(await call())
                    except (ManagementError, TimeoutError) as error:
                        said.error(error)
                said.say(management)
    assert seen
    assert set(seen) <= said.secrets


# --- CloudEvents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        amqp.Message(CANARY.encode(), content_type="application/cloudevents+json"),
        amqp.Message(f'{{"data":"{CORE}"'.encode(), content_type="application/cloudevents+json"),
        amqp.Message(json.dumps({"data": CANARY}).encode(), content_type="application/cloudevents+json"),
        amqp.Message(
            json.dumps({"id": "1", "source": "s", "type": "t", "specversion": "1.0", "data_base64": CANARY}).encode(),
            content_type="application/cloudevents+json",
        ),
        amqp.Message(
            json.dumps({"id": [CANARY], "source": {}, "type": 1, "specversion": "1.0", "data": CANARY}).encode(),
            content_type="application/cloudevents+json",
        ),
        amqp.Message(CANARY.encode("utf-16"), content_type="application/cloudevents+json; charset=utf-8"),
        amqp.Message(b"\xff" + CANARY.encode(), content_type="application/cloudevents+json"),
        amqp.Message(CANARY.encode(), content_type=f"application/cloudevents+{CORE}"),
        amqp.Message(
            CANARY.encode(),
            content_type="application/json",
            application_properties={"cloudEvents:id": "1", "cloudEvents:specversion": "1.0"},
        ),
        amqp.Message(
            b'{"' + CANARY.encode(),
            content_type="application/json",
            application_properties={
                f"cloudEvents_{name}": value
                for name, value in {"id": "1", "source": "s", "type": "t", "specversion": "1.0"}.items()
            },
        ),
        amqp.Message(amqp.Value(CANARY)),
        amqp.Message(CANARY.encode()),
        amqp.Message(),
    ],
    ids=range(13),
)
def test_a_malformed_event_shows_its_data(said: Listener, message: amqp.Message) -> None:
    """Nor does the complaint about an event, with the parser's own, show what is in it."""
    said.guard(CORE)
    content_type = message.content_type or ""
    with pytest.raises(cloudevents.NotACloudEvent) as caught:
        cloudevents.from_message(message)
    if CORE in content_type:
        said.secrets = {CANARY}  # a content type may be told
    said.printed(caught.value)


def test_data_that_cannot_be_encoded_is_shown(said: Listener) -> None:
    """Nor is what a program wants to send and JSON cannot say."""

    class Secret:
        def __repr__(self) -> str:
            return CORE

    said.guard(CORE)
    attributes = {"type": "a.b.v1", "source": "/s"}
    for data in ({"x": Secret()}, {(CORE, 1): 1}, [CANARY, {Secret(): 1}], {"x": "\ud800" + CORE}):
        for mode in ("structured", "binary"):
            with contextlib.suppress(amqp.AMQPError):
                try:
                    cloudevents.to_message(CloudEvent(dict(attributes), data), mode=mode)  # type: ignore[arg-type]
                except amqp.AMQPError as error:
                    said.printed(error)
                    raise
    assert said.lines


# --- the command -----------------------------------------------------------------------------------------------


async def _doctor(said: Listener, *arguments: str, status: int, **environment: str) -> str:
    """Runs ``amqpws doctor`` to that exit status; its output."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "PYTHONWARNINGS": "always",
        **environment,
    }

    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "doctor", *arguments, "--trace"),
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT):
        output, errors = await process.communicate()
    said.lines += [output.decode(), errors.decode()]
    assert b"Traceback" not in errors, errors.decode()
    assert process.returncode == status, output.decode()
    if "--json" in arguments:
        said.lines.append(str(json.loads(output)))  # also what is escaped in JSON
    return output.decode()


async def test_the_doctor_shows_a_secret(said: Listener, tmp_path: Path) -> None:
    """Nor does the command that looks at each step, in health and with each illness, from file and binding."""
    async with guarded(said) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        known = ("--service-key", str(key), "--ca", str(ca))
        variables = {"VCAP_SERVICES": json.dumps({"enterprise-messaging": [_binding(mesh)]})}
        await asyncio.gather(
            _doctor(said, *known, "queue:${namespace}/nobody", "--receive", "--json", status=4),
            _doctor(said, "--service-key", str(key), "--json", status=3),
            _doctor(said, "--env", "--ca", str(ca), TOPIC, status=0, PYTHONASYNCIODEBUG="1", **variables),
        )
        assert mesh.token_server.token_count == 2
        mesh.token_server.answer = _TOKEN_ANSWERS["400-scope"](mesh.token_server.client_secret)
        _, text = await asyncio.gather(_doctor(said, *known, status=3), _doctor(said, *known, "--json", status=3))
        assert [step["name"] for step in json.loads(text)["steps"] if step["ok"] is False] == ["token"]


async def test_the_doctor_shows_a_certificate_s_key(said: Listener, tmp_path: Path) -> None:
    """Nor does it with a key of the type x509, whose own private key it shows to nobody but TLS."""
    async with guarded(said, x509=True) as mesh:
        key, ca = await asyncio.to_thread(mesh.write_key, tmp_path)
        await _doctor(said, "--service-key", str(key), "--ca", str(ca), QUEUE, "--receive", "--json", status=0)
        assert mesh.token_server.token_count == 1


async def test_the_doctor_shows_a_token_that_is_quoted_or_a_key_that_is_broken(said: Listener, tmp_path: Path) -> None:
    """Nor what an upgrade quotes, nor a word of a key that cannot be read."""

    async def handle(peer: Peer) -> None:
        await peer.read_request()
        token = peer.headers["authorization"].partition(" ")[2]
        body = f"who is {token}?"
        head = f"HTTP/1.1 403 {token}\r\nWWW-Authenticate: Bearer {token}\r\nLocation: /{token}\r\n"
        peer.writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await peer.writer.drain()

    async with guarded(said, tls=False) as mesh, serving(handle) as server:
        said.guard(CORE)
        key = mesh.service_key()
        key["messaging"][0]["uri"] = f"{server.url}protocols/amqp10ws"
        path = ("messaging", 0, "oa2", "tokenendpoint")
        texts = {
            "key": json.dumps(key),
            "broken": json.dumps(key)[:-40] + mesh.token_server.client_secret,
            "wrong": json.dumps(_changed(key, path, f"https://user:{CORE}@login.example")),
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        known = [("--service-key", str(tmp_path / name)) for name in texts]
        await asyncio.gather(
            _doctor(said, *known[0], status=3),
            _doctor(said, *known[0], "--json", status=3),
            _doctor(said, *known[1], "--json", status=2),
            _doctor(said, *known[2], status=2),
        )
        assert mesh.token_server.token_count == 2


def _binding(mesh: EventMesh) -> dict[str, Any]:
    return {"name": "mesh", "label": "enterprise-messaging", "credentials": mesh.service_key()}


# --- the harness itself ---------------------------------------------------------------------------------------


def test_the_harness_finds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is planted: records, their extras and errors, causes, contexts, groups, notes, attributes, reprs."""

    class Holder(Exception):
        held: Any = None

    class Shown:
        def __init__(self) -> None:
            self.answer = [CANARY]

        @property
        def public(self) -> str:
            return CANARY

    def chained(*, cause: BaseException | None = None, context: BaseException | None = None) -> BaseException:
        error = amqp.TokenError("no")
        error.__cause__, error.__context__, error.__suppress_context__ = cause, context, True
        return error

    holder = Holder()
    holder.held = CANARY
    noted = ValueError("x")
    noted.add_note(CANARY)
    stopped = amqp.ConnectionClosed(amqp.StopReason("connection", "transport", cause=chained(context=holder)))
    with pytest.raises(json.JSONDecodeError) as decoding:
        json.loads(f'{{"a": "{CANARY}')
    for error in (
        chained(cause=ValueError(CANARY)),
        chained(context=ValueError(CANARY)),
        chained(context=chained(cause=holder)),
        chained(cause=BaseExceptionGroup("", [chained(context=ValueError(CANARY))])),
        noted,
        stopped,
        decoding.value,
        amqp.HandshakeError("no", headers={"X": CANARY}),
        amqp.HandshakeError("no", body=CANARY.encode()),
        amqp.TokenError("no", description=CANARY),
    ):
        everything = Listener()
        everything.guard(CORE)
        everything.error(error)
        assert everything.found(), error
    everything = Listener()
    everything.guard(CORE)
    everything.say(Shown())
    assert everything.found()
    records: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("%s", CANARY), {}),
        (("x",), {"extra": {"connection": CANARY}}),
        (("x",), {"exc_info": chained(context=ValueError(CANARY))}),
        (("%s", chained(context=ValueError(CANARY))), {}),
    ]
    for arguments, named in records:
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("planted").debug(*arguments, **named)
        everything = Listener()
        everything.guard(CORE)
        _records(everything, caplog.records)
        assert everything.found()


async def test_the_harness_finds_each_secret_of_a_mesh() -> None:
    """Whatever its spelling: in a body, in a header, in JSON, by lines; and a part of it."""
    said = Listener()
    async with guarded(said) as mesh, guarded(said, x509=True) as certified:
        secret, client = mesh.token_server.client_secret, mesh.token_server.client_id
        private = certified.service_key()["uaa"]["key"]
        token = mesh.token_server.make_token()
        said.lines.clear()
        for planted in (
            secret,
            secret[:13],
            urllib.parse.urlencode({"client_secret": secret}),
            json.dumps(secret),
            "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode(),
            f"Bearer {token}",
            token[:-4],
            private,
            private.splitlines()[3],
            repr(private),
        ):
            said.lines[:] = [f"so {planted} it is"]
            assert said.found(), planted
        said.lines[:] = [client, mesh.url, repr(mesh), token.partition(".")[0]]
        assert not said.found()
