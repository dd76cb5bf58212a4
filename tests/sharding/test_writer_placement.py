"""Which shards rows and writers go to: evenly by fill, one for each key, those of this host; and buffers that cannot write."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from shard_processes import Shards
from shard_servers import shard_servers

from children import completed
from conftest import rows
from tdreplay.errors import ClosedError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.sharding.local_shards import is_on_this_host

SHARDS = 5


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(SHARDS) as made:
        yield made


def sizes(buffer: ShardedReplayBuffer) -> list[int]:
    return [shard.description.size if shard.description else 0 for shard in buffer.describe().shards]


# -- by fill --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 4, 5])
def test_many_small_adds_fill_uneven_shards_to_the_same_level(addresses, table, shards):
    for address, size in zip(addresses[:shards], (40, 10, 0, 30, 20), strict=False):
        with RemoteReplayBuffer(address, table=table, buffer_size=200) as shard:
            if size:
                shard.add_batch(rows(size))
    with ShardedReplayBuffer(addresses[:shards], table=table) as buffer:
        for number in range(120):
            buffer.add(rows(1, number)[0])
        assert max(sizes(buffer)) - min(sizes(buffer)) <= 1


@pytest.mark.parametrize("shards", [2, 4, 5])
def test_many_writers_that_come_and_go_fill_shards_evenly(addresses, table, shards):
    with ShardedReplayBuffer(addresses[:shards], table=table, buffer_size=10_000) as buffer:
        for first in range(0, 20 * shards, 4):
            with ExitStack() as running:
                for number in range(first, first + 4):
                    writer = running.enter_context(buffer.writer())
                    writer.extend(rows(25, 25 * number))
        counts = sizes(buffer)
        assert sum(counts) == 500 * shards
        assert max(counts) - min(counts) <= 0.4 * sum(counts) / shards


def test_buffers_of_many_processes_do_not_all_choose_the_same_shard(addresses, table):
    with ExitStack() as running:
        ShardedReplayBuffer(addresses, table=table, buffer_size=1000).close()
        buffers = [running.enter_context(ShardedReplayBuffer(addresses, table=table)) for _ in range(20)]
        opened = Counter(running.enter_context(buffer.writer()).shard for buffer in buffers)
        assert len(opened) >= 3
        assert max(opened.values()) <= 12


# -- by key ---------------------------------------------------------------------------------------------------------------------------------------


def test_writers_of_a_key_go_to_one_shard_whatever_buffer_opens_them(addresses, table):
    with (
        ShardedReplayBuffer(addresses, table=table, buffer_size=1000, placement="hash") as one,
        ShardedReplayBuffer(addresses, table=table) as other,
    ):
        found = {}
        for key in (f"actor-{number}" for number in range(16)):
            with one.writer(key=key) as first, other.writer(key=key) as second:
                assert first.shard == second.shard
                found[key] = first.shard
        assert len(set(found.values())) > 2
        with one.writer(key="actor-3") as again:
            assert again.shard == found["actor-3"]


def test_writers_without_a_key_are_spread_by_hash(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=1000, placement="hash") as buffer, ExitStack() as running:
        assert len({running.enter_context(buffer.writer()).shard for _ in range(30)}) >= 3


# -- on this host ---------------------------------------------------------------------------------------------------------------------------------


def test_addresses_of_this_host_are_known_by_number_and_by_name():
    assert is_on_this_host("127.0.0.1:50051")
    assert is_on_this_host("localhost:50051")
    assert is_on_this_host("unix:/tmp/some.sock")
    assert not is_on_this_host("192.0.2.1:50051")  # For documentation: RFC 5737.
    assert not is_on_this_host("no-such-host.invalid:50051")
    with own_address() as own:
        assert is_on_this_host(f"{own}:50051")


@contextmanager
def own_address() -> Iterator[str]:
    """The address of this host in its network, or loopback where it is in none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            yield probe.getsockname()[0]
        except OSError:
            yield "127.0.0.1"


# -- buffers that cannot write --------------------------------------------------------------------------------------------------------------------


def test_a_buffer_that_is_closed_refuses_rows_at_once(addresses, table):
    buffer = ShardedReplayBuffer(addresses, table=table, buffer_size=1000)
    writer = buffer.writer()
    buffer.add_batch(rows(500))
    buffer.close()
    for given in (rows(1, 500), rows(500, 500)):
        with pytest.raises(ClosedError):
            buffer.add_batch(given)
    with pytest.raises(ClosedError):
        writer.append(rows(1)[0])


def test_a_buffer_that_is_closed_sends_what_its_writers_have(addresses, table):
    buffer = ShardedReplayBuffer(addresses, table=table, buffer_size=1000)
    writer = buffer.writer(flush_seconds=60)
    writer.extend(rows(10))
    for number in range(10, 20):
        writer.append(rows(1, number)[0])
    buffer.close()
    with ShardedReplayBuffer(addresses, table=table) as other:
        assert Counter(other.sample_all()["action"].tolist()) == dict.fromkeys(range(20), 1)


FORK = """
import os, sys
import torch
from tdreplay.errors import ForkedError
from tdreplay_client import ShardedReplayBuffer
buffer = ShardedReplayBuffer(sys.argv[1].split(","), table=sys.argv[2], buffer_size=1000)
writer = buffer.writer()
buffer.add_batch({"x": torch.arange(500)})
pid = os.fork()
if pid == 0:
    refused = 0
    for call in (lambda: buffer.add_batch({"x": torch.arange(500)}), lambda: buffer.add({"x": 1}), lambda: writer.append({"x": 1}), buffer.writer):
        try:
            call()
        except ForkedError:
            refused += 1
    writer.close()
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), buffer.size)
buffer.close()
"""


def test_a_fork_is_refused_and_does_not_wait(addresses, table):
    ended = completed("-c", FORK, ",".join(addresses), table)
    assert ended.stdout.split() == ["4", "500"], ended.stderr


EXIT = """
import os, signal, sys, threading, time
import torch
from tdreplay_client import ShardedReplayBuffer
buffer = ShardedReplayBuffer(sys.argv[1].split(","), buffer_size=1000, timeout=300)
buffer.add_batch({"x": torch.arange(500)})
os.kill(int(sys.argv[2]), signal.SIGSTOP)
threading.Thread(target=buffer.add_batch, args=({"x": torch.arange(500)},), daemon=True).start()
time.sleep(1)
print(time.time())
"""


def test_the_interpreter_ends_while_an_insert_waits_for_a_lost_shard(tmp_path):
    shards = Shards(tmp_path, 2)
    try:
        ended = completed("-c", EXIT, ",".join(shards.addresses), shards.servers[0].pid)
        assert time.time() - float(ended.stdout.split()[-1]) < 30, ended.stderr
    finally:
        shards.kill(0)
        shards.close()


def test_rows_of_a_key_are_on_the_shard_that_the_writer_names(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=1000) as buffer, buffer.writer(key="job-1") as writer:
        writer.append(rows(1)[0])
        writer.flush()
        with RemoteReplayBuffer(addresses[writer.shard], table=table) as direct:
            assert direct.state().size == 1
