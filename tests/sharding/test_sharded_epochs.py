"""Epochs over shards: each row once, in one order, whoever goes on with them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from epoch_tables import taken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import numbers, rows
from tdreplay.epochs import Epochs
from tdreplay.errors import EmptyTableError, FieldNotFoundError, NoTrajectoriesError, OverwrittenError, TableChangedError, TokenError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer, Transitions
from tdreplay_server import ReplayServer, ServerConfig

UNEVEN = (60, 25, 7, 40, 1)
"""The rows of five shards."""


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of five servers."""
    with ExitStack() as stack:
        config = ServerConfig(address="127.0.0.1:0", max_tables=10_000)
        yield [stack.enter_context(ReplayServer(config)).address for _ in UNEVEN]


class Stage:
    """Tables that make up one buffer: `shards` has a buffer for each, and `whole` is the one over all of them."""

    def __init__(self, stack: ExitStack, addresses: list[str], table: str, sizes: tuple[int, ...], fill: bool, **options: Any) -> None:
        self.shards = [
            stack.enter_context(RemoteReplayBuffer(address, table=table, buffer_size=size)) for address, size in zip(addresses, sizes, strict=False)
        ]
        self.whole = stack.enter_context(ShardedReplayBuffer(addresses[: len(sizes)], table=table, **options))
        if fill:
            for shard, size, start in zip(self.shards, sizes, itertools.accumulate(sizes, initial=0), strict=False):
                shard.add_batch(rows(size, start))


@pytest.fixture
def staged(addresses: list[str], table: str) -> Iterator[Callable[..., Stage]]:
    """Makes tables of these sizes, which are full, on as many shards."""
    with ExitStack() as stack:
        yield lambda *sizes, fill=True, **options: Stage(stack, addresses, table, sizes, fill, **options)


def alike(batches: Epochs, others: Epochs) -> None:
    """Passes where two iterators give the same batches, and stand at the same places."""
    for batch, other in itertools.zip_longest(batches, others):
        assert set(batch.keys(include_nested=True, leaves_only=True)) == set(other.keys(include_nested=True, leaves_only=True))
        assert (batch == other).all()
        assert batch.batch_size == other.batch_size
        mine, theirs = batches.state_dict(), others.state_dict()
        assert [mine[name] for name in ("epoch", "position", "overwritten")] == [theirs[name] for name in ("epoch", "position", "overwritten")]
    assert batches.overwritten == others.overwritten


