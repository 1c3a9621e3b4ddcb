"""The operations of the management API, with Event Mesh's rules for names."""

from __future__ import annotations

import asyncio
import contextlib
import ssl as tls
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import aiohttp

from ...auth import Token, TokenProvider
from ...auth.client_auth import ClientCertificate
from ...auth.oauth2 import TokenRefresher
from ...auth.route import find_route
from ...auth.tokens import as_provider
from ...urls import without_query
from ..addresses import check_namespace, check_queue_name, check_subscription, expand
from ..key import ServiceKey, ServiceKeyError
from .api import API, encoded_path
from .queues import Queue, QueueProperties, SubscriptionChanges, as_queue, camel_case

__all__ = ["ManagementClient"]


class ManagementClient:
    """Creates, describes and deletes queues, and says what they subscribe to; use it in ``async with``.

    Names may have ``${namespace}`` in them, and the prefix of an address: ``"queue:${namespace}/orders"`` in a call for
    `EventMeshConnection` is the same queue here. Calls may be made by several tasks at once.

    Args:
        key: The service key: a `ServiceKey`, the path of its file, its JSON text, a mapping; None (the default) looks
            for a binding in the environment, see `ServiceKey.from_environment`.
        binding: The name of the binding, where the environment has several.
        namespace: What stands for ``${namespace}``; the key's own by default.
        certificate: A client certificate in place of the key's.
        ssl: Whom to trust, as in `ConnectionOptions`; also for the token endpoint.
        proxy: The way there, as in `ConnectionOptions`; also for the token endpoint.
        session: Your own aiohttp session, which stays open; by default there is one that sends nothing but what is
            needed: no cookies, no ``.netrc``.
        token: A token or provider in place of the management section's own token endpoint.
        timeout: Seconds for one request and its answer, 30 by default.

    Raises:
        ValueError: An argument is not usable. Raised by the constructor; by ``async with`` if it is about the proxy or
            `ssl`.
        ServiceKeyError: The key is missing, ambiguous or unfit, or is not for management. Raised by ``async with``.
    """

    def __init__(
        self,
        key: ServiceKey | Mapping[str, Any] | str | Path | None = None,
        *,
        binding: str | None = None,
        namespace: str | None = None,
        certificate: ClientCertificate | None = None,
        ssl: tls.SSLContext | str | Path | None = None,
        proxy: str | bool | None = True,
        session: aiohttp.ClientSession | None = None,
        token: str | Token | TokenProvider | None = None,
        timeout: float = 30.0,
    ) -> None:
        if isinstance(key, ServiceKey) and (binding is not None or certificate is not None):
            raise ValueError("binding and certificate: for ServiceKey.load(); this key is loaded already")
        if namespace is not None:
            check_namespace(namespace)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 86400:
            raise ValueError(f"timeout: seconds, more than 0, not {timeout!r}")
        self._source = key
        self._binding = binding
        self._certificate = certificate
        self._namespace = self._given_namespace = namespace
        self._ssl = ssl
        self._proxy = proxy
        self._session = session
        self._tokens = None if token is None else as_provider(token)
        self._timeout = timeout
        self._api: API | None = None
        self._stack = contextlib.AsyncExitStack()

    # --- queues ---

    async def queues(self) -> list[Queue]:
        """List the queues. Cancelling drops the request.

        Raises:
            ManagementError: The API refused, or cannot be reached.
            TokenError: No access token could be had.
            TimeoutError: There was no answer within `timeout`.
        """
        return [as_queue(item) for item in await self._list("name", "queues")]

    async def queue(self, name: str) -> Queue | None:
        """Describe a queue; None if there is no such queue. Cancelling drops the request.

        Raises:
            ValueError: The name breaks a rule of Event Mesh. Other errors as for `queues`.
        """
        name = self._queue(name)
        status, content = await self._running.request("GET", "queues", name, allowed=(404,))
        return None if status == 404 else as_queue({"name": name, **_object(content)})

    async def create_queue(
        self, name: str, properties: Mapping[str, Any] | None = None, **known: Unpack[QueueProperties]
    ) -> Queue:
        """Create a queue, or give one that is there these properties; what is not given is for Event Mesh to choose.

        Cancelling drops the request, which may have been carried out; it can be made again.

        Args:
            name: The queue's name.
            properties: Properties by the API's own names, such as ``{"maxTtl": 60}``: for those not listed here.
            **known: Properties, see `Queue`. `dead_msg_queue` is a name as `name` is, of a queue that is there.

        Returns:
            The queue, as the server describes it.

        Raises:
            ValueError: A name breaks a rule of Event Mesh. Other errors as for `queues`.
            TypeError: There is no such property.
        """
        unknown = known.keys() - QueueProperties.__annotations__.keys()
        if unknown:
            raise TypeError(f"create_queue() got an unexpected keyword argument {min(unknown)!r}")
        name = self._queue(name)
        body = {**(properties or {}), **{camel_case(key): value for key, value in known.items()}}
        if "dead_msg_queue" in known:
            body["deadMsgQueue"] = self._queue(known["dead_msg_queue"])
        _, content = await self._running.request("PUT", "queues", name, body=body)
        return as_queue({"name": name, **body, **_object(content)})

    async def delete_queue(self, name: str) -> bool:
        """Delete a queue with all messages in it. Cancelling drops the request, which may have been carried out.

        Returns:
            Whether there was one.

        Raises:
            ValueError: The name breaks a rule of Event Mesh. Other errors as for `queues`.
        """
        status, _ = await self._running.request("DELETE", "queues", self._queue(name), allowed=(404,))
        return status != 404

    # --- subscriptions ---

    async def subscriptions(self, queue: str) -> list[str]:
        """List the topics that a queue subscribes to. Cancelling drops the request.

        Raises:
            ValueError: The name breaks a rule of Event Mesh. Other errors as for `queues`.
        """
        found = await self._list("topicPattern", "queues", self._queue(queue), "subscriptions")
        return [str(item["topicPattern"]) for item in found]

    async def subscribe(self, queue: str, topic: str) -> bool:
        """Have a queue receive what is published to a topic. Cancelling drops the request, which can be made again.

        Args:
            queue: The queue's name.
            topic: The topic; ``+`` stands for one segment, ``*`` at the end for all that follow.

        Returns:
            Whether this is new; False if the queue did so already.

        Raises:
            ValueError: A name breaks a rule of Event Mesh. Other errors as for `queues`.
        """
        return await self._subscribe(self._queue(queue), self._topic(topic))

    async def unsubscribe(self, queue: str, topic: str) -> bool:
        """Have a queue receive no more of a topic. Cancelling drops the request, which can be made again.

        Args:
            queue: The queue's name.
            topic: The topic as it was subscribed to, wildcards included.

        Returns:
            Whether the queue subscribed to it.

        Raises:
            ValueError: A name breaks a rule of Event Mesh. Other errors as for `queues`.
        """
        return await self._unsubscribe(self._queue(queue), self._topic(topic))

    async def set_subscriptions(self, queue: str, topics: Iterable[str]) -> SubscriptionChanges:
        """Have a queue subscribe to these topics and to no others, with as few changes as that takes.

        What is missing is added first, so that nothing is lost in between. Cancelling, like an error, leaves what is
        done by then; the next call does the rest.

        Args:
            queue: The queue's name.
            topics: The topics, as for `subscribe`.

        Returns:
            What was changed.

        Raises:
            TypeError: `topics` is one string.
            ValueError: A name breaks a rule of Event Mesh; nothing was changed then. Other errors as for `queues`.
        """
        if isinstance(topics, str):
            raise TypeError("topics: several, such as [topic], not one string")
        name = self._queue(queue)
        wanted = dict.fromkeys(self._topic(topic) for topic in topics)
        present = dict.fromkeys(await self.subscriptions(name))
        changes = SubscriptionChanges(
            added=tuple(topic for topic in wanted if topic not in present),
            removed=tuple(topic for topic in present if topic not in wanted),
        )
        for topic in changes.added:
            await self._subscribe(name, topic)
        for topic in changes.removed:
            await self._unsubscribe(name, topic)
        return changes

    # --- the service ---

    async def ready(self) -> bool:
        """Say whether Event Mesh can be used, which takes a while after an instance was created.

        Cancelling drops the request.

        Raises:
            ManagementError: The API refused other than with 503, or cannot be reached. Others as for `queues`.
        """
        status, _ = await self._running.request("GET", "readinessCheck", allowed=(503,))
        return status != 503

    async def statistics(self) -> Mapping[str, Any]:
        """Return the figures of the service instance, as the API gives them. Cancelling drops the request.

        Raises:
            ManagementError: As for `queues`, and other errors likewise.
        """
        _, content = await self._running.request("GET", "statistics")
        return _object(content)

    # --- running ---

    async def __aenter__(self) -> Self:
        if self._api is not None:
            raise RuntimeError("this ManagementClient is in use already: one `async with` serves any number of tasks")
        async with contextlib.AsyncExitStack() as stack:
            # In a thread: keys and CAs are files.
            key, api, refresher = await asyncio.to_thread(self._prepare)
            if refresher is not None:
                await stack.enter_async_context(refresher)
            self._api = await stack.enter_async_context(api)
            self._namespace = self._given_namespace or key.namespace
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop. Requests under way end with an error."""
        self._api = None
        await self._stack.aclose()

    def _prepare(self) -> tuple[ServiceKey, API, TokenRefresher | None]:
        key = self._source
        if not isinstance(key, ServiceKey):
            key = ServiceKey.load(key, binding=self._binding, certificate=self._certificate)
        endpoint = key.management
        if endpoint is None:
            raise ServiceKeyError(
                f'{key.origin}: has no section management: set "options": {{"management": true}} in the service '
                "descriptor, update the instance with it and create a new key"
            )
        grant = endpoint.grant
        if grant is None and self._tokens is None:
            raise ServiceKeyError(f"{key.origin}: no token endpoint for {without_query(endpoint.url)}: give token=")
        certificate = key.certificate
        if grant is not None and isinstance(grant.authentication, ClientCertificate):
            certificate = grant.authentication  # the management section's own
        if isinstance(self._ssl, tls.SSLContext):
            certificate = None  # a context of the user's own stays as it is, as with the broker's connection
        route = find_route(endpoint.url, self._ssl, self._proxy, shows_certificate=certificate is not None)
        if route.socks is not None and self._session is not None:
            raise ValueError("session: a SOCKS proxy is its connector's business; give it one for that, and proxy=None")
        refresher, tokens = None, self._tokens
        if grant is not None and tokens is None:
            refresher = tokens = TokenRefresher(grant, session=self._session, ssl=self._ssl, proxy=self._proxy)
        assert tokens is not None
        return key, API(endpoint, route, certificate, tokens, self._session, self._timeout), refresher

    @property
    def _running(self) -> API:
        if self._api is None:
            raise RuntimeError("this ManagementClient is not running: use it in `async with`")
        return self._api

    def __repr__(self) -> str:
        return f"<ManagementClient {self._api.where if self._api else 'not running'}>"

    # --- names and answers ---

    def _queue(self, name: str) -> str:
        return _safe(check_queue_name(expand(name, self._namespace).removeprefix("queue:")))

    def _topic(self, topic: str) -> str:
        return _safe(check_subscription(expand(topic, self._namespace).removeprefix("topic:")))

    async def _subscribe(self, queue: str, topic: str) -> bool:
        status, _ = await self._running.request("PUT", "queues", queue, "subscriptions", topic, body={})
        return status == 201

    async def _unsubscribe(self, queue: str, topic: str) -> bool:
        status, _ = await self._running.request("DELETE", "queues", queue, "subscriptions", topic, allowed=(404,))
        return status != 404

    async def _list(self, member: str, *segments: str) -> list[dict[str, Any]]:
        """The objects in an answer that is a list of such with this member."""
        api = self._running
        _, content = await api.request("GET", *segments)
        if not isinstance(content, list) or not all(isinstance(item, dict) and member in item for item in content):
            text = f"the answer is no list of objects with {member!r} in them: is this the URL of the management API?"
            raise api.error("GET", encoded_path(segments), text)
        return content


def _safe(name: str) -> str:
    """Refuse what a proxy on the way might take for a step up: ``..`` stays as it is when a path is encoded."""
    if any(segment in (".", "..") for segment in name.split("/")):
        raise ValueError(f"{name!r}: '.' and '..' mean something else in the path of a URL")
    return name


def _object(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}
