"""The access token: whether it can be had, and what it says of itself. It is never shown."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, Final

from .steps import Finding, Patient

__all__ = ["token"]

_SHOWN: Final = 20  # scopes or audiences; an XSUAA's token may have hundreds
_SHORT_LIFE: Final = 60.0  # seconds


async def token(patient: Patient) -> Finding:
    """A token, from wherever it comes."""
    if patient.tokens is None:
        return Finding("none: the upgrade goes without Authorization by a token", {"source": None})
    given = await patient.tokens.token()
    patient.token = given.value
    claims = _claims(given.value)
    expiry = given.expiry if given.expiry is not None else _number(claims.get("exp"))
    left = None if expiry is None else expiry - time.time()
    details: dict[str, Any] = {
        "source": patient.token_source,
        "expires_in": None if left is None else round(left),
        "scopes": _texts(claims.get("scope", claims.get("scp"))),
        "audience": _texts(claims.get("aud")),
    }
    parts = [patient.token_source]
    if left is not None:
        parts.append(f"expires in {_span(left)}" if left > 0 else f"EXPIRED {_span(-left)} ago")
    if not claims:
        parts.append("opaque (no JWT), so scopes and audience cannot be seen")
    for name, what in (("scopes", "scope"), ("audience", "audience")):
        if values := details[name]:
            parts.append(f"{what} {' '.join(values[:_SHOWN])}{' ...' if len(values) > _SHOWN else ''}")
    advice = None
    if left is not None and left <= 0:
        advice = "get a new one; if it is new, this machine's clock is wrong"
    elif left is not None and left < _SHORT_LIFE:
        advice = "it is about to expire: get a new one"
    return Finding(", ".join(parts), details, advice)


def _claims(value: str) -> dict[str, Any]:
    """What a JWT (RFC 7519) claims, unverified: that is the broker's business. Empty for any other token."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        content = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _texts(value: Any) -> list[str]:
    """Scopes are one text or several, so is the audience."""
    if isinstance(value, str):
        return value.split()
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
