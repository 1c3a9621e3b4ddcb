"""What a client's sender promises, each promise over losses of its link, its session and its connection."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import proton
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amqpws_async as amqp
from amqpws_async.testing import Broker, FaultProxy, Lane, Wire
from amqpws_async.testing.faults import (
    DeclineMessage,
    DetachLink,
    DropConnection,
    EndSession,
    Fault,
    LoseOutcome,
    RefuseLink,
    StarveCredit,
    link_redirect,
)

from .clients import (
    CLOSED,
    CONNECTED,
    FAST,
    RECONNECTING,
    Changes,
    beside,
    body_of,
    opened,
    relinked,
    soon,
    turns,
    until,
)
from .peer import PATIENCE, Conversation, Peer, ignore, outcome

MESSAGE = amqp.Message(b"one", message_id="id-1")

#: Every way in which a link can go, and come back.
LOSSES: dict[str, Callable[[Conversation], None]] = {
    "detach": lambda conversation: conversation.detach(condition="amqp:link:detach-forced"),
    "end": lambda conversation: conversation.end("amqp:internal-error"),
    "close": lambda conversation: conversation.close("amqp:connection:forced"),
    "drop": lambda conversation: conversation.drop(),
}
losses = pytest.mark.parametrize("loss", LOSSES)
modes = pytest.mark.parametrize("mode", ["raise", "resend"])


def numbered(count: int, first: int = 0) -> list[amqp.Message]:
    return [amqp.Message(b"%d" % n, message_id=f"m{n}") for n in range(first, first + count)]


def bodies(broker: Broker, queue: str = "q") -> list[bytes]:
    """What is in a queue, in its order."""
    return [body_of(message) for message in broker.messages(queue)]


def without_repeats(items: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(items))


# --- outages -------------------------------------------------------------------------


async def test_a_send_during_an_outage_fails() -> None:
    """A send made while there is no connection waits, and is sent once there is one again."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        sender = await client.sender("q")
        await broker.abort()
        await changes.saw(RECONNECTING)
        async with beside(sender.send(MESSAGE)) as sending:
            await changes.saw(RECONNECTING, 3)
            assert not sending.done()
            assert sender.credit == 0
            assert not sender.attached
            await broker.start()
            assert await soon(sending) == amqp.Accepted()
        assert bodies(broker) == [b"one"]


async def test_a_timed_out_send_is_sent_later() -> None:
    """`asyncio.timeout` ends the wait of a send during an outage, and the message is never sent."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        sender = await client.sender("q", on_unknown="resend")
        await broker.abort()
        await changes.saw(RECONNECTING)
        for send in (sender.send, sender.transfer):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await send(MESSAGE)
        await broker.start()
        await soon(sender.send(b"\x00\x53\x75\xa0\x01x"))
        assert bodies(broker) == [b"x"]
        assert sender.unsettled == 0


async def test_failing_fast_waits() -> None:
    """With ``outage="fail"`` calls raise at once during an outage, and work again after it."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes, outage="fail") as client:
        sender = await client.sender("q")
        patient = await client.sender("q", outage="wait")
        await broker.abort()
        await changes.saw(RECONNECTING)
        for use in (sender.send(MESSAGE), sender.transfer(MESSAGE), client.sender("r").__aenter__()):
            began = time.monotonic()
            with pytest.raises(amqp.ConnectionClosed) as caught:
                await soon(use)
            assert time.monotonic() - began < 2.0
            assert caught.value.sent is False
            assert caught.value.__cause__ is not None
        many = sender.send_many([MESSAGE])
        with pytest.raises(amqp.ConnectionClosed):
            await soon(anext(many))
        async with beside(patient.send(MESSAGE)) as sending:
            await turns()
            assert not sending.done()
            await broker.start()
            await soon(sending)
        await until(lambda: sender.attached)
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert bodies(broker) == [b"one", b"one"]


async def test_failing_fast_waits_for_a_link() -> None:
    """With ``outage="fail"`` a sender without its link raises at once, though there is a connection."""
    async with Broker() as broker, opened(broker.url) as client:
        sender = await client.sender("q", outage="fail")
        broker.faults.inject(RefuseLink(times=None))
        broker.faults.detach_links()
        await until(lambda: not sender.attached)
        with pytest.raises(amqp.LinkClosed) as caught:
            await soon(sender.send(MESSAGE))
        assert caught.value.sent is False
        broker.faults.clear()
        await until(lambda: sender.attached)
        await soon(sender.send(MESSAGE))
        assert bodies(broker) == [b"one"]


# --- in doubt ------------------------------------------------------------------------


