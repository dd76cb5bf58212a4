"""Ctrl-C at any moment of a call that gives rows to shards: no row is lost, and none is stored twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from shard_servers import shard_servers
from tensordict import TensorDict
from ways import ways_to_servers

from interrupts import interrupted_at, interrupting
from tdreplay.errors import CancelledError
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.sharding.writer import ShardedWriter

# As in the tests of one server.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
N = 1000


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(2) as made:
        yield made


@pytest.fixture
def buffer(addresses, table) -> Iterator[ShardedReplayBuffer]:
    with ShardedReplayBuffer(addresses, table=table, buffer_size=50_000, timeout=20) as made:
        for writer in (made.writer(), made.writer()):  # What is imported when it is needed first is imported now, and the calls are open.
            with writer:
                writer.append({"n": 0})
                writer.extend(small(0, 2))
        for number in range(4):
            made.add({"n": number})
        made.reset()
        yield made


def small(first: int, n: int) -> TensorDict:
    return TensorDict({"n": torch.arange(first, first + n)}, [n])


def wide(first: int, n: int) -> TensorDict:
    number = torch.arange(first, first + n)
    return TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(n, 64 << 10)}, [n])


def stored(buffer: ShardedReplayBuffer) -> Counter[int]:
    return Counter(buffer.sample_all()["n"].tolist())


def until_it_returns(call: Callable[[], object]) -> None:
    while True:
        try:
            call()
        except KeyboardInterrupt:
            continue
        return


@pytest.mark.parametrize("flush_rows", [1, 64])
def test_rows_whose_append_is_repeated_after_an_interrupt_are_stored_once(buffer, flush_rows):
    writer = buffer.writer(flush_rows=flush_rows)
    with interrupting(ShardedWriter.append.__code__, 0.003) as hits:
        for number in range(N):
            until_it_returns(lambda number=number: writer.append({"n": number}))
    writer.close()
    assert hits[0] >= 3
    assert stored(buffer) == dict.fromkeys(range(N), 1)


@pytest.mark.parametrize(("make", "n"), [(small, 10), (wide, 100)], ids=["small", "several blocks"])
def test_batches_whose_extend_was_interrupted_are_stored_once(buffer, make, n):
    """Each is given again, or comes back with the next call's error, and is then given to another writer."""
    writer, first, last, back = buffer.writer(), 0, (100 if make is small else 8) * n, None
    with interrupting(ShardedWriter.extend.__code__, 0.004, 1000 if make is small else 8):
        while first < last:
            given = make(first, n) if back is None else back
            try:
                writer.extend(given)
            except KeyboardInterrupt:
                continue
            except CancelledError as error:
                back, writer = error.rows, buffer.writer()
                continue
            first = int(given["n"].max()) + 1
            back = None
    writer.close()
    assert stored(buffer) == dict.fromkeys(range(last), 1)


@pytest.mark.parametrize("n", [1, 1600], ids=["one shard", "all shards"])
def test_batches_whose_insert_was_interrupted_are_stored_once(buffer, n):
    first = 0
    with interrupting(ShardedReplayBuffer.add_batch.__code__, 0.02) as hits:  # Not while the one before is dealt with.
        while hits[0] < 5 and first < 48_000:
            until_it_returns(partial(buffer.add_batch, small(first, n)))
            first += n
    assert hits[0] >= 1
    assert stored(buffer) == dict.fromkeys(range(first), 1)


def test_an_add_may_be_interrupted_at_any_line(buffer):
    """It is given again each time, until it comes to its end before that line."""

    def add(number: int) -> None:
        buffer.add({"n": number})

    number = 0
    while interrupted_at(number + 1, "tdreplay_client.sharding.part_sender", partial(add, number)):
        add(number)
        number += 1
    assert number > 10
    assert stored(buffer) == dict.fromkeys(range(number + 1), 1)


def test_an_append_of_a_step_may_be_interrupted_at_any_line(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=1000, timeout=20, trajectories=True) as buffer:
        with buffer.trajectory_writer(autoreset="disabled") as writer:

            def append(number: int) -> None:
                writer.append({"obs": number, "n": number, "reward": 0.0, "terminated": number % 7 == 6, "truncated": False})

            append(0)
            number = 1
            while interrupted_at(number, "tdreplay_client.sharding.writer", partial(append, number)):
                append(number)
                number += 1
        assert number > 10
        assert stored(buffer) == dict.fromkeys(range(number + 1), 1)


def test_a_row_whose_append_was_interrupted_moves_with_its_writer_and_is_stored_once(table):
    """It is given again to the shard that may have taken it, though that is lost, and moves with the others."""
    with ways_to_servers(2) as shards:
        options = {"table": table, "buffer_size": 1000, "timeout": 60, "transport": "grpc", "on_loss": "degrade"}
        with ShardedReplayBuffer(shards.addresses, **options) as buffer:
            with buffer.writer(flush_seconds=1000) as writer:  # A row that was sent would wait for its shard.

                def append(number: int) -> None:
                    writer.append({"action": number})

                append(0)
                writer.flush()
                first, line = writer.shard, 1
                while interrupted_at(line, "tdreplay_client.writing.writer", partial(append, line)):
                    append(line)
                    line += 1
                assert interrupted_at(line - 2, "tdreplay_client.writing.writer", partial(append, 100))  # When the row was taken.
                shards.ways[first].cut()
                while not buffer.describe().lost_shards:
                    pass
                append(100)
                append(101)
                assert writer.shard != first
            shards.ways[first].mend()
            assert shards.all_stored(table) == dict.fromkeys([*range(line + 1), 100, 101], 1)
