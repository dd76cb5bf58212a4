"""Reverb: a server process, and the clients that its documentation recommends for training. Runs in an environment of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
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


def fill(address: str, steps: list[Columns]) -> None:
    """Stores all steps, each as an item of its own."""
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=1) as writer:
        for number, step in enumerate(steps, 1):
            writer.append(step)
            writer.create_item(TABLE, 1.0, {name: writer.history[name][-1:] for name in step})
            if number % 50 == 0:
                writer.flush(block_until_num_items=50)
        writer.flush()


def _stream(task: Task, report: Report, work: Work, live: Live, address: str, workers: int) -> float:
    sample = _batches(address, work.steps(0, 1)[0], workers)
    check_samples(work, live, lambda: {name: column.numpy() for name, column in sample().items()})
    seconds = throughput(sample, task.seconds)
    report.speed(f"stream, {workers} workers", BATCH, seconds)
    return seconds


def _batches(address: str, step: Columns, workers: int) -> Callable[[], Any]:
    dataset = reverb.TrajectoryDataset(
        server_address=address,
        table=TABLE,
        dtypes={name: tf.as_dtype(value.dtype) for name, value in step.items()},
        shapes={name: tf.TensorShape((1, *value.shape)) for name, value in step.items()},
        max_in_flight_samples_per_worker=2 * BATCH,
        num_workers_per_iterator=workers,
    )
    batches = (sample.data for sample in dataset.batch(BATCH, drop_remainder=True).prefetch(2))
    return lambda: next(batches)


@contextmanager
def serving(rows: int) -> Iterator[str]:
    """A server process while the context is open: its address."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, rows), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def serve(pipe: Connection, rows: int) -> None:
    """Serves until the process is ended."""
    parts = {"sampler": reverb.selectors.Uniform(), "remover": reverb.selectors.Fifo(), "rate_limiter": reverb.rate_limiters.MinSize(1)}
    server = reverb.Server(tables=[reverb.Table(TABLE, max_size=rows, **parts)], port=None)
    pipe.send(server.port)
    server.wait()


if __name__ == "__main__":
    main(Task.from_command_line())
