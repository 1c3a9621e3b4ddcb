"""Options: every value is checked where it is given, secrets stay hidden, and no credential leaves by accident."""

from __future__ import annotations

import dataclasses
import ssl
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from amqpws_async import options as module
from amqpws_async.auth import Anonymous, Plain, Token
from amqpws_async.options import ConnectionOptions, ReceiverOptions, SenderOptions, SessionOptions
from amqpws_async.terminus import SenderSettleMode, Source, Target
from amqpws_async.urls import is_loopback, resolve_proxy

CANARY = "canary-5f1d"
URL = "wss://broker.example/protocols/amqp10ws"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no trace but what the test itself sets."""
    for scheme in ("http", "https", "all", "no", "ws", "wss"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_PROXY".upper(), raising=False)
    monkeypatch.delenv("AMQPWS_TRACE", raising=False)


def options(url: str = URL, **arguments: Any) -> ConnectionOptions:
    return ConnectionOptions(url=url, **arguments)


# --- both spellings agree ----------------------------------------------------------


@pytest.mark.parametrize("name", ["Connection", "Session", "Sender", "Receiver"])
def test_the_arguments_of_type_checkers_are_the_options_fields(name: str) -> None:
    """Same keys, same types: else an editor promises what the library refuses."""
    fields = getattr(module, f"{name}Options")
    given = {field.name for field in dataclasses.fields(fields) if field.init} - {"url"}
    expected = {key: value for key, value in typing.get_type_hints(fields).items() if key in given}
    assert typing.get_type_hints(getattr(module, f"{name}Arguments")) == expected


def test_every_field_is_documented() -> None:
    """A default that is explained nowhere cannot be changed with a good conscience."""
    for kind in (ConnectionOptions, SessionOptions, SenderOptions, ReceiverOptions):
        for field in dataclasses.fields(kind):
            assert not field.init or f"{field.name}:" in (kind.__doc__ or ""), f"{kind.__name__}.{field.name}"


# --- secrets ------------------------------------------------------------------------


def test_repr_shows_no_secret() -> None:
    """Token, password, header values, the query and the proxy's password are all hidden, in repr and in str."""
    shown = options(
        f"{URL}?sig={CANARY}1",
        token=f"{CANARY}2",
        sasl=Plain("user", f"{CANARY}3"),
        headers={"X-Api-Key": f"{CANARY}4", "Cookie": f"{CANARY}5"},
        proxy=f"http://user:{CANARY}6@proxy.example:3128",
    )
    assert CANARY not in f"{shown!r} {shown}"
    assert all(part in repr(shown) for part in ("broker.example", "X-Api-Key", "proxy.example", "username='user'"))


@pytest.mark.parametrize("token", [Token(CANARY), CANARY])
def test_repr_hides_a_token_in_every_form(token: object) -> None:
    """A token's text and a Token are hidden alike."""
    assert CANARY not in repr(options(token=token))


@pytest.mark.parametrize(
    "url",
    [
        f"wss://user:{CANARY}@broker.example/",
        f"wss://user:{CANARY}/x@broker.example/",
        f"wss://user:{CANARY}#x@broker.example/",
        f"wss://{CANARY}@broker.example/",
        f"http://user:{CANARY}@broker.example/",
        f"{CANARY}://user@broker.example",
        f"wss://[{CANARY}",
        f"wss://broker.example:{CANARY}/",
        f"wss://broker.example/{CANARY} x",
        f"wss://broker.example/#{CANARY}",
    ],
)
def test_no_error_about_a_url_quotes_it(url: str) -> None:
    """A password may stand anywhere in a URL that was put together wrongly."""
    with pytest.raises(ValueError, match=r"^url:") as caught:
        options(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_user_name_in_the_url_says_where_it_belongs() -> None:
    """Two layers could be meant, so neither is guessed."""
    with pytest.raises(ValueError, match=r"sasl=Plain.*headers="):
        options("wss://user:secret@broker.example/")


# --- where secrets may go --------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", [{"token": CANARY}, {"sasl": Plain("user", CANARY)}, {"headers": {"authorization": f"Basic {CANARY}"}}]
)
def test_a_secret_on_an_open_network_is_refused(secret: dict[str, Any]) -> None:
    """ws:// to another machine shows token, password and header to anyone on the way, so it takes an explicit word."""
    with pytest.raises(ValueError, match=r"unencrypted.*allow_insecure_auth") as caught:
        options("ws://broker.example/", **secret)
    assert CANARY not in str(caught.value)
    assert options("ws://broker.example/", allow_insecure_auth=True, **secret).allow_insecure_auth
    assert options("ws://127.0.0.1/", **secret).private
    assert options("wss://broker.example/", **secret).private


