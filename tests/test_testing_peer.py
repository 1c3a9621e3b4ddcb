"""The embedded broker as an independent client sees it: proton's own objects, and bytes by hand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import proton
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from amqpws_async.message import Message
from amqpws_async.testing import Broker, QueueStatistics
from amqpws_async.testing import peer as peer_module

AMQP = [Subprotocol("amqp")]


class Client:
    """A connection of proton's, driven by hand, without a SASL layer."""

    def __init__(self, socket: ClientConnection, idle_timeout: float = 0.0) -> None:
        self.socket = socket
        self.connection = proton.Connection()
        self.connection.container = "client"
        self.transport = proton.Transport()
        self.transport.trace(proton.Transport.TRACE_OFF)
        self.transport.idle_timeout = idle_timeout
        self.transport.bind(self.connection)
        self.connection.open()
        self.session = self.connection.session()
        self.session.open()

    def receiver(self, name: str = "receiver", address: str | None = "q") -> proton.Receiver:
        receiver = self.session.receiver(name)
        receiver.source.address = address  # type: ignore[assignment]
        receiver.open()
        return receiver

    def sender(self, name: str = "sender", address: str | None = "q") -> proton.Sender:
        sender = self.session.sender(name)
        sender.target.address = address  # type: ignore[assignment]
        sender.open()
        return sender

    async def flush(self, cut: int = 1 << 20) -> None:
        while (pending := self.transport.pending()) > 0:
            data = self.transport.peek(min(pending, cut)) or b""
            await self.socket.send(data)
            self.transport.pop(len(data))

    async def receive(self) -> bool:
        """Takes one WebSocket message; False at the end."""
        try:
            data = await self.socket.recv(decode=False)
        except ConnectionClosed:
            return False
        while data:
            capacity = self.transport.capacity()
            if capacity < 0:
                break
            self.transport.push(data[:capacity])
            data = data[capacity:]
        return True

    async def until(self, condition: Callable[[], Any], cut: int = 1 << 20) -> None:
        async with asyncio.timeout(5):
            await self.flush(cut)
            while not condition():
                assert await self.receive(), "the broker closed the WebSocket"
                await self.flush(cut)

    async def send(
        self, sender: proton.Sender, data: bytes, tag: str = "t", *, settled: bool = False
    ) -> proton.Delivery:
        await self.until(lambda: sender.credit > 0)
        delivery = sender.delivery(tag)
        sender.send(data)
        sender.advance()
        if settled:
            delivery.settle()
        await self.flush()
        return delivery

    async def take(self, receiver: proton.Receiver) -> tuple[proton.Delivery, bytes]:
        await self.until(lambda: receiver.current and not receiver.current.partial)
        delivery = receiver.current
        assert delivery is not None
        data = receiver.recv(delivery.pending)
        receiver.advance()
        return delivery, data or b""


@contextlib.asynccontextmanager
async def client_of(broker: Broker, **options: Any) -> AsyncIterator[Client]:
    async with connect(broker.url, subprotocols=AMQP, compression=None) as socket:
        client = Client(socket, **options)
        await socket.send(client.transport.peek(8) or b"")
        client.transport.pop(8)
        assert await client.receive()  # the broker's header
        await client.until(lambda: client.session.state & proton.Endpoint.REMOTE_ACTIVE)
        yield client


def queue(broker: Broker, name: str = "q") -> QueueStatistics:
    return broker.statistics().queues[name]


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


MESSAGE = Message(b"hello", subject="s").encode()


# --- messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
async def test_any_cut_of_the_byte_stream(cut: int) -> None:
    """Frames and WebSocket messages have nothing to do with each other."""
    async with Broker() as broker, client_of(broker) as client:
        sender, receiver = client.sender(), client.receiver()
        receiver.flow(1)
        await client.until(lambda: sender.credit > 0, cut)
        sender.delivery("t")
        sender.send(MESSAGE)
        sender.advance()
        await client.flush(cut)
        _, data = await client.take(receiver)
        assert data == MESSAGE


