"""A step of an examination, what it finds, and how all are walked: in order, within one time limit, up to a failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import AMQPError
from ..connecting import in_options
from ..failures import ExitStatus

if TYPE_CHECKING:
    from ...auth import TokenProvider
    from ...connection import Connection
    from ...options import ConnectionOptions
    from ...session import Session
    from ...transport import WebSocketTransport

__all__ = ["Examination", "Finding", "Patient", "Step", "Trouble", "walk"]

MAX_TEXT: Final = 400  # characters of a line: parts of it may be the peer's


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step found, all being well.

    Attributes:
        text: For people, a line.
        details: For programs; the keys stay as they are.
        advice: What to look after all the same, or None.
    """

    text: str
    details: Mapping[str, Any] = field(default_factory=dict)
    advice: str | None = None


class Trouble(Exception):
    """A step failed.

    Attributes:
        details: For programs.
        advice: What to do, or None.
        status: The exit status that this calls for.
    """

    def __init__(
        self,
        text: str,
        advice: str | None = None,
        details: Mapping[str, Any] | None = None,
        status: ExitStatus = ExitStatus.CANNOT_CONNECT,
    ) -> None:
        super().__init__(text)
        self.advice = advice
        self.details = details or {}
        self.status = status


@dataclass(frozen=True, slots=True)
class Step:
    """A step, walked or not.

    Attributes:
        name: Its name, which stays as it is.
        ok: Whether all was well; None if it was not tried.
        seconds: How long it took.
        text: What was found, or what went wrong.
        details: The same for programs.
        advice: What to do, or None.
    """

    name: str
    ok: bool | None = None
    seconds: float = 0.0
    text: str = "not tried"
    details: Mapping[str, Any] = field(default_factory=dict)
    advice: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The step for programs."""
        return {
            "name": self.name,
            "ok": self.ok,
            "seconds": round(self.seconds, 6),
            "text": self.text,
            "details": dict(self.details),
            "advice": self.advice,
        }


@dataclass(kw_only=True, repr=False)
class Patient:
    """Who is examined, and what the steps so far have left for the next ones.

    Attributes:
        options: Where to connect, and how.
        ca: Whether the CAs to trust were given.
        proxy_source: Where the proxy comes from: an option's name, or None for the environment.
        tokens: Where the token comes from, or None for no token.
        token_source: Its name, for people.
        address: What to attach to, or None.
        receives: Whether to attach as a receiver.
        relays: Whether everything is sent through the anonymous terminus, as Event Mesh has it.
        resources: What the steps opened, to be closed at the end.
        deadline: When the time is up, on the loop's clock.
        addresses: What DNS gave.
        network: The way by TCP, through the proxy if there is one.
        token: The token's text.
        selection: What became of the subprotocol, which the upgrade finds out.
        websocket: The upgraded connection.
        connection: The AMQP connection on it.
        session: A session of that.
    """

    options: ConnectionOptions
    ca: bool = False
    proxy_source: str | None = None
    tokens: TokenProvider | None = None
    token_source: str = "given"
    address: str | None = None
    receives: bool = False
    relays: bool = False
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    deadline: float = 0.0

    addresses: tuple[str, ...] = ()
    network: asyncio.Transport | None = None
    token: str | None = None
    selection: Finding | Trouble | None = None
    websocket: WebSocketTransport | None = None
    connection: Connection | None = None
    session: Session | None = None


Look = Callable[[Patient], Awaitable[Finding]]


class Examination(NamedTuple):
    """A step that is to be walked.

    Attributes:
        name: Its name.
        look: What to do. It raises `Trouble`, or an error of the library.
        silence: What it means if this takes too long.
        advice: What to do then.
        status: The exit status if it fails.
    """

    name: str
    look: Look
    silence: str = "this took too long"
    advice: str = "try again, with a larger --open-timeout"
    status: ExitStatus = ExitStatus.CANNOT_CONNECT


async def walk(
    patient: Patient, examinations: Sequence[Examination], timeout: float, report: Callable[[Step], None]
) -> ExitStatus:
    """Walk the steps up to the first that fails; the others are reported as not tried.

    Cancelling ends the step under way, which is then reported as not tried, as are the others.

    Args:
        patient: Who is examined.
        examinations: The steps.
        timeout: Seconds for all of them.
        report: Called with each step when it is over.

    Returns:
        The exit status that the failure calls for, or OK.
    """
    patient.deadline = asyncio.get_running_loop().time() + timeout
    status = ExitStatus.OK
    left = list(examinations)
    try:
        while left and status is ExitStatus.OK:
            step, status = await _try(patient, left[0], timeout)
            left.pop(0)
            report(step)
    finally:
        for examination in left:
            report(Step(examination.name))
    return status


async def _try(patient: Patient, examination: Examination, timeout: float) -> tuple[Step, ExitStatus]:
    name = examination.name
    started = time.perf_counter()

    def failed(
        text: str, advice: str | None, status: ExitStatus, details: Mapping[str, Any] | None = None
    ) -> tuple[Step, ExitStatus]:
        seconds = time.perf_counter() - started
        return Step(name, False, seconds, _line(text), details or {}, _line(advice) if advice else None), status

    try:
        async with asyncio.timeout_at(patient.deadline):
            finding = await examination.look(patient)
    except Trouble as trouble:
        return failed(str(trouble), trouble.advice, trouble.status, trouble.details)
    except TimeoutError:
        text = f"{examination.silence} within {timeout:g} s (--open-timeout)"
        return failed(text, examination.advice, examination.status)
    except (AMQPError, OSError, ValueError) as error:
        text = str(error).removeprefix(f"{patient.options.origin}: ") or type(error).__name__
        return failed(in_options(text), None, examination.status)
    advice = _line(finding.advice) if finding.advice else None
    seconds = time.perf_counter() - started
    return Step(name, True, seconds, _line(finding.text), finding.details, advice), ExitStatus.OK


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."
