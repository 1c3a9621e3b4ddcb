"""What can be chosen, with every default explained: frozen, keyword-only, checked on construction.

Each ``XOptions`` has a twin ``XArguments``: the same keys for ``**kwargs: Unpack[XArguments]``, so that type checkers
and editors know the arguments of `connect` and its like. Durations are float seconds, sizes are bytes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import ssl as tls
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

from .auth.sasl import Anonymous, External, Plain, SaslMechanism
from .auth.tokens import Token, TokenProvider, as_provider
from .terminus import ReceiverSettleMode, SenderSettleMode, Source, Target, as_source, as_target
from .urls import is_loopback, parse_url, resolve_proxy, without_password, without_query

__all__ = [
    "ConnectionArguments",
    "ConnectionOptions",
    "ReceiverArguments",
    "ReceiverOptions",
    "SenderArguments",
    "SenderOptions",
    "SessionArguments",
    "SessionOptions",
]

_UINT_MAX = 2**32 - 1
_ULONG_MAX = 2**64 - 1
_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 section 5.5: no line ends, so nothing can be injected
_OURS = frozenset(
    {"host", "connection", "upgrade", "content-length", "transfer-encoding"}
    | {f"sec-websocket-{name}" for name in ("accept", "extensions", "key", "protocol", "version")}
)


# --- connection ----------------------------------------------------------------


class ConnectionArguments(TypedDict, total=False):
    """The fields of `ConnectionOptions` beside `url`."""

    token: str | Token | TokenProvider | None
    sasl: SaslMechanism | None
    headers: Mapping[str, str]
    subprotocols: tuple[str, ...]
    require_subprotocol: bool
    ssl: tls.SSLContext | str | Path | None
    proxy: str | bool | None
    redirect_hosts: tuple[str, ...]
    allow_insecure_auth: bool
    hostname: str | None
    container_id: str
    properties: Mapping[str, Any] | None
    offered_capabilities: tuple[str, ...]
    desired_capabilities: tuple[str, ...]
    open_timeout: float | None
    close_timeout: float
    idle_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    max_frame_size: int
    channel_max: int
    max_websocket_message_size: int
    send_buffer_bytes: int
    trace: bool | Callable[[str], None] | None


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionOptions:
    """Where to connect, as whom, and within which limits.

    Attributes:
        url: ``ws://`` or ``wss://``, with the broker's path, such as ``wss://host/protocols/amqp10ws``. No user name or
            password in it: say which layer they are for, by `sasl` or `headers`.
        token: An access token for ``Authorization: Bearer`` in the upgrade: its text, a `Token`, or a `TokenProvider`
            that is asked before each upgrade. None by default.
        sasl: AMQP's own authentication, `Anonymous()` by default, which brokers expect even beside a token. None leaves
            the SASL layer out altogether, which few brokers accept.
        headers: More headers for the upgrade. They are treated as secrets: no value is ever shown.
        subprotocols: What to offer, best first; ``("amqp",)`` by default, as the binding says. Azure wants
            ``("AMQPWSB10",)``.
        require_subprotocol: Fail unless the server selects one, True by default: the binding demands it (2.1), and
            a server that selects none as a rule does not speak AMQP. False serves relays that select none.
        ssl: For wss: None (the default) verifies against the system's CAs; a path is a PEM file of CAs to trust
            instead; an `ssl.SSLContext` is used as it is (client certificates, for example).
        proxy: True (the default) takes it from the environment: ``https_proxy`` for wss, ``http_proxy`` for ws, else
            ``all_proxy``, in either case, unless ``no_proxy`` names the host or it is this machine. A URL (http, https,
            socks4, socks4a, socks5, socks5h) is used as it is; None or False is a direct connection. Resolved once,
            into `proxy_url`, so that token requests can go the same way.
        redirect_hosts: Hosts (``"host"`` or ``"host:port"``) that a redirect of the upgrade, of the connection or of a
            link may lead to. Such a host is trusted with headers and token. Empty by default: only the same host and
            port will do.
        allow_insecure_auth: Let a token, an Authorization header or a PLAIN password travel over plain ws:// to another
            machine, where anyone on the way can read it. False by default.
        hostname: The ``hostname`` of AMQP's open, by which brokers choose a virtual host; the URL's host by default.
        container_id: Our name towards the peer; a new ``amqpws-async-<uuid>`` by default. Fix it for durable
            subscriptions, and then use it on one connection at a time.
        properties: Connection properties for the open, none by default.
        offered_capabilities: Symbols for the open, none by default.
        desired_capabilities: Symbols for the open, none by default.
        open_timeout: Seconds for everything until the connection is usable: token, TCP, TLS, upgrade, SASL and open. 30
            by default, enough for a sleeping broker behind a slow token service. None waits for ever.
        close_timeout: Seconds a close may take before the socket is dropped, 5 by default.
        idle_timeout: Seconds of silence after which we give the connection up, 60 by default; the peer is told half
            of it and sends empty frames in time. Much less gives up on peers that are merely busy. 0 or None turns it
            off: a half-open connection is then noticed only by the ping, or by sending.
        ping_interval: Seconds between WebSocket pings, 20 by default: proxies cut WebSockets that are silent for 30 to
            120 s, and AMQP's idle timeout does not see proxies. None turns them off.
        ping_timeout: Seconds to wait for the pong, 20 by default. None only keeps the way open and never gives up.
        max_frame_size: The largest AMQP frame we take, in bytes, 65 536 by default (at least 512, specification 2.7.1).
            A larger one gains nothing measurable, and lets one big message hold up the others for longer.
        channel_max: The highest channel number, 1 023 by default: 1 024 sessions. proton takes 32 767 at most.
        max_websocket_message_size: The largest WebSocket message we send, 32 768 by default. Artemis drops the
            connection on one above 65 536. AMQP frames are cut to fit: the binding allows it (section 2.4).
        send_buffer_bytes: Bytes that may wait to be written before senders are made to wait, 262 144 by default. More
            only adds memory and delay; much less costs throughput.
        trace: Log every frame, with secrets masked: True logs to ``amqpws_async.trace``, a callable gets each line.
            None (the default) does so if the environment variable ``AMQPWS_TRACE`` is 1, true or frames. For debugging:
            on a malformed array from a hostile peer proton's printer of frames reads beyond the frame.

    Raises:
        TypeError: `token` is nothing that supplies tokens.
        ValueError: A value is out of range, of the wrong kind, or unsafe; the text says which, and what to do.
    """

    url: str
    token: str | Token | TokenProvider | None = None
    sasl: SaslMechanism | None = field(default_factory=Anonymous)
    headers: Mapping[str, str] = field(default_factory=dict)
    subprotocols: tuple[str, ...] = ("amqp",)
    require_subprotocol: bool = True
    ssl: tls.SSLContext | str | Path | None = None
    proxy: str | bool | None = True
    redirect_hosts: tuple[str, ...] = ()
    allow_insecure_auth: bool = False
    hostname: str | None = None
    container_id: str = field(default_factory=lambda: f"amqpws-async-{uuid.uuid4().hex}")
    properties: Mapping[str, Any] | None = None
    offered_capabilities: tuple[str, ...] = ()
    desired_capabilities: tuple[str, ...] = ()
    open_timeout: float | None = 30.0
    close_timeout: float = 5.0
    idle_timeout: float | None = 60.0
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    max_frame_size: int = 65536
    channel_max: int = 1023
    max_websocket_message_size: int = 32768
    send_buffer_bytes: int = 262144
    trace: bool | Callable[[str], None] | None = None

    # Worked out from the above, never given.
    host: str = field(init=False)
    """The URL's host, without brackets."""
    port: int = field(init=False)
    """The URL's port, or the scheme's."""
    encrypted: bool = field(init=False)
    """Whether the URL is wss."""
    ssl_context: tls.SSLContext | None = field(init=False)
    """The context that `ssl` gave, or None for the default verification."""
    proxy_url: str | None = field(init=False)
    """The proxy to use, or None; it may have a password in it."""

    def __post_init__(self) -> None:
        url, encrypted, host, port = parse_url(self.url)
        derive = object.__setattr__
        derive(self, "url", url)
        derive(self, "encrypted", encrypted)
        derive(self, "host", host)
        derive(self, "port", port)
        if self.hostname is None:
            derive(self, "hostname", host)
        _texts(self, "hostname", "container_id")
        _strings(self, "subprotocols", "redirect_hosts", "offered_capabilities", "desired_capabilities")
        _flags(self, "require_subprotocol", "allow_insecure_auth")
        _properties(self)
        for name in self.subprotocols:
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"subprotocols: {name!r} is no token (RFC 6455 section 4.1)")
        if len(set(self.subprotocols)) != len(self.subprotocols):
            raise ValueError("subprotocols: each may be offered once (RFC 6455 section 4.1)")
        if self.require_subprotocol and not self.subprotocols:
            raise ValueError("subprotocols: offer one, or say require_subprotocol=False")
        _seconds(self, "open_timeout", "idle_timeout", "ping_interval", "ping_timeout", optional=True)
        _seconds(self, "close_timeout")
        if self.idle_timeout == 0:
            derive(self, "idle_timeout", None)
        _between(self, "max_frame_size", 512, _UINT_MAX)
        _between(self, "channel_max", 0, 32767)
        _between(self, "max_websocket_message_size", 512, 2**24)
        _between(self, "send_buffer_bytes", 1024, _UINT_MAX)
        derive(self, "headers", MappingProxyType(_checked_headers(self.headers)))
        derive(self, "ssl_context", _ssl_context(self.ssl, encrypted))
        derive(self, "proxy_url", resolve_proxy(self.proxy, "https" if encrypted else "http", host, port))
        if self.sasl is not None and not isinstance(self.sasl, (Anonymous, Plain, External)):
            raise ValueError(f"sasl: Anonymous(), Plain(...), External() or None, not {type(self.sasl).__name__}")
        self._check_trace()
        self._check_secrets()

    @property
    def origin(self) -> str:
        """Scheme, host and port, for logs and errors: the path and query of a URL may hold secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.encrypted else 'ws'}://{host}:{self.port}"

    @property
    def private(self) -> bool:
        """Whether a secret may travel: the way is encrypted, or does not leave this machine."""
        if self.encrypted:
            return True
        proxy = urllib.parse.urlsplit(self.proxy_url).hostname if self.proxy_url else None
        return is_loopback(self.host) and (proxy is None or is_loopback(proxy))

    def allows_redirect(self, host: str, port: int) -> bool:
        """Whether a redirect may lead there: the same host and port, or one of `redirect_hosts`."""
        host = host.lower()
        if (host, port) == (self.host, self.port):
            return True
        bracketed = f"[{host}]" if ":" in host else host
        return any(name.lower() in (host, bracketed, f"{bracketed}:{port}") for name in self.redirect_hosts)

    def _check_trace(self) -> None:
        if self.trace is None:
            switch = os.environ.get("AMQPWS_TRACE", "").strip().lower()
            object.__setattr__(self, "trace", switch in ("1", "true", "frames"))
        elif not isinstance(self.trace, bool) and not callable(self.trace):
            raise ValueError(f"trace: True, False, None or a callable that takes a line, not {self.trace!r}")

    def _check_secrets(self) -> None:
        authorization = any(name.lower() == "authorization" for name in self.headers)
        if self.token is not None:
            as_provider(self.token)
        if self.token is not None and authorization:
            raise ValueError("token: headers= has an Authorization of its own; give one of the two")
        if self.private or self.allow_insecure_auth:
            return
        secrets = {
            "a token": self.token is not None,
            "an Authorization header": authorization,
            "a PLAIN password": isinstance(self.sasl, Plain),
        }
        for what, present in secrets.items():
            if present:
                raise ValueError(
                    f"url: {what} would travel unencrypted to {self.host}: use wss://, "
                    "or say allow_insecure_auth=True if you accept that anyone on the way can read it"
                )

    def __repr__(self) -> str:
        shown = [f"url={without_query(self.url)!r}"]
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if not item.init or item.name == "url" or value == item.default or value in ({}, Anonymous()):
                continue
            if item.name == "token":
                text = "'***'" if isinstance(value, str) else repr(value)
            elif item.name == "headers":
                text = repr(dict.fromkeys(value, "***"))
            elif item.name == "proxy":
                text = repr(without_password(value) if isinstance(value, str) else value)
            else:
                text = repr(value)
            shown.append(f"{item.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


# --- session ---------------------------------------------------------------------


class SessionArguments(TypedDict, total=False):
    """The fields of `SessionOptions`."""

    incoming_window_bytes: int


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Limits of a session.

    Attributes:
        incoming_window_bytes: Bytes of transfers the session may hold before the peer has to stop, shared by all its
            links. 0, the default, is no limit of the session's own: credit and `ReceiverOptions.max_prefetch_bytes`
            bound each link already, and a full window stops every link of the session at once. If set, it must hold at
            least a few frames (four times `max_frame_size` is reasonable), else nothing moves.

    Raises:
        ValueError: It is out of range.
    """

    incoming_window_bytes: int = 0

    def __post_init__(self) -> None:
        _between(self, "incoming_window_bytes", 0, _UINT_MAX)


