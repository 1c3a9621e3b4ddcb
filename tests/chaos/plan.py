"""What goes wrong and when: steps drawn from a seed, the same for the same seed.

The plan is what a seed repeats. When each step meets which byte or message depends on real time as well.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: Kinds of steps, and how often they are drawn beside each other.
KINDS: Final[Mapping[str, int]] = {
    # the network
    "refuse": 2,
    "cut": 5,
    "reset": 5,
    "half-close": 4,
    "stall": 3,
    "drop bytes": 3,
    "cut at a byte": 8,
    "reset at a byte": 8,
    "half-close at a byte": 4,
    "stall at a byte": 4,
    "drop at a byte": 3,
    "small pieces": 2,
    "slow line": 2,
    # the upgrade
    "status 401": 2,
    "status 403": 2,
    "status 429": 3,
    "status 503": 3,
    "no subprotocol": 2,
    "slow upgrade": 2,
    "split messages": 3,
    "merged messages": 2,
    "fragmented messages": 2,
    # AMQP
    "close": 6,
    "expired token": 3,
    "drop connection": 6,
    "silence": 3,
    "end session": 7,
    "detach": 10,
    "redirect connection": 3,
    "redirect link": 4,
    "refuse link": 4,
    "starved credit": 3,
    "lost outcome": 5,
    "late outcome": 5,
    "declined": 3,
    "duplicate delivery": 5,
    # what the user does meanwhile
    "roll over": 8,
    "restart": 2,
}

#: Drawn for stations with TLS alone.
SECURE: Final[Mapping[str, int]] = {"slow TLS": 4}

#: What ends a client or a link for good; drawn for stations whose clients are made anew then.
FINAL: Final[Mapping[str, int]] = {"final close": 2, "final detach": 3}

#: No faults, and not counted as such.
USER: Final = frozenset(("roll over", "restart"))

PROVOCATIONS: Final = ("cut", "reset", "disconnect", "close")

MOST_IN_A_ROW: Final = 4  # steps without waiting for the clients to be well again


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that goes wrong.

    Attributes:
        number: Its place in the plan.
        kind: One of `KINDS`, `SECURE` and `FINAL`.
        values: What exactly; ``then`` is how clients are made to connect anew, to meet it.
        lead: Seconds that the messages let through with it have before.
        pause: Seconds to wait afterwards.
        recover: Whether to wait until the clients are well again before the next.
    """

    number: int
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    lead: float = 0.0
    pause: float = 0.0
    recover: bool = False

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return f"step {self.number}: {self.kind}{f' ({values})' if values else ''}"


def plan(seed: int, station: int, *, secure: bool, final: bool) -> Iterator[Step]:
    """Draw the steps of a station, without end.

    Args:
        seed: The run's.
        station: The station's number.
        secure: Whether it has TLS.
        final: Whether its clients may end for good.
    """
    draw = random.Random(f"{seed}/{station}")
    weights = {**KINDS, **(SECURE if secure else {}), **(FINAL if final else {})}
    number = in_a_row = 0
    while True:
        number += 1
        kind = draw.choices(list(weights), list(weights.values()))[0]
        recover = draw.random() < 0.5 or in_a_row >= MOST_IN_A_ROW
        in_a_row = 0 if recover else in_a_row + 1
        lead = draw.choice((0.0, draw.uniform(0.0, 0.005), draw.uniform(0.0, 0.03), draw.uniform(0.0, 0.1)))
        pause = draw.choice((0.0, draw.uniform(0.0, 0.05), draw.uniform(0.0, 0.4)))
        yield Step(number, kind, _values(kind, draw), lead, pause, recover)


