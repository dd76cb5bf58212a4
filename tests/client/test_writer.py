"""Pipelined inserts: what is appended is stored, in order, once; what cannot be is handed back."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from children import server_process
from conftest import freeze, numbers, rows, thaw
from tdreplay.errors import ClosedError, CodecError, DeadlineError, InvalidArgumentError, SchemaError, ServerUnavailableError
from tdreplay.fields import DTYPES
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig


@pytest.fixture
def buffer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10_000, timeout=10) as made:
        yield made


def row(number: int) -> dict[str, object]:
    """The row that `conftest.rows` has, as actors have it: arrays and scalars."""
    obs = np.full(3, number, np.float32)
    return {"obs": obs, "action": number, "done": number % 2 == 0, "next": {"obs": obs + 1}}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("kind", ["dict", "TensorDict"])
def test_appended_rows_are_stored_in_order(buffer, n, kind):
    with buffer.writer() as writer:
        for number in range(n):
            writer.append(row(number) if kind == "dict" else rows(1, number)[0])
    assert numbers(buffer.sample_all()) == list(range(n))
    assert buffer.state().write_count == n


def test_flush_returns_when_every_row_is_stored(buffer):
    with buffer.writer(flush_rows=50, flush_seconds=1000) as writer:
        for number in range(130):
            writer.append(row(number))
        writer.flush(10)
        assert buffer.size == 130
        writer.append(row(130))
    assert buffer.size == 131


def test_rows_that_wait_are_sent_by_themselves(buffer):
    with buffer.writer(flush_rows=1000, flush_seconds=0.05) as writer:
        writer.append(row(0))
        deadline = time.monotonic() + 10
        while buffer.size == 0:
            assert time.monotonic() < deadline
        writer.append(row(1))
    assert numbers(buffer.sample_all()) == [0, 1]


@pytest.mark.parametrize("seconds", [np.float32(0.1), torch.tensor(0.1), 1, None, float("inf"), 1e300])
def test_seconds_may_be_any_number_above_zero(buffer, seconds):
    with buffer.writer(flush_seconds=seconds) as writer:
        writer.append(row(0))
        if seconds is not None and seconds < 1:
            deadline = time.monotonic() + 10
            while buffer.size == 0:
                assert time.monotonic() < deadline
        writer.flush(seconds)
    assert numbers(buffer.sample_all()) == [0]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1", True])
def test_a_timeout_that_is_no_number_above_zero_is_refused_and_the_writer_goes_on(buffer, seconds):
    with buffer.writer() as writer:
        writer.append(row(0))
        for call in (writer.flush, writer.close):
            with pytest.raises(InvalidArgumentError, match="timeout"):
                call(seconds)
        writer.append(row(1))
    assert numbers(buffer.sample_all()) == [0, 1]


def test_batches_and_rows_of_one_writer_keep_their_order(buffer):
    with buffer.writer() as writer:
        writer.append(row(0))
        writer.extend(rows(100, 1))
        writer.append(row(101))
        writer.extend(rows(300, 102))
    assert numbers(buffer.sample_all()) == list(range(402))


def test_rows_larger_than_a_block_are_stored(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=5) as buffer:
        with buffer.writer() as writer:
            for number in range(5):
                writer.append({"x": torch.full((4 << 20,), number, dtype=torch.uint8)})
        assert buffer.sample_all()["x"][:, -1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_can_be_appended(buffer, dtype):
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (3, 2 * dtype.itemsize), dtype=torch.uint8)
    column = raw.bool() if dtype is torch.bool else raw.view(dtype)
    with buffer.writer() as writer:
        for value in column:
            writer.append({"x": value, "scalar": value[0], "nothing": value[:0]})
    stored = buffer.sample_all()
    assert torch.equal(stored["x"].view(torch.uint8), column.view(torch.uint8))
    assert torch.equal(stored["scalar"].view(torch.uint8), column[:, 0].contiguous().view(torch.uint8))
    assert stored["nothing"].shape == (3, 0)


def test_gradients_views_and_conjugates_can_be_appended(buffer):
    complex_value = torch.view_as_complex(torch.rand(2, 2))
    with buffer.writer() as writer:
        writer.append({"g": torch.ones(2, requires_grad=True) * 3, "t": torch.arange(6.0).view(2, 3).T, "c": complex_value.conj()})
    stored = buffer.sample_all()
    assert torch.equal(stored["g"][0], torch.full((2,), 3.0))
    assert torch.equal(stored["t"][0], torch.arange(6.0).view(2, 3).T)
    assert torch.equal(stored["c"][0], complex_value.conj())


def test_what_was_appended_is_copied(buffer):
    obs = np.zeros(3, np.float32)
    with buffer.writer() as writer:
        for number in range(4):
            obs[:] = number
            writer.append({"obs": obs})
    assert buffer.sample_all()["obs"][:, 0].tolist() == [0, 1, 2, 3]


BAD = {
    "missing field": ({"obs": np.zeros(3, np.float32)}, SchemaError, "'action'"),
    "extra field": ({**row(1), "extra": 1}, SchemaError, "'extra'"),
    "wrong dtype": ({**row(1), "obs": np.zeros(3)}, SchemaError, "'obs'.*F32.*float64"),
    "wrong tensor dtype": ({**row(1), "obs": torch.zeros(3, dtype=torch.int32)}, SchemaError, "'obs'.*F32.*I32"),
    "wrong shape": ({**row(1), "obs": np.zeros(1, np.float32)}, SchemaError, r"'obs'.*F32\[3\].*\[1\]"),
    "float for an int": ({**row(1), "action": 0.5}, SchemaError, "'action'.*float 0.5"),
    "scalar for an array": ({**row(1), "obs": 1.0}, SchemaError, "'obs'"),
    "text": ({**row(1), "action": "left"}, SchemaError, "'action'.*'left'"),
    "key with a dot": ({**row(1), "a.b": 1}, CodecError, r"'a\.b'"),
    "not a row": ([1, 2], CodecError, "list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_does_not_fit_is_refused_and_the_writer_goes_on(buffer, case):
    bad, error, words = BAD[case]
    with buffer.writer() as writer:
        writer.append(row(0))
        with pytest.raises(error, match=words):
            writer.append(bad)
        writer.append(row(1))
    assert numbers(buffer.sample_all()) == [0, 1]


def test_rows_that_the_table_refuses_come_back_with_the_error(buffer):
    buffer.add_batch(rows(5))
    writer = buffer.writer(flush_rows=2)
    with pytest.raises(SchemaError, match=r"'action'.*missing") as raised:
        append_until_it_fails(writer, lambda number: {"x": number})
    returned = raised.value.rows["x"].tolist()
    assert returned == list(range(len(returned)))
    assert len(returned) >= 2
    with pytest.raises(ClosedError):
        writer.append({"x": 0})
    assert numbers(buffer.sample_all()) == list(range(5))


def append_until_it_fails(writer, make, seconds: float = 20.0) -> None:
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        writer.append(make(number))
        number += 1


def test_append_blocks_while_too_much_is_in_flight_and_a_frozen_server_is_a_deadline_error():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=10_000)) as server:
        with RemoteReplayBuffer(server.address, timeout=1) as buffer:
            writer = buffer.writer(flush_rows=10, max_in_flight=3)
            writer.append(row(0))
            writer.flush()
            freeze(server.pid)
            try:
                start = time.monotonic()
                with pytest.raises(DeadlineError, match=server.address) as raised:
                    append_until_it_fails(writer, lambda number: row(number + 1))
                assert time.monotonic() - start < 4
                # Three blocks on their way; the fourth was full, and had nowhere to go.
                assert numbers(raised.value.rows) == list(range(1, 41))
            finally:
                thaw(server.pid)


def test_a_batch_that_cannot_be_sent_whole_comes_back_whole():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server:
        with RemoteReplayBuffer(server.address, timeout=1) as buffer:
            writer = buffer.writer(max_in_flight=2)
            writer.append({"n": 0, "x": np.zeros(1 << 20, np.uint8)})
            writer.flush()
            freeze(server.pid)
            try:
                batch = TensorDict({"n": torch.arange(1, 31), "x": torch.zeros(30, 1 << 20, dtype=torch.uint8)}, [30])
                with pytest.raises(DeadlineError) as raised:
                    writer.extend(batch)
            finally:
                thaw(server.pid)
            assert raised.value.rows["n"].tolist() == list(range(1, 31))


def test_every_row_is_stored_or_handed_back_when_the_server_dies():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=10_000)) as server:
        with RemoteReplayBuffer(server.address, timeout=5) as buffer:
            writer = buffer.writer(flush_rows=7)
            for number in range(1000):
                writer.append(row(number))
            writer.flush()
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(ServerUnavailableError, match=server.address) as raised:
                append_until_it_fails(writer, lambda number: row(1000 + number))
            returned = numbers(raised.value.rows)
            assert returned == list(range(1000, 1000 + len(returned)))


def test_flush_times_out_with_the_rows_that_are_not_stored():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server:
        with RemoteReplayBuffer(server.address, timeout=30) as buffer:
            writer = buffer.writer(flush_seconds=100)
            writer.append(row(0))
            freeze(server.pid)
            try:
                with pytest.raises(DeadlineError) as raised:
                    writer.flush(0.5)
            finally:
                thaw(server.pid)
            assert numbers(raised.value.rows) == [0]


def test_a_closed_writer_says_so_and_leaves_no_thread(buffer):
    before = set(threading.enumerate())
    with buffer.writer() as writer:
        writer.append(row(0))
    writer.close()
    for call in (lambda: writer.append(row(1)), lambda: writer.extend(rows(2)), writer.flush):
        with pytest.raises(ClosedError):
            call()
    deadline = time.monotonic() + 10
    while any(thread.name == "tdreplay-reader" for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "arguments", [{"flush_rows": 0}, {"flush_seconds": 0}, {"flush_seconds": float("nan")}, {"flush_seconds": "1"}, {"max_in_flight": 0}]
)
def test_a_bad_setting_of_a_writer_is_refused(buffer, arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        buffer.writer(**arguments)


def test_two_writers_store_all_their_rows(buffer):
    def write(start: int) -> None:
        with buffer.writer(flush_rows=8) as writer:
            for number in range(start, start + 400):
                writer.append(row(number))

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    stored = numbers(buffer.sample_all())
    assert [number for number in stored if number < 1000] == list(range(400))
    assert [number for number in stored if number >= 1000] == list(range(1000, 1400))


def test_a_writer_of_batches_keeps_their_row_shape(buffer):
    segments = TensorDict({"obs": torch.rand(6, 5, 2)}, [6, 5])
    with buffer.writer() as writer:
        writer.append(segments[0])
        writer.extend(segments[1:])
    assert torch.equal(buffer.sample_all()["obs"], segments["obs"])
    assert buffer.sample_all().batch_size == torch.Size([6, 5])
