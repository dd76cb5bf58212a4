"""The long form: a Ray that ends as a whole, and another one on the same disks."""

from __future__ import annotations

import os

import pytest

from ray_actor import numbered
from ray_nodes import DATA_DIR, TIMEOUT, ray_of_two_nodes, some_disks, started, stored
from tdreplay.errors import FailedPreconditionError
from tdreplay_client import TableConfig
from tdreplay_client.ray import ReplayCluster

pytestmark = [pytest.mark.skipif(not os.environ.get("TDREPLAY_LONG"), reason="the long form: TDREPLAY_LONG=1"), pytest.mark.timeout(3600)]


def test_a_ray_that_is_started_anew_goes_on_with_the_rows_on_its_disks():
    with some_disks() as disks:
        with ray_of_two_nodes(disks):
            cluster = ReplayCluster(2, TableConfig(10_000), DATA_DIR, name="kept", host="127.0.0.1")
            with cluster.buffer(timeout=TIMEOUT) as buffer:
                buffer.add_batch(numbered(0, 1000))
        with pytest.raises(FailedPreconditionError, match="not connected to Ray"):
            cluster.status()
        with ray_of_two_nodes(disks), started(2, 10_000, name="kept") as again, again.buffer(timeout=TIMEOUT) as buffer:
            assert stored(buffer) == list(range(1000))
            assert not any(shard.began_empty for shard in again.status().shards)
            again.stop()
            for disk in disks.iterdir():
                for directory in (disk / "replay").glob("kept"):
                    directory.rename(directory.with_name("other"))
            with pytest.raises(FailedPreconditionError, match=r"is of shard \d of cluster 'kept'"):
                started(2, 10_000, name="other").__enter__()
