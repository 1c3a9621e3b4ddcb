"""All parts of an embedded Event Mesh put together."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

from ..broker import Broker, Refusal
from ..token_server import TokenServer, UAABehaviour
from .certificates import Authority, check_installed
from .management import INTEGRATION_SUITE, STANDALONE, ManagementServer
from .names import check_pattern, check_queue
from .nodes import MeshNodes, MeshQueue
from .rules import OWN_NAMESPACE, Descriptor, Rules
from .service_key import Credentials, service_key, write_private

__all__ = ["EventMesh"]

PATH: Final = "/protocols/amqp10ws"
MAX_MESSAGE_SIZE: Final = 2**20  # bytes
MAX_QUEUE_BYTES: Final = 64 * 2**20  # as a `Broker` has


class EventMesh:
    """SAP's Event Mesh for tests, demonstrations and development, in your process and by its rules.

    ::

        async with EventMesh() as mesh:
            mesh.create_queue("${namespace}/orders")
            mesh.subscribe("${namespace}/orders", "${namespace}/order/*")
            key = mesh.service_key()

    What it is made of: an AMQP broker behind wss, a token server, the management API, and a private CA for all three.
    Its rules, as far as SAP documents them:

    - An upgrade needs a bearer token of the token server, at the path ``/protocols/amqp10ws``.
    - Addresses are ``queue:NAME`` and ``topic:NAME``. Names have the documented form, and the key's rules allow them;
      anything else is refused with ``amqp:not-allowed``. Topics cannot be received from.
    - Queues are created by `create_queue` or the management API, never by using them (``amqp:not-found``).
    - A message to a topic goes once to each queue with a subscription that covers it, and to nobody if there is none.
    - A message has 1 MiB at most, a connection three senders and three receivers, a service instance 50 connections.
    - What is rejected comes again, at once, ``maxRedeliveryCount`` times, and goes to ``deadMsgQueue`` then; without a
      count for ever. Of a queue's other properties the management API tells, and they have no effect.

    Args:
        host: Where to listen; this machine alone by default.
        port: The broker's port, 0 for any that is free; the others are on ports of their own.
        namespace: The namespace of the service key, three segments.
        rules: What the key allows, as in a service descriptor; by default all that is in its namespace.
        tls: Whether all is encrypted, with certificates of a private CA. It needs the extra ``testing``.
        x509: Whether the client has a certificate in place of a secret, for token server and broker.
        integration_suite: Whether the service key, and `management_url`, are those of Integration Suite.
        behaviour: What the token server makes of HTTP Basic.
        lifetime: Seconds that a token lives, 43 199 by default, as at SAP.
        max_connections: Connections that may be open at once.
        max_links: Senders, and receivers, that a connection may have.

    Attributes:
        broker: The AMQP broker, with statistics.
        token_server: The token server, which counts its requests and fails on cue.
        management: The management API, which counts its requests.
        namespace: As above.

    Raises:
        ModuleNotFoundError: trustme is not installed, and `tls` is wanted.
        ValueError: The namespace or the rules are none, or x509 is wanted without tls.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        namespace: str = "example/shop/1",
        rules: Descriptor = OWN_NAMESPACE,
        tls: bool = True,
        x509: bool = False,
        integration_suite: bool = False,
        behaviour: UAABehaviour = UAABehaviour.STRICT,
        lifetime: float = 43199.0,
        max_connections: int = 50,
        max_links: int = 3,
    ) -> None:
        if x509 and not tls:
            raise ValueError("x509: a client certificate needs tls")
        if tls:
            check_installed()
        self.namespace = namespace
        self._rules = Rules(namespace, rules)
        self._nodes = MeshNodes(MAX_QUEUE_BYTES)
        self._x509 = x509
        self._integration_suite = integration_suite
        self._credentials = Credentials(client_secret=None) if x509 else Credentials()
        # The broker has a context of its own: it wants the client's certificate, where the others can do without.
        self._contexts = [ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2)] if tls else []
        web_context, broker_context = self._contexts or (None, None)
        self._authority: Authority | None = None
        self._certificate: tuple[str, str] | None = None
        self._running: AsyncExitStack | None = None
        self.token_server = TokenServer(
            host,
            clients={self._credentials.client_id: self._credentials.client_secret},
            behaviour=behaviour,
            lifetime=lifetime,
            ssl=web_context,
        )
        self.management = ManagementServer(self._nodes, self._rules, self.token_server, host, web_context)
        self.broker = Broker(
            host,
            port,
            ssl=broker_context,
            authorize=self._authorize,
            authorize_link=self._rules.refuse,
            max_message_size=MAX_MESSAGE_SIZE,
            max_connections=max_connections,
            max_links=max_links,
            nodes=self._nodes,
        )

    # --- where it is -------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where AMQP is."""
        return self.broker.url.removesuffix("/") + PATH

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return self.token_server.url

    @property
    def management_url(self) -> str:
        """What ``/queues`` and the other paths of the management API come after."""
        return self.management.origin + (INTEGRATION_SUITE if self._integration_suite else STANDALONE)

    @property
    def ca_pem(self) -> str:
        """The private CA's certificate, PEM; "" without tls.

        Raises:
            RuntimeError: It was not started yet.
        """
        return self._started().pem if self._contexts else ""

    @property
    def ssl(self) -> ssl.SSLContext | None:
        """A context that trusts the private CA, for ``ssl=`` of clients; None without tls.

        Raises:
            RuntimeError: It was not started yet.
        """
        return ssl.create_default_context(cadata=self.ca_pem) if self._contexts else None

    def service_key(self) -> dict[str, Any]:
        """Make a service key: synthetic, of this instance alone, and good as long as it lives.

        Raises:
            RuntimeError: It was not started yet.
        """
        if self._running is None:
            raise RuntimeError("start the event mesh first: it has no addresses yet")
        return service_key(
            self._credentials,
            namespace=self.namespace,
            url=self.url,
            token_url=self.token_url,
            # Nothing else in a key would tell where Integration Suite has its API, as its host is no host of SAP's.
            management_url=self.management_url if self._integration_suite else self.management.origin,
            certificate=self._certificate,
            integration_suite=self._integration_suite,
        )

    def write_key(self, folder: str | Path) -> tuple[Path, Path | None]:
        """Write the service key to ``service-key.json`` (mode 0600), and the CA to ``ca.pem``. Not for the event loop.

        Returns:
            Both paths; None for the second without tls.

        Raises:
            OSError: They cannot be written.
            RuntimeError: It was not started yet.
        """
        key, ca = Path(folder, "service-key.json"), Path(folder, "ca.pem")
        write_private(key, self.service_key())
        if not self._contexts:
            return key, None
        ca.write_text(self.ca_pem, encoding="ascii")
        return key, ca

    # --- queues and subscriptions ----------------------------------------------------------------

    @property
    def queues(self) -> Mapping[str, frozenset[str]]:
        """What each queue subscribes to, by the queue's name."""
        return {name: frozenset(queue.subscriptions) for name, queue in self._nodes.by_name.items()}

    def create_queue(self, name: str, **properties: Any) -> None:
        """Create a queue, or change its properties.

        Args:
            name: Its name, in any namespace; ``${namespace}`` stands for the key's.
            **properties: In the words of the management API, such as ``maxRedeliveryCount=3``; there may be
                ``${namespace}`` in ``deadMsgQueue`` too.

        Raises:
            ValueError: The name breaks a rule, or a property has a value that it cannot have.
        """
        name = self._rules.expand(name)
        check_queue(name)
        if isinstance(dead := properties.get("deadMsgQueue"), str):
            properties["deadMsgQueue"] = self._rules.expand(dead)
        self._nodes.create_queue(name, properties)

    def delete_queue(self, name: str) -> None:
        """Delete a queue with what it holds; who uses it is told ``amqp:resource-deleted``.

        Raises:
            LookupError: There is none.
        """
        self._nodes.delete_queue(self._queue(name))

    def subscribe(self, queue: str, topic: str) -> None:
        """Let a queue have the messages of a topic.

        Args:
            queue: Its name.
            topic: The topic; ``+`` in it stands for one segment, and ``*`` at the end for all that follow.

        Raises:
            LookupError: There is no such queue.
            ValueError: The topic breaks a rule.
        """
        topic = self._rules.expand(topic)
        check_pattern(topic)
        self._nodes.subscribe(self._queue(queue), topic)

    def unsubscribe(self, queue: str, topic: str) -> None:
        """Undo `subscribe`; what is in the queue stays there.

        Raises:
            LookupError: There is no such queue, or no such subscription.
        """
        self._nodes.unsubscribe(self._queue(queue), self._rules.expand(topic))

    def _queue(self, name: str) -> MeshQueue:
        name = self._rules.expand(name)
        try:
            return self._nodes.by_name[name]
        except KeyError:
            raise LookupError(f"there is no queue {name!r}") from None

    # --- its life --------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Listen. After `close` it listens again: with the same ports, certificates, queues, messages and key.

        Cancelling stops what was started.

        Returns:
            The event mesh.

        Raises:
            OSError: The port cannot be had.
            RuntimeError: It is running already.
        """
        if self._running is not None:
            raise RuntimeError("this event mesh is running already")
        async with AsyncExitStack() as stack:
            if self._contexts and self._authority is None:
                self._authority = await asyncio.to_thread(self._certify)
            for server in (self.token_server, self.management, self.broker):
                await stack.enter_async_context(server)
            self._running = stack.pop_all()
        return self

    async def close(self) -> None:
        """Stop listening, and end every connection in order; see `Broker.close`. Closing again does nothing.

        Cancelling drops the connections at once.
        """
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    async def disconnect(self) -> None:
        """Drop every AMQP connection without a word, and go on listening. Cancelling stops the waiting alone."""
        await self.broker.disconnect()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "listening" if self._running is not None else "closed"
        return f"<EventMesh {self.url} {state}, namespace {self.namespace}, {len(self._nodes.by_name)} queues>"

    def _certify(self) -> Authority:
        authority = Authority()
        for context in self._contexts:
            authority.certify_server(context, self.broker.host)
        if self._x509:
            self._certificate = authority.issue_client(self._credentials.client_id)
            web_context, broker_context = self._contexts
            web_context.verify_mode = ssl.CERT_OPTIONAL  # so that the token server can say what is missing
            broker_context.verify_mode = ssl.CERT_REQUIRED
        return authority

    def _started(self) -> Authority:
        if self._authority is None:
            raise RuntimeError("start the event mesh first: it has no certificates yet")
        return self._authority

    def _authorize(self, headers: Mapping[str, str], path: str) -> Refusal | None:
        if path.partition("?")[0] != PATH:
            return Refusal(404, f"there is nothing here; AMQP is at {PATH}\n")
        return self.token_server.authorize(headers, path)
