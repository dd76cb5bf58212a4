"""TorchRL's buffer in the learner's own process: no service, no network."""

from __future__ import annotations

import os
import tempfile

from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from benchmarks.measure import Report, Task, latency, throughput
from benchmarks.participants.tensors import as_tensordict, check_owned, check_tensordicts, parts
from benchmarks.work import BATCH, Live, Work


def main(task: Task) -> None:
    """Measures it."""
    work, report = Work(task.work), Report(task)
    with tempfile.TemporaryDirectory() as scratch:
        buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(work.capacity, scratch_dir=os.path.join(scratch, "rows"), device="cpu"))
        for part in parts(work, work.capacity):
            buffer.extend(part)
        live = Live(0, work.capacity)
        check_tensordicts(work, live, lambda: buffer.sample(BATCH))
        check_owned(work, live, lambda: buffer.sample(BATCH), following=2)
        batch = as_tensordict(work.rows(work.capacity, BATCH))
        report.speed("sample", BATCH, throughput(lambda: buffer.sample(BATCH), task.seconds))
        report.speed("add_batch", BATCH, throughput(lambda: buffer.extend(batch), task.seconds))
        report.speed("add", 1, latency(lambda: buffer.add(batch[0]), task.seconds / 2))


if __name__ == "__main__":
    main(Task.from_command_line())
