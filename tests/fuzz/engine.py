"""The engine's part of the fuzzer: workers, what kills them, and what they find."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .stream import CRASHES, SUFFIX
from .worker import SLOT, STREAM_SECONDS, read_slot

STARTS_PER_WORKER = 50  # a worker that dies more often than that has said enough
RECORDED_PER_KIND = 2


class Findings:
    """What went wrong, by kind; the first few streams of each kind are recorded."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = 0
        self._say = say
        self._kinds: Counter[str] = Counter()

    def add(self, number: int, dump: bytes, text: str) -> None:
        """Notes one."""
        self.count += 1
        kind = _kind(text)
        self._kinds[kind] += 1
        if self._kinds[kind] > RECORDED_PER_KIND:
            return
        recorded = ""
        if dump:
            path = CRASHES / f"{hashlib.sha256(dump).hexdigest()[:12]}{SUFFIX}"
            path.write_bytes(dump)
            recorded = f", recorded as {path.name}"
        self._say(f"stream {number} failed{recorded}:\n{text.strip()}")

    def summary(self) -> list[str]:
        """A line for each kind."""
        return [f"{count:6} x {kind}" for kind, count in self._kinds.most_common()]


def _kind(text: str) -> str:
    """Numbers and addresses left out, so that the same bug has the same text."""
    frames = re.findall(r'File ".*?([^/"]+)", line (\d+)', text)
    killed = text.startswith("killed")  # then the innermost frame is the first one
    said = re.sub(r"0x[0-9a-f]+|\d+", "#", text.strip().splitlines()[0 if killed else -1])[:120]
    return f"{said} @ {':'.join(frames[0 if killed else -1]) if frames else '?'}"


async def fuzz(seed: int, count: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Runs streams 0 to `count` of a seed on all cores; how many passed and how many failed."""
    findings = Findings(say)
    workers = os.cpu_count() or 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        slots = [Path(folder) / f"slot{index}" for index in range(workers)]
        for index, slot in enumerate(slots):
            slot.write_bytes(index.to_bytes(8, "big") + bytes(SLOT - 8))
        say(f"engine: {count} streams of seed {seed} with {workers} workers")
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_shepherd(seed, index, workers, count, slot, findings, say))
                for index, slot in enumerate(slots)
            ]
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=10)
                done = sum(read_slot(slot)[0] for slot in slots) // workers
                rate = done / (time.monotonic() - started)
                say(f"engine: {min(done, count)} of {count} streams, {rate:.0f}/s, {findings.count} failed")
    for line in findings.summary():
        say(line)
    return count - findings.count, findings.count


async def _shepherd(
    seed: int, first: int, step: int, end: int, slot: Path, findings: Findings, say: Callable[[str], None]
) -> None:
    """Keeps one worker going, past the streams that kill it."""
    for _ in range(STARTS_PER_WORKER):
        with tempfile.TemporaryFile() as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.fuzz.worker", *map(str, (seed, first, step, end)), str(slot)),
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=2 * SLOT,
            )
            assert process.stdout is not None
            last = -1
            async for line in process.stdout:
                report = json.loads(line)
                last = report.get("number", last)
                if report["failure"]:
                    findings.add(last, base64.b64decode(report.get("dump", "")), report["failure"])
                elif "grown" in report:
                    say(f"engine: a worker ended, {report['grown'] / 2**20:+.1f} MiB since its first streams")
            code = await process.wait()
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
        number, dump = read_slot(slot)
        if code == 0:
            return
        if number == last:
            say(f"stderr of stream {number}:\n{said}")
        else:
            findings.add(number, dump, f"killed by {_cause(code)} in stream {number}\n{said}")
        first = number + step
        if first >= end:
            return
    findings.add(first, b"", f"a worker died {STARTS_PER_WORKER} times: the streams after {first} were not run")


def _cause(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"the limit of {STREAM_SECONDS:g} s"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
