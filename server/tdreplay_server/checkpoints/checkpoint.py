"""Checkpoints: all rows of a table at one moment, in a directory that is whole or not there.

``manifest.json`` says what the checkpoint holds and lists its files, each with its size and SHA-256; ``manifest.json.sha256`` is that of the
manifest, as ``sha256sum`` writes it. ``field_NNN.rows`` has the values of one field, row after row by ascending id; ``acknowledged.json`` what is
known of the blocks that writers numbered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tdreplay.api import Checkpoint, Progress
from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.limits import check_whole
from tdreplay.schema import Schema
from tdreplay_server.checkpoints.snapshot import Snapshot
from tdreplay_server.durability.ledger import Acknowledged
from tdreplay_server.storage.ring import check_window
from tdreplay_server.system.disk import check_name, new_directory, put_in_place
from tdreplay_server.system.disk_errors import disk_errors, unreadable
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.private_files import check_directory, open_file, read_file, write_file

__all__ = ["FORMAT", "MANIFEST", "Manifest", "listed_bytes", "read_acknowledged", "read_manifest", "verify_checkpoint", "write_checkpoint"]

FORMAT = 1
"""Of a checkpoint. A newer one is refused."""
MANIFEST = "manifest.json"
ACKNOWLEDGED = "acknowledged.json"
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class File:
    """A file of a checkpoint."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds: the rows of the ids ``[write_count - rows, write_count)``.

    Attributes:
        created: when, in UTC (ISO 8601).
        table: its name; '' where it has none, or an older version wrote the checkpoint.
        buffer_size: of the table.
        rows: that are in it.
        write_count: of the table.
        insert_count: the rows that were ever inserted into the table.
        schema: of the rows; None where there never was one.
        files: all of them but the manifest.
    """

    created: str
    table: str
    buffer_size: int
    rows: int
    write_count: int
    insert_count: int
    schema: Schema | None
    files: tuple[File, ...]

    def write(self, directory: Path) -> None:
        """Writes the manifest, and what vouches for it."""
        entries = {
            "format": FORMAT,
            "created": self.created,
            "table": self.table,
            "buffer_size": self.buffer_size,
            "rows": self.rows,
            "write_count": self.write_count,
            "insert_count": self.insert_count,
            "schema": None if self.schema is None else self.schema.to_json(),
            "files": [vars(file) for file in self.files],
        }
        write_file(directory / MANIFEST, f"{json.dumps(entries, indent=1)}\n".encode())
        write_file(directory / f"{MANIFEST}.sha256", _signature(directory).encode())


def write_checkpoint(
    target: Path, table: str, snapshotted: Callable[[Path], AbstractContextManager[Snapshot]], progress: Progress | None
) -> Checkpoint:
    """Makes a checkpoint at `target`; what was there is replaced at once.

    Args:
        target: its directory.
        table: the name of the table; '' where it has none.
        snapshotted: takes a snapshot of the table into a directory.
        progress: told of the bytes.

    Raises:
        ResourceExhaustedError, StorageError: the disk is full, or failed. What was at `target` is still there.
        FailedPreconditionError: `target`, or the directory that it is in, is a link.
        TableChangedError: the table was reset, rewound or dropped meanwhile. The same.
    """
    check_directory(target.parent)
    with disk_errors("the checkpoint"), new_directory(target) as scratch:
        with snapshotted(scratch) as snapshot:
            snapshot.complete(progress)
        write_file(scratch / ACKNOWLEDGED, json.dumps(snapshot.acknowledged).encode())
        failpoint("checkpoint-before-manifest")
        ring, schema = snapshot.ring, snapshot.schema
        files = tuple(File(path.name, path.stat().st_size, _sha256(path)) for path in sorted(scratch.iterdir()))
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        Manifest(created, table, ring.buffer_size, ring.size, ring.write_count, ring.insert_count, schema, files).write(scratch)
        failpoint("checkpoint-before-rename")
        put_in_place(scratch, target)
        failpoint("checkpoint-after-rename")
    return Checkpoint(str(target), ring.size, ring.write_count, ring.size * (schema.row_bytes if schema else 0))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, checked.

    Raises:
        CorruptDataError: it is missing, or not what was written.
        FailedPreconditionError: a newer version wrote it, or a file of it is a link.
    """
    path = directory / MANIFEST
    try:
        if read_file(directory / f"{MANIFEST}.sha256").decode() != _signature(directory):
            raise CorruptDataError(f"{path} does not have the SHA-256 that {MANIFEST}.sha256 says")
        entries: Any = json.loads(read_file(path))
        if entries["format"] > FORMAT:
            raise FailedPreconditionError(f"{path} has format {entries['format']}, and this version knows {FORMAT}: use the version that wrote it")
        return _manifest(entries)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError) as error:
        raise CorruptDataError(f"{directory} is not a checkpoint, or its manifest is broken: {type(error).__name__} {error}") from None
    except OSError as error:
        raise unreadable(error, str(directory)) from None


def _manifest(entries: Any) -> Manifest:
    schema = None if entries["schema"] is None else Schema.from_json(entries["schema"])
    files = tuple(File(Path(file["name"]).name, file["size"], file["sha256"]) for file in entries["files"])
    buffer_size, rows, write_count = (check_whole(entries[name], name, 0) for name in ("buffer_size", "rows", "write_count"))
    check_window(buffer_size, rows, write_count)
    insert_count = check_whole(entries.get("insert_count", write_count), "insert_count", 0)  # Older versions did not know it.
    return Manifest(str(entries["created"]), _table(entries), buffer_size, rows, write_count, insert_count, schema, files)


def _table(entries: Any) -> str:
    """The name of the table, which becomes a path. InvalidArgumentError, a ValueError: it may not."""
    name = str(entries.get("table", ""))
    return name and check_name(name, "table")


def _signature(directory: Path) -> str:
    return f"{_sha256(directory / MANIFEST)}  {MANIFEST}\n"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def listed_bytes(directory: Path, listed: File, unit: int = 1) -> Iterator[bytes]:
    """The bytes of a file of a checkpoint, in chunks of a multiple of `unit`. They are what was written only if it ends without an error.

    Raises:
        CorruptDataError: they are not.
    """
    path, digest = directory / listed.name, hashlib.sha256()
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != listed.size:
                raise CorruptDataError(f"{path} has {size} bytes, and the manifest lists {listed.size}")
            while chunk := file.read(max(1, CHUNK_BYTES // unit) * unit):
                digest.update(chunk)
                yield chunk
    except OSError as error:
        raise unreadable(error, str(path)) from None
    if digest.hexdigest() != listed.sha256:
        raise CorruptDataError(f"{path} does not have the SHA-256 that the manifest lists: bytes of it changed")


def verify_checkpoint(directory: Path) -> Manifest:
    """Reads all of a checkpoint, and gives its manifest.

    Raises:
        CorruptDataError: it is not what was written.
    """
    manifest = read_manifest(directory)
    for listed in manifest.files:
        for _ in listed_bytes(directory, listed):
            continue
    return manifest


def read_acknowledged(directory: Path, manifest: Manifest) -> list[Acknowledged]:
    """What a checkpoint knows of numbered blocks.

    Raises:
        CorruptDataError: it is not what was written.
    """
    (listed,) = (file for file in manifest.files if file.name == ACKNOWLEDGED)
    return [tuple(entry) for entry in json.loads(b"".join(listed_bytes(directory, listed)))]
