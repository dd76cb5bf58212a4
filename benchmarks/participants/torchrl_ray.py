"""TorchRL's RayReplayBuffer, over Ray's transport or torch.distributed's. Runs in an environment of its own."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import ray
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.ray_buffer import RayReplayBuffer

from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.tensors import as_tensordict, check_tensordicts
from benchmarks.work import BATCH, Live, Work


def main(task: Task) -> None:
    """Measures the transport that the task's variant names."""
    work = Work(task.work, task.capacity)
    try:
        buffer = _buffer(work, task.variant)
        _measure(task, work, Report(task), buffer)
        # Its own close() kills the actor, whose semaphores then stay in /dev/shm.
        ray.wait([buffer._rb.__ray_terminate__.remote()], timeout=10)
    finally:
        ray.shutdown()


def _buffer(work: Work, transport: str) -> Any:
    """A buffer in an actor of a Ray of its own, whose files are in the directory for temporary files."""
    init = {"num_cpus": 2, "include_dashboard": False, "logging_level": "error", "_temp_dir": tempfile.gettempdir(), "_node_ip_address": "127.0.0.1"}
    return RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        storage=partial(LazyMemmapStorage, work.capacity),
        batch_size=BATCH,
        ray_init_config=init,
        remote_config={"num_cpus": 1},
        transport=transport,
    )


def _measure(task: Task, work: Work, report: Report, buffer: Any) -> None:
    live = Live(0, work.capacity // BATCH * BATCH)  # The distributed transport takes batches of the first one's size alone.
    for first in range(0, live.size, BATCH):
        buffer.extend(as_tensordict(work.rows(first, BATCH)))
    check_tensordicts(work, live, buffer.sample)
    report.speed("sample", BATCH, throughput(buffer.sample, task.seconds))
    batch = as_tensordict(work.rows(work.capacity, BATCH))
    report.speed("add_batch", BATCH, throughput(lambda: buffer.extend(batch), task.seconds))


if __name__ == "__main__":
    main(Task.from_command_line())
