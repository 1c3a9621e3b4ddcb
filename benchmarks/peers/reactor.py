"""proton's own reactor, as its tutorial shows it: a MessagingHandler in a Container. Over TCP."""

from __future__ import annotations

import urllib.parse
from typing import Any

from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

from ..job import Job
from ..mark import Stopwatch
from ..shapes import TENANT, TRACE, Shape


class _Sending(MessagingHandler):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.watch = Stopwatch()
        self.phases = [job.messages, job.warm_up]
        self.left = self.sent = self.accepted = 0

    def on_start(self, event: Any) -> None:
        self.connection = event.container.connect(_url(self.job), allowed_mechs="ANONYMOUS", reconnect=False)
        self.sender = event.container.create_sender(self.connection, self.job.address)

    def on_sendable(self, event: Any) -> None:
        if self.left == self.sent == 0:
            self.next_phase()
        self.go()

    def next_phase(self) -> None:
        self.left = self.phases.pop()
        self.sent = self.accepted = 0
        self.watch.begin()

    def go(self) -> None:
        sender, window = self.sender, self.job.window
        while self.sent < self.left and sender.credit and self.sent - self.accepted < window:
            sender.send(_make(self.job.what, self.sent))
            self.sent += 1

    def on_accepted(self, event: Any) -> None:
        self.accepted += 1
        if self.accepted == self.left:
            self.watch.end()
            if not self.phases:
                self.connection.close()
                return
            self.next_phase()
        self.go()


class _Receiving(MessagingHandler):
    def __init__(self, job: Job) -> None:
        super().__init__(prefetch=job.window, auto_accept=True)
        self.job = job
        self.watch = Stopwatch()
        self.count = 0

    def on_start(self, event: Any) -> None:
        self.connection = event.container.connect(_url(self.job), allowed_mechs="ANONYMOUS", reconnect=False)
        event.container.create_receiver(self.connection, self.job.address)

    def on_message(self, event: Any) -> None:
        _read(self.job.what, event.message)
        self.count += 1
        if self.count == self.job.warm_up:
            self.watch.begin()
        elif self.count == self.job.warm_up + self.job.messages:
            self.watch.end()
            self.connection.close()


def _url(job: Job) -> str:
    return f"amqp://{urllib.parse.urlsplit(job.url).netloc}"


def _make(shape: Shape, number: int) -> Message:
    if not shape.rich:
        return Message(shape.body, inferred=True)
    return Message(
        shape.body,
        inferred=True,
        id=f"order-{number:012d}",
        content_type="application/json",
        properties={"tenant": TENANT, "attempt": number & 127, "trace": TRACE},
    )


def _read(shape: Shape, message: Any) -> None:
    right = len(message.body) == len(shape.body)
    if shape.rich:
        right = right and message.id is not None and message.properties["tenant"] == TENANT
    if not right:
        raise RuntimeError(f"not what was sent: {message}")


def main(job: Job) -> None:
    """Do the job."""
    handler = _Receiving(job) if job.work == "receive" else _Sending(job)
    Container(handler).run()
    job.report(handler.watch)


if __name__ == "__main__":
    main(Job.from_argument())
