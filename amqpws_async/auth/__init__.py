"""Who we are, at the two layers that ask: tokens for the HTTP upgrade, SASL for AMQP itself."""

from __future__ import annotations

from .adapters import CallableProvider
from .sasl import Anonymous, External, Plain, SaslMechanism
from .tokens import StaticToken, Token, TokenProvider, as_provider

__all__ = [
    "Anonymous",
    "CallableProvider",
    "External",
    "Plain",
    "SaslMechanism",
    "StaticToken",
    "Token",
    "TokenProvider",
    "as_provider",
]
