"""What Event Mesh allows and expects of links, for whoever attaches them: `connection` and `mesh_client`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from ..errors import LocalProtocolError
from ..link import LinkHealth
from ..options import ReceiverArguments, ReceiverOptions, SenderArguments
from ..outcomes import Outcome, Rejected
from ..terminus import ReceiverSettleMode, SenderSettleMode

__all__ = [
    "CREDIT",
    "FAILURE_OUTCOME",
    "IDLE_LIMIT",
    "MAX_LINKS",
    "MAX_MESSAGE_SIZE",
    "QoS",
    "check_qos",
    "check_room",
    "receiver_arguments",
    "relay_arguments",
]

QoS = Literal[0, 1]
"""0: at most once, settled as it is sent. 1: at least once, every delivery is settled by its receiver."""

MAX_LINKS: Final = 3
"""Senders, and receivers, that Event Mesh allows on one connection."""

MAX_MESSAGE_SIZE: Final = 2**20
"""Bytes of an encoded message that Event Mesh takes."""

IDLE_LIMIT: Final = 300.0
"""Seconds of silence after which Event Mesh closes a connection."""

CREDIT: Final = 255
"""A receiver's window, that of SAP's own client: queues limit what one consumer may hold unsettled."""

FAILURE_OUTCOME: Final[Outcome] = Rejected()
"""How a delivery ends whose handler failed. A queue counts a rejected message towards its maxRedeliveryCount and then
moves it to its dead message queue; it does not so for a released one, and SAP's own client knows no modified one."""

# How SAP's client attaches for "unreliable" and "reliable".
_SETTLE_MODES: Final[dict[QoS, tuple[SenderSettleMode, ReceiverSettleMode]]] = {
    0: (SenderSettleMode.SETTLED, ReceiverSettleMode.SECOND),
    1: (SenderSettleMode.UNSETTLED, ReceiverSettleMode.FIRST),
}


def relay_arguments(qos: QoS) -> SenderArguments:
    """How the anonymous link of a quality of service is attached."""
    snd_settle_mode, rcv_settle_mode = _SETTLE_MODES[qos]
    return {
        "snd_settle_mode": snd_settle_mode,
        "rcv_settle_mode": rcv_settle_mode,
        "max_message_size": MAX_MESSAGE_SIZE,
    }


def receiver_arguments(qos: QoS, name: str | None, credit: int, max_prefetch_bytes: int) -> ReceiverArguments:
    """How a receiver is attached.

    Raises:
        ValueError: An option is out of range.
    """
    check_qos(qos)
    snd_settle_mode, rcv_settle_mode = _SETTLE_MODES[qos]
    arguments: ReceiverArguments = {
        "name": name,
        "credit": credit,
        "max_prefetch_bytes": max_prefetch_bytes,
        "snd_settle_mode": snd_settle_mode,
        "rcv_settle_mode": rcv_settle_mode,
    }
    ReceiverOptions(**arguments)
    return arguments


def check_qos(qos: object) -> None:
    """Refuse what is no quality of service of Event Mesh's.

    Raises:
        ValueError: It is none.
    """
    if isinstance(qos, bool) or qos not in _SETTLE_MODES:
        raise ValueError(f"qos: 0 (at most once) or 1 (at least once), not {qos!r}: Event Mesh has no exactly-once")


def check_room(role: Literal["sender", "receiver"], links: Iterable[LinkHealth]) -> None:
    """Refuse a link that Event Mesh would refuse.

    Args:
        role: What is to be attached.
        links: What is attached to the connection.

    Raises:
        LocalProtocolError: There is no room for it.
    """
    if sum(link.role == role for link in links) >= MAX_LINKS:
        raise LocalProtocolError(
            f"Event Mesh allows {MAX_LINKS} {role}s on a connection, and this one has them: close one, "
            "or open another connection"
        )
