"""The benchmarks in a tiny form: that they run, say what they measured, and compare what belongs together."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import amqpws_async as amqp
from benchmarks import __main__ as command
from benchmarks.job import Job
from benchmarks.mark import Stopwatch
from benchmarks.measuring import Bench, Failed, Run, Scale
from benchmarks.offline.wire import Diverged
from benchmarks.offline.work import WORK
from benchmarks.offline.worker import Rounds
from benchmarks.peers.catalogue import PEERS, Command
from benchmarks.plot import svg
from benchmarks.results import AIMS, aimed, rows
from benchmarks.server import Swift
from benchmarks.workloads import WORKLOADS, Contender

ROOT = Path(__file__).parent.parent
TINY = Scale(messages=0.0, connections=8, seconds=1.0)
HERE = {"ours", "floor", "websockets"}  # who needs nothing but Python
LOCAL = [
    (name, contender)
    for name, workload in WORKLOADS.items()
    for contender in workload.contenders
    if workload.server == "counterpart" and contender.peer in HERE
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A bench whose servers stay for the module's tests; it never needs its broker."""
    with Bench("artemis", TINY, lambda line: None) as bench:
        yield bench


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    """One process's worth of offline rounds."""
    return Rounds()


# --- offline ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORK)
def test_offline_work_is_done_on_a_recording(rounds: Rounds, name: str) -> None:
    """Each work runs to its end on recorded answers, as it did on those of the counterpart."""
    watch = Stopwatch()
    rounds.run(name, 40, watch)
    assert watch.cpu > 0
    assert watch.wall > 0


def test_a_run_that_writes_something_else_is_noticed(rounds: Rounds) -> None:
    """A recording does not fit another run: its figures would mean nothing."""
    rounds.run("transfer", 40, Stopwatch())
    rounds._answers["transfer", 41] = rounds._answers["transfer", 40]
    with pytest.raises(amqp.DeliveryUnknown) as failure:
        rounds.run("transfer", 41, Stopwatch())
    assert isinstance(failure.value.stop.cause, Diverged)


def test_offline_compares_two_trees() -> None:
    """The command runs this tree against another, here itself, and prints both with their ratio."""
    output = _python("benchmarks.offline", "encode-1k", "--rounds", "2", "--against", str(ROOT))
    assert "x other" in output
    assert output.splitlines()[-1].startswith("encode-1k")


# --- the counterpart and those who need no broker -------------------------------------------------


@pytest.mark.parametrize(("name", "contender"), LOCAL, ids=lambda value: getattr(value, "name", value))
def test_workload_against_the_counterpart(bench: Bench, name: str, contender: Contender) -> None:
    """Each contender made of Python does its work, and its figures are there."""
    workload = WORKLOADS[name]
    if contender.settings.get("loop") == "uvloop":
        pytest.importorskip("uvloop")
    assert bench.takes_part(workload, contender)
    run = Run(name, contender.name, 1, bench.run(workload, contender))
    assert run.figures["cpu"] > 0
    assert run.figures["total_cpu"] > run.figures["cpu"]
    assert run.figures["peak_memory"] > 2**20
    (row,) = rows(name, [run])
    assert row.median > 0


def test_a_contender_that_fails_says_why(bench: Bench) -> None:
    """What a process wrote to its standard error is in the failure."""
    job = Job(url="ws://127.0.0.1:1/", address="q", work="send")
    broken = Command((sys.executable, "-c", "raise SystemExit('the reason')"))
    with pytest.raises(Failed, match="the reason"):
        bench._process(broken, job)


