"""Rows of an epoch that a client orders: those that come are in the order that was asked for, and no row comes as another."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from conftest import rows
from tdreplay.block import decode
from tdreplay.epochs import EpochQuery
from tdreplay.errors import FieldNotFoundError, NoTrajectoriesError, OverwrittenError, RowIdError, TableChangedError, TokenError
from tdreplay.framing import split
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView, View
from tdreplay_client import RemoteReplayBuffer, Sequences, Transitions
from tdreplay_client.sharding.epoch_answers import COMES, NO_ANCHOR, OVERWRITTEN, REPLACED, EpochAnswer
from tdreplay_client.sharding.epoch_plan import ShardWindow
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.epoch_rows import epoch_rows

WIDE = 1 << 18
"""Elements of a field of which some rows fill a block."""


def opened(address: str, table: str, **settings: Any) -> ShardTable:
    return ShardTable(address, table=table, **{"buffer_size": 10, "transport": "grpc", "timeout": 60} | settings)


def window_of(shard: ShardTable) -> ShardWindow:
    """The rows that are stored now."""
    said = shard.answer()
    return ShardWindow(0, said.generation_id, said.write_count - said.size, said.write_count, said.buffer_size)


def query(mode: str = "skip", fields: tuple[str, ...] | None = None, view: TableView | None = None) -> EpochQuery:
    return EpochQuery(1, fields=fields, windows=None if view is None else view.windows, on_overwrite=mode)


def found(shard: ShardTable, ids: Iterable[int], window: ShardWindow, asked: EpochQuery | None = None) -> EpochAnswer:
    return shard.epoch_rows(np.array([*ids], np.int64), window, asked or query())


def ids_of(answer: EpochAnswer) -> list[int]:
    return [] if answer.batch is None else answer.batch.columns["row_id"].tolist()


def steps(first: int, count: int, length: int = 5) -> dict[str, torch.Tensor]:
    """Steps of episodes that end by termination."""
    number = torch.arange(first, first + count)
    ends = {"terminated": number % length == length - 1, "truncated": torch.zeros(count, dtype=torch.bool)}
    return {"obs": number.float()[:, None], "number": number, "reward": torch.ones(count), **ends}


def seen(table: RemoteReplayBuffer, view: View) -> TableView:
    trajectories = table.describe().config.trajectories
    assert trajectories
    return TableView(view, trajectories)


def test_rows_come_in_the_order_of_their_ids_and_those_that_were_overwritten_are_left_out_or_replaced(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(10))
        window = window_of(shard)
        shard.add_batch(rows(7, 10))
        answer = found(shard, [9, 3, 7, 7, 6, 8, 0], window)
        assert answer.batch is not None
        assert ids_of(answer) == answer.batch.columns["action"].tolist() == [9, 7, 7, 8]
        assert answer.outcomes.tolist() == [COMES, OVERWRITTEN, COMES, COMES, OVERWRITTEN, COMES, OVERWRITTEN]
        assert answer.oldest == 7
        assert found(shard, [6, 0], window).batch is None
        answer = found(shard, [9, 3, 6], window, query("replace"))
        assert (ids_of(answer), answer.outcomes.tolist()) == ([9, 13, 16], [COMES, REPLACED, REPLACED])


def test_ids_and_windows_that_cannot_be_are_refused(address, table):
    with opened(address, table) as shard:
        with pytest.raises(TokenError, match=r"window of row ids \[0, 1\) must be 1 to 10 of those below 0"):
            found(shard, [0], ShardWindow(0, shard.answer().generation_id, 0, 1, 10))
        shard.add_batch(rows(3))
        window = window_of(shard)
        for wrong in (3, -1):
            with pytest.raises(RowIdError, match=rf"row id {wrong} is not in the window \[0, 3\)"):
                found(shard, [2, wrong], window)


def test_ids_of_another_generation_are_refused(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        window = window_of(shard)
        assert ids_of(found(shard, [4, 0], window)) == [4, 0]
        shard.reset()
        for _ in range(2):  # At once, and when there are rows again.
            with pytest.raises(TableChangedError, match="reset"):
                found(shard, [4], window)
            shard.add_batch(rows(5))
        assert ids_of(found(shard, [window_of(shard).first_row_id], window_of(shard))) == [window_of(shard).first_row_id]


def test_fields_are_chosen(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        batch = found(shard, [4, 1], window_of(shard), query(fields=("next.obs", "row_id"))).batch
        assert batch is not None
        assert batch.columns.keys() == {"next.obs", "row_id"}
        with pytest.raises(FieldNotFoundError):
            found(shard, [4, 1], window_of(shard), query(fields=("none",)))


def test_rows_that_were_drawn_often_enough_are_found_while_they_are_stored(address, table):
    with opened(address, table, sampler="lifo", max_times_sampled=1) as shard:
        shard.add_batch(rows(6))
        window = window_of(shard)
        shard.sample_batch(2)
        assert ids_of(found(shard, [5, 0], window)) == [5, 0]
        shard.sample_batch(4)
        assert found(shard, [5, 0], window).batch is None  # All have left.


@pytest.mark.parametrize(
    "view", [Transitions(), Transitions(n_step=2), Sequences(length=2, burn_in=1, padding="drop"), Sequences(length=3, stride=2)]
)
def test_with_a_view_those_come_that_are_anchors(address, table, view):
    with opened(address, table, buffer_size=18, trajectories=True) as shard:
        with shard.trajectory_writer() as writer:
            writer.extend(steps(0, 23), torch.zeros(4, 1))  # 27 rows: the final observations have rows, too.
        with RemoteReplayBuffer(address, table=table) as plain:
            anchors = {int(row) for batch in plain.epochs(4, view=view) for row in np.unique(batch["row_id"])}
            asked = [*np.random.default_rng(1).permutation(np.arange(9, 27)).tolist(), 12]
            answer = found(shard, asked, window_of(shard), query(view=seen(shard, view)))
            assert answer.batch is not None
            assert ids_of(answer) == [row for row in asked if row in anchors]
            assert answer.outcomes.tolist() == [COMES if row in anchors else NO_ANCHOR for row in asked]
            made = seen(shard, view).made_of(answer.batch.columns, (answer.batch.rows,), torch.device("cpu"))
            assert (made == plain.sample_by_index([row % 18 for row in ids_of(answer)], view=view)).all()


def test_of_steps_without_a_view_no_final_observation_comes(address, table):
    with opened(address, table, buffer_size=20, trajectories=True) as shard:
        with shard.trajectory_writer() as writer:
            writer.extend(steps(0, 12), torch.zeros(2, 1))
        batch = found(shard, range(14), window_of(shard)).batch
        assert batch is not None
        assert batch.columns["number"].tolist() == list(range(12))


def test_windows_are_of_steps_alone(address, table):
    with opened(address, table) as shard:
        shard.add_batch(rows(5))
        with pytest.raises(NoTrajectoriesError):
            found(shard, [0], window_of(shard), query(view=TableView(Transitions(), Trajectories())))


def test_a_batch_of_several_blocks_comes_whole(address, table):
    with opened(address, table, buffer_size=20) as shard:
        shard.add_batch({"number": torch.arange(20.0)[:, None].expand(20, WIDE).contiguous()})
        answer = found(shard, range(19, -1, -1), window_of(shard))
        assert answer.batch is not None
        number = answer.batch.columns["number"]
        assert ids_of(answer) == number[:, 0].tolist() == number[:, -1].tolist() == list(range(19, -1, -1))


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
                window = window_of(shard)
                ids = np.arange(window.end_row_id - 1, window.first_row_id - 1, -1)
                answer = found(shard, ids, window)
                least.add(len(ids_of(answer)))
                assert ids_of(answer) == ids[answer.comes].tolist()
                if answer.batch is not None:
                    assert (answer.batch.columns["number"].long() == answer.batch.columns["row_id"][:, None]).all()
        finally:
            over.set()
            timer.cancel()
            writing.join()
    assert not failures
    assert max(least) <= 16
    assert min(least) < 16  # Some were overwritten meanwhile, so this was tried.


def inserted(table: Table, count: int) -> None:
    """Wide rows that hold their ids."""
    first = table.state().write_count
    columns = {"number": torch.arange(first, first + count, dtype=torch.float64)[:, None].expand(count, WIDE).contiguous()}
    table.insert(columns, Schema.of(columns, ()), count)


def sent(messages: Iterator[bytes]) -> Iterator[tuple[list[int], list[int]]]:
    """What each message says: the outcomes, and the ids that the rows of its block hold."""
    for message in messages:
        head, memory = split(message, pb.SampleByIndexResponse)
        columns = decode(memory).columns
        assert torch.equal(columns["number"][:, 0].long(), columns["row_id"])
        yield list(head.outcomes), columns["row_id"].tolist()


@pytest.mark.parametrize("replace", [False, True])
def test_where_rows_are_overwritten_between_two_blocks_the_call_ends_and_says_so(replace):
    with closing(Table(TableConfig(4))) as table:
        inserted(table, 4)
        epoch = pb.EpochRows(first_row_id=0, end_row_id=4, replace=replace)
        request = pb.SampleByIndexRequest(row_ids=[3, 2, 0, 1], generation_id=table.describe().generation_id, epoch=epoch)
        assert [ids for _, ids in sent(epoch_rows(table, request, None, None))] == [[3], [2], [0], [1]]
        begun = sent(epoch_rows(table, request, None, None))
        assert next(begun) == ([COMES] * 4, [3])
        inserted(table, 1)
        assert next(begun)[1] == [2]  # It is still there.
        with pytest.raises(OverwrittenError, match="row 0 was overwritten"):
            next(begun)
        again = list(sent(epoch_rows(table, request, None, None)))
        assert [ids for _, ids in again] == ([[3], [2], [4], [1]] if replace else [[3], [2], [1]])
        assert {tuple(outcomes) for outcomes, _ in again} == {(COMES, COMES, REPLACED if replace else OVERWRITTEN, COMES)}


def test_a_call_that_began_ends_with_the_rows_of_its_table():
    with closing(Table(TableConfig(4))) as table:
        inserted(table, 4)
        epoch = pb.EpochRows(first_row_id=0, end_row_id=4)
        request = pb.SampleByIndexRequest(row_ids=[3, 2], generation_id=table.describe().generation_id, epoch=epoch)
        begun = sent(epoch_rows(table, request, None, None))
        assert next(begun)[1] == [3]
        table.reset()
        with pytest.raises(TableChangedError):
            next(begun)
