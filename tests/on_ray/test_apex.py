"""Ape-X on Ray: it learns from shards of steps, and gives the steps their errors as priorities."""

from __future__ import annotations

import os

import pytest
from examples import apex

from ray_nodes import DATA_DIR, ray_of_two_nodes
from tdreplay_client.ray import ReplayCluster

LONG = bool(os.environ.get("TDREPLAY_LONG"))
UPDATES = apex.MOST_UPDATES if LONG else 1024
RANDOM_RETURN = 25
"""More than a random policy gets in CartPole-v1."""


@pytest.mark.timeout(900)
def test_it_learns_cartpole_from_two_shards():
    with ray_of_two_nodes():
        cluster = ReplayCluster(apex.SHARDS, apex.TABLE, DATA_DIR, name="apex", host="127.0.0.1", resources={"CPU": 0.5})
        try:
            with cluster.buffer(timeout=120) as buffer:
                result = apex.train(buffer, UPDATES)
                shards, config = buffer.describe().shards, buffer.describe().config
        finally:
            cluster.stop()
    print(result)
    assert result.mean_return >= (apex.GOAL if LONG else 2 * RANDOM_RETURN)
    assert result.reprioritized >= result.updates * apex.BATCH / 2, "rows of which the learner said what they are worth"
    assert [shard.description.size > 0 for shard in shards] == [True] * apex.SHARDS
    assert config.trajectories
