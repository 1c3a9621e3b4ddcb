"""Runs `async def` tests, each on a loop of its own, and fails a test that leaves something behind.

A test fails, whatever its own outcome, when the loop's exception handler was called during it (a future whose exception
nobody took, a callback that raised) or when tasks that it started are still there at its end.

The environment chooses how the loops run: `AMQPWS_TEST_DEBUG=1` turns asyncio's debug mode on, and `AMQPWS_TEST_LOOP`
is one of `asyncio` (default), `uvloop` and `eager` (asyncio with eager tasks, Python 3.12 and later).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from blockbuster import blockbuster_ctx

DEBUG = os.environ.get("AMQPWS_TEST_DEBUG") == "1"
LOOP = os.environ.get("AMQPWS_TEST_LOOP", "asyncio")
INTEROP = Path(__file__).parent / "interop"

# A slow machine is no failure; the timeout of a test is what catches a hang.
hypothesis.settings.register_profile("patient", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("patient")

# Turns of the loop that a test's tasks and transports get to finish what is already under way, such as calling
# connection_lost() on a socket just closed. It is not time: a task that waits for anything is still there afterwards.
GRACE_TURNS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option without which the tests against real brokers are not even collected."""
    parser.addoption(
        "--interop", action="store_true", help="also run tests/interop, which fetches and starts real brokers"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Makes the timeout of a test end the run under uvloop, which swallows what a signal handler raises."""
    if LOOP == "uvloop":
        config.option.timeout_method = "thread"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves tests/interop out unless `--interop` is given."""
    if not config.getoption("--interop") and collection_path.is_relative_to(INTEROP):
        return True
    return None


def pytest_report_header() -> str:
    """Says how the loops run."""
    return f"event loop: {LOOP}{', debug' if DEBUG else ''}"


def pytest_collection_finish() -> None:
    """Takes everything imported so far out of the collector's sight, so that collecting after each test is cheap."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is a coroutine function, also one that hypothesis calls many times."""
    function = pyfuncitem.obj
    if handle := getattr(function, "hypothesis", None):
        if inspect.iscoroutinefunction(handle.inner_test):
            handle.inner_test = _synchronous(handle.inner_test)
        return None
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(function).parameters}
    _synchronous(function)(**arguments)
    return True


def _synchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        complaints: list[str] = []
        left: set[str] = set()
        with asyncio.Runner(debug=DEBUG, loop_factory=_new_loop) as runner, _no_blocking():
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: complaints.extend(_complaint(context)))
            try:
                runner.run(_watched(test(*args, **kwargs), left))
            finally:
                # What a test dropped must complain now, to this handler, and not during a later test.
                gc.collect()
        if complaints:
            pytest.fail("the loop's exception handler was called:\n" + "\n".join(complaints), pytrace=False)
        if left:
            pytest.fail("the test left tasks behind:\n" + "\n".join(sorted(left)), pytrace=False)

    return run


async def _watched(test: Coroutine[Any, Any, None], left: set[str]) -> None:
    await test
    me = asyncio.current_task()
    for _ in range(GRACE_TURNS):
        if asyncio.all_tasks() == {me}:
            return
        await asyncio.sleep(0)
    left.update(repr(task) for task in asyncio.all_tasks() if task is not me)


def _new_loop() -> asyncio.AbstractEventLoop:
    if LOOP == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    loop = asyncio.new_event_loop()
    if LOOP == "eager":
        if sys.version_info < (3, 12):
            pytest.exit("AMQPWS_TEST_LOOP=eager needs Python 3.12 or later", returncode=2)
        loop.set_task_factory(asyncio.eager_task_factory)
    elif LOOP != "asyncio":
        pytest.exit(f"AMQPWS_TEST_LOOP={LOOP} is none of asyncio, uvloop and eager", returncode=2)
    return loop


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """`amqpws --verbose` sets it for its process, and some tests call the command in ours."""
    logger = logging.getLogger("amqpws_async")
    level = logger.level
    yield
    logger.setLevel(level)


@contextlib.contextmanager
def _no_blocking() -> Iterator[None]:
    """Fails a blocking call (a sleep, a file, a socket, a lock) that our own code makes while a loop runs."""
    with blockbuster_ctx(scanned_modules="amqpws_async"):
        yield


def _complaint(context: dict[str, Any]) -> list[str]:
    if context["message"] == "Error on transport creation for incoming connection":
        return []  # debug mode tells of every TLS handshake that a client broke off, at the server's side
    exception = context.get("exception")
    return [f"- {context['message']}" + (f": {exception!r}" if exception else "")]
