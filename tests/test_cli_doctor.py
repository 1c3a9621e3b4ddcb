"""``amqpws doctor``: every way in which connecting can fail ends at the right step, with what to do."""

from __future__ import annotations

import asyncio
import datetime
import http
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import amqpws_async as amqp
from amqpws_async.cli import main
from amqpws_async.testing import Broker, LinkRequest, Refusal, TokenServer
from tests.cli_command import TIMEOUT, finish, start
from tests.cli_servers import Handler, context_of, listening, running, silence
from tests.peer import SASL_HEADER, Peer, ignore, refuse
from tests.websocket_peer import Peer as Socket
from tests.websocket_peer import frame

CANARY = "canary-5f3a9c"
STEPS = "proxy dns tcp token upgrade subprotocol sasl open session close".split()
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running(Broker) as broker:
        yield broker


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def examined(capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """Runs the doctor with ``--json``; gives the steps by name, in order."""
    assert main(["doctor", *arguments, "--json"]) == status
    captured = capfd.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert (result["ok"], result["status"]) == (status == 0, status)
    return {step["name"]: step for step in result["steps"]}


def failure(capfd: pytest.CaptureFixture[str], name: str, *arguments: str, status: int = 3) -> dict[str, Any]:
    """Runs the doctor, which must fail at this step and try none after it; gives the step."""
    steps = examined(capfd, *arguments, status=status)
    names = list(steps)
    assert [step for step in names if steps[step]["ok"] is False] == [name]
    place = names.index(name)
    assert all(steps[before]["ok"] for before in names[:place])
    assert all(steps[after]["ok"] is None for after in names[place + 1 :])
    assert steps[name]["text"]
    return steps[name]


def quick(seconds: float = 0.6) -> list[str]:
    """Arguments for peers that never answer."""
    return ["--open-timeout", str(seconds)]


# --- all in order --------------------------------------------------------------------------------


def test_json_has_keys_that_stay(capfd: pytest.CaptureFixture[str], broker: Broker) -> None:
    """The result, its steps and their details have the keys that programs rely on."""
    assert main(["doctor", broker.url, "orders", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert list(result) == ["url", "ok", "status", "seconds", "steps"]
    assert all(list(s) == ["name", "ok", "seconds", "text", "details", "advice"] for s in result["steps"])
    steps = {step["name"]: step for step in result["steps"]}
    assert list(steps) == [*STEPS[:-1], "attach", "close"]
    assert sorted(steps["open"]["details"]) == [
        "channel_max",
        "container_id",
        "desired_capabilities",
        "idle_timeout",
        "max_frame_size",
        "offered_capabilities",
        "properties",
    ]
    assert steps["dns"]["details"] == {"host": "127.0.0.1", "addresses": ["127.0.0.1"]}
    assert steps["tcp"]["details"] == {"port": broker.port, "address": "127.0.0.1", "failed": []}
    assert steps["subprotocol"]["details"] == {"offered": ["amqp"], "selected": "amqp"}
    assert steps["sasl"]["details"] == {"offered": ["ANONYMOUS"], "used": "ANONYMOUS", "outcome": 0}
    assert steps["attach"]["details"] == {"address": "orders", "role": "sender", "max_message_size": 16 * 2**20}
    assert result["seconds"] == pytest.approx(sum(step["seconds"] for step in result["steps"]), abs=1e-4)


def test_text_is_a_line_for_each_step(capfd: pytest.CaptureFixture[str], broker: Broker) -> None:
    """The URL first, without its query; then the steps, each with its time; then what it comes to."""
    assert main(["doctor", f"{broker.url}?key={CANARY}"]) == 0
    first, *lines, last = capfd.readouterr().out.splitlines()
    assert first == f"{broker.url}?***"
    assert [line.split()[1] for line in lines] == STEPS
    assert all(line.startswith("  ✓ ") and " ms  " in line for line in lines)
    assert last.startswith("all 10 steps are in order, in ")


def test_no_message_is_touched(capfd: pytest.CaptureFixture[str], broker: Broker) -> None:
    """Attaching as a receiver takes nothing out of the queue, nor does it count a delivery."""
    assert main(["send", broker.url, "kept", "x"]) == 0
    steps = examined(capfd, broker.url, "kept", "--receive")
    assert steps["attach"]["details"]["role"] == "receiver"
    assert main(["receive", broker.url, "kept", "--count", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["header"]["delivery_count"] == 0


def test_output_goes_where_there_are_no_ticks(broker: Broker) -> None:
    """Where the encoding has none of the marks there are words in ASCII, and the exit status is that of the failure."""
    done = finish(start("doctor", "ws://127.0.0.1:9/", env={"PYTHONIOENCODING": "ascii"}))
    assert done.returncode == 3
    lines = done.stdout.decode("ascii").splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["ok", "ok", "FAILED", "->"]
    assert lines[-1].startswith("it ends at tcp, step 3 of 10")
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "--service-key FILE"),
        (("ws://localhost", "--receive"), "ADDRESS"),
        (("ws://localhost", "a", "b"), "too many arguments"),
        (("http://localhost",), "ws://"),
        (("--binding", "x"), "--env"),
        (("--service-key", "k.json", "--env"), "exclude each other"),
        (("--service-key", "k.json", "wss://broker.example"), "leave it out"),
        (("--service-key", "k.json", "queue:a", "queue:b"), "too many arguments"),
        (("--env", "--user", "alice", "--password-env", "HOME"), "--user does not go with --env"),
        (("--env", "--subprotocol", "amqp"), "--subprotocol does not go with --env"),
    ],
)
def test_wrong_arguments_get_one_line(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], hint: str) -> None:
    """Nothing is examined, and the status is 2."""
    assert main(["doctor", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert hint in captured.err


# --- below the WebSocket -------------------------------------------------------------------------


def test_unknown_host(capfd: pytest.CaptureFixture[str]) -> None:
    """The name is in the text, and what may help in the advice."""
    step = failure(capfd, "dns", "wss://no-such-host.invalid/path", "--proxy", "none")
    assert "no-such-host.invalid" in step["text"]
    assert "VPN" in step["advice"]


def test_name_is_resolved(capfd: pytest.CaptureFixture[str], broker: Broker) -> None:
    """All addresses are shown, and those that did not answer beside the one that did."""
    steps = examined(capfd, broker.url.replace("127.0.0.1", "localhost"))
    assert "127.0.0.1" in steps["dns"]["details"]["addresses"]
    assert steps["tcp"]["details"]["address"] == "127.0.0.1"
    assert "an address already" not in steps["dns"]["text"]


def test_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    """The address that refused is named."""
    step = failure(capfd, "tcp", "ws://127.0.0.1:9/")
    assert step["details"]["failed"] == [{"address": "127.0.0.1", "error": "refused, nothing listens there"}]


@pytest.mark.parametrize(
    ("scheme", "step", "hint"), [("ws", "upgrade", "does this port speak HTTP"), ("wss", "tls", "does not speak TLS")]
)
def test_peer_that_never_says_anything(capfd: pytest.CaptureFixture[str], scheme: str, step: str, hint: str) -> None:
    """It ends within --open-timeout, at the step that waits for the first word."""
    with listening(silence) as port:
        found = failure(capfd, step, f"{scheme}://127.0.0.1:{port}/", *quick())
    assert "within 0.6 s (--open-timeout)" in found["text"]
    assert hint in found["advice"]
    assert 0.4 < found["seconds"] < TIMEOUT


def test_tls_where_there_is_none(capfd: pytest.CaptureFixture[str], broker: Broker) -> None:
    """Whether the server answers in plain or hangs up, the advice has the other scheme."""
    assert "is it ws://" in failure(capfd, "tls", broker.url.replace("ws://", "wss://"))["advice"]

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await silence(reader, writer)

    with listening(plain) as port:
        step = failure(capfd, "tls", f"wss://127.0.0.1:{port}/")
    assert "does not speak TLS" in step["text"]
    assert "is it ws://" in step["advice"]


def test_untrusted_ca(capfd: pytest.CaptureFixture[str], ca: trustme.CA, ca_file: str) -> None:
    """The certificate at fault is the CA's; --ca is the advice, and helps; another CA's file is said not to have it."""
    with running(lambda: Broker(ssl=context_of(ca, "127.0.0.1"))) as broker:
        step = failure(capfd, "tls", broker.url)
        assert "unable to get local issuer certificate" in step["text"]
        assert "--ca FILE" in step["advice"]
        assert step["details"]["certificate"]["subject"].startswith("O=trustme")
        other = Path(ca_file).with_name("other.pem")
        trustme.CA().cert_pem.write_to_path(str(other))
        step = failure(capfd, "tls", broker.url, "--ca", str(other))
        assert "the file of --ca does not have the CA" in step["advice"]
        steps = examined(capfd, broker.url, "--ca", ca_file)
    assert list(steps) == [*STEPS[:3], "tls", *STEPS[3:]]
    details = steps["tls"]["details"]
    assert details["version"] == "TLS 1.3"
    leaf, authority = details["certificates"]
    assert leaf["issuer"] == authority["subject"] == authority["issuer"]
    assert "127.0.0.1" in leaf["names"]
    assert details["days_left"] > 365
    assert steps["tls"]["advice"] is None


def test_expired_certificate(capfd: pytest.CaptureFixture[str], ca: trustme.CA, ca_file: str) -> None:
    """The certificate is named, the day when it expired, and this machine's clock."""
    now = datetime.datetime.now(datetime.UTC)
    context = context_of(ca, "127.0.0.1", common_name="old.example", not_before=now - 9 * DAY, not_after=now - 2 * DAY)
    with running(lambda: Broker(ssl=context)) as broker:
        step = failure(capfd, "tls", broker.url, "--ca", ca_file)
    assert "CN=old.example" in step["text"]
    assert "expired" in step["text"]
    assert f"expired on {now - 2 * DAY:%Y-%m-%d}" in step["advice"]
    assert "clock says" in step["advice"]


def test_certificate_that_is_not_valid_yet(capfd: pytest.CaptureFixture[str], ca: trustme.CA, ca_file: str) -> None:
    """Most often it is the clock."""
    now = datetime.datetime.now(datetime.UTC)
    context = context_of(ca, "127.0.0.1", not_before=now + 2 * DAY, not_after=now + 9 * DAY)
    with running(lambda: Broker(ssl=context)) as broker:
        step = failure(capfd, "tls", broker.url, "--ca", ca_file)
    assert "is the clock right?" in step["advice"]


def test_certificate_that_expires_soon(capfd: pytest.CaptureFixture[str], ca: trustme.CA, ca_file: str) -> None:
    """All is in order, and the advice is to renew it."""
    not_after = datetime.datetime.now(datetime.UTC) + 5 * DAY
    with running(lambda: Broker(ssl=context_of(ca, "127.0.0.1", not_after=not_after))) as broker:
        steps = examined(capfd, broker.url, "--ca", ca_file)
    assert steps["tls"]["details"]["days_left"] == 4
    assert f"{not_after:%Y-%m-%d}" in steps["tls"]["advice"]


def test_certificate_for_another_host(capfd: pytest.CaptureFixture[str], ca: trustme.CA, ca_file: str) -> None:
    """The names that it is for are in the advice."""
    with running(lambda: Broker(ssl=context_of(ca, "one.example", "two.example"))) as broker:
        step = failure(capfd, "tls", broker.url, "--ca", ca_file)
    assert "one.example, two.example" in step["advice"]


# --- proxies -------------------------------------------------------------------------------------


def proxying(answer: bytes | None) -> Handler:
    """A proxy for CONNECT: it gives this answer, or none at all."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await silence(reader, writer)
            return
        writer.write(answer)
        if b" 200 " not in answer:
            await writer.drain()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        further, onwards = await asyncio.open_connection(host, int(port))
        await pumped(reader, writer, further, onwards)

    return handle


async def pumped(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    further: asyncio.StreamReader,
    onwards: asyncio.StreamWriter,
) -> None:
    """Hands on what comes, both ways, to the end."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()

    try:
        await asyncio.gather(pump(reader, onwards), pump(further, writer))
    finally:
        onwards.transport.abort()


def test_way_through_a_proxy(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    """There is one step more, and the proxy is shown with where it is from and without its password."""
    with listening(proxying(b"HTTP/1.1 200 OK\r\n\r\n")) as port:
        steps = examined(capfd, broker.url, "--proxy", f"http://127.0.0.1:{port}")
        assert list(steps) == [*STEPS[:3], "tunnel", *STEPS[3:]]
        assert steps["proxy"]["details"] == {"proxy": f"http://127.0.0.1:{port}", "reason": "from --proxy"}
        monkeypatch.setenv("HTTPS_PROXY", f"http://alice:{CANARY}@127.0.0.1:{port}")
        steps = examined(capfd, "wss://broker.invalid/", *quick(), status=3)
        assert steps["proxy"]["text"].endswith("from the environment variable HTTPS_PROXY")
        assert CANARY not in json.dumps(steps)


@pytest.mark.parametrize(
    ("url", "environment", "reason"),
    [
        ("ws://127.0.0.1:9/", {"HTTP_PROXY": "http://127.0.0.1:9"}, "the broker is this machine"),
        ("ws://broker.invalid/", {}, "the environment has none"),
        ("ws://broker.invalid/", {"http_proxy": "127.0.0.1:9", "no_proxy": ".invalid"}, "no_proxy names the host"),
        ("ws://broker.invalid/", {"http_proxy": "127.0.0.1:9"}, "from the environment variable http_proxy"),
        ("wss://broker.invalid/", {"ALL_PROXY": "http://127.0.0.1:9"}, "from the environment variable ALL_PROXY"),
    ],
)
def test_why_there_is_a_proxy_or_none(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    environment: dict[str, str],
    reason: str,
) -> None:
    """Whatever fails afterwards, the first step says who decided."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert examined(capfd, url, status=3)["proxy"]["details"]["reason"] == reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (b"HTTP/1.1 407 Who\r\n\r\n", "407"),
        (b"HTTP/1.1 403 No\r\n\r\n", "403"),
        (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
        (None, "no answer from the proxy within"),
    ],
)
def test_proxy_that_does_not_let_through(
    capfd: pytest.CaptureFixture[str], broker: Broker, answer: bytes | None, hint: str
) -> None:
    """It is the tunnel that fails, never the broker."""
    with listening(proxying(answer)) as port:
        step = failure(capfd, "tunnel", broker.url, "--proxy", f"http://127.0.0.1:{port}", *quick())
    assert hint in step["text"]


@pytest.mark.parametrize(("reply", "hint"), [(0, None), (2, "does not let us through"), (5, "does not let us through")])
def test_socks_proxy(capfd: pytest.CaptureFixture[str], broker: Broker, reply: int, hint: str | None) -> None:
    """The tunnel is its business too (RFC 1928), and a refusal has its reason."""

    async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        await reader.readexactly(10)  # connect to an IPv4 address
        writer.write(bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        if reply == 0:
            further, onwards = await asyncio.open_connection("127.0.0.1", broker.port)
            await pumped(reader, writer, further, onwards)

    with listening(socks) as port:
        arguments = [broker.url, "--proxy", f"socks5://127.0.0.1:{port}"]
        if hint is None:
            assert examined(capfd, *arguments)["tunnel"]["ok"]
        else:
            assert hint in failure(capfd, "tunnel", *arguments)["text"]


# --- tokens and the upgrade ----------------------------------------------------------------------


def token_file(tmp_path: Path, token: str) -> list[str]:
    """Arguments for a token."""
    (tmp_path / "token").write_text(token)
    return ["--token-file", str(tmp_path / "token")]


def test_token_says_what_it_is_good_for(capfd: pytest.CaptureFixture[str], broker: Broker, tmp_path: Path) -> None:
    """Scopes, audience and the time left come from the JWT; the token itself is nowhere."""
    token = TokenServer(scopes=["a.read", "a.write"]).make_token("client", lifetime=3600)
    details = examined(capfd, broker.url, *token_file(tmp_path, token))["token"]["details"]
    assert details["scopes"] == ["a.read", "a.write"]
    assert details["audience"] == ["client", "a"]
    assert 3500 < details["expires_in"] <= 3600
    assert main(["doctor", broker.url, *token_file(tmp_path, token), "--verbose", "--trace"]) == 0
    captured = capfd.readouterr()
    assert not any(part in captured.out + captured.err for part in token.split("."))


def test_expired_token_is_said_before_the_broker_says_so(
    capfd: pytest.CaptureFixture[str], broker: Broker, tmp_path: Path
) -> None:
    """It is no failure yet: this machine's clock may be wrong, and the broker decides."""
    token = TokenServer().make_token(lifetime=-7200.5)
    step = examined(capfd, broker.url, *token_file(tmp_path, token))["token"]
    assert "EXPIRED 2 h ago" in step["text"]
    assert "get a new one" in step["advice"]


def test_token_that_is_about_to_expire(capfd: pytest.CaptureFixture[str], broker: Broker, tmp_path: Path) -> None:
    """There is time for the examination, and not for much else."""
    step = examined(capfd, broker.url, *token_file(tmp_path, TokenServer().make_token(lifetime=30)))["token"]
    assert "about to expire" in step["advice"]


@pytest.mark.parametrize("token", [CANARY, "a.b.c", "a.W10.c", "a.eyJleHAiOiJzb29uIiwic2NvcGUiOjF9.c"])
def test_token_that_says_nothing(capfd: pytest.CaptureFixture[str], broker: Broker, tmp_path: Path, token: str) -> None:
    """Opaque tokens, and what only looks like a JWT, are taken as they are."""
    details = examined(capfd, broker.url, *token_file(tmp_path, token))["token"]["details"]
    assert (details["expires_in"], details["scopes"], details["audience"]) == (None, [], [])


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "the token was not accepted"),
        (403, "you are known"),
        (404, "/protocols/amqp10ws"),
        (407, "https_proxy"),
        (418, "does not take this for a WebSocket upgrade"),
        (426, "Upgrade header"),
        (429, "too many connections"),
        (500, "the server is in trouble"),
        (503, "a gateway answers"),
    ],
)
def test_refused_upgrade(capfd: pytest.CaptureFixture[str], tmp_path: Path, status: int, hint: str) -> None:
    """Status, challenge and the beginning of the body, in which the token that it echoes is masked."""
    refusal = Refusal(status, f"sorry, {CANARY}: " + 5000 * "x", {"WWW-Authenticate": 'Bearer realm="r"'})
    with running(lambda: Broker(authorize=lambda headers, path: refusal)) as broker:
        step = failure(capfd, "upgrade", broker.url, *token_file(tmp_path, CANARY))
    assert f"HTTP status {status} ({http.HTTPStatus(status).phrase})" in step["text"]
    assert hint in step["advice"]
    assert step["details"]["status"] == status
    assert step["details"]["www_authenticate"] == 'Bearer realm="r"'
    assert step["details"]["body"].startswith("sorry, ***: x")
    assert len(step["details"]["body"]) < 400
    assert CANARY not in json.dumps(step)


def test_refused_upgrade_without_a_token(capfd: pytest.CaptureFixture[str]) -> None:
    """A 401 then asks for one."""
    with running(lambda: Broker(authorize=lambda headers, path: 401)) as broker:
        assert "--token-env" in failure(capfd, "upgrade", broker.url)["advice"]


@pytest.mark.parametrize(
    ("body", "hint"),
    [("No required SSL certificate was sent", "x509"), ("The plain HTTP request was sent to HTTPS port", "wss://")],
)
def test_refused_by_a_gateway_that_wants_tls(capfd: pytest.CaptureFixture[str], body: str, hint: str) -> None:
    """Two answers of nginx, both with status 400."""
    with running(lambda: Broker(authorize=lambda headers, path: Refusal(400, body))) as broker:
        assert hint in failure(capfd, "upgrade", broker.url)["advice"]


def test_redirected_upgrade(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Another host is not followed, and its query, where a token may be, is not shown."""
    elsewhere = Refusal(302, "", {"Location": f"https://login.example/?code={CANARY}"})
    with running(lambda: Broker(authorize=lambda headers, path: elsewhere)) as broker:
        step = failure(capfd, "upgrade", broker.url, *token_file(tmp_path, "secret-token"))
    assert "login.example" in step["text"]
    assert CANARY not in json.dumps(step)


def test_server_that_selects_no_subprotocol(capfd: pytest.CaptureFixture[str]) -> None:
    """The upgrade was in order; with --no-require-subprotocol it goes on."""
    with running(lambda: Broker(subprotocols=())) as broker:
        step = failure(capfd, "subprotocol", broker.url)
        assert step["details"] == {"offered": ["amqp"], "selected": None}
        assert "--no-require-subprotocol" in step["advice"]
        steps = examined(capfd, broker.url, "--no-require-subprotocol")
    assert steps["subprotocol"]["details"]["selected"] is None


def upgrading(subprotocol: str, data: bytes = b"") -> Handler:
    """A server that agrees to the upgrade, says this, and then nothing more."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Socket(reader, writer).upgrade(data, subprotocol)
        await silence(reader, writer)

    return handle


def test_server_that_selects_what_was_not_offered(capfd: pytest.CaptureFixture[str]) -> None:
    """The advice is how to offer it."""
    with listening(upgrading("AMQPWSB10")) as port:
        step = failure(capfd, "subprotocol", f"ws://127.0.0.1:{port}/")
    assert step["details"]["selected"] == "AMQPWSB10"
    assert "--subprotocol AMQPWSB10" in step["advice"]


def test_answer_that_is_no_http(capfd: pytest.CaptureFixture[str]) -> None:
    """What came is no upgrade."""

    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await silence(reader, writer)

    with listening(ssh) as port:
        assert "no HTTP" in failure(capfd, "upgrade", f"ws://127.0.0.1:{port}/")["text"]


# --- AMQP ----------------------------------------------------------------------------------------


def test_refused_user(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No user and a wrong password are told apart, and the mechanisms are those that were offered."""
    (tmp_path / "password").write_text(CANARY)
    user = ["--user", "alice", "--password-file", str(tmp_path / "password")]
    with running(lambda: Broker(users={"alice": "right"})) as broker:
        step = failure(capfd, "sasl", broker.url)
        assert step["details"]["offered"] == ["PLAIN"]
        assert "--user NAME" in step["advice"]
        step = failure(capfd, "sasl", broker.url, *user)
        assert (step["details"]["used"], step["details"]["outcome"]) == ("PLAIN", 1)
        assert step["advice"] == "check user name and password"
        assert CANARY not in json.dumps(step)
    with running(Broker) as broker:
        step = failure(capfd, "sasl", broker.url, *user)
        assert step["details"]["offered"] == ["ANONYMOUS"]
        assert "leave --user out" in step["advice"]


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (b"CONNECTED\nversion:1.2\n\n\x00", "STOMP"),
        (b"AMQP\x00\x00\x09\x01", "another version"),
        (SASL_HEADER + b"\x00\x00\x00\x02\x02\x01\x00\x00", None),
        (SASL_HEADER + b"\x00\x00\x00\x0a\x02\x01\x00\x00\x00\x53", None),
    ],
    ids=["stomp", "amqp-0-9-1", "bad-frame", "bad-value"],
)
def test_server_that_does_not_speak_amqp(capfd: pytest.CaptureFixture[str], said: bytes, hint: str | None) -> None:
    """The WebSocket is in order, and what came over it is not AMQP 1.0."""
    with listening(upgrading("amqp", frame(said))) as port:
        step = failure(capfd, "sasl", f"ws://127.0.0.1:{port}/", *quick(5))
    assert hint is None or hint in step["advice"]


def test_mechanisms_that_come_in_pieces(capfd: pytest.CaptureFixture[str]) -> None:
    """However the server cuts what it says, the offer is heard."""

    def peer() -> Peer:
        peer = Peer()
        peer.cut = lambda data: [data[at : at + 1] for at in range(len(data))]
        return peer

    with running(peer) as served:
        assert examined(capfd, served.url)["sasl"]["details"]["offered"] == ["ANONYMOUS"]


def test_websocket_that_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Silence after the upgrade is told from silence before."""
    with listening(upgrading("amqp")) as port:
        step = failure(capfd, "sasl", f"ws://127.0.0.1:{port}/", *quick())
    assert "no SASL from the server within" in step["text"]
    assert "may not speak AMQP here" in step["advice"]


@pytest.mark.parametrize(
    ("event", "step", "status"), [("open", "open", 3), ("begin", "session", 5), ("attach", "attach", 5)]
)
def test_broker_that_stops_answering(capfd: pytest.CaptureFixture[str], event: str, step: str, status: int) -> None:
    """Each answer of AMQP has its own step, and all of them one time limit."""

    def peer() -> Peer:
        peer = Peer()
        peer.on[event] = ignore
        return peer

    with running(peer) as served:
        found = failure(capfd, step, served.url, "orders", *quick(1), status=status)
    assert "within 1 s (--open-timeout)" in found["text"]


def test_broker_that_closes_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Its condition and description are in the text."""

    def peer() -> Peer:
        peer = Peer()
        peer.on["open"] = lambda conversation, _: conversation.close("amqp:connection:forced", "maintenance\x1b[31m")
        return peer

    with running(peer) as served:
        step = failure(capfd, "open", served.url)
        assert "amqp:connection:forced" in step["text"]
        assert main(["doctor", served.url]) == 3
    assert "maintenance\\x1b[31m" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("condition", "hint"),
    [
        ("amqp:not-found", "whether it was created"),
        ("amqp:not-allowed", "check permissions"),
        ("amqp:resource-limit-exceeded", "a limit is reached"),
        ("amqp:not-implemented", "kind of address"),
        ("x:y", "log may say more"),
    ],
)
def test_refused_address(capfd: pytest.CaptureFixture[str], condition: str, hint: str) -> None:
    """The status is that of a refused address, and the condition is in the details."""

    def refusing(request: LinkRequest) -> amqp.ErrorCondition:
        return amqp.ErrorCondition(condition, f"no {request.role} here")

    with running(lambda: Broker(authorize_link=refusing)) as broker:
        step = failure(capfd, "attach", broker.url, "orders", status=4)
        assert step["details"]["condition"] == condition
        assert hint in step["advice"]
        step = failure(capfd, "attach", broker.url, "orders", "--receive", status=4)
    assert step["details"]["role"] == "receiver"
    assert "no receiver here" in step["text"]


def test_refused_session(capfd: pytest.CaptureFixture[str]) -> None:
    """A broker that ends every session leaves the open step in order."""

    def peer() -> Peer:
        peer = Peer()
        peer.on["attach"] = refuse("amqp:not-found")
        peer.on["begin"] = lambda conversation, session: conversation.end("amqp:resource-limit-exceeded", session)
        return peer

    with running(peer) as served:
        step = failure(capfd, "session", served.url, status=5)
    assert "amqp:resource-limit-exceeded" in step["text"]


def test_broker_that_does_not_close_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    """The last step has a failure of its own."""

    def peer() -> Peer:
        peer = Peer()
        peer.on["close"] = lambda conversation, _: conversation.close("amqp:internal-error", "oops")
        return peer

    with running(peer) as served:
        assert "oops" in failure(capfd, "close", served.url, status=5)["text"]


# --- as a process --------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_and_what_was_found_is_told(number: signal.Signals, status: int) -> None:
    """The step under way counts as not tried, and the JSON is whole."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start("doctor", f"ws://127.0.0.1:{server.getsockname()[1]}/", "--json")
        server.settimeout(TIMEOUT)
        probe, _ = server.accept()
        upgrade, _ = server.accept()
        with probe, upgrade:
            upgrade.settimeout(TIMEOUT)
            upgrade.recv(1)
            process.send_signal(number)
            done = finish(process)
    assert (done.returncode, done.stderr) == (status, b"")
    result = json.loads(done.stdout)
    assert not result["ok"]
    assert [step["ok"] for step in result["steps"]] == [True, True, True, True, *[None] * 6]


def test_steps_are_shown_as_they_come() -> None:
    """A peer that is slow does not hold back what was found before."""
    with listening(silence) as port:
        process = start("doctor", f"ws://127.0.0.1:{port}/")
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert lines[-1].split()[1] == "token"
    assert b"not tried" in done.stdout
    assert done.returncode == 130


def test_reader_that_goes_away_is_no_crash() -> None:
    """``amqpws doctor ... | head -1`` leaves no complaint."""
    with listening(silence) as port:
        process = start("doctor", f"ws://127.0.0.1:{port}/", *quick(2))
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        done = finish(process)
    assert (done.returncode, done.stderr) == (141, b"")
