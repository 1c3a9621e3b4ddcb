"""From a service key to a client that keeps to Event Mesh's rules, and whose connection comes back.

As `connection`, on top of `amqpws_async.Client`. The rules hold on each connection: while the client moves to a second
one it has its links on both, and Event Mesh counts them for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..auth.client_auth import ClientCertificate
from ..client import Backoff, Client, ClientHealth, Retry, StateChange, StateChanges
from ..client.options import OnUnknown, Outage, check_choice
from ..endpoint import Opening
from .access import Access, EventMeshArguments, KeySource, check_options
from .addresses import check_source, check_target, expand
from .key import ServiceKey
from .rules import CREDIT, FAILURE_OUTCOME, QoS, check_qos, check_room, receiver_arguments, relay_arguments
from .sender import EventMeshSender, Relays

if TYPE_CHECKING:
    from ..client import ClientReceiver, ClientSender

__all__ = ["EventMeshClient", "EventMeshClientArguments", "client"]


class EventMeshClientArguments(EventMeshArguments, total=False):
    """The fields of `EventMeshArguments`, and those of `ClientOptions` beside `randomize`: there is one URL."""

    background: bool
    outage: Outage
    backoff: Backoff
    retries: Mapping[str | int, Retry]
    roll_over: bool
    max_connection_age: float | None
    handover_timeout: float
    on_state: Callable[[StateChange], object] | None


def client(
    key: ServiceKey | Mapping[str, Any] | str | Path | None = None,
    *,
    binding: str | None = None,
    namespace: str | None = None,
    certificate: ClientCertificate | None = None,
    **options: Unpack[EventMeshClientArguments],
) -> Opening[EventMeshClient]:
    """Open a client of SAP Event Mesh that survives the loss of its connection; await it, or use it in ``async with``.

    ::

        async with eventmesh.client() as mesh:  # the bound service; or client("key.json")
            async with mesh.sender("topic:${namespace}/orders/created", on_unknown="resend") as sender:
                await sender.send(Message(b"{}", content_type="application/json"))  # waits through an outage

    The key is read anew before each connection: a binding or file whose secret or certificate was replaced is good
    without a restart. (Its URL and namespace are those of the first reading.) Before the token expires, the client
    moves to a second connection, which counts towards the connections that a service instance may have; where there is
    no room for it, the first is left before.

    Cancelling drops what was begun; no socket and no task stay behind.

    Args:
        key: The service key: a `ServiceKey`, the path of its file, its JSON text, a mapping; None (the default) looks
            for a binding in the environment, see `ServiceKey.from_environment`.
        binding: The name of the binding, where the environment has several.
        namespace: What stands for ``${namespace}`` in addresses; the key's own by default.
        certificate: A client certificate in place of the key's, for keys whose private key is managed elsewhere.
        **options: As for `connect`, and fields of `ClientOptions`, each explained there. With ``background=True`` this
            returns once the key is read, and senders and receivers wait for the first connection.

    Raises:
        ServiceKeyError: The key is missing, ambiguous or unfit. It is an `OpenError`.
        OpenError: The failure is final, or the backoff's limits are reached; likewise what else
            `amqpws_async.Client.open` raises.
        TimeoutError: The key could not be read within `open_timeout`.
        ValueError: An option is out of range or does not suit Event Mesh.
    """
    check_options("client", EventMeshClientArguments, options, namespace)
    source = KeySource(key, binding, certificate)
    surviving: Any = {name: value for name, value in options.items() if name not in EventMeshArguments.__annotations__}
    connecting: Any = {name: value for name, value in options.items() if name not in surviving}

    async def open() -> EventMeshClient:
        access = await Access.open(source, connecting)
        try:
            opened = await Client(access.key.messaging.url, **surviving, **access.arguments(access)).open()
        except BaseException:
            await access.close()
            raise
        return EventMeshClient(opened, access, namespace or access.key.namespace)

    return Opening(open)


class EventMeshClient:
    """A client of Event Mesh, made by `client`: its senders and receivers outlive connections.

    Attributes:
        client: The AMQP client, for whatever is not offered here, such as `Client.roll_over`. Its links are not
            checked.
        namespace: What stands for ``${namespace}`` in addresses, or None.
    """

    def __init__(self, client: Client, access: Access, namespace: str | None) -> None:
        self.client = client
        self.namespace = namespace
        self._access = access
        self._relays: Relays[tuple[QoS, OnUnknown], ClientSender] = Relays()

    def sender(self, address: str, *, qos: QoS = 1, on_unknown: OnUnknown = "raise") -> Opening[EventMeshSender]:
        """Open a sender to one address; await it, or use it in ``async with``.

        All senders of one `qos` and one `on_unknown` share one link: open and close as many as there are topics, for
        each message if you like. This waits through an outage, unless the client has ``outage="fail"``. Cancelling
        leaves nothing behind.

        Args:
            address: ``topic:NAME`` or ``queue:NAME``; ``${namespace}`` is filled in.
            qos: 1 (the default): `send` returns once Event Mesh has accepted the message. 0: once it is written.
            on_unknown: What becomes of a message whose outcome a loss has cost: ``"raise"``, the default, or
                ``"resend"``, see `ClientSenderOptions`. With `qos` 0 there is no outcome, and nothing to send again.

        Raises:
            ValueError: The address breaks a rule of Event Mesh, or the others do not go together. Raised by the call.
            AttachError: Event Mesh refused the link, finally.
            ConnectionClosed: The client has ended, or, with ``outage="fail"``, there is no connection now.
            LocalProtocolError: There are 3 senders already.
        """
        checked = check_target(expand(address, self.namespace))
        check_qos(qos)
        check_choice("on_unknown", on_unknown, OnUnknown)
        if qos == 0 and on_unknown == "resend":
            raise ValueError("on_unknown: 'resend' needs qos 1: with 0 nobody says what has arrived")

        async def open() -> EventMeshSender:
            relay = await self._relays.attached((qos, on_unknown), self._attach_relay)
            return EventMeshSender(relay, checked)

        return Opening(open)

    async def _attach_relay(self, kind: tuple[QoS, OnUnknown]) -> ClientSender:
        qos, on_unknown = kind
        check_room("sender", self.client.health().links)
        return await self.client.sender("", on_unknown=on_unknown, **relay_arguments(qos))

    def receiver(
        self,
        address: str,
        *,
        qos: QoS = 1,
        name: str | None = None,
        credit: int = CREDIT,
        max_prefetch_bytes: int = 16 * 2**20,
        outage: Outage | None = None,
    ) -> Opening[ClientReceiver]:
        """Attach a receiver that outlives connections; await it, or use it in ``async with``.

        Its `process` rejects a delivery whose handler failed, unless `on_error` says otherwise: a queue then delivers
        it again until its maxRedeliveryCount is reached, and moves it to its dead message queue.

        This waits through an outage, unless `outage` says otherwise. Cancelling detaches the half-open link.

        Args:
            address: As for `EventMeshConnection.receiver`.
            qos: 1 (the default): every delivery is yours to settle, without `confirm`. 0: deliveries come settled.
            name: The link's name; a new one for each link by default. Links of a fixed one move to another connection
                by way of a gap, see `Client.roll_over`.
            credit: The window in messages, 255 by default, as SAP's own client has it; 0 is manual.
            max_prefetch_bytes: The window in bytes, 16 MiB by default.
            outage: As for the client, which is the default; see `ClientReceiverOptions`.

        Raises:
            ValueError: The address breaks a rule of Event Mesh, or an option is out of range. Raised by the call.
            AttachError: Event Mesh refused the link, finally: there is no such queue, or the key's rules forbid it.
            ConnectionClosed: The client has ended, or, with ``outage="fail"``, there is no connection now.
            LocalProtocolError: There are 3 receivers already.
        """
        checked = check_source(expand(address, self.namespace))
        arguments = receiver_arguments(qos, name, credit, max_prefetch_bytes)
        opening = self.client.receiver(checked, outage=outage, **arguments)

        async def open() -> ClientReceiver:
            check_room("receiver", self.client.health().links)
            receiver = await opening
            receiver.failure_outcome = FAILURE_OUTCOME
            return receiver

        return Opening(open)

    def ready(self) -> bool:
        """Whether there is a connection and every link is attached, for readiness probes; never waits.

        A shared link that Event Mesh has ended for good counts until a sender is opened anew.
        """
        return self.client.ready() and all(relay.stop is None for relay in self._relays.values())

    def health(self) -> ClientHealth:
        """Say how the client is, for probes; never waits."""
        return self.client.health()

    def states(self) -> StateChanges:
        """Follow the client's states: an async iterator, which begins with where it is and ends after CLOSED."""
        return self.client.states()

    async def close(self) -> None:
        """Close the client in order, as `Client.close` does, and stop renewing its token.

        Cancelling drops the network connection at once.
        """
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, quickly and without raising over its exception."""
        try:
            await self.client.__aexit__(kind, error, traceback)
        finally:
            await self._access.close()

    def __repr__(self) -> str:
        return f"<EventMeshClient {self.client!r}>"
