"""Two parties that use all of the engine: what they say to each other is recorded, and each is then fed bad copies.

A `Party` is as demanding as the package's own endpoints, and more: it reads every field, tag and section it is given,
answers whatever can be answered, and uses links in every way the engine offers from inside the engine's calls.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cproton_ffi import ffi, lib

from amqpws_async.auth.sasl import Anonymous, SaslMechanism
from amqpws_async.engine import (
    AttachFields,
    Engine,
    EngineReceiver,
    EngineSender,
    EngineSession,
    RemoteAttach,
    RemoteOpen,
)
from amqpws_async.errors import DecodeError, ErrorCondition, LocalProtocolError, StopReason
from amqpws_async.message import (
    ACCEPTED,
    RELEASED,
    Message,
    Modified,
    Outcome,
    Received,
    Rejected,
    Sequence,
    Value,
)
from amqpws_async.terminus import ReceiverSettleMode, SenderSettleMode, Source, Target

MESSAGES = [
    Message(b"hello", message_id="m-1", subject="s", content_type="text/plain", ttl=3.0, priority=7).encode(),
    Message(Value({"a": [1, 2.5, None, "x"], "b": b"\x00\x01"}), application_properties={"n": 1, "s": "t"}).encode(),
    Message(Sequence([1, 2], ["a"]), message_annotations={"x-opt-a": 1}, reply_to="back", correlation_id=7).encode(),
    Message(b"x" * 1500, durable=True, delivery_annotations={"x-opt-d": "d"}, footer={"x-opt-f": 1}).encode(),
]
OUTCOMES: list[Outcome | Received] = [
    ACCEPTED,
    Rejected(ErrorCondition("amqp:decode-error", "bad", {"why": "so"})),
    RELEASED,
    Modified(True, True, {"x-opt-m": 1}),
    Received(1, 2),
]


@dataclass(frozen=True)
class Profile:
    """How a conversation goes."""

    sasl: bool = True
    max_frame_size: int = 65536
    second: bool = False
    settled: bool = False
    closed: bool = True
    idle_timeout: float = 0.0
    window: int = 0
    refuse: bool = False


PROFILES = [
    Profile(),
    Profile(sasl=False, max_frame_size=512, second=True),
    Profile(sasl=False, settled=True, closed=False, idle_timeout=60.0),
    Profile(max_frame_size=1024, window=4096, second=True, idle_timeout=8.0),
    Profile(sasl=False, refuse=True),
]


class Party:
    """One engine and everybody who hears from it.

    Attributes:
        ends: How the connection ended, if it has: "closed" and "failed" as they came.
    """

    def __init__(self, profile: Profile, *, server: bool) -> None:
        self.profile = profile
        self.server = server
        self.ends: list[str] = []
        self.kept: list[Any] = []  # the engine holds handlers weakly
        mechanism: SaslMechanism | None = Anonymous() if profile.sasl else None
        self.engine = Engine(
            self,
            container_id="server" if server else "client",
            hostname=None if server else "host",
            max_frame_size=profile.max_frame_size,
            channel_max=7,
            idle_timeout=profile.idle_timeout,
            sasl=mechanism,
            server=server,
            properties={"product": "fuzz", "n": 1},
            offered_capabilities=("ANONYMOUS-RELAY", "x"),
            desired_capabilities=("y",),
        )
        if not server:
            self.engine.open()

    def _on_opened(self, remote: RemoteOpen) -> None:
        _read(remote)
        if self.server:
            self.engine.open()
        else:
            for _ in range(2):
                session = _Session(self)
                try:
                    session.link = self.engine.begin(session, incoming_capacity=self.profile.window)
                except LocalProtocolError:  # the peer's channel-max
                    return
                self.kept.append(session)

    def _on_closed(self, error: ErrorCondition | None) -> None:
        self.ends.append("closed")
        self._end(error)

    def _on_failed(self, error: ErrorCondition) -> None:
        self.ends.append("failed")
        self._end(error)

    def _end(self, error: ErrorCondition | None) -> None:
        _read(error)
        stop = StopReason("connection", "remote")
        for delivery in self.engine.take_outgoing():
            delivery._fail(stop)
        for handler in self.engine.handlers():
            handler.ended = True

    def _on_session(self, session: EngineSession) -> None:
        if not self.server:  # as the client does
            session.begin()
            session.end(ErrorCondition("amqp:not-allowed", "no"))
            return
        handler = _Session(self)
        handler.link = session
        session.handler = handler
        self.kept.append(handler)
        session.begin(self.profile.window)


class _Session:
    link: EngineSession

    def __init__(self, party: Party) -> None:
        self.party = party
        self.profile = party.profile
        self.ended = False
        self.open_links = 0

    def _on_begun(self) -> None:
        if self.party.server or self.party.kept.index(self):
            return
        filters = {"apache.org:selector-filter:string": "color = 'red'"}
        source = Source("q", filter=filters, capabilities=("queue",), outcomes=("amqp:accepted:list",), timeout=5.0)
        fields = AttachFields(
            source=source,
            target=Target("t"),
            snd_settle_mode=SenderSettleMode.SETTLED if self.profile.settled else SenderSettleMode.UNSETTLED,
            rcv_settle_mode=ReceiverSettleMode.SECOND if self.profile.second else ReceiverSettleMode.FIRST,
            max_message_size=4000,
            properties={"p": "v"},
        )
        for name in ("one", "two"):
            receiver = _Receiver(self)
            receiver.link = self.link.receiver(f"r-{name}", receiver)
            receiver.link.max_message_size = 4000
            receiver.link.attach(fields)
            sender = _Sender(self)
            sender.link = self.link.sender(f"s-{name}", sender)
            target = Target(None, dynamic=True, dynamic_node_properties={"lifetime-policy": "x"})
            sender.link.attach(replace(fields, source=Source("here"), target=target, max_message_size=0))
            self.party.kept += [receiver, sender]
            self.open_links += 2

    def _on_ended(self, error: ErrorCondition | None) -> None:
        _read(error)
        self.ended = True
        if not self.party.server and all(s.ended for s in self.party.kept if isinstance(s, _Session)):
            self.party.engine.close()

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        remote = link.remote
        _read(remote)
        assert remote is not None
        fields = AttachFields(
            source=remote.source,
            target=remote.target,
            snd_settle_mode=remote.snd_settle_mode,
            rcv_settle_mode=remote.rcv_settle_mode,
            max_message_size=100_000,
            properties=remote.properties,
        )
        if self.profile.refuse and link.name.endswith("two"):
            link.detach(ErrorCondition("amqp:not-found", "nothing there"))
            return
        if isinstance(link, EngineSender):
            handler: _Sender | _Receiver = _Sender(self)
        else:
            handler = _Receiver(self)
            link.max_message_size = 4000
        handler.link = link
        link.handler = handler
        self.party.kept.append(handler)
        link.attach(fields)
        handler._on_attached(remote)

    def _on_link_released(self) -> None:
        """The engine has freed a link."""

    def left(self) -> None:
        """A link is gone; the client ends the sessions after the last."""
        self.open_links -= 1
        if not self.party.server and self.open_links == 0:
            for session in self.party.kept:
                if isinstance(session, _Session) and not session.ended:
                    session.link.end()


class _Link:
    link: Any

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.ended = False
        self.count = 0

    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None:
        _read(error)
        self.end()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.session.left()

    def detach(self) -> None:
        self.link.detach(closed=self.session.profile.closed)


class _Delivery:
    """An outgoing delivery."""

    def __init__(self, link: EngineSender, done: Callable[[], None]) -> None:
        self.link = link
        self.done = done
        self.over = False

    def _on_outcome(self, outcome: Outcome) -> None:
        assert not self.over, "two outcomes for one delivery"
        self.over = True
        _read(outcome)
        self.done()

    def _fail(self, stop: StopReason) -> None:
        self.over = True


class _Sender(_Link):
    """Sends every message, the last one not to its end, and detaches when all have their outcome or when drained."""

    link: EngineSender

    def __init__(self, session: _Session) -> None:
        super().__init__(session)
        self.done = 0

    def _on_attached(self, remote: RemoteAttach) -> None:
        _read(remote)

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        assert credit == self.link.credit
        while self.link.credit > 0 and self.count < 6:
            raw = MESSAGES[self.count % len(MESSAGES)]
            self.count += 1
            delivery = None if self.session.profile.settled else _Delivery(self.link, self._settled)
            self.link.transfer(raw, delivery, b"tag-%d" % self.count if self.count % 2 else None)
        if self.count == 6 and self.link.credit > 0:
            self.count += 1
            self._abort()
        if drain:
            self.link.drained()
        if self.session.profile.settled and self.count >= 7:
            self.detach()

    def _abort(self) -> None:
        """Begin a delivery and give it up: nothing in the engine does, but peers may."""
        tag = ffi.new("pn_bytes_t*", {"size": 1, "start": ffi.from_buffer(b"a")})
        pointer = lib.pn_delivery(self.link.pointer, tag[0])
        lib.pn_link_send(self.link.pointer, b"\x00Su\xb0\x00\x00\x08\x00" + bytes(1000), 1008)
        self.session.party.kept.append(pointer)
        self.pending_abort = pointer

    def _settled(self) -> None:
        self.done += 1
        if self.done == 4 and not self.session.party.server:
            self.detach()


class _Receiver(_Link):
    """Grants credit bit by bit, reads all of every message, and settles each in another way; then drains."""

    link: EngineReceiver

    def _on_attached(self, remote: RemoteAttach) -> None:
        _read(remote)
        if remote.source is not None and remote.target is not None:
            self.link.flow(3)

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None:
        self.count += 1
        decode(raw)
        self.link.tag(pointer)
        if self.count == 3:
            self.link.flow(4)
        if self.count == 5:
            self.link.drain()
        if settled:
            return
        outcome = OUTCOMES[self.count % len(OUTCOMES)]
        self.link.settled_by_peer(pointer)
        if self.session.profile.second:
            self.link.settle(pointer, outcome, self._confirmed)
        elif self.count == 1:
            self.link.accept(pointer)
        else:
            self.link.settle(pointer, outcome, None)

    def _confirmed(self) -> None:
        if self.count < 5:
            self.link.flow(1)

    def _on_aborted(self) -> None:
        self.link.flow(1)
        self.link.drain()

    def _on_drained(self) -> None:
        if not self.session.party.server and self.count >= 5:
            self.detach()

    def _on_refused(self, error: ErrorCondition) -> None:
        _read(error)
        self.end()


def decode(raw: bytes) -> None:
    """Reads all of a message; that it cannot be decoded is the one thing that may be wrong with it."""
    message = Message.decode(raw)
    for name in FIELDS:
        with suppress(DecodeError):
            getattr(message, name)
    repr(message)
    with suppress(DecodeError):
        message.encode()


FIELDS = ("body", "durable", "ttl", "message_id", "creation_time", "delivery_annotations", "message_annotations",
          "application_properties", "footer")  # fmt: skip


def _read(thing: object) -> None:
    """Uses everything in what the engine handed over."""
    repr(thing)
    str(thing)


def pump(client: Party, server: Party) -> tuple[bytes, bytes]:
    """Lets two parties talk to the end; what each has said."""
    said = {True: bytearray(), False: bytearray()}
    now = 1.0
    quiet = 0
    while quiet < 3:
        quiet += 1
        for speaker, hearer in ((client, server), (server, client)):
            speaker.engine.tick(now)
            while data := speaker.engine.data_to_send(4096):
                said[speaker.server] += data
                hearer.engine.receive_data(data)
                quiet = 0
            for sender in speaker.kept:
                pointer = getattr(sender, "pending_abort", None)
                if pointer is not None:
                    sender.pending_abort = None
                    if not sender.link.released:
                        lib.pn_delivery_abort(pointer)
                        quiet = 0
        now += 0.1
    return bytes(said[False]), bytes(said[True])
