"""The kinds of buffers and servers that the suite runs over: one entry for each.

Of tdreplay's packages, the module imports only what it opens: the suite also runs where no server is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from tdreplay.api import BaseReplayBuffer
from tdreplay.shard_ids import sharded_row_ids

ADDRESS = os.environ.get("TDREPLAY_COMPLIANCE_ADDRESS")


class MakeBuffer(Protocol):
    """Makes empty buffers of one kind."""

    def __call__(self, buffer_size: Any, **options: Any) -> BaseReplayBuffer:
        """The options are those that every buffer has: device, storing_device, cast, seed."""


@dataclass(frozen=True, kw_only=True)
class BufferKind:
    """How to open a buffer, and what it can do.

    Attributes:
        open: makes an empty buffer of the table `table` on the server at `address`; a buffer in process needs neither.
        server: the entry of `SERVERS` that the buffer speaks to. None: it needs no server.
        ways_in: the methods that take rows, of the buffer or of its writer.
        streams: whether it has `stream`.
        shards: how many servers of that kind it goes over. Above 0, `open` takes their addresses.
        differs: the rules that are others over shards: the name of a test -> what is true instead.
        files: the files of tests that run over it; None: all of them.
    """

    open: Callable[..., BaseReplayBuffer]
    server: str | None
    ways_in: tuple[str, ...] = ("add", "add_batch")
    streams: bool = False
    shards: int = 0
    differs: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] | None = None

    def row_ids(self, numbers: Iterable[int]) -> list[int]:
        """The ids of the rows that were inserted as number 0, 1, ..., in large blocks or one at a time: shards get them in turn."""
        shards = max(1, self.shards)
        return [sharded_row_ids(number // shards, number % shards) for number in numbers]


def open_in_process(address: str | None, table: str, buffer_size: Any, *, device: Any = "cpu", storing_device: Any = "cpu", **options: Any) -> Any:
    """A buffer in this process, in memory."""
    from tdreplay_server import ReplayBuffer

    return ReplayBuffer(device, storing_device, buffer_size, **options)


def open_remote(transport: str) -> Callable[..., BaseReplayBuffer]:
    """What opens remote buffers whose rows travel so."""

    def open_table(address: str, table: str, buffer_size: Any, **options: Any) -> BaseReplayBuffer:
        from tdreplay_client import RemoteReplayBuffer

        return RemoteReplayBuffer(address, table=table, buffer_size=buffer_size, transport=transport, **options)

    return open_table


def open_sharded(addresses: list[str], table: str, buffer_size: Any, **options: Any) -> BaseReplayBuffer:
    """A buffer over several servers."""
    from tdreplay_client import ShardedReplayBuffer

    return ShardedReplayBuffer(addresses, table=table, buffer_size=buffer_size, **options)


@contextmanager
def serve(directory: Path, **settings: Any) -> Iterator[str]:
    """The address of a server in this process, which listens on TCP where no address is given."""
    from tdreplay_server import ReplayServer, ServerConfig

    with ReplayServer(ServerConfig(**({"address": "127.0.0.1:0", "max_tables": 100_000} | settings))) as server:
        yield server.address


Serve = Callable[[Path], Any]

# Each serves for as long as a `with` lasts, and may use the empty directory that it is given.
SERVERS: Mapping[str, Serve] = {
    "memory": serve,
    "socket": lambda directory: serve(directory, address=f"unix:{directory / 'server.sock'}"),
    "directory": lambda directory: serve(directory, data_dir=directory),
}
# The servers under the tests of the wire. The socket carries the same bytes as TCP; the buffers have it.
ON_THE_WIRE = ("memory", "directory")

REMOTE_WAYS_IN = ("add", "add_batch", "append", "extend")
REMOTE = {
    "grpc": BufferKind(open=open_remote("grpc"), server="memory", ways_in=REMOTE_WAYS_IN, streams=True),
    "shared-memory": BufferKind(open=open_remote("shared_memory"), server="socket", ways_in=REMOTE_WAYS_IN, streams=True),
}
METADATA = "the file has the metadata of each shard, and a load names the shard that cannot go back"
SEEDS = "a seed gives the draws of each shard a seed of its own; the batches of one seed and as many shards are the same"
OVER_SHARDS = {
    "test_save_writes_metadata_and_load_goes_back_to_it": METADATA,
    "test_load_says_which_rows_are_missing_from_a_new_buffer": METADATA,
    "test_load_says_which_rows_were_overwritten_since": METADATA,
    "test_load_of_another_capacity_is_refused_while_there_are_rows": METADATA,
    "test_a_capacity_that_memory_cannot_hold_is_an_error_that_says_so": "a shard refuses its part of the capacity",
    "test_a_seed_gives_the_same_rows_as_in_process": SEEDS,
    "test_the_draws_depend_on_the_order_of_rows_and_not_on_their_ids": SEEDS,
    "test_a_reset_makes_the_row_ids_jump_and_not_the_count": "the ids of each shard jump, so that their sum is another one",
    "test_the_orders_are_those_of_the_buffer_in_process": "a shuffled order numbers the rows shard by shard",
}


def sharded(shards: int) -> BufferKind:
    """Buffers over so many servers."""
    return BufferKind(open=open_sharded, server="memory", streams=True, shards=shards, differs=OVER_SHARDS)


SHARDED = {f"sharded-{shards}": sharded(shards) for shards in map(int, os.environ.get("TDREPLAY_COMPLIANCE_SHARDS", "2").split())}
IN_PROCESS = {"in-process": BufferKind(open=open_in_process, server=None)}
BUFFERS: Mapping[str, BufferKind] = REMOTE if ADDRESS else {**IN_PROCESS, **REMOTE, **SHARDED}

# A checkpoint stays on the disk of the server: a server that is not the suite's own makes none.
leaves_a_checkpoint = pytest.mark.skipif(ADDRESS is not None, reason="it would leave checkpoints on the disk of the server")
