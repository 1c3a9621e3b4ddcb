"""The engine without I/O: two of them pumped in memory, or one against hand-made frames."""

from __future__ import annotations

import gc
import re
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proton
import pytest
from cproton_ffi import lib
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpws_async import engine as engine_package
from amqpws_async.auth import Anonymous, Plain
from amqpws_async.codec import Described, symbol
from amqpws_async.engine import (
    AttachFields,
    Engine,
    EngineReceiver,
    EngineSender,
    EngineSession,
    RemoteAttach,
    RemoteOpen,
)
from amqpws_async.engine.core import EMPTY_FRAME, REQUIRED
from amqpws_async.errors import ErrorCondition, LocalProtocolError, StopReason
from amqpws_async.message import Message
from amqpws_async.outcomes import (
    ACCEPTED,
    RELEASED,
    Accepted,
    Modified,
    NoOutcome,
    Outcome,
    Received,
    Rejected,
    Released,
)
from amqpws_async.terminus import (
    DistributionMode,
    ExpiryPolicy,
    ReceiverSettleMode,
    SenderSettleMode,
    Source,
    Target,
    TerminusDurability,
    selector,
)

LIMIT = 32768
FIELDS = AttachFields(source=Source("here"), target=Target("there"))


class Recorder:
    """Hears everything, keeps what it heard, and answers as `answers` says."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.heard: list[tuple[Any, ...]] = []

    def names(self) -> list[str]:
        return [entry[0] for entry in self.heard]

    def last(self, name: str) -> Any:
        return next(entry[1] for entry in reversed(self.heard) if entry[0] == name)


class LinkRecorder(Recorder):
    link: Any

    def _on_attached(self, remote: RemoteAttach) -> None:
        self.heard.append(("attached", remote))

    def _on_detached(self, error: ErrorCondition | None, *, closed: bool) -> None:
        self.heard.append(("detached", error, closed))

    def _on_credit(self, credit: int, *, drain: bool) -> None:
        self.heard.append(("credit", credit, drain))

    def _on_delivery(self, pointer: Any, raw: bytes, settled: bool) -> None:
        self.heard.append(("delivery", raw, settled, pointer))

    def _on_aborted(self) -> None:
        self.heard.append(("aborted",))

    def _on_drained(self) -> None:
        self.heard.append(("drained",))

    def _on_refused(self, error: ErrorCondition) -> None:
        self.heard.append(("refused", error))

    def _fail(self, stop: StopReason) -> None:
        self.heard.append(("failed", stop))


class SessionRecorder(Recorder):
    def _on_begun(self) -> None:
        self.heard.append(("begun",))

    def _on_ended(self, error: ErrorCondition | None) -> None:
        self.heard.append(("ended", error))

    def _on_link_released(self) -> None:
        self.heard.append(("released",))

    def _on_link(self, link: EngineSender | EngineReceiver) -> None:
        recorder = LinkRecorder(self.side)
        recorder.link = link
        link.handler = recorder
        self.side.links.append(recorder)
        self.heard.append(("link", link))
        self.side.answer_link(link)


class Side(Recorder):
    """One engine and all who hear it; a server answers opens, begins and attaches."""

    def __init__(self, *, server: bool = False, **options: Any) -> None:
        super().__init__(self)
        options.setdefault("sasl", Anonymous())
        self.engine = Engine(self, container_id="server" if server else "client", server=server, **options)
        self.sessions: list[tuple[EngineSession, SessionRecorder]] = []
        self.links: list[LinkRecorder] = []
        self.answer_link: Callable[[Any], None] = self.echo

    def echo(self, link: EngineSender | EngineReceiver) -> None:
        assert link.remote is not None
        link.attach(AttachFields(source=link.remote.source, target=link.remote.target))
        if isinstance(link, EngineReceiver):
            link.flow(10)

    def _on_opened(self, remote: RemoteOpen) -> None:
        self.heard.append(("opened", remote))

    def _on_closed(self, error: ErrorCondition | None) -> None:
        self.heard.append(("closed", error))

    def _on_failed(self, error: ErrorCondition) -> None:
        self.heard.append(("failed", error))

    def _on_session(self, session: EngineSession) -> None:
        recorder = SessionRecorder(self)
        session.handler = recorder
        self.sessions.append((session, recorder))
        session.begin()


class Pending:
    """A delivery under way."""

    def __init__(self, link: EngineSender) -> None:
        self.link = link
        self.outcomes: list[Outcome] = []

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def _fail(self, stop: StopReason) -> None:
        raise AssertionError("the engine itself fails nobody")


class Pair:
    """A client and a server engine with the wire between them."""

    def __init__(self, client: dict[str, Any] | None = None, server: dict[str, Any] | None = None) -> None:
        self.client = Side(**(client or {}))
        self.server = Side(server=True, **(server or {}))
        self.client.engine.open()
        self.server.engine.open()
        self.pump()

    def pump(self) -> None:
        moved = True
        while moved:
            moved = False
            for source, sink in ((self.client, self.server), (self.server, self.client)):
                while data := source.engine.data_to_send(LIMIT):
                    sink.engine.receive_data(data)
                    moved = True

    def session(self) -> tuple[EngineSession, SessionRecorder]:
        recorder = SessionRecorder(self.client)
        session = self.client.engine.begin(recorder)
        self.client.sessions.append((session, recorder))
        self.pump()
        return session, recorder

    def sender(self, fields: AttachFields = FIELDS, name: str = "s") -> tuple[EngineSender, LinkRecorder]:
        session = self.client.sessions[0][0] if self.client.sessions else self.session()[0]
        recorder = LinkRecorder(self.client)
        recorder.link = link = session.sender(name, recorder)
        self.client.links.append(recorder)
        link.attach(fields)
        self.pump()
        return link, recorder

    def receiver(
        self, fields: AttachFields = FIELDS, name: str = "r", credit: int = 10
    ) -> tuple[EngineReceiver, LinkRecorder]:
        session = self.client.sessions[0][0] if self.client.sessions else self.session()[0]
        recorder = LinkRecorder(self.client)
        recorder.link = link = session.receiver(name, recorder)
        self.client.links.append(recorder)
        link.attach(fields)
        self.pump()
        if credit:
            link.flow(credit)
            self.pump()
        return link, recorder


# --- the binding that is relied on ---------------------------------------------------------


@pytest.mark.parametrize("name", REQUIRED)
def test_binding_has_every_function_relied_on(name: str) -> None:
    """A function of proton's binding that went missing is named here, not by a crash in the middle of a message."""
    assert callable(getattr(lib, name))


