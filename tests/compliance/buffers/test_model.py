"""Every kind of buffer does what a plain Python ring does, in a long random run of calls."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from compliance.buffers.ring import SETTINGS, Model


def test_a_buffer_is_a_ring(kind, make_buffer) -> None:
    machine = type("Machine", (Model,), {"make": lambda _, buffer_size: make_buffer(buffer_size), "shards": kind.shards})
    run_state_machine_as_test(machine, settings=SETTINGS if not kind.shards else settings(SETTINGS, max_examples=6))
