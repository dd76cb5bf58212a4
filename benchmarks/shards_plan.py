"""How much one shard carries, and what a batch over many shards costs. ``make bench-scale``.

Measured: what one server carries, how long its single batches take, and single batches over 2 and 4 shards. Worked out of that: single batches
over up to 1,000 shards (`fan_out`), compared with what was measured where it was. The latencies that go into it are those of one shard; what a call
costs the client's and the server's cores is taken from batches over 2 shards. All share the machine's cores: the ratios and the seconds of cores
say more than the rates. A 99th percentile over many shards needs the rarest calls of one shard. Those that are rarer than one in so many calls as
were measured are unknown, so there the prediction is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.fan_out import FanOut, Latencies, asked_shards, predicted, quantiles
from benchmarks.machine import machine
from benchmarks.one_shard import CAPACITY, LEARNER_BATCHES, PHASES, Carried, Turns, carried, check, cores, served, took_turns
from benchmarks.work import BATCH, Work
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer

SIZES = (1, 4, 16, 64, 128, 256)
SIMULATED = (1, 2, 4, 10, 100, 1000)
MEASURED = (2, 4)
BATCHES = 2000
ONE = "one server"


def one_shard(seconds: float) -> list[Carried]:
    """What one shard carries, kind by kind."""
    found = []
    for name in CAPACITY:
        work = Work(name)
        with served(work) as server:
            found += [carried(server, phase, work, seconds) for phase in PHASES if phase.work == name]
    return found


def shown_shard(found: Sequence[Carried]) -> Table:
    """The first table."""
    table = Table(
        "one client of a shard", "rows", "rows/s", "MB/s", "server, us a row", "rows/s a core", "clients a core", title="What one shard carries"
    )
    for one in found:
        rate, core = f"{one.rows:,.0f}", f"{one.core_rows:,.0f}"
        table.add_row(
            one.phase.what, one.phase.work, rate, f"{one.rows * one.row_bytes / 1e6:,.0f}", f"{1e6 * one.server:.2f}", core, f"{one.clients:,.0f}"
        )
    return table


def turns_of_shards(turns: int) -> Turns:
    """Single batches of one shard, of all sizes, and of buffers over several shards, in turn."""
    work = Work("small")
    rows = CAPACITY["small"] // max(MEASURED)
    with ExitStack() as stack:
        servers = [stack.enter_context(served(work, number * rows, rows)) for number in range(max(MEASURED))]
        one = stack.enter_context(RemoteReplayBuffer(servers[0].address, transport="grpc"))
        several = {
            count: stack.enter_context(ShardedReplayBuffer([server.address for server in servers[:count]], transport="grpc")) for count in MEASURED
        }
        for count, buffer in several.items():
            check(work, buffer.sample_batch(BATCH), rows * count)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        calls: dict[str, Callable[[], object]] = {name_of(size): partial(_in_a_thread, pool, one, size) for size in SIZES}
        calls |= {f"{count} shards": partial(buffer.sample_batch, BATCH) for count, buffer in several.items()}
        return took_turns({ONE: partial(one.sample_batch, BATCH), **calls}, servers, turns)


def _in_a_thread(pool: ThreadPoolExecutor, buffer: RemoteReplayBuffer, rows: int) -> None:
    """A single batch as a batch over several shards asks for it: in another thread, and with a call of its own, which those with a seed are."""
    pool.submit(buffer.sample_batch, rows, seed=rows).result()


def name_of(rows: int) -> str:
    """Of the calls to one shard for so many rows."""
    return f"one shard, {rows} rows"


def shown_batches(found: Turns) -> Table:
    """The second table."""
    latencies = Latencies({size: found.seconds[name_of(size)] for size in SIZES})
    two = f"{MEASURED[0]} shards"  # What threads and joining cost the client is in their cores' time, and in no call to one shard.
    client = found.client[two] / MEASURED[0]
    call = client + found.server[two] / MEASURED[0]
    apart = FanOut(BATCH, client_seconds=client)
    together = FanOut(BATCH, client_seconds=client, call_seconds=call, cores=cores())
    columns = ("shards", "asked", "own cores: p50, p99 ms", "to one", "these cores: p50, p99 ms", "measured: p50, p99 ms", "measured/predicted")
    work = f"the client's own work for a call {1e3 * client:.2f} ms, the server's {1e3 * (call - client):.2f} ms"
    table = Table(*columns, title=f"Single batches of {BATCH} small rows: {work}")
    once = quantiles(found.seconds[name_of(BATCH)])
    for shards in SIMULATED:
        own, here = (quantiles(predicted(latencies, shards, plan, BATCHES, np.random.default_rng(shards))) for plan in (apart, together))
        told = found.seconds.get(name_of(BATCH) if shards == 1 else f"{shards} shards")
        real = quantiles(told) if told else None
        table.add_row(
            f"{shards:,}",
            f"{asked_shards(BATCH, shards):.0f}",
            _pair(own, 1e3),
            f"{own[0] / once[0]:.1f}, {own[1] / once[1]:.1f}",
            _pair(here, 1e3),
            _pair(real, 1e3) if real else "",
            f"{real[0] / here[0]:.2f}, {real[1] / here[1]:.2f}" if real else "",
        )
    return table


def _pair(values: tuple[float, float], factor: float) -> str:
    return f"{factor * values[0]:.1f}, {factor * values[1]:.1f}"


def main(
    seconds: Annotated[float, typer.Option(help="How long each kind of work goes on.")] = 2.0,
    turns: Annotated[int, typer.Option(help="Turns of 20 calls of each kind of single batches.")] = 50,
) -> None:
    """Measures one shard, and says what to expect of many."""
    console = Console(width=160)
    console.print(machine())
    console.print(shown_shard(one_shard(seconds)))
    console.print(f"An actor has 100 rows a second, a learner {LEARNER_BATCHES} batches of {BATCH}.")
    console.print(shown_batches(turns_of_shards(turns)))


if __name__ == "__main__":
    typer.run(main)
