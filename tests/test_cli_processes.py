"""What the ``amqpws`` command does as a process: signals, broken pipes, slow readers, exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli_command import COMMAND, TIMEOUT, broker, finish, run, start


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with broker() as (url, _):
        yield url


def fill(url: str, address: str, count: int, size: int = 20) -> None:
    assert run("send", url, address, "--count", str(count), "--size", str(size)).returncode == 0


def left(url: str, address: str) -> int:
    """Takes all that waits there, and counts it."""
    return len(run("receive", url, address, "--timeout", "0.5").stdout.splitlines())


def wait_readable(descriptor: int) -> None:
    assert select.select([descriptor], [], [], TIMEOUT)[0], "nothing was written"


# --- pipes ------------------------------------------------------------------------------------


def test_reader_that_goes_away_in_the_middle_loses_nothing(url: str) -> None:
    """What was not written when the pipe broke is in the queue again, and the command says nothing."""
    fill(url, "head", 500, 8192)
    process = start("receive", url, "head")
    assert process.stdout is not None
    seen = process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert len(seen) == 8193
    assert (done.returncode, done.stderr) == (141, b"")
    # Of the messages that the pipe's buffer took, nobody but the reader can know: 64 KiB hold at most eight of these.
    assert 490 <= left(url, "head") <= 499


def test_reader_that_goes_away_while_nothing_comes_is_noticed(url: str) -> None:
    """With an idle queue there is no write that could fail, and the command ends all the same."""
    fill(url, "idle", 1)
    process = start("receive", url, "idle")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert (done.returncode, done.stderr) == (141, b"")


def test_slow_reader_does_not_block_the_event_loop(url: str) -> None:
    """With its pipe full the command still answers a signal, closes in order and releases what was not written."""
    fill(url, "slow", 300, 1000)
    process = start("receive", url, "slow")
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    wait_readable(pipe)
    process.send_signal(signal.SIGTERM)
    process.wait(TIMEOUT)
    written = process.stdout.read()
    assert finish(process).returncode == 143
    assert len(written) < 300 * 1001
    assert left(url, "slow") == 300 - written.count(b"\n")
    assert size >= 4096


def test_demo_into_a_closed_pipe_ends_quietly() -> None:
    """``amqpws demo | head -1`` leaves no complaint."""
    process = start("demo", "--messages", "50000")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_into_a_closed_pipe_ends_quietly() -> None:
    """Output that is still in a buffer when Python exits makes no noise either."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start("--help", stdout=writing, env={"PYTHONUNBUFFERED": ""})
    os.close(writing)
    done = finish(process)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_to_a_full_disk_fails_with_a_reason(url: str) -> None:
    """A write that fails leaves the message with the broker and is told in a line."""
    fill(url, "full", 3)
    with open("/dev/full", "wb") as full:
        done = run("receive", url, "full", stdout=full)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert left(url, "full") == 3


def test_result_to_a_full_disk_fails_with_a_reason() -> None:
    """Also where it shows only when the buffers are written out at the end."""
    with open("/dev/full", "wb") as full:
        process = start("--help", stdout=full, env={"PYTHONUNBUFFERED": ""})
    done = finish(process)
    assert done.returncode == 1
    assert done.stderr.startswith(b"amqpws: ")
    assert b"No space left" in done.stderr


@pytest.mark.parametrize(("command", "closed"), [("send", "stdin"), ("receive", "stdout"), ("broker", "stdout")])
def test_closed_standard_stream_is_no_crash(url: str, command: str, closed: str) -> None:
    """Started with one of them closed, the command says so if it needs it."""
    arguments = {"send": ["send", url, "q"], "receive": ["receive", url, "q"], "broker": ["broker", "--port", "x"]}
    redirection = {"stdin": "<&-", "stdout": ">&-"}[closed]
    line = shlex.join([*COMMAND, *arguments[command]])
    done = subprocess.run(["sh", "-c", f"{line} {redirection}"], capture_output=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"amqpws: ")
    assert done.stderr.count(b"\n") == 1


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_gives_back_what_was_prefetched(url: str, number: signal.Signals, status: int) -> None:
    """Messages on their way when the signal comes are released, none is lost and none comes twice."""
    address = f"interrupted-{status}"
    fill(url, address, 1000, 100)
    process = start("receive", url, address)
    assert process.stdout is not None
    wait_readable(process.stdout.fileno())
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == status
    assert done.stderr == b""
    assert done.stdout.endswith(b"\n")
    assert len(done.stdout.splitlines()) + left(url, address) == 1000


