"""``amqpws broker --event-mesh``: the embedded Event Mesh, with files for its clients, and what to do with them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .failures import ExitStatus, Failure, plain

if TYPE_CHECKING:
    from ..testing import EventMesh

__all__ = ["KeyFiles", "Queue", "key_files", "new_mesh", "queue", "start_mesh"]

_NAMESPACE: Final = "${namespace}"


class Queue(NamedTuple):
    """A queue to create.

    Attributes:
        name: Its name, without the namespace.
        topics: What it subscribes to, likewise.
    """

    name: str
    topics: tuple[str, ...]


DEFAULT_QUEUE: Final = Queue("orders", ("orders/*",))


def queue(text: str) -> Queue:
    """An argument that is ``NAME`` or ``NAME=TOPIC,...``."""
    name, _, topics = text.partition("=")
    short = [each.strip().removeprefix(f"{_NAMESPACE}/") for each in (name, *topics.split(","))]
    if not short[0]:
        raise argparse.ArgumentTypeError(f"write NAME=TOPIC,TOPIC, not {text!r}")
    return Queue(short[0], tuple(each for each in short[1:] if each))


def new_mesh(**options: Any) -> EventMesh:
    """Make the embedded Event Mesh.

    Raises:
        Failure: It cannot be made here.
    """
    from ..testing import EventMesh

    try:
        return EventMesh(**options)
    except ModuleNotFoundError as error:
        raise Failure(
            ExitStatus.FAILED, f"{error.name} is not installed, and --event-mesh needs it: {_INSTALL}"
        ) from error


_INSTALL: Final = "pip install 'amqpws-async[testing]'"


class KeyFiles(NamedTuple):
    """What clients need.

    Attributes:
        key: The service key, which its owner alone may read.
        ca: The CA's certificate.
    """

    key: Path
    ca: Path


@contextlib.contextmanager
def key_files(mesh: EventMesh, file: Path | None) -> Iterator[KeyFiles]:
    """Write the service key and the CA; they are removed at the end, as they are good for nothing then.

    Args:
        mesh: The Event Mesh.
        file: Where to write the key, such as ``key.json``, the CA beside it in ``key-ca.pem``; None for a new folder.

    Raises:
        Failure: They cannot be written, or are there already.
    """
    with contextlib.ExitStack() as stack:
        if file is None:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amqpws-"))) / "service-key.json"
        files = KeyFiles(file, file.with_name(f"{file.stem}-ca.pem"))
        for path, content in zip(files, (json.dumps(mesh.service_key(), indent=2) + "\n", mesh.ca_pem), strict=True):
            try:
                # Never over a file that is there: it may be the key of a real service.
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
                    stack.callback(path.unlink, missing_ok=True)
                    opened.write(content)
            except OSError as error:
                raise Failure(
                    ExitStatus.USAGE,
                    f"--key-file: {path} cannot be written: {error.strerror} (it is never written over; remove it, or "
                    "name another)",
                ) from error
        yield files


@contextlib.asynccontextmanager
async def start_mesh(arguments: Namespace) -> AsyncIterator[EventMesh]:
    """Run the Event Mesh that the arguments of ``amqpws broker`` describe, and say how to use it.

    Raises:
        Failure: An argument does not suit.
        OSError: The port cannot be had.
    """
    if arguments.tls is not None or arguments.users_file is not None:
        raise Failure(ExitStatus.USAGE, "--event-mesh has certificates and a client of its own: no --tls, --users-file")
    queues = arguments.queue or [DEFAULT_QUEUE]
    async with new_mesh(host=arguments.host, port=arguments.port) as mesh:
        for each in queues:
            _create(mesh, each)
        with key_files(mesh, arguments.key_file) as files:
            for line in (mesh.url, *files):
                print(line, flush=True)
            for line in _hints(files, mesh.namespace, queues):
                print(plain(line), file=sys.stderr, flush=True)
            yield mesh


def _create(mesh: EventMesh, wanted: Queue) -> None:
    try:
        mesh.create_queue(f"{_NAMESPACE}/{wanted.name}")
        for topic in wanted.topics:
            mesh.subscribe(f"{_NAMESPACE}/{wanted.name}", f"{_NAMESPACE}/{topic}")
    except ValueError as error:
        raise Failure(ExitStatus.USAGE, f"--queue: {error}") from error


def _hints(files: KeyFiles, namespace: str, queues: list[Queue]) -> Iterator[str]:
    options = f"--service-key {shlex.quote(str(files.key))} --ca {shlex.quote(str(files.ca))}"
    yield f"SAP Event Mesh, embedded: namespace {namespace}"
    for each in queues:
        topics = ", ".join(f"{_NAMESPACE}/{topic}" for topic in each.topics) or "no topic"
        yield f"  queue {_NAMESPACE}/{each.name} subscribes to {topics}"
    first = queues[0]
    address = f"queue:{_NAMESPACE}/{first.name}"
    target = f"topic:{_NAMESPACE}/{_example(first.topics[0])}" if first.topics else address
    yield "in another terminal:"
    yield f"  amqpws doctor {options} '{address}' --receive"
    yield f"  amqpws send {options} '{target}' hello"
    yield f"  amqpws receive {options} '{address}' --count 1"
    yield "Ctrl-C ends it, and removes both files"


def _example(pattern: str) -> str:
    """A topic that a pattern covers."""
    return "/".join("created" if segment in ("*", "+") else segment for segment in pattern.split("/"))
