"""The long forms: fifty kills, a mover and a directory that are killed, nodes that come and go, certificates."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from access.certificates import Authority, issued
from ray_actor import numbered
from ray_nodes import DATA_DIR, SECONDS, TIMEOUT, Machines, at_work, kill_server, ray_of_two_nodes, serving, started, stored, until
from tdreplay.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ReplayError,
    ResourceExhaustedError,
    TableNotFoundError,
    UnauthenticatedError,
)
from tdreplay.samplers import Prioritized
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster
from tdreplay_client.transport.access import TLS
from tdreplay_server.access.roles import Role

pytestmark = [pytest.mark.skipif(not os.environ.get("TDREPLAY_LONG"), reason="the long form: TDREPLAY_LONG=1"), pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TDREPLAY_KILLS", "50"))
MANY = 1_000_000_000
"""The number of the first row that no actor writes."""
DRIVER = """
import os, ray, sys
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
cluster = ReplayCluster(2, TableConfig(100_000), sys.argv[2], name=sys.argv[3], host="127.0.0.1", resources={"CPU": 0.5})
print("started", flush=True)
sys.stdin.readline()
with cluster.buffer(timeout=90) as buffer:
    buffer.add_batch({"number": list(range(20_000))})
print("resizing", flush=True)
cluster.resize(1)
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with ray_of_two_nodes() as found:
        yield found


