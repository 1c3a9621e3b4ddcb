"""AMQP's own authentication, below the WebSocket upgrade (specification part 5): which mechanism, with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

__all__ = ["Anonymous", "External", "Plain", "SaslMechanism"]


@dataclass(frozen=True, slots=True)
class Anonymous:
    """No identity at this layer (RFC 4505): the usual choice where the upgrade carries a token."""

    name: ClassVar[str] = "ANONYMOUS"


@dataclass(frozen=True, slots=True)
class Plain:
    """User name and password (RFC 4616).

    They travel in the clear inside the WebSocket, so the connection must be wss:// or go to this machine, unless
    ``allow_insecure_auth=True`` says otherwise.

    Attributes:
        username: The authentication identity.
        password: Its password; never shown by `repr`.

    Raises:
        ValueError: One of them is empty or has a NUL in it, which RFC 4616 forbids.
    """

    username: str
    password: str = field(repr=False)

    name: ClassVar[str] = "PLAIN"

    def __post_init__(self) -> None:
        for label, value in (("username", self.username), ("password", self.password)):
            if not isinstance(value, str) or not value or "\0" in value:
                raise ValueError(f"Plain: the {label} must be a string, not empty and without NUL (RFC 4616)")

    def __repr__(self) -> str:
        return f"Plain(username={self.username!r}, password='***')"


@dataclass(frozen=True, slots=True)
class External:
    """The identity that a lower layer has shown, as a rule a TLS client certificate (RFC 4422 appendix A)."""

    name: ClassVar[str] = "EXTERNAL"


#: What `sasl=` takes, beside None for no SASL layer.
SaslMechanism = Anonymous | Plain | External
