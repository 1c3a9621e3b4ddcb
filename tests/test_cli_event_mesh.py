"""The ``amqpws`` command and SAP Event Mesh: service keys in place of URLs, the embedded counterpart, the whole way."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from amqpws_async.cli import main
from amqpws_async.testing import EventMesh, Refusal, TokenAnswer, TokenServer
from tests.cli_command import COMMAND, TIMEOUT, broker, finish, run, start
from tests.cli_servers import running

QUEUE = "queue:${namespace}/orders"
TOPIC = "topic:${namespace}/orders/created"


class Served(NamedTuple):
    """A running ``amqpws broker --event-mesh``."""

    url: str
    key: Path
    ca: Path

    @property
    def options(self) -> list[str]:
        return ["--service-key", str(self.key), "--ca", str(self.ca)]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with broker("--event-mesh", "--queue", "orders=orders/*", "--queue", "${namespace}/invoices=a/b,c/d") as (
        url,
        process,
    ):
        assert process.stdout is not None
        key, ca = (Path(process.stdout.readline().decode().strip()) for _ in range(2))
        yield Served(url, key, ca)


@pytest.fixture(scope="module")
def mesh() -> Iterator[EventMesh]:
    with running(EventMesh) as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/orders/*")
        yield mesh


@pytest.fixture
def options(mesh: EventMesh, tmp_path: Path) -> list[str]:
    key, ca = mesh.write_key(tmp_path)
    return ["--service-key", str(key), "--ca", str(ca)]


def steps_of(output: str) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads(output)["steps"]}


# --- the broker ----------------------------------------------------------------------------------


def test_what_the_broker_says_to_run_works_when_copied() -> None:
    """Doctor, send and receive, word for word as a shell takes them, and the files are gone at the end."""
    with broker("--event-mesh") as (_, process):
        assert process.stdout is not None
        assert process.stderr is not None
        files = [Path(process.stdout.readline().decode().strip()) for _ in range(2)]
        lines = list(iter(lambda: process.stderr.readline().decode(), "Ctrl-C ends it, and removes both files\n"))  # type: ignore[union-attr]
        commands = [line.strip() for line in lines if line.startswith("  amqpws ")]
        outputs = []
        for command in commands:
            line = f"{shlex.join(COMMAND)} {command.removeprefix('amqpws ')}"
            done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=TIMEOUT, check=False)
            assert (done.returncode, done.stderr) == (0, b""), command
            outputs.append(done.stdout)
        assert [command.split()[1] for command in commands] == ["doctor", "send", "receive"]
        assert outputs[2] == b"hello\n"
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert done.returncode == 0
    assert b"1 accepted, empty" in done.stderr
    assert not any(file.exists() for file in files)
    assert not files[0].parent.exists()


def test_key_is_written_where_asked_and_never_over_a_file(tmp_path: Path) -> None:
    """What is there may be the key of a real service."""
    file = tmp_path / "key.json"
    with broker("--event-mesh", "--key-file", str(file)) as (url, _):
        key = json.loads(file.read_text())
        assert key["messaging"][0]["uri"] == url
        assert (tmp_path / "key-ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
        done = run("broker", "--event-mesh", "--port", "0", "--key-file", str(file))
        assert done.returncode == 2
        assert b"never written over" in done.stderr
        assert json.loads(file.read_text()) == key
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--key-file", "k.json"), "go with --event-mesh"),
        (("--queue", "a=b/c"), "go with --event-mesh"),
        (("--event-mesh", "--queue", "=b/c"), "NAME=TOPIC"),
        (("--event-mesh", "--queue", "a b"), "--queue"),
        (("--event-mesh", "--queue", "a=b/*/c"), "--queue"),
        (("--event-mesh", "--users-file", "users"), "no --tls, --users-file"),
        (("--event-mesh", "--key-file", "/no/such/folder/k.json"), "No such file"),
    ],
)
def test_wrong_arguments_of_the_broker(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], hint: str
) -> None:
    """One line that says what to do, and the status is 2."""
    assert main(["broker", "--port", "0", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert hint in captured.err


@pytest.mark.parametrize("command", ["broker", "demo"])
def test_without_trustme_the_error_says_what_to_install(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The extra is named, not the package alone."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    assert main([command, "--event-mesh"]) == 1
    assert "pip install 'amqpws-async[testing]'" in capfd.readouterr().err


# --- send and receive ----------------------------------------------------------------------------


def test_from_a_topic_to_a_queue(capfd: pytest.CaptureFixture[str], served: Served) -> None:
    """The address goes out in the message's "to", with its fields beside it."""
    fields = ["--content-type", "application/json", "--property", "n:int=1", "--message-id", "m-{n}"]
    assert main(["send", *served.options, TOPIC, '{"id": 1}', "--count", "3", "--json", *fields]) == 0
    assert json.loads(capfd.readouterr().out)["accepted"] == 3
    assert main(["receive", *served.options, QUEUE, "--count", "3", "--json"]) == 0
    messages = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [message["properties"]["message_id"] for message in messages] == ["m-1", "m-2", "m-3"]
    assert messages[0]["properties"]["to"] == "topic:example/shop/1/orders/created"
    assert (messages[0]["body"], messages[0]["application_properties"]) == ('{"id": 1}', {"n": 1})