def test_required_lists_every_function_used() -> None:
    """REQUIRED is what the engine's sources use, no more and no less."""
    folder = Path(engine_package.__file__).parent
    used = {name for path in folder.glob("*.py") for name in re.findall(r"lib\.(pn_\w+)", path.read_text())}
    assert used == set(REQUIRED)


# --- opening and closing ----------------------------------------------------------------------


def test_open_carries_every_field_both_ways() -> None:
    """What either side puts in its open reaches the other."""
    fields: dict[str, Any] = {
        "max_frame_size": 4096,
        "channel_max": 7,
        "idle_timeout": 30.0,
        "properties": {"product": "x", "n": 1},
        "offered_capabilities": ("a", "b"),
        "desired_capabilities": ("c",),
    }
    pair = Pair({**fields, "hostname": "host"}, fields)
    for side, container in ((pair.client, "server"), (pair.server, "client")):
        remote = side.engine.remote
        assert remote is not None
        assert remote.container_id == container
        assert (remote.max_frame_size, remote.channel_max, remote.idle_timeout) == (4096, 7, 15.0)
        assert (remote.offered_capabilities, remote.desired_capabilities) == (("a", "b"), ("c",))
        assert remote.properties == {"product": "x", "n": 1}
    assert pair.server.engine.remote is not None
    assert pair.server.engine.remote.hostname == "host"


def test_close_with_error_reaches_the_other_side_and_both_finish() -> None:
    """A close carries condition, description and info, and is answered."""
    pair = Pair()
    error = ErrorCondition("amqp:connection:forced", "going down", {"network-host": "other"})
    pair.server.engine.close(error)
    pair.pump()
    assert pair.client.last("closed") == error
    assert pair.client.engine.finished
    assert pair.server.engine.finished


def test_data_after_the_end_is_dropped() -> None:
    """Bytes behind the close change nothing and raise nothing."""
    pair = Pair()
    pair.client.engine.close()
    pair.pump()
    heard = list(pair.client.heard)
    pair.client.engine.receive_data(b"\x00" * 100_000)
    pair.client.engine.receive_data(b"x")
    assert pair.client.heard == heard


def test_eof_before_the_close_is_a_failure() -> None:
    """A stream that ends without an AMQP close is reported once."""
    pair = Pair()
    pair.client.engine.receive_eof()
    assert pair.client.names().count("failed") == 1


def test_garbage_is_reported_once_and_answered_with_a_close() -> None:
    """Bytes that are no frame fail the connection once, and the peer is told by a close."""
    pair = Pair()
    pair.client.engine.receive_data(b"\x00\x00\x00\x01" * 50)
    pair.client.engine.receive_data(b"\x00\x00\x00\x01" * 50)
    assert pair.client.names().count("failed") == 1
    pair.pump()
    assert pair.server.last("closed").condition == "amqp:connection:framing-error"


def test_sasl_refusal_is_reported_as_unauthorized() -> None:
    """A failed SASL outcome fails the connection at once, though the peer keeps the stream open."""
    client = Side(sasl=Plain("user", "password"))
    client.engine.open()
    client.engine.receive_data(b"AMQP\x03\x01\x00\x00" + sasl_mechanisms(b"PLAIN"))
    assert b"password" in client.engine.data_to_send(LIMIT)
    client.engine.receive_data(frame(0x44, b"\x50\x01", 1, kind=1))
    while client.engine.data_to_send(LIMIT):
        pass
    client.engine.tick(1.0)
    assert client.last("failed").condition == "amqp:unauthorized-access"
    assert client.engine.remote is None


def test_no_mechanism_in_common_is_reported_as_unauthorized() -> None:
    """A server without our mechanism fails us as unauthorized, before any credential is sent."""
    client = Side(sasl=Plain("user", "password"))
    server = Side(server=True)
    client.engine.open()
    for _ in range(3):
        while data := client.engine.data_to_send(LIMIT):
            assert b"password" not in data
            server.engine.receive_data(data)
        while data := server.engine.data_to_send(LIMIT):
            client.engine.receive_data(data)
    assert client.last("failed").condition == "amqp:unauthorized-access"


