"""Who we are, at the two layers that ask: tokens for the HTTP upgrade, SASL for AMQP itself."""

from __future__ import annotations

from .sasl import Anonymous, External, Plain, SaslMechanism
from .tokens import StaticToken, Token, TokenProvider, as_provider

__all__ = [
    "Anonymous",
    "External",
    "Plain",
    "SaslMechanism",
    "StaticToken",
    "Token",
    "TokenProvider",
    "as_provider",
]
