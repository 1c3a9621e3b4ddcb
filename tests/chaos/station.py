"""One station: two brokers with the same nodes, a proxy before one of them, a client that sends, one that receives."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from amqpws_async import Backoff, ClientSender, ClientState, DeliveryUnknown, OpenError, Retry, StateChange, Token
from amqpws_async.testing import Broker, FaultProxy, Wire
from amqpws_async.testing.faults import CloseConnection, DropConnection

from .ledger import ADDRESS, Breach, Fate, Ledger, RecordingNodes
from .plan import Step, plan
from .sabotage import Saboteur, one_by_one, until
from .senders import Hang, Style, deadline
from .sides import Receiving, Sending, Side

if TYPE_CHECKING:
    from .receivers import Way

__all__ = ["RULES", "SETUPS", "Setup", "Station"]

RECOVERY: Final = 30.0  # seconds for the clients to be well again once nothing goes wrong any more

DETOUR: Final = 0.6  # seconds that a connection to the second broker lasts

DETOUR_OPEN: Final = 2.0  # seconds that the second broker takes connections, once clients are sent there

TURNS: Final = 50  # of the loop, for transports that were dropped last to close

SLACK: Final = 40  # messages that may be sent before the first fault

TOKEN_LIFE: Final = 6.0  # seconds; a client rolls over before

RULES: Final = (
    "accepted means arrived",
    "declined means not there",
    "every send has an end",
    "sent once with raise",
    "duplicates are the same",
    "order is kept",
    "receivers see everything",
    "nothing is made up",
    "in doubt only at the end with resend",
    "no operation hangs",
    "clients come back",
    "clients end for good only where they must",
    "no task is left",
    "nothing unexpected is raised",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a station is like.

    Attributes:
        resend: Whether its senders send again what is in doubt.
        styles: How its streams send; one sender for each two.
        way: How it receives.
        secure: Whether by TLS and with tokens.
        final: Whether errors are final as they are by default, so that clients end and are made anew; else every error
            is tried again.
        options: Further options of the clients.
        share: Messages for each fault, relative to the others.
        failover: Whether the second broker's URL is the clients' second.
        sessions: Whether each sender and receiver has a session of its own.
    """

    resend: bool
    styles: tuple[Style, ...]
    way: Way
    secure: bool = False
    final: bool = False
    options: Mapping[str, Any] | None = None
    share: float = 1.0
    failover: bool = False
    sessions: bool = False

    @property
    def name(self) -> str:
        """In short."""
        parts = [self.way, "wss" if self.secure else "ws", "strict" if self.final else "patient"]
        return " ".join(["resend" if self.resend else "raise", *parts])


SETUPS: Final = (
    Setup(resend=True, styles=("many", "many"), way="iterate", failover=True),
    Setup(resend=True, styles=("transfer", "transfer", "send"), way="process", secure=True),
    Setup(resend=False, styles=("send", "send", "transfer", "transfer"), way="iterate", secure=True, failover=True),
    Setup(
        resend=False,
        styles=("many", "transfer"),
        way="process",
        options={"max_connection_age": 3.0},
        share=2.0,
        sessions=True,
    ),
    Setup(resend=True, styles=("send", "hasty", "transfer"), way="manual", final=True, sessions=True),
    Setup(resend=False, styles=("transfer", "hasty"), way="process", final=True, options={"max_frame_size": 512}),
    Setup(resend=True, styles=("hasty", "transfer"), way="durable", options={"max_connection_age": 5.0}),
    Setup(resend=False, styles=("hasty", "many"), way="confirm", secure=True, final=True),
)