@pytest.mark.parametrize(
    "frame",
    ["00000010020000000053 10ffffffffff", "0000000c0200000000538045", "0000000b02000000005314"],
    ids=["malformed open", "unknown descriptor", "truncated transfer"],
)
def test_frame_that_cannot_be_decoded_is_reported(frame: str) -> None:
    """A frame at which proton only stops reading fails the connection as any other broken one."""
    pair = Pair()
    pair.client.engine.receive_data(bytes.fromhex(frame))
    assert pair.client.names()[-1] == "failed"
    assert pair.client.names().count("failed") == 1


@given(st.lists(st.integers(min_value=1, max_value=200), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_cut_of_the_stream_gives_the_same(cuts: list[int]) -> None:
    """The bytes of a whole conversation may be cut anywhere."""
    whole = Pair()
    wire = bytearray()
    side = whole.server
    whole.receiver()
    sender: EngineSender = side.links[0].link
    for number in range(3):
        sender.transfer(Message(bytes([number]) * 5000).encode(), Pending(sender))
    while data := side.engine.data_to_send(LIMIT):
        wire += data
    heard = whole.client.links[0]
    position = 0
    step = 0
    while position < len(wire):
        size = cuts[step % len(cuts)]
        whole.client.engine.receive_data(bytes(wire[position : position + size]))
        position += size
        step += 1
    bodies = [Message.decode(entry[1]).body for entry in heard.heard if entry[0] == "delivery"]
    assert bodies == [bytes([number]) * 5000 for number in range(3)]


# --- timers ----------------------------------------------------------------------------------------


def test_silent_peer_expires_after_the_idle_timeout() -> None:
    """Silence for idle_timeout seconds fails the connection; input in between starts the count anew."""
    pair = Pair({"idle_timeout": 10.0}, {"idle_timeout": 4.0})
    engine = pair.client.engine
    assert engine.tick(100.0) is not None
    pair.server.engine.tick(100.0)
    engine.tick(109.0)
    assert "failed" not in pair.client.names()
    pair.server.engine.tick(103.0)
    pair.pump()  # the server's keep-alive
    engine.tick(111.0)
    assert "failed" not in pair.client.names()
    engine.tick(122.0)
    assert pair.client.last("failed").condition == "amqp:resource-limit-exceeded"


@pytest.mark.parametrize(
    ("client", "server", "interval"),
    [
        ({}, {"idle_timeout": 4.0}, 1.0),  # announced as 2 s, so half of that
        ({"idle_timeout": 10.0}, {}, 5.0),
        ({"idle_timeout": 10.0}, {"idle_timeout": 4.0}, 1.0),
    ],
    ids=["a peer that asks", "a peer that does not", "both"],
)
def test_keep_alives_are_never_further_apart_than_half_the_timeout(
    client: dict[str, Any], server: dict[str, Any], interval: float
) -> None:
    """A peer hears an empty frame at least every half idle timeout: its own, or ours where it announced none."""
    pair = Pair(client, server)
    engine = pair.client.engine
    now = 50.0
    deadline = engine.tick(now)
    engine.sent(now)
    for _ in range(5):
        assert deadline is not None
        assert now < deadline <= now + interval
        now = deadline
        deadline = engine.tick(now)
        assert engine.data_to_send(LIMIT) == EMPTY_FRAME
        engine.sent(now)
        pair.server.engine.receive_data(EMPTY_FRAME)
        engine.receive_data(EMPTY_FRAME)  # the peer is not silent either
    assert "failed" not in pair.server.names()


def test_no_keep_alive_beside_other_output_nor_after_the_close() -> None:
    """What is written anyway keeps the peer content, and nothing follows our close."""
    pair = Pair({"idle_timeout": 10.0})
    engine = pair.client.engine
    assert engine.tick(50.0) == 55.0
    engine.sent(53.0)
    engine.tick(55.0)
    assert engine.data_to_send(LIMIT) == b""
    engine.tick(58.0)
    assert engine.data_to_send(LIMIT) == EMPTY_FRAME
    engine.close()
    pair.pump()
    engine.tick(90.0)
    assert engine.data_to_send(LIMIT) == b""


# --- sessions ----------------------------------------------------------------------------------------


def test_channels_run_out_with_an_error() -> None:
    """One begin more than channel-max allows is our error, before anything is sent; an end gives the channel back."""
    pair = Pair({}, {"channel_max": 1})
    first, _ = pair.session()
    pair.session()
    with pytest.raises(LocalProtocolError, match="channel-max 1"):
        pair.session()
    first.end()
    pair.pump()
    pair.session()


def test_end_with_error_releases_links_and_session() -> None:
    """A session ended by the peer says why, and its links are freed with it."""
    pair = Pair()
    _, recorder = pair.session()
    link, _ = pair.sender()
    pair.server.sessions[0][0].end(ErrorCondition("amqp:session:window-violation", "too much"))
    pair.pump()
    assert recorder.last("ended").condition == "amqp:session:window-violation"
    assert link.released
    link.detach()  # touches nothing that is freed
    assert pair.client.engine.unsent_bytes() == 0


# --- attaching ------------------------------------------------------------------------------------------


def test_attach_carries_every_field_both_ways() -> None:
    """Each attach field that proton can carry arrives, and comes back in the echo."""
    source = Source(
        "source",
        durable=TerminusDurability.UNSETTLED_STATE,
        expiry_policy=ExpiryPolicy.NEVER,
        timeout=12.0,
        capabilities=("queue",),
        distribution_mode=DistributionMode.COPY,
        filter={**selector("a = 1"), "plain": Described(symbol("x:y"), 7)},
        outcomes=("amqp:accepted:list", "amqp:rejected:list"),
    )
    target = Target(
        "target",
        durable=TerminusDurability.CONFIGURATION,
        expiry_policy=ExpiryPolicy.CONNECTION_CLOSE,
        timeout=3.0,
        capabilities=("topic", "other"),
    )
    fields = AttachFields(
        source=source,
        target=target,
        snd_settle_mode=SenderSettleMode.UNSETTLED,
        rcv_settle_mode=ReceiverSettleMode.SECOND,
        max_message_size=1234,
        properties={"key": "value"},
    )
    pair = Pair()
    pair.receiver(fields)
    remote = pair.server.links[0].link.remote
    assert remote == RemoteAttach(
        source=source,
        target=target,
        snd_settle_mode=SenderSettleMode.UNSETTLED,
        rcv_settle_mode=ReceiverSettleMode.SECOND,
        max_message_size=1234,
        properties={"key": "value"},
    )
    echoed = pair.client.links[0].last("attached")
    assert (echoed.source, echoed.target) == (source, target)


@pytest.mark.parametrize("address", [None, ""])
def test_anonymous_terminus_is_null_or_empty(address: str | None) -> None:
    """The null address and the empty string stay apart on the wire."""
    pair = Pair()
    pair.sender(AttachFields(source=Source("x"), target=Target(address)))
    remote = pair.server.links[0].link.remote
    assert remote.target is not None
    assert remote.target.address == address


def test_dynamic_node_with_properties() -> None:
    """A dynamic source carries its node properties, and the answer names the address."""

    def answer(link: Any) -> None:
        link.attach(AttachFields(source=Source("made-up", dynamic=True), target=link.remote.target))

    pair = Pair()
    pair.server.answer_link = answer
    properties = {"lifetime-policy": Described(symbol("amqp:delete-on-close:list"), [])}
    _, recorder = pair.receiver(
        AttachFields(source=Source(dynamic=True, dynamic_node_properties=properties), target=Target()), credit=0
    )
    asked = pair.server.links[0].link.remote.source
    assert asked.dynamic
    assert asked.dynamic_node_properties == properties
    assert recorder.last("attached").source.address == "made-up"


def test_refusal_is_a_null_terminus_and_a_detach_with_the_reason() -> None:
    """A refused attach shows as such: null terminus first, then the error."""

    def refuse(link: Any) -> None:
        link.attach(AttachFields(source=link.remote.source, target=None))
        link.detach(ErrorCondition("amqp:not-found", "no such queue"))

    pair = Pair()
    pair.server.answer_link = refuse
    link, recorder = pair.sender()
    assert recorder.last("attached").target is None
    assert recorder.last("detached").condition == "amqp:not-found"
    assert link.released


@pytest.mark.parametrize("closed", [True, False])
def test_detach_and_close_are_told_apart(closed: bool) -> None:
    """closed=true and closed=false arrive as they were sent, and both free the link on both sides."""
    pair = Pair()
    link, recorder = pair.sender()
    link.detach(closed=closed)
    link.detach(closed=not closed)  # only the first counts
    pair.pump()
    assert pair.server.links[0].heard[-1] == ("detached", None, closed)
    assert recorder.heard[-1] == ("detached", None, closed)
    assert link.released
    assert pair.server.links[0].link.released


# --- transfers -------------------------------------------------------------------------------------------


def test_transfer_of_many_frames_arrives_whole() -> None:
    """A message far over the frame size arrives as one."""
    pair = Pair({"max_frame_size": 512}, {"max_frame_size": 512})
    link, _ = pair.sender()
    raw = Message(bytes(range(256)) * 2000).encode()
    link.transfer(raw, pending := Pending(link))
    pair.pump()
    name, got, settled, _ = pair.server.links[0].heard[-1]
    assert (name, got, settled) == ("delivery", raw, False)
    assert pending.outcomes == []


def test_a_message_may_be_given_in_pieces() -> None:
    """They are one delivery."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer((b"\x00Su\xb0\x00\x01\x11\x70", bytes(70_000)), pending := Pending(link))
    link.transfer(b"\x00Su\xa0\x01x", Pending(link))
    pair.pump()
    first, second = pair.server.links[0].heard[-2:]
    assert first[1] == b"\x00Su\xb0\x00\x01\x11\x70" + bytes(70_000)
    assert second[1] == b"\x00Su\xa0\x01x"
    assert pending.outcomes == []


def test_output_is_the_same_by_view_and_by_copy() -> None:
    """Small output is bytes, large output a view that is good until something else is done."""
    taken = []
    for take in ("data_to_send", "output"):
        pair = Pair()
        link, _ = pair.sender()
        for size in (10, 5000, 100_000):
            link.transfer(bytes([size % 251]) * size, Pending(link))
        whole = b""
        while data := pair.client.engine.data_to_send(LIMIT) if take == "data_to_send" else pair.client.engine.output():
            assert isinstance(data, bytes) or (take == "output" and len(data) > 4096)
            whole += bytes(data)
        taken.append(whole)
    assert taken[0] == taken[1]
    assert len(taken[0]) > 105_010


@pytest.mark.parametrize("size", [65536 - 8, 65536, 65537, 3 * 65536, 3 * 65536 - 8])
def test_sizes_around_the_scratch_buffer(size: int) -> None:
    """Messages of exactly one or several scratch buffers are neither cut nor doubled."""
    pair = Pair({"max_frame_size": 1 << 20}, {"max_frame_size": 1 << 20})
    link, _ = pair.sender()
    raw = bytes(index % 251 for index in range(size))
    link.transfer(raw, Pending(link))
    pair.pump()
    assert pair.server.links[0].heard[-1][1] == raw


def test_credit_is_counted_down_at_once() -> None:
    """A transfer takes its credit before the peer has seen it."""
    pair = Pair()
    link, _ = pair.sender()
    assert link.credit == 10
    link.transfer(b"\x00Su\xa0\x00", Pending(link))
    assert link.credit == 9
    pair.pump()
    assert link.credit == 9


@pytest.mark.parametrize("tag", [None, b"\x00", b"\xff\xfe" * 16])
def test_tags_are_bytes(tag: bytes | None) -> None:
    """A delivery tag is any bytes, UTF-8 or not."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", Pending(link), tag)
    pair.pump()
    heard = pair.server.links[0]
    got = heard.link.tag(heard.heard[-1][3])
    assert got == tag if tag is not None else len(got) == 4


@pytest.mark.parametrize(
    "outcome",
    [
        ACCEPTED,
        RELEASED,
        Rejected(None),
        Rejected(ErrorCondition("my:condition", "text", {"key": 1})),
        Modified(True, False, None),
        Modified(False, True, {"x-key": "value"}),
    ],
)
def test_each_outcome_arrives_with_all_its_fields(outcome: Outcome) -> None:
    """Accepted, rejected, released and modified travel with their fields."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", pending := Pending(link))
    pair.pump()
    heard = pair.server.links[0]
    pointer = heard.heard[-1][3]
    if isinstance(outcome, Accepted):
        heard.link.accept(pointer)
    else:
        heard.link.settle(pointer, outcome, None)
    pair.pump()
    assert pending.outcomes == [outcome]
    assert pair.client.engine.take_outgoing() == []


def test_settled_without_a_state() -> None:
    """A peer that settles and says nothing gives NoOutcome, not a guess."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", pending := Pending(link))
    pair.pump()
    heard = pair.server.links[0]
    heard.link.settle(heard.heard[-1][3], None, None)
    pair.pump()
    assert pending.outcomes == [NoOutcome()]