@losses
async def test_a_send_in_doubt_is_taken_for_failed_or_sent(loss: str) -> None:
    """With ``on_unknown="raise"`` a send without outcome raises DeliveryUnknown, with message and reason."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q")
        async with beside(sender.send(MESSAGE)) as sending:
            await peer.saw("transfer")
            LOSSES[loss](peer.conversation)
            with pytest.raises(amqp.DeliveryUnknown) as caught:
                await soon(sending)
        assert caught.value.message is MESSAGE
        assert caught.value.stop.initiator == ("transport" if loss == "drop" else "remote")
        assert sender.unsettled == 0
        del peer.on["transfer"]
        assert await soon(sender.send(amqp.Message(b"two"))) == amqp.Accepted()
        assert [amqp.Message.decode(raw).body for raw in peer.received] == [b"one", b"two"]


@losses
async def test_what_is_sent_again_is_another_message(loss: str) -> None:
    """With ``on_unknown="resend"`` the same bytes come again, in their order and before anything new."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        messages = [*numbered(2), amqp.Message(b"2"), amqp.Message(b"3")]  # two without an id of their own
        async with asyncio.TaskGroup() as group:
            sends = [group.create_task(soon(sender.send(message))) for message in messages]
            await peer.saw("transfer", 4)
            first = list(peer.received)
            assert sender.unsettled == 4
            del peer.on["transfer"]
            attaches: list[tuple[Conversation, Any]] = []
            peer.on["attach"] = lambda conversation, link: attaches.append((conversation, link))
            LOSSES[loss](peer.conversation)
            await peer.until(lambda: attaches)
            new = group.create_task(soon(sender.send(amqp.Message(b"new"))))
            await turns()
            assert sender.unsettled == 4
            del peer.on["attach"]
            conversation, link = attaches[0]
            conversation.react("attach", link)
            conversation.flush()
        assert [send.result() for send in sends] == [amqp.Accepted()] * 4
        assert new.result() == amqp.Accepted()
        assert peer.received[4:8] == first
        assert [amqp.Message.decode(raw).body for raw in peer.received[8:]] == [b"new"]
        ids = [amqp.Message.decode(raw).message_id for raw in first]
        assert ids[:2] == ["m0", "m1"]
        assert all(isinstance(each, uuid.UUID) for each in ids[2:])
        assert len(set(ids)) == 4
        assert [message.message_id for message in messages[2:]] == [None, None]
        assert sender.unsettled == 0


async def test_a_second_loss_ends_it() -> None:
    """Several losses in a row, also while messages are sent again, change nothing but the number of copies."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.credit = 10

        def lose(conversation: Conversation, delivery: Any) -> None:
            if len(peer.received) in (4, 6, 9, 10):  # the fourth, the second sent again, the third, the first
                conversation.drop()

        peer.on["transfer"] = lose
        sender = await client.sender("q", on_unknown="resend")
        pendings = [await soon(sender.transfer(message)) for message in numbered(4)]
        await peer.until(lambda: len(peer.received) >= 10)
        del peer.on["transfer"]
        assert [await soon(pending) for pending in pendings] == [amqp.Accepted()] * 4
        assert sender.unsettled == 0
        seen = [body_of(raw) for raw in peer.received]
        assert seen[:4] == [b"0", b"1", b"2", b"3"]
        assert seen[-4:] == [b"0", b"1", b"2", b"3"]
        assert len(set(peer.received)) == 4


async def test_what_had_its_outcome_is_sent_again() -> None:
    """Only what is in doubt is sent again, not what was settled, accepted or not."""
    async with Peer() as peer, opened(peer.url) as client:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await client.sender("q", on_unknown="resend")
        pendings = [await soon(sender.transfer(message)) for message in numbered(5)]
        await peer.saw("transfer", 5)
        peer.conversation.settle(held[1])
        peer.conversation.settle(held[3], proton.Delivery.RELEASED)
        assert await soon(pendings[1]) == amqp.Accepted()
        assert await soon(pendings[3]) == amqp.Released()
        del peer.on["transfer"]
        peer.conversation.drop()
        assert [await soon(pending) for pending in pendings] == [
            amqp.Accepted(),
            amqp.Accepted(),
            amqp.Accepted(),
            amqp.Released(),
            amqp.Accepted(),
        ]
        assert [amqp.Message.decode(raw).body for raw in peer.received[5:]] == [b"0", b"2", b"4"]


async def test_an_outcome_of_what_was_sent_again_is_hidden() -> None:
    """What is sent again may be refused then, and the waiting send raises that."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        async with beside(sender.send(MESSAGE)) as sending:
            await peer.saw("transfer")
            peer.on["transfer"] = outcome(proton.Delivery.REJECTED, condition=proton.Condition("amqp:decode-error"))
            peer.conversation.drop()
            with pytest.raises(amqp.MessageRejected) as caught:
                await soon(sending)
        assert caught.value.message is MESSAGE
        assert sender.attached
        assert sender.unsettled == 0


async def test_the_caller_changes_what_is_sent_again() -> None:
    """What the caller does to its message after the transfer makes no difference to what is sent again."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        message = amqp.Message(b"before")
        pending = await soon(sender.transfer(message))
        await peer.saw("transfer")
        message.body = b"after"
        del peer.on["transfer"]
        peer.conversation.drop()
        assert await soon(pending) == amqp.Accepted()
        assert peer.received[0] == peer.received[1]


async def test_encoded_bytes_have_no_id() -> None:
    """Encoded bytes are sent again as well; where they have no message-id, one is set, and the body stays the same."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        with_id = amqp.Message(b"a", message_id="mine").encode()
        without = amqp.Message(b"b", content_type="text/plain").encode()
        pendings = [await soon(sender.transfer(raw)) for raw in (with_id, without)]
        await peer.saw("transfer", 2)
        del peer.on["transfer"]
        peer.conversation.drop()
        for pending in pendings:
            assert await soon(pending) == amqp.Accepted()
        assert peer.received[:2] == peer.received[2:]
        assert peer.received[0] == with_id
        sent = amqp.Message.decode(peer.received[1])
        assert isinstance(sent.message_id, uuid.UUID)
        assert (sent.body, sent.content_type) == (b"b", "text/plain")
        assert isinstance(pendings[1], amqp.ResentDelivery)
        assert pendings[1].message_id == sent.message_id


