"""Text from the network, made safe for a line of a log and for a terminal."""

from __future__ import annotations

__all__ = ["MAX_DETAILS", "printable"]

MAX_DETAILS = 1000
"""The most characters of an error's text that a server sends, and that a client shows."""


def printable(text: str) -> str:
    """`text` on one line. Characters that could act on a terminal or split a line are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
