"""Peers and networks that fail at every moment: each ends in a typed error, in time, with nothing left or said.

What a lost connection does at every await is tested with the scenarios of the cancellation tests; what it does at every
byte, by cutting a recorded conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import proton
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amqpws_async as amqp

from .peer import (
    PATIENCE,
    SASL_HEADER,
    SASL_OK,
    Conversation,
    Peer,
    after,
    frame,
    ignore,
    mechanisms,
    outcome,
    sized,
    transfer,
    wired,
)
from .test_cancellation import ALONE, SCENARIOS, Operation, interrupted
from .websocket_peer import Peer as Socket
from .websocket_peer import serving

MESSAGE = amqp.Message(b"one")
QUICK: dict[str, Any] = {"open_timeout": PATIENCE, "close_timeout": 1.0, "proxy": None}


@pytest.fixture(autouse=True)
def nothing_said(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever goes wrong, standard output and standard error are the application's."""
    yield
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


async def program(url: str, done: list[str], **options: Any) -> None:
    """All that a client does, each step noted when it is done."""
    async with amqp.connect(url, **QUICK | options) as connection:
        done.append("connect")
        async with connection.session() as session:
            async with session.sender("q") as sender:
                done.append("attach")
                for n in range(3):
                    await sender.send(amqp.Message(b"%d" % n))
                    done.append("send")
                await sender.send(amqp.Message(bytes(2000)), settled=True)
            async with session.receiver("q", credit=3) as receiver:
                for _ in range(3):
                    delivery = await receiver.receive()
                    done.append("receive")
                    await delivery.accept()
    done.append("closed")


def stocked(peer: Peer) -> None:
    """Gives the peer a few messages, and names that make every run the same number of bytes."""
    peer.queue.extend(amqp.Message(b"%d" % n).encode() for n in range(4))


# --- the connection lost at every byte -----------------------------------------------------


async def recorded() -> dict[str, int]:
    """How many bytes the whole program takes in each direction."""
    async with Peer() as peer, wired(peer) as wire:
        stocked(peer)
        await program(wire.url, [])
        return wire.passed


async def cut_at(way: str, offset: int) -> None:
    """Runs the program over a wire that ends after so many bytes, and checks what it says about it."""
    done: list[str] = []
    async with Peer() as peer, wired(peer, **{way: offset}) as wire:
        stocked(peer)
        before = asyncio.all_tasks()
        error: Exception | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                await program(wire.url, done)
        except (amqp.AMQPError, ExceptionGroup) as caught:
            error = caught
        assert error is not None or done[-1] == "closed"
        for one in error.exceptions if isinstance(error, ExceptionGroup) else [error] if error else []:
            opening = (amqp.OpenError, amqp.ConnectionClosed)
            assert isinstance(one, opening if "connect" not in done else amqp.AMQPError), repr(one)
        # What was promised to have arrived has.
        assert len(peer.received) >= done.count("send")
        await _ended(before, wire)


async def _ended(before: set[asyncio.Task[Any]], wire: Any) -> None:
    for _ in range(20):
        ours = [task for task in asyncio.all_tasks() - before if "amqpws_async" in repr(task.get_coro())]
        if not ours:
            return
        await asyncio.sleep(0)
    raise AssertionError(ours)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_the_wire_is_cut_at_every_byte(way: str) -> None:
    """Wherever the network ends the conversation, the client ends with a typed error at once, and loses no promise."""
    total = (await recorded())[way]
    for offset in range(1, total, 5):
        try:
            await cut_at(way, offset)
        except BaseException as error:
            error.add_note(f"cut {way} at byte {offset} of {total}")
            raise


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(way=st.sampled_from(["up", "down"]), offset=st.integers(0, 6000))
async def test_the_wire_is_cut_at_a_random_byte(way: str, offset: int) -> None:
    """The same at random offsets."""
    await cut_at(way, offset)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8))
async def test_messages_are_cut_at_random(sizes: list[int]) -> None:
    """However the peer cuts its bytes into WebSocket messages, the conversation is the same."""
    done: list[str] = []
    async with Peer() as peer:
        stocked(peer)
        peer.cut = sized(*sizes)
        async with asyncio.timeout(PATIENCE):
            await program(peer.url, done)
    assert done[-1] == "closed"


# --- the connection lost at every await ------------------------------------------------------

