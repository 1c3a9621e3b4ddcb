"""Who is examined: from a URL or a service key, and options, to a `Patient`."""

from __future__ import annotations

import asyncio
import ssl
from argparse import Namespace
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from ...auth.tokens import as_provider
from ...errors import AMQPError
from ...options import ConnectionArguments, ConnectionOptions
from ...urls import without_query
from ..connecting import in_options, options_of
from ..failures import ExitStatus, Failure
from .steps import Patient, Step

if TYPE_CHECKING:
    from ...eventmesh import ServiceKey

__all__ = ["admit", "admit_by_key", "key_step"]

_CLOSE_TIMEOUT: Final = 1.0  # seconds: there is nothing to settle, and who waits wants to read on


def admit(arguments: Namespace, resources: AsyncExitStack) -> Patient:
    """The patient of a URL.

    Args:
        arguments: Of the command.
        resources: What closes everything that is opened.

    Raises:
        Failure: The arguments are not fit.
    """
    return _admit(arguments.url, options_of(arguments), arguments, resources)


async def admit_by_key(
    key: ServiceKey, address: str | None, arguments: Namespace, resources: AsyncExitStack
) -> Patient:
    """The patient of a service key, as `eventmesh.connect` would have it.

    Args:
        key: The service key.
        address: What to attach to, checked, or None.
        arguments: Of the command.
        resources: What closes everything that is opened.

    Raises:
        Failure: The arguments are not fit, or the key's certificate is not.
    """
    from ...auth.oauth2 import TokenRefresher

    options = options_of(arguments)
    grant = key.messaging.grant if "token" not in options else None
    try:
        if grant is not None:
            refresher = TokenRefresher(grant, ssl=arguments.ca, proxy=options.get("proxy", True))
            options["token"] = await resources.enter_async_context(refresher)
        if key.certificate is not None:
            context = ssl.create_default_context(cafile=arguments.ca)
            await asyncio.to_thread(key.certificate.load_into, context)
            options["ssl"] = context
    except (AMQPError, OSError, ValueError) as error:
        raise Failure(ExitStatus.USAGE, in_options(str(error))) from error
    patient = _admit(key.messaging.url, options, arguments, resources)
    patient.address = address
    patient.relays = True
    if grant is not None:
        patient.token_source = without_query(grant.token_url)
    return patient


def _admit(url: str, options: ConnectionArguments, arguments: Namespace, resources: AsyncExitStack) -> Patient:
    options["close_timeout"] = _CLOSE_TIMEOUT
    try:
        made = ConnectionOptions(url=url, **options)
    except ValueError as error:
        raise Failure(ExitStatus.USAGE, in_options(str(error))) from error
    return Patient(
        options=made,
        resources=resources,
        ca=arguments.ca is not None,
        proxy_source=None if arguments.proxy is None else "from --proxy",
        tokens=None if made.token is None else as_provider(made.token),
        token_source="from --token-env" if arguments.token_env is not None else "from --token-file",
        address=arguments.address,
        receives=arguments.receive,
    )


def key_step(key: ServiceKey, seconds: float) -> Step:
    """The step of loading a service key: what it says, without a secret."""
    way = "certificate" if key.certificate is not None else "secret" if key.messaging.grant is not None else None
    details = {
        "origin": key.origin,
        "namespace": key.namespace,
        "instance_id": key.instance_id,
        "authentication": way,
        "management": key.management is not None,
    }
    text = f"{key.origin}: namespace {key.namespace or '(none)'}, {way or 'no token endpoint'}"
    return Step("key", True, seconds, text, details)
