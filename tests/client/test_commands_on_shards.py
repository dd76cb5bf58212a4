"""The commands that look at one server work at a shard, and say which one it is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDict

from children import completed
from tdreplay.errors import InvalidArgumentError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.files import export_table, import_table
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def shard() -> Iterator[str]:
    """The address of shard 1 of the cluster 'replay', with 20 rows."""
    servers = [ReplayServer(ServerConfig(address="127.0.0.1:0", cluster="replay", shard=number)) for number in range(2)]
    with servers[0], servers[1], ShardedReplayBuffer([server.address for server in servers], buffer_size=100) as buffer:
        buffer.add_batch(TensorDict({"number": torch.arange(40)}, [40]))
        yield servers[1].address


def said(*arguments: str) -> str:
    done = completed("tdreplay", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_status_says_which_shard_a_server_is(shard):
    assert said("status", "--address", shard).splitlines()[0].endswith("shard 1 of cluster 'replay'")
    server = json.loads(said("status", "--json", "--address", shard))["server"]
    assert (server["cluster"], server["shard"]) == ("replay", 1)


def test_doctor_says_which_shard_a_server_is(shard):
    found = {check["name"]: check for check in json.loads(said("doctor", "--json", "--address", shard))}
    assert (found["shard"]["state"], found["shard"]["found"]) == ("ok", "shard 1 of cluster 'replay'")


def test_the_rows_of_a_shard_go_to_files_and_back(shard, tmp_path):
    folder = tmp_path / "rows"
    assert ": 20 rows in 1 files, " in said("export", "default", str(folder), "--address", shard)
    assert said("import", str(folder), "again", "--create", "--address", shard) == "table again: 20 rows stored; it has 20\n"
    with RemoteReplayBuffer(shard) as rows, RemoteReplayBuffer(shard, table="again") as again:
        assert rows.sample_all()["number"].tolist() == again.sample_all()["number"].tolist()


def test_files_of_a_whole_buffer_are_made_shard_by_shard(shard, tmp_path):
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0")) as one,
        ReplayServer(ServerConfig(address="127.0.0.1:0")) as two,
        ShardedReplayBuffer([one.address, two.address], buffer_size=100) as buffer,
    ):
        with pytest.raises(InvalidArgumentError, match="export that of each shard"):
            export_table(buffer, tmp_path / "whole")
        with RemoteReplayBuffer(shard) as rows:
            export_table(rows, tmp_path / "shard")
        assert import_table(buffer, tmp_path / "shard").rows == len(buffer) == 20
        with pytest.raises(InvalidArgumentError, match="cannot be resumed"):
            import_table(buffer, tmp_path / "shard", resume=True)
