"""Batches of so many rows that their ids do not fit into one message: they are asked for in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from tdreplay_client import Prioritized, ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

ROWS = 50_000


@pytest.fixture(scope="module")
def buffer() -> Iterator[ShardedReplayBuffer]:
    """Over two shards, with rows that say their number."""
    with ExitStack() as stack:
        addresses = [stack.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0"))).address for _ in range(2)]
        made = stack.enter_context(ShardedReplayBuffer(addresses, buffer_size=ROWS, sampler=Prioritized()))
        made.add_batch({"number": torch.arange(ROWS)})
        yield made


def test_priorities_of_many_rows_change_in_one_call(buffer):
    rows = buffer.sample_all()
    assert buffer.update_priorities(rows["row_id"], (1 + rows["number"]).double()) == (ROWS, 0)
    back = buffer.sample_by_index(rows["index"].flip(0))
    assert torch.equal(back["number"], rows["number"].flip(0))
    assert buffer.update_priorities(back["row_id"].repeat(2), np.zeros(2 * ROWS)).updated == 2 * ROWS
    assert buffer.update_priorities(back["row_id"], np.ones(ROWS)).stale == 0


def test_a_stream_takes_priorities_of_many_rows(buffer):
    with buffer.stream(ROWS) as batches:
        batch = next(batches)
        batches.update_priorities(batch, np.full(ROWS, 2.0))
        next(batches)
    assert set(buffer.sample_batch(ROWS)["number"].tolist()) <= set(range(ROWS))


def test_an_epoch_of_one_batch_has_all_rows(buffer):
    for shuffle in (True, False):
        (batch,) = buffer.epochs(ROWS, shuffle=shuffle)
        assert sorted(batch["number"].tolist()) == [*range(ROWS)]
