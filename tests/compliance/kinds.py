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

    def place_of(self, buffer: Any) -> Any:
        """Where to open the buffer again: the first argument of its class, which is that of a remote kind."""
        return buffer.addresses if self.shards else buffer.address

    def row_ids(self, numbers: Iterable[int], buffer_size: int = 1 << 40) -> list[int]:
        """The ids of the rows that were inserted as number 0, 1, ..., in large blocks or one at a time: shards get them in turn, lap by lap."""
        shards = min(max(1, self.shards), buffer_size)
        places = [(lap, slot // shards, slot % shards) for lap, slot in (divmod(number, buffer_size) for number in numbers)]
        return [sharded_row_ids(lap * len(range(place, buffer_size, shards)) + slot, place) for lap, slot, place in places]


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
ORDERED = "each shard keeps the order of its own rows; over shards rows come in proportion to the rows there"
ONE_SHARD = "an episode is on one shard, so a window has at most as many steps as the rows of one"
AHEAD = "small batches are read further ahead than those of one table, so rows that are overwritten later come all the same"
BY_SHARD = "episodes are listed by their first row ids, so shard by shard"
OVER_ANY = {
    "test_save_writes_metadata_and_load_goes_back_to_it": METADATA,
    "test_load_says_which_rows_are_missing_from_a_new_buffer": METADATA,
    "test_load_says_which_rows_were_overwritten_since": METADATA,
    "test_anchors_that_were_overwritten_are_left_out_and_counted": AHEAD,
    "test_overwritten_anchors_are_an_error_where_that_is_wanted": AHEAD,
}
"""Rules that are others over one shard, too."""
OVER_SEVERAL = {
    "test_a_capacity_that_memory_cannot_hold_is_an_error_that_says_so": "a shard refuses its part of the capacity",
    "test_a_seed_gives_the_same_rows_as_in_process": SEEDS,
    "test_the_draws_depend_on_the_order_of_rows_and_not_on_their_ids": SEEDS,
    "test_a_seed_brings_the_same_batch_in_process_and_over_the_wire": SEEDS,
    "test_a_reset_makes_the_row_ids_jump_and_not_the_count": "the ids of each shard jump, so that their sum is another one",
    "test_the_orders_are_those_of_the_buffer_in_process": "a shuffled order numbers the rows shard by shard",
    "test_samplers_with_an_order_bring_each_anchor_once_in_that_order": ORDERED,
    "test_a_window_as_long_as_the_table_is_taken": ONE_SHARD,
    "test_a_long_episode_comes_whole_in_order": "an episode is on one shard, which has room for a part of the buffer's rows",
    "test_an_episode_whose_steps_lie_far_apart_comes_whole": "the ids of an episode's rows are those of its shard, which has fewer rows between them",
    "test_an_episode_is_abandoned_when_its_writer_is_not_connected_any_more": BY_SHARD,
    "test_a_reset_forgets_episodes_and_keeps_what_is_known_of_those_that_ended": "80 rows at once are more than a shard of 50 takes in",
    "test_a_buffer_does_what_the_oracle_does": "writers choose their shards by chance, so that no two runs of the machine are the same",
}


def sharded(shards: int, files: frozenset[str] | None = None) -> BufferKind:
    """Buffers over so many servers. One alone is what every server is."""
    differs = OVER_ANY | OVER_SEVERAL if shards > 1 else OVER_ANY
    return BufferKind(open=open_sharded, server="memory", streams=True, shards=shards, differs=differs, files=files)


FEW_FILES = frozenset({"test_behaviour", "test_insert_count"})
SHARDS = os.environ.get("TDREPLAY_COMPLIANCE_SHARDS", "")
"""The numbers of shards over which all files run: `make compliance-shards` gives them."""
SHARDED = {f"sharded-{shards}": sharded(int(shards)) for shards in SHARDS.split()} or {
    "sharded-2": sharded(2),
    "sharded-1": sharded(1, FEW_FILES),
    "sharded-5": sharded(5, FEW_FILES),
}
IN_PROCESS = {"in-process": BufferKind(open=open_in_process, server=None)}
BUFFERS: Mapping[str, BufferKind] = REMOTE if ADDRESS else {**IN_PROCESS, **REMOTE, **SHARDED}

# A checkpoint stays on the disk of the server: a server that is not the suite's own makes none.
leaves_a_checkpoint = pytest.mark.skipif(ADDRESS is not None, reason="it would leave checkpoints on the disk of the server")
