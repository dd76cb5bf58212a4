"""SIGKILL of shards and learners in the middle of epochs: each row comes exactly once, or is counted as lost where it is gone for good."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from shard_learners import TIMEOUT, ShardLearner, learn
from shard_processes import Shards

from children import Child, child_of
from tdreplay.epochs import Epochs
from tdreplay.errors import ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer

LONG = bool(os.environ.get("TDREPLAY_LONG"))
ROWS = (450, 250, 600, 150)
LEARNERS, EPOCHS, KILLS = (2, 6, 40) if LONG else (2, 1, 2)
pytestmark = pytest.mark.timeout(900 if LONG else 180)


class Stage:
    """The processes of four shards, and a table on some of them."""

    def __init__(self, shards: Shards, table: str) -> None:
        self._shards, self.table, self.addresses = shards, table, tuple(shards.addresses)

    def fill(self, *sizes: int) -> None:
        """Fills the table of the first shards, which are those of the buffers from now on."""
        self.addresses, start = self.addresses[: len(sizes)], 0
        for address, size in zip(self.addresses, sizes, strict=True):
            with RemoteReplayBuffer(address, table=self.table, buffer_size=size, timeout=TIMEOUT) as buffer:
                buffer.add_batch({"number": torch.arange(start, start + size)})
            start += size

    def buffer(self, **settings: object) -> ShardedReplayBuffer:
        return ShardedReplayBuffer(self.addresses, table=self.table, **settings)

    def kill(self, place: int) -> None:
        """SIGKILL."""
        assert not self._shards.servers[place].child.ended, "it came to its end before it was killed: the test proves nothing"
        self._shards.kill(place)

    def restart(self, place: int, *, empty: bool = False) -> None:
        """Starts it again, over the directory that it had, or an empty one."""
        self._shards.start(place, empty=empty)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    """Four of them, each with its data."""
    shards = Shards(tmp_path_factory.mktemp("shards"), len(ROWS))
    yield shards
    shards.close()


@pytest.fixture
def stage(processes: Shards, table: str) -> Iterator[Stage]:
    """All of them run."""
    yield Stage(processes, table)
    for place, server in processes.servers.items():
        if server.child.ended:
            processes.start(place)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what was opened in it."""
    with ExitStack() as found:
        yield found


def killed(child: Child) -> None:
    assert not child.ended, "it came to its end before it was killed: the test proves nothing"
    child.kill()
    child.wait()


def until_taken(learners: list[ShardLearner], share: float) -> None:
    """Waits until such a share of all rows was taken."""
    deadline = time.monotonic() + TIMEOUT
    while sum(len(learner.taken) for learner in learners) < share * sum(ROWS) * EPOCHS:
        assert time.monotonic() < deadline, [len(learner.taken) for learner in learners]
        time.sleep(0.02)


def until_back(buffer: ShardedReplayBuffer) -> None:
    """Waits until the buffer has found all shards."""
    deadline = time.monotonic() + TIMEOUT
    while buffer.describe().lost_shards:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def taken(batches: Epochs) -> list[int]:
    return [number for batch in batches for number in batch["number"].tolist()]


def test_each_row_comes_exactly_once_an_epoch_however_often_shards_and_learners_die(stage, stack, tmp_path):
    stage.fill(*ROWS)
    learners = [ShardLearner(stage.addresses, stage.table, str(tmp_path / f"learner-{rank}"), rank, LEARNERS, EPOCHS) for rank in range(LEARNERS)]
    children = [stack.enter_context(child_of(learn, learner)) for learner in learners]
    chance = random.Random(1)
    for kill in range(KILLS):
        until_taken(learners, 0.8 * (kill + 1) / (KILLS + 1))
        running = [rank for rank, child in enumerate(children) if not child.ended]
        if kill % 2 and running:
            rank = chance.choice(running)
            killed(children[rank])
            children[rank] = stack.enter_context(child_of(learn, learners[rank]))
        else:
            place = chance.randrange(len(ROWS))
            stage.kill(place)
            stage.restart(place)
    assert [child.wait(TIMEOUT) for child in children] == [0] * LEARNERS
    assert Counter(number for learner in learners for number in learner.taken) == dict.fromkeys(range(sum(ROWS)), EPOCHS)


