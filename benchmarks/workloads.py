"""What is measured, and by whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["WORKLOADS", "Contender", "Workload"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A client at some work, in one of its ways.

    Attributes:
        peer: The client's name in `PEERS`.
        work: The work's name in its job.
        way: What tells it from other ways of the same client, for people.
        settings: Fields of its `Job` that differ from the workload's.
        share: Of the workload's messages, for clients that would take minutes.
        warm_up: Messages before those that are measured, as a share of these: just-in-time compilers, windows and
            caches get going.
    """

    peer: str
    work: str
    way: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    warm_up: float = 0.25

    @property
    def name(self) -> str:
        """Its name in results."""
        return f"{self.peer} {self.way}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One table of the results.

    Attributes:
        title: For people.
        contenders: Who takes part; the first is what the others are compared with.
        shape: What is sent.
        messages: How many, measured.
        metric: What is compared: ``cpu`` per message, ``cpu_mib`` per MiB of bodies, ``p50``, or ``memory_each``.
        server: ``broker``, or ``counterpart``: a process of ours that keeps nothing.
        path: Which kind of counterpart.
        filled: Whether the queue is filled before, to be received from.
        settings: Fields of the `Job`.
    """

    title: str
    contenders: tuple[Contender, ...]
    shape: str = "100b"
    messages: int
    metric: str = "cpu"
    server: str = "broker"
    path: str = ""
    filled: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def _jms(work: str) -> Contender:
    return Contender("jms", work, warm_up=1.0)  # the Java machine compiles in stages, for tens of thousands of messages


def _everybody(work: str, ours: tuple[Contender, ...]) -> tuple[Contender, ...]:
    others = (
        Contender("floor", work),
        Contender("go-amqp", work),
        Contender("rhea", work),
        _jms(work),
        Contender("pyamqp", work, share=0.1),
        Contender("reactor", work, share=0.3),
    )
    return ours + others


def _all() -> Iterator[tuple[str, Workload]]:
    transfer, receive = Contender("ours", "send", "transfer"), Contender("ours", "receive")
    many, tasks = Contender("ours", "send-many", "send_many"), Contender("ours", "tasks", "100 tasks")
    uvloop = {"loop": "uvloop"}
    yield (
        "send-100b",
        Workload(title="send 100 B, 1 000 in flight", contenders=_everybody("send", (transfer, many)), messages=100000),
    )
    yield (
        "receive-100b",
        Workload(
            title="receive 100 B, read the body, accept",
            contenders=_everybody("receive", (receive,)),
            messages=100000,
            filled=True,
        ),
    )
    yield (
        "tasks-100b",
        Workload(
            title="send 100 B, 100 tasks share one sender and await each outcome",
            contenders=(
                tasks,
                Contender("ours", "tasks", "100 tasks, uvloop", uvloop),
                transfer,
                Contender("go-amqp", "tasks", "100 goroutines"),
                Contender("go-amqp", "send", "pipelined"),
                Contender("floor", "send"),
            ),
            messages=100000,
        ),
    )
    yield (
        "send-1k",
        Workload(
            title="send 1 KiB JSON, id, content type, 3 properties",
            contenders=_everybody("send", (transfer,)),
            shape="1k",
            messages=40000,
        ),
    )
    yield (
        "receive-1k",
        Workload(
            title="receive 1 KiB JSON, read body, id and a property, accept",
            contenders=_everybody("receive", (receive,)),
            shape="1k",
            messages=40000,
            filled=True,
        ),
    )
    for shape, title, count in (("64k", "64 KiB", 4000), ("1m", "1 MiB", 300)):
        for work, ours in (("send", transfer), ("receive", receive)):
            yield (
                f"{work}-{shape}",
                Workload(
                    title=f"{work} {title}, to a peer that keeps nothing",
                    contenders=(
                        ours,
                        *(Contender(peer, work) for peer in ("websockets", "floor", "go-amqp", "rhea")),
                        _jms(work),
                    ),
                    shape=shape,
                    messages=count,
                    metric="cpu_mib",
                    server="counterpart",
                    settings={"window": 100 if shape == "64k" else 16},
                ),
            )
    alone = Contender("ours", "alone", "asyncio"), Contender("ours", "alone", "uvloop", uvloop)
    yield (
        "latency",
        Workload(
            title="one at a time, each awaited; the peer answers by hand-made bytes",
            contenders=(
                *alone,
                Contender("websockets", "alone", "asyncio"),
                Contender("websockets", "alone", "uvloop", uvloop),
                Contender("go-amqp", "alone"),
                Contender("rhea", "alone"),
            ),
            messages=10000,
            metric="p50",
            server="counterpart",
            path="swift",
        ),
    )
    yield (
        "latency-broker",
        Workload(
            title="one at a time, each awaited, on the broker",
            contenders=(*alone, Contender("go-amqp", "alone"), Contender("rhea", "alone"), _jms("alone")),
            messages=10000,
            metric="p50",
        ),
    )
    yield (
        "connections-8",
        Workload(
            title="send 100 B on 8 connections of one process",
            contenders=tuple(Contender(peer, "connections") for peer in ("ours", "go-amqp", "rhea")),
            messages=80000,
            settings={"connections": 8},
        ),
    )
    yield (
        "links-500",
        Workload(
            title="send 100 B over many links of one connection",
            contenders=tuple(
                Contender("ours", "send", "1 link" if links == 1 else f"{links} links", {"links": links})
                for links in (1, 50, 500)
            ),
            messages=50000,
            server="counterpart",
        ),
    )
    yield (
        "idle-1000",
        Workload(
            title="1 000 idle connections: memory of each",
            contenders=(
                Contender("ours", "idle"),
                Contender("websockets", "idle"),
                Contender("websockets", "idle-proton", "and proton"),
            ),
            messages=1000,
            metric="memory_each",
            server="counterpart",
            settings={"connections": 1000},
        ),
    )
    yield (
        "connect",
        Workload(
            title="from nothing to the first message's outcome",
            contenders=(*(Contender(peer, "connect") for peer in ("ours", "go-amqp", "rhea")), _jms("connect")),
            messages=60,
            metric="p50",
        ),
    )


WORKLOADS: Final[dict[str, Workload]] = dict(_all())