def test_a_client_whose_tools_are_missing_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said once, and nothing is run."""
    said: list[str] = []
    monkeypatch.setenv("PATH", "")
    with Bench("artemis", TINY, said.append) as bench:
        for _ in range(2):
            assert not bench.takes_part(WORKLOADS["send-100b"], Contender("rhea", "send"))
    assert "node is missing" in bench.skipped["rhea"]
    assert len(said) == 1


def test_a_client_that_speaks_tcp_needs_a_broker_that_does() -> None:
    """Broker-J is started with a WebSocket port alone: that is no missing client."""
    with Bench("broker-j", TINY, lambda line: None) as bench:
        assert not bench.takes_part(WORKLOADS["send-100b"], Contender("reactor", "send"))
    assert bench.skipped.keys() == {"reactor on broker-j"}


@pytest.mark.parametrize(
    ("delivery_id", "encoded"),
    [(0, b"\x43"), (7, b"\x52\x07"), (70000, b"\x70\x00\x01\x11\x70")],
)
def test_the_swift_counterpart_settles_what_was_sent(delivery_id: int, encoded: bytes) -> None:
    """Its disposition has the transfer's delivery-id, in whichever encoding that came."""
    fields = b"\x43" + encoded + b"\xa0\x01t"
    body = b"\x00\x53\x14\xc0" + bytes((len(fields) + 1, 3)) + fields + b"\x00Su\xa0\x01x"
    frame = (len(body) + 8).to_bytes(4, "big") + b"\x02\x00\x00\x00" + body
    answer = Swift().answer(frame + frame)
    assert len(answer) % 2 == 0
    half = answer[: len(answer) // 2]
    assert answer == half * 2
    assert int.from_bytes(half[:4], "big") == len(half)
    assert half[8:11] == b"\x00\x53\x15"
    assert b"\x70" + delivery_id.to_bytes(4, "big") in half


# --- workloads and results --------------------------------------------------------------------------


def test_workloads_name_what_exists() -> None:
    """A contender is a known peer with settings that its job has, under a name of its own."""
    fields = {field.name for field in dataclasses.fields(Job)}
    for workload in WORKLOADS.values():
        names = [contender.name for contender in workload.contenders]
        assert len(set(names)) == len(names)
        for contender in workload.contenders:
            assert contender.peer in PEERS
            assert {*workload.settings, *contender.settings} <= fields


def test_aims_name_what_exists() -> None:
    """An aim compares two contenders of its workload."""
    for aim in AIMS:
        names = {contender.name for contender in WORKLOADS[aim.workload].contenders}
        assert {aim.contender, aim.other} <= names


def _runs() -> list[Run]:
    """Three repeats in which the machine slows down by half, and the ratio stays."""
    return [
        Run("send-100b", contender, repeat, {"messages": 1000, "cpu": cpu * slow, "wall": 0.01, "peak_memory": 2**25})
        for repeat, slow in ((1, 1.0), (2, 1.5), (3, 1.5))
        for contender, cpu in (("ours transfer", 0.004), ("floor", 0.005), ("pyamqp", 0.16))
    ]


def test_ratios_are_taken_within_a_repeat() -> None:
    """A machine that slows down changes the figures and not the ratios."""
    ours, floor, pyamqp = rows("send-100b", _runs())
    assert (ours.median, ours.low, ours.high) == pytest.approx((6.0, 4.0, 6.0))
    assert ours.of_floor == pytest.approx(0.8)
    assert floor.of_first == pytest.approx(1.25)
    assert pyamqp.of_first == pytest.approx(40)
    assert {(aim.other, round(ratio, 3)) for aim, ratio in aimed(_runs())} == {("floor", 0.8), ("pyamqp", 0.025)}


def test_a_ratio_needs_both_in_the_same_repeat() -> None:
    """A repeat in which one side failed does not count."""
    runs = [run for run in _runs() if run.contender != "floor" or run.repeat == 2]
    ours, *_ = rows("send-100b", runs)
    assert ours.of_floor == pytest.approx(0.8)
    runs = [run for run in _runs() if (run.contender == "floor") != (run.repeat == 2)]
    ours, *_ = rows("send-100b", runs)
    assert ours.of_floor is None


def test_the_plot_is_drawn_from_kept_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--from`` shows tables, aims and plot of what ``--json`` kept, and runs nothing."""
    about = {"cpu": "A & B", "cores": 2, "python": "CPython", "broker": "none"}
    kept = {
        "environment": about,
        "skipped": {"jms": "java is missing"},
        "runs": [dataclasses.asdict(r) for r in _runs()],
    }
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    assert command.main(["--from", str(tmp_path / "kept.json"), "--plot", str(tmp_path / "plot.svg")]) == 0
    output = capsys.readouterr().out
    assert "took no part: jms: java is missing" in output
    assert "ours transfer / floor" in output
    drawing = ElementTree.parse(tmp_path / "plot.svg").getroot()
    assert len(drawing.findall("{*}rect")) == 1 + 3
    assert len(drawing.findall("{*}path")) == 1  # the one bar that is cut
    assert svg(_runs(), about) == (tmp_path / "plot.svg").read_text()


def test_a_run_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command runs what it was asked for, says so while it does, and keeps every run and where it was."""
    kept = tmp_path / "kept.json"
    arguments = ["--quick", "--repeats", "2", "--workload", "latency", "--peer", "websockets", "--json", str(kept)]
    assert command.main(arguments) == 0
    output = capsys.readouterr()
    assert "p99" in output.out
    assert "aims" not in output.out
    assert "[4/4" in output.err
    result = json.loads(kept.read_text())
    assert [run["repeat"] for run in result["runs"]] == [1, 1, 2, 2]
    assert all(run["figures"]["p50"] <= run["figures"]["p99"] for run in result["runs"])
    assert result["environment"]["packages"]["websockets"]


# --- commands ----------------------------------------------------------------------------------------


def _python(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=50
    )
    return done.stdout


def test_help_and_list_say_what_there_is() -> None:
    """Both commands explain themselves, and list all that can be asked for."""
    assert "--strict" in _python("benchmarks", "--help")
    listed = _python("benchmarks", "--list")
    assert all(name in listed for name in [*WORKLOADS, *PEERS])
    listed = _python("benchmarks.offline", "--list")
    assert all(name in listed for name in WORK)


def test_offline_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown work, and a folder without the package, are named."""
    from benchmarks.offline import __main__ as offline

    assert offline.main(["nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert offline.main(["transfer", "--against", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
