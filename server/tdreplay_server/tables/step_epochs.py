"""Epochs over a table of trajectories: its steps, or the anchors of windows, in full batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from tdreplay.epochs import START, EpochPlace, EpochPlan
from tdreplay.errors import OverwrittenError, TableChangedError
from tdreplay.windows import AnchorRule
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.storage.ring import RowIds
from tdreplay_server.system.interrupts import lets_go
from tdreplay_server.tables.epochs import PLACES, EpochBatch, EpochBatches, EpochPart, FormatOf, Looked, PinnedRows
from tdreplay_server.tables.selection import Selection
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex
from tdreplay_server.tables.trajectories.epoch_anchors import EpochAnchors

__all__ = ["StepEpochBatches"]

NONE: RowIds = np.empty(0, np.int64)
FEW_PLACES = 32
"""So many places more than are probably needed are looked at."""

TakeRows: TypeAlias = "Callable[[Selection], dict[str, torch.Tensor]]"
"""As `Table.take`."""


class _Anchors(NamedTuple):
    """Anchors that come.

    Attributes:
        ids: Their ids.
        first_rows: The id of the oldest row that each needs.
    """

    ids: RowIds
    first_rows: RowIds


@dataclass(frozen=True)
class _StepBatch(EpochBatch):
    """As `EpochBatch`, with the anchors that come."""

    anchors: _Anchors


class _Filling:
    """A batch that is being put together.

    Attributes:
        place: Where it begins.
        now: How far it is.
        parts: The anchors that it has.
        missing: How many more fit into it.
        behind: The places that were looked at since it is full.
        looks: How often places were looked at.
        is_cut: Another anchor, or a row that was overwritten, follows at `now`.
    """

    def __init__(self, place: EpochPlace, batch_size: int) -> None:
        self.place = self.now = place
        self.parts: list[_Anchors] = []
        self.missing, self.behind, self.looks, self.is_cut = batch_size, 0, 0, False

    @property
    def is_ready(self) -> bool:
        """Whether the batch is to be given as it is."""
        if self.now.epoch > self.place.epoch:
            return True
        return not self.parts if self.missing else self.is_cut or self.behind >= PLACES

    def joined(self) -> _Anchors:
        """All of its anchors."""
        return (
            self.parts[0] if len(self.parts) == 1 else _Anchors(*(np.concatenate(ids) for ids in zip(_Anchors(NONE, NONE), *self.parts, strict=True)))
        )


class StepEpochBatches(EpochBatches):
    """As `EpochBatches`, for rows that are steps: batches have `batch_size` of them, but for the last one of each epoch.

    With windows these are the anchors whose windows lie in the rows of the plan: steps that came later change nothing of it. An order is looked at
    in parts, and others have the lock in between. Where nothing comes in a whole epoch, nothing comes any more.

    Args:
        log: Has the rows.
        format_of: Says what is read of each row.
        index: Knows the episodes.
        take: Copies the rows of a selection.
        plan: What comes.
        place: The first batch that is asked for.

    Raises:
        TableChangedError, TokenError, FieldNotFoundError: as `EpochBatches`.
        InvalidArgumentError: a window is longer than the table.
    """

    def __init__(self, log: RowLog, format_of: FormatOf, index: EpisodeIndex, take: TakeRows, plan: EpochPlan, place: EpochPlace = START) -> None:
        super().__init__(log, format_of, plan, place)
        self._take = take
        rule = AnchorRule() if plan.query.windows is None else plan.query.windows.rule
        self._anchors = EpochAnchors(index, rule, range(plan.first_row_id, plan.end_row_id))
        self._places_of_one = 1.0  # So many places there are for each anchor, as far as was seen.
        self._empty_from = None if place.position else place.epoch  # Since the beginning of this epoch nothing came.

    # -- whole batches ------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def at(self, place: EpochPlace) -> EpochBatch:
        """The batch at a place before the end. There may be no row of it, and yet batches after it. Errors: as `EpochBatches.at`."""
        return next(batch for batch in self.sought(place) if batch is not None)

    @lets_go
    def take(self, place: EpochPlace) -> tuple[EpochBatch, dict[str, torch.Tensor]]:
        """As `EpochBatches.take`."""
        while True:
            batch = self.at(place)
            try:
                return batch, self._take(batch.rows) if batch.rows.rows else {}
            except (OverwrittenError, TableChangedError):
                continue  # It comes as it is now, or the next try says why it cannot.

    @lets_go
    def look(self, ids: RowIds) -> tuple[Selection, Looked]:
        """As `EpochBatches.look`."""
        while True:
            with self._log.shared:
                self._check_generation()
                if not self._anchors.follow():
                    continue  # Others have the lock in between.
                looked = self._at_places(ids)
                come = looked.ids[looked.come]
                return self._selected(_Anchors(come, self._anchors.first_rows(come))), looked

    def sought(self, place: EpochPlace) -> Iterator[EpochBatch | None]:
        """As `EpochBatches.sought`. A batch without rows comes where nothing was found yet, and there is more to be looked at."""
        filling = _Filling(place, self.plan.query.batch_size)
        while True:
            ids = self._ids_from(filling.now, self._width(filling), PLACES)
            with self._log.shared:
                self._check_generation()
                batch = self._looked(ids, filling)
            yield batch
            if batch is not None:
                return

    def _width(self, filling: _Filling) -> int:
        """How many places are looked at next."""
        return min(PLACES, int(1.1 * filling.missing * self._places_of_one) + (FEW_PLACES << min(filling.looks, 7)))

    def _looked(self, ids: RowIds, filling: _Filling) -> EpochBatch | None:
        """Takes what comes at the next places into a batch; the batch, once it is ready."""
        if not self._anchors.follow():
            return None
        self._check_living(filling)
        if self._log.ring.oldest >= self.plan.end_row_id and self.plan.query.on_overwrite == "skip":
            filling.now = self.plan.end(filling.now)
        else:
            self._take_in(self._at_places(ids), filling)
        return self._batch_of(filling) if filling.is_ready else None

    def _take_in(self, looked: Looked, filling: _Filling) -> None:
        """Adds what comes to a batch, up to the place at which the next batch is to begin."""
        places, missing = np.flatnonzero(looked.come), filling.missing
        self._places_of_one = max(1.0, len(looked.ids) / max(1, len(places)))
        stop = int(places[missing]) if len(places) > missing else len(looked.ids)
        if self.plan.query.on_overwrite == "raise" and looked.gone[:stop].any():
            stop = int(looked.gone.argmax())
            if np.searchsorted(places, stop) < missing:
                raise self._overwritten(looked.ids[stop])
        some = looked.ids[places[: min(missing, int(np.searchsorted(places, stop)))]]
        if len(some):
            filling.parts.append(_Anchors(some, self._anchors.first_rows(some)))
        filling.missing -= len(some)
        filling.behind += 0 if filling.missing else stop
        filling.looks += 1
        filling.is_cut = stop < len(looked.ids)
        filling.now = self.plan.behind(filling.now, stop, int(np.count_nonzero(looked.gone[:stop])))

    def _at_places(self, ids: RowIds) -> Looked:
        """What comes where these rows are to come."""
        live = ids >= self._log.ring.oldest
        come, gone = np.zeros(len(ids), np.bool_), ~live
        judged = self._anchors.judged(ids[live])
        come[live], gone[live] = judged.anchors, judged.lost
        if self.plan.query.on_overwrite == "replace" and gone.any():
            ids, newer = ids.copy(), self._replaced(ids[gone])
            ids[gone], come[gone] = newer, newer >= 0
        return Looked(ids, come, gone, self._log.ring.oldest)

    def _replaced(self, ids: RowIds) -> RowIds:
        """The anchors that lie in the slots of some rows now; -1 where there is none."""
        ring = self._log.ring
        newer = ring.row_ids(ids % ring.buffer_size)
        live = newer >= ring.oldest
        live[live] = self._anchors.now(newer[live])
        return np.where(live, newer, -1)

    def _overwritten(self, row_id: np.int64) -> OverwrittenError:
        oldest = self._log.ring.oldest
        why = "row {} was overwritten" if row_id < oldest else "row {} needs steps before it that were overwritten"
        return OverwrittenError(f"{why.format(row_id)} before it came in its epoch: the oldest that is stored is {oldest}")

    # -- anchors that were found, and then overwritten ----------------------------------------------------------------------------------------

    def _check_living(self, filling: _Filling) -> None:
        """Leaves out, or replaces, what was overwritten while others had the lock."""
        for number, part in enumerate(filling.parts):
            living, gone = self._living_of(part)
            if living is not part:
                filling.parts[number] = living
                filling.missing += len(part.ids) - len(living.ids)
                filling.now = replace(filling.now, overwritten=filling.now.overwritten + gone)

    def _living_of(self, anchors: _Anchors) -> tuple[_Anchors, int]:
        """What comes where these anchors are to come, and how many rows of the plan were overwritten among them."""
        gone = anchors.first_rows < self._log.ring.oldest
        if not gone.any():
            return anchors, 0
        mode, ids = self.plan.query.on_overwrite, anchors.ids
        if mode == "raise":
            raise self._overwritten(ids[gone.argmax()])
        count = int(np.count_nonzero(gone & (ids < self.plan.end_row_id)))  # Newer rows stand for some that are counted already.
        ids = np.where(gone, self._replaced(ids) if mode == "replace" else -1, ids)
        ids = ids[ids >= 0]
        return _Anchors(ids, self._anchors.first_rows(ids)), count

    # -- what is given ------------------------------------------------------------------------------------------------------------------------

    def _batch_of(self, filling: _Filling) -> EpochBatch:
        anchors, after = filling.joined(), filling.now
        if filling.missing and self.plan.query.drop_last:
            anchors = _Anchors(anchors.ids[:0], anchors.first_rows[:0])
        if len(anchors.ids):
            self._empty_from = None
        elif after.epoch > filling.place.epoch and self._empty_from == filling.place.epoch:
            after = replace(after, epoch=self.plan.query.n_epochs)
        if after.epoch > filling.place.epoch:
            self._empty_from = after.epoch
        return _StepBatch(filling.place, after, self._selected(anchors), anchors)

    def _selected(self, anchors: _Anchors) -> Selection:
        return Selection(self.format, len(anchors.ids), PinnedRows(anchors.ids, self._log.ring, anchors.first_rows), self._log.version)

    # -- parts of batches ---------------------------------------------------------------------------------------------------------------------

    def places(self, batch: EpochBatch) -> int:
        """How many anchors a batch has."""
        return batch.rows.rows

    def after(self, batch: EpochBatch, gone: int) -> EpochPlace:
        """As `EpochBatches.after`. Rows that were overwritten before the batch was found are counted there."""
        return replace(batch.after, overwritten=batch.after.overwritten + gone)

    def part(self, batch: EpochBatch, start: int, stop: int, most: int) -> EpochPart:
        """What comes at the places from start to stop of a batch, at this moment: at most so many rows. Errors: as `at`."""
        ids, first_rows = batch.anchors if isinstance(batch, _StepBatch) else (NONE, NONE)
        with self._log.shared:
            self._check_generation()
            self._anchors.follow()
            rows, gone = self._living_of(_Anchors(ids[start:stop], first_rows[start:stop]))
            later, gone_later = self._living_of(_Anchors(ids[stop:], first_rows[stop:]))
            some = _Anchors(rows.ids[:most], rows.first_rows[:most])
            return EpochPart(self._selected(some), gone, min(len(later.ids), most - len(some.ids)), gone_later)
