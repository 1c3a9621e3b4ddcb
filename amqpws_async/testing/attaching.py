"""What happens when a client attaches a link: which node, which filter, or why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..codec import Described, symbol
from ..engine import AttachFields, EngineReceiver, EngineSender
from ..errors import ErrorCondition
from ..message import lazy
from ..terminus import DistributionMode, ExpiryPolicy, SenderSettleMode, Source, Target, TerminusDurability
from .faults import RefuseLink
from .links import IncomingLink, OutgoingLink, Unroutable
from .nodes import Topic
from .queues import Queue, Selector
from .selector import SelectorError, compile_selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from .peer import Peer, PeerSession

__all__ = ["LinkRequest", "attach", "route"]

logger = logging.getLogger("amqpws_async.testing")

_Terminus = TypeVar("_Terminus", Source, Target)

_SELECTOR_NAMES = ("apache.org:selector-filter:string", 0x0000_468C_0000_0004)  # as symbol and as ulong


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRequest:
    """What a client wants to attach to, for `Broker(authorize_link=...)`.

    Attributes:
        role: The client's end: ``"sender"`` or ``"receiver"``.
        address: The node; None for the anonymous terminus and for a dynamic node. On an anonymous link every message is
            a request of its own, with the address it is sent to.
        user: The user name, or None for an anonymous client.
        container_id: The client's container id.
        dynamic: Whether the node is to be created, for as long as the link lives.
    """

    role: Literal["sender", "receiver"]
    address: str | None
    user: str | None
    container_id: str
    dynamic: bool = False


class _Refused(Exception):
    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = ErrorCondition(condition, description)


def attach(session: PeerSession, link: EngineSender | EngineReceiver) -> None:
    """Answer the client's attach; a refusal is an attach with a null terminus and then a detach (2.6.3)."""
    try:
        _check_count(session.peer, OutgoingLink if isinstance(link, EngineSender) else IncomingLink)
        if isinstance(link, EngineSender):
            _attach_receiver(session, link)
        else:
            _attach_sender(session, link)
    except _Refused as refused:
        if isinstance(link, EngineSender):
            link.attach(AttachFields(source=None, target=Target()))
        else:
            link.attach(AttachFields(source=Source(), target=None))
        link.detach(refused.error)


def route(peer: Peer, raw: bytes) -> Queue | Topic:
    """Find the node that a message on an anonymous link is for.

    Raises:
        Unroutable: There is none, or the client may not send there.
        DecodeError: The message's properties are malformed.
    """
    address = lazy(raw).to
    if not address:
        raise Unroutable(ErrorCondition("amqp:not-found", "a message for the anonymous relay needs a 'to' address"))
    error = _forbidden(peer, "sender", address)
    if error is not None:
        raise Unroutable(error)
    node = peer.nodes.find(address)
    if node is None:
        raise Unroutable(ErrorCondition("amqp:not-found", f"there is no node {address!r}"))
    return node


def _check_count(peer: Peer, kind: type[IncomingLink | OutgoingLink]) -> None:
    limit = peer.options.max_links
    if limit is None:
        return
    count = sum(isinstance(link, kind) for session in peer.sessions for link in session.links)
    if count >= limit:
        name = "senders" if kind is IncomingLink else "receivers"
        raise _Refused("amqp:resource-limit-exceeded", f"a connection may have {limit} {name} at most")


def _forbidden(
    peer: Peer, role: Literal["sender", "receiver"], address: str | None, *, dynamic: bool = False
) -> ErrorCondition | None:
    hook = peer.options.authorize_link
    if hook is None:
        return None
    request = LinkRequest(role=role, address=address, user=peer.user, container_id=peer.container_id, dynamic=dynamic)
    try:
        return hook(request)
    except Exception:
        logger.exception("! authorize_link failed for %r", request)
        return ErrorCondition("amqp:internal-error", "authorize_link failed")


def _check(peer: Peer, role: Literal["sender", "receiver"], terminus: Source | Target) -> None:
    error = _forbidden(peer, role, terminus.address or None, dynamic=terminus.dynamic)
    for fault in peer.options.faults.due("attach", terminus.address, role):
        if isinstance(fault, RefuseLink):
            error = fault.error
    if error is not None:
        refused = _Refused(error.condition, error.description or "")
        refused.error = error
        raise refused


def _node(peer: Peer, terminus: Source | Target) -> Queue | Topic:
    address = terminus.address or ""
    node = peer.nodes.find(address, topic="topic" in terminus.capabilities)
    if node is None:
        raise _Refused("amqp:not-found", f"there is no node {address!r}")
    return node


# --- senders of the client ------------------------------------------------------------


