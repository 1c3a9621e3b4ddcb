"""How a client proves to a token endpoint who it is: secrets in body or header, certificates, signed assertions.

Only the form-encoded body works with every generation of Cloud Foundry's UAA (hence SAP's XSUAA), and RFC 6749 section
2.3.1 obliges servers to take HTTP Basic and leaves the body to them. So ``"auto"`` tries the body first, and a Basic
header, never beside the body, where a UAA would let it win, only when the server has refused the credentials.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import ssl as tls
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import TokenError

__all__ = ["ClientAuthentication", "ClientCertificate", "PrivateKeyJWT", "Proof", "SecretWay", "secret_proof"]

SecretWay = Literal["body", "basic", "raw-basic"]
"""Where a client secret stands in a request, and how it is written."""

_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
_ASSERTION_LIFETIME: Final = 60  # seconds: it is used at once, so this is for clocks that differ


@dataclass(frozen=True, slots=True)
class Proof:
    """What one request carries to authenticate the client.

    Attributes:
        form: Parameters of the body.
        headers: Headers.
        secrets: Texts in them that nobody may see.
    """

    form: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Proof(form={sorted(self.form)}, headers={sorted(self.headers)})"


def secret_proof(way: SecretWay, client_id: str, client_secret: str | None) -> Proof:
    """Put a client secret into a request.

    Args:
        way: Where, and how written.
        client_id: Who.
        client_secret: The secret; None is a public client, which only says who it is.
    """
    if client_secret is None:
        return Proof({"client_id": client_id})
    if way == "body":
        return Proof({"client_id": client_id, "client_secret": client_secret})
    headers = {}
    pair = f"{client_id}:{client_secret}"
    if way == "basic":
        # RFC 6749 section 2.3.1. A UAA in compatibility mode decodes only beside this header, others ignore it.
        pair = f"{urllib.parse.quote_plus(client_id)}:{urllib.parse.quote_plus(client_secret)}"
        headers["X-CF-ENCODED-CREDENTIALS"] = "true"
    encoded = base64.b64encode(pair.encode()).decode("ascii")
    headers["Authorization"] = f"Basic {encoded}"
    return Proof({}, headers, (encoded,))


# --- certificates ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class ClientCertificate:
    """A client certificate in TLS (RFC 8705): the request names the client id, the certificate proves it.

    Attributes:
        certificate: The certificate, and the chain below it, as PEM text or the path of a PEM file.
        key: Its private key, likewise; None (the default) if it is in `certificate` too. Not encrypted.

    A file is read again for every token request, so a renewed certificate is used without a restart.

    Raises:
        ValueError: One of them is neither PEM text nor a path.
    """

    certificate: str | Path
    key: str | Path | None = None

    def __post_init__(self) -> None:
        _check_pem("certificate", self.certificate)
        if self.key is not None:
            _check_pem("key", self.key)

    def load_into(self, context: tls.SSLContext) -> None:
        """Make `context` show this certificate from its next connection on. Reads files: not for the event loop.

        Raises:
            TokenError: A file cannot be read, or certificate and key do not fit.
        """
        try:
            with _as_file(self.certificate) as certificate, _as_file(self.key) as key:
                assert certificate is not None
                context.load_cert_chain(certificate, key, password=_no_password)
        except tls.SSLError as error:
            reason = (error.reason or "it is no PEM text that OpenSSL knows").replace("_", " ").lower()
            raise TokenError(f"client certificate: cannot be used with its key: {reason}") from None
        except _EncryptedKeyError:
            raise TokenError("client certificate: the private key is encrypted; give it decrypted") from None
        except OSError as error:  # its own text may quote the path, and a mistaken "path" may be a key
            raise TokenError(f"client certificate: a file cannot be read: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"ClientCertificate(certificate={_shown(self.certificate)}, key={_shown(self.key)})"


class _EncryptedKeyError(Exception):
    """OpenSSL asks for a password; without an answer it would ask on the terminal."""


def _no_password() -> str:
    raise _EncryptedKeyError


# --- signed assertions -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKeyJWT:
    """An assertion signed by the client's private key (``private_key_jwt``, RFC 7523). It needs PyJWT.

    Attributes:
        key: The private key, as PEM text or the path of a PEM file, which is read again for every token request.
        algorithm: The signature's algorithm, RS256 by default.
        headers: More JOSE headers, such as ``{"kid": "..."}`` or Entra's ``x5t``; none by default.
        audience: The assertion's audience; the token endpoint's URL by default (RFC 7523 section 3).

    Raises:
        ModuleNotFoundError: PyJWT is not installed.
        ValueError: The key is neither PEM text nor a path, or the algorithm is none that a private key signs with.
    """

    key: str | Path
    algorithm: str = "RS256"
    headers: Mapping[str, str] = field(default_factory=dict)
    audience: str | None = None

    def __post_init__(self) -> None:
        _check_pem("key", self.key)
        if not isinstance(self.algorithm, str) or self.algorithm[:2] not in ("RS", "PS", "ES", "Ed"):
            raise ValueError("algorithm: one for private keys, such as RS256, PS256, ES256 or EdDSA")
        if importlib.util.find_spec("jwt") is None:
            raise ModuleNotFoundError("PrivateKeyJWT needs PyJWT: pip install 'amqpws-async[jwt]'", name="jwt")

    def proof(self, client_id: str, token_url: str) -> Proof:
        """Sign an assertion for one request. Reads a file and computes: not for the event loop.

        Raises:
            TokenError: The key cannot be read or used.
        """
        import jwt

        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": client_id,
            "sub": client_id,
            "aud": self.audience or token_url,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "exp": now + _ASSERTION_LIFETIME,
        }
        try:
            key = self.key if _is_pem(self.key) else Path(self.key).read_text("ascii")
            assertion = jwt.encode(claims, str(key), algorithm=self.algorithm, headers=dict(self.headers))
        except OSError as error:
            raise TokenError(f"private_key_jwt: the key's file cannot be read: {error.strerror}") from None
        except Exception as error:  # PyJWT's, cryptography's and the key's own: their texts may quote the key
            raise TokenError(
                f"private_key_jwt: the key cannot sign with {self.algorithm} ({type(error).__name__}): "
                "is it a private key of that kind, in PEM, and not encrypted?"
            ) from None
        form = {"client_id": client_id, "client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion}
        return Proof(form, {}, (assertion,))

    def __repr__(self) -> str:
        return f"PrivateKeyJWT(key={_shown(self.key)}, algorithm={self.algorithm!r})"


#: What ``authentication=`` of a grant takes. With a secret: ``"auto"`` (the default), ``"body"``, ``"basic"`` (both
#: parts form-encoded, RFC 6749 section 2.3.1) or ``"raw-basic"``. Without one: a certificate or a key.
ClientAuthentication = Literal["auto"] | SecretWay | ClientCertificate | PrivateKeyJWT


# --- PEM -------------------------------------------------------------------------------------


def _is_pem(value: str | Path) -> bool:
    return isinstance(value, str) and "-----BEGIN" in value


def _check_pem(name: str, value: object) -> None:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError(f"{name}: PEM text or the path of a PEM file, not {type(value).__name__}")
    if not _is_pem(value) and (any(character in str(value) for character in "\r\n\0") or "PRIVATE KEY" in str(value)):
        raise ValueError(f"{name}: neither PEM text, which has a line -----BEGIN ...-----, nor a path")


def _shown(value: str | Path | None) -> str:
    # A long text for a path may be a key that has lost its BEGIN line.
    hidden = isinstance(value, str) and (_is_pem(value) or len(value) > 120)
    return "'***'" if hidden else repr(None if value is None else str(value))


@contextlib.contextmanager
def _as_file(value: str | Path | None) -> Iterator[str | None]:
    """Give OpenSSL a path, which is all it takes: that of a file in memory where there is such a thing."""
    if value is None or not _is_pem(value):
        yield None if value is None else str(value)
    elif sys.platform == "linux":
        with open(os.memfd_create("amqpws-async"), "w", encoding="ascii", errors="replace") as file:
            file.write(str(value))
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", encoding="ascii", errors="replace") as file:  # readable by us alone
            file.write(str(value))
            file.flush()
            yield file.name
