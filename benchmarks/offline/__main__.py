"""``python -m benchmarks.offline``: what a message costs, without sockets."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import ROOT, Counted, CountingUnavailable, Timed, Worker
from .work import WORK

DESCRIPTION = """\
What one message costs the client, in CPU microseconds, without sockets: the public API and the raw floor run on the
answers of a peer that were recorded. The floor is proton's engine by cffi, with a future for each message.

Rounds of all the work are interleaved. "best" is the least of the rounds, which noise moves least; "x floor" is the
median of the ratios within each round.
"""

EXAMPLES = """\
examples:
  python -m benchmarks.offline                          everything, in half a minute
  python -m benchmarks.offline transfer receive         two figures, and their floors, in seconds
  python -m benchmarks.offline --against ../before      this tree and another, in turns, and the ratio
  python -m benchmarks.offline --count transfer         instructions (valgrind): a figure that noise cannot touch
"""

COUNTED_MESSAGES = 2000  # in a round at most: valgrind is 50 times slower, and nothing varies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print a table.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    if options.list:
        for name, work in WORK.items():
            print(f"{name:16} {work.title.strip()}")
        return 0
    unknown = [name for name in options.work if name not in WORK]
    if unknown:
        print(f"no such work: {', '.join(unknown)}; --list shows what there is", file=sys.stderr)
        return 2
    if options.against is not None and not (options.against / "amqpws_async").is_dir():
        print(f"{options.against} has no folder amqpws_async", file=sys.stderr)
        return 2
    chosen = options.work or list(WORK)
    names = [name for name in WORK if name in chosen or any(WORK[other].floor == name for other in chosen)]
    kind = Counted if options.count else Timed
    rounds = options.rounds or (1 if options.count else 7)
    trees = [ROOT] if options.against is None else [ROOT, options.against.resolve()]
    try:
        with contextlib.ExitStack() as stack:
            workers: list[Worker] = [stack.enter_context(kind(tree)) for tree in trees]
            figures = _measure(workers, names, rounds, COUNTED_MESSAGES if options.count else sys.maxsize)
    except CountingUnavailable as problem:
        print(problem, file=sys.stderr)
        return 2
    _print(figures, names, kind.unit)
    if options.json:
        data = [{"work": name, "unit": kind.unit, "rounds": [tree[name] for tree in figures]} for name in names]
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", nargs="*", metavar="WORK", help="what to measure (default: everything)")
    parser.add_argument("--list", action="store_true", help="list the work there is")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each (default: 7, and 1 with --count)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with the package in another folder")
    parser.add_argument("--count", action="store_true", help="count instructions by valgrind instead of time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figure of every round")
    return parser


Figures = list[dict[str, list[float]]]


def _measure(workers: list[Worker], names: list[str], rounds: int, limit: int) -> Figures:
    """Run the rounds in turns; for each worker the figures of each work."""
    figures: Figures = [{name: [] for name in names} for _ in workers]
    for number in range(rounds):
        for name in names:
            if sys.stderr.isatty():
                print(f"\r\033[Kround {number + 1} of {rounds}: {name}", end="", file=sys.stderr, flush=True)
            messages = min(WORK[name].messages, limit)
            # Who is first takes turns, too.
            turn = list(enumerate(workers))
            for index, worker in turn if number % 2 == 0 else reversed(turn):
                figures[index][name].append(worker.round(name, messages))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return figures


def _print(figures: Figures, names: list[str], unit: str) -> None:
    ours = figures[0]
    against = figures[1] if len(figures) > 1 else None
    print(f"{unit + ' per message':54}{'best':>9}{'median':>9}{'x floor':>9}", end="")
    print(f"{'other':>9}{'x other':>9}" if against else "")
    for name in names:
        values = ours[name]
        line = f"{name:16} {WORK[name].title[:36]:37}{_figure(min(values))}{_figure(statistics.median(values))}"
        line += f"{_ratio(values, ours[WORK[name].floor]):9.3f}"
        if against:
            line += f"{_figure(min(against[name]))}{_ratio(values, against[name]):9.3f}"
        print(line)


def _figure(value: float) -> str:
    return f"{value:9.2f}" if value < 1000 else f"{value:9.0f}"


def _ratio(values: list[float], others: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


if __name__ == "__main__":
    sys.exit(main())
