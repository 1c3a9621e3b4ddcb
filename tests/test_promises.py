"""What the library promises its users, each promise against a peer that tries to have it broken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import proton
import pytest

import amqpws_async as amqp

from .peer import (
    PATIENCE,
    SASL_HEADER,
    SASL_REFUSED,
    Conversation,
    Peer,
    after,
    ignore,
    mechanisms,
    outcome,
    refuse,
    sized,
    transfer,
)

T = TypeVar("T")
MESSAGE = amqp.Message(b"one", message_id="id-1")

#: Every way in which a link can go from under its user, and the error that says so.
STOPS: dict[str, tuple[Callable[[Conversation], None], type[amqp.EndpointClosed]]] = {
    "detach": (lambda conversation: conversation.detach(condition="amqp:resource-deleted"), amqp.LinkClosed),
    "end": (lambda conversation: conversation.end("amqp:internal-error"), amqp.SessionClosed),
    "close": (lambda conversation: conversation.close("amqp:connection:forced"), amqp.ConnectionClosed),
    "drop": (lambda conversation: conversation.drop(), amqp.ConnectionClosed),
}
stops = pytest.mark.parametrize("stop", STOPS)


@contextlib.asynccontextmanager
async def connected(peer: Peer, **options: Any) -> AsyncIterator[amqp.Connection]:
    """A connection that the test may lose; what close then says is no matter here."""
    connection = await amqp.connect(peer.url, **{"open_timeout": PATIENCE, "close_timeout": 1.0} | options)
    try:
        yield connection
    finally:
        with contextlib.suppress(amqp.AMQPError, TimeoutError):
            await connection.close()


async def soon(wait: Coroutine[Any, Any, T] | asyncio.Task[T] | amqp.PendingDelivery) -> T:
    """Waits for something that must not hang."""
    async with asyncio.timeout(PATIENCE):
        return await wait  # type: ignore[return-value]


async def round_trip(connection: amqp.Connection) -> None:
    """Returns when the peer has read all that was written, and we what it had written by then."""
    async with connection.session():
        pass


async def turns(count: int = 20) -> None:
    """Lets every task run until it waits for the network."""
    for _ in range(count):
        await asyncio.sleep(0)


def encoded(*bodies: bytes) -> list[bytes]:
    return [amqp.Message(body).encode() for body in bodies]


# --- sending -------------------------------------------------------------------------


async def test_credit_that_comes_with_the_end_starts_no_transfer() -> None:
    """A flow that is handled after the end of its connection, as one of the same read can be, lets nothing go out."""
    async with Peer() as peer, connected(peer) as connection:
        sender = await connection.sender("q")
        peer.conversation.drop()
        await soon(connection.wait_closed())
        sender._on_credit(5, drain=False)
        assert sender.credit == 0
        with pytest.raises(amqp.ConnectionClosed):
            await soon(sender.transfer(MESSAGE))


async def test_send_returns_before_the_outcome() -> None:
    """`send` waits until the peer has settled, however long that takes, and returns Accepted."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        await turns()
        assert not sending.done()
        peer.conversation.settle(held[0])
        assert await soon(sending) == amqp.Accepted()
        assert peer.received == [MESSAGE.encode()]


