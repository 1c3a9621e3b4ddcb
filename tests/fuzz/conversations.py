"""The client's part of the fuzzer: one process of conversations, and what it finds."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable

SHOWN = 10  # failures printed in full


async def fuzz(seed: int, count: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Runs conversations 0 to `count` of a seed; how many passed and how many failed."""
    say(f"conversations: {count} of seed {seed}")
    kinds: Counter[str] = Counter()
    done = failed = 0
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fuzz.talks", str(seed), "0", str(count)),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=2**20,
        )
        assert process.stdout is not None
        async for line in process.stdout:
            report = json.loads(line)
            done += 1
            kinds[report["kind"]] += 1
            if report["failure"]:
                failed += 1
                if failed <= SHOWN:
                    say(f"conversation {report['number']} ({report['kind']}):\n{report['failure'].strip()}")
            if done % 200 == 0:
                say(f"conversations: {done} of {count}, {failed} failed")
        code = await process.wait()
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    for kind, number in sorted(kinds.items()):
        say(f"{number:6} x {kind}")
    if said or code or done < count:
        say(f"conversations: exit code {code} after {done}; stderr:\n{said[:10_000]}")
        failed = max(1, failed + count - done)
    return count - failed, failed
