"""The settings of a TOML file."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tdreplay.environment import nearest
from tdreplay.errors import InvalidArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["line_of", "read_settings"]

KEY = re.compile(r"""(?:[\w-]+|"[^"]*"|'[^']*')""")


def read_settings(path: Path, settings: Collection[str]) -> dict[str, Any]:
    """The settings that a file has. Their values are as they stand there.

    Raises:
        InvalidArgumentError: it cannot be read, is no TOML, or has a key that is none of `settings`. The message has the file, the line, the reason.
    """
    found = _parsed(path)
    for key in found:
        if key not in settings:
            meant = nearest(key, settings)
            hint = f"{meant} is" if meant else f"these are: {', '.join(settings)}"
            raise InvalidArgumentError(f"{path}{line_of(path, key)}: {key[:80]} is not a setting: {hint}")
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error.strerror}") from None
    if content is None:
        raise InvalidArgumentError(f"config ({path}) is not a file")
    try:
        found: dict[str, Any] = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}, line {content[: error.start].count(10) + 1}: is not UTF-8") from None
    except RecursionError:
        raise InvalidArgumentError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one; so is what Python says of a number of thousands of digits.
        reason, line = _taken_apart(str(error), content.decode())
        raise InvalidArgumentError(f"{path}{line}: {reason}") from None
    return found


def _taken_apart(error: str, text: str) -> tuple[str, str]:
    """What a parser says, without the place; and the place's line."""
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", error)
    if at is None:
        return error, ""
    line = at[1] or str(len(text.rstrip().splitlines()) or 1)
    return error.replace(at[0], ""), f", line {line}"


def line_of(path: Path, *keys: str) -> str:
    """``, line N`` where the file has the most of these keys, each below the one before; nothing where it has none of them."""
    line, known = 0, 0
    section: tuple[str, ...] = ()
    for number, text in enumerate(path.read_text().splitlines(), 1):
        found = re.match(rf"\s*(\[*)\s*({KEY.pattern}(?:\s*\.\s*{KEY.pattern})*)\s*[=\]]", text)
        if found is None:
            continue
        names = tuple(key.strip("\"'") for key in KEY.findall(found[2]))
        section, here = (names, names) if found[1] else (section, (*section, *names))
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, keys, strict=False)))
        if shared > known:
            line, known = number, shared
    return f", line {line}" if line else ""
