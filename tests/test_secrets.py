"""No token, password, Authorization value or query string of a URL is ever shown: not in logs, errors, reprs, traces.

Each test uses canaries for secrets, makes sure that the peer got them, and then looks for them in all that the library
has said by any way: every log record at DEBUG, every repr, every error with its chain, the trace, and standard error.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import http
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

import amqpws_async as amqp

from .peer import PATIENCE, SASL_HEADER, SASL_OK, SASL_REFUSED, Conversation, Peer, after, ignore, mechanisms

TOKEN = "canary-token-5e1f"
PASSWORD = "canary-password-77aa"
HEADER = "canary-header-c0de"
QUERY = "canary-query-1234"
PROXY = "canary-proxy-9d9d"
BASIC = base64.b64encode(f"user:{HEADER}".encode()).decode()
SECRETS = (TOKEN, PASSWORD, HEADER, QUERY, PROXY, BASIC)


class Everything:
    """All that was said while a test ran."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, *things: object) -> None:
        """Adds what these things show of themselves."""
        for thing in things:
            self.lines += [repr(thing), str(thing)]
            for name in ("options", "remote", "stop", "health"):
                value = getattr(thing, name, None)
                self.lines.append(repr(value() if callable(value) else value))

    def error(self, error: BaseException) -> None:
        """Adds an error as programs print it, with its chain and attributes."""
        self.lines += traceback.format_exception(error)
        seen: list[BaseException] = []
        todo: list[BaseException | None] = [error]
        while todo:
            if (each := todo.pop()) is None or each in seen:
                continue
            seen.append(each)
            self.lines += [repr(each), str(each), repr(each.args)]
            if isinstance(each, amqp.AMQPError):
                self.lines.append(repr(vars(each)))
            todo += [each.__cause__, each.__context__]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Everything]:
    """Collects what is said anywhere, and fails if there is a secret in it."""
    names = list(logging.Logger.manager.loggerDict)
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    everything = Everything()
    try:
        with caplog.at_level(logging.DEBUG):
            yield everything
            gc.collect()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    for record in caplog.get_records("call"):
        everything.lines += [record.getMessage(), repr(record.args), str(record.exc_info)]
    captured = capfd.readouterr()
    everything.lines += [captured.out, captured.err]
    assert len(everything.lines) > 5
    for line in everything.lines:
        for secret in SECRETS:
            assert secret not in line, line


def options(said: Everything, **more: Any) -> dict[str, Any]:
    """Options with a secret in each place that takes one, and the trace switched on."""
    return {
        "token": TOKEN,
        "headers": {"X-Api-Key": HEADER, "Cookie": f"session={HEADER}"},
        "trace": said.lines.append,
        "open_timeout": PATIENCE,
        "close_timeout": 0.5,
    } | more


async def _sasl_plain(conversation: Conversation) -> None:
    """Serves PLAIN, which proton's server end cannot, and then AMQP."""
    socket = conversation.socket
    assert await socket.recv() == SASL_HEADER
    await socket.send(SASL_HEADER + mechanisms("PLAIN"))
    init = await socket.recv()
    assert isinstance(init, bytes)
    assert PASSWORD.encode() in init
    await socket.send(SASL_OK)
    await conversation.serve(sasl=False)


async def test_a_whole_conversation_shows_a_secret(said: Everything) -> None:
    """Connecting with a token, secret headers, a secret query and PLAIN, and using the connection, shows none."""
    async with Peer() as peer:
        peer.script = _sasl_plain
        peer.queue.append(amqp.Message(b"x").encode())
        url = f"{peer.url}?key={QUERY}"
        async with amqp.connect(url, sasl=amqp.Plain("user", PASSWORD), **options(said)) as connection:
            request = peer.conversation.socket.request
            assert request is not None
            assert request.headers["Authorization"] == f"Bearer {TOKEN}"
            assert request.headers["X-Api-Key"] == HEADER
            assert QUERY in request.path
            async with (
                connection.session() as session,
                session.sender("q") as sender,
                session.receiver("q") as receiver,
            ):
                await sender.send(amqp.Message(b"x"))
                delivery = await receiver.receive()
                said.say(connection, session, sender, receiver, delivery)
                await delivery.accept()
        said.say(connection, session, sender, receiver)