async def test_a_received_state_is_taken_for_the_outcome() -> None:
    """A `received` state says how far the peer has got, and settles nothing."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []

        def part(conversation: Conversation, delivery: Any) -> None:
            delivery.local.section_number = 1
            delivery.local.section_offset = 7
            delivery.update(proton.Delivery.RECEIVED)
            held.append(delivery)

        peer.on["transfer"] = part
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        await soon(round_trip(connection))
        assert not sending.done()
        peer.conversation.settle(held[0], proton.Delivery.ACCEPTED)
        assert await soon(sending) == amqp.Accepted()


async def test_second_mode_leaves_the_delivery_unsettled_at_the_peer() -> None:
    """With settle mode second the peer's outcome is enough for `send`, which then settles so that the peer can."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["transfer"] = lambda conversation, delivery: delivery.update(proton.Delivery.ACCEPTED)
        sender = await connection.sender("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        await peer.saw("settled")
        assert sender.unsettled == 0


FAILURES = [
    pytest.param(
        outcome(proton.Delivery.REJECTED, condition=proton.Condition("amqp:decode-error", "no good", {"at": 4})),
        amqp.MessageRejected,
        amqp.Rejected(amqp.ErrorCondition("amqp:decode-error", "no good", {"at": 4})),
        id="rejected",
    ),
    pytest.param(outcome(proton.Delivery.REJECTED), amqp.MessageRejected, amqp.Rejected(), id="rejected-bare"),
    pytest.param(outcome(proton.Delivery.RELEASED), amqp.MessageReleased, amqp.Released(), id="released"),
    pytest.param(
        outcome(proton.Delivery.MODIFIED, failed=True, undeliverable=True, annotations={proton.symbol("x-why"): "so"}),
        amqp.MessageModified,
        amqp.Modified(delivery_failed=True, undeliverable_here=True, message_annotations={"x-why": "so"}),
        id="modified",
    ),
    pytest.param(outcome(None), amqp.DeliveryFailed, amqp.NoOutcome(), id="no-outcome"),
]


@pytest.mark.parametrize(("reaction", "error", "expected"), FAILURES)
async def test_send_hides_that_the_peer_did_not_accept(
    reaction: Any, error: type[amqp.DeliveryFailed], expected: Any
) -> None:
    """Every outcome but accepted raises, with the outcome in all its fields and the message."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["transfer"] = reaction
        sender = await connection.sender("q")
        with pytest.raises(error) as caught:
            await soon(sender.send(MESSAGE))
        assert caught.value.outcome == expected
        assert caught.value.message is MESSAGE
        assert "q" in str(caught.value)


@pytest.mark.parametrize(("reaction", "error", "expected"), FAILURES)
async def test_a_pending_delivery_raises_for_an_outcome(reaction: Any, error: type, expected: Any) -> None:
    """`await pending` hands every outcome over, accepted or not."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["transfer"] = reaction
        sender = await connection.sender("q")
        pending = await soon(sender.transfer(MESSAGE))
        assert await soon(pending) == expected
        assert await soon(pending) == expected
        assert pending.done


@stops
async def test_a_send_that_never_left_is_taken_for_sent(stop: str) -> None:
    """A send still waiting for credit when its link goes raises the level that stopped, and says nothing was sent."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await turns()
        act(peer.conversation)
        with pytest.raises(error) as caught:
            await soon(sending)
        assert isinstance(caught.value, amqp.EndpointClosed)
        assert caught.value.sent is False
        assert peer.received == []
        with pytest.raises(error):  # and so does whoever comes later
            await soon(sender.send(MESSAGE))


@stops
async def test_a_send_in_doubt_is_taken_for_failed(stop: str) -> None:
    """A send without outcome when its link goes is in doubt: DeliveryUnknown, with message and reason."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.on["transfer"] = ignore
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        act(peer.conversation)
        with pytest.raises(amqp.DeliveryUnknown) as caught:
            await soon(sending)
        assert caught.value.message is MESSAGE
        assert caught.value.stop.endpoint == error.kind
        assert caught.value.stop.initiator == ("transport" if stop == "drop" else "remote")
        assert caught.value.sent is True


async def test_an_outcome_that_came_with_the_end_is_lost() -> None:
    """Outcomes that arrived before the connection ended are given, even in the same WebSocket message."""
    async with Peer() as peer, connected(peer) as connection:

        def accept_and_close(conversation: Conversation, delivery: Any) -> None:
            with conversation.merged():
                conversation.react("transfer", delivery)
                conversation.close("amqp:connection:forced")

        peer.on["transfer"] = accept_and_close
        sender = await connection.sender("q")
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()


async def test_a_pre_settled_send_waits_for_an_outcome() -> None:
    """A pre-settled send returns None once the transport has it, and reaches the peer settled."""
    async with Peer() as peer, connected(peer) as connection:
        settled: list[bool] = []
        peer.on["transfer"] = lambda conversation, delivery: settled.append(delivery.settled)
        sender = await connection.sender("q")
        assert await soon(sender.send(MESSAGE, settled=True)) is None
        pending = await soon(sender.transfer(MESSAGE, settled=True))
        assert await soon(pending) is None
        await peer.saw("transfer", 2)
        assert settled == [True, True]
        assert sender.unsettled == 0


async def test_a_settled_link_sends_unsettled() -> None:
    """On a link of sender settle mode settled every delivery is; asking for another is a local error."""
    async with Peer() as peer, connected(peer) as connection:
        settled: list[bool] = []
        peer.on["transfer"] = lambda conversation, delivery: settled.append(delivery.settled)
        sender = await connection.sender("q", snd_settle_mode=amqp.SenderSettleMode.SETTLED)
        assert await soon(sender.send(MESSAGE)) is None
        with pytest.raises(amqp.LocalProtocolError):
            await soon(sender.send(MESSAGE, settled=False))
        await peer.saw("transfer")
        assert settled == [True]


async def test_transfers_overrun_the_credit() -> None:
    """`transfer` returns within the peer's credit alone; the next waits for more."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 2
        peer.on["transfer"] = ignore
        sender = await connection.sender("q")
        for _ in range(2):
            await soon(sender.transfer(MESSAGE))
        third = asyncio.create_task(sender.transfer(MESSAGE))
        await peer.saw("transfer", 2)
        await turns()
        assert not third.done()
        assert sender.credit == 0
        peer.conversation.grant(1)
        await soon(third)
        await peer.saw("transfer", 3)


async def test_transfers_pile_up_in_memory() -> None:
    """Credit without reading does not let bytes pile up: `transfer` waits for room, and goes on when there is some."""
    async with Peer() as peer, connected(peer, send_buffer_bytes=65536) as connection:
        peer.credit = 10_000
        sender = await connection.sender("q")
        peer.conversation.socket.transport.pause_reading()
        big = amqp.Message(bytes(2**20))
        made = 0
        try:
            async with asyncio.timeout(0.5):
                while made < 200:
                    await sender.transfer(big)
                    made += 1
        except TimeoutError:
            pass
        assert made < 200, "200 MiB were taken from us although the peer reads nothing"
        peer.conversation.socket.transport.resume_reading()
        await soon(sender.transfer(big))
        await peer.saw("transfer", made + 1)


@stops
async def test_send_many_forgets_what_was_in_flight(stop: str) -> None:
    """When the link goes, `send_many` yields DeliveryUnknown for each message in flight, then raises for the rest."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:

        def first_two(conversation: Conversation, delivery: Any) -> None:
            if len(peer.received) <= 2:
                conversation.settle(delivery)

        peer.credit = 5
        peer.on["transfer"] = first_two
        sender = await connection.sender("q")
        messages = [amqp.Message(b"%d" % n) for n in range(20)]
        many = sender.send_many(messages, in_flight=3)
        for n in range(2):
            assert await soon(many.__anext__()) == (messages[n], amqp.Accepted())
        third = asyncio.create_task(soon(many.__anext__()))
        await peer.saw("transfer", 5)
        act(peer.conversation)
        for n in range(2, 5):
            message, result = await (third if n == 2 else soon(many.__anext__()))
            assert message is messages[n]
            assert isinstance(result, amqp.DeliveryUnknown)
            assert result.message is message
        with pytest.raises(error) as caught:
            await soon(many.__anext__())
        assert isinstance(caught.value, amqp.EndpointClosed)
        assert caught.value.sent is False


async def test_send_many_loses_order_or_floods_the_peer() -> None:
    """`send_many` yields in the order of its messages, whatever the order of outcomes, and bounds what is in flight."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        most = 0

        def backwards(conversation: Conversation, delivery: Any) -> None:
            nonlocal most
            held.append(delivery)
            most = max(most, len(held))
            if len(held) == 4:
                while held:
                    conversation.react("transfer", held.pop())

        peer.on["transfer"] = backwards
        sender = await connection.sender("q")
        messages = [amqp.Message(b"%d" % n) for n in range(12)]
        async with asyncio.timeout(PATIENCE):
            seen = [message async for message, _ in sender.send_many(messages, in_flight=4)]
        assert seen == messages
        assert most == 4


async def test_send_many_takes_no_async_iterable() -> None:
    """`send_many` reads an async iterable as well, also when that is faster or slower than the peer."""

    async def source() -> AsyncIterator[amqp.Message]:
        for n in range(10):
            await asyncio.sleep(0)
            yield amqp.Message(b"%d" % n)

    async with Peer() as peer, connected(peer) as connection:
        sender = await connection.sender("q")
        async with asyncio.timeout(PATIENCE):
            seen = [(m.body, o) async for m, o in sender.send_many(source(), in_flight=3)]  # type: ignore[union-attr]
        assert seen == [(b"%d" % n, amqp.Accepted()) for n in range(10)]


async def test_send_many_hides_a_failure_of_its_source() -> None:
    """An error in the source comes out of the iteration, and what was in flight stays tracked."""

    def source() -> Any:
        yield MESSAGE
        raise KeyError("mine")

    async with Peer() as peer, connected(peer) as connection:
        sender = await connection.sender("q")
        with pytest.raises(KeyError, match="mine"):
            async with asyncio.timeout(PATIENCE):
                async for _ in sender.send_many(source()):
                    pass
        await peer.saw("transfer")
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert sender.unsettled == 0


async def test_leaving_send_many_early_goes_on_sending() -> None:
    """After `break` and `aclose` no new transfer starts, and those in flight are settled when their outcomes come."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await connection.sender("q")
        many = sender.send_many((amqp.Message(b"%d" % n) for n in range(100)), in_flight=5)
        first = asyncio.create_task(many.__anext__())
        await peer.saw("transfer", 5)
        peer.conversation.settle(held[0])
        await soon(first)
        await soon(many.aclose())
        await soon(round_trip(connection))
        for delivery in held[1:]:
            peer.conversation.settle(delivery)
        await peer.until(lambda: True)
        await soon(round_trip(connection))
        assert sender.unsettled == 0
        assert len(peer.received) <= 6
        async with asyncio.timeout(PATIENCE):
            assert len([outcome async for _, outcome in many]) == len(peer.received) - 1


async def test_a_cancelled_send_takes_the_wake_up_with_it() -> None:
    """A send cancelled while waiting for credit sends nothing, and the next in line gets the credit."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        sender = await connection.sender("q")
        sends = [asyncio.create_task(sender.send(amqp.Message(b"%d" % n))) for n in range(3)]
        await turns()
        peer.conversation.grant(1)
        sends[0].cancel()
        await asyncio.wait([sends[0]])
        assert await soon(sends[1]) == amqp.Accepted()
        assert peer.received == encoded(b"1")
        peer.conversation.grant(1)
        assert await soon(sends[2]) == amqp.Accepted()
        assert peer.received == encoded(b"1", b"2")


async def test_a_send_cancelled_as_its_credit_comes_takes_it_along() -> None:
    """Credit that has woken a send which is cancelled in the same turn goes to the next in line."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        sender = await connection.sender("q")
        sends = [asyncio.create_task(sender.send(amqp.Message(b"%d" % n))) for n in range(2)]
        await turns()
        peer.conversation.grant(1)
        while sender.credit == 0 and not peer.received:
            await asyncio.sleep(0)
        sends[0].cancel()
        await asyncio.wait([sends[0]])
        if sends[0].cancelled() and not peer.received:
            assert await soon(sends[1]) == amqp.Accepted()
        else:
            sends[1].cancel()
            await asyncio.wait([sends[1]])


async def test_a_send_cancelled_between_credit_and_room_takes_the_credit_with_it() -> None:
    """A send that has credit, waits for buffer space and is cancelled there leaves the credit to the next in line."""
    async with Peer() as peer, connected(peer, send_buffer_bytes=65536) as connection:
        filler = await connection.sender("filler")
        peer.credit = 0
        sender = await connection.sender("q", name="starved")
        sends = [asyncio.create_task(sender.send(amqp.Message(b"%d" % n))) for n in range(2)]
        peer.conversation.socket.transport.pause_reading()
        filling = [asyncio.create_task(filler.send(amqp.Message(bytes(2**20)), settled=True)) for _ in range(20)]
        before = -1
        while not connection._runner._full or before != sum(task.done() for task in filling):
            before = sum(task.done() for task in filling)
            await asyncio.wait(filling, timeout=0.2)  # on a busy machine the socket takes its time to fill
        assert before < len(filling)
        peer.conversation.grant(1, peer.conversation.links["starved"])
        while sender.credit == 0:
            await asyncio.sleep(0)
        await turns()
        sends[0].cancel()
        await asyncio.wait([sends[0]])
        peer.conversation.socket.transport.resume_reading()
        assert await soon(sends[1]) == amqp.Accepted()
        await soon(_gather(*filling))


async def test_a_send_cancelled_after_the_transfer_is_forgotten() -> None:
    """It stays tracked, and is settled quietly when its outcome comes."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        assert sender.unsettled == 1
        held[0].update(proton.Delivery.ACCEPTED)  # unsettled: only a tracked delivery gets settled by the client
        peer.conversation.flush()
        await peer.saw("settled")
        assert sender.unsettled == 0


async def test_cancelling_one_waiter_disturbs_another_of_the_same_delivery() -> None:
    """Several tasks may await one pending delivery; cancelling one leaves the others waiting, and they get it."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await connection.sender("q")
        pending = await soon(sender.transfer(MESSAGE))
        waiters: list[asyncio.Task[Any]] = [asyncio.create_task(soon(pending)) for _ in range(3)]
        await peer.saw("transfer")
        waiters[0].cancel()
        await asyncio.wait(waiters[:1])
        peer.conversation.settle(held[0])
        assert await asyncio.gather(*waiters[1:]) == [amqp.Accepted()] * 2


async def test_a_tag_is_used_twice_or_garbled() -> None:
    """Delivery tags are bytes of any value, and one in use cannot be used again."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["transfer"] = ignore
        sender = await connection.sender("q")
        await soon(sender.transfer(MESSAGE, tag=b"\x00\xff\x80"))
        with pytest.raises((amqp.LocalProtocolError, ValueError)):
            await soon(sender.transfer(MESSAGE, tag=b"\x00\xff\x80"))
        with pytest.raises(ValueError, match="tag"):
            await soon(sender.transfer(MESSAGE, tag=bytes(33)))
        await soon(sender.transfer(MESSAGE))
        await peer.saw("transfer", 2)
        assert b"\xa0\x03\x00\xff\x80" in peer.bytes_in


async def test_a_message_over_the_limit_is_begun() -> None:
    """A message over the peer's max-message-size fails before anything is sent, even without credit."""
    async with Peer() as peer, connected(peer) as connection:

        def limited(conversation: Conversation, link: Any) -> None:
            link.max_message_size = 100
            conversation.react("attach", link)

        peer.credit = 0
        peer.on["attach"] = limited
        sender = await connection.sender("q")
        with pytest.raises(amqp.MessageTooLarge) as caught:
            await soon(sender.send(amqp.Message(bytes(101))))
        assert (caught.value.limit, caught.value.size) == (100, len(amqp.Message(bytes(101)).encode()))
        peer.conversation.grant(1)
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert peer.received == [MESSAGE.encode()]


async def test_bytes_that_are_no_message_are_sent() -> None:
    """Encoded bytes go out as they are; what is no message is a ValueError, and nothing is sent."""
    async with Peer() as peer, connected(peer) as connection:
        sender = await connection.sender("q")
        raw = amqp.Message(b"x").encode()
        await soon(sender.send(raw))
        for wrong in (b"", b"hello", b"\x00\x53"):
            with pytest.raises(ValueError, match=r"\w"):
                await soon(sender.send(wrong))
        assert peer.received == [raw]


async def test_waiting_transfers_overtake_each_other() -> None:
    """Transfers that wait for credit go out in the order in which they were asked for."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        sender = await connection.sender("q")
        sends = [asyncio.create_task(sender.send(amqp.Message(b"%d" % n))) for n in range(30)]
        await turns()
        for count in (1, 2, 3, 24):
            peer.conversation.grant(count)
            await round_trip(connection)
        assert await soon(_gather(*sends)) == [amqp.Accepted()] * 30
        assert peer.received == encoded(*(b"%d" % n for n in range(30)))


async def test_large_messages_of_many_tasks_are_mixed_up() -> None:
    """Messages of many frames, sent by several tasks at once, arrive whole, and small ones are not held up for ever."""
    async with Peer() as peer:
        peer.tune = lambda conversation: setattr(conversation.transport, "max_frame_size", 512)
        async with connected(peer, send_buffer_bytes=4096) as connection:
            sender, other = await connection.sender("q"), await connection.sender("other")
            bodies = [bytes([n]) * 50_000 for n in range(8)]
            sends = [asyncio.create_task(sender.send(amqp.Message(body))) for body in bodies]
            sends += [asyncio.create_task(other.send(amqp.Message(b"small")))]
            assert await soon(_gather(*sends)) == [amqp.Accepted()] * 9
            assert sorted(peer.received) == sorted(encoded(b"small", *bodies))


async def test_a_sender_keeps_drained_credit() -> None:
    """Asked to drain, a sender uses the credit for what waits and gives the rest back, and sends no more on it."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        sender = await connection.sender("q")
        waiting = asyncio.create_task(sender.send(MESSAGE))
        await turns()
        link = next(iter(peer.conversation.links.values()))
        link.drain(5)
        peer.conversation.flush()
        assert await soon(waiting) == amqp.Accepted()
        await peer.until(lambda: link.credit == 0)
        late = asyncio.create_task(sender.send(MESSAGE))
        await round_trip(connection)
        assert not late.done()
        assert len(peer.received) == 1
        link.drain_mode = False
        peer.conversation.grant(1)
        assert await soon(late) == amqp.Accepted()


async def test_pre_settled_sends_hang_when_the_connection_goes() -> None:
    """Pre-settled messages that the transport has not taken when the connection goes fail, as those that wait do."""
    async with Peer() as peer, connected(peer, send_buffer_bytes=65536) as connection:
        peer.credit = 1000
        sender = await connection.sender("q")
        peer.conversation.socket.transport.pause_reading()
        big = amqp.Message(bytes(2**20))
        sends = [asyncio.create_task(sender.send(big, settled=True)) for _ in range(30)]
        _, waiting = await asyncio.wait(sends, timeout=0.2)
        assert waiting
        peer.conversation.drop()
        results = await soon(_gather(*waiting))
        assert all(isinstance(result, amqp.DeliveryUnknown | amqp.ConnectionClosed) for result in results)
        assert any(isinstance(result, amqp.ConnectionClosed) and not result.sent for result in results)


# --- receiving -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settle", "state"),
    [
        (lambda delivery: delivery.accept(), proton.Delivery.ACCEPTED),
        (lambda delivery: delivery.reject("amqp:decode-error", "no"), proton.Delivery.REJECTED),
        (lambda delivery: delivery.release(), proton.Delivery.RELEASED),
        (lambda delivery: delivery.modify(delivery_failed=True), proton.Delivery.MODIFIED),
    ],
    ids=["accept", "reject", "release", "modify"],
)
async def test_a_settlement_is_never_written(settle: Any, state: Any) -> None:
    """Settling is written without anything more being done, with its outcome, and can be done once."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        assert not delivery.settled
        await soon(settle(delivery))
        await peer.saw("disposition")
        assert peer.dispositions == [(state, True)]
        assert delivery.settled
        with pytest.raises(amqp.LocalProtocolError):
            await soon(delivery.accept())


async def test_a_tag_that_is_no_text_is_lost() -> None:
    """The tag of a delivery is the peer's bytes; once it is settled unread, asking is a local error and no nonsense."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        first = await soon(receiver.receive())
        assert first.tag == b"t1"
        await soon(first.accept())
        assert first.tag == b"t1"
        peer.conversation.raw(transfer(1, MESSAGE.encode()))
        second = await soon(receiver.receive())
        assert second.tag == bytes([0, 0, 0, 1])


