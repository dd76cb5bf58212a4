"""A random batch is pinned to the rows that were drawn: one that was overwritten before it was read is drawn anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch

from conftest import numbers, rows
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.tables.draws import generators_of
from tdreplay_server.tables.selection import BatchQuery, Selection
from tdreplay_server.tables.table import Table

SLOTS = 100


@contextmanager
def filled(count: int = SLOTS) -> Iterator[Table]:
    """A table of 100 slots, whose rows hold their row ids."""
    with closing(Table(TableConfig(SLOTS))) as table:
        insert(table, count)
        yield table


def insert(table: Table, count: int) -> None:
    columns = {"number": torch.arange(count) + table.state().write_count}
    table.insert(columns, Schema.of(columns, ()), count)


def drawn(table: Table, count: int, seed: int = 0, batches: int = 1) -> Selection:
    return table.select_random(BatchQuery(count), generators_of(seed)(batches))


def ids(table: Table, selection: Selection, start: int = 0, stop: int | None = None) -> list[int]:
    """The ids of the selected rows from start to stop, as they are read, after checking their contents and their slots."""
    count = (selection.rows if stop is None else stop) - start
    out = {name: np.empty(count, "V8") for name in ("index", "row_id", "number")}
    memory = dict(out)
    table.read(selection, start, start + count, memory)
    index, row_id, number = (out[name].view(np.int64).tolist() for name in out)
    assert number == row_id
    assert index == [one % SLOTS for one in row_id]
    return row_id


def test_a_row_that_was_overwritten_is_drawn_anew_and_the_others_stay():
    with filled() as table:
        first, after = drawn(table, 1000), drawn(table, 1000)
        before = ids(table, first)
        insert(table, 40)
        read = ids(table, after)
        assert min(read) == 40
        assert [now for then, now in zip(before, read, strict=True) if then >= 40] == [then for then in before if then >= 40]
        anew = [(then, now) for then, now in zip(before, read, strict=True) if then < 40]
        assert 300 < len(anew) < 500
        assert sum(now == then + SLOTS for then, now in anew) < 20  # The row that took the slot is one of a hundred.


def test_a_batch_that_is_read_in_several_steps_is_drawn_anew_at_each():
    with filled() as table:
        selection, before = drawn(table, 300), ids(table, drawn(table, 300))
        assert ids(table, selection, 0, 100) == before[:100]
        insert(table, 50)
        second = ids(table, selection, 100, 200)
        assert min(second) >= 50
        insert(table, 150)
        assert min(ids(table, selection, 200, 300)) >= 200


def test_the_rows_that_are_drawn_anew_are_those_of_the_seed():
    def read(seed: int) -> list[int]:
        with filled() as table:
            selection = drawn(table, 64, seed, batches=3)
            insert(table, 60)
            return ids(table, selection)

    assert read(7) == read(7)
    assert read(7) != read(8)


def test_each_batch_of_several_has_a_generator_of_its_own():
    with filled() as table:
        together, second = drawn(table, 64, 7, batches=3), table.select_random(BatchQuery(64), generators_of(7, 1)(1))
        insert(table, 60)
        assert ids(table, together)[64:128] == ids(table, second)


def test_draws_are_uniform_over_the_live_rows():
    with filled(SLOTS + 37) as table:
        assert uniform(ids(table, drawn(table, 100_000)), 37, 137)


def test_rows_that_are_drawn_anew_are_uniform_over_the_rows_that_are_live_then():
    with filled() as table:
        selection = drawn(table, 100_000)
        insert(table, SLOTS)
        assert uniform(ids(table, selection), 100, 200)


def uniform(found: list[int], start: int, stop: int) -> bool:
    """Whether so many numbers are uniform over a range (chi-square; five standard deviations)."""
    assert start <= min(found)
    assert max(found) < stop
    counts, cells = np.bincount(np.array(found) - start, minlength=stop - start), stop - start
    expected = len(found) / cells
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_slots_that_are_named_hold_the_rows_that_lie_there_now():
    with filled() as table:
        named, everything = table.select_slots(np.array([0, 99])), table.select_all()
        insert(table, 40)
        assert ids(table, named) == [100, 99]
        assert ids(table, everything) == [*range(100, 140), *range(40, 100)]


@pytest.fixture(params=["in-process", "single", "stream", "shared-memory stream"])
def batches(request) -> Iterator[tuple[object, object]]:
    """A buffer of 50 slots, and endless random batches of it."""
    if request.param == "in-process":
        with ReplayBuffer("cpu", "cpu", 50) as buffer:
            yield buffer, endless(buffer)
        return
    transport = "shared_memory" if request.param.startswith("shared") else "grpc"
    config = ServerConfig(address="127.0.0.1:0", buffer_size=50)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, transport=transport) as buffer:
        if request.param == "single":
            yield buffer, endless(buffer)
        else:
            buffer.add_batch(rows(50))
            with buffer.stream(64) as stream:
                yield buffer, stream


def endless(buffer) -> Iterator[object]:
    while True:
        yield buffer.sample_batch(64)


def test_every_row_is_whole_and_was_live_while_a_writer_overwrites_the_ring(batches):
    buffer, drawn_batches = batches
    if not buffer.size:
        buffer.add_batch(rows(50))
    over = threading.Event()

    def overwrite() -> None:
        count = 50
        while not over.is_set():
            buffer.add_batch(rows(7, start=count))
            count += 7

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        newest = 0
        for _, batch in zip(range(150), drawn_batches, strict=False):
            assert numbers(batch) == batch["row_id"].tolist()
            assert batch["row_id"].max() - batch["row_id"].min() < 50
            newest = max(newest, int(batch["row_id"].max()))
    finally:
        over.set()
        writer.join()
    assert newest > 50
