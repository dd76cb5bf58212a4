"""A buffer in a directory does what a plain Python ring does, whatever becomes of its process between two calls."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis.stateful import rule, run_state_machine_as_test

from compliance.buffers.ring import SETTINGS, Model
from tdreplay.api import BaseReplayBuffer
from tdreplay_server import ReplayBuffer
from tdreplay_server.checkpoints.restore import restore


class Persistent(Model):
    """A buffer in a directory, which is opened again, dies and is restored between any two calls."""

    durability = "process"

    def make(self, buffer_size: int) -> BaseReplayBuffer:
        self.home = tempfile.TemporaryDirectory()
        self.places = (Path(self.home.name) / str(number) for number in itertools.count())
        return self.open(next(self.places), buffer_size)

    def open(self, place: Path, buffer_size: int) -> BaseReplayBuffer:
        self.place = place
        return ReplayBuffer("cpu", "cpu", buffer_size, directory=place, durability=self.durability)

    @rule()
    def reopen(self) -> None:
        self.buffer.close()
        self.buffer = self.open(self.place, self.ring.buffer_size)

    @rule()
    def die(self) -> None:
        """What a process leaves that is killed now: its files as they are."""
        copy = next(self.places)
        shutil.copytree(self.place, copy)
        self.buffer.close()
        self.buffer = self.open(copy, self.ring.buffer_size)

    @rule()
    def restore(self) -> None:
        checkpoint = self.buffer.checkpoint("one")
        assert (checkpoint.rows, checkpoint.write_count) == (len(self.ring.slots), self.ring.write_count)
        self.buffer.close()
        restored = next(self.places)
        restore(Path(checkpoint.path), restored, "default")
        self.buffer = self.open(restored / "tables" / "default", self.ring.buffer_size)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "home"):
            self.home.cleanup()


@pytest.mark.parametrize("level", ["process", "power"])
def test_a_buffer_in_a_directory_is_a_ring_whatever_becomes_of_its_process(level: str) -> None:
    machine = type("AtLevel", (Persistent,), {"durability": level})
    run_state_machine_as_test(machine, settings=SETTINGS)
