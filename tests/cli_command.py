"""The ``amqpws`` command as a process of its own, for tests of what only a process has: signals, pipes, a status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

COMMAND = [sys.executable, "-m", "amqpws_async"]
TIMEOUT = 20.0  # seconds for anything here; all of it takes well under one


def start(
    *arguments: str,
    stdin: int | IO[bytes] = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts the command; `env` is added to the environment."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **(env or {})}
    return subprocess.Popen([*COMMAND, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, env=environment)


def run(
    *arguments: str, input: bytes = b"", stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end; asserts that it leaves no traceback."""
    return finish(start(*arguments, stdout=stdout), input)


def finish(process: subprocess.Popen[bytes], input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Waits for the end of the command; asserts that it leaves no traceback."""
    try:
        output, errors = process.communicate(input, TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        raise AssertionError(f"the command did not end, and said:\n{errors.decode()}") from None
    assert b"Traceback" not in (errors or b""), errors.decode()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def broker(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Runs ``amqpws broker`` at a free port; gives its URL and process."""
    process = start("broker", "--port", "0", *arguments)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        process.communicate(timeout=TIMEOUT)
