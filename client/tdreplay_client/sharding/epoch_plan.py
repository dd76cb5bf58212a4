"""Epochs over several shards: which rows they have, in one order, and the token that says where a learner stands."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tdreplay.epochs import EpochPlace, EpochPlan, EpochQuery, Token
from tdreplay.errors import TokenError
from tdreplay.limits import MAX_INT64, MAX_SHARDS, shown
from tdreplay.orders import RandomOrder
from tdreplay.selecting import Slots
from tdreplay.tokens import check_keys, text_of, whole_of
from tdreplay_client.sharding.slot_order import SlotOrder

__all__ = ["FIRST", "ShardWindow", "ShardedPlace", "ShardedPlan"]


@dataclass(frozen=True)
class ShardWindow:
    """The rows of one shard over which epochs go: ids as the shard gave them, one at least.

    Attributes:
        shard: The number of the shard.
        generation_id: Of its table. The ids belong to it.
        first_row_id: The first row.
        end_row_id: The row after the last one.
        buffer_size: The slots of its table.
    """

    shard: int
    generation_id: str
    first_row_id: int
    end_row_id: int
    buffer_size: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.end_row_id - self.first_row_id

    @classmethod
    def of_token(cls, value: Any) -> ShardWindow:
        """What a token says of a shard.

        Raises:
            TokenError: it cannot be.
        """
        entries = check_keys(value, cls.__dataclass_fields__)
        first = whole_of(entries, "first_row_id", 0, MAX_INT64 - 1)
        end = whole_of(entries, "end_row_id", first + 1, MAX_INT64)
        shard, size = whole_of(entries, "shard", 0, MAX_SHARDS - 1), whole_of(entries, "buffer_size", end - first, MAX_INT64)
        return cls(shard, text_of(entries, "generation_id"), first, end, size)


@dataclass(frozen=True)
class ShardedPlace(EpochPlace):
    """As `EpochPlace`.

    Attributes:
        lost: The rows of shards that were gone for good when they were to come, so far.
    """

    lost: int = 0


FIRST = ShardedPlace()


@dataclass(frozen=True)
class ShardedPlan(EpochPlan):
    """As `EpochPlan`. The rows of all shards have one order, and numbers from 0 up to their sum take the place of row ids.

    Attributes:
        windows: The rows of each shard that has one, in the order of the shards.
    """

    windows: tuple[ShardWindow, ...] = ()

    @classmethod
    def over_shards(cls, query: EpochQuery, table: str, windows: Sequence[ShardWindow], seed: int | None, *, of_steps: bool) -> ShardedPlan:
        """Epochs over the rows of these windows. Where there is no seed, one is drawn."""
        rows = sum(window.rows for window in windows)
        return cls(query, table, "", 0, rows, secrets.randbits(63) if seed is None else seed, of_steps, tuple(windows))

    @cached_property
    def _slots(self) -> SlotOrder:
        return SlotOrder([(window.first_row_id, window.end_row_id, window.buffer_size) for window in self.windows])

    @cached_property
    def _starts(self) -> Slots:
        """For each window the number of its first row."""
        return np.cumsum([0, *(window.rows for window in self.windows[:-1])], dtype=np.int64)

    def rows_at(self, epoch: int, start: int, stop: int) -> tuple[Slots, Slots]:
        """For the learner's places from start to stop of an epoch: the numbers of the windows, and the row ids as their shards gave them."""
        query = self.query
        places = np.arange(start, stop, dtype=np.int64) * query.world_size + query.rank
        if not query.shuffle:
            return self._slots.at(places)
        numbers = RandomOrder.keyed(self.rows, self.seed, epoch).at(places)
        found = np.searchsorted(self._starts, numbers, side="right") - 1
        firsts = np.array([window.first_row_id for window in self.windows], np.int64)
        return found, numbers - self._starts[found] + firsts[found]

    # -- the token ----------------------------------------------------------------------------------------------------------------------------

    def token(self, place: EpochPlace) -> Token:
        """As `EpochPlan.token`, with the window of each shard in place of one: some 150 bytes a shard."""
        whole = super().token(place)
        for name in ("generation_id", "first_row_id", "end_row_id"):
            del whole[name]
        return {**whole, "lost": place.lost if isinstance(place, ShardedPlace) else 0, "shards": [vars(window) for window in self.windows]}

    def at_token(self, token: object) -> tuple[ShardedPlan, ShardedPlace]:
        """As `EpochPlan.at_token`."""
        entries = self._entries(token)
        windows, seed = _windows_of(entries), whole_of(entries, "seed", 0, MAX_INT64)
        found = replace(self, first_row_id=0, end_row_id=sum(window.rows for window in windows), seed=seed, windows=windows)
        place = ShardedPlace(*(whole_of(entries, name, 0, MAX_INT64) for name in ("epoch", "position", "overwritten", "lost")))
        found.check_place(place)
        return found, place


def _windows_of(entries: Mapping[str, Any]) -> tuple[ShardWindow, ...]:
    """The windows of a token.

    Raises:
        TokenError: they cannot be.
    """
    given = entries["shards"]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_SHARDS:
        raise TokenError(f"the token's shards ({shown(given)}) must be a list of 1 to {MAX_SHARDS}")
    windows = tuple(ShardWindow.of_token(value) for value in given)
    numbers = [window.shard for window in windows]
    if len(set(numbers)) < len(numbers) or sum(window.rows for window in windows) > MAX_INT64:
        raise TokenError(f"the token's shards ({shown(numbers)}) must all be different, and have at most {MAX_INT64} rows")
    return windows
