"""Every kind of buffer does what the oracle of trajectories does, in a long random run of calls."""

from __future__ import annotations

from hypothesis.stateful import run_state_machine_as_test

from trajectory_check import check_rows
from trajectory_machine import SETTINGS, TrajectoryMachine
from trajectory_play import TRAJECTORIES
from trajectory_stage import Stage


def test_a_buffer_does_what_the_oracle_does(make_buffer) -> None:
    def make(_: TrajectoryMachine, capacity: int, sampler):
        return make_buffer(capacity, sampler=sampler, trajectories=TRAJECTORIES)

    run_state_machine_as_test(type("Machine", (TrajectoryMachine,), {"make": make}), settings=SETTINGS)


def test_a_table_goes_back_to_before_its_first_row_and_goes_on(make_buffer, tmp_path) -> None:
    with make_buffer(7, trajectories=TRAJECTORIES) as buffer:
        stage = Stage(buffer, 7)
        buffer.save(tmp_path / "empty")
        empty = stage.ring.copy()
        stage.play(30)
        assert stage.ring.rewind(empty)
        buffer.load(tmp_path / "empty")
        stage.drop()
        check_rows(buffer, stage.ring)
        for _ in range(10):
            stage.play(5)
            check_rows(buffer, stage.ring)
        stage.leave()