def test_received_state_settles_nothing() -> None:
    """The received state is no outcome: the delivery goes on."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", pending := Pending(link))
    pair.pump()
    heard = pair.server.links[0]
    pointer = heard.heard[-1][3]
    heard.link.settle(pointer, Received(1, 20), None)
    pair.pump()
    assert pending.outcomes == []
    heard.link.settle(pointer, Released(), None)
    pair.pump()
    assert pending.outcomes == [RELEASED]


def test_settle_mode_second_is_a_handshake() -> None:
    """In mode second the receiver stays unsettled until the sender has settled."""
    fields = AttachFields(source=Source("q"), target=Target(), rcv_settle_mode=ReceiverSettleMode.SECOND)
    pair = Pair()
    receiver, recorder = pair.receiver(fields)
    sender = pair.server.links[0].link
    sender.transfer(b"\x00Su\xa0\x00", pending := Pending(sender))
    pair.pump()
    settled: list[str] = []
    receiver.settle(recorder.heard[-1][3], ACCEPTED, lambda: settled.append("yes"))
    assert settled == []
    pair.pump()
    assert settled == ["yes"]
    assert pending.outcomes == [ACCEPTED]


def test_settled_transfer_needs_no_answer() -> None:
    """A pre-settled transfer arrives marked so, and its tag can be read."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", None, b"tag")
    pair.pump()
    assert pair.server.links[0].heard[-1][:3] == ("delivery", b"\x00Su\xa0\x00", True)
    assert pair.client.engine.take_outgoing() == []


