"""How the command ends: exit statuses, and the one line that an error gets."""

from __future__ import annotations

import enum
import re
import signal
import sys
from typing import Final

from ..errors import AMQPError, AttachError, DeliveryUnknown, EndpointClosed, OpenError, SettlementLost

__all__ = ["BROKEN_PIPE", "EXIT_STATUSES", "ExitStatus", "Failure", "complain", "interrupted", "plain", "status_of"]

BROKEN_PIPE: Final = 128 + signal.SIGPIPE
"""What shells see of a program that SIGPIPE ended."""

EXIT_STATUSES: Final = """\
exit status:
  0    everything asked for was done
  1    some messages failed (rejected, released, modified, too large), or something unexpected happened
  2    the arguments make no sense
  3    cannot connect: network, certificate, upgrade, token or user refused
  4    the address was refused
  5    the connection or the link was lost on the way
  6    --timeout passed before everything asked for was done
  130, 143, 141
       ended by Ctrl-C (SIGINT), by SIGTERM, because nobody reads the output
"""


class ExitStatus(enum.IntEnum):
    """What the command's exit status says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    REFUSED = 4
    LOST = 5
    TIMED_OUT = 6


class Failure(Exception):
    """Ends the command.

    Attributes:
        status: The exit status.
    """

    def __init__(self, status: ExitStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def status_of(error: BaseException) -> ExitStatus:
    """The exit status for an exception that ended the command."""
    match error:
        case Failure():
            return error.status
        case OpenError():
            return ExitStatus.CANNOT_CONNECT
        case AttachError():
            return ExitStatus.REFUSED
        case EndpointClosed() | SettlementLost() | DeliveryUnknown() | TimeoutError():
            return ExitStatus.LOST
        case _:
            return ExitStatus.FAILED


def interrupted(name: str) -> int:
    """The exit status after a signal."""
    return 128 + signal.Signals[name]


def complain(problem: str | BaseException) -> None:
    """Say on standard error, in one line, what went wrong."""
    if isinstance(problem, str):
        text = problem
    elif isinstance(problem, (Failure, AMQPError, OSError)):
        text = str(problem) or type(problem).__name__
    else:
        text = f"unexpected {type(problem).__name__}: {problem} (--verbose shows where)"
    print(f"amqpws: {plain(' '.join(text.split()))}", file=sys.stderr, flush=True)


# C0, DEL and C1: a peer's text or a message's body must not drive somebody's terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Spell out the control characters in `text`, except tabs and line ends."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
