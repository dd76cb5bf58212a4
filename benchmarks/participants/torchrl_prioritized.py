"""TorchRL's prioritized buffer in the learner's own process, with a new priority for every row of every batch.

Its sum-tree is compiled code. The wheel's loads only with the version of torch that it was built with, and else TorchRL has no prioritized sampler:
there is no tree in Python. The wheel has the source, so it is compiled here, once, where it does not load.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.environments import directory
from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.tensors import check_tensordicts, parts
from benchmarks.priorities import ALPHA, BETA, MASSES, new_priorities, priorities
from benchmarks.work import BATCH, Live, Work

EXTENSION = "torchrl._torchrl"


def main(task: Task) -> None:
    """Measures it, with so many rows as the task's variant says."""
    provide_extension()
    work, live = Work(task.work), Live(0, int(task.variant))
    with tempfile.TemporaryDirectory() as scratch:
        buffer = _filled(work, live, scratch)
        check_tensordicts(work, live, lambda: _without_draw(buffer.sample(BATCH)), MASSES)
        Report(task).speed("stream with updates", BATCH, throughput(_learning(buffer), task.seconds))


def _filled(work: Work, live: Live, scratch: str) -> Any:
    from torchrl.data import LazyMemmapStorage, PrioritizedSampler, TensorDictReplayBuffer  # Here: after its extension is there.

    storage = LazyMemmapStorage(live.size, scratch_dir=str(Path(scratch, "rows")), device="cpu")
    buffer = TensorDictReplayBuffer(storage=storage, sampler=PrioritizedSampler(live.size, ALPHA, BETA))
    for part in parts(work, live.size):
        buffer.extend(part)
    buffer.update_priority(torch.arange(live.size), torch.from_numpy(priorities(live)).float())
    return buffer


def _learning(buffer: Any) -> Callable[[], None]:
    values = itertools.cycle([torch.from_numpy(some).float() for some in new_priorities()])

    def step() -> None:
        batch = buffer.sample(BATCH)
        buffer.update_priority(batch["index"], next(values))

    return step


def _without_draw(batch: TensorDict) -> TensorDict:
    return batch.exclude("index", "priority_weight", "td_error")


def provide_extension() -> None:
    """Compiles TorchRL's extension where the one of its wheel does not load."""
    try:
        importlib.import_module(EXTENSION)
    except ImportError:
        sys.modules[EXTENSION] = _compiled(directory() / f"torchrl-extension-{torch.__version__}")


def _compiled(build: Path) -> Any:
    from torch.utils.cpp_extension import load

    found = importlib.util.find_spec("torchrl")
    if found is None or not found.submodule_search_locations:
        raise ImportError("torchrl is not installed")
    source = Path(found.submodule_search_locations[0], "csrc")
    build.mkdir(parents=True, exist_ok=True)
    files = [str(source / name) for name in ("pybind.cpp", "utils.cpp")]
    return load("_torchrl", files, extra_cflags=["-O3"], extra_include_paths=[str(source)], build_directory=str(build))


if __name__ == "__main__":
    main(Task.from_command_line())
