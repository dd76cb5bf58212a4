"""RLlib's replay buffers as actors of Ray, as its Ape-X had them: several shards, each of which gives whole batches. In an environment of its own."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.actors import create_colocated_actors
from ray.rllib.utils.replay_buffers import MultiAgentPrioritizedReplayBuffer, MultiAgentReplayBuffer

from benchmarks.checks import check_rows
from benchmarks.measure import Report, Task, throughput
from benchmarks.priorities import ALPHA, BETA, new_priorities
from benchmarks.work import BATCH, Columns, Live, Work

SHARDS = 2
IN_FLIGHT = {"small": 8, "image": 2}
"""Calls that wait at each shard: together as many batches as a stream of tdreplay has on its way."""
POLICY = "default_policy"
OBJECT_STORE_BYTES = 2 << 30
KINDS: Mapping[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "uniform": (MultiAgentReplayBuffer, {}, {}),
    "prioritized": (MultiAgentPrioritizedReplayBuffer, {"prioritized_replay_alpha": ALPHA, "prioritized_replay_beta": BETA}, {"beta": BETA}),
}
"""Variant -> the class, the arguments of it, and those of each draw."""


class Replay:
    """The shards, and the draws that are on their way.

    Args:
        work: The rows.
        variant: Of `KINDS`.
    """

    def __init__(self, work: Work, variant: str) -> None:
        kind, settings, self._draws = KINDS[variant]
        arguments = {"capacity": work.capacity // SHARDS, "storage_unit": "timesteps", **settings}
        (self._shards,) = create_colocated_actors([(ray.remote(num_cpus=0)(kind), None, arguments, SHARDS)])
        self._turns = itertools.cycle(self._shards)
        self._in_flight = IN_FLIGHT[work.name]
        self._waiting: dict[Any, Any] = {}

    def add(self, rows: Columns) -> Any:
        """Gives a batch to the shard whose turn it is. What is returned is ready when it has it."""
        return next(self._turns).add.remote(SampleBatch(rows))

    def sample(self) -> tuple[Any, Columns]:
        """The next batch that a shard gives, and this shard, which is asked for another one."""
        for shard in self._shards if not self._waiting else ():
            for _ in range(self._in_flight):
                self._ask(shard)
        (ready,), _ = ray.wait(list(self._waiting), num_returns=1)
        shard = self._waiting.pop(ready)
        self._ask(shard)
        return shard, ray.get(ready).policy_batches[POLICY]

    def sample_and_update(self, priorities: Iterator[NDArray[np.float64]]) -> None:
        """The same, and gives the rows new priorities. It does not wait for these."""
        shard, batch = self.sample()
        shard.update_priorities.remote({POLICY: (batch["batch_indexes"], next(priorities))})

    def _ask(self, shard: Any) -> None:
        self._waiting[shard.sample.remote(BATCH, **self._draws)] = shard


def main(task: Task) -> None:
    """Measures the kind of buffer that the task's variant names."""
    ray.init(
        "local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        logging_level="error",
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=tempfile.gettempdir(),
        _node_ip_address="127.0.0.1",
    )
    try:
        _measure(task, Work(task.work, task.capacity), Report(task))
    finally:
        ray.shutdown()


def _measure(task: Task, work: Work, report: Report) -> None:
    replay, live = Replay(work, task.variant), Live(0, work.capacity // BATCH * BATCH)
    for first in range(0, live.size, BATCH):
        ray.get(replay.add(work.rows(first, BATCH)))
    check_rows(work, live, lambda: replay.sample()[1])  # Not how often: a batch is of the shard that answers first, and of image rows one does more.
    report.speed(f"sample, {task.variant}", BATCH, throughput(replay.sample, task.seconds))
    if task.variant == "prioritized":
        values = itertools.cycle(new_priorities())
        report.speed("sample with updates", BATCH, throughput(lambda: replay.sample_and_update(values), task.seconds))
    rows = work.rows(work.capacity, BATCH)
    report.speed(f"add_batch, {task.variant}", BATCH, throughput(lambda: ray.get(replay.add(rows)), task.seconds))


if __name__ == "__main__":
    main(Task.from_command_line())
