"""Seeds of the remote buffer: its batches are those that the buffer in process draws, whichever way they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from restarts import Phoenix

from conftest import numbers, rows
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, TokenError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer


@pytest.fixture
def filled(address, table) -> Iterator[RemoteReplayBuffer]:
    with RemoteReplayBuffer(address, table=table, buffer_size=100) as buffer:
        buffer.add_batch(rows(100))
        yield buffer


@pytest.mark.parametrize("transport", ["grpc", "auto"])
def test_a_seeded_buffer_draws_what_one_in_process_draws(address, filled, transport):
    remote = RemoteReplayBuffer(address, table=filled.table, seed=11, transport=transport)
    with remote, ReplayBuffer("cpu", "cpu", 100, seed=11) as local:
        local.add_batch(rows(100))
        for size in (8, 8, 8, 5, 8, 8, 8):  # The first of a size is a call of its own, the others come over one that is held open.
            assert numbers(remote.sample_batch(size)) == numbers(local.sample_batch(size))
        for buffer in (remote, local):
            buffer.sample_batch(8, seed=1)  # It does not move the buffer's own.
        for _ in range(3):
            assert numbers(remote.get_next_batch(8)) == numbers(local.get_next_batch(8))
        orders = [[numbers(batch) for batch in buffer.create_epoch_iterator(30, 2, shuffle=True)] for buffer in (remote, local)]
        assert orders[0] == orders[1]


def test_threads_that_share_a_seeded_buffer_draw_each_batch_once(address, filled):
    with RemoteReplayBuffer(address, table=filled.table, seed=5) as buffer, filled.stream(16, seed=5) as batches:
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(lambda _: tuple(numbers(buffer.sample_batch(16))), range(40)))
        assert sorted(drawn) == sorted(tuple(numbers(next(batches))) for _ in range(40))


@pytest.mark.parametrize("transport", ["grpc", "auto"])
@pytest.mark.parametrize("prefetch", [1, 2, 7])
def test_a_seeded_stream_brings_the_batches_of_its_seed(address, filled, transport, prefetch):
    with RemoteReplayBuffer(address, table=filled.table, transport=transport) as buffer:
        streams = [buffer.stream(16, seed=9, prefetch=prefetch), filled.stream(16, seed=np.int64(9)), filled.stream(16, seed=torch.tensor(10))]
        drawn = [[numbers(next(batches)) for _ in range(12)] for batches in streams]
        for batches in streams:
            batches.close()
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[0][0] == numbers(buffer.sample_batch(16, seed=9))


def test_the_streams_of_a_seeded_buffer_differ_and_come_again(address, filled):
    def drawn() -> list[list[int]]:
        with RemoteReplayBuffer(address, table=filled.table, seed=4) as buffer, buffer.stream(16) as one, buffer.stream(16) as other:
            return [numbers(next(one)), numbers(next(other))]

    assert drawn() == drawn()
    assert drawn()[0] != drawn()[1]


def test_seeded_reads_go_on_at_their_place_when_the_server_comes_back(tmp_path):
    phoenix = Phoenix(tmp_path / "data")
    phoenix.start()
    try:
        with RemoteReplayBuffer(phoenix.address, table="kept", buffer_size=100, timeout=60, seed=2) as buffer:
            buffer.add_batch(rows(100))
            with buffer.stream(16, seed=2, prefetch=4) as batches:
                expected = [numbers(next(batches)) for _ in range(30)]
            with buffer.stream(16, seed=2, prefetch=4) as batches:
                drawn = [numbers(next(batches)) for _ in range(7)]
                single = [numbers(buffer.sample_batch(16)) for _ in range(4)]
                phoenix.restart()
                drawn += [numbers(next(batches)) for _ in range(23)]
                single += [numbers(buffer.sample_batch(16)) for _ in range(4)]
            assert drawn == expected
            assert single == expected[:8]
    finally:
        phoenix.close()


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1.5, "1", True])
def test_a_seed_out_of_its_range_is_refused(address, filled, seed):
    for use in (lambda: filled.stream(4, seed=seed), lambda: RemoteReplayBuffer(address, table=filled.table, seed=seed)):
        with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
            use()


def test_a_stream_goes_on_where_another_one_of_its_seed_stood(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100) as buffer:
        buffer.add_batch(rows(100))
        with buffer.stream(8, seed=3, prefetch=5) as batches, buffer.stream(8, seed=3) as expected:
            for _ in range(7):
                assert numbers(next(batches)) == numbers(next(expected))
            token = json.loads(json.dumps(batches.state_dict()))
            assert token["position"] == 7
            with buffer.stream(8) as other:
                next(other)
                other.load_state_dict(token)
                assert other.state_dict() == token
                assert [numbers(next(other)) for _ in range(5)] == [numbers(next(expected)) for _ in range(5)]


def test_a_token_of_another_stream_is_refused_and_changes_nothing(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100) as buffer:
        buffer.add_batch(rows(100))
        with buffer.stream(8, seed=3) as batches, buffer.stream(8, seed=3) as expected:
            token = batches.state_dict()
            for change in ({"table": "other"}, {"batch_size": 9}, {"seed": -1}, {"position": 1.5}, {"version": True}, {"more": 1}):
                with pytest.raises(TokenError):
                    batches.load_state_dict({**token, **change})
            assert batches.state_dict() == token
            assert numbers(next(batches)) == numbers(next(expected))


def test_a_stream_without_a_seed_has_no_token(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100) as buffer:
        buffer.add_batch(rows(100))
        with buffer.stream(8) as batches, pytest.raises(FailedPreconditionError, match="without a seed"):
            batches.state_dict()