async def test_nothing_is_lost_behind_a_close() -> None:
    """Messages that come in one piece with close and WebSocket close are stored."""
    async with Broker() as broker, client_of(broker) as client:
        sender = client.sender()
        await client.send(sender, MESSAGE, "1", settled=True)
        for tag in ("2", "3"):
            delivery = sender.delivery(tag)
            sender.send(MESSAGE)
            sender.advance()
            delivery.settle()
        client.connection.close()
        await client.flush()
        await client.socket.close()
        assert queue(broker).depth >= 1
        assert broker.statistics().connections == 0


async def test_settled_without_a_state_comes_again() -> None:
    """A receiver that settles and says nothing more has not accepted."""
    async with Broker() as broker, client_of(broker) as client:
        sender, receiver = client.sender(), client.receiver()
        receiver.flow(2)
        await client.send(sender, MESSAGE)
        delivery, _ = await client.take(receiver)
        delivery.settle()
        _, data = await client.take(receiver)
        assert data == MESSAGE
        assert queue(broker).acknowledged == 0


async def test_an_outcome_before_settlement_is_settled_by_the_broker() -> None:
    """In settle mode second the receiver hears that the broker has settled, and settles then."""
    async with Broker() as broker, client_of(broker) as client:
        sender, receiver = client.sender(), client.receiver()
        receiver.rcv_settle_mode = proton.Link.RCV_SECOND
        receiver.flow(1)
        await client.send(sender, MESSAGE)
        delivery, _ = await client.take(receiver)
        delivery.update(proton.Delivery.ACCEPTED)
        await client.until(lambda: delivery.settled)
        assert queue(broker).acknowledged == 1


async def test_the_sender_settles_in_mode_second() -> None:
    """The broker gives the outcome and waits with its settlement for the sender's: exactly once."""
    async with Broker() as broker, client_of(broker) as client:
        sender = client.session.sender("s")
        sender.rcv_settle_mode = proton.Link.RCV_SECOND
        sender.target.address = "q"
        sender.open()
        delivery = await client.send(sender, MESSAGE)
        await client.until(lambda: delivery.remote_state == proton.Delivery.ACCEPTED)
        assert sender.remote_rcv_settle_mode == proton.Link.RCV_SECOND
        assert not delivery.settled
        delivery.settle()
        await client.until(lambda: True)
        assert queue(broker).depth == 1


@pytest.mark.parametrize("limit", [100, 2**20])
async def test_an_aborted_message_is_none(limit: int) -> None:
    """Half a message that its sender aborts goes nowhere, its credit comes back, and the next one is whole."""
    async with Broker(max_queue_bytes=limit) as broker, client_of(broker) as client:
        sender = client.sender()
        await client.until(lambda: sender.credit > 0)
        aborted = sender.delivery("1")
        sender.send(MESSAGE[:10])
        await client.flush()
        aborted.abort()
        await client.flush()
        whole = await client.send(sender, MESSAGE, "2")
        await client.until(lambda: whole.remote_state == proton.Delivery.ACCEPTED)
        assert queue(broker).enqueued == 1
        assert queue(broker).bytes == len(MESSAGE)


@pytest.mark.parametrize(("address", "limit"), [("q", 2**20), (None, 2**20), ("q", 100)])
async def test_bytes_that_are_no_message_are_rejected(address: str | None, limit: int) -> None:
    """Whatever does not begin like a message is refused; the link stays, and its credit comes back."""
    async with Broker(max_queue_bytes=limit) as broker, client_of(broker) as client:
        sender = client.sender(address=address)
        delivery = await client.send(sender, b"garbage", "1")
        await client.until(lambda: delivery.remote_state == proton.Delivery.REJECTED)
        assert delivery.remote.condition is not None
        assert delivery.remote.condition.name == "amqp:decode-error"
        await client.send(sender, b"garbage", "2", settled=True)
        whole = await client.send(sender, Message(b"", to="q").encode(), "3")
        await client.until(lambda: whole.remote_state == proton.Delivery.ACCEPTED)
        assert queue(broker).enqueued == 1


