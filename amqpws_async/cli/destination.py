"""Where to: a broker's URL, or what an SAP Event Mesh service key or binding says."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from .connecting import in_options
from .failures import ExitStatus, Failure

if TYPE_CHECKING:
    from ..eventmesh import ServiceKey

__all__ = ["add_destination", "by_key", "has_key", "load_key", "mesh_address"]


def add_destination(parser: argparse.ArgumentParser) -> None:
    """Add the URL, and what may stand in its place. Other positional arguments are optional too, and follow."""
    parser.add_argument(
        "url", metavar="URL", nargs="?", help="the broker, such as wss://broker.example/protocols/amqp10ws"
    )
    group = parser.add_argument_group("SAP Event Mesh, in place of URL and credentials")
    group.add_argument(
        "--service-key",
        metavar="FILE",
        type=Path,
        help="a service key, as JSON; ADDRESS is then 'queue:NAME' or 'topic:NAME', in which ${namespace} stands for "
        "the key's own (write single quotes, or the shell fills it in)",
    )
    group.add_argument(
        "--env", action="store_true", help="the service bound to this environment (Cloud Foundry, Kubernetes)"
    )
    group.add_argument("--binding", metavar="NAME", help="which binding, if there are several")
    group.add_argument(
        "--certificate",
        nargs=2,
        metavar=("CERT", "KEY"),
        type=Path,
        help="PEM files of a client certificate and its key, in place of those in the service key",
    )


def has_key(arguments: argparse.Namespace) -> bool:
    """Whether a service key or binding says where to."""
    return arguments.service_key is not None or bool(arguments.env)


def by_key(arguments: argparse.Namespace, *others: str) -> bool:
    """Put the positional arguments in their places: without a URL, they are one earlier.

    Args:
        arguments: The arguments.
        *others: The names of the positional arguments behind the URL, in their order.

    Returns:
        Whether a service key or binding says where to.

    Raises:
        Failure: There is no way to know where to, or there are two.
    """
    if arguments.service_key is not None and arguments.env:
        raise Failure(ExitStatus.USAGE, "--service-key and --env exclude each other")
    if not has_key(arguments):
        for name in ("binding", "certificate"):
            if getattr(arguments, name) is not None:
                raise Failure(ExitStatus.USAGE, f"--{name} goes with --env or --service-key")
        if arguments.url is None:
            raise Failure(ExitStatus.USAGE, "where to? Give the broker's URL, or --service-key FILE, or --env")
        return False
    source = "--service-key" if arguments.service_key is not None else "--env"
    if arguments.url is not None and arguments.url.lower().startswith(("ws://", "wss://")):
        raise Failure(ExitStatus.USAGE, f"the URL comes from {source}: leave it out, or leave {source} out")
    given = [getattr(arguments, name) for name in ("url", *others)]
    if given[-1] is not None:
        raise Failure(ExitStatus.USAGE, f"too many arguments: with {source} there is no URL before {others[0].upper()}")
    for name, value in zip(("url", *others), [None, *given], strict=False):
        setattr(arguments, name, value)
    for name, option in (
        ("user", "--user"),
        ("password_env", "--password-env"),
        ("password_file", "--password-file"),
        ("subprotocol", "--subprotocol"),
    ):
        if getattr(arguments, name):
            raise Failure(ExitStatus.USAGE, f"{option} does not go with {source}, which says all that is needed")
    return True


async def load_key(arguments: argparse.Namespace) -> ServiceKey:
    """Read the service key.

    Raises:
        Failure: There is none, there are several, or it cannot be used.
    """
    from ..auth import oauth2
    from ..eventmesh import ServiceKey, ServiceKeyError

    certificate = None if arguments.certificate is None else oauth2.ClientCertificate(*arguments.certificate)
    try:
        return await asyncio.to_thread(
            ServiceKey.load, arguments.service_key, binding=arguments.binding, certificate=certificate
        )
    except ServiceKeyError as error:
        raise Failure(ExitStatus.USAGE, in_options(str(error))) from error


def mesh_address(key: ServiceKey, address: str, *, receives: bool) -> str:
    """Fill in the namespace, and check the address.

    Args:
        key: The service key.
        address: As it was given.
        receives: Whether it is to be received from.

    Raises:
        Failure: It breaks a rule of Event Mesh.
    """
    from ..eventmesh.addresses import check_source, check_target, expand

    try:
        return (check_source if receives else check_target)(expand(address, key.namespace))
    except ValueError as error:
        hint = " (did the shell take ${namespace}? Write single quotes)" if ":/" in address else ""
        raise Failure(ExitStatus.USAGE, f"{in_options(str(error))}{hint}") from error
