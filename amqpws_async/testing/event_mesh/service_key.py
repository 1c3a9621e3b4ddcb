"""Synthetic service keys, in the shapes that SAP's services make."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Credentials", "service_key", "write_private"]


def _client_id() -> str:
    # At most 64 characters, as it is a certificate's common name too (RFC 5280, ub-common-name).
    return f"sb-default-{secrets.token_hex(4)}-clone!b1|xbem-service-broker-!b2"


def _secret() -> str:
    return f"{secrets.token_urlsafe(16)}$+/=%41 %y:!|ü"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who a key is for.

    Attributes:
        client_id: The client, with the awkward characters that real ones have.
        client_secret: Its secret, with more of them, or None if it has a certificate.
        instance_id: The service instance.
    """

    client_id: str = field(default_factory=_client_id)
    client_secret: str | None = field(default_factory=_secret)
    instance_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def service_key(
    credentials: Credentials,
    *,
    namespace: str,
    url: str,
    token_url: str,
    management_url: str,
    certificate: tuple[str, str] | None,
    integration_suite: bool,
) -> dict[str, Any]:
    """Make a service key.

    Args:
        credentials: Who it is for.
        namespace: The namespace.
        url: Where AMQP is.
        token_url: The token endpoint.
        management_url: Where the management API is; a standalone key says it without a path.
        certificate: The client's certificate and private key, PEM, for an X.509 key.
        integration_suite: Whether to make it as Integration Suite does.
    """
    oa2 = {
        "clientid": credentials.client_id,
        "tokenendpoint": token_url,
        "granttype": "client_credentials",
    }
    uaa = {"clientid": credentials.client_id, "url": token_url.removesuffix("/oauth/token")}
    if certificate is None:
        oa2["clientsecret"] = uaa["clientsecret"] = credentials.client_secret or ""
    else:
        uaa["certificate"], uaa["key"] = certificate
        uaa["certurl"] = uaa["url"]
    key: dict[str, Any] = {
        "xsappname": credentials.client_id.removeprefix("sb-"),
        "serviceinstanceid": credentials.instance_id,
        "namespace": namespace,
        "messaging": [{"oa2": dict(oa2), "protocol": ["amqp10ws"], "broker": {"type": "sapmgw"}, "uri": url}],
        "management": [{"oa2": dict(oa2), "uri": management_url}],
    }
    if certificate is not None or integration_suite:
        key["uaa"] = uaa
        key["credential-type"] = "binding-secret" if certificate is None else "x509"
    return key


def write_private(path: Path, content: object) -> None:
    """Write JSON to a file that its owner alone may read, in place of one that is there."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
