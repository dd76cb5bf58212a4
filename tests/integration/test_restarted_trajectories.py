"""Tables of trajectories whose server dies, or is made again of a checkpoint: afterwards each view brings exactly its anchors, as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tdreplay.samplers import Prioritized, Sampler, Uniform
from trajectory_check import Checked, check_episodes, check_rows
from trajectory_homes import HOMES, Home
from trajectory_stage import Stage
from trajectory_views import SEQUENCES, TRANSITIONS

ENVS = (1, 1, 4)
CAPACITIES = {"all of it": 400, "wrapped": 120}


@pytest.fixture(params=HOMES)
def home(request, tmp_path) -> Iterator[Home]:
    made = HOMES[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture(params=[Uniform(), Prioritized(alpha=1.0)], ids=lambda sampler: sampler.name)
def sampler(request) -> Sampler:
    return request.param


def check(stage: Stage) -> None:
    check_rows(stage.buffer, stage.ring)
    for view in (*TRANSITIONS[:6:2], TRANSITIONS[6], *SEQUENCES[2:9:2]):
        checked = Checked(stage.buffer, stage.ring, view)
        checked.random(prioritized=stage.prioritized)
        checked.slots(3)
        checked.epochs(shuffle=True)


@pytest.mark.covers("home", among=len(HOMES))
@pytest.mark.parametrize("capacity", CAPACITIES.values(), ids=CAPACITIES)
def test_episodes_go_on_after_their_server_was_killed(home, sampler, capacity):
    stage = Stage(home.open(capacity, sampler), capacity, ENVS, seed=capacity, prioritized=sampler.has_priorities)
    for rows in (90, 71, 50):
        stage.play(rows)
        home.kill(stage)
    check_rows(stage.buffer, stage.ring)
    stage.play(60)
    check(stage)
    check_episodes(stage.buffer, stage.ring)


@pytest.mark.covers("home", among=len(HOMES))
@pytest.mark.parametrize("capacity", CAPACITIES.values(), ids=CAPACITIES)
def test_episodes_go_on_in_a_table_that_was_made_of_a_checkpoint(home, sampler, capacity):
    stage = Stage(home.open(capacity, sampler), capacity, ENVS, seed=capacity, prioritized=sampler.has_priorities)
    stage.play(210)
    home.restore(stage)
    check_rows(stage.buffer, stage.ring)
    stage.play(60)
    check(stage)
