"""Rows of shards by slot, all of them, and by episode; priorities by row id; what is said of bad input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_servers import fill_unevenly, numbered, shard_servers
from tensordict import TensorDict

from tdreplay.errors import (
    EmptyTableError,
    EpisodeNotFoundError,
    FieldNotFoundError,
    InvalidArgumentError,
    NoPrioritiesError,
    RowIdError,
    SlotIndexError,
)
from tdreplay.shard_ids import sharded_row_ids
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer

SHARDS = 3


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(SHARDS) as found:
        yield found


@pytest.fixture
def buffer(addresses, table) -> Iterator[ShardedReplayBuffer]:
    """Shards with 2, 0 and 5 rows, whose numbers are 0 to 6, in 5 slots each."""
    fill_unevenly(addresses, table, (2, 0, 5), priorities=np.arange(1.0, 8.0), sampler="prioritized")
    with ShardedReplayBuffer(addresses, table=table) as made:
        yield made


STORED = {0: 0, 3: 1, 2: 2, 5: 3, 8: 4, 11: 5, 14: 6}
"""Slot of the whole -> number of its row, in `buffer`."""
IN_ORDER = [STORED[slot] for slot in sorted(STORED)]


# -- by slot --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    {
        "slots": ([14, 0, 8, 8], [6, 0, 4, 4]),
        "negative": ([-1, -7], [6, 0]),
        "both": ([-1, 3], [6, 1]),
        "slice": (slice(1, 4), IN_ORDER[1:4]),
        "slice backwards": (slice(None, None, -3), IN_ORDER[::-3]),
        "mask": ([True, False, False, False, False, True, False], [IN_ORDER[0], IN_ORDER[5]]),
        "one": (5, 3),
        "shape": (np.array([[0, 2], [5, 8]]), [[0, 2], [3, 4]]),
    }.values(),
)
def test_an_index_names_rows_of_all_shards(buffer, index, expected):
    assert buffer.sample_by_index(index)["number"].tolist() == expected


_tables = itertools.count()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), sizes=st.tuples(*[st.integers(0, 12)] * SHARDS).filter(any))
def test_slots_are_those_of_a_whole_that_is_filled_unevenly(addresses, data, sizes):
    table = f"slots-{next(_tables)}"
    fill_unevenly(addresses, table, sizes)
    with ShardedReplayBuffer(addresses, table=table) as whole:
        firsts = np.cumsum((0, *sizes))
        stored = {slot * SHARDS + place: int(firsts[place]) + slot for place, size in enumerate(sizes) for slot in range(size)}
        everything = whole.sample_all()
        assert everything["index"].tolist() == sorted(stored)
        assert everything["number"].tolist() == [stored[slot] for slot in sorted(stored)]
        slots = data.draw(st.lists(st.sampled_from(sorted(stored)), min_size=1, max_size=20))
        batch = whole.sample_by_index(slots)
        assert (batch["index"].tolist(), batch["number"].tolist()) == (slots, [stored[slot] for slot in slots])
        start, stop, step = data.draw(st.slices(len(stored)).map(lambda one: one.indices(len(stored))))
        if positions := range(len(stored))[slice(start, stop if stop >= 0 else None, step)]:
            chosen = whole.sample_by_index(slice(start, stop if stop >= 0 else None, step))
            assert chosen["index"].tolist() == [sorted(stored)[position] for position in positions]


def test_named_fields_alone_come_and_priorities_where_they_are_asked_for(buffer):
    batch = buffer.sample_by_index_fields([14, 0], "number", priorities=True)
    assert (sorted(batch.keys()), batch["priority"].tolist()) == (["number", "priority"], [7.0, 1.0])
    assert buffer.sample_by_index_fields([3], ("row_id",))["row_id"].tolist() == [1]


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ([0, 1], SlotIndexError, "index 1 holds no row: the buffer has 7 rows in its 15 slots"),
        ([0, 15], SlotIndexError, "index 15 holds no row"),
        ([-8], SlotIndexError, "index -8 holds no row"),
        ([True], InvalidArgumentError, r"must have shape \[7\]"),
        ([1.5], InvalidArgumentError, "whole numbers"),
    ],
)
def test_an_index_that_names_no_row_is_refused_by_its_own_number(buffer, index, error, words):
    with pytest.raises(error, match=words):
        buffer.sample_by_index(index)


def test_an_unknown_field_is_refused(buffer):
    with pytest.raises(FieldNotFoundError, match="nowhere"):
        buffer.sample_by_index_fields([0, 2], "nowhere")


# -- all rows -------------------------------------------------------------------------------------------------------------------------------------


def test_all_rows_come_in_slot_order_and_progress_is_the_sum(buffer):
    told = list[tuple[int, int]]()
    everything = buffer.sample_all(progress=lambda done, total: told.append((done, total)))
    assert everything["number"].tolist() == IN_ORDER
    assert told[-1] == (7, 7)


def test_all_rows_of_an_empty_buffer_are_an_error(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=9) as buffer, pytest.raises(EmptyTableError):
        buffer.sample_all()


# -- priorities -----------------------------------------------------------------------------------------------------------------------------------


def test_priorities_go_to_the_shards_of_their_rows_and_the_last_of_equal_ids_counts(buffer):
    ids = buffer.sample_all()["row_id"]
    updated = buffer.update_priorities(torch.cat([ids, ids]), torch.cat([torch.zeros(7), torch.arange(7.0)]))
    assert (updated.updated, updated.stale) == (14, 0)
    assert buffer.sample_by_index_fields(slice(None), "number", priorities=True)["priority"].tolist() == list(range(7))


def test_rows_that_are_gone_are_counted_as_stale(buffer, addresses, table):
    with RemoteReplayBuffer(addresses[2], table=table) as shard:
        shard.add_batch(numbered(7, 2))
    updated = buffer.update_priorities([*sharded_row_ids(np.arange(7), 2).tolist(), 1], 3.0)
    assert (updated.updated, updated.stale) == (6, 2)


@pytest.mark.parametrize(
    ("row_ids", "priorities", "error", "words"),
    [
        ([0, 3 << 48], 1.0, RowIdError, "of a shard of the buffer: it is of shard 3"),
        ([0, -1], 1.0, RowIdError, "-1"),
        ([0, 2], 1.0, RowIdError, "2"),
        ([0, 1], [1.0], InvalidArgumentError, "priorities"),
        ([0, 1], [1.0, -1.0], InvalidArgumentError, "-1"),
        ([0.5], 1.0, InvalidArgumentError, "integers"),
    ],
)
def test_bad_updates_change_nothing(buffer, row_ids, priorities, error, words):
    with pytest.raises(error, match=words):
        buffer.update_priorities(row_ids, priorities)
    assert buffer.sample_by_index_fields([0], "number", priorities=True)["priority"].tolist() == [1.0]


def test_rows_without_priorities_have_none_to_update(addresses, table):
    fill_unevenly(addresses, table, (1, 1, 1))
    with ShardedReplayBuffer(addresses, table=table) as buffer:
        for row_ids in ([], [0]):
            with pytest.raises(NoPrioritiesError):
                buffer.update_priorities(row_ids, 1.0)


# -- episodes -------------------------------------------------------------------------------------------------------------------------------------


def test_episodes_of_all_shards_are_listed_and_read(addresses, table):
    fields = {
        "obs": torch.arange(5.0)[:, None],
        "reward": torch.ones(5),
        "terminated": torch.arange(5) == 4,
        "truncated": torch.zeros(5, dtype=torch.bool),
    }
    steps = TensorDict(fields, [5])
    for address in addresses[:2]:
        with RemoteReplayBuffer(address, table=table, buffer_size=50, trajectories=True) as shard, shard.trajectory_writer() as writer:
            for _ in range(2):
                for step in steps:
                    writer.append(step, {"obs": step["obs"] + 0.5} if step["terminated"] else None)
    with ShardedReplayBuffer(addresses, table=table, buffer_size=150, trajectories=True) as buffer:
        episodes = buffer.episodes()
        assert [episode.steps for episode in episodes] == [5] * 4
        assert [episode.first_row_id >> 48 for episode in episodes] == [0, 0, 1, 1]
        for episode in episodes:
            rows = buffer.episode(episode.episode_id)
            assert rows["obs"].flatten().tolist() == [0, 1, 2, 3, 4]
            assert rows["row_id"][0] == episode.first_row_id
        with pytest.raises(EpisodeNotFoundError):
            buffer.episode(12345)
