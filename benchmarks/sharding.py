"""What a stream over several shards gives, against that of one server. ``make bench-sharding``.

All streams of a row of the table take turns, a fraction of a second each, so that what else the machine does hits all of them. All servers share the
machine's cores: no core is added with a shard. So the ratios say what a buffer over shards costs, and the servers' own time a batch, summed over all
of them, says what each shard would have to do where it has cores of its own: its share of that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.participants.service_reads import PREFETCH
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ServerConfig, spawn_server
from tdreplay_server.spawn import ServerProcess

BATCH = 256
ROWS = {"small": 20_000, "image": 1_200}
"""Rows of a table, over all of its shards."""
SHARDS = (1, 2, 4)
TURN_SECONDS = 0.4
WARM_UP = 5
TARGETS = {"small": {4: 0.7}, "image": {1: 0.9, 2: 0.9, 4: 0.9}}
Transport = Literal["shared_memory", "grpc"]


def rows(kind: str, count: int) -> dict[str, torch.Tensor]:
    """So many rows of 165 bytes each, or of 56 kB."""
    rest = {"action": torch.zeros(count, dtype=torch.uint8), "reward": torch.zeros(count)}
    if kind == "small":
        return {"obs": torch.zeros(count, 40), **rest}
    frames = torch.zeros((count, 4, 84, 84), dtype=torch.uint8)
    return {"obs": frames, "next_obs": frames, **rest}


@dataclass
class Contender:
    """A stream, and what it took.

    Attributes:
        shards: How many it is over; 0: it is that of one server alone, with which the others are compared.
        step: Takes a batch.
        servers: The processes of its servers.
        seconds: A batch took, of each turn.
        waits: Each batch took.
        server_seconds: The servers' processors worked, over all turns.
        client_seconds: This process' own; the same.
    """

    shards: int
    step: Callable[[], Any]
    servers: Sequence[psutil.Process]
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    server_seconds: float = 0.0
    client_seconds: float = 0.0

    def turn(self) -> None:
        """Takes batches for a turn."""
        for _ in range(WARM_UP):
            self.step()
        servers, client = _worked(self.servers), _worked([psutil.Process()])
        began = now = time.perf_counter()
        taken = 0
        while now - began < TURN_SECONDS:
            self.step()
            before, now = now, time.perf_counter()
            self.waits.append(now - before)
            taken += 1
        self.seconds.append((now - began) / taken)
        self.server_seconds += _worked(self.servers) - servers
        self.client_seconds += _worked([psutil.Process()]) - client

    def wait(self, part: float) -> float:
        """The wait that this part of the batches did not exceed."""
        return sorted(self.waits)[int(part * (len(self.waits) - 1))]


def _worked(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def contenders(stack: ExitStack, servers: Sequence[ServerProcess], kind: str, transport: Transport) -> list[Contender]:
    """The stream of one server, and those over shards, each with a table of its own that is full."""
    processes = [psutil.Process(server.pid) for server in servers]
    count, name, prefetch = ROWS[kind], f"{kind}-{transport}", PREFETCH[kind]
    one = stack.enter_context(RemoteReplayBuffer(servers[0].address, table=name, buffer_size=count, transport=transport))
    one.add_batch(rows(kind, count))
    alone: Iterator[Any] = stack.enter_context(one.stream(BATCH, prefetch=prefetch))
    found = [Contender(0, partial(next, alone), processes[:1])]
    for shards in SHARDS:
        addresses = [server.address for server in servers[:shards]]
        buffer = stack.enter_context(ShardedReplayBuffer(addresses, table=f"{name}-{shards}", buffer_size=count, transport=transport))
        for address in addresses:
            with RemoteReplayBuffer(address, table=f"{name}-{shards}", transport=transport) as shard:
                shard.add_batch(rows(kind, count // shards))
        batches: Iterator[Any] = stack.enter_context(buffer.stream(BATCH, prefetch=prefetch))
        found.append(Contender(shards, partial(next, batches), processes[:shards]))
    return found


def ratio(one: Contender, other: Contender) -> float:
    """How many batches a second the other stream gave for each of the one: the median over the turns."""
    return statistics.median(alone / over for alone, over in zip(one.seconds, other.seconds, strict=True))


def add_rows(table: Table, kind: str, transport: Transport, turns: int, servers: Sequence[ServerProcess]) -> None:
    """Measures one kind of rows over one transport."""
    with ExitStack() as stack:
        found = contenders(stack, servers, kind, transport)
        for turn in range(turns):
            for contender in found if turn % 2 else reversed(found):
                contender.turn()
    for contender in found:
        batches, parts, target = len(contender.waits), ratio(found[0], contender), TARGETS[kind].get(contender.shards)
        times = (
            statistics.median(contender.seconds),
            contender.wait(0.5),
            contender.wait(0.99),
            contender.server_seconds / batches,
            contender.client_seconds / batches,
        )
        said = "" if target is None else f"{target} {'met' if parts >= target else 'missed'}"
        name = f"{contender.shards} shards" if contender.shards else "one server"
        table.add_row(kind, transport, name, *(f"{seconds * 1e6:,.0f}" for seconds in times), f"{parts:.2f}", said)


def main(
    turns: Annotated[int, typer.Option(help="Turns of each stream.")] = 15,
    kind: Annotated[str, typer.Option(help="small or image: these rows alone.")] = "",
    transport: Annotated[str, typer.Option(help="shared_memory or grpc: this one alone.")] = "",
) -> None:
    """Measures streams over 1, 2 and 4 shards against one server's."""
    table = Table(title=f"batches of {BATCH} rows, us a batch; {turns} turns of {TURN_SECONDS} s each; all servers share this machine's cores")
    for column in ("rows", "transport", "stream", "mean", "p50", "p99", "servers' work", "client's work", "ratio", "target"):
        table.add_column(column)
    transports: tuple[Transport, ...] = ("shared_memory", "grpc")
    with ExitStack() as stack:
        servers = [stack.enter_context(spawn_server(ServerConfig(address="127.0.0.1:0"))) for _ in range(max(SHARDS))]
        for one in (kind,) if kind else tuple(ROWS):
            for way in transports:
                if transport in ("", way):
                    add_rows(table, one, way, turns, servers)
    Console(width=150).print(table)


if __name__ == "__main__":
    typer.run(main)
