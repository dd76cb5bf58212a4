"""tdreplay's shards on Ray against the replay buffers that live on Ray: RLlib's and TorchRL's. ``make bench-ray``."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.judged import run_judged
from benchmarks.plan import CLUSTER, CLUSTER_SHARED_MEMORY, RAY, RLLIB, Entry, Plan
from benchmarks.processes import adopt_orphans
from benchmarks.targets import Comparison, Side

__all__ = ["RAY_COMPARISONS", "RAY_PROGRAMS"]

MINUTES = 400.0
"""Ray takes its time to start on a busy machine."""
CAPACITIES = {"small": 20_000, "image": 4_000}
"""Fewer rows than elsewhere: RLlib stores them one by one, in Python."""

RAY_PROGRAMS = (
    Entry(RLLIB, "rllib_replay", environment="ray", variant="uniform", deadline=MINUTES, capacities=CAPACITIES),
    Entry(RAY, "torchrl_ray", environment="ray", variant="ray", deadline=MINUTES, capacities=CAPACITIES),
    Entry(CLUSTER, "tdreplay_cluster", variant="uniform", also=CLUSTER_SHARED_MEMORY, deadline=MINUTES, capacities=CAPACITIES),
    Entry(RLLIB, "rllib_replay", environment="ray", variant="prioritized", deadline=MINUTES, capacities=CAPACITIES),
    Entry(CLUSTER, "tdreplay_cluster", variant="prioritized", also=CLUSTER_SHARED_MEMORY, deadline=MINUTES, capacities=CAPACITIES),
)

LIMITS = (
    "All processes share one machine and its cores; the ratios say more than the figures. Nothing is shown of a real network.",
    "On one machine RLlib and TorchRL hand batches over in Ray's shared memory. tdreplay is shown over gRPC and over its own shared memory.",
    "tdreplay and RLlib have two shards with half of the rows each, and as many batches on their way. A batch of RLlib is from one shard alone.",
    "RLlib's next batch is of the shard that answers first. Of image rows one gives more than the other: how even its draws are is not checked.",
    "RLlib's shards are its buffers as actors on the learner's node, asked as its Ape-X asked them, which later versions of RLlib do not have.",
    "TorchRL's buffer is one actor, asked for one batch at a time: it has no prefetching of its own over Ray.",
    "RLlib gives arrays of NumPy, the others tensors. tdreplay's rows are in files that outlive its servers, the peers' in memory.",
    "With updates: each batch's rows get new priorities, which are not waited for.",
)


def _against(what: str, work: str, op: str, theirs: str, their_op: str, least: float | None) -> tuple[Comparison, ...]:
    """A stream's figures, over gRPC and, of images, over shared memory, by which it is judged there."""
    shared = work == "image"
    sides = [(CLUSTER, "gRPC", None if shared else least), *([(CLUSTER_SHARED_MEMORY, "shared memory", least)] if shared else ())]
    return tuple(Comparison(f"{what}, {how}", Side(name, work, op), Side(theirs, work, their_op), target) for name, how, target in sides)


RAY_COMPARISONS = tuple(
    comparison
    for work, least in (("small", 5.0), ("image", 3.0))
    for comparison in (
        *_against("uniform batches", work, "stream, uniform", RLLIB, "sample, uniform", least),
        *_against("uniform batches", work, "stream, uniform", RAY, "sample", least),
        *_against("prioritized batches", work, "stream, prioritized", RLLIB, "sample, prioritized", least),
        *_against("the same with updates", work, "stream with updates", RLLIB, "sample with updates", least),
        *_against("add_batch(256), one at a time", work, "add_batch, uniform", RLLIB, "add_batch, uniform", None),
        *_against("add_batch(256), one at a time", work, "add_batch, uniform", RAY, "add_batch", None),
    )
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; they take turns.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="That each figure may take.")] = 1.0,
) -> None:
    """Measure tdreplay's shards on Ray, and the peers on the same Ray: ratios, and the ratio that is required next to each.

    The exit code is always 0: it is a report. What is missed stands at its end. The peers' environment is built once, as that of `make bench`.
    """
    adopt_orphans()
    run_judged(Plan(False, False, rounds, seconds, RAY_PROGRAMS), RAY_COMPARISONS, "tdreplay's shards and its peers on Ray", LIMITS)


if __name__ == "__main__":
    typer.run(main)
