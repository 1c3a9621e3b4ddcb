"""A session in the engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import proton
from cproton_ffi import lib

from ..errors import ErrorCondition
from . import attach
from .link import EngineReceiver, EngineSender, nobody

if TYPE_CHECKING:
    from .core import Engine
    from .handlers import ReceiverHandler, SenderHandler, SessionHandler

__all__ = ["EngineSession"]


class EngineSession:
    """A session of the engine: made by `Engine.begin`, or by the peer's begin for `ConnectionHandler._on_session`."""

    __slots__ = ("_ending", "_handler", "engine", "pointer", "released")

    def __init__(self, engine: Engine, public: proton.Session, handler: SessionHandler | None) -> None:
        self.engine = engine
        self.handler = handler
        self.released = False
        self._ending = False  # our end waits for the peer's begin
        self.pointer = public._impl
        engine._sessions[self.pointer] = self
        engine._keep(self.pointer)

    @property
    def _public(self) -> proton.Session:
        """A wrapper of proton's for set-up: made for each use, see `Engine.free`."""
        return proton.Session(self.pointer)

    @property
    def handler(self) -> SessionHandler | None:
        """Who hears about this session, if it is still there."""
        return self._handler()

    @handler.setter
    def handler(self, handler: SessionHandler | None) -> None:
        self._handler: Callable[[], SessionHandler | None] = weakref.ref(handler) if handler is not None else nobody

    @property
    def links(self) -> list[EngineSender | EngineReceiver]:
        """The links on this session."""
        return [link for link in self.engine._links.values() if link.session is self]

    def begin(self, incoming_capacity: int = 0) -> None:
        """Queue our begin, the first or the answer to the peer's."""
        public = self._public
        if incoming_capacity:
            public.incoming_capacity = incoming_capacity
        public.open()

    def sender(self, name: str, handler: SenderHandler) -> EngineSender:
        """Make a sending link, not attached yet."""
        self.engine._write_ends()
        return EngineSender(self, self._public.sender(name), handler)

    def receiver(self, name: str, handler: ReceiverHandler) -> EngineReceiver:
        """Make a receiving link, not attached yet."""
        self.engine._write_ends()
        return EngineReceiver(self, self._public.receiver(name), handler)

    def end(self, error: ErrorCondition | None = None) -> None:
        """Queue our end; the session is freed once the peer's is here as well.

        Before the peer's begin nothing is sent yet: the channel would be free at once for another session, which the
        peer's late answer to this one would then reach.
        """
        if self.released:
            return
        public = self._public
        if public.state & proton.Endpoint.REMOTE_UNINIT:
            self._ending = True
            return
        if public.state & proton.Endpoint.LOCAL_ACTIVE:
            public.condition = attach.condition_out(error)
            public.close()
        if public.state & proton.Endpoint.REMOTE_CLOSED:
            self._release()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of messages on this session that proton has not turned into frames yet."""
        return 0 if self.released else int(lib.pn_session_outgoing_bytes(self.pointer))

    def _on_remote_begin(self) -> None:
        if self._ending:
            self.end()
        elif self.handler is not None:
            self.handler._on_begun()

    def _on_remote_end(self) -> None:
        error = attach.condition_in(self._public)
        handler = self.handler
        if handler is not None:
            handler._on_ended(error)
        self.end()

    def _release(self) -> None:
        if not self.released:
            self.released = True
            for link in self.links:
                link._release()
            self.engine._sessions.pop(self.pointer, None)
            self._public.free()
