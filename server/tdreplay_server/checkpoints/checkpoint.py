"""Checkpoints: all rows of a table at one moment, in a directory that is whole or not there.

`manifest` says what the checkpoint holds and lists its files, each with its size and SHA-256. ``field_NNN.rows`` has the values of one field, row
after row by ascending id. ``state_NAME.rows`` has what the sampler knows of each row, in the same order. ``acknowledged.json`` has what is known of
the inserts that writers numbered.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tdreplay.api import Checkpoint
from tdreplay.errors import CorruptDataError
from tdreplay.progress import Progress
from tdreplay_server.checkpoints.manifest import MANIFEST, STRICT, File, Manifest, StateColumn, broken, read_manifest, sha256_of
from tdreplay_server.checkpoints.snapshot import Snapshot, snapshotted, state_rows_file
from tdreplay_server.durability.ledger import AcknowledgedInsert
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.durability.slot_state import StateCopy
from tdreplay_server.system.disk import new_directory, put_in_place
from tdreplay_server.system.disk_errors import disk_errors, unreadable
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.private_files import check_directory, open_file, write_file

__all__ = ["BytesRead", "listed_bytes", "read_acknowledged", "read_state", "verify_checkpoint", "write_checkpoint"]

ACKNOWLEDGED = "acknowledged.json"
CHUNK_BYTES = 4 << 20
_ACKNOWLEDGED = TypeAdapter(list[AcknowledgedInsert], config=STRICT)


def write_checkpoint(target: Path, row_log: RowLog, progress: Progress | None = None) -> Checkpoint:
    """Makes a checkpoint at `target`; what was there is replaced at once.

    Args:
        target: its directory.
        row_log: the rows of the table.
        progress: told of the bytes.

    Raises:
        ResourceExhaustedError, StorageError: the disk is full, or failed. What was at `target` is still there.
        FailedPreconditionError: `target`, or the directory that it is in, is a link.
        TableChangedError: the table was reset, rewound or dropped meanwhile. The same.
    """
    check_directory(target.parent)
    with disk_errors("the checkpoint"), new_directory(target) as scratch:
        with snapshotted(row_log, scratch) as snapshot:
            snapshot.complete(progress)
        columns = _write_state(scratch, snapshot)
        write_file(scratch / ACKNOWLEDGED, json.dumps(snapshot.acknowledged).encode())
        failpoint("checkpoint-before-manifest")
        ring, schema = snapshot.ring, snapshot.schema
        files = tuple(File(name=path.name, size=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(scratch.iterdir()))
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        Manifest(
            created=created,
            table=snapshot.config.name,
            **snapshot.config.to_json(),
            rows=ring.size,
            write_count=ring.write_count,
            insert_count=ring.insert_count,
            schema=schema,
            state_columns=columns,
            state_values={} if snapshot.state is None else dict(snapshot.state.values),
            files=files,
        ).write(scratch)
        failpoint("checkpoint-before-rename")
        put_in_place(scratch, target)
        failpoint("checkpoint-after-rename")
    return Checkpoint(str(target), ring.size, ring.write_count, ring.size * (schema.row_bytes if schema else 0))


def _write_state(directory: Path, snapshot: Snapshot) -> tuple[StateColumn, ...]:
    """Writes what is kept of each row, one file a column, row after row by ascending id."""
    columns = {} if snapshot.state is None else snapshot.state.columns
    for name, values in columns.items():
        write_file(directory / state_rows_file(name), values.tobytes())
    return tuple(StateColumn(name=name, dtype=values.dtype.str) for name, values in columns.items())


def read_state(directory: Path, manifest: Manifest) -> StateCopy:
    """What a checkpoint has beside the rows.

    Raises:
        CorruptDataError: it is not what was written.
    """
    columns = {name: np.frombuffer(_whole_file(directory, manifest, state_rows_file(name)), dtype) for name, dtype in manifest.kept.columns}
    for name, values in columns.items():
        if len(values) != manifest.rows:
            raise CorruptDataError(f"{directory / state_rows_file(name)} has {len(values)} values, and {manifest.rows} rows are in the checkpoint")
    return StateCopy(columns, manifest.state_values)


def _whole_file(directory: Path, manifest: Manifest, name: str) -> bytes:
    listed = next((file for file in manifest.files if file.name == name), None)
    if listed is None:
        raise CorruptDataError(f"{directory / MANIFEST} does not list {name}")
    return b"".join(listed_bytes(directory, listed))


class BytesRead:
    """Counts the bytes of files that are read, and tells `progress`, where there is one.

    Args:
        files: The files.
        progress: Told of the bytes.
    """

    def __init__(self, files: Iterable[File], progress: Progress | None) -> None:
        self._total, self._done, self._progress = sum(file.size for file in files), 0, progress

    def __call__(self, count: int) -> None:
        """So many more bytes were read."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def listed_bytes(directory: Path, listed: File, unit: int = 1, count: Callable[[int], object] = bool) -> Iterator[bytes]:
    """The bytes of a file of a checkpoint, in chunks of a multiple of `unit`. They are what was written only if it ends without an error.

    `count` is told of the bytes of each chunk.

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
                count(len(chunk))
                yield chunk
    except OSError as error:
        raise unreadable(error, str(path)) from None
    if digest.hexdigest() != listed.sha256:
        raise CorruptDataError(f"{path} does not have the SHA-256 that the manifest lists: bytes of it changed")


def verify_checkpoint(directory: Path, progress: Progress | None = None) -> Manifest:
    """Reads all of a checkpoint, and gives its manifest. `progress` is told of the bytes.

    Raises:
        CorruptDataError: it is not what was written.
    """
    manifest = read_manifest(directory)
    count = BytesRead(manifest.files, progress)
    for listed in manifest.files:
        for _ in listed_bytes(directory, listed, count=count):
            continue
    return manifest


def read_acknowledged(directory: Path, manifest: Manifest) -> list[AcknowledgedInsert]:
    """What became of the numbered inserts that a checkpoint remembers.

    Raises:
        CorruptDataError: it is not what was written.
    """
    try:
        return _ACKNOWLEDGED.validate_json(_whole_file(directory, manifest, ACKNOWLEDGED))
    except ValidationError as error:
        raise broken(directory / ACKNOWLEDGED, error) from None
