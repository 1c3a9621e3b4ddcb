"""Who hears what the peer does: the protocols that the engine calls, synchronously and without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ErrorCondition, StopReason
from ..outcomes import Outcome

if TYPE_CHECKING:
    from .attach import RemoteAttach
    from .link import EngineReceiver, EngineSender
    from .session import EngineSession

__all__ = [
    "ConnectionHandler",
    "LinkHandler",
    "OutgoingDelivery",
    "ReceiverHandler",
    "RemoteOpen",
    "SenderHandler",
    "SessionHandler",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOpen:
    """What the peer announced in its open (specification 2.7.1).

    Attributes:
        container_id: The peer's container id.
        hostname: The hostname it asked for (a client's open), or None.
        max_frame_size: The largest frame it takes, in bytes.
        channel_max: The highest channel it takes.
        idle_timeout: Its idle timeout in seconds as announced, or 0.0 for none.
        offered_capabilities: Extensions it supports.
        desired_capabilities: Extensions it would use.
        properties: Its connection properties.
    """

    container_id: str = ""
    hostname: str | None = None
    max_frame_size: int = 0
    channel_max: int = 0
    idle_timeout: float = 0.0
    offered_capabilities: tuple[str, ...] = ()
    desired_capabilities: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)


class ConnectionHandler(Protocol):
    """Who hears about the connection."""

    def _on_opened(self, remote: RemoteOpen) -> None: ...
    def _on_closed(self, error: ErrorCondition | None) -> None: ...
    def _on_failed(self, error: ErrorCondition) -> None: ...
    def _on_session(self, session: EngineSession) -> None: ...


class SessionHandler(Protocol):
    """Who hears about a session."""

    def _on_begun(self) -> None: ...
    def _on_ended(self, error: ErrorCondition | None) -> None: ...
    def _on_link(self, link: EngineSender | EngineReceiver) -> None: ...
    def _on_link_released(self) -> None: ...


class LinkHandler(Protocol):
    """Who hears about a link, whichever its role."""

    def _on_attached(self, remote: RemoteAttach) -> None: ...
    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None: ...


class SenderHandler(LinkHandler, Protocol):
    """Who hears about a sender's credit."""

    def _on_credit(self, credit: int, *, drain: bool) -> None: ...


class ReceiverHandler(LinkHandler, Protocol):
    """Who hears about a receiver's deliveries."""

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None: ...
    def _on_aborted(self) -> None: ...
    def _on_drained(self) -> None: ...
    def _on_refused(self, error: ErrorCondition) -> None: ...


class OutgoingDelivery(Protocol):
    """An unsettled delivery of a sender, until its outcome comes."""

    @property
    def link(self) -> EngineSender:
        """The link it went out on."""
        ...  # pragma: no cover - a signature

    def _on_outcome(self, outcome: Outcome) -> None: ...
    def _fail(self, stop: StopReason) -> None: ...
