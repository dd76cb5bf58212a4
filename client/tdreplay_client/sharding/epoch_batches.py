"""Batches of an epoch over several shards, cut out of what lies at its places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tensordict import TensorDict

from tdreplay.errors import OverwrittenError, TableChangedError
from tdreplay.selecting import Slots
from tdreplay.shard_ids import sharded_row_ids
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.epoch_plan import ShardedPlace, ShardedPlan
from tdreplay_client.sharding.epoch_rows import PLACES, Places, ReadAhead
from tdreplay_client.sharding.joining import joined

__all__ = ["EpochBatches", "Piece", "StepEpochBatches", "made_batch"]


class Piece(NamedTuple):
    """Rows of a batch: those that come at the places from start to stop of some."""

    places: Places
    start: int
    stop: int


def made_batch(pieces: Sequence[Piece], shards: int, transfer: DeviceTransfer) -> TensorDict:
    """The batch of some pieces, one row at least, in the order of their places. `shards`: how many shards the buffer has."""
    parts, targets, before = [], [], 0
    for places, start, stop in pieces:
        ranks: Slots = np.cumsum(places.comes[start:stop]) - 1 + before
        for part, mine in places.parts(start, stop):
            parts.append(part)
            targets.append(ranks[mine - start])
        before += int(np.count_nonzero(places.comes[start:stop]))
    return joined(parts, shards, None if len(parts) == 1 else np.concatenate(targets), transfer)


class EpochBatches:
    """The batches of a plan, in turn. Places and rows are one to one: a batch has the rows that come at `batch_size` places.

    Args:
        plan: What comes.
        place: The first batch that is asked for.
        ahead: Reads what lies at the places, from that one on.
    """

    def __init__(self, plan: ShardedPlan, place: ShardedPlace, ahead: ReadAhead) -> None:
        self._plan, self._ahead = plan, ahead

    def next(self, place: ShardedPlace) -> tuple[list[Piece], ShardedPlace]:
        """The next batch, which begins at `place`, and the place after it. No piece: the epochs are over, or were closed.

        Raises:
            OverwrittenError: a row of it was overwritten, and on_overwrite is raise.
            TableChangedError, ServerUnavailableError: its rows cannot be read.
        """
        while not self._plan.is_over(place):
            if self._nothing_left:
                return [], self._plan.end(place)
            found = self._ahead.take()
            if found is None:
                break
            whole = Piece(found, 0, len(found.outcomes))
            self._check_overwritten(whole)
            place = self._behind(place, whole)
            if found.comes.any():
                return [whole], place
        return [], place

    @property
    def _nothing_left(self) -> bool:
        """Whether all rows were overwritten, and are to be left out.

        Raises:
            TableChangedError: the tables of all shards are others by now.
        """
        windows = self._ahead.windows
        if all(window.is_gone for window in windows):
            raise TableChangedError("the tables of all shards were reset, rewound or lost rows since the epochs began")
        return self._plan.query.on_overwrite == "skip" and all(window.has_none_left for window in windows)

    def _behind(self, place: ShardedPlace, piece: Piece) -> ShardedPlace:
        """The place after a piece from `place` on, with what was overwritten or lost in it."""
        found, start, stop = piece
        gone, lost = int(np.count_nonzero(found.gone[start:stop])), int(np.count_nonzero(found.lost[start:stop]))
        return replace(self._plan.behind(place, stop - start, gone), lost=place.lost + lost)

    def _check_overwritten(self, piece: Piece) -> None:
        found, start, stop = piece
        gone = found.gone[start:stop]
        if self._plan.query.on_overwrite == "raise" and gone.any():
            raise _overwritten(found, start + int(gone.argmax()))

    def close(self) -> None:
        """Ends what reads ahead."""
        self._ahead.close()


def _overwritten(found: Places, at: int) -> OverwrittenError:
    shard = int(found.shards[at])
    row_id = sharded_row_ids(int(found.ids[at]), shard)
    return OverwrittenError(f"row {row_id} was overwritten before it came in its epoch, or steps before it that it needs; it was of shard {shard}")


class StepEpochBatches(EpochBatches):
    """As `EpochBatches`, for rows that are steps, of which not every one comes: batches are filled up, but for the last one of each epoch.

    Where nothing comes in a whole epoch, nothing comes any more.
    """

    def __init__(self, plan: ShardedPlan, place: ShardedPlace, ahead: ReadAhead) -> None:
        super().__init__(plan, place, ahead)
        self._rest: Piece | None = None  # What was read of the places from the next one on.
        self._empty_from = None if place.position else place.epoch  # Since the beginning of this epoch nothing came.

    def next(self, place: ShardedPlace) -> tuple[list[Piece], ShardedPlace]:
        while not self._plan.is_over(place):
            if self._nothing_left and self._rest is None:
                return [], self._plan.end(place)
            filled = self._filled(place)
            if filled is None:
                break
            pieces, missing, after = filled
            if missing and self._plan.query.drop_last:
                pieces = []
            place = self._noted(place, after, something=bool(pieces))
            if pieces:
                return pieces, place
        return [], place

    def _noted(self, place: ShardedPlace, after: ShardedPlace, *, something: bool) -> ShardedPlace:
        """The place after a batch: the end, where the epoch had nothing."""
        if something:
            self._empty_from = None
        elif after.epoch > place.epoch and self._empty_from == place.epoch:
            after = replace(after, epoch=self._plan.query.n_epochs)
        if after.epoch > place.epoch:
            self._empty_from = after.epoch
        return after

    def _filled(self, place: ShardedPlace) -> tuple[list[Piece], int, ShardedPlace] | None:
        """The rows of a batch, how many more would fit into it, and the place after it: that of the next row, where it is near. None: closed."""
        pieces: list[Piece] = []
        missing, looked_behind, now = self._plan.query.batch_size, 0, place
        while now.epoch == place.epoch:
            piece = self._rest
            if piece is None:
                found = self._ahead.take()
                if found is None:
                    return None
                piece = Piece(found, 0, len(found.outcomes))
            stop = self._stop(piece, missing)
            taken = piece._replace(stop=stop)
            count = int(np.count_nonzero(piece.places.comes[piece.start : stop]))
            if count:
                pieces.append(taken)
            missing -= count
            now = self._behind(now, taken)
            self._rest = piece._replace(start=stop) if stop < piece.stop else None
            looked_behind += 0 if missing else stop - piece.start
            if not missing and (self._rest is not None or looked_behind >= PLACES):
                break
        return pieces, missing, now

    def _stop(self, piece: Piece, missing: int) -> int:
        """How far the places of a piece belong to a batch with so many rows missing: up to the first row after it.

        Raises:
            OverwrittenError: a row before that was overwritten, and on_overwrite is raise.
        """
        found, start, stop = piece
        coming = np.flatnonzero(found.comes[start:stop]) + start
        if len(coming) > missing:
            stop = int(coming[missing])
        gone = found.gone[start:stop]
        if self._plan.query.on_overwrite == "raise" and gone.any():
            first = start + int(gone.argmax())
            if np.searchsorted(coming, first) < missing:
                raise _overwritten(found, first)
            return first
        return stop
