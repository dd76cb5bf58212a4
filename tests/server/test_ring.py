"""The arithmetic of the ring, against sets of row ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdreplay.errors import MissingRowsError, SlotIndexError
from tdreplay_server.storage.ring import Ring

unhurried = settings(deadline=None)  # The machine may be busy.
rings = st.builds(
    lambda buffer_size, write_count, size: Ring(buffer_size, write_count - min(size, buffer_size, write_count), write_count),
    st.integers(1, 20),
    st.integers(0, 100) | st.integers(1 << 40, (1 << 40) + 100),
    st.integers(0, 20),
)


def live(ring: Ring) -> dict[int, int]:
    """Slot -> row id."""
    return {row_id % ring.buffer_size: row_id for row_id in range(ring.oldest, ring.write_count)}


@unhurried
@given(rings)
def test_positions_in_slot_order_are_the_live_slots_ascending(ring):
    assert ring.in_slot_order(np.arange(ring.size)).tolist() == sorted(live(ring))


@unhurried
@given(rings)
def test_a_live_slot_has_its_row_id(ring):
    rows = live(ring)
    slots = np.array(sorted(rows), np.int64)
    assert ring.row_ids(slots).tolist() == [rows[slot] for slot in slots.tolist()]


@unhurried
@given(rings, st.integers(-3, 25))
def test_a_slot_is_live_where_it_holds_a_row(ring, slot):
    if slot in live(ring):
        ring.check_live(np.array([slot]))
    else:
        with pytest.raises(SlotIndexError, match=f"index {slot} "):
            ring.check_live(np.array([*live(ring), slot, -99]))


@unhurried
@given(rings, st.integers(1, 60))
def test_a_write_that_breaks_leaves_the_rows_that_it_did_not_touch(ring, rows):
    written = {row_id % ring.buffer_size for row_id in range(ring.write_count, ring.write_count + rows)}
    retired = ring.retire(rows)
    assert live(retired).keys().isdisjoint(written)
    assert live(retired).items() <= live(ring).items()
    # The window is the oldest rows' loss alone: whatever was not going to be overwritten stays, as long as the ring was full or had room.
    assert live(ring).keys() - written == live(retired).keys()


@unhurried
@given(rings, st.integers(1, 60))
def test_a_commit_makes_the_last_rows_live(ring, rows):
    after = ring.retire(rows).commit(rows)
    assert after.write_count == ring.write_count + rows
    assert after.size == min(ring.buffer_size, after.write_count - ring.oldest)


@unhurried
@given(rings, st.integers(1, 20))
def test_a_restart_is_empty_starts_at_slot_0_and_gives_no_id_again(ring, buffer_size):
    after = ring.restart(buffer_size)
    assert (after.size, after.pointer, after.buffer_size) == (0, 0, buffer_size)
    assert after.write_count >= ring.write_count


@unhurried
@given(rings, st.integers(0, 20), st.integers(0, 100))
def test_a_rewind_needs_every_row_that_it_speaks_of(ring, size, write_count):
    wanted = set(range(write_count - size, write_count))
    if wanted <= set(live(ring).values()):
        assert set(live(ring.rewind(size, write_count)).values()) == wanted
    else:
        with pytest.raises(MissingRowsError):
            ring.rewind(size, write_count)