async def test_an_unroutable_message_is_named_by_its_tag() -> None:
    """The rejection on an anonymous link says which delivery it is about."""
    async with Broker() as broker, client_of(broker) as client:
        delivery = await client.send(client.sender(address=None), MESSAGE, "the-tag")
        await client.until(lambda: delivery.remote_state == proton.Delivery.REJECTED)
        condition: Any = delivery.remote.condition
        assert condition is not None
        assert condition.name == "amqp:not-found"
        assert bytes(condition.info["delivery-tag"]) == b"the-tag"


async def test_a_message_over_the_limit_ends_the_link() -> None:
    """max-message-size is announced, and enforced on a client that does not care, before all of it is there."""
    async with Broker(max_message_size=1000) as broker, client_of(broker) as client:
        sender = client.sender()
        await client.until(lambda: sender.credit > 0)
        assert sender.remote_max_message_size == 1000
        sender.delivery("1")
        sender.send(Message(b"x" * 2000).encode())
        await client.until(lambda: sender.state & proton.Endpoint.REMOTE_CLOSED)
        assert sender.remote_condition is not None
        assert sender.remote_condition.name == "amqp:link:message-size-exceeded"
        assert queue(broker).enqueued == 0
        assert broker.statistics().links == 0


async def test_more_messages_than_credit_end_the_link() -> None:
    """A sender that overdraws its credit is cut off."""
    async with Broker(max_queue_bytes=100) as broker, client_of(broker) as client:
        sender = client.sender()
        await client.until(lambda: sender.credit > 0)
        assert sender.credit == 1
        # proton never sends without credit, so the second transfer is written by hand: delivery 1 on handle 0.
        await client.send(sender, MESSAGE, "1")
        body = b"\x00\x53\x14\xc0\x09\x05\x43\x52\x01\xa0\x01\x32\x43\x42" + MESSAGE
        await client.socket.send(struct.pack(">IBBH", 8 + len(body), 2, 0, 0) + body)
        await client.until(lambda: sender.state & proton.Endpoint.REMOTE_CLOSED)
        assert sender.remote_condition is not None
        assert sender.remote_condition.name == "amqp:link:transfer-limit-exceeded"


# --- flow ---------------------------------------------------------------------------------


async def test_drain_gives_back_what_is_not_used() -> None:
    """A drain delivers what is there, then the credit is zero; what comes later waits for new credit."""
    async with Broker() as broker, client_of(broker) as client:
        sender, receiver = client.sender(), client.receiver()
        await client.send(sender, MESSAGE, "1")
        receiver.drain(10)
        _, data = await client.take(receiver)
        assert data == MESSAGE
        await client.until(lambda: not receiver.draining())
        assert receiver.credit == 0
        for tag in "23":
            delivery = await client.send(sender, MESSAGE, tag)
            await client.until(lambda delivery=delivery: delivery.remote_state)  # type: ignore[misc]
        assert queue(broker).depth == 2
        receiver.flow(5)
        await client.take(receiver)
        await client.take(receiver)


async def test_a_full_queue_calls_credit_back() -> None:
    """When a queue is full its senders are drained, and one that gives back its credit gets some when there is room."""
    async with Broker(max_queue_bytes=1_000_000) as broker, client_of(broker) as client:
        idle, busy = client.sender("idle"), client.sender("busy")
        receiver = client.receiver()
        await client.until(lambda: idle.credit > 0 and busy.credit >= 12)
        for number in range(12):
            delivery = busy.delivery(f"at once {number}")
            busy.send(Message(b"x" * 100_000).encode())
            busy.advance()
            delivery.settle()
        await client.flush()
        number = 12
        await client.until(lambda: busy.drain_mode)
        busy.drained()
        await client.flush()
        receiver.flow(100)
        for _ in range(number):
            delivery, _ = await client.take(receiver)
            delivery.update(proton.Delivery.ACCEPTED)
            delivery.settle()
        await client.until(lambda: busy.credit > 0)
        await client.send(busy, MESSAGE, "last")
        assert not busy.drain_mode