ENDS: dict[str, Callable[[Conversation], None]] = {
    "drop": lambda conversation: conversation.drop(),
    "close": lambda conversation: conversation.close("amqp:connection:forced", "so it was scripted"),
    "end": lambda conversation: _all_sessions(conversation),
    "detach": lambda conversation: _all_links(conversation),
    "garbage": lambda conversation: conversation.raw(b"\xff" * 16),
}


def _all_sessions(conversation: Conversation) -> None:
    while conversation.connection.session_head(proton.Endpoint.LOCAL_ACTIVE):
        conversation.end("amqp:internal-error")


def _all_links(conversation: Conversation) -> None:
    for link in list(conversation.links.values()):
        if link.state & proton.Endpoint.LOCAL_ACTIVE:
            conversation.detach(link, "amqp:internal-error")


async def _lost_at(name: str, end: str, point: int) -> bool:
    """Runs an operation of the cancellation scenarios, lets the peer end at this point; says whether it got through."""
    reached = False
    async with Peer() as peer, contextlib.AsyncExitStack() as stack:
        before = asyncio.all_tasks()
        connection = None
        if name in SCENARIOS:
            connection = await amqp.connect(peer.url, **QUICK)

        def interrupt() -> None:
            nonlocal reached
            reached = True
            if peer.conversations:
                ENDS[end](peer.conversation)

        story = (SCENARIOS | ALONE)[name](peer, connection)
        operation: Operation = await anext(story)
        task = asyncio.ensure_future(interrupted(operation(), point, interrupt, False))
        stack.callback(task.cancel)
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        if (error := task.exception()) is not None:
            errors = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
            assert all(isinstance(one, amqp.AMQPError) for one in errors), repr(error)
        if connection is not None:
            with contextlib.suppress(amqp.AMQPError, TimeoutError):
                await connection.close()
        with contextlib.suppress(amqp.AMQPError, GeneratorExit, TimeoutError):
            await story.aclose()
        peer.conversation.drop()
        await peer.gone()
        # Whatever else the scenario had waiting has failed too, and nothing of ours is left.
        if left := asyncio.all_tasks() - before:
            _, hanging = await asyncio.wait(left, timeout=PATIENCE)
            assert not hanging
    return not reached


# These wait for a peer that never answers, on purpose and for as long as they say.
_LOSABLE = [name for name in SCENARIOS | ALONE if "silent" not in name]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", _LOSABLE)
async def test_the_peer_ends_at_every_await(name: str, end: str) -> None:
    """At whichever of its awaits an operation is when the peer goes, it fails with a typed error at once."""
    for point in itertools.count():
        try:
            if await _lost_at(name, end, point):
                return
        except BaseException as error:
            error.add_note(f"{end} at suspension point {point}")
            raise


# --- a peer that says nothing ------------------------------------------------------------


async def test_silence_before_the_upgrade() -> None:
    """A server that takes the TCP connection and says nothing is given up after open_timeout."""

    async def say_nothing(socket: Socket) -> None:
        await socket.until_closed()

    async with serving(say_nothing) as server:
        with pytest.raises(TimeoutError, match="open_timeout"):
            await amqp.connect(server.url, open_timeout=0.1)


@pytest.mark.parametrize("stage", ["sasl", "open"])
async def test_silence_while_opening(stage: str) -> None:
    """A server that upgrades and then says nothing is given up after open_timeout, and its socket closed."""
    async with Peer() as peer:
        if stage == "sasl":
            peer.script = _deaf
        else:
            peer.on["open"] = ignore
        with pytest.raises(TimeoutError, match="open_timeout"):
            await amqp.connect(peer.url, open_timeout=0.1)
        await peer.gone()


async def _deaf(conversation: Conversation) -> None:
    async for _ in conversation.socket:
        pass


@pytest.mark.parametrize("stage", ["begin", "attach sender", "attach receiver", "attach on the default session"])
async def test_silence_while_attaching(stage: str) -> None:
    """A begin or attach that nobody answers ends in TimeoutError; answered late, it is undone, and all goes on."""
    async with Peer() as peer, amqp.connect(peer.url, open_timeout=0.1, close_timeout=0.5) as connection:
        session = await connection.session()
        late: list[Any] = []
        event = "begin" if stage in ("begin", "attach on the default session") else "attach"
        peer.on[event] = lambda conversation, subject: late.append(subject)
        opening: Any = {
            "begin": connection.session,
            "attach sender": lambda: session.sender("q", name="mine"),
            "attach receiver": lambda: session.receiver("q", name="mine"),
            "attach on the default session": lambda: connection.sender("q"),
        }[stage]
        with pytest.raises(TimeoutError, match=r"within 0.1 s"):
            await opening()
        del peer.on[event]
        peer.conversation.react(event, late[0])
        peer.conversation.flush()
        async with asyncio.timeout(PATIENCE):
            await peer.saw("end" if event == "begin" else "detach")
            async with opening() as endpoint:
                assert endpoint.state is amqp.EndpointState.OPEN
            async with connection.sender("q") as sender:
                assert await sender.send(MESSAGE) == amqp.Accepted()
        await session.close()


