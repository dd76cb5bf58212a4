"""A server says of what it drew: how many rows, and what they weigh. It is exactly what the probabilities of the batch are parts of."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from conftest import rows
from tdreplay.errors import FailedPreconditionError, NoTrajectoriesError
from tdreplay.samplers import Prioritized, Uniform
from tdreplay.trajectories import Trajectories
from tdreplay.views import TableView, View
from tdreplay_client import RemoteReplayBuffer, Sequences, Transitions
from tdreplay_client.reading.named_batches import OneBatch
from tdreplay_client.reading.single_batches import Asked
from tdreplay_client.sharding.shard_batches import ShardBatch, Totals
from tdreplay_client.sharding.shard_table import ShardTable

ALPHA = 0.7
VIEWS = [Transitions(), Transitions(n_step=3), Sequences(length=4, burn_in=1, stride=2), Sequences(length=3, padding="drop")]


def opened(address: str, table: str, **settings: Any) -> ShardTable:
    return ShardTable(address, table=table, **{"buffer_size": 100, "transport": "grpc"} | settings)


def drawn(batch: object) -> ShardBatch:
    """What a shard's table gives: its type says that it is a batch, for the sake of those who read it as one."""
    assert isinstance(batch, ShardBatch)
    return batch


def sampled(table: ShardTable, size: int, *, view: View | None = None, uniform: bool = False) -> ShardBatch:
    """A random batch, as a buffer over shards asks for it."""
    kind = Asked(size, Uniform.name if uniform else "", None if view is None else seen(table, view))
    return table.drawn(OneBatch(kind, size, None, 10.0))


def totals_of(batch: object) -> Totals:
    totals = drawn(batch).totals
    assert totals is not None
    return totals


def live_ids(table: RemoteReplayBuffer) -> np.ndarray:
    state = table.describe()
    return np.arange(state.write_count - state.size, state.write_count)


def steps(first: int, count: int, length: int = 7) -> TensorDict:
    """Steps of one actor, whose episodes have that length and are cut off with a final observation."""
    number = torch.arange(first, first + count)
    truncated = number % length == length - 1
    obs = number.float()[:, None]
    return TensorDict({"obs": obs, "reward": torch.ones(count), "terminated": torch.zeros_like(truncated), "truncated": truncated}, [count])


def played(table: RemoteReplayBuffer, first: int, count: int, length: int = 7) -> None:
    with table.trajectory_writer() as writer:
        for number in range(first, first + count):
            step = steps(number, 1, length)[0]
            writer.append(step, {"obs": step["obs"] + 0.5} if step["truncated"] else None)


def seen(table: RemoteReplayBuffer, view: View) -> TableView:
    """The view of this table."""
    trajectories = table.describe().config.trajectories
    assert trajectories
    return TableView(view, trajectories)


def anchors_of(table: RemoteReplayBuffer, view: View) -> int:
    """How many the table counts in its episodes, which is another way to count them."""
    state = table.describe().trajectories
    assert state is not None
    return next(anchors.count for anchors in state.anchors if anchors.rule == seen(table, view).windows.rule)


@pytest.mark.parametrize("sampler", ["uniform", "fifo", "lifo", "without_replacement", "max_heap", "min_heap"])
def test_of_samplers_without_weights_each_live_row_weighs_1(address, table, sampler):
    with opened(address, table, sampler=sampler) as shard:
        assert shard.totals()[:2] == (0, 0.0)
        for first in (0, 60, 120):
            shard.add_batch(rows(60, first))
            live = min(first + 60, 100)
            assert totals_of(sampled(shard, 7))[:2] == shard.totals()[:2] == (live, float(live))
            assert totals_of(next(shard.stream(3)))[:2] == (live, float(live))
        shard.reset()
        assert shard.totals()[:2] == (0, 0.0)


def test_the_probability_of_each_row_times_the_mass_is_its_weight(address, table):
    generator = np.random.default_rng(5)
    with opened(address, table, sampler=Prioritized(alpha=ALPHA)) as shard:
        for _ in range(4):
            priorities = generator.exponential(size=40) * (generator.random(40) > 0.2)
            shard.add_batch(rows(40), priorities=priorities)
            batch = sampled(shard, 500)
            totals = totals_of(batch)
            assert totals == shard.totals()
            assert totals.rows == shard.size == batch.columns["table_size"][0]
            weights = batch.columns["priority"].numpy() ** ALPHA
            assert np.allclose(batch.columns["probability"].numpy() * totals.mass, weights, rtol=1e-12, atol=0)
            shard.update_priorities(live_ids(shard)[-40:], priorities[::-1].copy())


def test_the_mass_is_the_sum_of_all_weights(address, table):
    priorities = np.random.default_rng(3).exponential(size=150)
    with opened(address, table, sampler=Prioritized(alpha=ALPHA)) as shard:
        shard.add_batch(rows(150), priorities=priorities)
        assert shard.totals().mass == pytest.approx((priorities[-100:] ** ALPHA).sum(), rel=1e-12)
        assert shard.totals(uniform=True)[:2] == (100, 100.0)
        assert totals_of(sampled(shard, 5, uniform=True))[:2] == (100, 100.0)


