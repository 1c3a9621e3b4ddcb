"""The ``amqpws`` command, run in this process against the embedded broker in another one."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

import amqpws_async as amqp
from amqpws_async.cli import main
from amqpws_async.testing import Broker, LinkRequest
from tests.cli_command import TIMEOUT, broker, run

CANARY = "canary-5f3a9c"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with broker() as (url, _):
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = tmp_path_factory.mktemp("broker") / "users"
    users.write_text(f"# who may connect\n\nalice: {CANARY}\n")
    with broker("--users-file", str(users)) as (url, _):
        yield url


@contextmanager
def fed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[None]:
    """Makes `data` the standard input."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with os.fdopen(reading) as input, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", input)
        yield


@contextmanager
def embedded(**options: Any) -> Iterator[str]:
    """Runs a broker with options that the command has none for, on a loop in another thread; gives its URL."""
    started: Future[str] = Future()
    ended = asyncio.Event()

    async def serve() -> None:
        async with Broker(**options) as broker:
            started.set_result(broker.url)
            await ended.wait()

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        server = threading.Thread(target=runner.run, args=[serve()])
        server.start()
        try:
            yield started.result(TIMEOUT)
        finally:
            loop.call_soon_threadsafe(ended.set)
            server.join()


def usage_error(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, which must complain about its arguments in one line; gives the line."""
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("amqpws: ")
    assert captured.err.count("\n") == 1
    return captured.err


def received(capfd: pytest.CaptureFixture[str], url: str, address: str, *options: str) -> list[dict[str, Any]]:
    """Receives with ``--json`` all that is there."""
    assert main(["receive", url, address, "--json", "--timeout", "0.3", *options]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


# --- help and usage ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("demo",), ("broker",), ("send",), ("receive",), ("doctor",)])
def test_help_teaches_by_examples_and_lists_the_exit_statuses(
    capfd: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """Every help text has examples and says what each exit status means."""
    assert main([*command, "--help"]) == 0
    text = capfd.readouterr().out
    assert "examples:" in text
    for status in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n  {status}" in text


def test_every_example_in_a_help_text_parses(capfd: pytest.CaptureFixture[str]) -> None:
    """What the help texts show is taken by the parser."""
    from amqpws_async.cli import broker, demo, doctor, receive, send
    from amqpws_async.cli.arguments import new_parser

    parser, commands = new_parser()
    for module in (demo, broker, send, receive, doctor):
        module.add_to(commands)
    parsed = 0
    for command in (parser, *commands.choices.values()):
        for line in command.epilog.splitlines():
            _, found, rest = line.partition("amqpws ")
            if found and line.startswith("    "):
                words = shlex.split(rest.partition(" | ")[0].partition(" > ")[0])
                parser.parse_args(words)
                parsed += 1
    assert parsed >= 25


def test_version_says_what_it_runs_on(capfd: pytest.CaptureFixture[str]) -> None:
    """One line with what a bug report needs."""
    assert main(["--version"]) == 0
    text = capfd.readouterr().out
    assert text.startswith(f"amqpws {amqp.__version__} (python 3.")
    assert "python-qpid-proton 0.4" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "COMMAND"),
        (("sned",), "sned"),
        (("send",), "URL"),
        (("receive", "ws://localhost"), "ADDRESS"),
        (("send", "http://localhost", "q", "x"), "ws://"),
        (("send", "ws://alice:secret@localhost", "q", "x"), "--user and --password-env"),
        (("send", "ws://localhost"), "--to"),
        (("send", "ws://localhost", "q", "--count", "2"), "--file"),
        (("send", "ws://localhost", "q", "x", "--size", "3"), "exclude each other"),
        (("send", "ws://localhost", "q", "--file", "/no/such/file"), "No such file"),
        (("send", "ws://localhost", "q", "x", "--priority", "256"), "priority"),
        (("send", "ws://localhost", "q", "x", "--property", "novalue"), "name=value"),
        (("send", "ws://localhost", "q", "x", "--property", "a:ubyte=300"), "ubyte"),
        (("send", "ws://localhost", "q", "x", "--property", "a:boolean=perhaps"), "boolean"),
        (("send", "ws://localhost", "q", "x", "--property", "a:uuid=1"), "uuid"),
        (("send", "ws://localhost", "q", "x", "--count", "0"), "at least 1"),
        (("send", "ws://localhost", "q", "x", "--content-type", "naïve"), "ASCII"),
        (("send", "ws://localhost", "q", "x", "y"), "too many arguments"),
        (("send", "ws://localhost", "q", "x", "--ttl", "nan"), "seconds above 0"),
        (("receive", "ws://localhost", "q", "--timeout", "-1"), "seconds above 0"),
        (("receive", "ws://localhost", "q", "--credit", "many"), "number"),
        (("receive", "ws://localhost", "q", "--selector", " "), "selector"),
        (("receive", "ws://localhost", "q", "--ca", "/no/such/file"), "ssl"),
        (("receive", "ws://localhost", "q", "--subprotocol", "a b"), "subprotocol"),
        (("broker", "--port", "-1"), "negative"),
        (("broker", "--tls", "/no/cert", "/no/key"), "--tls"),
        (("broker", "--users-file", "/no/such/file"), "No such file"),
    ],
)
def test_wrong_arguments_get_one_line_that_says_what_to_do(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], hint: str
) -> None:
    """Nothing is connected, and the status is 2."""
    assert hint in usage_error(capfd, *arguments)


def test_arguments_may_stand_in_any_order(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Options may stand between the positional arguments, and a body may look like an option."""
    assert main(["send", url, "--count", "2", "order", "--subject", "s", "--", "-x"]) == 0
    assert [message["body"] for message in received(capfd, url, "order")] == ["-x", "-x"]


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--token", CANARY),
        (f"--token={CANARY}",),
        ("--password", CANARY),
        (f"--password={CANARY}",),
        ("--token-env", CANARY),
        ("--token-file", CANARY),
        ("--user", "alice", "--password-env", CANARY),
        ("--user", "alice", "--password-file", CANARY),
        ("--header-file", CANARY),
        ("--passwd", CANARY),
        (f"--passwd={CANARY}",),
        ("--proxy", f"http://alice:{CANARY}@localhost:3128"),
        ("--proxy", f"http://alice:{CANARY}@localhost:port"),
    ],
)
def test_secret_among_the_arguments_is_refused_and_not_repeated(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """Whatever a user mistakes for the way to give a secret, the complaint does not have it."""
    assert CANARY not in usage_error(capfd, "receive", "ws://localhost", "q", *arguments)


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"", "empty"), (b"\xff", "UTF-8"), (b"two words", "token"), (f"Bearer {CANARY}".encode(), "Bearer")],
)
def test_file_with_no_proper_token_is_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, hint: str
) -> None:
    """The reason is given, the content is not."""
    file = tmp_path / "token"
    file.write_bytes(content)
    line = usage_error(capfd, "receive", "ws://localhost", "q", "--token-file", str(file))
    assert hint in line
    assert CANARY not in line