def test_a_proxy_elsewhere_makes_the_way_to_loopback_public() -> None:
    """Through a proxy, 127.0.0.1 is the proxy's own machine, and the way there is the network."""
    with pytest.raises(ValueError, match="unencrypted"):
        options("ws://127.0.0.1/", token=CANARY, proxy="http://proxy.example:3128")
    assert options("ws://127.0.0.1/", token=CANARY, proxy="http://127.0.0.1:3128").private


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_hosts(host: str) -> None:
    """Names and addresses that cannot leave this machine."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["broker.example", "localhost.example", "127.0.0.1.example", "10.0.0.1", "::2", ""])
def test_hosts_that_only_look_like_loopback(host: str) -> None:
    """A name that begins like loopback is someone else's."""
    assert not is_loopback(host)


@pytest.mark.parametrize(("token", "kind"), [(7, TypeError), ("a\nb", ValueError), ("Bearer abc", ValueError)])
def test_an_unfit_token_is_refused_at_once(token: Any, kind: type[Exception]) -> None:
    """Not only when the upgrade is about to be sent."""
    with pytest.raises(kind, match=r"^token:"):
        options(token=token)


def test_two_authorizations_are_refused() -> None:
    """Which of the two would the server believe?"""
    with pytest.raises(ValueError, match="one of the two"):
        options(token="abc", headers={"AUTHORIZATION": "Basic abc"})


# --- the URL -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "encrypted", "origin"),
    [
        ("wss://Broker.Example/p?q=1", "broker.example", 443, True, "wss://broker.example:443"),
        ("ws://broker.example", "broker.example", 80, False, "ws://broker.example:80"),
        ("ws://[::1]:5672/", "::1", 5672, False, "ws://[::1]:5672"),
        ("WSS://broker.example:8443/", "broker.example", 8443, True, "wss://broker.example:8443"),
        ("wss://brökér.example/ü", "xn--brkr-dpa0f.example", 443, True, "wss://xn--brkr-dpa0f.example:443"),
    ],
)
def test_host_port_and_origin(url: str, host: str, port: int, encrypted: bool, origin: str) -> None:
    """Default ports, IPv6, capitals and international names; the origin has neither path nor query."""
    parsed = options(url)
    assert (parsed.host, parsed.port, parsed.encrypted, parsed.origin) == (host, port, encrypted, origin)


def test_path_and_query_are_kept() -> None:
    """A dollar sign, percent-encoding and the query reach the server as written."""
    url = "wss://ns.servicebus.windows.net/$servicebus/websocket?a=%2Fb&c=d"
    assert options(url).url == url
    assert options("ws://h/ü?ö").url == "ws://h/%C3%BC?%C3%B6"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("https://broker.example/", "write wss://"),
        ("http://broker.example/", "write ws://"),
        ("amqpwss://broker.example/", "write wss://"),
        ("amqpws://broker.example/", "write ws://"),
        ("amqp://broker.example/", "over WebSocket"),
        ("amqps://broker.example/", "over WebSocket"),
        ("broker.example", "must begin with ws://"),
        ("", "must begin with ws://"),
        ("wss:///path", "no host"),
        ("wss://broker.example/#top", "no fragment"),
        ("wss://broker.example/#", "no fragment"),
        ("wss://broker.example:port/", "port a number"),
        ("wss://broker.example:99999/", "port a number"),
        ("wss://broker.example:0/", "port 0"),
        ("wss://broker.example/a b", "percent-encoded"),
        ("wss://broker.example/\r\nX: y", "percent-encoded"),
        ("wss://" + "x" * 64 + "ü.example/", "internationalised"),
        (None, "a string"),
    ],
)
def test_an_unfit_url_says_what_to_write(url: str, hint: str) -> None:
    """Every usual slip gets its own answer."""
    with pytest.raises(ValueError, match=f"^url: .*{hint}"):
        options(url)