class Gate:
    """How many messages may be sent by now: the faults set the pace."""

    def __init__(self) -> None:
        self.open = True
        self.paused = False
        self._left = 0.0
        self._changed = asyncio.Event()

    def allow(self, count: float) -> None:
        """Let so many more through."""
        self._left += count
        self.pulse()

    def pulse(self) -> None:
        """Have everybody who waits look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def take(self) -> bool:
        """Go through, if one may."""
        if self._left < 1 or self.paused:
            return False
        self._left -= 1
        return True

    async def wait(self, sender: ClientSender) -> None:
        """Wait until one may go through, or nobody will, or the sender has ended."""
        while self._left < 1 and self.open and not self.paused and sender.stop is None:
            await self._changed.wait()


class Tokens:
    """Supplies a station's tokens, which do not last."""

    def __init__(self) -> None:
        self._token: Token | None = None
        self._number = 0

    async def token(self, *, refresh: bool = False) -> Token:
        token = self._token
        if refresh or token is None or token.expiry is None or token.expiry - time.time() < TOKEN_LIFE / 4:
            self._number += 1
            self._token = token = Token(
                f"token-{self._number}-{time.time() + TOKEN_LIFE:.3f}", time.time() + TOKEN_LIFE
            )
        return token

    @staticmethod
    def refuse(headers: Mapping[str, str]) -> int | None:
        """What a broker says of the token in an upgrade."""
        expiry = headers.get("Authorization", "").rpartition("-")[2]
        return None if expiry and float(expiry) > time.time() else 401