def _values(kind: str, draw: random.Random) -> dict[str, Any]:
    """Draw what exactly happens; everything is drawn here, so that a change in one kind leaves the others alone."""
    draw = random.Random(draw.getrandbits(64))
    provocation = draw.choice(PROVOCATIONS)
    way = draw.choice(("up", "down"))
    if kind == "refuse":
        return {"seconds": draw.uniform(0.05, 1.0), "then": provocation}
    if kind in ("cut", "reset", "half-close", "stall", "drop bytes"):
        one = draw.choice((None, 0, 1, 2))  # which of the connections, or all
        seconds = draw.choice((draw.uniform(0.05, 0.5), draw.uniform(1.5, 3.0)))
        return {"one": one, "way": way if kind == "half-close" else draw.choice(("up", "down", None)),
                "seconds": seconds}  # fmt: skip
    if kind.endswith("at a byte"):
        at = draw.choice((draw.randrange(700), draw.randrange(700, 2500), draw.randrange(2500, 30000)))
        return {"way": way, "at": at, "pieces": draw.choice((None, (1, 50), (1, 1000))), "then": provocation}
    if kind == "small pieces":
        return {"sizes": draw.choice(((1, 1), (1, 20), (1, 500))), "then": provocation}
    if kind == "slow line":
        return {"bytes_per_second": draw.choice((5000, 20000, 100000)), "then": provocation}
    if kind.startswith("status"):
        retry_after = 1.0 if kind in ("status 429", "status 503") and draw.random() < 0.1 else None
        return {"times": draw.choice((1, 1, 2)), "retry_after": retry_after, "then": provocation}
    if kind in ("no subprotocol", "slow upgrade", "slow TLS"):
        return {"seconds": draw.choice((0.1, 0.5, 2.5)), "then": provocation}
    if kind in ("split messages", "fragmented messages"):
        return {"sizes": draw.choice(((1, 1), (1, 16), (1, 400))), "seed": draw.randrange(1000), "then": provocation}
    if kind == "merged messages":
        return {"sizes": (1000, 60000), "seed": draw.randrange(1000), "then": provocation}
    return _amqp_values(kind, draw)


def _amqp_values(kind: str, draw: random.Random) -> dict[str, Any]:
    after = draw.choice((0, 0, draw.randrange(10), draw.randrange(20)))
    delay = draw.choice((0.0, 0.0, draw.uniform(0.0, 0.2)))
    on = draw.choice(("arrival", "arrival", "arrival", "delivery", "delivery", "attached", "begin", "open"))
    if kind in ("close", "drop connection", "silence"):
        condition = draw.choice(("amqp:connection:forced", "amqp:internal-error", "amqp:resource-limit-exceeded"))
        return {"on": on, "after": after if on in ("arrival", "delivery") else 0, "delay": delay,
                "condition": condition}  # fmt: skip
    if kind == "end session":
        on = draw.choice(("arrival", "arrival", "delivery", "attached", "begin"))
        return {"on": on, "after": after if on in ("arrival", "delivery") else 0, "delay": delay}
    if kind in ("detach", "final detach"):
        on = draw.choice(("arrival", "arrival", "delivery", "attached"))
        return {"on": on, "after": after if on != "attached" else 0, "delay": delay,
                "condition": draw.choice(("amqp:link:detach-forced", "amqp:internal-error", "amqp:resource-deleted")),
                "times": draw.choice((1, 1, 1, 3))}  # fmt: skip
    if kind == "expired token":
        return {"delay": draw.choice((0.0, 0.05, 0.3)), "times": draw.choice((1, 1, 2)), "then": "disconnect"}
    if kind in ("redirect connection", "final close"):
        return {"delay": delay, "then": draw.choice(PROVOCATIONS)}
    if kind == "redirect link":
        return {"on": draw.choice(("attach", "arrival", "delivery")), "after": after, "path": draw.randrange(4)}
    if kind == "refuse link":
        condition = draw.choice(("amqp:resource-locked", "amqp:internal-error", "amqp:resource-limit-exceeded"))
        return {"times": draw.choice((1, 2, 3)), "condition": condition, "role": draw.choice(("sender", "receiver"))}
    if kind == "starved credit":
        return {"seconds": draw.uniform(0.05, 0.6), "for_ever": draw.random() < 0.5}
    if kind in ("lost outcome", "late outcome", "declined", "duplicate delivery"):
        return {"after": after, "times": draw.choice((1, 2, 5)), "seconds": draw.uniform(0.01, 0.5),
                "then": draw.choice(("detach", "disconnect")),
                "outcome": draw.choice(("released", "modified", "rejected"))}  # fmt: skip
    if kind == "roll over":
        return {"side": draw.choice(("sending", "receiving", "both")), "again": draw.random() < 0.3}
    if kind == "restart":
        return {"side": draw.choice(("sending", "receiving")), "how": draw.choice(("close", "abort", "leave"))}
    raise AssertionError(kind)
