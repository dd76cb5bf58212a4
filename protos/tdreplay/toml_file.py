"""TOML files that people write: read with an error that names the line, and the line of a key."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

from tdreplay.errors import InvalidArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["line_of", "read_toml"]

KEY = re.compile(r"""(?:[\w-]+|"[^"]*"|'[^']*')""")


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """What a file says. `name`: the setting that names it.

    Raises:
        InvalidArgumentError: it cannot be read, or is no TOML. The message has the file, the line, the reason.
    """
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error.strerror}") from None
    if content is None:
        raise InvalidArgumentError(f"{name} ({path}) is not a file")
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