def test_hostname_and_container_id_defaults() -> None:
    """The open names the URL's host, and each connection has a container id of its own."""
    first, second = options(), options()
    assert first.hostname == "broker.example"
    assert first.container_id.startswith("amqpws-async-")
    assert first.container_id != second.container_id
    assert options(hostname="vhost").hostname == "vhost"


# --- TLS -----------------------------------------------------------------------------------


def test_ssl_takes_a_ca_file_a_context_or_nothing(tmp_path: Path) -> None:
    """A path becomes a context that verifies against that CA; a context is used as it is; None means the system's."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    for path in (ca, str(ca)):
        context = options(ssl=path).ssl_context
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert len(context.get_ca_certs()) == 1
    mine = ssl.create_default_context()
    assert options(ssl=mine).ssl_context is mine
    assert options().ssl_context is None


def test_ssl_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A missing file, a file that is no PEM, a Boolean (which would mean: no TLS), and TLS on ws://."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for value in (tmp_path / "missing.pem", empty, "missing.pem"):
        with pytest.raises(ValueError, match="cannot be read as a PEM file"):
            options(ssl=value)
    for flag in (True, False, 7):
        with pytest.raises(ValueError, match=r"^ssl: "):
            options(ssl=flag)
    with pytest.raises(ValueError, match="write wss://"):
        options("ws://localhost/", ssl=ssl.create_default_context())


# --- proxies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"https_proxy": "http://p:1"}, "wss://broker.example/", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "wss://broker.example/", "http://p:1"),
        ({"https_proxy": "http://p:1", "http_proxy": "http://q:2"}, "ws://broker.example/", "http://q:2"),
        ({"https_proxy": "http://p:1"}, "ws://broker.example/", None),
        ({"all_proxy": "http://p:1"}, "ws://broker.example/", "http://p:1"),
        ({"https_proxy": "proxy.example:3128"}, "wss://broker.example/", "http://proxy.example:3128"),
        ({"https_proxy": "http://proxy.example/"}, "wss://broker.example/", "http://proxy.example:80"),
        ({"https_proxy": "http://p:1", "no_proxy": "broker.example"}, "wss://broker.example/", None),
        ({"https_proxy": "http://p:1", "NO_PROXY": ".example"}, "wss://broker.example/", None),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "wss://broker.example/", None),
        ({"https_proxy": "http://p:1", "no_proxy": "other.example"}, "wss://broker.example/", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "wss://localhost/", None),
        ({"http_proxy": "http://p:1"}, "ws://[::1]:80/", None),
        ({}, "wss://broker.example/", None),
    ],
)
def test_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], url: str, proxy: str | None
) -> None:
    """The usual variables in both spellings, exceptions honoured, and this machine never through a proxy."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert options(url).proxy_url == proxy


def test_the_proxy_can_be_given_or_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given goes before the environment; IPv6 and default ports are written out."""
    monkeypatch.setenv("https_proxy", "http://p:1")
    assert options(proxy=None).proxy_url is None
    assert options(proxy=False).proxy_url is None
    assert options(proxy="https://[::1]").proxy_url == "https://[::1]:443"
    assert options(proxy="http://u:p%40w@q:2/").proxy_url == "http://u:p%40w@q:2"


def test_token_requests_resolve_to_the_same_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and token endpoint must agree about the way out."""
    monkeypatch.setenv("https_proxy", "http://p:1")
    assert resolve_proxy(True, "https", "tokens.example", 443) == options().proxy_url == "http://p:1"


