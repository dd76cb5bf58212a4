"""The text of an error, made fit for the status of a call."""

from __future__ import annotations

from itertools import accumulate

from tdreplay.texts import MAX_DETAILS, printable

__all__ = ["details_of"]

MAX_DETAILS_BYTES = 3000
"""As gRPC sends them, in a header: each byte beyond ASCII takes three there, and headers above 8 KiB are dropped, the status with them."""


def details_of(error: Exception) -> str:
    """What a status says of an error: its text, printable, and as much of it as a header has room for."""
    text = printable(str(error)[:MAX_DETAILS])[:MAX_DETAILS]
    if text.isascii() and "%" not in text:
        return text
    sizes = accumulate(1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode()) for character in text)
    return text[: sum(size <= MAX_DETAILS_BYTES for size in sizes)]
