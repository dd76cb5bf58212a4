"""A whole of shards that is reset, saved, loaded, checkpointed, copied and closed."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from shard_servers import fill_unevenly, numbered, shard_servers

from children import server_process
from tdreplay.errors import (
    ClosedError,
    EmptyTableError,
    ForkedError,
    InvalidArgumentError,
    MissingRowsError,
    RateLimitedError,
    TableNotFoundError,
)
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SHARDS = 3


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(SHARDS) as found:
        yield found


@pytest.fixture
def buffer(addresses, table) -> Iterator[ShardedReplayBuffer]:
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30, seed=3) as made:
        made.add_batch(numbered(0, 12))
        yield made


def test_a_reset_gives_each_shard_its_part_of_the_new_capacity(buffer):
    buffer.reset(31)
    assert (buffer.size, buffer.buffer_size) == (0, 31)
    assert [shard.description.buffer_size for shard in buffer.describe().shards] == [11, 10, 10]
    with pytest.raises(EmptyTableError):
        buffer.sample_batch(1)
    buffer.reset()
    assert buffer.buffer_size == 31


@pytest.mark.parametrize("size", [0, 1.5, -1])
def test_a_reset_to_what_is_no_capacity_changes_nothing(buffer, size):
    with pytest.raises(InvalidArgumentError, match=rf"buffer_size \({size}\)"):
        buffer.reset(size)
    assert (buffer.size, buffer.buffer_size) == (12, 30)


def test_a_dropped_table_is_on_no_shard(buffer, addresses):
    buffer.drop()
    for address in addresses:
        assert buffer.table not in RemoteReplayBuffer.tables(address)
    with pytest.raises(TableNotFoundError):
        buffer.sample_batch(1)


# -- save and load --------------------------------------------------------------------------------------------------------------------------------


def test_load_goes_back_to_what_was_saved(buffer, tmp_path):
    buffer.save(tmp_path / "folder" / "whole")
    before = buffer.sample_all()["number"].tolist()
    buffer.add_batch(numbered(12, 9))
    buffer.load(tmp_path / "folder" / "whole")
    assert buffer.sample_all()["number"].tolist() == before
    assert json.loads((tmp_path / "folder" / "whole.metadata").read_text())["shards"][2]["data_size"] == 4


def test_nothing_is_set_back_where_one_shard_lacks_rows(buffer, addresses, tmp_path):
    buffer.save(tmp_path / "whole")
    buffer.add_batch(numbered(12, 3))
    with RemoteReplayBuffer(addresses[2], table=buffer.table) as shard:
        shard.add_batch(numbered(100, 10))
    size = buffer.size
    with pytest.raises(MissingRowsError, match="of shard 2"):
        buffer.load(tmp_path / "whole")
    assert buffer.size == size


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved | {"format": 1},
        lambda saved: saved | {"shards": saved["shards"][:2]},
        lambda saved: saved | {"shards": [*saved["shards"][:2], saved["shards"][2] | {"shard": 7}]},
        lambda saved: saved | {"shards": [*saved["shards"][:2], saved["shards"][2] | {"data_size": 11}]},
        lambda saved: saved | {"shards": [1, 2, 3]},
        lambda saved: [],
    ],
    ids=["format", "too few", "another shard", "contradiction", "numbers", "list"],
)
def test_a_file_that_is_broken_or_of_other_shards_is_refused(buffer, tmp_path, change):
    buffer.save(tmp_path / "whole")
    saved = json.loads((tmp_path / "whole.metadata").read_text())
    (tmp_path / "whole.metadata").write_text(json.dumps(change(saved)))
    with pytest.raises(InvalidArgumentError, match=r"whole\.metadata"):
        buffer.load(tmp_path / "whole")
    assert buffer.size == 12


def test_a_file_that_is_not_there_is_said(buffer, tmp_path):
    with pytest.raises(FileNotFoundError):
        buffer.load(tmp_path / "nowhere")


# -- checkpoints ----------------------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_one_of_each_shard_with_one_manifest(tmp_path, table):
    with ExitStack() as running:
        configs = [ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / f"shard-{number}") for number in range(SHARDS)]
        addresses = [running.enter_context(ReplayServer(config)).address for config in configs]
        buffer = running.enter_context(ShardedReplayBuffer(addresses, table=table, buffer_size=300))
        buffer.add_batch(numbered(0, 200))
        told = list[tuple[int, int]]()
        made = buffer.checkpoint("first", progress=lambda done, total: told.append((done, total)), manifest=tmp_path / "kept" / "first.json")
        assert (made.rows, made.write_count) == (200, 200)
        assert [one.checkpoint.rows for one in made.shards] == [67, 67, 66]
        assert told[-1] == (made.bytes, made.bytes)
        manifest = json.loads((tmp_path / "kept" / "first.json").read_text())
        assert (manifest["name"], manifest["table"], manifest["rows"]) == ("first", table, 200)
        assert [os.path.isdir(shard["path"]) for shard in manifest["shards"]] == [True] * SHARDS
        assert made.path == str(tmp_path / "kept" / "first.json")
        with pytest.raises(InvalidArgumentError):
            buffer.checkpoint("../outside")


# -- waits, copies and the end ----------------------------------------------------------------------------------------------------------------------


def test_a_wait_for_rows_counts_those_of_all_shards(buffer):
    buffer.wait_for(12)
    assert (len(buffer), buffer.size, buffer.data_size) == (12, 12, 12)
    with pytest.raises(RateLimitedError, match="12 are there"):
        buffer.wait_for(13, timeout=0.1)
    with pytest.raises(InvalidArgumentError, match="at most 30"):
        buffer.wait_for(31, timeout=0.1)


@pytest.mark.parametrize("how", [lambda given: pickle.loads(pickle.dumps(given)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])  # noqa: S301
def test_a_copy_has_the_same_arguments_and_begins_its_seed_anew(buffer, how):
    first = buffer.sample_batch(5)["row_id"]
    with how(buffer) as made:
        assert (made.addresses, made.table, made.size) == (buffer.addresses, buffer.table, 12)
        assert torch.equal(made.sample_batch(5)["row_id"], first)
        made.add_batch(numbered(12, 1))
    assert buffer.size == 13


def test_a_closed_buffer_says_so(addresses, table):
    fill_unevenly(addresses, table, (1, 1, 1))
    buffer = ShardedReplayBuffer(addresses, table=table)
    buffer.close()
    buffer.close()
    for call in (lambda: buffer.sample_batch(1), lambda: buffer.size, lambda: buffer.sample_by_index(0), lambda: buffer.update_priorities([0], 1.0)):
        with pytest.raises(ClosedError):
            call()


def test_a_fork_may_not_use_it_and_does_not_end_it(addresses, table):
    fill_unevenly(addresses, table, (1, 1, 1))
    with ShardedReplayBuffer(addresses, table=table) as buffer:
        child = os.fork()
        if not child:
            try:
                buffer.sample_batch(1)
            except ForkedError:
                buffer.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert len(buffer.sample_batch(4)) == 4


def test_one_shard_is_drawn_from_as_any_table(table):
    """With the same seed, in the same order: nothing is divided among others."""
    with server_process() as server, ShardedReplayBuffer([server.address], table=table, buffer_size=50, seed=4) as buffer:
        buffer.add_batch(numbered(0, 40))
        with RemoteReplayBuffer(server.address, table=table, seed=4) as alone:
            for _ in range(3):
                assert torch.equal(buffer.sample_batch(20)["row_id"], alone.sample_batch(20)["row_id"])
