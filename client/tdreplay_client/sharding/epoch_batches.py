"""Batches of an epoch over several shards, cut out of what lies at its places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tdreplay.errors import OverwrittenError, ServerUnavailableError, TableChangedError
from tdreplay.shard_ids import sharded_row_ids
from tdreplay_client.sharding.epoch_places import Piece, Places
from tdreplay_client.sharding.epoch_plan import ShardedPlace, ShardedPlan
from tdreplay_client.sharding.epoch_read_ahead import PLACES, ReadAhead

__all__ = ["EpochBatches", "StepEpochBatches"]


class EpochBatches:
    """The batches of a plan, in turn. Places and rows are one to one: a batch has the rows that come at `batch_size` places.

    Args:
        plan: What comes.
        place: The first batch that is asked for.
        ahead: Reads what lies at the places, from that one on.
    """

    def __init__(self, plan: ShardedPlan, place: ShardedPlace, ahead: ReadAhead) -> None:
        self._plan, self._ahead = plan, ahead
        self._rest: Piece | None = None  # What was read of the places from the next one on.

    def next(self, place: ShardedPlace) -> tuple[list[Piece], ShardedPlace]:
        """The next batch, which begins at `place`, and the place after it. No piece: the epochs are over, or were closed.

        Raises:
            OverwrittenError: a row of it was overwritten, and on_overwrite is raise.
            TableChangedError, ServerUnavailableError: its rows cannot be read.
        """
        while not self._plan.is_over(place):
            if self._nothing_comes(place):
                return [], self._end(place)
            piece = self._read()
            if piece is None:
                break
            piece = self._cut(piece, min(piece.start + self._plan.query.batch_size, piece.stop))
            self._check_overwritten(piece)
            place = self._behind(place, piece)
            if piece.rows:
                return [piece], place
        return [], place

    def _read(self) -> Piece | None:
        """What was read from the next place on; None: it was closed."""
        if self._rest is not None:
            return self._rest
        found = self._ahead.take()
        if found is None:
            return None
        if found.lost.any():
            self._check_there()
        return Piece(found, 0, len(found))

    def _cut(self, piece: Piece, stop: int) -> Piece:
        """A piece up to a place. The next one begins there."""
        self._rest = piece._replace(start=stop) if stop < piece.stop else None
        return piece._replace(stop=stop)

    def _check_there(self) -> None:
        """Passes where rows of a shard may still come.

        Raises:
            TableChangedError: the tables of all shards are others by now.
            ServerUnavailableError: all shards are lost, but for those whose table is another one.
        """
        windows = self._ahead.windows
        if all(window.is_gone for window in windows):
            raise TableChangedError("the tables of all shards were reset, rewound or lost rows since the epochs began")
        if all(window.is_gone or window.is_given_up for window in windows):
            raise ServerUnavailableError(f"all {len(windows)} shards that the epochs go over are lost for longer than the buffer's timeout")

    def _nothing_comes(self, place: ShardedPlace) -> bool:
        """Whether no row comes any more: all were overwritten, and are to be left out, or, from the beginning of an epoch on, are gone."""
        if self._rest is not None or self._plan.query.on_overwrite != "skip":
            return False
        windows = self._ahead.windows
        return all(window.has_none_left or (window.is_gone and not place.position) for window in windows) and not all(one.is_gone for one in windows)

    def _end(self, place: ShardedPlace) -> ShardedPlace:
        """The end, where nothing comes after `place`. Of the rows that were to come, shards have as many as of those of a whole epoch."""
        after, gone = self._plan.end(place), sum(window.window.rows for window in self._ahead.windows if window.is_gone)
        lost = (after.overwritten - place.overwritten) * gone // self._plan.rows
        return replace(after, overwritten=after.overwritten - lost, lost=place.lost + lost)

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
        self._empty_from = None if place.position else place.epoch  # Since the beginning of this epoch nothing came.

    def next(self, place: ShardedPlace) -> tuple[list[Piece], ShardedPlace]:
        while not self._plan.is_over(place):
            if self._nothing_comes(place):
                return [], self._end(place)
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
            piece = self._read()
            if piece is None:
                return None
            piece = self._cut(piece, self._stop(piece, missing))
            if piece.rows:
                pieces.append(piece)
            missing -= piece.rows
            now = self._behind(now, piece)
            looked_behind += 0 if missing else piece.stop - piece.start
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