@pytest.mark.parametrize("end", ["sender", "client", "stolen"])
async def test_the_end_hides_what_is_in_doubt(end: str) -> None:
    """With "resend", only the end of the sender or the client leaves a delivery in doubt: DeliveryUnknown says so."""
    async with Peer() as peer, opened(peer.url, close_timeout=0.3) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        pending = await soon(sender.transfer(MESSAGE))
        async with beside(sender.send(MESSAGE)) as sending:
            await peer.saw("transfer", 2)
            if end == "stolen":
                peer.conversation.detach(condition="amqp:link:stolen")
            elif end == "sender":
                with pytest.raises(TimeoutError):
                    await soon(sender.close())
            else:
                await soon(client.close())
            for wait in (sending, pending, pending):
                with pytest.raises(amqp.DeliveryUnknown) as caught:
                    await soon(wait)
                assert caught.value.message is MESSAGE
        assert sender.stop is not None
        assert (client.state is CLOSED) == (end == "client")
        with pytest.raises(amqp.EndpointClosed) as late:
            await soon(sender.send(MESSAGE))
        assert late.value.sent is False


# --- who waits -----------------------------------------------------------------------


@losses
@modes
async def test_awaiters_of_one_delivery_disturb_each_other(mode: Any, loss: str) -> None:
    """Several tasks await one delivery over a loss; cancelling some disturbs neither the others nor the delivery."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown=mode)
        pending = await soon(sender.transfer(MESSAGE))

        async def outcome_of() -> object:
            return await pending

        waiting = [asyncio.create_task(outcome_of()) for _ in range(4)]
        await peer.saw("transfer")
        waiting[0].cancel()
        await turns()
        assert not pending.done
        del peer.on["transfer"]
        LOSSES[loss](peer.conversation)
        waiting[1].cancel()
        await asyncio.wait(waiting, timeout=PATIENCE)
        assert [task.cancelled() for task in waiting] == [True, True, False, False]
        for task in waiting[2:]:
            if mode == "raise":
                assert isinstance(task.exception(), amqp.DeliveryUnknown)
            else:
                assert task.result() == amqp.Accepted()
        if mode == "raise":
            assert waiting[2].exception() is not waiting[3].exception()
        assert pending.done
        assert sender.unsettled == 0


async def test_a_cancelled_send_is_not_sent_again() -> None:
    """A send cancelled after the transfer is in doubt for its caller, and with "resend" arrives all the same."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        async with beside(sender.send(MESSAGE)) as sending:
            await peer.saw("transfer")
            sending.cancel()
            await asyncio.wait([sending])
        del peer.on["transfer"]
        peer.conversation.drop()
        await peer.saw("transfer", 2)
        assert peer.received[0] == peer.received[1]
        await until(lambda: sender.unsettled == 0)


async def test_nobody_asks_for_the_outcome() -> None:
    """A delivery in doubt that nobody awaits, and that is dropped, makes no complaint."""
    async with Peer() as peer, opened(peer.url) as client:
        peer.on["transfer"] = ignore
        for mode in ("raise", "resend"):
            sender = await client.sender("q", on_unknown=mode)
            for message in numbered(3):
                await soon(sender.transfer(message))
        await peer.saw("transfer", 6)
        del peer.on["transfer"]
        peer.conversation.drop()
        await peer.saw("transfer", 9)


# --- many ----------------------------------------------------------------------------


@losses
async def test_send_many_ends_with_a_loss(loss: str) -> None:
    """In mode "raise" send_many gives DeliveryUnknown for what was in flight, and goes on with the rest."""
    async with Peer() as peer, opened(peer.url) as client:
        kept = {b"0", b"1"}

        def first_two(conversation: Conversation, delivery: Any) -> None:
            if amqp.Message.decode(peer.received[-1]).body in kept:
                conversation.react("transfer", delivery)

        peer.on["transfer"] = first_two
        messages = numbered(20)
        sender = await client.sender("q")
        many = sender.send_many(messages, in_flight=3)
        results = [await soon(anext(many)) for _ in range(2)]
        async with beside(anext(many)) as step:
            await peer.saw("transfer", 5)
            del peer.on["transfer"]
            LOSSES[loss](peer.conversation)
            results.append(await soon(step))
        async with asyncio.timeout(PATIENCE):
            results += [result async for result in many]
        assert [message for message, _ in results] == messages
        doubtful = [isinstance(result, amqp.DeliveryUnknown) for _, result in results]
        assert doubtful == [2 <= number < 5 for number in range(20)]
        assert all(result == amqp.Accepted() for (_, result), doubt in zip(results, doubtful, strict=True) if not doubt)


