"""A reconnect storm in small; ``python -m tests.chaos.storm`` is the large one."""

from __future__ import annotations

import amqpws_async as amqp
from tests.chaos import storm

BACKOFF = amqp.Backoff(initial=0.2, maximum=2.0)


async def test_clients_that_lose_their_broker_together_do_not_overrun_it() -> None:
    """Attempts and token requests stay within what the backoff allows, and all clients come back."""
    report = await storm.run(20, 5.0, BACKOFF, lambda line: None)
    assert report.problems == []
    assert sum(row.attempts for row in report.away) >= 20 * 3


def test_what_a_backoff_allows() -> None:
    """The first attempt is at once, the next ones come after half of each delay."""
    assert [storm.most_attempts(BACKOFF, seconds) for seconds in (0.05, 0.15, 0.35, 0.75, 1.55, 2.55, 3.55)] == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip
