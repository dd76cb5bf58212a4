"""A folder of shards while it is written: it is whole, or it has no manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from typing_extensions import Self

from tdreplay.errors import FailedPreconditionError
from tdreplay.schema import Columns
from tdreplay.system_fields import ROW_ID
from tdreplay_client.files.formats import FORMATS
from tdreplay_client.files.manifest import MANIFEST, Manifest, Shard
from tdreplay_client.files.shards import FileFormat, ShardLayout

__all__ = ["PART", "NewExport", "sha256_of"]

PART = ".part"
"""The ending of files that are being written."""

OURS = re.compile(rf"({re.escape(MANIFEST)}|rows-\d{{5,9}}\.({'|'.join(FORMATS)}))({re.escape(PART)})?")
CHUNK_BYTES = 4 << 20


class NewExport:
    """For ``with``: a folder of shards. Without `finish` nothing of it stays.

    All files are written under other names. They get their own when all of them are on the disk, and the manifest comes last.

    Args:
        path: the folder.
        file_format: of the shards.
        overwrite: whether an earlier export may be there.

    Raises:
        FailedPreconditionError: it is no folder, is not empty, or holds files that are no export's.
    """

    def __init__(self, path: Path, file_format: FileFormat, *, overwrite: bool) -> None:
        self.path, self._format = path, file_format
        self.shards: tuple[Shard, ...] = ()
        path.mkdir(parents=True, exist_ok=True)
        self._before = sorted(entry.name for entry in path.iterdir())
        others = [name for name in self._before if not OURS.fullmatch(name)]
        if self._before and (others or not overwrite):
            why = f"holds {others[0]!r}, which is no file of an export" if others and overwrite else "is not empty"
            raise FailedPreconditionError(f"{path} {why}: choose another folder{'' if others else ', or say that it may be overwritten'}")
        self._remove_parts()

    def add(self, shard: ShardLayout, parts: Sequence[Columns]) -> None:
        """Writes the next shard."""
        name = f"rows-{len(self.shards):05d}{self._format.suffix}"
        self._write(name, lambda file: self._format.write(file, shard, parts))
        written = self.path / f"{name}{PART}"
        rows = sum(len(part[ROW_ID.name]) for part in parts)
        self.shards = (*self.shards, Shard(name, rows, written.stat().st_size, sha256_of(written)))

    def finish(self, manifest: Callable[[tuple[Shard, ...]], Manifest]) -> None:
        """Makes the folder whole. What was there before is gone then."""
        text = json.dumps(manifest(self.shards).to_json(), indent=1)
        self._write(MANIFEST, lambda file: file.write(text.encode()))
        for name in sorted(self._before, key=lambda name: name != MANIFEST):
            if not name.endswith(PART):
                (self.path / name).unlink(missing_ok=True)
        for name in (*(shard.file for shard in self.shards), MANIFEST):
            (self.path / f"{name}{PART}").rename(self.path / name)
        self._sync()

    def _write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        with (self.path / f"{name}{PART}").open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())

    def _sync(self) -> None:
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._remove_parts()

    def _remove_parts(self) -> None:
        for entry in self.path.glob(f"*{PART}"):
            if OURS.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
