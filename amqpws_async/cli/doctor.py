"""``amqpws doctor``: walk the way to a broker step by step, and say where it ends and what to do."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

from ..urls import without_query
from .arguments import Commands, add_command, add_connection
from .checkup import amqp, network, token, upgrade
from .checkup.admission import admit, admit_by_key, key_step
from .checkup.steps import Examination, Patient, Step, walk
from .destination import add_destination, by_key, load_key, mesh_address
from .failures import ExitStatus, Failure, plain
from .interruption import Interruption
from .terminal import writable

__all__ = ["add_to"]

_EXAMPLES: Final = """\
  why can I not connect?
    amqpws doctor wss://broker.example/protocols/amqp10ws --token-env TOKEN
  the same for SAP Event Mesh, by a service key, or as a bound application:
    amqpws doctor --service-key key.json
    amqpws doctor --env 'queue:${namespace}/orders' --receive
  may I send to this queue, or receive from it? No message is touched:
    amqpws doctor ws://127.0.0.1:8672 orders
    amqpws doctor ws://127.0.0.1:8672 orders --receive
  for a program to read: which step failed?
    amqpws doctor ws://127.0.0.1:8672 --json | jq -r '.steps[] | select(.ok == false) | .name'

The steps: key (with a service key), proxy, dns, tcp, tunnel (through a proxy), tls (wss://), token, upgrade,
subprotocol, sasl, open, session, attach (with an ADDRESS), close. After the first that fails the others are not tried.
All of them together get --open-timeout. An attach may create the node, where a broker does so on first use.

JSON: url, ok, status (the exit status), seconds, and steps, each with name, ok (null: not tried), seconds, text,
details, advice. Tokens, passwords and the values of headers are in neither output.
"""
_NAMES: Final = "proxy dns tcp tls token upgrade subprotocol sasl open session attach close".split()
_WIDTH: Final = max(map(len, _NAMES))


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "doctor",
        "URL|--service-key FILE|--env [ADDRESS]",
        "find out why connecting fails",
        "Walk the way to a broker step by step: what each found, how long it took, and where one fails, what to do.",
        _EXAMPLES,
    )
    add_destination(parser)
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help="attach to this node too, without any message")
    parser.add_argument("--receive", action="store_true", help="attach as a receiver (default: as a sender)")
    parser.add_argument("--json", action="store_true", help="the steps on standard output, as JSON")
    add_connection(parser)
    parser.set_defaults(run=_run)


async def _run(arguments: Namespace, interruption: Interruption) -> int:
    keyed = by_key(arguments, "address")
    if arguments.receive and not arguments.address:
        raise Failure(ExitStatus.USAGE, "--receive needs an ADDRESS to receive from")
    shown = _Report(arguments.json)
    async with AsyncExitStack() as resources:
        if keyed:
            status = await interruption.work(_walk_by_key(arguments, resources, shown))
        else:
            patient = admit(arguments, resources)
            shown.begin(patient.options.url)
            status = await interruption.work(_walk(patient, arguments, shown))
    return shown.conclude(ExitStatus.FAILED if status is None else status)


async def _walk(patient: Patient, arguments: Namespace, shown: _Report) -> ExitStatus:
    return await walk(patient, _examinations(patient), arguments.open_timeout, shown.add)


async def _walk_by_key(arguments: Namespace, resources: AsyncExitStack, shown: _Report) -> ExitStatus:
    from .. import eventmesh  # noqa: F401 - it takes a while, and that is not the key's fault

    started = time.perf_counter()
    try:
        key = await load_key(arguments)
    except Failure as failure:
        shown.begin(None)
        shown.add(Step("key", False, time.perf_counter() - started, str(failure)))
        for name in _NAMES:
            if name != "attach" or arguments.address is not None:
                shown.add(Step(name))
        return failure.status
    seconds = time.perf_counter() - started
    address = arguments.address and mesh_address(key, arguments.address, receives=arguments.receive)
    patient = await admit_by_key(key, address, arguments, resources)
    shown.begin(patient.options.url)
    shown.add(key_step(key, seconds))
    return await _walk(patient, arguments, shown)


def _examinations(patient: Patient) -> list[Examination]:
    options = patient.options
    steps = [
        Examination("proxy", network.proxy),
        Examination("dns", network.dns, "no answer from the name server", "check the network and its name servers"),
        Examination(
            "tcp",
            network.tcp,
            "no answer to the TCP connection",
            "a firewall drops it without a word: check host and port, and whether a proxy is the way (--proxy URL)",
        ),
    ]
    if options.proxy_url is not None:
        steps.append(
            Examination(
                "tunnel", network.tunnel, "no answer from the proxy", "is it a proxy of this kind, at this port?"
            )
        )
    if options.encrypted:
        steps.append(
            Examination(
                "tls",
                network.tls_step,
                "no answer to the TLS handshake",
                "something takes the connection and does not speak TLS: check the port, and for a firewall on the way",
            )
        )
    steps += [
        Examination("token", token.token, "no token", "is the token endpoint slow, or behind a proxy?"),
        Examination(
            "upgrade",
            upgrade.upgrade,
            "no answer to the upgrade",
            "the server takes the connection and says nothing: does this port speak HTTP, and does the path exist?",
        ),
        Examination("subprotocol", upgrade.subprotocol),
        Examination(
            "sasl",
            amqp.sasl,
            "no SASL from the server",
            "it speaks WebSocket, and may not speak AMQP here: check path and subprotocol",
        ),
        Examination("open", amqp.open_step, "no open from the server", "the broker is busy, or waits for something"),
        Examination("session", amqp.begin, "no session from the server", status=ExitStatus.LOST),
    ]
    if patient.address is not None:
        steps.append(Examination("attach", amqp.attach, "no answer to the attach", status=ExitStatus.LOST))
    return [*steps, Examination("close", amqp.close, "no answer to the close", status=ExitStatus.LOST)]


class _Report:
    """Shows the steps as they come, or all of them at the end."""

    def __init__(self, as_json: bool) -> None:
        self._steps: list[Step] = []
        self._json = as_json
        self._url: str | None = None
        self._marks = {True: "ok", False: "FAILED", None: "-"}
        if writable("✓✗·", sys.stdout):
            self._marks = {True: "✓", False: "✗", None: "·"}
        self._arrow = "→" if writable("→", sys.stdout) else "->"

    def begin(self, url: str | None) -> None:
        """Show where to."""
        self._url = None if url is None else without_query(url)
        if not self._json and self._url is not None:
            print(plain(self._url), flush=True)

    def add(self, step: Step) -> None:
        """Show a step."""
        self._steps.append(step)
        if not self._json:
            for line in self._lines(step):
                print(plain(line), flush=True)

    def conclude(self, status: ExitStatus) -> ExitStatus:
        """Show what it comes to."""
        if self._json:
            print(json.dumps(self._as_json(status)), flush=True)
            return status
        failed = [step.name for step in self._steps if step.ok is False]
        tried = sum(step.ok is not None for step in self._steps)
        took = _took(sum(step.seconds for step in self._steps))
        if failed:
            print(f"it ends at {failed[0]}, step {tried} of {len(self._steps)}, after {took}")
        elif status is ExitStatus.OK:
            print(f"all {tried} steps are in order, in {took}")
        return status

    def _lines(self, step: Step) -> Iterator[str]:
        mark = self._marks[step.ok]
        took = _took(step.seconds) if step.ok is not None else ""
        indent = max(map(len, self._marks.values()))
        yield f"  {mark:<{indent}} {step.name:<{_WIDTH}} {took:>8}  {step.text}"
        if step.advice:
            yield f"  {'':<{indent}} {'':<{_WIDTH}} {'':>8}  {self._arrow} {step.advice}"

    def _as_json(self, status: ExitStatus) -> dict[str, Any]:
        return {
            "url": self._url,
            "ok": status is ExitStatus.OK,
            "status": int(status),
            "seconds": round(sum(step.seconds for step in self._steps), 6),
            "steps": [step.as_json() for step in self._steps],
        }


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