@pytest.mark.parametrize(
    "proxy",
    [
        f"ftp://user:{CANARY}@p:1",
        f"http://user:{CANARY}@p:{CANARY}",
        f"http://user:{CANARY}@p/path",
        f"http://user:{CANARY}@p?query",
        f"http://user:{CANARY}@",
        f"http://{CANARY}@p:1",
        f"{CANARY}",
        f"http://pröxy/{CANARY}",
        "",
    ],
)
def test_an_unfit_proxy_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """Given or from the environment, the error names where it came from, never what it was."""
    with pytest.raises(ValueError, match=r"^proxy: ") as caught:
        options(proxy=proxy)
    assert CANARY not in str(caught.value)
    if "://" in proxy:
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ValueError, match=r"^https_proxy: ") as caught:
            options()
        assert CANARY not in str(caught.value)


def test_a_proxy_of_another_type_is_refused() -> None:
    """A number is no proxy."""
    with pytest.raises(ValueError, match=r"^proxy: "):
        options(proxy=7)


def test_a_socks_proxy_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKS is an extra: the error comes at once and names it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        options(proxy="socks5h://p:1080")


# --- the other fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subprotocols", "amqp"),
        ("subprotocols", ()),
        ("subprotocols", ("a b",)),
        ("subprotocols", ("amqp", "amqp")),
        ("subprotocols", (7,)),
        ("redirect_hosts", "broker.example"),
        ("redirect_hosts", 7),
        ("require_subprotocol", 1),
        ("allow_insecure_auth", "yes"),
        ("sasl", "PLAIN"),
        ("hostname", ""),
        ("container_id", ""),
        ("container_id", 7),
        ("properties", {1: 2}),
        ("properties", "product"),
        ("offered_capabilities", "x"),
        ("open_timeout", 0),
        ("open_timeout", -1),
        ("open_timeout", True),
        ("open_timeout", float("nan")),
        ("open_timeout", float("inf")),
        ("open_timeout", "30"),
        ("close_timeout", None),
        ("close_timeout", -1),
        ("idle_timeout", 2**32),
        ("ping_interval", 0),
        ("ping_timeout", 0),
        ("max_frame_size", 511),
        ("max_frame_size", 2**32),
        ("max_frame_size", 1024.0),
        ("max_frame_size", True),
        ("channel_max", -1),
        ("channel_max", 65535),
        ("max_websocket_message_size", 100),
        ("send_buffer_bytes", 0),
        ("trace", "frames"),
    ],
)
def test_a_wrong_connection_option_is_refused_by_name(field: str, value: object) -> None:
    """The error begins with the field's name."""
    with pytest.raises(ValueError, match=f"^{field}:"):
        ConnectionOptions(**{"url": URL, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({"X-A": "b\r\nX-Evil: c"}, "line ends"),
        ({"X-A": "b\0"}, "line ends"),
        ({"X-A": "日本"}, "Latin-1"),
        ({"X-A": 7}, "no string"),
        ({"X A": "b"}, "no header name"),
        ({7: "b"}, "no header name"),
        ({"X-A": "b", "x-a": "c"}, "twice"),
        ({"Sec-WebSocket-Protocol": "amqp"}, "subprotocols="),
        ({"Host": "other"}, "belongs to the upgrade"),
        ({"sec-websocket-key": "x"}, "belongs to the upgrade"),
        ({"Upgrade": "x"}, "belongs to the upgrade"),
        ([("X-A", "b")], "a mapping"),
    ],
)
def test_headers_that_could_break_the_upgrade_are_refused(headers: Any, hint: str) -> None:
    """Injection, headers of the handshake itself, and doubles."""
    with pytest.raises(ValueError, match=f"^headers: .*{hint}"):
        options(headers=headers)


