"""What lies at some places of an epoch over shards: which rows come there, and these rows as one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tensordict import TensorDict

from tdreplay.memory import copy_rows
from tdreplay.schema import Columns
from tdreplay.selecting import Slots
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.epoch_answers import LOST, OVERWRITTEN, REPLACED, Outcomes, come_of
from tdreplay_client.sharding.joining import Memory, Part, check_same, joined_columns
from tdreplay_client.sharding.shard_batches import ShardBatch

__all__ = ["Given", "Piece", "Places", "made_batch"]


@dataclass(frozen=True)
class Given:
    """Rows that one answer brought.

    Attributes:
        places: Which of the places they are for, in ascending order.
        batch: The rows.
        number: Of their shard.
        shard_place: Of their shard among those of the buffer.
    """

    places: Slots
    batch: ShardBatch
    number: int
    shard_place: int


class Places:
    """What lies at some places of an epoch, one after the other.

    Attributes:
        ids: The rows that are to come, as their shards number them.
        shards: The numbers of their shards.
        outcomes: What becomes of each place's row.

    Args:
        given: The rows that come, in parts.
    """

    def __init__(self, ids: Slots, shards: Slots, outcomes: Outcomes, given: Sequence[Given]) -> None:
        self.ids, self.shards, self.outcomes, self._given = ids, shards, outcomes, given
        self._columns: Columns | None = None

    def __len__(self) -> int:
        return len(self.outcomes)

    @cached_property
    def comes(self) -> npt.NDArray[np.bool_]:
        """For each place whether a row comes."""
        return come_of(self.outcomes)

    @cached_property
    def gone(self) -> npt.NDArray[np.bool_]:
        """For each place whether its row was overwritten."""
        return np.isin(self.outcomes, (OVERWRITTEN, REPLACED))

    @cached_property
    def lost(self) -> npt.NDArray[np.bool_]:
        """For each place whether its row is gone with its shard."""
        return np.isin(self.outcomes, LOST)

    @cached_property
    def ranks(self) -> Slots:
        """For each place, and the one after the last, how many rows come before it."""
        found: Slots = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.comes)])
        return found

    @property
    def first(self) -> ShardBatch:
        """Some of the rows that come: one does."""
        return self._given[0].batch

    def columns(self, shards: int, memory: Memory) -> Columns:
        """All rows that come, of which there is one, in the order of their places, with the ids and slots of the whole buffer of so many shards.

        They are put together once. What their shards sent is let go.
        """
        if self._columns is None:
            parts = [Part(given.batch, given.number, given.shard_place, 0, given.batch.rows) for given in self._given]
            order = None if len(parts) == 1 else np.concatenate([self.ranks[given.places] for given in self._given])
            self._columns = joined_columns(parts, shards, order, memory)
            self._given = [Given(given.places[:0], given.batch._replace(columns={}), given.number, given.shard_place) for given in self._given[:1]]
        return self._columns


class Piece(NamedTuple):
    """Rows of a batch: those that come at the places from start to stop of some."""

    places: Places
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many come."""
        return int(self.places.ranks[self.stop] - self.places.ranks[self.start])

    def columns(self, shards: int, memory: Memory) -> Columns:
        """They, as a view of all rows of the places."""
        some = slice(*self.places.ranks[[self.start, self.stop]].tolist())
        return {name: column[some] for name, column in self.places.columns(shards, memory).items()}


def made_batch(pieces: Sequence[Piece], shards: int, memory: Memory, transfer: DeviceTransfer) -> TensorDict:
    """The batch of some pieces, with a row each at least, in the order of their places. `shards`: how many shards the buffer has.

    Where it is one piece, it is a view of memory that it shares with no row but its own.
    """
    found, first = [piece.columns(shards, memory) for piece in pieces], pieces[0].places.first
    columns = found[0] if len(found) == 1 else _stacked(found, pieces, memory)
    rows = sum(piece.rows for piece in pieces)
    return transfer.bring(columns, (rows, *first.batch_shape), first.dim_names).take()


def _stacked(found: Sequence[Columns], pieces: Sequence[Piece], memory: Memory) -> Columns:
    """The rows of all pieces in new memory."""
    for columns, piece in zip(found[1:], pieces[1:], strict=True):
        check_same(found[0], columns, int(piece.places.shards[piece.start]))
    starts = np.cumsum([0, *(piece.rows for piece in pieces)]).tolist()
    whole = {name: memory((starts[-1], *column.shape[1:]), column.dtype) for name, column in found[0].items()}
    for start, stop, columns in zip(starts, starts[1:], found, strict=False):
        for name, column in columns.items():
            copy_rows(column, whole[name][start:stop])
    return whole
