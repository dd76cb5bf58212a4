"""A table of trajectories in a directory does what the oracle does, whatever becomes of its process between two calls."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from tdreplay.api import BaseReplayBuffer
from tdreplay.samplers import Sampler
from trajectory_homes import InProcess
from trajectory_machine import SETTINGS, TrajectoryMachine


class Persistent(TrajectoryMachine):
    """It is opened again, dies, is resized, and restored."""

    def make(self, capacity: int, sampler: Sampler) -> BaseReplayBuffer:
        self.directory = tempfile.TemporaryDirectory()
        self.home = InProcess(Path(self.directory.name))
        return self.home.open(capacity, sampler)

    @rule()
    def reopen(self) -> None:
        self.home.reopen(self.stage)

    @rule()
    def die(self) -> None:
        self.home.kill(self.stage)

    @rule(capacity=st.sampled_from([1, 5, 30, 90]))
    def resize(self, capacity: int) -> None:
        if self.stage.ring.write_count:  # Its fields are not known before the first row.
            self.home.resize(self.stage, capacity)

    @rule()
    def restore(self) -> None:
        if self.stage.ring.write_count:
            self.home.restore(self.stage)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


def test_a_table_in_a_directory_does_what_the_oracle_does():
    run_state_machine_as_test(Persistent, settings=SETTINGS)
