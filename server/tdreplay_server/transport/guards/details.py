"""The text of an error, made fit for the status of a call."""

from __future__ import annotations

from itertools import accumulate

from tdreplay.texts import MAX_DETAILS, printable

__all__ = ["details_of"]

MAX_DETAILS_BYTES = 3000
"""Bytes of a text in the header that carries it. gRPC drops headers above 8 KiB, the status with them."""


def details_of(text: str) -> str:
    """The text of an error, printable, and cut to what a header has room for."""
    text = printable(text[:MAX_DETAILS])[:MAX_DETAILS]
    if text.isascii() and "%" not in text:
        return text
    # In a header, each byte of a character that is not plain ASCII is written as three: %C3.
    sizes = accumulate(1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode()) for character in text)
    return text[: sum(size <= MAX_DETAILS_BYTES for size in sizes)]
