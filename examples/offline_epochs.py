"""Offline epochs, split over two learners: a policy learns from logged rows of an expert, and each row comes to one learner, once an epoch.

    python -m examples.offline_epochs

The two learners average their gradients (torch.distributed), so they need the same number of batches: ``drop_last=True`` sees to it. Each keeps the
token of its epochs beside its weights, and after half of the epochs it starts again from both, as after a crash. The program prints how often the
policy chooses what the expert would choose, and ends with status 0 where that is 95 of 100 times.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

__all__ = ["main"]

LEARNERS = 2
ROWS, BATCH_SIZE, EPOCHS, SEED = 8192, 64, 6, 0
GOAL = 0.95


def expert(obs: torch.Tensor) -> torch.Tensor:
    """What the expert does: pushes against the side to which the pole falls, and corrects the cart now and then. Shape [n], 0 or 1."""
    return (obs[:, 2] + 0.5 * obs[:, 3] + 0.1 * obs[:, 0] > 0).long()


def policy() -> nn.Module:
    """A policy that knows nothing yet."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))


def agreement(model: nn.Module) -> float:
    """How often a policy does what the expert does, on observations that nobody has logged."""
    obs = torch.randn(4096, 4, generator=torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        return float((model(obs).argmax(1) == expert(obs)).float().mean())


def learn(address: str, directory: str, rank: int) -> None:
    """In a learner: trains in two halves, the second of which begins with what the first one saved."""
    torch.set_num_threads(1)  # The networks are small: more threads would wait for each other.
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=LEARNERS)
    saved = Path(directory) / f"learner-{rank}"
    for stop in (EPOCHS // 2, EPOCHS):
        _train(address, saved, rank, stop)
    torch.distributed.destroy_process_group()


def _train(address: str, saved: Path, rank: int, stop: int) -> None:
    """Trains until so many epochs are done, from where `saved` says, and saves the weights with the place in the epochs."""
    model = policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with RemoteReplayBuffer(address) as buffer:
        batches = buffer.epochs(BATCH_SIZE, EPOCHS, shuffle=True, seed=SEED, drop_last=True, rank=rank, world_size=LEARNERS)
        if saved.with_suffix(".json").exists():
            model.load_state_dict(torch.load(saved.with_suffix(".pt"), weights_only=True))
            batches.load_state_dict(json.loads(saved.with_suffix(".json").read_text()))
        with saved.with_suffix(".rows").open("a") as taken:
            while batches.epoch < stop:
                batch = next(batches)
                taken.writelines(f"{number}\n" for number in batch["row_id"].tolist())
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch["obs"]), batch["action"]).backward()  # type: ignore[no-untyped-call]
                for parameter in model.parameters():
                    torch.distributed.all_reduce(parameter.grad)
                optimizer.step()
        saved.with_suffix(".json").write_text(json.dumps(batches.state_dict()))
    torch.save(model.state_dict(), saved.with_suffix(".pt"))


def main() -> int:
    """Logs the expert, trains, and prints what came of it. The exit status: 0 where the policy is good enough, and each row came once an epoch."""
    obs = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(SEED))
    with tempfile.TemporaryDirectory() as directory, spawn_server(ServerConfig(address="127.0.0.1:0")) as server:
        with RemoteReplayBuffer(server.address, buffer_size=ROWS) as buffer:
            buffer.add_batch({"obs": obs, "action": expert(obs)})
        spawning = multiprocessing.get_context("spawn")
        learners = [spawning.Process(target=learn, args=(server.address, directory, rank)) for rank in range(LEARNERS)]
        for learner in learners:
            learner.start()
        for learner in learners:
            learner.join()
        if any(learner.exitcode for learner in learners):
            return 1
        taken = [int(line) for path in Path(directory).glob("*.rows") for line in path.read_text().split()]
        model = policy()
        before = agreement(model)
        model.load_state_dict(torch.load(Path(directory) / "learner-0.pt", weights_only=True))
    found = agreement(model)
    once = sorted(taken) == sorted([*range(ROWS)] * EPOCHS)
    print(f"{LEARNERS} learners took {len(taken)} rows in {EPOCHS} epochs: each row {'once' if once else 'NOT once'} an epoch")
    print(f"the policy does what the expert does in {found:.1%} of cases; before it learned, in {before:.1%}")
    return 0 if once and found >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