async def test_a_received_state_settles_the_delivery() -> None:
    """Saying how far one has got settles nothing; the outcome comes later."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["disposition"] = ignore
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        await soon(delivery.received(1, 7))
        await peer.saw("disposition")
        assert not delivery.settled
        await soon(delivery.accept())
        await peer.saw("disposition", 2)
        assert peer.dispositions == [(proton.Delivery.RECEIVED, False), (proton.Delivery.ACCEPTED, True)]


async def test_confirm_returns_before_the_peer_has_settled() -> None:
    """With settle mode second and `confirm=True`, settling waits for the peer's settlement."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["disposition"] = lambda conversation, delivery: held.append(delivery)
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        delivery = await soon(receiver.receive())
        settling = asyncio.create_task(delivery.accept(confirm=True))
        await peer.saw("disposition")
        assert peer.dispositions == [(proton.Delivery.ACCEPTED, False)]
        await turns()
        assert not settling.done()
        peer.conversation.settle(held[0], None)
        await soon(settling)
        assert delivery.settled


@stops
async def test_confirm_waits_for_ever(stop: str) -> None:
    """A confirmation that cannot come any more raises SettlementLost at once."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.on["disposition"] = ignore
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        delivery = await soon(receiver.receive())
        settling = asyncio.create_task(delivery.accept(confirm=True))
        await peer.saw("disposition")
        act(peer.conversation)
        with pytest.raises(amqp.SettlementLost) as caught:
            await soon(settling)
        assert caught.value.stop.endpoint == error.kind


async def test_confirm_where_it_means_nothing() -> None:
    """`confirm=True` on a link of settle mode first is a local error, and settles nothing."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        with pytest.raises(amqp.LocalProtocolError):
            await soon(delivery.accept(confirm=True))
        await soon(delivery.release())
        await peer.saw("disposition")
        assert peer.dispositions == [(proton.Delivery.RELEASED, True)]


