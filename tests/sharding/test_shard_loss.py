"""A shard that is killed, or stands still: a buffer goes on without it or waits for it, as it was told, and takes it up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from shard_servers import fill_unevenly, numbered, shard_servers

from children import Server, free_port, server_process
from conftest import freeze, thaw
from tdreplay.errors import InvalidArgumentError, ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay.rows import given_rows
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_server import ServerConfig

PAUSE = 2.0
"""The most seconds for which a learner pauses where a shard is lost. The tests allow some more: other work shares the cores."""
SLACK = 3.0


@contextmanager
def processes(count: int, directory: Path | None = None) -> Iterator[tuple[list[Server], list[ServerConfig]]]:
    """Servers in processes of their own, each with a port that stays its own; with a directory they keep their rows."""
    configs = [
        ServerConfig(address=f"127.0.0.1:{free_port()}", data_dir=None if directory is None else directory / f"shard-{number}")
        for number in range(count)
    ]
    with ExitStack() as running:
        yield [running.enter_context(server_process(config)) for config in configs], configs


def addresses(servers: Sequence[Server]) -> list[str]:
    return [server.address for server in servers]


def drawn_from(buffer, rows: int = 60) -> set[int]:
    """The shards of which a batch has rows."""
    return set(shard_numbers(buffer.sample_batch(rows)["row_id"].numpy()).tolist())


def comes_back(buffer, shards: set[int], seconds: float = 20.0) -> None:
    """Draws until batches come from all of these."""
    until = time.monotonic() + seconds
    while drawn_from(buffer) != shards:
        assert time.monotonic() < until, f"batches do not come from {shards} again"


# -- a buffer that goes on ------------------------------------------------------------------------------------------------------------------------


def test_batches_go_on_without_a_killed_shard_and_with_it_when_it_is_back(tmp_path, table, caplog):
    with processes(3, tmp_path) as (servers, configs), ExitStack() as running:
        fill_unevenly(addresses(servers), table, (50, 50, 50))
        buffer = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade"))
        assert drawn_from(buffer) == {0, 1, 2}
        assert set(buffer.sample_batch(5)["lost_shards"].tolist()) == {0}
        servers[1].child.kill()
        servers[1].child.wait()
        begun = time.monotonic()
        batch = buffer.sample_batch(60)
        assert time.monotonic() - begun < PAUSE + SLACK
        assert set(shard_numbers(batch["row_id"].numpy())) == {0, 2}
        assert batch["lost_shards"].tolist() == [1] * 60
        described = buffer.describe()
        assert (described.lost_shards, described.size) == (1, 100)
        assert described.shards[1].description is None
        assert described.shards[1].lost_seconds > 0
        assert len(buffer.sample_all()) == 100
        running.enter_context(server_process(configs[1]))
        comes_back(buffer, {0, 1, 2})
        assert buffer.sample_batch(5)["lost_shards"].tolist() == [0] * 5
        assert (buffer.size, buffer.describe().lost_shards) == (150, 0)
    assert "shard 1 is lost" in caplog.text
    assert "is back after" in caplog.text


def test_a_batch_that_says_how_many_shards_were_lost_can_be_put_back(table):
    with shard_servers(2) as servers, ShardedReplayBuffer(servers, table=table, buffer_size=100, on_loss="degrade") as buffer:
        buffer.add_batch(numbered(0, 20))
        batch = buffer.sample_batch(8)
        assert "lost_shards" in batch
        buffer.add_batch(batch)
        buffer.add(batch[0])
        buffer.insert(given_rows(batch.to_dict()))
        with buffer.writer() as writer:
            writer.extend(batch)
            writer.append(batch[1])
        assert buffer.size == 20 + 8 + 1 + 8 + 8 + 1
        for server in servers:
            with RemoteReplayBuffer(server, table=table) as shard:
                assert "lost_shards" not in shard.sample_all()


def test_a_table_that_was_dropped_is_not_made_again(table):
    with shard_servers(2) as servers, ShardedReplayBuffer(servers, table=table, buffer_size=100, on_loss="degrade", timeout=1) as buffer:
        buffer.add_batch(numbered(0, 20))
        with RemoteReplayBuffer(servers[0], table=table) as one, RemoteReplayBuffer(servers[1], table=table) as two:
            one.drop()
            two.drop()
        for _ in range(3):
            with pytest.raises((TableNotFoundError, ServerUnavailableError)):
                buffer.sample_batch(8)
            with pytest.raises(TableNotFoundError):
                buffer.add_batch(numbered(0, 2))
        assert [RemoteReplayBuffer.tables(address) for address in servers] == [[], []]


def test_batches_go_on_without_a_shard_that_stands_still(table):
    with processes(3) as (servers, _):
        fill_unevenly(addresses(servers), table, (50, 50, 50))
        with ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade") as buffer:
            assert drawn_from(buffer) == {0, 1, 2}
            freeze(servers[2].pid)
            try:
                longest = 0.0
                for _ in range(20):
                    begun = time.monotonic()
                    found = drawn_from(buffer)
                    longest = max(longest, time.monotonic() - begun)
                assert found == {0, 1}
                assert longest < PAUSE + SLACK
            finally:
                thaw(servers[2].pid)
            comes_back(buffer, {0, 1, 2})


def test_updates_of_rows_on_a_lost_shard_count_as_stale(table):
    with processes(2) as (servers, _):
        fill_unevenly(addresses(servers), table, (3, 3), priorities=[1.0] * 6, sampler="prioritized")
        with ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade") as buffer:
            ids = buffer.sample_all()["row_id"]
            servers[1].child.kill()
            assert buffer.update_priorities(ids, 2.0) == (3, 3)
            with pytest.raises(ServerUnavailableError):
                buffer.sample_by_index([0, 1])


def test_a_shard_that_comes_back_without_its_rows_joins_empty_and_it_is_said(table, caplog):
    with processes(2) as (servers, configs), ExitStack() as running:
        buffer = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, buffer_size=40, on_loss="degrade"))
        buffer.add_batch(numbered(0, 40))
        servers[0].child.kill()
        servers[0].child.wait()
        assert drawn_from(buffer) == {1}
        running.enter_context(server_process(configs[0]))
        until = time.monotonic() + 20
        while buffer.describe().lost_shards:
            assert time.monotonic() < until
        assert (buffer.size, buffer.buffer_size) == (20, 40)
        buffer.add_batch(numbered(40, 40))
        assert drawn_from(buffer) == {0, 1}
    assert "came back without the rows" in caplog.text


def test_where_no_shard_is_there_a_batch_waits_for_one_and_then_says_so(tmp_path, table):
    with processes(2, tmp_path) as (servers, configs), ExitStack() as running, ThreadPoolExecutor(1) as thread:
        fill_unevenly(addresses(servers), table, (9, 9))
        patient = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade"))
        hasty = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade", timeout=1.5))
        for server in servers:
            server.child.kill()
            server.child.wait()
        waiting = thread.submit(patient.sample_batch, 5)
        with pytest.raises(ServerUnavailableError):
            hasty.sample_batch(5)
        assert not waiting.done()
        running.enter_context(server_process(configs[1]))
        assert waiting.result(30)["lost_shards"].tolist() == [1] * 5


def test_a_buffer_opens_while_a_shard_is_lost(tmp_path, table):
    with processes(2, tmp_path) as (servers, configs), ExitStack() as running:
        fill_unevenly(addresses(servers), table, (9, 9))
        servers[0].child.kill()
        servers[0].child.wait()
        buffer = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade"))
        assert drawn_from(buffer) == {1}
        with pytest.raises(ServerUnavailableError):
            ShardedReplayBuffer(addresses(servers), table=table, timeout=0.5)
        running.enter_context(server_process(configs[0]))
        comes_back(buffer, {0, 1})


# -- a buffer that waits --------------------------------------------------------------------------------------------------------------------------


def test_a_batch_waits_for_a_lost_shard_and_comes_from_all(tmp_path, table):
    with processes(2, tmp_path) as (servers, configs), ExitStack() as running, ThreadPoolExecutor(1) as thread:
        fill_unevenly(addresses(servers), table, (50, 50))
        buffer = running.enter_context(ShardedReplayBuffer(addresses(servers), table=table, timeout=60))
        servers[0].child.kill()
        servers[0].child.wait()
        waiting = thread.submit(drawn_from, buffer)
        time.sleep(0.5)
        assert not waiting.done()
        running.enter_context(server_process(configs[0]))
        assert waiting.result(40) == {0, 1}
        assert "lost_shards" not in buffer.sample_batch(2)


def test_a_batch_raises_when_a_lost_shard_does_not_come_back_in_time(table):
    with processes(2) as (servers, _):
        fill_unevenly(addresses(servers), table, (50, 50))
        with ShardedReplayBuffer(addresses(servers), table=table, timeout=1) as buffer:
            servers[0].child.kill()
            for _ in range(2):
                with pytest.raises(ServerUnavailableError):
                    buffer.sample_batch(60)


# -- the thread behind it, and shards that come and go --------------------------------------------------------------------------------------------


def test_there_is_no_thread_of_a_buffer_that_is_closed(table):
    with processes(2) as (servers, _):
        fill_unevenly(addresses(servers), table, (5, 5))
        before = set(threading.enumerate())
        with ShardedReplayBuffer(addresses(servers), table=table, on_loss="degrade") as buffer:
            servers[0].child.kill()
            assert drawn_from(buffer) == {1}
        until = time.monotonic() + 10
        while any(thread.name == "tdreplay-reader" for thread in set(threading.enumerate()) - before):
            assert time.monotonic() < until
            time.sleep(0.01)


class ListedShards:
    """A directory that says what it was told."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._all = [ShardPlace(number, server.address) for number, server in enumerate(servers)]
        self.numbers: Sequence[int] = range(len(servers))

    def places(self) -> Sequence[ShardPlace]:
        """Those of the numbers."""
        return [self._all[number] for number in self.numbers]


