"""What is asked of a token endpoint: the grants of RFC 6749 that need no browser."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final

from ..urls import is_loopback, without_query
from .client_auth import ClientAuthentication, ClientCertificate, PrivateKeyJWT, SecretWay

__all__ = ["ClientCredentials", "Grant", "ResourceOwnerPassword"]

_SECRET_WAYS: Final[tuple[SecretWay, ...]] = ("body", "basic", "raw-basic")  # in the order of "auto"
_OURS: Final = frozenset(
    {"grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "scope", "resource"}
    | {"username", "password"}
)


@dataclass(frozen=True, repr=False)
class Grant:
    """What all grants share; use `ClientCredentials` or `ResourceOwnerPassword`.

    Attributes:
        token_url: The token endpoint, ``https://``; ``http://`` only on this machine. Nothing is ever sent anywhere
            else: redirects are not followed.
        client_id: The client.
        client_secret: Its secret, or None.
        scope: Scopes, separated by blanks or as several strings; none by default, which most servers take for all.
        resource: Where the token is for (RFC 8707), such as SAP IAS'
            ``urn:sap:identity:application:provider:name:...``; one or several, none by default.
        parameters: More parameters for the request's body. They are treated as secrets: no value is ever shown.
        authentication: How the client proves who it is, see `ClientAuthentication`. ``"auto"`` (the default) puts the
            secret into the body; if the server refuses that with 400 or 401, into a Basic header with both parts
            form-encoded, then into a raw one, and keeps to what has worked.

    Raises:
        ValueError: The URL is not safe, or a value is missing, of the wrong kind or has no use.
    """

    token_url: str
    client_id: str
    client_secret: str | None = None
    _: KW_ONLY
    scope: str | Iterable[str] | None = None
    resource: str | Iterable[str] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    authentication: ClientAuthentication = "auto"

    grant_type: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_url", _checked_url(self.token_url))
        if not isinstance(self.client_id, str) or not self.client_id:
            raise ValueError("client_id: a string that is not empty")
        object.__setattr__(self, "scope", " ".join(_strings("scope", self.scope)) or None)
        object.__setattr__(self, "resource", tuple(_strings("resource", self.resource)))
        object.__setattr__(self, "parameters", MappingProxyType(_checked_parameters(self.parameters)))
        self._check_authentication()

    def _check_authentication(self) -> None:
        way = self.authentication
        if isinstance(way, (ClientCertificate, PrivateKeyJWT)):
            if self.client_secret:
                raise ValueError(f"client_secret: {type(way).__name__} takes its place; give one of the two")
            if isinstance(way, ClientCertificate) and not self.token_url.startswith("https:"):
                raise ValueError("authentication: a client certificate needs an https:// token endpoint")
        elif way not in ("auto", *_SECRET_WAYS):
            raise ValueError(
                "authentication: 'auto', 'body', 'basic', 'raw-basic', a ClientCertificate or a PrivateKeyJWT"
            )
        elif self.client_secret is not None and not isinstance(self.client_secret, str):
            raise ValueError(f"client_secret: a string, not {type(self.client_secret).__name__}")
        elif way == "raw-basic" and ":" in self.client_id:
            raise ValueError("authentication: raw Basic cannot carry a client id with a colon in it (RFC 7617)")

    @property
    def ways(self) -> tuple[SecretWay, ...]:
        """Where the client secret may go, in the order to try; empty if there is none to send."""
        if isinstance(self.authentication, (ClientCertificate, PrivateKeyJWT)):
            return ()
        if self.authentication != "auto":
            return (self.authentication,)
        if self.client_secret is None:
            return ("body",)
        return tuple(way for way in _SECRET_WAYS if way != "raw-basic" or ":" not in self.client_id)

    def form(self) -> list[tuple[str, str]]:
        """The body's parameters, but for those that authenticate the client."""
        assert self.resource is not None
        return [
            ("grant_type", self.grant_type),
            *([("scope", str(self.scope))] if self.scope else []),
            *[("resource", resource) for resource in self.resource],
            *self.parameters.items(),
        ]

    def secrets(self) -> tuple[str, ...]:
        """Texts that nobody may see."""
        return (self.client_secret or "", *self.parameters.values())

    def __repr__(self) -> str:
        shown = [f"{without_query(self.token_url)!r}", f"{self.client_id!r}"]
        shown += ["client_secret='***'"] if self.client_secret is not None else []
        shown += [f"{name}={value!r}" for name in ("scope", "resource") if (value := getattr(self, name))]
        shown += [f"parameters={dict.fromkeys(self.parameters, '***')}"] if self.parameters else []
        shown += [f"authentication={self.authentication!r}"] if self.authentication != "auto" else []
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class ClientCredentials(Grant):
    """A token for the client itself (RFC 6749 section 4.4): what services use.

    Attributes and errors as for `Grant`; the client needs a secret, a certificate or a key.
    """

    grant_type: ClassVar[str] = "client_credentials"

    def _check_authentication(self) -> None:
        super()._check_authentication()
        if self.client_secret is None and self.ways:
            raise ValueError(
                "client_secret: missing; a client without one needs authentication=ClientCertificate(...) or "
                "PrivateKeyJWT(...)"
            )


@dataclass(frozen=True, repr=False)
class ResourceOwnerPassword(Grant):
    """A token for a user whose password is known (RFC 6749 section 4.3): technical users of older systems.

    Attributes and errors as for `Grant`, and these. Without a client secret the client is a public one.

    Attributes:
        username: The user.
        password: The user's password.
    """

    _: KW_ONLY
    username: str
    password: str

    grant_type: ClassVar[str] = "password"

    def __post_init__(self) -> None:
        Grant.__post_init__(self)
        for name in ("username", "password"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}: a string that is not empty")

    def form(self) -> list[tuple[str, str]]:
        """The body's parameters, but for those that authenticate the client."""
        return [*Grant.form(self), ("username", self.username), ("password", self.password)]

    def secrets(self) -> tuple[str, ...]:
        """Texts that nobody may see."""
        return (self.password, *Grant.secrets(self))

    def __repr__(self) -> str:
        return f"{Grant.__repr__(self)[:-1]}, username={self.username!r}, password='***')"


# --- checks ----------------------------------------------------------------------------------


def _checked_url(url: object) -> str:
    """Check a token endpoint's URL. No error quotes it: a password may be in any part of it."""
    if not isinstance(url, str) or any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("token_url: a URL without blanks, such as https://login.example/oauth/token")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("token_url: not a URL such as https://login.example/oauth/token") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("token_url: a URL such as https://login.example/oauth/token")
    if parts.username is not None or parts.password is not None or "#" in url:
        raise ValueError("token_url: no user name, password or fragment may be in it (RFC 6749 section 3.2)")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("token_url: credentials would travel unencrypted: use https:// (RFC 6749 section 3.2)")
    return url


def _strings(name: str, value: object) -> list[str]:
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, Iterable) or isinstance(items, (bytes, Mapping)):
        raise ValueError(f"{name}: a string, several strings or None, not {type(value).__name__}")
    found = list(items)
    if not all(isinstance(item, str) and item for item in found):
        raise ValueError(f"{name}: strings that are not empty")
    return found


def _checked_parameters(parameters: object) -> dict[str, str]:
    if not isinstance(parameters, Mapping):
        raise ValueError(f"parameters: a mapping of names to strings, not {type(parameters).__name__}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError("parameters: names and values are strings")
        if name in _OURS:
            raise ValueError(f"parameters: {name} has an argument of its own")
    return dict(parameters)
