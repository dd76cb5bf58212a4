"""What learners and writers get while they share one server: batches and rows a second, and how long single calls take. ``make bench-contention``.

8 learners stream batches of 256 rows, beside a growing number of writers that insert blocks of 64 rows as fast as they are acknowledged, and one
client that makes single calls. All share the machine's cores with the server, so the ratios to the first line say more than the figures.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.load import Load, block, count_batches, count_rows, stub_of, time_calls
from tdreplay.v1 import replay_buffer_pb2 as pb

LEARNERS, BATCH, ROWS, CAPACITY = 8, 256, 64, 100_000
WRITERS_PER_PROCESS = 64
START_SECONDS = 8.0
CONTEXT = multiprocessing.get_context("spawn")

Work = Callable[[Load, Any], None]


@contextmanager
def filled_server(directory: Path | None) -> Iterator[str]:
    """The address of a server whose table is full."""
    from tdreplay_server import ServerConfig, spawn_server  # Here: the processes that make the load import this module too, and need no torch.

    with spawn_server(ServerConfig(address="127.0.0.1:0", buffer_size=CAPACITY, data_dir=directory)) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = stub_of(channel)
            for _ in range(-(-CAPACITY // 10_000)):
                stub.Add(pb.AddRequest(table="default", block=block(10_000)), timeout=60)
        yield server.address


def measured(address: str, writers: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """What every kind of client got, while all of them ran."""
    begin = time.monotonic() + START_SECONDS

    def load(clients: int, rows: int, flight: int) -> Load:
        return Load(address, clients, rows, flight, begin, seconds)

    works: list[tuple[str, Work, Load]] = [("batches", count_batches, load(LEARNERS // 2, BATCH, 4)) for _ in range(2)]
    works += [("calls", time_calls, load(1, BATCH, 1))]
    for first in range(0, writers, WRITERS_PER_PROCESS):
        works.append(("rows", count_rows, load(min(WRITERS_PER_PROCESS, writers - first), ROWS, in_flight)))
    return _gathered(works, begin + seconds)


def _gathered(works: list[tuple[str, Work, Load]], end: float) -> dict[str, Any]:
    found: dict[str, Any] = {"batches": [], "rows": [], "calls": {}}
    running = []
    for kind, work, load in works:
        out = CONTEXT.Queue()
        process = CONTEXT.Process(target=work, args=(load, out), daemon=True)
        process.start()
        running.append((kind, process, out))
    for kind, process, out in running:
        got = out.get(timeout=max(1.0, end - time.monotonic()) + 60)
        process.join(10)
        if kind == "calls":
            found["calls"] = got
        else:
            found[kind] += got
    return found


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main(
    writers: Annotated[str, typer.Option(help="Numbers of writers, joined by commas.")] = "0,8,16,40,64,256",
    in_flight: Annotated[int, typer.Option(min=1, help="Blocks that a writer sends ahead of their acknowledgements.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.5, help="That each line is measured for.")] = 4.0,
    data_dir: Annotated[Path | None, typer.Option(help="Where the rows lie. Unset: in no directory.")] = None,
) -> None:
    """Measure learners and writers that share a server."""
    shown = Table("writers", "batches/s", "of alone", "slowest learner/s", "rows/s", "SampleBatch p50, p99 ms", "Describe p50, p99 ms")
    alone = 0.0
    with filled_server(data_dir) as address:
        for count in map(int, writers.split(",")):
            found = measured(address, count, in_flight, seconds)
            batches = sum(found["batches"]) / seconds
            alone = alone or batches
            calls = [f"{1e3 * statistics.median(times):.1f}, {1e3 * _quantile(times, 0.99):.1f}" for times in found["calls"].values()]
            slowest = min(found["batches"]) / seconds
            shown.add_row(str(count), f"{batches:,.0f}", f"{batches / alone:.2f}", f"{slowest:,.0f}", f"{sum(found['rows']) / seconds:,.0f}", *calls)
    Console(width=140).print(shown)


if __name__ == "__main__":
    typer.run(main)
