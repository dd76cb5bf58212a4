"""Writers over shards: spread evenly, on one shard each, and on another one when that is lost, each row stored once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from shard_processes import Shards
from shard_servers import Listed

from conftest import rows
from tdreplay.errors import ClosedError, SchemaError, ServerUnavailableError
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SHARDS = 4


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with ExitStack() as running:
        yield [running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0", max_tables=100_000))).address for _ in range(SHARDS)]


@pytest.fixture
def shards(tmp_path) -> Iterator[Shards]:
    made = Shards(tmp_path, 2)
    yield made
    made.close()


def stored(buffer: ShardedReplayBuffer) -> Counter[int]:
    """How often each number is stored."""
    return Counter(buffer.sample_all()["action"].tolist())


def await_all(buffer: ShardedReplayBuffer) -> None:
    """Returns when no shard is lost."""
    deadline = time.monotonic() + 30
    while buffer.describe().lost_shards:
        assert time.monotonic() < deadline


def shards_of(buffer: ShardedReplayBuffer) -> Counter[int]:
    return Counter(shard_numbers(buffer.sample_all()["row_id"].numpy()).tolist())


def test_writers_are_spread_over_the_shards_and_stay_on_theirs(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=4000) as buffer, ExitStack() as open_writers:
        writers = [open_writers.enter_context(buffer.writer()) for _ in range(8)]
        assert Counter(writer.shard for writer in writers) == dict.fromkeys(range(SHARDS), 2)
        for number, writer in enumerate(writers):
            for at in range(50):
                writer.append(rows(1, number * 100 + at)[0])
            writer.extend(rows(50, number * 100 + 50))
            writer.flush()
        assert shards_of(buffer) == dict.fromkeys(range(SHARDS), 200)
        assert stored(buffer) == dict.fromkeys(range(800), 1)
        by_shard = {}
        for row in buffer.sample_all():
            by_shard.setdefault(int(row["action"]) // 100, set()).add(int(row["row_id"]) >> 48)
        assert all(len(found) == 1 for found in by_shard.values())


def test_a_writer_that_is_closed_makes_room_for_another(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=4000) as buffer:
        writers = [buffer.writer() for _ in range(SHARDS)]
        writers[2].close()
        assert buffer.writer().shard == writers[2].shard
        with pytest.raises(ClosedError):
            writers[2].append(rows(1)[0])


def test_rows_that_do_not_fit_change_nothing_and_the_writer_goes_on(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=4000) as buffer:
        buffer.add(rows(1)[0])
        with buffer.writer() as writer:
            for bad in ({"action": torch.tensor(1)}, {"other": 1.0}):
                with pytest.raises(SchemaError):
                    writer.append(bad)
            with pytest.raises(SchemaError):
                writer.extend({"action": torch.arange(5)})
            writer.append(rows(1, 1)[0])
            with pytest.raises(SchemaError):
                writer.append({"action": torch.tensor(1)})
        assert stored(buffer) == {0: 1, 1: 1}


def test_two_writers_cannot_give_shards_different_schemas(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=4000) as buffer, buffer.writer() as one, buffer.writer() as other:
        one.append({"x": np.float32(1)})
        with pytest.raises(SchemaError):
            other.append({"y": np.float32(1)})
        other.append({"x": np.float32(2)})


def test_a_large_batch_of_images_goes_out_in_parts(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=800) as buffer, buffer.writer() as writer:
        writer.extend({"image": torch.arange(200, dtype=torch.uint8).reshape(200, 1).expand(200, 300_000)})
        writer.flush()
        assert buffer.state().size == 200


def test_a_writer_moves_when_its_shard_is_lost_and_no_row_is_stored_twice(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=100_000, timeout=60, on_loss="degrade") as buffer:
        with buffer.writer(flush_rows=8) as writer:
            first, count = writer.shard, 0
            for count in range(500):
                writer.append(rows(1, count)[0])
            shards.kill(first)
            deadline = time.monotonic() + 30
            while writer.shard == first:
                count += 1
                writer.append(rows(1, count)[0])
                assert time.monotonic() < deadline
            for number in range(count + 1, count + 101):
                writer.append(rows(1, number)[0])
            shards.start(first)
        await_all(buffer)
        assert stored(buffer) == dict.fromkeys(range(count + 101), 1)


def test_a_shard_that_comes_back_empty_gives_its_unacknowledged_rows_to_another(shards, table):
    options = {"table": table, "buffer_size": 100_000, "timeout": 60, "on_loss": "degrade"}
    with ShardedReplayBuffer(shards.addresses, **options) as buffer, buffer.writer(flush_rows=8) as writer:
        for number in range(100):
            writer.append(rows(1, number)[0])
        writer.flush()
        first = writer.shard
        shards.stop(first)
        for number in range(100, 200):
            writer.append(rows(1, number)[0])
        shards.kill(first)
        shards.start(first, empty=True)
        writer.flush()
        await_all(buffer)
        found = stored(buffer)
        assert {number: found[number] for number in range(100, 200)} == dict.fromkeys(range(100, 200), 1)


def test_after_the_timeout_the_error_has_the_rows_and_given_again_they_are_stored_once(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=100_000, timeout=4) as buffer:
        writer = buffer.writer(flush_rows=4)
        for number in range(40):
            writer.append(rows(1, number)[0])
        writer.flush()
        first = writer.shard
        shards.stop(first)
        for number in range(40, 80):
            writer.append(rows(1, number)[0])
        shards.kill(first)
        with pytest.raises(ServerUnavailableError) as raised:
            writer.close()
        left = raised.value.rows
        assert left is not None
        shards.start(first)
        await_all(buffer)
        buffer.add_batch(left)
        found = buffer.sample_all()
        again = torch.isin(found["action"], left["action"])
        assert set(shard_numbers(found["row_id"][again].numpy()).tolist()) == {first}
        assert stored(buffer) == dict.fromkeys(range(80), 1)


def test_an_add_whose_shard_died_before_goes_to_another(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=1000, timeout=30, on_loss="degrade") as buffer:
        for number in range(10):
            buffer.add(rows(1, number)[0])
        shards.kill(0)
        while not buffer.describe().lost_shards:
            pass
        begin = time.monotonic()
        for number in range(10, 30):
            buffer.add(rows(1, number)[0])
        assert time.monotonic() - begin < 10
        shards.start(0)
        await_all(buffer)
        assert stored(buffer) == dict.fromkeys(range(30), 1)


def test_a_writer_leaves_a_shard_that_was_removed_when_its_rows_are_stored_there(addresses, table):
    directory = Listed(addresses)
    with ShardedReplayBuffer(directory, table=table, buffer_size=4000) as buffer, buffer.writer() as writer:
        for number in range(100):
            writer.append(rows(1, number)[0])
        first = writer.shard
        directory.listed = [place for place in directory.listed if place.number != first]
        deadline = time.monotonic() + 30
        count = 100
        while writer.shard == first:
            writer.append(rows(1, count)[0])
            count += 1
            time.sleep(0.01)  # The directory is asked once a second.
            assert time.monotonic() < deadline
        writer.flush()
        assert first not in shards_of(buffer)
        with RemoteReplayBuffer(addresses[first], table=table) as removed:
            left = removed.sample_all()["action"].tolist()
        assert sorted(left + list(stored(buffer).elements())) == list(range(count))


def test_priorities_move_with_their_rows(shards, table):
    options = {"table": table, "buffer_size": 100_000, "timeout": 60, "on_loss": "degrade", "sampler": "prioritized"}
    with ShardedReplayBuffer(shards.addresses, **options) as buffer:
        with buffer.writer(flush_rows=8, max_in_flight=2) as writer:
            writer.append(rows(1, 0)[0], priority=1.0)
            writer.flush()
            shards.kill(writer.shard)
            lost = writer.shard
            for number in range(1, 200):
                writer.append(rows(1, number)[0], priority=None if number % 10 == 0 else number + 1)
            assert writer.shard != lost
            shards.start(lost)
        await_all(buffer)
        assert stored(buffer) == dict.fromkeys(range(200), 1)
        batch = buffer.sample_batch(2000)
        given = batch["action"] % 10 != 0
        assert torch.equal(batch["priority"][given], batch["action"][given].double() + 1)


def step(number: int, *, end: bool = False) -> dict[str, np.generic | bool]:
    return {"obs": np.float32(number), "action": np.int64(number), "reward": np.float32(0), "terminated": end, "truncated": False}


def episodes_of(buffer: ShardedReplayBuffer) -> list[tuple[set[int], list[int]]]:
    """Of each episode: its shards, and its actions in order."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for row in buffer.sample_all():
        found.setdefault(int(row["episode_id"]), []).append((int(row["step"]), int(row["action"]), int(row["row_id"]) >> 48))
    return [({shard for _, _, shard in steps}, [action for _, action, _ in sorted(steps)]) for steps in found.values()]


