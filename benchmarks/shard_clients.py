"""What a client has for each shard of its buffer: connections, threads, and open calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil

from benchmarks.work import BATCH
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_server import ServerProcess

__all__ = ["Held", "held_for_each_shard"]


@dataclass(frozen=True)
class Held:
    """What was counted, for each shard.

    Attributes:
        what: the client does.
        connections: of the client.
        threads: of the client, those of Python.
        calls: that the client has open at a server, which has a thread for each.
    """

    what: str
    connections: float
    threads: float
    calls: float


def held_for_each_shard(servers: Sequence[ServerProcess]) -> list[Held]:
    """What clients of these shards have, the more the later: a buffer, one that goes on without lost shards, and that with a stream."""
    kinds: tuple[tuple[str, Callable[[list[str]], AbstractContextManager[object]]], ...] = (
        ("single batches", lambda addresses: _with_batches(addresses, "raise")),
        ('single batches, `on_loss="degrade"`', lambda addresses: _with_batches(addresses, "degrade")),
        ("that, and an open stream", _with_stream),
    )
    return [_held(what, servers, opened) for what, opened in kinds]


def _held(what: str, servers: Sequence[ServerProcess], opened: Callable[[list[str]], AbstractContextManager[object]]) -> Held:
    """The difference between all of the shards and half of them is what the other half takes: what a client has once is not in it."""
    addresses, half = [server.address for server in servers], len(servers) // 2
    counts = []
    for some in (addresses[:half], addresses):
        with opened(some):
            counts.append((_connections(addresses), threading.active_count(), sum(map(_open_calls, some))))
    few, many = counts
    return Held(what, *((more - less) / half for more, less in zip(many, few, strict=True)))


def _open_calls(address: str) -> int:
    """Those of this process: nobody else has any. The call that asks is left out."""
    return sum(sum(client.open_calls.values()) for client in RemoteReplayBuffer.server_status(address).clients) - 1


def _connections(addresses: Sequence[str]) -> int:
    ports = {int(address.rpartition(":")[2]) for address in addresses}
    found = psutil.Process().net_connections("tcp")
    return sum(bool(one.raddr) and one.raddr.port in ports and one.status == psutil.CONN_ESTABLISHED for one in found)


@contextmanager
def _with_batches(addresses: list[str], on_loss: Literal["raise", "degrade"]) -> Iterator[ShardedReplayBuffer]:
    with ShardedReplayBuffer(addresses, transport="grpc", on_loss=on_loss) as buffer:
        for _ in range(10):
            buffer.sample_batch(BATCH)
        yield buffer


@contextmanager
def _with_stream(addresses: list[str]) -> Iterator[object]:
    with _with_batches(addresses, "degrade") as buffer, buffer.stream(BATCH) as batches:
        for _ in range(10):
            next(batches)
        yield batches
