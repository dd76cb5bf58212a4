"""Text that came from the network, made fit for a line of a log, and for a terminal."""

from __future__ import annotations

__all__ = ["MAX_DETAILS", "printable"]

MAX_DETAILS = 1000
"""The most characters of an error that travel, and that are shown of one that came."""


def printable(text: str) -> str:
    """`text` on one line, with every character that a terminal or a reader of logs may take for more than a character escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
