"""A remote buffer in other processes and in copies: it is an address, a table and its arguments. What else there is says what to do instead."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import socket

import pytest
import torch

from children import server_process
from conftest import numbers, rows
from tdreplay.errors import TableNotFoundError
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_server import ReplayBuffer, ServerConfig


class Policy(torch.nn.Module):
    """What holds a buffer, as agents do."""

    def __init__(self, buffer) -> None:
        super().__init__()
        self.layer, self.buffer = torch.nn.Linear(2, 2), buffer


@pytest.fixture
def buffer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, device="meta", timeout=7.5, transport="grpc", seed=3) as made:
        made.add_batch(rows(4))
        yield made


def pickled(given):
    return unpickled(pickle.dumps(given))


def unpickled(data):
    return pickle.loads(data)  # noqa: S301 - its own.


def saved(given):
    file = io.BytesIO()
    torch.save(given, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [pickled, copy.copy, copy.deepcopy, saved], ids=["pickle", "copy", "deepcopy", "torch.save"])
def test_a_copy_has_the_arguments_and_a_connection_of_its_own(buffer, how):
    made = how(buffer)
    assert type(made) is RemoteReplayBuffer
    with made:
        assert (made.address, made.table, made.device) == (buffer.address, buffer.table, torch.device("meta"))
        assert (made.size, made.buffer_size, made.storing_device) == (4, 10, torch.device("cpu"))
        made.add_batch(rows(1, 4))
    assert buffer.size == 5


@pytest.mark.parametrize("how", [pickled, copy.deepcopy, saved], ids=["pickle", "deepcopy", "torch.save"])
def test_what_holds_a_buffer_can_be_copied(buffer, how):
    made = how(Policy(buffer))
    assert made.buffer.size == 4
    made.buffer.close()
    assert buffer.size == 4


def test_a_copy_begins_the_seed_anew(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, seed=3) as buffer:
        buffer.add_batch(rows(100))
        drawn = [numbers(buffer.sample_batch(16)) for _ in range(3)]
        with pickled(buffer) as made:
            assert [numbers(made.sample_batch(16)) for _ in range(3)] == drawn


def test_a_copy_of_a_closed_buffer_is_open(buffer):
    buffer.close()
    with pickled(buffer) as made:
        assert made.size == 4


def test_a_copy_makes_no_table_and_takes_another_size_as_it_is(buffer):
    data = pickle.dumps(buffer)
    buffer.reset(25)
    with unpickled(data) as made:
        assert made.buffer_size == 25
    buffer.drop()
    with unpickled(data) as made, pytest.raises(TableNotFoundError):
        made.add_batch(rows(1))


def test_what_is_pickled_needs_no_server_until_it_is_used(table):
    with server_process(ServerConfig(address="127.0.0.1:0")) as server, RemoteReplayBuffer(server.address, table=table, buffer_size=3) as buffer:
        data = pickle.dumps(Policy(buffer))
    assert unpickled(data).buffer.table == table


def collect(buffer: RemoteReplayBuffer, first: int) -> None:
    with buffer, buffer.writer() as writer:
        for number in range(first, first + 3):
            writer.append(rows(1, number)[0])


def test_collectors_in_spawned_processes_take_the_buffer_along(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=20) as buffer:
        spawn = multiprocessing.get_context("spawn")
        collector = spawn.Process(target=collect, args=(buffer, 5))
        collector.start()
        collector.join(60)
        assert collector.exitcode == 0
        assert numbers(buffer.sample_all()) == [5, 6, 7]


def test_a_dataset_can_be_copied(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer:
        buffer.add_batch(rows(10))
    for made in (pickled(ReplayDataset(address, 4, table=table)), copy.deepcopy(ReplayDataset(address, 4, table=table))):
        assert len(numbers(next(iter(made)))) == 4


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_what_belongs_to_its_process_says_what_to_do_instead(buffer, how):
    with ReplayBuffer("cpu", "cpu", 10) as local, buffer.writer() as writer, buffer.stream(2) as batches:
        for given, advice in [(local, "RemoteReplayBuffer"), (writer, "open a writer there"), (batches, "open a stream there")]:
            with pytest.raises(TypeError, match=f"a {type(given).__name__} cannot be pickled or copied: .*{advice}"):
                how(given)


def test_the_storing_device_is_known_without_a_call(table):
    with server_process(ServerConfig(address="127.0.0.1:0")) as server:
        made = [
            RemoteReplayBuffer(server.address, table=table, buffer_size=3, timeout=20),
            RemoteReplayBuffer(server.address, table=table, timeout=20),
        ]
    with socket.socket() as probe:  # The server is gone: what is answered, is known here.
        host, _, port = made[0].address.rpartition(":")
        assert probe.connect_ex((host, int(port))) != 0
    for buffer in made:
        assert buffer.storing_device == torch.device("cpu")
        buffer.close()