def test_take_outgoing_takes_the_deliveries_of_one_link_alone() -> None:
    """One link's end does not touch the deliveries of another."""
    pair = Pair()
    first, _ = pair.sender(name="one")
    second, _ = pair.sender(name="two")
    first.transfer(b"\x00Su\xa0\x00", a := Pending(first))
    second.transfer(b"\x00Su\xa0\x00", b := Pending(second))
    assert pair.client.engine.take_outgoing(first) == [a]
    assert pair.client.engine.take_outgoing() == [b]


def test_late_disposition_for_a_forgotten_delivery_is_settled_quietly() -> None:
    """A disposition that nobody waits for any more frees the delivery and disturbs nobody."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", pending := Pending(link))
    pair.pump()
    pair.client.engine.take_outgoing()
    heard = pair.server.links[0]
    heard.link.accept(heard.heard[-1][3])
    pair.pump()
    assert pending.outcomes == []
    assert "failed" not in pair.client.names()


# --- credit, drain, limits --------------------------------------------------------------------------------


def test_drain_is_answered_and_gives_the_credit_back() -> None:
    """A drain ends when the sender has given its credit back; the next credit ends drain mode."""
    pair = Pair()
    receiver, recorder = pair.receiver(credit=5)
    receiver.drain()
    pair.pump()
    sender = pair.server.links[0]
    assert sender.heard[-1] == ("credit", 5, True)
    assert receiver.draining
    sender.link.drained()
    pair.pump()
    assert not receiver.draining
    assert receiver.credit == 0
    assert recorder.heard[-1] == ("drained",)
    receiver.flow(3)
    pair.pump()
    assert sender.heard[-1] == ("credit", 3, False)


def test_drain_ends_with_the_transfer_that_uses_the_last_credit() -> None:
    """A sender that uses up the credit owes no flow: its last transfer ends the drain."""
    pair = Pair()
    receiver, recorder = pair.receiver(credit=1)
    sender = pair.server.links[0].link
    receiver.drain()
    assert receiver.draining
    sender.transfer(b"\x00Su\xa0\x00", Pending(sender))
    while data := pair.server.engine.data_to_send(LIMIT):
        pair.client.engine.receive_data(data)
    assert recorder.names()[-2:] == ["delivery", "drained"]
    assert not receiver.draining


def test_more_deliveries_than_credit_end_the_link() -> None:
    """A peer that sends without credit is detached with transfer-limit-exceeded."""
    pair = Pair()
    _, recorder = pair.receiver(credit=1)
    pair.client.engine.receive_data(transfer(handle=0, delivery_id=0, tag=b"1", payload=b"\x00Su\xa0\x00"))
    assert recorder.heard[-1][0] == "delivery"
    pair.client.engine.receive_data(transfer(handle=0, delivery_id=1, tag=b"2", payload=b"\x00Su\xa0\x00"))
    assert recorder.heard[-1][0] == "refused"
    assert recorder.heard[-1][1].condition == "amqp:link:transfer-limit-exceeded"
    pair.pump()
    assert pair.server.links[0].last("detached").condition == "amqp:link:transfer-limit-exceeded"


@pytest.mark.parametrize("size", [2000, 200_000])
def test_message_over_the_limit_ends_the_link(size: int) -> None:
    """A message over max-message-size, in one frame or many, ends the link and is never given out."""
    pair = Pair()
    receiver, recorder = pair.receiver()
    receiver.max_message_size = 1000
    sender = pair.server.links[0].link
    sender.transfer(bytes(size), Pending(sender))
    pair.pump()
    assert "delivery" not in recorder.names()
    assert recorder.last("refused").condition == "amqp:link:message-size-exceeded"
    assert pair.server.links[0].last("detached").condition == "amqp:link:message-size-exceeded"
    assert receiver.released


def test_message_over_the_limit_is_noticed_before_its_end() -> None:
    """An endless message is stopped at the limit, not when memory is full."""
    pair = Pair()
    receiver, recorder = pair.receiver()
    receiver.max_message_size = 100_000
    chunk = bytes(10_000)
    pair.client.engine.receive_data(transfer(handle=0, delivery_id=0, tag=b"1", payload=chunk, more=True))
    for _ in range(9):
        pair.client.engine.receive_data(transfer(handle=0, payload=chunk, more=True))
    assert recorder.names()[-1] == "attached"
    pair.client.engine.receive_data(transfer(handle=0, payload=chunk, more=True))
    assert recorder.heard[-1][0] == "refused"
    pair.client.engine.receive_data(transfer(handle=0, payload=chunk, more=True))  # already on its way: dropped
    assert recorder.names().count("refused") == 1


def test_aborted_delivery_is_dropped_and_reported() -> None:
    """An aborted delivery gives no message; the next one is whole."""
    pair = Pair()
    _, recorder = pair.receiver()
    feed = pair.client.engine.receive_data
    feed(transfer(handle=0, delivery_id=0, tag=b"1", payload=b"half", more=True))
    feed(transfer(handle=0, aborted=True))
    assert recorder.names()[-1] == "aborted"
    feed(transfer(handle=0, delivery_id=1, tag=b"2", payload=b"\x00Su\xa0\x01x"))
    assert recorder.heard[-1][1] == b"\x00Su\xa0\x01x"


def test_deliveries_of_two_links_may_interleave_by_frame() -> None:
    """The frames of two links' deliveries may alternate; each arrives whole."""
    pair = Pair()
    _, one = pair.receiver(name="one")
    _, two = pair.receiver(name="two")
    feed = pair.client.engine.receive_data
    feed(
        transfer(handle=0, delivery_id=0, tag=b"1", payload=b"aa", more=True)
        + transfer(handle=1, delivery_id=1, tag=b"2", payload=b"bb", more=True)
        + transfer(handle=0, payload=b"AA")
        + transfer(handle=1, payload=b"BB")
    )
    assert one.heard[-1][:2] == ("delivery", b"aaAA")
    assert two.heard[-1][:2] == ("delivery", b"bbBB")