@pytest.mark.parametrize("level", ["sender", "receiver", "session", "connection"])
async def test_silence_while_closing(level: str) -> None:
    """A close that nobody answers ends in TimeoutError after close_timeout, and what is above goes on."""
    async with Peer() as peer:
        connection = await amqp.connect(peer.url, close_timeout=0.1)
        session = await connection.session()
        sender, receiver = await session.sender("q"), await session.receiver("q")
        endpoints: dict[str, Any] = {
            "sender": sender,
            "receiver": receiver,
            "session": session,
            "connection": connection,
        }
        peer.on.update(detach=ignore, end=ignore, close=ignore)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TimeoutError, match="close_timeout"):
            await endpoints[level].close()
        assert loop.time() - began < 1
        assert endpoints[level].state is amqp.EndpointState.CLOSED
        peer.on.clear()
        if level != "connection":
            async with connection.sender("q") as other:
                assert await other.send(MESSAGE) == amqp.Accepted()
            with contextlib.suppress(TimeoutError, amqp.AMQPError):
                await connection.close()
        await peer.gone()


async def test_a_receiver_closes_although_the_drain_is_never_answered() -> None:
    """A peer that ignores the withdrawal of credit does not keep the receiver from releasing and detaching."""
    async with Peer() as peer, amqp.connect(peer.url, close_timeout=0.2) as connection:
        peer.queue.extend([MESSAGE.encode()] * 3)
        receiver = await connection.receiver("q", credit=10)
        await peer.until(lambda: not peer.queue)
        peer.on["flow"] = ignore
        with contextlib.suppress(TimeoutError):
            await receiver.close()
        await peer.saw("detach")
        assert peer.dispositions == [(proton.Delivery.RELEASED, True)] * 3


async def test_silence_on_an_open_connection() -> None:
    """A peer that says nothing for idle_timeout is given up, and everything that waits fails."""
    async with Peer() as peer:
        connection = await amqp.connect(peer.url, idle_timeout=0.3, close_timeout=0.2, ping_interval=None)
        receiver = await connection.receiver("q")
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(amqp.ConnectionClosed) as caught:
                await receiver.receive()  # the peer would have to tick its engine to send empty frames
        assert caught.value.stop.condition == "amqp:resource-limit-exceeded"
        await peer.gone()


@pytest.mark.parametrize("advertised", [0.6, None])
async def test_a_quiet_client_looks_dead(advertised: float | None) -> None:
    """With nothing to send, empty frames come well within the peer's idle timeout, and also if it has none."""
    async with Peer() as peer:
        if advertised is not None:  # proton announces half of what it is given
            peer.tune = lambda conversation: setattr(conversation.transport, "idle_timeout", 2 * advertised)
        empty = bytes.fromhex("0000000802000000")
        times: list[float] = []
        async with amqp.connect(peer.url, idle_timeout=None if advertised else 0.6, ping_interval=None) as connection:
            times.append(asyncio.get_running_loop().time())
            for count in range(1, 5 if advertised else 2):
                await peer.until(lambda count=count: peer.bytes_in.count(empty) >= count)  # type: ignore[misc]
                times.append(asyncio.get_running_loop().time())
            assert connection.health().ok
        if advertised is not None:
            assert max(after - before for before, after in itertools.pairwise(times)) < 0.8 * advertised


async def test_a_frozen_peer_is_not_noticed_by_the_ping() -> None:
    """A peer that reads nothing more does not answer pings, and is given up after ping_timeout."""
    async with Peer() as peer:
        connection = await amqp.connect(
            peer.url, idle_timeout=None, ping_interval=0.1, ping_timeout=0.2, close_timeout=600.0
        )
        receiver = await connection.receiver("q")
        peer.conversation.socket.transport.pause_reading()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(amqp.ConnectionClosed):
                await receiver.receive()


