"""The two ends of a link: source and target, and when its deliveries settle (specification 3.5, 2.8.2, 2.8.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeVar

from .codec import Described, symbol

__all__ = [
    "DistributionMode",
    "ExpiryPolicy",
    "ReceiverSettleMode",
    "SenderSettleMode",
    "Source",
    "Target",
    "TerminusDurability",
    "as_source",
    "as_target",
    "selector",
]

_UINT_MAX = 2**32 - 1
_Terminus = TypeVar("_Terminus", "Source", "Target")


class SenderSettleMode(Enum):
    """Who settles first, as the sender sees it (specification 2.8.2)."""

    UNSETTLED = "unsettled"
    """Every delivery is sent unsettled: its outcome is awaited."""
    SETTLED = "settled"
    """Every delivery is sent settled: nothing is known of its fate."""
    MIXED = "mixed"
    """Each delivery says for itself."""


class ReceiverSettleMode(Enum):
    """When the receiver settles (specification 2.8.3)."""

    FIRST = "first"
    """With its outcome, at once."""
    SECOND = "second"
    """Only after the sender has settled: what exactly-once needs. Few brokers support it."""


class TerminusDurability(Enum):
    """What of a terminus outlives its link, at the peer (specification 3.5.5)."""

    NONE = "none"
    """Nothing."""
    CONFIGURATION = "configuration"
    """That it exists and how it is set up: a durable subscription."""
    UNSETTLED_STATE = "unsettled-state"
    """Also the state of deliveries that were not settled."""


class ExpiryPolicy(Enum):
    """What starts the clock of `timeout`, after which the peer forgets the terminus (specification 3.5.6)."""

    LINK_DETACH = "link-detach"
    SESSION_END = "session-end"
    CONNECTION_CLOSE = "connection-close"
    NEVER = "never"


class DistributionMode(Enum):
    """Whether receiving takes a message away from the node (specification 3.5.7)."""

    MOVE = "move"
    """An accepted message leaves the node."""
    COPY = "copy"
    """It stays for others: browsing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a link delivers to (specification 3.5.4).

    Attributes:
        address: The node's address in the broker's own spelling. None is null: an anonymous terminus, or a dynamic one.
            The empty string is sent as such; some brokers want it for their anonymous relay.
        durable: What outlives the link.
        expiry_policy: When `timeout` starts to run.
        timeout: Seconds the peer keeps the terminus after that, 0.0 by default: not at all. Whole seconds go on the
            wire, rounded down.
        dynamic: Ask the peer to create a node, and to name it in its own attach; leave `address` None.
        dynamic_node_properties: Properties of the node to create, such as ``lifetime-policy``.
        capabilities: Symbols of what is wanted of the node, such as ``"queue"`` or ``"topic"``.
    """

    address: str | None = None
    durable: TerminusDurability = TerminusDurability.NONE
    expiry_policy: ExpiryPolicy = ExpiryPolicy.SESSION_END
    timeout: float = 0.0
    dynamic: bool = False
    dynamic_node_properties: Mapping[str, Any] | None = None
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a link takes its messages from (specification 3.5.3).

    Attributes:
        address: The node's address in the broker's own spelling; None is null, for a dynamic source.
        durable: What outlives the link; with CONFIGURATION and expiry NEVER, a durable subscription.
        expiry_policy: When `timeout` starts to run.
        timeout: Seconds the peer keeps the terminus after that, 0.0 by default: not at all. Whole seconds go on the
            wire, rounded down.
        dynamic: Ask the peer to create a node, and to name it in its own attach; leave `address` None.
        dynamic_node_properties: Properties of the node to create, such as ``lifetime-policy``.
        capabilities: Symbols of what is wanted of the node, such as ``"queue"`` or ``"topic"``.
        distribution_mode: MOVE or COPY; None leaves it to the node.
        filter: Filters by name, each a described value as a rule: see `selector`.
        outcomes: Descriptors of the outcomes the sender may expect, such as ``"amqp:accepted:list"``; empty for all.
    """

    address: str | None = None
    durable: TerminusDurability = TerminusDurability.NONE
    expiry_policy: ExpiryPolicy = ExpiryPolicy.SESSION_END
    timeout: float = 0.0
    dynamic: bool = False
    dynamic_node_properties: Mapping[str, Any] | None = None
    capabilities: tuple[str, ...] = ()
    distribution_mode: DistributionMode | None = None
    filter: Mapping[str, Any] | None = None
    outcomes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        _kind(self, "distribution_mode", DistributionMode, optional=True)
        _mapping(self, "filter")
        _symbols(self, "outcomes")


