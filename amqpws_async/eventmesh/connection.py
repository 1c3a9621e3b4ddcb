"""From a service key to an open connection that keeps to Event Mesh's rules.

What differs from `amqpws_async.connect`: a token from the key's own endpoint, one anonymous link for everything that is
sent (target ``""``, each message with its address in `to`), addresses checked before they travel, three links of a
direction at most, messages up to 1 MiB, and an idle timeout below the five minutes after which Event Mesh closes.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, Unpack, cast

from ..auth import Anonymous, Token, TokenProvider
from ..auth.client_auth import ClientCertificate
from ..auth.oauth2 import TokenRefresher
from ..auth.tokens import as_provider
from ..connection import Connection, Health
from ..connection import connect as connect_amqp
from ..endpoint import EndpointState, Opening
from ..errors import LocalProtocolError
from ..message import Message
from ..options import ConnectionArguments, ReceiverOptions
from ..terminus import ReceiverSettleMode, SenderSettleMode
from .addresses import check_namespace, check_source, check_target, expand
from .key import ServiceKey, ServiceKeyError

if TYPE_CHECKING:
    from ..outcomes import Accepted
    from ..receiver import Receiver
    from ..sender import PendingDelivery, Sender, SendMany

__all__ = ["EventMeshArguments", "EventMeshConnection", "EventMeshSender", "QoS", "connect"]

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

# How SAP's client attaches for "unreliable" and "reliable".
_SETTLE_MODES: Final[dict[QoS, tuple[SenderSettleMode, ReceiverSettleMode]]] = {
    0: (SenderSettleMode.SETTLED, ReceiverSettleMode.SECOND),
    1: (SenderSettleMode.UNSETTLED, ReceiverSettleMode.FIRST),
}


class EventMeshArguments(TypedDict, total=False):
    """The fields of `ConnectionOptions` that may be chosen here; the others follow from the key or from Event Mesh."""

    token: str | Token | TokenProvider | None
    headers: Mapping[str, str]
    ssl: tls.SSLContext | str | Path | None
    proxy: str | bool | None
    redirect_hosts: tuple[str, ...]
    hostname: str | None
    container_id: str
    properties: Mapping[str, Any] | None
    offered_capabilities: tuple[str, ...]
    desired_capabilities: tuple[str, ...]
    open_timeout: float | None
    close_timeout: float
    idle_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    max_frame_size: int
    channel_max: int
    max_websocket_message_size: int
    send_buffer_bytes: int
    trace: bool | Callable[[str], None] | None


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
    unknown = options.keys() - EventMeshArguments.__annotations__.keys()
    if unknown:
        raise TypeError(f"connect() got an unexpected keyword argument {min(unknown)!r}")
    idle_timeout = options.get("idle_timeout", 60.0)
    if not idle_timeout or idle_timeout >= IDLE_LIMIT:
        raise ValueError(
            f"idle_timeout: less than {IDLE_LIMIT:g} s, not {idle_timeout!r}: Event Mesh closes a connection that is "
            "silent for five minutes"
        )
    if namespace is not None:
        check_namespace(namespace)
    if isinstance(key, ServiceKey) and (binding is not None or certificate is not None):
        raise ValueError("binding and certificate: for ServiceKey.load(); this key is loaded already")
    return Opening(lambda: _open(key, binding, namespace, certificate, options))


async def _open(
    key: ServiceKey | Mapping[str, Any] | str | Path | None,
    binding: str | None,
    namespace: str | None,
    certificate: ClientCertificate | None,
    options: EventMeshArguments,
) -> EventMeshConnection:
    if not isinstance(key, ServiceKey):
        # In a thread: keys are files. Read anew for every connection, as platforms rotate them.
        async with _within(options.get("open_timeout", 30.0), "the service key"):
            key = await asyncio.to_thread(ServiceKey.load, key, binding=binding, certificate=certificate)
    refresher: TokenRefresher | None = None
    try:
        token = options.get("token")
        if token is None:
            refresher = _refresher(key, options)
            await refresher.__aenter__()
        tokens = refresher if refresher is not None else as_provider(cast(TokenProvider, token))
        made = cast(ConnectionArguments, {**options, "token": tokens, "sasl": Anonymous(), "subprotocols": ("amqp",)})
        if key.certificate is not None:
            made["ssl"] = await asyncio.to_thread(_showing, key.certificate, options.get("ssl"))
        connection = await connect_amqp(key.messaging.url, **made)
        return EventMeshConnection(connection, tokens, refresher, namespace or key.namespace)
    except BaseException:
        if refresher is not None:
            await refresher.__aexit__()
        raise


def _refresher(key: ServiceKey, options: EventMeshArguments) -> TokenRefresher:
    if key.messaging.grant is None:
        raise ServiceKeyError(f"{key.origin}: no token endpoint for {key.messaging.url}: give token=")
    return TokenRefresher(key.messaging.grant, ssl=options.get("ssl"), proxy=options.get("proxy", True))


def _showing(certificate: ClientCertificate, ssl: tls.SSLContext | str | Path | None) -> tls.SSLContext:
    """A context that shows the certificate to the broker, as it is shown to the token endpoint."""
    if isinstance(ssl, tls.SSLContext):
        return ssl
    context = tls.create_default_context(cafile=ssl)
    certificate.load_into(context)
    return context


class EventMeshConnection:
    """A connection to Event Mesh, made by `connect`.

    Attributes:
        connection: The AMQP connection, for whatever is not offered here. Its links are not checked.
        tokens: What supplies its access tokens; good for more connections of the same key.
        namespace: What stands for ``${namespace}`` in addresses, or None.
    """

    def __init__(
        self,
        connection: Connection,
        tokens: TokenProvider,
        refresher: TokenRefresher | None,
        namespace: str | None,
    ) -> None:
        self.connection = connection
        self.tokens = tokens
        self.namespace = namespace
        self._refresher = refresher
        self._relays: dict[QoS, Sender] = {}  # the anonymous links
        self._attaching = asyncio.Lock()

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
        _check_qos(qos)

        async def open() -> EventMeshSender:
            return EventMeshSender(await self._relay(qos), checked)

        return Opening(open)

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
        _check_qos(qos)
        snd_settle_mode, rcv_settle_mode = _SETTLE_MODES[qos]
        options = ReceiverOptions(
            name=name,
            credit=credit,
            max_prefetch_bytes=max_prefetch_bytes,
            snd_settle_mode=snd_settle_mode,
            rcv_settle_mode=rcv_settle_mode,
        )

        async def open() -> Receiver:
            session = await self.connection._default_session()
            self._check_room("receiver")
            return await session.receiver(checked, **vars(options))

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
            refresher, self._refresher = self._refresher, None
            if refresher is not None:
                await refresher.__aexit__()

    def __del__(self) -> None:
        # The connection warns of itself; nobody would stop the renewing of its token.
        refresher = getattr(self, "_refresher", None)
        if refresher is not None:
            refresher.abandon()

    def __repr__(self) -> str:
        return f"<EventMeshConnection {self.connection.options.origin} {self.connection.state.value}>"

    # --- links -----------------------------------------------------------------------------------

    async def _relay(self, qos: QoS) -> Sender:
        """The anonymous link of that quality of service, attached on first use."""
        # Around the lock: who waits behind somebody else's attempt has no more time than that one.
        async with _within(self.connection.options.open_timeout, "the attach"), self._attaching:
            relay = self._relays.get(qos)
            if relay is None or relay.state is not EndpointState.OPEN:
                session = await self.connection._default_session()
                self._check_room("sender")
                snd_settle_mode, rcv_settle_mode = _SETTLE_MODES[qos]
                relay = self._relays[qos] = await session.sender(
                    "",
                    snd_settle_mode=snd_settle_mode,
                    rcv_settle_mode=rcv_settle_mode,
                    max_message_size=MAX_MESSAGE_SIZE,
                )
            return relay

    def _check_room(self, role: Literal["sender", "receiver"]) -> None:
        if sum(link.role == role for link in self.connection.health().links) >= MAX_LINKS:
            raise LocalProtocolError(
                f"Event Mesh allows {MAX_LINKS} {role}s on a connection, and this one has them: close one, "
                "or open another connection"
            )


@asynccontextmanager
async def _within(timeout: float | None, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise TimeoutError(
            str(error) or f"Event Mesh: {what} was not done within {timeout:g} s (open_timeout)"
        ) from None


class EventMeshSender:
    """Sends to one address, made by `EventMeshConnection.sender`; any number of tasks may share it.

    Every message goes out with this address in its `to`. If its own says something else, what is sent, and what
    outcomes and errors show, is a copy.

    Attributes:
        address: ``topic:NAME`` or ``queue:NAME``.
    """

    def __init__(self, relay: Sender, address: str) -> None:
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


def _check_qos(qos: object) -> None:
    if isinstance(qos, bool) or qos not in _SETTLE_MODES:
        raise ValueError(f"qos: 0 (at most once) or 1 (at least once), not {qos!r}: Event Mesh has no exactly-once")
