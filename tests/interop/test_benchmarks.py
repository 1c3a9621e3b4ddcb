"""Every contender of every workload in a tiny form, on a real broker where the workload wants one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.measuring import Bench, Run, Scale
from benchmarks.results import rows
from benchmarks.workloads import WORKLOADS, Contender

TINY = Scale(messages=0.0, connections=8, seconds=1.0)
HERE = {"ours", "floor", "websockets"}  # tests/test_benchmarks.py has them, where no broker is needed
ALL = [
    (name, contender)
    for name, workload in WORKLOADS.items()
    for contender in workload.contenders
    if workload.server == "broker" or contender.peer not in HERE
]

# The first use of a client fetches and builds it.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A bench whose broker and counterpart stay for the module's tests."""
    with Bench("artemis", TINY, lambda line: None) as bench:
        yield bench


@pytest.mark.parametrize(("name", "contender"), ALL, ids=lambda value: getattr(value, "name", value))
def test_contender(bench: Bench, name: str, contender: Contender) -> None:
    """It does its work, all of it, and reports."""
    workload = WORKLOADS[name]
    if not bench.takes_part(workload, contender):
        reason = bench.skipped[contender.peer]
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    run = Run(name, contender.name, 1, bench.run(workload, contender))
    (row,) = rows(name, [run])
    assert row.median > 0
