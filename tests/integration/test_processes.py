"""Server, actor and learner, each a process of its own, on real transitions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from children import completed, server_process
from tdreplay_server import ServerConfig

ACTOR = """
import sys
import gymnasium, torch
from safetensors.torch import save_file
from tensordict import TensorDict
from tdreplay_client import RemoteReplayBuffer

env, kept = gymnasium.make("CartPole-v1"), []
observation, _ = env.reset(seed=7)
env.action_space.seed(7)
with RemoteReplayBuffer(sys.argv[1], timeout=20) as buffer:
    for step in range(700):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        row = TensorDict({
            "obs": torch.from_numpy(observation),
            "action": torch.tensor(int(action)),
            "next": {"obs": torch.from_numpy(following), "reward": torch.tensor(float(reward)), "terminated": torch.tensor(terminated)},
        })
        kept.append(row.clone())
        if step < 100:
            buffer.add(row)
        elif len(kept) % 50 == 0:
            buffer.add_batch(torch.stack(kept[-50:]))
        observation = env.reset()[0] if terminated or truncated else following
save_file(torch.stack(kept).flatten_keys(".").to_dict(), sys.argv[2])
"""

LEARNER = """
import sys
from safetensors.torch import save_file
from tdreplay_client import RemoteReplayBuffer

with RemoteReplayBuffer(sys.argv[1], timeout=20) as buffer:
    everything = buffer.sample_all()
    for batch in [*buffer.create_epoch_iterator(64), *(buffer.get_next_batch(64) for _ in range(0))]:
        assert (batch == everything[batch["index"]]).all()
    for _ in range(50):
        batch = buffer.sample_batch(32)
        assert (batch == everything[batch["index"]]).all()
save_file(everything.flatten_keys(".").to_dict(), sys.argv[2])
"""


def run(program: str, *arguments: str | Path) -> None:
    ended = completed("-c", program, *arguments)
    assert ended.returncode == 0, ended.stderr


def test_what_an_actor_pushes_a_learner_reads_row_for_row(tmp_path):
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
        run(ACTOR, server.address, tmp_path / "pushed")
        run(LEARNER, server.address, tmp_path / "read")
    pushed, read = load_file(tmp_path / "pushed"), load_file(tmp_path / "read")
    assert read.pop("row_id").tolist() == read.pop("index").tolist() == list(range(700))
    assert pushed.keys() == read.keys() == {"obs", "action", "next.obs", "next.reward", "next.terminated"}
    for name in pushed:
        assert torch.equal(pushed[name], read[name]), name