@pytest.mark.parametrize("end", ["drop", "close", "text", "garbage"])
async def test_a_conversation_that_breaks_shows_a_secret(said: Everything, end: str) -> None:
    """Nor does losing the connection, while opening or in use."""
    acts: dict[str, Any] = {
        "drop": lambda conversation: conversation.drop(),
        "close": lambda conversation: conversation.close("amqp:unauthorized-access", "no"),
        "text": lambda conversation: conversation.raw("text"),
        "garbage": lambda conversation: conversation.raw(b"\xff" * 20),
    }
    async with Peer() as peer:
        url = f"{peer.url}?key={QUERY}"
        for event in ("open", "begin", "attach"):
            peer.on.clear()
            peer.on[event] = after(event, acts[end])
            with contextlib.suppress(amqp.AMQPError):
                try:
                    async with asyncio.timeout(PATIENCE):
                        connection = await amqp.connect(url, **options(said))
                        try:
                            receiver = await connection.receiver("q")
                            await receiver.receive()
                        finally:
                            said.say(connection)
                            await connection.close()
                except Exception as error:
                    said.error(error)
                    raise


async def test_a_timeout_shows_a_secret(said: Everything) -> None:
    """Nor does a peer that never answers."""
    async with Peer() as peer:
        peer.on["open"] = ignore
        with pytest.raises(TimeoutError) as caught:
            await amqp.connect(f"{peer.url}?key={QUERY}", **options(said, open_timeout=0.1))
        said.error(caught.value)


async def test_a_refused_password_shows_it(said: Everything) -> None:
    """Nor does a PLAIN password that the peer refuses."""

    async def refuse(conversation: Conversation) -> None:
        socket = conversation.socket
        await socket.recv()
        await socket.send(SASL_HEADER + mechanisms("PLAIN"))
        init = await socket.recv()
        assert isinstance(init, bytes)
        assert PASSWORD.encode() in init
        await socket.send(SASL_REFUSED)
        async for _ in socket:
            pass

    async with Peer() as peer:
        peer.script = refuse
        with pytest.raises(amqp.AuthenticationError) as caught:
            await amqp.connect(peer.url, sasl=amqp.Plain("user", PASSWORD), **options(said))
        said.error(caught.value)


async def test_a_mechanism_not_offered_shows_the_password(said: Everything) -> None:
    """Nor does a peer that does not offer PLAIN, which then is not sent at all."""
    async with Peer() as peer:
        with pytest.raises(amqp.AuthenticationError) as caught:
            async with asyncio.timeout(PATIENCE):
                await amqp.connect(peer.url, sasl=amqp.Plain("user", PASSWORD), **options(said))
        said.error(caught.value)
        assert PASSWORD.encode() not in peer.bytes_in


@pytest.mark.parametrize("status", [301, 401, 403, 404, 503])
async def test_a_refused_upgrade_shows_a_secret(said: Everything, status: int) -> None:
    """Nor does an HTTP answer that is no upgrade, not even one that points elsewhere with a secret in the query."""
    seen: list[str] = []

    def answer(connection: ServerConnection, request: Request) -> Response:
        seen.append(request.headers["Authorization"])
        headers = Headers({"Content-Length": "2"})
        if status == 301:
            headers["Location"] = f"ws://elsewhere.example/?key={QUERY}"
        return Response(status, http.HTTPStatus(status).phrase, headers, b"no")

    async with _http(answer) as url:
        with pytest.raises(amqp.HandshakeError) as caught:
            await amqp.connect(f"{url}?key={QUERY}", **options(said))
    assert seen == [f"Bearer {TOKEN}"]
    if status == 301:
        caught.value.headers = {}  # the peer's own words, kept for the program, not shown by themselves
    said.error(caught.value)


@contextlib.asynccontextmanager
async def _http(answer: Any) -> Any:
    """A server that answers every upgrade this way, and logs nothing itself."""

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    quiet = logging.Logger("quiet")  # outside the hierarchy on purpose
    quiet.addHandler(logging.NullHandler())
    async with serve(never, "127.0.0.1", 0, process_request=answer, logger=quiet) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"


async def test_no_connection_shows_a_secret(said: Everything) -> None:
    """Nor does a host, or a proxy with a password, that cannot be reached."""
    async with Peer() as peer:
        url = f"{peer.url}?key={QUERY}"
    with pytest.raises(amqp.OpenError) as caught:
        await amqp.connect(url, **options(said))
    said.error(caught.value)
    with pytest.raises(amqp.OpenError) as caught:
        await amqp.connect(url, **options(said, proxy=f"http://user:{PROXY}@127.0.0.1:{peer.port}"))
    said.error(caught.value)