def in_the_background(call: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(call)


def test_servers_are_killed_fifty_times_and_no_acknowledged_row_is_lost_or_doubled(machines):
    with started(2, 4_000_000) as cluster, at_work(cluster, actors=4, writers=1, learners=2) as workers:
        chosen, pauses = random.Random(1), []
        for _ in range(KILLS):
            kill_server(cluster, chosen.randrange(2))
            workers.go_on()
            pauses.append(workers.longest_pause(anew=True))
        restarts = sum(shard.restarts for shard in serving(cluster))
        rows = workers.end_writing()
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == rows
        assert restarts == KILLS
        pauses.sort()
        print(f"{KILLS} kills, {len(rows)} rows; pauses of learners: median {pauses[KILLS // 2]:.2f} s, longest {pauses[-1]:.2f} s")
        print(f"{os.getloadavg()[0]:.0f} processes wait for {os.cpu_count()} cores")


def test_a_node_is_removed_and_one_is_added_under_load(machines):
    node = machines.add(1)
    with started(3, 3_000_000) as cluster, at_work(cluster, actors=2, writers=2, learners=2) as workers:
        (number,) = (shard.number for shard in cluster.status().shards if shard.node == node.node_id)
        machines.remove(node)
        until(lambda: cluster.status().shards[number].began_empty, "the shard is on another node")
        machines.add(2)
        assert [shard.began_empty for shard in serving(cluster)] == [shard == number for shard in range(3)]
        workers.go_on()
        assert cluster.resize(4).added == (3,)
        workers.go_on()
        rows, pause = workers.end_writing(), workers.longest_pause()
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            there = stored(buffer)
        assert len(set(there)) == len(there)
        assert set(there) < set(rows), "only the rows of the shard that was lost are gone"
        print(f"{len(rows)} rows, of which {len(rows) - len(there)} were on the node that was removed; longest pause {pause:.2f} s")


def test_the_cluster_grows_and_shrinks_under_load(machines):
    with started(2, 3_000_000) as cluster, at_work(cluster, actors=4, writers=1, learners=2) as workers:
        assert cluster.resize(4).added == (2, 3)
        workers.go_on()
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            buffer.add_batch(numbered(MANY, MANY + 100_000))
        changed = cluster.resize(3)
        assert (changed.removed, changed.dropped_rows) == ((3,), 0)
        workers.go_on()
        print(changed, f"longest pause {workers.longest_pause():.2f} s")
        rows = workers.end_writing()
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == [*rows, *range(MANY, MANY + 100_000)]


def test_a_move_goes_on_where_mover_target_and_directory_are_killed_in_the_middle(machines):
    with started(3, 3_000_000) as cluster, at_work(cluster, writers=2) as workers:
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            buffer.add_batch(numbered(MANY, MANY + 600_000))
            mover = psutil.Process(cluster.status().shards[2].pid).parent()
            resizing = in_the_background(lambda: cluster.resize(2, drain_seconds=0.5))
            until(lambda: cluster.status().shards[2].state == "leaving", "a shard leaves")
            until(lambda: len(buffer.describe().shards) == 2, "clients go on without it")
            before = buffer.size
            until(lambda: buffer.size > before + 10_000, "rows are moved")
            mover.kill()
            os.kill(cluster.status().shards[0].pid or 0, signal.SIGKILL)
            ray.kill(ray.get_actor(f"tdreplay:{cluster.name}", namespace="tdreplay"), no_restart=False)
            with pytest.raises(ReplayError):  # Whoever ordered it is told that the directory was restarted: it goes on by itself.
                resizing.result(SECONDS)
            until(lambda: len(cluster.status().shards) == 2, "the shard is gone")
            workers.go_on()
            rows = workers.end_writing()
            assert stored(buffer) == [*rows, *range(MANY, MANY + 600_000)]


def test_episodes_are_moved_whole_with_their_priorities(machines):
    table = TableConfig(60_000, sampler=Prioritized(alpha=1.0), trajectories=True)
    with started(3, table) as cluster, cluster.buffer(timeout=TIMEOUT) as buffer:
        for episode in range(30):
            with buffer.trajectory_writer() as writer:
                for number in range(20):
                    ends = {"terminated": number == 19, "truncated": False}
                    writer.append({"obs": np.float32(number), "action": np.int64(20 * episode + number), "reward": np.float32(0), **ends})
        rows = buffer.sample_all()
        buffer.update_priorities(rows["row_id"], rows["action"].float() + 1)
        before = buffer.describe()
        changed = cluster.resize(2, drain_seconds=0.5)
        assert changed.moved_rows == before.shards[2].description.size > 0
        until(lambda: len(buffer.describe().shards) == 2, "the buffer has two shards")
        assert shards_and_steps(buffer) == [(1, [20 * episode + number for number in range(20)]) for episode in range(30)]
        batch = buffer.sample_batch(10_000)
        mass = (batch["action"] + 1.0) / sum(range(1, 601))
        assert torch.allclose(batch["probability"].double(), mass.double(), rtol=1e-3), "each has the priority that it had"


def shards_and_steps(buffer: Any) -> list[tuple[int, list[int]]]:
    """Of each episode, in order of its steps: on how many shards it is, and its actions."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for row in buffer.sample_all():
        found.setdefault(int(row["episode_id"]), []).append((int(row["step"]), int(row["action"]), int(row["row_id"]) >> 48))
    steps = [sorted(episode) for episode in found.values()]
    return sorted((len({shard for *_, shard in episode}), [action for _, action, _ in episode]) for episode in steps)


def test_a_driver_may_leave_in_the_middle_of_a_resize(machines):
    command = [sys.executable, "-c", DRIVER, machines.address, DATA_DIR, "left"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert driver.stdout.readline() == "started\n"
        cluster = ReplayCluster.connect("left")
        with at_work(cluster) as workers:
            driver.stdin.write("\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "resizing\n"
            until(lambda: any(shard.state in ("draining", "leaving") for shard in cluster.status().shards), "a shard leaves")
            driver.kill()
            until(lambda: len(cluster.status().shards) == 1, "the shard is gone")
            workers.go_on()
        cluster.stop()


@pytest.mark.parametrize("placement", ["pack", "with_learner"])
def test_shards_are_together_where_that_is_asked_for(machines, placement):
    with started(3, 3000, placement=placement, resources={"CPU": 1}) as cluster:
        nodes = {shard.node for shard in cluster.status().shards}
        assert len(nodes) == 1
        if placement == "with_learner":
            assert nodes == {ray.get_runtime_context().get_node_id()}
        assert cluster.resize(4).added == (3,)
        assert {shard.node for shard in serving(cluster)} == nodes


REFUSED = [
    ({"data_dir": "$TDREPLAY_NO_DISK/replay"}, InvalidArgumentError, "are its variables set"),
    ({"shards": 99, "resources": {"CPU": 2}, "start_timeout": 1}, ResourceExhaustedError, "nodes together have CPU"),
    ({"server": {"max_worker": 3}}, FailedPreconditionError, "max-worker"),
]


def test_what_only_the_nodes_know_to_be_wrong_is_refused(machines):
    for options, error, message in REFUSED:
        said = {"shards": 2, "table": TableConfig(100), "data_dir": DATA_DIR, "name": "refused", "host": "127.0.0.1", **options}
        with pytest.raises(error, match=message):
            ReplayCluster(**said)
        with pytest.raises(TableNotFoundError):
            ReplayCluster.connect("refused")


def test_servers_with_certificates_and_tokens_are_reached_by_those_who_show_them(machines, tmp_path):
    authority = Authority(tmp_path)
    tokens = tmp_path / "tokens.json"
    token = issued(tokens, name="all", roles=(Role.ADMIN,), tables=("*",), created=datetime.now(timezone.utc))
    shown = {"tls": TLS(authority.ca_file), "token": token}
    server = {**{name: str(path) for name, path in authority.server_files.items()}, "tokens_file": str(tokens)}
    with started(3, 3_000_000, server=server, **shown) as cluster, at_work(cluster) as workers:
        with cluster.buffer(timeout=TIMEOUT) as buffer:
            buffer.add_batch(numbered(MANY, MANY + 300_000))  # So many that each shard has some of them.
        changed = cluster.resize(2, drain_seconds=1)
        assert changed.moved_rows > 0
        workers.go_on()
        os.kill(cluster.status().shards[0].pid or 0, signal.SIGKILL)
        workers.go_on()
        with pytest.raises(UnauthenticatedError):
            ReplayCluster.connect(cluster.name, token="tdr_" + 43 * "x").buffer(timeout=5)
        rows = workers.end_writing()
        with ReplayCluster.connect(cluster.name).buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == [*rows, *range(MANY, MANY + 300_000)]
