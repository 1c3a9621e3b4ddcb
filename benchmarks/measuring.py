"""Runs contenders in turns, each in a process of its own, and collects what they report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.interop import brokers
from tests.interop.fetch import MissingTool

from .job import Job
from .peers.catalogue import PEERS, ROOT, Command
from .queues import UnexpectedCount, empty, fill
from .shapes import SHAPES
from .workloads import Contender, Workload

__all__ = ["Bench", "Failed", "Run", "Scale"]

RUN_TIMEOUT: Final = 300.0  # seconds for one run of one contender
WARM_UP: Final = 100000  # messages through a broker before anything is measured


class Failed(Exception):
    """A contender did not report."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done.

    Attributes:
        messages: The workload's messages, times this.
        connections: The most connections of an idle run.
        seconds: How long idle connections are watched.
    """

    messages: float = 1.0
    connections: int = 1000
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a contender.

    Attributes:
        workload: Its name.
        contender: Its name.
        repeat: Which repeat, from 1.
        figures: What it reported; `total_cpu` is of the whole process, start and warm-up included.
    """

    workload: str
    contender: str
    repeat: int
    figures: Mapping[str, float]


class Bench:
    """Starts the servers when they are first needed, and stops them at the end.

    Args:
        broker: The broker's name.
        scale: How much is done.
        say: Gets a line for people now and then.

    Attributes:
        skipped: Why a peer takes no part: by its name where something is missing on this machine, by its name and the
            broker's where the two do not go together.
    """

    def __init__(self, broker: str, scale: Scale, say: Callable[[str], None]) -> None:
        self.broker = broker
        self.scale = scale
        self.skipped: dict[str, str] = {}
        self._say = say
        self._commands: dict[str, Command] = {}
        self._urls: dict[str, str] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        for name, shape in SHAPES.items():
            (self._folder / name).write_bytes(shape.body)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def takes_part(self, workload: Workload, contender: Contender) -> bool:
        """Whether the contender can be run; why not is in `skipped`."""
        name = contender.peer
        if PEERS[name].tcp and workload.server == "broker" and self.broker != "artemis":
            self.skipped[f"{name} on {self.broker}"] = "it speaks TCP, and this broker's port WebSocket alone"
            return False
        if name not in self._commands and name not in self.skipped:
            try:
                self._commands[name] = PEERS[name].prepare()
            except (MissingTool, RuntimeError, subprocess.TimeoutExpired) as error:
                self.skipped[name] = str(error)
                self._say(f"{name} takes no part: {error}")
        return name in self._commands

    def run(self, workload: Workload, contender: Contender) -> dict[str, float]:
        """Run a contender once; what it reported.

        Raises:
            Failed: It did not do its work.
            MissingTool: The broker cannot be started on this machine.
        """
        job = self._job(workload, contender)
        on_broker = workload.server == "broker"
        if workload.filled and on_broker:
            asyncio.run(fill(job.url, job.address, job.what, job.warm_up + job.messages))
        figures = self._process(self._commands[contender.peer], job)
        if on_broker:
            several = job.connections if job.work == "connections" else job.links
            each = 0 if workload.filled else (job.warm_up + job.messages) // several
            addresses = [job.address] if several == 1 else [f"{job.address}-{number}" for number in range(several)]
            try:
                asyncio.run(empty(job.url, dict.fromkeys(addresses, each)))
            except UnexpectedCount as error:
                raise Failed(f"{contender.name}: {error}") from error
        return figures

    def _job(self, workload: Workload, contender: Contender) -> Job:
        settings: dict[str, Any] = {**workload.settings, **contender.settings}
        shape = SHAPES[workload.shape]
        connections = min(settings.pop("connections", 1), self.scale.connections)
        # A multiple of the connections and tasks that share them, and so is the part for the warm-up.
        messages = max(1, round(workload.messages * contender.share * self.scale.messages / 800)) * 800
        if workload.messages < 800 or shape.name == "1m":
            messages = max(8, round(workload.messages * self.scale.messages))
        return Job(
            url=self._url(workload),
            address=f"bench-{uuid.uuid4().hex[:12]}",
            work=contender.work,
            shape=shape.name,
            body_file=str(self._folder / shape.name),
            rich=shape.rich,
            messages=messages,
            warm_up=max(8, round(messages * contender.warm_up)),
            connections=connections,
            seconds=self.scale.seconds,
            **settings,
        )

    def _process(self, command: Command, job: Job) -> dict[str, float]:
        with tempfile.TemporaryFile("w+", dir=self._folder) as errors:
            process = subprocess.Popen(
                [*command.arguments, job.to_argument()],
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            assert process.stdout is not None
            timer = threading.Timer(RUN_TIMEOUT, process.kill)
            timer.start()
            try:
                output = process.stdout.read()
            except BaseException:
                process.kill()
                raise
            finally:
                timer.cancel()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                process.stdout.close()
            lines = output.splitlines()
            if process.returncode or not lines:
                errors.seek(0)
                told = (output + errors.read())[-2000:].strip()
                raise Failed(f"{' '.join(command.arguments)} ended with {process.returncode}: {told or 'no words'}")
        figures: dict[str, float] = json.loads(lines[-1])
        figures["total_cpu"] = usage.ru_utime + usage.ru_stime
        if not figures.get("peak_memory"):
            figures["peak_memory"] = usage.ru_maxrss * 1024
        return figures

    # --- servers ------------------------------------------------------------------------------

    def _url(self, workload: Workload) -> str:
        if workload.server == "broker":
            return self._started(self.broker)
        return urllib.parse.urljoin(self._started("counterpart"), workload.path or workload.shape)

    def _started(self, name: str) -> str:
        if name not in self._urls:
            folder = self._folder / f"server-{name}"
            folder.mkdir()
            self._say(f"{name}: starting")
            if name == "counterpart":
                server = brokers.Server(
                    [sys.executable, "-m", "benchmarks.server"],
                    folder=folder,
                    ready=r"serving on (\S+)\n",
                    environment={"PYTHONPATH": str(ROOT)},
                )
                url = server.ready[1]
            else:
                peer = brokers.PEERS[name](folder)
                server, url = peer.server, peer.url
            self._stack.callback(server.stop)
            self._urls[name] = url
            if name == self.broker:
                # Its just-in-time compiler gets going, so that who comes first is not worse off.
                warm_up = max(800, round(WARM_UP * self.scale.messages))
                asyncio.run(fill(url, "warm-up", SHAPES["100b"], warm_up))
                asyncio.run(empty(url, {"warm-up": warm_up}))
        return self._urls[name]
