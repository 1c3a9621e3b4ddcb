"""How a delivery ended: the outcomes and the one other delivery state of AMQP (specification 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ErrorCondition

__all__ = ["ACCEPTED", "RELEASED", "Accepted", "Modified", "NoOutcome", "Outcome", "Received", "Rejected", "Released"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver processed the message (3.4.2)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The receiver found the message invalid and unprocessable (3.4.3).

    Attributes:
        error: Why, or None if the receiver did not say.
    """

    error: ErrorCondition | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The receiver did not process the message and will not; it may go to anyone, as it was (3.4.4)."""


@dataclass(frozen=True, slots=True)
class Modified:
    """The receiver did not process the message, and changed it (3.4.5).

    Attributes:
        delivery_failed: Count this as an unsuccessful delivery attempt.
        undeliverable_here: Do not deliver it to this receiver again.
        message_annotations: Entries to merge into the message's annotations, or None.
    """

    delivery_failed: bool = False
    undeliverable_here: bool = False
    message_annotations: Mapping[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class NoOutcome:
    """The peer settled the delivery and gave no state, so what became of the message is not known."""


@dataclass(frozen=True, slots=True)
class Received:
    """How much of the message the receiver has so far (3.4.1). A state, and no outcome: the delivery is not over.

    Attributes:
        section_number: The first section that has not been received whole, counted from 0.
        section_offset: The first byte of that section that has not been received.
    """

    section_number: int
    section_offset: int


#: What settles a delivery for good.
Outcome = Accepted | Rejected | Released | Modified | NoOutcome

#: The two outcomes without fields, made once.
ACCEPTED = Accepted()
RELEASED = Released()
