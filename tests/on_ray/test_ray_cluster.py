"""Shards that Ray places, restarts and finds: on several nodes of this machine, each with a disk of its own.

One Ray and one cluster for all of it: each server that starts imports torch. The long forms are in `test_ray_faults`.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ray_actor import numbered
from ray_nodes import DATA_DIR, SECONDS, TIMEOUT, Machines, at_work, kill_server, ray_of_two_nodes, serving, started, stored, until
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError, TableNotFoundError
from tdreplay_client import TableConfig
from tdreplay_client.ray import RayDirectory, ReplayCluster

MANY = 1_000_000_000
"""The number of the first row that no actor writes."""
KILLS = 3
ANOTHER_DRIVER = f"""
import ray, sys, torch
from tensordict import TensorDict
from tdreplay_client.ray import ReplayCluster
ray.init(address=sys.argv[1], namespace="another", log_to_driver=False, logging_level="error")
with ReplayCluster.connect(sys.argv[2]).buffer(timeout=90) as buffer:
    buffer.add_batch(TensorDict({{"number": torch.arange({MANY}, {MANY} + 50)}}, [50]))
    print(buffer.size)
"""
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from tdreplay_client.ray import ReplayCluster
"""
NOT_CONNECTED = """
import ray
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster
for call in (lambda: ReplayCluster(2, TableConfig(10), "/nowhere"), ReplayCluster.connect):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
print(ray.is_initialized())
"""


