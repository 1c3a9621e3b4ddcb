"""The management API of an Event Mesh: queues and subscriptions by REST, as SAP documents it.

Below ``/hub/rest/api/v1/management/messaging`` as the standalone service has it, and ``/sap-event-mesh/rest/api/v1`` as
Integration Suite; each name in a path is URL-encoded as a whole, its slashes too.
"""

from __future__ import annotations

import asyncio
import json
import ssl as tls
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, Self

from aiohttp import web

from ..token_server import TokenServer
from .names import check_pattern, check_queue
from .nodes import MeshNodes, MeshQueue
from .rules import Rules

__all__ = ["ManagementServer"]

STANDALONE: Final = "/hub/rest/api/v1/management/messaging"
INTEGRATION_SUITE: Final = "/sap-event-mesh/rest/api/v1"
_SHUTDOWN_TIMEOUT: Final = 0.1  # seconds for what is being answered; aiohttp takes 0 for no limit


class _Refused(Exception):
    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ManagementServer:
    """Serves the management API.

    Args:
        nodes: The queues.
        rules: What the key allows.
        tokens: Who checks the bearer tokens.
        host: Where to listen.
        ssl: A server's TLS context, for ``https://``.

    Attributes:
        port: Where it listens.
        request_count: Requests so far.
    """

    def __init__(
        self, nodes: MeshNodes, rules: Rules, tokens: TokenServer, host: str, ssl: tls.SSLContext | None
    ) -> None:
        self.host = host
        self.port = 0
        self.request_count = 0
        self._nodes = nodes
        self._rules = rules
        self._tokens = tokens
        self._ssl = ssl
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """Its URL without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    async def start(self) -> Self:
        """Listen. After `close` it listens again, on the same port.

        Raises:
            OSError: The port cannot be had.
        """
        self._web = web.Server(self._handle, access_log=None)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._web, self.host, self.port, ssl=self._ssl)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and drop every connection. Cancelling stops the waiting alone."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        assert self._web is not None
        listener.close()
        await self._web.shutdown(_SHUTDOWN_TIMEOUT)
        await listener.wait_closed()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.request_count += 1
        content: Any = None
        headers: Mapping[str, str] | None = None
        try:
            status, content = self._answer(request, await request.read())
        except _Refused as refused:
            status, headers = refused.status, refused.headers
            content = {"code": str(status), "message": str(refused)}
        if content is None:
            return web.Response(status=status)
        return web.json_response(content, status=status, headers=headers)

    def _answer(self, request: web.BaseRequest, body: bytes) -> tuple[int, Any]:
        path = request.raw_path.partition("?")[0]
        base = next((base for base in (STANDALONE, INTEGRATION_SUITE) if path.startswith(f"{base}/")), None)
        if base is None:
            raise _Refused(404, "there is nothing at this path")
        refusal = self._tokens.authorize(request.headers, path)
        if refusal is not None:
            raise _Refused(refusal.status, refusal.body.strip(), refusal.headers)
        method = request.method
        match [urllib.parse.unquote(segment) for segment in path.removeprefix(f"{base}/").split("/")], method:
            case ["readinessCheck"], "GET":
                return 200, None
            case ["statistics"], "GET":
                return 200, self._statistics()
            case ["queues"], "GET":
                return 200, [_shown(queue) for name, queue in self._nodes.by_name.items() if self._rules.owns(name)]
            case ["queues", name], "GET":
                return 200, _shown(self._queue(name))
            case ["queues", name], "PUT":
                return self._put_queue(name, _properties(body, required=base == INTEGRATION_SUITE))
            case ["queues", name], "DELETE":
                self._nodes.delete_queue(self._queue(name))
                return 204, None
            case ["queues", name, "subscriptions"], "GET":
                queue = self._queue(name)
                return 200, [_subscription(queue, pattern) for pattern in sorted(queue.subscriptions)]
            case ["queues", name, "subscriptions", pattern], "GET":
                return 200, _subscription(self._queue(name), self._subscribed(name, pattern))
            case ["queues", name, "subscriptions", pattern], "PUT":
                return self._put_subscription(name, pattern)
            case ["queues", name, "subscriptions", pattern], "DELETE":
                self._nodes.unsubscribe(self._queue(name), self._subscribed(name, pattern))
                return 204, None
            case (
                (["readinessCheck"] | ["statistics"] | ["queues"] | ["queues", _] | ["queues", _, "subscriptions"]),
                _,
            ):
                raise _Refused(405, f"{method} is not for this")
            case ["queues", _, "subscriptions", _], _:
                raise _Refused(405, f"{method} is not for this")
        raise _Refused(404, "there is nothing at this path; is each name encoded as a whole, its slashes too?")

    def _named(self, name: str) -> str:
        try:
            check_queue(name)
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        if not self._rules.owns(name):
            raise _Refused(403, f"queue {name!r} is not in the namespace {self._rules.namespace!r}")
        return name

    def _queue(self, name: str) -> MeshQueue:
        queue = self._nodes.by_name.get(self._named(name))
        if queue is None:
            raise _Refused(404, f"there is no queue {name!r}")
        return queue

    def _put_queue(self, name: str, properties: dict[str, Any]) -> tuple[int, Any]:
        known = self._named(name) in self._nodes.by_name
        try:
            queue = self._nodes.create_queue(name, properties)
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        return 200 if known else 201, _shown(queue)

    def _pattern(self, pattern: str) -> str:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        return pattern

    def _subscribed(self, name: str, pattern: str) -> str:
        if self._pattern(pattern) not in self._queue(name).subscriptions:
            raise _Refused(404, f"queue {name!r} does not subscribe to {pattern!r}")
        return pattern

    def _put_subscription(self, name: str, pattern: str) -> tuple[int, Any]:
        queue = self._queue(name)
        if not self._rules.allows("topic", "subscribe", self._pattern(pattern)):
            raise _Refused(403, f"the rules of the service key do not allow subscribing to {pattern!r}")
        known = pattern in queue.subscriptions
        self._nodes.subscribe(queue, pattern)
        return 200 if known else 201, _subscription(queue, pattern)

    def _statistics(self) -> dict[str, Any]:
        own = [queue.statistics() for name, queue in self._nodes.by_name.items() if self._rules.owns(name)]
        return {
            "queueCount": len(own),
            "messageCount": sum(queue.depth + queue.unsettled for queue in own),
            "queueSizeInBytes": sum(queue.bytes for queue in own),
        }


def _shown(queue: MeshQueue) -> dict[str, Any]:
    statistics = queue.statistics()
    return {
        "accessType": "NON_EXCLUSIVE",
        **queue.properties,
        "name": queue.address,
        "messageCount": statistics.depth + statistics.unsettled,
        "unacknowledgedMessageCount": statistics.unsettled,
        "queueSizeInBytes": statistics.bytes,
    }


def _subscription(queue: MeshQueue, pattern: str) -> dict[str, Any]:
    return {"queueName": queue.address, "topicPattern": pattern}


def _properties(body: bytes, *, required: bool) -> dict[str, Any]:
    if not body and not required:
        return {}
    try:
        properties = json.loads(body)
    except ValueError:
        raise _Refused(400, "a JSON object is wanted, such as {}") from None
    if not isinstance(properties, dict):
        raise _Refused(400, "a JSON object is wanted, such as {}")
    return properties
