"""AMQP itself: SASL, open, session, attach, close. No message is touched."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from ...codec import Array, Described, decode
from ...connection import Connection
from ...errors import AMQPError, AttachError, AuthenticationError, DecodeError
from ...runner import Runner
from ...session import Session
from ...terminus import Source, Target
from ...transport import ByteConsumer, ByteTransport
from ..connecting import in_options
from ..failures import ExitStatus
from ..terminal import size
from .steps import Finding, Patient, Trouble

__all__ = ["Tap", "attach", "begin", "close", "open_step", "sasl"]

_SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"  # specification 5.3.1
_MECHANISMS, _OUTCOME = 0x40, 0x44  # specification 5.3.3
_MAX_FRAME: Final = 65536
_SHOWN: Final = 10  # capabilities
_UNLIMITED: Final = 2**32 - 1


class Tap:
    """A `ByteTransport` that listens in on SASL: which mechanisms there are is told to proton alone.

    Attributes:
        mechanisms: What the server offers, once it has.
        outcome: How it ended (specification 5.3.3.6), 0 being well, once it has.
        beginning: The first bytes that came.
        over: Set when SASL has ended, in whatever way.
    """

    def __init__(self, transport: ByteTransport) -> None:
        self.mechanisms: list[str] | None = None
        self.outcome: int | None = None
        self.beginning = b""
        self.over = asyncio.Event()
        self._transport = transport
        self._consumer: ByteConsumer
        self._rest = b""

    @property
    def latency(self) -> float:
        """See `ByteTransport.latency`."""
        return self._transport.latency

    def start(self, consumer: ByteConsumer) -> None:
        """Hand over what comes; see `ByteTransport.start`."""
        self._consumer = consumer
        self._transport.start(self)

    def write(self, data: bytes | memoryview) -> bool:
        """Write a message; see `ByteTransport.write`."""
        return self._transport.write(data)

    async def close(self) -> None:
        """Close in order; see `ByteTransport.close`."""
        self.over.set()
        await self._transport.close()

    def abort(self) -> None:
        """Drop the connection; see `ByteTransport.abort`."""
        self.over.set()
        self._transport.abort()

    def _on_bytes(self, data: bytes | bytearray | memoryview) -> None:
        if not self.over.is_set():
            self._listen(bytes(data))
        self._consumer._on_bytes(data)

    def _on_writable(self) -> None:
        self._consumer._on_writable()

    def _on_end(self, error: Exception) -> None:
        self.over.set()
        self._consumer._on_end(error)

    def _listen(self, data: bytes) -> None:
        if len(self.beginning) < len(_SASL_HEADER):
            self.beginning += data
            if len(self.beginning) < len(_SASL_HEADER):
                return
            data = self.beginning[len(_SASL_HEADER) :]
            self.beginning = self.beginning[: len(_SASL_HEADER)]
            if self.beginning != _SASL_HEADER:
                self.over.set()
                return
        self._rest += data
        while not self.over.is_set() and len(self._rest) >= 8:
            length, offset = int.from_bytes(self._rest[:4]), self._rest[4] * 4
            if not 8 <= offset <= length <= _MAX_FRAME:
                self.over.set()
            elif len(self._rest) < length:
                return
            else:
                self._hear(self._rest[offset:length])
                self._rest = self._rest[length:]

    def _hear(self, body: bytes) -> None:
        try:
            frame = decode(body)
        except DecodeError:  # the engine has its own opinion of it
            self.over.set()
            return
        if not isinstance(frame, Described) or not isinstance(frame.value, list) or not frame.value:
            return
        field = frame.value[0]
        if frame.descriptor == _MECHANISMS:
            self.mechanisms = [str(each) for each in (field.elements if isinstance(field, Array) else [field])]
        elif frame.descriptor == _OUTCOME:
            self.outcome = field if isinstance(field, int) else None
            self.over.set()


# --- SASL and open -----------------------------------------------------------------------------------


async def sasl(patient: Patient) -> Finding:
    """The mechanisms that are offered, and ours."""
    options = patient.options
    assert patient.websocket is not None
    tap = Tap(patient.websocket)
    trace = options.trace if callable(options.trace) else None
    patient.connection = connection = Connection(Runner(options, tap, trace))
    patient.resources.push_async_callback(_drop, connection)
    await tap.over.wait()
    used = options.sasl.name if options.sasl is not None else "none"
    offered = ", ".join(tap.mechanisms or []) or "none"
    details: dict[str, Any] = {"offered": tap.mechanisms, "used": used, "outcome": tap.outcome}
    if tap.outcome == 0:
        return Finding(f"{used}, of {offered}", details)
    if tap.beginning and tap.beginning != _SASL_HEADER:
        raise Trouble(f"the server began with {tap.beginning!r}", _beginning_advice(tap.beginning), details)
    try:
        await connection._wait_open()
    except AuthenticationError as error:
        text = in_options(str(error)).removeprefix(f"{options.origin}: ")
        raise Trouble(f"{text}; offered: {offered}", _mechanism_advice(used, tap.mechanisms or []), details) from error
    except (AMQPError, OSError) as error:
        text = str(error).removeprefix(f"{options.origin}: ")
        advice = "it speaks WebSocket, and may not speak AMQP here: check path and subprotocol"
        raise Trouble(text, advice, details) from error
    return Finding(f"{used}, of {offered}", details)


def _mechanism_advice(used: str, offered: list[str]) -> str:
    if used in offered:
        return "check user name and password" if used == "PLAIN" else "the server does not let just anybody in"
    if "PLAIN" in offered:
        return "give a user: --user NAME with --password-env NAME or --password-file FILE"
    if "ANONYMOUS" in offered:
        return "leave --user out"
    return "none of the mechanisms offered is one that this command has: ANONYMOUS and PLAIN"


def _beginning_advice(beginning: bytes) -> str:
    if beginning.startswith(b"AMQP"):
        return "it speaks AMQP, and another version or layer than AMQP 1.0 with SASL: is there another port or path?"
    return "that is not AMQP: check path and subprotocol (ActiveMQ, for one, speaks STOMP unless asked for amqp)"


async def open_step(patient: Patient) -> Finding:
    """What the server's open says."""
    connection = patient.connection
    assert connection is not None
    await connection._wait_open()
    remote = connection.remote
    properties = {str(key): str(value)[:200] for key, value in list(remote.properties.items())[:50]}
    details: dict[str, Any] = {
        "container_id": remote.container_id,
        "properties": properties,
        "max_frame_size": remote.max_frame_size,
        "channel_max": remote.channel_max,
        "idle_timeout": remote.idle_timeout or None,
        "offered_capabilities": list(map(str, remote.offered_capabilities)),
        "desired_capabilities": list(map(str, remote.desired_capabilities)),
    }
    parts = [f"container {remote.container_id!r}"]
    product = " ".join(properties[key] for key in ("product", "version") if key in properties)
    parts += [product] if product else []
    frame = "any size" if remote.max_frame_size in (0, _UNLIMITED) else size(remote.max_frame_size)
    parts.append(f"frames of {frame}")
    parts.append(f"{remote.channel_max + 1:,} channels")
    parts.append(f"idle timeout {remote.idle_timeout:g} s" if remote.idle_timeout else "no idle timeout")
    if capabilities := details["offered_capabilities"]:
        parts.append(f"offers {', '.join(capabilities[:_SHOWN])}{' ...' * (len(capabilities) > _SHOWN)}")
    return Finding(", ".join(parts), details)