def test_later_changes_to_the_callers_headers_change_nothing() -> None:
    """What was checked is what is sent."""
    headers = {"X-A": "b"}
    made = options(headers=headers, properties={"a": 1}, redirect_hosts=["h"])
    headers["X-A"] = "c\r\nX-Evil: d"
    assert dict(made.headers) == {"X-A": "b"}
    assert made.redirect_hosts == ("h",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.url = "ws://other/"  # type: ignore[misc]


def test_zero_and_none_both_turn_the_idle_timeout_off() -> None:
    """Both are how people write it."""
    assert options(idle_timeout=0).idle_timeout is None
    assert options(idle_timeout=None).idle_timeout is None
    assert options(sasl=None, ping_interval=None, ping_timeout=None, open_timeout=None, close_timeout=0).sasl is None


def test_the_defaults() -> None:
    """The table of defaults in the README, as code."""
    made = options()
    assert (made.subprotocols, made.require_subprotocol, made.sasl) == (("amqp",), True, Anonymous())
    assert (made.open_timeout, made.close_timeout, made.idle_timeout) == (30.0, 5.0, 60.0)
    assert (made.ping_interval, made.ping_timeout) == (20.0, 20.0)
    assert (made.max_frame_size, made.max_websocket_message_size) == (65536, 32768)
    assert ReceiverOptions().credit == 1000
    assert ReceiverOptions().max_message_size == ReceiverOptions().max_prefetch_bytes == 16 * 2**20


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), (" Frames ", True), ("0", False), ("", False), ("no", False)]
)
def test_trace_by_environment(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    """The environment decides only where the caller said nothing."""
    monkeypatch.setenv("AMQPWS_TRACE", value)
    assert options().trace is expected
    assert options(trace=False).trace is False
    assert options(trace=print).trace is print


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("broker.example", 443, True),
        ("Broker.Example", 443, True),
        ("broker.example", 444, False),
        ("other.example", 1, True),
        ("third.example", 8443, True),
        ("third.example", 443, False),
        ("evil-other.example", 443, False),
        ("::1", 443, True),
        ("::2", 99, True),
        ("::2", 98, False),
    ],
)
def test_where_a_redirect_may_lead(host: str, port: int, allowed: bool) -> None:
    """The same host and port, a host that is named, or a host and port that are named."""
    made = options(redirect_hosts=("OTHER.example", "third.example:8443", "::1", "[::2]:99"))
    assert made.allows_redirect(host, port) is allowed


# --- sessions and links -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SessionOptions, "incoming_window_bytes", -1),
        (SenderOptions, "name", ""),
        (SenderOptions, "snd_settle_mode", "settled"),
        (SenderOptions, "rcv_settle_mode", SenderSettleMode.MIXED),
        (SenderOptions, "max_message_size", -1),
        (SenderOptions, "properties", {b"a": 1}),
        (ReceiverOptions, "credit", -1),
        (ReceiverOptions, "credit", 2**31),
        (ReceiverOptions, "credit", True),
        (ReceiverOptions, "max_prefetch_bytes", 0),
        (ReceiverOptions, "max_message_size", None),
        (ReceiverOptions, "name", 7),
    ],
)
def test_a_wrong_link_option_is_refused_by_name(kind: Any, field: str, value: object) -> None:
    """The error begins with the field's name."""
    with pytest.raises(ValueError, match=f"^{field}:"):
        kind(**{field: value})


def test_our_own_end_may_be_an_address_or_a_terminus() -> None:
    """And it is checked as a request, like the other end."""
    assert SenderOptions(source="s").source == "s"
    assert ReceiverOptions(target=Target("t")).target == Target("t")
    with pytest.raises(ValueError, match="chooses the address"):
        ReceiverOptions(target=Target("t", dynamic=True))
    with pytest.raises(TypeError, match="Source"):
        SenderOptions(source=Target("t"))  # type: ignore[arg-type]
    assert SenderOptions(source=Source("s", capabilities=("queue",))).source is not None