async def test_confirm_where_the_peer_settles_first() -> None:
    """Where settle mode second was not granted, confirming is a local error, and settling works as in mode first."""
    async with Peer() as peer, connected(peer) as connection:

        def attach(conversation: Conversation, link: Any) -> None:
            link.source.copy(link.remote_source)
            link.target.copy(link.remote_target)
            link.rcv_settle_mode = link.RCV_FIRST
            link.open()

        peer.on["attach"] = attach
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND)
        delivery = await soon(receiver.receive())
        with pytest.raises(amqp.LocalProtocolError):
            await soon(delivery.accept(confirm=True))
        await soon(delivery.accept())
        await peer.saw("disposition")
        assert peer.dispositions == [(proton.Delivery.ACCEPTED, True)]


@stops
@pytest.mark.parametrize("verb", ["accept", "reject", "release", "modify"])
async def test_a_settlement_that_cannot_arrive_is_silent(stop: str, verb: str) -> None:
    """Settling after the link has gone raises SettlementLost with the reason."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        act(peer.conversation)
        with pytest.raises(error):
            await soon(receiver.receive())
        with pytest.raises(amqp.SettlementLost) as caught:
            await soon(getattr(delivery, verb)())
        assert caught.value.stop.endpoint == error.kind
        assert delivery.body == b"1"


async def test_settling_after_our_own_close_is_silent() -> None:
    """After the receiver was closed by us, a delivery still in hand cannot be settled: SettlementLost."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        await soon(receiver.close())
        with pytest.raises(amqp.SettlementLost) as caught:
            await soon(delivery.accept())
        assert (caught.value.stop.endpoint, caught.value.stop.initiator) == ("link", "local")


async def test_a_receive_timed_out_loses_a_message() -> None:
    """A timeout round `receive` or `anext` loses nothing, however often, and the link stays attached."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        for wait in (receiver.receive, receiver.__anext__) * 5:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await wait()
        peer.queue.extend(encoded(*(b"%d" % n for n in range(10))))
        peer.conversation.react("flow", next(iter(peer.conversation.links.values())))
        peer.conversation.flush()
        assert [(await soon(receiver.receive())).body for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert receiver.state is amqp.EndpointState.OPEN
        assert "detach" not in peer.seen


async def test_a_receive_cancelled_as_its_message_comes_takes_it_along() -> None:
    """A delivery that has woken a waiter which is cancelled in the same turn goes to the next one."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        first, second = (asyncio.create_task(receiver.receive()) for _ in range(2))
        await turns()
        peer.conversation.deliver(*encoded(b"1"))
        while not receiver.queued:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert (await soon(second)).body == b"1"


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_cancelled_attach_leaves_a_half_open_link(role: str) -> None:
    """A link whose attach was cancelled is detached as soon as the peer answers, and its name is free again."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["attach"] = ignore
        session = await connection.session()
        attaching = asyncio.create_task(_open(getattr(session, role)("q", name="mine")))
        await peer.saw("attach")
        attaching.cancel()
        await asyncio.wait([attaching])
        assert attaching.cancelled()
        peer.conversation.react("attach", peer.conversation.links["mine"])
        peer.conversation.flush()
        await peer.saw("detach")
        assert peer.detached == [("mine", True, None)]
        assert connection.health().links == ()
        del peer.on["attach"]
        link = await soon(_open(getattr(session, role)("q", name="mine")))
        assert link.state is amqp.EndpointState.OPEN


async def _open(opening: amqp.Opening[Any]) -> Any:
    return await opening


async def test_closing_a_receiver_keeps_what_was_not_taken() -> None:
    """Closing withdraws the credit first, then releases what nobody took, then detaches."""
    async with Peer() as peer, connected(peer) as connection:
        story: list[Any] = []

        def note(event: str) -> Any:
            def reaction(conversation: Conversation, subject: Any) -> None:
                conversation.react(event, subject)
                story.append((event, subject.credit if event == "flow" else None))

            return reaction

        peer.queue.extend(encoded(*(b"%d" % n for n in range(5))))
        receiver = await connection.receiver("q", credit=10)
        delivery = await soon(receiver.receive())
        await soon(delivery.accept())
        for event in ("flow", "disposition", "detach"):
            peer.on[event] = note(event)
        await peer.saw("disposition")
        story.clear()
        await soon(receiver.close())
        states = [state for state, settled in peer.dispositions if settled]
        assert states == [proton.Delivery.ACCEPTED] + [proton.Delivery.RELEASED] * 4
        events = [event for event, _ in story]
        assert events[-1] == "detach"
        assert "flow" in events[: events.index("disposition")], "credit was not withdrawn before releasing"
        assert [credit for event, credit in story if event == "flow"][-1] == 0
        assert peer.detached[0][1] is True


async def test_deliveries_on_their_way_while_closing_are_lost() -> None:
    """What crosses the withdrawal of credit on the wire is released as well."""
    async with Peer() as peer, connected(peer) as connection:

        def late(conversation: Conversation, link: Any) -> None:
            if link.drain_mode or link.credit == 0:
                peer.queue.clear()
            conversation.react("flow", link)

        receiver = await connection.receiver("q", credit=10)
        await peer.saw("flow")

        def cross(conversation: Conversation, link: Any) -> None:
            # Sent before the peer has looked at the flow that withdraws the credit, as a busy broker does.
            if len(peer.dispositions) == 0 and link.credit:
                for raw in encoded(b"a", b"b"):
                    conversation.deliver(raw, link)
            conversation.react("flow", link)

        peer.on["flow"] = cross
        await soon(receiver.close())
        assert all(state == proton.Delivery.RELEASED and settled for state, settled in peer.dispositions)


@stops
async def test_iteration_ends_quietly_when_the_peer_is_gone(stop: str) -> None:
    """A remote or transport end raises out of `async for` and `receive`; it never looks like the end of the queue."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))
        receiver = await connection.receiver("q")
        bodies = []
        with pytest.raises(error) as caught:
            async with asyncio.timeout(PATIENCE):
                async for delivery in receiver:
                    bodies.append(delivery.body)
                    act(peer.conversation)
        assert bodies == [b"1"]
        assert isinstance(caught.value, amqp.EndpointClosed)
        if stop == "drop":
            assert caught.value.__cause__ is not None
        with pytest.raises(error):
            await soon(receiver.receive())
        with pytest.raises(error):
            await soon(receiver.__anext__())


