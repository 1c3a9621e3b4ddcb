"""The demonstration's account: that it is exact, that it would show if it were not, and that nothing hangs."""

from __future__ import annotations

import pytest

from amqpws_async.cli import workload
from amqpws_async.cli.failures import ExitStatus, status_of
from amqpws_async.cli.workload import Ledger, measure_latency, run_load
from amqpws_async.errors import AMQPError, ErrorCondition
from amqpws_async.testing import Broker, LinkRequest


async def test_every_message_comes_to_the_end_that_its_id_says() -> None:
    """One of a hundred is rejected, one released, one modified; all are accounted for."""
    async with Broker() as broker:
        ledger = Ledger(1000)
        await run_load(broker.url, ledger, 3, 2, 64)
    assert ledger.exact
    assert [sum(each) for each in (ledger.sent, ledger.accepted, ledger.rejected, ledger.dead)] == [1000, 990, 10, 10]
    assert [sum(ledger.released), sum(ledger.modified), ledger.counted_again] == [10, 10, 10]


@pytest.mark.parametrize("what", ["sent", "accepted", "dead", "rejected", "modified"])
async def test_one_message_too_few_or_too_many_is_seen(what: str) -> None:
    """Each count of the account matters: one off, and it is not exact."""
    async with Broker() as broker:
        ledger = Ledger(100)
        await run_load(broker.url, ledger, 1, 1, 1)
    assert ledger.exact
    counts: bytearray = getattr(ledger, what)
    number = 25 if what in ("dead", "rejected") else 75
    counts[number] += 1
    assert not ledger.exact
    counts[number] -= 2
    assert not ledger.exact


async def test_run_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rejected messages do not come out again, the run ends and says how far it got."""
    monkeypatch.setattr(workload, "DEAD_LETTERS", "elsewhere")
    monkeypatch.setattr(workload, "_STALLED", 0.2)
    async with Broker() as broker:
        with pytest.raises(TimeoutError, match="after 99 of 100 messages"):
            await run_load(broker.url, Ledger(100), 1, 1, 1)


@pytest.mark.parametrize("address", ["demo", "dead-letter", "quiet"])
async def test_refused_link_ends_the_run_with_its_reason(address: str) -> None:
    """The first failure is raised as it is, and never inside a group."""

    def authorize(request: LinkRequest) -> ErrorCondition | None:
        return ErrorCondition("amqp:not-allowed", "no") if address in str(request.address) else None

    async with Broker(authorize_link=authorize) as broker:
        with pytest.raises(AMQPError) as caught:
            await run_load(broker.url, Ledger(100), 1, 1, 1)
            await measure_latency(broker.url, 1, 1000, 1)
    assert status_of(caught.value) is ExitStatus.REFUSED


async def test_latency_is_measured_for_every_message() -> None:
    """As many as were sent, each above zero."""
    async with Broker() as broker:
        latencies = await measure_latency(broker.url, 50, 2000, 16)
    assert len(latencies) == 50
    assert min(latencies) > 0