# --- links ---------------------------------------------------------------------------


class SenderArguments(TypedDict, total=False):
    """The fields of `SenderOptions`."""

    name: str | None
    source: str | Source | None
    snd_settle_mode: SenderSettleMode
    rcv_settle_mode: ReceiverSettleMode
    properties: Mapping[str, Any] | None
    max_message_size: int


@dataclass(frozen=True, kw_only=True)
class SenderOptions:
    """How to attach a sender; its target is an argument of its own.

    Attributes:
        name: The link's name, unique between the two containers in this direction; a new one by default.
        source: Our end: an address, a `Source`, or None (the default) for a source without an address. Brokers hardly
            look at it.
        snd_settle_mode: MIXED by default: each send may choose. SETTLED makes every delivery fire-and-forget.
        rcv_settle_mode: What we ask of the receiver, FIRST by default; SECOND is for exactly-once and rarely supported.
        properties: Link properties, none by default.
        max_message_size: The largest message we send, in bytes, announced and kept to; 0, the default, says nothing.
            The peer's own limit holds in any case.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    name: str | None = None
    source: str | Source | None = None
    snd_settle_mode: SenderSettleMode = SenderSettleMode.MIXED
    rcv_settle_mode: ReceiverSettleMode = ReceiverSettleMode.FIRST
    properties: Mapping[str, Any] | None = None
    max_message_size: int = 0

    def __post_init__(self) -> None:
        as_source(self.source)
        _check_link(self)


class ReceiverArguments(TypedDict, total=False):
    """The fields of `ReceiverOptions`."""

    name: str | None
    target: str | Target | None
    credit: int
    max_prefetch_bytes: int
    snd_settle_mode: SenderSettleMode
    rcv_settle_mode: ReceiverSettleMode
    properties: Mapping[str, Any] | None
    max_message_size: int


@dataclass(frozen=True, kw_only=True)
class ReceiverOptions:
    """How to attach a receiver; its source is an argument of its own.

    Attributes:
        name: The link's name, unique between the two containers in this direction; a new one by default. Fix it for a
            durable subscription.
        target: Our end: an address, a `Target`, or None (the default) for a target without an address. Brokers hardly
            look at it.
        credit: The window: at most so many deliveries are on their way or waiting to be taken, topped up at half. 1 000
            by default. Less spreads work more evenly over competing receivers; much less costs throughput on long
            ways. 0 is manual: nothing comes until `add_credit`.
        max_prefetch_bytes: The window in bytes, 16 MiB by default: it holds fewer deliveries when messages are large.
            At least one message is always let in, so the worst case is this plus the credit already granted times the
            largest message.
        snd_settle_mode: What we ask of the sender, MIXED by default; SETTLED asks for at-most-once.
        rcv_settle_mode: FIRST by default; SECOND allows ``confirm=True`` and is rarely supported.
        properties: Link properties, none by default.
        max_message_size: The largest message we take, in bytes, 16 MiB by default; a larger one detaches the link.
            0 is no limit: a peer can then fill the memory.

    Raises:
        ValueError: A value is out of range or of the wrong kind.
    """

    name: str | None = None
    target: str | Target | None = None
    credit: int = 1000
    max_prefetch_bytes: int = 16 * 2**20
    snd_settle_mode: SenderSettleMode = SenderSettleMode.MIXED
    rcv_settle_mode: ReceiverSettleMode = ReceiverSettleMode.FIRST
    properties: Mapping[str, Any] | None = None
    max_message_size: int = 16 * 2**20

    def __post_init__(self) -> None:
        as_target(self.target)
        _between(self, "credit", 0, 2**31 - 1)  # credit is serial-number arithmetic (specification 2.6.7)
        _between(self, "max_prefetch_bytes", 1, _ULONG_MAX)
        _check_link(self)


def _check_link(options: SenderOptions | ReceiverOptions) -> None:
    if options.name is not None:
        _texts(options, "name")
    for name, kind in (("snd_settle_mode", SenderSettleMode), ("rcv_settle_mode", ReceiverSettleMode)):
        value = getattr(options, name)
        if not isinstance(value, kind):
            raise ValueError(f"{name}: one of {', '.join(map(str, kind))}, not {value!r}")
    _between(options, "max_message_size", 0, _ULONG_MAX)
    _properties(options)


# --- checks ------------------------------------------------------------------------------


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise ValueError(f"headers: a mapping of names to values, not {type(headers).__name__}")
    seen: set[str] = set()
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers: {name!r} is no header name")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"headers: the value of {name} is no string, or has line ends or characters beyond Latin-1"
            )
        if name.lower() == "sec-websocket-protocol":
            raise ValueError("headers: say subprotocols=(...) in place of Sec-WebSocket-Protocol")
        if name.lower() in _OURS:
            raise ValueError(f"headers: {name} belongs to the upgrade itself and cannot be set")
        if name.lower() in seen:
            raise ValueError(f"headers: {name} is there twice")
        seen.add(name.lower())
    return dict(headers)


def _ssl_context(value: tls.SSLContext | str | Path | None, encrypted: bool) -> tls.SSLContext | None:
    if value is None:
        return None
    if not encrypted:
        raise ValueError("ssl: a ws:// URL has no TLS; write wss://")
    if isinstance(value, tls.SSLContext):
        return value
    if not isinstance(value, (str, Path)):
        raise ValueError(f"ssl: an ssl.SSLContext, the path of a CA file, or None to verify as usual, not {value!r}")
    try:
        return tls.create_default_context(cafile=value)
    except (OSError, tls.SSLError) as error:
        raise ValueError(f"ssl: {str(value)!r} cannot be read as a PEM file of CA certificates: {error}") from error


def _between(options: object, name: str, low: int, high: int) -> None:
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: a whole number from {low} to {high}, not {value!r}")


def _seconds(options: object, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(options, name)
        if value is None and optional:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        zero = name in ("close_timeout", "idle_timeout") and value == 0
        # The upper bound is what a uint of milliseconds holds, which is how idle_timeout travels (specification 2.7.1).
        if not number or not (zero or 0.001 <= value <= _UINT_MAX / 1000):
            raise ValueError(f"{name}: seconds, at least 0.001{' or None' if optional else ''}, not {value!r}")


def _flags(options: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(options, name), bool):
            raise ValueError(f"{name}: True or False, not {getattr(options, name)!r}")


def _texts(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}: a string that is not empty, not {value!r}")


def _strings(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        items = () if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
        if (not items and value != () and value != []) or not all(isinstance(item, str) and item for item in items):
            raise ValueError(f"{name}: a sequence of strings such as ('amqp',), not {value!r}")
        object.__setattr__(options, name, items)


def _properties(options: object) -> None:
    value: Any = getattr(options, "properties")  # noqa: B009
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("properties: a mapping with string keys")
    object.__setattr__(options, "properties", MappingProxyType(dict(value)))
