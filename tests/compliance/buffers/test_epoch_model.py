"""In every kind of buffer epochs do what a plain Python model does, in a long random run."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from compliance.buffers.epoch_model import SETTINGS, EpochModel


def test_epochs_are_those_of_the_model(kind, make_buffer) -> None:
    members = {
        "make": lambda _, buffer_size: make_buffer(buffer_size),
        "ahead": 0 if kind.server is None else 1000 if kind.shards else 3,
        "shards": kind.shards,
    }
    run_state_machine_as_test(type("Machine", (EpochModel,), members), settings=SETTINGS if not kind.shards else settings(SETTINGS, max_examples=8))
