"""Which clients there are, and how each is had: fetched and built into the cache of the interop tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.interop import fetch

__all__ = ["PEERS", "SERVICEBUS", "Command", "Peer"]

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
SERVICEBUS: Final = "azure-servicebus==7.15.0"
BUILD_TIMEOUT: Final = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Command:
    """How a client is started, before its job.

    Attributes:
        arguments: The program and its arguments.
        environment: What is added to the environment.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """A client that is measured.

    Attributes:
        title: Its name, for people.
        prepare: Fetches and builds it if need be; raises `MissingTool` where that cannot be.
        tcp: Whether it speaks AMQP over TCP, because it has no WebSocket.
        note: How it is used, for people.
    """

    title: str
    prepare: Callable[[], Command]
    tcp: bool = False
    note: str = ""


def _python(module: str, *before: Path) -> Command:
    path = os.pathsep.join(str(folder) for folder in (*before, ROOT))
    return Command((sys.executable, "-m", f"benchmarks.peers.{module}"), {"PYTHONPATH": path})


def _rhea() -> Command:
    modules = fetch.node_modules()
    return Command((fetch.tool("node", "Node.js, 18 or later"), str(HERE / "rhea.js")), {"NODE_PATH": str(modules)})


def _go_amqp() -> Command:
    source = HERE / "go_amqp"
    folder = _cache("go-amqp", source)

    def fill(place: Path) -> None:
        _build([fetch.tool("go", "Go, 1.24 or later"), "build", "-o", str(place / "peer"), "."], source)

    fetch.once(folder, "go-amqp", fill)
    return Command((str(folder / "peer"),))


def _jms() -> Command:
    java, source = fetch.tool("java", "a Java development kit, 17 or later"), HERE / "jms"
    folder = _cache("qpid-jms", source)

    def fill(place: Path) -> None:
        maven, javac = fetch.tool("mvn", "Maven"), fetch.tool("javac", "a Java development kit, 17 or later")
        shutil.copy(source / "pom.xml", place)
        libraries = place / "lib"
        _build([maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={libraries}"], place)
        _build([javac, "-cp", f"{libraries}/*", "-d", str(place), str(source / "JmsPeer.java")], place)

    fetch.once(folder, "Qpid JMS", fill)
    return Command((java, "-cp", f"{folder}{os.pathsep}{folder}/lib/*", "JmsPeer"))


def _pyamqp() -> Command:
    folder = fetch.CACHE / SERVICEBUS.replace("==", "-")

    def fill(place: Path) -> None:
        _build([sys.executable, "-m", "pip", "install", "-q", "--target", str(place), SERVICEBUS], place)

    fetch.once(folder, SERVICEBUS, fill)
    return _python("pyamqp", folder)


def _cache(name: str, source: Path) -> Path:
    """The folder for what is built of `source`: another one when that changes."""
    content = b"".join(path.read_bytes() for path in sorted(source.iterdir()))
    return fetch.CACHE / f"bench-{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def _build(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


PEERS: Final[dict[str, Peer]] = {
    "ours": Peer("amqpws_async", lambda: _python("ours")),
    "floor": Peer("raw floor", lambda: _python("raw_floor"), note="proton by cffi on websockets, a future a message"),
    "websockets": Peer("bare websockets", lambda: _python("bare"), note="the bytes alone, no AMQP"),
    "go-amqp": Peer("go-amqp", _go_amqp, note="Go, with coder/websocket"),
    "rhea": Peer("rhea", _rhea, note="Node.js, with ws"),
    "jms": Peer("Qpid JMS", _jms, note="Java, amqpws"),
    "pyamqp": Peer("Azure pyamqp", _pyamqp, tcp=True, note="asyncio, TCP"),
    "reactor": Peer("proton reactor", lambda: _python("reactor"), tcp=True, note="Python, TCP"),
}
