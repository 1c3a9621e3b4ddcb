"""Below the WebSocket: proxy, DNS, TCP, the tunnel through the proxy, TLS.

They are tried on connections of their own, which carry nothing, so that each can be told from the next; the upgrade
opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import socket
import ssl as tls
import urllib.parse
import urllib.request
from typing import Any, Final, cast

from ...handshake import network_text
from ...options import ConnectionOptions
from ...tunnel import open_tunnel
from ...urls import is_loopback, without_password
from .certificates import (
    EXPIRED,
    HOST_MISMATCH,
    IP_MISMATCH,
    NO_ISSUER,
    NO_SIGNATURE_OF_LEAF,
    NOT_YET_VALID,
    SELF_SIGNED_IN_CHAIN,
    SELF_SIGNED_LEAF,
    Certificate,
    at_fault,
    chain_of,
)
from .steps import Finding, Patient, Trouble

__all__ = ["dns", "proxy", "tcp", "tls_step", "tunnel"]

_SOON: Final = 21  # days: who renews by hand wants to know three weeks ahead
_SECOND_LOOK: Final = 5.0  # seconds for looking at the certificates that were not trusted
_SECOND_LOOK_LEFT: Final = 0.2  # seconds of the whole time that it leaves, so that the first look's reason is told


# --- proxy ---------------------------------------------------------------------------------------


async def proxy(patient: Patient) -> Finding:
    """Which proxy, and why."""
    options = patient.options
    why = patient.proxy_source or _environment(options)
    shown = None if options.proxy_url is None else without_password(options.proxy_url)
    return Finding(f"{shown or 'none'}: {why}", {"proxy": shown, "reason": why})


def _environment(options: ConnectionOptions) -> str:
    """Which variable gave the proxy, or why there is none."""
    if options.proxy_url is None:
        if is_loopback(options.host):
            return "the broker is this machine"
        if urllib.request.proxy_bypass(f"{options.host}:{options.port}"):
            return "no_proxy names the host"
        return "the environment has none"
    for name in ("https_proxy" if options.encrypted else "http_proxy", "all_proxy"):
        for spelled in (name, name.upper()):  # a lower case one wins, as in urllib
            if os.environ.get(spelled):
                return f"from the environment variable {spelled}"
    return "from the system's settings"


def _nearest(options: ConnectionOptions) -> tuple[str, int, str]:
    """Whom we connect to by TCP: host, port, and what it is."""
    if options.proxy_url is None:
        return options.host, options.port, "broker"
    parts = urllib.parse.urlsplit(options.proxy_url)
    assert parts.hostname is not None  # options checked the URL and wrote the port out
    assert parts.port is not None
    return parts.hostname, parts.port, "proxy"


# --- DNS and TCP -----------------------------------------------------------------------------------


async def dns(patient: Patient) -> Finding:
    """The addresses of whom we connect to."""
    host, port, what = _nearest(patient.options)
    details: dict[str, Any] = {"host": host}
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Trouble(
            f"{host} cannot be resolved: {error.strerror}",
            f"check the {what}'s host name; if it is known only inside a network or VPN, connect to that, or name the "
            "proxy by --proxy URL",
            details,
        ) from error
    addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
    patient.addresses = addresses
    text = f"the proxy {host}: {', '.join(addresses)}" if what == "proxy" else ", ".join(addresses)
    return Finding(
        f"{text} (an address already)" if _is_address(host) else text, {**details, "addresses": list(addresses)}
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def tcp(patient: Patient) -> Finding:
    """A connection to the first address that takes one."""
    options = patient.options
    _, port, what = _nearest(options)
    tried: list[dict[str, str]] = []
    details: dict[str, Any] = {"port": port, "address": None, "failed": tried}
    for address in patient.addresses:
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, address, port)
        except OSError as error:
            tried.append({"address": address, "error": _reason(error)})
            continue
        details["address"] = address
        patient.network = transport
        patient.resources.callback(transport.abort)
        others = f"; not {', '.join(each['address'] for each in tried)}" if tried else ""
        return Finding(f"{what} at {address}, port {port}{others}", details)
    text = ", ".join(f"{each['address']}: {each['error']}" for each in tried)
    raise Trouble(
        f"port {port} of the {what} cannot be reached ({text})",
        "check the port, whether the server runs, and whether a firewall wants you to take a proxy (--proxy URL)",
        details,
    )


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused, nothing listens there"
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__


# --- the way through a proxy -----------------------------------------------------------------------


async def tunnel(patient: Patient) -> Finding:
    """The way through the proxy to the broker."""
    options = patient.options
    if patient.network is not None:
        patient.network.abort()
    patient.network = await _through(options)
    patient.resources.callback(patient.network.abort)
    return Finding(f"to {options.host}, port {options.port}", {"destination": f"{options.host}:{options.port}"})


async def _through(options: ConnectionOptions) -> asyncio.Transport:
    assert options.proxy_url is not None
    parts = urllib.parse.urlsplit(options.proxy_url)
    if not parts.scheme.startswith("socks"):
        return await open_tunnel(options.proxy_url, options.host, options.port)
    from python_socks import ProxyError, ProxyType
    from python_socks.async_.asyncio import Proxy

    assert parts.hostname is not None
    assert parts.port is not None
    version = ProxyType.SOCKS5 if parts.scheme.startswith("socks5") else ProxyType.SOCKS4
    user, password = urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or "")
    way = Proxy(
        version, parts.hostname, parts.port, user or None, password or None, parts.scheme in ("socks4a", "socks5h")
    )
    try:
        connected = await way.connect(options.host, options.port)
    except ProxyError as error:
        raise Trouble(
            f"the proxy does not let us through: {error}",
            "check the proxy's rules, and user name and password in its URL",
        ) from error
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=connected)
    return transport


# --- TLS -------------------------------------------------------------------------------------------


async def tls_step(patient: Patient) -> Finding:
    """The handshake, and the certificates."""
    options = patient.options
    assert patient.network is not None
    context = options.ssl_context or tls.create_default_context()
    try:
        secured = await _secure(patient.network, context, options.host)
    except tls.SSLCertVerificationError as error:
        raise await _distrust(patient, error) from error
    except OSError as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        text = network_text(options, error).removeprefix(f"{options.origin}: ").partition(": ")[0]
        raise Trouble(
            f"{text} ({reason})",
            "is it ws://, or another port? A proxy or firewall on the way may cut TLS; a server may want a client "
            "certificate, which a service key of the type x509 has",
            {"reason": reason},
        ) from error
    patient.resources.callback(secured.abort)
    connection = cast(tls.SSLObject, secured.get_extra_info("ssl_object"))
    chain = chain_of(connection, verified=context.verify_mode is not tls.CERT_NONE)
    version = (connection.version() or "").replace("TLSv", "TLS ")
    secured.close()
    details: dict[str, Any] = {"version": version, "certificates": [each.as_json() for each in chain]}
    if not chain:
        return Finding(version, details)
    leaf = chain[0]
    details["days_left"] = leaf.days_left
    links = " < ".join([leaf.subject, *(each.issuer for each in chain if each.issuer != each.subject)])
    advice = None
    if leaf.days_left < _SOON:
        advice = f"the certificate expires on {leaf.not_after:%Y-%m-%d}: have it renewed"
    return Finding(f"{version}, {links}, until {leaf.not_after:%Y-%m-%d} ({leaf.days_left:,} days)", details, advice)


async def _secure(transport: asyncio.Transport, context: tls.SSLContext, host: str) -> asyncio.Transport:
    protocol = asyncio.Protocol()
    transport.set_protocol(protocol)
    try:
        secured = await asyncio.get_running_loop().start_tls(transport, protocol, context, server_hostname=host)
    except BaseException:
        transport.abort()
        raise
    assert secured is not None  # it raises; only its annotation says otherwise
    return secured


async def _distrust(patient: Patient, error: tls.SSLCertVerificationError) -> Trouble:
    chain = await _second_look(patient)
    code = error.verify_code
    culprit = at_fault(chain, code)
    whose = f"the certificate {culprit.subject}" if culprit is not None else "the certificate"
    if culprit is not None and culprit.issuer != culprit.subject:
        whose += f" (by {culprit.issuer})"
    details = {
        "reason": error.verify_message,
        "code": code,
        "certificate": culprit.as_json() if culprit is not None else None,
        "certificates": [each.as_json() for each in chain],
    }
    return Trouble(f"{whose} is not trusted: {error.verify_message}", _advice(patient, code, culprit), details)


async def _second_look(patient: Patient) -> tuple[Certificate, ...]:
    """The certificates that were not trusted, by a handshake that trusts anybody, on which nothing is ever sent."""
    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = tls.CERT_NONE
    loop = asyncio.get_running_loop()
    until = min(loop.time() + _SECOND_LOOK, patient.deadline - _SECOND_LOOK_LEFT)
    options = patient.options
    with contextlib.suppress(OSError, Trouble):
        async with asyncio.timeout_at(until):
            if options.proxy_url is not None:
                transport = await _through(options)
            else:
                transport, _ = await loop.create_connection(asyncio.Protocol, options.host, options.port)
            try:
                secured = await _secure(transport, context, options.host)
                chain = chain_of(cast(tls.SSLObject, secured.get_extra_info("ssl_object")), verified=False)
                secured.abort()
                return chain
            finally:
                transport.abort()
    return ()


def _advice(patient: Patient, code: int, culprit: Certificate | None) -> str:
    clock = f"this machine's clock says {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    if code == EXPIRED:
        when = f" on {culprit.not_after:%Y-%m-%d}" if culprit is not None else ""
        return f"it expired{when}: have it renewed at the server ({clock})"
    if code == NOT_YET_VALID:
        when = f" from {culprit.not_before:%Y-%m-%d}" if culprit is not None else " later"
        return f"it is valid{when} on: is the clock right? ({clock})"
    if code in (HOST_MISMATCH, IP_MISMATCH):
        names = f": {', '.join(culprit.names[:8])}" if culprit is not None and culprit.names else ""
        return f"the URL has another host than the certificate is for; use one of its names{names}"
    if code in (SELF_SIGNED_LEAF, SELF_SIGNED_IN_CHAIN, NO_ISSUER, NO_SIGNATURE_OF_LEAF):
        if patient.ca:
            return "the file of --ca does not have the CA that signed it; without --ca the system's CAs are trusted"
        return (
            "if the CA is your own, or that of a company proxy which opens TLS, give its certificate by --ca FILE; "
            "else the server may not send the certificates between its own and the CA"
        )
    return "have the certificate replaced at the server, or trust another CA by --ca FILE"
