"""Everything that is run on this code: `nox -l` lists it, `nox` runs the tests on every Python that is here."""

from __future__ import annotations

import os
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
RUFF = "ruff==0.17.6"  # exactly: another release formats otherwise
MYPY = "mypy==2.4.1"

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests"]
nox.options.reuse_venv = "yes"
nox.options.stop_on_first_error = False

# pyenv keeps interpreters where only its shims find them, and those find one version alone.
for python in reversed(PYTHONS):
    for folder in Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{python}.*/bin"):
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests that need nothing but Python; AMQPWS_TEST_LOOP and AMQPWS_TEST_DEBUG choose how the loop runs."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The tests again, measured: branches of the package, 97 % at least."""
    session.install("-e", ".[test]")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "report", "--fail-under=97")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: lint and format; `nox -s lint -- fix` repairs what can be repaired."""
    session.install(RUFF)
    if session.posargs == ["fix"]:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    else:
        session.run("ruff", "check", ".")
        session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the package, benchmarks, tests, examples and this file."""
    session.install("-e", ".[test]", MYPY, "nox")
    session.run("mypy")


@nox.session
def interop(session: nox.Session) -> None:
    """Artemis, Broker-J, rhea, oidc-provider, nginx, toxiproxy and the embedded broker: fetched, started, stopped."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.interop.fetch")
    session.run("pytest", "--interop", *(session.posargs or ["tests/interop"]))


@nox.session
def demo(session: nox.Session) -> None:
    """The two demonstrations that the command has built in, from an ordinary installation."""
    session.install(".[testing]")
    session.run("amqpws", "demo", *session.posargs)
    session.run("amqpws", "demo", "--event-mesh", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random and broken input, in bulk; `nox -s fuzz -- --short` is the form for every day."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """A million messages and a thousand opens in one process, memory watched; `-- --tenth` is the short form."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Clients among faults of all kinds, a quarter of an hour of them; `-- --short` is the form for every day."""
    session.install("-e", ".[test]")
    session.run("python", "-W", "error", "-m", "tests.chaos", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """This library and other clients on the same work; `-- --quick` shows that all runs, `-- --help` the rest."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "benchmarks", *session.posargs)
