"""What a chaos run tells: progress, the tables at its end, and the history of a station where a rule was broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .plan import FINAL, KINDS, SECURE, USER
from .station import RULES, Station

if TYPE_CHECKING:
    from .ledger import Breach

__all__ = ["Breaches", "tables"]

SHOWN = 5  # breaches of a rule at a station whose history is shown; the others are counted

HISTORY = 80  # lines


class Breaches:
    """Collects what must not be, and shows it.

    Args:
        seed: The run's.
        say: Where to.
    """

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._say = say
        self._shown: Counter[tuple[int, str]] = Counter()

    def report(self, station: Station, breach: Breach) -> None:
        """Note a breach at a station."""
        self.counts[breach.rule] += 1
        shown = self._shown[station.number, breach.rule] = self._shown[station.number, breach.rule] + 1
        if shown > SHOWN:
            return
        where = f"--seed {self._seed}, station {station.number} ({station.setup.name})"
        lines = [f"BREACH of {breach.rule!r}, {where}: {breach.text}"]
        if shown == 1:
            lines += [f"    {line}" for line in list(station.history)[-HISTORY:]]
        self._say("\n".join(lines))


def tables(stations: Sequence[Station], breaches: Counter[str]) -> list[str]:
    """The tables at the end, line by line."""
    return [*_kinds(stations), "", *_stations(stations), "", *_rules(breaches)]


def _kinds(stations: Sequence[Station]) -> list[str]:
    planned: Counter[str] = sum((station.saboteur.planned for station in stations), Counter())
    struck: Counter[str] = sum((station.saboteur.struck for station in stations), Counter())
    lines = [f"{'fault':<24}{'planned':>9}{'struck':>9}"]
    kinds = [kind for kind in (*KINDS, *SECURE, *FINAL) if kind not in USER]
    lines += [f"{kind:<24}{planned[kind]:>9}{struck[kind]:>9}" for kind in kinds]
    total = sum(count for kind, count in planned.items() if kind not in USER)
    happened = sum(count for kind, count in struck.items() if kind not in USER)
    return [*lines, f"{'all':<24}{total:>9}{happened:>9}"]


def _stations(stations: Sequence[Station]) -> list[str]:
    names = ("accepted", "declined", "in_doubt", "given_up", "arrived", "duplicates", "received", "received again")
    lines = [f"{'station':<32}{'faults':>8}" + "".join(f"{name.replace('_', ' '):>16}" for name in names)]
    sums: Counter[str] = Counter()
    for station in stations:
        counts = station.ledger.counts()
        counts["faults"] = station.saboteur.strikes
        sums += counts
        title = f"{station.number} {station.setup.name}"
        lines.append(f"{title:<32}{counts['faults']:>8}" + "".join(f"{counts[name]:>16}" for name in names))
    lines.append(f"{'all':<32}{sums['faults']:>8}" + "".join(f"{sums[name]:>16}" for name in names))
    ends: Counter[str] = sum((station.ends for station in stations), Counter())
    restarts = sum(station.saboteur.struck["restart"] for station in stations)
    ended = ", ".join(f"{name} {count}" for name, count in sorted(ends.items()))
    return [*lines, f"clients ended by their user {restarts}; {ended or 'nothing ended for good'}"]


def _rules(breaches: Counter[str]) -> list[str]:
    return [f"{rule:<44}{breaches[rule] or 'kept':>8}" for rule in RULES]
