"""Epochs that are split over learners, and go on where they stood: the same in every kind of buffer."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance.kinds import MakeBuffer
from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.epochs import Epochs
from tdreplay.errors import InvalidArgumentError, OverwrittenError, ReplayError, TableChangedError, TokenError


def filled(make_buffer: MakeBuffer, count: int, buffer_size: int, **options: Any) -> BaseReplayBuffer:
    buffer = make_buffer(buffer_size, **options)
    buffer.add_batch(rows(count))
    return buffer


def taken(batches: Epochs) -> list[int]:
    return [number for batch in batches for number in numbers(batch)]


# -- learners ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_learners_get_every_row_once_an_epoch(make_buffer, world_size, shuffle):
    buffer = filled(make_buffer, 41, 41)
    shares = [taken(buffer.epochs(4, 2, shuffle=shuffle, seed=5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == sorted([*range(41)] * 2)
    assert {len(share) // 2 for share in shares} <= {41 // world_size, -(-41 // world_size)}


def test_with_drop_last_every_learner_has_the_same_number_of_full_batches(make_buffer):
    buffer = filled(make_buffer, 41, 41)
    shares = [list(buffer.epochs(4, 2, shuffle=True, seed=1, drop_last=True, rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(batch) for batch in share] for share in shares] == [[4] * 6] * 3
    for epoch in range(2):
        seen = [number for share in shares for batch in share[3 * epoch : 3 * epoch + 3] for number in numbers(batch)]
        assert len(set(seen)) == len(seen) == 36


def test_learners_that_shuffle_need_a_seed(make_buffer):
    with pytest.raises(InvalidArgumentError, match=r"seed \(None\) must be given: 2 learners"):
        filled(make_buffer, 5, 5).epochs(1, shuffle=True, world_size=2)
    assert len(taken(filled(make_buffer, 5, 5, seed=1).epochs(1, shuffle=True, world_size=2))) == 3


@pytest.mark.parametrize(("rank", "world_size"), [(3, 3), (-1, 3), (0, 0), (1, 1), (0, -1), (0.5, 2), ("0", 2)])
def test_a_rank_is_one_of_the_learners(make_buffer, rank, world_size):
    with pytest.raises(InvalidArgumentError, match=r"(rank|world_size) \("):
        filled(make_buffer, 5, 5).epochs(1, rank=rank, world_size=world_size)


@pytest.mark.parametrize("mode", ["", "drop", None, 1])
def test_there_are_three_ways_with_overwritten_rows(make_buffer, mode):
    with pytest.raises(InvalidArgumentError, match="on_overwrite"):
        filled(make_buffer, 5, 5).epochs(1, on_overwrite=mode)


def test_the_orders_are_those_of_the_buffer_in_process(make_buffer, in_process):
    buffer, local = make_buffer(30), in_process(30)
    for each in (buffer, local):
        each.add_batch(rows(17))
        each.add_batch(rows(30, 17))
    for options in ({}, {"shuffle": True, "seed": 3}, {"rank": 1, "world_size": 4}):
        assert taken(buffer.epochs(7, 2, **options)) == taken(local.epochs(7, 2, **options))


# -- rows that are overwritten ----------------------------------------------------------------------------------------------------------------


def test_rows_that_were_overwritten_are_left_out_and_counted(make_buffer):
    buffer = filled(make_buffer, 100, 100)
    batches = buffer.epochs(10)
    buffer.add_batch(rows(85, 100))
    found = [numbers(batch) for batch in batches]
    ahead = len(found) - 2  # A remote one reads up to two batches ahead.
    assert 0 <= ahead <= 2
    assert found == [*([*range(10 * number, 10 * number + 10)] for number in range(ahead)), [*range(85, 90)], [*range(90, 100)]]
    assert batches.overwritten == 85 - 10 * ahead
    assert batches.epoch == 1


def test_rows_that_were_overwritten_are_an_error_where_that_is_wanted(make_buffer):
    buffer = filled(make_buffer, 100, 100)
    batches = buffer.epochs(10, on_overwrite="raise")
    assert numbers(next(batches)) == [*range(10)]
    buffer.add_batch(rows(75, 100))
    before = batches.state_dict()
    with pytest.raises(OverwrittenError, match=r"row \d+ was overwritten"):
        list(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert batches.state_dict()["position"] >= before["position"]
    batches.load_state_dict(batches.state_dict())
    with pytest.raises(OverwrittenError):
        next(batches)


def test_newer_rows_come_in_their_place_where_that_is_wanted(make_buffer):
    buffer = filled(make_buffer, 100, 100)
    batches = buffer.epochs(10, on_overwrite="replace")
    buffer.add_batch(rows(85, 100))
    found = taken(batches)
    ahead = sum(number < 85 for number in found)
    assert ahead in (0, 10, 20)
    assert found == [*range(ahead), *range(100 + ahead, 185), *range(85, 100)]
    assert batches.overwritten == 85 - ahead


# -- the token --------------------------------------------------------------------------------------------------------------------------------


def moved(token: dict[str, Any]) -> dict[str, Any]:
    """A token as it comes back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(token))
    return found


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_iterator_goes_on_where_another_one_stood(make_buffer, shuffle):
    buffer = filled(make_buffer, 25, 25)
    batches, found = buffer.epochs(4, 3, shuffle=shuffle), []
    while True:
        other = buffer.epochs(4, 3, shuffle=shuffle)
        other.load_state_dict(moved(batches.state_dict()))
        batches.close()
        batches = other
        batch = next(batches, None)
        if batch is None:
            break
        found += numbers(batch)
    assert len(found) == 75
    assert all(sorted(found[start : start + 25]) == [*range(25)] for start in (0, 25, 50))