@pytest.mark.parametrize("clean", ["detach", "detach(closed=False)", "end", "close"])
async def test_a_clean_remote_end_looks_like_the_end_of_the_queue(clean: str) -> None:
    """Also a detach, end or close without an error raises: it was not us."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        waiting = asyncio.create_task(receiver.__anext__())
        await turns()
        if clean == "detach(closed=False)":
            peer.conversation.detach(closed=False)
        else:
            getattr(peer.conversation, clean)()
        with pytest.raises(amqp.EndpointClosed) as caught:
            await soon(waiting)
        assert caught.value.stop.initiator == "remote"
        assert caught.value.stop.condition is None


@pytest.mark.parametrize("level", ["receiver", "session", "connection"])
async def test_iteration_goes_on_after_our_own_close(level: str) -> None:
    """Closing the receiver, its session or its connection ends an iteration in another task; `receive` raises."""
    async with Peer() as peer, connected(peer) as connection:
        session = await connection.session()
        receiver = await session.receiver("q")

        async def iterate() -> list[Any]:
            return [delivery async for delivery in receiver]

        iterating = asyncio.create_task(iterate())
        receiving = asyncio.create_task(receiver.receive())
        await turns()
        await soon({"receiver": receiver, "session": session, "connection": connection}[level].close())
        assert await soon(iterating) == []
        with pytest.raises(amqp.EndpointClosed) as caught:
            await soon(receiving)
        assert caught.value.stop.initiator == "local"


async def test_a_link_refills_its_credit_by_itself_when_manual() -> None:
    """With credit=0 nothing comes until asked for, and exactly as much as asked for."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(*(b"%d" % n for n in range(10))))
        receiver = await connection.receiver("q", credit=0)
        await soon(round_trip(connection))
        assert len(peer.queue) == 10
        await receiver.add_credit(3)
        for _ in range(3):
            await soon((await soon(receiver.receive())).accept())
        await soon(round_trip(connection))
        assert len(peer.queue) == 7
        assert receiver.credit == 0


async def test_the_window_closes_after_its_first_credit() -> None:
    """The automatic window is topped up as deliveries are taken, never beyond its size."""
    async with Peer() as peer, connected(peer) as connection:
        most = 0

        def watched(conversation: Conversation, link: Any) -> None:
            nonlocal most
            most = max(most, link.credit)
            conversation.react("flow", link)

        peer.on["flow"] = watched
        peer.queue.extend(encoded(*(b"%d" % n for n in range(100))))
        receiver = await connection.receiver("q", credit=8)
        for n in range(100):
            delivery = await soon(receiver.receive())
            assert delivery.body == b"%d" % n
            await delivery.accept()
            assert receiver.queued <= 8
        assert most <= 8


async def test_a_session_window_closes_for_ever() -> None:
    """A bounded session window is opened again as deliveries are taken, although no link needs credit."""
    async with Peer() as peer, connected(peer, max_frame_size=4096) as connection:
        peer.queue.extend(encoded(*(bytes([n]) * 3000 for n in range(100))))
        async with connection.session(incoming_window_bytes=16384) as session, session.receiver("q") as receiver:
            for n in range(100):
                delivery = await soon(receiver.receive())
                assert delivery.body == bytes([n]) * 3000
                await delivery.accept()


async def test_large_messages_overrun_the_prefetch_budget() -> None:
    """While nobody takes anything, large messages wait at the peer; the window in messages is no excuse."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(*(bytes(100_000) for _ in range(200))))
        receiver = await connection.receiver("q", credit=1000, max_prefetch_bytes=500_000)
        for n in range(200):
            await (await soon(receiver.receive())).accept()
            await round_trip(connection)
            # The budget; before the first message told their size credit for sixteen may have been out, and the
            # window is topped up at half.
            assert receiver.queued <= (21 if n < 20 else 10)


async def test_drain_when_the_last_message_uses_the_credit() -> None:
    """A peer whose last transfer used the credit up owes no flow (specification 2.6.7): drain is over with that."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(b"1"))

        def no_flow_without_need(conversation: Conversation, link: Any) -> None:
            while link.credit > 0 and peer.queue:
                conversation.deliver(peer.queue.popleft(), link)
            if link.credit > 0 and link.drain_mode:
                link.drained()

        peer.on["flow"] = no_flow_without_need
        receiver = await connection.receiver("q", credit=0)
        peer.on["flow"] = ignore
        await receiver.add_credit(1)
        await peer.saw("flow")
        draining = asyncio.create_task(receiver.drain())
        await peer.saw("flow", 2)
        no_flow_without_need(peer.conversation, next(iter(peer.conversation.links.values())))
        peer.conversation.flush()
        await soon(draining)
        assert (await soon(receiver.receive())).body == b"1"
        assert receiver.credit == 0


async def test_drain_hangs_or_leaves_credit() -> None:
    """`drain` returns when the peer has used up or given back the credit, also with none given."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q", credit=0)
        await soon(receiver.drain())
        await receiver.add_credit(10)
        peer.queue.extend(encoded(b"1", b"2"))
        await soon(receiver.drain())
        assert receiver.credit == 0
        assert [(await soon(receiver.receive())).body for _ in range(2)] == [b"1", b"2"]
        await receiver.add_credit(1)
        peer.conversation.react("flow", next(iter(peer.conversation.links.values())))
        peer.queue.extend(encoded(b"3"))
        await receiver.add_credit(1)
        assert (await soon(receiver.receive())).body == b"3"


async def test_an_automatic_window_stays_drained() -> None:
    """After a drain the automatic window opens again when somebody waits for a delivery, and not before."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q", credit=10)
        await peer.saw("flow")
        await soon(receiver.drain())
        assert receiver.credit == 0
        await round_trip(connection)
        link = next(iter(peer.conversation.links.values()))
        assert link.credit == 0
        receiving = asyncio.create_task(receiver.receive())
        await peer.until(lambda: link.credit > 0)
        peer.conversation.deliver(*encoded(b"1"))
        assert (await soon(receiving)).body == b"1"


