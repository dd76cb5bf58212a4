"""What tables of steps must reach: who is measured, and against whom."""

from __future__ import annotations

from benchmarks.plan import IN_PROCESS, REVERB, SERVICE, SHARED_MEMORY, TORCHRL, Entry
from benchmarks.targets import Comparison, Side

__all__ = ["TRAJECTORY_COMPARISONS", "TRAJECTORY_LIMITS", "trajectory_programs"]

MINUTES = 300.0

TRAJECTORY_LIMITS = (
    "All processes share one machine and its cores; the ratios say more than the figures.",
    "The play is Atari's in size, and random: frames of 84 x 84 bytes, of which a policy sees four at once, in episodes of 400 steps.",
    "What is compared takes turns: a lap of either where both are tdreplay's, a round of either otherwise.",
    "Rows of both stacks are what a table without trajectories needs for the same batches. Their actor has the stacks at hand, ready to be sent.",
    "Bytes: those of the files, and those that are resident in the server's process once it has read all rows, beyond what few rows take.",
    "tdreplay's tables hold the interleaved steps of 8 environments, the peers' one episode after the other, which is in their favour.",
    "Reverb holds 3,200 frames and 4,000 small steps, the others 9,600: fewer are in its favour. Of 1 and 2 workers the faster.",
    "Reverb's sequences begin every 40 steps, and lie in chunks of 40 steps, or of its own choice: the faster. tdreplay's begin with any step.",
    "TorchRL's slices leave the first three steps of an episode out: they have no padding. Its stacks are views, made by hand.",
    "A draw of few and many steps is a whole batch of transitions of three steps, in process, of 32 floats a step.",
)


def trajectory_programs(quick: bool) -> tuple[Entry, ...]:
    """Who is measured. `quick`: with fewer steps."""
    frames, steps, few_and_many = ("3200", "3200", "3200 32000") if quick else ("9600", "9600", "100000 10000000")
    return (
        Entry(TORCHRL, "torchrl_trajectories", variant=frames, works=("frames",), quick=False),
        Entry(IN_PROCESS, "tdreplay_trajectories_in_process", variant=frames, works=("frames",), quick=False),
        Entry(REVERB, "reverb_trajectories", environment="reverb", variant="3200", works=("frames",), quick=False),
        Entry(SERVICE, "tdreplay_trajectories", variant=frames, also=SHARED_MEMORY, works=("frames",)),
        Entry(SERVICE, "tdreplay_trajectory_bytes", variant=frames, works=("frames",), quick=False),
        Entry(REVERB, "reverb_trajectories", environment="reverb", variant="4000", works=("steps",), quick=False),
        Entry(SERVICE, "tdreplay_trajectories", variant=steps, works=("steps",), quick=False),
        Entry(IN_PROCESS, "tdreplay_trajectories_in_process", variant=few_and_many, works=("steps",), deadline=MINUTES),
    )


def _own(what: str, ours: str, theirs: str, least: float, participant: str = SERVICE) -> Comparison:
    return Comparison(what, Side(participant, "frames", ours), Side(participant, "frames", theirs), least)


def _bytes(what: str, where: str) -> Comparison:
    return Comparison(what, Side(SERVICE, "frames", f"{where}, steps"), Side(SERVICE, "frames", f"{where}, rows"), 7, "bytes")


TRAJECTORY_COMPARISONS = (
    _bytes("bytes a transition, on the disk", "disk"),
    _bytes("bytes a transition, in memory", "memory"),
    _own("append of 256 envs, gRPC", "append, steps", "extend, rows", 5),
    _own("extend of 256 steps, gRPC", "extend, steps", "extend, rows", 5),
    _own("append of 256 envs, shared memory", "append, steps", "extend, rows", 4, SHARED_MEMORY),
    _own("extend of 256 steps, shared memory", "extend, steps", "extend, rows", 4, SHARED_MEMORY),
    _own("stacked frames, gRPC", "stream, steps", "stream, rows", 1.5),
    _own("stacked frames, shared memory", "stream, steps", "stream, rows", 1, SHARED_MEMORY),
    Comparison("stacked frames, gRPC", Side(SERVICE, "frames", "stream, steps"), Side(REVERB, "frames", "stream"), 2),
    Comparison("stacked frames, in process", Side(IN_PROCESS, "frames", "sample_batch"), Side(TORCHRL, "frames", "sample"), 3),
    Comparison("sequences of 80, gRPC", Side(SERVICE, "steps", "stream"), Side(REVERB, "steps", "stream"), 10),
    Comparison("a draw of 256, many steps", Side(IN_PROCESS, "steps", "draw of many steps"), Side(IN_PROCESS, "steps", "draw of few steps"), 1 / 1.5),
)
