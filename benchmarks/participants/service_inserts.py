"""How fast a client inserts, and whether each row then is there once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.measure import Step, latency, throughput
from benchmarks.participants.service import Service
from benchmarks.participants.tensors import as_arrays, as_tensordict
from benchmarks.work import BATCH, Live, WrongRowsError

__all__ = ["measure_inserts"]

STEPS = 1024
"""Rows that are appended one by one, again and again."""
FLUSH_TIMEOUT = 30.0


def measure_inserts(service: Service) -> None:
    """Calls that are waited for, of one row and of a batch, and then pipelined ones."""
    _one_at_a_time(service)
    _pipelined(service)


def _one_at_a_time(service: Service) -> None:
    batch = as_tensordict(service.work.rows(service.work.capacity, BATCH))
    row = batch[0]
    _insert(service, "add", 1, lambda: service.buffer.add(row), lambda step: latency(step, service.seconds))
    _insert(service, "add_batch", BATCH, lambda: service.buffer.add_batch(batch), lambda step: throughput(step, service.seconds))


def _pipelined(service: Service) -> None:
    steps, batch = service.work.steps(service.work.capacity, STEPS), as_tensordict(service.work.rows(service.work.capacity, BATCH))
    with service.buffer.writer(flush_rows=64, flush_seconds=0.1) as writer:

        def append() -> None:
            for step in steps:
                writer.append(step)

        def measured(step: Step) -> float:
            return throughput(step, service.seconds, finish=lambda: writer.flush(FLUSH_TIMEOUT))

        _insert(service, "append", STEPS, append, measured)
        _insert(service, "extend", BATCH, lambda: writer.extend(batch), measured)


def _insert(service: Service, op: str, rows: int, step: Step, measured: Callable[[Step], float]) -> None:
    """Measures a step that inserts the `rows` rows after the first `capacity` ones."""
    calls = 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        step()

    before = service.buffer.state().write_count
    service.report.speed(op, rows, measured(counted))
    _check_inserted(service, op, rows, before + calls * rows)


def _check_inserted(service: Service, op: str, rows: int, write_count: int) -> None:
    """The number of rows must be right, and the last ones must be those of a step, in their order."""
    state, first = service.buffer.state(), service.work.capacity
    slots = [(state.pointer - rows + n) % state.buffer_size for n in range(rows)]
    numbers = service.work.check(as_arrays(service.buffer.sample_by_index(slots)), Live(first, rows))
    if state.write_count != write_count or not np.array_equal(numbers, np.arange(first, first + rows)):
        raise WrongRowsError(f"{op}: {state.write_count} rows were written and not {write_count}, or they are in another order: {numbers[:5]}")