async def test_credit_that_comes_back_late_is_given_again() -> None:
    """A sender may answer a drain that is over already: then it has too little credit, and gets more."""
    async with Broker(max_queue_bytes=1_000_000) as broker, client_of(broker) as client, client_of(broker) as other:
        sender, receiver = client.sender(), other.receiver()
        number = 0
        while queue_bytes(broker) < 1_000_000:
            await client.send(sender, Message(b"x" * 100_000).encode(), str(number), settled=True)
            number += 1
            await turns()
        await client.until(lambda: sender.drain_mode)
        receiver.flow(1000)
        for _ in range(number):
            delivery, _ = await other.take(receiver)
            delivery.update(proton.Delivery.ACCEPTED)
            delivery.settle()
        await other.until(lambda: True)
        await turns()  # the broker has granted more, which the client has not read
        sender.drained()
        for tag in range(50):
            await client.send(sender, MESSAGE, f"more {tag}", settled=True)
            await other.take(receiver)


async def test_a_sender_that_ignores_a_drain_goes_on_later() -> None:
    """A client that does not answer a drain keeps its credit and is not forgotten."""
    async with Broker(max_queue_bytes=1_000_000) as broker, client_of(broker) as client:
        sender, receiver = client.sender(), client.receiver()
        number = 0
        while queue_bytes(broker) < 1_000_000:
            await client.send(sender, Message(b"x" * 100_000).encode(), str(number), settled=True)
            number += 1
            await turns()
        await client.until(lambda: sender.drain_mode)
        receiver.flow(100)
        for _ in range(number):
            delivery, _ = await client.take(receiver)
            delivery.update(proton.Delivery.ACCEPTED)
            delivery.settle()
        await client.until(lambda: not sender.drain_mode)
        for tag in range(20):
            await client.send(sender, MESSAGE, f"more {tag}", settled=True)
            await client.take(receiver)


def queue_bytes(broker: Broker) -> int:
    queues = broker.statistics().queues
    return queues["q"].bytes if "q" in queues else 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_stalled_receiver_does_not_fill_the_broker(leaves: bool) -> None:
    """A client with endless credit that reads nothing gets no more than its connection's buffers, and then the rest."""
    total = 200
    async with Broker() as broker, client_of(broker) as client, client_of(broker) as other:
        sender = other.sender()
        receiver = client.receiver()
        receiver.flow(10_000)
        await client.until(lambda: receiver.state & proton.Endpoint.REMOTE_ACTIVE)
        raw = Message(b"x" * 100_000).encode()
        for number in range(total):
            await other.send(sender, raw, str(number), settled=True)
            await turns()
        await other.until(lambda: queue(broker).enqueued == total)
        assert queue(broker).unsettled * len(raw) < 12 * 2**20
        assert queue(broker).depth > 50
        if leaves:
            receiver.close()
            await client.until(lambda: receiver.state & proton.Endpoint.REMOTE_CLOSED)
            assert queue(broker).depth == total
            receiver = other.receiver()
            receiver.flow(10_000)
            client = other
        for _ in range(total):
            await client.take(receiver)


# --- links --------------------------------------------------------------------------------


