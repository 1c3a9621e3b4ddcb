"""What can be chosen of a `Client`, with every default explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ..options import ConnectionArguments, ReceiverArguments, ReceiverOptions, SenderArguments, SenderOptions
from .backoff import Backoff, check_seconds
from .retry import Retry
from .states import StateChange

__all__ = [
    "ClientArguments",
    "ClientOptions",
    "ClientReceiverArguments",
    "ClientReceiverOptions",
    "ClientSenderArguments",
    "ClientSenderOptions",
    "OnUnknown",
    "Outage",
]

Outage = Literal["wait", "fail"]
OnUnknown = Literal["raise", "resend"]


class ClientArguments(ConnectionArguments, total=False):
    """The fields of `ClientOptions` and those of `ConnectionOptions` beside `url`."""

    randomize: bool
    background: bool
    outage: Outage
    backoff: Backoff
    retries: Mapping[str | int, Retry]
    roll_over: bool
    max_connection_age: float | None
    handover_timeout: float
    on_state: Callable[[StateChange], object] | None


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """How a `Client` keeps its connection.

    Attributes:
        randomize: Try several URLs in random order, False by default: in the given one. After a loss the URL in use is
            the first to be tried again, then the others without a wait; a delay comes between rounds. One whose server
            asked us to wait (Retry-After) is left out of them until then, unless all have.
        background: False, the default: opening the client waits for its first connection, and raises what is final.
            True: it returns at once, so that a service can start before its broker; see `Client.ready`. Opening a
            sender or receiver waits for its link all the same: do that in a task of the service's.
        outage: What calls do while there is no connection or no link: ``"wait"``, the default, for as long as it takes
            (put `asyncio.timeout` round them), or ``"fail"`` at once. Senders and receivers may differ.
        backoff: How long to wait between attempts, and when to give up; for ever by default.
        retries: What follows an AMQP condition or HTTP status, where it is not what `RETRIES` says.
        roll_over: Move to a second connection with a fresh token before the token of the first expires, True by
            default: without a gap, as the first stays until all has moved.
        max_connection_age: Seconds after which a connection is replaced likewise, by chance up to a tenth earlier;
            None, the default, lets it last. For gateways that cut connections at a certain age.
        handover_timeout: Seconds that the old connection of a roll-over may stay for deliveries in hand to be settled,
            30 by default; then their settlement is lost, and the peer delivers them again.
        on_state: Called with each `StateChange`, from the event loop; it must not block. None by default.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    randomize: bool = False
    background: bool = False
    outage: Outage = "wait"
    backoff: Backoff = field(default_factory=Backoff)
    retries: Mapping[str | int, Retry] = field(default_factory=dict)
    roll_over: bool = True
    max_connection_age: float | None = None
    handover_timeout: float = 30.0
    on_state: Callable[[StateChange], object] | None = None

    def __post_init__(self) -> None:
        for name in ("randomize", "background", "roll_over"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: True or False, not {getattr(self, name)!r}")
        check_choice("outage", self.outage, Outage)
        if not isinstance(self.backoff, Backoff):
            raise ValueError(f"backoff: a Backoff(...), not {self.backoff!r}")
        for key, value in self.retries.items():
            if not isinstance(key, (str, int)) or not isinstance(value, Retry):
                raise ValueError(f"retries: AMQP conditions or HTTP statuses to Retry, not {key!r}: {value!r}")
        object.__setattr__(self, "retries", MappingProxyType(dict(self.retries)))
        if self.max_connection_age is not None:
            check_seconds(self, "max_connection_age")
            if self.max_connection_age == 0:
                raise ValueError(
                    "max_connection_age: more than 0 seconds, or None: each connection would be replaced at once"
                )
        check_seconds(self, "handover_timeout")
        if self.on_state is not None and (not callable(self.on_state) or inspect.iscoroutinefunction(self.on_state)):
            raise ValueError(f"on_state: a function of a StateChange that does not wait, not {self.on_state!r}")


class ClientSenderArguments(SenderArguments, total=False):
    """The fields of `SenderOptions`, and what a client's sender has beside them."""

    on_unknown: OnUnknown
    outage: Outage | None


@dataclass(frozen=True, kw_only=True)
class ClientSenderOptions(SenderOptions):
    """How to attach a client's sender: `SenderOptions`, and what follows.

    Attributes:
        on_unknown: What becomes of a message whose link is lost after its transfer and before its outcome. ``"raise"``,
            the default: `DeliveryUnknown`, and it is yours to decide. ``"resend"``: it is sent again on the next link,
            the same bytes, in order and before anything new, so it arrives at least once. Every message then has a
            message-id by which receivers can tell duplicates: a UUID is set where there is none, on what is sent (not
            on your `Message`); with Artemis also the property by which the broker itself drops them.
        outage: As for the client, which is the default.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    on_unknown: OnUnknown = "raise"
    outage: Outage | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("on_unknown", self.on_unknown, OnUnknown)
        if self.outage is not None:
            check_choice("outage", self.outage, Outage)


class ClientReceiverArguments(ReceiverArguments, total=False):
    """The fields of `ReceiverOptions`, and what a client's receiver has beside them."""

    outage: Outage | None


@dataclass(frozen=True, kw_only=True)
class ClientReceiverOptions(ReceiverOptions):
    """How to attach a client's receiver: `ReceiverOptions`, and what follows.

    Attributes:
        outage: As for the client, which is the default; with ``"fail"`` waiting for a delivery raises while there is no
            link, and may be tried again.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    outage: Outage | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outage is not None:
            check_choice("outage", self.outage, Outage)


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse what is none of a Literal's values."""
    known = choices.__args__  # type: ignore[attr-defined]
    if value not in known:
        raise ValueError(f"{name}: one of {', '.join(map(repr, known))}, not {value!r}")
