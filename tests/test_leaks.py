"""What is closed is gone: objects, tasks, sockets. What is dropped without closing says so, and is cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import amqpws_async as amqp

from .peer import PATIENCE, Peer, ignore, refuse

MESSAGE = amqp.Message(b"one")


def alive(*kinds: type) -> int:
    """How many objects of these kinds there are, reachable or not yet collected by themselves."""
    gc.collect()
    return sum(type(thing) in kinds for thing in gc.get_objects())


def collected(*references: weakref.ref[Any]) -> bool:
    gc.collect()
    return not any(reference() for reference in references)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.contextmanager
def warnings_of(kind: type[Warning]) -> Iterator[list[str]]:
    """Gathers the texts of the warnings raised inside; the warnings themselves would keep what was dropped."""
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("always", kind)
        warnings.showwarning = lambda message, *rest, **more: texts.append(str(message))
        yield texts
        gc.collect()


@contextlib.contextmanager
def warned_once(text: str) -> Iterator[None]:
    """Something is dropped inside, and warns exactly once."""
    with warnings_of(ResourceWarning) as texts:
        yield
    assert len(texts) == 1, texts
    assert text in texts[0]
    assert "never closed" in texts[0]


# --- what is closed --------------------------------------------------------------------


async def test_closed_endpoints_stay_in_memory() -> None:
    """Connection, session and links can be collected once they are closed, and so can what went over them."""
    async with Peer() as peer:
        peer.queue.append(MESSAGE.encode())

        async def use() -> list[weakref.ref[Any]]:
            async with (
                amqp.connect(peer.url) as connection,
                connection.session() as session,
                session.sender("q") as sender,
                connection.receiver("q") as receiver,
            ):
                await sender.send(MESSAGE)
                delivery = await receiver.receive()
                await delivery.accept()
                return [weakref.ref(thing) for thing in (connection, session, sender, receiver)]

        before = alive(amqp.Delivery, amqp.PendingDelivery, amqp.Connection)  # other tests may have left some to pytest
        references = await use()
        await peer.gone()
        assert collected(*references)
        assert alive(amqp.Delivery, amqp.PendingDelivery, amqp.Connection) == before


@pytest.mark.parametrize("parent", ["connection", "session"])
async def test_closed_links_stay_with_their_session(parent: str) -> None:
    """A closed link can be collected while its session and connection live on."""
    async with Peer() as peer, amqp.connect(peer.url) as connection, connection.session() as session:
        owner: Any = {"connection": connection, "session": session}[parent]

        async def use() -> list[weakref.ref[Any]]:
            async with owner.sender("q") as sender, owner.receiver("q") as receiver:
                await sender.send(MESSAGE)
                return [weakref.ref(sender), weakref.ref(receiver)]

        references = await use()
        await turns()
        assert collected(*references)


@pytest.mark.parametrize("end", ["drop", "close", "end", "detach"])
async def test_what_the_peer_ended_stays_in_memory(end: str) -> None:
    """Endpoints that the peer or the network ended can be collected, errors that came of it and all."""
    async with Peer() as peer:

        async def use() -> list[weakref.ref[Any]]:
            connection = await amqp.connect(peer.url, close_timeout=1)
            session = await connection.session()
            sender, receiver = await session.sender("s"), await session.receiver("r")
            peer.on["transfer"] = ignore
            waits = [asyncio.create_task(sender.send(MESSAGE)), asyncio.create_task(receiver.receive())]
            await peer.saw("transfer")
            if end == "detach":
                for link in list(peer.conversation.links.values()):
                    peer.conversation.detach(link, "amqp:internal-error")
            else:
                getattr(peer.conversation, end)()
            await asyncio.wait(waits, timeout=PATIENCE)
            assert all(isinstance(wait.exception(), amqp.AMQPError) for wait in waits)
            with contextlib.suppress(amqp.AMQPError):
                await connection.close()
            return [weakref.ref(thing) for thing in (connection, session, sender, receiver)]

        references = await use()
        peer.conversation.drop()
        await peer.gone()
        await turns()
        assert collected(*references)
        assert alive(amqp.PendingDelivery, amqp.DeliveryUnknown, amqp.LinkClosed) == 0


async def test_links_that_never_came_up_stay_in_memory() -> None:
    """Refused and cancelled attaches leave nothing with the session."""
    async with Peer() as peer, amqp.connect(peer.url) as connection, connection.session() as session:
        before = alive(amqp.Sender, amqp.Receiver)
        peer.on["attach"] = refuse("amqp:not-found")
        for _ in range(20):
            with pytest.raises(amqp.AttachError):
                await session.sender("q")
        del peer.on["attach"]

        async def attach() -> None:
            await session.receiver("q")

        for _ in range(20):
            attaching = asyncio.create_task(attach())
            await asyncio.sleep(0)
            attaching.cancel()
            await asyncio.wait([attaching])
            del attaching  # a cancelled task keeps its traceback, and that its frames
        await peer.until(lambda: peer.seen.count("attach") == peer.seen.count("detach"))
        async with session.sender("q"):
            pass
        await turns()
        assert alive(amqp.Sender, amqp.Receiver) == before


async def test_a_thousand_links_on_one_session() -> None:
    """A thousand senders and receivers, opened and closed, leave one session with as much as before."""
    async with Peer() as peer, amqp.connect(peer.url) as connection, connection.session() as session:

        async def round_(count: int) -> int:
            for _ in range(count):
                async with session.sender("q") as sender, session.receiver("q"):
                    await sender.send(MESSAGE)
            await turns()
            return ours()

        before = await round_(10)
        assert await round_(490) == before
        assert connection.health().links == ()


async def test_a_thousand_sessions_on_one_connection() -> None:
    """A thousand sessions, opened and closed, leave one connection with as much as before."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:

        async def round_(count: int) -> int:
            for _ in range(count):
                async with connection.session():
                    pass
            await turns()
            return ours()

        before = await round_(10)
        assert await round_(990) == before