def test_rows_of_priority_0_weigh_nothing_also_where_all_of_them_are_drawn_evenly(address, table):
    with opened(address, table, sampler=Prioritized(alpha=ALPHA)) as shard:
        shard.add_batch(rows(10), priorities=np.array([0.0] * 8 + [2.0, 3.0]))
        assert totals_of(sampled(shard, 5))[:2] == shard.totals()[:2] == (10, pytest.approx(2**ALPHA + 3**ALPHA))
        shard.update_priorities([8, 9], [0.0, 0.0])
        assert totals_of(sampled(shard, 5))[:2] == shard.totals()[:2] == (10, 0.0)


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
@pytest.mark.parametrize("view", VIEWS)
def test_with_a_view_the_anchors_are_counted(address, table, sampler, view):
    with opened(address, table, sampler=sampler, trajectories=True, buffer_size=50) as shard:
        of_view = seen(shard, view)
        assert shard.totals(view=of_view)[:2] == (0, 0.0)
        for first in (0, 30, 60):
            played(shard, first, 30)
            batch = totals_of(sampled(shard, 4, view=view))
            anchors = anchors_of(shard, view)
            assert batch[:2] == shard.totals(view=of_view)[:2] == (anchors, float(anchors))
            uniform = totals_of(sampled(shard, 4, view=view, uniform=True))
            assert uniform == shard.totals(view=of_view, uniform=True) == totals_of(next(shard.stream(2, view=view, uniform=True)))
            assert uniform.rows == anchors


def test_prioritized_anchors_weigh_what_their_priorities_say(address, table):
    with opened(address, table, sampler=Prioritized(alpha=ALPHA), trajectories=True) as shard:
        played(shard, 0, 60)
        live = live_ids(shard)
        shard.update_priorities(live, 1 + live % 5)
        for view in VIEWS:
            batch = sampled(shard, 300, view=view)
            totals = totals_of(batch)
            assert totals == pytest.approx(shard.totals(view=seen(shard, view)), rel=1e-12)
            weights = (1 + batch.columns["row_id"].numpy() % 5) ** ALPHA
            assert np.allclose(batch.columns["probability"].numpy() * totals.mass, weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sampler", ["uniform", "fifo", "prioritized"])
def test_rows_that_were_taken_or_are_on_their_way_are_not_counted(address, table, sampler):
    with opened(address, table, sampler=sampler, max_times_sampled=1) as shard:
        shard.add_batch(rows(20))
        assert totals_of(sampled(shard, 8))[:2] == (20, 20.0)
        assert shard.totals()[:2] == (12, 12.0)
        assert totals_of(sampled(shard, 12))[:2] == (12, 12.0)
        assert shard.totals()[:2] == (0, 0.0)


def test_totals_that_cannot_be_are_refused(address, table):
    with opened(address, table, max_times_sampled=2) as shard:
        shard.add_batch(rows(2))
        with pytest.raises(NoTrajectoriesError):
            shard.totals(view=TableView(Transitions(), Trajectories()))
        with pytest.raises(FailedPreconditionError, match="uniform batches cannot be had"):
            shard.totals(uniform=True)


def test_totals_and_probabilities_are_of_one_moment_while_rows_and_priorities_change(address, table):
    """The priorities of all rows are doubled and halved together, so a batch of two moments would show."""
    over, failures = threading.Event(), list[BaseException]()

    def change(shard: ShardTable) -> None:
        try:
            while not over.is_set():
                shard.update_priorities(live_ids(shard), np.full(shard.size, 4.0))
                shard.update_priorities(live_ids(shard), np.full(shard.size, 8.0))
        except BaseException as error:  # noqa: BLE001 - the test raises it.
            failures.append(error)

    with opened(address, table, sampler=Prioritized(alpha=1.0)) as shard:
        shard.add_batch(rows(100), priorities=np.full(100, 4.0))
        changing = threading.Thread(target=change, args=(shard,))
        changing.start()
        try:
            batches = shard.stream(16)
            found = {(totals_of(batch).mass, float(drawn(batch).columns["probability"][0])) for batch in (next(batches).clone() for _ in range(300))}
        finally:
            over.set()
            changing.join()
    assert not failures
    assert {mass for mass, _ in found} <= {400.0, 800.0}
    assert {probability for _, probability in found} == {0.01}


def test_the_least_weight_above_0_is_said(address, table):
    with opened(address, table, sampler=Prioritized(alpha=ALPHA)) as shard:
        shard.add_batch(rows(3), priorities=[0.0, 3.0, 2.0])
        assert shard.totals().least == totals_of(sampled(shard, 4)).least == pytest.approx(2**ALPHA)
        shard.update_priorities([0, 1, 2], 0.0)
        assert shard.totals().least == totals_of(sampled(shard, 4)).least == 0
        assert shard.totals(uniform=True).least == 1