@modes
async def test_send_many_loses_count_over_losses(mode: Any) -> None:
    """send_many over many losses gives each message once with its outcome, in order; resent ones all arrive."""
    plan: list[Fault] = [DropConnection(on="arrival", after=n) for n in (20, 90, 91, 180)]
    plan += [DetachLink(on="arrival", after=50), EndSession(on="arrival", after=130), LoseOutcome(after=10)]
    async with Broker(faults=plan) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        messages = numbered(300)

        async def source() -> AsyncIterator[amqp.Message]:
            for message in messages:
                yield message

        async with asyncio.timeout(PATIENCE):
            results = [result async for result in sender.send_many(source(), in_flight=25)]
        assert [message for message, _ in results] == messages
        arrived = bodies(broker)
        accepted = [body_of(message) for message, result in results if result == amqp.Accepted()]
        doubtful = [body_of(message) for message, result in results if isinstance(result, amqp.DeliveryUnknown)]
        assert len(accepted) + len(doubtful) == 300
        assert set(accepted) <= set(arrived)
        assert without_repeats(arrived) == sorted(set(arrived), key=int)
        if mode == "resend":
            assert doubtful == []
        else:
            assert doubtful
            assert len(arrived) == len(set(arrived))
        assert broker.faults.counts["DropConnection"] == 4
        assert sender.unsettled == 0


async def test_a_step_of_send_many_that_times_out_loses_its_place() -> None:
    """A step of send_many that is cancelled in an outage is gone on with; leaving it then sends nothing more."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        sender = await client.sender("q", on_unknown="resend")
        messages = numbered(10)
        many = sender.send_many(messages, in_flight=2)
        results = [await soon(anext(many)) for _ in range(2)]
        await broker.abort()
        await changes.saw(RECONNECTING)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    results.append(await anext(many))
        await broker.start()
        while len(results) < 6:
            results.append(await soon(anext(many)))
        assert results == [(message, amqp.Accepted()) for message in messages[:6]]
        await soon(many.aclose())
        await until(lambda: sender.unsettled == 0)
        arrived = without_repeats(bodies(broker))
        assert arrived == [b"%d" % number for number in range(len(arrived))]
        assert 6 <= len(arrived) <= 8


@modes
async def test_tasks_that_share_a_sender_lose_messages(mode: Any) -> None:
    """Many tasks send over losses: each knows the fate of its own message."""
    plan: list[Fault] = [DropConnection(on="arrival", after=n) for n in (30, 100, 170)]
    plan += [DetachLink(on="arrival", after=60), LoseOutcome(after=5, times=2)]
    async with Broker(faults=plan) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        results = await soon(asyncio.gather(*map(sender.send, numbered(200)), return_exceptions=True))
        arrived = Counter(bodies(broker))
        for number, result in enumerate(results):
            if isinstance(result, amqp.DeliveryUnknown):
                assert mode == "raise"
            else:
                assert result == amqp.Accepted()
                assert arrived[b"%d" % number] >= 1
        if mode == "raise":
            assert max(arrived.values()) == 1
            assert any(isinstance(result, amqp.DeliveryUnknown) for result in results)


@settings(max_examples=10)
@given(data=st.data())
async def test_a_loss_somewhere_breaks_the_promise(data: st.DataObject) -> None:
    """Random losses: what was accepted arrived; what was sent again has the same bytes; the order holds."""
    mode: Any = data.draw(st.sampled_from(["raise", "resend"]))
    kinds = st.sampled_from([DropConnection, DetachLink, EndSession])
    drawn = data.draw(st.lists(st.tuples(kinds, st.integers(0, 60)), max_size=5))
    plan = [kind(on="arrival", after=after) for kind, after in drawn]
    plan += [LoseOutcome(after=data.draw(st.integers(0, 60)))]
    cancelled = data.draw(st.sets(st.integers(0, 39), max_size=4))
    async with Broker(faults=plan) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        async with beside(_disturb(broker)):
            sends = [asyncio.create_task(sender.send(message)) for message in numbered(40)]
            await turns(data.draw(st.integers(0, 30)))
            for number in cancelled:
                sends[number].cancel()
            await asyncio.wait(sends, timeout=PATIENCE)
        arrived = broker.messages("q")
        for number, send in enumerate(sends):
            assert send.done()
            if send.cancelled():
                assert number in cancelled
            elif (error := send.exception()) is not None:
                assert isinstance(error, amqp.DeliveryUnknown)
                assert mode == "raise"
            else:
                assert b"%d" % number in [message.body for message in arrived]
        counted = Counter(message.body for message in arrived)
        assert mode == "resend" or not counted or max(counted.values()) == 1
        assert {(message.body, message.message_id) for message in arrived} <= {(b"%d" % n, f"m{n}") for n in range(40)}
        order = without_repeats([body_of(message) for message in arrived])
        assert order == sorted(order, key=int)


async def _disturb(broker: Broker) -> None:
    """Ends, every now and then, links whose outcomes were lost, so that their senders learn of it."""
    while True:
        await asyncio.sleep(0.05)
        broker.faults.detach_links("q")


@settings(max_examples=10)
@given(
    cuts=st.lists(st.tuples(st.sampled_from(["up", "down"]), st.integers(0, 4000), st.booleans()), max_size=5),
    mode=st.sampled_from(["raise", "resend"]),
)
async def test_a_cut_at_some_byte_breaks_the_promise(cuts: list[tuple[str, int, bool]], mode: Any) -> None:
    """Connections cut or reset at any byte of either direction: the promise of each mode holds."""
    wires = [Wire(**{way: Lane(at=at, then="reset" if reset else "cut")}) for way, at, reset in cuts]
    async with Broker() as broker, FaultProxy(broker.url, wires) as proxy, opened(proxy.url) as client:
        sender = await soon(client.sender("q", on_unknown=mode).__aenter__())
        results = await soon(asyncio.gather(*map(sender.send, numbered(40)), return_exceptions=True))
        arrived = Counter(bodies(broker))
        for number, result in enumerate(results):
            if isinstance(result, amqp.DeliveryUnknown):
                assert mode == "raise"
            else:
                assert result == amqp.Accepted()
                assert arrived[b"%d" % number] >= 1
        if mode == "raise":
            assert not arrived or max(arrived.values()) == 1
        order = without_repeats(bodies(broker))
        assert order == sorted(order, key=int)
        assert sender.unsettled == 0


async def test_a_network_that_stands_still_is_waited_for() -> None:
    """A connection on which nothing comes any more is given up after `idle_timeout`, and what is in doubt resent."""
    async with Broker() as broker, FaultProxy(broker.url) as proxy, opened(proxy.url, idle_timeout=0.5) as client:
        sender = await client.sender("q", on_unknown="resend")
        proxy.connections[0].stall("down")
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert proxy.accepted == 2
        assert set(bodies(broker)) == {b"one"}
        proxy.resume()


async def test_an_attach_that_nobody_answers_is_waited_for() -> None:
    """An attach without an answer is given up in time, when opening and after a loss, and tried again."""
    async with Peer() as peer, opened(peer.url, open_timeout=0.3) as client:

        def once(conversation: Conversation, link: Any) -> None:
            del peer.on["attach"]

        peer.on["attach"] = once
        sender = await soon(client.sender("q").__aenter__())
        peer.on["attach"] = once
        async with relinked(sender):
            peer.conversation.detach(peer.conversation.links[sender.health().name], "amqp:link:detach-forced")
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()


@pytest.mark.parametrize("how", ["close", "detach", "cancel"])
async def test_closing_waits_for_an_attach_that_nobody_answers(how: str) -> None:
    """Closed while its attach is not answered, a sender is over within its time, and what was in doubt says so."""
    async with Peer() as peer, opened(peer.url, close_timeout=0.5) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        pending = await soon(sender.transfer(MESSAGE))
        await peer.saw("transfer")
        peer.on["attach"] = ignore
        peer.conversation.detach(condition="amqp:link:detach-forced")
        await peer.saw("attach", 2)
        began = time.monotonic()
        async with beside(sender.detach() if how == "detach" else sender.close()) as closing:
            if how == "cancel":
                await turns()
                closing.cancel()
            await soon(asyncio.wait([closing]))
        assert time.monotonic() - began < 3.0
        with pytest.raises(amqp.DeliveryUnknown):
            await soon(pending)
        assert client.health().links == ()
        assert client.state is CONNECTED


# --- other ways to send --------------------------------------------------------------


async def test_a_pre_settled_send_is_sent_again() -> None:
    """A pre-settled send returns None once the transport has it; nothing of it is kept, or sent again."""
    async with Peer() as peer, opened(peer.url) as client:
        sender = await client.sender("q", on_unknown="resend")
        assert await soon(sender.send(MESSAGE, settled=True)) is None
        pending = await soon(sender.transfer(amqp.Message(b"two"), settled=True))
        assert await soon(pending) is None
        await peer.saw("transfer", 2)
        assert sender.unsettled == 0
        peer.conversation.drop()
        await until(lambda: len(peer.conversations) == 2 and sender.attached)
        assert await soon(sender.send(amqp.Message(b"three"))) == amqp.Accepted()
        assert [amqp.Message.decode(raw).body for raw in peer.received] == [b"one", b"two", b"three"]


async def test_a_tag_is_lost_with_its_link() -> None:
    """A delivery tag of the caller's is on the wire; in doubt, it is in use."""
    async with Peer() as peer, opened(peer.url) as client:
        tags: list[str] = []
        peer.on["transfer"] = lambda conversation, delivery: tags.append(delivery.tag)
        sender = await client.sender("q", on_unknown="resend")
        pending = await soon(sender.transfer(MESSAGE, tag=b"mine"))
        await peer.saw("transfer")
        with pytest.raises(amqp.LocalProtocolError):
            await soon(sender.transfer(MESSAGE, tag=b"mine"))
        with pytest.raises(ValueError, match="tag"):
            await soon(sender.transfer(MESSAGE, tag=b"x" * 33))

        def accept(conversation: Conversation, delivery: Any) -> None:
            tags.append(delivery.tag)
            conversation.react("transfer", delivery)

        peer.on["transfer"] = accept
        peer.conversation.drop()
        assert await soon(pending) == amqp.Accepted()
        assert tags == ["mine", "mine"]
        assert await soon(sender.send(MESSAGE, tag=b"mine")) == amqp.Accepted()