async def test_a_token_that_cannot_be_had_shows_a_secret(said: Everything) -> None:
    """Nor does a token provider that fails, with a secret in its own hands."""

    class Broken:
        async def token(self, *, refresh: bool = False) -> amqp.Token:
            raise amqp.TokenError("the token service is down")

    with pytest.raises(amqp.TokenError) as caught:
        await amqp.connect(f"ws://127.0.0.1:1/?key={QUERY}", **options(said, token=Broken()))
    said.error(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": f"ws://user:{PASSWORD}@127.0.0.1/"},
        {"url": f"http://127.0.0.1/?key={QUERY}"},
        {"url": f"ws://127.0.0.1:99999/?key={QUERY}"},
        {"token": f"{TOKEN}\r\nX-Evil: 1"},
        {"token": f"Bearer {TOKEN}"},
        {"headers": {"Authorization": f"Basic {BASIC}"}},
        {"headers": {"X-Key": f"{HEADER}\n"}},
        {"headers": {"X Key": HEADER}},
        {"headers": {"Sec-WebSocket-Key": HEADER}},
        {"headers": {"X-Key": HEADER, "x-key": HEADER}},
        {"proxy": f"ftp://user:{PROXY}@127.0.0.1:1"},
        {"proxy": f"http://user:{PROXY}@"},
        {"url": f"ws://broker.example/?key={QUERY}"},
        {"url": "ws://broker.example/", "token": None, "headers": {"Authorization": f"Basic {BASIC}"}},
        {"url": "ws://broker.example/", "token": None, "headers": {}, "sasl": "PLAIN"},
    ],
)
def test_a_wrong_option_shows_a_secret(said: Everything, wrong: dict[str, Any]) -> None:
    """Nor does the complaint about an option, not even about the one with the secret in it."""
    arguments = {"url": f"ws://127.0.0.1/?key={QUERY}", **options(said), **wrong}
    if wrong.get("sasl") == "PLAIN":
        arguments["sasl"] = amqp.Plain("user", PASSWORD)
    with pytest.raises((ValueError, TypeError)) as caught:
        amqp.connect(**arguments)
    said.error(caught.value)


def test_options_show_a_secret(said: Everything) -> None:
    """Nor does the repr of any of the objects that hold secrets."""
    chosen = amqp.ConnectionOptions(
        url=f"wss://broker.example/?key={QUERY}",
        proxy=f"http://user:{PROXY}@proxy.example:3128",
        sasl=amqp.Plain("user", PASSWORD),
        **options(said),
    )
    said.say(chosen, amqp.Plain("user", PASSWORD), amqp.Token(TOKEN), amqp.StaticToken(TOKEN), chosen.headers.keys())
    with pytest.raises(ValueError, match=r"\w") as caught:
        amqp.ConnectionOptions(
            url="wss://broker.example/", sasl=amqp.Plain("user", PASSWORD), **options(said, idle_timeout=-1)
        )
    said.error(caught.value)


async def test_debug_mode_shows_a_secret(said: Everything) -> None:
    """Nor does asyncio's debug mode, which logs tasks and transports."""
    asyncio.get_running_loop().set_debug(True)
    async with Peer() as peer, amqp.connect(f"{peer.url}?key={QUERY}", **options(said)) as connection:
        said.lines += [repr(task) for task in asyncio.all_tasks()]
        async with connection.sender("q") as sender:
            await sender.send(amqp.Message(b"x"))
    asyncio.get_running_loop().set_debug(False)


async def test_the_trace_by_environment_shows_a_secret(said: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the trace that an environment variable switches on, which goes to the log."""
    monkeypatch.setenv("AMQPWS_TRACE", "frames")
    async with Peer() as peer:
        peer.script = _sasl_plain
        chosen = options(said, trace=None, sasl=amqp.Plain("user", PASSWORD))
        async with amqp.connect(f"{peer.url}?key={QUERY}", **chosen) as connection:
            said.say(connection)


def test_the_harness_finds_a_secret(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in a log record, an error's cause or an attribute is found."""
    for error in (ValueError(TOKEN), ExceptionGroup("", [ValueError(TOKEN)])):
        everything = Everything()
        try:
            raise KeyError from error
        except KeyError as caught:
            everything.error(caught)
        assert any(TOKEN in line for line in everything.lines)
