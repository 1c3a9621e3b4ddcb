"""The frame trace, with credentials and payloads masked."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import proton

__all__ = ["tracer"]

logger = logging.getLogger(__name__)

_SECRET_FIELDS = re.compile(r'((?:initial-response|response|challenge)=)b?"(?:[^"\\]|\\.)*"')
_PAYLOAD = re.compile(r"\] \((\d+)\) .*$", re.DOTALL)


def tracer(trace: Callable[[str], None] | None) -> Callable[[proton.Transport, str], None]:
    """Make a tracer for proton: it hands masked lines to `trace`, or to the log at DEBUG."""

    def line(_: proton.Transport, text: str) -> None:
        text = _PAYLOAD.sub(r"] (\1 bytes)", _SECRET_FIELDS.sub(r'\1"***"', text))
        if trace is not None:
            trace(text)
        else:
            logger.debug("! %s", text)

    return line
