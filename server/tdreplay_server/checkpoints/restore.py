"""Tables made of checkpoints, and tables with another capacity. No server may use the data directory meanwhile."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.fields import Field
from tdreplay.limits import DEFAULT_TABLE, check_whole
from tdreplay.progress import Progress
from tdreplay.table_config import check_limiter
from tdreplay_server.checkpoints.checkpoint import BytesRead, listed_bytes, read_acknowledged, read_state, write_checkpoint
from tdreplay_server.checkpoints.manifest import Manifest, read_manifest
from tdreplay_server.checkpoints.snapshot import rows_file
from tdreplay_server.durability.data_directory import CHECKPOINTS, table_directory
from tdreplay_server.durability.journal import create_journal
from tdreplay_server.durability.journal_format import Settings
from tdreplay_server.durability.row_listeners import Unheard
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.durability.slot_state import SlotState
from tdreplay_server.durability.table_directory import read_table, rows_directory
from tdreplay_server.storage.memmap import MemmapRows
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.directory_lock import LOCK, DirectoryLock
from tdreplay_server.system.disk import check_name, is_name, new_directory, put_in_place
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.private_files import check_directory, make_directories, write_file

__all__ = ["resize", "restore", "table_of"]


def table_of(checkpoint: Path) -> str:
    """The name of the table that a checkpoint was made of.

    A checkpoint of an older version does not say it. Its table has the name of the folder that the server put it in, ``checkpoints/TABLE/NAME``. A
    checkpoint in another place, as a buffer in process makes them, is of the table 'default'.

    Raises:
        CorruptDataError, FailedPreconditionError: as `restore`.
    """
    parent = checkpoint.resolve().parent
    folder = parent.name if parent.parent.name == CHECKPOINTS and is_name(parent.name) else ""
    return read_manifest(checkpoint).config.name or folder or DEFAULT_TABLE


def restore(
    checkpoint: Path,
    data_dir: Path,
    table: str,
    *,
    replace: bool = False,
    buffer_size: int | None = None,
    progress: Progress | None = None,
) -> Ring:
    """Makes a table of a checkpoint: all of it, or nothing changes. The checkpoint is checked as it is read.

    Args:
        checkpoint: The directory of the checkpoint.
        data_dir: The data directory for the table. No server may use it. It is made if it is missing.
        table: The name of the table.
        replace: Whether a table of that name may be there. It is replaced.
        buffer_size: The capacity of the table; None: that of the checkpoint. If there are more rows, the last ones stay.
        progress: Told of the bytes of the rows.

    Returns:
        Its live rows.

    Raises:
        InvalidArgumentError: the table's rate limiter cannot work with this capacity.
        CorruptDataError: the checkpoint is not what was written.
        FailedPreconditionError: the table is there, and is not to be replaced; or a newer version wrote the checkpoint.
        DirectoryInUseError: a server is at work on the directory.
        ResourceExhaustedError: there is no space for the rows.
    """
    target = table_directory(data_dir, check_name(table, "table"))
    manifest = read_manifest(checkpoint)
    capacity = buffer_size or manifest.config.buffer_size
    check_limiter(manifest.config.resized(capacity))
    with disk_errors(str(data_dir)):
        make_directories(data_dir)
        with DirectoryLock(data_dir):
            check_directory(target.parent)
            if target.exists() and not replace:
                raise FailedPreconditionError(f"table {table!r} is there already in {data_dir}: choose another name (--table), or say --replace")
            return _restored(checkpoint, manifest, target, capacity, progress)


def _restored(checkpoint: Path, manifest: Manifest, target: Path, buffer_size: int, progress: Progress | None) -> Ring:
    with new_directory(target) as scratch, DirectoryLock(target) if target.exists() else nullcontext():
        ring = _filled(scratch, checkpoint, manifest, buffer_size, progress)
        put_in_place(scratch, target)
    return ring


def _filled(directory: Path, checkpoint: Path, manifest: Manifest, buffer_size: int, progress: Progress | None) -> Ring:
    written = manifest.write_count
    ring = Ring(buffer_size, written - min(manifest.rows, buffer_size), written, manifest.insert_count - written)
    storage = MemmapRows(buffer_size, rows_directory(directory, 1))
    try:
        if manifest.row_schema is not None:
            storage.allocate(manifest.row_schema)
            of_fields = {rows_file(number) for number in range(len(manifest.row_schema.stored_fields))}
            count = BytesRead((file for file in manifest.files if file.name in of_fields), progress)
            for number, field in enumerate(manifest.row_schema.stored_fields):
                _fill(storage, ring, checkpoint, manifest, number, field, count)
    finally:
        storage.release()
    if manifest.row_schema is not None:
        state = SlotState(manifest.kept, buffer_size, rows_directory(directory, 1))
        state.fill(read_state(checkpoint, manifest), ring)
        state.sync()
    write_file(directory / LOCK, b"")
    config = replace(manifest.config.resized(buffer_size), storing_device="cpu")
    create_journal(directory, Settings(config, schema=manifest.row_schema, kept=manifest.kept), ring, read_acknowledged(checkpoint, manifest))
    return ring


def _fill(storage: MemmapRows, ring: Ring, checkpoint: Path, manifest: Manifest, number: int, field: Field, count: BytesRead) -> None:
    """Copies the values of one field to the slots of their rows."""
    listed = next((file for file in manifest.files if file.name == rows_file(number)), None)
    if listed is None or listed.size != manifest.rows * field.row_bytes:
        raise CorruptDataError(
            f"{checkpoint} has no file {rows_file(number)} of {manifest.rows} rows of {field.row_bytes} bytes, of field {field.name!r}"
        )
    row_id = manifest.write_count - manifest.rows
    for chunk in listed_bytes(checkpoint, listed, max(1, field.row_bytes), count):
        rows = np.frombuffer(chunk, np.dtype((np.void, field.row_bytes)))
        ids = np.arange(row_id, row_id + len(rows))
        kept = ids >= ring.oldest
        storage.scatter(field.name, ids[kept] % ring.buffer_size, rows[kept])
        row_id += len(rows)


def resize(data_dir: Path, table: str, buffer_size: int, *, progress: Progress | None = None) -> Ring:
    """Gives a table another capacity: all of it, or nothing changes. If there are more rows, the last ones stay.

    It needs space for two more copies of the rows. `progress` is told of the bytes of the rows, twice: each of them is copied twice.

    Returns:
        Its live rows.

    Raises:
        InvalidArgumentError: the table's rate limiter cannot work with this capacity.
        FailedPreconditionError: there is no such table.
        CorruptDataError, DirectoryInUseError, ResourceExhaustedError: as `restore`.
    """
    check_whole(buffer_size, "buffer_size", 1)
    directory = table_directory(data_dir, check_name(table, "table"))
    if not directory.is_dir():
        raise FailedPreconditionError(f"there is no table {table!r} in {data_dir}")
    with disk_errors(str(data_dir)), DirectoryLock(data_dir), new_directory(data_dir / CHECKPOINTS / table) as scratch:
        config = read_table(directory, torn_end=True).settings.config
        check_limiter(config.resized(buffer_size))
        with closing(RowLog(config, Unheard(), directory=directory)) as opened:
            try:
                checkpoint = Path(write_checkpoint(scratch / "resize", opened, progress).path)
            except BaseException:  # Ctrl-C: `close` would wait for the locks.
                opened.let_go()
                raise
        return _restored(checkpoint, read_manifest(checkpoint), directory, buffer_size, progress)
