"""tdreplay: how long the first batch of a shuffled epoch takes, over few rows and over many, and what memory the server takes for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from tensordict import TensorDict

from benchmarks.measure import Report, Step, Task, in_turn, latency
from benchmarks.participants.server_memory import most_private_bytes, private_bytes
from benchmarks.work import BATCH, WrongRowsError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

FILLED_AT_ONCE = 1 << 19


def main(task: Task) -> None:
    """Measures it with the two numbers of rows that the task's variant names: "few many"."""
    report, sizes = Report(task), dict(zip(("few", "many"), map(int, task.variant.split()), strict=True))
    with spawn_server(ServerConfig(address="127.0.0.1:0")) as server, ExitStack() as stack:
        starts = {name: partial(_start, stack.enter_context(_filled(server.address, size)), size) for name, size in sizes.items()}
        laps = {f"epoch of {name} rows": _lap(start) for name, start in starts.items()}
        for op, seconds in in_turn(laps, task.seconds).items():
            report.speed(op, BATCH, seconds)
        for name, start in starts.items():
            before = private_bytes(server.pid)
            report.memory(f"epoch of {name} rows, memory", max(0, most_private_bytes(server.pid, start) - before))


def _lap(start: Step) -> Callable[[float], float]:
    return lambda seconds: latency(start, seconds)


def _filled(address: str, size: int) -> RemoteReplayBuffer:
    buffer = RemoteReplayBuffer(address, table=f"rows-{size}", buffer_size=size, transport="grpc")
    for first in range(0, size, FILLED_AT_ONCE):
        number = torch.arange(first, min(first + FILLED_AT_ONCE, size))
        buffer.add_batch(TensorDict({"number": number}, batch_size=[len(number)]))
    return buffer


def _start(buffer: RemoteReplayBuffer, size: int) -> None:
    """The first batch of an epoch: rows that are there, none of them twice."""
    numbers = next(iter(buffer.epochs(BATCH, shuffle=True)))["number"]
    if len(numbers.unique()) != BATCH or int(numbers.min()) < 0 or int(numbers.max()) >= size:
        raise WrongRowsError(f"the first batch of an epoch has rows twice, or such as are not there: {numbers[:5]} ...")


if __name__ == "__main__":
    main(Task.from_command_line())
