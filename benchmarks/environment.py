"""The machine and the versions that figures belong to."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.interop import fetch

from .peers.catalogue import SERVICEBUS

__all__ = ["environment"]

PROGRAMS = {"node": ["--version"], "go": ["version"], "java": ["-version"]}


def environment(broker: str) -> dict[str, object]:
    """Describe where this runs.

    Args:
        broker: The broker's name.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {
            name: metadata.version(name) for name in ("python-qpid-proton", "websockets", "uvloop") if _installed(name)
        },
        "programs": {name: version for name in PROGRAMS if (version := _version(name))},
        "peers": {
            "go-amqp": _required(Path(__file__).parent / "peers/go_amqp/go.mod", r"go-amqp (\S+)"),
            "rhea and ws": ", ".join(fetch.NODE_MODULES),
            "pyamqp": SERVICEBUS,
            "Qpid JMS": _required(Path(__file__).parent / "peers/jms/pom.xml", r"qpid-jms-client.*?<version>(.*?)<"),
        },
        "broker": {"artemis": f"Artemis {fetch.ARTEMIS}", "broker-j": f"Broker-J {fetch.BROKER_J}"}.get(broker, broker),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        match = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _version(program: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run([path, *PROGRAMS[program]], capture_output=True, text=True, timeout=30)
    return (done.stdout or done.stderr).splitlines()[0]


def _required(file: Path, pattern: str) -> str:
    match = re.search(pattern, file.read_text(), re.DOTALL)
    return match[1] if match else "unknown"
