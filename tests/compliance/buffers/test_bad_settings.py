"""Bad priorities, samplers and rate limiters: each is a typed error that names the value and the rule, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from conftest import numbers, rows
from tdreplay import errors
from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
from tdreplay.samplers import Fifo, MaxHeap, Prioritized

BAD_SETTINGS: Mapping[str, tuple[Callable[[], Mapping[str, Any]], list[str]]] = {
    "alpha negative": (lambda: {"sampler": Prioritized(-0.1)}, ["alpha (-0.1)"]),
    "alpha infinite": (lambda: {"sampler": Prioritized(float("inf"))}, ["alpha (inf)"]),
    "alpha no number": (lambda: {"sampler": Prioritized(float("nan"))}, ["alpha (nan)"]),
    "alpha text": (lambda: {"sampler": Prioritized("much")}, ["alpha ('much')"]),
    "unknown sampler": (lambda: {"sampler": "prioritised"}, ["prioritised", "prioritized"]),
    "unknown limiter": (lambda: {"rate_limiter": "slow"}, ["slow", "min_size"]),
    "min_size 0": (lambda: {"rate_limiter": MinSize(0)}, ["min_size (0)"]),
    "min_size that the table never has": (lambda: {"rate_limiter": MinSize(11)}, ["min_size", "11", "10"]),
    "ratio 0": (lambda: {"rate_limiter": SamplesPerInsert(0.0, 1, 10.0)}, ["samples_per_insert (0)"]),
    "error buffer below the ratio": (lambda: {"rate_limiter": SamplesPerInsert(4.0, 1, 3.0)}, ["error_buffer (3)", "4"]),
    "error buffer below 1": (lambda: {"rate_limiter": SamplesPerInsert(0.5, 1, 0.6)}, ["error_buffer (0.6)", "1"]),
    "ratio whose min_size the table never has": (lambda: {"rate_limiter": SamplesPerInsert(4.0, 11, 100.0)}, ["min_size", "11", "10"]),
    "queue of 0": (lambda: {"rate_limiter": Queue(0)}, ["max_size (0)"]),
    "max_times_sampled negative": (lambda: {"max_times_sampled": -1}, ["max_times_sampled (-1)"]),
    "more draws per insert than a row has": (
        lambda: {"rate_limiter": SamplesPerInsert(4.0, 1, 100.0), "max_times_sampled": 3},
        ["max_times_sampled", "3", "4"],
    ),
    "trajectories that are neither": (lambda: {"trajectories": "yes"}, ["trajectories ('yes')", "True, False", "ends, final_fields, reward"]),
    "trajectories with another name": (lambda: {"trajectories": {"final_field": "obs"}}, ["no final_field", "ends, final_fields, reward"]),
    "no end": (lambda: {"trajectories": {"ends": ()}}, ["the number of names in ends (0)", "1 to 2"]),
    "three ends": (lambda: {"trajectories": {"ends": ("a", "b", "c")}}, ["the number of names in ends (3)"]),
    "an end without a name": (lambda: {"trajectories": {"ends": ("",)}}, ["ends (('',))", "names of fields"]),
    "an end that no field can be": (lambda: {"trajectories": {"ends": ("a" * 257,)}}, ["ends (('aaa", "1 to 256 characters"]),
    "an end of two lines": (lambda: {"trajectories": {"ends": ("a\nb",)}}, ["ends (('a\\nb',))", "printable"]),
    "an end that is a number": (lambda: {"trajectories": {"ends": (1,)}}, ["ends ((1,))", "names of fields"]),
    "no final field": (lambda: {"trajectories": {"final_fields": []}}, ["the number of names in final_fields (0)"]),
    "a field that is two things": (lambda: {"trajectories": {"reward": "obs"}}, ["obs", "another field"]),
    "a reward in an observation": (lambda: {"trajectories": {"reward": "obs.gain"}}, ["obs.gain", "another field"]),
    "an observation in another one": (lambda: {"trajectories": {"final_fields": ("obs.image", "obs")}}, ["obs.image", "another field"]),
    "steps that leave": (lambda: {"trajectories": True, "max_times_sampled": 1}, ["max_times_sampled (1)", "trajectories"]),
}

BAD_UPDATES: Mapping[str, tuple[Any, Any, type[errors.ReplayError], list[str]]] = {
    "negative": ([3, 4], [2.0, -1.0], errors.InvalidArgumentError, ["priority (-1)"]),
    "no number": ([3, 4], [2.0, float("nan")], errors.InvalidArgumentError, ["priority (nan)"]),
    "infinite": ([3, 4], [2.0, float("inf")], errors.InvalidArgumentError, ["priority (inf)"]),
    "infinite as a float32": ([3], torch.tensor([3e38]) * 10, errors.InvalidArgumentError, ["priority (inf)"]),
    "of no real numbers": ([3], ["a"], errors.InvalidArgumentError, ["real numbers"]),
    "complex": ([3], torch.tensor([1j]), errors.InvalidArgumentError, ["real numbers"]),
    "too few": ([3, 4, 5], [1.0, 2.0], errors.InvalidArgumentError, ["[2]", "3"]),
    "too many": ([3], [1.0, 2.0], errors.InvalidArgumentError, ["[2]", "1"]),
    "row id of no row yet": ([3, 6], [2.0, 2.0], errors.RowIdError, ["row id 6", "5"]),
    "row id far above": ([1 << 60], [2.0], errors.RowIdError, [f"row id {1 << 60}"]),
    "row id negative": ([3, -1], [2.0, 2.0], errors.RowIdError, ["row id -1"]),
    "row ids of floats": ([3.0], [2.0], errors.InvalidArgumentError, ["integers"]),
    "too many row ids": (torch.zeros((1 << 20) + 1, dtype=torch.int64), 1.0, errors.InvalidArgumentError, [f"({(1 << 20) + 1})"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_be_are_refused_when_the_table_is_made(make_buffer, case):
    settings, words = BAD_SETTINGS[case]
    with pytest.raises(errors.InvalidArgumentError) as raised:
        make_buffer(10, **settings())
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def priorities(buffer) -> dict[int, float]:
    """The numbers of the rows of a MaxHeap and their priorities, as many batches say them: over shards one may have a row twice."""
    drawn = [buffer.sample_batch(buffer.size) for _ in range(1 if hasattr(buffer, "address") else 40)]
    return {number: priority for batch in drawn for number, priority in zip(batch["action"].tolist(), batch["priority"].tolist(), strict=True)}


def ids_of(kind, given: Any) -> Any:
    """The ids of the rows of these numbers, for those that may be there."""
    if isinstance(given, list) and all(type(number) is int and 0 <= number < 100 for number in given):
        return kind.row_ids(given)
    return given


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_updates_that_cannot_be_are_refused_and_no_priority_changes(make_buffer, kind, case):
    row_ids, values, error, words = BAD_UPDATES[case]
    if kind.shards > 1 and case == "row id of no row yet":
        words = [f"row id {kind.row_ids([6])[0]}", "no row with this id was ever inserted"]
    buffer = make_buffer(10, sampler=MaxHeap())
    buffer.add_batch(rows(6))
    buffer.update_priorities(kind.row_ids([1, 2]), [5.0, 7.0])
    before, described = priorities(buffer), buffer.describe()
    with pytest.raises(errors.ReplayError) as raised:
        buffer.update_priorities(ids_of(kind, row_ids), values)
    assert type(raised.value) is error
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert priorities(buffer) == before
    assert (buffer.describe().updated, buffer.describe().stale) == (described.updated, described.stale) == (2, 0)
    buffer.add_batch(rows(1, 6))
    assert priorities(buffer)[6] in ({7.0} if kind.shards < 2 else {7.0, 5.0, 1.0})  # The highest that its shard has seen.


def test_a_priority_whose_power_is_too_large_is_refused_and_no_priority_changes(make_buffer, kind):
    buffer = make_buffer(10, sampler=Prioritized(1.0))
    buffer.add_batch(rows(6))
    with pytest.raises(errors.InvalidArgumentError, match=r"priority \(1e\+300\) to the power of alpha"):
        buffer.update_priorities(kind.row_ids([1, 2]), [5.0, 1e300])
    with pytest.raises(errors.InvalidArgumentError, match=r"priority \(1e\+300\) to the power of alpha"):
        buffer.add_batch(rows(4), priorities=[5.0, 1e300, 5.0, 5.0])
    assert len(buffer) == 6
    assert set(buffer.sample_batch(200)["priority"].tolist()) == {1.0}


@pytest.mark.parametrize("sampler", ["uniform", "fifo", "lifo", "without_replacement"])
def test_a_table_without_priorities_refuses_them(make_buffer, sampler):
    buffer = make_buffer(10, sampler=sampler)
    buffer.add_batch(rows(6))
    with pytest.raises(errors.NoPrioritiesError, match=sampler):
        buffer.update_priorities([1], [2.0])
    assert numbers(buffer.sample_all()) == list(range(6))
    assert buffer.describe().updated == 0


@pytest.mark.parametrize(
    ("settings", "batch", "words"),
    [
        ({"max_times_sampled": 1}, 11, ["11 rows", "10"]),
        ({"max_times_sampled": 2}, 21, ["21 rows", "10", "2"]),
        ({"max_times_sampled": 1, "rate_limiter": Queue(8)}, 9, ["9 rows", "8"]),
    ],
)
def test_a_batch_that_can_never_be_drawn_is_refused_at_once(make_buffer, kind, settings, batch, words):
    buffer = make_buffer(10, sampler=Fifo(), **settings)
    buffer.add_batch(rows(3))
    with pytest.raises(errors.InvalidArgumentError) as raised:
        buffer.sample_batch(batch)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert (buffer.describe().leased, buffer.describe().sample_count) == (0, 0)
    assert numbers(buffer.sample_batch(2)) == [0, 1] or kind.shards > 1


@pytest.mark.parametrize(("limiter", "count"), [(Queue(4), 5), (SamplesPerInsert(4.0, 1, 8.0), 5)])
def test_rows_that_can_never_be_inserted_at_once_are_refused(kind, make_buffer, limiter, count):
    if kind.server is not None:
        pytest.skip("a remote buffer may insert them in parts")
    buffer = make_buffer(10, sampler=Fifo(), rate_limiter=limiter)
    with pytest.raises(errors.InvalidArgumentError, match=f"insert of {count} rows"):
        buffer.add_batch(rows(count))
    assert buffer.size == 0


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True])
def test_a_seed_out_of_range_draws_nothing(make_buffer, seed):
    buffer = make_buffer(10, sampler=Fifo(), max_times_sampled=1)
    buffer.add_batch(rows(6))
    with pytest.raises(errors.InvalidArgumentError, match=r"seed \("):
        buffer.sample_batch(2, seed=seed)
    assert buffer.describe().available == 6


def test_uniform_batches_of_a_table_whose_rows_leave_are_refused(make_buffer):
    buffer = make_buffer(10, sampler=Fifo(), max_times_sampled=1)
    buffer.add_batch(rows(6))
    with pytest.raises(errors.FailedPreconditionError, match="max_times_sampled"):
        buffer.sample_batch(2, uniform=True)
    assert buffer.describe().available == 6


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"sampler": Prioritized(0.5)}, ["sampler prioritized(alpha=0.6), not prioritized(alpha=0.5)"]),
        ({"sampler": Fifo(), "max_times_sampled": 3}, ["sampler prioritized(alpha=0.6), not fifo", "max_times_sampled 2, not 3"]),
        ({"rate_limiter": Queue(5)}, ["rate_limiter", "min_size", "queue"]),
    ],
)
def test_other_settings_of_a_table_that_is_there_are_refused_by_name(kind, make_buffer, other, words):
    if kind.server is None:
        pytest.skip("a buffer in process makes a table of its own")
    made = {"sampler": Prioritized(0.6), "rate_limiter": MinSize(3), "max_times_sampled": 2}
    buffer = make_buffer(10, **made)
    before = buffer.describe().config
    with pytest.raises(errors.TableExistsError) as raised:
        type(buffer)(kind.place_of(buffer), table=buffer.table, buffer_size=10, **{**made, **other})
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert buffer.describe().config == before
