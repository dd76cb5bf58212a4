"""Epochs over a table: which rows each batch has, decided when it is read, from numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.epochs import START, EpochPlace, EpochPlan, EpochQuery
from tdreplay.errors import EmptyTableError, OverwrittenError, TableChangedError, TableNotFoundError, TokenError
from tdreplay.orders import RandomOrder
from tdreplay.windows import WindowQuery
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.system.interrupts import lets_go
from tdreplay_server.tables.reading import taken
from tdreplay_server.tables.selection import RowFormat, Selection

__all__ = ["PLACES", "EpochBatch", "EpochBatches", "EpochPart", "FormatOf", "Looked", "Outcome", "PinnedRows", "plan_of"]

PLACES = 1 << 12
"""So many places of an order are computed at once: enough that one costs little, and few enough that the first batch comes at once."""

FormatOf: TypeAlias = "Callable[[Sequence[str] | None, WindowQuery | None], RowFormat]"
"""Names of fields, and windows -> what is read of each row. To be called under the table's lock."""


class PinnedRows:
    """Rows of these ids and no others.

    Args:
        ids: Of the rows, all of which are live in `ring`.
        ring: The live rows.
        first_rows: The id of the oldest row that is needed with each; None: none but itself.
    """

    def __init__(self, ids: RowIds, ring: Ring, first_rows: RowIds | None = None) -> None:
        self._ids, self._oldest = ids, ring.oldest
        self._first_rows = ids if first_rows is None else first_rows

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the rows from start to stop.

        Raises:
            OverwrittenError: one of them is not live in `ring`.
        """
        needed = self._first_rows[start:stop]
        if ring.oldest > self._oldest and len(needed) and needed.min() < ring.oldest:
            raise OverwrittenError(f"row {needed.min()} was overwritten before it was read")
        return self._ids[start:stop]

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing: nobody drew them."""
        return {}


@dataclass(frozen=True)
class EpochBatch:
    """One batch of an epoch, as it was at one moment.

    Attributes:
        place: Where it begins.
        after: The place after it, with the rows that were overwritten up to there.
        rows: Those that come. There may be none.
    """

    place: EpochPlace
    after: EpochPlace
    rows: Selection


class Outcome(IntEnum):
    """What becomes of a row that is to come in an epoch."""

    COMES = 0
    NO_ANCHOR = 1
    OVERWRITTEN = 2
    REPLACED = 3


class Looked(NamedTuple):
    """What lies where some rows are to come: arrays of shape [n].

    Attributes:
        ids: The row that may come.
        come: Whether it does.
        gone: Whether the row that was to come was overwritten, or one that it needs.
        oldest: The id of the oldest row that was stored.
    """

    ids: RowIds
    come: npt.NDArray[np.bool_]
    gone: npt.NDArray[np.bool_]
    oldest: int

    @property
    def outcomes(self) -> npt.NDArray[np.uint8]:
        """What became of each, as `Outcome` numbers it."""
        left_out = np.where(self.gone, Outcome.OVERWRITTEN, Outcome.NO_ANCHOR)
        return np.where(self.come, np.where(self.gone, Outcome.REPLACED, Outcome.COMES), left_out).astype(np.uint8)


class EpochPart(NamedTuple):
    """A part of a batch, at one moment.

    Attributes:
        rows: Those that come.
        gone: How many rows of it were overwritten: left out or replaced. Of a batch of anchors: since it was found.
        left: How many rows of the batch come after the part.
        gone_later: How many rows of the batch after the part were overwritten.
    """

    rows: Selection
    gone: int
    left: int
    gone_later: int


def plan_of(log: RowLog, query: EpochQuery, seed: int | None, *, of_steps: bool) -> EpochPlan:
    """Epochs over the rows that are live now, with random orders of that seed. To be called under the table's lock.

    `of_steps`: whether the rows are steps.

    Raises:
        EmptyTableError: there is none.
    """
    ring = log.ring
    if log.schema is None or not ring.size:
        raise EmptyTableError("the table is empty: there is no row to read yet")
    return EpochPlan.over(query, log.config.name, log.generation_id, range(ring.oldest, ring.write_count), seed, of_steps=of_steps)


