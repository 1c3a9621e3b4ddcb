"""What connections, sessions and links say of themselves, and the wrong calls they refuse before anything is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import proton
import pytest

import amqpws_async as amqp
from amqpws_async.endpoint import Waiters
from amqpws_async.errors import StopReason, closed_error
from amqpws_async.testing import Broker
from tests.peer import Conversation, Peer, ignore

# --- what they say ------------------------------------------------------------------------------


async def test_endpoints_name_their_parents_and_their_peers_termini() -> None:
    """From a link one gets to its session and connection, and what the peer attached is readable."""
    async with Broker() as broker, amqp.connect(broker.url, container_id="me") as connection:
        assert connection.container_id == "me"
        assert connection.options.url == broker.url
        assert connection.remote.max_frame_size > 0
        async with connection.session() as session:
            assert session.connection is connection
            async with session.sender("q", name="s") as sender, session.receiver("q", name="r") as receiver:
                assert sender.session is receiver.session is session
                assert (sender.name, receiver.name) == ("s", "r")
                assert sender.target is not None
                assert receiver.source is not None
                assert sender.target.address == receiver.source.address == "q"
                assert receiver.target is not None
                assert sender.source is not None
                assert receiver.queued == 0
                assert "q" in repr(sender)
                assert "open" in repr(session)
                assert "open" in repr(connection)


async def test_health_counts_links_credit_and_unsettled() -> None:
    """A probe sees each link with its credit and what is unsettled; after the close it sees why."""
    async with Broker() as broker:
        async with (
            amqp.connect(broker.url) as connection,
            connection.sender("q") as sender,
            connection.receiver("q", credit=5) as receiver,
        ):
            await sender.send(amqp.Message(b"x"))
            delivery = await receiver.receive()
            health = connection.health()
            assert health.ok
            assert health.last_frame_age >= 0
            by_role = {link.role: link for link in health.links}
            assert by_role["sender"].credit > 0
            assert by_role["sender"].unsettled == 0
            assert by_role["receiver"].address == "q"
            assert by_role["receiver"].credit == receiver.credit > 0
            await delivery.accept()
        after = connection.health()
        assert not after.ok
        assert after.stop is not None
        assert after.stop.initiator == "local"
        assert after.links == ()


async def test_pending_delivery_shows_its_state() -> None:
    """The repr of a transfer says pending, then its outcome."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        peer.on["transfer"] = ignore
        async with connection.sender("q") as sender:
            pending = await sender.transfer(amqp.Message(b"x"))
            assert "pending" in repr(pending)
            assert sender.unsettled == 1
            peer.conversation.drop()
            with pytest.raises(amqp.DeliveryUnknown):
                await pending
            assert "in doubt" in repr(pending)


def test_stop_reason_without_a_description_names_its_cause() -> None:
    """A stop says at least what kind of exception was behind it."""
    error = closed_error(StopReason("connection", "transport", cause=EOFError()))
    assert "EOFError" in str(error)
    assert isinstance(error.__cause__, EOFError)


async def test_waiters_skip_those_who_have_gone() -> None:
    """A wake-up given to a waiter that is cancelled in the same turn goes on to the next."""
    waiters = Waiters(asyncio.get_running_loop())
    first, second = (asyncio.create_task(waiters.wait()) for _ in range(2))
    await asyncio.sleep(0)
    waiters.wake()
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.done()
    assert not second.cancelled()
    assert len(waiters) == 0


# --- wrong calls -----------------------------------------------------------------------------------


async def test_wrong_calls_are_refused_before_anything_is_sent() -> None:
    """Bad arguments and what the link's mode forbids are errors of ours, and the link goes on."""
    async with Broker() as broker, amqp.connect(broker.url) as connection:
        async with connection.sender("q", snd_settle_mode=amqp.SenderSettleMode.UNSETTLED) as sender:
            with pytest.raises(ValueError, match="in_flight"):
                sender.send_many([], in_flight=0)
            with pytest.raises(amqp.LocalProtocolError, match="UNSETTLED"):
                await sender.send(amqp.Message(b"x"), settled=True)
            with pytest.raises(ValueError, match="1 to 32 bytes"):
                await sender.send(amqp.Message(b"x"), tag=bytes(33))
            with pytest.raises(ValueError, match="Message"):
                await sender.send(b"no encoded message")
            wrong: Any = "text"
            with pytest.raises(TypeError, match="Message"):
                await sender.send(wrong)
            mutable: Any = bytearray(amqp.Message(b"x").encode())
            assert await sender.send(mutable) == amqp.Accepted()
            assert await sender.send(amqp.Message(b"x")) == amqp.Accepted()
        async with connection.receiver("q") as receiver:
            with pytest.raises(amqp.LocalProtocolError, match="credit=0"):
                await receiver.add_credit(1)
            delivery = await receiver.receive()
            with pytest.raises(ValueError, match="condition"):
                await delivery.reject(description="why")
            with pytest.raises(amqp.LocalProtocolError, match="SECOND"):
                await delivery.accept(confirm=True)
            await delivery.reject(amqp.ErrorCondition("my:condition", "text"))
            assert delivery.settled
            with pytest.raises(amqp.LocalProtocolError, match="settled already"):
                await delivery.accept()
            with pytest.raises(amqp.LocalProtocolError, match="tag"):
                _ = delivery.tag
        async with connection.receiver("q", credit=0) as manual:
            with pytest.raises(ValueError, match="at least 1"):
                await manual.add_credit(0)


