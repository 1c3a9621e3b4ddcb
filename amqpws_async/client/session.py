"""A client's session: begun anew on each connection, when the first of its links wants it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from ..endpoint import Opening
from ..errors import AMQPError, LocalProtocolError
from ..options import SessionOptions
from ..terminus import as_source, as_target
from .options import ClientReceiverOptions, ClientSenderOptions
from .receiver import ClientReceiver
from .sender import ClientSender

if TYPE_CHECKING:
    from ..connection import Connection
    from ..session import Session
    from ..terminus import Source, Target
    from .client import Client
    from .link import ClientLink
    from .options import ClientReceiverArguments, ClientSenderArguments

__all__ = ["ClientSession"]


class ClientSession:
    """A session that outlives connections, made by `Client.session`."""

    def __init__(self, client: Client, options: SessionOptions) -> None:
        self.client = client
        self._options = options
        self._beginning = asyncio.Lock()
        self._sessions: list[Session] = []  # those that are not over
        self._closed = False

    def sender(self, target: str | Target | None, **options: Unpack[ClientSenderArguments]) -> Opening[ClientSender]:
        """Attach a sender on this session; arguments, errors and cancelling as for `Client.sender`."""
        made, terminus = ClientSenderOptions(**options), as_target(target)

        async def open() -> ClientSender:
            self._check_open()
            return await ClientSender(self, terminus, made)._open()

        return Opening(open)

    def receiver(self, source: str | Source, **options: Unpack[ClientReceiverArguments]) -> Opening[ClientReceiver]:
        """Attach a receiver on this session; arguments, errors and cancelling as for `Client.receiver`."""
        made, terminus = ClientReceiverOptions(**options), as_source(source)

        async def open() -> ClientReceiver:
            self._check_open()
            return await ClientReceiver(self, terminus, made)._open()

        return Opening(open)

    async def close(self) -> None:
        """Close every link of the session, one after the other, and end it.

        Cancelling ends it at once.

        Raises:
            SessionClosed: The peer answered with an error. Likewise `LinkClosed`.
            TimeoutError: The peer did not answer within `close_timeout`. Whatever is raised first, all are closed.
        """
        self._closed = True
        first: Exception | None = None
        try:
            for endpoint in (*self._links(), *self._running()):
                try:
                    await endpoint.close()
                except (AMQPError, TimeoutError) as error:
                    first = first or error
        except BaseException:
            self._abandon()
            raise
        if first is not None:
            raise first

    def _links(self) -> list[ClientLink]:
        return [link for link in self.client._links if link._session is self]

    def _abandon(self) -> None:
        self._closed = True
        for endpoint in (*self._links(), *self._running()):
            endpoint._abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; if the body failed, without waiting."""
        if error is None:
            await self.close()
        else:
            self._abandon()

    def __repr__(self) -> str:
        return f"<ClientSession {'closed' if self._closed else 'open'} of {self.client!r}>"

    # --- for the links -----------------------------------------------------------------------

    async def _on(self, connection: Connection) -> Session:
        """The session on that connection, begun on first use."""
        async with self._beginning:
            for session in self._running():
                if session.connection is connection:
                    return session
            session = await connection._begin(self._options)
            self._sessions.append(session)
            return session

    def _running(self) -> list[Session]:
        self._sessions = [session for session in self._sessions if session.stop is None]
        return self._sessions

    def _check_open(self) -> None:
        self.client._check_open()
        if self._closed:
            raise LocalProtocolError("this session is closed: begin another one")
