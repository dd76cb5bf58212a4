"""Rows of a buffer over several shards by slot, by episode, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.errors import EmptyTableError, EpisodeNotFoundError, SlotIndexError
from tdreplay.progress import Progress
from tdreplay.selecting import Slots
from tdreplay.shard_ids import sharded_row_ids
from tdreplay.state import State
from tdreplay.system_fields import INDEX
from tdreplay.trajectory_state import Episode
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.joining import Part, joined
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.shard_set import ShardSet, in_places
from tdreplay_client.sharding.slots import places_of, stored_slots

__all__ = ["StoredSlots", "all_rows", "episode_rows", "listed_episodes", "rows_in_slots"]

REPORT_SECONDS = 0.05
"""How often progress is told of."""
Call = Callable[[Shard, "Progress | None"], "T"]
T = TypeVar("T")


class StoredSlots:
    """The slots that hold a row, for `as_slots`.

    Args:
        states: Gives the state of each shard that is there, and that of the whole buffer.
        shards: The shards.
    """

    def __init__(self, states: Callable[[], tuple[list[tuple[Shard, State]], State]], shards: ShardSet) -> None:
        self._states, self._shards = states, shards
        self._slots: Slots | None = None

    def state(self) -> State:
        """That of the whole buffer, to which `at` refers from now on."""
        before = self._shards.now
        found, whole = self._states()
        there = in_places(before, [shard for shard, _ in found])
        self._slots = stored_slots([(there.index(shard), state) for shard, state in found], len(there))
        return whole

    def at(self, positions: Slots, _state: State) -> Slots:
        """The slots at these positions of the stored rows in slot order."""
        slots = self._slots
        assert slots is not None  # noqa: S101 - `as_slots` asks for the state first.
        found: Slots = slots[positions] if len(slots) else positions
        return found


def rows_in_slots(
    shards: ShardSet,
    transfer: DeviceTransfer,
    slots: Slots,
    fields: tuple[str, ...] | None,
    view: TableView | None,
    *,
    priorities: bool,
    state: Callable[[], State],
) -> TensorDict:
    """The rows in these slots, in this order: as `BaseReplayBuffer._by_slots`. All shards that have some are asked at once.

    Raises:
        SlotIndexError: a slot holds no row.
    """
    there = shards.now
    places, inside = places_of(slots, len(there))
    positions = [np.flatnonzero(places == place) for place in range(len(there))]
    some = [place for place, found in enumerate(positions) if len(found)]

    def read(shard: Shard, own: Slots) -> ShardBatch:
        return shard.asked(lambda table: table.rows_in_slots(own, fields, view, priorities=priorities))

    def rows(shard: Shard) -> ShardBatch | SlotIndexError:
        try:
            return read(shard, inside[positions[there.index(shard)]])
        except SlotIndexError as error:
            return error

    answers = dict(zip(some, shards.each(rows, [there[place] for place in some]), strict=True))
    for place, error in answers.items():
        if isinstance(error, SlotIndexError):
            raise _named(error, slots, shards, state, partial(_refused, there[place], positions[place], inside, read)) from None
    batches = [answer for answer in answers.values() if not isinstance(answer, SlotIndexError)]
    parts = [Part(batch, there[place].number, place, 0, batch.rows) for place, batch in zip(some, batches, strict=True)]
    order = np.concatenate([positions[place] for place in some]) if len(parts) > 1 else None
    return joined(parts, len(there), order, transfer.for_view(view))


def _refused(shard: Shard, positions: Slots, inside: Slots, read: Callable[[Shard, Slots], ShardBatch]) -> int:
    """The first of these positions whose slot the shard refuses: one of them is refused."""
    low, high = 0, len(positions)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            read(shard, inside[positions[low:middle]])
            low = middle
        except SlotIndexError:
            high = middle
    return int(positions[low])


def _named(error: SlotIndexError, slots: Slots, shards: ShardSet, state: Callable[[], State], refused: Callable[[], int]) -> SlotIndexError:
    """The error that says which slot of the whole buffer holds no row; where all do, of which one the view cannot be made."""
    before = shards.now
    found = shards.on_those_there(lambda shard: shard.asked(lambda table: table.state()))
    there = in_places(before, [shard for shard, _ in found])
    states = [(there.index(shard), state) for shard, state in found]
    answered = np.isin(places_of(slots, len(there))[0], [place for place, _ in states])
    empty = answered & ~np.isin(slots, stored_slots(states, len(there)))
    if not empty.any():
        return error if len(there) == 1 else SlotIndexError(f"index {slots[refused()]} holds no step of which the view can be made: {error}")
    whole = state()
    over = "one shard" if len(there) == 1 else f"{len(there)} shards"
    return SlotIndexError(f"index {slots[empty][0]} holds no row: the buffer has {whole.size} rows in its {whole.buffer_size} slots, over {over}")


def all_rows(shards: ShardSet, transfer: DeviceTransfer, progress: Progress | None) -> TensorDict:
    """Every stored row, in slot order. Where the buffer goes on without lost shards, the rows say how many of these there are.

    Raises:
        EmptyTableError: there is none.
    """
    there = shards.now

    def rows(shard: Shard, told: Progress | None) -> ShardBatch | None:
        try:
            return shard.asked(lambda table: table.all_rows(told))
        except EmptyTableError:
            return None

    asked = [shard for shard in there if shard.is_there or not shards.goes_on]
    found = reported(shards, rows, asked, progress)
    parts = [Part(batch, shard.number, there.index(shard), 0, batch.rows) for shard, batch in zip(asked, found, strict=True) if batch is not None]
    if not parts:
        raise EmptyTableError("the table is empty: there is no row to read yet")
    lost = len(there) - len(asked) if shards.goes_on else None
    return joined(parts, len(there), _in_slot_order(parts, len(there)), transfer, lost=lost)


def _in_slot_order(parts: Sequence[Part], shards: int) -> npt.NDArray[np.int64] | None:
    if len(parts) == 1:
        return None
    slots = torch.cat([part.batch.columns[INDEX.name] * shards + part.place for part in parts]).numpy()
    order = np.empty(len(slots), np.int64)
    order[np.argsort(slots)] = np.arange(len(slots))
    return order


def reported(shards: ShardSet, call: Call[T], asked: Sequence[Shard], progress: Progress | None) -> list[T]:
    """As `ShardSet.each`, for calls that say how far they are: this thread is told of the sums, once all shards have said their total."""
    if progress is None:
        return shards.each(lambda shard: call(shard, None), asked)
    done: dict[Shard, tuple[int, int]] = {}
    running = shards.started(lambda shard: call(shard, lambda now, total: done.update({shard: (now, total)})), asked)
    before, left = None, set(running)
    while left:
        left = wait(left, REPORT_SECONDS).not_done
        told = list(done.values())
        if told != before and (len(told) == len(asked) or not left):
            progress(sum(now for now, _ in told), sum(total for _, total in told))
            before = told
    return [future.result() for future in running]


def listed_episodes(shards: ShardSet) -> list[Episode]:
    """The episodes of all shards, by ascending first row."""
    found = shards.on_those_there(lambda shard: shard.asked(lambda table: table.episodes()))
    whole = [replace(episode, first_row_id=sharded_row_ids(episode.first_row_id, shard.number)) for shard, some in found for episode in some]
    return sorted(whole, key=lambda episode: episode.first_row_id)


def episode_rows(shards: ShardSet, transfer: DeviceTransfer, episode_id: int) -> tuple[TensorDict, bool]:
    """The rows of an episode in order, and whether the last one is the final observation. It is on one shard, and all are asked.

    Raises:
        EpisodeNotFoundError: no shard that is there has it.
    """
    before = shards.now

    def rows(shard: Shard) -> tuple[ShardBatch, bool] | EpisodeNotFoundError:
        try:
            return shard.asked(lambda table: table.episode_rows(episode_id))
        except EpisodeNotFoundError as error:
            return error

    found = shards.on_those_there(rows)
    there = in_places(before, [shard for shard, _ in found])
    for shard, answer in found:
        if not isinstance(answer, EpisodeNotFoundError):
            batch, has_final = answer
            return joined([Part(batch, shard.number, there.index(shard), 0, batch.rows)], len(there), None, transfer), has_final
    raise next(answer for _, answer in found if isinstance(answer, EpisodeNotFoundError))
