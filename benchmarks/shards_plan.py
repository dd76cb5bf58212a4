"""How much one shard carries, and what to expect of many: the tables of docs/scale.md, as they stand there. ``make bench-scale``.

Measured: what one server carries; what a client has for each shard; how long single batches take of one shard, and over 2 and 4. Worked out: single
batches over up to 1,000 shards (`fan_out`), and a plan for 10, 100 and 1,000 (`scale_plan`). What is predicted comes from one shard alone: the
latencies of its calls, and the seconds of cores that client and server spend on one. So what was measured over 2 and 4 shards tests the prediction.

All share the machine's cores. The servers' own seconds of a core and the ratios say more than the rates. A 99th percentile over many shards needs the
rarest calls of one shard. Those that are rarer than one in so many calls as were measured are unknown: there the prediction is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated

import numpy as np
import typer

from benchmarks.fan_out import FanOut, Latencies, asked_shards, predicted, quantiles
from benchmarks.machine import machine
from benchmarks.markdown import rounded, table
from benchmarks.one_shard import CAPACITY, PHASES, Carried, Turns, carried, check, cores, served, took_turns
from benchmarks.scale_plan import Costs, Plan, plan_rows
from benchmarks.shard_clients import Held, held_for_each_shard
from benchmarks.work import BATCH, Work
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_server import ServerProcess

SIZES = (1, 4, 16, 64, 128, 256)
SIMULATED = (1, 2, 4, 10, 100, 1000)
PLANNED = (10, 100, 1000)
MEASURED = (2, 4)
BATCHES = 2000
QUESTION = "a question"


def carried_by_one(seconds: float) -> list[Carried]:
    """What one shard carries, kind by kind."""
    found = []
    for name in CAPACITY:
        work = Work(name)
        with served(work) as server:
            found += [carried(server, phase, work, seconds) for phase in PHASES if phase.work == name]
    return found


def shown_carried(found: Sequence[Carried]) -> str:
    """The table of what one shard carries."""
    columns = ("one client", "rows", "rows/s", "MB/s", "server, us a row", "rows/s a core of the server", "clients a core")
    return table(columns, map(_carried_row, found))


def _carried_row(one: Carried) -> tuple[str, ...]:
    rates = (rounded(one.rows), rounded(one.rows * one.row_bytes / 1e6), rounded(1e6 * one.server), rounded(one.core_rows))
    return (one.phase.what, one.phase.work, *rates, f"{rounded(one.clients)} {one.phase.clients}" if one.phase.clients else "")


def turns_of_shards(servers: Sequence[ServerProcess], rows: int, turns: int) -> Turns:
    """Single batches of one shard, of all sizes, and of buffers over several shards, and questions to one shard, in turn.

    Args:
        servers: each with so many rows.
        rows: of each server.
        turns: of each kind of call.
    """
    work = Work("small")
    with ExitStack() as stack:
        addresses = [server.address for server in servers]
        buffers = {count: stack.enter_context(ShardedReplayBuffer(addresses[:count], transport="grpc")) for count in (1, *MEASURED)}
        asked = stack.enter_context(RemoteReplayBuffer(servers[0].address))
        for count, buffer in buffers.items():
            check(work, buffer.sample_batch(BATCH), rows * count)
        calls: dict[str, Callable[[], object]] = {name_of(1, size): partial(buffers[1].sample_batch, size) for size in SIZES}
        calls |= {name_of(count): partial(buffers[count].sample_batch, BATCH) for count in MEASURED}
        return took_turns({**calls, QUESTION: asked.describe}, list(servers), turns)


def name_of(shards: int, rows: int = BATCH) -> str:
    """Of the calls for so many rows of so many shards."""
    return f"{shards} shards, {rows} rows"


def single_batches(found: Turns) -> tuple[str, dict[int, float]]:
    """The table of single batches; and how many times as long the median takes over so many shards as over one, where each has its own cores."""
    latencies = Latencies({size: found.seconds[name_of(1, size)] for size in SIZES})
    one = name_of(1)
    apart = FanOut(BATCH, client_seconds=found.client[one])
    together = FanOut(BATCH, client_seconds=found.client[one], call_seconds=found.client[one] + found.server[one], cores=cores())
    columns = ("shards", "asked", "cores of their own, ms: p50, p99", "to one shard", "these cores, ms", "measured, ms", "measured / predicted")
    rows, times, once = [], dict[int, float](), quantiles(found.seconds[one])
    for shards in SIMULATED:
        own, here = (quantiles(predicted(latencies, shards, plan, BATCHES, np.random.default_rng(shards))) for plan in (apart, together))
        times[shards] = own[0] / once[0]
        ratio = (times[shards], own[1] / once[1])
        tested = _tested(here, quantiles(found.seconds[name_of(shards)])) if name_of(shards) in found.seconds else ("", "", "")
        rows.append((f"{shards:,}", f"{asked_shards(BATCH, shards):.0f}", _pair(own, 1e3), _pair(ratio), *tested))
    return table(columns, rows), times


def _tested(predicted: tuple[float, float], measured: tuple[float, float]) -> tuple[str, str, str]:
    return _pair(predicted, 1e3), _pair(measured, 1e3), _pair((measured[0] / predicted[0], measured[1] / predicted[1]))


def _pair(values: tuple[float, float], factor: float = 1.0) -> str:
    return ", ".join(rounded(factor * value) for value in values)


def shown_held(held: Sequence[Held]) -> str:
    """The table of what a client has for each shard."""
    columns = ("a client", "connections", "threads of its own", "open calls, with a thread of the server each")
    return table(columns, [(one.what, f"{one.connections:g}", f"{one.threads:g}", f"{one.calls:g}") for one in held])


def costs_of(found: Sequence[Carried], turns: Turns, held: Held) -> Costs:
    """What the plan needs to know."""
    server = {(one.phase.what, one.phase.work): one.server for one in found}
    inserts, draws = ({work: server[what, work] for work in CAPACITY} for what in ("append, blocks of 10", "stream, batches of 256"))
    draws["small"] = server["stream, batches of 64", "small"]
    sizes = {work: Work(work).row_bytes for work in CAPACITY}
    return Costs(inserts, draws, sizes, turns.client[QUESTION], turns.server[QUESTION], held.connections, held.threads)


def main(
    seconds: Annotated[float, typer.Option(help="How long each kind of work goes on.")] = 2.0,
    turns: Annotated[int, typer.Option(help="Turns of 20 calls of each kind of single batches.")] = 50,
) -> None:
    """Measures one shard, and says what to expect of many."""
    work, rows = Work("small"), CAPACITY["small"] // max(MEASURED)
    print(machine())
    found = carried_by_one(seconds)
    _print("What one shard carries", shown_carried(found))
    with ExitStack() as stack:
        servers = [stack.enter_context(served(work, number * rows, rows)) for number in range(max(MEASURED))]
        held = held_for_each_shard(servers)
        took = turns_of_shards(servers, rows, turns)
    _print("What a client has for each shard", shown_held(held))
    batches, times = single_batches(took)
    one = name_of(1)
    print(f"\nOne call: {1e3 * took.client[one]:.2f} ms of the client's cores, {1e3 * took.server[one]:.2f} ms of the server's.")
    print(f"A question: {1e3 * took.client[QUESTION]:.2f} ms of the client's cores, {1e3 * took.server[QUESTION]:.2f} ms of the server's.")
    _print(f"Single batches of {BATCH} small rows", batches)
    columns = ("", *(f"{shards:,} shards" for shards in PLANNED))
    single = {shards: times[shards] for shards in PLANNED}
    _print("The plan", table(columns, plan_rows(Plan(), costs_of(found, took, held[-1]), single)))


def _print(title: str, text: str) -> None:
    print(f"\n## {title}\n\n{text}", flush=True)


if __name__ == "__main__":
    typer.run(main)