KINDS = ("plain", "settled", "two frames", "aborted", "settlement", "flow")


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(KINDS)), max_size=30))
@settings(deadline=None)
def test_deliveries_in_a_row_are_those_that_come_one_by_one(script: list[tuple[int, str]]) -> None:
    """Whatever comes between them in one read, each delivery is given to its link, once, in order and whole.

    A settlement that is in the same read may be seen earlier, so that is not compared.
    """
    frames: list[bytes] = []
    sent: tuple[list[int], list[int]] = ([], [])  # unsettled, by link
    number = 0
    for handle, kind in script:
        name: dict[str, Any] = {"handle": handle, "delivery_id": number, "tag": bytes((number,))}
        body = f"{handle}-{number}".encode()
        if kind == "settlement":
            frames += [settlement(sent[handle].pop(0))] if sent[handle] else []
            continue
        if kind == "flow":
            frames.append(frame(0x13, b"\x43\x52\xff\x43\x52\xff", 4))
            continue
        if kind == "two frames":
            frames += [transfer(**name, payload=body, more=True), transfer(handle=handle, payload=b"...")]
        elif kind == "aborted":
            frames += [transfer(**name, payload=body, more=True), transfer(handle=handle, aborted=True)]
        else:
            frames.append(transfer(**name, payload=body, settled=kind == "settled"))
        if kind in ("plain", "two frames"):
            sent[handle].append(number)
        number += 1
    heard = []
    for feed in ([b"".join(frames)], frames):
        pair = Pair()
        links = [pair.receiver(name=name, credit=50) for name in ("one", "two")]
        for data in feed:
            if data:
                pair.client.engine.receive_data(data)
        assert "failed" not in pair.client.names()
        heard.append(
            [
                (link.credit, [entry[:2] for entry in recorder.heard if entry[0] != "attached"])
                for link, recorder in links
            ]
        )
    assert heard[0] == heard[1]
    assert sum(len(told) for _, told in heard[0]) == number


