"""What each level of durability costs: the same inserts, to one server a level, in turn. ``make bench-durability``.

Every figure is the median of the rounds; the ratio to a server without any journal is taken round by round. The rings are full: every insert
overwrites rows, so it writes the journal twice. Limits: one machine, one client, loopback; `power` says as much of
this machine's disk as of tdreplay.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict

from benchmarks.machine import machine, versions
from benchmarks.work import BATCH, Work
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

LEVELS = ("none", "process", "interval:1", "power")
CAPACITY = 4096
Insert = Callable[[RemoteReplayBuffer], object]


def inserts(work: Work) -> dict[str, Insert]:
    """What is measured: a name, and one insert."""
    batch = TensorDict({name: torch.from_numpy(column) for name, column in work.rows(0, BATCH).items()}, [BATCH])
    row = batch[0].clone()
    return {"add": lambda buffer: buffer.add(row), f"add_batch({BATCH})": lambda buffer: buffer.add_batch(batch)}


@contextmanager
def servers(directory: Path) -> Iterator[dict[str, str]]:
    """Level -> address of a server with it."""
    with ExitStack() as stack:
        yield {level: stack.enter_context(spawn_server(_config(level, directory / level.partition(":")[0]))).address for level in LEVELS}


def _config(level: str, directory: Path) -> ServerConfig:
    if level == "none":
        return ServerConfig(address="127.0.0.1:0")
    return ServerConfig(address="127.0.0.1:0", data_dir=directory, durability=level)


def measured(insert: Insert, buffer: RemoteReplayBuffer, seconds: float) -> float:
    """Microseconds an insert takes, over about `seconds`."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        insert(buffer)
        count += 1
    return (time.perf_counter() - start) / count * 1e6


def rounds(address_of: dict[str, str], work: Work, name: str, insert: Insert, fill: Insert, count: int, seconds: float) -> dict[str, list[float]]:
    """Level -> microseconds of each round. The levels take turns, in another order every round."""
    table = f"{work.name}-{name.partition('(')[0]}"
    with ExitStack() as stack:
        buffers = {
            level: stack.enter_context(RemoteReplayBuffer(address, table=table, buffer_size=CAPACITY)) for level, address in address_of.items()
        }
        for buffer in buffers.values():
            for _ in range(CAPACITY // BATCH):
                fill(buffer)
        found: dict[str, list[float]] = {level: [] for level in LEVELS}
        for number in range(count):
            for level in LEVELS[number % len(LEVELS) :] + LEVELS[: number % len(LEVELS)]:
                found[level].append(measured(insert, buffers[level], seconds))
        return found


def main(
    count: Annotated[int, typer.Option("--rounds", min=1, help="How often each level is measured.")] = 9,
    seconds: Annotated[float, typer.Option(min=0.05, help="That each figure of a round may take.")] = 0.5,
) -> None:
    """Measure what each level of durability costs."""
    console = Console()
    console.print(machine() | versions([])["tdreplay"])
    shown = Table("insert", "level", "us, median", "speed against none", "lowest and highest round")
    with tempfile.TemporaryDirectory() as directory, servers(Path(directory)) as address_of:
        for work in map(Work, ("small", "image")):
            kinds = inserts(work)
            for name, insert in kinds.items():
                found = rounds(address_of, work, name, insert, kinds[f"add_batch({BATCH})"], count, seconds)
                for level in LEVELS:
                    ratios = [none / mine for none, mine in zip(found["none"], found[level], strict=True)]
                    figures = f"{statistics.median(found[level]):,.0f}", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"
                    shown.add_row(f"{work.name} {name}", level, *figures)
    console.print(shown)


if __name__ == "__main__":
    typer.run(main)
