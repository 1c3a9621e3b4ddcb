"""Starts oidc-provider, a certified OpenID provider, as the token endpoint: over https, with clients of every kind."""

from __future__ import annotations

import base64
import json
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from amqpws_async.auth.oauth2 import ClientCertificate
from tests.interop import fetch
from tests.interop.brokers import HERE, Server

CLIENT = "sb-shop-0000!b1|xbem-service-broker-!b2"
"""A client with a secret, as XSUAA names them. The others have ids that say what they are."""
SHORT = "short-lived"
"""One with the same secret whose tokens live `SHORT_LIFETIME` seconds."""
SHORT_LIFETIME = 2
STRANGER = "not-for-messages"
"""One with the same secret that may have tokens, and may not use them for messages."""
CERTIFIED = "certified"
"""One that proves itself with a certificate of the authority."""
SELF_SIGNED = "self-signed"
"""One that proves itself with a certificate that nobody else has signed."""
SIGNING = "signing"
"""One that signs assertions."""
MESH, OTHER = "urn:example:mesh", "urn:example:other"
"""Resources: tokens for the first are good for messages."""

_CERTIFIED_HOST = "shop.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """The running provider, what its clients prove themselves with, and what it has seen."""

    server: Server
    origin: str
    """`https://`, host and port."""
    authority: trustme.CA
    """Whose certificate it has."""
    authority_file: Path
    secret: str
    """Every awkward character that RFC 6749 allows in a secret is in it."""
    certificate: ClientCertificate
    """That of `CERTIFIED`, a chain."""
    self_signed: ClientCertificate
    key: str
    """That of `SIGNING`, PEM."""
    since: int = 0
    """Where in the log `asked` and `checked` begin."""

    @property
    def token_url(self) -> str:
        """Takes a secret in the body or the header, a certificate, or an assertion."""
        return f"{self.origin}/oauth/token"

    @property
    def basic_url(self) -> str:
        """Takes a secret in the header alone."""
        return f"{self.origin}/basic/oauth/token"

    @property
    def moved_url(self) -> str:
        """Redirects to `token_url`."""
        return f"{self.origin}/moved/oauth/token"

    @property
    def revocation_url(self) -> str:
        """Takes tokens back (RFC 7009)."""
        return f"{self.origin}/oauth/revoke"

    @property
    def check_url(self) -> str:
        """Answers 204, 401 or 403 to an `Authorization` header."""
        return f"{self.origin}/check"

    @property
    def asked(self) -> list[str]:
        """The token requests: how the client proved itself, and the status that it got."""
        return re.findall(r"^token (\S+ \d+)$", self._log(), re.MULTILINE)

    @property
    def checked(self) -> list[int]:
        """What gateways that had a token checked were told."""
        return [int(status) for status in re.findall(r"^check (\d+)$", self._log(), re.MULTILINE)]

    def from_now(self) -> Self:
        """Returns the same, with nothing seen yet."""
        return replace(self, since=self.server.log.stat().st_size)

    def _log(self) -> str:
        return self.server.log.read_bytes()[self.since :].decode()


def start_issuer(folder: Path) -> Issuer:
    """Starts the provider, in an empty folder for its files."""
    authority, secret = trustme.CA(), f"{secrets.token_urlsafe(16)}!|$=+/%: %41%zz&;?#\"'\\<>~"
    authority_file = folder / "authority.pem"
    authority.cert_pem.write_to_path(authority_file)
    leaf = authority.create_child_ca().issue_cert(_CERTIFIED_HOST, common_name=CERTIFIED)
    alone = trustme.CA()  # an authority is what signs itself
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    clients: list[dict[str, Any]] = [
        {"client_id": CLIENT, "client_secret": secret},
        {"client_id": SHORT, "client_secret": secret, "lifetime": SHORT_LIFETIME},
        {"client_id": STRANGER, "client_secret": secret, "scope": "reports"},
        {
            "client_id": CERTIFIED,
            "token_endpoint_auth_method": "tls_client_auth",
            "tls_client_auth_san_dns": _CERTIFIED_HOST,
        },
        {
            "client_id": SELF_SIGNED,
            "token_endpoint_auth_method": "self_signed_tls_client_auth",
            "jwks": {"keys": [_certificate_key(alone)]},
        },
        {"client_id": SIGNING, "token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [public]}},
    ]
    configuration = folder / "config.json"
    configuration.touch(mode=0o600)
    configuration.write_text(
        json.dumps(
            {
                "key": certificate.private_key_pem.bytes().decode(),
                "certificate": "".join(pem.bytes().decode() for pem in certificate.cert_chain_pems),
                "authority": authority.cert_pem.bytes().decode(),
                "clients": clients,
            }
        )
    )
    server = Server(
        [fetch.tool("node", "Node.js"), str(HERE / "oidc_provider.js"), str(configuration)],
        folder=folder,
        ready=r"listening on (\d+)\n",
        environment={"NODE_PATH": str(fetch.node_modules())},
    )
    return Issuer(
        server=server,
        origin=f"https://localhost:{server.ready[1]}",
        authority=authority,
        authority_file=authority_file,
        secret=secret,
        certificate=ClientCertificate(
            "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems), leaf.private_key_pem.bytes().decode()
        ),
        self_signed=ClientCertificate(alone.cert_pem.bytes().decode(), alone.private_key_pem.bytes().decode()),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def _certificate_key(authority: trustme.CA) -> dict[str, Any]:
    """The JWK of a certificate's key, with the certificate in it (RFC 7517 section 4.7)."""
    certificate = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    encoded = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    return {**jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True), "x5c": [encoded]}