def test_a_link_may_be_detached_in_a_row() -> None:
    """Its handler detaches at the first of three deliveries, behind which the peer's detach has come already."""
    pair = Pair()
    receiver, recorder = pair.receiver(name="one")
    _, other = pair.receiver(name="two")
    given_out = recorder._on_delivery

    def detaching(pointer: Any, raw: bytes, settled: bool) -> None:
        given_out(pointer, raw, settled)
        receiver.detach()

    recorder._on_delivery = detaching  # type: ignore[method-assign]
    frames = [transfer(handle=0, delivery_id=number, tag=bytes((number,)), payload=b"x") for number in range(3)]
    pair.client.engine.receive_data(
        b"".join(frames) + detach(0) + transfer(handle=1, delivery_id=3, tag=b"3", payload=b"y")
    )
    assert receiver.released
    assert recorder.names()[-1] == "detached"
    assert other.heard[-1][:2] == ("delivery", b"y")
    assert "failed" not in pair.client.names()


def test_transfer_to_a_sender_is_a_protocol_error() -> None:
    """A peer that sends on a link whose sender we are fails the connection."""
    pair = Pair()
    pair.sender()
    pair.client.engine.receive_data(transfer(handle=0, delivery_id=0, tag=b"1", payload=b"x"))
    assert pair.client.last("failed").condition == "amqp:not-allowed"


def test_undecodable_field_fails_the_connection_with_a_decode_error() -> None:
    """A condition that is no text fails the connection instead of raising out of receive_data."""
    pair = Pair()
    pair.sender()
    fields = b"\x43\x41" + b"\x00\x53\x1d" + compound(b"\xa3\x02\xff\xfe" + b"\xa1\x02\xff\xfe", 2)
    pair.client.engine.receive_data(frame(0x16, fields, 3))
    assert pair.client.last("failed").condition == "amqp:decode-error"


@pytest.mark.parametrize("name", [b"\x40", b"\xa1\x02\xff\xfe"], ids=["missing", "no UTF-8"])
def test_attach_without_a_readable_name_is_a_decode_error(name: bytes) -> None:
    """The name of a link is mandatory text (2.7.3); without it there is nothing to answer to."""
    pair = Pair()
    pair.session()
    pair.server.engine.receive_data(frame(0x12, name + b"\x43\x42", 3))
    assert pair.server.last("failed").condition == "amqp:decode-error"


def test_delivery_state_that_cannot_be_decoded_fails_the_connection() -> None:
    """A rejection whose condition is no text fails the connection instead of raising out of receive_data."""
    pair = Pair()
    link, _ = pair.sender()
    link.transfer(b"\x00Su\xa0\x00", Pending(link))
    pair.pump()
    error = b"\x00\x53\x1d" + compound(b"\xa3\x02\xff\xfe", 1)
    rejected = b"\x00\x53\x25" + compound(error, 1)
    pair.client.engine.receive_data(frame(0x15, b"\x41\x43\x40\x41" + rejected, 5))
    assert pair.client.last("failed").condition == "amqp:decode-error"


# --- hygiene ---------------------------------------------------------------------------------------------------


