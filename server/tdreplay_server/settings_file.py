"""The settings of a TOML file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tdreplay.environment import nearest
from tdreplay.errors import InvalidArgumentError
from tdreplay.toml_file import line_of, read_toml

__all__ = ["read_settings"]


def read_settings(path: Path, settings: Collection[str]) -> dict[str, Any]:
    """The settings that a file has. Their values are as they stand there.

    Raises:
        InvalidArgumentError: it cannot be read, is no TOML, or has keys that are none of `settings`. The message has file, lines and reasons.
    """
    found = read_toml(path, "config")
    unknown = [_unknown(path, key, settings) for key in found if key not in settings]
    if unknown:
        raise InvalidArgumentError("; ".join(unknown))
    return found


def _unknown(path: Path, key: str, settings: Collection[str]) -> str:
    meant = nearest(key, settings)
    hint = f"{meant} is" if meant else f"these are: {', '.join(settings)}"
    return f"{path}{line_of(path, key)}: {key[:80]} is not a setting: {hint}"
