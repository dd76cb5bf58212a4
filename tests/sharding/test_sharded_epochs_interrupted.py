"""Ctrl-C in epochs over shards, and learners that stop reading: each row still comes once, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from epoch_tables import filled, taken, until
from shard_servers import shard_servers

from conftest import numbers
from interrupts import interrupted_at, interrupting
from tdreplay.epochs import Epochs
from tdreplay_client import ShardedReplayBuffer


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of three servers."""
    with shard_servers(3) as running:
        yield running


def readers() -> set[threading.Thread]:
    """The threads of clients."""
    return {thread for thread in threading.enumerate() if thread.name == "tdreplay-reader"}


def test_after_an_interrupt_at_any_line_the_iterator_goes_on_at_its_place(addresses, table):
    with ShardedReplayBuffer(filled(addresses, table, 12, 7), table=table) as buffer:
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


def test_interrupts_at_any_time_lose_no_row(addresses, table):
    with ShardedReplayBuffer(filled(addresses, table, 2000, 700), table=table) as buffer:
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


def test_a_learner_that_stops_reading_holds_no_more_than_what_it_read_ahead_and_ends_with_its_iterator(addresses, table):
    before = readers()
    with ShardedReplayBuffer(filled(addresses, table, 3000, 1000), table=table) as buffer:
        for _ in range(10):
            batches = buffer.epochs(16, 100, shuffle=True)
            next(batches)
            del batches  # Nobody closes it.
        until(lambda: len(readers() - before) <= 4)  # Those of the buffer itself.
    until(lambda: not readers() - before)
