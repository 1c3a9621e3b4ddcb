"""``python -m benchmarks``: this library and other clients on the same work."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.interop.brokers import StartError
from tests.interop.fetch import MissingTool

from .environment import environment
from .measuring import Bench, Failed, Run, Scale
from .peers.catalogue import PEERS
from .report import aims, text
from .results import UNITS, figure
from .workloads import WORKLOADS, Contender

DESCRIPTION = """\
This library and other clients, in other languages too, on the same work and the same broker: every contender in a
process of its own, in turns, repeat by repeat. Brokers and clients are fetched and built into the cache of the interop
tests; what is missing on this machine (java, mvn, node, go) is named, and its clients take no part.

"CPU" is user and system time of the client's process, between marks after a warm-up. Look at the ratios: the figures of
one machine, of one minute, say little. "x first" divides by the first line of a table, "x floor" by proton's engine and
the websockets library without any API.
"""

EXAMPLES = """\
examples:
  python -m benchmarks --quick                            a first look at everything, in a few minutes
  python -m benchmarks --workload send-100b --repeats 3   one table
  python -m benchmarks --peer ours floor                  against the floor alone
  python -m benchmarks --json results.json --plot cpu.svg everything, kept
  python -m benchmarks --from results.json --plot cpu.svg  tables and plot of a run that was kept
  python -m benchmarks.offline --help                     without sockets, in seconds
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print tables.

    Returns:
        The exit code: 0, 1 where a contender failed or was missing with ``--strict``, 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.results:
        kept = json.loads(options.results.read_text())
        runs = [Run(**run) for run in kept["runs"]]
        failures: list[str] = []
        skipped, about = kept["skipped"], kept["environment"]
    else:
        about = environment(options.broker)
        scale = Scale(messages=0.02, connections=50, seconds=2.0) if options.quick else Scale()
        with Bench(options.broker, scale, _say) as bench:
            try:
                runs, failures = _run(
                    bench, options.workload, options.peer, options.repeats or (1 if options.quick else 5)
                )
            except (MissingTool, StartError) as error:
                print(f"{options.broker} cannot be started: {error}", file=sys.stderr)
                return 1
            skipped = bench.skipped
    print(text(runs))
    if not options.quick:
        print(aims(runs))
    for name, reason in skipped.items():
        print(f"took no part: {name}: {reason}")
    for failure in failures:
        print(f"FAILED: {failure}")
    if options.json:
        result = {"environment": about, "skipped": skipped, "failures": failures, "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        from .plot import svg

        options.plot.write_text(svg(runs, about))
    return 1 if failures or (options.strict and any(name in PEERS for name in skipped)) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list workloads and peers")
    add("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME", help="only these")
    add("--peer", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help="only these clients")
    add("--repeats", type=int, metavar="N", help="runs of each contender (default 5; 1 with --quick)")
    add("--quick", action="store_true", help="a fiftieth of the messages: to see that all runs, not how fast")
    add("--broker", choices=("artemis", "broker-j"), default="artemis", help="default: artemis")
    add("--strict", action="store_true", help="a client that is missing is a failure")
    add("--json", type=Path, metavar="FILE", help="keep every run")
    add("--plot", type=Path, metavar="FILE", help="draw the CPU per message, as SVG")
    add("--from", dest="results", type=Path, metavar="FILE", help="show what --json kept, and run nothing")
    return parser


def _list() -> None:
    print("workloads")
    for name, workload in WORKLOADS.items():
        print(f"  {name:16} {workload.title}")
        print(f"  {'':16}   {', '.join(contender.name for contender in workload.contenders)}")
    print("peers")
    for name, peer in PEERS.items():
        print(f"  {name:16} {peer.title}{': ' + peer.note if peer.note else ''}")


def _run(bench: Bench, workloads: list[str], peers: list[str], repeats: int) -> tuple[list[Run], list[str]]:
    """Run everything in turns; the runs, and what failed."""
    todo: list[tuple[str, Contender]] = [
        (name, contender)
        for name in workloads
        for contender in WORKLOADS[name].contenders
        if contender.peer in peers and bench.takes_part(WORKLOADS[name], contender)
    ]
    runs: list[Run] = []
    failures: list[str] = []
    done, started = 0, time.monotonic()
    for repeat in range(1, repeats + 1):
        # Backwards every other time: who comes after whom is not always the same.
        for name, contender in todo if repeat % 2 else reversed(todo):
            done += 1
            where = f"[{done}/{repeats * len(todo)} {time.monotonic() - started:4.0f} s] {name}: {contender.name}"
            workload = WORKLOADS[name]
            try:
                run = Run(name, contender.name, repeat, bench.run(workload, contender))
            except Failed as error:
                failures.append(f"{name}: {contender.name}, repeat {repeat}: {error}")
                _say(f"{where}: FAILED: {error}")
                continue
            runs.append(run)
            _say(f"{where}: {figure(workload, run):.2f} {UNITS[workload.metric]}")
    return runs, failures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
