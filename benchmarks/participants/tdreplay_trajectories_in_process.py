"""tdreplay's buffer of steps in the learner's own process: transitions of stacked frames; and batches of few small steps, and of many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Report, Step, Task, in_turn, latency, throughput
from benchmarks.participants.played import ENVS, VIEW, fill_steps
from benchmarks.participants.tensors import check_owned, check_tensordicts
from benchmarks.play import LENGTH, Play
from benchmarks.work import BATCH, Live
from tdreplay_server import ReplayBuffer, Transitions

AT_ONCE = 50 * LENGTH


def main(task: Task) -> None:
    """Measures it, with so many steps as the task's variant says: two numbers, "few many", of small steps."""
    if task.work == "frames":
        _measure_frames(task)
    else:
        _measure_sizes(task)


def _measure_frames(task: Task) -> None:
    play = Play(task.work, ENVS)
    live = Live(0, play.whole(int(task.variant)))
    with _table(play, live) as buffer:
        fill_steps(buffer, play, live)
        sample = partial(buffer.sample_batch, BATCH, view=VIEW)
        check_tensordicts(play, live, sample)
        check_owned(play, live, sample, following=2)
        Report(task).speed("sample_batch", BATCH, throughput(sample, task.seconds))


def _measure_sizes(task: Task) -> None:
    """The time of a batch of transitions of three steps, which are few bytes: of a draw, and of what every batch takes."""
    play, view = Play(task.work), Transitions(n_step=3, names="plain")
    with ExitStack() as stack:
        laps: dict[str, Callable[[float], float]] = {}
        for name, size in zip(("few", "many"), task.variant.split(), strict=True):
            live = Live(0, play.whole(int(size)))
            buffer = stack.enter_context(_table(play, live))
            with buffer.trajectory_writer() as writer:
                for turn in play.turns(live.size, AT_ONCE):
                    writer.extend(turn.steps, turn.finals)
            laps[f"draw of {name} steps"] = _lap(partial(buffer.sample_batch, BATCH, view=view))
        for op, seconds in in_turn(laps, task.seconds).items():
            Report(task).speed(op, BATCH, seconds)


def _table(play: Play, live: Live) -> ReplayBuffer:
    return ReplayBuffer("cpu", "cpu", play.rows_of(live.size), trajectories=True)


def _lap(step: Step) -> Callable[[float], float]:
    return lambda seconds: latency(step, seconds)


if __name__ == "__main__":
    main(Task.from_command_line())