def fresh_interpreter(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.timeout(600)
def test_a_cluster_keeps_every_row_through_kills_resizes_a_lost_node_and_a_stop():
    with ray_of_two_nodes() as machines:
        node = machines.add(1)
        what_cannot_be_is_refused()
        with started(3, 300_001) as cluster:
            nodes = [shard.node for shard in cluster.status().shards]
            assert len(set(nodes)) == 3, "they are spread"
            with cluster.buffer(timeout=TIMEOUT) as buffer:
                assert buffer.describe().buffer_size == 300_001
            what_a_cluster_refuses(cluster)
            rows = kills_and_resizes(cluster, machines)
            rows = a_node_is_lost(cluster, machines, node, nodes.index(node.node_id), rows)
            it_goes_on_after_it_was_stopped(cluster, rows)


def kills_and_resizes(cluster: ReplayCluster, machines: Machines) -> list[int]:
    """Servers and actors are killed, shards come and go: no row is lost or doubled. Gives the rows."""
    with at_work(cluster) as workers:
        before = cluster.status().shards
        done = fresh_interpreter(ANOTHER_DRIVER, machines.address, cluster.name)
        assert done.returncode == 0, done.stderr  # It is gone, and nothing changed.
        for number in range(KILLS):
            kill_server(cluster, number % 2)
            workers.go_on()
        psutil.Process(serving(cluster)[2].pid).parent().kill()
        workers.go_on()
        ray.kill(ray.get_actor(f"tdreplay:{cluster.name}", namespace="tdreplay"), no_restart=False)  # It finds the shards again.
        until(lambda: [shard.restarts for shard in serving(cluster)] == [2, 1, 1], "each server was started again as often as it was killed")
        assert [shard.address for shard in serving(cluster)] == [shard.address for shard in before]
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            assert cluster.resize(4).added == (3,)
            until(lambda: len(buffer.describe().shards) == 4, "the buffer has the new shard")
            buffer.add_batch(numbered(MANY + 50, MANY + 8050))  # So many that each shard has some of them.
            changed = cluster.resize(3, drain_seconds=1)
            assert (changed.removed, changed.dropped_rows) == ((3,), 0)
            assert changed.moved_rows > 1000
            workers.go_on()
            rows = sorted([*workers.end_writing(), *range(MANY, MANY + 8050)])
            assert stored(buffer) == rows
    return rows


def a_node_is_lost(cluster: ReplayCluster, machines: Machines, node: Any, number: int, rows: list[int]) -> list[int]:
    """Its shard begins empty on another node, and says so. The rows of the others are there, and are given."""
    with cluster.buffer(timeout=TIMEOUT, on_loss="degrade") as buffer:
        gone = buffer.describe().shards[number].description.size
        machines.remove(node)
        until(lambda: cluster.status().shards[number].began_empty, "the shard is on another node")
        shards = serving(cluster)
        assert [shard.began_empty for shard in shards] == [shard.number == number for shard in shards]
        assert node.node_id not in {shard.node for shard in shards}
        until(lambda: not buffer.describe().lost_shards, "all shards are there")
        there = stored(buffer)
        assert len(there) == len(set(there)) == len(rows) - gone
        assert set(there) < set(rows)
        return there


def it_goes_on_after_it_was_stopped(cluster: ReplayCluster, rows: list[int]) -> None:
    cluster.drain()
    until(lambda: all(place.draining for place in cluster.directory.places()), "the shards say that they are drained")
    with cluster.buffer(timeout=TIMEOUT) as buffer:
        assert buffer.size == len(rows)
        with pytest.raises(FailedPreconditionError, match="none of the 3 shards takes rows"):
            buffer.add_batch(numbered(0, 10))
    cluster.stop()
    for call in (cluster.status, cluster.stop, lambda: ReplayCluster.connect(cluster.name)):
        with pytest.raises(TableNotFoundError, match=f"there is no cluster '{cluster.name}'"):
            call()
    with pytest.raises(FailedPreconditionError, match=r"shards \(1\) must be at least 3"), ExitStack() as stack:
        stack.enter_context(started(1, 1000, name=cluster.name))
    with started(3, 300_000, name=cluster.name) as again, again.buffer(timeout=TIMEOUT) as kept:
        assert [shard.state for shard in again.status().shards] == ["serving"] * 3
        assert stored(kept) == rows
        kept.add_batch(numbered(2 * MANY, 2 * MANY + 10))
        assert kept.size == len(rows) + 10


def what_a_cluster_refuses(cluster: ReplayCluster) -> None:
    with pytest.raises(FailedPreconditionError, match=rf"is there already: ReplayCluster.connect\('{cluster.name}'\)"):
        ReplayCluster(2, TableConfig(10), DATA_DIR, name=cluster.name, host="127.0.0.1")
    for wrong in (0, -1, 1 << 14 | 1):
        with pytest.raises(InvalidArgumentError, match=rf"shards \({wrong}\)"):
            cluster.resize(wrong)
    with pytest.raises(InvalidArgumentError, match=r"mode \('throw'\)"):
        cluster.resize(2, mode="throw")  # type: ignore[arg-type]
    assert [shard.number for shard in cluster.status().shards] == [0, 1, 2]


REFUSED = [
    ({"shards": 0}, InvalidArgumentError, r"shards \(0\)"),
    ({"data_dir": "here"}, InvalidArgumentError, r"data_dir \('here'\) must be an absolute path"),
    (
        {"data_dir": "/dev/null/replay"},
        FailedPreconditionError,
        r"data_dir \('/dev/null/replay'\) must be a directory in which a shard can write",
    ),
    ({"resources": {"CPU": 1000}, "start_timeout": 1}, ResourceExhaustedError, "no room on the nodes for 2 shards .* no node has CPU: 1000"),
    ({"resources": {"disk": 1}, "start_timeout": 1, "placement": "with_learner"}, ResourceExhaustedError, "no node has disk: 1, the most .* is 0"),
    ({"resources": {"CPU": 0}}, InvalidArgumentError, r"resources: CPU \(0.0\)"),
    ({"name": "../other"}, InvalidArgumentError, r"name \('../other'\)"),
    ({"host": "192.0.2.1"}, InvalidArgumentError, "192.0.2.1 without TLS"),
    ({"placement": "anywhere"}, InvalidArgumentError, r"placement \('anywhere'\)"),
    ({"server": {"address": "127.0.0.1:1"}}, InvalidArgumentError, "server: address follows"),
]


def what_cannot_be_is_refused() -> None:
    for options, error, message in REFUSED:
        said = {"shards": 2, "table": TableConfig(100), "data_dir": DATA_DIR, "name": "refused", "host": "127.0.0.1", **options}
        with pytest.raises(error, match=message):
            ReplayCluster(**said)  # type: ignore[arg-type]
        with pytest.raises(TableNotFoundError, match="there is no cluster 'refused' on this Ray"):
            RayDirectory("refused").places()
    groups = [group for group in ray.util.placement_group_table().values() if "refused" in group["name"]]
    assert {group["state"] for group in groups} == {"REMOVED"}
    assert not [entry for entry in ray.util.list_named_actors(all_namespaces=True) if "refused" in entry["name"]]


def test_where_ray_is_not_there_the_error_says_what_to_do():
    assert "tdreplay_client.ray.ReplayCluster needs ray, which is not installed: pip install 'tdreplay[ray]'" in fresh_interpreter(WITHOUT_RAY).stderr
    done = fresh_interpreter(NOT_CONNECTED)
    line = "FailedPreconditionError this process is not connected to Ray: call ray.init(), or ray.init(address='auto') on a node of a Ray cluster"
    assert done.stdout.splitlines() == [line, line, "False"], "it neither joins a Ray nor starts one"
    assert not Path("/nowhere").exists()
