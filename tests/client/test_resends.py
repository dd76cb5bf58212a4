"""A server that dies and comes back: calls and streams go on by themselves, and each row is stored exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from restarts import Phoenix, add_until_stored, give_again, small, stored, wait_until_dead, wait_until_reached, wide
from tensordict import TensorDict

from conftest import freeze, numbers, rows, thaw
from tdreplay.errors import ClosedError, DeadlineError, EmptyTableError, ReplayError, SchemaError, ServerUnavailableError, TableChangedError
from tdreplay.rows import given_rows
from tdreplay.schema import Schema
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_client.writing.insert_state import Batch, Part
from tdreplay_client.writing.unacknowledged import MAX_RECORDS, UnacknowledgedInserts

pytest_plugins = ["restart_fixtures"]

CALLS = {
    "add": lambda b: b.add(rows(1, 10)[0]),
    "add_batch": lambda b: b.add_batch(rows(1, 10)),
    "sample_batch": lambda b: b.sample_batch(4),
    "sample_by_index": lambda b: b.sample_by_index([0]),
    "sample_all": lambda b: b.sample_all(),
    "state": lambda b: b.state(),
    "stream": lambda b: b.stream(4).close(),
    "create_epoch_iterator": lambda b: b.create_epoch_iterator(4),
}


def test_calls_wait_for_a_server_that_comes_back(phoenix, buffer):
    buffer.add_batch(rows(10))
    for _ in range(3):
        buffer.sample_batch(4)
    threads = [threading.Thread(target=CALLS[call], args=(buffer,)) for call in CALLS]
    starting = phoenix.restart_meanwhile()
    for thread in threads:
        thread.start()
    for thread in (*threads, starting):
        thread.join(90)
        assert not thread.is_alive()
    assert sorted(stored(buffer)) == [*range(10), 10, 10]


def test_a_call_gives_up_when_its_time_is_over(phoenix, short):
    phoenix.kill()
    for call in CALLS.values():
        start = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=phoenix.address):
            call(short)
        assert 0.3 < time.monotonic() - start < 2


@pytest.mark.parametrize("call", [lambda b: b.reset(), lambda b: b.drop(), lambda b: b.checkpoint("c")])
def test_what_must_not_be_repeated_fails_at_once(phoenix, buffer, call):
    phoenix.kill()
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=phoenix.address):
        call(buffer)
    assert time.monotonic() - start < 3


def test_closing_the_buffer_ends_a_call_that_waits_for_its_server(phoenix, buffer):
    failed = []

    def add() -> None:
        try:
            buffer.add_batch(rows(10))
        except ReplayError as error:
            failed.append(error)

    phoenix.kill()
    thread = threading.Thread(target=add)
    thread.start()
    time.sleep(0.5)  # Long enough for it to have tried.
    buffer.close()
    thread.join(2)
    assert not thread.is_alive()
    assert [type(error) for error in failed] == [ClosedError]


@pytest.mark.parametrize("make", [small, wide], ids=["small", "large"])
def test_batches_are_stored_once_while_the_server_dies_again_and_again(phoenix, buffer, make):
    done = threading.Event()

    def add() -> None:
        for first in range(0, 2000, 40):
            buffer.add_batch(make(first, 40))
            time.sleep(0.01)
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    for _ in range(2):
        time.sleep(0.2)
        phoenix.restart()
    thread.join(90)
    assert done.is_set()
    assert stored(buffer) == list(range(2000))


@pytest.fixture
def crowded(tmp_path) -> Iterator[Phoenix]:
    """A server that has no room for calls that are held open between inserts."""
    made = Phoenix(tmp_path / "data", max_workers=2, max_streams=1)
    made.start()
    yield made
    made.close()


def test_a_large_message_that_meets_a_server_that_starts_again_is_stored_once(crowded):
    """Sent alone, not over a call that is held open: the request of several MiB is sent again as it is."""
    with RemoteReplayBuffer(crowded.address, buffer_size=10, timeout=60) as buffer:
        batch = TensorDict({"x": torch.ones(1, 8 << 20, dtype=torch.uint8)}, [1])
        buffer.add_batch(batch)
        starting = crowded.restart_meanwhile()
        buffer.add_batch(batch)
        starting.join()
        assert buffer.state().write_count == 2


def test_threads_that_share_a_buffer_store_each_row_once(phoenix, buffer):
    def add(first: int) -> None:
        for number in range(first, first + 200):
            buffer.add(rows(1, number)[0])

    threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    phoenix.restart()
    for thread in threads:
        thread.join(90)
    assert sorted(stored(buffer)) == list(range(800))


# -- the same rows, given again -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "make"), [("add", small), ("add_batch", small), ("add_batch", wide)])
def test_what_is_given_again_after_a_deadline_is_stored_once(phoenix, short, make, call):
    count = 1 if call == "add" else 500
    given = make(100, count)[0] if call == "add" else make(100, count)
    short.add_batch(make(0, 100))
    freeze(phoenix.server.pid)
    try:
        for _ in range(2):
            with pytest.raises(DeadlineError):
                getattr(short, call)(given)
    finally:
        thaw(phoenix.server.pid)
    add_until_stored(short, call, given)
    assert stored(short) == list(range(100 + count))


@pytest.mark.parametrize("make", [small, wide], ids=["small", "large"])
def test_batches_that_a_user_repeats_are_stored_once_while_the_server_dies(phoenix, short, make):
    thread = threading.Thread(target=lambda: [add_until_stored(short, "add_batch", make(first, 300)) for first in range(0, 3000, 300)])
    thread.start()
    time.sleep(0.3)
    phoenix.restart()
    thread.join(90)
    assert stored(short) == list(range(3000))


@pytest.mark.parametrize(("make", "how"), [(small, "by itself"), (wide, "by itself"), (small, "add_batch"), (wide, "extend")])
def test_rows_whose_acknowledgement_was_lost_are_stored_once(phoenix, open_buffer, monkeypatch, make, how):
    """The server dies between the moment when the first block of the second batch is stored and its acknowledgement."""
    monkeypatch.setenv("TDREPLAY_FAILPOINT", f"insert-after-commit:{2 if make is small else 3}")
    phoenix.restart()
    monkeypatch.delenv("TDREPLAY_FAILPOINT")
    buffer = open_buffer(timeout=60 if how == "by itself" else 2)
    buffer.add_batch(make(0, 100))
    if how == "by itself":
        starting = threading.Thread(target=lambda: (wait_until_dead(phoenix), phoenix.restart()))
        starting.start()
        buffer.add_batch(make(100, 100))
        starting.join()
    else:
        with pytest.raises(ServerUnavailableError):
            buffer.add_batch(make(100, 100))
        phoenix.restart()
        give_again(buffer, how, make(100, 100))
    assert stored(buffer) == list(range(200))


def test_rows_that_are_inserted_again_get_the_row_ids_of_the_first_time(phoenix, open_buffer, monkeypatch):
    monkeypatch.setenv("TDREPLAY_FAILPOINT", "insert-after-commit:5")
    phoenix.restart()
    monkeypatch.delenv("TDREPLAY_FAILPOINT")
    buffer, given = open_buffer(timeout=2), given_rows(wide(0, 500))
    with pytest.raises(ServerUnavailableError):
        buffer.insert(given)
    phoenix.restart()
    wait_until_reached(buffer)
    assert buffer.insert(given).tolist() == buffer.sample_all()["row_id"].tolist() == list(range(500))


def test_other_rows_may_come_between_a_failure_and_its_repetition(phoenix, short):
    freeze(phoenix.server.pid)
    try:
        with pytest.raises(DeadlineError):
            short.add_batch(rows(50))
    finally:
        thaw(phoenix.server.pid)
    for number in range(100, 200):  # More than the server remembers of one writer id.
        add_until_stored(short, "add_batch", rows(1, number))
    add_until_stored(short, "add_batch", rows(50))
    assert sorted(stored(short)) == [*range(50), *range(100, 200)]


def test_rows_that_were_stored_may_be_added_again(buffer):
    for _ in range(3):
        buffer.add_batch(rows(10))
    assert stored(buffer) == list(range(10)) * 3


def test_a_reset_forgets_what_was_unacknowledged(phoenix, open_buffer, monkeypatch):
    """The server dies before it acknowledges what it stored. The same rows are new ones after a reset, and not those sent once more."""
    monkeypatch.setenv("TDREPLAY_FAILPOINT", "insert-after-commit:2")
    phoenix.restart()
    monkeypatch.delenv("TDREPLAY_FAILPOINT")
    buffer = open_buffer(timeout=2)
    buffer.add_batch(rows(10))
    with pytest.raises(ServerUnavailableError):
        buffer.add_batch(rows(10, 10))
    phoenix.restart()
    wait_until_reached(buffer)
    buffer.reset()
    buffer.add_batch(rows(10, 10))
    assert stored(buffer) == list(range(10, 20))


def test_so_many_failures_are_remembered_and_no_more():
    unacknowledged, column = UnacknowledgedInserts(), {"n": torch.arange(1)}
    schema = Schema.of(column)
    for _ in range(MAX_RECORDS + 5):
        part = Part(unacknowledged.writer_ids.take().next(), 0, 1)
        assert unacknowledged.note(Batch(column, schema, 1, parts=(part,)), DeadlineError())
    claimed = [unacknowledged.claim(column, schema, 1).resumed for _ in range(MAX_RECORDS + 1)]
    assert claimed == [True] * MAX_RECORDS + [False]


def test_a_refused_insert_is_not_remembered():
    unacknowledged, column = UnacknowledgedInserts(), {"n": torch.arange(1)}
    schema = Schema.of(column)
    part = Part(unacknowledged.writer_ids.take().next(), 0, 1)
    assert not unacknowledged.note(Batch(column, schema, 1, parts=(part,)), SchemaError())
    assert not unacknowledged.claim(column, schema, 1).resumed


# -- streams ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small, wide], ids=["small", "large"])
def test_a_stream_goes_on_by_itself(phoenix, buffer, make):
    buffer.add_batch(make(0, 100))
    with buffer.stream(32, prefetch=4) as batches:
        for _ in range(5):
            next(batches)
        shared = batches.shared
        starting = phoenix.restart_meanwhile()
        drawn = [next(batches) for _ in range(20)]
        starting.join()
        assert batches.shared == shared == (make is wide)
    assert all(len(batch) == 32 for batch in drawn)
    assert all(torch.equal(batch["index"], batch["action" if make is small else "n"]) for batch in drawn)


def test_a_stream_whose_server_does_not_come_back_is_an_error_that_names_it(phoenix, short):
    short.add_batch(rows(100))
    batches = short.stream(4)
    next(batches)
    phoenix.kill()
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=phoenix.address):
        list(batches)
    assert time.monotonic() - start < 2
    with pytest.raises(StopIteration):
        next(batches)


def test_a_stream_over_a_table_that_came_back_empty_says_so(phoenix, open_buffer):
    buffer = open_buffer(timeout=6)  # So long it hopes for a row.
    buffer.add_batch(rows(10))
    batches = buffer.stream(4)
    next(batches)
    phoenix.restart()
    with RemoteReplayBuffer(phoenix.address, table=buffer.table) as other:
        other.reset()
    with pytest.raises(EmptyTableError):
        list(batches)


@pytest.mark.parametrize("begin", ["epochs", "create_epoch_iterator"])
def test_epochs_go_on_where_they_stood_when_the_server_is_back(phoenix, buffer, begin):
    buffer.add_batch(rows(1000))
    batches = getattr(buffer, begin)(7, 2, shuffle=True)
    taken = [numbers(next(batches)) for _ in range(30)]
    starting = phoenix.restart_meanwhile()
    taken += map(numbers, batches)
    starting.join()
    for epoch in (taken[:143], taken[143:]):
        assert sorted(number for batch in epoch for number in batch) == list(range(1000))


def test_epochs_over_a_table_that_was_reset_meanwhile_say_so(phoenix, buffer):
    buffer.add_batch(rows(1000))
    batches = buffer.epochs(1)
    next(batches)
    phoenix.restart()
    with RemoteReplayBuffer(phoenix.address, table=buffer.table) as other:
        other.reset()
        other.add_batch(rows(1000))
    with pytest.raises(TableChangedError):
        list(batches)


def test_a_dataset_goes_on_by_itself(phoenix, buffer):
    buffer.add_batch(rows(100))
    batches = iter(ReplayDataset(phoenix.address, 8, table=buffer.table, timeout=60))
    next(batches)
    starting = phoenix.restart_meanwhile()
    for _ in range(10):
        assert len(numbers(next(batches))) == 8
    starting.join()
    batches.close()
