"""What is built of TorchRL's pieces learns over a table of a server."""

from __future__ import annotations

import pytest
import torch
from examples import torchrl_dqn, torchrl_sac

from tdreplay_client import RemoteReplayBuffer

RANDOM_RETURN = 25
"""More than a random policy gets in CartPole-v1."""


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are small: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(400)
def test_the_prioritized_dqn_learns(address, table):
    assert torchrl_dqn.train(address, 3000, table=table) > 2 * RANDOM_RETURN
    with RemoteReplayBuffer(address, table=table) as buffer:
        batch = buffer.sample_batch(1000)
        assert batch["priority"].unique().numel() > 100, "rows have their errors as priorities"
        assert not torch.allclose(batch["probability"], batch["probability"][:1])


@pytest.mark.timeout(400)
def test_the_asynchronous_sac_updates_from_what_its_actors_write_meanwhile(address, table):
    mean, frames = torchrl_sac.train(address, 60, table=table)
    assert -1700 < mean <= 0
    with RemoteReplayBuffer(address, table=table) as buffer:
        rows = buffer.sample_all()
        assert len(rows) >= frames >= torchrl_sac.WARM_UP
        starts = rows["observation"][rows["row_id"] % 200 == 0]
        assert starts.isfinite().all()
        assert rows["action"].abs().max() <= 2