def test_lines_of_standard_input_and_arguments_in_any_order(served: Served) -> None:
    """As with a URL, in processes of their own."""
    done = finish(start("send", TOPIC.replace("created", "lines"), *served.options), b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("receive", "--count", "2", QUEUE, *served.options)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")


def test_settled_is_quality_of_service_0(capfd: pytest.CaptureFixture[str], served: Served) -> None:
    """Nothing is known of the outcome; the address may stand in --to."""
    assert main(["send", *served.options, "--to", TOPIC, "--size", "5", "--settled", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["settled"] == 1
    assert main(["receive", *served.options, QUEUE, "--count", "1"]) == 0
    assert capfd.readouterr().out == "01234\n"


def test_bound_service(served: Served) -> None:
    """--env finds it in VCAP_SERVICES; of several, --binding chooses."""
    key = json.loads(served.key.read_text())
    services = {
        "enterprise-messaging": [
            {"name": "one", "label": "enterprise-messaging", "credentials": key},
            {"name": "two", "label": "enterprise-messaging", "credentials": {**key, "messaging": []}},
        ]
    }
    env = {"VCAP_SERVICES": json.dumps(services)}
    done = finish(start("send", "--env", TOPIC, "x", "--ca", str(served.ca), env=env))
    assert done.returncode == 2
    assert b"'one'" in done.stderr
    arguments = ["--env", "--binding", "one", "--ca", str(served.ca)]
    assert finish(start("send", TOPIC, "bound", *arguments, env=env)).returncode == 0
    done = finish(start("receive", QUEUE, "--count", "1", *arguments, env=env))
    assert (done.returncode, done.stdout) == (0, b"bound\n")
    done = finish(start("doctor", "--json", *arguments, env=env))
    assert done.returncode == 0
    assert "one" in steps_of(done.stdout.decode())["key"]["details"]["origin"]


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (("send", "orders", "x"), 2, "'queue:orders' or 'topic:orders'"),
        (("send", "topic:/orders/created", "x"), 2, "single quotes"),
        (("send", "topic:${namespace}/orders/*", "x"), 2, "wildcards"),
        (("send",), 2, "ADDRESS"),
        (("send", TOPIC, "x", "y"), 2, "too many arguments"),
        (("send", TOPIC, "x", "--user", "alice"), 2, "--user"),
        (("receive",), 2, "ADDRESS"),
        (("receive", QUEUE, "--browse"), 2, "neither copies nor filters"),
        (("receive", QUEUE, "--selector", "a = 1"), 2, "neither copies nor filters"),
        (("receive", "wss://broker.example", QUEUE), 2, "leave it out"),
        (("receive", "queue:${namespace}/none"), 4, "amqp:not-found"),
        (("receive", "queue:other/shop/1/orders"), 4, "amqp:not-allowed"),
    ],
)
def test_what_does_not_suit_is_said_in_a_line(
    capfd: pytest.CaptureFixture[str], served: Served, arguments: tuple[str, ...], status: int, hint: str
) -> None:
    """What can be known beforehand is told before anything is connected."""
    command, *others = arguments
    assert main([command, *served.options, *others]) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert hint in captured.err


def test_topic_that_is_not_allowed_is_a_rejected_message(capfd: pytest.CaptureFixture[str], served: Served) -> None:
    """On the anonymous link nothing else can say so."""
    assert main(["send", *served.options, "topic:other/shop/1/orders", "x"]) == 1
    assert "amqp:not-allowed" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"messaging": []}'])
