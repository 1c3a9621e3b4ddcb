"""From a service key to an open connection that keeps to Event Mesh's rules.

What differs from `amqpws_async.connect`: a token from the key's own endpoint, one anonymous link for everything that is
sent (target ``""``, each message with its address in `to`), addresses checked before they travel, three links of a
direction at most, messages up to 1 MiB, and an idle timeout below the five minutes after which Event Mesh closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..auth import TokenProvider
from ..auth.client_auth import ClientCertificate
from ..connection import Connection, Health
from ..connection import connect as connect_amqp
from ..endpoint import Opening
from .access import Access, EventMeshArguments, KeySource, check_options, within
from .addresses import check_source, check_target, expand
from .key import ServiceKey
from .rules import CREDIT, FAILURE_OUTCOME, QoS, check_qos, check_room, receiver_arguments, relay_arguments
from .sender import EventMeshSender, Relays

if TYPE_CHECKING:
    from ..receiver import Receiver
    from ..sender import Sender

__all__ = ["EventMeshArguments", "EventMeshConnection", "EventMeshSender", "QoS", "connect"]


def connect(
    key: ServiceKey | Mapping[str, Any] | str | Path | None = None,
    *,
    binding: str | None = None,
    namespace: str | None = None,
    certificate: ClientCertificate | None = None,
    **options: Unpack[EventMeshArguments],
) -> Opening[EventMeshConnection]:
    """Open a connection to SAP Event Mesh; await it, or use it in ``async with``.

    ::

        async with eventmesh.connect() as mesh:  # the bound service; or connect("key.json")
            async with mesh.sender("topic:${namespace}/orders/created") as sender:
                await sender.send(Message(b"{}", content_type="application/json"))

    Cancelling drops what was begun; no socket and no task stay behind.

    Args:
        key: The service key: a `ServiceKey`, the path of its file, its JSON text, a mapping; None (the default) looks
            for a binding in the environment, see `ServiceKey.from_environment`.
        binding: The name of the binding, where the environment has several.
        namespace: What stands for ``${namespace}`` in addresses; the key's own by default.
        certificate: A client certificate in place of the key's, for keys whose private key is managed elsewhere.
        **options: Fields of `ConnectionOptions`, each explained there. `token` takes the place of the key's own token
            endpoint: connections that share one ``TokenRefresher(key.messaging.grant)`` share its requests, also over
            many attempts to connect. `ssl` and `proxy` are good for the token endpoint, too; with a key of the type
            x509 `ssl` is a path or None. `idle_timeout` must stay below 300.

    Raises:
        ServiceKeyError: The key is missing, ambiguous or unfit. It is an `OpenError`.
        OpenError: As for `amqpws_async.connect`: `HandshakeError`, `AuthenticationError`, `TokenError` and others.
        ConnectionClosed: As for `amqpws_async.connect`.
        TimeoutError: It took longer than `open_timeout`.
        ValueError: An option is out of range or does not suit Event Mesh.
    """
    check_options("connect", EventMeshArguments, options, namespace)
    source = KeySource(key, binding, certificate)

    async def open() -> EventMeshConnection:
        access = await Access.open(source, options)
        try:
            connection = await connect_amqp(access.key.messaging.url, **access.arguments(access.tokens))
        except BaseException:
            await access.close()
            raise
        return EventMeshConnection(connection, access, namespace or access.key.namespace)

    return Opening(open)


class EventMeshConnection:
    """A connection to Event Mesh, made by `connect`.

    Attributes:
        connection: The AMQP connection, for whatever is not offered here. Its links are not checked.
        tokens: What supplies its access tokens; good for more connections of the same key.
        namespace: What stands for ``${namespace}`` in addresses, or None.
    """

    tokens: TokenProvider

    def __init__(self, connection: Connection, access: Access, namespace: str | None) -> None:
        self.connection = connection
        self.tokens = access.tokens
        self.namespace = namespace
        self._access = access
        self._relays: Relays[QoS, Sender] = Relays()

    def sender(self, address: str, *, qos: QoS = 1) -> Opening[EventMeshSender]:
        """Open a sender to one address; await it, or use it in ``async with``.

        All senders of one `qos` share one link: open and close as many as there are topics. Cancelling leaves nothing
        behind.

        Args:
            address: ``topic:NAME`` or ``queue:NAME``; ``${namespace}`` is filled in.
            qos: 1 (the default): `send` returns once Event Mesh has accepted the message. 0: once it is written.

        Raises:
            ValueError: The address breaks a rule of Event Mesh. Raised by the call itself.
            AttachError: Event Mesh refused the link.
            ConnectionClosed: The connection has stopped. Likewise `SessionClosed`.
            LocalProtocolError: There are 3 senders already.
            TimeoutError: It did not answer within `open_timeout`.
        """
        checked = check_target(expand(address, self.namespace))
        check_qos(qos)

        async def open() -> EventMeshSender:
            # Around all of it: who waits behind somebody else's attempt has no more time than that one.
            async with within(self.connection.options.open_timeout, "the attach"):
                return EventMeshSender(await self._relays.attached(qos, self._attach_relay), checked)

        return Opening(open)

    async def _attach_relay(self, qos: QoS) -> Sender:
        session = await self.connection._default_session()
        check_room("sender", self.connection.health().links)
        return await session.sender("", **relay_arguments(qos))

    def receiver(
        self,
        address: str,
        *,
        qos: QoS = 1,
        name: str | None = None,
        credit: int = CREDIT,
        max_prefetch_bytes: int = 16 * 2**20,
    ) -> Opening[Receiver]:
        """Attach a receiver; await it, or use it in ``async with``.

        Its `process` rejects a delivery whose handler failed, unless `on_error` says otherwise: a queue then delivers
        it again until its maxRedeliveryCount is reached, and moves it to its dead message queue.

        Cancelling detaches the half-open link as soon as Event Mesh answers.

        Args:
            address: ``queue:NAME``; ``${namespace}`` is filled in. (A ``topic:`` is passed on; what is documented is to
                receive from a queue that subscribes to it, see `management.ManagementClient.subscribe`.)
            qos: 1 (the default): every delivery is yours to settle, without `confirm`. 0: deliveries come settled.
            name: The link's name; a new one by default.
            credit: The window in messages, 255 by default, as SAP's own client has it; 0 is manual.
            max_prefetch_bytes: The window in bytes, 16 MiB by default.

        Raises:
            ValueError: The address breaks a rule of Event Mesh, or an option is out of range. Raised by the call.
            AttachError: Event Mesh refused the link: there is no such queue, or the key's rules forbid it.
            ConnectionClosed: The connection has stopped. Likewise `SessionClosed`.
            LocalProtocolError: There are 3 receivers already.
            TimeoutError: It did not answer within `open_timeout`.
        """
        checked = check_source(expand(address, self.namespace))
        arguments = receiver_arguments(qos, name, credit, max_prefetch_bytes)

        async def open() -> Receiver:
            session = await self.connection._default_session()
            check_room("receiver", self.connection.health().links)
            receiver = await session.receiver(checked, **arguments)
            receiver.failure_outcome = FAILURE_OUTCOME
            return receiver

        return Opening(open)

    def health(self) -> Health:
        """Say how the connection is, for readiness probes; never waits."""
        return self.connection.health()

    async def close(self) -> None:
        """Close the connection in order, as `Connection.close` does, and stop renewing its token.

        Cancelling drops the network connection at once.

        Raises:
            ConnectionClosed: The peer answered with an error.
            TimeoutError: The peer did not answer within `close_timeout`; the network connection is dropped.
        """
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, quickly and without raising over its exception."""
        try:
            await self.connection.__aexit__(kind, error, traceback)
        finally:
            await self._access.close()

    def __del__(self) -> None:
        # The connection warns of itself; nobody would stop the renewing of its token.
        access = getattr(self, "_access", None)
        if access is not None:
            access.abandon()

    def __repr__(self) -> str:
        return f"<EventMeshConnection {self.connection.options.origin} {self.connection.state.value}>"