def test_second_signal_aborts() -> None:
    """Where the broker does not answer the close, the second signal ends the wait for it."""
    with broker() as (url, frozen):
        process = start("receive", url, "q", "--trace")
        assert process.stderr is not None
        for line in process.stderr:
            if b"@flow" in line:
                break
        frozen.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if b"@detach" in line or b"drain=true" in line:
                break
        process.send_signal(signal.SIGINT)
        assert finish(process).returncode == 130


def test_signal_while_connecting_ends_at_once() -> None:
    """A server that accepts and never answers does not hold the command."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start("receive", f"ws://127.0.0.1:{server.getsockname()[1]}/", "q")
        server.settimeout(TIMEOUT)
        connection, _ = server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            done = finish(process)
    assert (done.returncode, done.stderr) == (130, b"")


def test_signal_while_reading_lines_keeps_what_was_sent(url: str) -> None:
    """Ctrl-C during interactive sending ends it, and the summary counts what was accepted."""
    process = start("send", url, "typed", "--json", "--trace")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"one\ntwo\n")
    process.stdin.flush()
    accepted = 0
    while accepted < 2:
        line = process.stderr.readline()
        accepted += b"<- @disposition" in line and (2 if b"last=" in line else 1)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130
    assert json.loads(done.stdout)["accepted"] == 2
    assert left(url, "typed") == 2


def test_signal_ends_the_demo() -> None:
    """The demo closes everything and says nothing more."""
    process = start("demo", "--messages", "10000000")
    assert process.stdout is not None
    for line in process.stdout:
        if b" of 10,000,000 " in line:
            break
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert (done.returncode, done.stderr) == (130, b"")


# --- lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["send", "receive"])
def test_broker_that_dies_is_told_in_one_line(command: str) -> None:
    """Both commands notice at once, also while they wait for input."""
    with broker() as (url, process_of_broker):
        process = start(command, url, "q", "--trace")
        assert process.stderr is not None
        for line in process.stderr:
            if b"<- @flow" in line or b"-> @flow" in line:
                break
        process_of_broker.kill()
        # Not communicate(): the standard input of `send` must stay open.
        status = process.wait(TIMEOUT)
        errors = process.stderr.read().decode()
        finish(process)
    assert status == 5
    assert "lost" in errors.splitlines()[0 if command == "receive" else -2]


def test_messages_without_outcome_are_counted_as_in_doubt() -> None:
    """When the broker freezes with messages in flight, --timeout ends the wait and the summary tells them apart."""
    with broker() as (url, frozen):
        process = start("send", url, "q", "--json", "--timeout", "0.3", "--trace")
        assert process.stderr is not None
        assert process.stdin is not None
        for line in process.stderr:
            if b"<- @flow" in line:
                break
        frozen.send_signal(signal.SIGSTOP)
        done = finish(process, b"one\ntwo\n")
    summary = json.loads(done.stdout)
    assert done.returncode == 6
    assert (summary["sent"], summary["accepted"], summary["unknown"]) == (2, 0, 2)
    assert "--timeout" in summary["error"]


# --- the broker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broker_ends_well_on_a_signal_and_counts(number: signal.Signals) -> None:
    """A signal is the broker's usual end: status 0, and statistics."""
    with broker("--json") as (url, process):
        fill(url, "q", 3)
        process.send_signal(number)
        done = finish(process)
    assert done.returncode == 0
    statistics = json.loads(done.stdout)
    assert statistics["queues"]["q"]["depth"] == 3
    assert statistics["connections_total"] == 1


def test_broker_at_a_port_in_use_says_what_to_do(url: str) -> None:
    """The error is one line that names the way out."""
    port = url.rpartition(":")[2].rstrip("/")
    done = run("broker", "--port", port)
    assert done.returncode == 3
    assert b"in use" in done.stderr
    assert b"--port 0" in done.stderr
    assert done.stderr.count(b"\n") == 1


# --- terminals ------------------------------------------------------------------------------------


def on_terminal(*arguments: str) -> str:
    """Runs the command with a terminal for its output, and gives what appeared there."""
    ours, theirs = os.openpty()
    process = start(*arguments, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the last of the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(TIMEOUT) == 0
    return shown.decode()


def test_bodies_cannot_drive_a_terminal(url: str) -> None:
    """Escape sequences in a body are spelled out on a terminal."""
    assert run("send", url, "escape", "a\x1b[31mred\x9bb").returncode == 0
    shown = on_terminal("receive", url, "escape", "--count", "1")
    assert "\x1b" not in shown
    assert "a\\x1b[31mred" in shown


def test_progress_is_a_line_that_is_rewritten(url: str) -> None:
    """On a terminal the demo shows a bar, cleared before the result; nothing of it is left in the way."""
    shown = on_terminal("demo", "--messages", "15000")
    assert shown.count("\r\x1b[K") >= 2
    assert "█" in shown
    assert "accounted for by id: 15,000 of 15,000, none twice" in shown