async def test_closing_a_frozen_peer_hangs() -> None:
    """With megabytes unsent and a peer that reads nothing, close gives up after close_timeout."""
    async with Peer() as peer:
        connection = await amqp.connect(peer.url, close_timeout=0.2)
        sender = await connection.sender("q")
        peer.conversation.socket.transport.pause_reading()
        sends = [asyncio.create_task(sender.send(amqp.Message(bytes(2**20)))) for _ in range(20)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises((TimeoutError, ExceptionGroup)):
            await connection.close()
        assert loop.time() - began < 3
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert all(isinstance(result, (amqp.DeliveryUnknown, amqp.EndpointClosed)) for result in results)
        assert any(isinstance(result, amqp.EndpointClosed) for result in results)


async def test_starved_of_credit_for_ever() -> None:
    """Without credit a send waits, for as long as its caller lets it, and closing ends the wait."""
    async with Peer() as peer, amqp.connect(peer.url, **QUICK) as connection:
        peer.credit = 0
        async with connection.sender("q") as sender:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await sender.send(MESSAGE)
            sending = asyncio.create_task(sender.send(MESSAGE))
            await asyncio.sleep(0)
        with pytest.raises(amqp.LinkClosed):
            await sending
        assert peer.received == []


# --- a peer that breaks the rules ------------------------------------------------------------


async def _survives(peer: Peer, attack: Callable[[Conversation], None]) -> BaseException | None:
    """Attacks an open receiver, and gives the error that it ended with, or None if all goes on."""
    connection = await amqp.connect(peer.url, **QUICK)
    try:
        async with asyncio.timeout(PATIENCE):
            receiver = await connection.receiver("q", credit=2)
            await peer.saw("flow")
            attack(peer.conversation)
            try:
                while True:
                    delivery = await receiver.receive()
                    await delivery.accept()
                    if delivery.body == b"end":
                        return None
            except amqp.EndpointClosed as error:
                return error
    finally:
        with contextlib.suppress(amqp.AMQPError, TimeoutError):
            await connection.close()


async def test_more_deliveries_than_credit() -> None:
    """A peer that overruns its credit gets an error, or its deliveries arrive; nothing hangs and the rest is whole."""
    async with Peer() as peer:

        def attack(conversation: Conversation) -> None:
            for number in range(50):
                body = b"end" if number == 49 else b"%d" % number
                conversation.raw(transfer(number, amqp.Message(body).encode()))

        error = await _survives(peer, attack)
        assert error is None or isinstance(error, (amqp.LinkClosed, amqp.ConnectionClosed))
        await peer.gone()


FRAMES = {
    "transfer on no link": transfer(0, b"", handle=7),
    "transfer on no channel": transfer(0, b"", channel=9),
    "transfer out of sequence": transfer(5, MESSAGE.encode()) + transfer(3, MESSAGE.encode()),
    "transfer without a number": frame(0x14, b"\x43"),
    "second open": frame(0x10, b"\xa1\x03abc"),
    "begin on a channel in use": frame(0x11, b"\x60\x00\x00", b"\x52\x00", b"\x52\x05", b"\x52\x05"),
    "begin for no session": frame(0x11, b"\x60\x00\x63", b"\x52\x00", b"\x52\x05", b"\x52\x05", channel=5),
    "attach on a handle in use": frame(0x12, b"\xa1\x03abc", b"\x43", b"\x41"),
    "detach of no link": frame(0x16, b"\x52\x09", b"\x41"),
    "flow on no link": frame(0x13, *[b"\x52\x05"] * 4, b"\x52\x09"),
    "end twice": frame(0x17) * 2,
    "fields of the wrong type": frame(0x13, *[b"\xa1\x03abc"] * 8),
    "too few fields": frame(0x12),
    "null fields": frame(0x12, *[b"\x40"] * 14),
    "truncated frame, then more": bytes.fromhex("000000ff0200000000531045"),
    "doff beyond the frame": bytes.fromhex("00000008ff000000"),
    "doff of zero": bytes.fromhex("0000000800000000"),
    "size below eight": bytes.fromhex("0000000002000000"),
    "size of four gigabytes": bytes.fromhex("ffffffff02000000"),
    "unknown frame type": bytes.fromhex("0000000802070000"),
    "unknown performative": frame(0x70),
    "no performative": bytes.fromhex("000000090200000040"),
    "list that says too much": bytes.fromhex("0000000e02000000005314c0ff0d"),
    "protocol header again": b"AMQP\x00\x01\x00\x00",
    "sasl after open": SASL_HEADER,
    "sasl outcome after open": SASL_OK,
    "disposition of nothing": frame(0x15, b"\x42", b"\x52\x63", b"\x52\x63", b"\x41", b"\x00\x53\x24\x45"),
    "disposition backwards": frame(0x15, b"\x41", b"\x52\x09", b"\x52\x01", b"\x41"),
    "http": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_out_of_order_or_shape(name: str) -> None:
    """Frames that make no sense end the connection with a typed error, or are ignored; then the rest still works."""
    async with Peer() as peer:

        def attack(conversation: Conversation) -> None:
            conversation.raw(FRAMES[name])
            # Whatever the client made of it: it must notice that nothing sensible follows.
            conversation.raw(b"\x00" * 512)

        error = await _survives(peer, attack)
        assert isinstance(error, amqp.EndpointClosed)
        await peer.gone()


@pytest.mark.parametrize("seed", range(20))
async def test_noise_in_the_middle_of_a_conversation(seed: int) -> None:
    """Random bytes after a good start end the connection with a typed error in bounded time."""
    noise = random.Random(seed)
    async with Peer() as peer:

        def attack(conversation: Conversation) -> None:
            for _ in range(20):
                body = noise.randbytes(noise.randrange(0, 60))
                framed = struct.pack(">IBBH", 8 + len(body), 2, 0, noise.randrange(3)) + body
                conversation.raw(framed if noise.random() < 0.7 else noise.randbytes(40))
            conversation.raw(b"\x00" * 512)

        assert isinstance(await _survives(peer, attack), amqp.EndpointClosed)
        await peer.gone()


@pytest.mark.parametrize("when", ["before the open", "after the open"])
async def test_text_messages(when: str) -> None:
    """A text message at any time is a RemoteProtocolError."""
    async with Peer() as peer:
        if when == "before the open":
            peer.on["open"] = lambda conversation, connection: conversation.raw("hello")
        else:
            peer.on["open"] = after("open", lambda conversation: conversation.raw("hello"))
        with pytest.raises((amqp.AMQPError, ExceptionGroup)) as caught:
            async with asyncio.timeout(PATIENCE):
                await program(peer.url, [])
        chain = _chain(caught.value)
        assert any(isinstance(error, amqp.RemoteProtocolError) for error in chain), chain
        await peer.gone()


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


async def test_a_sasl_outcome_that_comes_too_early() -> None:
    """A peer that sends mechanisms and outcome at once, before our init, is served or refused, but does not hang."""

    async def hasty(conversation: Conversation) -> None:
        await conversation.socket.send(SASL_HEADER + mechanisms("ANONYMOUS") + SASL_OK)
        await conversation.socket.recv()
        await conversation.serve(sasl=False)

    async with Peer() as peer:
        peer.script = hasty
        with contextlib.suppress(amqp.AMQPError):
            async with asyncio.timeout(PATIENCE):
                await (await amqp.connect(peer.url, open_timeout=None)).close()
        await peer.gone()


async def test_a_sasl_layer_that_never_ends() -> None:
    """Endless bytes in place of SASL do not fill the memory or hang: the connection fails."""

    async def endless(conversation: Conversation) -> None:
        while True:
            await conversation.socket.send(b"\x00" * 65536)

    async with Peer() as peer:
        peer.script = endless
        with pytest.raises(amqp.AMQPError):
            async with asyncio.timeout(PATIENCE):
                await amqp.connect(peer.url, open_timeout=PATIENCE, close_timeout=0.2)
        await peer.gone()


@pytest.mark.parametrize("what", ["session", "sender", "receiver"])
async def test_the_peer_opens_what_nobody_asked_for(what: str) -> None:
    """A session or link that the peer begins by itself is refused, and ours go on."""
    async with Peer() as peer, amqp.connect(peer.url, **QUICK) as connection, connection.sender("q") as sender:
        conversation = peer.conversation
        ours = next(iter(conversation.links.values()))
        theirs: Any = conversation.connection.session() if what == "session" else getattr(ours.session, what)("theirs")
        if what != "session":
            theirs.source.address = theirs.target.address = "theirs"
        theirs.open()
        conversation.flush()
        await peer.until(lambda: theirs.state & proton.Endpoint.REMOTE_CLOSED)
        assert theirs.remote_condition is not None
        theirs.close()
        conversation.flush()
        async with asyncio.timeout(PATIENCE):
            assert await sender.send(MESSAGE) == amqp.Accepted()
        assert len(connection.health().links) == 1


async def test_a_body_that_is_no_message() -> None:
    """A delivery whose bytes are no message is handed out; only decoding it fails, and it can be rejected."""
    async with Peer() as peer, amqp.connect(peer.url, **QUICK) as connection:
        peer.queue.extend([b"\xde\xad\xbe\xef", b"", MESSAGE.encode()])
        async with connection.receiver("q") as receiver, asyncio.timeout(PATIENCE):
            bad = await receiver.receive()
            assert bad.raw == b"\xde\xad\xbe\xef"
            with pytest.raises(amqp.DecodeError):
                bad.message.subject  # noqa: B018
            await bad.reject("amqp:decode-error")
            empty = await receiver.receive()
            assert empty.raw == b""
            await empty.release()
            assert (await receiver.receive()).body == b"one"
        assert peer.dispositions[:2] == [(proton.Delivery.REJECTED, True), (proton.Delivery.RELEASED, True)]


async def test_outcomes_of_deliveries_long_settled() -> None:
    """A peer that settles the same delivery twice, or one never sent, disturbs nothing."""
    async with Peer() as peer, amqp.connect(peer.url, **QUICK) as connection, connection.sender("q") as sender:
        await sender.send(MESSAGE)
        for number in (0, 0, 77):
            accepted = b"\x00\x53\x24\x45"
            peer.conversation.raw(frame(0x15, b"\x41", b"\x52" + bytes([number]), b"\x40", b"\x41", accepted))
        async with asyncio.timeout(PATIENCE):
            assert await sender.send(MESSAGE) == amqp.Accepted()
        assert sender.unsettled == 0


async def test_the_peer_detaches_and_ends_while_we_do() -> None:
    """Closes that cross on the wire are both answered, and neither side waits for the other."""
    async with Peer() as peer, amqp.connect(peer.url, **QUICK) as connection:
        session = await connection.session()
        sender, receiver = await session.sender("q"), await session.receiver("q")
        for link in list(peer.conversation.links.values()):
            link.close()
        next(iter(peer.conversation.links.values())).session.close()
        async with asyncio.timeout(PATIENCE):
            closing = [asyncio.create_task(endpoint.close()) for endpoint in (sender, receiver, session)]
            peer.conversation.flush()
            results = await asyncio.gather(*closing, return_exceptions=True)
        assert all(result is None or isinstance(result, amqp.EndpointClosed) for result in results)
        async with connection.sender("q") as other:
            assert await other.send(MESSAGE) == amqp.Accepted()


async def test_a_detach_while_deliveries_are_half_way() -> None:
    """A link that ends in the middle of a multi-frame delivery drops the half, and its session goes on."""
    async with Peer() as peer, amqp.connect(peer.url, max_frame_size=512, **QUICK) as connection:
        session = await connection.session()
        receiver = await session.receiver("q")
        await peer.saw("flow")
        half = amqp.Message(bytes(5000)).encode()[:3000]
        peer.conversation.deliver(half, whole=False)
        peer.conversation.detach(condition="amqp:resource-deleted")
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(amqp.LinkClosed):
                await receiver.receive()
            async with session.sender("q") as sender:
                assert await sender.send(MESSAGE) == amqp.Accepted()
        await session.close()


async def test_the_peer_rejects_everything_while_it_dies() -> None:
    """Outcomes, detach, end and close in one WebSocket message: each send gets the outcome that came."""
    async with Peer() as peer:
        connection = await amqp.connect(peer.url, **QUICK)
        sender = await connection.sender("q")

        def last_words(conversation: Conversation, delivery: Any) -> None:
            with conversation.merged():
                outcome(proton.Delivery.REJECTED)(conversation, delivery)
                conversation.detach(delivery.link, "amqp:resource-deleted")
                conversation.end("amqp:internal-error")
                conversation.close("amqp:connection:forced")

        peer.on["transfer"] = last_words
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(amqp.MessageRejected):
                await sender.send(MESSAGE)
            with pytest.raises(amqp.EndpointClosed):
                await sender.send(MESSAGE)
        with contextlib.suppress(amqp.AMQPError):
            await connection.close()
        await peer.gone()


async def test_nobody_listens() -> None:
    """A port where nobody listens is an OpenError that names it, not an OSError."""
    async with Peer() as peer:
        url = peer.url
    with pytest.raises(amqp.OpenError, match=str(peer.port)):
        await amqp.connect(url)
