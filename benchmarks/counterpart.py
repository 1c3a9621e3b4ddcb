"""The other side of a benchmark: takes every message and forgets it, or has one message without end. No I/O."""

from __future__ import annotations

from typing import Any, Final

from amqpws_async.auth.sasl import Anonymous
from amqpws_async.engine import (
    AttachFields,
    Engine,
    EngineReceiver,
    EngineSender,
    EngineSession,
    RemoteAttach,
    RemoteOpen,
)
from amqpws_async.errors import ErrorCondition

__all__ = ["CREDIT", "Counterpart"]

CREDIT: Final = 1000  # what Artemis grants a sender, topped up once 700 are used
LOW_CREDIT: Final = 300
EVERYTHING: Final = 2**30  # bytes in one go


class Counterpart:
    """One connection, as its peer sees it.

    Args:
        message: What any receiver gets, encoded, as often as its credit allows.
        batch: How many deliveries one disposition settles; Artemis has about 10 in each at full speed.

    Attributes:
        credit: What each sender is granted.
    """

    credit = CREDIT

    def __init__(self, message: bytes = b"", *, batch: int = 10) -> None:
        self.engine = Engine(
            self, container_id="counterpart", sasl=Anonymous(), server=True, idle_timeout=0, max_frame_size=131072
        )
        self.message = message
        self.batch = batch
        self.failed = False
        self._links: list[object] = []
        self._chunks: list[bytes] = []

    def answer(self, data: bytes) -> bytes:
        """Give the answer to what the client said."""
        self.engine.receive_data(data)
        self.flush()
        answer = b"".join(self._chunks)
        self._chunks.clear()
        return answer

    def flush(self) -> None:
        """End the disposition that is being put together."""
        while data := self.engine.data_to_send(EVERYTHING):
            self._chunks.append(data)

    # --- what the engine calls

    def _on_opened(self, remote: RemoteOpen) -> None:
        self.engine.open()

    def _on_closed(self, error: ErrorCondition | None) -> None: ...

    def _on_failed(self, error: ErrorCondition) -> None:
        self.failed = True

    def _on_session(self, session: EngineSession) -> None:
        session.handler = self
        session.begin()

    def _on_begun(self) -> None: ...
    def _on_ended(self, error: ErrorCondition | None) -> None: ...
    def _on_link_released(self) -> None: ...

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        assert link.remote is not None
        handler = _Source(link, self.message) if isinstance(link, EngineSender) else _Sink(link, self)
        self._links.append(handler)  # the engine's own reference is weak
        link.handler = handler
        link.attach(AttachFields(source=link.remote.source, target=link.remote.target))
        if isinstance(link, EngineReceiver):
            link.flow(self.credit)


class _Link:
    def _on_attached(self, remote: RemoteAttach) -> None: ...
    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None: ...


class _Sink(_Link):
    """Takes from a client's sender."""

    def __init__(self, link: EngineReceiver, counterpart: Counterpart) -> None:
        self._link = link
        self._counterpart = counterpart
        self._count = 0

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None:
        self._link.accept(pointer)
        self._count += 1
        if self._link.credit <= LOW_CREDIT:
            self._link.flow(CREDIT - self._link.credit)
        if self._count % self._counterpart.batch == 0:
            self._counterpart.flush()

    def _on_aborted(self) -> None: ...
    def _on_drained(self) -> None: ...
    def _on_refused(self, error: ErrorCondition) -> None: ...


class _Source(_Link):
    """Gives to a client's receiver."""

    def __init__(self, link: EngineSender, message: bytes) -> None:
        self.link = link
        self._message = message

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        link, message = self.link, self._message
        while link.credit > 0:
            link.transfer(message, self)

    def _on_outcome(self, outcome: object) -> None: ...
    def _fail(self, stop: object) -> None: ...