def ours() -> int:
    """How many objects of the package's classes there are."""
    gc.collect()
    return sum(str(type(thing).__module__).partition(".")[0] == "amqpws_async" for thing in gc.get_objects())


async def test_hundreds_of_connections() -> None:
    """Three hundred connections, one after another and some at once, leave no object, task or socket."""
    async with Peer() as peer:

        async def one() -> None:
            async with amqp.connect(peer.url) as connection, connection.sender("q") as sender:
                await sender.send(MESSAGE)

        await one()
        await peer.gone()
        await turns()
        before = ours(), len(asyncio.all_tasks()), _sockets()
        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(20)))
        for _ in range(100):
            await one()
        await peer.gone(301)
        await turns()
        assert (ours(), len(asyncio.all_tasks()), _sockets()) == before


def _sockets() -> int:
    """Open files of this process, where the system says."""
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


async def test_messages_stay_in_memory() -> None:
    """Thousands of messages sent, received and settled leave none of their objects."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        async with connection.sender("q") as sender:
            async for _ in sender.send_many(amqp.Message(b"%d" % n) for n in range(3000)):
                pass
        peer.queue.extend([MESSAGE.encode()] * 3000)
        async with connection.receiver("q") as receiver:
            for _ in range(3000):
                await (await receiver.receive()).accept()
            assert alive(amqp.Delivery, amqp.PendingDelivery) <= 1


@pytest.mark.parametrize("wait", ["receive", "send", "transfer", "pending"])
async def test_waits_given_up_stay_in_memory(wait: str) -> None:
    """A thousand waits that were cancelled leave nothing queued for a wake-up that may never come."""
    async with Peer() as peer, amqp.connect(peer.url, close_timeout=0.1) as connection:
        peer.credit = 1 if wait == "pending" else 0
        peer.on["transfer"] = ignore
        sender, receiver = await connection.sender("q"), await connection.receiver("q")
        pending = await sender.transfer(MESSAGE) if wait == "pending" else None

        async def once() -> None:
            if pending is not None:
                await pending
            elif wait == "receive":
                await receiver.receive()
            else:
                await getattr(sender, wait)(MESSAGE)

        async def round_(count: int) -> int:
            for _ in range(count):
                task = asyncio.create_task(once())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            return alive(asyncio.Future, asyncio.Task) + ours()

        before = await round_(10)
        assert await round_(1000) <= before + 2
        with contextlib.suppress(TimeoutError):
            await sender.close()
        await receiver.close()


# --- what is dropped -----------------------------------------------------------------------


async def test_a_dropped_connection_is_silent() -> None:
    """A connection dropped without closing warns, and its socket and task go."""
    async with Peer() as peer:
        before = asyncio.all_tasks()
        with warned_once("Connection"):
            await amqp.connect(peer.url)
        await asyncio.wait_for(peer.gone(), PATIENCE)
        await turns()
        assert {task for task in asyncio.all_tasks() - before if "amqpws_async" in repr(task)} == set()


@pytest.mark.parametrize("role", ["sender", "receiver"])
async def test_a_dropped_link_is_silent(role: str) -> None:
    """A link dropped without closing warns and is detached, and its connection goes on."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        peer.queue.append(MESSAGE.encode())
        with warned_once(role.capitalize()):
            await getattr(connection, role)("q", name="dropped")
        await peer.saw("detach")
        assert peer.detached == [("dropped", True, None)]
        await turns()
        assert connection.health().links == ()
        async with connection.sender("q") as other:
            assert await other.send(MESSAGE) == amqp.Accepted()