# --- session and link ----------------------------------------------------------------------------------


async def begin(patient: Patient) -> Finding:
    """A session."""
    assert patient.connection is not None
    patient.session = await patient.connection.session()
    patient.resources.push_async_callback(_drop, patient.session)
    return Finding("begun")


async def attach(patient: Patient) -> Finding:
    """A link to the address, which carries nothing."""
    assert patient.session is not None
    address = patient.address
    role = "receiver" if patient.receives else "sender"
    details: dict[str, Any] = {"address": address, "role": role}
    relayed = patient.relays and not patient.receives
    shown = repr(address) if address and not relayed else "the anonymous terminus"
    try:
        if patient.receives:
            link: Any = await patient.session.receiver(Source(address), credit=0)
        else:
            link = await patient.session.sender(Target("" if relayed else address))
    except AttachError as error:
        details |= {"condition": error.condition, "description": error.description}
        why = str(error.error) if error.error is not None else "no reason given"
        raise Trouble(
            f"{role} at {shown} refused: {why}",
            _attach_advice(error.condition, patient.receives),
            details,
            ExitStatus.REFUSED,
        ) from error
    limit = link.remote.max_message_size
    details["max_message_size"] = limit or None
    await link.close()
    text = f"{role} at {shown}, messages of {size(limit) if limit else 'any size'}"
    if relayed:
        text += f" (whether {address!r} may be sent to shows with a message)"
    return Finding(text, details)


def _attach_advice(condition: str | None, receives: bool) -> str:
    match condition:
        case "amqp:not-found":
            return "check the name, upper and lower case and prefix (queue:, topic:) too, and whether it was created"
        case "amqp:unauthorized-access" | "amqp:not-allowed":
            verb = "receive from" if receives else "send to"
            return f"you may not {verb} it, or the name breaks a rule: check permissions, namespace and prefix"
        case "amqp:resource-limit-exceeded" | "amqp:resource-locked":
            return "somebody else uses it, or a limit is reached: close other links or connections"
        case "amqp:not-implemented":
            return "the broker does not have this kind of address"
    return "the broker's log may say more"


async def close(patient: Patient) -> Finding:
    """Close in order."""
    assert patient.connection is not None
    await patient.connection.close()
    return Finding("in order")


async def _drop(left: Connection | Session) -> None:
    """End what a failed step left open, in order if it can be had."""
    with contextlib.suppress(AMQPError, OSError):  # a step has told what is wrong
        await left.close()
