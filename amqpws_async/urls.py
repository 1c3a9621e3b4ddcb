"""URLs: of brokers and of proxies, and what may be said about them in public.

No error quotes the URL it is about: a password or a token may be in any part of one.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import urllib.parse
import urllib.request

__all__ = ["is_loopback", "parse_url", "resolve_proxy", "without_password", "without_query"]

_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_PROXY_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or address, without asking DNS."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve_proxy(proxy: str | bool | None, scheme: str, host: str, port: int) -> str | None:
    """Find the proxy for one destination, the same for the broker and for token requests.

    Args:
        proxy: As in `ConnectionOptions.proxy`.
        scheme: ``"https"`` (also for wss) or ``"http"`` (also for ws).
        host: The destination.
        port: Its port.

    Returns:
        The proxy's URL, or None for a direct connection. It may have a password in it.

    Raises:
        ValueError: The proxy is not usable; the text never shows its password.
    """
    if proxy is None or proxy is False:
        return None
    if isinstance(proxy, str):
        return _checked_proxy(proxy, "proxy")
    if proxy is not True:
        raise ValueError(f"proxy: a URL, True (from the environment) or None, not {type(proxy).__name__}")
    if is_loopback(host) or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    settings = urllib.request.getproxies()
    for name in (scheme, "all"):
        if value := settings.get(name):
            # "proxy.example:3128", without a scheme, is common in environments.
            return _checked_proxy(value if "://" in value else f"http://{value}", f"{name}_proxy")
    return None


def _checked_proxy(proxy: str, source: str) -> str:
    try:
        parts = urllib.parse.urlsplit(proxy)
        port = parts.port
    except ValueError:
        raise ValueError(f"{source}: not a proxy URL such as http://proxy.example:3128") from None
    if parts.scheme not in _PROXY_PORTS:
        raise ValueError(f"{source}: the scheme of a proxy URL is one of {', '.join(_PROXY_PORTS)}")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or not proxy.isascii():
        raise ValueError(f"{source}: a proxy URL is scheme, host and port, such as http://proxy.example:3128")
    if parts.username is not None and parts.password is None:
        raise ValueError(f"{source}: the proxy URL has a user name and no password")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("python_socks") is None:
        raise ValueError(f"{source}: a SOCKS proxy needs the package python-socks: pip install 'python-socks[asyncio]'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    user = f"{parts.netloc.rpartition('@')[0]}@" if parts.username is not None else ""
    return f"{parts.scheme}://{user}{host}:{port or _PROXY_PORTS[parts.scheme]}"


def parse_url(url: str) -> tuple[str, bool, str, int]:
    """Check a broker's URL.

    Returns:
        The URL in ASCII, whether it is encrypted (wss), its host without brackets, and its port.

    Raises:
        ValueError: It is no ws:// or wss:// URL, or has a user name or a fragment in it.
    """
    if not isinstance(url, str):
        raise ValueError(f"url: a string, not {type(url).__name__}")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("url: spaces and control characters must be percent-encoded")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("url: not a URL such as wss://broker.example/path (is the port a number?)") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(_scheme_hint(parts.scheme))
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "url: has a user name or password in it; give them to the layer they are for: "
            "sasl=Plain(username, password) for AMQP, or headers={'Authorization': 'Basic ...'} for HTTP"
        )
    if not host:
        raise ValueError("url: has no host; write wss://broker.example/path")
    if "#" in url:
        raise ValueError("url: a WebSocket URL has no fragment (RFC 6455 section 3); write %23 for a # in the path")
    if port == 0:
        raise ValueError("url: port 0 is no port to connect to")
    try:
        host = host.encode("ascii" if host.isascii() else "idna").decode("ascii")
    except UnicodeError:
        raise ValueError("url: the host is no valid internationalised name") from None
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    safe = "%/:?#[]@!$&'()*+,;=~"
    path, query = (urllib.parse.quote(part, safe=safe) for part in (parts.path, parts.query))
    text = urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))
    return text, parts.scheme == "wss", host, port or _DEFAULT_PORTS[parts.scheme]


def _scheme_hint(scheme: str) -> str:
    match scheme:
        case "http" | "https":
            return f"url: write {'wss' if scheme == 'https' else 'ws'}:// in place of {scheme}://"
        case "amqpws" | "amqpwss":
            return f"url: write {'wss' if scheme == 'amqpwss' else 'ws'}:// in place of {scheme}://"
        case "amqp" | "amqps":
            return (
                f"url: {scheme}:// is AMQP on TCP; this client speaks AMQP over WebSocket: "
                "give the broker's ws:// or wss:// address"
            )
    return "url: must begin with ws:// or wss://"


def without_query(url: str) -> str:
    """Hide the query, where some services take tokens."""
    base, mark, _ = url.partition("?")
    return f"{base}?***" if mark else base


def without_password(url: str) -> str:
    """Hide user name and password."""
    scheme, _, rest = url.rpartition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}://***@{host}" if at else url
