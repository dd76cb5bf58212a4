"""The rows of a shard that leaves, into the shards that stay: each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.columns import leaves
from tdreplay.errors import EmptyTableError, SlotIndexError
from tdreplay.insert_id import InsertId
from tdreplay.limits import BLOCK_BYTES
from tdreplay.rows import Given
from tdreplay.schema import Schema
from tdreplay.system_fields import EPISODE_ID, PRIORITY, ROW_ID
from tdreplay.table_description import TableDescription
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.buffer import RemoteReplayBuffer
from tdreplay_client.ray.status import Target
from tdreplay_client.transport.access import TLS
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.writing.block_rows import most_block_rows
from tdreplay_client.writing.insert_messages import block_layout, framed, rows_per_block

__all__ = ["Notes", "move_tables", "rows_of_server"]

Columns = dict[str, torch.Tensor]


class Notes(Protocol):
    """Keeps how far a move is, over the death of the process that moves."""

    def moved_until(self, table: str) -> int:
        """The id below which the rows of a table were moved."""

    def note(self, table: str, until: int, rows: int) -> None:
        """Notes that its rows below `until` were moved, `rows` more than before."""


class NumberedTable(RemoteReplayBuffer):
    """A table whose inserts have given numbers: a process that begins anew sends a block again under its old number, and it is stored once."""

    def insert_numbered(self, rows: Given, insert_id: InsertId) -> None:
        """Stores rows, in one block, unless a block of that number was stored."""
        columns = rows.columns(None, cast=False)
        self._connection.retried(partial(self._stored, columns, rows.schema(columns), rows, insert_id))

    def _stored(self, columns: Any, schema: Schema, rows: Given, insert_id: InsertId, budget: RetryBudget) -> None:
        prioritized = rows.priorities is not None
        head = pb.AddRequest(
            table=self.table,
            writer_id=insert_id.writer_id,
            sequence=insert_id.sequence,
            wait_seconds=budget.server_wait,
            has_priorities=prioritized,
        )
        message = framed(head, block_layout(schema, rows.number, has_priorities=prioritized), insert_id)
        sent = {**columns, PRIORITY.name: torch.from_numpy(rows.priorities)} if rows.priorities is not None else columns
        message.fill(sent, 0, rows.number)
        self._connection.unary("Add", message.encoded, budget)

    def most_rows(self) -> int:
        """The most rows that one block may have."""
        config = self._config
        return min(self.buffer_size, most_block_rows(config) if config is not None else self.buffer_size)


def rows_of_server(address: str) -> int:
    """The rows of all tables of a server."""
    found = 0
    for name in RemoteReplayBuffer.tables(address, tls=False, token=""):
        with RemoteReplayBuffer(address, table=name, tls=False, token="") as table:
            found += table.size
    return found


def move_tables(source: str, targets: Sequence[Target], tls: TLS | bool | None, token: str | None, timeout: float, notes: Notes) -> None:
    """Stores the rows of all tables of a server in the tables of the same names of others, in turn; all steps of an episode in one of them.

    Nobody else writes to the server. A full target loses its oldest rows, as with any insert. How often a row was drawn is not kept; its priority is.

    Raises:
        ReplayError: a target or the source does not answer, or does not take the rows. What was moved is noted: the same call goes on there.
    """
    for table in RemoteReplayBuffer.tables(source, tls=False, token=""):
        _move_table(source, table, targets, {"tls": tls, "token": token, "timeout": timeout}, notes)


def _move_table(source: str, table: str, targets: Sequence[Target], access: Mapping[str, Any], notes: Notes) -> None:
    with ExitStack() as stack:
        read = stack.enter_context(RemoteReplayBuffer(source, table=table, tls=False, token=""))
        described = read.describe()
        if described.schema is None or not described.size:
            return
        into = [stack.enter_context(NumberedTable(each.address, table=table, **access)) for each in targets]
        step = min(rows_per_block(described.schema, BLOCK_BYTES), *(target.most_rows() for target in into))
        writer_id = f"moved-{described.generation_id}"
        first = max(described.write_count - described.size, notes.moved_until(table))
        for start in range(first, described.write_count, step):
            stop = min(start + step, described.write_count)
            rows = _read(read, described, np.arange(start, stop))
            for place, part in _parts(rows, len(into)):
                into[place].insert_numbered(_given(part, described), InsertId(writer_id, 1 + start))
            notes.note(table, stop, _count(rows))


def _read(table: RemoteReplayBuffer, described: TableDescription, ids: npt.NDArray[np.int64]) -> Columns:
    """Those of these rows that are there: rows may have left that were drawn often enough. An empty dict: none is."""
    schema, priorities = described.schema, described.config.sampler.has_priorities
    if schema is None:
        return {}
    names = [*(each.name for each in schema.fields), ROW_ID.name]
    try:
        batch = table.sample_by_index_fields(ids % described.buffer_size, names, priorities=priorities).cpu()
    except (SlotIndexError, EmptyTableError):
        if len(ids) == 1:
            return {}
        halves = [_read(table, described, half) for half in np.array_split(ids, 2)]
        return _joined([half for half in halves if half])
    found = leaves(batch)
    system = [ROW_ID.name, *([PRIORITY.name] if priorities else [])]
    return {each.name: found[each.name] for each in schema.fields} | {name: batch[name].reshape(len(ids), -1)[:, 0] for name in system}


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _parts(rows: Columns, targets: int) -> Iterator[tuple[int, Columns]]:
    """For each target that gets some: its place, and the rows."""
    if not rows:
        return
    owners = rows[EPISODE_ID.name].reshape(_count(rows), -1)[:, 0] if EPISODE_ID.name in rows else rows[ROW_ID.name]
    places = owners % targets
    for place in np.unique(places.numpy()).tolist():
        mine = places == place
        yield place, {name: column[mine] for name, column in rows.items()}


def _count(rows: Mapping[str, torch.Tensor]) -> int:
    return len(rows[ROW_ID.name]) if rows else 0


def _given(rows: Columns, described: TableDescription) -> Given:
    schema: Any = described.schema
    given = Given({each.name: rows[each.name] for each in schema.fields}, schema.row_shape, _count(rows), schema.dim_names)
    return given.prioritized(rows[PRIORITY.name]) if PRIORITY.name in rows else given
