"""The faults of a running broker: which are due, and how they strike. The broker asks at a few places."""

from __future__ import annotations

import asyncio
import collections
import functools
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ErrorCondition
from .faults import (
    DETACHED,
    FAILED,
    FORCED,
    CloseConnection,
    CutMessages,
    DetachLink,
    DropConnection,
    End,
    EndSession,
    FallSilent,
    Fault,
    NoSubprotocol,
    On,
    RefuseUpgrade,
    SlowUpgrade,
)

if TYPE_CHECKING:
    from .links import IncomingLink, OutgoingLink
    from .peer import Peer, PeerSession
    from .websocket import Stream

__all__ = ["Injector"]

Role = Literal["sender", "receiver"]


class _Armed:
    """A fault and what it has counted."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._address = _plain(fault.address)
        self._seen = 0

    def counts(self, address: str | None, role: Role | None) -> bool:
        """Whether this is one of those it counts."""
        fault = self.fault
        return fault.role in (None, role) and self._address in (None, _plain(address))

    def strikes(self) -> bool:
        """Count one, and say whether it is that one's turn."""
        self._seen += 1
        return self._seen > self.fault.after

    @property
    def spent(self) -> bool:
        """Whether it never strikes again."""
        times = self.fault.times
        return times is not None and self._seen >= self.fault.after + times


class Injector:
    """What goes wrong at a `Broker`, from its plan and at once; got as `Broker.faults`.

    Args:
        plan: Faults to begin with.
        peers: The broker's clients, as they come and go.

    Attributes:
        counts: How often each kind of fault has struck, by the name of its class.
        arrivals: Empty while no fault waits for a message that arrives; looked at for each.
        deliveries: Likewise for a message that is delivered.
    """

    def __init__(self, plan: Iterable[Fault], peers: Collection[Peer]) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._peers = peers
        self._armed: dict[On, list[_Armed]] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self.arrivals: Collection[object] = self._armed.setdefault("arrival", [])
        self.deliveries: Collection[object] = self._armed.setdefault("delivery", [])
        self.inject(*plan)

    def inject(self, *faults: Fault) -> None:
        """Add faults to the plan; they count from now on."""
        for fault in faults:
            self._armed.setdefault(fault.on, []).append(_Armed(fault))

    def clear(self) -> None:
        """Forget the plan: all goes well from now on. Delays that run already go on."""
        for armed in self._armed.values():
            armed.clear()

    # --- at once ---------------------------------------------------------------------------------

    def close_connections(self, error: ErrorCondition = FORCED) -> int:
        """Close every AMQP connection with an error; return how many. To drop them see `Broker.disconnect`."""
        return self._strike_all(CloseConnection(error=error), ((peer, None, None) for peer in self._peers))

    def silence(self) -> int:
        """Say nothing any more on the connections there are, and heed nothing that comes; return how many."""
        return self._strike_all(FallSilent(), ((peer, None, None) for peer in self._peers))

    def end_sessions(self, error: ErrorCondition = FAILED) -> int:
        """End every session with an error; return how many."""
        sessions = ((session.peer, session, None) for peer in self._peers for session in peer.sessions)
        return self._strike_all(EndSession(error=error), sessions)

    def detach_links(
        self, address: str | None = None, error: ErrorCondition = DETACHED, *, role: Role | None = None
    ) -> int:
        """Detach links with an error; durable subscriptions stay.

        Args:
            address: Those of this address, or None for all.
            error: Why; ``amqp:link:detach-forced`` by default.
            role: Those of a client's senders, or receivers; None for both.

        Returns:
            How many.
        """
        chosen = _Armed(DetachLink(error=error, address=address, role=role))
        links = (link for peer in self._peers for session in peer.sessions for link in session.links)
        found = ((link.peer, link.session, link) for link in links if chosen.counts(link.address, link.role))
        return self._strike_all(chosen.fault, found)

    def _strike_all(self, fault: Fault, ends: Iterable[tuple[Any, Any, Any]]) -> int:
        found = list(ends)
        for end in found:
            self.counts[type(fault).__name__] += 1
            _strike(fault, *end)
        return len(found)

    # --- what the broker asks --------------------------------------------------------------------

    def due(self, on: On, address: str | None = None, role: Role | None = None) -> list[Fault]:
        """Count an event, and find the faults whose turn it is; ends among them are for `end`."""
        armed = self._armed.get(on)
        if not armed:
            return []
        counting = [one for one in armed if one.counts(address, role)]
        due = [one.fault for one in counting if one.strikes()]
        armed[:] = [one for one in armed if not one.spent]
        self.counts.update(type(fault).__name__ for fault in due)
        return due

    def end(
        self,
        due: Iterable[Fault],
        peer: Peer,
        session: PeerSession | None = None,
        link: IncomingLink | OutgoingLink | None = None,
    ) -> None:
        """End what the faults say, now or when they say so."""
        for fault in due:
            if isinstance(fault, End):
                self._later(fault.delay, functools.partial(_strike, fault, peer, session, link))

    async def upgrade(self, stream: Stream) -> RefuseUpgrade | None:
        """Treat an upgrade as the plan says; return its refusal, if it is one."""
        refusal = None
        for fault in self.due("upgrade"):
            if isinstance(fault, SlowUpgrade):
                await asyncio.wait([stream.connection_lost_waiter], timeout=fault.seconds)
            elif isinstance(fault, NoSubprotocol):
                stream.protocol.available_subprotocols = None
            elif isinstance(fault, CutMessages):
                stream.cut(fault.sizes, fragmented=fault.fragmented, seed=fault.seed)
            elif isinstance(fault, RefuseUpgrade):
                refusal = fault
        return refusal

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        if not seconds:
            call()
            return

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)

    def stop(self) -> None:
        """Forget the ends that have yet to come: the broker has ended."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def _strike(fault: Fault, peer: Peer, session: PeerSession | None, link: IncomingLink | OutgoingLink | None) -> None:
    """Make an end of what is there still."""
    if isinstance(fault, CloseConnection):
        if peer.opened:
            peer.close(fault.error)
    elif isinstance(fault, DropConnection):
        peer.abort()
    elif isinstance(fault, FallSilent):
        peer.silence()
    elif session is None or session not in peer.sessions:
        pass
    elif isinstance(fault, EndSession):
        session.fail(fault.error)
    elif isinstance(fault, DetachLink) and link is not None and link in session.links:
        link.evict(fault.error, closed=False)


def _plain(address: str | None) -> str | None:
    return address and address.removeprefix("queue:")
