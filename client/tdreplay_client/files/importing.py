"""Shards to a table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdreplay.api import BaseReplayBuffer
from tdreplay.columns import leaves
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError
from tdreplay.progress import Progress, Shown, reporting
from tdreplay.rows import Given
from tdreplay.schema import Columns
from tdreplay.system_fields import PRIORITY
from tdreplay.table_description import TableDescription
from tdreplay_client.files.sources import Source, found_source
from tdreplay_client.files.table_rows import part_rows, same_rows
from tdreplay_client.sharding.buffer import ShardedReplayBuffer

__all__ = ["Imported", "import_table"]

MOST_COMPARED = 4096
"""The most rows that are compared before an import goes on."""


@dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        rows: the rows that were stored.
        stored_before: the rows that an earlier import, which did not end, had stored.
    """

    rows: int
    stored_before: int


def import_table(
    buffer: BaseReplayBuffer,
    path: str | os.PathLike[str],
    *,
    append: bool = False,
    resume: bool = False,
    progress: Shown = None,
) -> Imported:
    """Stores the rows of files in a table, each once, in their order. Where there are more than the table can hold, the last ones stay.

    The rows get new row ids. The fields ``index`` and ``row_id`` of the files are left out. Episodes stay what they are, with their ids. Each shard
    is read as a whole before its first row is stored: of a broken one nothing is stored.

    Args:
        buffer: the table: a remote buffer or one in process. It needs the role ``actor``, and ``reader`` with `resume`.
        path: the folder of an export; or a folder of files of one format, which have the same arrays of shape [rows, ...]; or one such file.
        append: whether the table may have rows.
        resume: goes on with an import of the same files that did not end. It began with an empty table, and nobody else wrote to it.
        progress: as in `BaseReplayBuffer.sample_all`.

    Raises:
        CorruptDataError: a file is not what was written, or not what its format says. Nothing of this shard is stored.
        SchemaError: the rows do not fit the table, or the files differ. Nothing is stored.
        FailedPreconditionError: the table has rows; or it does not have those that an import to go on with would have stored; or the files cannot be
            read here.
        InvalidArgumentError: append and resume at once, or there is no row; or `resume` of a buffer over shards.
        ReplayError: as `BaseReplayBuffer.add_batch`. The message says how many rows are stored.
    """
    if append and resume:
        raise InvalidArgumentError("append and resume do not go together: an import that can go on began with an empty table")
    if resume and isinstance(buffer, ShardedReplayBuffer):
        raise InvalidArgumentError("an import over shards cannot be resumed: reset the buffer, and begin anew")
    described = buffer.describe()
    source = found_source(Path(path), priorities=described.config.sampler.has_priorities)
    if described.schema is not None:
        described.schema.check(source.schema)
    if described.size and not append and not resume:
        raise FailedPreconditionError(f"the table has {described.size} rows: append to them, or resume the import that they are of")
    stored = _stored_before(buffer, described, source) if resume else 0
    with reporting(progress, "import") as told:
        _Import(buffer, described, source, told).store(stored, first_id=described.write_count if resume else None)
    return Imported(source.rows - stored, stored)


class _Import:
    """The rows of a source on their way into a table."""

    def __init__(self, buffer: BaseReplayBuffer, described: TableDescription, source: Source, progress: Progress | None) -> None:
        self._buffer, self._source, self._progress, self._done = buffer, source, progress, 0
        self._takes_priorities = described.config.sampler.has_priorities
        steps = described.config.trajectories
        # Whoever goes on with an episode that another process began has to be the same writer.
        self._writer_id = f"import-{source.digest}" if steps else ""

    def store(self, start: int, first_id: int | None) -> None:
        """Stores the rows from number `start` on. The first of them must get the row id `first_id`; None: any."""
        self._done = start
        with self._saying_how_many():
            for rows in _rows_from(self._source, start):
                ids = self._buffer.insert(self._given(rows), writer_id=self._writer_id)
                if first_id is not None and ids[0] != first_id:
                    raise FailedPreconditionError(f"row id {ids[0]} came where {first_id} was next: somebody else writes to the table")
                first_id = None
                self._done += len(ids)
                self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._source.rows)

    def _given(self, rows: dict[str, torch.Tensor]) -> Given:
        schema = self._source.schema
        values = {field.name: rows[field.name] for field in schema.fields}
        given = Given(values, schema.row_shape, len(next(iter(values.values()))), schema.dim_names)
        return given.prioritized(rows[PRIORITY.name]) if self._source.has_priorities and self._takes_priorities else given

    @contextmanager
    def _saying_how_many(self) -> Iterator[None]:
        try:
            yield
        except ReplayError as error:
            error.args = (f"{error}; of {self._source.rows} rows at least {self._done} are stored",)
            raise


def _rows_from(source: Source, start: int) -> Iterator[dict[str, torch.Tensor]]:
    """The rows from number `start` on, a few at a time. Those of a shard come after all of it was read."""
    step, before = part_rows(source.schema), 0
    for shard in source.shards:
        if start < before + shard.rows:
            with source.open(shard) as reader:
                reader.check(step)
                yield from reader.parts(max(0, start - before), step)
        before += shard.rows


def _stored_before(buffer: BaseReplayBuffer, described: TableDescription, source: Source) -> int:
    """How many rows of the source, from its first one on, the table has stored.

    Raises:
        FailedPreconditionError: its rows are not these.
    """
    leave = described.config.is_consuming or described.size == described.buffer_size
    stored = described.insert_count if leave else described.size
    count = min(stored, described.size, MOST_COMPARED, part_rows(source.schema))
    if stored > source.rows or (stored and not count):
        raise FailedPreconditionError(
            f"{stored} rows were inserted into the table, {described.size} are there: an import of {source.path} cannot go on"
        )
    if count and not same_rows(_last_of_table(buffer, described, source, count), _number(source, stored - count, count)):
        raise FailedPreconditionError(f"the last {count} of the {stored} rows of the table are not those of {source.path}: this import cannot go on")
    return stored


def _last_of_table(buffer: BaseReplayBuffer, described: TableDescription, source: Source, count: int) -> Columns:
    slots = np.arange(described.write_count - count, described.write_count) % described.buffer_size
    names = [field.name for field in source.schema.fields]
    found = leaves(buffer.sample_by_index_fields(slots, names).cpu())
    return {name: found[name] for name in names}


def _number(source: Source, start: int, count: int) -> Columns:
    """So many rows from number `start` on."""
    parts: list[dict[str, torch.Tensor]] = []
    for rows in _rows_from(source, start):
        left = count - sum(len(part[source.schema.fields[0].name]) for part in parts)
        parts.append({field.name: rows[field.name][:left] for field in source.schema.fields})
        if left <= len(rows[source.schema.fields[0].name]):
            break
    return {field.name: _joined([part[field.name] for part in parts]) for field in source.schema.fields}


def _joined(columns: list[torch.Tensor]) -> torch.Tensor:
    if len(columns) == 1 or not columns[0].nbytes:
        return columns[0].new_empty((sum(map(len, columns)), *columns[0].shape[1:])) if len(columns) > 1 else columns[0]
    bytes_of_all = torch.cat([column.contiguous().view(-1).view(torch.uint8) for column in columns])  # As bytes: torch joins no float8.
    return bytes_of_all.view(columns[0].dtype).view((sum(map(len, columns)), *columns[0].shape[1:]))
