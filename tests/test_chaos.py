"""The programs of tests/chaos in small: that they run, and that what they show holds also in a few seconds."""

from __future__ import annotations

import asyncio
import random
import ssl
from itertools import islice

import pytest
import trustme

from tests.chaos.ledger import Breach, Fate, Ledger
from tests.chaos.plan import FINAL, KINDS, SECURE, plan
from tests.chaos.roll_over import prove
from tests.chaos.station import SETUPS, Station


def test_a_seed_repeats_its_plan() -> None:
    """The same seed has the same steps, another seed and another station have others."""
    first, again, other, elsewhere = (
        list(map(str, islice(plan(seed, station, secure=True, final=True), 200)))
        for seed, station in ((1, 2), (1, 2), (2, 2), (1, 3))
    )
    assert first == again
    assert first != other
    assert first != elsewhere


def test_plans_have_faults_of_all_kinds() -> None:
    """Every kind of fault is drawn sooner or later."""
    steps = islice(plan(random.randrange(2**32), 0, secure=True, final=True), 5000)
    assert {step.kind for step in steps} == {*KINDS, *SECURE, *FINAL}


def test_the_ledger_finds_what_must_not_be() -> None:
    """A lost message, one sent twice, one that is out of order and one without an end are each found."""
    found: list[Breach] = []
    raising = Ledger(10, resend=False, report=found.append)
    lost, twice, forgotten = (raising.issue(0) for _ in range(3))
    raising.ended(lost, Fate.ACCEPTED)
    for _ in range(2):
        raising.arrived(raising.message(twice, identified=True, size=0).encode())
    raising.ended(twice, Fate.IN_DOUBT)
    raising.close()
    resending = Ledger(10, resend=True, report=found.append)
    early, late = (resending.issue(0) for _ in range(2))
    for number in (late, early):
        resending.arrived(resending.message(number, identified=True, size=0).encode())
    resending.arrived(resending.message(early, identified=False, size=0).encode())
    assert {breach.rule for breach in found} == {
        "accepted means arrived",
        "duplicates are the same",
        "every send has an end",
        "order is kept",
        "receivers see everything",
        "sent once with raise",
    }
    assert [breach.text for breach in found if breach.rule == "every send has an end"] == [
        f"message {forgotten} has no fate, arrived 0 times"
    ]


@pytest.mark.timeout(180)
async def test_stations_keep_every_rule() -> None:
    """A few faults of a fixed plan at each kind of station: no message is lost and nothing hangs."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    found: list[str] = []

    def report(station: Station, breach: Breach) -> None:
        found.append("\n".join([f"{station.setup.name}: {breach}", *station.history]))

    stations = [
        Station(7, number, setup, faults=8, per_fault=20, contexts=(server, client), report=report)
        for number, setup in enumerate(SETUPS)
    ]
    async with asyncio.TaskGroup() as group:
        for station in stations:
            group.create_task(station.run())
    assert not found
    assert all(station.ledger.issued >= 160 for station in stations)


@pytest.mark.timeout(120)
async def test_moving_under_load_costs_no_message() -> None:
    """Several roll-overs a second under load: no message is lost, none comes twice, and sending hardly waits."""
    holds = await prove(every=0.3, seconds=2.0, enough=200, phase=1.0, rate=300.0, times=50.0)
    assert all(holds.values()), holds
