"""One thing that `tdreplay doctor` looks at, and what it finds."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Check", "failed", "ok", "warning"]


class Check(NamedTuple):
    """What was found.

    Attributes:
        name: of what was looked at.
        state: 'ok', 'warning' or 'failed'.
        found: what was found, on one line.
        fix: what to do about it, on one line; '': nothing.
    """

    name: str
    state: str
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, fix: str) -> Check:
    """It may be in the way."""
    return Check(name, "warning", found, fix)


def failed(name: str, found: str, fix: str) -> Check:
    """It is in the way."""
    return Check(name, "failed", found, fix)
