"""A Ray of several nodes on this machine, each of which has a disk of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
# Before Ray is imported, which reads them then.

import ray
from ray.cluster_utils import Cluster

from tdreplay.errors import ReplayError
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster

DATA_DIR = "$TDREPLAY_TEST_DISK/replay"
PATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""The processes of the nodes find the modules of the tests."""
_numbers = itertools.count()


class Machines:
    """The nodes of a Ray on this machine.

    Attributes:
        address: Where drivers connect to it.
    """

    def __init__(self, disks: Path) -> None:
        self._disks = disks
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._of_a_node(4), "include_dashboard": False})
        self.address: str = self._cluster.address

    def _of_a_node(self, cpus: int) -> dict[str, Any]:
        disk = self._disks / f"disk-{next(_numbers)}"
        disk.mkdir()
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
def ray_of_two_nodes() -> Iterator[Machines]:
    """For ``with``: this process is a driver of a Ray of two nodes."""
    disks = Path(tempfile.mkdtemp(prefix="tdreplay-ray-"))
    machines = Machines(disks)
    try:
        machines.add(4)
        ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()
        shutil.rmtree(disks, ignore_errors=True)


@contextmanager
def started(shards: int, rows: int, **options: Any) -> Iterator[ReplayCluster]:
    """A cluster, which is stopped at the end."""
    said = {"name": f"test-{os.getpid()}-{next(_numbers)}", "host": "127.0.0.1", "resources": {"CPU": 0.5}} | options
    cluster = ReplayCluster(shards, TableConfig(rows), DATA_DIR, **said)
    try:
        yield cluster
    finally:
        with suppress(ReplayError):  # The test stopped it.
            cluster.stop()