OUTCOMES: dict[str, tuple[amqp.Outcome, type[amqp.DeliveryFailed]]] = {
    "released": (amqp.Released(), amqp.MessageReleased),
    "rejected": (amqp.Rejected(amqp.ErrorCondition("amqp:decode-error", "no")), amqp.MessageRejected),
    "modified": (amqp.Modified(delivery_failed=True), amqp.MessageModified),
}


@modes
@pytest.mark.parametrize("name", OUTCOMES)
async def test_another_outcome_is_sent_again(name: str, mode: Any) -> None:
    """An outcome other than accepted raises as it does without a client, and is never a reason to send again."""
    result, error = OUTCOMES[name]
    async with Broker(faults=[DeclineMessage(outcome=result)]) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        with pytest.raises(error) as caught:
            await soon(sender.send(MESSAGE))
        assert caught.value.outcome == result
        assert caught.value.message is MESSAGE
        assert sender.unsettled == 0
        async with relinked(sender):
            await broker.disconnect()
        await soon(sender.send(amqp.Message(b"two")))
        assert bodies(broker) == [b"two"]


@modes
async def test_a_message_too_large_ends_the_sender(mode: Any) -> None:
    """A message over the peer's limit raises at once, nothing is sent, and the sender goes on, also after a loss."""
    async with Broker(max_message_size=2000) as broker, opened(broker.url) as client:
        sender = await client.sender("q", on_unknown=mode)
        for _ in range(2):
            for send in (sender.send, sender.transfer):
                with pytest.raises(amqp.MessageTooLarge) as caught:
                    await soon(send(amqp.Message(bytes(3000))))
                assert caught.value.limit == 2000
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            async with relinked(sender):
                await broker.disconnect()
        assert len(bodies(broker)) == 2


