"""Tables of shards that epochs go over, and what tests of these read of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from conftest import numbers, rows
from tdreplay.epochs import Epochs
from tdreplay_client import RemoteReplayBuffer


def filled(addresses: Sequence[str], table: str, *sizes: int) -> Sequence[str]:
    """Makes a table of each of these sizes, full of rows whose numbers go on from shard to shard, and gives the addresses of those shards."""
    for address, size, start in zip(addresses, sizes, itertools.accumulate(sizes, initial=0), strict=False):
        with RemoteReplayBuffer(address, table=table, buffer_size=size) as shard:
            shard.add_batch(rows(size, start))
    return addresses[: len(sizes)]


def taken(batches: Epochs) -> list[int]:
    """The numbers of the rows that are left."""
    return [number for batch in batches for number in numbers(batch)]


def until(fulfilled: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < deadline
        time.sleep(0.01)
