"""Tables that are made, used and removed at the same time: what comes of it is what would come of one after the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any

import grpc
import pytest
import torch
from tensordict import TensorDict

from children import server_process
from conftest import numbers, rows
from tdreplay.errors import (
    EmptyTableError,
    ReplayError,
    ResourceExhaustedError,
    SchemaError,
    TableChangedError,
    TableExistsError,
    TableNotFoundError,
)
from tdreplay.samplers import Prioritized
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.tables.selection import BatchQuery
from tdreplay_server.tables.table import Table

LOCAL = "127.0.0.1:0"
FIELDS, SLOTS = 700, 256


def config(data: Path | None, **settings: object) -> ServerConfig:
    return ServerConfig(address=LOCAL, data_dir=data, **settings)


def wide(value: int) -> TensorDict:
    """One row of many fields, each of which holds that value: a table of them takes long to remove."""
    return TensorDict({f"f{number}": torch.full((1, 64), value, dtype=torch.int64) for number in range(FIELDS)}, [1])


@contextmanager
def made(address: str, table: str, size: int = SLOTS) -> Iterator[RemoteReplayBuffer]:
    with RemoteReplayBuffer(address, table=table, buffer_size=size, timeout=60) as buffer:
        yield buffer


def hidden(data: Path) -> list[Path]:
    return [path for path in (data / "tables").iterdir() if path.name.startswith(".")]


def awaited(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.001)


# -- one after the other ----------------------------------------------------------------------------------------------------------------------


def test_a_table_that_is_made_while_one_of_its_name_is_removed_has_its_own_rows_and_survives_a_kill(tmp_path):
    data = tmp_path / "data"
    with server_process(config(data)) as server:
        for value in range(3):
            with made(server.address, "t") as buffer, dropped_meanwhile(server.address, data, buffer, value):
                with made(server.address, "t") as other:  # While the files of the last one are removed.
                    other.add_batch(wide(100 + value))
                    assert other.sample_all()["f0"].unique().tolist() == [100 + value]
            with RemoteReplayBuffer(server.address, table="t") as found:
                assert (found.size, found.state().write_count) == (1, 1)
                if value < 2:
                    found.drop()
        os.kill(server.pid, signal.SIGKILL)
    assert len(list(verified(data))) == 2
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="t") as buffer:
        assert buffer.sample_all()["f699"].unique().tolist() == [102]


@contextmanager
def dropped_meanwhile(address: str, data: Path, buffer: RemoteReplayBuffer, value: int) -> Iterator[Future[None]]:
    """Adds a row to the table 'buffer', and drops it: while the context is open its files are removed, unless they are gone already."""
    buffer.add_batch(wide(value))
    assert buffer.sample_all()["f0"].unique().tolist() == [value]
    with ThreadPoolExecutor(1) as background, RemoteReplayBuffer(address, table=buffer.table, timeout=60) as dropper:
        dropping = background.submit(dropper.drop)
        awaited(lambda: dropping.done() or hidden(data))
        yield dropping
        dropping.exception()


def test_tables_that_many_make_fill_and_drop_at_once_end_each_call_with_what_it_would_alone(tmp_path):
    """Eight clients over two names: whatever they find, no call ends in an error that only concurrency can have."""
    data = tmp_path / "data"
    with ReplayServer(config(data, max_tables=3)) as server, made(server.address, "other", 10_000) as other:

        def churn(client: int) -> list[str]:
            return [fault for _ in range(12) for fault in (used_and_dropped(server.address, f"t{client % 2}"), added(other)) if fault]

        with ThreadPoolExecutor(8) as clients:
            assert [fault for found in clients.map(churn, range(8)) for fault in found] == []
        assert other.size == other.state().write_count == 8 * 12
        for name in RemoteReplayBuffer.tables(server.address):
            if name != "other":
                RemoteReplayBuffer(server.address, table=name).drop()
        assert [path.name for path in (data / "tables").iterdir()] == ["other"]
        assert server.failure is None
        with made(server.address, "a"), made(server.address, "b"):
            pass  # Each place is free again.


def used_and_dropped(address: str, table: str) -> str:
    """Makes a table, uses it and drops it; gives the error that says something else than that somebody else dropped or reset it."""
    with suppress(TableNotFoundError, TableChangedError), made(address, table) as buffer:
        for act in (lambda: buffer.add_batch(rows(3)), buffer.sample_all, buffer.reset, lambda: buffer.checkpoint("c"), buffer.drop):
            try:
                act()
            except ReplayError as error:
                if not isinstance(error, (TableNotFoundError, TableChangedError, EmptyTableError)) and "another checkpoint" not in str(error):
                    return repr(error)
    return ""


def added(buffer: RemoteReplayBuffer) -> str:
    """Adds a row; gives the error."""
    try:
        buffer.add_batch(rows(1))
    except ReplayError as error:
        return repr(error)
    return ""


@pytest.mark.parametrize("durability", ["process", "interval:0.01", "power"])
def test_a_table_is_dropped_once(durability, tmp_path):
    with ReplayServer(config(tmp_path / "data", durability=durability)) as server, made(server.address, "t") as buffer:
        buffer.add_batch(wide(1))

        def dropped(_: int) -> bool:
            try:
                buffer.drop()
            except TableNotFoundError:
                return False
            return True

        with ThreadPoolExecutor(4) as clients:
            assert sorted(clients.map(dropped, range(4))) == [False, False, False, True]


def test_others_do_not_wait_while_a_large_table_is_removed_and_a_stop_in_the_middle_harms_none(tmp_path):
    data = tmp_path / "data"
    with ReplayServer(config(data)) as server, made(server.address, "other", 1000) as other, made(server.address, "large", 4096) as large:
        with dropped_meanwhile(server.address, data, large, 1) as dropping:
            other.add_batch(rows(10))
            awaited(lambda: RemoteReplayBuffer.tables(server.address) == ["other"])
            server.stop(0)
            assert isinstance(dropping.exception(60), (ReplayError, NoneType))
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="other") as other:
        assert numbers(other.sample_all()) == list(range(10))
        assert RemoteReplayBuffer.tables(server.address) == ["other"]
        assert hidden(data) == []


def test_what_a_kill_in_the_middle_of_a_drop_leaves_is_removed_by_the_next_start(tmp_path):
    data = tmp_path / "data"
    with server_process(config(data)) as server, made(server.address, "large") as buffer, dropped_meanwhile(server.address, data, buffer, 1):
        os.kill(server.pid, signal.SIGKILL)
    with ReplayServer(config(data)) as server:
        assert RemoteReplayBuffer.tables(server.address) == []
        assert list((data / "tables").iterdir()) == []


# -- a table that is gone ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [True, False])
def test_a_call_that_runs_on_a_dropped_table_says_that_it_is_gone(directory, tmp_path):
    with ReplayServer(config(tmp_path / "data" if directory else None)) as server, made(server.address, "t", 100) as buffer:
        buffer.add_batch(rows(100))
        with buffer.stream(10, prefetch=1) as stream:
            next(stream)
            RemoteReplayBuffer(server.address, table="t").drop()
            with pytest.raises((TableNotFoundError, TableChangedError)):
                list(islice(stream, 10))
        for call in (buffer.state, buffer.reset, buffer.sample_all, lambda: buffer.add(rows(1)[0]), lambda: buffer.sample_batch(3), buffer.drop):
            with pytest.raises(TableNotFoundError):
                call()


def test_a_name_that_no_table_can_have_is_an_invalid_argument_of_every_call(address):
    channel = grpc.insecure_channel(address)
    requests = {
        "Describe": pb.DescribeRequest,
        "CreateTable": pb.CreateTableRequest,
        "DropTable": pb.DropTableRequest,
        "Reset": pb.ResetRequest,
        "Rewind": pb.RewindRequest,
    }
    with closing(channel):
        for (call, request), name in ((item, name) for item in requests.items() for name in ("", "../other", "a b", "x" * 65, ".new-x")):
            assert status(channel, call, request(table=name)) is grpc.StatusCode.INVALID_ARGUMENT, (call, name)


def status(channel: grpc.Channel, call: str, request: Any) -> grpc.StatusCode:
    """The status of a call that is refused."""
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/tdreplay.v1.ReplayBufferService/{call}")(request.SerializeToString(), timeout=20)
    return raised.value.code()


# -- the table default ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [True, False])
def test_reads_find_the_default_table_empty_and_do_not_make_it(directory, tmp_path):
    data = tmp_path / "data"
    with ReplayServer(config(data if directory else None)) as server, RemoteReplayBuffer(server.address, timeout=2) as buffer:
        assert (buffer.size, buffer.buffer_size, buffer.state().schema) == (0, 1_000_000, None)
        assert buffer.state().durability == ("process" if directory else "none")
        buffer.reset()
        for read in (
            buffer.sample_all,
            lambda: buffer.sample_batch(3),
            lambda: next(buffer.stream(3)),
            lambda: next(buffer.create_epoch_iterator(3)),
        ):
            with pytest.raises(EmptyTableError):
                read()
        with pytest.raises((EmptyTableError, IndexError)):
            buffer.sample_by_index([0])
        with pytest.raises(TableNotFoundError):
            buffer.drop()
        assert RemoteReplayBuffer.tables(server.address) == []
        assert not directory or not (data / "tables").exists()
        with made(server.address, "default", 7) as sized:
            assert (buffer.buffer_size, sized.buffer_size) == (7, 7)
            assert RemoteReplayBuffer.tables(server.address) == ["default"]


def test_an_insert_makes_the_default_table_and_one_that_is_refused_does_not(tmp_path):
    data = tmp_path / "data"
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address) as buffer:
        huge = TensorDict({"obs": torch.zeros(1, 1 << 20)}, [1])  # 4 MiB a row: 4 TB for a million.
        with pytest.raises(ResourceExhaustedError, match="smaller buffer_size"):
            buffer.add_batch(huge)
        rewind = pb.RewindRequest(table="default", buffer_size=5, size=3, write_count=3)
        with closing(grpc.insecure_channel(server.address)) as channel:
            assert status(channel, "Rewind", rewind) is grpc.StatusCode.FAILED_PRECONDITION
        assert RemoteReplayBuffer.tables(server.address) == []
        assert list((data / "tables").iterdir()) == []
        buffer.add_batch(rows(3))
        assert RemoteReplayBuffer.tables(server.address) == ["default"]
        assert numbers(buffer.sample_all()) == [0, 1, 2]
        with pytest.raises(TableExistsError), made(server.address, "default", 7):
            pass


def test_the_first_inserts_of_many_make_one_default_table(tmp_path):
    with ReplayServer(config(tmp_path / "data")) as server, RemoteReplayBuffer(server.address) as buffer, ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda number: buffer.add_batch(rows(1, number)), range(16)))
        assert sorted(numbers(buffer.sample_all())) == list(range(16))


def test_a_reset_with_a_capacity_makes_the_default_table():
    with ReplayServer(config(None)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.reset(12)
        assert (buffer.buffer_size, RemoteReplayBuffer.tables(server.address)) == (12, ["default"])


@pytest.mark.parametrize("end", [Table.close, Table.drop, Table.reset])
def test_the_state_of_a_table_that_is_gone_is_not_mapped_any_more(end, tmp_path):
    """Else its space on the disk would be free only when the garbage is collected."""
    with closing(Table(TableConfig(100, sampler=Prioritized(), max_times_sampled=3), directory=tmp_path / "table")) as table:
        columns = {"number": torch.arange(10)}
        table.insert(columns, Schema.of(columns, ()), 10)
        _, leases = table.draw(BatchQuery(4), 2, table.unseeded)
        assert mapped_states(tmp_path) == 3
        end(table)
        assert mapped_states(tmp_path) == 0
        leases[0].taken()
        leases[1].offer()
        leases[1].free()


def mapped_states(directory: Path) -> int:
    return sum(f"{directory}/" in line and "/state_" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_field_with_the_name_of_a_drawn_one_is_left_out_only_where_the_rows_were_drawn():
    def prioritized_rows(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(4), "priority": torch.ones(4, dtype=dtype)}

    with ReplayBuffer("cpu", "cpu", 8) as uniform, ReplayBuffer("cpu", "cpu", 8, sampler="prioritized") as prioritized:
        for buffer in (prioritized, uniform):
            buffer.add_batch({"x": torch.zeros(4)})
            for given in (
                prioritized_rows(),
                prioritized_rows(torch.float32),
                {"x": torch.zeros(4), "probability": torch.ones(4, dtype=torch.float64)},
            ):
                with pytest.raises(SchemaError, match=r"priority|probability"):
                    buffer.add_batch(given)
            buffer.add_batch(prioritized.sample_batch(4))
            assert buffer.size == 8
    with ReplayBuffer("cpu", "cpu", 8, sampler="prioritized") as prioritized, pytest.raises(SchemaError, match="reserved"):
        prioritized.add_batch(prioritized_rows())
    with ReplayBuffer("cpu", "cpu", 8) as uniform:
        uniform.add_batch(prioritized_rows())  # A field of the user's.
        assert uniform.sample_batch(2)["priority"].tolist() == [1.0, 1.0]
