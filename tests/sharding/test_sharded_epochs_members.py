"""Shards that join, are removed or are reset while epochs go over them: their rows come once, or are said to be lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from epoch_tables import filled, taken, until
from shard_servers import shard_servers

from conftest import numbers, rows
from tdreplay.errors import TableChangedError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.shard import ShardPlace


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of three servers."""
    with shard_servers(3) as running:
        yield running


class Changing:
    """A directory of shards that come and go."""

    def __init__(self, addresses: Sequence[str], *numbers: int) -> None:
        self._addresses, self.numbers = addresses, numbers

    def places(self) -> Sequence[ShardPlace]:
        return [ShardPlace(number, self._addresses[number]) for number in self.numbers]


def test_a_shard_that_joins_has_no_rows_in_the_epochs_that_run(addresses, table):
    filled(addresses, table, 40, 20, 30)
    directory = Changing(addresses, 0, 1)
    with ShardedReplayBuffer(directory, table=table) as buffer:
        batches = buffer.epochs(5, 3, shuffle=True, seed=1)
        found = numbers(next(batches))
        directory.numbers = (0, 1, 2)
        until(lambda: len(buffer.addresses) == 3)
        assert sorted(found + taken(batches)) == sorted([*range(60)] * 3)
        assert sorted(taken(buffer.epochs(5))) == [*range(90)]


def test_rows_of_a_shard_that_was_removed_are_lost_or_an_error(addresses, table):
    filled(addresses, table, 40, 20, 30)
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


def test_a_reset_in_the_middle_of_an_epoch_ends_the_rows_of_its_shard(addresses, table):
    filled(addresses, table, 4000, 2000)
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


def test_where_one_shard_is_gone_and_all_other_rows_were_overwritten_the_epochs_end(addresses, table):
    filled(addresses, table, 30, 20)
    with ShardedReplayBuffer(addresses[:2], table=table, on_loss="degrade") as buffer, ExitStack() as stack:
        first, second = (stack.enter_context(RemoteReplayBuffer(address, table=table)) for address in addresses[:2])
        batches = buffer.epochs(10, 1 << 40, shuffle=True, on_overwrite="skip")
        token = batches.state_dict()
        first.add_batch(rows(30, 100))
        second.reset()
        batches.load_state_dict(token)
        assert list(batches) == []
        assert (batches.epoch, batches.overwritten, batches.lost) == (1 << 40, 30 << 40, 20 << 40)
