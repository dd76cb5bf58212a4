"""A shard that stored rows whose acknowledgement never came, or is lost before it got any: each row is stored once, and nobody waits in vain."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from shard_servers import Listed
from ways import Way, Ways, ways_to_servers

from conftest import rows
from tdreplay.errors import ReplayError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_server import ReplayServer, ServerConfig

SECONDS = 30.0


@pytest.fixture
def shards() -> Iterator[Ways]:
    with ways_to_servers(2) as made:
        yield made


def opened(shards: Ways, table: str, *, timeout: float = 60.0, directory: object = None, **settings: object) -> ShardedReplayBuffer:
    options = {"table": table, "buffer_size": 10_000, "transport": "grpc", "on_loss": "degrade", **settings}
    return ShardedReplayBuffer(directory or shards.addresses, timeout=timeout, **options)


def await_true(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def size(address: str, table: str) -> int:
    with RemoteReplayBuffer(address, table=table) as direct:
        return direct.state().size


# -- writers --------------------------------------------------------------------------------------------------------------------------------------


def test_rows_whose_acknowledgement_was_lost_are_stored_once(shards, table):
    with opened(shards, table) as buffer:
        with buffer.writer(flush_rows=4) as writer:
            for number in range(40):
                writer.append(rows(1, number)[0])
            writer.flush()
            first, deadline = writer.shard, time.monotonic() + SECONDS
            shards.ways[first].is_deaf = True
            for number in range(40, 60):
                writer.append(rows(1, number)[0])
            await_true(lambda: size(shards.servers[first], table) >= 44)  # Stored, and not acknowledged.
            shards.ways[first].cut()
            count = 60
            while writer.shard == first:
                writer.append(rows(1, count)[0])
                count += 1
                time.sleep(0.005)  # It is given up after a second.
                assert time.monotonic() < deadline
            shards.ways[first].mend()
        assert shards.all_stored(table) == dict.fromkeys(range(count), 1)


def test_rows_of_an_idle_writer_move_by_themselves(shards, table):
    with opened(shards, table) as buffer, buffer.writer(flush_seconds=1) as writer:
        writer.extend(rows(10))
        writer.flush()
        first = writer.shard
        for number in range(10, 20):  # They wait for others, and are not sent.
            writer.append(rows(1, number)[0])
        shards.ways[first].cut()
        await_true(lambda: sorted(shards.stored(1 - first, table)) == list(range(10, 20)))  # The writer is not called meanwhile.
        assert writer.shard == 1 - first
        writer.append(rows(1, 20)[0])
        writer.flush()  # Nothing is left on the lost shard.
        shards.ways[first].mend()
        assert shards.all_stored(table) == dict.fromkeys(range(21), 1)


def test_rows_of_several_threads_that_share_a_writer_are_stored_once_when_it_moves(shards, table):
    with opened(shards, table) as buffer:
        with buffer.writer(flush_rows=4, max_in_flight=2) as writer, ThreadPoolExecutor(4) as threads:
            writer.extend(rows(10))
            writer.flush()
            first, stop = writer.shard, threading.Event()

            def write(thread: int) -> int:
                count = 0
                while not stop.is_set():
                    writer.append(rows(1, 1000 * (thread + 1) + count)[0])
                    count += 1
                    if count % 10 == 0:
                        writer.flush()
                return count

            writing = [threads.submit(write, thread) for thread in range(3)]
            shards.ways[first].cut()
            await_true(lambda: writer.shard != first)
            shards.ways[first].mend()
            stop.set()
            counts = [each.result(SECONDS) for each in writing]
        given = [*range(10), *(1000 * (thread + 1) + at for thread, count in enumerate(counts) for at in range(count))]
        assert shards.all_stored(table) == dict.fromkeys(given, 1)


def test_a_first_episode_begins_on_another_shard_where_its_own_is_lost(shards, table):
    with opened(shards, table, trajectories=True, on_loss="raise") as buffer, buffer.trajectory_writer() as writer:
        first = writer._sink._writer.shard  # noqa: SLF001 - the writer of trajectories does not say it.
        shards.ways[first].cut()
        begin = time.monotonic()
        writer.append({"obs": 1.0, "action": 7, "reward": 0.0, "terminated": False, "truncated": False})
        writer.flush()
        assert time.monotonic() - begin < SECONDS
        assert shards.stored(1 - first, table) == [7]


# -- inserts that are waited for ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", ["raise", "degrade"])
def test_rows_go_to_another_shard_where_none_of_them_was_sent(shards, table, on_loss):
    with opened(shards, table, on_loss=on_loss) as buffer:
        shards.ways[0].cut()  # No call for inserts is open: whoever inserts asks before, and finds that the shard is lost.
        begin = time.monotonic()
        for number in range(10):
            buffer.add(rows(1, number)[0])
        buffer.add_batch(rows(2000, 10))
        assert time.monotonic() - begin < SECONDS
        assert sorted(shards.stored(1, table)) == list(range(2010))


def test_an_add_whose_acknowledgement_was_lost_waits_for_its_shard(shards, table):
    with opened(shards, table) as buffer, ThreadPoolExecutor(1) as thread:
        buffer.add(rows(1)[0])
        buffer.add(rows(1, 1)[0])
        shards.ways[0].is_deaf = True
        adding = thread.submit(buffer.add, rows(1, 2)[0])
        await_true(lambda: size(shards.servers[0], table) == 2)
        shards.ways[0].cut()
        time.sleep(1.5)  # Longer than it takes to find a shard lost.
        assert not adding.done()
        shards.ways[0].mend()
        adding.result(SECONDS)
        assert shards.all_stored(table) == {0: 1, 1: 1, 2: 1}


def test_a_batch_that_failed_on_one_shard_is_given_again_and_stored_once(shards, table):
    with opened(shards, table, timeout=2) as buffer:
        buffer.add_batch(rows(2))
        shards.ways[0].is_deaf = True
        with pytest.raises(ReplayError):
            buffer.add_batch(rows(2000, 2))
        shards.ways[0].cut()
        with pytest.raises(ReplayError):
            buffer.add_batch(rows(2000, 2))
        shards.ways[0].mend()
        buffer.add_batch(rows(2000, 2))
        assert shards.all_stored(table) == dict.fromkeys(range(2002), 1)
        buffer.add_batch(rows(2000, 2))  # The same rows once more are new ones.
        assert sum(shards.all_stored(table).values()) == 4002


@pytest.mark.parametrize("answers", [True, False], ids=["it answers still", "it is gone"])
def test_rows_that_may_be_on_a_shard_that_was_removed_are_given_again(shards, table, answers):
    """As long as it answers it says whether it has them. When it is gone, they go to another one."""
    directory = Listed(shards.addresses)
    with opened(shards, table, timeout=2, directory=directory) as buffer:
        buffer.add_batch(rows(2))
        shards.ways[0].is_deaf = True
        with pytest.raises(ReplayError):
            buffer.add_batch(rows(2000, 2))
        shards.ways[0].cut()
        if answers:
            shards.ways[0].mend()
        directory.listed = directory.listed[1:]
        await_true(lambda: len(buffer.addresses) == 1)
        buffer.add_batch(rows(2000, 2))
        if answers:
            assert shards.all_stored(table) == dict.fromkeys(range(2002), 1)
        else:
            assert set(range(2, 2002)) <= set(shards.stored(1, table))


def test_a_shard_that_drains_gets_no_more_rows_and_says_which_it_has(shards, table):
    directory = Listed(shards.addresses)
    with opened(shards, table, timeout=2, directory=directory) as buffer:
        buffer.add_batch(rows(2))
        shards.ways[0].is_deaf = True
        with pytest.raises(ReplayError):
            buffer.add_batch(rows(2000, 2))
        shards.ways[0].cut()
        shards.ways[0].mend()
        directory.listed = [ShardPlace(0, shards.addresses[0], draining=True), directory.listed[1]]
        with buffer.writer() as writer:
            count = 0
            while writer.shard == 0 or not count:
                writer.append(rows(1, 5000 + count)[0])
                count += 1
                time.sleep(0.01)
        buffer.add_batch(rows(2000, 2))
        buffer.add_batch(rows(2000, 10_000))
        assert shards.all_stored(table) == dict.fromkeys([*range(2002), *range(5000, 5000 + count), *range(10_000, 12_000)], 1)
        assert set(range(10_000, 12_000)) <= set(shards.stored(1, table)) | set(range(10_000, 10_002))


# -- a shard that goes on at another address --------------------------------------------------------------------------------------------------------


@contextmanager
def another_way(server: str, *, with_rows: bool, table: str) -> Iterator[tuple[str, str]]:
    """Another way to a server, or to one that is empty, which has the table if it is to take the place of that. Gives it, and the server."""
    with ExitStack() as running:
        if not with_rows:
            server = running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address
            RemoteReplayBuffer(server, table=table, buffer_size=5000).close()
        way = Way(server)
        running.callback(way.close)
        yield way.address, server


@pytest.mark.parametrize("on_loss", ["degrade", "raise"])
@pytest.mark.parametrize("with_rows", [True, False], ids=["with its rows", "without them"])
def test_a_shard_goes_on_at_another_address_with_all_that_was_not_acknowledged(shards, table, on_loss, with_rows):
    """Calls that wait for it end there: they do not wait until their time is up. What it stored, and did not acknowledge, is stored once."""
    directory = Listed(shards.addresses)
    with opened(shards, table, directory=directory, on_loss=on_loss) as buffer, ThreadPoolExecutor(1) as threads:
        buffer.add_batch(rows(2000))  # To both shards, whose calls are open now.
        writer = buffer.writer(flush_rows=4)
        moved = writer.shard
        writer.append(rows(1, 2000)[0])
        writer.flush()
        before = set(shards.stored(moved, table))
        shards.ways[moved].is_deaf = True
        for number in range(2001, 2021):
            writer.append(rows(1, number)[0])
        waiting = threads.submit(buffer.add_batch, rows(2000, 2021))
        await_true(lambda: size(shards.servers[moved], table) >= len(before) + 900)  # Stored, and not acknowledged.
        with another_way(shards.servers[moved], with_rows=with_rows, table=table) as (address, server):
            shards.ways[moved].cut()
            began = time.monotonic()
            directory.listed = [ShardPlace(place.number, address) if place.number == moved else place for place in directory.listed]
            waiting.result(SECONDS)
            writer.close()
            assert time.monotonic() - began < SECONDS
            buffer.add_batch(rows(10, 5000))
            assert buffer.describe().shards[moved].address == address
            with RemoteReplayBuffer(server, table=table) as direct:
                there = Counter([*direct.sample_all()["action"].tolist(), *shards.stored(1 - moved, table)])
        assert there == dict.fromkeys({*range(4021), *range(5000, 5010)} - (set() if with_rows else before), 1)
