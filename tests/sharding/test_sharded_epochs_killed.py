"""SIGKILL of shards and learners in the middle of epochs: each row comes exactly once, or is counted as lost where it is gone for good."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from shard_learners import TIMEOUT, ShardLearner, learn

from children import Child, child_of, free_port, server_process
from tdreplay.errors import ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_server import ServerConfig

SHARDS, LEARNERS, EPOCHS, KILLS = 4, 2, 2, 2
ROWS = (450, 250, 600, 150)
pytestmark = pytest.mark.timeout(180)


class Shards:
    """Server processes at addresses that they keep."""

    def __init__(self, stack: ExitStack, directory: Path | None, count: int) -> None:
        self._stack, self._directory = stack, directory
        self.addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(count))
        self.children = [self._served(place) for place in range(count)]

    def _served(self, place: int) -> Child:
        data_dir = None if self._directory is None else self._directory / str(place)
        return self._stack.enter_context(server_process(ServerConfig(address=self.addresses[place], data_dir=data_dir))).child

    def fill(self, sizes: tuple[int, ...]) -> None:
        """Fills the table 'default' of each."""
        start = 0
        for address, size in zip(self.addresses, sizes, strict=True):
            with RemoteReplayBuffer(address, buffer_size=size, timeout=TIMEOUT) as buffer:
                buffer.add_batch({"number": torch.arange(start, start + size)})
            start += size

    def kill(self, place: int) -> None:
        """SIGKILL."""
        killed(self.children[place])

    def restart(self, place: int) -> None:
        """Starts it again, over the directory that it had."""
        self.children[place] = self._served(place)


def killed(child: Child) -> None:
    assert not child.ended, "it came to its end before it was killed: the test proves nothing"
    child.kill()
    child.wait()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what was opened in it."""
    with ExitStack() as found:
        yield found


def until_taken(learners: list[ShardLearner], share: float) -> None:
    """Waits until such a share of all rows was taken."""
    deadline = time.monotonic() + TIMEOUT
    while sum(len(learner.taken) for learner in learners) < share * sum(ROWS) * EPOCHS:
        assert time.monotonic() < deadline, [len(learner.taken) for learner in learners]
        time.sleep(0.02)


def test_each_row_comes_exactly_once_an_epoch_however_often_shards_and_learners_die(stack, tmp_path):
    shards = Shards(stack, tmp_path, SHARDS)
    shards.fill(ROWS)
    learners = [ShardLearner(shards.addresses, str(tmp_path / f"learner-{rank}"), rank, LEARNERS) for rank in range(LEARNERS)]
    children = [stack.enter_context(child_of(learn, learner)) for learner in learners]
    for kill in range(2 * KILLS):
        until_taken(learners, (kill + 1) / (2 * KILLS + 2))
        if kill % 2:
            rank = kill // 2 % LEARNERS
            killed(children[rank])
            children[rank] = stack.enter_context(child_of(learn, learners[rank]))
        else:
            shards.kill(kill // 2 % SHARDS)
            shards.restart(kill // 2 % SHARDS)
    assert [child.wait(TIMEOUT) for child in children] == [0] * LEARNERS
    assert Counter(number for learner in learners for number in learner.taken) == dict.fromkeys(range(sum(ROWS)), EPOCHS)


def test_rows_of_a_shard_that_comes_back_empty_are_counted_as_lost(stack):
    shards = Shards(stack, None, 2)
    shards.fill((400, 200))
    buffer = stack.enter_context(ShardedReplayBuffer(shards.addresses, timeout=TIMEOUT, on_loss="degrade"))
    batches = buffer.epochs(10, 2, shuffle=True, seed=1)
    seen = [number for _ in range(5) for number in next(batches)["number"].tolist()]
    shards.kill(1)
    shards.restart(1)
    RemoteReplayBuffer(shards.addresses[1], buffer_size=200).close()
    seen += [number for batch in batches for number in batch["number"].tolist()]
    counts = Counter(seen)
    assert [counts[number] for number in range(400)] == [2] * 400
    assert sum(counts[number] for number in range(400, 600)) + batches.lost == 400
    assert batches.lost >= 200
    assert batches.overwritten == 0


def test_a_shard_that_does_not_come_back_in_time_is_not_waited_for_again(stack, tmp_path):
    shards = Shards(stack, tmp_path, 2)
    shards.fill((400, 200))
    buffer = stack.enter_context(ShardedReplayBuffer(shards.addresses, timeout=3.0, on_loss="degrade"))
    batches = buffer.epochs(10, 3, shuffle=True, seed=1)
    shards.kill(1)
    seen: list[int] = []
    began = time.monotonic()
    while batches.epoch == 0:
        seen += next(batches)["number"].tolist()
    assert 2.5 < time.monotonic() - began < 15.0
    lost = batches.lost
    assert lost == 600 - len(seen) >= 100
    shards.restart(1)  # What comes after that comes again.
    deadline = time.monotonic() + TIMEOUT
    while buffer.describe().lost_shards:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rest = [number for batch in batches for number in batch["number"].tolist()]
    assert len(seen) + len(rest) + batches.lost == 1800
    assert batches.lost - lost <= 60  # Read ahead while it was lost.


def test_a_lost_shard_is_an_error_where_the_buffer_does_not_go_on_and_the_token_is_still_good(stack, tmp_path):
    shards = Shards(stack, tmp_path, 2)
    shards.fill((40, 20))
    buffer = stack.enter_context(ShardedReplayBuffer(shards.addresses, timeout=2.0))
    batches = buffer.epochs(10, shuffle=True, seed=1)
    seen = next(batches)["number"].tolist()
    shards.kill(1)
    with pytest.raises(ServerUnavailableError):
        seen.extend(number for batch in batches for number in batch["number"].tolist())
    assert len(seen) < 60
    token = batches.state_dict()
    shards.restart(1)
    batches.load_state_dict(token)
    seen += [number for batch in batches for number in batch["number"].tolist()]
    assert sorted(seen) == [*range(60)]


def test_epochs_that_wait_for_a_lost_shard_can_be_closed(stack, tmp_path):
    shards = Shards(stack, tmp_path, 2)
    shards.fill((40, 20))
    buffer = stack.enter_context(ShardedReplayBuffer(shards.addresses, timeout=TIMEOUT))
    batches = buffer.epochs(10, shuffle=True, seed=1)
    shards.kill(1)
    began = time.monotonic()
    timer = threading.Timer(1.0, batches.close)
    timer.start()
    assert len(list(batches)) < 6
    timer.join()
    assert time.monotonic() - began < TIMEOUT / 2
