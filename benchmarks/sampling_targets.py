"""What samplers, priorities, queues and epochs must reach: who is measured, and against whom."""

from __future__ import annotations

from pathlib import Path

from benchmarks.plan import REVERB, SERVICE, SHARED_MEMORY, TORCHRL, Entry
from benchmarks.targets import Comparison, Side

__all__ = ["LIMITS", "comparisons", "programs"]

SAMPLER = "tdreplay's sampler"
MINUTES = 600.0

LIMITS = (
    "All processes share one machine and its cores; the ratios say more than the figures.",
    "What is compared takes turns: a lap of either where both are tdreplay's, a round of either otherwise.",
    "Reverb holds 100,000 rows, the others 1,000,000: it takes rows in slowly, and fewer rows are in its favour. Of 1 and 2 workers the faster.",
    "TorchRL's sum-tree (float32) is its own C++, compiled from the source in its wheel where the wheel's does not load. It computes weights too.",
    "The queue, and the stream beside a writer: a writer and a learner move the same batches in and out, as fast as they can, until both are done.",
    "An epoch starts when its first batch is there. A draw and an update are the sampler's alone, without a table around it.",
)


def programs(quick: bool, against: Path | None) -> tuple[Entry, ...]:
    """Who is measured. `quick`: with fewer rows. `against`: another checkout of tdreplay, whose uniform stream is measured too."""
    rows, queued, few_and_many = ("100000", "16", "10000 200000") if quick else ("1000000", "48", "10000 10000000")
    sampled = "10000 100000" if quick else "100000 10000000"
    before = () if against is None else (Entry(SERVICE, "tdreplay_checkouts", variant=str(against.resolve()), works=("small",)),)
    return (
        Entry(SERVICE, "tdreplay_prioritized", variant=rows, works=("small",), deadline=MINUTES),
        Entry(REVERB, "reverb_prioritized", environment="reverb", variant="100000", works=("small",), quick=False, deadline=MINUTES),
        Entry(TORCHRL, "torchrl_prioritized", variant=rows, works=("small",), quick=False, deadline=MINUTES),
        Entry(SAMPLER, "tdreplay_sampler_sizes", variant=sampled, works=("small",)),
        *before,
        Entry(SHARED_MEMORY, "tdreplay_queue", variant=queued, works=("image",)),
        Entry(SERVICE, "tdreplay_epoch_starts", variant=few_and_many, works=("small",), deadline=MINUTES),
    )


def comparisons(against: Path | None) -> tuple[Comparison, ...]:
    """What must be reached."""
    before = () if against is None else (_own("uniform stream, now", "stream, now", "stream, before", 0.97),)
    updating = Side(SERVICE, "small", "stream with updates")
    return (
        _own("prioritized stream, gRPC", "stream, prioritized", "stream, uniform", 0.6),
        Comparison("the same, and an update for each batch", updating, Side(REVERB, *_of(updating)), 10),
        Comparison("the same, and an update for each batch", updating, Side(TORCHRL, *_of(updating)), 1),
        _own("a draw of 256, many rows", "draw of many rows", "draw of few rows", 1 / 2, SAMPLER),
        _own("an update of 256, many rows", "update of many rows", "update of few rows", 1 / 2, SAMPLER),
        *before,
        _own("add_batch(256), pipelined, prioritized", "extend, prioritized", "extend, uniform", 0.9),
        _own("fifo queue, shared memory", "stream, queue", "stream, uniform", 0.8, SHARED_MEMORY, "image"),
        _own("start of a shuffled epoch, many rows", "epoch of many rows", "epoch of few rows", 1 / 1.5),
    )


def _own(what: str, ours: str, theirs: str, least: float, participant: str = SERVICE, work: str = "small") -> Comparison:
    return Comparison(what, Side(participant, work, ours), Side(participant, work, theirs), least)


def _of(side: Side) -> tuple[str, str]:
    return side.work, side.op