def test_a_running_episode_waits_for_its_shard_and_the_next_one_goes_on_elsewhere(shards, table):
    options = {"table": table, "buffer_size": 10_000, "timeout": 60, "on_loss": "degrade", "trajectories": True}
    with ShardedReplayBuffer(shards.addresses, **options) as buffer:
        with buffer.trajectory_writer(flush_rows=1) as writer:
            for number in range(3):
                writer.append(step(number))
            writer.flush()
            (first,) = shards_of(buffer)
            shards.kill(first)
            while not buffer.describe().lost_shards:
                pass
            for number in range(3, 6):
                writer.append(step(number, end=number == 5))
            for number in range(6, 12):
                writer.append(step(number, end=number in (8, 11)))
            shards.start(first)
        await_all(buffer)
        found = sorted(episodes_of(buffer), key=lambda episode: episode[1])
        assert found == [({first}, [0, 1, 2, 3, 4, 5]), ({1 - first}, [6, 7, 8]), ({1 - first}, [9, 10, 11])]


def test_environments_of_one_writer_are_on_one_shard(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=10_000, trajectories=True) as buffer:
        with buffer.trajectory_writer(3, autoreset="same_step") as writer:
            for number in range(20):
                ends = np.array([number % 3 == 2, number % 4 == 3, number % 5 == 4])
                zeros = np.zeros(3, np.float32)
                writer.append({"obs": zeros, "action": np.full(3, number), "reward": zeros, "terminated": ends, "truncated": ends & False})
        assert len(shards_of(buffer)) == 1
        assert buffer.state().size == 60


def test_steps_of_add_batch_go_to_the_shards_of_their_episodes(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=10_000, trajectories=True) as buffer:
        episodes = np.arange(40)
        for at in range(5):
            zeros, ends = np.zeros(40, np.float32), np.full(40, at == 4)
            steps = {"obs": zeros, "action": episodes * 5 + at, "reward": zeros, "terminated": ends, "truncated": ends & False}
            buffer.add_batch(steps | {"episode_id": episodes, "step": np.full(40, at), "step_kind": np.full(40, 2 * (at == 4), np.uint8)})
        found = sorted(episodes_of(buffer), key=lambda episode: episode[1])
        assert [actions for _, actions in found] == [list(range(5 * number, 5 * number + 5)) for number in range(40)]
        assert all(len(used) == 1 for used, _ in found)
        assert set().union(*(used for used, _ in found)) == set(range(SHARDS))
