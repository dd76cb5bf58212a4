"""SIGKILL of the server and of learners in the middle of epochs that the learners share: each row comes exactly once an epoch."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from epoch_learners import TIMEOUT, EpochLearner, learn
from processes import Servers

from children import Child, child_of
from tdreplay_client import RemoteReplayBuffer

ROWS, LEARNERS, EPOCHS = 10_000, 3, 2
KILLS = 3
"""Of the server, and of a learner."""
pytestmark = pytest.mark.timeout(180)


def until_taken(learners: list[EpochLearner], share: float) -> None:
    """Waits until such a share of all rows was taken."""
    deadline = time.monotonic() + TIMEOUT
    while sum(len(learner.taken) for learner in learners) < share * ROWS * EPOCHS:
        assert time.monotonic() < deadline, [len(learner.taken) for learner in learners]
        time.sleep(0.02)


def test_each_row_comes_exactly_once_an_epoch_however_often_server_and_learners_die(tmp_path):
    servers = Servers(tmp_path / "data")
    learners = [EpochLearner(servers.address, str(tmp_path / f"learner-{rank}"), rank, LEARNERS) for rank in range(LEARNERS)]
    with ExitStack() as stack:
        server = stack.enter_context(servers.running(buffer_size=ROWS))
        with RemoteReplayBuffer(servers.address, timeout=TIMEOUT) as buffer:
            buffer.add_batch({"number": torch.arange(ROWS)})
        children = [stack.enter_context(child_of(learn, learner)) for learner in learners]
        for kill in range(2 * KILLS):
            until_taken(learners, (kill + 1) / (2 * KILLS + 2))
            if kill % 2:
                _killed(children[kill // 2])
                children[kill // 2] = stack.enter_context(child_of(learn, learners[kill // 2]))
            else:
                _killed(server)
                server = stack.enter_context(servers.running())
        assert [child.wait(TIMEOUT) for child in children] == [0] * LEARNERS
    counts = Counter(number for learner in learners for number in learner.taken)
    assert counts == dict.fromkeys(range(ROWS), EPOCHS)
    for epoch in range(EPOCHS):
        assert sorted(_of_epoch(learners, epoch)) == list(range(ROWS))


def _killed(child: Child) -> None:
    assert not child.ended, "it came to its end before it was killed: the test proves nothing"
    child.kill()
    child.wait()


def _of_epoch(learners: list[EpochLearner], epoch: int) -> list[int]:
    """The rows that the learners took in one epoch. The token after a batch is in the next epoch where the batch was the last of its own."""
    return [
        number
        for learner in learners
        for line in learner.lines
        if line["token"]["epoch"] - (line["token"]["position"] == 0) == epoch
        for number in line["rows"]
    ]