async def test_credit_does_not_come_back() -> None:
    """A send waiting for credit when its link goes is sent on the next one."""
    async with Broker(faults=[StarveCredit()]) as broker, opened(broker.url) as client:
        sender = await client.sender("q")
        async with beside(sender.send(MESSAGE)) as sending:
            await turns()
            assert not sending.done()
            await broker.disconnect()
            assert await soon(sending) == amqp.Accepted()
        assert bodies(broker) == [b"one"]


async def test_the_anonymous_terminus_is_lost() -> None:
    """A sender to the anonymous terminus comes back as one."""
    async with Broker() as broker, opened(broker.url) as client:
        sender = await client.sender(None, on_unknown="resend")
        for _ in range(2):
            assert await soon(sender.send(amqp.Message(b"x", to="q"))) == amqp.Accepted()
            await broker.disconnect()
        assert bodies(broker) == [b"x", b"x"]


@pytest.mark.parametrize(("product", "expected"), [("apache-activemq-artemis", True), ("other", False)])
async def test_artemis_cannot_drop_duplicates(product: str, expected: bool) -> None:
    """With Artemis, and no other broker, what is sent has its duplicate-detection property, the same in each copy."""
    async with Peer() as peer:

        def introduce(conversation: Conversation, connection: Any) -> None:
            connection.properties = {proton.symbol("product"): product, proton.symbol("version"): "2.40.0"}
            connection.open()

        peer.on["open"] = introduce
        peer.on["transfer"] = ignore
        async with opened(peer.url) as client:
            sender = await client.sender("q", on_unknown="resend")
            mine = amqp.Message(b"a", application_properties={"_AMQ_DUPL_ID": "my own", "k": 1})
            pendings = [await soon(sender.transfer(message)) for message in (MESSAGE, amqp.Message(b"b"), mine)]
            await peer.saw("transfer", 3)
            del peer.on["transfer"]
            peer.conversation.drop()
            for pending in pendings:
                assert await soon(pending) == amqp.Accepted()
            plain = await client.sender("q")
            await soon(plain.send(MESSAGE))
        assert peer.received[:3] == peer.received[3:6]
        sent = [amqp.Message.decode(raw) for raw in peer.received[:3]]
        ids = [(message.application_properties or {}).get("_AMQ_DUPL_ID") for message in sent]
        assert ids[2] == "my own"
        if expected:
            assert ids[0] == "id-1"
            assert ids[1] is not None
            assert str(sent[1].message_id) in str(ids[1])
        else:
            assert ids[:2] == [None, None]
        assert peer.received[6] == MESSAGE.encode()
        assert not MESSAGE.application_properties


# --- what a lost link costs ----------------------------------------------------------


