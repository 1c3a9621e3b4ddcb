"""Fetches what the interop tests run against into a cache folder: `python -m tests.interop.fetch`.

The folder is `$XDG_CACHE_HOME/amqpws-async`, or `~/.cache/amqpws-async`. What is there already is not fetched again,
and a download that broke off leaves nothing behind that looks complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amqpws-async"
ARTEMIS = "2.40.0"
BROKER_J = "9.2.0"
TOXIPROXY = "2.5.0"
NODE_MODULES = ("oidc-provider@9.13.3", "rhea@3.0.5", "ws@8.23.0")
FETCH_TIMEOUT = 300.0  # seconds for one download, of 50 MB at most

_lock = threading.Lock()


class MissingTool(Exception):
    """A program that cannot be fetched, and that this machine does not have."""


def artemis() -> Path:
    """Returns the folder of the unpacked Apache Artemis, fetched from Maven Central if need be."""
    tool("java", "a Java runtime, 17 or later")
    return _maven("org.apache.activemq:apache-artemis", ARTEMIS)


def broker_j() -> Path:
    """Returns the folder of the unpacked Apache Qpid Broker-J, fetched from Maven Central if need be."""
    tool("java", "a Java runtime, 17 or later")
    return _maven("org.apache.qpid:apache-qpid-broker-j", BROKER_J)


def node_modules() -> Path:
    """Returns a `node_modules` folder with oidc-provider, rhea and ws, fetched from npm if need be."""
    tool("node", "Node.js, 20 or later")
    folder = CACHE / "-".join(NODE_MODULES).replace("@", "-")

    def fill(place: Path) -> None:
        npm = tool("npm", "npm, to fetch oidc-provider, rhea and ws")
        _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(place), *NODE_MODULES])

    once(folder, ", ".join(NODE_MODULES), fill)
    return folder / "node_modules"


def nginx() -> Path:
    """Returns the nginx program, which only the system's package manager can provide."""
    return Path(tool("nginx", "nginx, for example by `apt-get install nginx-light`"))


def toxiproxy() -> Path:
    """Returns the toxiproxy server, built from the Go module proxy if need be."""
    folder = CACHE / f"toxiproxy-{TOXIPROXY}"

    def fill(place: Path) -> None:
        go = tool("go", "Go, 1.18 or later, to build toxiproxy")
        package = f"github.com/Shopify/toxiproxy/v2/cmd/server@v{TOXIPROXY}"
        _run([go, "install", "-trimpath", package], {"GOBIN": str(place)})

    once(folder, f"toxiproxy {TOXIPROXY}", fill)
    return folder / "server"


def tool(name: str, what: str) -> str:
    """Returns the path of a program.

    Raises:
        MissingTool: This machine does not have it; the message says what to install.
    """
    # Debian puts nginx where only root's PATH leads.
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        raise MissingTool(f"{name} is missing: install {what}")
    return path


def _maven(artifact: str, version: str) -> Path:
    name = artifact.partition(":")[2]
    folder = CACHE / f"{name}-{version}"

    def fill(place: Path) -> None:
        mvn = tool("mvn", "Maven, to fetch brokers from Maven Central")
        coordinates = f"{artifact}:{version}:tar.gz:bin"
        _run([mvn, "-q", "-B", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={place}"])
        archive = place / f"{name}-{version}-bin.tar.gz"
        _run([tool("tar", "tar"), "--extract", "--strip-components=1", f"--file={archive}", f"--directory={place}"])
        archive.unlink()

    once(folder, f"{name} {version}", fill)
    # Artemis unpacks to its home directly, Broker-J into a folder named by its version.
    inner = folder / version
    return inner if inner.is_dir() else folder


def once(folder: Path, title: str, fill: Callable[[Path], None]) -> None:
    if folder.is_dir():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    _say(f"{title}: fetching")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=CACHE) as scratch:
        place = Path(scratch) / "content"
        place.mkdir()
        fill(place)
        try:
            place.rename(folder)
        except OSError:
            # Another run of the tests was quicker, with the same content.
            if not folder.is_dir():
                raise
    _say(f"{title}: fetched in {time.monotonic() - started:.0f} s")


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=FETCH_TIMEOUT,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _say(line: str) -> None:
    with _lock:
        print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Fetches everything at the same time; what is missing is named, and counts as a failure in CI alone."""
    missing = 0
    with ThreadPoolExecutor() as pool:
        for fetched in [pool.submit(fetch) for fetch in (artemis, broker_j, node_modules, nginx, toxiproxy)]:
            try:
                _say(f"there: {fetched.result()}")
            except MissingTool as error:
                missing += 1
                _say(f"missing: {error}")
    return 1 if missing and os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main())
