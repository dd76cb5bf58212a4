"""The inequalities of rate limiters, at every step, against arithmetic with fractions."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from limited_table import LimitedTable

from tdreplay.errors import InvalidArgumentError, RateLimitedError
from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
from tdreplay.samplers import Fifo
from tdreplay.table_config import TableConfig, check_limiter
from tdreplay_server.tables.limiters import AT_ONCE

BUFFER_SIZE = 40
LIMITERS = st.one_of(
    st.builds(MinSize, st.integers(0, 20)),
    st.builds(Queue, st.integers(1, 20)),
    st.sampled_from([0.25, 0.5, 1.0, 3.0, 4.0]).flatmap(
        lambda ratio: st.builds(SamplesPerInsert, st.just(ratio), st.integers(0, 20), st.integers(max(1, int(ratio)), 40).map(float))
    ),
)


class LimiterModel(RuleBasedStateMachine):
    """What is inserted, reserved and taken is counted here, and each answer of the limiter is compared with the inequalities of Reverb."""

    @initialize(limiter=LIMITERS)
    def begin(self, limiter):
        self.table = LimitedTable(limiter, BUFFER_SIZE)
        self.bounds(limiter)
        self.in_parts = isinstance(limiter, SamplesPerInsert)
        self.inserted = self.taken = 0

    def bounds(self, limiter):
        self.ratio, self.min_size, self.low, self.high = Fraction(1), 1, None, None
        if isinstance(limiter, MinSize):
            self.min_size = limiter.min_size
        elif isinstance(limiter, Queue):
            self.low, self.high = Fraction(0), Fraction(limiter.max_size)
        else:
            self.ratio, self.min_size, buffer = Fraction(limiter.samples_per_insert), limiter.min_size, Fraction(limiter.error_buffer)
            self.low, self.high = self.ratio * self.min_size - buffer, self.ratio * self.min_size + buffer
        self.min_size = max(1, self.min_size)

    @property
    def reserved(self):
        return sum(reserved.rows for reserved in self.table.reserved)

    @property
    def balance(self):
        return self.inserted * self.ratio - self.taken

    @rule(rows=st.integers(1, 50), fails=st.booleans())
    def insert(self, rows, fails):
        if self.high is not None and rows * self.ratio > self.high - min(self.balance, self.low):
            error = InvalidArgumentError
        elif self.high is not None and self.balance + rows * self.ratio > self.high:
            error = RateLimitedError
        elif fails:
            with pytest.raises(ZeroDivisionError), self.table.limiter.inserting(rows, AT_ONCE):
                raise ZeroDivisionError
            return
        else:
            self.table.insert(rows)
            self.inserted += rows
            return
        with pytest.raises(error):
            self.table.insert(rows)

    @rule(rows=st.integers(1, 50), batches=st.integers(1, 4))
    def sample(self, rows, batches):
        if self.in_parts and rows > self.high - self.low:
            return  # Such a batch is debited in parts: another test has it.
        allowed = 0
        while allowed < batches and min(self.inserted, BUFFER_SIZE) >= self.min_size:
            if self.low is not None and self.balance - self.reserved - rows * (allowed + 1) < self.low:
                break
            allowed += 1
        if allowed:
            assert self.table.sample(rows, batches) == allowed
        else:
            never = self.low is not None and rows > self.high - self.low
            with pytest.raises(InvalidArgumentError if never else RateLimitedError):
                self.table.sample(rows, batches)

    @precondition(lambda self: self.table.reserved)
    @rule()
    def take(self):
        self.taken += self.table.take()

    @precondition(lambda self: self.table.reserved)
    @rule()
    def give_back(self):
        self.table.give_back()

    @rule()
    def restart(self):
        self.table.start()

    @precondition(lambda self: self.table.reserved)
    @rule()
    def fail_to_draw(self):
        reserved = self.table.reserved[-1]
        self.table.give_back()
        with pytest.raises(ZeroDivisionError), self.table.limiter.sampling(reserved.rows, 1, AT_ONCE):
            raise ZeroDivisionError

    @rule()
    def reset(self):
        late = list(self.table.reserved)
        self.table.reset()
        self.table.reserved.clear()
        for number, reserved in enumerate(late):  # They count for nothing.
            (self.table.limiter.taken if number % 2 else self.table.limiter.given_back)(reserved)
        self.inserted = self.taken = 0

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "table"):
            return
        assert self.table.limiter.rows_taken == self.taken
        assert self.high is None or self.balance <= self.high
        assert self.table.limiter.insert_room() == (None if self.high is None else (self.high - self.balance) // self.ratio)
        assert self.low is None or self.inserted < self.min_size or self.balance - self.reserved >= self.low or not self.taken
        assert [state.waiting for state in self.table.limiter.waits()] == [0, 0]


LimiterModel.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
test_every_step_keeps_the_inequalities = LimiterModel.TestCase


def refused(act, error):
    with pytest.raises(error) as raised:
        act()
    return str(raised.value)


def test_a_batch_that_waits_says_what_is_there_and_what_is_needed():
    table = LimitedTable(MinSize(1000), 2000)
    table.insert(640)
    assert refused(lambda: table.sample(256), RateLimitedError) == "sampling needs 1000 rows, 640 are there"


def test_a_batch_that_is_too_far_ahead_says_how_many_rows_are_needed():
    table = LimitedTable(SamplesPerInsert(2.0, 10, 40.0))
    table.insert(10)
    table.sample(40)
    text = "a batch of 20 rows waits until 20 rows were inserted, 10 were, and batches with 40 rows are on their way to learners"
    assert refused(lambda: table.sample(20), RateLimitedError) == text


def test_an_insert_that_is_too_far_ahead_says_how_many_rows_are_to_be_drawn():
    table = LimitedTable(SamplesPerInsert(2.0, 10, 40.0))
    table.insert(30)
    assert refused(lambda: table.insert(5), RateLimitedError) == "an insert of 5 rows waits until 10 rows were drawn, 0 were"


def test_an_insert_into_a_full_queue_says_so():
    table = LimitedTable(Queue(10))
    table.insert(8)
    assert refused(lambda: table.insert(3), RateLimitedError) == "an insert of 3 rows waits for room in the queue: it holds 10 rows, 8 are in it"


def test_what_can_never_pass_is_refused_with_what_would_be_enough():
    table = LimitedTable(SamplesPerInsert(2.0, 10, 40.0))
    assert "insert at most 40 rows at once, or give the rate limiter an error_buffer of 41" in refused(lambda: table.insert(41), InvalidArgumentError)
    queue = LimitedTable(Queue(10))
    assert "a max_size of 11" in refused(lambda: queue.insert(11), InvalidArgumentError)
    assert "a max_size of 11" in refused(lambda: queue.sample(11), InvalidArgumentError)


def test_a_first_insert_may_be_larger_than_later_ones():
    table = LimitedTable(SamplesPerInsert(1.0, 100, 10.0))
    table.insert(100)
    assert "insert at most 20 rows at once" in refused(lambda: table.insert(21), InvalidArgumentError)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (TableConfig(99, rate_limiter=MinSize(100)), "min_size (100) must not be above buffer_size (99)"),
        (TableConfig(99, rate_limiter=SamplesPerInsert(1.0, 100, 10.0)), "min_size (100) must not be above buffer_size (99)"),
        (TableConfig(99, rate_limiter=Queue(100)), "max_size (100) must not be above buffer_size (99)"),
        (TableConfig(99, rate_limiter=SamplesPerInsert(2.5, 1, 10.0), max_times_sampled=2), "samples_per_insert (2.5) must not be above max_times"),
    ],
)
def test_settings_that_must_deadlock_are_refused(config, text):
    assert text in refused(lambda: check_limiter(config), InvalidArgumentError)


@pytest.mark.parametrize(
    "config",
    [
        TableConfig(100),
        TableConfig(100, rate_limiter=MinSize(100), max_times_sampled=1),
        TableConfig(100, rate_limiter=Queue(100), sampler=Fifo(), max_times_sampled=1),
        TableConfig(100, rate_limiter=Queue(100), max_times_sampled=3),
        TableConfig(100, rate_limiter=SamplesPerInsert(2.0, 100, 10.0), max_times_sampled=2),
    ],
)
def test_settings_that_may_go_on_are_taken(config):
    check_limiter(config)