def test_a_token_says_where_the_taken_batches_end(make_buffer, kind):
    batches = filled(make_buffer, 25, 25).epochs(4, 2)
    for _ in range(3):
        next(batches)
    token = moved(batches.state_dict())
    assert (token["epoch"], token["position"], batches.epoch) == (0, 12, 0)
    assert len(json.dumps(token)) < 500 + 200 * kind.shards
    rest = taken(batches)
    assert batches.epoch == 2
    batches.load_state_dict(token)  # An iterator goes back, too.
    assert taken(batches) == rest
    batches.load_state_dict(moved(batches.state_dict()))
    assert taken(batches) == []


def test_a_token_keeps_its_rows_and_its_order(make_buffer):
    buffer = filled(make_buffer, 20, 40)
    batches = buffer.epochs(4, 2, shuffle=True)
    token = moved(batches.state_dict())
    expected = taken(batches)
    buffer.add_batch(rows(10, 20))
    other = buffer.epochs(4, 2, shuffle=True)
    other.load_state_dict(token)
    assert taken(other) == expected


def test_a_token_counts_overwritten_rows_on(make_buffer):
    buffer = filled(make_buffer, 10, 10)
    buffer.add_batch(rows(5, 10))
    batches = buffer.epochs(5, 1, on_overwrite="replace")
    token = moved(batches.state_dict()) | {"overwritten": 7}
    batches.load_state_dict(token)
    assert batches.overwritten == 7
    taken(batches)
    assert batches.overwritten == 7


SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "batch_size": (5, {}),
    "n_epochs": (9, {}),
    "shuffle": (False, {}),
    "seed": (4, {}),
    "drop_last": (True, {}),
    "rank": (1, {}),
    "world_size": (3, {}),
    "fields": (["action"], {}),
    "on_overwrite": ("raise", {}),
    "table": ("another", {}),
    "version": (2, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_token_of_another_kind_is_refused_and_changes_nothing(make_buffer, name):
    batches = filled(make_buffer, 25, 25).epochs(4, 2, shuffle=True, seed=3, rank=0, world_size=2)
    first = numbers(next(batches))
    token = batches.state_dict()
    with pytest.raises(TokenError, match=f"another {name}"):
        batches.load_state_dict({**token, name: SETTINGS[name][0]})
    assert batches.state_dict() == token
    assert len(first + taken(batches)) == 26


WRONG: dict[str, dict[str, Any]] = {
    "a window after the last row": {"first_row_id": 20, "end_row_id": 40},
    "a window of no rows": {"first_row_id": 5, "end_row_id": 5},
    "a negative window": {"first_row_id": -5, "end_row_id": 5},
    "a window that is too large": {"first_row_id": 0, "end_row_id": 31},
    "a position within a batch": {"position": 3},
    "a position after the share": {"position": 16},
    "a position after the end": {"epoch": 2, "position": 4},
    "a negative position": {"position": -4},
    "an epoch too many": {"epoch": 3},
    "an epoch of 64 bits": {"epoch": 1 << 64},
    "a huge window": {"first_row_id": 0, "end_row_id": (1 << 63) - 1},
    "a seed of text": {"seed": "3"},
    "a generation of no text": {"generation_id": 5},
    "an empty generation": {"generation_id": ""},
    "a long generation": {"generation_id": "a" * 100_000},
    "a position of true": {"position": True},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_token_that_cannot_be_is_refused_and_changes_nothing(make_buffer, change):
    batches = filled(make_buffer, 30, 25).epochs(4, 2, rank=1, world_size=2)
    first = numbers(next(batches))
    token = batches.state_dict()
    with pytest.raises(TokenError):
        batches.load_state_dict({**token, **change})
    assert batches.state_dict() == token
    assert len(first + taken(batches)) == 24


@pytest.mark.parametrize("token", [None, 5, "token", [], {}, {"version": 1}, {1: 2}])
def test_what_is_no_token_is_refused(make_buffer, token):
    with pytest.raises(TokenError, match="state_dict"):
        filled(make_buffer, 5, 5).epochs(1).load_state_dict(token)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3) | st.integers(0, 30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # No example changes the rows.
@given(data=st.data())
def test_any_token_is_taken_whole_or_refused(data, kinds_of_epochs):
    for batches in kinds_of_epochs:
        token = batches.state_dict()
        changed = {**token, **data.draw(st.dictionaries(st.sampled_from(sorted(token)), VALUES, max_size=3))}
        try:
            batches.load_state_dict(changed)
        except ReplayError as error:
            assert isinstance(error, (TokenError, TableChangedError))  # noqa: PT017
            assert batches.state_dict() == token
        else:
            assert batches.state_dict() == changed
            assert all(0 <= number < 30 for number in taken(batches))
            batches.load_state_dict(token)


@pytest.fixture
def kinds_of_epochs(make_buffer) -> list[Epochs]:
    """Epochs over some rows, with and without a choice of the order."""
    buffer = filled(make_buffer, 30, 25)
    return [buffer.epochs(4, 2, shuffle=True), buffer.epochs(3, 1, rank=1, world_size=2, seed=5)]


def test_a_token_of_rows_that_are_gone_says_so(make_buffer):
    buffer = filled(make_buffer, 10, 10)
    token = buffer.epochs(2).state_dict()
    buffer.reset()
    buffer.add_batch(rows(10))
    batches = buffer.epochs(2)
    with pytest.raises(TableChangedError):
        batches.load_state_dict(token)
    assert len(taken(batches)) == 10


def test_epochs_that_are_closed_end(make_buffer):
    with filled(make_buffer, 10, 10).epochs(2) as batches:
        next(batches)
        token = batches.state_dict()
        batches.close()
        batches.close()
        assert list(batches) == []
        assert batches.state_dict() == token
        batches.load_state_dict(token)
        assert len(taken(batches)) == 8


def test_the_seed_of_a_token_is_that_of_its_batches(make_buffer):
    buffer = filled(make_buffer, 30, 30)
    batches = buffer.epochs(30, shuffle=True)
    assert taken(buffer.epochs(30, shuffle=True, seed=batches.state_dict()["seed"])) == taken(batches)
    assert torch.equal(
        next(buffer.create_epoch_iterator(30, shuffle=True, seed=2))["row_id"], next(buffer.epochs(30, shuffle=True, seed=2))["row_id"]
    )
