"""What can go wrong at the embedded broker: each fault a small value, a plan of them a sequence.

::

    plan = [
        RefuseUpgrade(status=503, retry_after=1.0, times=2),  # the first two upgrades
        DetachLink(on="arrival", after=9, address="orders"),  # with the tenth message to arrive there
        LoseOutcome(after=99, times=None),  # all messages from the hundredth on
    ]
    async with Broker(faults=plan) as broker:
        broker.faults.inject(CloseConnection())  # the next connection as well
        broker.faults.detach_links("orders")  # at once

Each fault counts what it is *on*, from the moment it is injected, and strikes when its turn has come: the same plan and
the same events, the same faults. Faults of the network (cuts, stalls, slow TLS) are a `FaultProxy`'s business.

=================  =====================================  ===================================================
``on``             once for each                          who can strike
=================  =====================================  ===================================================
``"upgrade"``      WebSocket upgrade                      `RefuseUpgrade`, `NoSubprotocol`, `SlowUpgrade`,
                                                          `CutMessages`
``"open"``         AMQP connection                        `CloseConnection`, `ExpireToken`, `DropConnection`,
                                                          `FallSilent`
``"begin"``        session                                these, and `EndSession`
``"attach"``       link that a client asks for            `RefuseLink`
``"attached"``     link that it got                       these of a session, `DetachLink`, `StarveCredit`
``"arrival"``      message of a client's sender           these of a session, `DetachLink`, `LoseOutcome`,
                                                          `DelayOutcome`, `DeclineMessage`
``"delivery"``     message that goes to a client          these of a session, `DetachLink`, `DeliverAgain`
=================  =====================================  ===================================================
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from ..codec import symbol, ushort
from ..errors import ErrorCondition
from ..outcomes import RELEASED, Outcome

__all__ = [
    "CloseConnection",
    "CutMessages",
    "DeclineMessage",
    "DelayOutcome",
    "DeliverAgain",
    "DetachLink",
    "DropConnection",
    "End",
    "EndSession",
    "ExpireToken",
    "FallSilent",
    "Fault",
    "LoseOutcome",
    "NoSubprotocol",
    "On",
    "RefuseLink",
    "RefuseUpgrade",
    "SlowUpgrade",
    "StarveCredit",
    "connection_redirect",
    "link_redirect",
]

On = Literal["upgrade", "open", "begin", "attach", "attached", "arrival", "delivery"]
"""What a fault counts; see above."""

FORCED: Final = ErrorCondition("amqp:connection:forced", "a fault was injected")
EXPIRED: Final = ErrorCondition("amqp:unauthorized-access", "the token has expired")
FAILED: Final = ErrorCondition("amqp:internal-error", "a fault was injected")
DETACHED: Final = ErrorCondition("amqp:link:detach-forced", "a fault was injected")
LOCKED: Final = ErrorCondition("amqp:resource-locked", "a fault was injected")

_LINK: Final[tuple[On, ...]] = ("attached", "arrival", "delivery")
_SESSION: Final[tuple[On, ...]] = ("begin", *_LINK)
_CONNECTION: Final[tuple[On, ...]] = ("open", *_SESSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What all faults have in common.

    Attributes:
        on: What it counts; a fault that can be on one thing alone has no need to say so.
        after: How many of them go well before (default 0).
        times: How many then do not (default 1); None for all.
        address: Count only links, or messages, to or from this address; None, the default, for all. ``queue:`` in front
            of it makes no difference.
        role: Count only those of a client's ``"sender"`` or ``"receiver"``; None, the default, for both.

    Raises:
        ValueError: It cannot strike on that, or a number is out of range.
    """

    possible: ClassVar[tuple[On, ...]] = ()

    on: On
    after: int = 0
    times: int | None = 1
    address: str | None = None
    role: Literal["sender", "receiver"] | None = None

    def __post_init__(self) -> None:
        if self.on not in self.possible:
            raise ValueError(f"on: {type(self).__name__} can be on {', '.join(self.possible)}")
        if self.after < 0 or (self.times is not None and self.times < 1):
            raise ValueError("after: not negative; times: at least 1, or None")
        if (self.address is not None or self.role is not None) and self.on not in ("attach", *_LINK):
            raise ValueError(f"address and role: of links, and this is on {self.on}")


