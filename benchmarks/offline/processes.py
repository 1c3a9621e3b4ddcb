"""The processes that run rounds: timed, or counted in instructions under valgrind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Counted", "CountingUnavailable", "Timed", "Worker"]

ROOT: Final = Path(__file__).parent.parent.parent
# -P: the current folder would otherwise come before the tree that is asked for.
PROGRAM: Final = (
    "-P",
    "-c",
    "import sys; sys.path[:0] = {path!r}; from benchmarks.offline.worker import main; main()",
)


class CountingUnavailable(Exception):
    """Instructions cannot be counted on this machine."""


class Worker:
    """A process that runs rounds of the package in the folder `tree`.

    Attributes:
        unit: What a figure counts.
    """

    unit = ""

    def __init__(self, tree: Path, *arguments: str, before: tuple[str, ...] = (), folder: str | None = None) -> None:
        program = [part.format(path=[str(tree), str(ROOT)]) for part in PROGRAM]
        self.process = subprocess.Popen(
            [*before, sys.executable, *program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # what lies where in a dict is the same each time
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.process.kill()
        self.process.communicate()

    def round(self, name: str, messages: int) -> float:
        """Run one round; the figure per message."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Write a line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Read the next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self.process.wait()}: its error is above")
        heard: dict[str, Any] = json.loads(line)
        return heard


class Timed(Worker):
    """Rounds in CPU time, microseconds per message.

    Args:
        tree: The folder with the package.
    """

    unit = "µs"

    def __init__(self, tree: Path) -> None:
        super().__init__(tree)

    def round(self, name: str, messages: int) -> float:
        """Run one round."""
        self.say(f"{name} {messages}")
        return float(self.hear()["cpu"]) * 1e6


class Counted(Worker):
    """Rounds in instructions per message, counted by valgrind between the marks alone.

    Args:
        tree: The folder with the package.

    Raises:
        CountingUnavailable: There is no valgrind here.
    """

    unit = "instructions"

    def __init__(self, tree: Path) -> None:
        valgrind, control = shutil.which("valgrind"), shutil.which("callgrind_control")
        if valgrind is None or control is None:
            raise CountingUnavailable("counting needs valgrind: apt-get install valgrind")
        self._control_program = control
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        before = (valgrind, "-q", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=counts")
        super().__init__(tree, "announced", before=before, folder=self._folder.name)
        self._dumps = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._folder.cleanup()

    def round(self, name: str, messages: int) -> float:
        """Run one round."""
        self.say(f"{name} {messages}")
        count = 0
        while "at" in (heard := self.hear()):
            if heard["at"] == "begin":
                self._control("--instr=on")
            else:
                self._control("--instr=off")
                count = self._dump()
            self.say("")
        return count / messages

    def _control(self, option: str) -> None:
        command = [self._control_program, option, str(self.process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._folder.name, timeout=60)
        if done.returncode:
            raise CountingUnavailable(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def _dump(self) -> int:
        self._control("--dump")
        self._dumps += 1
        dump = Path(self._folder.name, f"counts.{self._dumps}")
        match = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
        if match is None:
            raise CountingUnavailable(f"{dump.name} has no total")
        dump.unlink()
        return int(match[1])
