"""The floor: proton's engine through its cffi layer on ``websockets``, with a future for each message and no API.

No errors, no cancelling, no close: what is left is what any client made of these two parts has to pay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import proton
from cproton_ffi import ffi, lib
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from ..job import Job
from ..mark import Mark, Stopwatch, Unmarked
from ..shapes import make
from .loops import run

__all__ = ["Floor"]

MESSAGE_SIZE = 32768  # bytes of a WebSocket message, at most
DELIVERY, FLOW = lib.PN_DELIVERY, lib.PN_LINK_FLOW


class Floor:
    """One connection with one link.

    Args:
        websocket: Has coroutines `send` and `recv`.
    """

    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket
        self.loop = asyncio.get_running_loop()
        self.connection, self.transport, self.collector = proton.Connection(), proton.Transport(), proton.Collector()
        self.connection.collect(self.collector)
        self.connection.container, self.connection.hostname = "floor", "localhost"
        self.transport.sasl().allowed_mechs("ANONYMOUS")
        self.transport.max_frame_size = 65536
        self.transport.bind(self.connection)
        self.output, self.input = bytearray(65536), bytearray(65536)
        self.output_at, self.input_at = ffi.from_buffer(self.output), ffi.from_buffer(self.input)
        self.pending: dict[Any, asyncio.Future[int]] = {}
        self.arrived: deque[tuple[Any, bytes]] = deque()
        self.dirty = asyncio.Event()
        self.attached: asyncio.Future[None] = self.loop.create_future()
        self.waiting: asyncio.Future[None] | None = None  # for credit, or for a message

    async def open(self, address: str, *, receive: bool) -> None:
        """Open everything down to the link."""
        self.connection.open()
        session = self.connection.session()
        session.open()
        link = session.receiver("floor") if receive else session.sender("floor")
        (link.source if receive else link.target).address = address
        link.open()
        self.link = link._impl
        self.tasks = [asyncio.create_task(self.write()), asyncio.create_task(self.read())]
        self.dirty.set()
        await self.attached

    async def stop(self) -> None:
        """Write what is left, and end the tasks."""
        await asyncio.sleep(0.05)
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    async def read(self) -> None:
        """Feed the engine."""
        receive = self.websocket.recv
        while True:
            data = await receive()
            view, offset = ffi.from_buffer(data), 0
            while offset < len(data):
                room = lib.pn_transport_capacity(self.transport._impl)
                offset += lib.pn_transport_push(self.transport._impl, view + offset, min(room, len(data) - offset))
                self.dispatch()
            self.dirty.set()

    async def write(self) -> None:
        """Write all that is pending, in messages of bounded size."""
        transport = self.transport._impl
        while True:
            await self.dirty.wait()
            self.dirty.clear()
            chunks = []
            while (size := lib.pn_transport_pending(transport)) > 0:
                if size > len(self.output):
                    self.output = bytearray(size)
                    self.output_at = ffi.from_buffer(self.output)
                lib.pn_transport_peek(transport, self.output_at, size)
                chunks.append(bytes(self.output[:size]))
                lib.pn_transport_pop(transport, size)
            data = b"".join(chunks)
            for start in range(0, len(data), MESSAGE_SIZE):
                await self.websocket.send(data[start : start + MESSAGE_SIZE])

    def dispatch(self) -> None:
        """Work off the engine's events."""
        collector = self.collector._impl
        peek, pop, kind = lib.pn_collector_peek, lib.pn_collector_pop, lib.pn_event_type
        while event := peek(collector):
            what = kind(event)
            if what == DELIVERY:
                delivery = lib.pn_event_delivery(event)
                if lib.pn_delivery_readable(delivery):
                    if not lib.pn_delivery_partial(delivery):
                        self.take(delivery)
                elif lib.pn_delivery_updated(delivery):
                    state = lib.pn_delivery_remote_state(delivery)
                    future = self.pending.pop(delivery, None)
                    lib.pn_delivery_settle(delivery)
                    if future is not None and not future.done():
                        future.set_result(state)
            elif what == FLOW:
                self.wake()
            elif what == lib.PN_LINK_REMOTE_OPEN:
                self.attached.set_result(None)
            pop(collector)

    def wake(self) -> None:
        """Wake who waits."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    def take(self, delivery: Any) -> None:
        """Take a message out of the engine."""
        size = lib.pn_delivery_pending(delivery)
        if size > len(self.input):
            self.input = bytearray(size)
            self.input_at = ffi.from_buffer(self.input)
        lib.pn_link_recv(self.link, self.input_at, size)
        lib.pn_link_advance(self.link)
        self.arrived.append((delivery, bytes(self.input[:size])))
        self.wake()

    async def send(
        self, count: int, mark: Mark, *, body: bytes = b"", encoded: bytes = b"", window: int = 1000
    ) -> None:
        """Send `count` messages, each of a body or encoded already."""
        link, futures = self.link, deque[asyncio.Future[int]]()
        number = bytearray(4)
        tag = ffi.new("pn_bytes_t*")
        tag.size, tag.start = 4, ffi.cast("const char*", ffi.from_buffer(number))
        mark.begin()
        for index in range(count):
            while lib.pn_link_credit(link) <= 0:
                self.waiting = self.loop.create_future()
                await self.waiting
            number[0:4] = index.to_bytes(4, "big")
            delivery = lib.pn_delivery(link, tag[0])
            if encoded:
                data = encoded
            elif len(body) < 256:
                data = b"\x00Su\xa0" + bytes((len(body),)) + body
            else:
                data = b"\x00Su\xb0" + len(body).to_bytes(4, "big") + body
            lib.pn_link_send(link, ffi.from_buffer(data), len(data))
            lib.pn_link_advance(link)
            self.pending[delivery] = future = self.loop.create_future()
            if not self.dirty.is_set():
                self.dirty.set()
            futures.append(future)
            if len(futures) > window:
                await futures.popleft()
        for future in futures:
            await future
        mark.end()

    async def receive(self, count: int, mark: Mark, *, window: int = 1000, grant: bool = True) -> None:
        """Receive and accept `count` messages, and copy their bodies."""
        arrived, accepted, taken = self.arrived, lib.PN_ACCEPTED, 0
        mark.begin()
        if grant:
            lib.pn_link_flow(self.link, window)
            self.dirty.set()
        while count:
            if not arrived:
                self.waiting = self.loop.create_future()
                await self.waiting
            while arrived and count:
                delivery, raw = arrived.popleft()
                count -= 1
                raw[5:]
                lib.pn_delivery_update(delivery, accepted)
                lib.pn_delivery_settle(delivery)
                taken += 1
                if taken >= window // 2:
                    lib.pn_link_flow(self.link, taken)
                    taken = 0
                if not self.dirty.is_set():
                    self.dirty.set()
        mark.end()


async def _main(job: Job) -> None:
    async with connect(job.url, subprotocols=[Subprotocol("amqp")], compression=None, max_size=None) as websocket:
        floor, watch, shape = Floor(websocket), Stopwatch(), job.what
        await floor.open(job.address, receive=job.work == "receive")
        encoded = make(shape, 5).encode() if shape.rich else b""
        if job.work == "receive":
            await floor.receive(job.warm_up, Unmarked(), window=job.window)
            await floor.receive(job.messages, watch, window=job.window, grant=False)
        else:
            await floor.send(job.warm_up, Unmarked(), body=shape.body, encoded=encoded, window=job.window)
            await floor.send(job.messages, watch, body=shape.body, encoded=encoded, window=job.window)
        await floor.stop()
    job.report(watch)


if __name__ == "__main__":
    job = Job.from_argument()
    run(_main(job), job.loop)