@pytest.mark.parametrize("null", ["target", "source"])
async def test_a_null_terminus_is_refused(null: str) -> None:
    """A link without a place to send to or receive from: an attach with a null terminus, then the reason."""
    async with Broker() as broker, client_of(broker) as client:
        link: proton.Link = client.session.sender("x") if null == "target" else client.session.receiver("x")
        (link.target if null == "target" else link.source).type = proton.Terminus.UNSPECIFIED
        link.open()
        await client.until(lambda: link.state & proton.Endpoint.REMOTE_CLOSED)
        remote = link.remote_target if null == "target" else link.remote_source
        assert remote.type == proton.Terminus.UNSPECIFIED
        assert link.remote_condition is not None
        assert link.remote_condition.name == ("amqp:invalid-field" if null == "target" else "amqp:not-found")
        assert broker.statistics().links == 0


async def test_a_durable_subscription_is_looked_up_by_its_name() -> None:
    """Qpid JMS unsubscribes so: an attach without a source finds the subscription, and closing the link ends it."""
    async with Broker() as broker, client_of(broker) as client:
        receiver = client.session.receiver("sub")
        receiver.source.address = "topic:t"
        receiver.source.durability = proton.Terminus.DELIVERIES
        receiver.source.expiry_policy = proton.Terminus.EXPIRE_NEVER
        receiver.open()
        await client.until(lambda: receiver.state & proton.Endpoint.REMOTE_ACTIVE)
        receiver.detach()
        await client.until(lambda: broker.statistics().links == 0)
        assert len(broker.statistics().topics["t"].subscriptions) == 1
        await client.until(lambda: receiver.state & proton.Endpoint.REMOTE_CLOSED or True)
        receiver.free()
        session = client.connection.session()
        session.open()
        lookup = session.receiver("sub")
        lookup.source.type = proton.Terminus.UNSPECIFIED
        lookup.open()
        await client.until(lambda: lookup.state & proton.Endpoint.REMOTE_ACTIVE)
        assert lookup.remote_source.address == "topic:t"
        lookup.close()
        await client.until(lambda: lookup.state & proton.Endpoint.REMOTE_CLOSED)
        assert broker.statistics().topics["t"].subscriptions == ()


async def test_a_link_that_was_evicted_gets_nothing_more() -> None:
    """Credit that arrives for a link whose subscription was taken over moves no message there."""
    async with Broker() as broker, client_of(broker) as old, client_of(broker) as new:
        receivers = []
        for client in (old, new):
            receiver = client.session.receiver("sub")
            receiver.source.address = "topic:t"
            receiver.source.expiry_policy = proton.Terminus.EXPIRE_NEVER
            receiver.open()
            await client.until(lambda receiver=receiver: receiver.state & proton.Endpoint.REMOTE_ACTIVE)  # type: ignore[misc]
            receivers.append(receiver)
            links = [link for peer in broker._peers for session in peer.sessions for link in session.links]
        assert len(links) == 1
        receivers[0].flow(10)
        await old.flush()
        await new.send(new.sender(address="topic:t"), MESSAGE)
        await old.until(lambda: receivers[0].state & proton.Endpoint.REMOTE_CLOSED)
        assert receivers[0].remote_condition is not None
        assert receivers[0].remote_condition.name == "amqp:link:stolen"
        receivers[1].flow(1)
        await new.take(receivers[1])


async def test_properties_of_a_node_are_not_echoed_blindly() -> None:
    """Values that a client sends for a dynamic node are not sent back: the answer says what the node really has."""
    async with Broker() as broker, client_of(broker) as client:
        receiver = client.session.receiver("x")
        receiver.source.dynamic = True
        receiver.source.properties.put_object({proton.symbol("x"): [1, {"deep": proton.ulong(1)}]})
        receiver.open()
        await client.until(lambda: receiver.state & proton.Endpoint.REMOTE_ACTIVE)
        properties = receiver.remote_source.properties
        properties.rewind()
        properties.next()
        assert list(properties.get_object()) == ["lifetime-policy"]
        assert receiver.remote_source.dynamic


# --- the connection -----------------------------------------------------------------------