def _attach_sender(session: PeerSession, link: EngineReceiver) -> None:
    peer, remote = session.peer, link.remote
    assert remote is not None
    target = remote.target
    if target is None:
        raise _Refused("amqp:invalid-field", "a sender needs a target, and there are no transactions here")
    _check(peer, "sender", target)
    node: Queue | Topic | None = None
    on_end: Callable[[bool], None] = _keep
    if target.dynamic:
        target, node, on_end = _dynamic(peer, target)
    elif target.address:
        node = _node(peer, target)
    IncomingLink(session, link, node, on_end).attach(
        AttachFields(
            source=_plain(remote.source or Source()),
            target=_plain(target),
            snd_settle_mode=remote.snd_settle_mode,
            rcv_settle_mode=remote.rcv_settle_mode,
            max_message_size=peer.options.max_message_size,
        )
    )


# --- receivers of the client ------------------------------------------------------------


def _attach_receiver(session: PeerSession, link: EngineSender) -> None:
    peer, remote = session.peer, link.remote
    assert remote is not None
    source = remote.source
    key = (peer.container_id, link.name)
    if source is None:
        # Qpid JMS unsubscribes so: it looks for the subscription by its link's name, then closes the link.
        durable = peer.nodes.durable.get(key)
        if durable is None:
            raise _Refused("amqp:not-found", f"there is no durable subscription {link.name!r}")
        source = durable.source
    _check(peer, "receiver", source)
    expression, filters = _filter(source.filter)
    selector = _compiled(expression)
    on_end: Callable[[bool], None] = _keep
    if source.dynamic:
        source, node, on_end = _dynamic(peer, source)
    else:
        node = _node(peer, source)
    browsing = isinstance(node, Queue) and source.distribution_mode is DistributionMode.COPY
    if isinstance(node, Topic):
        node, on_end = _subscription(peer, key, node, source, expression, selector, on_end)
        selector = None  # the subscription holds nothing else
    limit = remote.max_message_size
    consumer = OutgoingLink(
        session,
        link,
        node,
        on_end,
        selector=selector,
        browsing=browsing,
        settled=remote.snd_settle_mode is SenderSettleMode.SETTLED,
        max_message_size=limit if 0 < limit < peer.options.max_message_size else None,
    )
    link.attach(
        AttachFields(
            # What is not in the answer's filter is not in effect (3.5.3).
            source=replace(_plain(source), filter=filters),
            target=_plain(remote.target or Target()),
            snd_settle_mode=remote.snd_settle_mode,
            rcv_settle_mode=remote.rcv_settle_mode,
        )
    )
    faults = peer.options.faults
    faults.end(faults.due("attached", consumer.address, consumer.role), peer, session, consumer)


def _filter(filters: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any] | None]:
    """The selector, and the filters that are in effect."""
    for name, value in (filters or {}).items():
        if isinstance(value, Described) and value.descriptor in _SELECTOR_NAMES and isinstance(value.value, str):
            return value.value, {name: Described(value.descriptor, value.value)}
    return None, None


def _compiled(expression: str | None) -> Selector | None:
    if expression is None:
        return None
    try:
        return compile_selector(expression)
    except SelectorError as exc:
        raise _Refused("amqp:invalid-field", str(exc)) from exc


def _subscription(
    peer: Peer,
    key: tuple[str, str],
    topic: Topic,
    source: Source,
    expression: str | None,
    selector: Selector | None,
    on_end: Callable[[bool], None],
) -> tuple[Queue, Callable[[bool], None]]:
    nodes = peer.nodes
    if source.durable is not TerminusDurability.NONE or source.expiry_policy is ExpiryPolicy.NEVER:

        def end_durable(closed: bool) -> None:
            if closed:
                nodes.unsubscribe_durably(key)
            on_end(closed)

        return nodes.subscribe_durably(key, topic, source, expression, selector), end_durable
    own = object()

    def end(closed: bool) -> None:
        topic.unsubscribe(own)
        on_end(closed)

    return topic.subscribe(own, selector), end


# --- dynamic nodes ------------------------------------------------------------------


def _dynamic(peer: Peer, terminus: Any) -> tuple[Any, Queue | Topic, Callable[[bool], None]]:
    """Create a node that lives as long as the link (3.5.10); its terminus, itself, and its end."""
    address, node = peer.nodes.create_dynamic(topic="temporary-topic" in terminus.capabilities)

    def end(closed: bool) -> None:
        peer.nodes.delete(node)

    return replace(terminus, address=address), node, end


def _plain(terminus: _Terminus) -> _Terminus:
    """A terminus as it is sent back: without the values of any type that a client may put there."""
    lifetime = {"lifetime-policy": Described(symbol("amqp:delete-on-close:list"), [])} if terminus.dynamic else None
    if isinstance(terminus, Source):
        return replace(terminus, dynamic_node_properties=lifetime, filter=None)
    return replace(terminus, dynamic_node_properties=lifetime)


def _keep(closed: bool) -> None:
    """The node stays."""
