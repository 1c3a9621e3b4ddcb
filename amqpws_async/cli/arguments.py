"""The command line: the parser, its texts, and the options by which to connect."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn

from .. import __version__
from .credentials import add_credentials
from .failures import EXIT_STATUSES, ExitStatus, complain

__all__ = ["Commands", "add_command", "add_connection", "new_parser", "positive", "seconds", "whole"]

_EXAMPLES: Final = """\
examples:
  see it work; nothing else is needed:
    amqpws demo

  a broker to try things on, then a message there and back:
    amqpws broker
    amqpws send ws://127.0.0.1:8672 orders 'hello'
    amqpws receive ws://127.0.0.1:8672 orders --count 1

  with an access token, which stays out of the list of processes:
    TOKEN=$(get-token) amqpws receive wss://broker.example/protocols/amqp10ws queue:orders --token-env TOKEN

  SAP Event Mesh: with a service key, or an embedded one that makes its own key:
    amqpws receive --service-key key.json 'queue:${namespace}/orders'
    amqpws broker --event-mesh

  it does not connect: why?
    amqpws doctor wss://broker.example/protocols/amqp10ws

'amqpws COMMAND --help' has more of them.

"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of this command's are."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} ('{self.prog} --help' explains)")
        sys.exit(ExitStatus.USAGE)


class _CommandParser(_Parser):
    """A parser that takes options and positional arguments in any order, also where some of the latter are optional."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
        if unknown:
            # By name alone: what follows a mistyped --password had better not be repeated.
            names = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
            self.error(f"unknown option {', '.join(names)}" if names else "too many arguments")
        return parsed, unknown


Commands = Any  # argparse's own type for this is private and generic


def new_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser, and where its commands are to be added."""
    parser = _Parser(
        prog="amqpws",
        description="AMQP 1.0 over WebSocket: send and receive messages, find out why that fails, run a small broker.",
        epilog=_EXAMPLES + EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_versions())
    return parser, parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )


def add_command(
    commands: Commands, name: str, arguments: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command; `run`, and `runs_until_signal` where a signal is its usual end, are for its module to set.

    Args:
        commands: Where to add it.
        name: Its name.
        arguments: What follows the options, for the usage line.
        summary: A few words for the list of commands.
        description: A sentence or two.
        examples: Each a line that says what for, and lines with the command.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"amqpws {name} [options] {arguments}".rstrip(),
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(runs_until_signal=False)
    parser.add_argument("--verbose", action="store_true", help="say more on standard error; tracebacks for errors")
    return parser


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options by which to connect."""
    group = parser.add_argument_group("connecting")
    add_credentials(group)
    group.add_argument(
        "--ca",
        metavar="FILE",
        type=Path,
        help="PEM file of the CAs to trust instead of the system's (token endpoint too)",
    )
    group.add_argument(
        "--subprotocol",
        metavar="NAME",
        action="append",
        help="WebSocket subprotocol to offer, best first; may be repeated (default: amqp; Azure: AMQPWSB10)",
    )
    group.add_argument(
        "--no-require-subprotocol",
        dest="require_subprotocol",
        action="store_false",
        help="go on if the server selects no subprotocol, as some relays do",
    )
    group.add_argument(
        "--allow-insecure-auth",
        action="store_true",
        help="let a token or password travel over ws:// to another machine, for anyone on the way to read",
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="HTTP or SOCKS proxy, or 'none' (default: from the environment; a proxy with a password goes there too)",
    )
    group.add_argument(
        "--open-timeout", metavar="SECONDS", type=seconds, default=30.0, help="for connecting (default: %(default)g)"
    )
    group.add_argument("--trace", action="store_true", help="show every AMQP frame on standard error, secrets masked")


def whole(text: str) -> int:
    """An argument that is a number from 0 on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {value}")
    return value


def positive(text: str) -> int:
    """An argument that is a number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1: {value}")
    return value


def seconds(text: str) -> float:
    """An argument that is a duration."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be seconds above 0: {text}")
    return value


# How argparse names the types in "invalid ... value".
for _type, _name in ((whole, "number"), (positive, "number"), (seconds, "number of seconds")):
    _type.__name__ = _name


def _versions() -> str:
    parts = [f"amqpws {__version__}", f"python {platform.python_version()}"]
    parts += [f"{name} {version(name)}" for name in ("python-qpid-proton", "websockets")]
    return f"{parts[0]} ({', '.join(parts[1:])}, {os.uname().sysname})"
