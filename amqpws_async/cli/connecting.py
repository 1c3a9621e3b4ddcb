"""From arguments to an open connection."""

from __future__ import annotations

import sys
import urllib.parse
from argparse import Namespace
from typing import Final

import amqpws_async as amqp

from ..options import ConnectionArguments
from .credentials import read_headers, read_sasl, read_token
from .failures import ExitStatus, Failure, plain

__all__ = ["open_connection"]


async def open_connection(arguments: Namespace) -> amqp.Connection:
    """Open the connection that the arguments describe.

    Raises:
        Failure: It cannot be had, or the arguments are not fit.
    """
    try:
        opening = amqp.connect(arguments.url, **_options(arguments))
    except ValueError as error:
        raise Failure(ExitStatus.USAGE, _in_options(str(error))) from error
    try:
        return await opening
    except (amqp.AMQPError, OSError) as error:  # TimeoutError is an OSError
        raise Failure(ExitStatus.CANNOT_CONNECT, _in_options(str(error))) from error


def _options(arguments: Namespace) -> ConnectionArguments:
    options: ConnectionArguments = {
        "open_timeout": arguments.open_timeout,
        "require_subprotocol": arguments.require_subprotocol,
        "allow_insecure_auth": arguments.allow_insecure_auth,
        "headers": read_headers(arguments),
    }
    if (token := read_token(arguments)) is not None:
        options["token"] = token
    if (sasl := read_sasl(arguments)) is not None:
        options["sasl"] = sasl
    if arguments.ca is not None:
        options["ssl"] = arguments.ca
    if arguments.subprotocol:
        options["subprotocols"] = tuple(arguments.subprotocol)
    if arguments.proxy is not None:
        options["proxy"] = _proxy(arguments.proxy)
    if arguments.trace:
        options["trace"] = _trace
    return options


def _proxy(text: str) -> str | None:
    if text == "none":
        return None
    if urllib.parse.urlsplit(text).password is not None:
        raise Failure(
            ExitStatus.USAGE,
            "--proxy: a password is not taken, since arguments are visible to everyone on this machine: "
            "put the URL in the environment variable https_proxy or http_proxy",
        )
    return text


def _trace(line: str) -> None:
    print(plain(line), file=sys.stderr)


# The library's errors name its own options; here they are spelled differently.
_SPELLINGS: Final = {
    "token= (or headers={'Authorization': ...})": "--token-env (or --header-file)",
    "allow_insecure_auth=True": "--allow-insecure-auth",
    "require_subprotocol=False": "--no-require-subprotocol",
    "sasl=Plain(username, password)": "--user and --password-env",
    "sasl= or headers=": "--user and --password-env, or --header-file",
    "subprotocols=": "--subprotocol",
    "headers={'Authorization': 'Basic ...'}": "--header-file",
    "ssl='ca.pem'": "--ca ca.pem",
    "(open_timeout)": "(--open-timeout)",
}


def _in_options(text: str) -> str:
    for spelled, option in _SPELLINGS.items():
        text = text.replace(spelled, option)
    return text
