"""A server that refuses: what has too much to do is waited for, and all else is said at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from doors import Door, door_to
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.errors import (
    InternalError,
    MessageTooLargeError,
    OverloadedError,
    PermissionDeniedError,
    ReplayError,
    ResourceExhaustedError,
    StreamLimitError,
    UnauthenticatedError,
)
from tdreplay_client import RemoteReplayBuffer, Writer
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[str]:
    """The address of a server with a data directory."""
    config = ServerConfig(address="127.0.0.1:0", data_dir=tmp_path_factory.mktemp("overload") / "data", max_tables=10_000)
    with ReplayServer(config) as server:
        yield server.address


@pytest.fixture
def door(kept) -> Iterator[Door]:
    with door_to(kept) as made:
        yield made


@pytest.fixture
def buffer(door, table) -> Iterator[RemoteReplayBuffer]:
    """A table with the rows from 0 to 9, behind the door."""
    with RemoteReplayBuffer(door.address, table=table, buffer_size=1000, sampler="prioritized", timeout=10, transport="grpc") as made:
        made.add_batch(rows(10))
        yield made


def busy(method: str = "", times: int = 2, retry_after: float = 0.05):
    """Refuses the first calls of a method, or of all methods: the server has too much to do."""
    seen: dict[str, int] = {}

    def refusal(called: str, _number: int) -> ReplayError | None:
        if method not in ("", called):
            return None
        seen[called] = seen.get(called, 0) + 1
        return OverloadedError("too much to do", limit="max_calls", retry_after=retry_after) if seen[called] <= times else None

    return refusal


def stored(buffer: RemoteReplayBuffer) -> list[int]:
    """The numbers of all rows that were stored, however often."""
    assert buffer.describe().insert_count == buffer.size
    return sorted(numbers(buffer.sample_all().exclude("priority", "probability", "index", "row_id")))


def written(buffer: RemoteReplayBuffer) -> None:
    with buffer.writer(flush_rows=8) as writer:
        append(writer, range(10, 40))


def append(writer: Writer, which: range) -> None:
    for number in which:
        writer.append(rows(1, number)[0])
    writer.flush()


def of_stream(buffer: RemoteReplayBuffer) -> None:
    with buffer.stream(4) as batches:
        assert len(next(batches)) == len(next(batches)) == 4


CALLS = {
    "describe": lambda buffer: buffer.describe(),
    "size": lambda buffer: buffer.size,
    "add": lambda buffer: buffer.add(rows(1, 10)[0]),
    "add_batch": lambda buffer: buffer.add_batch(rows(30, 10)),
    "writer": written,
    "sample_batch": lambda buffer: [buffer.sample_batch(4) for _ in range(3)],
    "seeded sample_batch": lambda buffer: buffer.sample_batch(4, seed=1),
    "sample_by_index": lambda buffer: buffer.sample_by_index([1]),
    "sample_all": lambda buffer: buffer.sample_all(),
    "stream": of_stream,
    "epoch": lambda buffer: list(buffer.create_epoch_iterator(4)),
    "update_priorities": lambda buffer: buffer.update_priorities([1, 2], [1.0, 2.0]),
    "checkpoint": lambda buffer: buffer.checkpoint("busy"),
    "reset": lambda buffer: buffer.reset(),
    "drop": lambda buffer: buffer.drop(),
    "tables": lambda buffer: RemoteReplayBuffer.tables(buffer.address, timeout=10),
    "server_status": lambda buffer: RemoteReplayBuffer.server_status(buffer.address, timeout=10),
    "open": lambda buffer: RemoteReplayBuffer(buffer.address, table=buffer.table, timeout=10).close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_waits_for_a_server_that_has_too_much_to_do(buffer, door, call):
    door.refusal = busy()
    CALLS[call](buffer)
    door.refusal = busy(times=0)
    if call not in ("reset", "drop"):
        wrote = {"add": 1, "add_batch": 30, "writer": 30}.get(call, 0)
        assert stored(buffer) == list(range(10 + wrote))


@pytest.mark.parametrize("call", ["add_batch", "writer"])
def test_blocks_that_were_on_their_way_are_stored_once(buffer, door, call):
    """The call is refused after the acknowledgement of its first block: what follows goes out again."""
    door.refusal, door.after_messages = busy("AddBatch", times=1), 1
    if call == "writer":
        written(buffer)
    else:
        many = TensorDict({**rows(600, 10), "pad": torch.zeros(600, 4096)}, [600])  # Several blocks.
        buffer.drop()
        with RemoteReplayBuffer(door.address, table=buffer.table, buffer_size=1000, timeout=10, transport="grpc") as other:
            other.add_batch(many)
            assert other.describe().insert_count == 600
            assert sorted(other.sample_all()["action"].tolist()) == list(range(10, 610))
        return
    assert stored(buffer) == list(range(40))


def test_a_stream_that_is_refused_in_its_middle_goes_on(buffer, door):
    with buffer.stream(4, seed=3) as batches:
        expected = [numbers(next(batches).select("obs", "action", "done", "next")) for _ in range(6)]
    door.refusal, door.after_messages = busy("Sample", times=2), 2
    with buffer.stream(4, seed=3) as batches:
        assert [numbers(next(batches).select("obs", "action", "done", "next")) for _ in range(6)] == expected


@pytest.mark.parametrize("call", ["describe", "add", "stream", "checkpoint"])
def test_when_the_time_is_over_the_error_has_the_limit(buffer, door, call):
    with RemoteReplayBuffer(door.address, table=buffer.table, timeout=2, transport="grpc") as hasty:
        door.refusal = busy(times=1000)
        began = time.monotonic()
        with pytest.raises(OverloadedError, match="too much to do") as raised:
            CALLS[call](hasty)
        assert 1 < time.monotonic() - began < 10
    assert (raised.value.limit, raised.value.retry_after, raised.value.request_id) == ("max_calls", 0.05, "request-7")


def test_a_server_that_says_later_than_there_is_time_for_is_not_waited_for(buffer, door):
    door.refusal = busy(times=1000, retry_after=60.0)
    began = time.monotonic()
    with pytest.raises(OverloadedError):
        buffer.describe()
    assert time.monotonic() - began < 5


def test_a_writer_that_finds_no_room_in_time_hands_its_rows_back(door, table):
    with RemoteReplayBuffer(door.address, table=table, buffer_size=1000, timeout=2, transport="grpc") as buffer:
        buffer.add_batch(rows(10))
        door.refusal = busy("AddBatch", times=1000)
        writer = buffer.writer(flush_rows=4)
        with pytest.raises(OverloadedError) as raised:
            append(writer, range(10, 20))
        door.refusal = busy(times=0)
        with buffer.writer() as writer:
            writer.extend(raised.value.rows)
        assert stored(buffer)[: 10 + len(raised.value.rows)] == list(range(10 + len(raised.value.rows)))


AT_ONCE = [
    MessageTooLargeError("a row of 100 MiB", limit="max_message_bytes"),
    ResourceExhaustedError("Received message larger than max (9 vs. 4)"),
    ResourceExhaustedError("too many tables", limit="max_tables"),
    StreamLimitError("no room", limit="max_streams", retry_after=None),
    UnauthenticatedError("nobody knows you"),
    PermissionDeniedError("a reader does not insert"),
]


@pytest.mark.parametrize("error", AT_ONCE, ids=lambda error: f"{type(error).__name__}-{error}")
@pytest.mark.parametrize(
    ("call", "method"), [("describe", "Describe"), ("stream", "Sample"), ("checkpoint", "Checkpoint"), ("sample_all", "SampleAll")]
)
def test_what_will_not_mend_itself_is_said_at_once(buffer, door, error, call, method):
    before = door.calls[method]
    door.refusal = lambda called, _number: error if called == method else None
    with pytest.raises(type(error), match=str(error).partition("(")[0]):
        CALLS[call](buffer)
    assert door.calls[method] == before + 1


@pytest.mark.parametrize("kind", [UnauthenticatedError, PermissionDeniedError])
def test_a_writer_whose_token_is_revoked_goes_on_until_its_call_ends_and_then_keeps_its_rows(buffer, door, kind):
    with buffer.writer(flush_rows=1, max_in_flight=2) as writer:
        append(writer, range(10, 20))
        opened = door.calls["AddBatch"]
        door.refusal = lambda called, _number: kind("revoked") if called in ("AddBatch", "Add") else None
        append(writer, range(20, 30))  # The call that is open goes on.
        assert door.calls["AddBatch"] == opened
        door.hang_up()
        with pytest.raises(kind, match="revoked") as raised:
            append(writer, range(30, 40))
    assert door.calls["AddBatch"] == opened + 1
    assert raised.value.rows["action"][-1] == stored(buffer)[-1] + len(raised.value.rows)
    door.refusal = busy(times=0)
    with buffer.writer() as writer:
        writer.extend(raised.value.rows)
    assert stored(buffer) == list(range(raised.value.rows["action"][-1] + 1))


def test_a_token_that_its_file_has_anew_is_used(buffer, door, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("tdr_old")
    monkeypatch.setenv("TDREPLAY_TOKEN_FILE", str(file))
    with RemoteReplayBuffer(door.address, table=buffer.table, timeout=10) as other:
        assert door.tokens[-1] == "tdr_old"
        file.write_text("tdr_new\n")
        door.refusal = lambda *_: UnauthenticatedError("revoked") if door.tokens[-1] == "tdr_old" else None
        assert other.size == 10
        assert door.tokens[-2:] == ["tdr_old", "tdr_new"]
        door.refusal = lambda *_: UnauthenticatedError("revoked")
        with pytest.raises(UnauthenticatedError):
            assert other.size
        assert door.tokens[-2:] == ["tdr_new", "tdr_new"]


def test_an_error_has_the_name_of_its_call_in_the_log(buffer, door):
    door.refusal = lambda *_: InternalError("a bug")
    with pytest.raises(InternalError, match="request-7") as raised:
        buffer.describe()
    assert raised.value.request_id == "request-7"


def test_a_server_with_too_much_to_do_is_one_line_in_the_log(buffer, door, caplog):
    door.refusal = busy(times=4, retry_after=0.01)
    with caplog.at_level(logging.WARNING, "tdreplay"):
        buffer.describe()
    assert [record.message for record in caplog.records if "too much to do" in record.message] == [
        f"server {door.address} has too much to do (too much to do); calls wait up to 10 s for it"
    ]


def test_clients_that_were_refused_together_do_not_come_back_together():
    first = [RetryBudget(100).overload_pause(1.0) for _ in range(200)]
    assert 1.0 <= min(first) < 1.1 < 1.9 < max(first) <= 2.0
    budget = RetryBudget(100)
    pauses = [budget.overload_pause(1.0) for _ in range(8)]
    assert 8 <= pauses[-1] <= 16  # They grow, up to a bound.
    assert RetryBudget(1.0).overload_pause(0.9) <= 0.9


def test_a_stream_waits_for_another_one_to_end():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100, max_workers=4, max_streams=1)) as server:
        with RemoteReplayBuffer(server.address, timeout=10) as buffer, buffer.stream(4, wait=True) as held:
            buffer.add_batch(rows(10))
            assert len(next(held)) == 4
            timer = threading.Timer(0.3, held.close)
            timer.start()
            with buffer.stream(4) as batches:
                assert len(next(batches)) == 4
            timer.join()
