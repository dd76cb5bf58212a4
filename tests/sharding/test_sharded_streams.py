"""Streams over several shards: which rows come, how often, and what becomes of them when shards are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tests.chi_square import deviation
from tests.children import free_port, server_process

from tdreplay.errors import (
    ClosedError,
    EmptyTableError,
    FailedPreconditionError,
    FieldNotFoundError,
    InvalidArgumentError,
    RateLimitedError,
    ServerUnavailableError,
    TokenError,
)
from tdreplay.rate_limiters import MinSize
from tdreplay.samplers import Prioritized
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay.views import View
from tdreplay_client import RemoteReplayBuffer, Sequences, Transitions
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SIZES = (30, 110, 60)
"""Rows of the shards: uneven, and row number k of shard s is 1000 s + k."""


def rows(first: int, count: int) -> TensorDict:
    number = torch.arange(first, first + count)
    return TensorDict({"action": number, "obs": number.float().unsqueeze(1).expand(-1, 3).clone()}, [count])


def fill(buffer: ShardedReplayBuffer, sizes: tuple[int, ...] = SIZES, first: int = 0) -> None:
    """Gives each shard as many rows."""
    for shard, (address, size) in enumerate(zip(buffer.addresses, sizes, strict=True)):
        if size:
            with RemoteReplayBuffer(address, table=buffer.table) as one:
                one.add_batch(rows(1000 * shard + first, size))


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address for _ in SIZES]


@pytest.fixture
def buffer(addresses: list[str], table: str) -> Iterator[ShardedReplayBuffer]:
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600) as made:
        fill(made)
        yield made


def taken(batches: Iterator[TensorDict], count: int) -> list[TensorDict]:
    return [next(batches) for _ in range(count)]


def check_rows(batch: TensorDict) -> None:
    """Each row is whole, and has the id and the slot that it has in the whole buffer."""
    ids, shards = batch["row_id"].numpy(), len(SIZES)
    assert (batch["action"].numpy() == 1000 * shard_numbers(ids) + local_row_ids(ids)).all()
    assert (batch["index"].numpy() == local_row_ids(ids) * shards + shard_numbers(ids)).all()
    assert torch.equal(batch["obs"], batch["action"].float().unsqueeze(1).expand(-1, 3))


@pytest.mark.parametrize("transport", ["grpc", "shared_memory"])
@pytest.mark.parametrize("prefetch", [1, 16])
def test_batches_are_rows_of_all_shards(addresses, table, transport, prefetch):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, transport=transport) as buffer:
        fill(buffer)
        with buffer.stream(64, prefetch=prefetch) as batches:
            found = [next(batches) for _ in range(20)]
    assert {tuple(batch.batch_size) for batch in found} == {(64,)}
    assert {number for batch in found for number in shard_numbers(batch["row_id"].numpy())} == {0, 1, 2}
    for batch in found:
        check_rows(batch)
    first = shard_numbers(found[0]["row_id"].numpy())
    assert (np.diff(first) < 0).any(), "the rows come in order of shards"


def test_batches_keep_their_rows_while_later_ones_come(buffer):
    with buffer.stream(64, prefetch=4) as batches:
        kept = [next(batches) for _ in range(8)]
        before = [batch.clone() for batch in kept]
        for batch in kept[::2]:
            batch["obs"].fill_(-1)
        for _ in range(16):
            check_rows(next(batches))
        assert all(torch.equal(batch["obs"], was["obs"]) for batch, was in zip(kept[1::2], before[1::2], strict=True))


def test_all_rows_are_equally_probable(buffer):
    counts = np.zeros(sum(SIZES))
    starts = np.cumsum([0, *SIZES])
    with buffer.stream(256, prefetch=16, seed=7) as batches:
        for _ in range(400):
            ids = next(batches)["row_id"].numpy()
            counts += np.bincount(starts[shard_numbers(ids)] + local_row_ids(ids), minlength=len(counts))
    assert abs(deviation(counts, np.full(len(counts), 1 / len(counts)))) < 4


def test_rows_come_as_their_priorities_say_while_these_change(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, sampler=Prioritized(alpha=1.0)) as buffer:
        fill(buffer)
        starts = np.cumsum([0, *SIZES])
        given = np.ones(sum(SIZES))
        counts = np.zeros(len(given))
        with buffer.stream(128, prefetch=2, seed=3) as batches:
            for _ in range(5):
                batch = next(batches)
                ids = batch["row_id"].numpy()
                batches.update_priorities(batch, -(1.0 + shard_numbers(ids)))
                given[starts[shard_numbers(ids)] + local_row_ids(ids)] = 1.0 + shard_numbers(ids)
            deadline = time.monotonic() + 20  # Until the updates took effect, and nothing is on its way that was drawn before.
            while sum(batches.updated) < 5 * 128:
                next(batches)
                assert time.monotonic() < deadline
            for _ in range(40):
                next(batches)
            for _ in range(400):
                batch = next(batches)
                ids = batch["row_id"].numpy()
                places = starts[shard_numbers(ids)] + local_row_ids(ids)
                counts += np.bincount(places, minlength=len(counts))
            probabilities = given / given.sum()
            np.testing.assert_allclose(batch["probability"].numpy(), probabilities[places])
            np.testing.assert_array_equal(batch["priority"].numpy(), given[places])
            assert set(batch["table_size"].tolist()) == {sum(SIZES)}
            np.testing.assert_allclose(batch["min_probability"].numpy(), probabilities.min())
        assert abs(deviation(counts, probabilities)) < 4


def test_what_comes_to_one_shard_is_drawn_soon(buffer):
    with buffer.stream(64, prefetch=2) as batches:
        next(batches)
        fill(buffer, (0, 0, 100), first=SIZES[2])
        deadline = time.monotonic() + 20
        while int((next(batches)["action"] >= 2000 + SIZES[2]).sum()) == 0:
            assert time.monotonic() < deadline


def test_a_shard_without_rows_joins_when_it_has_some(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600) as buffer:
        fill(buffer, (10, 0, 0))
        with buffer.stream(32) as batches:
            assert set(shard_numbers(next(batches)["row_id"].numpy())) == {0}
            fill(buffer, (0, 50, 0))
            deadline = time.monotonic() + 20
            while 1 not in shard_numbers(next(batches)["row_id"].numpy()):
                assert time.monotonic() < deadline


def test_an_empty_buffer_waits_for_its_first_row_or_says_that_it_is_empty(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, timeout=10) as buffer:
        with pytest.raises(EmptyTableError):
            buffer.stream(8, wait=False)
        with buffer.stream(8) as batches:
            later = threading.Timer(0.3, fill, [buffer, (0, 5, 0)])
            later.start()
            check_rows(next(batches))
            later.join()


def test_a_wait_for_the_first_row_may_end_and_begin_again(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, timeout=0.5) as buffer, buffer.stream(8) as batches:
        with pytest.raises(EmptyTableError):
            next(batches)
        fill(buffer, (0, 5, 0))
        check_rows(next(batches))


def seeded(buffer: ShardedReplayBuffer, count: int, prefetch: int = 2) -> list[list[int]]:
    with buffer.stream(48, seed=11, prefetch=prefetch) as batches:
        return [next(batches)["row_id"].tolist() for _ in range(count)]


def test_a_seed_gives_the_same_batches(buffer):
    first = seeded(buffer, 12)
    assert seeded(buffer, 12) == first
    assert seeded(buffer, 12, prefetch=16) == first
    assert len({tuple(batch) for batch in first}) == 12


def test_a_seeded_stream_goes_on_where_another_one_stood(buffer):
    whole = seeded(buffer, 12)
    with buffer.stream(48, seed=11, prefetch=8) as batches:
        for _ in range(5):
            next(batches)
        token = batches.state_dict()
    with buffer.stream(48, seed=99) as other:
        next(other)
        other.load_state_dict(token)
        assert other.state_dict() == token
        assert [next(other)["row_id"].tolist() for _ in range(7)] == whole[5:]
    with buffer.stream(32, seed=1) as another:
        with pytest.raises(TokenError, match="batch_size"):
            another.load_state_dict(token)
        with pytest.raises(TokenError):
            another.load_state_dict({**token, "batch_size": 32, "taken": {"7": 1}})
        next(another)
    with buffer.stream(48) as unseeded, pytest.raises(FailedPreconditionError):
        unseeded.state_dict()


def test_only_the_named_fields_come(buffer):
    with buffer.stream(16, fields=["obs"]) as batches:
        assert set(next(batches).keys()) == {"obs"}
    with pytest.raises(FieldNotFoundError):
        buffer.stream(16, fields=["reward"])


@pytest.mark.parametrize("view", [Transitions(n_step=2, gamma=0.5), Sequences(length=3)])
def test_views_are_what_one_shard_makes_of_the_same_steps(addresses, table, view: View):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, trajectories=True) as buffer, ExitStack() as stack:
        ones = [stack.enter_context(RemoteReplayBuffer(address, table=table)) for address in addresses]
        for shard, one in enumerate(ones):
            with one.trajectory_writer() as writer:
                for step in range(12):
                    ends = {"terminated": torch.tensor(step % 6 == 5), "truncated": torch.tensor(False)}
                    writer.append({"obs": torch.full((2,), 100.0 * shard + step), "reward": torch.tensor(float(step)), **ends})
        with buffer.stream(32, view=view) as batches:
            batch = next(batches)
        anchors = batch["row_id"] if batch["row_id"].dim() == 1 else batch["row_id"][:, 0]
        for place, row_id in enumerate(anchors.tolist()):
            shard, slot = row_id >> 48, row_id & ((1 << 48) - 1)
            alone = ones[shard].sample_by_index([slot], view=view)
            for name in alone.keys(include_nested=True, leaves_only=True):
                if name not in ("row_id", "index"):
                    assert torch.equal(alone[name][0], batch[name][place]), name


def test_each_row_of_a_queue_comes_once(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, max_times_sampled=1, sampler="fifo", timeout=1) as buffer:
        fill(buffer)
        found: list[int] = []
        with buffer.stream(50) as batches:
            for _ in range(sum(SIZES) // 50):
                batch = next(batches)
                check_rows(batch)
                found += batch["row_id"].tolist()
            with pytest.raises(RateLimitedError):
                next(batches)
        assert len(found) == len(set(found)) == sum(SIZES)


def test_a_rate_limiter_is_waited_for_on_each_shard(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600, rate_limiter=MinSize(30), timeout=0.5) as buffer:
        fill(buffer, (20, 5, 0))
        with buffer.stream(16) as batches:
            with pytest.raises(RateLimitedError):
                taken(batches, 50)
            fill(buffer, (0, 20, 0), first=5)
            check_rows(next(batches))


def test_a_closed_stream_ends_with_its_threads(buffer):
    before = set(threading.enumerate())
    batches = buffer.stream(16)
    next(batches)
    batches.close()
    batches.close()
    assert next(batches, None) is None
    with pytest.raises(ClosedError):
        batches.update_priorities(TensorDict({"row_id": torch.zeros(1, dtype=torch.int64)}, [1]), 1.0)
    left = [thread for thread in threading.enumerate() if thread not in before and thread.name == "tdreplay-reader"]
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)


def test_a_stream_that_nobody_has_ends(buffer):
    before = set(threading.enumerate())
    next(buffer.stream(16))
    for thread in set(threading.enumerate()) - before:
        if thread.name == "tdreplay-reader":
            thread.join(10)
            assert not thread.is_alive()


def test_a_stream_of_a_closed_buffer_says_so(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=600) as buffer:
        fill(buffer)
        batches = buffer.stream(16)
        next(batches)
    with pytest.raises(ClosedError):
        taken(batches, 1000)
    batches.close()


def test_wrong_arguments_are_named(buffer):
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        buffer.stream(0)
    with pytest.raises(InvalidArgumentError, match="prefetch"):
        buffer.stream(8, prefetch=0)


def test_a_lost_shard_is_left_out_within_two_seconds_and_joins_again(table, tmp_path):
    port = free_port()
    first = ServerConfig(address=f"127.0.0.1:{port}", data_dir=tmp_path)
    with server_process() as stays, ExitStack() as lives:
        dies = lives.enter_context(server_process(first))
        with ShardedReplayBuffer([stays.address, dies.address], table=table, buffer_size=600, on_loss="degrade") as buffer:
            fill(buffer, (40, 80))
            with buffer.stream(32) as batches:
                batch = next(batches)
                assert batch["lost_shards"].tolist() == [0] * 32
                dies.child.process.kill()
                dies.child.wait()
                killed = time.monotonic()
                longest, lost = 0.0, 0
                while not lost:
                    began = time.monotonic()
                    lost = int(next(batches)["lost_shards"][0])
                    longest = max(longest, time.monotonic() - began)
                    assert time.monotonic() < killed + 20
                assert longest < 2
                assert batches.lost_shards == 1
                for _ in range(20):
                    assert set(shard_numbers(next(batches)["row_id"].numpy())) == {0}
                lives.enter_context(server_process(first))
                deadline = time.monotonic() + 20
                while 1 not in shard_numbers(next(batches)["row_id"].numpy()):
                    assert time.monotonic() < deadline
                assert batches.lost_shards == 0


def test_a_lost_shard_is_an_error_where_the_buffer_does_not_go_on(table):
    with server_process() as stays, server_process() as dies:
        with ShardedReplayBuffer([stays.address, dies.address], table=table, buffer_size=600, timeout=1.5) as buffer:
            fill(buffer, (40, 80))
            with buffer.stream(32) as batches:
                next(batches)
                dies.child.process.kill()
                with pytest.raises(ServerUnavailableError):
                    taken(batches, 1000)
                assert next(batches, None) is None
