"""Every operation, cancelled at every one of its awaits, keeps its promise and leaves nothing behind.

Each scenario is an async generator: it prepares, yields the operation, and after the cancellation checks what that
operation promises. It runs again and again, cancelled one suspension point later each time, until the operation gets
through; so the points are counted, not chosen. A point is cancelled in two ways: while the operation waits there, and
in the very turn in which what it waited for has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any

import proton
import pytest

import amqpws_async as amqp

from .peer import PATIENCE, Conversation, Peer, ignore

MESSAGE = amqp.Message(b"one")
OTHER = amqp.Message(b"two")

#: What an operation is, for the loops below: something to call, to run in a task.
Operation = Callable[[], Coroutine[Any, Any, Any]]
Scenario = Callable[[Peer, Any], AsyncGenerator[Operation, bool]]

OPTIONS: dict[str, Any] = {"open_timeout": PATIENCE, "close_timeout": 2.0}


@types.coroutine
def interrupted(
    coroutine: Coroutine[Any, Any, Any], point: int, interrupt: Callable[[], object], woken: bool
) -> Generator[Any, Any, Any]:
    """Runs a coroutine, and interrupts at its suspension point of this number: while it waits, or when it is woken."""
    error: BaseException | None = None
    for number in itertools.count():
        try:
            waited = coroutine.throw(error) if error else coroutine.send(None)
        except StopIteration as end:
            return end.value
        if number == point:
            if woken and waited is not None:
                waited.add_done_callback(lambda _: interrupt())
            else:
                interrupt()
        error = None
        try:
            yield waited
        except BaseException as thrown:
            error = thrown


async def cancelled_at(operation: Operation, point: int, woken: bool) -> Any:
    """Runs an operation, cancelled at this point."""
    task = asyncio.current_task()
    assert task is not None
    return await interrupted(operation(), point, task.cancel, woken)


async def round_trip(connection: amqp.Connection) -> None:
    """Returns when the peer has read all that was written, and we what it had written by then."""
    async with asyncio.timeout(PATIENCE), connection.session():
        pass


def aside(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task beside the operation; that it fails is no complaint if the scenario is over by then."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


# --- the scenarios -------------------------------------------------------------------


async def connect(peer: Peer, connection: None) -> AsyncGenerator[Operation, bool]:
    """Cancelled, `connect` drops what was begun."""

    async def operation() -> None:
        await (await amqp.connect(peer.url, **OPTIONS)).close()

    yield operation
    await peer.until(lambda: all(conversation.over for conversation in peer.conversations))


async def whole_program(peer: Peer, connection: None) -> AsyncGenerator[Operation, bool]:
    """Cancelled anywhere, nested `async with` blocks leave nothing behind."""
    peer.queue.append(OTHER.encode())

    async def operation() -> None:
        async with (
            amqp.connect(peer.url, **OPTIONS) as connection,
            connection.session() as session,
            session.sender("q") as sender,
            connection.receiver("q") as receiver,
        ):
            await sender.send(MESSAGE)
            await (await receiver.receive()).accept()

    yield operation
    await peer.until(lambda: all(conversation.over for conversation in peer.conversations))


async def session(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, a half-open session is ended."""

    async def operation() -> None:
        await (await connection.session()).close()

    yield operation
    await round_trip(connection)
    await peer.until(lambda: peer.seen.count("begin") == peer.seen.count("end"))