@pytest.mark.parametrize("what", ["detach", "idle", "session", "deleted"])
async def test_a_lost_link_costs_a_connection(what: str) -> None:
    """A detach or the end of a session is repaired at its level and at once; the connection and others stay."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes, backoff=amqp.Backoff(initial=60.0)) as client:
        sender = await client.sender("q")
        other = await client.receiver("other")
        link = other.link
        async with relinked(sender):
            if what == "session":
                assert broker.faults.end_sessions() == 1
            elif what == "deleted":
                broker.faults.detach_links("q", amqp.ErrorCondition("amqp:resource-deleted", "for a moment"))
            elif what == "idle":
                broker.faults.detach_links("q", amqp.ErrorCondition("com.microsoft:timeout", "idle"))
            else:
                broker.faults.detach_links("q")
        await until(client.ready)
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert broker.statistics().connections_total == 1
        if what != "session":
            assert other.link is link
        assert changes.states[-1] is CONNECTED
        assert changes.count_of(CONNECTED) == 1


FINAL = ["amqp:not-found", "amqp:unauthorized-access", "amqp:link:stolen", "amqp:not-allowed"]


@pytest.mark.parametrize("condition", FINAL)
@pytest.mark.parametrize("when", ["detached", "refused", "refused-again"])
async def test_a_final_end_of_a_link_ends_the_client(condition: str, when: str) -> None:
    """What another attach would not change ends that link alone, with the reason."""
    error = amqp.ErrorCondition(condition, "for good")
    async with Broker() as broker, opened(broker.url) as client:
        other = await client.sender("other")
        if when == "refused":
            broker.faults.inject(RefuseLink(error=error))
            with pytest.raises(amqp.AttachError) as caught:
                await soon(client.sender("q").__aenter__())
            assert caught.value.condition == condition
        else:
            sender = await client.sender("q")
            if when == "detached":
                broker.faults.detach_links("q", error)
            else:
                broker.faults.inject(RefuseLink(error=error, address="q"))
                await broker.disconnect()
            await until(lambda: sender.stop)
            with pytest.raises(amqp.LinkClosed) as closed:
                await soon(sender.send(MESSAGE))
            assert closed.value.stop.condition == condition
            assert closed.value.sent is False
            await soon(sender.close())
        assert await soon(other.send(MESSAGE)) == amqp.Accepted()
        assert client.state is CONNECTED
        assert client.ready()
        assert len(client.health().links) == 1


async def test_an_attach_that_may_succeed_later_fails() -> None:
    """An attach refused for a while is tried again, when opening as well."""
    async with Broker(faults=[RefuseLink(times=3)]) as broker, opened(broker.url) as client:
        sender = await soon(client.sender("q").__aenter__())
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert broker.faults.counts["RefuseLink"] == 3
        assert broker.statistics().connections_total == 1


async def test_an_attach_is_tried_beyond_the_limit() -> None:
    """`max_attempts` holds for links as well: then the opener raises what the peer said, and the client goes on."""
    backoff = dataclasses.replace(FAST, max_attempts=3)
    async with Broker(faults=[RefuseLink(times=None)]) as broker, opened(broker.url, backoff=backoff) as client:
        with pytest.raises(amqp.AttachError) as caught:
            await soon(client.sender("q").__aenter__())
        assert caught.value.condition == "amqp:resource-locked"
        assert broker.faults.counts["RefuseLink"] == 3
        assert client.state is CONNECTED


async def test_a_cancelled_attach_stays() -> None:
    """Cancelled while its attach is refused for a while, or during an outage, an opener leaves no link behind."""
    changes = Changes()
    async with Broker(faults=[RefuseLink(times=3)]) as broker, opened(broker.url, changes) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await client.sender("q")
            assert client.health().links == ()
            assert client.ready() or client.state is RECONNECTING
            broker.faults.clear()
            changes.clear()
            await broker.abort()
            await changes.saw(RECONNECTING)
        await broker.start()
        async with client.sender("q") as sender:
            await soon(sender.send(MESSAGE))
            await until(lambda: broker.statistics().links == 1)


async def test_a_link_redirect_is_not_followed() -> None:
    """A link sent elsewhere goes there, on a connection of its own, and the others stay."""
    changes = Changes()
    async with Broker() as there, Broker() as broker:
        async with opened(broker.url, changes, redirect_hosts=("127.0.0.1",)) as client:
            other = await client.sender("other")
            broker.faults.inject(RefuseLink(error=link_redirect(there.url, "elsewhere"), address="q"))
            sender = await soon(client.sender("q", on_unknown="resend").__aenter__())
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            assert bodies(there, "elsewhere") == [b"one"]
            assert await soon(other.send(MESSAGE)) == amqp.Accepted()
            assert bodies(broker, "other") == [b"one"]
            assert sender.address == "elsewhere"
            assert client.ready()
            # A sender in use is sent elsewhere as well, and takes with it what is in doubt.
            broker.faults.inject(LoseOutcome(address="other"))
            moved = await client.sender("other", on_unknown="resend")
            async with beside(moved.send(amqp.Message(b"two"))) as sending:
                await until(lambda: len(bodies(broker, "other")) == 2)
                broker.faults.detach_links("other", link_redirect(there.url))
                assert await soon(sending) == amqp.Accepted()
            assert bodies(there, "other") == [b"two"]
            assert changes.count_of(CONNECTED) == 1
        await until(lambda: there.statistics().connections == 0)


async def test_a_redirected_link_stays_in_the_desert() -> None:
    """Where the place that a link was sent to is gone, the link comes back to its own broker."""
    async with Broker() as broker, Broker() as there, opened(broker.url, redirect_hosts=("127.0.0.1",)) as client:
        broker.faults.inject(RefuseLink(error=link_redirect(there.url), address="q"))
        sender = await soon(client.sender("q").__aenter__())
        async with relinked(sender):
            await there.abort()
        assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
        assert bodies(broker) == [b"one"]


async def test_a_link_is_redirected_to_anywhere() -> None:
    """A link redirect to a host that is not allowed ends the link, and no connection goes there."""
    async with Broker() as there, Broker() as broker, opened(broker.url) as client:
        broker.faults.inject(RefuseLink(error=link_redirect(there.url), address="q"))
        with pytest.raises((amqp.AttachError, amqp.OpenError, amqp.LinkClosed)):
            await soon(client.sender("q").__aenter__())
        assert there.statistics().connections_total == 0
        sender = await client.sender("r")
        broker.faults.detach_links("r", link_redirect(there.url))
        await until(lambda: sender.stop)
        with pytest.raises(amqp.EndpointClosed):
            await soon(sender.send(MESSAGE))
        assert there.statistics().connections_total == 0
        assert client.state is CONNECTED


# --- closing -------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("who", ["sender", "client"])
async def test_closing_gives_up_what_is_in_flight(mode: Any, who: str) -> None:
    """Closing waits for outcomes in flight; what comes in time is given to whoever waits."""
    async with Peer() as peer, opened(peer.url, close_timeout=PATIENCE) as client:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)
        sender = await client.sender("q", on_unknown=mode)
        pendings = [await soon(sender.transfer(message)) for message in numbered(3)]
        await peer.saw("transfer", 3)
        async with beside((sender if who == "sender" else client).close()) as closing:
            await turns()
            with pytest.raises(amqp.EndpointClosed) as caught:
                await soon(sender.send(MESSAGE))
            assert caught.value.sent is False
            assert not closing.done()
            for delivery in held:
                peer.conversation.settle(delivery)
            assert [await soon(pending) for pending in pendings] == [amqp.Accepted()] * 3
            await soon(closing)
        assert sender.unsettled == 0


@pytest.mark.parametrize("who", ["sender", "client"])
async def test_closing_waits_beyond_its_time(who: str) -> None:
    """Outcomes that do not come within `close_timeout` leave their messages in doubt; a sender's close says so."""
    async with Peer() as peer, opened(peer.url, close_timeout=1.0) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q", on_unknown="resend")
        pending = await soon(sender.transfer(MESSAGE))
        await peer.saw("transfer")
        began = time.monotonic()
        if who == "sender":
            with pytest.raises(TimeoutError):
                await soon(sender.close())
        else:
            await soon(client.close())
        assert 0.9 < time.monotonic() - began < 1.9
        with pytest.raises(amqp.DeliveryUnknown):
            await soon(pending)


