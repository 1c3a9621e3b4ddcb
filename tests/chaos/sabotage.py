"""Makes the steps of a plan happen at a station."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from amqpws_async import ErrorCondition, Modified, Outcome, Rejected, Released
from amqpws_async.testing import Lane, ProxyConnection, Wire
from amqpws_async.testing.faults import (
    CloseConnection,
    CutMessages,
    DeclineMessage,
    DelayOutcome,
    DeliverAgain,
    DetachLink,
    DropConnection,
    EndSession,
    ExpireToken,
    FallSilent,
    Fault,
    LoseOutcome,
    NoSubprotocol,
    RefuseLink,
    RefuseUpgrade,
    SlowUpgrade,
    StarveCredit,
    connection_redirect,
    link_redirect,
)

from .plan import USER, Step

if TYPE_CHECKING:
    from .station import Station

__all__ = ["Saboteur", "one_by_one", "until"]

STRIKE: Final = 4.0  # seconds for a fault to strike; it is forgotten then

UNSTALL: Final = 2.5  # seconds after which what was stalled at a byte goes on; its client has noticed by then

ENDING: Final = frozenset(
    ("status 401", "status 403", "no subprotocol", "expired token", "final close", "final detach", "redirect link")
)
"""What may end a client or link for good where its errors are final, as they are by default."""

DETOURS: Final = frozenset(("redirect connection", "redirect link", "refuse"))
"""What sends clients to the second broker."""

_OUTCOMES: Final[dict[str, Outcome]] = {
    "released": Released(),
    "modified": Modified(delivery_failed=True),
    "rejected": Rejected(),
}


class Saboteur:
    """Does what the plan says, and counts it.

    Attributes:
        planned: Steps begun, by kind.
        struck: Those that were seen to strike, by kind.
        others: Faults that neither broker nor proxy counts.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self.planned: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.others = 0

    @property
    def strikes(self) -> int:
        """All faults so far."""
        station = self._station
        brokers = sum(broker.faults.counts.total() for broker in station.brokers)
        return brokers + station.proxy.faults + self.others

    async def do(self, step: Step) -> None:
        """Make a step happen, and wait until it has, if not for ever."""
        self.planned[step.kind] += 1
        if step.kind in ENDING:
            self._station.expect_end()
        if step.kind in DETOURS:
            self._station.open_detour()
        if step.kind == "roll over":
            self._station.roll_over(step.values["side"], again=step.values["again"])
            happened = True
        elif step.kind == "restart":
            await self._station.side(step.values["side"]).restart(step.values["how"])
            happened = True
        else:
            happened = await self._fault(step)
        if happened:
            self.struck[step.kind] += 1
        elif step.kind not in USER:
            self._station.note("it did not strike")

    async def _fault(self, step: Step) -> bool:
        kind, values = step.kind, step.values
        if kind == "refuse":
            return await self._refuse(values)
        if kind in ("cut", "reset", "half-close", "stall", "drop bytes"):
            return self._now(kind, values)
        if kind.endswith("at a byte"):
            return await self._at_a_byte(kind.removesuffix(" at a byte"), values)
        if kind in ("small pieces", "slow line", "slow TLS"):
            return await self._slow(kind, values)
        return await self._at_broker(step)

    # --- the network -------------------------------------------------------------------------

    async def _refuse(self, values: Any) -> bool:
        proxy = self._station.proxy
        proxy.refuse()
        self.others += 1
        await self._provoke(values["then"])
        await asyncio.sleep(values["seconds"])
        proxy.accept()
        return True

    def _now(self, kind: str, values: Any) -> bool:
        proxy = self._station.proxy
        chosen: list[ProxyConnection] = list(proxy.connections)
        if values["one"] is not None and chosen:
            chosen = [chosen[values["one"] % len(chosen)]]
        for connection in chosen:
            if kind == "cut":
                connection.cut()
            elif kind == "reset":
                connection.reset()
            elif kind == "half-close":
                connection.half_close(values["way"])
            elif kind == "drop bytes":
                connection.drop(values["way"])
            else:
                connection.stall(values["way"])
                asyncio.get_running_loop().call_later(values["seconds"], connection.resume)
        return bool(chosen)

    async def _at_a_byte(self, action: Any, values: Any) -> bool:
        lane = Lane(at=values["at"], then=action, pieces=values["pieces"])
        proxy, before = self._station.proxy, self._station.proxy.faults
        self._station.wires.append(Wire(up=lane) if values["way"] == "up" else Wire(down=lane))
        await self._provoke(values["then"])
        provoked = proxy.faults - before
        struck = await until(lambda: proxy.faults > before + provoked, 0.5)  # or later, with more traffic
        if action == "stall":
            asyncio.get_running_loop().call_later(UNSTALL, proxy.resume)
        return struck

    async def _slow(self, kind: str, values: Any) -> bool:
        if kind == "small pieces":
            lane = Lane(pieces=values["sizes"])
        elif kind == "slow line":
            lane = Lane(bytes_per_second=values["bytes_per_second"])
        else:
            lane = Lane(delay=values["seconds"])
        wires = self._station.wires
        wires.append(Wire(up=lane, down=lane))
        await self._provoke(values["then"])
        struck = await until(lambda: not wires, STRIKE)
        self.others += struck
        return struck

    # --- the broker --------------------------------------------------------------------------

    async def _at_broker(self, step: Step) -> bool:
        station, values = self._station, step.values
        broker = station.brokers[0]
        fault = self._made(step)
        name = type(fault).__name__
        before = broker.faults.counts[name]
        broker.faults.inject(fault)
        if fault.on in ("upgrade", "open", "begin"):
            await self._provoke(values.get("then", "disconnect"))
        elif fault.on in ("attach", "attached"):
            broker.faults.detach_links(role=fault.role)
        struck = await until(lambda: broker.faults.counts[name] > before, STRIKE)
        if isinstance(fault, LoseOutcome):  # so that its fate is decided
            await until(lambda: broker.faults.counts[name] >= before + (fault.times or 1), 0.2)
            self._detach_senders(values["then"])
        elif isinstance(fault, StarveCredit) and fault.seconds is None:
            await asyncio.sleep(values["seconds"])
            self._detach_senders("detach")
        elif fault.times != 1:
            await until(lambda: broker.faults.counts[name] >= before + (fault.times or 1), 0.5)
        broker.faults.clear()
        if isinstance(fault, DeclineMessage):
            station.ledger.excused += broker.faults.counts[name] - before
        return struck

    def _made(self, step: Step) -> Fault:
        kind, values = step.kind, step.values
        if kind.startswith("status"):
            status = int(kind.removeprefix("status "))
            return RefuseUpgrade(status=status, times=values["times"], retry_after=values["retry_after"])
        if kind == "no subprotocol":
            return NoSubprotocol()
        if kind == "slow upgrade":
            return SlowUpgrade(seconds=values["seconds"])
        if kind in ("split messages", "merged messages", "fragmented messages"):
            fragmented = kind == "fragmented messages"
            return CutMessages(sizes=values["sizes"], seed=values["seed"], fragmented=fragmented)
        if kind == "expired token":
            return ExpireToken(delay=values["delay"], times=values["times"])
        if kind == "redirect connection":
            error = connection_redirect(self._station.brokers[1].url)
            return CloseConnection(error=error, delay=values["delay"])
        if kind == "final close":
            return CloseConnection(error=ErrorCondition("amqp:not-allowed", "for good"), delay=values["delay"])
        if kind == "redirect link":
            error = link_redirect(f"{self._station.brokers[1].url}{values['path']}")
            if values["on"] == "attach":
                return RefuseLink(error=error)
            return DetachLink(on=values["on"], after=values["after"], error=error)
        if kind == "refuse link":
            error = ErrorCondition(values["condition"], "a fault was injected")
            return RefuseLink(error=error, times=values["times"], role=values["role"])
        if kind == "starved credit":
            return StarveCredit(seconds=None if values["for_ever"] else values["seconds"])
        return self._of_traffic(kind, values)

    def _of_traffic(self, kind: str, values: Any) -> Fault:
        after = values["after"]
        if kind == "lost outcome":
            return LoseOutcome(after=after, times=values["times"])
        if kind == "late outcome":
            return DelayOutcome(after=after, times=values["times"], seconds=values["seconds"])
        if kind == "declined":
            return DeclineMessage(after=after, times=values["times"], outcome=_OUTCOMES[values["outcome"]])
        if kind == "duplicate delivery":
            return DeliverAgain(after=after, times=values["times"])
        on, delay = values["on"], values["delay"]
        if kind == "drop connection":
            return DropConnection(on=on, after=after, delay=delay)
        if kind == "silence":
            return FallSilent(on=on, after=after, delay=delay)
        if kind == "end session":
            return EndSession(on=on, after=after, delay=delay)
        if kind == "final detach":
            return DetachLink(on=on, after=after, delay=delay, error=ErrorCondition("amqp:not-found", "for good"))
        error = ErrorCondition(values["condition"], "a fault was injected")
        if kind == "detach":
            return DetachLink(on=on, after=after, delay=delay, error=error, times=values["times"])
        assert kind == "close", kind
        return CloseConnection(on=on, after=after, delay=delay, error=error)

    def _detach_senders(self, how: str) -> None:
        for broker in self._station.brokers:
            if how == "detach":
                broker.faults.detach_links(role="sender")
            else:
                broker.faults.close_connections()

    async def _provoke(self, how: str) -> None:
        """Have every client connect anew."""
        station = self._station
        if how == "close":
            station.brokers[0].faults.close_connections()
        elif how == "disconnect":
            await station.brokers[0].disconnect()
        elif how == "cut":
            station.proxy.cut()
        else:
            station.proxy.reset()
        await station.brokers[1].disconnect()


def one_by_one(wires: list[Wire]) -> Any:
    """The wires of a proxy's connections: those in the list, which may grow, and well ones in between."""
    return (wires.pop(0) if wires else Wire() for _ in itertools.count())


async def until(condition: Callable[[], object], seconds: float, step: float = 0.01) -> bool:
    """Wait for a condition, not for longer than that; whether it came true.

    On a machine that is too busy to look every few steps it takes longer: what is waited for is held up likewise.
    """
    loop = asyncio.get_running_loop()
    deadline, left = loop.time() + seconds, seconds / step / 4
    while not condition():
        left -= 1
        if left <= 0 and loop.time() >= deadline:
            return False
        await asyncio.sleep(step)
    return True
