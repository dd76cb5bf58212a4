"""A table: rows, what chooses among them, and what decides who waits. The service works on it, and the buffer in process is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch

from tdreplay.api import Checkpoint, Progress, State
from tdreplay.epochs import START, EpochPlace, EpochPlan, EpochQuery
from tdreplay.errors import (
    EmptyTableError,
    FailedPreconditionError,
    NoPrioritiesError,
    NoTrajectoriesError,
    RowIdError,
    SchemaError,
    StorageError,
)
from tdreplay.limits import MAX_ROW_ID, check_whole
from tdreplay.memory import Rows
from tdreplay.priorities import Updated
from tdreplay.schema import Schema
from tdreplay.system_fields import DRAWN_FIELDS, DRAWN_NAMES, PRIORITY, PROBABILITY
from tdreplay.table_config import TableConfig, check_limiter
from tdreplay.table_description import TableDescription
from tdreplay.windows import WindowQuery
from tdreplay_server.checkpoints.checkpoint import write_checkpoint
from tdreplay_server.durability.data_directory import CHECKPOINTS
from tdreplay_server.durability.insert import Insert, Priorities
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.storage.ring import RowIds, Slots
from tdreplay_server.storage.rows import Inserts
from tdreplay_server.system.disk import check_name
from tdreplay_server.system.interrupts import lets_go
from tdreplay_server.tables.counts import TableCounts, counted
from tdreplay_server.tables.description import described
from tdreplay_server.tables.draws import DrawnRows, Generators
from tdreplay_server.tables.epochs import EpochBatches, Looked, PinnedRows, plan_of
from tdreplay_server.tables.leases import Drawn
from tdreplay_server.tables.limiters import AT_ONCE, Wait
from tdreplay_server.tables.reading import gathered, taken
from tdreplay_server.tables.samplers import Totals
from tdreplay_server.tables.sampling import Sampling
from tdreplay_server.tables.selection import BatchQuery, ChosenRows, PrioritiesInSlots, RowFormat, RowsInSlots, Selection
from tdreplay_server.tables.step_epochs import StepEpochBatches
from tdreplay_server.tables.trajectories.connected_writers import ConnectedWriter, ConnectedWriters
from tdreplay_server.tables.trajectories.episode_list import EpisodeList
from tdreplay_server.tables.trajectories.step_columns import StepColumns
from tdreplay_server.tables.trajectories.step_table import StepTable
from tdreplay_server.tables.trajectories.window_format import WindowFormat

__all__ = ["Table"]

MOST_PLANS = 8
"""Epochs of clients of which a table remembers what it found out."""


class Table:
    """A row log, a sampler and a rate limiter, as a config says. All methods may be called from several threads.

    Reading goes in two steps: what the methods `select_*` give says which rows, and `read` or `take` copies them, a part at a time if need be.

    Args:
        config: What the table is fixed by.
        directory, durability, checkpoints, on_failure: As in `tdreplay_server.ReplayBuffer`, which also says the errors.
    """

    def __init__(
        self,
        config: TableConfig,
        *,
        directory: Path | None = None,
        durability: str = "process",
        checkpoints: Path | None = None,
        on_failure: Callable[[StorageError], object] | None = None,
    ) -> None:
        check_limiter(config)
        self._sampling = Sampling(config, lambda: self._row_log)
        self._steps = self._sampling.steps
        self._writers = ConnectedWriters() if self._steps is None else self._steps.writers
        self._has_priorities = config.sampler.has_priorities
        self._looking: dict[EpochPlan, EpochBatches] = {}
        self._generator = np.random.default_rng()  # Its methods lock it: readers may share it.
        self._checkpointing = threading.Lock()
        self._checkpoints = checkpoints or (None if directory is None else directory / CHECKPOINTS)
        self._row_log = RowLog(config, self._sampling, directory=directory, durability=durability, on_failure=on_failure)
        if self._steps is not None:
            self._steps.index.current()  # It takes seconds for many millions of steps: not in the first call.
        if self._sampling.consumption is not None:
            self._sampling.advance(self._sampling.consumption.front(self._row_log.ring))  # A kill may have left rows in the ring that have left.

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        self._sampling.limiter.let_go()
        self._row_log.let_go()

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def insert(
        self,
        columns: Inserts,
        schema: Schema,
        rows: int,
        key: InsertKey | None = None,
        priorities: Priorities | None = None,
        wait: Wait = AT_ONCE,
    ) -> tuple[int, bool]:
        """Copies `rows` rows of `schema` in. They are checked before anything is touched, and survive what `durability` says when this returns.

        Args:
            columns: field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
            schema: The schema of the rows.
            rows: The number of rows.
            key: What the insert is known by: one that was stored already is not stored again.
            priorities: The priorities of the rows, checked; None: as the sampler says.
            wait: How long it may wait for the rate limiter. One that was stored already does not wait.

        Returns:
            The id of the first row, and whether the rows had been stored already.

        Raises:
            SchemaError, CodecError, SequenceError, ResourceExhaustedError, StorageError: as `RowLog.insert`.
            EpisodeError: the table is one of trajectories, and a step does not go on where its episode is.
            NoPrioritiesError: the table has no priorities.
            InvalidArgumentError: its sampler cannot work with a priority.
            RateLimitedError: the rate limiter did not let the rows in within the time.
        """
        if priorities is not None:
            self._check_priorities()
            self._sampling.sampler.check(priorities)
        if not DRAWN_NAMES.isdisjoint(schema.fields_by_name):
            columns, schema = self._as_stored(columns, schema)
        if self._steps is not None:
            self._steps.check_schema(schema)
            columns = StepColumns.owned(columns)
        insert = Insert(columns, schema, rows, key, priorities)
        if self._sampling.is_unlimited:
            return self._row_log.insert(insert)
        known = None if key is None else self._row_log.find(key)
        if known is not None:
            return known.first_row_id, True
        with self._sampling.limiter.inserting(rows, wait):
            return self._row_log.insert(insert)

    def has_stored(self, key: InsertKey) -> bool:
        """Whether the insert with that key was stored. It waits for inserts that are under way."""
        return self._row_log.find(key) is not None

    def writing(self, writer_id: str) -> ConnectedWriter:
        """The writer of episodes with this id is connected until what this gives is closed, by any thread.

        Open episodes whose writer is not connected are abandoned. Of a table without trajectories nobody asks.
        """
        return self._writers.connect(writer_id)

    def _as_stored(self, columns: Inserts, schema: Schema) -> tuple[Inserts, Schema]:
        """Rows without what says how they were drawn: a batch that was sampled can be inserted again. A user's fields of these names stay.

        Raises:
            SchemaError: the rows of a table with priorities have a field of such a name that no sampled batch has.
        """
        known = self._row_log.schema
        users = frozenset() if known is None else known.fields_by_name.keys()
        there = {field.name: (field.dtype, field.shape) for field in schema.fields if field.name not in users}
        drawn = [field.name for field in DRAWN_FIELDS if there.get(field.name) == (field.dtype, field.shape)]
        if not {PROBABILITY.name, PRIORITY.name}.issubset(drawn) or (known is None and not self._has_priorities):
            drawn = []
        stored = schema.without(drawn) if drawn else schema
        reserved = sorted(DRAWN_NAMES & stored.fields_by_name.keys()) if self._has_priorities else []
        if reserved:
            raise SchemaError(f"field {reserved[0]!r} is reserved: the sampler of this table is {self.config.sampler}, whose batches have one")
        return {name: column for name, column in columns.items() if name not in drawn}, stored

    @lets_go
    def update_priorities(self, row_ids: RowIds, priorities: Priorities) -> Updated:
        """Gives rows other priorities, by row id. Of equal ids the last one counts.

        Args:
            row_ids: int64 of shape [n].
            priorities: checked, of shape [n].

        Raises:
            NoPrioritiesError: the table has no priorities.
            RowIdError: a row id was never given. No priority changes.
            InvalidArgumentError: the table's sampler cannot work with a priority. No priority changes.
        """
        self._check_priorities()
        with self._row_log.shared:
            self._row_log.check_open()
            ring = self._row_log.ring
            wrong = row_ids[(row_ids < 0) | (row_ids >= ring.write_count)]
            if len(wrong):
                raise RowIdError(f"row id {wrong[0]} must be from 0 to {ring.write_count - 1}: no row with this id was ever inserted")
            updated = self._sampling.sampler.update(row_ids, priorities, ring) if ring.size else 0
            self._sampling.activity.updated_ages.look(row_ids, ring.write_count)
        return self._sampling.counted(Updated(updated, len(row_ids) - updated))

    def _check_priorities(self) -> None:
        if not self._has_priorities:
            raise NoPrioritiesError(f"the rows of this table have no priorities: its sampler is {self.config.sampler}")

    # -- choosing rows ------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def row_format(self, query: BatchQuery) -> RowFormat:
        """What is read of each row of random batches.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
            NoTrajectoriesError: windows are asked of rows that are no steps.
            InvalidArgumentError: the windows are too large for the table, or for a message.
        """
        with self._row_log.shared:
            return self._drawn_format(query, self._format(query.fields, query.windows, or_empty=self.counts_draws))

    @lets_go
    def forget_leases(self) -> None:
        """Takes back all batches that were drawn and not taken, as a restart does. An interrupted thread may have left some that nobody knows of."""
        if self.counts_draws:
            self._row_log.tell_anew()

    def unseeded(self, batches: int) -> Sequence[np.random.Generator]:
        """The generators of so many random batches that nobody wants to draw again."""
        return (self._generator,) * batches

    def draw(self, query: BatchQuery, batches: int, generators: Generators, wait: Wait = AT_ONCE) -> Drawn:
        """Up to `batches` random batches, one at least. It waits for the rate limiter, and for the rows of a table from which rows leave.

        The selection keeps the generators, and goes on drawing with them where a row is overwritten before it is read.

        Args:
            query: What is asked for.
            batches: How many batches.
            generators: How many batches come next -> the generator of each of them.
            wait: How long it may wait.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
            RateLimitedError: no batch can be drawn within the time.
            FailedPreconditionError: uniform batches are asked of a table from which rows leave.
        """
        if self._sampling.is_unlimited:
            selection = self.select_random(query, generators(batches))
            self._sampling.rows_drawn.add(selection.rows)
            return Drawn(selection, ())
        self._sampling.check_query(query)
        return self._sampling.leased(query.rows, batches, wait, lambda count: self._drawn(query, generators(count)))

    @lets_go
    def select_random(self, query: BatchQuery, generators: Sequence[np.random.Generator]) -> Selection:
        """Random batches, one after the other, each drawn with a generator of its own, of a table in which nobody waits."""
        return self._drawn(query, generators)[0]

    @lets_go
    def _drawn(self, query: BatchQuery, generators: Sequence[np.random.Generator]) -> tuple[Selection, DrawnRows]:
        with self._row_log.shared:
            found = self._drawn_format(query, self._format(query.fields, query.windows))
            drawn = self._sampling.drawn(query, generators, self._row_log.ring)
            return self._selection(found, query.rows * len(generators), drawn), drawn

    def _drawn_format(self, query: BatchQuery, found: RowFormat) -> RowFormat:
        if query.described and not query.uniform and self._has_priorities:
            return replace(found, fields=(*found.fields, PROBABILITY, PRIORITY))
        return found

    @lets_go
    def totals(self, query: BatchQuery) -> Totals:
        """Among what random batches would be drawn now. An empty table has 0 rows, and no error.

        Raises:
            NoTrajectoriesError: windows are asked of rows that are no steps.
            FailedPreconditionError: uniform batches are asked of a table from which rows leave.
        """
        self._sampling.check_query(query)
        with self._row_log.shared:
            self._row_log.check_open()
            if query.windows is not None:
                self._check_steps()
            return self._sampling.totals(query, self._row_log.ring)

    @lets_go
    def select_slots(self, slots: Slots, fields: Sequence[str] | None = None, windows: WindowQuery | None = None) -> Selection:
        """The rows in `slots`, or the windows around them.

        Raises:
            SlotIndexError: a slot holds no live row, or, with windows, no anchor.
            FieldNotFoundError: a field is not there.
            NoTrajectoriesError: windows are asked of rows that are no steps.
            InvalidArgumentError: the windows are too large for the table, or for a message.
        """
        log = self._row_log
        with log.shared:
            log.check_open()
            log.ring.check_live(slots)
            found = self._format(fields, windows)
            if windows is None or self._steps is None:
                return self._selection(found, len(slots), RowsInSlots.listed(slots))
            ids, first_rows = self._steps.anchors_in(slots, windows, log.ring)
            return self._selection(found, len(slots), PinnedRows(ids, log.ring, first_rows))

    @lets_go
    def select_slots_with_priorities(self, slots: Slots, fields: Sequence[str] | None = None) -> Selection:
        """The rows in `slots`, with the priorities that they have when they are read as their last field.

        Raises:
            NoPrioritiesError: the table has no priorities.
            SlotIndexError, FieldNotFoundError: as in `select_slots`.
        """
        self._check_priorities()
        log = self._row_log
        with log.shared:
            log.check_open()
            log.ring.check_live(slots)
            found = self._format(fields)
            chosen = PrioritiesInSlots(lambda start, stop: slots[start:stop], self._sampling.sampler.priorities)
            return self._selection(replace(found, fields=(*found.fields, PRIORITY)), len(slots), chosen)

    @lets_go
    def select_all(self, fields: Sequence[str] | None = None) -> Selection:
        """Every live row, in slot order; of a table of trajectories every step.

        Raises:
            EmptyTableError: there is none.
            FieldNotFoundError: a field is not there.
        """
        with self._row_log.shared:
            ring = self._row_log.ring
            if self._steps is not None:
                found, steps = self._format(fields), self._steps.all_steps(ring)
                return self._selection(found, steps.rows, steps)
            rows = RowsInSlots(lambda start, stop: ring.in_slot_order(np.arange(start, stop)))
            return self._selection(self._format(fields), ring.size, rows)

    @lets_go
    def episodes(self) -> EpisodeList:
        """The episodes of which a step is stored, at this moment.

        Raises:
            NoTrajectoriesError: the rows are no steps.
        """
        with self._row_log.shared:
            self._row_log.check_open()
            return self._as_steps().episodes()

    @lets_go
    def select_episode(self, episode_id: int, fields: Sequence[str] | None = None) -> tuple[Selection, bool]:
        """The rows of an episode, in order, and whether the last one is the final observation. The others are steps.

        Where one was overwritten before it is read, reading it is an OverwrittenError.

        Raises:
            NoTrajectoriesError: the rows are no steps.
            EpisodeNotFoundError: no step of the episode is stored.
            FieldNotFoundError: a field is not there.
        """
        log = self._row_log
        with log.shared:
            log.check_open()
            ids, has_final = self._as_steps().rows_of(episode_id)
            return self._selection(self._format(fields), len(ids), PinnedRows(ids, log.ring)), has_final

    def _as_steps(self) -> StepTable:
        if self._steps is None:
            raise NoTrajectoriesError(f"the rows of table {self.config.name!r} are no steps of episodes")
        return self._steps

    @lets_go
    def plan_epochs(self, query: EpochQuery, seed: int | None) -> EpochPlan:
        """Epochs over the rows that are live now, with random orders of that seed; None: of a random one.

        Raises:
            EmptyTableError: there is no row.
            NoTrajectoriesError: windows are asked of rows that are no steps.
        """
        with self._row_log.shared:
            self._row_log.check_open()
            if query.windows is not None:
                self._check_steps()
            return plan_of(self._row_log, query, seed, of_steps=self._steps is not None)

    @lets_go
    def epochs(self, plan: EpochPlan, place: EpochPlace) -> EpochBatches:
        """The batches of `plan`, of which that at `place` is the first. Errors: as `EpochBatches`."""
        self._sampling.activity.epochs.add(1)
        if self._steps is None:
            return EpochBatches(self._row_log, self._epoch_format, plan, place)
        return StepEpochBatches(self._row_log, self._epoch_format, self._steps.index, self.take, plan, place)

    def look_up(self, plan: EpochPlan, ids: RowIds) -> tuple[Selection, Looked]:
        """Those of some rows of the window of `plan` that come in an epoch of it now, and what becomes of each. Errors: as `EpochBatches`."""
        known = self._looking.get(plan)
        if known is None:
            known = self.epochs(plan, START)
            while len(self._looking) >= MOST_PLANS:
                self._looking.pop(next(iter(self._looking), plan), None)
            self._looking[plan] = known
        return known.look(ids)

    def _epoch_format(self, fields: Sequence[str] | None, windows: WindowQuery | None) -> RowFormat:
        return self._format(fields, windows, or_empty=True)

    def _format(self, fields: Sequence[str] | None, windows: WindowQuery | None = None, *, or_empty: bool = False) -> RowFormat:
        """What is read of each row. `or_empty`: it is known where rows have been there as well."""
        self._row_log.check_open()
        if windows is not None:
            self._check_steps()
        schema = self._row_log.schema
        if schema is None or not (self._row_log.ring.size or or_empty):
            raise EmptyTableError("the table is empty: there is no row to sample yet")
        if self._steps is not None and windows is not None:
            return self._steps.format(schema, windows, fields, self._row_log.ring.buffer_size)
        chosen = self._steps.sent(schema) if self._steps is not None and fields is None else schema.select(fields)
        return RowFormat(chosen, schema.row_shape, schema.dim_names)

    def _check_steps(self) -> None:
        if self._steps is None:
            raise NoTrajectoriesError("windows are of tables with trajectories alone: the rows of this one are no steps of episodes")

    def _selection(self, found: RowFormat, rows: int, chosen: ChosenRows) -> Selection:
        return Selection(found, rows, chosen, self._row_log.version)

    # -- reading rows -------------------------------------------------------------------------------------------------------------------------

    def read(self, selection: Selection, start: int, stop: int, out: dict[str, Rows], *, threads: bool = False, places: Slots | None = None) -> None:
        """Copies the rows of `selection` from `start` to `stop` into `out`: those of its fields that have bytes. No row is torn.

        `threads`: several may work on it. `places`: where each row goes in `out`, ascending; None: one after the other. Windows have none.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        log = self._row_log
        with log.shared:
            log.check_version(selection.version)
            found = selection.format
            if self._steps is not None and isinstance(found, WindowFormat):
                self._steps.gathered(log.storage, log.ring, selection, found, start, stop, out, threads=threads)
                return
            ids = selection.chosen.ids(log.ring, start, stop)
            gathered(log.storage, ids, selection.drawn(start, stop), out, threads=threads, places=places)

    @lets_go
    def take(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Copies of all rows of `selection`, on the storage's device: field name -> tensor of shape [n, ...], in the selection's order of fields.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        log = self._row_log
        with log.shared:
            log.check_version(selection.version)
            found = selection.format
            if self._steps is not None and isinstance(found, WindowFormat):
                return self._steps.taken(log.storage, log.ring, selection, found)
            ids = selection.chosen.ids(log.ring, 0, selection.rows)
            return taken(log.storage, ids, selection.drawn(0, selection.rows), found.fields)

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The table's state, all of it at the same moment."""
        return self._row_log.state()

    @lets_go
    def describe(self) -> TableDescription:
        """As `tdreplay.api.BaseReplayBuffer.describe`."""
        return described(self._row_log, self._sampling)

    def insert_room(self) -> int | None:
        """How many rows the rate limiter would let in now; None: any number."""
        return self._sampling.limiter.insert_room()

    def counts(self) -> TableCounts:
        """What is counted of the table. It waits for nothing that happens in it, and holds nothing up."""
        return counted(self._row_log, self._sampling)

    def note_sent(self, size: int) -> None:
        """Counts a block of so many bytes that was made for a client."""
        self._sampling.activity.sent_bytes.add(size)

    @property
    def config(self) -> TableConfig:
        """What the table is fixed by, with the capacity that it has now."""
        return self._row_log.config

    @property
    def has_trajectories(self) -> bool:
        """Whether the rows are steps of episodes."""
        return self._steps is not None

    @property
    def counts_draws(self) -> bool:
        """Whether the table waits for what learners take: its rows leave when they were drawn, or a rate limiter counts them."""
        return not self._sampling.is_unlimited

    @property
    def durability(self) -> str:
        """What stored rows survive: none, process, interval or power."""
        return self._row_log.durability

    @property
    def generation_id(self) -> str:
        """As `RowLog.generation_id`."""
        return self._row_log.generation_id

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """As `tdreplay.api.BaseReplayBuffer.reset`."""
        capacity = None if buffer_size is None else check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID)
        if capacity is not None:
            check_limiter(self.config.resized(capacity))
        if self._steps is not None:
            with self._row_log.shared:
                self._row_log.check_open()
                self._steps.index.current()  # It counts the episodes that ended.
        self._row_log.reset(capacity)

    def rewind(self, buffer_size: int, size: int, write_count: int) -> None:
        """Makes earlier rows the live ones again. Arguments and errors: as `RowLog.rewind`."""
        check_limiter(self.config.resized(buffer_size))
        self._row_log.rewind(buffer_size, size, write_count)

    @lets_go
    def checkpoint(self, name: str, *, progress: Progress | None = None) -> Checkpoint:
        """As `tdreplay.api.BaseReplayBuffer.checkpoint`."""
        if self._checkpoints is None:
            raise FailedPreconditionError("there is no directory for checkpoints, because the rows end with this process: name a data_dir")
        target = self._checkpoints / check_name(name, "checkpoint")
        if self._checkpointing.locked():
            raise FailedPreconditionError(f"checkpoint {name!r}: another checkpoint of this table is being written")
        with self._checkpointing, self._sampling.activity.checkpoint():  # Where another one began just now, this one comes after it.
            return write_checkpoint(target, self._row_log, progress)

    def close(self) -> None:
        """Gives the memory back, and the space of rows that lie in no directory. Closing twice is allowed; any other call is then a ClosedError."""
        self._row_log.close()
        self._sampling.limiter.closed()

    def drop(self) -> Path | None:
        """Ends the table for good. What it gives, and errors: as `RowLog.drop`."""
        removed = self._row_log.drop()
        self._sampling.limiter.closed()
        return removed
