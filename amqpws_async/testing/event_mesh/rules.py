"""What a service key allows: which addresses its clients may send to, receive from and subscribe to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from ...errors import ErrorCondition
from ..attaching import LinkRequest
from .names import NAMESPACE, check_namespace, check_queue, check_topic, covers

__all__ = ["OWN_NAMESPACE", "Descriptor", "Rules"]

Descriptor = Mapping[str, Mapping[str, Sequence[str]]]
"""The member ``rules`` of a service descriptor: patterns by ``queueRules`` or ``topicRules``, and then by
``publishFilter`` or ``subscribeFilter``."""

_FILTERS: Final = {"publishFilter": (f"{NAMESPACE}/*",), "subscribeFilter": (f"{NAMESPACE}/*",)}

OWN_NAMESPACE: Final[Descriptor] = {"queueRules": _FILTERS, "topicRules": _FILTERS}
"""All that is in the key's own namespace, and nothing else."""

_CHECKS: Final[Mapping[str, Callable[[str], None]]] = {"queue": check_queue, "topic": check_topic}


class Rules:
    """What the clients of one service key may do.

    Args:
        namespace: The key's, three segments.
        descriptor: The patterns; ``${namespace}`` stands for the namespace. What is not there is not allowed.

    Raises:
        ValueError: The namespace is none, or the descriptor has a member that there is not.
    """

    def __init__(self, namespace: str, descriptor: Descriptor = OWN_NAMESPACE) -> None:
        check_namespace(namespace)
        self.namespace = namespace
        self._patterns: dict[tuple[str, str], list[str]] = {}
        for kind, filters in descriptor.items():
            for name, patterns in filters.items():
                if kind not in OWN_NAMESPACE or name not in _FILTERS or isinstance(patterns, str):
                    raise ValueError("rules: queueRules and topicRules have lists publishFilter and subscribeFilter")
                self._patterns[kind, name] = [self.expand(pattern) for pattern in patterns]

    def expand(self, name: str) -> str:
        """Fill in the namespace."""
        return name.replace(NAMESPACE, self.namespace)

    def owns(self, name: str) -> bool:
        """Whether a queue is in the namespace."""
        return name.startswith(f"{self.namespace}/")

    def allows(self, kind: Literal["queue", "topic"], action: Literal["publish", "subscribe"], name: str) -> bool:
        """Whether a name, or for topics a pattern, is within what the key allows."""
        return any(covers(pattern, name) for pattern in self._patterns.get((f"{kind}Rules", f"{action}Filter"), ()))

    def refuse(self, request: LinkRequest) -> ErrorCondition | None:
        """Say what is wrong with a link, or with the address of a message: for ``Broker(authorize_link=...)``."""
        try:
            self._check(request)
        except ValueError as error:
            return ErrorCondition("amqp:not-allowed", str(error))
        return None

    def _check(self, request: LinkRequest) -> None:
        address, receives = request.address, request.role == "receiver"
        if request.dynamic:
            raise ValueError("there are no dynamic nodes here")
        if address is None:
            if receives:
                raise ValueError("a receiver needs an address: queue:NAME")
            return  # the anonymous terminus: each message is asked about
        kind, _, name = address.partition(":")
        if kind not in ("queue", "topic"):
            raise ValueError(f"address {address!r}: it has to begin with 'queue:' or 'topic:'")
        if receives and kind == "topic":
            raise ValueError(f"address {address!r}: topics are not received from: subscribe a queue to the topic")
        _CHECKS[kind](name)
        if not self.allows("queue" if kind == "queue" else "topic", "subscribe" if receives else "publish", name):
            action = "receiving from" if receives else "publishing to"
            raise ValueError(f"the rules of the service key do not allow {action} {address!r}")
