"""The manifest of an export: what the folder holds. It is written last, so a folder that has one is whole."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tdreplay.errors import CorruptDataError, FailedPreconditionError, ReplayError
from tdreplay.limits import MAX_ROW_ID, check_whole
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_client.files.shards import open_regular

__all__ = ["MANIFEST", "Manifest", "Shard", "read_manifest"]

MANIFEST = "manifest.json"
VERSION = 1
MAX_BYTES = 64 << 20
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """A file with rows.

    Attributes:
        file: its name; it lies beside the manifest.
        rows: the number of its rows.
        bytes: its size.
        sha256: the digest of its bytes.
    """

    file: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, entry: Any) -> Shard:
        """The shard that a manifest lists.

        Raises:
            ValueError, TypeError, KeyError, InvalidArgumentError: it is none.
        """
        file, digest = entry["file"], entry["sha256"]
        if not (isinstance(file, str) and SAFE.fullmatch(file) and isinstance(digest, str) and SHA256.fullmatch(digest)):
            raise ValueError(f"{str(file)[:80]!r} with SHA-256 {str(digest)[:80]!r} is no shard: its file must lie beside the manifest")
        return cls(file, check_whole(entry["rows"], "rows", 1, MAX_ROW_ID), check_whole(entry["bytes"], "bytes", 1), digest)


@dataclass(frozen=True)
class Manifest:
    """What an export holds.

    Attributes:
        file_format: the name of the format of its shards.
        table: the name of the table.
        config: what the table was made with.
        schema: the fields of the rows.
        has_priorities: whether the shards have the column ``priority``.
        first_row_id: the id of the oldest row when the export began.
        end_row_id: the id after the newest one.
        overwritten: the rows of these ids that were overwritten, or left, before they were read.
        left_out: the rows that were left out because a step before them was overwritten.
        shards: the files, in the order of their rows.
    """

    file_format: str
    table: str
    config: TableConfig
    schema: Schema
    has_priorities: bool
    first_row_id: int
    end_row_id: int
    overwritten: int
    left_out: int
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (str, int, bool))}
        whole = {"config": self.config.to_json(), "schema": self.schema.to_json(), "shards": [asdict(shard) for shard in self.shards]}
        return {"version": VERSION, "tdreplay": version("tdreplay"), "rows": self.rows, **plain, **whole}

    @classmethod
    def from_json(cls, entries: Any) -> Manifest:
        """What `to_json` gave.

        Raises:
            FailedPreconditionError: a newer version wrote it.
            ValueError, TypeError, KeyError, ReplayError: it is none.
        """
        if check_whole(entries["version"], "version", 1) > VERSION:
            raise FailedPreconditionError(f"a newer version of tdreplay ({str(entries['tdreplay'])[:40]}) wrote it: this one reads version {VERSION}")
        numbers = {name: check_whole(entries[name], name, 0) for name in ("first_row_id", "end_row_id", "overwritten", "left_out")}
        shards = tuple(Shard.of(entry) for entry in entries["shards"])
        if len({shard.file for shard in shards}) < len(shards) or entries["rows"] != sum(shard.rows for shard in shards):
            raise ValueError("a shard comes twice, or the shards have another number of rows than it says")
        return cls(
            file_format=str(entries["file_format"]),
            table=str(entries["table"]),
            config=TableConfig.from_json(entries["config"]),
            schema=Schema.from_json(entries["schema"]),
            has_priorities=bool(entries["has_priorities"]),
            shards=shards,
            **numbers,
        )


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder.

    Raises:
        CorruptDataError: it is not what was written.
        FailedPreconditionError: a newer version wrote it.
        FileNotFoundError: there is none.
    """
    path = Path(directory) / MANIFEST
    with open_regular(path) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise CorruptDataError(f"{path} must be at most {MAX_BYTES} bytes")
    try:
        return Manifest.from_json(json.loads(text))
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{path}: {error}") from None
    except (ReplayError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptDataError(f"{path} is no manifest of an export: {type(error).__name__} {str(error)[:200]}") from None
