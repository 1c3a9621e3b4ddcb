"""What websockets logs, without what must not be seen: it would write out headers, and payloads in part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Final

from websockets.frames import Frame, Opcode

__all__ = ["SECRET_HEADERS", "MaskingLogger"]

SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
"""Headers whose values are secrets, in lower case."""


class MaskingLogger(logging.LoggerAdapter[logging.Logger]):
    """What websockets logs with: headers, queries and payloads (SASL is in them) never reach a record.

    Args:
        logger: Where to.
        names: The headers whose values are left out, in lower case.
        mask: Replaces secrets in what is left.
    """

    def __init__(
        self, logger: logging.Logger, names: Collection[str] = SECRET_HEADERS, mask: Callable[[str], str] = str
    ) -> None:
        super().__init__(logger, {})
        self._names = names
        self._mask = mask

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log with secrets masked and payloads left out."""
        shown: tuple[object, ...] = tuple(map(_shown, args))
        match (str(msg), args):
            case ("> GET %s HTTP/1.1" | "< GET %s HTTP/1.1", (str(path),)):
                shown = (path.partition("?")[0],)
            case ("> %s: %s" | "< %s: %s", (str(name), str())) if name.lower() in self._names:
                shown = (name, "***")
            case ("> %s: %s" | "< %s: %s", (str(name), str(value))) if name.lower() == "location":
                shown = (name, value.partition("?")[0].rpartition("@")[2])
        text = str(msg) % shown if shown else str(msg)
        # websockets adds the connection itself as `extra`, request headers and all: a handler could print those.
        self.logger.log(level, "%s", self._mask(text), exc_info=kwargs.get("exc_info"))


def _shown(value: object) -> object:
    if isinstance(value, Frame) and value.opcode is not Opcode.CLOSE:
        return f"{value.opcode.name} [{len(value.data)} bytes{'' if value.fin else ', continued'}]"
    return value