async def test_close_is_answered_and_the_websocket_closed_with_1000() -> None:
    """A client that closes in order sees the broker's close, then a WebSocket close."""
    async with Broker() as broker, client_of(broker) as client:
        client.connection.close()
        await client.until(lambda: client.connection.state & proton.Endpoint.REMOTE_CLOSED)
        async with asyncio.timeout(5):
            await client.socket.wait_closed()
        assert client.socket.close_code == 1000
        assert broker.statistics().connections == 0


async def test_the_broker_closes_first() -> None:
    """Broker.close() is an AMQP close that the client answers, then WebSocket close 1000."""
    async with Broker() as broker, client_of(broker) as client:
        closing = asyncio.create_task(broker.close())
        await client.until(lambda: client.connection.state & proton.Endpoint.REMOTE_CLOSED)
        assert client.connection.remote_condition is not None
        assert client.connection.remote_condition.name == "amqp:connection:forced"
        assert not closing.done()
        client.connection.close()
        await client.flush()
        async with asyncio.timeout(5):
            await closing
            await client.socket.wait_closed()
        assert client.socket.close_code == 1000


async def test_a_client_that_does_not_answer_the_close_is_dropped() -> None:
    """Broker.close() takes close_timeout at most."""
    broker = await Broker(close_timeout=0.1).start()
    async with client_of(broker):
        async with asyncio.timeout(5):
            await broker.close()


async def test_cancelling_close_drops_everybody() -> None:
    """A close that is cancelled while it waits for clients leaves nothing open."""
    broker = await Broker(close_timeout=60).start()
    async with client_of(broker) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await broker.close()
        async with asyncio.timeout(5):
            await client.socket.wait_closed()
    assert broker.statistics().connections == 0


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"AMQP\x00\x00\x09\x01",
        b"AMQP\x00\x01\x00\x00" + b"\xff" * 64,
        b"AMQP\x03\x01\x00\x00" + b"\xff" * 64,
    ],
    ids=["http", "0-9-1", "frame", "sasl"],
)
async def test_what_is_not_amqp_ends_the_connection(data: bytes) -> None:
    """Whatever a client sends, the WebSocket is closed in bounded time, in order."""
    async with Broker() as broker, connect(broker.url, subprotocols=AMQP) as socket:
        await socket.send(data)
        await socket.send(b"more")
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            await socket.wait_closed()
        assert socket.close_code == 1000


async def test_a_text_message_ends_the_connection_with_1003() -> None:
    """AMQP travels in binary messages (WebSocket binding 2.4); nothing behind a text message counts."""
    async with Broker() as broker, client_of(broker) as client:
        client.sender()
        await client.socket.send("text")
        await client.flush()
        async with asyncio.timeout(5):
            await client.socket.wait_closed()
        assert client.socket.close_code == 1003
        assert broker.statistics().connections == 0


async def test_a_client_that_only_closes_the_websocket() -> None:
    """Without an AMQP close, what it had not settled is ready again at once."""
    async with Broker() as broker:
        async with client_of(broker) as client:
            sender, receiver = client.sender(), client.receiver()
            receiver.flow(1)
            await client.send(sender, MESSAGE)
            await client.take(receiver)
            assert queue(broker).unsettled == 1
        assert queue(broker).unsettled == 0
        assert queue(broker).depth == 1


