"""What TLS showed: the certificates of a chain, and which of them is at fault when it is not trusted."""

from __future__ import annotations

import datetime
import ssl as tls
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Certificate", "at_fault", "chain_of"]

_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}

# X509_V_ERR_ of OpenSSL's x509_vfy.h
NOT_YET_VALID, EXPIRED = 9, 10
SELF_SIGNED_LEAF, SELF_SIGNED_IN_CHAIN = 18, 19
NO_ISSUER, NO_SIGNATURE_OF_LEAF = 20, 21
HOST_MISMATCH, IP_MISMATCH = 62, 64


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as far as people look at it.

    Attributes:
        subject: Whom it is for, such as ``"CN=broker.example"``.
        issuer: Who signed it.
        names: Hosts that it is good for.
        not_before: From when on it is valid.
        not_after: Up to when.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime

    @property
    def days_left(self) -> int:
        """Whole days for which it is still valid; negative if it has expired."""
        return (self.not_after - datetime.datetime.now(datetime.UTC)).days

    def as_json(self) -> dict[str, Any]:
        """The certificate for programs."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "names": list(self.names),
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
        }


def chain_of(connection: tls.SSLObject, *, verified: bool) -> tuple[Certificate, ...]:
    """The chain of a TLS connection, that of the server first.

    Args:
        connection: The connection.
        verified: Whether it was verified; the chain then ends with the CA that is trusted. Else it is what came.
    """
    inner: Any = getattr(connection, "_sslobj", None)
    try:
        # Python has both in public from 3.13 on, and as bytes that it cannot read.
        found = inner.get_verified_chain() if verified else inner.get_unverified_chain()
        return tuple(_certificate(each.get_info()) for each in found)
    except (AttributeError, tls.SSLError):
        info = connection.getpeercert()
        return (_certificate(info),) if info else ()


def at_fault(chain: Sequence[Certificate], code: int) -> Certificate | None:
    """Which certificate makes OpenSSL refuse a chain.

    Args:
        chain: What the server sent, its own first.
        code: OpenSSL's reason.
    """
    now = datetime.datetime.now(datetime.UTC)
    if not chain:
        return None
    if code == EXPIRED:
        return next((each for each in chain if each.not_after < now), None)
    if code == NOT_YET_VALID:
        return next((each for each in chain if each.not_before > now), None)
    # A CA that is not known is missed where the chain ends.
    return chain[-1] if code in (SELF_SIGNED_IN_CHAIN, NO_ISSUER) else chain[0]


def _certificate(info: Any) -> Certificate:
    return Certificate(
        _name(info.get("subject", ())),
        _name(info.get("issuer", ())),
        tuple(str(value) for kind, value in info.get("subjectAltName", ()) if kind in ("DNS", "IP Address")),
        _time(info["notBefore"]),
        _time(info["notAfter"]),
    )


def _name(name: Any) -> str:
    parts = [(key, value) for relative in name for key, value in relative]
    common = [value for key, value in parts if key == "commonName"]
    if common:
        return f"CN={common[-1]}"
    return ", ".join(f"{_SHORT.get(key, key)}={value}" for key, value in parts) or "(no name)"


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(tls.cert_time_to_seconds(text), datetime.UTC)
