"""Azure's asyncio client (`azure.servicebus._pyamqp.aio`), as Service Bus uses it: each send awaits its outcome.

It has no way to send without waiting, so its window is one message. Over TCP.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from azure.servicebus._pyamqp.aio import ReceiveClientAsync, SendClientAsync
from azure.servicebus._pyamqp.message import Message, Properties
from azure.servicebus._pyamqp.outcomes import Accepted
from azure.servicebus._pyamqp.sasl import SASLAnonymousCredential

from ..job import Job
from ..mark import Stopwatch
from ..shapes import TENANT, TRACE, Shape
from .loops import run


class _Anonymous:
    """What the client wants of its `auth`."""

    auth_type = None
    sasl = SASLAnonymousCredential()


async def _main(job: Job) -> None:
    options = {"auth": _Anonymous(), "use_tls": False}
    host = urllib.parse.urlsplit(job.url).netloc
    await (_receive if job.work == "receive" else _send)(job, host, options)


async def _send(job: Job, host: str, options: dict[str, Any]) -> None:
    watch = Stopwatch()
    client = SendClientAsync(host, job.address, **options)
    await client.open_async()
    for count in (job.warm_up, job.messages):
        watch.begin()
        for number in range(count):
            await client.send_message_async(_make(job.what, number))
        watch.end()
    await client.close_async()
    job.report(watch)


def _make(shape: Shape, number: int) -> Message:
    if not shape.rich:
        return Message(data=[shape.body])
    return Message(
        data=[shape.body],
        properties=Properties(message_id=f"order-{number:012d}", content_type="application/json"),
        application_properties={"tenant": TENANT, "attempt": number & 127, "trace": TRACE},
    )


async def _receive(job: Job, host: str, options: dict[str, Any]) -> None:
    watch, arrived = Stopwatch(), []
    client = ReceiveClientAsync(host, job.address, link_credit=job.window, **options)

    async def keep(frame: Any, message: Any) -> None:
        arrived.append((frame, message))

    client._message_received_async = keep  # as Service Bus does, to know the frame of each message
    await client.open_async()
    for count in (job.warm_up, job.messages):
        watch.begin()
        while count:
            while not arrived:
                # No more than what may come: it would go on waiting, kept busy by empty frames alone.
                credit = client._link.current_link_credit if client._link else 0
                await client.do_work_async(batch=credit or job.window)
            some, arrived[:] = arrived[:count], arrived[count:]
            for frame, message in some:
                _read(job.what, message)
                # settle_messages_async() would wait for a frame after each, up to 0.2 s where none comes.
                await client._link.send_disposition(
                    first_delivery_id=frame[1], delivery_tag=frame[2], settled=True, delivery_state=Accepted()
                )
            count -= len(some)
        watch.end()
    await client.close_async()
    job.report(watch)


def _read(shape: Shape, message: Any) -> None:
    right = len(b"".join(message.data)) == len(shape.body)
    if shape.rich:
        right = right and message.properties.message_id and message.application_properties[b"tenant"] == TENANT.encode()
    if not right:
        raise RuntimeError(f"not what was sent: {message}")


if __name__ == "__main__":
    job = Job.from_argument()
    run(_main(job), job.loop)