def test_password_and_user_belong_together(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the other is an error."""
    monkeypatch.setenv("PASSWORD", CANARY)
    assert "--user" in usage_error(capfd, "receive", "ws://localhost", "q", "--password-env", "PASSWORD")
    assert "--password-env" in usage_error(capfd, "receive", "ws://localhost", "q", "--user", "alice")


def test_header_file_must_have_names_and_values(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A wrong line is named by its number, never shown."""
    file = tmp_path / "headers"
    file.write_text(f"X-Good: yes\n{CANARY}\n")
    line = usage_error(capfd, "receive", "ws://localhost", "q", "--header-file", str(file))
    assert "line 2" in line
    assert CANARY not in line


def test_token_to_another_machine_needs_encryption(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the command's own option, and not the token."""
    monkeypatch.setenv("TOKEN", CANARY)
    line = usage_error(capfd, "receive", "ws://broker.example", "q", "--token-env", "TOKEN")
    assert "--allow-insecure-auth" in line
    assert CANARY not in line


def test_secrets_stay_out_of_everything_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, guarded: str, tmp_path: Path
) -> None:
    """Not even --verbose with --trace shows a token, a password or a header."""
    monkeypatch.setenv("PASSWORD", CANARY)
    (tmp_path / "headers").write_text(f"X-Key: {CANARY}\n")
    (tmp_path / "token").write_text(f"{CANARY}\n")
    options = ["--user", "alice", "--password-env", "PASSWORD", "--header-file", str(tmp_path / "headers")]
    options += ["--token-file", str(tmp_path / "token"), "--verbose", "--trace"]
    assert main(["send", guarded, "q", "x", *options]) == 0
    assert main(["send", guarded, "q", "x", *options, "--user", "bob"]) == 3
    captured = capfd.readouterr()
    assert "sasl-init" in captured.err
    assert CANARY not in captured.out + captured.err


# --- connecting --------------------------------------------------------------------------------------


def test_refused_user_is_status_3_with_a_hint(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, guarded: str, tmp_path: Path
) -> None:
    """No user and a wrong password are told apart, each with what to do, and the right password works."""
    assert main(["send", guarded, "q", "x"]) == 3
    assert "--user and --password-env" in capfd.readouterr().err
    monkeypatch.setenv("PASSWORD", "wrong")
    assert main(["send", guarded, "q", "x", "--user", "alice", "--password-env", "PASSWORD"]) == 3
    assert "check user name and password" in capfd.readouterr().err
    (tmp_path / "password").write_text(f"{CANARY}\n")
    assert main(["send", guarded, "q", "x", "--user", "alice", "--password-file", str(tmp_path / "password")]) == 0


@pytest.mark.parametrize("options", [(), ("--proxy", "none"), ("--proxy", "http://127.0.0.1:9")])
def test_nobody_listening_is_status_3(capfd: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    """The error is one line that names the address."""
    assert main(["receive", "ws://127.0.0.1:9/", "q", *options]) == 3
    error = capfd.readouterr().err
    assert "127.0.0.1:9" in error
    assert error.count("\n") == 1


def test_verbose_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """For whoever wants to know more."""
    assert main(["receive", "ws://127.0.0.1:9/", "q", "--verbose"]) == 3
    assert "Traceback" in capfd.readouterr().err


def test_private_ca_and_tls_of_the_broker(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The broker's --tls serves wss, which --ca trusts and the system's CAs do not."""
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    with broker("--tls", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")) as (url, _):
        assert url.startswith("wss://")
        assert main(["send", url, "q", "x"]) == 3
        assert "--ca ca.pem" in capfd.readouterr().err
        assert main(["send", url, "q", "x", "--ca", str(tmp_path / "ca.pem")]) == 0


def test_subprotocol_is_what_the_arguments_say(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Several are offered, and a server that selects none is refused, unless the user says that it will do."""
    assert main(["send", url, "subprotocol", "x", "--subprotocol", "AMQPWSB10", "--subprotocol", "amqp"]) == 0
    with embedded(subprotocols=()) as relay:
        assert main(["send", relay, "q", "x"]) == 3
        assert "--no-require-subprotocol" in capfd.readouterr().err
        assert main(["send", relay, "q", "x", "--no-require-subprotocol"]) == 0


def test_refused_token_is_told_without_the_token(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 says what to check; the right token gets in."""

    def authorize(headers: Mapping[str, str], path: str) -> int | None:
        return None if headers.get("Authorization") == f"Bearer {CANARY}" else 401

    with embedded(authorize=authorize) as url:
        assert main(["send", url, "q", "x"]) == 3
        assert "--token-env" in capfd.readouterr().err
        monkeypatch.setenv("TOKEN", f"{CANARY}-expired")
        assert main(["send", url, "q", "x", "--token-env", "TOKEN", "--verbose"]) == 3
        error = capfd.readouterr().err
        assert "expired" in error
        assert CANARY not in error
        monkeypatch.setenv("TOKEN", CANARY)
        assert main(["send", url, "q", "x", "--token-env", "TOKEN"]) == 0


def test_refused_address_is_status_4(capfd: pytest.CaptureFixture[str]) -> None:
    """Both commands tell what the broker said."""

    def authorize(request: LinkRequest) -> amqp.ErrorCondition | None:
        return amqp.ErrorCondition("amqp:unauthorized-access", "not yours")

    with embedded(authorize_link=authorize) as url:
        assert main(["send", url, "q", "x"]) == 4
        assert main(["receive", url, "q"]) == 4
    assert capfd.readouterr().err.count("not yours") == 2


# --- send ----------------------------------------------------------------------------------------------


def test_send_fills_in_every_field_it_has_an_option_for(url: str) -> None:
    """What arrives has the fields and the types that the options say."""
    options = ["--content-type", "text/plain", "--subject", "s", "--to", "t", "--reply-to", "r"]
    options += ["--message-id", "m-{n}", "--correlation-id", "c", "--group-id", "g"]
    options += ["--durable", "--priority", "7", "--ttl", "60", "--count", "2"]
    typed = {
        "a": ("x=y:z", "x=y:z"),
        "b:c": ("1", "1"),
        "boolean:boolean": ("true", True),
        "byte:byte": ("-1", amqp.byte(-1)),
        "short:short": ("-2", amqp.short(-2)),
        "int:int": ("-3", amqp.int32(-3)),
        "long:long": ("-4", -4),
        "ubyte:ubyte": ("1", amqp.ubyte(1)),
        "ushort:ushort": ("2", amqp.ushort(2)),
        "uint:uint": ("3", amqp.uint(3)),
        "ulong:ulong": ("4", amqp.ulong(4)),
        "float:float": ("1.5", amqp.float32(1.5)),
        "double:double": ("2.5", 2.5),
        "symbol:symbol": ("s", amqp.symbol("s")),
        "ms:timestamp": ("1000", amqp.timestamp(1000)),
        "iso:timestamp": ("1970-01-01T00:00:02+00:00", amqp.timestamp(2000)),
    }
    for name, (text, _) in typed.items():
        options += ["--property", f"{name}={text}"]
    assert main(["send", url, "fields", "héllo", *options]) == 0

    async def take() -> list[amqp.Message]:
        async with amqp.connect(url) as connection, connection.receiver("fields") as receiver:
            deliveries = [await receiver.receive() for _ in range(2)]
            for delivery in deliveries:
                await delivery.accept()
            return [delivery.message for delivery in deliveries]

    first, second = asyncio.run(take())
    assert (first.message_id, second.message_id) == ("m-1", "m-2")
    assert first.body == "héllo".encode()
    assert (first.content_type, first.subject, first.to, first.reply_to) == ("text/plain", "s", "t", "r")
    assert (first.correlation_id, first.group_id) == ("c", "g")
    assert (first.durable, first.priority, first.ttl) == (True, 7, 60.0)
    names = [name if name == "b:c" else name.partition(":")[0] for name in typed]
    expected = dict(zip(names, (value for _, value in typed.values()), strict=True))
    assert first.application_properties == expected
    for name, value in expected.items():
        kind = type(first.application_properties[name])
        assert kind is type(value), name


def test_send_takes_each_line_of_standard_input(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """With either line end, empty lines too, and the last line also without one."""
    with fed(monkeypatch, b"one\r\n\ntwo\nthree"):
        assert main(["send", url, "lines", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["sent"], summary["accepted"], summary["unknown"], summary["error"]) == (4, 4, 0, None)
    assert [message["body"] for message in received(capfd, url, "lines")] == ["one", "", "two", "three"]


def test_send_takes_a_file_or_the_whole_standard_input_as_one_body(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, tmp_path: Path
) -> None:
    """Bytes go as they are."""
    (tmp_path / "body").write_bytes(b"\xff\n\n")
    assert main(["send", url, "files", "--file", str(tmp_path / "body")]) == 0
    with fed(monkeypatch, b"two\nlines\n"):
        assert main(["send", url, "files", "--file", "-"]) == 0
    first, second = received(capfd, url, "files")
    assert first["body_base64"] == "/woK"
    assert second["body"] == "two\nlines\n"


def test_send_through_the_anonymous_terminus(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """With no address or an empty one, the broker routes by --to."""
    assert main(["send", url, "--to", "relay", "--size", "40"]) == 0
    assert main(["send", url, "", "body", "--to", "relay"]) == 0
    assert [message["body"][:5] for message in received(capfd, url, "relay")] == ["01234", "body"]


def test_send_settled_waits_for_no_outcome(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """The summary says that nothing is known of them."""
    assert main(["send", url, "settled", "x", "--count", "3", "--settled", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["sent"], summary["settled"], summary["accepted"]) == (3, 3, 0)
    assert len(received(capfd, url, "settled")) == 3


def test_rejected_messages_are_status_1_and_told_one_by_one_up_to_a_limit(
    capfd: pytest.CaptureFixture[str], url: str
) -> None:
    """Ten failures are shown with their reason, the others are counted."""
    assert main(["send", url, "--to", "dynamic/nowhere", "--size", "3", "--count", "12", "--verbose"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("amqpws: message 1: rejected: amqp:not-found")
    assert lines[10] == "amqpws: and 2 more"
    assert "12 rejected" in lines[11]


def test_message_that_is_too_large_is_status_1(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """It is not sent, and the summary says so."""
    assert main(["send", url, "q", "--size", str(17 * 2**20), "--json"]) == 1
    captured = capfd.readouterr()
    assert json.loads(captured.out)["not_sent"] == 1
    assert "max-message-size" in captured.err


def test_no_credit_within_the_timeout_is_status_6(capfd: pytest.CaptureFixture[str]) -> None:
    """A full queue gives no credit, and --timeout ends the wait."""
    with broker() as (url, _):
        assert main(["send", url, "q", "--size", str(2**20), "--count", "200", "--timeout", "0.5", "--json"]) == 6
    summary = json.loads(capfd.readouterr().out)
    assert 0 < summary["sent"] < 200
    assert summary["accepted"] == summary["sent"]
    assert "no credit" in summary["error"]


# --- receive -------------------------------------------------------------------------------------------


def test_receive_takes_exactly_as_many_as_asked_for(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Not one message more leaves the queue, so nothing is redelivered, whatever the window."""
    assert main(["send", url, "exact", "x", "--count", "30", "--message-id", "{n}"]) == 0
    assert main(["receive", url, "exact", "--count", "25", "--credit", "4", "--json", "--verbose"]) == 0
    captured = capfd.readouterr()
    taken = [json.loads(line)["properties"]["message_id"] for line in captured.out.splitlines()]
    rest = received(capfd, url, "exact")
    assert taken + [message["properties"]["message_id"] for message in rest] == [str(n) for n in range(1, 31)]
    assert {message["header"]["delivery_count"] for message in rest} == {0}
    assert "25 received" in captured.err


def test_receive_with_too_few_messages_is_status_6(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """What came is written all the same."""
    assert main(["send", url, "few", "x"]) == 0
    assert main(["receive", url, "few", "--count", "2", "--timeout", "0.3"]) == 6
    assert capfd.readouterr().out == "x\n"


def test_browse_leaves_everything_as_it_was(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """Two looks see the same messages, and they are there afterwards, never delivered."""
    assert main(["send", url, "browsed", "x", "--count", "3"]) == 0
    first = received(capfd, url, "browsed", "--browse")
    second = received(capfd, url, "browsed", "--browse", "--count", "3")
    taken = received(capfd, url, "browsed")
    assert [len(first), len(second), len(taken)] == [3, 3, 3]
    assert {message["header"]["delivery_count"] for message in taken} == {0}


def test_selector_takes_only_what_it_describes(capfd: pytest.CaptureFixture[str], url: str) -> None:
    """The others stay; a selector that the broker does not understand is a refused address."""
    assert main(["send", url, "selected", "r", "--property", "color=red"]) == 0
    assert main(["send", url, "selected", "b", "--property", "color=blue"]) == 0
    assert [message["body"] for message in received(capfd, url, "selected", "--selector", "color = 'red'")] == ["r"]
    assert [message["body"] for message in received(capfd, url, "selected")] == ["b"]
    assert main(["receive", url, "selected", "--selector", "color = "]) == 4
    assert "selector" in capfd.readouterr().err


def test_text_output_is_the_bytes_of_the_body(
    capfdbinary: pytest.CaptureFixture[bytes], url: str, tmp_path: Path
) -> None:
    """Also binary ones, and without a line end if so asked."""
    (tmp_path / "body").write_bytes(b"\x00\xff\x1b")
    assert main(["send", url, "binary", "--file", str(tmp_path / "body"), "--count", "2"]) == 0
    assert main(["receive", url, "binary", "--count", "1"]) == 0
    assert main(["receive", url, "binary", "--count", "1", "--no-newline"]) == 0
    assert capfdbinary.readouterr().out == b"\x00\xff\x1b\n\x00\xff\x1b"


# --- demo and broker ---------------------------------------------------------------------------------------


def test_demo_accounts_for_every_message(capfd: pytest.CaptureFixture[str]) -> None:
    """All outcomes occur, and the JSON says that the account is exact."""
    assert main(["demo", "--messages", "400", "--senders", "2", "--receivers", "3", "--size", "10", "--json"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["accepted"], result["rejected"], result["released"], result["modified"]) == (396, 4, 4, 4)
    assert (result["dead_lettered"], result["missing"], result["duplicates"], result["exact"]) == (4, 0, 0, True)
    assert 0 < result["latency"]["median"] <= result["latency"]["p99"] <= result["latency"]["longest"]


def test_demo_shows_outcomes_and_a_picture(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a terminal it is plain lines, with no control characters."""
    assert main(["demo", "--messages", "100"]) == 0
    text = capfd.readouterr().out
    for words in ("99  accepted", "1  rejected", "1  released", "1  modified", "100 of 100, none twice", "median"):
        assert words in text
    assert text.replace("\n", "").isprintable()


def test_broker_serves_until_a_signal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its URL is the first line, its statistics come at the end."""
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stdout", os.fdopen(writing, "w"))

    def use() -> None:
        with os.fdopen(reading) as lines:
            url = lines.readline().strip()
            try:
                assert run("send", url, "q", "x", "--count", "2").returncode == 0
                assert run("receive", url, "q", "--count", "1").returncode == 0
                assert run("send", url, "topic:t", "x").returncode == 0
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=use)
    user.start()
    try:
        assert main(["broker", "--port", "0", "--host", "0.0.0.0"]) == 0
    finally:
        user.join()
        sys.stdout.close()
    error = capfd.readouterr().err
    assert "anyone who reaches this port" in error
    assert "3 connections served" in error
    assert "queue q: 2 messages, 1 accepted, 1 left" in error
    assert "topic t: 1 messages" in error


def test_python_m_is_the_same_command() -> None:
    """``python -m amqpws_async`` runs it, with its name in the texts."""
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: amqpws ")


def test_tls_context_needs_matching_files(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A certificate with another's key is refused before anything listens."""
    ca = trustme.CA()
    one, other = ca.issue_cert("127.0.0.1"), ca.issue_cert("127.0.0.1")
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    assert "--tls" in usage_error(capfd, "broker", "--tls", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
