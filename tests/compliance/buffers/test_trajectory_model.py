"""Every kind of buffer does what the oracle of trajectories does, in a long random run of calls."""

from __future__ import annotations

from hypothesis.stateful import run_state_machine_as_test

from trajectory_machine import SETTINGS, TrajectoryMachine
from trajectory_play import TRAJECTORIES


def test_a_buffer_does_what_the_oracle_does(make_buffer) -> None:
    def make(_: TrajectoryMachine, capacity: int, sampler):
        return make_buffer(capacity, sampler=sampler, trajectories=TRAJECTORIES)

    run_state_machine_as_test(type("Machine", (TrajectoryMachine,), {"make": make}), settings=SETTINGS)