@stops
async def test_drain_waits_for_ever(stop: str) -> None:
    """A drain that the peer never answers fails when the link goes."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q", credit=0)
        await receiver.add_credit(1)
        await peer.saw("flow")
        peer.on["flow"] = ignore
        draining = asyncio.create_task(receiver.drain())
        await peer.saw("flow", 2)
        act(peer.conversation)
        with pytest.raises(error):
            await soon(draining)


async def test_a_pre_settled_delivery_must_be_settled() -> None:
    """A delivery that came settled says so, and settling it is not needed and not sent."""
    async with Peer() as peer, connected(peer) as connection:
        peer.presettled = True
        peer.queue.extend(encoded(b"1", b"2"))
        receiver = await connection.receiver("q")
        delivery = await soon(receiver.receive())
        assert delivery.settled
        await soon(delivery.accept())
        assert (await soon(receiver.receive())).body == b"2"
        await soon(receiver.close())
        assert peer.dispositions == []


async def test_an_aborted_delivery_is_handed_out() -> None:
    """A delivery that the peer aborts half-way never reaches the user, and costs no credit for ever."""
    async with Peer() as peer, connected(peer, max_frame_size=512) as connection:
        receiver = await connection.receiver("q", credit=2)
        await peer.saw("flow")
        for _ in range(5):
            half = peer.conversation.deliver(amqp.Message(bytes(5000)).encode()[:2000], whole=False)
            await soon(round_trip(connection))
            half.abort()
            peer.conversation.flush()
            await soon(round_trip(connection))
        await peer.until(lambda: next(iter(peer.conversation.links.values())).credit > 0)
        peer.conversation.deliver(*encoded(b"whole"))
        assert (await soon(receiver.receive())).body == b"whole"


@pytest.mark.parametrize("whole", [True, False])
async def test_an_oversized_delivery_fills_the_memory(whole: bool) -> None:
    """A delivery over our max_message_size detaches the link with the error for it, also while it is not complete."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q", max_message_size=10_000)
        await peer.saw("flow")
        peer.conversation.deliver(amqp.Message(bytes(100_000)).encode(), whole=whole)
        with pytest.raises(amqp.LinkClosed) as caught:
            await soon(receiver.receive())
        assert caught.value.stop.condition == "amqp:link:message-size-exceeded"
        await peer.saw("detach")
        assert peer.detached[0][2] == "amqp:link:message-size-exceeded"
        assert connection.health().ok


# --- endpoints -------------------------------------------------------------------------


class Mine(Exception):
    """The body's own failure."""


@pytest.mark.parametrize("level", ["connection", "session", "sender", "receiver"])
@pytest.mark.parametrize("peer_does", ["behaves", "is silent", "drops", "closes with an error"])
async def test_closing_masks_the_exception_of_the_body(level: str, peer_does: str) -> None:
    """A failed body's exception comes out of `async with` as it is, soon, whatever the peer does."""
    async with Peer() as peer, connected(peer, close_timeout=0.3) as connection:
        session = await connection.session()
        opening: dict[str, Any] = {
            "connection": amqp.connect(peer.url, close_timeout=0.3),
            "session": connection.session(),
            "sender": session.sender("q"),
            "receiver": session.receiver("q"),
        }
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Mine) as caught:
            async with opening[level]:
                began = loop.time()
                if peer_does == "is silent":
                    peer.on.update(detach=ignore, end=ignore, close=ignore)
                elif peer_does == "drops":
                    peer.conversation.drop()
                elif peer_does == "closes with an error":
                    peer.conversation.close("amqp:internal-error")
                raise Mine
        assert loop.time() - began < 3
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, (TimeoutError, amqp.AMQPError))


@pytest.mark.parametrize("level", ["connection", "session", "sender", "receiver"])
async def test_a_close_that_failed_is_silent(level: str) -> None:
    """If the body was clean, a close that the peer never answers raises TimeoutError, once."""
    async with Peer() as peer, connected(peer, close_timeout=0.2) as connection:
        peer.on.update(detach=ignore, end=ignore, close=ignore)
        endpoints = await _endpoints(connection)
        endpoint = endpoints[level]
        with pytest.raises(TimeoutError):
            await soon(endpoint.close())
        assert endpoint.state is amqp.EndpointState.CLOSED
        assert connection.health().ok == (level != "connection")


@pytest.mark.parametrize("level", ["connection", "session", "sender", "receiver"])
async def test_closing_twice(level: str) -> None:
    """Close is idempotent: a second call waits for the first, and a later one returns."""
    async with Peer() as peer, connected(peer) as connection:
        endpoints = await _endpoints(connection)
        endpoint = endpoints[level]
        await soon(asyncio.gather(endpoint.close(), endpoint.close()))  # type: ignore[arg-type]
        await soon(endpoint.close())
        assert endpoint.state is amqp.EndpointState.CLOSED
        assert peer.seen.count({"connection": "close", "session": "end"}.get(level, "detach")) == 1


async def _endpoints(connection: amqp.Connection) -> dict[str, Any]:
    session = await connection.session()
    sender, receiver = await session.sender("q"), await session.receiver("q")
    return {"connection": connection, "session": session, "sender": sender, "receiver": receiver}


async def test_detach_closes_the_terminus() -> None:
    """`detach` sends closed=false and `close` closed=true."""
    async with Peer() as peer, connected(peer) as connection:
        await soon((await connection.sender("q", name="lives")).detach())
        await soon((await connection.receiver("q", name="lives-too")).detach())
        await soon((await connection.sender("q", name="dies")).close())
        assert peer.detached == [("lives", False, None), ("lives-too", False, None), ("dies", True, None)]


async def test_closing_forgets_the_sends_in_flight() -> None:
    """Closing a sender waits for outcomes that are on their way."""
    async with Peer() as peer, connected(peer) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await connection.sender("q")
        sending = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        closing = asyncio.create_task(sender.close())
        await soon(round_trip(connection))
        peer.conversation.settle(held[0])
        await soon(closing)
        assert await soon(sending) == amqp.Accepted()


@pytest.mark.parametrize("level", ["sender", "session", "connection"])
async def test_closing_leaves_a_waiting_send_hanging(level: str) -> None:
    """Our own close fails sends that wait for credit (nothing sent) and, in the end, those without outcome."""
    async with Peer() as peer, connected(peer, close_timeout=0.3) as connection:
        peer.credit = 1
        peer.on["transfer"] = ignore
        session = await connection.session()
        sender = await session.sender("q")
        doubtful = asyncio.create_task(sender.send(MESSAGE))
        await peer.saw("transfer")
        starved = asyncio.create_task(sender.send(MESSAGE))
        await turns()
        closing = {"sender": sender, "session": session, "connection": connection}[level].close()
        with contextlib.suppress(TimeoutError):
            await soon(closing)
        with pytest.raises(amqp.DeliveryUnknown):
            await soon(doubtful)
        with pytest.raises(amqp.EndpointClosed) as caught:
            await soon(starved)
        assert caught.value.sent is False
        assert caught.value.stop.initiator == "local"


@stops
async def test_a_lost_endpoint_leaves_waiters_hanging(stop: str) -> None:
    """Every kind of waiter on a link that goes fails at once, each by its own exception with the cause chained."""
    act, error = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 1
        peer.on["transfer"] = ignore
        session = await connection.session()
        sender = await session.sender("q", name="s")
        receiver = await session.receiver("q", name="r")
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(sender.send(MESSAGE))]
        await peer.saw("transfer")
        waits += [asyncio.create_task(sender.send(MESSAGE)) for _ in range(2)]
        waits += [asyncio.create_task(sender.transfer(MESSAGE))]
        receiving: list[asyncio.Task[Any]] = [asyncio.create_task(receiver.receive()) for _ in range(2)]
        receiving += [asyncio.create_task(_next(receiver))]
        await turns()
        if stop == "detach":
            for link in list(peer.conversation.links.values()):
                peer.conversation.detach(link, "amqp:resource-deleted")
        else:
            act(peer.conversation)
        results = await soon(_gather(*waits, *receiving))
        assert isinstance(results[0], amqp.DeliveryUnknown)
        assert all(isinstance(result, error) for result in results[1:])
        assert len({id(result) for result in results}) == len(results)
        if stop == "drop":
            assert all(result.__cause__ is not None for result in results)


async def _next(receiver: amqp.Receiver) -> amqp.Delivery:
    return await anext(receiver)


async def _gather(*waits: Any) -> list[Any]:
    return await asyncio.gather(*waits, return_exceptions=True)


async def test_closing_parent_and_child_at_once() -> None:
    """Closing a connection, its session and its links in different tasks at once closes each once, in order."""
    async with Peer() as peer, connected(peer) as connection:
        endpoints = await _endpoints(connection)
        receiving = asyncio.create_task(endpoints["receiver"].receive())
        await turns()
        closes = [endpoints[level].close() for level in ("connection", "session", "sender", "receiver")]
        results = await soon(_gather(*closes, receiving))
        assert results[:4] == [None] * 4
        assert isinstance(results[4], amqp.EndpointClosed)
        assert peer.seen.count("close") == 1
        assert peer.seen.count("end") <= 1
        assert peer.seen.count("detach") <= 2


