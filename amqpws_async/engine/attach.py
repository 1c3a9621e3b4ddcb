"""Open, attach and disposition fields <-> proton's public objects: what runs once per endpoint, not once per message.

What proton 0.40 cannot carry is not imitated: link capabilities, default-outcome, the unsettled map of an attach,
message-format, begin properties and batchable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import proton
from cproton_ffi import lib

from ..codec import symbol
from ..errors import DecodeError, EncodeError, ErrorCondition
from ..outcomes import Modified, Outcome, Received, Rejected, Released
from ..terminus import (
    DistributionMode,
    ExpiryPolicy,
    ReceiverSettleMode,
    SenderSettleMode,
    Source,
    Target,
    TerminusDurability,
)

__all__ = ["AttachFields", "RemoteAttach"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachFields:
    """The fields of our attach (specification 2.7.3)."""

    source: Source | None
    target: Target | None
    snd_settle_mode: SenderSettleMode = SenderSettleMode.MIXED
    rcv_settle_mode: ReceiverSettleMode = ReceiverSettleMode.FIRST
    max_message_size: int = 0
    properties: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAttach:
    """What the peer's attach said (specification 2.7.3).

    Attributes:
        source: Its source, or None for null.
        target: Its target, or None for null.
        snd_settle_mode: The sender settle mode it agreed to.
        rcv_settle_mode: The receiver settle mode it agreed to.
        max_message_size: The largest message it takes, in bytes; 0 for no limit.
        properties: Its link properties.
    """

    source: Source | None
    target: Target | None
    snd_settle_mode: SenderSettleMode = SenderSettleMode.MIXED
    rcv_settle_mode: ReceiverSettleMode = ReceiverSettleMode.FIRST
    max_message_size: int = 0
    properties: Mapping[str, Any] = field(default_factory=dict)


_DURABILITY = {
    TerminusDurability.NONE: proton.Terminus.NONDURABLE,
    TerminusDurability.CONFIGURATION: proton.Terminus.CONFIGURATION,
    TerminusDurability.UNSETTLED_STATE: proton.Terminus.DELIVERIES,
}
_EXPIRY = {
    ExpiryPolicy.LINK_DETACH: proton.Terminus.EXPIRE_WITH_LINK,
    ExpiryPolicy.SESSION_END: proton.Terminus.EXPIRE_WITH_SESSION,
    ExpiryPolicy.CONNECTION_CLOSE: proton.Terminus.EXPIRE_WITH_CONNECTION,
    ExpiryPolicy.NEVER: proton.Terminus.EXPIRE_NEVER,
}
_DISTRIBUTION = {
    None: proton.Terminus.DIST_MODE_UNSPECIFIED,
    DistributionMode.COPY: proton.Terminus.DIST_MODE_COPY,
    DistributionMode.MOVE: proton.Terminus.DIST_MODE_MOVE,
}
_SND_MODES = {
    SenderSettleMode.UNSETTLED: proton.Link.SND_UNSETTLED,
    SenderSettleMode.SETTLED: proton.Link.SND_SETTLED,
    SenderSettleMode.MIXED: proton.Link.SND_MIXED,
}
_RCV_MODES = {
    ReceiverSettleMode.FIRST: proton.Link.RCV_FIRST,
    ReceiverSettleMode.SECOND: proton.Link.RCV_SECOND,
}


def _inverse(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    return {value: key for key, value in mapping.items()}


_DURABILITY_IN = _inverse(_DURABILITY)
_EXPIRY_IN = _inverse(_EXPIRY)
_DISTRIBUTION_IN = _inverse(_DISTRIBUTION)
_SND_MODES_IN = _inverse(_SND_MODES)
_RCV_MODES_IN = _inverse(_RCV_MODES)


# What proton's public objects raise on fields that are well framed and cannot be decoded.
_UNDECODABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    proton.ProtonException,
)


def _decoding(read: Callable[P, R]) -> Callable[P, R]:
    """Whatever proton raises while the peer's fields are read is a `DecodeError`, and nothing else is."""

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except _UNDECODABLE as exc:
            raise DecodeError(f"the peer sent a field that cannot be decoded: {exc}") from exc

    return reading


# --- open ----------------------------------------------------------------------------


