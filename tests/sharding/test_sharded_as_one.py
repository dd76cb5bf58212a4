"""What a buffer over one server does, a buffer over shards does, too: names of fields, open iterators, ends of writers, and errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from shard_servers import numbered, shard_servers

from tdreplay.errors import (
    InvalidArgumentError,
    MissingRowsError,
    NoPrioritiesError,
    SchemaError,
    SlotIndexError,
    TableChangedError,
    TableNotFoundError,
)
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay_client import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of three servers."""
    with shard_servers(3) as running:
        yield running


def test_fields_of_plain_rows_may_have_the_names_of_those_of_steps(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        buffer.add_batch({"x": torch.arange(30), "episode_id": torch.zeros(30, dtype=torch.int64), "step_kind": torch.zeros(30)})
        assert buffer.size == 30


@pytest.mark.parametrize("episode_id", [torch.zeros(4, 2), torch.full((4,), float("nan"))], ids=["wide", "nan"])
def test_fields_of_plain_rows_with_such_names_have_any_values(addresses, table, episode_id):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        buffer.add_batch({"episode_id": episode_id, "step_kind": torch.zeros(4)})
        buffer.add({"episode_id": episode_id[0], "step_kind": torch.zeros(())})
        assert buffer.size == 5


@pytest.mark.parametrize("change", ["reset", "drop", "load"])
def test_open_epochs_give_no_rows_that_this_buffer_took_away(addresses, table, tmp_path, change):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=3000) as buffer:
        buffer.add_batch(numbered(0, 2000))
        buffer.save(tmp_path / "saved")
        buffer.add_batch(numbered(2000, 1000))
        batches, over = buffer.epochs(10), buffer.epochs(3000)
        for _ in range(20):
            next(batches)
        assert len(next(over)) == 3000
        token = batches.state_dict()
        getattr(buffer, change)(*[tmp_path / "saved"] * (change == "load"))
        with pytest.raises(TableChangedError, match="this buffer"):
            next(batches)
        assert list(over) == []
        with pytest.raises((TableChangedError, TableNotFoundError)):
            batches.load_state_dict(token)
        if change == "load":
            assert sum(len(batch) for batch in buffer.epochs(100)) == 2000


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("trajectories", [False, True])
def test_a_writer_is_closed_with_its_buffer_and_may_be_closed_after_it(addresses, table, trajectories, flushed):
    buffer = ShardedReplayBuffer(addresses, table=table, buffer_size=30, trajectories=trajectories)
    writer = buffer.trajectory_writer() if trajectories else buffer.writer()
    if isinstance(writer, TrajectoryWriter):
        writer.append({"obs": torch.zeros(2), "action": 1, "next": {"obs": torch.ones(2), "reward": 0.0, "terminated": True, "truncated": False}})
    else:
        writer.append({"x": 1})
    if flushed:
        writer.flush()
    buffer.close()
    for _ in range(2):
        writer.close()
    with ShardedReplayBuffer(addresses, table=table) as again:
        assert again.size == 1 + trajectories  # The final observation is a row, too.


def test_a_manifest_that_can_be_no_file_is_refused_before_any_checkpoint_is_written(tmp_path):
    servers = [ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / str(number)) for number in range(2)]
    (tmp_path / "file").touch()
    with (
        ReplayServer(servers[0]) as first,
        ReplayServer(servers[1]) as second,
        ShardedReplayBuffer([first.address, second.address], buffer_size=9) as buffer,
    ):
        buffer.add_batch(numbered(0, 4))
        for manifest in (5, "", b"m", "a\0b", tmp_path, tmp_path / "file" / "below"):
            with pytest.raises(InvalidArgumentError, match="manifest"):
                buffer.checkpoint("m", manifest=manifest)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "file"]
        assert buffer.checkpoint("m", manifest=tmp_path / "new" / "m.json").rows == 4  # A name that was taken would be refused.
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.json"]


def test_an_empty_slot_over_one_server_is_said_to_be_of_one_shard(addresses, table):
    with ShardedReplayBuffer(addresses[:1], table=table, buffer_size=9) as buffer:
        buffer.add_batch(numbered(0, 4))
        with pytest.raises(SlotIndexError, match="over one shard"):
            buffer.sample_by_index([7])


def test_priorities_of_rows_that_have_none_are_refused_as_such_whatever_the_ids(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=9) as buffer:
        buffer.add_batch(numbered(0, 4))
        with pytest.raises(NoPrioritiesError, match="its sampler is"):
            buffer.update_priorities([99], [1.0])
        buffer.drop()
        with ShardedReplayBuffer(addresses, table=table, buffer_size=9, sampler="prioritized") as other:
            other.add_batch(numbered(0, 4))
        assert buffer.update_priorities([0], [1.0]).updated == 1  # The table is another one by now.


@pytest.mark.parametrize("key", [5, [1], None, b"a"])
def test_a_key_of_a_writer_is_a_text(addresses, table, key):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=9, trajectories=True) as buffer:
        for open_writer in (buffer.writer, buffer.trajectory_writer):
            with pytest.raises(InvalidArgumentError, match=r"key .* must be a text"):
                open_writer(key=key)


def test_a_row_that_is_no_step_is_refused_with_what_writes_steps(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30, trajectories=True) as buffer:
        step = {"obs": torch.zeros(2), "action": 1, "next": {"obs": torch.ones(2), "reward": 0.0, "terminated": True, "truncated": False}}
        with buffer.trajectory_writer() as writer:
            writer.append(step)
        with pytest.raises(SchemaError, match=r"trajectory_writer\(\) writes them"):
            buffer.add(step)


def test_a_load_of_another_capacity_counts_the_shards_that_are_used(addresses, table, tmp_path):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=1) as buffer:
        buffer.save(tmp_path / "saved")
        buffer.reset(2)
        buffer.add_batch(numbered(0, 2))
        with pytest.raises(MissingRowsError, match=r"buffer_size \(1\) must be 2:"):
            buffer.load(tmp_path / "saved")