def test_unfit_service_key_is_status_2(capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    """The file is named, and the doctor says the same as a step."""
    file = tmp_path / "key.json"
    file.write_text(content)
    assert main(["receive", "--service-key", str(file), QUEUE]) == 2
    complaint = capfd.readouterr().err.removeprefix("amqpws: ").strip()
    assert str(file) in complaint
    assert main(["doctor", "--service-key", str(file), "--json"]) == 2
    steps = steps_of(capfd.readouterr().out)
    assert steps["key"]["ok"] is False
    assert steps["key"]["text"] == complaint
    assert {step["ok"] for name, step in steps.items() if name != "key"} == {None}


# --- the doctor ----------------------------------------------------------------------------------


def test_doctor_walks_from_the_key_on(capfd: pytest.CaptureFixture[str], mesh: EventMesh, options: list[str]) -> None:
    """The key comes first, and the token's step says where it is from, for how long, and what for."""
    assert main(["doctor", *options, TOPIC, "--json"]) == 0
    steps = steps_of(capfd.readouterr().out)
    assert next(iter(steps)) == "key"
    assert steps["key"]["details"]["namespace"] == "example/shop/1"
    assert steps["key"]["details"]["authentication"] == "secret"
    details = steps["token"]["details"]
    assert details["source"] == mesh.token_url
    assert 43100 < details["expires_in"] < 43200
    assert details["scopes"] == ["uaa.resource"]
    assert details["audience"][0].startswith("sb-default-")
    assert "anonymous terminus" in steps["attach"]["text"]
    assert main(["doctor", *options, "queue:${namespace}/none", "--receive", "--json"]) == 4
    step = steps_of(capfd.readouterr().out)["attach"]
    assert step["details"]["address"] == "queue:example/shop/1/none"
    assert step["details"]["condition"] == "amqp:not-found"


def test_doctor_with_a_client_certificate(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A key of the type x509 shows its certificate to the token endpoint and to the broker."""
    with running(lambda: EventMesh(x509=True)) as mesh:
        key, ca = mesh.write_key(tmp_path)
        assert main(["doctor", "--service-key", str(key), "--ca", str(ca), "--json"]) == 0
        assert steps_of(capfd.readouterr().out)["key"]["details"]["authentication"] == "certificate"
        # A certificate that is managed elsewhere: the service key has none, and says what to do.
        content = json.loads(key.read_text())
        for name in ("certificate", "key"):
            (tmp_path / f"{name}.pem").write_text(content["uaa"].pop(name))
        key.write_text(json.dumps(content))
        assert main(["doctor", "--service-key", str(key), "--ca", str(ca), "--json"]) == 2
        assert "--certificate own.pem key.pem" in steps_of(capfd.readouterr().out)["key"]["text"]
        files = [str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")]
        mesh.create_queue("${namespace}/orders")
        arguments = ["--service-key", str(key), "--ca", str(ca), "--certificate", *files]
        assert main(["doctor", *arguments, "--json"]) == 0
        assert main(["send", *arguments, QUEUE, "x"]) == 0


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (TokenAnswer.UNAUTHORIZED, "check client id and secret"),
        (TokenAnswer.SERVER_ERROR, "HTTP status 500"),
        (TokenAnswer(200, b"<html>", {"Content-Type": "text/html"}), "no JSON object (text/html)"),
        (TokenAnswer.GARBAGE, "no JSON object"),
        (TokenAnswer(302, b"", {"Location": "https://login.example/?x=1"}), "redirect to 'https://login.example/'"),
        (TokenAnswer.SLOW, "within 1 s (--open-timeout)"),
    ],
    ids=["401", "500", "html", "garbage", "redirect", "slow"],
)
def test_token_that_cannot_be_had(
    capfd: pytest.CaptureFixture[str], mesh: EventMesh, options: list[str], answer: TokenAnswer, hint: str
) -> None:
    """It ends at the token, with what the token server said."""
    mesh.token_server.answer = answer
    try:
        assert main(["doctor", *options, "--json", "--open-timeout", "1" if answer is TokenAnswer.SLOW else "20"]) == 3
    finally:
        mesh.token_server.answer = None
    steps = steps_of(capfd.readouterr().out)
    assert [name for name, step in steps.items() if step["ok"] is False] == ["token"]
    assert hint in steps["token"]["text"]
    assert steps["upgrade"]["ok"] is None


# --- secrets -------------------------------------------------------------------------------------


def spellings(secret: str) -> set[str]:
    """A secret as it is, as it travels, and as JSON has it."""
    return {secret, urllib.parse.quote_plus(secret), urllib.parse.quote(secret), json.dumps(secret)[1:-1]}


CANARY = "canary-5f3a9c"
SITUATIONS = ("well", "token-echoed", "token-redirected", "upgrade-echoed", "untrusted", "no-queue")


def echoing(headers: Mapping[str, str], path: str) -> Refusal:
    """Refuses with all that it was sent."""
    sent = headers["Authorization"]
    return Refusal(403, f"you sent {sent}", {"WWW-Authenticate": f"Bearer {sent}"})


def set_up(situation: str, server: TokenServer) -> None:
    """Makes the servers behave as the situation has it."""
    quoted = json.dumps({"error": "x", "error_description": server.client_secret}).encode()
    server.answer = {
        "token-echoed": TokenAnswer(400, quoted),
        "token-redirected": TokenAnswer(302, b"", {"Location": f"https://u:{CANARY}@a.example/?s={CANARY}"}),
    }.get(situation)
    authorize = echoing if situation == "upgrade-echoed" else TokenServer.authorize.__get__(server)
    server.authorize = authorize  # type: ignore[method-assign]


def said(commands: list[list[str]]) -> list[str]:
    """Runs the commands side by side; gives all that each says, the tracebacks of --verbose too."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    processes = [
        subprocess.Popen([*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        for command in commands
    ]
    return [process.communicate(timeout=TIMEOUT)[0].decode() for process in processes]


@pytest.mark.timeout(180)  # two dozen processes
@pytest.mark.parametrize("x509", [False, True], ids=["secret", "certificate"])
def test_no_command_shows_a_secret_in_any_situation(tmp_path: Path, x509: bool) -> None:
    """Not with --verbose and --trace, with or without --json: neither secret nor token nor private key."""
    tokens: list[str] = []
    shown: dict[str, str] = {}
    with running(lambda: EventMesh(x509=x509)) as mesh:
        key, ca = mesh.write_key(tmp_path)
        mesh.create_queue("${namespace}/orders")
        server = mesh.token_server
        make = server.make_token

        def making(*arguments: Any, **options: Any) -> str:
            tokens.append(make(*arguments, **options))
            return tokens[-1]

        server.make_token = making  # type: ignore[method-assign]
        for situation in SITUATIONS:
            set_up(situation, server)
            common = ["--service-key", str(key), "--verbose", "--trace"]
            common += [] if situation == "untrusted" else ["--ca", str(ca)]
            common += ["queue:${namespace}/" + ("none" if situation == "no-queue" else "orders")]
            commands = {
                "doctor": ["doctor", *common, "--receive"],
                "doctor --json": ["doctor", *common, "--receive", "--json"],
                "send --json": ["send", *common, "hello", "--json"],
                "receive": ["receive", *common, "--count", "1", "--timeout", "3"],
            }
            outputs = said(list(commands.values()))
            shown |= {f"{situation}, {name}": output for name, output in zip(commands, outputs, strict=True)}
    if x509:
        secrets = {line for line in json.loads(key.read_text())["uaa"]["key"].splitlines() if "-----" not in line}
    else:
        secrets = spellings(server.client_secret)
        pair = f"{urllib.parse.quote_plus(server.client_id)}:{urllib.parse.quote_plus(server.client_secret)}"
        secrets.add(base64.b64encode(pair.encode()).decode())
    assert tokens
    secrets |= {part for token in tokens for part in (token, *token.split(".")[1:])} | {CANARY}
    for name, output in shown.items():
        assert not [secret for secret in secrets if secret in output], name
    # Each situation was what its name says, and the commands got to where it shows.
    for situation, hint in (
        ("well", "hello"),
        ("token-echoed", "HTTP status 400"),
        ("token-redirected", "a redirect to"),
        ("upgrade-echoed", "HTTP status 403"),
        ("untrusted", "not trusted"),
        ("no-queue", "amqp:not-found"),
    ):
        assert hint in shown[f"{situation}, receive"], situation
        assert hint in shown[f"{situation}, doctor --json"] or situation == "well", situation
    assert "@sasl-init" in shown["well, receive"]
    assert "you sent Bearer ***" in shown["upgrade-echoed, doctor --json"]


# --- the demonstration ---------------------------------------------------------------------------


def test_demo_shows_the_whole_way() -> None:
    """A line for each step with its time, then the account of every message."""
    done = run("demo", "--event-mesh", "--messages", "200", "--size", "10")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    steps = [line.split()[0] for line in lines if " ms  " in line]
    assert steps == ["mesh", "key", "token", "queue", "connect", "publish", "receive", "refresh"]
    assert '  from queue:${namespace}/orders: {"order": 1}, accepted' in "\n".join(lines)
    assert lines[-1] == "  accounted for by id: 200 of 200, none twice"


def test_demo_for_a_program(capfd: pytest.CaptureFixture[str]) -> None:
    """One JSON object, and nothing else."""
    assert main(["demo", "--event-mesh", "--messages", "50", "--json"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["messages"], result["accepted"], result["missing"], result["exact"]) == (50, 50, 0, True)
    assert all(step["seconds"] >= 0 and step["text"] for step in result["steps"])


def test_demo_refuses_what_it_has_no_use_for(capfd: pytest.CaptureFixture[str]) -> None:
    """Options of the other demonstration."""
    assert main(["demo", "--event-mesh", "--senders", "2"]) == 2
    assert "--senders" in capfd.readouterr().err


def test_signal_ends_the_demo_and_leaves_no_key_behind(tmp_path: Path) -> None:
    """The folder of the key is removed on the way out."""
    process = start("demo", "--event-mesh", "--messages", "10000000", env={"TMPDIR": str(tmp_path)})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"  refresh"):
            break
    process.send_signal(signal.SIGINT)
    assert finish(process).returncode == 130
    assert list(tmp_path.iterdir()) == []