def test_shards_that_a_directory_adds_and_removes_are_taken_up(table):
    with processes(4) as (servers, _):
        fill_unevenly(addresses(servers), table, (50, 50, 50, 50), priorities=[1.0] * 200, sampler="prioritized")
        directory = ListedShards(servers)
        directory.numbers = [0, 1]
        with ShardedReplayBuffer(directory, table=table, on_loss="degrade") as buffer:
            assert (drawn_from(buffer), buffer.size) == ({0, 1}, 100)
            directory.numbers = [0, 1, 2, 3]
            comes_back(buffer, {0, 1, 2, 3})
            assert (buffer.size, buffer.addresses) == (200, addresses(servers))
            old = buffer.sample_batch(100)["row_id"]
            directory.numbers = [0, 2, 3]
            comes_back(buffer, {0, 2, 3})
            assert buffer.size == 150
            gone = int((old >> 48 == 1).sum())
            assert buffer.update_priorities(old, 2.0) == (100 - gone, gone)


def test_a_shard_that_is_none_of_the_buffer_does_not_join(table, caplog):
    with processes(3) as (servers, _):
        fill_unevenly(addresses(servers)[:2], table, (5, 5))
        fill_unevenly(addresses(servers)[2:], table, (5,), sampler="fifo")
        directory = ListedShards(servers)
        directory.numbers = [0, 1]
        with ShardedReplayBuffer(directory, table=table) as buffer:
            directory.numbers = [0, 1, 2]
            until = time.monotonic() + 20
            while "does not join" not in caplog.text:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert (buffer.size, drawn_from(buffer)) == (10, {0, 1})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([], "number of shards"), ([0, 0], "twice")],
)
def test_a_directory_without_shards_or_with_one_twice_is_refused(table, numbers, words):
    with processes(1) as (servers, _):
        directory = ListedShards(servers)
        directory.numbers = numbers
        with pytest.raises(InvalidArgumentError, match=words):
            ShardedReplayBuffer(directory, table=table)


def test_a_batch_that_is_drawn_while_its_buffer_is_closed_ends_with_an_error(table):
    with processes(2) as (servers, _), ThreadPoolExecutor(1) as thread:
        buffer = ShardedReplayBuffer(addresses(servers), table=table, buffer_size=10)
        waiting = thread.submit(buffer.sample_batch, 3, wait=True)
        time.sleep(0.3)
        buffer.close()
        assert isinstance(waiting.exception(10), ReplayError)
