"""The file that `save` writes and `load` reads: where a buffer stood, without its rows. It is one JSON object, at ``path + ".metadata"``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_whole

__all__ = ["Metadata", "metadata_path"]

FORMAT = 1


@dataclass(frozen=True)
class Metadata:
    """Where a buffer stood.

    Attributes:
        buffer_size: capacity in rows.
        data_size: rows stored.
        pointer: slot of the next row.
        write_count: id of the next row.
    """

    buffer_size: int
    data_size: int
    pointer: int
    write_count: int

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes ``path + ".metadata"``, whole or not at all. Makes missing folders."""
        target = metadata_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        scratch.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        scratch.replace(target)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Metadata:
        """Reads ``path + ".metadata"``.

        Raises:
            FileNotFoundError: there is none.
            InvalidArgumentError: `write` did not write it; the message says the rule that it breaks.
        """
        source = metadata_path(path)
        try:
            entries: Any = json.loads(source.read_text())
        except (ValueError, RecursionError) as error:  # RecursionError: for example of a hundred thousand brackets.
            raise InvalidArgumentError(f"{source} is not JSON: {error}") from None
        form = entries.get("format") if isinstance(entries, dict) else None
        if type(form) is not int or form != FORMAT:  # True and 1.0 are equal to 1.
            raise InvalidArgumentError(f"{source} must be a JSON object with format {FORMAT}")
        return cls.checked(entries, source)

    @classmethod
    def checked(cls, entries: dict[str, Any], source: object) -> Metadata:
        """Where a buffer stood, by the entries of a file; errors name it as `source`.

        Raises:
            InvalidArgumentError: an entry breaks its rule.
        """

        def whole(name: str, least: int) -> int:
            return check_whole(entries.get(name), f"{source}: {name}", least)  # type: ignore[arg-type]

        found = cls(whole("buffer_size", 1), whole("data_size", 0), whole("pointer", 0), whole("write_count", 0))
        if found.data_size > min(found.buffer_size, found.write_count) or found.pointer != found.write_count % found.buffer_size:
            raise InvalidArgumentError(f"{source} contradicts itself: {found}")
        return found


def metadata_path(path: str | os.PathLike[str]) -> Path:
    """``path + ".metadata"``."""
    return Path(f"{os.fspath(path)}.metadata")
