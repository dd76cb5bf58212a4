"""Slots over several shards.

Slot s of the shard at place p of n is slot ``s * n + p`` of the buffer. So a buffer whose shards are filled in turn has its rows in the same slots as
one that is no shard. A slot means another row when the number of shards changes; a row id does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tdreplay.selecting import Slots, in_slot_order
from tdreplay.state import State

__all__ = ["places_of", "stored_slots", "whole_slots"]


def whole_slots(slots: Any, place: int, shards: int) -> Any:
    """The slots of the buffer for slots of the shard at `place` among so many: numbers, arrays or tensors."""
    return slots * shards + place


def places_of(slots: Slots, shards: int) -> tuple[Slots, Slots]:
    """For slots of the buffer: the places of their shards, and the slots there."""
    return slots % shards, slots // shards


def stored_slots(states: Iterable[tuple[int, State]], shards: int) -> Slots:
    """The slots of all stored rows, ascending, by the places and the states of the shards that are there, among so many."""
    found = [whole_slots(_stored(state), place, shards) for place, state in states]
    return np.sort(np.concatenate(found))


def _stored(state: State) -> Slots:
    """The slots of a shard that hold a row."""
    return in_slot_order(np.arange(state.size, dtype=np.int64), state.buffer_size, state.write_count - state.size, state.size)
