"""A process that runs rounds: a line ``NAME MESSAGES`` in, a line of JSON out; made for and by ``offline``."""

from __future__ import annotations

import asyncio
import gc
import json
import sys

from ..counterpart import Counterpart
from ..mark import Mark, Stopwatch
from ..shapes import make
from .wire import Answer, Recorder, Replay
from .work import WORK, Work

__all__ = ["Rounds"]


class Rounds:
    """Runs work, each on answers that were recorded before its first round."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], list[Answer]] = {}

    def run(self, name: str, messages: int, mark: Mark) -> None:
        """Run one round of the work of that name."""
        work = WORK[name]
        key = (name, messages)
        if key not in self._answers:
            self._answers[key] = asyncio.run(_record(work, messages))
        gc.collect()
        asyncio.run(_replay(work, messages, self._answers[key], mark))


async def _record(work: Work, messages: int) -> list[Answer]:
    message = make(work.shape, 5).encode()
    counterpart = Counterpart(message, batch=work.batch)
    recorder = Recorder(counterpart)
    await work.run(work, recorder, messages, Stopwatch())
    return recorder.answers


async def _replay(work: Work, messages: int, answers: list[Answer], mark: Mark) -> None:
    await work.run(work, Replay(answers), messages, mark)


class _Announced:
    """Says at each mark that it is there, and goes on when told to: a tool outside counts in between."""

    def begin(self) -> None:
        gc.collect()
        _wait("begin")

    def end(self) -> None:
        _wait("end")


def _wait(what: str) -> None:
    print(json.dumps({"at": what}), flush=True)
    sys.stdin.readline()


def main() -> None:
    """Serve until stdin ends; the argument ``announced`` has each mark wait for a line."""
    rounds = Rounds()
    for line in iter(sys.stdin.readline, ""):
        name, messages = line.split()
        if sys.argv[1:] == ["announced"]:
            rounds.run(name, int(messages), _Announced())
            print(json.dumps({"done": name}), flush=True)
        else:
            watch = Stopwatch()
            rounds.run(name, int(messages), watch)
            print(json.dumps({"cpu": watch.cpu / int(messages)}), flush=True)


if __name__ == "__main__":
    main()
