"""Shards that Ray places, restarts and finds: on several nodes of this machine, each with a disk of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ray_actor import Actor, numbered
from ray_nodes import DATA_DIR, Machines, ray_of_two_nodes, started
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError, TableNotFoundError
from tdreplay_client import TableConfig
from tdreplay_client.ray import RayDirectory, ReplayCluster, ShardStatus

SECONDS = 100.0
"""Until what is waited for must be so: a server that starts imports torch, on cores that others use too."""
TIMEOUT = 90.0
ANOTHER_DRIVER = """
import ray, sys, torch
from tensordict import TensorDict
from tdreplay_client.ray import ReplayCluster
ray.init(address=sys.argv[1], namespace="another", log_to_driver=False, logging_level="error")
with ReplayCluster.connect(sys.argv[2]).buffer(timeout=90) as buffer:
    buffer.add_batch(TensorDict({"number": torch.arange(100, 150)}, [50]))
    print(buffer.size)
"""
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from tdreplay_client.ray import ReplayCluster
"""
NOT_CONNECTED = """
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster
ReplayCluster(2, TableConfig(10), "/nowhere")
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with ray_of_two_nodes() as found:
        yield found


def stored(buffer: Any) -> list[int]:
    found: list[int] = sorted(buffer.sample_all()["number"].tolist())
    return found


def until(true: Callable[[], object], what: str) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.1)


def serving(cluster: ReplayCluster) -> list[ShardStatus]:
    """The shards, once the servers of all of them are ready."""
    found: list[ShardStatus] = []

    def ready() -> bool:
        found[:] = cluster.status().shards
        return bool(found) and all(shard.state == "serving" for shard in found)

    until(ready, "the servers of all shards are ready")
    return found


def fresh_interpreter(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)


@contextmanager
def at_work(cluster: ReplayCluster) -> Iterator[tuple[Any, list[int]]]:
    """For ``with``: an actor that writes, in a process of its own, and a learner here, whose batches' sizes are in the list."""
    actor, sizes, ended = Actor.remote(cluster.buffer(timeout=TIMEOUT)), [], threading.Event()
    until(lambda: ray.get(actor.written.remote(), timeout=SECONDS) > 20, "the actor writes")

    def learn() -> None:
        with cluster.buffer(timeout=TIMEOUT, on_loss="degrade") as buffer:
            while not ended.is_set():
                sizes.append(len(buffer.sample_batch(16, wait=True)))

    learner = threading.Thread(target=learn)
    learner.start()
    try:
        yield actor, sizes
    finally:
        ended.set()
        learner.join(SECONDS)
        ray.kill(actor)
    assert not learner.is_alive()


def goes_on(actor: Any, sizes: list[int]) -> None:
    """Waits until actor and learner are at work again."""
    written, read = ray.get(actor.written.remote(), timeout=SECONDS), len(sizes)
    until(lambda: ray.get(actor.written.remote(), timeout=SECONDS) > written + 100 and len(sizes) > read + 10, "actor and learner go on")


@pytest.mark.timeout(600)
def test_any_driver_finds_a_cluster_which_goes_on_with_its_rows_after_it_was_stopped(machines):
    with started(2, 1000) as cluster, cluster.buffer(timeout=TIMEOUT) as buffer:
        assert len({shard.node for shard in cluster.status().shards}) == 2  # They are spread.
        buffer.add_batch(numbered(0, 100))
        done = fresh_interpreter(ANOTHER_DRIVER, machines.address, cluster.name)
        assert done.stdout == "150\n", done.stderr
        assert stored(buffer) == list(range(150))  # That driver is gone, and nothing changed.

        with pytest.raises(FailedPreconditionError, match="is there already"):
            ReplayCluster(2, TableConfig(10), DATA_DIR, name=cluster.name, host="127.0.0.1")
        for wrong in (0, -1, 1 << 14 | 1):
            with pytest.raises(InvalidArgumentError, match=rf"shards \({wrong}\)"):
                cluster.resize(wrong)
        cluster.stop()
        with pytest.raises(TableNotFoundError, match=f"there is no cluster '{cluster.name}'"):
            ReplayCluster.connect(cluster.name)
        with pytest.raises(FailedPreconditionError, match=r"shards \(1\) must be at least 2"):
            started(1, 1000, name=cluster.name).__enter__()
        with started(2, 1000, name=cluster.name) as again, again.buffer(timeout=TIMEOUT) as kept:
            assert stored(kept) == list(range(150))
            assert [shard.restarts for shard in again.status().shards] == [1, 1]


