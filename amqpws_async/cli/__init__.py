"""The ``amqpws`` command: send, receive, find out why that fails, an embedded broker, and a demonstration.

* `arguments`: the parser, and the options that connecting commands share. `credentials`: where secrets come from.
* `destination`: a URL, or a service key. `connecting`: from these to an open connection.
* `failures`: exit statuses, and the one line that an error gets.
* `interruption`: what Ctrl-C and SIGTERM do. `streams`: standard input and output without blocking the event loop.
* `terminal`: the progress line, and how numbers are written. `histogram`: a picture of latencies.
* `rendering`: a message as JSON or text. `composition`: a message from arguments. `tally`: what became of many.
* `send`, `receive`, `doctor`, `broker`, `demo`: one module for each command, with its arguments.
* `checkup`: the steps that the doctor walks. `workload`: what the demo runs.
* `event_mesh`, `mesh_demo`: what broker and demo do with ``--event-mesh``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from . import broker, demo, doctor, receive, send
from .arguments import new_parser
from .failures import BROKEN_PIPE, ExitStatus, Failure, complain, interrupted, status_of
from .interruption import Interruption

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows the command's name; by default from ``sys.argv``.

    Returns:
        The exit status: see `ExitStatus`; 128 and the signal's number when interrupted, as shells have it.
    """
    parser, commands = new_parser()
    for command in (demo, broker, send, receive, doctor):
        command.add_to(commands)
    try:
        try:
            parsed = parser.parse_args(arguments)
        except SystemExit as exit:  # argparse, after --help, --version and usage errors
            print(end="", flush=True)
            return exit.code if isinstance(exit.code, int) else ExitStatus.USAGE
        if parsed.verbose:
            logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
            logging.getLogger("amqpws_async").setLevel(logging.INFO)
        status = _run(parsed)
        print(end="", flush=True)
    except OSError as error:
        # Standard output failed. What is still buffered for it must not fail once more when Python exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # nobody reads on, as with `| head`, and nobody wants to hear of it
            return BROKEN_PIPE
        complain(error)
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        return interrupted("SIGINT")
    return status


def _run(parsed: Namespace) -> int:
    interruption = Interruption()
    try:
        status = asyncio.run(interruption.guard(parsed.run(parsed, interruption)))
    except asyncio.CancelledError:
        status = ExitStatus.FAILED  # only ever after a signal, and then this is not what counts
    except BrokenPipeError:
        raise
    except Exception as error:
        if parsed.verbose and (error.__cause__ is not None or not isinstance(error, Failure)):
            traceback.print_exc()
        complain(error)
        status = status_of(error)
    if interruption.signal is not None and not (parsed.runs_until_signal and status == ExitStatus.OK):
        return interrupted(interruption.signal.name)
    return int(status)
