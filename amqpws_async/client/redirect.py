"""Where a redirect leads, and whether we may follow (specification 2.8.16 and 2.8.18, WebSocket binding 3.1)."""

from __future__ import annotations

import dataclasses

from ..errors import AttachError, OpenError, RedirectError
from ..options import ConnectionOptions

__all__ = ["redirect_in", "redirected"]


def redirect_in(error: BaseException) -> RedirectError | None:
    """The redirect that an error is, or has for its cause, or None."""
    if isinstance(error, AttachError):
        error = error.__cause__ or error
    return error if isinstance(error, RedirectError) else None


def redirected(options: ConnectionOptions, redirect: RedirectError) -> ConnectionOptions:
    """Make the options for the place that a redirect names; what it leaves out stays as it was.

    Raises:
        OpenError: The place is none that may be gone to: another host than ours and `redirect_hosts`, or not encrypted
            while we are.
    """
    encrypted = options.encrypted if redirect.scheme is None else redirect.scheme.lower() == "wss"
    host = (redirect.network_host or redirect.hostname or options.host).strip("[]")
    port = redirect.port or (options.port if redirect.scheme is None else 443 if encrypted else 80)
    shown = f"{'wss' if encrypted else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
    problem = ""
    if options.encrypted and not encrypted:
        problem = "which is not encrypted, while wss:// was asked for"
    elif not options.allows_redirect(host, port):
        problem = f"another host; if it is to be trusted, say redirect_hosts=({host!r},)"
    else:
        path = options.url.partition("://")[2].partition("/")[2] if redirect.path is None else redirect.path
        try:
            return dataclasses.replace(
                options,
                url=f"{shown}/{path.removeprefix('/')}",
                hostname=redirect.hostname or (host if options.hostname == options.host else options.hostname),
                ssl=options.ssl if encrypted else None,
            )
        except ValueError as error:
            problem = f"which is no place to go: {error}"
    raise OpenError(f"{options.origin}: redirected to {shown!r:.200}, {problem}") from redirect