def test_handlers_are_held_weakly() -> None:
    """An endpoint its user dropped can be collected while the link lives; what comes for it is dropped."""
    pair = Pair()
    receiver, recorder = pair.receiver()
    pair.client.links.clear()
    gone = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert gone() is None
    assert receiver.handler is None
    sender = pair.server.links[0].link
    sender.transfer(b"\x00Su\xa0\x00", Pending(sender))
    sender.detach(ErrorCondition("amqp:link:detach-forced"))
    pair.pump()
    assert receiver.released
    assert pair.client.engine.handlers() == [pair.client.sessions[0][1]]


def test_trace_masks_credentials_and_payloads() -> None:
    """Trace lines show frames, and neither the password nor the message."""
    lines: list[str] = []
    client = Side(sasl=Plain("user", "canary-password"), trace=lines.append)
    client.engine.open()
    server = proton.Transport(proton.Transport.SERVER)
    server.sasl().allowed_mechs("PLAIN")
    client.engine.receive_data(bytes(server.peek(server.pending()) or b""))
    # What a server that offers PLAIN would say: proton alone cannot.
    client.engine.receive_data(sasl_mechanisms(b"PLAIN"))
    client.engine.data_to_send(LIMIT)
    pair = Pair({"trace": lines.append})
    link, _ = pair.sender()
    link.transfer(Message(b"canary-body").encode(), Pending(link))
    pair.pump()
    text = "\n".join(lines)
    assert "sasl-init" in text
    assert "@transfer" in text
    assert "bytes)" in text
    assert "canary" not in text


def test_engine_writes_nothing_to_stderr() -> None:
    """proton's own complaints about bad input do not reach stderr."""
    program = (
        "from tests.test_engine import Side\n"
        "side = Side()\n"
        "side.engine.open()\n"
        "side.engine.receive_data(b'HTTP/1.1 400 Bad Request' * 100)\n"
        "side.engine.receive_eof()\n"
        "assert side.names() == ['failed'], side.names()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("freed", [True, False])
def test_garbage_collection_in_any_order_is_safe(freed: bool) -> None:
    """Engines with sessions, links and deliveries in any state may be collected as cycles; the process survives it."""
    program = (
        "import gc, random, sys\n"
        "from tests.test_engine import Pair, Pending\n"
        "choice = random.Random(7)\n"
        "for _ in range(300):\n"
        "    pair = Pair()\n"
        "    pair.session()\n"
        "    for number in range(choice.randint(0, 3)):\n"
        "        sender, _ = pair.sender(name=f's{number}')\n"
        "        receiver, _ = pair.receiver(name=f'r{number}')\n"
        "        sender.transfer(b'\\0Su\\xa0\\0', Pending(sender))\n"
        "        choice.choice([pair.pump, sender.detach, receiver.detach, lambda: None])()\n"
        "    choice.choice([pair.client.engine.close, pair.client.sessions[0][0].end, lambda: None])()\n"
        "    choice.choice([pair.pump, pair.client.engine.receive_eof])()\n"
        f"    if {freed}: pair.client.engine.free()\n"
        "    pair.cycle = pair\n"
        "    del pair\n"
        "    if choice.random() < 0.3: gc.collect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_free_leaves_nothing_that_touches_freed_memory() -> None:
    """After free, what users still hold does nothing."""
    pair = Pair()
    sender, _ = pair.sender(name="one")
    receiver, _ = pair.receiver(name="two")
    session = pair.client.sessions[0][0]
    pair.client.engine.free()
    sender.detach()
    sender.drained()
    receiver.flow(1)
    receiver.drain()
    receiver.detach()
    session.end()
    assert not receiver.draining
    assert session.unsent_bytes == 0


# --- frames by hand ------------------------------------------------------------------------------------------------


def compound(content: bytes, count: int) -> bytes:
    return b"\xd0" + struct.pack(">II", len(content) + 4, count) + content


def frame(code: int, fields: bytes, count: int, payload: bytes = b"", kind: int = 0) -> bytes:
    body = bytes((0x00, 0x53, code)) + compound(fields, count) + payload
    return struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body


def transfer(
    *,
    handle: int,
    delivery_id: int | None = None,
    tag: bytes | None = None,
    payload: bytes = b"",
    more: bool = False,
    aborted: bool = False,
    settled: bool = False,
) -> bytes:
    """A transfer frame (2.7.5)."""
    fields = b"\x52" + bytes((handle,))
    fields += b"\x40" if delivery_id is None else b"\x52" + bytes((delivery_id,))
    fields += b"\x40" if tag is None else b"\xa0" + bytes((len(tag),)) + tag
    fields += (
        b"\x43"
        + (b"\x41" if settled else b"\x40")
        + (b"\x41" if more else b"\x42")
        + b"\x40\x40\x40"
        + (b"\x41" if aborted else b"\x42")
    )
    return frame(0x14, fields, 10, payload)


def settlement(delivery_id: int) -> bytes:
    """A disposition (2.7.6) by which the sending peer settles a delivery."""
    return frame(0x15, b"\x42\x52" + bytes((delivery_id,)) + b"\x40\x41", 4)


def detach(handle: int) -> bytes:
    """A detach (2.7.7) that closes the link."""
    return frame(0x16, b"\x52" + bytes((handle,)) + b"\x41", 2)


def sasl_mechanisms(name: bytes) -> bytes:
    array = b"\xe0" + bytes((len(name) + 3, 1, 0xA3, len(name))) + name
    return frame(0x40, array, 1, kind=1)