async def test_losing_a_link_takes_its_neighbours_along() -> None:
    """The loss of one link, or of one session, leaves the others as they were."""
    async with Peer() as peer, connected(peer) as connection:
        one, two = await connection.session(), await connection.session()
        doomed = await one.sender("q", name="doomed")
        neighbour = await one.sender("q", name="neighbour")
        far = await two.sender("q", name="far")
        peer.conversation.detach(peer.conversation.links["doomed"], "amqp:resource-deleted")
        await soon(round_trip(connection))
        with pytest.raises(amqp.LinkClosed):
            await soon(doomed.send(MESSAGE))
        assert await soon(neighbour.send(MESSAGE)) == amqp.Accepted()
        peer.conversation.end("amqp:internal-error", peer.conversation.links["neighbour"].session)
        await soon(round_trip(connection))
        with pytest.raises(amqp.SessionClosed):
            await soon(neighbour.send(MESSAGE))
        assert await soon(far.send(MESSAGE)) == amqp.Accepted()
        assert connection.health().ok


async def test_one_slow_receiver_slows_another() -> None:
    """A receiver that nobody reads fills its own window, and another on the same session goes on."""
    async with Peer() as peer, connected(peer) as connection:
        session = await connection.session()
        peer.queue.extend(encoded(*(b"slow",) * 20))
        slow = await session.receiver("slow", credit=10)
        await peer.until(lambda: len(peer.queue) == 10)
        peer.queue.clear()
        peer.queue.extend(encoded(*(b"%d" % n for n in range(200))))
        quick = await session.receiver("quick", credit=10)
        for n in range(200):
            delivery = await soon(quick.receive())
            assert delivery.body == b"%d" % n
            await delivery.accept()
        assert slow.queued == 10


async def test_many_tasks_share_a_sender() -> None:
    """Fifty tasks send through one sender with little credit; every message arrives once and each gets its outcome."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 3
        sender = await connection.sender("q")
        bodies = [b"%d" % n for n in range(50)]
        results = await soon(_gather(*(sender.send(amqp.Message(body)) for body in bodies)))
        assert results == [amqp.Accepted()] * 50
        assert sorted(peer.received) == sorted(encoded(*bodies))


@pytest.mark.parametrize("method", ["send", "transfer"])
async def test_a_busy_task_starves_another(method: str) -> None:
    """A task that sends in a loop does not take every credit from one that was waiting before it."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 1
        sender = await connection.sender("q")
        patient: asyncio.Task[Any] | None = None
        sent = 0

        async def busy() -> None:
            nonlocal patient, sent
            while patient is None or not patient.done():
                pending = await sender.transfer(MESSAGE)
                if patient is None:
                    patient = asyncio.create_task(getattr(sender, method)(MESSAGE))
                    await asyncio.sleep(0)
                await pending
                sent += 1
                assert sent < 100, "the one who waits is never served"

        await soon(busy())


async def test_a_busy_receiver_starves_another() -> None:
    """Two tasks on one receiver both get deliveries, also if one takes without ever having to wait."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q", credit=4)
        counts = [0, 0]

        async def take(who: int) -> None:
            while sum(counts) < 200:
                delivery = await receiver.receive()
                counts[who] += 1
                await delivery.accept()

        takers = [asyncio.create_task(take(who)) for who in range(2)]
        await peer.saw("flow")
        peer.queue.extend(encoded(*(b"x",) * 201))
        peer.conversation.react("flow", next(iter(peer.conversation.links.values())))
        peer.conversation.flush()
        await soon(_gather(*takers))
        assert min(counts) > 0


async def test_many_tasks_share_a_receiver() -> None:
    """Ten tasks receive from one receiver; every delivery goes to exactly one of them."""
    async with Peer() as peer, connected(peer) as connection:
        peer.queue.extend(encoded(*(b"%d" % n for n in range(100))))
        receiver = await connection.receiver("q", credit=10)

        async def work() -> list[Any]:
            got = []
            async for delivery in receiver:
                got.append(delivery.body)
                await delivery.accept()
            return got

        workers = [asyncio.create_task(work()) for _ in range(10)]
        await peer.saw("disposition", 100)
        await soon(receiver.close())
        got = [body for bodies in await soon(_gather(*workers)) for body in bodies]
        assert sorted(got) == sorted(b"%d" % n for n in range(100))


async def test_many_tasks_open_links_on_the_default_session_at_once() -> None:
    """Links opened at the same time share one default session, and one failing does not harm the others."""
    async with Peer() as peer, connected(peer) as connection:

        def some(conversation: Conversation, link: Any) -> None:
            if link.remote_target.address == "no":
                refuse("amqp:not-found")(conversation, link)
            else:
                conversation.react("attach", link)

        peer.on["attach"] = some
        openings = [connection.sender("no" if n % 5 == 0 else "q") for n in range(20)]
        results = await soon(_gather(*map(_open, openings)))
        assert [type(result) for result in results] == [
            amqp.AttachError if n % 5 == 0 else amqp.Sender for n in range(20)
        ]
        assert peer.seen.count("begin") == 1


async def test_bytes_cut_anywhere_are_misread() -> None:
    """A conversation whose bytes come one by one, or in odd pieces, is the same conversation."""
    for sizes in ((1,), (7, 1, 3), (4096,)):
        async with Peer() as peer:
            peer.cut = sized(*sizes)
            peer.queue.extend(encoded(b"1", bytes(1000)))
            async with connected(peer) as connection:
                sender = await connection.sender("q")
                receiver = await connection.receiver("q")
                assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
                assert (await soon(receiver.receive())).body == b"1"
                assert (await soon(receiver.receive())).body == bytes(1000)


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_dynamic_node_has_no_name(role: str) -> None:
    """The address of a dynamic node is the one that the peer gave it in its attach."""
    async with Peer() as peer, connected(peer) as connection:
        terminus = amqp.Target(dynamic=True) if role == "sender" else amqp.Source(dynamic=True)
        async with getattr(connection, role)(terminus, name="mine") as link:
            assert link.address == "made-for-mine"


# --- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_refused_attach_looks_like_success(role: str) -> None:
    """An attach with a null terminus and then a detach is a refusal: AttachError, with the peer's condition."""
    async with Peer() as peer, connected(peer) as connection:
        peer.on["attach"] = refuse("amqp:unauthorized-access", {"tracking-id": "7"})
        with pytest.raises(amqp.AttachError, match="secret-place") as caught:
            await soon(_open(getattr(connection, role)("secret-place")))
        assert caught.value.condition == "amqp:unauthorized-access"
        assert caught.value.description == "so it was scripted"
        assert caught.value.info == {"tracking-id": "7"}
        assert caught.value.address == "secret-place"
        assert connection.health().links == ()
        del peer.on["attach"]
        async with getattr(connection, role)("elsewhere") as link:
            assert link.address == "elsewhere"


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_refusal_in_two_parts_is_half_noticed(role: str) -> None:
    """Between the null terminus and the detach the opener goes on waiting."""
    async with Peer() as peer, connected(peer) as connection:

        def null(conversation: Conversation, link: Any) -> None:
            (link.source if link.is_sender else link.target).type = proton.Terminus.UNSPECIFIED
            link.open()

        peer.on["attach"] = null
        session = await connection.session()
        attaching = asyncio.create_task(_open(getattr(session, role)("q", name="mine")))
        await peer.saw("attach")
        await soon(round_trip(connection))
        assert not attaching.done()
        peer.conversation.detach(peer.conversation.links["mine"], "amqp:not-found")
        with pytest.raises(amqp.AttachError) as caught:
            await soon(attaching)
        assert caught.value.condition == "amqp:not-found"


