"""Streams of large rows over shards of this host, which write their rows to their places in one memory."""

from __future__ import annotations

import collections
import fcntl
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from shard_servers import shard_servers
from tensordict import TensorDict

from chi_square import deviation
from children import free_port, server_process
from tdreplay.errors import ServerUnavailableError
from tdreplay.samplers import Prioritized
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ServerConfig

WIDTH = 2048
BATCH = 128
"""Of these rows it has 2 MB: the shards write them themselves."""
SIZES = (40, 100, 60)


def rows(shard: int, count: int, start: int = 0) -> TensorDict:
    """Rows whose number, in each of their values, is 1000 times the shard's and their own id."""
    number = 1000 * shard + start + torch.arange(count)
    return TensorDict({"frame": number.unsqueeze(1).expand(-1, WIDTH).clone(), "action": number}, [count])


def fill(addresses: list[str], table: str, sizes: tuple[int, ...] = SIZES, **settings: object) -> None:
    for shard, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
        with RemoteReplayBuffer(address, table=table, buffer_size=200, **settings) as one:
            one.add_batch(rows(shard, size))


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(len(SIZES)) as found:
        yield found


@pytest.fixture
def buffer(addresses: list[str], table: str) -> Iterator[ShardedReplayBuffer]:
    fill(addresses, table)
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory") as made:
        yield made


