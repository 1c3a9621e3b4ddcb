"""Sending to any number of addresses over one anonymous link for each quality of service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable
from copy import copy
from typing import TYPE_CHECKING, Self, TypeVar

from ..client import ClientSender
from ..endpoint import EndpointState
from ..errors import LocalProtocolError
from ..message import Message
from ..sender import Sender

if TYPE_CHECKING:
    from ..outcomes import Accepted
    from ..sender import PendingDelivery, SendMany

__all__ = ["EventMeshSender", "Relays"]

K = TypeVar("K", bound=Hashable)
S = TypeVar("S", Sender, ClientSender)


class Relays(dict[K, S]):
    """The anonymous links of one connection or client, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self._attaching = asyncio.Lock()

    async def attached(self, kind: K, attach: Callable[[K], Awaitable[S]]) -> S:
        """The link of a kind, attached on first use, and another one where it has ended.

        Cancelling leaves the attaching to the next who asks.
        """
        async with self._attaching:
            relay = self.get(kind)
            if relay is None or relay.state is not EndpointState.OPEN:
                relay = self[kind] = await attach(kind)
            return relay


class EventMeshSender:
    """Sends to one address, made by `EventMeshConnection.sender` or `EventMeshClient.sender`.

    Any number of tasks may share it. Every message goes out with this address in its `to`. If its own says something
    else, what is sent, and what outcomes and errors show, is a copy. Where `Sender` is named below, a client's behaves
    as `ClientSender`: it waits through outages.

    Attributes:
        address: ``topic:NAME`` or ``queue:NAME``.
    """

    def __init__(self, relay: Sender | ClientSender, address: str) -> None:
        self.address = address
        self._relay = relay
        self._closed = False

    @property
    def credit(self) -> int:
        """How many messages may be sent before Event Mesh grants more."""
        return self._relay.credit

    async def send(self, message: Message, *, tag: bytes | None = None) -> Accepted | None:
        """Send one message and wait for its outcome: as `Sender.send`, which see for errors and for cancelling.

        Args:
            message: The message; at most 1 MiB when encoded.
            tag: The delivery tag; a counter by default.

        Returns:
            `Accepted`, or None with `qos` 0.
        """
        return await self._relay.send(self._addressed(message), tag=tag)

    async def transfer(self, message: Message, *, tag: bytes | None = None) -> PendingDelivery:
        """Send one message; wait only until credit and room allow it: as `Sender.transfer`. Cancelling sends nothing.

        Args:
            message: The message; at most 1 MiB when encoded.
            tag: The delivery tag; a counter by default.

        Returns:
            The delivery; await it for its outcome.
        """
        return await self._relay.transfer(self._addressed(message), tag=tag)

    def send_many(self, messages: Iterable[Message] | AsyncIterable[Message], *, in_flight: int = 1000) -> SendMany:
        """Send many messages, keeping up to `in_flight` of them without outcome: as `Sender.send_many`.

        Args:
            messages: The messages, from an iterable or an async iterable.
            in_flight: How many may be without outcome at once, default 1000.

        Returns:
            An async iterator of every message, as it was sent, with its outcome.
        """
        if isinstance(messages, AsyncIterable):
            return self._relay.send_many(_Each(self._addressed, messages), in_flight=in_flight)
        return self._relay.send_many(map(self._addressed, messages), in_flight=in_flight)

    async def close(self) -> None:
        """Send no more. The link stays, for the other addresses, and so do the deliveries in flight.

        This does not wait, so there is nothing to cancel; closing the connection waits for every outcome.
        """
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True

    def _addressed(self, message: Message) -> Message:
        if self._closed:
            raise LocalProtocolError(f"{self!r}: nothing was sent")
        if not isinstance(message, Message):
            raise TypeError(f"send a Message, not {type(message).__name__}: its address is set on the way")
        if message.to != self.address:
            message = copy(message)
            message.to = self.address
        return message

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._relay.state.value
        return f"<EventMeshSender to {self.address!r} {state}>"


class _Each:
    """An async iterable with a function applied to each item."""

    def __init__(self, function: Callable[[Message], Message], items: AsyncIterable[Message]) -> None:
        self._function = function
        self._items = items.__aiter__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        return self._function(await anext(self._items))
