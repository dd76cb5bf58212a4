"""A buffer of fewer rows than shards: it lies on the first ones, and is found there again."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from shard_servers import numbered, shard_servers

from tdreplay.errors import TableExistsError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer

SHARDS = 5


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(SHARDS) as found:
        yield found


@pytest.fixture
def buffer(addresses, table) -> Iterator[ShardedReplayBuffer]:
    with ShardedReplayBuffer(addresses, table=table, buffer_size=3) as made:
        yield made


def stored(buffer) -> list[int]:
    return buffer.sample_all()["number"].tolist()


def used(buffer) -> list[int]:
    return [shard.number for shard in buffer.describe().shards]


def test_rows_are_on_the_first_shards_and_the_ring_is_that_of_one_table(buffer, addresses):
    buffer.add_batch(numbered(0, 4))
    assert (stored(buffer), buffer.sample_all()["index"].tolist()) == ([3, 1, 2], [0, 1, 2])
    assert (buffer.size, buffer.buffer_size, buffer.pointer, buffer.describe().config.buffer_size) == (3, 3, 1, 3)
    assert used(buffer) == [0, 1, 2]
    rows_of = []
    for address in addresses:
        with RemoteReplayBuffer(address, table=buffer.table) as shard:
            rows_of.append(shard.size)
    assert rows_of == [1, 1, 1, 0, 0]
    assert set(buffer.sample_batch(64)["number"].tolist()) == {1, 2, 3}


def test_it_is_found_again_with_and_without_its_capacity_and_by_its_copies(buffer, addresses):
    buffer.add_batch(numbered(0, 3))
    for size in (None, 3):
        with ShardedReplayBuffer(addresses, table=buffer.table, buffer_size=size) as again:
            assert (stored(again), again.buffer_size, used(again)) == ([0, 1, 2], 3, [0, 1, 2])
    with pickle.loads(pickle.dumps(buffer)) as copied:  # noqa: S301 - its own bytes.
        copied.add_batch(numbered(3, 1))
        assert stored(copied) == stored(buffer) == [3, 1, 2]


@pytest.mark.parametrize("size", [2, 4, 5, 6, 100])
def test_another_capacity_is_refused(buffer, addresses, size):
    with pytest.raises(TableExistsError, match=f"buffer_size 3, not {size}"):
        ShardedReplayBuffer(addresses, table=buffer.table, buffer_size=size)


def test_a_reset_goes_on_with_as_many_shards_as_there_are_rows_for_and_gives_no_id_twice(buffer):
    given: set[int] = set()
    for size in (3, 12, 2, 5, 1, 6):
        buffer.reset(size)
        assert (buffer.size, buffer.buffer_size, used(buffer)) == (0, size, [*range(min(size, SHARDS))])
        buffer.add_batch(numbered(0, size + 1))
        assert stored(buffer) == [size, *range(1, size)]
        ids = set(buffer.sample_all()["row_id"].tolist())
        assert given.isdisjoint(ids)
        given |= ids


def test_a_writer_of_a_shard_that_a_reset_left_unused_goes_on_with_another(buffer):
    buffer.reset(10)
    writers = [buffer.writer() for _ in range(SHARDS)]
    assert {writer.shard for writer in writers} == {*range(SHARDS)}
    buffer.reset(2)
    for number, writer in enumerate(writers):
        writer.append(numbered(number, 1)[0])
        writer.close()
    assert buffer.state().insert_count == SHARDS
    assert set(stored(buffer)) <= {*range(SHARDS)}


def test_what_was_saved_of_it_is_loaded_after_a_reset_to_more_rows(buffer, tmp_path):
    buffer.save(tmp_path / "saved")
    buffer.reset(30)
    buffer.load(tmp_path / "saved")
    assert (buffer.buffer_size, used(buffer)) == (3, [0, 1, 2])
