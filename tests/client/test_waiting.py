"""A client that is there before its server, a learner that is there before the first row, and the two lines of the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
from restarts import Phoenix

from conftest import numbers, rows
from tdreplay.errors import EmptyTableError, ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_client.transport.retry_budget import LONGEST_PAUSE, RetryBudget, jittered


@pytest.fixture
def phoenix(tmp_path) -> Iterator[Phoenix]:
    made = Phoenix(tmp_path / "data")
    yield made
    made.close()


def soon(work) -> threading.Timer:
    thread = threading.Timer(0.3, work)
    thread.start()
    return thread


def test_the_first_connection_waits_for_the_server(phoenix):
    starting = soon(phoenix.start)
    with RemoteReplayBuffer(phoenix.address, buffer_size=10, table="first", timeout=60) as buffer:
        buffer.add_batch(rows(3))
        assert numbers(buffer.sample_all()) == [0, 1, 2]
    starting.join()


def test_the_list_of_tables_waits_for_the_server(phoenix):
    starting = soon(phoenix.start)
    assert isinstance(RemoteReplayBuffer.tables(phoenix.address, timeout=60), list)
    starting.join()


def test_it_waits_as_long_as_the_timeout_says(phoenix):
    for connect in (RemoteReplayBuffer, RemoteReplayBuffer.tables):
        start = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=phoenix.address):
            connect(phoenix.address, timeout=1)
        assert 0.8 < time.monotonic() - start < 4


# -- the first row ------------------------------------------------------------------------------------------------------------------------------


def test_a_stream_waits_for_the_first_row(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=20) as buffer:
        adding = soon(lambda: buffer.add_batch(rows(1, 7)))
        with buffer.stream(3) as batches:
            assert numbers(next(batches)) == [7, 7, 7]
        adding.join()


def test_who_opens_a_stream_of_an_empty_table_may_add_its_first_rows(address, table):
    """The stream itself does not wait, and a table that is emptied while it is read is waited for as well."""
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=20) as buffer, buffer.stream(3) as batches:
        buffer.add_batch(rows(1, 7))
        assert numbers(next(batches)) == [7, 7, 7]
        buffer.reset()
        adding = soon(lambda: buffer.add_batch(rows(1, 8)))
        while (found := numbers(next(batches))) == [7, 7, 7]:
            pass  # Those that were on their way.
        assert found == [8, 8, 8]
        adding.join()
    with RemoteReplayBuffer(address, table=f"{table}-2", buffer_size=10) as buffer:
        buffer.stream(3).close()


def test_a_stream_goes_on_however_often_its_table_is_emptied(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=20) as buffer, buffer.stream(3) as batches:
        for number in range(150):
            buffer.add_batch(rows(1, number))
            while numbers(next(batches)) != [number] * 3:
                pass  # Those that were on their way.
            buffer.reset()


def test_a_dataset_waits_for_the_first_row(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=20) as buffer:
        adding = soon(lambda: buffer.add_batch(rows(1, 7)))
        assert numbers(next(iter(ReplayDataset(address, 3, table=table, timeout=20)))) == [7, 7, 7]
        adding.join()


def test_an_empty_table_is_an_error_when_the_time_is_over_and_at_once_where_nobody_waits(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=0.5) as buffer:
        for read, waits in [
            (lambda: buffer.sample_batch(3, wait=True), True),
            (lambda: next(buffer.stream(3)), True),
            (lambda: buffer.sample_batch(3), False),
            (lambda: buffer.get_next_batch(3), False),
            (lambda: buffer.stream(3, wait=False), False),
            (lambda: buffer.create_epoch_iterator(3), False),
        ]:
            start = time.monotonic()
            with pytest.raises(EmptyTableError):
                read()
            assert (time.monotonic() - start > 0.35) == waits


# -- the log ------------------------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_one_line_and_one_when_it_is_back(phoenix, caplog):
    caplog.set_level(logging.INFO, logger="tdreplay")
    phoenix.start()
    with RemoteReplayBuffer(phoenix.address, timeout=60) as buffer:
        buffer.add_batch(rows(10))
        batches = buffer.stream(4)
        next(batches)
        starting = phoenix.restart_meanwhile()
        reads = [buffer.state, lambda: buffer.sample_batch(3), lambda: buffer.add(rows(1)[0]), lambda: [next(batches) for _ in range(9)]]
        threads = [threading.Thread(target=read) for read in reads]
        for thread in [*threads]:
            thread.start()
        for thread in [*threads, starting]:
            thread.join(60)
        batches.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "tdreplay"]
    assert len(lines) == 2, lines
    assert phoenix.address in lines[0]
    assert lines[1] == f"server {phoenix.address} is back"
    assert caplog.records[0].levelno == logging.WARNING


# -- clients do not come back together ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_and_differ_from_client_to_client():
    pauses = [[budget.pause() for _ in range(8)] for budget in (RetryBudget(60.0), RetryBudget(60.0))]
    assert pauses[0] != pauses[1]
    for n, pair in enumerate(zip(*pauses, strict=True)):
        longest = min(0.05 * 2**n, LONGEST_PAUSE)
        assert all(longest / 2 <= pause <= longest for pause in pair)


def test_jitter_does_not_follow_the_seed_that_actors_share():
    import random

    def drawn() -> list[float]:
        random.seed(0)
        return [jittered(5.0) for _ in range(3)]

    assert drawn() != drawn()
