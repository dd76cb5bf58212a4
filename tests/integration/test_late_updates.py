"""An update of priorities that comes late: the rows that it is about are gone, and the rows in their slots keep their own priorities."""

from __future__ import annotations

import time

import pytest
import torch

from tdreplay.priorities import Updated
from tdreplay.samplers import MaxHeap, Prioritized
from tdreplay_client import RemoteReplayBuffer

SLOTS, BATCH = 64, 32


def opened(address: str, table: str, sampler=None) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(address, table=table, buffer_size=SLOTS, sampler=sampler)


def add(buffer: RemoteReplayBuffer, count: int) -> None:
    buffer.add_batch({"number": torch.arange(count)})


def until_heard(buffer: RemoteReplayBuffer, updates: int) -> Updated:
    """What became of so many rows of updates."""
    deadline = time.monotonic() + 30
    while sum(found := (buffer.describe().updated, buffer.describe().stale)) < updates:
        assert time.monotonic() < deadline, f"{found} of {updates} rows were heard of"
        time.sleep(0.01)
    return Updated(*found)


def priorities(buffer: RemoteReplayBuffer) -> dict[int, float]:
    """The ids of the rows that are drawn, and their priorities."""
    batch = buffer.sample_batch(40 * SLOTS)
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


@pytest.mark.parametrize("prefetch", [1, 4, 16])
@pytest.mark.parametrize("sampler", [Prioritized(0.6), MaxHeap()], ids=str)
def test_batches_that_were_overwritten_before_their_update_change_no_row_and_are_counted(address, table, sampler, prefetch):
    with opened(address, table, sampler) as learner, opened(address, table) as other:
        add(other, SLOTS)
        with learner.stream(BATCH, prefetch=prefetch) as stream:
            batches = [next(stream) for _ in range(prefetch)]
            add(other, SLOTS)
            for batch in batches:
                stream.update_priorities(batch, torch.full((BATCH,), 77.0))
            assert until_heard(other, prefetch * BATCH) == (0, prefetch * BATCH)
        assert learner.update_priorities(batches[0]["row_id"], 77.0) == (0, BATCH)
        assert priorities(other) == dict.fromkeys(range(SLOTS, 2 * SLOTS), 1.0)
        add(other, 1)
        assert priorities(other)[2 * SLOTS] == 1.0  # A priority that no row ever had is not the highest one.


@pytest.mark.parametrize("prefetch", [1, 4, 16])
def test_of_a_batch_that_was_overwritten_in_part_the_other_rows_are_updated(address, table, prefetch):
    with opened(address, table, Prioritized(1.0)) as learner, opened(address, table) as other:
        add(other, SLOTS)
        with learner.stream(BATCH, prefetch=prefetch) as stream:
            batches = [next(stream) for _ in range(prefetch)]
            add(other, SLOTS // 2)
            live = torch.cat([batch["row_id"] for batch in batches]) >= SLOTS // 2
            for batch in batches:
                stream.update_priorities(batch, torch.full((BATCH,), -2.5))
            assert until_heard(other, len(live)) == (int(live.sum()), int((~live).sum()))
        changed = {row_id for batch in batches for row_id in batch["row_id"].tolist() if row_id >= SLOTS // 2}
        expected = {row_id: 2.5 if row_id in changed else 1.0 for row_id in range(SLOTS // 2, SLOTS + SLOTS // 2)}
        assert priorities(other) == expected


def test_two_learners_that_read_ahead_update_their_own_rows(address, table):
    """One is late for all of its rows, and one for none."""
    with opened(address, table, Prioritized(1.0)) as late, opened(address, table) as quick:
        add(quick, SLOTS)
        with late.stream(BATCH, prefetch=8) as old:
            batch = next(old)
            add(quick, SLOTS)
            with quick.stream(BATCH, prefetch=8) as new:
                current = next(new)
                new.update_priorities(current, 3.0)
                old.update_priorities(batch, 50.0)
                assert until_heard(quick, 2 * BATCH) == (BATCH, BATCH)
        updated = set(current["row_id"].tolist())
        assert priorities(quick) == {row_id: 3.0 if row_id in updated else 1.0 for row_id in range(SLOTS, 2 * SLOTS)}
