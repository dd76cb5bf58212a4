"""A long random run of all that happens to a table of trajectories, against an oracle: actors come and go, rows wrap, several views look on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import EpisodeNotFoundError, MissingRowsError
from tdreplay.samplers import Prioritized, Sampler, Uniform
from tdreplay.views import View
from trajectory_check import Checked, check_episodes, check_rows
from trajectory_oracle import Ring
from trajectory_stage import Crew, Stage
from trajectory_views import VIEWS

__all__ = ["SETTINGS", "TrajectoryMachine"]

SETTINGS = settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
capacities = st.sampled_from([1, 2, 7, 30, 90])
samplers = st.sampled_from([Uniform(), Prioritized(alpha=1.0)])
views = st.sampled_from(VIEWS)
MOST_CREWS = 5


class TrajectoryMachine(RuleBasedStateMachine):
    """Attributes:

    stage: The table, and what it must hold.
    saved: What it held when `save` was called.
    """

    def make(self, capacity: int, sampler: Sampler) -> BaseReplayBuffer:
        raise NotImplementedError

    @initialize(capacity=capacities, sampler=samplers, seed=st.integers(0, 1000), longest=st.sampled_from([1, 3, 12, 30]))
    def start(self, capacity: int, sampler: Sampler, seed: int, longest: int) -> None:
        self.sampler = sampler
        self.stage = Stage(self.make(capacity, sampler), capacity, (1,), seed=seed, longest=longest, prioritized=sampler.has_priorities)
        self.scratch = tempfile.TemporaryDirectory()
        self.saved: Ring | None = None

    @property
    def buffer(self) -> BaseReplayBuffer:
        return self.stage.buffer

    # -- who plays --------------------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.stage.crews) < MOST_CREWS)
    @rule(envs=st.integers(1, 4))
    def enter(self, envs: int) -> None:
        self.stage.enter([envs])

    def crew(self, place: float) -> Crew:
        return self.stage.crews[int(place * len(self.stage.crews))]

    @precondition(lambda self: self.stage.crews)
    @rule(place=st.floats(0, 1, exclude_max=True))
    def leave(self, place: float) -> None:
        self.stage.leave(self.crew(place))

    @precondition(lambda self: self.stage.crews)
    @rule(place=st.floats(0, 1, exclude_max=True), steps=st.integers(1, 40))
    def burst(self, place: float, steps: int) -> None:
        self.stage.burst(self.crew(place), steps)

    @precondition(lambda self: self.stage.crews)
    @rule(rows=st.integers(1, 60))
    def play(self, rows: int) -> None:
        self.stage.play(rows)

    @precondition(lambda self: self.stage.crews)
    @rule(place=st.floats(0, 1, exclude_max=True), env=st.integers(0, 3))
    def abandon(self, place: float, env: int) -> None:
        crew = self.crew(place)
        env %= len(crew.actors)
        crew.writer.abandon() if len(crew.actors) == 1 else crew.writer.abandon([env])
        crew.actors[env].drop()

    # -- what becomes of the table ----------------------------------------------------------------------------------------------------------------

    @rule(capacity=st.none() | capacities)
    def reset(self, capacity: int | None) -> None:
        self.buffer.reset(capacity)
        self.stage.ring.reset(capacity)

    @rule()
    def save(self) -> None:
        self.buffer.save(Path(self.scratch.name) / "saved")
        self.saved = self.stage.ring.copy()

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self) -> None:
        ring = self.stage.ring
        if not self.saved.rows and not ring.rows:
            ring.capacity, ring.write_count = self.saved.capacity, self.saved.write_count
        elif not ring.rewind(self.saved):
            with pytest.raises(MissingRowsError):
                self.buffer.load(Path(self.scratch.name) / "saved")
            return
        self.buffer.load(Path(self.scratch.name) / "saved")
        self.stage.drop()  # Their steps are gone.

    @precondition(lambda self: self.stage.prioritized and self.stage.ring.steps)
    @rule(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1.0, 3.0])), min_size=1, max_size=9))
    def update(self, places: list[tuple[float, float]]) -> None:
        live = list(self.stage.ring.steps)
        updates = {live[int(place * len(live))]: priority for place, priority in places}
        assert self.buffer.update_priorities(list(updates), list(updates.values())).updated == len(updates)
        self.stage.ring.prioritize(updates)

    # -- what is read -----------------------------------------------------------------------------------------------------------------------------

    def checked(self, view: View) -> Checked:
        return Checked(self.buffer, self.stage.ring, view)

    @rule(view=views)
    def draw(self, view: View) -> None:
        self.checked(view).random(64, prioritized=self.stage.prioritized)

    @precondition(lambda self: self.stage.ring.rows)
    @rule(view=views)
    def slots(self, view: View) -> None:
        self.checked(view).slots(5)

    @rule(view=views, shuffle=st.booleans())
    def epochs(self, view: View, shuffle: bool) -> None:
        self.checked(view).epochs(shuffle=shuffle)

    @rule()
    def episodes(self) -> None:
        check_episodes(self.buffer, self.stage.ring, returns=self.saved is None)

    @rule()
    def no_episode(self) -> None:
        with pytest.raises(EpisodeNotFoundError):
            self.buffer.episode(12345)

    @invariant()
    def holds_what_was_played(self) -> None:
        if hasattr(self, "stage"):
            check_rows(self.buffer, self.stage.ring)

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self.stage.leave()
            self.buffer.close()
            self.scratch.cleanup()
