"""A process that runs streams of the engine fuzzer until it has done them, or until one of them kills it.

What is under test right now lies in a file that both sides map, so that the parent has it even after a crash. A stream
that takes too long ends the process by SIGALRM, with the Python stack on stderr; so does proton's stack by a signal.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import json
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path

from .stream import Stream, attempt

HEAD = struct.Struct(">QI")  # the stream's number and the size of its dump
SLOT = HEAD.size + 8 * 2**20

STREAM_SECONDS = 5.0  # for one stream; the usual one takes a millisecond
STREAM_MEMORY = 64 * 2**20  # bytes that one stream may add to the peak
ADDRESS_SPACE = 2**30  # bytes beyond what the process has when it starts
GROWTH = 48 * 2**20  # bytes that a worker may grow after its first streams: a leak of 1 KiB a stream would be 100 MiB
WARM = 500  # streams


def read_slot(slot: Path) -> tuple[int, bytes]:
    """The number and the dump of the stream that a worker has come to."""
    content = slot.read_bytes()
    number, size = HEAD.unpack_from(content)
    return number, content[HEAD.size : HEAD.size + size]


def main(seed: int, first: int, step: int, end: int, path: str) -> None:
    """Runs streams `first`, `first + step` and so on below `end`; a line of JSON on stdout for each that fails."""
    problems: list[str] = []
    sys.unraisablehook = lambda raised: problems.append(f"unraisable: {raised.exc_value!r} in {raised.object!r}")
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ADDRESS_SPACE, hard))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), SLOT) as slot:
        started = 0
        for count, number in enumerate(range(first, end, step)):
            slot[: HEAD.size] = HEAD.pack(number, 0)
            peak = _peak()
            signal.setitimer(signal.ITIMER_REAL, STREAM_SECONDS)
            failure = _failure(seed, number, slot) or "\n".join(problems)
            signal.setitimer(signal.ITIMER_REAL, 0)
            problems.clear()
            if not failure and count > WARM and _peak() - peak > STREAM_MEMORY:
                failure = f"{(_peak() - peak) >> 20} MiB of memory for one stream"
            if not failure and os.fstat(2).st_size:
                failure = "something was written to stderr"
            if failure:
                _, size = HEAD.unpack_from(slot)
                dump = base64.b64encode(slot[HEAD.size : HEAD.size + size]).decode()
                print(json.dumps({"number": number, "failure": failure, "dump": dump}), flush=True)
                if os.fstat(2).st_size:
                    raise SystemExit(1)  # the parent reads stderr, and begins another worker after this stream
            if count == WARM:
                gc.collect()
                started = _resident()
        slot[: HEAD.size] = HEAD.pack(end, 0)
        gc.collect()
        grown = _resident() - started if started else 0
        print(json.dumps({"grown": grown, "failure": f"grew by {grown} bytes" if grown > GROWTH else ""}), flush=True)


def _failure(seed: int, number: int, slot: mmap.mmap) -> str:
    """Runs a stream; what went wrong, or an empty text."""

    def note(stream: Stream) -> None:
        dump = stream.dump()
        slot[: HEAD.size + len(dump)] = HEAD.pack(number, len(dump)) + dump

    try:
        attempt(seed, number, note)
    except Exception:
        return traceback.format_exc()
    return ""


def _peak() -> int:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _statm(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def _address_space() -> int:
    return _statm(0) if sys.platform == "linux" else 2**40


def _resident() -> int:
    return _statm(1) if sys.platform == "linux" else _peak()


if __name__ == "__main__":
    seed, first, step, end = map(int, sys.argv[1:5])
    main(seed, first, step, end, sys.argv[5])