def test_rows_of_a_shard_that_does_not_come_back_are_counted_as_lost_and_it_is_not_waited_for_again(stage, stack):
    stage.fill(400, 200)
    buffer = stack.enter_context(stage.buffer(timeout=1.5, on_loss="degrade"))
    batches = buffer.epochs(10, 3, shuffle=True, seed=1)
    token = batches.state_dict()
    stage.kill(1)
    batches.load_state_dict(token)  # Nothing was read ahead.
    began = time.monotonic()
    first: list[int] = []
    while batches.epoch == 0:
        first += next(batches)["number"].tolist()
    assert 1.4 < time.monotonic() - began < 15.0
    assert sorted(first) == [*range(400)]
    assert batches.lost == 200
    seen = Counter(taken(batches))
    assert seen == dict.fromkeys(range(400), 2)
    assert (batches.lost, batches.overwritten) == (600, 0)
    stage.restart(1)  # It gives the rows of later epochs again.
    until_back(buffer)
    batches.load_state_dict({**batches.state_dict(), "epoch": 2})
    assert sorted(taken(batches)) == [*range(600)]


def test_it_is_an_error_where_all_shards_are_lost_and_the_token_is_still_good(stage, stack):
    stage.fill(40, 20)
    buffer = stack.enter_context(stage.buffer(timeout=1.5, on_loss="degrade"))
    batches = buffer.epochs(10, 1000, shuffle=True, seed=1)
    seen = next(batches)["number"].tolist()
    for place in range(2):
        stage.kill(place)
    with pytest.raises(ServerUnavailableError, match="all 2 shards"):
        seen.extend(number for batch in batches for number in batch["number"].tolist())
    token = batches.state_dict()
    for place in range(2):
        stage.restart(place)
    batches = stack.enter_context(stage.buffer(timeout=TIMEOUT)).epochs(10, 1000, shuffle=True)
    batches.load_state_dict(token)
    while batches.epoch <= token["epoch"]:
        seen += next(batches)["number"].tolist()
    epochs = token["epoch"] + 1  # The shard that was found lost first was given up first: some of its rows may be lost before the error.
    assert max(Counter(seen).values()) <= epochs
    assert len(seen) + batches.lost == 60 * epochs


def test_a_lost_shard_is_an_error_where_the_buffer_does_not_go_on_and_the_token_is_still_good(stage, stack):
    stage.fill(40, 20)
    buffer = stack.enter_context(stage.buffer(timeout=1.0))
    batches = buffer.epochs(10, 1000, shuffle=True, seed=1)
    seen = next(batches)["number"].tolist()
    stage.kill(1)
    with pytest.raises(ServerUnavailableError):
        seen.extend(number for batch in batches for number in batch["number"].tolist())
    token = batches.state_dict()
    with pytest.raises(ServerUnavailableError):
        batches.load_state_dict(token)
    stage.restart(1)
    batches = stack.enter_context(stage.buffer(timeout=TIMEOUT)).epochs(10, 1000, shuffle=True)
    batches.load_state_dict(token)
    while batches.epoch <= token["epoch"]:
        seen += next(batches)["number"].tolist()
    assert Counter(seen) == dict.fromkeys(range(60), token["epoch"] + 1)


def test_epochs_begin_with_the_rows_of_a_shard_that_is_away_for_a_moment(stage, stack):
    stage.fill(40, 20)
    buffer = stack.enter_context(stage.buffer(timeout=TIMEOUT, on_loss="degrade"))
    stage.kill(1)
    threading.Timer(0.5, stage.restart, [1]).start()
    assert sorted(taken(buffer.epochs(10))) == [*range(60)]


def test_epochs_that_wait_for_a_lost_shard_can_be_closed_and_leave_no_thread(stage, stack):
    stage.fill(40, 20)
    before = set(threading.enumerate())
    buffer = stack.enter_context(stage.buffer(timeout=TIMEOUT))
    batches = buffer.epochs(10, 1_000_000, shuffle=True, seed=1)
    next(batches)
    stage.kill(1)
    began = time.monotonic()
    timer = threading.Timer(1.0, batches.close)
    timer.start()
    assert all(len(batch) == 10 for batch in batches)
    assert batches.epoch < 1_000_000
    assert time.monotonic() - began < TIMEOUT / 2
    buffer.close()
    while left := {thread for thread in threading.enumerate() if thread.name == "tdreplay-reader"} - before:
        assert time.monotonic() - began < TIMEOUT / 2, left
        time.sleep(0.02)


def test_rows_of_a_shard_that_comes_back_empty_are_counted_as_lost(stage, stack):
    stage.fill(400, 200)
    buffer = stack.enter_context(stage.buffer(timeout=TIMEOUT, on_loss="degrade"))
    batches = buffer.epochs(10, 2, shuffle=True, seed=1)
    seen = [number for _ in range(5) for number in next(batches)["number"].tolist()]
    token = batches.state_dict()
    stage.kill(1)
    stage.restart(1, empty=True)
    RemoteReplayBuffer(stage.addresses[1], table=stage.table, buffer_size=200).close()
    batches.load_state_dict(token)
    seen += taken(batches)
    counts = Counter(seen)
    assert [counts[number] for number in range(400)] == [2] * 400
    assert len(seen) + batches.lost == 1200
    assert batches.overwritten == 0
