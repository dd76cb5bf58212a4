"""Rows that leave when they were drawn often enough, and leases, against a plain model."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress

import hypothesis.strategies as st
import numpy as np
import pytest
from consuming_table import ConsumingTable
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from limited_table import started

from tdreplay.errors import CancelledError, InvalidArgumentError, RateLimitedError
from tdreplay.rate_limiters import MinSize, Queue
from tdreplay.samplers import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Uniform, WithoutReplacement
from tdreplay_server.tables.consumption import TooFewDrawsError
from tdreplay_server.tables.limiters import Wait

SAMPLERS = [Uniform(), Prioritized(0.7), Fifo(), Lifo(), WithoutReplacement(), MaxHeap(), MinHeap()]


class ConsumptionModel(RuleBasedStateMachine):
    """Keeps how often each live row can be drawn, and the batches that are on their way."""

    @initialize(sampler=st.sampled_from(SAMPLERS), times=st.integers(1, 3), buffer_size=st.integers(1, 12))
    def begin(self, sampler, times, buffer_size):
        self.table, self.times = ConsumingTable(sampler, times, buffer_size), times
        self.taken, self.leased, self.batches, self.seed = Counter(), Counter(), [], 0

    def live(self):
        return range(self.table.ring.oldest, self.table.ring.write_count)

    def left(self, row_id):
        return self.times - self.taken[row_id] - self.leased[row_id]

    def forget(self):
        """Rows that are not live count for nothing, and the next ones may get their ids."""
        for counts in (self.taken, self.leased):
            for row_id in [row_id for row_id in counts if row_id not in self.live()]:
                del counts[row_id]
        for batch in self.batches:
            batch.live = [row_id for row_id in batch.live if row_id in self.live()]

    @rule(rows=st.integers(1, 15))
    def insert(self, rows):
        self.table.insert(rows)
        self.forget()

    @rule(rows=st.integers(1, 8), most=st.integers(1, 3))
    def draw(self, rows, most):
        available = sum(self.left(row_id) for row_id in self.live())
        self.seed += 1
        if rows > self.times * self.table.ring.buffer_size:
            with pytest.raises(InvalidArgumentError, match="can never be drawn"):
                self.table.draw(rows)
        elif available < rows:
            with pytest.raises(RateLimitedError):
                self.table.draw(rows)
            with pytest.raises(TooFewDrawsError):
                self.table.consumption.draw(rows, [np.random.default_rng()], self.table.ring)
        else:
            batches = self.table.draw(rows, most, seed=self.seed)
            assert len(batches) == min(most, available // rows)
            for batch in batches:
                self.check(batch.ids.tolist())
                batch.live = batch.ids.tolist()
                self.leased.update(batch.live)
                self.batches.append(batch)

    def check(self, ids):
        assert all(self.left(row_id) >= times for row_id, times in Counter(ids).items())
        if isinstance(self.table.config.sampler, (Fifo, Lifo)):
            assert ids == self.in_order(len(ids))

    def in_order(self, rows):
        left = {row_id: self.left(row_id) for row_id in (reversed(self.live()) if isinstance(self.table.config.sampler, Lifo) else self.live())}
        batch = []
        while len(batch) < rows:
            for row_id in left:
                if left[row_id] and len(batch) < rows:
                    left[row_id] -= 1
                    batch.append(row_id)
        return batch

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), taken=st.booleans())
    def end(self, data, taken):
        batch = self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1)))
        self.leased.subtract(batch.live)
        if taken:
            self.taken.update(batch.live)
            self.table.take(batch)
        else:
            self.table.give_back(batch)
        self.forget()

    @rule()
    def restart(self):
        self.table.start()
        self.leased.clear()
        self.batches.clear()

    @precondition(lambda self: self.table.ring.size)
    @rule(data=st.data())
    def rewind(self, data):
        end = data.draw(st.integers(self.table.ring.oldest, self.table.ring.write_count))
        first = data.draw(st.integers(self.table.ring.oldest, end))
        self.table.rewind(end - first, end)
        self.forget()

    @rule(buffer_size=st.integers(1, 12))
    def reset(self, buffer_size):
        self.table.reset(buffer_size)
        self.forget()
        for batch in self.batches:
            batch.reset = True

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "table"):
            return
        consumption = self.table.consumption
        assert consumption.available == sum(self.left(row_id) for row_id in self.live())
        assert consumption.size == sum(self.taken[row_id] < self.times for row_id in self.live())
        assert consumption.leased == sum(len(batch.ids) for batch in self.batches if not hasattr(batch, "reset"))
        gone = [row_id for row_id in self.live() if self.taken[row_id] < self.times]
        assert consumption.front(self.table.ring) == (gone[0] if gone else self.table.ring.write_count)


ConsumptionModel.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_leases_and_draws_are_those_of_a_plain_model = ConsumptionModel.TestCase


def test_rows_that_come_back_come_first_again():
    table = ConsumingTable(Fifo())
    table.insert(8)
    first, second, third = table.draw(2, 3)
    table.take(second)
    table.give_back(third)
    table.give_back(first)
    assert [batch.ids.tolist() for batch in table.draw(2, 9)] == [[0, 1], [4, 5], [6, 7]]


def test_rows_leave_from_the_front_when_all_before_them_did():
    table = ConsumingTable(Fifo())
    table.insert(6)
    first, second = table.draw(2, 2)
    table.take(second)
    assert (table.ring.oldest, table.ring.size, table.consumption.size) == (0, 6, 4)
    table.take(first)
    assert (table.ring.oldest, table.ring.size, table.consumption.size) == (4, 2, 2)


def test_a_batch_that_needs_more_rows_than_there_are_says_how_many():
    table = ConsumingTable(Uniform(), 1, 1000)
    table.insert(100)
    with pytest.raises(RateLimitedError, match="a batch takes 256 rows, 100 are there"):
        table.draw(256)
    with pytest.raises(InvalidArgumentError, match="a batch of 1001 rows can never be drawn: the table has 1000 rows at most"):
        table.draw(1001)


def test_a_batch_waits_for_rows_where_there_is_no_rate_limiter():
    table, drawn = ConsumingTable(Fifo()), []
    with started(lambda: drawn.extend(table.draw(4, wait=Wait(time.monotonic() + 30)))):
        table.insert(3)
        time.sleep(0.05)
        assert not drawn
        table.insert(3)
    assert drawn[0].ids.tolist() == [0, 1, 2, 3]


def test_leases_of_overwritten_rows_do_not_count_for_the_rows_in_their_slots():
    table = ConsumingTable(Fifo(), 1, 4)
    table.insert(4)
    late, later = table.draw(2, 2)
    table.insert(4)
    table.take(late)
    table.give_back(later)
    assert [batch.ids.tolist() for batch in table.draw(2, 9)] == [[4, 5], [6, 7]]


def test_leases_before_a_rewind_do_not_count_for_the_rows_that_have_their_ids():
    table = ConsumingTable(Fifo(), 2, 8)
    table.insert(4)
    late, other = table.draw(4, 2)
    table.rewind(2, 2)
    table.insert(2)
    new = table.draw(2)[0]
    assert new.ids.tolist() == [2, 3]
    table.take(late)
    table.give_back(new)
    table.give_back(other)
    assert table.consumption.available == 1 + 1 + 2 + 2
    assert table.consumption.leased == 0


def test_a_row_is_drawn_as_often_in_one_batch_as_if_it_was_drawn_alone():
    """The distribution of the third of three draws from two rows, of which one has two draws and one has one: as drawn one after the other."""
    counts = Counter()
    for seed in range(2000):
        table = ConsumingTable(Uniform(), 2, 2)
        table.insert(2)
        batch = table.draw(3, seed=seed)[0].ids.tolist()
        counts[tuple(batch)] += 1
    # The first two draws are alike with 1/2; then the third has to be the other row. Else both rows have one draw left.
    expected = {(0, 0, 1): 1 / 4, (1, 1, 0): 1 / 4, (0, 1, 0): 1 / 8, (0, 1, 1): 1 / 8, (1, 0, 0): 1 / 8, (1, 0, 1): 1 / 8}
    assert counts.keys() == expected.keys()
    assert sum((counts[batch] - 2000 * p) ** 2 / (2000 * p) for batch, p in expected.items()) < 25.7  # chi-square, 5 degrees, p = 1e-4


@pytest.mark.parametrize("sampler", [Fifo(), Lifo(), Uniform(), WithoutReplacement()])
def test_a_queue_never_comes_to_a_stop(sampler):
    """Its ring is as small as may be, and with most samplers some row stays for long: it is overwritten when nothing else can go on."""
    table, over = ConsumingTable(sampler, 1, 12, Queue(12)), []

    def write():
        for _ in range(600):
            table.insert(5, Wait(time.monotonic() + 10))
        over.append(True)

    def learn():
        chance = random.Random(1)
        while not over:
            with suppress(CancelledError):  # The last rows may be too few for a batch.
                for batch in table.draw(4, 2, Wait(time.monotonic() + 10, lambda: not over), seed=chance.randrange(1 << 30)):
                    (table.take if chance.random() < 0.7 else table.give_back)(batch)

    with started(write, learn):
        pass
    assert table.ring.insert_count == 3000


def test_a_queue_loses_no_row_when_learners_die():
    """Learners take batches in any order, and some give theirs back: inserts wait for the slots, and each row is taken once."""
    table, taken = ConsumingTable(Fifo(), 1, 64, Queue(64)), []

    def write():
        for _ in range(500):
            table.insert(8, Wait(time.monotonic() + 20))

    def learn():
        chance, end = random.Random(), time.monotonic() + 20
        while len(taken) < 4000 and time.monotonic() < end:
            try:
                batches = table.draw(8, chance.randint(1, 3), Wait(time.monotonic() + 0.2))
            except RateLimitedError:
                continue
            chance.shuffle(batches)
            for batch in batches:
                if chance.random() < 0.3:
                    table.give_back(batch)
                else:
                    table.take(batch)
                    taken.extend(batch.ids.tolist())

    with started(write, learn, learn, learn):
        pass
    assert sorted(taken) == list(range(4000))


def test_a_limiter_counts_the_rows_that_have_not_left():
    table = ConsumingTable(Fifo(), 1, 20, MinSize(4))
    table.insert(6)
    table.take(table.draw(3)[0])
    with pytest.raises(RateLimitedError, match="sampling needs 4 rows, 3 are there"):
        table.draw(1)
