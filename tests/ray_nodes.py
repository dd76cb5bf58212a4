"""A Ray of several nodes on this machine, each of which has a disk of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
# Before Ray is imported, which reads them then.

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_actor import Actor, Learner, RayLearner
from tdreplay.errors import DeadlineError, ReplayError
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster, ShardStatus

DATA_DIR = "$TDREPLAY_TEST_DISK/replay"
PATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""The processes of the nodes find the modules of the tests."""
SECONDS = 100.0
"""Until what is waited for must be so: a server that starts imports torch, on cores that others use too."""
TIMEOUT = 90.0
_numbers = itertools.count()


class Machines:
    """The nodes of a Ray on this machine.

    Attributes:
        address: Where drivers connect to it.
    """

    def __init__(self, disks: Path) -> None:
        self._disks, self._places = disks, itertools.count()
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._of_a_node(4), "include_dashboard": False})
        self.address: str = self._cluster.address

    def _of_a_node(self, cpus: int) -> dict[str, Any]:
        disk = self._disks / f"disk-{next(self._places)}"
        disk.mkdir(exist_ok=True)
        return {"num_cpus": cpus, "object_store_memory": 80_000_000, "env_vars": {"TDREPLAY_TEST_DISK": str(disk), "PYTHONPATH": PATH}}

    def add(self, cpus: int) -> Any:
        """A node more."""
        return self._cluster.add_node(**self._of_a_node(cpus))

    def remove(self, node: Any) -> None:
        """A node less, at once, as where its machine fails."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """Ends all of them."""
        self._cluster.shutdown()


@contextmanager
def some_disks() -> Iterator[Path]:
    """For ``with``: a directory for the disks of nodes."""
    disks = Path(tempfile.mkdtemp(prefix="tdreplay-ray-"))
    try:
        yield disks
    finally:
        shutil.rmtree(disks, ignore_errors=True)


@contextmanager
def ray_of_two_nodes(disks: Path | None = None) -> Iterator[Machines]:
    """For ``with``: this process is a driver of a Ray of two nodes, on these disks."""
    if disks is None:
        with some_disks() as own, ray_of_two_nodes(own) as machines:
            yield machines
        return
    machines = Machines(disks)
    try:
        machines.add(4)
        ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()


@contextmanager
def started(shards: int, rows: int | TableConfig, **options: Any) -> Iterator[ReplayCluster]:
    """A cluster, which is stopped at the end."""
    said = {"name": f"test-{os.getpid()}-{next(_numbers)}", "host": "127.0.0.1", "resources": {"CPU": 0.5}} | options
    cluster = ReplayCluster(shards, TableConfig(rows) if isinstance(rows, int) else rows, DATA_DIR, **said)
    try:
        yield cluster
    finally:
        with suppress(ReplayError):  # The test stopped it.
            cluster.stop()


def until(true: Callable[[], object], what: str) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.1)


def stored(buffer: Any) -> list[int]:
    """The numbers of all rows of a buffer, each as often as it is there."""
    found: list[int] = sorted(buffer.sample_all()["number"].tolist())
    return found


def serving(cluster: ReplayCluster) -> list[ShardStatus]:
    """The shards, once the servers of all of them are ready."""
    found: list[ShardStatus] = []

    def ready() -> bool:
        with suppress(DeadlineError):  # Whoever knows it is still being restarted.
            found[:] = cluster.status().shards
        return bool(found) and all(shard.state == "serving" for shard in found)

    until(ready, "the servers of all shards are ready")
    return found


def kill_server(cluster: ReplayCluster, number: int) -> None:
    """Kills the server of a shard, once all are ready, and waits until the status knows it."""
    pid = serving(cluster)[number].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.status().shards[number].pid != pid, "the status says that the server ended")


class Workers:
    """Actors that write, and learners that read.

    Args:
        cluster: Where they do.
        actors: How many processes write.
        writers: How many writers each of them has.
        learners: How many processes read; 0: a thread of this one does.
    """

    def __init__(self, cluster: ReplayCluster, actors: int, writers: int, learners: int) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # No test removes this node.
        actor, learner = Actor.options(scheduling_strategy=here), RayLearner.options(scheduling_strategy=here)
        self._actors = [actor.remote(cluster.buffer(timeout=TIMEOUT), number * writers, writers) for number in range(actors)]
        until(lambda: self._written() > 20, "the actors write")
        buffers = [cluster.buffer(timeout=TIMEOUT, on_loss="degrade") for _ in range(max(1, learners))]
        self._here = [] if learners else [Learner(buffers[0])]
        self._learners = [learner.remote(buffer, streams=bool(number % 2)) for number, buffer in enumerate(buffers)] if learners else []
        until(lambda: self._read() > 20, "the learners read")
        self.longest_pause(anew=True)  # The first batches wait for connections.

    def _written(self) -> int:
        return min(ray.get([actor.written.remote() for actor in self._actors], timeout=SECONDS))

    def _of_learners(self, method: str, **options: Any) -> list[Any]:
        asked = [getattr(learner, method).remote(**options) for learner in self._learners]
        return [getattr(learner, method)(**options) for learner in self._here] + ray.get(asked, timeout=SECONDS)

    def _read(self) -> int:
        return min(self._of_learners("batches"))

    def longest_pause(self, *, anew: bool = False) -> float:
        """The longest time between two batches of a learner, in seconds."""
        return max(self._of_learners("longest_pause", anew=anew))

    def go_on(self, rows: int = 50, batches: int = 10) -> None:
        """Waits until all are at work again."""
        written, read = self._written(), self._read()
        until(lambda: self._written() > written + rows and self._read() > read + batches, "actors and learners go on")

    def end_writing(self) -> list[int]:
        """Ends the actors. The numbers of all rows that were acknowledged, sorted."""
        return sorted(row for rows in ray.get([actor.stop.remote() for actor in self._actors], timeout=SECONDS) for row in rows)

    def end(self) -> None:
        """Ends all of them."""
        try:
            self._of_learners("stop")
        finally:
            for process in [*self._actors, *self._learners]:
                ray.kill(process)


@contextmanager
def at_work(cluster: ReplayCluster, actors: int = 1, writers: int = 2, learners: int = 0) -> Iterator[Workers]:
    """For ``with``: actors write to a cluster, and learners read from it."""
    workers = Workers(cluster, actors, writers, learners)
    try:
        yield workers
    finally:
        workers.end()
