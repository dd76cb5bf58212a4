"""Priorities, over every kind of buffer."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import rows
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, NoPrioritiesError, RateLimitedError, RowIdError
from tdreplay.priorities import Updated, importance_weights
from tdreplay.samplers import Prioritized

DRAWN = {"probability", "priority", "table_size", "min_probability"}


@pytest.fixture
def prioritized(make_buffer):
    buffer = make_buffer(100, sampler=Prioritized(alpha=1.0))
    buffer.add_batch(rows(4))
    return buffer


def test_a_batch_says_how_it_was_drawn(prioritized, kind):
    assert prioritized.update_priorities(kind.row_ids([0, 1, 2, 3]), [1.0, 0.0, 6.0, 3.0]) == Updated(4, 0)
    batch = prioritized.sample_batch(64)
    exact = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)[batch["action"]]
    torch.testing.assert_close(batch["probability"], exact)
    torch.testing.assert_close(batch["priority"], exact * 10)
    assert set(batch["table_size"].tolist()) == {4}
    torch.testing.assert_close(batch["min_probability"], torch.full((64,), 0.1, dtype=torch.float64))
    assert (batch["action"] != 1).all()
    torch.testing.assert_close(importance_weights(batch, 1.0, "table"), (0.1 / exact).to(torch.float32))


def test_uniform_batches_of_rows_with_priorities(prioritized, kind):
    prioritized.update_priorities(kind.row_ids([0, 1, 2, 3]), [0.0, 0.0, 0.0, 1.0])
    assert set(prioritized.sample_batch(32)["action"].tolist()) == {3}
    batch = prioritized.sample_batch(256, uniform=True)
    assert set(batch["action"].tolist()) == {0, 1, 2, 3}  # The chance to miss one of them is below 1 in 10^31.
    assert DRAWN.isdisjoint(batch.keys())
    assert set(importance_weights(batch, 0.6).tolist()) == {1.0}


def test_uniform_batches_of_rows_that_leave_are_refused_before_anybody_waits(make_buffer):
    buffer = make_buffer(10, max_times_sampled=1)
    buffer.add_batch(rows(2))
    buffer.sample_batch(2)
    with pytest.raises(FailedPreconditionError, match="uniform"):
        buffer.sample_batch(1, uniform=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_priorities_may_have_any_dtype_of_real_numbers(prioritized, kind, dtype):
    """Errors have bfloat16 under autocast, which NumPy does not know."""
    assert prioritized.update_priorities(torch.tensor(kind.row_ids([0, 1, 2, 3])), torch.tensor([0, 0, 0, 6], dtype=dtype)) == Updated(4, 0)
    assert set(prioritized.sample_batch(8)["priority"].tolist()) == {6.0}


def test_a_batch_of_rows_without_priorities_says_nothing_of_its_draw(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(4))
    assert DRAWN.isdisjoint(buffer.sample_batch(8).keys())
    with pytest.raises(NoPrioritiesError, match="no priorities"):
        buffer.update_priorities([0], [1.0])


@pytest.mark.parametrize("priority", [-1.0, math.nan, math.inf, -math.inf])
def test_a_priority_that_cannot_be_changes_nothing(prioritized, priority):
    with pytest.raises(InvalidArgumentError, match=r"a priority .* must be a finite number from 0 up"):
        prioritized.update_priorities([0, 1], [5.0, priority])
    assert set(prioritized.sample_batch(16)["priority"].tolist()) == {1.0}


def test_another_number_of_priorities_is_refused(prioritized):
    with pytest.raises(InvalidArgumentError, match="must be 2, one for each row"):
        prioritized.update_priorities([0, 1], [5.0, 1.0, 1.0])


@pytest.mark.parametrize("row_id", [-1, 4, 2**62])
def test_a_row_id_that_was_never_given_changes_nothing(prioritized, kind, row_id):
    rule = "from 0 to 3" if not kind.shards else "(from 0 to [0-3]|of a shard of the buffer)"
    with pytest.raises(RowIdError, match=f"row id {row_id} must be {rule}"):
        prioritized.update_priorities([0, row_id], [5.0, 5.0])
    assert set(prioritized.sample_batch(16)["priority"].tolist()) == {1.0}


def test_an_overwritten_row_is_stale_and_no_other_changes(make_buffer, kind):
    buffer = make_buffer(4, sampler="prioritized")
    buffer.add_batch(rows(6))
    assert buffer.update_priorities(kind.row_ids([0, 1, 2, 5], buffer_size=4), 9.0) == Updated(2, 2)
    batch = buffer.sample_batch(256)
    priorities = dict(zip(batch["action"].tolist(), batch["priority"].tolist(), strict=True))
    assert priorities == {2: 9.0, 3: 1.0, 4: 1.0, 5: 9.0}  # A row that is not drawn in 256 draws: a chance of 1 in 10^12.


def test_many_updates_at_once(make_buffer, kind):
    buffer = make_buffer(20_000, sampler=Prioritized(alpha=1.0))
    buffer.add_batch({"x": torch.arange(20_000)})
    ids = torch.arange(20_000)
    assert buffer.update_priorities(kind.row_ids(range(20_000)), ids.double()) == Updated(20_000, 0)
    batch = buffer.sample_batch(512)
    assert batch["priority"].tolist() == batch["x"].tolist()
    assert buffer.update_priorities([], []) == Updated(0, 0)


def test_a_sampled_batch_can_be_put_back(prioritized, kind):
    batch = prioritized.sample_batch(3)
    prioritized.add_batch(batch)
    assert prioritized.size == 7
    stored = prioritized.sample_all()
    order = sorted if kind.shards > 1 else list  # Over shards the three rows go to one of them.
    assert order(stored["action"].tolist()) == order([*range(4), *batch["action"].tolist()])
    assert DRAWN.isdisjoint(stored.keys())


def test_waiting_for_rows(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(4))
    buffer.wait_for(4, timeout=0.01)
    with pytest.raises(RateLimitedError, match="waiting for 5 rows, 4 are there"):
        buffer.wait_for(5, timeout=0.05)
    with pytest.raises(InvalidArgumentError, match=r"rows \(11\) must be at most 10"):
        buffer.wait_for(11)