# --- the upgrade ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseUpgrade(Fault):
    """Refuse the upgrade, as `Broker(authorize=...)` can do it.

    Attributes:
        status: The HTTP status, such as 401, 403, 429 or 503 (the default).
        retry_after: Seconds for a ``Retry-After`` header, or None for none.
        body: The response's body, text.
        headers: Headers to add.
    """

    possible = ("upgrade",)

    on: On = "upgrade"
    status: int = 503
    retry_after: float | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSubprotocol(Fault):
    """Select no subprotocol, as some relays do."""

    possible = ("upgrade",)

    on: On = "upgrade"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowUpgrade(Fault):
    """Take time to answer the upgrade.

    Attributes:
        seconds: How long; after 10 seconds the broker itself gives the upgrade up.
    """

    possible = ("upgrade",)

    on: On = "upgrade"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMessages(Fault):
    """Cut what the broker sends on that connection into WebSocket messages, or fragments, of odd sizes.

    AMQP frames may be cut anywhere (WebSocket binding 2.4); otherwise there are one or more of them in a message.

    Attributes:
        sizes: The smallest and the largest, in bytes; sizes between are drawn at random.
        fragmented: Whether they are fragments of one message in place of messages.
        seed: What the sizes are drawn with.
    """

    possible = ("upgrade",)

    on: On = "upgrade"
    sizes: tuple[int, int] = (1, 16)
    fragmented: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if not 1 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes: the smallest, at least 1, and the largest")


# --- ends ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Fault):
    """What ends a connection, session or link.

    Attributes:
        delay: Seconds from what it is on to the end (default 0, at once).
    """

    delay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseConnection(End):
    """Close the AMQP connection with an error.

    Attributes:
        error: Why; ``amqp:connection:forced`` by default. See `connection_redirect`.
    """

    possible = _CONNECTION

    on: On = "open"
    error: ErrorCondition = FORCED


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireToken(CloseConnection):
    """Close the AMQP connection `delay` seconds after it has opened, because its token has expired.

    Attributes:
        error: ``amqp:unauthorized-access``.
    """

    possible = ("open",)

    delay: float
    error: ErrorCondition = EXPIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class DropConnection(End):
    """Drop the TCP connection without a word; messages that came with the one that it is on are taken still."""

    possible = _CONNECTION

    on: On = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class FallSilent(End):
    """Say nothing any more on the connection, no empty frame and no pong, and heed nothing that comes."""

    possible = _CONNECTION

    on: On = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSession(End):
    """End the session with an error.

    Attributes:
        error: Why; ``amqp:internal-error`` by default.
    """

    possible = _SESSION

    on: On = "begin"
    error: ErrorCondition = FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachLink(End):
    """Detach the link with an error; a message that it is on is treated well before. Durable subscriptions stay.

    Attributes:
        error: Why; ``amqp:link:detach-forced`` by default. See `link_redirect`.
    """

    possible = _LINK

    on: On = "attached"
    error: ErrorCondition = DETACHED


# --- links ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseLink(Fault):
    """Refuse the attach, as `Broker(authorize_link=...)` can do it.

    Attributes:
        error: Why; ``amqp:resource-locked`` by default. See `link_redirect`.
    """

    possible = ("attach",)

    on: On = "attach"
    error: ErrorCondition = LOCKED


@dataclass(frozen=True, slots=True, kw_only=True)
class StarveCredit(Fault):
    """Grant a client's sender no credit.

    Attributes:
        seconds: How long; None, the default, for as long as the link lives.
    """

    possible = ("attached",)

    on: On = "attached"
    role: Literal["sender", "receiver"] | None = "sender"
    seconds: float | None = None


# --- messages ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseOutcome(Fault):
    """Take a message and never settle it: its sender is in doubt once the link ends."""

    possible = ("arrival",)

    on: On = "arrival"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayOutcome(Fault):
    """Take a message and settle it later, unless its link has ended by then.

    Attributes:
        seconds: How much later.
    """

    possible = ("arrival",)

    on: On = "arrival"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineMessage(Fault):
    """Do not take a message, and settle it otherwise than as accepted.

    Attributes:
        outcome: How: ``Released()``, the default, ``Rejected(...)`` or ``Modified(...)``.
    """

    possible = ("arrival",)

    on: On = "arrival"
    outcome: Outcome = RELEASED


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverAgain(Fault):
    """Forget that the client accepted the message: it is delivered again, with its delivery-count raised."""

    possible = ("delivery",)

    on: On = "delivery"


# --- redirects -----------------------------------------------------------------------------------


def connection_redirect(url: str) -> ErrorCondition:
    """Make the error that sends a client elsewhere (specification 2.8.16, WebSocket binding 3.1).

    Args:
        url: Where to, ``ws://`` or ``wss://``.
    """
    return ErrorCondition("amqp:connection:redirect", "connect there instead", _place(url))


def link_redirect(url: str, address: str | None = None) -> ErrorCondition:
    """Make the error that sends a link elsewhere (specification 2.8.17).

    Args:
        url: Where to, ``ws://`` or ``wss://``.
        address: What to attach to there, or None for the same.
    """
    place = _place(url)
    if address is not None:
        place[symbol("address")] = address
    return ErrorCondition("amqp:link:redirect", "attach there instead", place)


def _place(url: str) -> dict[Any, Any]:
    parts = urllib.parse.urlsplit(url)
    return {
        symbol("hostname"): parts.hostname,
        symbol("network-host"): parts.hostname,
        symbol("port"): ushort(parts.port or (443 if parts.scheme == "wss" else 80)),
        symbol("scheme"): symbol(parts.scheme),
        symbol("path"): parts.path or "/",
    }
