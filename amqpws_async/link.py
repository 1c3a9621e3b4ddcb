"""What sending and receiving links share: attaching, detaching, the names that errors use."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from .endpoint import Endpoint, EndpointState
from .errors import AttachError, ErrorCondition, RedirectError, StopReason, closed_error
from .terminus import lasting

if TYPE_CHECKING:
    from .engine import AttachFields, RemoteAttach
    from .session import Session
    from .terminus import Source, Target

__all__ = ["Link", "LinkHealth"]

REFUSAL_GRACE = 1.0
"""Seconds to wait for the detach after an attach with a null terminus.

The specification (2.6.3) makes such an attach a refusal, whose reason comes in a detach "immediately" after it. Some
peers, rhea's listeners among them, leave the terminus out of attaches that they mean.
"""

_HINTS = {
    "amqp:not-found": "is the address right, prefix included, and does the node exist?",
    "amqp:unauthorized-access": "this identity may not use the address: check its permissions or scopes",
    "amqp:not-allowed": "the broker's rules forbid this link",
    "amqp:not-implemented": "the broker does not support what the attach asked for",
    "amqp:resource-limit-exceeded": "the broker allows no more links or consumers here: close one first",
    "amqp:link:stolen": "another link of the same name and container id took over",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHealth:
    """One link, as a readiness probe sees it.

    Attributes:
        name: The link's name.
        role: ``"sender"`` or ``"receiver"``.
        address: The peer's address, or None for the anonymous terminus.
        state: Where the link is in its life.
        credit: Messages the sending side may still send.
        unsettled: A sender's deliveries without outcome; a receiver's that wait to be taken.
    """

    name: str
    role: Literal["sender", "receiver"]
    address: str | None
    state: EndpointState
    credit: int
    unsettled: int


class Link(Endpoint):
    """A sender or a receiver."""

    role: ClassVar[Literal["sender", "receiver"]]
    """Which end of the link this is."""

    _link: Any  # the engine's link
    _fields: AttachFields

    def __init__(self, session: Session, name: str | None, address: str | None) -> None:
        super().__init__(session._loop, session._close_timeout)
        self._session = session
        self._runner = session._runner
        self._name = name or f"{self.role}-{uuid.uuid4().hex}"
        self._address = address
        self._remote: RemoteAttach | None = None
        self._closing = True  # whether to detach with closed=true
        self._detaching = False  # whether somebody sees the detach through

    # --- what is known ------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The link's name."""
        return self._name

    @property
    def address(self) -> str | None:
        """The address of the peer's node: the one asked for, or for a dynamic node the one that the peer made."""
        return self._address

    @property
    def session(self) -> Session:
        """The session that this link is on."""
        return self._session

    @property
    def remote(self) -> RemoteAttach | None:
        """What the peer's attach said, once it has come."""
        return self._remote

    @property
    def source(self) -> Source | None:
        """The source as the peer's attach said it, before that as ours did."""
        return self._remote.source if self._remote is not None else self._fields.source

    @property
    def target(self) -> Target | None:
        """The target as the peer's attach said it, before that as ours did."""
        return self._remote.target if self._remote is not None else self._fields.target

    @property
    def credit(self) -> int:
        """How many messages the sending side may still send."""
        return max(0, int(self._link.credit))

    def health(self) -> LinkHealth:
        """Say how the link is, for readiness probes; never waits."""
        return LinkHealth(
            name=self._name,
            role=self.role,
            address=self._address,
            state=self._state,
            credit=self.credit,
            unsettled=self._in_hand(),
        )

    def _in_hand(self) -> int:
        """Deliveries that `LinkHealth.unsettled` counts."""
        raise NotImplementedError

    @property
    def _where(self) -> str:
        where = "the anonymous terminus" if not self._address else repr(self._address)
        return f"{self.role} {'to' if self.role == 'sender' else 'from'} {where}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._address!r} {self._state.value}>"

    # --- attaching ----------------------------------------------------------------------

    async def _attach(self) -> Self:
        """Attach and wait for the peer's attach; cancelled, the link is detached when the peer answers."""
        timeout = self._runner.options.open_timeout
        self._link.attach(self._fields)
        self._runner.wake()
        try:
            async with asyncio.timeout(timeout):
                while self._remote is None and self._stop is None:
                    await self._changed.wait()
            if self._stop is None and self._state is EndpointState.OPENING:
                await self._wait_refusal()
        except TimeoutError:
            self._abandon()
            raise TimeoutError(f"{self._where}: the peer did not answer the attach within {timeout:g} s") from None
        except BaseException:
            self._abandon()
            raise
        if self._stop is not None:
            raise self._attach_error(self._stop)
        return self

    async def _wait_refusal(self) -> None:
        """The peer's attach had a null terminus: wait for the detach that says why, or take the link as it is."""
        try:
            async with asyncio.timeout(REFUSAL_GRACE):
                await self.wait_closed()
        except TimeoutError:
            self._set_open()

    def _attach_error(self, stop: StopReason) -> Exception:
        gone = closed_error(stop, self._where)
        if stop.endpoint != "link" or stop.initiator != "remote":
            return gone
        error = ErrorCondition(stop.condition, stop.description, stop.info) if stop.condition else None
        text = f"{self._where}: the peer refused the attach: {error or 'it gave no reason'}"
        if stop.condition in _HINTS:
            text += f" ({_HINTS[stop.condition]})"
        refused = AttachError(text, address=self._address, error=error)
        if isinstance(gone, RedirectError):
            refused.__cause__ = gone
        return refused

    def _set_open(self) -> None:
        if self._state is EndpointState.OPENING:
            self._set_state(EndpointState.OPEN)

    def _far_terminus(self, remote: RemoteAttach) -> Source | Target | None:
        """The terminus at the peer's end; null means a refusal."""
        raise NotImplementedError

    # --- the engine's calls -----------------------------------------------------------------

    @property
    def _durable(self) -> bool:
        """Whether the peer's terminus is to outlive the link: only an explicit close destroys it."""
        far = self._fields.source if self.role == "receiver" else self._fields.target
        return far is not None and lasting(far)

    def _on_attached(self, remote: RemoteAttach) -> None:
        self._remote = remote
        far = self._far_terminus(remote)
        if far is None:
            self._changed.wake_all()
            return
        if far.dynamic or self._address is None:
            self._address = far.address or self._address
        self._set_open()

    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None:
        if error is not None:
            self._fail(StopReason("link", "remote", error.condition, error.description, error.info))
        else:
            self._fail(StopReason("link", "local" if self._state is EndpointState.CLOSING else "remote"))

    # --- closing --------------------------------------------------------------------------

    async def close(self) -> None:
        """Close the link: finish what is in hand, then detach with ``closed=true`` and wait for the peer's answer.

        A second call waits for the first. Cancelling detaches without waiting, and so does leaving ``async with`` by an
        exception; a durable terminus is then only detached (``closed=false``), never destroyed.

        Raises:
            LinkClosed: The peer answered with an error.
            TimeoutError: The peer did not answer within `close_timeout`; the link is given up all the same.
        """
        await self._detach(closed=True)

    async def detach(self) -> None:
        """Detach with ``closed=false``: the terminus lives on at the peer, as a durable subscription does.

        Otherwise as `close`.
        """
        await self._detach(closed=False)

    def _quiesce(self) -> None:
        """Begin to finish: take and give no more."""
        raise NotImplementedError

    async def _finish(self, deadline: float) -> None:
        """Finish what is in hand, up to the deadline."""
        raise NotImplementedError

    def _hold(self) -> None:
        """Take and give no more; the link stays attached for what is in hand."""
        if self._stop is None:
            self._set_state(EndpointState.CLOSING)
            self._quiesce()
            self._runner.wake()

    async def _detach(self, *, closed: bool, deadline: float | None = None, patient: bool = True) -> None:
        """Finish what is in hand, unless we are not `patient` any more, then detach and wait for the peer's answer."""
        if self._stop is not None:
            return
        if self._detaching:
            await self.wait_closed()
            return
        if deadline is None:
            deadline = self._loop.time() + self._close_timeout
        self._detaching = True
        self._closing = closed
        try:
            self._hold()
            await self._finish(deadline if patient else self._loop.time())
            self._link.detach(closed=closed)
            self._runner.wake()
            async with asyncio.timeout_at(deadline):
                await self.wait_closed()
        except TimeoutError:
            self._fail(StopReason("link", "local"))
            raise TimeoutError(
                f"{self._where}: the peer did not answer the detach within {self._close_timeout:g} s (close_timeout)"
            ) from None
        except BaseException:
            self._abandon()
            raise
        stop: StopReason | None = self._stop
        if stop is not None and stop.endpoint == "link" and stop.initiator == "remote" and stop.condition:
            raise closed_error(stop, self._where)

    def _abandon(self) -> None:
        if self._stop is None:
            self._link.detach(closed=self._closing and not self._durable)
            self._runner.wake()
            self._fail(StopReason("link", "local"))

    def __del__(self) -> None:
        # The stop reason may be missing where the constructor failed.
        if getattr(self, "_stop", self) is None and self._state is not EndpointState.OPENING:
            self._warn_unclosed(self)
            if not self._loop.is_closed():
                closed = not self._durable
                self._loop.call_soon_threadsafe(_detach_dropped, self._link, self._runner, closed)


def _detach_dropped(link: Any, runner: Any, closed: bool) -> None:
    link.detach(closed=closed)
    runner.wake()
