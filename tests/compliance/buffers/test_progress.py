"""How far reading is, as every kind of buffer says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import numbers, rows
from tdreplay.errors import InvalidArgumentError


def test_sample_all_tells_of_the_rows_that_came(make_buffer):
    buffer, seen = make_buffer(200), []
    buffer.add_batch({"pixels": torch.arange(200, dtype=torch.int32).repeat(64 << 10, 1).T.contiguous()})  # 50 MiB: it comes in several parts.
    batch = buffer.sample_all(progress=lambda *told: seen.append(told))
    assert torch.equal(batch["pixels"], buffer.sample_all()["pixels"])
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {200}
    assert seen[-1] == (200, 200)


def test_epochs_tell_of_the_rows_behind_them(make_buffer):
    buffer, seen = make_buffer(10), []
    buffer.add_batch(rows(10))
    batches = buffer.epochs(4, 2, progress=lambda *told: seen.append(told))
    assert seen == []
    assert [number for batch in batches for number in numbers(batch)] == [*range(10)] * 2
    assert seen == [(done, 20) for done in (0, 4, 8, 10, 14, 18, 20)]


def test_a_learner_tells_of_its_own_rows_and_goes_on_where_its_token_is(make_buffer):
    buffer, seen = make_buffer(10), []
    buffer.add_batch(rows(10))
    first = buffer.epochs(2, rank=1, world_size=3)
    next(first)
    again = buffer.epochs(2, rank=1, world_size=3, progress=lambda *told: seen.append(told))
    again.load_state_dict(first.state_dict())
    assert [numbers(batch) for batch in again] == [[7]]
    assert seen == [(2, 3), (3, 3)]


def test_an_error_of_the_function_loses_no_batch(make_buffer):
    buffer, calls = make_buffer(10), []
    buffer.add_batch(rows(6))

    def fails_once(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise RuntimeError("the screen is gone")

    batches = buffer.create_epoch_iterator(2, progress=fails_once)
    assert numbers(next(batches)) == [0, 1]
    with pytest.raises(RuntimeError, match="the screen is gone"):
        next(batches)
    assert [numbers(batch) for batch in batches] == [[2, 3], [4, 5]]


@pytest.mark.parametrize("progress", [1, "yes"])
@pytest.mark.parametrize("read", [lambda buffer, how: buffer.sample_all(progress=how), lambda buffer, how: buffer.epochs(1, progress=how)])
def test_what_is_no_function_is_refused(make_buffer, read: Any, progress: Any):
    buffer = make_buffer(10)
    buffer.add_batch(rows(1))
    with pytest.raises(InvalidArgumentError, match=r"progress \(.*must be True, False, None, or a function"):
        read(buffer, progress)


def test_nothing_is_drawn_where_standard_error_is_no_terminal(make_buffer, capfd):
    buffer = make_buffer(10)
    buffer.add_batch(rows(10))
    assert len(buffer.sample_all(progress=True)) == 10
    assert len(list(buffer.epochs(3, progress=True))) == 4
    assert capfd.readouterr() == ("", "")
