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
        InvalidArgumentError: it cannot be read, is no TOML, or has a key that is none of `settings`. The message has the file, the line, the reason.
    """
    found = read_toml(path, "config")
    for key in found:
        if key not in settings:
            meant = nearest(key, settings)
            hint = f"{meant} is" if meant else f"these are: {', '.join(settings)}"
            raise InvalidArgumentError(f"{path}{line_of(path, key)}: {key[:80]} is not a setting: {hint}")
    return found