async def test_a_refusal_without_a_reason() -> None:
    """A refusal without a condition is still an AttachError."""
    async with Peer() as peer, connected(peer) as connection:

        def silent(conversation: Conversation, link: Any) -> None:
            link.target.type = proton.Terminus.UNSPECIFIED
            link.open()
            link.close()

        peer.on["attach"] = silent
        with pytest.raises(amqp.AttachError) as caught:
            await soon(_open(connection.sender("q")))
        assert caught.value.condition is None


async def test_a_detach_instead_of_a_refusal() -> None:
    """Brokers that attach normally and detach at once have refused, too, or their detach is told by the first use."""
    async with Peer() as peer, connected(peer) as connection:
        peer.credit = 0
        peer.on["attach"] = after("attach", lambda conversation: conversation.detach(condition="amqp:not-allowed"))
        with pytest.raises((amqp.AttachError, amqp.LinkClosed)) as caught:
            sender = await soon(_open(connection.sender("q")))
            await soon(sender.send(MESSAGE))
        error = caught.value
        assert isinstance(error, amqp.AttachError | amqp.LinkClosed)
        assert (error.condition if isinstance(error, amqp.AttachError) else error.stop.condition) == "amqp:not-allowed"


@pytest.mark.parametrize(
    ("stop", "error"), [("end", amqp.SessionClosed), ("close", amqp.ConnectionClosed), ("drop", amqp.ConnectionClosed)]
)
async def test_an_attach_on_a_dying_endpoint_hangs(stop: str, error: type[amqp.EndpointClosed]) -> None:
    """An opener whose session or connection goes while it waits fails at once with that level's error."""
    act, _ = STOPS[stop]
    async with Peer() as peer, connected(peer) as connection:
        peer.on["attach"] = lambda conversation, link: act(conversation)
        with pytest.raises(error):
            await soon(_open(connection.sender("q")))


@pytest.mark.parametrize("moment", ["opening", "open"])
async def test_a_connection_redirect_is_just_a_close(moment: str) -> None:
    """A redirect of the connection is a RedirectError and a ConnectionClosed, and says where to go."""
    info = {"hostname": "h", "network-host": "other.example", "port": 5671, "scheme": "wss", "path": "/there"}
    async with Peer() as peer:

        def redirect(conversation: Conversation) -> None:
            conversation.close("amqp:connection:redirect", "go", info)

        if moment == "opening":
            peer.on["open"] = after("open", redirect)
        else:
            peer.on["begin"] = lambda conversation, session: redirect(conversation)
        with pytest.raises(amqp.RedirectError) as caught:
            async with connected(peer) as connection:
                await soon(round_trip(connection))
        error = caught.value
        assert isinstance(error, amqp.ConnectionClosed)
        assert (error.hostname, error.network_host, error.port) == ("h", "other.example", 5671)
        assert (error.scheme, error.path) == ("wss", "/there")


async def test_a_link_redirect_is_just_a_detach() -> None:
    """A redirect of an attached link is a RedirectError and a LinkClosed; of a refused one, the AttachError's cause."""
    info = {"network-host": "other.example", "port": 5671, "address": "elsewhere"}
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        peer.conversation.detach(condition="amqp:link:redirect", info=info)
        with pytest.raises(amqp.RedirectError) as caught:
            await soon(receiver.receive())
        assert isinstance(caught.value, amqp.LinkClosed)
        assert caught.value.address == "elsewhere"
        peer.on["attach"] = refuse("amqp:link:redirect", info)
        with pytest.raises(amqp.AttachError) as refused:
            await soon(_open(connection.sender("q")))
        assert isinstance(refused.value.__cause__, amqp.RedirectError)
        assert refused.value.__cause__.network_host == "other.example"


async def test_a_close_in_place_of_an_open() -> None:
    """A peer that opens and closes at once fails `connect` with the condition."""
    async with Peer() as peer:
        peer.on["open"] = after("open", lambda conversation: conversation.close("amqp:not-allowed", "no vhost"))
        with pytest.raises(amqp.ConnectionClosed, match="no vhost") as caught:
            async with asyncio.timeout(PATIENCE):
                await amqp.connect(peer.url)
        assert caught.value.stop.condition == "amqp:not-allowed"
        await peer.gone()


async def test_a_sasl_refusal_is_just_a_closed_connection() -> None:
    """A peer that refuses the SASL mechanism makes `connect` raise AuthenticationError."""

    async def no(conversation: Conversation) -> None:
        socket = conversation.socket
        await socket.recv()
        await socket.send(SASL_HEADER + mechanisms("ANONYMOUS"))
        await socket.recv()
        await socket.send(SASL_REFUSED)
        async for _ in conversation.socket:
            pass

    async with Peer() as peer:
        peer.script = no
        with pytest.raises(amqp.AuthenticationError):
            async with asyncio.timeout(PATIENCE):
                await amqp.connect(peer.url)
        await peer.gone()


async def test_a_text_message_is_read_as_amqp() -> None:
    """A text message breaks the binding: the connection ends with RemoteProtocolError as the cause."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        peer.conversation.raw("hello")
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await soon(receiver.receive())
        assert isinstance(caught.value.__cause__, amqp.RemoteProtocolError)
        await peer.gone()


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x00\x00\x04\x02\x00\x00\x00",
        b"\x00\x00\x00\x10\x02\x00\x00\x00\x00\x53\x10\xff\xff\xff\xff\xff",
        b"\xff" * 64,
    ],
    ids=["http", "tiny", "garbage", "giant"],
)
async def test_broken_frames_crash_or_hang(wrong: bytes) -> None:
    """Bytes that are no frames end the connection with a typed error, and the peer is told or left."""
    async with Peer() as peer, connected(peer) as connection:
        receiver = await connection.receiver("q")
        peer.conversation.raw(wrong)
        with pytest.raises(amqp.ConnectionClosed) as caught:
            await soon(receiver.receive())
        assert isinstance(caught.value.__cause__, amqp.RemoteProtocolError) or caught.value.stop.condition
        await peer.gone()


async def test_two_links_of_one_name() -> None:
    """A second link of a name and role that is attached is a local error; the first is not harmed."""
    async with Peer() as peer, connected(peer) as connection:
        session = await connection.session()
        first = await session.sender("q", name="mine")
        with pytest.raises(amqp.LocalProtocolError):
            await soon(_open(session.sender("q", name="mine")))
        async with session.receiver("q", name="mine"):
            pass
        assert await soon(first.send(MESSAGE)) == amqp.Accepted()


async def test_using_what_is_closed() -> None:
    """Every method of a closed endpoint raises its level's error, and sends nothing."""
    async with Peer() as peer, connected(peer) as connection:
        session = await connection.session()
        sender, receiver = await session.sender("q"), await session.receiver("q", credit=0)
        await soon(sender.close())
        await soon(receiver.close())
        for use in (sender.send(MESSAGE), sender.transfer(MESSAGE)):
            with pytest.raises(amqp.LinkClosed):
                await soon(use)
        for wait in (receiver.receive(), receiver.drain(), receiver.add_credit(1)):
            with pytest.raises(amqp.LinkClosed):
                await soon(wait)
        await soon(session.close())
        with pytest.raises(amqp.SessionClosed):
            await soon(_open(session.sender("q")))
        await soon(connection.close())
        with pytest.raises(amqp.ConnectionClosed):
            await soon(_open(connection.session()))
        with pytest.raises(amqp.ConnectionClosed):
            await soon(_open(connection.sender("q")))


async def test_out_of_channels() -> None:
    """More sessions than channels is a local error, and an ended session gives its channel back."""
    async with Peer() as peer, connected(peer, channel_max=1) as connection:
        first, _second = await connection.session(), await connection.session()
        with pytest.raises(amqp.LocalProtocolError):
            await soon(round_trip(connection))
        await soon(first.close())
        await soon(round_trip(connection))
