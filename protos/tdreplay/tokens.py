"""Checks of tokens: small dicts of JSON values that say where an iterator stood, and come from wherever a user kept them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tdreplay.errors import InvalidArgumentError, TokenError
from tdreplay.limits import check_whole, shown

__all__ = ["check_keys", "check_same", "text_of", "whole_of"]

MAX_TEXT = 64


def check_keys(token: object, names: Iterable[str]) -> dict[str, Any]:
    """The entries of `token`, which must have these names and no others.

    Raises:
        TokenError: it has not.
    """
    entries = dict(token) if isinstance(token, Mapping) else None
    if entries is None or entries.keys() != set(names):
        raise TokenError(f"the token ({shown(token)}) must be what state_dict() gave: a dict of {', '.join(names)}")
    return entries


def check_same(entries: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Passes where the entries of these names have these values.

    Raises:
        TokenError: names the first that has another.
    """
    for name, value in expected.items():
        if type(entries[name]) is not type(value) or entries[name] != value:  # True is equal to 1.
            raise TokenError(f"the token is of another {name} ({shown(entries[name])}) than this iterator ({shown(value)})")


def text_of(entries: Mapping[str, Any], name: str) -> str:
    """The text of that name: 1 to 64 printable ASCII characters.

    Raises:
        TokenError: it is none.
    """
    text = entries[name]
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_TEXT or not (text.isascii() and text.isprintable()):
        raise TokenError(f"the token's {name} ({shown(text)}) must be 1 to {MAX_TEXT} printable ASCII characters")
    return text


def whole_of(entries: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """The whole number of that name.

    Raises:
        TokenError: it is none, or out of its range.
    """
    try:
        return check_whole(entries[name], f"the token's {name}", least, most)
    except InvalidArgumentError as error:
        raise TokenError(str(error)) from None
