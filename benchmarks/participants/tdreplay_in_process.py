"""tdreplay's buffer in the learner's own process: no service, no network."""

from __future__ import annotations

from benchmarks.measure import Report, Task, latency, throughput
from benchmarks.participants.tensors import as_tensordict, check_owned, check_tensordicts, parts
from benchmarks.work import BATCH, Live, Work
from tdreplay_server import ReplayBuffer


def main(task: Task) -> None:
    """Measures it."""
    work, report = Work(task.work), Report(task)
    with ReplayBuffer("cpu", "cpu", work.capacity) as buffer:
        for part in parts(work, work.capacity):
            buffer.add_batch(part)
        live = Live(0, work.capacity)
        check_tensordicts(work, live, lambda: buffer.sample_batch(BATCH))
        check_owned(work, live, lambda: buffer.sample_batch(BATCH), following=2)
        batch = as_tensordict(work.rows(work.capacity, BATCH))
        report.speed("sample_batch", BATCH, throughput(lambda: buffer.sample_batch(BATCH), task.seconds))
        report.speed("add_batch", BATCH, throughput(lambda: buffer.add_batch(batch), task.seconds))
        report.speed("add", 1, latency(lambda: buffer.add(batch[0]), task.seconds / 2))


if __name__ == "__main__":
    main(Task.from_command_line())