def put_connection(
    connection: proton.Connection,
    properties: Mapping[str, Any] | None,
    offered: Sequence[str],
    desired: Sequence[str],
) -> None:
    """Set the rarer fields of our open."""
    if properties:
        connection.properties = _sendable({symbol(key): value for key, value in properties.items()})
    if offered:
        connection.offered_capabilities = [symbol(name) for name in offered]
    if desired:
        connection.desired_capabilities = [symbol(name) for name in desired]


@_decoding
def remote_open(connection: proton.Connection, transport: proton.Transport, make: Callable[..., Any]) -> Any:
    """Read the peer's open."""
    return make(
        container_id=connection.remote_container or "",
        hostname=connection.remote_hostname,
        max_frame_size=transport.remote_max_frame_size,
        channel_max=transport.remote_channel_max,
        idle_timeout=float(transport.remote_idle_timeout or 0.0),
        offered_capabilities=_names(_content(connection.remote_offered_capabilities)),
        desired_capabilities=_names(_content(connection.remote_desired_capabilities)),
        properties=_map(_content(connection.remote_properties)),
    )


@_decoding
def link_name(link: proton.Link) -> str:
    """Read a link's name, which every attach must have (2.7.3)."""
    name: str | None = link.name
    if name is None:
        raise ValueError("an attach without a name")
    return name


# --- attach --------------------------------------------------------------------------


def put_link(link: proton.Link, fields: AttachFields) -> None:
    """Set the fields of our attach."""
    link.snd_settle_mode = _SND_MODES[fields.snd_settle_mode]
    link.rcv_settle_mode = _RCV_MODES[fields.rcv_settle_mode]
    if fields.max_message_size:
        link.max_message_size = fields.max_message_size
    if fields.properties:
        link.properties = _sendable({symbol(key): value for key, value in fields.properties.items()})
    if fields.source is None:
        link.source.type = proton.Terminus.UNSPECIFIED
    else:
        _put_source(link.source, fields.source)
    if fields.target is None:
        link.target.type = proton.Terminus.UNSPECIFIED
    else:
        _put_terminus(link.target, fields.target, proton.Terminus.TARGET)


@_decoding
def remote_attach(link: proton.Link) -> RemoteAttach:
    """Read the peer's attach."""
    return RemoteAttach(
        source=_source(link.remote_source),
        target=_target(link.remote_target),
        snd_settle_mode=_SND_MODES_IN[link.remote_snd_settle_mode],
        rcv_settle_mode=_RCV_MODES_IN[link.remote_rcv_settle_mode],
        max_message_size=link.remote_max_message_size,
        properties=_map(_content(link.remote_properties)),
    )


def _put_terminus(terminus: proton.Terminus, value: Source | Target, kind: int) -> None:
    terminus.type = kind
    terminus.address = value.address  # type: ignore[assignment]
    terminus.durability = _DURABILITY[value.durable]
    terminus.expiry_policy = _EXPIRY[value.expiry_policy]
    terminus.timeout = int(value.timeout)
    terminus.dynamic = value.dynamic
    if value.dynamic_node_properties:
        _put(terminus.properties, {symbol(key): item for key, item in value.dynamic_node_properties.items()})
    if value.capabilities:
        _put(terminus.capabilities, _symbols(value.capabilities))


def _put_source(terminus: proton.Terminus, source: Source) -> None:
    _put_terminus(terminus, source, proton.Terminus.SOURCE)
    terminus.distribution_mode = _DISTRIBUTION[source.distribution_mode]
    if source.filter:
        _put(terminus.filter, {symbol(key): item for key, item in source.filter.items()})
    if source.outcomes:
        _put(terminus.outcomes, _symbols(source.outcomes))


def _source(terminus: proton.Terminus) -> Source | None:
    if terminus.type == proton.Terminus.UNSPECIFIED:
        return None
    return Source(
        **_terminus(terminus),
        distribution_mode=_DISTRIBUTION_IN[terminus.distribution_mode],
        filter=_map(_content(terminus.filter)) or None,
        outcomes=_names(_content(terminus.outcomes)),
    )


def _target(terminus: proton.Terminus) -> Target | None:
    """Read a target; a coordinator of transactions is none of ours, so it reads as null."""
    return Target(**_terminus(terminus)) if terminus.type == proton.Terminus.TARGET else None


