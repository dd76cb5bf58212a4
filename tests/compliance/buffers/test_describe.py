"""What a buffer says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conftest import rows
from tdreplay.rate_limiters import Unlimited
from tdreplay.samplers import Uniform
from tdreplay.state import State
from tdreplay.table_config import TableConfig
from tdreplay.table_description import Waits
from tdreplay.trajectories import Trajectories


def test_it_says_what_state_says(make_buffer):
    buffer = make_buffer(10)
    for _ in range(2):
        described = buffer.describe()
        assert isinstance(described, State)
        assert State(**{name: getattr(described, name) for name in vars(buffer.state())}) == buffer.state()
        buffer.add_batch(rows(13))


def test_it_says_what_the_table_was_made_with_and_the_capacity_of_now(make_buffer):
    buffer = make_buffer(10)
    assert replace(buffer.describe().config, name="") == TableConfig(10, "cpu", Uniform(), Unlimited(), 0)
    assert buffer.describe().config.name == getattr(buffer, "table", "")
    buffer.reset(7)
    assert buffer.describe().config.buffer_size == 7


@pytest.mark.parametrize(
    ("asked", "had"),
    [
        (None, False),
        (False, False),
        (True, Trajectories()),
        (Trajectories(("done",), ("pixels", ("camera", "left")), None), Trajectories(("done",), ("pixels", "camera.left"), None)),
        ({"ends": "done", "final_fields": ["pixels"]}, Trajectories(("done",), ("pixels",), "reward")),
        ({"reward": ""}, Trajectories(reward=None)),
    ],
)
def test_it_says_whether_it_has_trajectories_and_their_fields(make_buffer, asked, had):
    buffer = make_buffer(10, trajectories=asked)
    assert buffer.describe().config.trajectories == had
    buffer.reset(20)
    assert buffer.describe().config.trajectories == had


def test_an_empty_table_has_counted_nothing(make_buffer):
    described = make_buffer(10).describe()
    assert (described.insert_count, described.sample_count, described.available, described.leased) == (0, 0, 0, 0)
    assert (described.updated, described.stale, described.insert_rate, described.sample_rate) == (0, 0, 0.0, 0.0)
    assert (described.inserts, described.samples) == (Waits(), Waits())


def test_it_counts_what_comes_and_what_is_drawn(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(13))
    for _ in range(3):
        buffer.sample_batch(4)
    described = buffer.describe()
    assert (described.insert_count, described.available, described.sample_count) == (13, 10, 12)
    # All of it came at once. The rate is over the time since the buffer was made, but over one second at least, and eleven at most.
    assert 13 / 11 <= described.insert_rate <= 13
    assert 12 / 11 <= described.sample_rate <= 12


def test_another_generation_has_another_id(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(3))
    before = buffer.describe().generation_id
    assert before == buffer.describe().generation_id != ""
    buffer.reset()
    assert buffer.describe().generation_id not in ("", before)