async def test_properties_that_amqp_cannot_carry_are_refused() -> None:
    """A link property of no AMQP type is our error, and the connection goes on."""
    async with Broker() as broker, amqp.connect(broker.url) as connection:
        with pytest.raises(amqp.EncodeError):
            await connection.sender("q", properties={"key": object()})
        bad: Any = amqp.Array(amqp.UNDESCRIBED, 0, 1)
        with pytest.raises(amqp.EncodeError):
            await connection.sender("q", name="mine", properties={"key": bad})
        async with connection.sender("q", name="mine") as sender:
            assert await sender.send(amqp.Message(b"x")) == amqp.Accepted()


async def test_connection_properties_that_amqp_cannot_carry_leave_no_socket() -> None:
    """The upgrade is done when they are found out: the WebSocket is closed again."""
    async with Broker() as broker:
        with pytest.raises(amqp.EncodeError):
            await amqp.connect(broker.url, properties={"key": object()})
        assert broker.statistics().connections == 0


async def test_settlement_that_cannot_be_encoded_leaves_the_delivery_to_be_settled() -> None:
    """A state with a value of no AMQP type is our error; the delivery is still the user's."""
    async with (
        Broker() as broker,
        amqp.connect(broker.url) as connection,
        connection.sender("q") as sender,
        connection.receiver("q") as receiver,
    ):
        await sender.send(amqp.Message(b"x"))
        delivery = await receiver.receive()
        with pytest.raises(amqp.EncodeError):
            await delivery.modify(message_annotations={"x-key": object()})
        with pytest.raises(amqp.EncodeError):
            await delivery.reject("my:condition", "text", {"key": object()})
        assert not delivery.settled
        await delivery.accept()


# --- peers that leave things out ---------------------------------------------------------------------


async def test_null_terminus_that_no_detach_follows_is_taken_as_meant() -> None:
    """Some peers leave the terminus out of attaches that they mean: after a grace the link is open, and works."""

    def bare(conversation: Conversation, link: Any) -> None:
        link.target.type = proton.Terminus.UNSPECIFIED
        link.source.copy(link.remote_source)
        link.open()
        link.flow(10)

    async with Peer() as peer, amqp.connect(peer.url) as connection:
        peer.on["attach"] = bare
        async with asyncio.timeout(10), connection.sender("q") as sender:
            assert await sender.send(amqp.Message(b"x")) == amqp.Accepted()


async def test_name_of_a_link_whose_detach_is_never_answered_stays_taken() -> None:
    """A new link of the same name waits for the old one to be gone, up to open_timeout."""
    async with Peer() as peer, amqp.connect(peer.url, open_timeout=1.0, close_timeout=0.3) as connection:
        peer.on["detach"] = ignore
        sender = await connection.sender("q", name="mine")
        with pytest.raises(TimeoutError, match="detach"):
            await sender.close()
        with pytest.raises(TimeoutError, match="mine"):
            await connection.sender("q", name="mine")
        del peer.on["detach"]


async def test_drained_window_opens_again_for_whoever_waits() -> None:
    """After a drain an automatic window stays shut until somebody waits for a delivery."""
    async with (
        Broker() as broker,
        amqp.connect(broker.url) as connection,
        connection.sender("q") as sender,
        connection.receiver("q") as receiver,
    ):
        await receiver.drain()
        assert receiver.credit == 0
        waiting = asyncio.create_task(receiver.receive())
        await sender.send(amqp.Message(b"x"))
        delivery = await waiting
        await delivery.accept()
        assert receiver.credit > 0


async def test_a_drain_leaves_nobody_deaf_who_waits_already() -> None:
    """The window opens again for them, too."""
    async with Broker() as broker, amqp.connect(broker.url) as connection:
        sender = await connection.sender("q")
        receiver = await connection.receiver("q")
        waiting = asyncio.create_task(receiver.receive())
        await asyncio.sleep(0)
        await receiver.drain()
        await sender.send(amqp.Message(b"x"))
        delivery = await waiting
        assert delivery.body == b"x"
        await delivery.accept()


async def test_cancelled_runner_fails_everybody_and_leaves_nothing() -> None:
    """An event loop that shuts down cancels the connection's task: waiters are told, the socket is gone."""
    async with Broker() as broker:
        connection = await amqp.connect(broker.url)
        receiver = await connection.receiver("q")
        waiting = asyncio.create_task(receiver.receive())
        await asyncio.sleep(0)
        task = connection._runner._task
        assert task is not None
        task.cancel()
        await asyncio.wait([task, waiting])
        assert task.cancelled()
        assert isinstance(waiting.exception(), amqp.ConnectionClosed)
        await connection.close()


async def test_who_shares_a_session_that_does_not_begin_shares_the_patience() -> None:
    """All who open links on the default session time out together, and not one after the other."""
    async with Peer() as peer:
        peer.on["begin"] = ignore
        connection = await amqp.connect(peer.url, open_timeout=0.2, close_timeout=0.1)

        async def attach(number: int) -> None:
            await connection.sender(f"q{number}")

        async with asyncio.timeout(3):  # fifty times 0.2 s would be ten
            found = await asyncio.gather(*map(attach, range(50)), return_exceptions=True)
        assert {str(error) for error in found} == {"session: the peer did not answer the begin within 0.2 s"}
        await connection.close()
