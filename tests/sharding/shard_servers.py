"""Shards for tests: servers, and rows that lie on them unevenly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_server import ReplayServer, ServerConfig

SIZES = (10, 100, 1000)
"""The rows of uneven shards."""


@contextmanager
def shard_servers(count: int) -> Iterator[list[str]]:
    """The addresses of so many servers in this process."""
    with ExitStack() as running:
        yield [running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0", max_tables=100_000))).address for _ in range(count)]


def numbered(start: int, count: int) -> TensorDict:
    """Rows whose number is in them."""
    return TensorDict({"number": torch.arange(start, start + count)}, [count])


def fill_unevenly(addresses: Sequence[str], table: str, sizes: Sequence[int] = SIZES, priorities: Any = None, **settings: Any) -> None:
    """Puts so many rows on each shard, whose numbers go on from shard to shard. The tables are made, with so many rows in each shard's part."""
    first = 0
    for address, size in zip(addresses, sizes, strict=True):
        with RemoteReplayBuffer(address, table=table, buffer_size=max(sizes), **settings) as shard:
            if size:
                shard.add_batch(numbered(first, size), priorities=None if priorities is None else priorities[first : first + size])
        first += size


class Listed:
    """A directory whose shards the test changes."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.listed = [ShardPlace(number, address) for number, address in enumerate(addresses)]

    def places(self) -> list[ShardPlace]:
        """Those of the test."""
        return self.listed