async def test_a_client_that_never_opens_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for SASL and open is bounded."""
    monkeypatch.setattr(peer_module, "PATIENCE", 0.05)
    async with Broker() as broker, connect(broker.url, subprotocols=AMQP) as socket:
        await socket.send(b"AMQP\x03\x01")
        async with asyncio.timeout(5):
            await socket.wait_closed()
        assert broker.statistics().connections == 0


async def test_close_does_not_wait_for_a_client_that_never_opened() -> None:
    """A WebSocket without AMQP is just closed."""
    broker = await Broker().start()
    async with connect(broker.url, subprotocols=AMQP):
        async with asyncio.timeout(2):
            await broker.close()


async def test_close_does_not_wait_for_an_upgrade() -> None:
    """A TCP connection without a request is dropped."""
    broker = await Broker().start()
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    async with asyncio.timeout(5):
        for _ in itertools.count():
            if broker._streams:
                break
            await asyncio.sleep(0)
        await broker.close()
        assert await reader.read() == b""
    writer.close()


async def test_a_silent_client_is_dropped() -> None:
    """A client that sends nothing for the idle timeout gets a close, and the connection ends."""
    async with Broker(idle_timeout=0.2) as broker, client_of(broker) as client:
        async with asyncio.timeout(5):
            while await client.receive():
                pass
        assert client.connection.remote_condition is not None
        assert client.connection.remote_condition.name == "amqp:resource-limit-exceeded"
        assert broker.statistics().connections == 0


@pytest.mark.parametrize(("own", "announced"), [(0.3, 0.2), (0.3, 0.0), (60, 0.2)])
async def test_the_broker_is_never_silent(own: float, announced: float) -> None:
    """Empty frames keep the connection alive for clients that want them, and for those that do not say."""
    async with Broker(idle_timeout=own) as broker, client_of(broker, idle_timeout=announced) as client:
        frames = 0
        for _ in range(30):
            await client.socket.send(b"\x00\x00\x00\x08\x02\x00\x00\x00")  # an empty frame, so as not to be dropped
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    assert await client.receive()
                    frames += 1
        assert frames >= 3


async def test_a_session_that_ends_takes_its_links_along() -> None:
    """Ending a session gives back what its links had; others are not touched."""
    async with Broker() as broker, client_of(broker) as client:
        sender = client.sender()
        session = client.connection.session()
        session.open()
        receiver = session.receiver("r")
        receiver.source.address = "q"
        receiver.open()
        receiver.flow(1)
        await client.send(sender, MESSAGE)
        await client.take(receiver)
        assert (broker.statistics().sessions, broker.statistics().links) == (2, 2)
        session.close()
        await client.until(lambda: session.state & proton.Endpoint.REMOTE_CLOSED)
        assert (broker.statistics().sessions, broker.statistics().links) == (1, 1)
        assert queue(broker).depth == 1
        await client.send(sender, MESSAGE, "2")


@pytest.mark.parametrize("end", ["session", "connection", "socket", "lost"])
async def test_a_dynamic_node_and_those_who_use_it_end_together(end: str) -> None:
    """The links of a session that ends may depend on each other, in any order."""
    async with Broker() as broker, client_of(broker) as client:
        owner = client.session.receiver("owner")
        owner.source.dynamic = True
        owner.open()
        await client.until(lambda: owner.state & proton.Endpoint.REMOTE_ACTIVE)
        users: list[proton.Link] = []
        for number in range(5):
            users.append(client.receiver(f"receiver {number}", owner.remote_source.address))
            users.append(client.sender(f"sender {number}", owner.remote_source.address))
        await client.until(lambda: all(link.state & proton.Endpoint.REMOTE_ACTIVE for link in users))
        assert broker.statistics().links == 11
        if end == "socket":
            await client.socket.close()
        elif end == "lost":
            await broker.disconnect()
        else:
            endpoint = client.session if end == "session" else client.connection
            endpoint.close()
            await client.until(lambda: endpoint.state & proton.Endpoint.REMOTE_CLOSED)
        assert broker.statistics().links == 0
        assert broker.statistics().queues == {}


async def test_a_receiver_of_two_gets_what_the_other_had() -> None:
    """What one link of a session leaves goes to another link of the same session, if only that one ends."""
    async with Broker() as broker, client_of(broker) as client:
        sender, one, two = client.sender(), client.receiver("one"), client.receiver("two")
        one.flow(1)
        await client.send(sender, MESSAGE)
        await client.take(one)
        two.flow(1)
        one.close()
        _, data = await client.take(two)
        assert Message.decode(data).delivery_count == 1
        assert queue(broker).unsettled == 1