class Station:
    """A station and everything in it.

    Args:
        seed: The run's.
        number: The station's.
        setup: What it is like.
        faults: How many steps with faults it is to go through.
        per_fault: Messages for each of them.
        contexts: The TLS contexts of server and client.
        report: Called with every breach.
        show: Called with every step, if at all.
    """

    def __init__(
        self,
        seed: int,
        number: int,
        setup: Setup,
        *,
        faults: int,
        per_fault: float,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        report: Callable[[Station, Breach], None],
        show: Callable[[str], None] | None = None,
    ) -> None:
        self.number = number
        self.setup = setup
        self.fates: Counter[Fate] = Counter()
        self.ends: Counter[str] = Counter()  # of clients and links
        self.history: deque[str] = deque(maxlen=300)
        self.wires: list[Wire] = []
        self.gate = Gate()
        self.over = False
        self.steps = 0
        self.faults = faults
        self._show = show
        self._per_fault = per_fault * setup.share
        self._plan = plan(seed, number, secure=setup.secure, final=setup.final)
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._end_expected = -1e9
        self._stepping = asyncio.Event()
        self._rolling: set[asyncio.Task[None]] = set()
        self.draw = random.Random(f"{seed}/{number}/traffic")
        self.ledger = Ledger(round(faults * self._per_fault) + SLACK + 1, resend=setup.resend, report=self._on_breach)
        self._contexts = contexts if setup.secure else None
        self.nodes = RecordingNodes(self.ledger, self._loop.time, topic=setup.way == "durable")
        self._detour_until = -1e9
        self.brokers = (self._broker(self._authorize), self._broker(self._authorize_detour))
        detour = CloseConnection if number % 2 else DropConnection
        self.brokers[1].faults.inject(detour(on="open", delay=DETOUR, times=None))
        self.saboteur = Saboteur(self)
        self.sides: dict[str, Side] = {}

    def _authorize(self, headers: Mapping[str, str], path: str) -> int | None:
        return Tokens.refuse(headers) if self._contexts else None

    def _authorize_detour(self, headers: Mapping[str, str], path: str) -> int | None:
        """Outside of detours the second broker refuses, so that clients go back to the first."""
        return 503 if self._loop.time() > self._detour_until else self._authorize(headers, path)

    def open_detour(self) -> None:
        """Let clients connect to the second broker, for a while."""
        self._detour_until = self._loop.time() + DETOUR_OPEN

    def _broker(self, authorize: Callable[[Mapping[str, str], str], int | None]) -> Broker:
        return Broker(
            nodes=self.nodes,
            ssl=self._contexts[0] if self._contexts else None,
            authorize=authorize,
            idle_timeout=2.0,
            ping_interval=1.0,
            close_timeout=1.0,
        )

    # --- what it tells -----------------------------------------------------------------------

    @property
    def target(self) -> str:
        """Where its senders send to."""
        return f"topic:{ADDRESS}" if self.setup.way == "durable" else ADDRESS

    def concerns(self, text: str) -> bool:
        """Whether a log line is about one of its clients."""
        clients = [side.client.container_id for side in self.sides.values() if side.client is not None]
        ports = [self.proxy.port, *(broker.port for broker in self.brokers)] if self.sides else []
        return any(client in text for client in clients) or any(f":{port}" in text for port in ports)

    def note(self, text: object) -> None:
        """Add a line to the history."""
        self.history.append(f"[{self._loop.time() - self._began:8.3f}] {text}")

    def breach(self, rule: str, text: str) -> None:
        """Report something that must not be."""
        self._on_breach(Breach(rule, text))

    def _on_breach(self, breach: Breach) -> None:
        self.note(f"BREACH: {breach.rule}: {breach.text}")
        self._report(self, breach)

    def on_fate(self, fate: Fate) -> None:
        """Note what became of a message."""
        self.fates[fate] += 1

    def on_doubt(self, unknown: DeliveryUnknown) -> None:
        """Note that a delivery is in doubt, which with resending only the end can bring about."""
        stop = unknown.stop
        client = self.sides["sending"].client
        ended = client is None or client.stop is not None or client.state.value in ("closing", "closed")
        if self.setup.resend and not ended and not self.may_end:
            self.breach("in doubt only at the end with resend", f"{unknown}: {stop}")

    def on_end(self, what: str, error: BaseException) -> None:
        """Note that a client or link has ended for good."""
        self.note(f"{what} ended for good: {type(error).__name__}: {error}")
        self.ends[what] += 1
        if not self.may_end:
            self.breach("clients end for good only where they must", f"{what}: {type(error).__name__}: {error}")

    def on_state(self, side: str, change: StateChange) -> None:
        """Note what happened to a client's connection."""
        self.note(f"{side}: {change}")
        if change.state is ClientState.CLOSED:
            self.gate.pulse()  # who waits to send learns of it

    def expect_end(self) -> None:
        """Note that something may end a client or link for good now, if errors are final here."""
        self._end_expected = self._loop.time()

    @property
    def may_end(self) -> bool:
        """Whether clients and links may end for good."""
        return self.setup.final and self._loop.time() - self._end_expected < 30

    # --- clients -----------------------------------------------------------------------------

    def client_options(self, side: str) -> dict[str, Any]:
        """The options of a client of this station."""
        options: dict[str, Any] = {
            "open_timeout": 3.0,
            "close_timeout": 2.0,
            "idle_timeout": 1.5,
            "ping_interval": 0.5,
            "ping_timeout": 1.0,
            "handover_timeout": 1.0,
            "proxy": None,
            "redirect_hosts": ("127.0.0.1",),
            "backoff": Backoff(initial=0.05, maximum=0.4, stable_after=0.5),
            "on_state": lambda change: self.on_state(side, change),
        }
        if not self.setup.final:
            conditions = ("amqp:unauthorized-access", "amqp:not-allowed", "amqp:not-found")
            options["retries"] = dict.fromkeys((101, 401, 403, *conditions), Retry.LATER)
        if self._contexts:
            options |= {"ssl": self._contexts[1], "token": Tokens()}
        if self.setup.way == "durable" and side == "receiving":
            options["container_id"] = "chaos-subscriber"
        return options | dict(self.setup.options or {})

    @property
    def urls(self) -> list[str]:
        """The URLs of the clients."""
        return [self.proxy.url, *([self.brokers[1].url] if self.setup.failover else [])]

    def side(self, name: str) -> Side:
        """The side of that name: ``sending`` or ``receiving``."""
        return self.sides[name]

    def roll_over(self, side: str, *, again: bool) -> None:
        """Have one client or both roll over, meanwhile."""
        for name in ("sending", "receiving") if side == "both" else (side,):
            for _ in range(1 + again):
                task = self._loop.create_task(self._roll_over(name))
                self._rolling.add(task)
                task.add_done_callback(self._rolling.discard)

    async def _roll_over(self, name: str) -> None:
        client = self.sides[name].client
        if client is None:
            return
        try:
            async with deadline(f"roll_over of {name}"):
                await client.roll_over()
            self.ends["rolled over"] += 1
        except Hang as hang:
            self.breach("no operation hangs", str(hang))
        except (OpenError, TimeoutError) as error:
            self.note(f"{name}: no roll-over: {error}")
        except Exception as error:
            if client.stop is None and client.state.value not in ("closing", "closed"):
                self.note(f"{name}: no roll-over: {type(error).__name__}: {error}")

    # --- the run -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Go through all steps, and see to the end that everything arrives."""
        async with contextlib.AsyncExitStack() as stack:
            for broker in self.brokers:
                await stack.enter_async_context(broker)
            self.proxy = await stack.enter_async_context(FaultProxy(self.brokers[0].url, one_by_one(self.wires)))
            self.sides = {"receiving": Receiving(self), "sending": Sending(self)}
            tasks = [
                self._loop.create_task(side.run(), name=f"{side.name} {self.number}") for side in self.sides.values()
            ]
            try:
                await self._sabotage()
                await self._end(*tasks)
            finally:
                for task in (*tasks, *self._rolling):
                    task.cancel()
                await asyncio.wait((*tasks, *self._rolling))
            for task in tasks:
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self.ledger.close()

    async def _sabotage(self) -> None:
        """Go through the steps."""
        await self._recovered()
        self.gate.allow(SLACK)
        for step in self._plan:
            if self.saboteur.planned.total() >= self.faults:
                return
            self.steps += 1
            self.note(step)
            if self._show is not None:
                self._show(f"station {self.number}, {step}")
            self.gate.allow(self._per_fault)
            await self._step(step)

    async def _step(self, step: Step) -> None:
        await asyncio.sleep(step.lead)
        await self.saboteur.do(step)
        await asyncio.sleep(step.pause)
        if step.recover:
            await self._recovered()

    async def _recovered(self) -> None:
        """Wait until both clients are well."""
        began = self._loop.time()
        if not await until(lambda: all(side.ready for side in self.sides.values()), RECOVERY, 0.02):
            states = ", ".join(f"{side.name}: {side.client!r}" for side in self.sides.values())
            self.breach("clients come back", f"after {RECOVERY:g} s: {states}")
        self.note(f"well again after {self._loop.time() - began:.3f} s")

    async def _end(self, receiving: asyncio.Task[None], sending: asyncio.Task[None]) -> None:
        """Let everything be sent and received."""
        self.note("the end: no more faults")
        self.brokers[0].faults.clear()
        self.proxy.resume()
        for broker in self.brokers:
            broker.faults.detach_links(role="sender")  # the last outcomes that were lost
        self.gate.open = False
        self.gate.pulse()
        if not await until(lambda: sending.done(), 2 * RECOVERY):
            self.breach("no operation hangs", "the senders did not come to their end")
        if not await until(self._all_received, 2 * RECOVERY, 0.1):
            text = f"{self.ledger.unseen} messages arrived and were not received; {self.sides['receiving'].client!r}"
            self.breach("no operation hangs", text)
        self.over = True
        receiving_side = self.sides["receiving"]
        await receiving_side.restart("leave")
        if not await until(lambda: receiving.done(), RECOVERY):
            self.breach("no operation hangs", "the receivers did not come to their end")

    def _all_received(self) -> bool:
        queues = [queue.statistics() for queue in self.nodes.chaos()]
        return not any(queue.depth or queue.unsettled for queue in queues) and self.ledger.unseen == 0