class EpochBatches:
    """The batches of a plan. It keeps nothing but a part of an order that it computed: any batch may be asked for, in any order.

    Attributes:
        plan: What comes.
        format: What is read of each row.

    Args:
        log: Has the rows.
        format_of: Says what is read of each row.
        plan: What comes.
        place: The first batch that is asked for.

    Raises:
        TableChangedError: the table has another generation than the plan.
        TokenError: its window or `place` cannot be.
        FieldNotFoundError: a field is not there.
    """

    def __init__(self, log: RowLog, format_of: FormatOf, plan: EpochPlan, place: EpochPlace = START) -> None:
        self._log, self.plan = log, plan
        plan.check_place(place)
        with log.shared:
            self._check_generation()
            ring = log.ring
            if not 0 <= plan.first_row_id < plan.end_row_id <= ring.write_count or plan.rows > ring.buffer_size:
                window = f"[{plan.first_row_id}, {plan.end_row_id})"
                raise TokenError(f"the window of row ids {window} must be 1 to {ring.buffer_size} of those below {ring.write_count}")
            self.format = format_of(plan.query.fields, plan.query.windows)
            self._buffer_size = ring.buffer_size
        self._known: tuple[int, int, RowIds] | None = None

    def at(self, place: EpochPlace) -> EpochBatch:
        """The batch at a place before the end.

        Where no row of the window is left, it is the last one, without rows.

        Raises:
            TableChangedError: the table was reset, rewound or dropped.
            OverwrittenError: a row of it was overwritten, and on_overwrite is raise.
        """
        ids = self._ids(place)
        with self._log.shared:
            return self._batch(ids, place)

    def sought(self, place: EpochPlace) -> Iterator[EpochBatch | None]:
        """The batch at a place before the end, and before it None each time that others had the lock while it was looked for. Errors: as `at`."""
        yield self.at(place)

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        self._log.let_go()

    @lets_go
    def take(self, place: EpochPlace) -> tuple[EpochBatch, dict[str, torch.Tensor]]:
        """The batch at a place before the end, and copies of its rows: field name -> tensor. Errors: as `at`."""
        ids, log = self._ids(place), self._log
        with log.shared:
            batch = self._batch(ids, place)
            found = batch.rows
            return batch, taken(log.storage, found.chosen.ids(log.ring, 0, found.rows), {}, self.format.fields) if found.rows else {}

    @lets_go
    def look(self, ids: RowIds) -> tuple[Selection, Looked]:
        """Those of some rows of the window that come, at this moment, and what becomes of each. It is as if on_overwrite were skip where it is raise.

        Raises:
            TableChangedError: the table was reset, rewound or dropped.
        """
        with self._log.shared:
            self._check_generation()
            looked = self._at_places(ids)
            return self._selection(looked.ids[looked.come]), looked

    def _at_places(self, ids: RowIds) -> Looked:
        """What comes where these rows are to come."""
        ring = self._log.ring
        gone = ids < ring.oldest
        if self.plan.query.on_overwrite == "replace" and gone.any():
            ids = np.where(gone, ring.row_ids(ids % ring.buffer_size), ids)
        return Looked(ids, ids >= ring.oldest, gone, ring.oldest)

    def places(self, batch: EpochBatch) -> int:
        """How many rows a batch has where none is overwritten."""
        return len(self._ids(batch.place))

    def after(self, batch: EpochBatch, gone: int) -> EpochPlace:
        """The place after a batch that was read in parts, of which so many rows were overwritten."""
        return replace(batch.after, overwritten=batch.place.overwritten + gone)

    def part(self, batch: EpochBatch, start: int, stop: int, most: int) -> EpochPart:
        """What comes at the places from start to stop of a batch, at this moment: at most so many rows. Errors: as `at`."""
        ids = self._ids(batch.place)
        part, later = ids[start:stop], ids[stop:]
        with self._log.shared:
            self._check_generation()
            rows = self._living(part)[:most]
            left = min(len(self._living(later)), most - len(rows))
            return EpochPart(self._selection(rows), self._gone(part), left, self._gone(later))

    def _gone(self, ids: RowIds) -> int:
        return int(np.count_nonzero(ids < self._log.ring.oldest))

    def _batch(self, ids: RowIds, place: EpochPlace) -> EpochBatch:
        self._check_generation()
        query, ring = self.plan.query, self._log.ring
        if ring.oldest >= self.plan.end_row_id and query.on_overwrite == "skip":
            return EpochBatch(place, self.plan.end(place), self._selection(ids[:0]))
        living = self._living(ids)
        return EpochBatch(place, self.plan.after(place, self._gone(ids)), self._selection(living))

    def _selection(self, ids: RowIds) -> Selection:
        return Selection(self.format, len(ids), PinnedRows(ids, self._log.ring), self._log.version)

    def _living(self, ids: RowIds) -> RowIds:
        """The rows that come where these ids are to come."""
        ring, query = self._log.ring, self.plan.query
        if ring.oldest <= self.plan.first_row_id:
            return ids
        gone = ids < ring.oldest
        if not gone.any():
            return ids
        if query.on_overwrite == "raise":
            raise OverwrittenError(f"row {ids[gone][0]} was overwritten before it came in its epoch: the oldest that is stored is {ring.oldest}")
        if query.on_overwrite == "replace":
            ids = np.where(gone, ring.row_ids(ids % ring.buffer_size), ids)
        return ids[ids >= ring.oldest]

    def _check_generation(self) -> None:
        try:
            self._log.check_open()
        except TableNotFoundError as error:
            raise TableChangedError(str(error)) from None
        if self._log.generation_id != self.plan.generation_id:
            raise TableChangedError("the table was reset, rewound or lost rows since the epochs began")

    # -- the order ----------------------------------------------------------------------------------------------------------------------------

    def _ids(self, place: EpochPlace) -> RowIds:
        """The ids of the batch at `place`, whatever became of the rows."""
        size = self.plan.query.batch_size
        return self._ids_from(place, size, size * max(1, PLACES // size))

    def _ids_from(self, place: EpochPlace, most: int, step: int) -> RowIds:
        """The ids at up to `most` places from `place` on, of which `step` are computed at once."""
        first = place.position // step * step
        known = self._known
        if known is None or known[:2] != (place.epoch, first):
            self._known = known = (place.epoch, first, self._computed(place.epoch, first, min(first + step, self.plan.share)))
        return known[2][place.position - first :][:most]

    def _computed(self, epoch: int, start: int, stop: int) -> RowIds:
        """The ids at the learner's places from start to stop of an epoch."""
        plan, query = self.plan, self.plan.query
        places = np.arange(start, stop, dtype=np.int64) * query.world_size + query.rank
        if query.shuffle:
            return RandomOrder.keyed(plan.rows, plan.seed, epoch).at(places) + plan.first_row_id
        # In slot order the window is rotated: the rows that the ring wrapped around to come first.
        wrapped = max(0, plan.first_row_id % self._buffer_size + plan.rows - self._buffer_size)
        return (places - wrapped) % plan.rows + plan.first_row_id
