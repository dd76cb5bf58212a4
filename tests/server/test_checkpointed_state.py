"""What a sampler and a rate limiter know of the rows is in checkpoints, of one moment with the rows: priorities, passes, draws and counts."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tdreplay.errors import CorruptDataError, InvalidArgumentError
from tdreplay.rate_limiters import MinSize, SamplesPerInsert, Unlimited
from tdreplay.samplers import Fifo, MaxHeap, Prioritized, Sampler, WithoutReplacement
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server.checkpoints.restore import resize, restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.data_directory import table_directory
from tdreplay_server.tables.selection import BatchQuery
from tdreplay_server.tables.table import Table

SLOTS = 20
UNLIMITED = Unlimited()


@contextmanager
def opened(directory: Path, sampler: Sampler, buffer_size: int = SLOTS, limiter=UNLIMITED, most: int = 0) -> Iterator[Table]:
    config = TableConfig(buffer_size, sampler=sampler, rate_limiter=limiter, max_times_sampled=most)
    with closing(Table(config, directory=table_directory(directory, "default"), checkpoints=directory / "checkpoints/default")) as table:
        yield table


def insert(table: Table, count: int, priorities: list[float] | None = None) -> None:
    columns = {"number": torch.arange(count) + table.state().write_count}
    table.insert(columns, Schema.of(columns, ()), count, priorities=None if priorities is None else np.array(priorities))


def update(table: Table, priorities: dict[int, float]) -> tuple[int, int]:
    return table.update_priorities(np.array([*priorities]), np.array([*priorities.values()]))


def drawn(table: Table, rows: int) -> list[int]:
    """The ids of a batch, which is taken."""
    selection, leases = table.draw(BatchQuery(rows, described=True), 1, table.unseeded)
    ids: list[int] = table.take(selection)["row_id"].tolist()
    for lease in leases:
        lease.taken()
    return ids


def priorities(table: Table) -> dict[int, float]:
    """The ids of the live rows, those of the highest priorities first, and their priorities. The table is a MaxHeap."""
    batch = table.take(table.select_random(BatchQuery(table.state().size, described=True), table.unseeded(1)))
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


def restored(directory: Path, buffer_size: int | None = None) -> Path:
    """The data directory of a table that is restored from the checkpoint 'c'."""
    target = directory / "restored"
    shutil.rmtree(target, ignore_errors=True)
    restore(directory / "checkpoints/default/c", target, "default", buffer_size=buffer_size)
    list(verified(target))
    return target


@pytest.mark.parametrize("buffer_size", [SLOTS, 7, 50])
def test_a_restored_table_has_the_priorities_of_the_checkpoints_moment_whatever_its_capacity(buffer_size, tmp_path):
    with opened(tmp_path, MaxHeap()) as table:
        insert(table, 30, [float(row_id) for row_id in range(30)])
        update(table, {15: 77.0, 25: 0.0})
        table.checkpoint("c")
        update(table, dict.fromkeys(range(10, 30), 500.0))
        insert(table, 3, [1000.0, 1001.0, 1002.0])
    then = {row_id: {15: 77.0, 25: 0.0}.get(row_id, float(row_id)) for row_id in range(10, 30)}
    with opened(restored(tmp_path, buffer_size), MaxHeap(), buffer_size) as table:
        assert priorities(table) == {row_id: one for row_id, one in then.items() if row_id >= 30 - buffer_size}
        insert(table, 1)
        assert priorities(table)[30] == 77.0  # The highest one so far, though its row may not be there.


@pytest.mark.parametrize("buffer_size", [7, 50])
def test_a_resized_table_goes_on_with_its_priorities(buffer_size, tmp_path):
    with opened(tmp_path, MaxHeap()) as table:
        insert(table, 30, [float(row_id) for row_id in range(30)])
        update(table, {15: 77.0, 25: 0.0})
    resize(tmp_path, "default", buffer_size)
    with opened(tmp_path, MaxHeap(), buffer_size) as table:
        then = {row_id: {15: 77.0, 25: 0.0}.get(row_id, float(row_id)) for row_id in range(max(10, 30 - buffer_size), 30)}
        assert priorities(table) == then
        insert(table, 1)
        assert priorities(table)[30] == 77.0


def test_a_capacity_that_the_rate_limiter_cannot_work_with_is_refused(tmp_path):
    """A server would not open the table, and so not start."""
    limiter = MinSize(10)
    with opened(tmp_path, Fifo(), limiter=limiter) as table:
        insert(table, 15)
        table.checkpoint("c")
    with pytest.raises(InvalidArgumentError, match=r"min_size \(10\) must not be above buffer_size \(9\)"):
        resize(tmp_path, "default", 9)
    with pytest.raises(InvalidArgumentError, match=r"min_size \(10\) must not be above buffer_size \(9\)"):
        restored(tmp_path, 9)
    assert not (tmp_path / "restored").exists()
    with opened(tmp_path, Fifo(), limiter=limiter) as table:
        assert table.state().size == 15


def test_a_restored_table_goes_on_in_its_pass(tmp_path):
    with opened(tmp_path, WithoutReplacement()) as table:
        insert(table, SLOTS)
        before = drawn(table, 8)
        table.checkpoint("c")
        drawn(table, 5)
    with opened(restored(tmp_path), WithoutReplacement()) as table:
        assert sorted(before + drawn(table, SLOTS - 8)) == list(range(SLOTS))


@pytest.mark.parametrize("buffer_size", [SLOTS, 50])
def test_a_restored_table_goes_on_with_what_was_drawn_and_counted(buffer_size, tmp_path):
    limiter = SamplesPerInsert(2.0, 1, 16.0)
    with opened(tmp_path, Fifo(), limiter=limiter, most=2) as table:
        insert(table, 8)
        assert drawn(table, 4) + drawn(table, 4) + drawn(table, 3) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
        table.checkpoint("c")
        drawn(table, 2)
    with opened(restored(tmp_path, buffer_size), Fifo(), buffer_size, limiter, most=2) as table:
        described = table.describe()
        assert (described.insert_count, described.sample_count, described.available) == (8, 11, 5)
        assert drawn(table, 5) == [4, 5, 6, 7, 7]


def test_leases_are_given_back_by_a_restore_and_are_not_draws(tmp_path):
    with opened(tmp_path, Fifo(), most=1) as table:
        insert(table, 10)
        _, leases = table.draw(BatchQuery(4), 1, table.unseeded)
        table.checkpoint("c")
        leases[0].taken()
    with opened(restored(tmp_path), Fifo(), most=1) as table:
        assert table.describe().leased == 0
        assert drawn(table, 10) == list(range(10))


@pytest.mark.parametrize("sampler", [Prioritized(0.6), MaxHeap(), WithoutReplacement()], ids=str)
def test_a_table_without_rows_is_checkpointed_and_restored(sampler, tmp_path):
    with opened(tmp_path, sampler, most=3) as table:
        table.checkpoint("c")
    with opened(restored(tmp_path), sampler, most=3) as table:
        insert(table, 2)
        assert set(drawn(table, 6)) == {0, 1}


@contextmanager
def working(*works: Callable[[], object]) -> Iterator[None]:
    """Does works again and again, each in a thread of its own."""
    stop = threading.Event()

    def work_on(work: Callable[[], object]) -> None:
        while not stop.is_set():
            work()

    threads = [threading.Thread(target=work_on, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_priorities_of_a_checkpoint_are_of_one_moment_while_updates_and_inserts_go_on(tmp_path):
    """Each update gives all rows the same priority, a higher one each time. So these rows, and the highest priority so far, are of one update."""
    slots, numbers = 200_000, itertools.count(2)
    with opened(tmp_path, MaxHeap(), slots) as table:
        insert(table, slots, [1.0] * slots)

        def update_all() -> None:
            written = table.state().write_count
            table.update_priorities(np.arange(written - slots, written), np.full(slots, float(next(numbers))))

        with working(update_all, lambda: insert(table, 16)):
            found = [priorities_of_a_moment(table, tmp_path, slots) for _ in range(4)]
    assert len(set(map(tuple, found))) > 1
    assert [one for one in found if len(one) > 1] == []


def priorities_of_a_moment(table: Table, directory: Path, slots: int) -> list[float]:
    """What the rows of a checkpoint that is made now have for priorities, those whom no insert wrote meanwhile, and what the next row would have."""
    made = table.checkpoint("c")
    with opened(restored(directory), MaxHeap(), slots) as again:
        found = priorities(again)
        insert(again, 1)
        following = priorities(again)[made.write_count]
    return sorted({following, *(found[row_id] for row_id in range(made.write_count - slots, made.write_count - slots // 2))})


def test_the_draws_of_a_checkpoint_are_of_one_moment_while_rows_are_inserted_and_taken(tmp_path):
    """Whatever the moment: each draw that is counted is one of a row."""
    slots, most, limiter = 100_000, 1000, MinSize(1)
    with opened(tmp_path, Fifo(), slots, limiter, most) as table:
        insert(table, slots // 2)
        with working(lambda: drawn(table, slots // 2), lambda: insert(table, 1)):
            for _ in range(5):
                table.checkpoint("c")
                with opened(restored(tmp_path), Fifo(), slots, limiter, most) as again:
                    found = again.describe()
                assert found.available == most * found.insert_count - found.sample_count


@pytest.mark.parametrize("change", ["missing", "truncated", "a byte changed"])
def test_verify_and_restore_notice_what_became_of_the_state_of_a_checkpoint(change, tmp_path):
    with opened(tmp_path, MaxHeap(), most=3) as table:
        insert(table, 10)
        table.checkpoint("c")
    made = tmp_path / "checkpoints/default/c"
    files = sorted(made.glob("state_*"))
    assert [file.name for file in files] == ["state_priority.rows", "state_times_sampled.rows"]
    for file in files:
        before = file.read_bytes()
        spoil(file, change)
        with pytest.raises(CorruptDataError, match=file.name):
            list(verified(made))
        with pytest.raises(CorruptDataError, match=file.name):
            restore(made, tmp_path / "restored", "default")
        file.write_bytes(before)
    assert "every byte checked" in next(iter(verified(made)))


@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_verify_and_a_start_notice_what_became_of_the_state_of_a_table(change, tmp_path):
    with opened(tmp_path, MaxHeap(), most=3) as table:
        insert(table, 10)
    files = sorted(tmp_path.glob("tables/default/rows-*/state_*"))
    assert [file.name for file in files] == ["state_priority.memmap", "state_times_sampled.memmap", "state_values.memmap"]
    for file in files:
        before = file.read_bytes()
        spoil(file, change)
        with pytest.raises(CorruptDataError, match=file.name):
            list(verified(tmp_path))
        with pytest.raises(CorruptDataError, match=file.name), opened(tmp_path, MaxHeap(), most=3):
            pass
        file.write_bytes(before)
    list(verified(tmp_path))


def spoil(file: Path, change: str) -> None:
    if change == "missing":
        file.unlink()
    elif change == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
