"""Which shard gets which rows: a single client fills the whole as one ring, and shards that are behind catch up."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdreplay_client.sharding.placement import FillLevel, RingPlacement, WriterPlacement, hashed
from tdreplay_client.sharding.shares import part_of


class Ring:
    """Shards as their servers have them: each a ring of row numbers."""

    def __init__(self, capacities: list[int]) -> None:
        self.rows: list[list[int]] = [[] for _ in capacities]
        self.capacities, self.placement = capacities, RingPlacement()
        self.emptied = [0] * len(capacities)
        self.learn()

    def levels(self) -> dict[int, FillLevel]:
        """What all shards say."""
        return {
            number: FillLevel(capacity, min(capacity, len(rows)), len(rows) % capacity, len(rows), str(self.emptied[number]))
            for number, (capacity, rows) in enumerate(zip(self.capacities, self.rows, strict=True))
        }

    def learn(self, levels: dict[int, FillLevel] | None = None) -> None:
        self.placement.learn(levels or self.levels(), range(len(self.rows)))

    def insert(self, first: int, count: int, said_at: int = -1, learn_at: int = -1) -> None:
        """Rows from `first` on, one acknowledgement a part. Each part is stored and then settled: at these of the moments between them, all shards
        say how full they are, and that is learnt."""
        parts = self.placement.place(count, range(len(self.rows)))
        levels = self.levels()
        assert sorted(np.concatenate([np.arange(count) if places is None else places for _, places in parts]).tolist()) == list(range(count))
        for moment, (number, places) in enumerate(itertools.chain.from_iterable(zip(parts, parts, strict=True))):
            rows = np.arange(first, first + count) if places is None else first + places
            if moment % 2:
                self.placement.settle(number, len(rows), len(self.rows[number]))
            else:
                self.rows[number].extend(rows.tolist())
            if moment == said_at:
                levels = self.levels()
            if moment == learn_at:
                self.learn(levels)

    def empty(self, number: int) -> None:
        """The shard comes back with nothing."""
        self.rows[number], self.emptied[number] = [], self.emptied[number] + 1

    def kept(self, number: int) -> list[int]:
        return self.rows[number][-self.capacities[number] :]

    def slots(self) -> dict[int, int]:
        """Slot of the whole -> its row."""
        found = {}
        for place, (capacity, rows) in enumerate(zip(self.capacities, self.rows, strict=True)):
            for at, row in enumerate(rows):
                found[(at % capacity) * len(self.rows) + place] = row
        return found


parts = st.tuples(st.integers(1, 6), st.integers(0, 60)).map(
    lambda drawn: [part_of(drawn[0] + drawn[1], place, drawn[0]) for place in range(drawn[0])]
)


@settings(max_examples=100, deadline=None)
@given(capacities=parts, inserts=st.lists(st.integers(1, 90), max_size=12), learn_every=st.integers(1, 4))
def test_a_single_client_fills_the_whole_as_one_ring(capacities, inserts, learn_every):
    ring, count, whole = Ring(capacities), 0, {}
    for number, rows in enumerate(inserts):
        if rows % 3:
            ring.insert(count, rows)
        else:
            for row in range(rows):
                ring.insert(count + row, 1)
        for row in range(count, count + rows):
            whole[row % sum(capacities)] = row
        count += rows
        if number % learn_every == 0:
            ring.learn()
    assert ring.slots() == whole


@settings(max_examples=200, deadline=None)
@given(capacities=parts, inserts=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_a_single_client_fills_the_whole_as_one_ring_where_shards_say_how_full_they_are_in_the_middle(capacities, inserts):
    ring, count, whole = Ring(capacities), 0, {}
    for rows, said_at, learn_at in inserts:
        ring.insert(count, rows, said_at, learn_at)
        whole |= {row % sum(capacities): row for row in range(count, count + rows)}
        count += rows
    assert ring.slots() == whole


@settings(max_examples=60, deadline=None)
@given(capacities=st.lists(st.integers(1, 40), min_size=1, max_size=5), inserts=st.lists(st.integers(1, 50), max_size=12))
def test_shards_with_any_parts_of_the_capacity_hold_the_newest_rows(capacities, inserts):
    ring, count = Ring(capacities), 0
    for rows in inserts:
        for row in range(rows):
            ring.insert(count + row, 1)
        count += rows
        ring.learn()
    whole = sum(capacities)
    stored = sorted(row for number in range(len(capacities)) for row in ring.kept(number))
    assert stored == list(range(max(0, count - whole), count))


def test_small_inserts_go_to_one_shard_and_larger_ones_to_all():
    ring = Ring([1000] * 4)
    assert [place[0][0] for place in (ring.placement.place(62, range(4)) for _ in range(5))] == [0, 1, 2, 3, 0]
    parts = ring.placement.place(1000, range(4))
    assert [(number, len(places)) for number, places in parts if places is not None] == [(0, 204), (1, 266), (2, 265), (3, 265)]


def test_what_others_inserted_counts_when_it_is_learnt():
    ring = Ring([100, 100])
    ring.rows[0] = list(range(5))
    ring.learn()
    for row in range(5):
        ring.insert(row, 1)
    assert [len(rows) for rows in ring.rows] == [5, 5]


def test_a_client_that_comes_to_full_shards_goes_on_where_they_are():
    ring = Ring([10, 10, 10])
    for row in range(10 * 30 + 14):
        ring.insert(row, 1)
    ring.placement = RingPlacement()
    ring.learn()
    ring.insert(314, 1)
    assert 314 in ring.rows[2]


def test_an_emptied_shard_is_filled_first_without_starving_the_rest():
    ring = Ring([100] * 4)
    for row in range(1000):
        ring.insert(row, 1)
    ring.empty(1)
    ring.learn()
    before = [len(rows) for rows in ring.rows]
    for row in range(100):
        ring.insert(1000 + row, 1)
    came = [len(rows) - then for rows, then in zip(ring.rows, before, strict=True)]
    assert came[1] == 50
    assert all(came[number] >= 16 for number in (0, 2, 3))


def test_a_shard_that_was_emptied_is_one_of_the_others_once_it_is_full():
    ring = Ring([100] * 4)
    for row in range(1000):
        ring.insert(row, 1)
    ring.empty(1)
    ring.learn()
    for row in range(2000):
        ring.insert(1000 + row, 1)
    ring.learn()
    before = [len(rows) for rows in ring.rows]
    for row in range(400):
        ring.insert(3000 + row, 1)
    assert all(95 <= len(rows) - then <= 105 for rows, then in zip(ring.rows, before, strict=True))


def test_rows_on_their_way_count_until_they_are_settled():
    placement = RingPlacement()
    placement.learn({number: FillLevel(100, 0, 0, 0) for number in range(2)}, range(2))
    assert placement.place(1, range(2)) == [(0, None)]
    assert placement.place(1, range(2)) == [(1, None)]
    placement.settle(0, 1)  # It failed.
    assert placement.place(1, range(2)) == [(0, None)]


def test_shards_that_cannot_be_written_to_get_nothing():
    ring = Ring([100, 100, 100])
    assert {ring.placement.place(1, [0, 2])[0][0] for _ in range(10)} == {0, 2}


def test_writers_are_spread_evenly():
    placement = WriterPlacement()
    opened = Counter(placement.open(range(4), lambda number: number / 4) for _ in range(8))
    assert opened == dict.fromkeys(range(4), 2)
    placement.close(3)
    assert placement.open(range(4), lambda _: 0.0) == 3


@pytest.mark.parametrize("shards", [1, 2, 5, 16])
def test_a_hash_is_even_and_moves_few_keys_when_a_shard_leaves(shards):
    keys = range(2000)
    before = [hashed(key, range(shards)) for key in keys]
    counts = Counter(before)
    assert min(counts[number] for number in range(shards)) > 0.7 * len(keys) / shards
    left = [number for number in range(shards) if number != 1]
    assert all(hashed(key, left) == shard for key, shard in zip(keys, before, strict=True) if shard != 1)
