"""What a service key of SAP Event Mesh says: where the broker is, and how tokens for it are had.

Keys differ by service, plan, age and region, and people edit them. So names are taken in any case and with or without
``-`` and ``_`` in them, blanks around values do not count, and what is not needed is not looked at. What is needed and
cannot be used is an error that names the field by its path, such as ``messaging[0].oa2.clientid``, and no value at all.

A certificate, for keys of the type x509, is taken from where it is first found: the ``oa2`` of the entry itself,
``uaa``, or the top of the key. Its token endpoint is that of ``certurl``; ``tokenendpoint`` if there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from ..auth.client_auth import ClientCertificate
from ..auth.grants import ClientCredentials, Grant
from ..urls import is_loopback, without_password, without_query
from .bindings import (
    MOUNT,
    SUITE_LABEL,
    Binding,
    ServiceKeyError,
    find_binding,
    parse_json,
    plain,
    read_file,
    shown_path,
    unwrap,
)

__all__ = ["Endpoint", "ServiceKey", "ServiceKeyError"]

_PROTOCOL: Final = "amqp10ws"
_OTHER_PROTOCOLS: Final = ("amqp10", "httprest", "mqtt311", "mqtt311ws")  # that may be named in an error
_MESSAGING_PATH: Final = "/protocols/amqp10ws"

_MANAGEMENT_PATH: Final = "/hub/rest/api/v1/management/messaging"
_SUITE_MANAGEMENT_PATH: Final = "/sap-event-mesh/rest/api/v1"
_SUITE_HOSTS: Final = ".eventmesh.integration.cloud.sap"

_BRING_YOUR_OWN: Final = "give certificate and key yourself: certificate=ClientCertificate('own.pem', 'key.pem')"

logger = logging.getLogger("amqpws_async.eventmesh")


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """One of the servers that a key is for.

    Attributes:
        url: Where it is: ``wss://`` for messaging, ``https://`` for management; ``ws://`` and ``http://`` on this
            machine alone.
        grant: How to get a token for it; None if the key does not say.
    """

    url: str
    grant: Grant | None

    def __repr__(self) -> str:
        return f"Endpoint({without_query(without_password(self.url))!r}, {self.grant!r})"

    def __reduce__(self) -> NoReturn:
        raise _not_pickled(self)


@dataclass(frozen=True, slots=True, repr=False)
class ServiceKey:
    """A service key, checked and ready for use. Its `repr` shows no secret, and it cannot be pickled.

    Attributes:
        messaging: The broker: AMQP 1.0 over WebSocket.
        management: The base of the REST interface for queues and subscriptions, below which ``/queues``,
            ``/readinessCheck`` and ``/statistics`` are; None if the service was created without it. A path in the key
            is taken for the base; where there is none it is that of the service or of Integration Suite.
        namespace: The message client's namespace, such as ``example/shop/1``, or None.
        instance_id: The service instance's id, or None.
        certificate: For keys of the type x509: what to show to the token endpoint, and to the broker. Else None.
        origin: Where the key is from, and why this one was chosen.
    """

    messaging: Endpoint
    management: Endpoint | None
    namespace: str | None
    instance_id: str | None
    certificate: ClientCertificate | None
    origin: str

    @classmethod
    def load(
        cls,
        source: Mapping[str, Any] | str | Path | None = None,
        *,
        binding: str | None = None,
        certificate: ClientCertificate | None = None,
    ) -> Self:
        """Read a key from wherever it is. Reads files: not for the event loop.

        Args:
            source: A mapping, a JSON text (which begins with ``{``), or the path of a JSON file: each of them a service
                key, one wrapped in ``credentials`` as the cf command line shows it, or all that is in
                ``VCAP_SERVICES``. None (the default) searches the environment, see `from_environment`.
            binding: Which binding to take, if there are several.
            certificate: A certificate in place of the key's own, for those that are managed elsewhere.

        Raises:
            ServiceKeyError: There is no key, there are several, or it cannot be used.
            TypeError: An argument is of the wrong kind.
        """
        if source is None:
            return cls.from_environment(binding, certificate=certificate)
        if isinstance(source, Mapping):
            return cls._chosen(unwrap(source, "the mapping given", binding), certificate)
        if isinstance(source, str) and source.lstrip("\ufeff \t\r\n").startswith("{"):
            where, text = "the JSON text given", source
        elif isinstance(source, (str, Path)):
            where = f"the file {shown_path(source)}"
            text = read_file(source, where)
        else:
            raise TypeError(f"service key: a mapping, a JSON text or a path, not {type(source).__name__}")
        found = parse_json(text, where)
        if not isinstance(found, Mapping):
            raise ServiceKeyError(f"{where}: is no JSON object, so no service key")
        return cls._chosen(unwrap(found, where, binding), certificate)

    @classmethod
    def from_environment(
        cls,
        binding: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        certificate: ClientCertificate | None = None,
        mount: Path = MOUNT,
    ) -> Self:
        """Search what the platform gives to this program for the service it is bound to. Reads files: not for the loop.

        These places are searched in turn, and the first with a binding of Event Mesh decides: the file that
        ``VCAP_SERVICES_FILE_PATH`` names and ``VCAP_SERVICES`` (Cloud Foundry), the folders in
        ``SERVICE_BINDING_ROOT``, and those of `mount` (Kubernetes). It is one of Event Mesh by its label or type
        (``enterprise-messaging`` or ``event-mesh-message-client``), in folders also by its content. User-provided
        services are taken by their name alone.

        Args:
            binding: The name of a binding or of a service instance; None (the default) for the only one.
            environ: Variables, ``os.environ`` by default.
            certificate: A certificate in place of the key's own.
            mount: The root of the older layout of mounted bindings.

        Raises:
            ServiceKeyError: There is none, there are several in one place, or it cannot be used.
        """
        return cls._chosen(find_binding(binding, os.environ if environ is None else environ, mount), certificate)

    @classmethod
    def _chosen(cls, binding: Binding, certificate: ClientCertificate | None) -> Self:
        if certificate is not None and not isinstance(certificate, ClientCertificate):
            raise TypeError(f"certificate: a ClientCertificate or None, not {type(certificate).__name__}")
        root = _Section(binding.credentials, binding.origin)
        entry = _messaging_entry(root)
        address = _address(entry, "wss")
        shown = certificate or _certificate(entry, root)
        messaging = Endpoint(_complete(address, _MESSAGING_PATH), _grant(entry, root, shown))
        management = None
        if entries := root.sections("management"):
            suite = binding.label == SUITE_LABEL or _is_suite(address)
            address = _address(entries[0], "https")
            suite = suite or _is_suite(address)
            url = _complete(address, _SUITE_MANAGEMENT_PATH if suite else _MANAGEMENT_PATH)
            grant = _grant(entries[0], root, certificate or _certificate(entries[0], root))
            management = Endpoint(url.rstrip("/"), grant)
        key = cls(
            messaging=messaging,
            management=management,
            namespace=root.text("namespace"),
            instance_id=root.text("serviceinstanceid") or root.text("instanceid"),
            certificate=shown,
            origin=binding.origin,
        )
        logger.info("= service key from %s", binding.origin)
        return key

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"ServiceKey({shown})"

    def __reduce__(self) -> NoReturn:
        raise _not_pickled(self)


def _not_pickled(value: object) -> TypeError:
    return TypeError(f"a {type(value).__name__} has secrets in it: hand on where it is from, and load it again there")


# --- reading ---------------------------------------------------------------------------------


class _Section:
    """An object in the key, which knows its own place there.

    Attributes:
        path: The place, such as ``messaging[0].oa2``; "" for the whole.
    """

    def __init__(self, fields: Mapping[str, Any], origin: str, path: str = "") -> None:
        self._origin = origin
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            if not self._fields.get(plain(name)):  # the first of several spellings that has a value
                self._fields[plain(name)] = value
        self.path = path

    def at(self, name: str) -> str:
        """The path of the field `name`."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, text: str) -> ServiceKeyError:
        """The error that there is something about the field `name`."""
        return ServiceKeyError(f"{self._origin}: {self.at(name)}: {text}")

    def exact(self, name: str) -> str | None:
        """The text of a field to the letter, or None if it is missing or empty."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, f"a string, not {type(value).__name__}")
        if value and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(name, "it has half a character in it, which has no encoding in UTF-8")
        return value or None

    def text(self, name: str) -> str | None:
        """The text of a field without blanks around it, or None if it is missing or empty."""
        return (self.exact(name) or "").strip() or None

    def texts(self, name: str) -> list[str]:
        """The texts of a field that has one or a list of them; none if it is missing."""
        value = self._fields.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, str) for item in items):
            raise self.error(name, "a string or a list of strings")
        return [item.strip() for item in items]

    def pem(self, name: str) -> str | None:
        """The PEM text of a field, or None if it is missing or empty. A path would have us read any file."""
        value = self.text(name)
        if value is None:
            return None
        if "-----BEGIN" not in value:
            raise self.error(name, "no PEM text, which has a line -----BEGIN ...-----")
        # Who puts a key into an environment sometimes escapes its line ends once too often.
        return (value if "\n" in value else value.replace("\\n", "\n")).strip() + "\n"

    def has(self, name: str) -> bool:
        """Whether there is such a field, and it is not empty."""
        return bool(self._fields.get(name))

    def section(self, name: str) -> _Section | None:
        """The object in a field, or None if it is missing."""
        found = self.sections(name)
        if len(found) > 1:
            raise self.error(name, "an object, not a list of several")
        return found[0] if found else None

    def sections(self, name: str) -> list[_Section]:
        """The objects of a field that has one or a list of them; none if it is missing."""
        value = self._fields.get(name)
        if isinstance(value, Mapping):
            return [_Section(value, self._origin, self.at(name))]
        if not isinstance(value, list | None):
            raise self.error(name, f"a list of objects, not {type(value).__name__}")
        found = []
        for number, item in enumerate(value or ()):
            if not isinstance(item, Mapping):
                raise self.error(f"{name}[{number}]", f"an object, not {type(item).__name__}")
            found.append(_Section(item, self._origin, self.at(f"{name}[{number}]")))
        return found


def _messaging_entry(root: _Section) -> _Section:
    """The entry for AMQP over WebSocket; one that says how to get a token if there are several."""
    if advanced := [name for name in ("endpoints", "authenticationservice") if root.has(name)]:
        raise root.error(
            advanced[0],
            "this is a key of Advanced Event Mesh, whose AMQP is over TCP alone, without WebSocket; this client needs "
            "one of Event Mesh (enterprise-messaging or event-mesh-message-client)",
        )
    entries = root.sections("messaging")
    if not entries:
        raise root.error("messaging", "missing: is this a service key of Event Mesh?")
    protocols = [[name.lower() for name in entry.texts("protocol")] for entry in entries]
    ours = [entry for entry, names in zip(entries, protocols, strict=True) if _PROTOCOL in names]
    if not ours:
        others = {name for names in protocols for name in names} & set(_OTHER_PROTOCOLS)
        only = f", only for {', '.join(sorted(others))}" if others else ""
        raise root.error(
            "messaging",
            f"no entry for {_PROTOCOL} (AMQP over WebSocket){only}: add it to the service descriptor, "
            '"options": {"messaging": true}, update the instance with it and create a new key',
        )
    return next((entry for entry in ours if entry.has("oa2")), ours[0])


def _address(entry: _Section, scheme: str) -> urllib.parse.SplitResult:
    """The URL of an entry, checked.

    Args:
        entry: It.
        scheme: wss or https.
    """
    text = entry.text("uri")
    if text is None:
        raise entry.error("uri", "missing or empty")
    parts, port = _split(text)
    plain_scheme = {"wss": "ws", "https": "http"}[scheme]
    if parts is None or not (host := parts.hostname) or parts.scheme not in (scheme, plain_scheme) or port == 0:
        raise entry.error("uri", f"no URL such as {scheme}://host.example")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise entry.error("uri", "no user name, query or fragment may be in it")
    if parts.scheme == plain_scheme and not is_loopback(host):
        raise entry.error("uri", f"tokens would travel unencrypted: use {scheme}://")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != (443 if parts.scheme == scheme else 80):
        netloc += f":{port}"
    # Doubled, it has been seen in keys.
    return parts._replace(netloc=netloc, path=parts.path.replace("/protocols/protocols/", "/protocols/"))


def _split(text: str) -> tuple[urllib.parse.SplitResult | None, int | None]:
    """The parts of a URL and its port; the errors of urllib quote it, so there is None in their place."""
    with contextlib.suppress(ValueError):
        if text.isprintable() and " " not in text:
            parts = urllib.parse.urlsplit(text)
            return parts, parts.port
    return None, None


def _complete(address: urllib.parse.SplitResult, path: str) -> str:
    """The URL, with `path` if it has none."""
    return (address if address.path.strip("/") else address._replace(path=path)).geturl()


def _is_suite(address: urllib.parse.SplitResult) -> bool:
    return (address.hostname or "").endswith(_SUITE_HOSTS)


# --- credentials -----------------------------------------------------------------------------


def _holders(entry: _Section, root: _Section) -> list[_Section]:
    """Where a certificate may be, in the order to look."""
    return [each for each in (entry.section("oa2"), root.section("uaa"), root) if each is not None]


def _certificate(entry: _Section, root: _Section) -> ClientCertificate | None:
    holders = _holders(entry, root)
    kinds = [(holder, kind.lower()) for holder in holders if (kind := holder.text("credentialtype"))]
    if kinds and "secret" in kinds[0][1]:
        return None
    for holder in holders:
        if certificate := holder.pem("certificate"):
            key = holder.pem("key")
            if key is None and "PRIVATE KEY-----" not in certificate:
                raise holder.error("key", f"missing: the key of the certificate is not here; {_BRING_YOUR_OWN}")
            return ClientCertificate(certificate, key)
    if kinds and kinds[0][1].startswith("x509"):
        raise kinds[0][0].error("certificate", f"missing, though the credential type is x509; {_BRING_YOUR_OWN}")
    return None


def _grant(entry: _Section, root: _Section, certificate: ClientCertificate | None) -> Grant | None:
    oa2 = entry.section("oa2")
    if oa2 is None:
        return None
    kind = (oa2.text("granttype") or "client_credentials").lower().replace("-", "_")
    if kind != "client_credentials":
        raise oa2.error("granttype", "not client_credentials: create another key for use without a user")
    client_id = oa2.text("clientid")
    if client_id is None:
        raise oa2.error("clientid", "missing or empty")
    client_secret = None if certificate else oa2.exact("clientsecret")
    if client_secret is None and certificate is None:
        raise oa2.error("clientsecret", f"missing or empty, and there is no certificate; {_BRING_YOUR_OWN}")
    holder, name, token_url = _token_url(oa2, _holders(entry, root) if certificate else [])
    try:
        return ClientCredentials(token_url, client_id, client_secret, authentication=certificate or "auto")
    except ValueError as error:  # it is about the URL, the rest has been checked
        reason = str(error).partition(": ")[2]
    raise holder.error(name, reason)


def _token_url(oa2: _Section, holders: list[_Section]) -> tuple[_Section, str, str]:
    """The token endpoint, and where in the key it is from.

    Args:
        oa2: The section of the entry.
        holders: Where the token endpoint for certificates may be.
    """
    for holder in holders:
        if base := holder.text("certurl"):
            return holder, "certurl", base.rstrip("/").removesuffix("/oauth/token") + "/oauth/token"
    if url := oa2.text("tokenendpoint"):
        return oa2, "tokenendpoint", url
    raise oa2.error("tokenendpoint", "missing or empty")
