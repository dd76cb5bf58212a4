"""The server's log: structured lines through the standard library's ``logging``, under the name ``tdreplay``.

In a program of yours it does what your logging configuration says; ``tdreplay-server`` writes it to standard error.
"""

from __future__ import annotations

import logging
import sys

from tdreplay.texts import printable
from tdreplay_server.system.imports import process_unchanged

with process_unchanged():
    import structlog


__all__ = ["log", "log_to_stderr"]


def _one_line(_logger: object, _method: str, entries: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Names and texts come from the network: none of them begins a line of its own, or speaks to the terminal."""
    return {key: value if isinstance(value, (int, float)) or value is None else printable(str(value)) for key, value in entries.items()}


log = structlog.wrap_logger(
    logging.getLogger("tdreplay"),
    wrapper_class=structlog.stdlib.BoundLogger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        _one_line,
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
    ],
)


def log_to_stderr() -> None:
    """Writes the log to standard error, from the level INFO on."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
