"""The names of fields, as users give them."""

from __future__ import annotations

from typing import Any

__all__ = ["field_name"]


def field_name(key: Any) -> str:
    """The name of a field as a request has it: nested keys, which are a tuple, are joined with '.'.

    Raises:
        TypeError: it is no key.
    """
    if isinstance(key, str):
        return key
    if not isinstance(key, tuple) or not key:
        raise TypeError(f"{key!r:.80} is not the name of a field")
    return ".".join(map(field_name, key))