def lies_in_shared_memory(column: torch.Tensor) -> bool:
    """Whether a tensor's memory is an anonymous file that is shared."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(bound, 16) for bound in line.split(maxsplit=1)[0].split("-"))
        if start <= column.data_ptr() < end:
            return "/memfd:tdreplay" in line
    return False


def check_rows(batch: TensorDict, shards: int = len(SIZES)) -> None:
    """Each row is whole, and has the id and the slot that it has in the whole buffer."""
    ids = batch["row_id"].numpy()
    assert (batch["action"].numpy() == 1000 * shard_numbers(ids) + local_row_ids(ids)).all()
    assert (batch["index"].numpy() == local_row_ids(ids) % 200 * shards + shard_numbers(ids)).all()
    assert torch.equal(batch["frame"], batch["action"].unsqueeze(1).expand(-1, WIDTH))


@pytest.mark.parametrize("prefetch", [1, 4])
def test_rows_of_all_shards_lie_in_one_memory(buffer, prefetch):
    with buffer.stream(BATCH, prefetch=prefetch) as batches:
        found = [next(batches) for _ in range(12)]
        assert batches.shared
        assert lies_in_shared_memory(found[0]["frame"])
        assert lies_in_shared_memory(next(batches)["frame"]) is False, "the user has all that can be lent"
    for batch in found:
        check_rows(batch)
    shards = shard_numbers(found[0]["row_id"].numpy())
    assert set(shards) == {0, 1, 2}
    assert (np.diff(shards) < 0).any(), "the rows come in order of shards"


def test_batches_that_are_kept_keep_their_rows(buffer):
    with buffer.stream(BATCH, prefetch=4) as batches:
        kept, lent = [], 0
        for number in range(60):
            batch = next(batches)
            if number in (0, 5) or number > 50:
                kept.append((batch, batch.clone()))
            lent += lies_in_shared_memory(batch["frame"])
            del batch
        assert 40 <= lent < 60, "slots that were given back are lent again, and not all of them at once"
        for batch, was in kept:
            assert torch.equal(batch["frame"], was["frame"])
            assert torch.equal(batch["row_id"], was["row_id"])
            check_rows(batch)


def test_many_batches_of_many_rows_are_asked_for_in_messages_that_are_not_too_large(addresses, table):
    for shard, address in enumerate(addresses):
        with RemoteReplayBuffer(address, table=table, buffer_size=200, sampler=Prioritized(alpha=1.0)) as one:
            one.add_batch(rows(shard, 50).set("frame", torch.zeros(50, 40)))
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory") as buffer, buffer.stream(8192, prefetch=64) as batches:
        for _ in range(8):
            batch = next(batches)
            batches.update_priorities(batch, torch.ones(8192))  # They are as large as a message may be.
            ids = batch["row_id"].numpy()
            assert (batch["action"].numpy() == 1000 * shard_numbers(ids) + local_row_ids(ids)).all()
        assert lies_in_shared_memory(batch["frame"])


def test_fields_that_are_named_come_alone(buffer):
    with buffer.stream(BATCH, fields=("frame",)) as batches:
        assert set(next(batches).keys()) == {"frame"}
    with buffer.stream(BATCH, fields=("frame", "row_id")) as batches:
        ids = next(batches)["row_id"].numpy()
        assert set(shard_numbers(ids)) == {0, 1, 2}


def test_all_rows_are_equally_probable(buffer):
    counts, starts = np.zeros(sum(SIZES)), np.cumsum([0, *SIZES])
    with buffer.stream(512, prefetch=4) as batches:
        for _ in range(80):
            ids = next(batches)["row_id"].numpy()
            counts += np.bincount(starts[shard_numbers(ids)] + local_row_ids(ids), minlength=len(counts))
    assert abs(deviation(counts, np.full(len(counts), 1 / len(counts)))) < 4


def test_rows_come_as_their_priorities_say(addresses, table):
    fill(addresses, table, sampler=Prioritized(alpha=1.0))
    priorities, starts = np.random.default_rng(3).uniform(0.5, 4.0, sum(SIZES)), np.cumsum([0, *SIZES])
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory") as buffer:
        ids = np.concatenate([(shard << 48) + np.arange(size) for shard, size in enumerate(SIZES)])
        assert buffer.update_priorities(ids, priorities).updated == sum(SIZES)
        counts, expected = np.zeros(sum(SIZES)), priorities / priorities.sum()
        with buffer.stream(256, prefetch=2) as batches:
            for _ in range(60):
                batch = next(batches)
                drawn = batch["row_id"].numpy()
                place = starts[shard_numbers(drawn)] + local_row_ids(drawn)
                counts += np.bincount(place, minlength=len(counts))
                np.testing.assert_allclose(batch["probability"].numpy(), expected[place], rtol=1e-9)
                np.testing.assert_allclose(batch["priority"].numpy(), priorities[place])
                assert set(batch["table_size"].tolist()) == {sum(SIZES)}
                np.testing.assert_allclose(batch["min_probability"].numpy(), expected.min(), rtol=1e-9)
            assert lies_in_shared_memory(batch["frame"])
        assert abs(deviation(counts, expected)) < 4


def test_updates_of_a_stream_take_effect(addresses, table):
    fill(addresses, table, sampler=Prioritized(alpha=1.0))
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory") as buffer, buffer.stream(BATCH, prefetch=1) as batches:
        sent, until = 0, time.monotonic() + 30
        while batches.updated.updated < 300 and time.monotonic() < until:
            batches.update_priorities(next(batches), torch.full((BATCH,), 2.0))
            sent += BATCH
        assert 300 <= batches.updated.updated <= sent
        assert batches.updated.stale == 0


def test_a_server_that_cannot_write_there_makes_all_send_messages(addresses, table):
    fill(addresses, table)
    size = 4096 + 2 * (64 << 20)
    memory = os.memfd_create("tdreplay", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    os.pwrite(memory, bytes(range(16)), 0)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    offer = pb.SharedMemory(path=f"/proc/{os.getpid()}/fd/{memory}", nonce=bytes(range(16)), slots=2, slot_bytes=64 << 20)
    query = pb.SampleRequest(table=table, batch_size=2, shared_slots=1, client_memory=offer)
    with ExitStack() as held, ShardedReplayBuffer(addresses, table=table, transport="shared_memory") as buffer:
        held.callback(os.close, memory)
        channel = held.enter_context(grpc.insecure_channel(addresses[1]))
        calls = [ReplayBufferServiceStub(channel).Sample(_held_open(query, held), timeout=60) for _ in range(8)]
        assert all(next(call).placed_header for call in calls), "it is all that this server maps for its clients"
        with buffer.stream(BATCH, prefetch=2) as batches:
            for _ in range(10):
                batch = next(batches)
                check_rows(batch)
                assert not lies_in_shared_memory(batch["frame"])


def _held_open(query: pb.SampleRequest, held: ExitStack) -> Iterator[pb.SampleRequest]:
    over = threading.Event()
    held.callback(over.set)
    yield query
    over.wait(60)


def test_a_table_that_was_reset_goes_on_with_its_new_rows(addresses, table):
    fill(addresses[:2], table, SIZES[:2])
    with ShardedReplayBuffer(addresses[:2], table=table, transport="shared_memory", timeout=20) as buffer:
        with buffer.stream(BATCH, prefetch=2) as batches:
            check_rows(next(batches), 2)
            for shard, address in enumerate(addresses[:2]):
                with RemoteReplayBuffer(address, table=table) as one:
                    one.reset()
                    wide = rows(shard, 50)
                    one.add_batch(TensorDict({**wide, "more": torch.full((50, 3), 7)}, [50]))
            until = time.monotonic() + 20
            batch = next(batches)
            while "more" not in batch.keys() and time.monotonic() < until:  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
                batch = next(batches)
            assert (batch["more"] == 7).all()


def test_nothing_stays_mapped_after_a_stream(buffer):
    def shared() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("/memfd:tdreplay")

    def opened() -> int:
        return sum("memfd:tdreplay" in _target(file) for file in Path("/proc/self/fd").iterdir())

    before, files = shared(), opened()
    for _ in range(3):
        with buffer.stream(BATCH, prefetch=2) as batches:
            batch = next(batches)
            assert lies_in_shared_memory(batch["frame"])
        del batches
    check_rows(batch)
    del batch
    until = time.monotonic() + 10
    while (shared(), opened()) != (before, files) and time.monotonic() < until:
        time.sleep(0.01)
    assert (shared(), opened()) == (before, files)


def _target(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


@pytest.fixture
def processes(table: str, tmp_path: Path) -> Iterator[list[tuple[ExitStack, ServerConfig, int]]]:
    with ExitStack() as stack:
        found = []
        for number in range(2):
            config = ServerConfig(address=f"127.0.0.1:{free_port()}", data_dir=tmp_path / str(number))
            running = stack.enter_context(ExitStack())
            found.append((running, config, running.enter_context(server_process(config)).pid))
        fill([config.address for _, config, _ in found], table, SIZES[:2])
        yield found


def test_batches_go_on_without_a_server_that_stands_still_and_with_it_again(processes, table):
    (_, first, pid), (_, second, _) = processes
    addresses = [first.address, second.address]
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory", on_loss="degrade", timeout=20) as buffer:
        with buffer.stream(BATCH, prefetch=4) as batches:
            kept = [next(batches) for _ in range(2)]
            os.kill(pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                while not int(next(batches)["lost_shards"][0]):
                    assert time.monotonic() - began < 20
                kept += [next(batches) for _ in range(6)]
            finally:
                os.kill(pid, signal.SIGCONT)
            until = time.monotonic() + 20
            while int((batch := next(batches))["lost_shards"][0]) and time.monotonic() < until:
                check_rows(batch, 2)
            for _ in range(30):
                check_rows(next(batches), 2)
            assert set(shard_numbers(next(batches)["row_id"].numpy())) == {0, 1}
            for batch in kept:  # The server that went on wrote to none of them.
                check_rows(batch, 2)


def test_a_server_that_was_killed_is_waited_for(processes, table):
    (running, first, _), (_, second, _) = processes
    addresses = [first.address, second.address]
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory", timeout=20) as buffer, buffer.stream(BATCH, prefetch=2) as batches:
        check_rows(next(batches), 2)
        running.close()
        with server_process(first):
            for _ in range(10):
                batch = next(batches)
                check_rows(batch, 2)
            assert set(shard_numbers(batch["row_id"].numpy())) == {0, 1}


def test_a_server_that_does_not_come_back_is_an_error(processes, table):
    (running, first, _), (_, second, _) = processes
    addresses = [first.address, second.address]
    with ShardedReplayBuffer(addresses, table=table, transport="shared_memory", timeout=1.5) as buffer, buffer.stream(BATCH, prefetch=2) as batches:
        check_rows(next(batches), 2)
        running.close()
        with pytest.raises(ServerUnavailableError):
            collections.deque(batches, maxlen=1)  # Those that were written already come before the error.
