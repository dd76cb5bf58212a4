"""The rows that were ever inserted: a count that neither a reset nor a rewind changes."""

from __future__ import annotations

from conftest import rows
from tdreplay.api import BaseReplayBuffer


def counts(buffer: BaseReplayBuffer) -> tuple[int, int]:
    state = buffer.state()
    return state.insert_count, state.write_count


def test_a_reset_makes_the_row_ids_jump_and_not_the_count(make_buffer, tmp_path):
    buffer = make_buffer(10)
    assert counts(buffer) == (0, 0)
    buffer.add_batch(rows(13))
    assert counts(buffer) == (13, 13)
    buffer.reset()
    assert counts(buffer) == (13, 20)
    buffer.add(rows(1)[0])
    assert counts(buffer) == (14, 21)
    buffer.reset(7)
    buffer.add_batch(rows(2))
    assert counts(buffer) == (16, 23)


def test_a_rewind_takes_the_row_ids_back_and_not_the_count(make_buffer, tmp_path):
    buffer = make_buffer(10)
    buffer.add_batch(rows(4))
    buffer.save(tmp_path / "then")
    buffer.add_batch(rows(3))
    buffer.load(tmp_path / "then")
    assert counts(buffer) == (7, 4)
    buffer.add_batch(rows(5))
    assert counts(buffer) == (12, 9)