async def test_a_dropped_session_is_silent() -> None:
    """A session dropped without closing warns and is ended, and its connection goes on."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        with warned_once("Session"):
            await connection.session()
        await peer.saw("end")
        async with connection.sender("q") as other:
            assert await other.send(MESSAGE) == amqp.Accepted()


async def test_a_dropped_tree_of_endpoints() -> None:
    """A connection dropped with all that is on it warns for each, and its socket goes."""
    async with Peer() as peer:

        async def use() -> None:
            connection = await amqp.connect(peer.url)
            session = await connection.session()
            sender, receiver = await session.sender("q"), await session.receiver("q")
            await sender.send(MESSAGE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await receiver.receive()

        with warnings_of(ResourceWarning) as texts:
            await use()
            await turns()  # what was scheduled for the waiter that timed out
        kinds = sorted(text.split(" ")[0] for text in texts)
        assert kinds == ["<Connection", "<Receiver", "<Sender", "<Session"]
        await peer.gone()


async def test_a_delivery_keeps_its_receiver() -> None:
    """As long as a delivery is in hand its receiver is not dropped: it can still be settled."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        peer.queue.append(MESSAGE.encode())
        delivery = await (await connection.receiver("q")).receive()
        gc.collect()
        await delivery.accept()
        await peer.saw("disposition")
        await delivery.receiver.close()


async def test_a_pending_delivery_keeps_its_sender() -> None:
    """As long as somebody waits for an outcome its sender is not dropped."""
    async with Peer() as peer, amqp.connect(peer.url) as connection:
        held: list[Any] = []
        peer.on["transfer"] = lambda conversation, delivery: held.append(delivery)

        async def start() -> tuple[amqp.PendingDelivery, weakref.ref[amqp.Sender]]:
            sender = await connection.sender("q")
            return await sender.transfer(MESSAGE), weakref.ref(sender)

        pending, sender = await start()
        await peer.saw("transfer")
        gc.collect()
        peer.conversation.settle(held[0])
        assert await pending == amqp.Accepted()
        if (still := sender()) is not None:
            await still.close()


async def test_a_waiting_task_keeps_its_endpoints() -> None:
    """A task that waits on an endpoint is reason enough for it to stay, when nobody else has it."""
    async with Peer() as peer:

        async def work() -> Any:
            connection = await amqp.connect(peer.url)
            receiver = await connection.receiver("q")
            delivery = await receiver.receive()
            await delivery.accept()
            await receiver.close()
            await connection.close()
            return delivery.body

        working = asyncio.create_task(work())
        await peer.saw("flow")
        gc.collect()
        await turns()
        gc.collect()
        peer.conversation.deliver(MESSAGE.encode())
        async with asyncio.timeout(PATIENCE):
            assert await working == b"one"


def test_a_loop_that_ends_before_its_connection() -> None:
    """A connection whose loop was closed under it warns when it goes, and nothing more."""
    kept: list[amqp.Connection] = []

    async def use() -> None:
        async with Peer() as peer:
            kept.append(await amqp.connect(peer.url))
            await kept[0].session()

    with warnings_of(ResourceWarning) as texts:
        asyncio.run(use())
        kept.clear()
    assert all("never closed" in text for text in texts)
