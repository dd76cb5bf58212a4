"""TorchRL's buffer of steps in the learner's own process, with the stacks built at sampling time.

Its `SliceSampler` draws pieces of five steps, of which both stacks are views, made by hand. That is the fastest way. `MultiStepTransform` makes next
observations, but no stacks: they take `CatFrames` after such a sampler, which copies each frame several times. The steps at the beginning of an
episode, whose stack would repeat the first frame, are not drawn here: slices have no padding.
"""

from __future__ import annotations

import tempfile

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

from benchmarks.checks import check_samples
from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.tensors import as_arrays, as_tensordict
from benchmarks.play import LENGTH, STACK, Play
from benchmarks.work import BATCH, Live

SLICE = STACK + 1


def main(task: Task) -> None:
    """Measures it, with so many steps as the task's variant says."""
    play = Play(task.work)
    live = Live(0, play.whole(int(task.variant)))
    with tempfile.TemporaryDirectory() as scratch:
        storage = LazyMemmapStorage(live.size // LENGTH * (LENGTH + 1), scratch_dir=scratch, device="cpu")
        sampler = SliceSampler(slice_len=SLICE, traj_key="episode", cache_values=True)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=BATCH * SLICE)
        for first in range(0, live.size, LENGTH):
            buffer.extend(_episode(play, first))
        check_samples(play, live, lambda: as_arrays(transitions(buffer)))
        Report(task).speed("sample", BATCH, throughput(lambda: transitions(buffer), task.seconds))


def _episode(play: Play, first: int) -> TensorDict:
    """The steps of an episode, and then its final observation, as a step that is 0 otherwise."""
    steps = as_tensordict(play.steps(first, LENGTH))
    final = steps[-1:].clone().zero_()
    final["obs"] = torch.from_numpy(play.final(first + LENGTH - 1)).unsqueeze(0)
    episode: TensorDict = torch.cat([steps, final])
    return episode.set("episode", torch.full([LENGTH + 1], first))


def transitions(buffer: TensorDictReplayBuffer) -> TensorDictBase:
    """A batch of them, whose stacks are views."""
    slices = buffer.sample().reshape(BATCH, SLICE)
    batch = slices[:, STACK - 1].select("action", "reward", "terminated", "truncated")
    return batch.set("obs", slices["obs"][:, :STACK]).set("next_obs", slices["obs"][:, 1:])


if __name__ == "__main__":
    main(Task.from_command_line())