def _terminus(terminus: proton.Terminus) -> dict[str, Any]:
    return {
        "address": terminus.address,
        "durable": _DURABILITY_IN.get(terminus.durability, TerminusDurability.NONE),
        "expiry_policy": _EXPIRY_IN[terminus.expiry_policy],
        "timeout": float(terminus.timeout),
        "dynamic": terminus.dynamic,
        "dynamic_node_properties": _map(_content(terminus.properties)) or None,
        "capabilities": _names(_content(terminus.capabilities)),
    }


# --- errors and states --------------------------------------------------------------


def condition_out(error: ErrorCondition | None) -> proton.Condition | None:
    """Our error as proton's condition."""
    if error is None:
        return None
    info: Any = _sendable({symbol(key): value for key, value in error.info.items()}) if error.info else None
    return proton.Condition(error.condition, error.description, info)


@_decoding
def condition_in(holder: Any, name: str = "remote_condition") -> ErrorCondition | None:
    """Read the peer's error: the attribute of an endpoint, of the transport or of a delivery's state."""
    condition = getattr(holder, name)
    if condition is None:
        return None
    return ErrorCondition(condition.name, condition.description or None, _map(condition.info))


@_decoding
def modified_in(remote: Any) -> Modified:
    """Read the fields of a modified state."""
    return Modified(remote.failed, remote.undeliverable, own(remote.annotations) or None)


def put_disposition(pointer: Any, outcome: Outcome | Received) -> None:
    """Give a delivery its local state.

    Raises:
        EncodeError: A field of it cannot be encoded; nothing has changed.
    """
    # What can fail comes before the wrapper, so that no traceback keeps one.
    condition = condition_out(outcome.error) if isinstance(outcome, Rejected) else None
    annotations = None
    if isinstance(outcome, Modified) and outcome.message_annotations:
        annotations = _sendable({symbol(key): value for key, value in outcome.message_annotations.items()})
    delivery = proton.Delivery(pointer)
    local: Any = delivery.local
    state = proton.Delivery.ACCEPTED
    match outcome:
        case Released():
            state = proton.Delivery.RELEASED
        case Rejected():
            state = proton.Delivery.REJECTED
            local.condition = condition
        case Modified(failed, undeliverable):
            state = proton.Delivery.MODIFIED
            local.failed = failed
            local.undeliverable = undeliverable
            local.annotations = annotations
        case Received(number, offset):
            state = proton.Delivery.RECEIVED
            local.section_number = number
            local.section_offset = offset
    delivery.update(state)


# --- data --------------------------------------------------------------------------------


def _put(data: proton.Data, value: object) -> None:
    data.clear()
    data.put_object(_sendable(value))


def _sendable(value: Any) -> Any:
    """Check that proton can encode a value: where it cannot, its writer runs into memory that is not its own.

    Raises:
        EncodeError: It cannot.
    """
    scratch = proton.Data()
    try:
        scratch.put_object(value)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, proton.ProtonException) as exc:
        raise EncodeError(f"proton cannot carry this value: {exc}") from exc
    if lib.pn_data_encoded_size(scratch._data) < 0:
        raise EncodeError(f"proton cannot encode this value: {value!r}")
    return value


def _symbols(names: Iterable[str]) -> proton.Array:
    undescribed: Any = proton.UNDESCRIBED
    return proton.Array(undescribed, proton.Data.SYMBOL, *(symbol(name) for name in names))


def _content(data: Any) -> Any:
    """The value held by a `proton.Data`, whose cursor may be anywhere; other values as they are."""
    if isinstance(data, proton.Data):
        if lib.pn_data_encoded_size(data._data) < 0:
            raise DecodeError("a value that can be read and not written")
        data.rewind()
        return data.get_object() if data.next() else None
    return data


def _names(value: Any) -> tuple[str, ...]:
    """Symbols that travel as one symbol, an array or a list."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (str(value),)
    elements = getattr(value, "elements", value)
    return tuple(str(name) for name in elements) if isinstance(elements, Sequence) else ()


def _map(value: Any) -> Mapping[str, Any]:
    return own(value) if isinstance(value, Mapping) else {}


def own(value: Any) -> Any:
    """A copy that owns its bytes: proton hands out views of its memory."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return {own(key): own(item) for key, item in value.items()}
    if isinstance(value, list):
        return [own(item) for item in value]
    if isinstance(value, proton.Described):
        return proton.Described(own(value.descriptor), own(value.value))
    return value
