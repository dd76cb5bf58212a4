"""The file of profiles: what a client needs to know of each server that it talks to, under a name.

It is imported when a profile is asked for: ``tdreplay health`` has no time for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdreplay.environment import environment_name, nearest
from tdreplay.errors import InvalidArgumentError
from tdreplay.toml_file import line_of, read_toml

__all__ = ["profiles_file", "read_profile"]

USUAL_FILE = "~/.config/tdreplay/profiles.toml"
PREFIX = "profiles"
FILES = ("ca_file", "cert_file", "key_file", "token_file")
KEYS = ("address", "tls", "server_name", "token", *FILES)
SETTINGS = ", ".join(KEYS)


def profiles_file() -> Path:
    """The file with the profiles: as the environment says, or the usual one."""
    return Path(os.environ.get(environment_name("profiles")) or USUAL_FILE).expanduser()


def read_profile(name: str, path: Path) -> dict[str, Any]:
    """What the profile `name` says: texts, but for ``tls``, which is a truth value. Paths begin at the file's folder.

    Raises:
        InvalidArgumentError: the file cannot be read, others can read the token that is in it, it has no such profile, or the profile breaks a rule.
            The message has the file and, where there is one, the line.
    """
    tables = _tables(read_toml(path, "profiles"))
    if name not in tables:
        there = f"it has {', '.join(map(repr, sorted(tables)))}" if tables else "it has none"
        raise InvalidArgumentError(f"{path}: there is no profile {name[:80]!r}: {there}")
    _check_private(path, tables)
    keys, found = tables[name]
    for key, value in found.items():
        _check(key, value, f"{path}{line_of(path, *keys, key)}: profile {name!r}")
    if {"token", "token_file"} <= found.keys():
        where = f"{path}{line_of(path, *keys, 'token_file')}"
        raise InvalidArgumentError(f"{where}: profile {name!r} has a token and a token_file: it may have one of them")
    return {key: str(path.parent / Path(value).expanduser()) if key in FILES else value for key, value in found.items()}


def _tables(content: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """The profiles of a file by name, each with the keys that lead to it: ``[NAME]`` and ``[profiles.NAME]``."""
    inner = content.get(PREFIX)
    below = inner if isinstance(inner, dict) else {}
    found = {name: ((name,), value) for name, value in content.items() if name != PREFIX}
    found |= {name: ((PREFIX, name), value) for name, value in below.items()}
    return {name: (keys, value) for name, (keys, value) in found.items() if isinstance(value, dict)}


def _check_private(path: Path, tables: Mapping[str, tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Refuses a file whose tokens others can read: they may have them already."""
    if any("token" in values for _, values in tables.values()) and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidArgumentError(
            f"{path} has a token in it, and others than its owner may use the file: chmod 600 {path}, or name a token_file in it"
        )


def _check(key: str, value: Any, where: str) -> None:
    if key not in KEYS:
        meant = nearest(key, KEYS)
        raise InvalidArgumentError(f"{where}: {key[:80]} is not a setting: {f'{meant} is' if meant else f'these are: {SETTINGS}'}")
    wanted = bool if key == "tls" else str
    if not isinstance(value, wanted) or value == "":
        raise InvalidArgumentError(f"{where}: {key} must be {'true or false' if key == 'tls' else 'a text that is not empty'}")
