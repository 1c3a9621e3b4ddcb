"""``python -m tests.fuzz [--short] [--seed N] [--count N]``; ends with a line ``N passed, N failed``."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

from . import conversations, engine

STREAMS, CONVERSATIONS = 200_000, 2_000
SHORT = 20  # the short form is this part of the whole


def main() -> int:
    """Runs both parts; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Bad input, in bulk.")
    parser.add_argument("--short", action="store_true", help=f"a {SHORT}th of the whole, below a minute")
    parser.add_argument("--seed", type=int, help="repeat an earlier run (default: a new seed, which is printed)")
    parser.add_argument("--count", type=int, default=STREAMS, help="streams; conversations are a hundredth of it")
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    streams = arguments.count // (SHORT if arguments.short else 1)
    return asyncio.run(_run(seed, streams, max(1, streams * CONVERSATIONS // STREAMS)))


async def _run(seed: int, streams: int, talks: int) -> int:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    say(f"seed {seed}")
    results = [await engine.fuzz(seed, streams, say), await conversations.fuzz(seed, talks, say)]
    passed, failed = (sum(numbers) for numbers in zip(*results, strict=True))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
