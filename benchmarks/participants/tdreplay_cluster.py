"""tdreplay's shards as Ray places them, and the buffer over all of them: its streams over gRPC and, where batches are large, over shared memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray

from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.service_inserts import FLUSH_TIMEOUT
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import as_tensordict, check_owned, check_tensordicts, parts
from benchmarks.plan import CLUSTER_SHARED_MEMORY
from benchmarks.priorities import ALPHA, new_priorities
from benchmarks.work import BATCH, Live, Work
from tdreplay.samplers import Prioritized, Sampler, Uniform
from tdreplay.table_config import TableConfig
from tdreplay_client import ShardedReplayBuffer
from tdreplay_client.ray import ReplayCluster

SHARDS = 2
SAMPLERS: dict[str, Sampler] = {"uniform": Uniform(), "prioritized": Prioritized(ALPHA)}
SHARED = "image"
"""Smaller batches travel over gRPC, whatever the transport."""


def main(task: Task) -> None:
    """Fills a table whose sampler is the task's variant, and measures it."""
    work = Work(task.work, task.capacity)
    ray.init("local", num_cpus=SHARDS, include_dashboard=False, logging_level="error", _temp_dir=tempfile.gettempdir(), _node_ip_address="127.0.0.1")
    try:
        cluster = ReplayCluster(
            SHARDS, TableConfig(work.capacity, sampler=SAMPLERS[task.variant]), Path(tempfile.gettempdir(), "data"), name="bench", host="127.0.0.1"
        )
        _measure_all(task, work, cluster)
        cluster.stop()
    finally:
        ray.shutdown()


def _measure_all(task: Task, work: Work, cluster: ReplayCluster) -> None:
    with cluster.buffer(transport="grpc") as buffer:
        for part in parts(work, work.capacity):
            buffer.add_batch(part)
    # All are read before anything is written, which changes what the rows are.
    transports: dict[Literal["grpc", "shared_memory"], str] = {"grpc": task.participant}
    if work.name == SHARED:
        transports["shared_memory"] = CLUSTER_SHARED_MEMORY
    for measure in (_measure_stream, _measure_inserts):
        for transport, participant in transports.items():
            with cluster.buffer(transport=transport) as buffer:
                measure(task, work, Report(task, participant), buffer)


def _measure_stream(task: Task, work: Work, report: Report, buffer: ShardedReplayBuffer) -> None:
    live = Live(0, work.capacity)
    with buffer.stream(BATCH, prefetch=PREFETCH[work.name]) as batches:
        check_tensordicts(work, live, lambda: next(batches).select(*work.rows(0, 1)))
        check_owned(work, live, lambda: next(batches).select(*work.rows(0, 1)))
        report.speed(f"stream, {task.variant}", BATCH, throughput(batches.__next__, task.seconds))
        if task.variant == "prioritized":
            report.speed("stream with updates", BATCH, throughput(_learning(batches), task.seconds))


def _learning(batches: Any) -> Callable[[], None]:
    values = itertools.cycle(new_priorities())
    return lambda: batches.update_priorities(next(batches), next(values))


def _measure_inserts(task: Task, work: Work, report: Report, buffer: ShardedReplayBuffer) -> None:
    batch = as_tensordict(work.rows(work.capacity, BATCH))
    report.speed(f"add_batch, {task.variant}", BATCH, throughput(lambda: buffer.add_batch(batch), task.seconds))
    with buffer.writer() as writer:
        report.speed(f"extend, {task.variant}", BATCH, throughput(lambda: writer.extend(batch), task.seconds, lambda: writer.flush(FLUSH_TIMEOUT)))


if __name__ == "__main__":
    main(Task.from_command_line())
