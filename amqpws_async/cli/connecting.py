"""From arguments to an open connection."""

from __future__ import annotations

import contextlib
import sys
import urllib.parse
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import amqpws_async as amqp

from ..endpoint import Opening
from ..options import ConnectionArguments
from .credentials import read_headers, read_sasl, read_token
from .failures import ExitStatus, Failure, plain

if TYPE_CHECKING:
    from ..eventmesh import EventMeshConnection, ServiceKey

__all__ = ["in_options", "open_connection", "open_mesh", "options_of"]

T = TypeVar("T", bound=contextlib.AbstractAsyncContextManager[Any])


async def open_connection(arguments: Namespace) -> amqp.Connection:
    """Open the connection that the arguments describe.

    Raises:
        Failure: It cannot be had, or the arguments are not fit.
    """
    return await _opened(lambda: amqp.connect(arguments.url, **options_of(arguments)))


async def open_mesh(arguments: Namespace, key: ServiceKey) -> EventMeshConnection:
    """Open the connection that a service key describes.

    Raises:
        Failure: It cannot be had, or the arguments are not fit.
    """
    from .. import eventmesh
    from ..eventmesh.connection import EventMeshArguments

    options: dict[str, Any] = {**options_of(arguments)}
    for name in ("allow_insecure_auth", "require_subprotocol"):  # Event Mesh leaves no choice
        del options[name]
    return await _opened(lambda: eventmesh.connect(key, **cast(EventMeshArguments, options)))


async def _opened(connect: Callable[[], Opening[T]]) -> T:
    try:
        return await connect()
    except ValueError as error:
        raise Failure(ExitStatus.USAGE, in_options(str(error))) from error
    except (amqp.AMQPError, OSError) as error:  # TimeoutError is an OSError
        raise Failure(ExitStatus.CANNOT_CONNECT, in_options(str(error))) from error


def options_of(arguments: Namespace) -> ConnectionArguments:
    """The options that the arguments of `add_connection` stand for.

    Raises:
        Failure: An argument is not fit.
    """
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
    "write it out, or give namespace=": "write it out",
    "give token=": "give --token-env NAME",
    "certificate=ClientCertificate('own.pem', 'key.pem')": "--certificate own.pem key.pem",
}


def in_options(text: str) -> str:
    """Spell the library's options in `text` as the command spells them."""
    for spelled, option in _SPELLINGS.items():
        text = text.replace(spelled, option)
    return text