async def test_closing_gives_up_what_is_to_be_sent_again() -> None:
    """In doubt when it is closed during an outage, a message is sent again if the broker comes back in time."""
    changes = Changes()
    async with Broker(faults=[LoseOutcome()]) as broker, opened(broker.url, changes, close_timeout=PATIENCE) as client:
        sender = await client.sender("q", on_unknown="resend")
        pending = await soon(sender.transfer(MESSAGE))
        await until(lambda: bodies(broker) == [b"one"])
        await broker.abort()
        await changes.saw(RECONNECTING)
        async with beside(sender.close()) as closing:
            await turns()
            await broker.start()
            assert await soon(pending) == amqp.Accepted()
            await soon(closing)
        assert bodies(broker) == [b"one", b"one"]


@pytest.mark.parametrize("who", ["sender", "client"])
async def test_cancelled_closing_goes_on(who: str) -> None:
    """Cancelled, closing stops waiting for outcomes, which then are in doubt."""
    async with Peer() as peer, opened(peer.url, close_timeout=60.0) as client:
        peer.on["transfer"] = ignore
        sender = await client.sender("q")
        pending = await soon(sender.transfer(MESSAGE))
        await peer.saw("transfer")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await (sender if who == "sender" else client).close()
        with pytest.raises(amqp.DeliveryUnknown):
            await soon(pending)
        if who == "sender":
            await peer.saw("detach")
            assert client.state is CONNECTED
            other = await client.sender("q")
            del peer.on["transfer"]
            assert await soon(other.send(MESSAGE)) == amqp.Accepted()
        else:
            await peer.gone()


async def test_closing_twice_or_during_an_outage_fails() -> None:
    """A sender is closed once, also where others close it at the same time, and during an outage at once."""
    changes = Changes()
    async with Broker() as broker, opened(broker.url, changes) as client:
        sender, second = await client.sender("q"), await client.sender("r")
        await soon(asyncio.gather(*(sender.close() for _ in range(3))))
        await until(lambda: broker.statistics().links == 1)
        await soon(sender.close())
        await broker.abort()
        await changes.saw(RECONNECTING)
        began = time.monotonic()
        await soon(second.close())
        assert time.monotonic() - began < 1.0
        assert client.health().links == ()
        await broker.start()
        await until(client.ready)
        await turns(50)
        assert broker.statistics().links == 0


async def test_detaching_a_sender_closes_it() -> None:
    """`detach` says closed=false to the peer, `close` says closed=true."""
    async with Peer() as peer, opened(peer.url) as client:
        one, two = await client.sender("q", name="one"), await client.sender("q", name="two")
        await soon(one.detach())
        await soon(two.close())
        assert peer.detached == [("one", False, None), ("two", True, None)]


@losses
async def test_a_named_link_has_another_name_later(loss: str) -> None:
    """A name of the user's is the link's each time, and is free again before it is used again."""
    async with Broker() as broker, opened(broker.url) as client:
        sender = await client.sender("q", name="mine")
        receiver = await client.receiver("r", name="mine")
        for _ in range(3):
            async with relinked(sender, receiver):
                if loss == "detach":
                    broker.faults.detach_links()
                elif loss == "end":
                    broker.faults.end_sessions()
                elif loss == "close":
                    broker.faults.close_connections()
                else:
                    await broker.disconnect()
            assert await soon(sender.send(MESSAGE)) == amqp.Accepted()
            assert {link.name for link in client.health().links} == {"mine"}
        assert broker.statistics().connections_total == (1 if loss in ("detach", "end") else 4)
        assert len(bodies(broker)) == 3


async def test_a_dropped_link_comes_back_after_its_close() -> None:
    """A sender closed at any moment of an outage stays closed."""
    async with Broker() as broker, opened(broker.url) as client:
        for point in itertools.count():
            sender = await soon(client.sender("q").__aenter__())
            await broker.disconnect()
            await turns(3 * point)
            done = client.ready()
            await soon(sender.close())
            await until(client.ready)
            assert client.health().links == ()
            await until(lambda: broker.statistics().links == 0)
            if done or point > 60:
                break
