"""Rows by their ids: those that are stored come, in the order that was asked for, and no row ever takes the place of another."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from conftest import rows
from tdreplay.block import decode
from tdreplay.errors import FieldNotFoundError, NoTrajectoriesError, OverwrittenError, RowIdError, TableChangedError
from tdreplay.framing import split
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView, View
from tdreplay_client import RemoteReplayBuffer, Sequences, Transitions
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.rows_by_id import stored_messages

WIDE = 1 << 18
"""Elements of a field of which some rows fill a block."""


def opened(address: str, table: str, **settings: Any) -> ShardTable:
    return ShardTable(address, table=table, **{"buffer_size": 10, "transport": "grpc", "timeout": 60} | settings)


def found(shard: ShardTable, ids: list[int], view: TableView | None = None, generation_id: str = "") -> ShardBatch | None:
    return shard.rows_by_id(np.array(ids, np.int64), None, view, generation_id)


def ids_of(batch: ShardBatch | None) -> list[int]:
    return [] if batch is None else batch.columns["row_id"].tolist()


def steps(first: int, count: int, length: int = 5) -> dict[str, torch.Tensor]:
    """Steps of episodes that end by termination."""
    number = torch.arange(first, first + count)
    ends = {"terminated": number % length == length - 1, "truncated": torch.zeros(count, dtype=torch.bool)}
    return {"obs": number.float()[:, None], "number": number, "reward": torch.ones(count), **ends}


def seen(table: RemoteReplayBuffer, view: View) -> TableView:
    trajectories = table.describe().config.trajectories
    assert trajectories
    return TableView(view, trajectories)


def test_rows_come_in_the_order_of_their_ids_and_those_that_were_overwritten_are_left_out(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(17))
        batch = found(shard, [16, 3, 7, 7, 6, 12, 0])
        assert batch is not None
        assert ids_of(batch) == batch.columns["action"].tolist() == [16, 7, 7, 12]
        assert found(shard, [6, 0]) is None


def test_an_id_that_was_never_given_is_refused(address, table):
    with opened(address, table) as shard:
        for ids in ([0], [-1]):
            with pytest.raises(RowIdError, match=f"row id {ids[0]} must be from 0 to -1"):
                found(shard, ids)
        shard.add_batch(rows(3))
        with pytest.raises(RowIdError, match="row id 3 must be from 0 to 2"):
            found(shard, [2, 3])


def test_ids_of_another_generation_are_refused_and_without_one_none_of_them_is_found(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        before = shard.answer().generation_id
        assert ids_of(found(shard, [4, 0], generation_id=before)) == [4, 0]
        shard.reset()
        with pytest.raises(TableChangedError, match="generation"):
            found(shard, [4], generation_id=before)
        assert found(shard, [4, 0]) is None
        shard.add_batch(rows(5))
        assert found(shard, [4, 0]) is None


def test_fields_are_chosen(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        batch = shard.rows_by_id(np.array([4, 1]), ("next.obs", "row_id"), None)
        assert batch is not None
        assert batch.columns.keys() == {"next.obs", "row_id"}
        with pytest.raises(FieldNotFoundError):
            shard.rows_by_id(np.array([4, 1]), ("none",), None)


def test_rows_that_were_drawn_often_enough_are_found_while_they_are_stored(address, table):
    with opened(address, table, sampler="lifo", max_times_sampled=1) as shard:
        shard.add_batch(rows(6))
        shard.sample_batch(2)
        assert ids_of(found(shard, [5, 0])) == [5, 0]
        shard.sample_batch(4)
        assert found(shard, [5, 0]) is None  # All have left.


@pytest.mark.parametrize(
    "view", [Transitions(), Transitions(n_step=2), Sequences(length=2, burn_in=1, padding="drop"), Sequences(length=3, stride=2)]
)
def test_with_a_view_those_come_that_are_anchors(address, table, view):
    with opened(address, table, buffer_size=18, trajectories=True) as shard:
        with shard.trajectory_writer() as writer:
            writer.extend(steps(0, 23), torch.zeros(4, 1))  # 27 rows: the final observations have rows, too.
        with RemoteReplayBuffer(address, table=table) as plain:
            anchors = {int(row) for batch in plain.epochs(4, view=view) for row in np.unique(batch["row_id"])}
            asked = np.random.default_rng(1).permutation(27)
            batch = found(shard, asked.tolist(), seen(shard, view))
            assert batch is not None
            assert ids_of(batch) == [row for row in asked if row in anchors]
            made = seen(shard, view).made_of(batch.columns, (batch.rows,), torch.device("cpu"))
            assert (made == plain.sample_by_index([row % 18 for row in ids_of(batch)], view=view)).all()
        assert found(shard, [0], seen(shard, view)) is None


def test_of_steps_without_a_view_no_final_observation_comes(address, table):
    with opened(address, table, buffer_size=20, trajectories=True) as shard:
        with shard.trajectory_writer() as writer:
            writer.extend(steps(0, 12), torch.zeros(2, 1))
        batch = found(shard, list(range(14)))
        assert batch is not None
        assert batch.columns["number"].tolist() == list(range(12))


def test_windows_are_of_steps_alone(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        with pytest.raises(NoTrajectoriesError):
            found(shard, [0], TableView(Transitions(), Trajectories()))


def test_a_batch_of_several_blocks_comes_whole(address, table):
    with opened(address, table, buffer_size=20) as shard:
        shard.add_batch({"number": torch.arange(20.0)[:, None].expand(20, WIDE).contiguous()})
        batch = found(shard, list(range(19, -1, -1)))
        assert batch is not None
        assert ids_of(batch) == batch.columns["number"][:, 0].tolist() == batch.columns["number"][:, -1].tolist() == list(range(19, -1, -1))


@pytest.mark.parametrize("width", [1, WIDE])
def test_rows_that_are_overwritten_while_they_are_read_are_left_out_and_none_is_another(address, table, width):
    """A row holds its own id. A writer goes around the ring while its rows are asked for, those last that are overwritten first."""
    over, failures, least, seconds = threading.Event(), list[BaseException](), set[int](), 1.5

    def row(first: int, count: int) -> dict[str, torch.Tensor]:
        return {"number": torch.arange(first, first + count, dtype=torch.float64)[:, None].expand(count, width).contiguous()}

    def write() -> None:
        try:
            with opened(address, table, buffer_size=16) as writer:
                first = 16
                while not over.is_set():
                    writer.add_batch(row(first, 3))
                    first += 3
        except BaseException as error:  # noqa: BLE001 - the test raises it.
            failures.append(error)

    with opened(address, table, buffer_size=16) as shard:
        shard.add_batch(row(0, 16))
        writing = threading.Thread(target=write)
        writing.start()
        timer = threading.Timer(seconds, over.set)
        timer.start()
        try:
            while not over.is_set():
                state = shard.describe()
                ids = list(range(state.write_count - 1, state.write_count - state.size - 1, -1))
                batch = found(shard, ids)
                least.add(0 if batch is None else batch.rows)
                if batch is not None:
                    assert ids_of(batch) == sorted(set(ids) & set(ids_of(batch)), reverse=True)
                    number = batch.columns["number"].long()
                    assert (number == batch.columns["row_id"][:, None]).all()
        finally:
            over.set()
            timer.cancel()
            writing.join()
    assert not failures
    assert max(least) <= 16
    assert min(least) < 16  # Some were overwritten meanwhile, so this was tried.


def inserted(table: Table, count: int, width: int) -> None:
    """Rows that hold their ids."""
    first = table.state().write_count
    columns = {"number": torch.arange(first, first + count, dtype=torch.float64)[:, None].expand(count, width).contiguous()}
    table.insert(columns, Schema.of(columns, ()), count)


def parts_of(messages: Iterable[bytes]) -> list[tuple[int, list[int]]]:
    """What each message says: how many rows come in all, and the ids that the rows of its block hold."""
    found = []
    for message in messages:
        head, memory = split(message, pb.SampleByIndexResponse)
        columns = decode(memory).columns
        assert torch.equal(columns["number"][:, 0].long(), columns["row_id"])
        found.append((head.batch_rows, columns["row_id"].tolist()))
    return found


@pytest.mark.parametrize(
    ("more", "rest"),
    [(0, [(4, [2]), (4, [1]), (4, [0])]), (1, [(3, [2]), (3, [1])]), (3, [(1, [])]), (4, [(1, [])]), (20, [(1, [])])],
)
def test_rows_that_are_overwritten_between_two_blocks_do_not_come(more, rest):
    with closing(Table(TableConfig(4))) as table:
        inserted(table, 4, WIDE)
        messages = stored_messages(table, table.stored_rows(np.array([3, 2, 1, 0])))
        assert parts_of([next(messages)]) == [(4, [3])]
        if more:
            inserted(table, more, WIDE)
        assert parts_of(messages) == rest


def test_a_row_that_is_overwritten_after_it_was_chosen_is_not_read_and_the_others_are_chosen_again():
    with closing(Table(TableConfig(4))) as table:
        inserted(table, 4, 1)
        stored = table.stored_rows(np.array([3, 0, 1]))
        assert stored is not None
        chosen = stored.part(3)
        inserted(table, 1, 1)
        with pytest.raises(OverwrittenError, match="row 0 was overwritten"):
            table.take(chosen.rows)
        assert table.take(stored.part(3).rows)["number"][:, 0].tolist() == [3, 1]
        table.reset()
        with pytest.raises(TableChangedError):
            stored.part(3)
