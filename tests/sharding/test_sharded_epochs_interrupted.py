"""Ctrl-C in epochs over shards, threads that are left, and shards that come and go: each row still comes once, or is said to be lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from conftest import numbers, rows
from interrupts import interrupted_at, interrupting
from tdreplay.epochs import Epochs
from tdreplay.errors import TableChangedError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_server import ReplayServer, ServerConfig

SECONDS = 30.0


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of three servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address for _ in range(3)]


@pytest.fixture
def filled(addresses: list[str], table: str) -> Iterator[Callable[..., list[str]]]:
    """Fills the table of as many shards with so many rows each, and gives their addresses."""
    with ExitStack() as stack:

        def fill(*sizes: int) -> list[str]:
            for address, size, start in zip(addresses, sizes, itertools.accumulate(sizes, initial=0), strict=False):
                stack.enter_context(RemoteReplayBuffer(address, table=table, buffer_size=size)).add_batch(rows(size, start))
            return addresses[: len(sizes)]

        yield fill


def readers() -> set[threading.Thread]:
    """The threads of clients."""
    return {thread for thread in threading.enumerate() if thread.name == "tdreplay-reader"}


def until(fulfilled: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not fulfilled():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def taken(batches: Epochs) -> list[int]:
    return [number for batch in batches for number in numbers(batch)]


def test_after_an_interrupt_at_any_line_the_iterator_goes_on_at_its_place(filled, table):
    with ShardedReplayBuffer(filled(12, 7), table=table) as buffer:
        batches = buffer.epochs(4, shuffle=True, seed=1)
        token = batches.state_dict()
        before, step, found = len(readers()), 1, list[Any]()
        while True:
            found.clear()
            if not interrupted_at(step, "tdreplay_client.sharding", lambda: found.append(next(batches))):
                break
            assert sorted([number for batch in found for number in numbers(batch)] + taken(batches)) == [*range(19)]
            batches.load_state_dict(token)
            step += 7
        until(lambda: len(readers()) <= before + 8)


def test_interrupts_at_any_time_lose_no_row(filled, table):
    with ShardedReplayBuffer(filled(2000, 700), table=table) as buffer:
        batches, found = buffer.epochs(10, 5, shuffle=True, seed=1), list[int]()
        with interrupting(Epochs.__next__.__code__, 0.003, most=60) as hits:
            while batches.epoch < 5:
                try:
                    found += numbers(next(batches))
                except KeyboardInterrupt:
                    continue
                except StopIteration:
                    break
        assert hits[0] > 0
        assert sorted(found) == sorted([*range(2700)] * 5)


def test_a_learner_that_stops_reading_holds_no_more_than_what_it_read_ahead_and_ends_with_its_iterator(filled, table):
    before = readers()
    with ShardedReplayBuffer(filled(3000, 1000), table=table) as buffer:
        for _ in range(10):
            batches = buffer.epochs(16, 100, shuffle=True)
            next(batches)
            del batches  # Nobody closes it.
        until(lambda: len(readers() - before) <= 4)  # Those of the buffer itself.
    until(lambda: not readers() - before)


class Changing:
    """A directory of shards that come and go."""

    def __init__(self, addresses: Sequence[str], *numbers: int) -> None:
        self._addresses, self.numbers = addresses, numbers

    def places(self) -> Sequence[ShardPlace]:
        return [ShardPlace(number, self._addresses[number]) for number in self.numbers]


def test_a_shard_that_joins_has_no_rows_in_the_epochs_that_run(filled, table, addresses):
    filled(40, 20, 30)
    directory = Changing(addresses, 0, 1)
    with ShardedReplayBuffer(directory, table=table) as buffer:
        batches = buffer.epochs(5, 3, shuffle=True, seed=1)
        found = numbers(next(batches))
        directory.numbers = (0, 1, 2)
        until(lambda: len(buffer.addresses) == 3)
        assert sorted(found + taken(batches)) == sorted([*range(60)] * 3)
        assert sorted(taken(buffer.epochs(5))) == [*range(90)]


def test_rows_of_a_shard_that_was_removed_are_lost_or_an_error(filled, table, addresses):
    filled(40, 20, 30)
    for on_loss in ("degrade", "raise"):
        directory = Changing(addresses, 0, 1, 2)
        with ShardedReplayBuffer(directory, table=table, on_loss=on_loss) as buffer:
            batches = buffer.epochs(5, 3, shuffle=True, seed=1)
            token = batches.state_dict()
            directory.numbers = (0, 2)
            until(lambda buffer=buffer: len(buffer.addresses) == 2)
            if on_loss == "raise":
                with pytest.raises(TableChangedError, match="shard 1 is no shard"):
                    batches.load_state_dict(token)
                with pytest.raises(TableChangedError, match="shard 1 is no shard"):
                    taken(batches)
            else:
                batches.load_state_dict(token)
                assert sorted(taken(batches)) == sorted([*range(40), *range(60, 90)] * 3)
                assert (batches.lost, batches.overwritten) == (60, 0)


def test_a_reset_in_the_middle_of_an_epoch_ends_the_rows_of_its_shard(filled, table, addresses):
    filled(4000, 2000)
    for on_loss in ("degrade", "raise"):
        with ShardedReplayBuffer(addresses[:2], table=table, on_loss=on_loss) as buffer, ExitStack() as stack:
            shard = stack.enter_context(RemoteReplayBuffer(addresses[1], table=table))
            if not shard.describe().size:
                shard.add_batch(rows(2000, 4000))
            batches = buffer.epochs(50, 3, shuffle=True, seed=1)
            found = numbers(next(batches))
            shard.reset()
            if on_loss == "raise":
                with pytest.raises(TableChangedError, match="shard 1"):
                    taken(batches)
            else:
                found += taken(batches)
                assert sorted(number for number in found if number < 4000) == sorted([*range(4000)] * 3)
                assert len(found) + batches.lost == 18000
                assert batches.lost > 2000


def test_where_one_shard_is_gone_and_all_other_rows_were_overwritten_the_epochs_end(filled, table, addresses):
    filled(30, 20)
    with ShardedReplayBuffer(addresses[:2], table=table, on_loss="degrade") as buffer, ExitStack() as stack:
        first, second = (stack.enter_context(RemoteReplayBuffer(address, table=table)) for address in addresses[:2])
        batches = buffer.epochs(10, 1 << 40, shuffle=True, on_overwrite="skip")
        token = batches.state_dict()
        first.add_batch(rows(30, 100))
        second.reset()
        batches.load_state_dict(token)
        assert list(batches) == []
        assert (batches.epoch, batches.overwritten, batches.lost) == (1 << 40, 30 << 40, 20 << 40)