def attach(role: str, parent: str) -> Scenario:
    async def scenario(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
        """Cancelled, a half-open link is detached, and its name is free again."""
        session = await connection.session() if parent == "session" else None

        async def operation() -> None:
            await (await getattr(session or connection, role)("q", name="mine")).close()

        yield operation
        await round_trip(connection)
        await peer.until(lambda: not peer.conversation.links)
        assert connection.health().links == ()
        async with asyncio.timeout(PATIENCE):
            async with getattr(session or connection, role)("q", name="mine") as link:
                assert link.state is amqp.EndpointState.OPEN
        if session is not None:
            await session.close()

    return scenario


async def attach_refused_late(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, an attach that the peer refuses afterwards is forgotten without a word."""

    def refuse(conversation: Conversation, link: Any) -> None:
        link.target.type = proton.Terminus.UNSPECIFIED
        link.open()
        conversation.detach(link, "amqp:not-found")

    peer.on["attach"] = refuse

    async def operation() -> None:
        with contextlib.suppress(amqp.AttachError):
            await connection.sender("q")

    yield operation
    await round_trip(connection)
    assert connection.health().links == ()


async def shared_default_session(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, an opener that was beginning the default session does not take it from another opener."""
    others: list[asyncio.Task[amqp.Sender]] = []

    async def open_other() -> amqp.Sender:
        return await connection.sender("other")

    async def operation() -> None:
        others.append(aside(open_other()))
        await (await connection.sender("q")).close()

    yield operation
    async with asyncio.timeout(PATIENCE):
        for other in others:
            async with await other as sender:
                assert await sender.send(MESSAGE) == amqp.Accepted()


async def send(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled before the transfer nothing is sent; after it, the delivery is settled when its outcome comes."""
    async with connection.sender("q") as sender:
        cancelled = not (yield lambda: sender.send(MESSAGE))
        await round_trip(connection)
        assert len(peer.received) <= 1 if cancelled else len(peer.received) == 1
        assert sender.unsettled == 0
        before = len(peer.received)
        async with asyncio.timeout(PATIENCE):
            assert await sender.send(OTHER) == amqp.Accepted()
        assert peer.received[before:] == [OTHER.encode()]


def wait_for_credit(method: str) -> Scenario:
    async def scenario(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
        """Cancelled while waiting for credit nothing is sent, and the credit is there for the next in line."""
        peer.credit = 0
        async with connection.sender("q") as sender:
            waiting: list[asyncio.Task[Any]] = []

            async def next_in_line() -> object:
                await asyncio.sleep(0)  # an eager task would be the first in line
                return await sender.send(OTHER)

            def grant() -> None:
                with contextlib.suppress(StopIteration):  # the peer may have gone
                    peer.conversation.grant(1)

            async def operation() -> None:
                waiting.append(aside(next_in_line()))
                asyncio.get_running_loop().call_later(0.02, grant)  # when both are in line
                await getattr(sender, method)(MESSAGE)

            through = yield operation
            if method == "transfer" and not through:
                assert MESSAGE.encode() not in peer.received
            await round_trip(connection)
            if MESSAGE.encode() in peer.received:
                peer.conversation.grant(1)
            async with asyncio.timeout(PATIENCE):
                for task in waiting:
                    assert await task == amqp.Accepted()

    return scenario


async def wait_for_room(peer: Peer, connection: None) -> AsyncGenerator[Operation, bool]:
    """Cancelled while waiting for buffer space nothing is sent, and the next transfer gets the room."""
    big, bigger = amqp.Message(bytes(300_000)), amqp.Message(bytes(300_001))
    async with (
        amqp.connect(peer.url, send_buffer_bytes=1024, **OPTIONS) as own,
        own.sender("q") as sender,
    ):
        first = await sender.transfer(big)
        through = yield lambda: sender.transfer(bigger)
        async with asyncio.timeout(PATIENCE):
            assert await first == amqp.Accepted()
            assert await sender.send(MESSAGE) == amqp.Accepted()
        sent = [big.encode(), *([bigger.encode()] if through else []), MESSAGE.encode()]
        assert [len(raw) for raw in peer.received] == [len(raw) for raw in sent]
    await peer.gone()


async def await_pending(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, waiting for an outcome can be taken up again."""
    async with connection.sender("q") as sender:
        pending = await sender.transfer(MESSAGE)

        async def operation() -> None:
            assert await pending == amqp.Accepted()

        yield operation
        async with asyncio.timeout(PATIENCE):
            assert await pending == amqp.Accepted()
        assert sender.unsettled == 0


class Slowly:
    """An async iterable whose wait may be cancelled without losing an item."""

    def __init__(self, items: list[amqp.Message]) -> None:
        self._items = items

    def __aiter__(self) -> Slowly:
        return self

    async def __anext__(self) -> amqp.Message:
        await asyncio.sleep(0)
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop(0)


def send_many(source: Callable[[list[amqp.Message]], Any]) -> Scenario:
    async def scenario(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
        """Cancelled, `send_many` goes on where it stopped: every message once, in order, with its outcome."""
        peer.credit = 2
        messages = [amqp.Message(b"%d" % n) for n in range(6)]
        async with connection.sender("q") as sender:
            many = sender.send_many(source(list(messages)), in_flight=3)
            seen: list[Any] = []

            async def operation() -> None:
                async for item in many:
                    seen.append(item)  # noqa: PERF401 - what came before the cancellation counts

            yield operation
            async with asyncio.timeout(PATIENCE):
                await operation()
            assert seen == [(message, amqp.Accepted()) for message in messages]
            assert peer.received == [message.encode() for message in messages]

    return scenario


async def send_many_closed(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled and closed, `send_many` starts nothing more."""
    async with connection.sender("q") as sender:
        many = sender.send_many((amqp.Message(b"%d" % n) for n in range(100)), in_flight=3)

        async def operation() -> None:
            for _ in range(5):
                await anext(many)

        yield operation
        await many.aclose()
        await round_trip(connection)
        sent = len(peer.received)
        await round_trip(connection)
        assert len(peer.received) == sent
        assert sender.unsettled == 0


def receive(method: str) -> Scenario:
    async def scenario(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
        """Cancelled, receiving loses nothing, and the link stays attached."""
        async with connection.receiver("q", credit=4) as receiver:
            await peer.saw("flow")
            bodies: list[Any] = []

            async def operation() -> None:
                for n in range(3):
                    peer.conversation.deliver(amqp.Message(b"%d" % n).encode())
                    delivery = await getattr(receiver, method)()
                    bodies.append(delivery.body)
                    await delivery.accept()

            yield operation
            await round_trip(connection)
            while receiver.queued:
                bodies.append((await receiver.receive()).body)
            assert bodies == [b"%d" % n for n in range(len(bodies))]
            peer.conversation.deliver(amqp.Message(b"last").encode())
            async with asyncio.timeout(PATIENCE):
                assert (await receiver.receive()).body == b"last"
            assert "detach" not in peer.seen

    return scenario


async def accept_confirm(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, the wait for a confirmation ends; the settlement goes its way."""
    async with connection.receiver("q", rcv_settle_mode=amqp.ReceiverSettleMode.SECOND) as receiver:
        await peer.saw("flow")
        peer.conversation.deliver(MESSAGE.encode())
        delivery = await receiver.receive()
        yield lambda: delivery.accept(confirm=True)
        await round_trip(connection)
        assert peer.dispositions[0] == (proton.Delivery.ACCEPTED, False)
        assert delivery.settled


async def drain(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, the wait ends; the receiver works as before, also for the next drain."""
    async with connection.receiver("q", credit=0) as receiver:
        await receiver.add_credit(5)
        yield receiver.drain
        async with asyncio.timeout(PATIENCE):
            await receiver.drain()
            assert receiver.credit == 0
            await receiver.add_credit(1)
            await peer.until(lambda: next(iter(peer.conversation.links.values())).credit == 1)
            peer.conversation.deliver(MESSAGE.encode())
            assert (await receiver.receive()).body == b"one"


def close_link(role: str, verb: str) -> Scenario:
    async def scenario(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
        """Cancelled, closing a link detaches it without waiting; what nobody took is released."""
        peer.queue.extend([MESSAGE.encode()] * 3)
        link = await getattr(connection, role)("q", name="mine")
        if role == "receiver":
            await peer.until(lambda: not peer.queue)
            await round_trip(connection)
        else:
            await link.transfer(MESSAGE)
        yield getattr(link, verb)
        assert link.state is amqp.EndpointState.CLOSED or link.state is amqp.EndpointState.CLOSING
        await round_trip(connection)
        assert link.state is amqp.EndpointState.CLOSED
        assert peer.detached == [("mine", verb == "close", None)]
        if role == "receiver":
            assert peer.dispositions == [(proton.Delivery.RELEASED, True)] * 3
        assert connection.health().links == ()

    return scenario


async def close_silent_link(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, closing a link does not wait for a peer that says nothing."""
    sender = await connection.sender("q")
    peer.on["detach"] = ignore

    async def operation() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await sender.close()

    yield operation
    await peer.saw("detach")
    peer.on.clear()
    peer.conversation.react("detach", next(iter(peer.conversation.links.values())))
    peer.conversation.flush()
    await round_trip(connection)


async def close_session(peer: Peer, connection: amqp.Connection) -> AsyncGenerator[Operation, bool]:
    """Cancelled, closing a session ends it without waiting, with all its links."""
    own = await connection.session()
    sender, receiver = await own.sender("q"), await own.receiver("q")
    await sender.transfer(MESSAGE)
    yield own.close
    await round_trip(connection)
    assert {own.state, sender.state, receiver.state} == {amqp.EndpointState.CLOSED}
    await peer.until(lambda: peer.seen.count("begin") == peer.seen.count("end"))


async def close_connection(peer: Peer, connection: None) -> AsyncGenerator[Operation, bool]:
    """Cancelled, closing drops the network connection at once, and fails everything that waits on it."""
    own = await amqp.connect(peer.url, **OPTIONS)
    sender, receiver = await own.sender("q"), await own.receiver("q")
    await sender.transfer(MESSAGE)
    receiving = aside(receiver.receive())
    await peer.saw("transfer")
    yield own.close
    await peer.gone()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(amqp.EndpointClosed):
            await receiving
        await own.close()
    assert {own.state, sender.state, receiver.state} == {amqp.EndpointState.CLOSED}


async def close_silent_connection(peer: Peer, connection: None) -> AsyncGenerator[Operation, bool]:
    """Cancelled, closing does not wait for a peer that says nothing."""
    own = await amqp.connect(peer.url, open_timeout=PATIENCE, close_timeout=0.1)
    peer.on["close"] = ignore

    async def operation() -> None:
        with contextlib.suppress(TimeoutError):
            await own.close()

    yield operation
    await peer.gone()


SCENARIOS: dict[str, Scenario] = {
    "session": session,
    "sender attach": attach("sender", "session"),
    "receiver attach": attach("receiver", "session"),
    "sender attach, default session": attach("sender", "connection"),
    "receiver attach, default session": attach("receiver", "connection"),
    "attach refused late": attach_refused_late,
    "shared default session": shared_default_session,
    "send": send,
    "send waits for credit": wait_for_credit("send"),
    "transfer waits for credit": wait_for_credit("transfer"),
    "await pending": await_pending,
    "send_many": send_many(lambda messages: messages),
    "send_many of an async iterable": send_many(Slowly),
    "send_many closed": send_many_closed,
    "receive": receive("receive"),
    "anext": receive("__anext__"),
    "accept(confirm=True)": accept_confirm,
    "drain": drain,
    "sender close": close_link("sender", "close"),
    "receiver close": close_link("receiver", "close"),
    "sender detach": close_link("sender", "detach"),
    "receiver detach": close_link("receiver", "detach"),
    "close of a silent link": close_silent_link,
    "session close": close_session,
}

#: These make their connections themselves.
ALONE: dict[str, Scenario] = {
    "connect": connect,
    "whole program": whole_program,
    "transfer waits for room": wait_for_room,
    "connection close": close_connection,
    "close of a silent connection": close_silent_connection,
}


async def _run(scenario: Scenario, point: int, woken: bool, alone: bool) -> bool:
    """Runs a scenario once, cancelled at this point, and says whether the operation got through."""
    async with Peer() as peer, contextlib.AsyncExitStack() as stack:
        before = asyncio.all_tasks()
        connection = None if alone else await amqp.connect(peer.url, **OPTIONS)
        if connection is not None:
            stack.push_async_callback(connection.close)
        story = scenario(peer, connection)
        operation = await anext(story)
        task = asyncio.create_task(cancelled_at(operation, point, woken))
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        with contextlib.suppress(StopAsyncIteration):
            await story.asend(not task.cancelled())
        if connection is not None:
            peer.on.clear()
            peer.credit = 1
            async with asyncio.timeout(PATIENCE), connection.session() as own, own.sender("usable") as sender:
                assert await sender.send(MESSAGE) == amqp.Accepted()
            await connection.close()
        await peer.gone(0)
        await _ended(before)
    return not task.cancelled()


async def _ended(before: set[asyncio.Task[Any]]) -> None:
    for _ in range(20):
        if not (left := asyncio.all_tasks() - before):
            return
        await asyncio.sleep(0)
    assert not left


async def _at_every_point(scenario: Scenario, woken: bool, *, alone: bool) -> int:
    for point in itertools.count():
        try:
            if await _run(scenario, point, woken, alone):
                return point
        except BaseException as error:
            error.add_note(f"cancelled at suspension point {point}")
            raise
    raise AssertionError


@pytest.mark.parametrize("woken", [False, True], ids=["waiting", "woken"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_cancelled_at_every_await(name: str, woken: bool) -> None:
    """The operation's promise holds at each of its awaits, and the connection goes on as if nothing had been."""
    await _at_every_point(SCENARIOS[name], woken, alone=False)


@pytest.mark.parametrize("woken", [False, True], ids=["waiting", "woken"])
@pytest.mark.parametrize("name", ALONE)
async def test_a_connection_cancelled_at_every_await(name: str, woken: bool) -> None:
    """Neither a task nor a socket outlives a connection that was cancelled while opening, in use, or closing."""
    await _at_every_point(ALONE[name], woken, alone=True)


@pytest.mark.parametrize("seed", range(8))
async def test_random_cancellations_lose_or_double_a_message(seed: int) -> None:
    """Many tasks on shared links, cancelled at random: each message once, each outcome true, no wake-up lost."""
    dice = random.Random(seed)
    async with Peer() as peer, amqp.connect(peer.url, send_buffer_bytes=1024, **OPTIONS) as connection:
        peer.credit = dice.choice([1, 2, 10])
        sender = await connection.sender("q")
        receiver = await connection.receiver("q", credit=4)
        taken: list[Any] = []

        def loop_back(conversation: Conversation, delivery: Any) -> None:
            peer.queue.append(peer.received[-1])
            conversation.react("transfer", delivery)
            conversation.react("flow", next(link for link in conversation.links.values() if link.is_sender))

        peer.on["transfer"] = loop_back

        async def send(number: int) -> int:
            body = b"%d" % number + bytes(dice.choice([0, 3000]))
            assert await sender.send(amqp.Message(body)) == amqp.Accepted()
            return number

        async def take() -> None:
            while True:
                delivery = await receiver.receive()
                taken.append(delivery.body)  # no await between taking and noting
                await delivery.accept()

        sends = [asyncio.create_task(send(number)) for number in range(60)]
        takers = [asyncio.create_task(take()) for _ in range(3)]
        while any(not task.done() for task in sends):
            await asyncio.sleep(0)
            if dice.random() < 0.3:
                dice.choice(sends).cancel()
            if dice.random() < 0.3:
                victim = dice.randrange(len(takers))
                takers[victim].cancel()
                takers[victim] = asyncio.create_task(take())
        async with asyncio.timeout(PATIENCE):
            await sender.send(OTHER)
            while b"two" not in taken:
                await asyncio.sleep(0)
        for task in takers:
            task.cancel()
        await asyncio.wait(takers)
        sent: list[Any] = [amqp.Message.decode(raw).body for raw in peer.received]
        assert len(set(sent)) == len(sent)
        assert sorted(taken) == sorted(sent)
        accepted = {task.result() for task in sends if not task.cancelled()}
        assert accepted <= {int(bytes(body).rstrip(b"\0")) for body in sent if body != b"two"}
        assert sender.unsettled == 0
        await receiver.close()
        await sender.close()


async def test_the_points_are_counted() -> None:
    """The harness finds each await of a coroutine, and cancels it there."""
    reached: list[int] = []

    async def operation() -> None:
        for number in range(3):
            reached.append(number)
            await asyncio.sleep(0)

    for point in range(3):
        reached.clear()
        task = asyncio.create_task(cancelled_at(operation, point, False))
        await asyncio.wait([task])
        assert task.cancelled()
        assert reached == list(range(point + 1))
    await cancelled_at(operation, 3, False)