# -- each row once ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_row_comes_once_an_epoch(staged, count, world_size, shuffle):
    whole, total = staged(*UNEVEN[:count]).whole, sum(UNEVEN[:count])
    shares = [taken(whole.epochs(8, 2, shuffle=shuffle, seed=5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == sorted([*range(total)] * 2)
    assert {len(share) // 2 for share in shares} <= {total // world_size, -(-total // world_size)}


def test_learners_that_drop_the_last_batch_have_as_many_batches_each(staged):
    whole = staged(*UNEVEN).whole
    shares = [list(whole.epochs(8, 1, shuffle=True, seed=1, drop_last=True, rank=rank, world_size=2)) for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[8] * 8] * 2
    assert len({number for share in shares for batch in share for number in numbers(batch)}) == 128


def test_slot_order_is_that_of_the_whole_buffer(staged):
    batches = list(staged(*UNEVEN).whole.epochs(9))
    slots = torch.cat([batch["index"] for batch in batches])
    assert slots.tolist() == sorted(slots.tolist())
    assert len(set(slots.tolist())) == sum(UNEVEN)


@pytest.mark.parametrize("shuffle", [True, False])
def test_row_ids_and_slots_say_the_shard(staged, shuffle):
    whole = staged(*UNEVEN[:3]).whole
    starts = np.cumsum([0, *UNEVEN])
    for batch in whole.epochs(7, shuffle=shuffle):
        shard, slot = batch["row_id"] >> 48, batch["row_id"] & ((1 << 48) - 1)
        assert torch.equal(torch.from_numpy(starts)[shard] + slot, batch["action"])
        assert torch.equal(batch["index"], slot * 3 + shard)


def test_large_batches_are_asked_for_in_parts(staged):
    whole = staged(30_000, 11_000).whole
    (batch,) = whole.epochs(50_000, shuffle=True, fields=["action"])
    assert sorted(batch["action"].tolist()) == [*range(41_000)]
    assert batch["action"].tolist() != [*range(41_000)]


def test_small_batches_share_calls_whatever_the_most_rows_of_a_batch(table):
    with ExitStack() as stack:
        config = ServerConfig(address="127.0.0.1:0", max_batch_rows=100)
        addresses = [stack.enter_context(ReplayServer(config)).address for _ in range(2)]
        whole = stack.enter_context(ShardedReplayBuffer(addresses, table=table, buffer_size=2000))
        for start in range(0, 2000, 50):
            whole.add_batch(rows(50, start))
        assert sorted(taken(whole.epochs(40, shuffle=True))) == [*range(2000)]


def test_fields_are_those_that_were_asked_for(staged):
    for batch in staged(20, 10).whole.epochs(8, fields=["action"]):
        assert set(batch.keys()) == {"action"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # No example changes the rows.
@given(data=st.data())
def test_learners_that_resume_anywhere_get_each_row_once(data, stages):
    stage = data.draw(st.sampled_from(stages))
    total, world_size = stage.whole.state().size, data.draw(st.integers(1, 3))
    sizes = {"batch_size": data.draw(st.integers(1, 40)), "n_epochs": data.draw(st.integers(1, 2))}
    arguments = {**sizes, "shuffle": data.draw(st.booleans()), "seed": 3}
    found: list[int] = []
    for rank in range(world_size):
        batches, ends = stage.whole.epochs(**arguments, rank=rank, world_size=world_size), False
        while not ends:
            for _ in range(data.draw(st.integers(1, 30))):
                batch = next(batches, None)
                ends = batch is None
                found += [] if batch is None else numbers(batch)
            token = json.loads(json.dumps(batches.state_dict()))
            batches.close()
            batches = stage.whole.epochs(**arguments, rank=rank, world_size=world_size)
            batches.load_state_dict(token)
            assert batches.state_dict() == token
    assert sorted(found) == sorted([*range(total)] * sizes["n_epochs"])


@pytest.fixture
def stages(addresses, table) -> Iterator[list[Stage]]:
    """Buffers of 1, 2 and 5 shards."""
    with ExitStack() as stack:
        yield [Stage(stack, addresses, f"{table}-{count}", UNEVEN[:count], fill=True) for count in (1, 2, 5)]


# -- one shard is as no shard -----------------------------------------------------------------------------------------------------------------

ARGUMENTS = [
    {},
    {"shuffle": True, "seed": 4, "n_epochs": 3},
    {"drop_last": True, "rank": 1, "world_size": 2},
    {"shuffle": True, "seed": 4, "rank": 2, "world_size": 3, "fields": ["obs", "row_id"]},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_one_shard_gives_the_batches_of_a_remote_buffer(staged, arguments):
    stage = staged(50)
    stage.shards[0].add_batch(rows(20, 50))  # The ring wraps around.
    alike(stage.whole.epochs(8, **arguments), stage.shards[0].epochs(8, **arguments))


@pytest.mark.parametrize("mode", ["skip", "replace"])
@pytest.mark.parametrize("more", [25, 70, 120])
def test_one_shard_gives_what_is_left_after_inserts_as_a_remote_buffer(staged, mode, more):
    stage = staged(50)
    begun = [buffer.epochs(8, 2, shuffle=True, seed=4, on_overwrite=mode) for buffer in (stage.whole, *stage.shards)]
    tokens = [batches.state_dict() for batches in begun]
    stage.shards[0].add_batch(rows(more, 50))
    for batches, token in zip(begun, tokens, strict=True):
        batches.load_state_dict(token)  # Nothing is read ahead of the insert.
    alike(*begun)


# -- rows that are overwritten ----------------------------------------------------------------------------------------------------------------


def begun_anew(stage: Stage, more: int, **arguments: Any) -> Epochs:
    """Epochs whose rows of shard 1 are overwritten by so many before any is read."""
    batches = stage.whole.epochs(10, **arguments)
    token = batches.state_dict()
    stage.shards[1].add_batch(rows(more, 1000))
    batches.load_state_dict(token)
    return batches


def test_overwritten_rows_are_left_out_and_counted(staged):
    batches = begun_anew(staged(30, 20), 15, shuffle=True, on_overwrite="skip")
    assert sorted(taken(batches)) == [*range(30), *range(45, 50)]
    assert (batches.overwritten, batches.lost) == (15, 0)


def test_newer_rows_come_in_the_place_of_overwritten_ones(staged):
    batches = begun_anew(staged(30, 20), 15, shuffle=True, on_overwrite="replace")
    assert sorted(taken(batches)) == [*range(30), *range(45, 50), *range(1000, 1015)]
    assert batches.overwritten == 15


def test_overwritten_rows_are_an_error_where_that_is_wanted(staged):
    batches = begun_anew(staged(30, 20), 15, on_overwrite="raise")
    with pytest.raises(OverwrittenError, match=r"shard 1"):
        list(batches)
    with pytest.raises(StopIteration):
        next(batches)
    batches.load_state_dict(batches.state_dict())
    with pytest.raises(OverwrittenError):
        list(batches)


def test_the_end_comes_at_once_where_nothing_is_left(staged):
    stage = staged(30, 20)
    batches = stage.whole.epochs(10, 1_000_000, on_overwrite="skip")
    token = batches.state_dict()
    for shard, size in zip(stage.shards, (30, 20), strict=True):
        shard.add_batch(rows(size, 1000))
    batches.load_state_dict(token)
    assert list(batches) == []
    assert (batches.epoch, batches.overwritten) == (1_000_000, 50_000_000)


# -- tables that change -----------------------------------------------------------------------------------------------------------------------


def test_a_token_of_rows_that_one_shard_has_no_more_says_so(staged):
    stage = staged(30, 20)
    batches = stage.whole.epochs(10)
    token = batches.state_dict()
    stage.shards[1].reset()
    with pytest.raises(TableChangedError, match="shard 1"):
        batches.load_state_dict(token)
    assert batches.state_dict() == token
    with pytest.raises(TableChangedError, match="shard 1"):
        stage.whole.epochs(10).load_state_dict(token)


def test_rows_of_a_shard_that_is_another_one_are_counted_as_lost_where_the_buffer_goes_on(staged):
    stage = staged(30, 20, on_loss="degrade")
    batches = stage.whole.epochs(10, 2, shuffle=True)
    token = batches.state_dict()
    stage.shards[1].reset()
    batches.load_state_dict(token)
    assert sorted(taken(batches)) == sorted([*range(30)] * 2)
    assert (batches.lost, batches.overwritten) == (40, 0)
    assert batches.state_dict()["lost"] == 40
    batches.load_state_dict({**token, "lost": 5, "epoch": 1})
    taken(batches)
    assert batches.lost == 25


def test_tables_that_were_all_reset_are_no_loss(staged):
    stage = staged(30, 20, on_loss="degrade")
    batches = stage.whole.epochs(10)
    token = batches.state_dict()
    for shard in stage.shards:
        shard.reset()
    with pytest.raises(TableChangedError, match="shard 0"):
        batches.load_state_dict(token)
    with pytest.raises(TableChangedError):
        list(batches)


SHARDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda one: [],
    "text": lambda one: "shards",
    "numbers": lambda one: [1],
    "a shard twice": lambda one: [one, one],
    "a shard too many": lambda one: [{**one, "shard": 1 << 14}],
    "no rows": lambda one: [{**one, "end_row_id": one["first_row_id"]}],
    "more rows than slots": lambda one: [{**one, "end_row_id": one["first_row_id"] + one["buffer_size"] + 1}],
    "rows that never came": lambda one: [{**one, "first_row_id": 20, "end_row_id": 31}],
    "another capacity": lambda one: [{**one, "buffer_size": 1000}],
    "a name too many": lambda one: [{**one, "more": 1}],
    "a generation of no text": lambda one: [{**one, "generation_id": 5}],
}


@pytest.mark.parametrize("change", SHARDS.values(), ids=SHARDS.keys())
def test_a_token_whose_shards_cannot_be_is_refused_and_changes_nothing(staged, change):
    batches = staged(30, 20).whole.epochs(10)
    first, token = numbers(next(batches)), batches.state_dict()
    with pytest.raises(TokenError):
        batches.load_state_dict({**token, "shards": change(token["shards"][0])})
    assert batches.state_dict() == token
    assert sorted(first + taken(batches)) == [*range(50)]


def test_what_cannot_be_is_said_when_the_epochs_begin(staged):
    stage = staged(30, 20)
    with pytest.raises(FieldNotFoundError, match="nothing"):
        stage.whole.epochs(10, fields=["nothing"])
    with pytest.raises(NoTrajectoriesError):
        stage.whole.epochs(10, view=Transitions())
    for shard in stage.shards:
        shard.reset()
    with pytest.raises(EmptyTableError):
        stage.whole.epochs(10)


# -- the old interface ------------------------------------------------------------------------------------------------------------------------


def test_the_iterator_of_training_loops_goes_over_all_shards(staged):
    whole = staged(30, 20).whole
    assert whole.get_steps_and_iterator(2, 0, 8) == 14
    found = [numbers(whole.get_next_batch(8)) for _ in range(14)]
    assert sorted(itertools.chain(*found)) == sorted([*range(50)] * 2)
    whole.create_epoch_iterator(8, shuffle=True)
    assert len(numbers(whole.get_next_batch(8))) == 8


def test_progress_counts_the_rows_of_all_shards(staged):
    told: list[tuple[int, int]] = []
    list(staged(30, 20).whole.epochs(20, progress=lambda done, of: told.append((done, of))))
    assert told == [(0, 50), (20, 50), (40, 50), (50, 50)]


def test_epochs_that_are_closed_end(staged):
    with staged(30, 20).whole.epochs(10) as batches:
        next(batches)
        token = batches.state_dict()
        batches.close()
        batches.close()
        assert list(batches) == []
        assert batches.state_dict() == token
        batches.load_state_dict(token)
        assert len(taken(batches)) == 40
