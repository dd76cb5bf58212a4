"""Reverb: a server process, and the clients that its documentation recommends for training. Runs in an environment of its own."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import reverb
import tensorflow as tf

from benchmarks.checks import check_samples
from benchmarks.measure import Report, Task, latency, throughput
from benchmarks.work import BATCH, Columns, Live, Work

ROWS = {"small": 10_000, "image": 4_000}
"""Rows that it holds: fewer than the others, because it takes them in slowly. That is in its favour."""
TABLE = "rows"

__all__ = ["TABLE", "arrays", "batches", "fill", "serving"]


def main(task: Task) -> None:
    """Measures it."""
    work, report = Work(task.work), Report(task)
    steps, live = work.steps(0, ROWS[work.name]), Live(0, ROWS[work.name])
    with serving(live.size) as address:
        start = time.perf_counter()
        fill(address, steps)
        report.speed("TrajectoryWriter", live.size, time.perf_counter() - start)
        laps = [_stream(task, report, work, live, address, workers) for workers in (1, 2)]
        report.speed("stream", BATCH, min(laps))
        client = reverb.Client(address)
        report.speed("client.insert", 1, latency(lambda: client.insert(steps[0], {TABLE: 1.0}), task.seconds / 2))


def fill(address: str, steps: Iterable[Columns], priorities: Iterable[float] = itertools.repeat(1.0)) -> None:
    """Stores all steps, each as an item of its own, with its priority."""
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=1) as writer:
        for number, (step, priority) in enumerate(zip(steps, priorities), 1):  # noqa: B905 - priorities may be without an end.
            writer.append(step)
            writer.create_item(TABLE, priority, {name: writer.history[name][-1:] for name in step})
            if number % 50 == 0:
                writer.flush(block_until_num_items=50)
        writer.flush()


def _stream(task: Task, report: Report, work: Work, live: Live, address: str, workers: int) -> float:
    sample = batches(address, work.rows(0, 1), workers)
    check_samples(work, live, lambda: arrays(sample()))
    seconds = throughput(sample, task.seconds)
    report.speed(f"stream, {workers} workers", BATCH, seconds)
    return seconds


def batches(address: str, item: Columns, workers: int, size: int = BATCH) -> Callable[[], Any]:
    """What gives the next random batch, as the dataset has it. `item`: any of the table's items; `size`: of a batch."""
    dataset = reverb.TrajectoryDataset(
        server_address=address,
        table=TABLE,
        dtypes={name: tf.as_dtype(value.dtype) for name, value in item.items()},
        shapes={name: tf.TensorShape(value.shape) for name, value in item.items()},
        max_in_flight_samples_per_worker=2 * size,
        num_workers_per_iterator=workers,
    )
    samples = iter(dataset.batch(size, drop_remainder=True).prefetch(2))
    return lambda: next(samples)


def arrays(sample: Any) -> Columns:
    """The fields of a batch."""
    return {name: column.numpy() for name, column in sample.data.items()}


@contextmanager
def serving(rows: int, alpha: float | None = None) -> Iterator[str]:
    """A server process while the context is open: its address. `alpha`: of its prioritized table; None: the table is uniform."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, rows, alpha), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection, rows: int, alpha: float | None) -> None:
    """Serves until the process is ended."""
    sampler = reverb.selectors.Uniform() if alpha is None else reverb.selectors.Prioritized(alpha)
    parts = {"sampler": sampler, "remover": reverb.selectors.Fifo(), "rate_limiter": reverb.rate_limiters.MinSize(1)}
    server = reverb.Server(tables=[reverb.Table(TABLE, max_size=rows, **parts)], port=None)
    pipe.send(server.port)
    server.wait()


if __name__ == "__main__":
    main(Task.from_command_line())
