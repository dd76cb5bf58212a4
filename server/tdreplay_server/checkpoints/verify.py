"""Says what a data directory or a checkpoint holds, after checking that it is what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tdreplay.errors import FailedPreconditionError
from tdreplay.progress import Progress
from tdreplay.schema import Schema
from tdreplay_server.checkpoints.checkpoint import verify_checkpoint
from tdreplay_server.checkpoints.manifest import MANIFEST
from tdreplay_server.durability.data_directory import CHECKPOINTS, TABLES
from tdreplay_server.durability.journal_format import JOURNAL
from tdreplay_server.durability.shard_mark import NO_SHARD, read_mark
from tdreplay_server.durability.table_directory import read_table
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.directory_lock import LOCK, DirectoryLock
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.private_files import check_directory, check_no_link

__all__ = ["verified"]


def verified(directory: Path, progress: Progress | None = None) -> Iterator[str]:
    """Lines that say what is in a data directory, the directory of a table, or a checkpoint. Nothing in it changes, and nothing is written to it.

    `progress` is told of the bytes of each checkpoint.

    Raises:
        CorruptDataError: something in it is not what was written.
        DirectoryInUseError: a server is at work on it.
        FailedPreconditionError: it is none of these, it has links, or this user may not read it.
    """
    with disk_errors(str(directory)):
        yield from _verified(directory, progress)


def _verified(directory: Path, progress: Progress | None) -> Iterator[str]:
    if (directory / f"{MANIFEST}.sha256").exists() or (directory / MANIFEST).exists():
        yield _checkpoint(directory, progress)
    elif (directory / JOURNAL).exists():
        yield from _table(directory)
    elif (directory / TABLES).is_dir():
        yield from _data_directory(directory, progress)
    else:
        raise FailedPreconditionError(f"{directory} is neither a data directory, nor a table, nor a checkpoint")


def _data_directory(directory: Path, progress: Progress | None) -> Iterator[str]:
    check_directory(directory / TABLES)
    with ExitStack() as held:
        yield from _held(directory, held)
        tables = [path for path in sorted((directory / TABLES).iterdir()) if not path.name.startswith(".")]
        mark = read_mark(directory)
        yield f"data directory {directory}, {'' if mark == NO_SHARD else f'{mark}, '}tables: {len(tables)}"
        for path in tables:
            yield from _table(path)
        for path in sorted((directory / CHECKPOINTS).glob("[!.]*/[!.]*")):
            for part in (directory / CHECKPOINTS, path.parent, path):
                check_no_link(part)
            yield _checkpoint(path, progress)


def _table(path: Path) -> Iterator[str]:
    with ExitStack() as held:
        yield from _held(path, held)
        found = read_table(path)
    ended = "its server died" if found.settings.open else "closed"
    yield f"table {path.name}: {_rows(found.ring, found.settings.schema)}, writers: {found.writers}, {ended}"


def _held(directory: Path, held: ExitStack) -> Iterator[str]:
    """Sees to it that no server is at work on a directory, as long as `held` is open; says where that cannot be told.

    A directory that was copied without its lock has none, and gets none.
    """
    try:
        held.enter_context(DirectoryLock(directory, reading=True))
    except FileNotFoundError:
        return
    except PermissionError:
        yield f"{directory / LOCK} cannot be read by user {os.geteuid()}: a server may be at work, and change what is read here"


def _checkpoint(path: Path, progress: Progress | None) -> str:
    manifest = verify_checkpoint(path, progress)
    ring = Ring(manifest.config.buffer_size, manifest.write_count - manifest.rows, manifest.write_count)
    return f"checkpoint {path.parent.name}/{path.name}: {_rows(ring, manifest.row_schema)}, of {manifest.created}, every byte checked"


def _rows(ring: Ring, schema: Schema | None) -> str:
    fields = "no fields yet" if schema is None else ", ".join(f"{field.name} {field}" for field in schema.fields)
    return f"{ring.size} rows, ids [{ring.oldest}, {ring.write_count}), buffer_size {ring.buffer_size}; {fields}"
