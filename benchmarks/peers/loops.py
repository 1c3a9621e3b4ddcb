"""What the clients on asyncio share: which event loop they run on, and at what pace they connect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

__all__ = ["paced", "run"]


def run(main: Coroutine[Any, Any, None], loop: str) -> None:
    """Run to the end, on ``asyncio`` or ``uvloop``."""
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    else:
        asyncio.run(main)


async def paced(count: int, seconds: float) -> AsyncIterator[int]:
    """Count, spread evenly over `seconds`: what beats by the time of its beginning does not all beat at once then."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(count):
        await asyncio.sleep(start + number * seconds / count - loop.time())
        yield number
