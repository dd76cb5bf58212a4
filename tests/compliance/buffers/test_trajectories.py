"""One table: however episodes end, wrap and interleave, each view brings exactly the anchors of an oracle, and each value, mask and index of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chi_square import deviation
from compliance.kinds import MakeBuffer
from tdreplay.samplers import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Sampler, Uniform, WithoutReplacement
from tdreplay.sequences import Sequences
from tdreplay.transitions import Transitions
from tdreplay.views import View
from trajectory_check import Checked, check_episodes, check_rows
from trajectory_play import ENDS, TRAJECTORIES
from trajectory_stage import Stage
from trajectory_views import SEQUENCES, TRANSITIONS, VIEWS

OTHERS = 2
"""Slots that are no anchors, of each view, that are asked for one by one."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is played, and into how many slots.

    Attributes:
        capacity: Of the table.
        rows: So many are played.
        envs: Of each writer.
        ends: How episodes end.
    """

    capacity: int = 200
    rows: int = 130
    envs: tuple[int, ...] = (1, 1, 1)
    ends: tuple[str, ...] = ENDS
    longest: int = 30

    def played(self, make_buffer: MakeBuffer, sampler: Sampler, seed: int = 3) -> Stage:
        """A stage on which all of it was played."""
        buffer = make_buffer(self.capacity, sampler=sampler, trajectories=TRAJECTORIES)
        stage = Stage(buffer, self.capacity, self.envs, seed=seed, ends=self.ends, longest=self.longest, prioritized=sampler.has_priorities)
        stage.play(self.rows)
        return stage


SCENARIOS = {
    "terminated": Scenario(ends=("terminated", "bare termination", "both")),
    "truncated": Scenario(ends=("truncated", "bare truncation")),
    "abandoned": Scenario(ends=("abandoned", "abandoned", "terminated")),
    "overwritten head": Scenario(capacity=23, rows=97, envs=(1,)),
    "wrapped": Scenario(capacity=90, rows=270),
    "sixteen actors": Scenario(capacity=160, rows=420, envs=(1,) * 16),
    "vectorised": Scenario(capacity=150, rows=400, envs=(4, 1, 3)),
    "short episodes": Scenario(capacity=50, rows=130, longest=7),
}


@pytest.fixture(params=[Uniform(), Prioritized(alpha=1.0)], ids=lambda sampler: sampler.name)
def sampler(request) -> Sampler:
    return request.param


@pytest.mark.covers("kind", among=4)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_view_brings_exactly_its_anchors_each_as_it_was_played(scenario, sampler, make_buffer):
    stage = scenario.played(make_buffer, sampler)
    check_rows(stage.buffer, stage.ring)
    for view in VIEWS:
        checked = Checked(stage.buffer, stage.ring, view)
        checked.random(prioritized=sampler.has_priorities)
        checked.slots(OTHERS)
        checked.epochs(shuffle=sampler.has_priorities)
    check_episodes(stage.buffer, stage.ring)


def test_a_stream_brings_exactly_the_anchors(sampler, kind, make_buffer):
    if not kind.streams:
        pytest.skip("it has no streams")
    stage = SCENARIOS["wrapped"].played(make_buffer, sampler)
    for view in (TRANSITIONS[1], TRANSITIONS[3], TRANSITIONS[6], SEQUENCES[3], SEQUENCES[7]):
        checked = Checked(stage.buffer, stage.ring, view)
        with stage.buffer.stream(64, view=view) as stream:
            while not (checked.seen > 0).all():
                checked.draw(next(stream))


def test_anchors_follow_the_rows_that_come_and_go(sampler, make_buffer):
    """The same buffer, looked at again and again: what was known of anchors must not be kept too long."""
    scenario = dataclasses.replace(SCENARIOS["sixteen actors"], capacity=60, rows=1, envs=(1, 1, 2))
    stage = scenario.played(make_buffer, sampler)
    views = (TRANSITIONS[0], TRANSITIONS[5], SEQUENCES[2], SEQUENCES[7])
    for rows in (2, 1, 5, 1, 20, 37, 2, 61, 1, 130):
        stage.play(rows)
        for view in views:
            checked = Checked(stage.buffer, stage.ring, view)
            checked.random(prioritized=sampler.has_priorities)
            checked.slots(1)


@pytest.mark.parametrize("view", [TRANSITIONS[0], TRANSITIONS[5], SEQUENCES[3]], ids=["one step", "ten steps", "sequences"])
def test_anchors_are_drawn_with_exact_probabilities(view, sampler, make_buffer):
    stage = SCENARIOS["wrapped"].played(make_buffer, sampler)
    checked = Checked(stage.buffer, stage.ring, view)
    for _ in range(12):
        checked.draw(stage.buffer.sample_batch(2000, view=view))
    count = len(checked.anchors)
    assert deviation(checked.seen, checked.probabilities if sampler.has_priorities else np.full(count, 1 / count)) < 5


@pytest.mark.parametrize("view", [TRANSITIONS[1], SEQUENCES[2]], ids=["transitions", "sequences"])
def test_a_draw_says_how_many_anchors_there_are_and_how_probable_the_least_one_is(view, make_buffer):
    stage = SCENARIOS["wrapped"].played(make_buffer, Prioritized(alpha=0.5))
    checked = Checked(stage.buffer, stage.ring, view)
    checked.alpha = 0.5
    batch = stage.buffer.sample_batch(50, view=view)
    checked.draw(batch)
    assert (batch["table_size"] == len(checked.anchors)).all()
    assert np.allclose(batch["min_probability"].numpy(), checked.probabilities.min(), 1e-9)


ORDERS: dict[Sampler, Callable[[int, float], Any] | None] = {
    Fifo(): lambda row_id, priority: row_id,
    Lifo(): lambda row_id, priority: -row_id,
    MaxHeap(): lambda row_id, priority: (-priority, row_id),
    MinHeap(): lambda row_id, priority: (priority, row_id),
    WithoutReplacement(): None,
}


@pytest.mark.parametrize("order", ORDERS, ids=lambda sampler: sampler.name)
def test_samplers_with_an_order_bring_each_anchor_once_in_that_order(order, make_buffer):
    for view in (TRANSITIONS[3], SEQUENCES[3]):
        stage = SCENARIOS["short episodes"].played(make_buffer, order)
        checked = Checked(stage.buffer, stage.ring, view)
        checked.alpha = None
        came = stage.buffer.sample_batch(len(checked.anchors), view=view)
        checked.draw(came)
        assert (checked.seen == 1).all()
        ids = came["row_id"].reshape(len(came), -1)[:, 0].tolist()
        key = ORDERS[order]
        assert key is None or ids == sorted(ids, key=lambda row_id: key(row_id, stage.ring.rows[row_id].priority))


def test_without_a_view_each_step_is_drawn_and_no_final_observation(sampler, make_buffer):
    stage = SCENARIOS["wrapped"].played(make_buffer, sampler)
    steps, seen = stage.ring.steps, set()
    for _ in range(60):
        seen |= set(stage.buffer.sample_batch(100)["row_id"].tolist())
    assert seen == set(steps)
    assert [row_id for batch in stage.buffer.epochs(20) for row_id in batch["row_id"].tolist()] == sorted(steps, key=stage.ring.slot)


@pytest.mark.covers("kind", among=4)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_description_counts_steps_episodes_and_anchors(scenario, make_buffer):
    stage = scenario.played(make_buffer, Uniform())
    episodes = [episode for episode in stage.ring.episodes.values() if episode.steps]
    for view in VIEWS:
        anchors = Checked(stage.buffer, stage.ring, view)
        if len(anchors.anchors):
            stage.buffer.sample_batch(1, view=view)
            state, rule = stage.buffer.describe().trajectories, view.query(TRAJECTORIES).rule
            assert [found.count for found in state.anchors if found.rule == rule] == [len(anchors.anchors)], view
    state = stage.buffer.describe().trajectories
    assert (state.steps, state.episodes) == (len(stage.ring.steps), len(episodes))
    assert state.open_episodes == sum(not episode.ended for episode in episodes)
    assert state.transitions == len(Checked(stage.buffer, stage.ring, Transitions()).anchors)


def test_updated_priorities_count_for_every_view(make_buffer):
    stage = SCENARIOS["wrapped"].played(make_buffer, Prioritized(alpha=1.0))
    views: tuple[View, ...] = (Transitions(1), Transitions(3), Sequences(4, burn_in=2))
    for view in views:
        Checked(stage.buffer, stage.ring, view).random(prioritized=True)
    chance = np.random.default_rng(0)
    for view in views:
        ids = chance.choice(list(stage.ring.steps), 30, replace=False).tolist()
        priorities = chance.choice([0.0, 1.0, 3.0], 30).tolist()
        assert stage.buffer.update_priorities(ids, priorities).updated == 30
        stage.ring.prioritize(dict(zip(ids, priorities, strict=True)))
        for other in (view, *views):
            Checked(stage.buffer, stage.ring, other).random(prioritized=True)
