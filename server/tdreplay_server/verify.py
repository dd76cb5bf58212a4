"""Says what a data directory or a checkpoint holds, after checking that it is what was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tdreplay.errors import FailedPreconditionError
from tdreplay.schema import Schema
from tdreplay_server.checkpoint import MANIFEST, verify_checkpoint
from tdreplay_server.disk import LOCK, DirectoryLock
from tdreplay_server.journal import JOURNAL
from tdreplay_server.ring import Ring
from tdreplay_server.table_directory import CHECKPOINTS, read_table
from tdreplay_server.tables import TABLES

__all__ = ["verified"]


def verified(directory: Path) -> Iterator[str]:
    """Lines that say what is in a data directory, the directory of a table, or a checkpoint. Nothing in it changes.

    Raises:
        CorruptDataError: something in it is not what was written.
        DirectoryInUseError: a server is at work on it.
        FailedPreconditionError: it is none of these.
    """
    if (directory / f"{MANIFEST}.sha256").exists() or (directory / MANIFEST).exists():
        yield _checkpoint(directory)
    elif (directory / JOURNAL).exists():
        yield _table(directory)
    elif (directory / TABLES).is_dir():
        yield from _data_directory(directory)
    else:
        raise FailedPreconditionError(f"{directory} is neither a data directory, nor a table, nor a checkpoint")


@contextmanager
def _unused(directory: Path) -> Iterator[None]:
    """Sees to it that no server is at work on a directory. One that was copied without its lock has none, and gets none."""
    with DirectoryLock(directory) if (directory / LOCK).exists() else nullcontext():
        yield


def _data_directory(directory: Path) -> Iterator[str]:
    with _unused(directory):
        tables = [path for path in sorted((directory / TABLES).iterdir()) if not path.name.startswith(".")]
        yield f"data directory {directory}, tables: {len(tables)}"
        for path in tables:
            yield _table(path)
        for path in sorted((directory / CHECKPOINTS).glob("[!.]*/[!.]*")):
            yield _checkpoint(path)


def _table(path: Path) -> str:
    with _unused(path):
        found = read_table(path)
    ended = "its server died" if found.was_open else "closed"
    return f"table {path.name}: {_rows(found.ring, found.schema)}, writers: {found.writers}, {ended}"


def _checkpoint(path: Path) -> str:
    manifest = verify_checkpoint(path)
    ring = Ring(manifest.buffer_size, manifest.write_count - manifest.rows, manifest.write_count)
    return f"checkpoint {path.parent.name}/{path.name}: {_rows(ring, manifest.schema)}, of {manifest.created}, every byte checked"


def _rows(ring: Ring, schema: Schema | None) -> str:
    fields = "no fields yet" if schema is None else ", ".join(f"{field.name} {field}" for field in schema.fields)
    return f"{ring.size} rows, ids [{ring.oldest}, {ring.write_count}), buffer_size {ring.buffer_size}; {fields}"