def selector(expression: str) -> dict[str, Any]:
    """Build the filter map for a JMS-style selector, which most brokers know.

    Args:
        expression: The condition on properties and application properties, such as ``"color = 'red' AND weight > 3"``.

    Returns:
        A value for `Source.filter`; merge it with others by ``selector(...) | {...}``.

    Raises:
        ValueError: The expression is empty.
    """
    if not expression.strip():
        raise ValueError("selector: the expression is empty; leave the filter out to receive everything")
    # Registered in the filter registry of the AMQP capabilities as symbol and as 0x468C00000004; every broker tried
    # takes the symbol.
    name = "apache.org:selector-filter:string"
    return {name: Described(symbol(name), expression)}


def as_source(value: str | Source | None) -> Source:
    """Make a source of what a user may give: an address, a `Source`, or None for one without an address.

    Raises:
        TypeError: It is none of these.
        ValueError: We may not ask for this source (a peer may well answer with it).
    """
    if value is None or isinstance(value, str):
        return Source(value)
    if not isinstance(value, Source):
        raise TypeError(f"source: an address, a Source or None, not {type(value).__name__}")
    return _check_request(value)


def as_target(value: str | Target | None) -> Target:
    """Make a target of what a user may give: an address, a `Target`, or None for the anonymous terminus.

    Raises:
        TypeError: It is none of these.
        ValueError: We may not ask for this target (a peer may well answer with it).
    """
    if value is None or isinstance(value, str):
        return Target(value)
    if not isinstance(value, Target):
        raise TypeError(f"target: an address, a Target or None, not {type(value).__name__}")
    return _check_request(value)


def lasting(terminus: Source | Target) -> bool:
    """Whether the peer's node, such as a durable subscription, is to outlive the link."""
    return terminus.durable is not TerminusDurability.NONE or terminus.expiry_policy is ExpiryPolicy.NEVER


def _check_request(terminus: _Terminus) -> _Terminus:
    if terminus.dynamic and terminus.address is not None:
        # Specification 3.5.3: set in a request, the address field MUST NOT be.
        raise ValueError("dynamic: the peer chooses the address of a dynamic node, so address must be None")
    if terminus.dynamic_node_properties and not terminus.dynamic:
        raise ValueError("dynamic_node_properties: these describe a node to create, so dynamic must be True")
    if not all(name.isascii() for name in terminus.capabilities):
        raise ValueError(f"capabilities: symbols are ASCII, not {terminus.capabilities!r}")
    return terminus


def _check(terminus: Source | Target) -> None:
    address, timeout = terminus.address, terminus.timeout
    if address is not None and not isinstance(address, str):
        raise ValueError(f"address: a string or None, not {type(address).__name__}")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= _UINT_MAX:
        raise ValueError(f"timeout: seconds from 0 to {_UINT_MAX}, not {timeout!r}")
    _kind(terminus, "durable", TerminusDurability)
    _kind(terminus, "expiry_policy", ExpiryPolicy)
    _mapping(terminus, "dynamic_node_properties")
    _symbols(terminus, "capabilities")


def _kind(terminus: object, name: str, kind: type[Enum], *, optional: bool = False) -> None:
    value = getattr(terminus, name)
    if not isinstance(value, kind) and not (optional and value is None):
        choices = ", ".join(str(member) for member in kind)
        raise ValueError(f"{name}: one of {choices}{' or None' if optional else ''}, not {value!r}")


def _mapping(terminus: object, name: str) -> None:
    """Check a map and keep a read-only copy: what the caller does to theirs later changes nothing here."""
    value = getattr(terminus, name)
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}: a mapping with string keys, not {value!r}")
    object.__setattr__(terminus, name, MappingProxyType(dict(value)))


def _symbols(terminus: object, name: str) -> None:
    value = getattr(terminus, name)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: a sequence of symbols such as ('queue',), not {value!r}")
    names = tuple(value)
    if not all(isinstance(item, str) for item in names):
        raise ValueError(f"{name}: symbols are strings, not {value!r}")
    object.__setattr__(terminus, name, names)