@pytest.mark.timeout(600)
def test_servers_and_actors_that_are_killed_are_there_again_and_no_row_is_lost(machines):
    with started(2, 100_000) as cluster, at_work(cluster) as (actor, sizes):
        first, second = cluster.status().shards
        os.kill(first.pid, signal.SIGKILL)
        goes_on(actor, sizes)
        serving(cluster)
        psutil.Process(second.pid).parent().kill()
        goes_on(actor, sizes)
        ray.kill(ray.get_actor(f"tdreplay:{cluster.name}", namespace="tdreplay"), no_restart=False)  # It finds the shards again.
        until(lambda: [shard.restarts for shard in serving(cluster)] == [1, 1], "each shard was restarted once")
        assert [shard.address for shard in cluster.status().shards] == [first.address, second.address]
        written = ray.get(actor.stop.remote(), timeout=SECONDS)
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == list(range(written))


@pytest.mark.timeout(600)
def test_a_shard_whose_node_is_gone_begins_empty_on_another_and_says_so(machines):
    node = machines.add(1)
    with started(3, 3000) as cluster, cluster.buffer(timeout=TIMEOUT) as buffer:
        buffer.add_batch(numbered(0, 300))
        (lost,) = (shard for shard in cluster.status().shards if shard.node == node.node_id)
        assert [shard.description.size for shard in buffer.describe().shards] == [100, 100, 100]
        machines.remove(node)
        until(lambda: cluster.status().shards[lost.number].began_empty, "the shard is on another node")
        shards = serving(cluster)
        assert [shard.began_empty for shard in shards] == [shard.number == lost.number for shard in shards]
        assert shards[lost.number].node in {shard.node for shard in shards if shard.number != lost.number}
        until(lambda: not buffer.describe().lost_shards and buffer.size == 200, "the rows of the others are there")
        buffer.add_batch(numbered(300, 600))
        assert buffer.size == 500


@pytest.mark.timeout(600)
def test_shards_come_and_go_while_rows_are_written_and_read(machines):
    with started(2, 100_000) as cluster, at_work(cluster) as (actor, sizes):
        assert cluster.resize(4).added == (2, 3)
        goes_on(actor, sizes)
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            buffer.add_batch(numbered(1_000_000, 1_000_000 + 40_000))  # So many that each shard has some of them.
        changed = cluster.resize(3)
        assert changed.removed == (3,)
        assert changed.moved_rows > 5_000
        assert changed.dropped_rows == 0
        goes_on(actor, sizes)
        written = ray.get(actor.stop.remote(), timeout=SECONDS)
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == [*range(written), *range(1_000_000, 1_000_000 + 40_000)]
            assert len(buffer.describe().shards) == 3
            dropped = buffer.describe().shards[2].description.size
            assert cluster.resize(2, mode="drain", drain_seconds=0.0).dropped_rows == dropped
            until(lambda: len(buffer.describe().shards) == 2, "the buffer has two shards")
            assert buffer.size == written + 40_000 - dropped


REFUSED = [
    ({"resources": {"CPU": 1000}, "start_timeout": 2}, ResourceExhaustedError, "there is no room on the nodes for 2 shards"),
    ({"resources": {"CPU": 0}}, InvalidArgumentError, r"resources: CPU \(0.0\)"),
    ({"name": "../other"}, InvalidArgumentError, r"name \('../other'\)"),
    ({"host": "192.0.2.1"}, InvalidArgumentError, "192.0.2.1 without TLS"),
    ({"placement": "anywhere"}, InvalidArgumentError, r"placement \('anywhere'\)"),
    ({"server": {"address": "127.0.0.1:1"}}, InvalidArgumentError, "server: address follows"),
    ({"server": {"max_worker": 3}}, FailedPreconditionError, "max-worker"),
]


@pytest.mark.timeout(300)
def test_what_cannot_be_is_refused_and_leaves_nothing_behind(machines):
    for options, error, message in REFUSED:
        with pytest.raises(error, match=message), started(2, 100, **{"name": "refused", **options}):
            pytest.fail("it was started")
        with pytest.raises(TableNotFoundError):
            RayDirectory("refused").places()
    groups = [group for group in ray.util.placement_group_table().values() if "refused" in group["name"]]
    assert {group["state"] for group in groups} == {"REMOVED"}


def test_paths_and_tables_that_cannot_be_are_refused(machines):
    with pytest.raises(InvalidArgumentError, match="must be an absolute path"):
        ReplayCluster(2, TableConfig(10), "here", host="127.0.0.1")
    with pytest.raises(InvalidArgumentError, match=r"buffer_size \(1\) must be at least 2"):
        ReplayCluster(2, TableConfig(1), DATA_DIR, host="127.0.0.1")
    with pytest.raises(InvalidArgumentError, match="are its variables set"):
        ReplayCluster(2, TableConfig(10), "$TDREPLAY_NO_DISK/replay", host="127.0.0.1")


def test_where_ray_is_not_there_the_error_says_what_to_do():
    assert "tdreplay_client.ray.ReplayCluster needs ray, which is not installed: pip install 'tdreplay[ray]'" in fresh_interpreter(WITHOUT_RAY).stderr
    assert "FailedPreconditionError: this process is not connected to Ray: call ray.init()" in fresh_interpreter(NOT_CONNECTED).stderr
    assert not Path("/nowhere").exists()
