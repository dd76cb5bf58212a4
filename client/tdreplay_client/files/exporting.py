"""A table to shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import torch

from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import EmptyTableError, InvalidArgumentError
from tdreplay.limits import check_choice, check_whole
from tdreplay.progress import Progress, Shown, reporting
from tdreplay.schema import Schema
from tdreplay.selecting import Fields, as_fields
from tdreplay.system_fields import INDEX, PRIORITY, ROW_ID, STEP_FIELDS, SYSTEM_NAMES
from tdreplay.table_description import TableDescription
from tdreplay_client.files.formats import FORMATS
from tdreplay_client.files.manifest import Manifest, Shard
from tdreplay_client.files.new_export import NewExport
from tdreplay_client.files.shards import ShardLayout
from tdreplay_client.files.table_rows import TableRows
from tdreplay_client.sharding.buffer import ShardedReplayBuffer

__all__ = ["Exported", "export_table"]

SHARD_BYTES = 64 << 20
"""The bytes of the rows of a shard, unless the user says how many rows it has."""

MAX_SHARD_BYTES = 512 << 20
"""The most bytes of the rows of a shard: they are in the memory until it is written."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the folder.
        rows: the number of rows in it.
        shards: the number of its shards.
        bytes: their size.
        first_row_id: the id of the oldest row that was to be exported.
        end_row_id: the id after the newest one.
        overwritten: the rows of these ids that were overwritten, or left the table, before they were read.
        left_out: the steps that were left out because a row of their episode before them was overwritten.
    """

    path: Path
    rows: int
    shards: int
    bytes: int
    first_row_id: int
    end_row_id: int
    overwritten: int
    left_out: int


def export_table(
    buffer: BaseReplayBuffer,
    directory: str | os.PathLike[str],
    *,
    file_format: str = "safetensors",
    rows_per_shard: SupportsIndex | None = None,
    fields: Fields | None = None,
    newest: SupportsIndex | None = None,
    overwrite: bool = False,
    progress: Shown = None,
) -> Exported:
    """Writes the rows that are stored now to files in a folder, each once, by ascending row id.

    Nothing is taken from the table, and others go on writing to it. A row that is overwritten before it is read is left out and counted; of an
    episode no step comes after such a gap. A checkpoint is the way to have all rows of one moment.

    The folder is whole when it has ``manifest.json``, which is written last. Each shard has the fields of the rows, bit for bit, and beside them
    ``index``, ``row_id`` and, where rows have priorities, ``priority``. At most a shard and a few megabytes are in the memory.

    Args:
        buffer: the table: a remote buffer or one in process. A token of the role ``reader`` suffices.
        directory: the folder, which is made. It must be empty, unless `overwrite`.
        file_format: ``safetensors``, ``npz`` or ``parquet``, which needs pyarrow.
        rows_per_shard: the rows of a shard, of at most 512 MiB. None: as many as fit 64 MiB.
        fields: as in `sample_by_index_fields`; None: all of them. In a table of trajectories those that its episodes need come in any case.
        newest: only so many rows, the newest ones. None: all of them.
        overwrite: whether the folder may hold an earlier export, which is removed when the new one is whole.
        progress: as in `BaseReplayBuffer.sample_all`.

    Raises:
        EmptyTableError: there is no row.
        FieldNotFoundError: a field is not there.
        InvalidArgumentError: an argument breaks its rule, or the buffer is one over shards.
        FailedPreconditionError: the folder holds something that may not be replaced, or pyarrow is not there.
        TableChangedError: the table was reset or rewound meanwhile.
        OSError: the disk is full, or failed. In these cases the folder has no new manifest, and an earlier export in it is still there.
    """
    used = FORMATS[check_choice(file_format, "file_format", FORMATS)]
    used.check()
    if isinstance(buffer, ShardedReplayBuffer):  # Its row ids do not follow one another.
        raise InvalidArgumentError("an export is of one table: export that of each shard, by a RemoteReplayBuffer of each of the buffer's addresses")
    described = buffer.describe()
    if described.schema is None or not described.size:
        raise EmptyTableError("the table is empty: there is no row to export")
    schema, size = _chosen(described, as_fields(fields)), described.size
    count = size if newest is None else min(size, check_whole(newest, "newest", 1))
    rows = TableRows(buffer, described, schema, range(described.write_count - count, described.write_count))
    with NewExport(Path(directory), used, overwrite=overwrite) as made, reporting(progress, "export") as told:
        for parts in _shards(rows, _rows_per_shard(rows_per_shard, schema), told):
            made.add(_layout(rows), parts)
        made.finish(lambda shards: _manifest(rows, used.name, shards))
    shards = made.shards
    ids = rows.ids
    return Exported(
        made.path,
        sum(shard.rows for shard in shards),
        len(shards),
        sum(shard.bytes for shard in shards),
        ids.start,
        ids.stop,
        rows.overwritten,
        rows.left_out,
    )


def _chosen(described: TableDescription, names: tuple[str, ...] | None) -> Schema:
    """The schema of the chosen fields, and of those without which a table of trajectories does not take them."""
    schema, trajectories = described.schema, described.config.trajectories
    if schema is None or names is None:
        return schema or Schema(())
    needed = [*(field.name for field in STEP_FIELDS), *trajectories.ends, *trajectories.final_fields] if trajectories else []
    fields = {field.name: field for name in dict.fromkeys([*names, *needed]) for field in schema.select([name]) if field.name not in SYSTEM_NAMES}
    return Schema.made_of(fields.values(), schema.row_shape, schema.dim_names)


def _rows_per_shard(given: SupportsIndex | None, schema: Schema) -> int:
    row = max(1, schema.row_bytes)
    return max(1, SHARD_BYTES // row) if given is None else check_whole(given, "rows_per_shard", 1, max(1, MAX_SHARD_BYTES // row))


def _layout(rows: TableRows) -> ShardLayout:
    priority = (PRIORITY,) if rows.has_priorities else ()
    return ShardLayout((*rows.schema.fields, INDEX, ROW_ID, *priority), rows.schema.row_shape, rows.schema.dim_names)


def _shards(rows: TableRows, most: int, progress: Progress | None) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The rows of one shard after the other, each in parts."""
    parts: list[dict[str, torch.Tensor]] = []
    there = done = 0
    for part in rows.parts():
        count, start = len(part[ROW_ID.name]), 0
        while start < count:
            stop = min(count, start + most - there)
            parts.append({name: column[start:stop] for name, column in part.items()})
            there, start = there + stop - start, stop
            if there == most:
                yield parts
                parts, there = [], 0
        done += count
        if progress is not None:
            progress(done + rows.overwritten + rows.left_out, len(rows.ids))
    if parts:
        yield parts


def _manifest(rows: TableRows, file_format: str, shards: tuple[Shard, ...]) -> Manifest:
    return Manifest(
        file_format=file_format,
        table=rows.described.config.name,
        config=rows.described.config,
        schema=rows.schema,
        has_priorities=rows.has_priorities,
        first_row_id=rows.ids.start,
        end_row_id=rows.ids.stop,
        overwritten=rows.overwritten,
        left_out=rows.left_out,
        shards=shards,
    )
