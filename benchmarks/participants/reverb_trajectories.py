"""Reverb's items over shared chunks: transitions of stacked frames, or sequences. Runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import reverb

from benchmarks.checks import BINS, check_samples, check_shares
from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.reverb_service import TABLE, arrays, batches, serving
from benchmarks.play import LENGTH, SEQUENCE, SEQUENCES, STACK, Play
from benchmarks.work import BATCH, Columns, Live

PERIOD = 40
"""Steps from the first one of a sequence to that of the next: half of it, as in R2D2."""
CHUNKS = {"frames": (None,), "steps": (None, PERIOD)}
"""Lengths of chunks that are tried, None for Reverb's own choice: what its speed depends on. The fastest counts."""
AT_ONCE, BATCHES = 20, 50


def main(task: Task) -> None:
    """Measures it, with so many steps as the task's variant says."""
    play = Play(task.work)
    live = Live(0, play.whole(int(task.variant)))
    measured = _transitions if play.name == "frames" else _sequences
    laps = [lap for chunk in CHUNKS[play.name] for lap in measured(task, play, live, chunk)]
    Report(task).speed("stream", BATCH if play.name == "frames" else SEQUENCES, min(laps))


def _transitions(task: Task, play: Play, live: Live, chunk: int | None) -> Iterator[float]:
    """The seconds of a batch of transitions, whose observations are one piece of five frames each. Of 1 and 2 workers."""
    with serving(live.size) as address:
        with reverb.Client(address).trajectory_writer(num_keep_alive_refs=STACK + 1) as writer:
            _fill(writer, play, live, chunk, STACK - 1, _transition)
        for workers in (1, 2):
            sample = batches(address, _item(play, STACK + 1, 1), workers, BATCH)
            check_samples(play, live, lambda: _stacked(arrays(sample())))  # noqa: B023 - it is called at once.
            yield throughput(sample, task.seconds / 2)


def _sequences(task: Task, play: Play, live: Live, chunk: int | None) -> Iterator[float]:
    """The seconds of a batch of sequences, which are whole here."""
    mask = {"mask": np.ones((SEQUENCES, SEQUENCE), np.bool_)}
    with serving(live.size) as address:
        with reverb.Client(address).trajectory_writer(num_keep_alive_refs=SEQUENCE) as writer:
            _fill(writer, play, live, chunk, 0, _sequence)
        for workers in (1, 2):
            sample = batches(address, _item(play, SEQUENCE, SEQUENCE), workers, SEQUENCES)
            numbers = np.concatenate([play.check_sequences(arrays(sample()) | mask, live) for _ in range(BATCHES)])
            starts = (LENGTH - SEQUENCE) // PERIOD + 1  # Of an episode.
            check_shares(numbers // LENGTH * starts + numbers % LENGTH // PERIOD, Live(0, live.size // LENGTH * starts), np.ones(BINS))
            yield throughput(sample, task.seconds / 2)


def _fill(writer: Any, play: Play, live: Live, chunk: int | None, padding: int, item: Callable[[Any], Any]) -> None:
    """Stores all episodes. What `item` makes of the history after a step is an item, if it makes anything."""
    for name in play.steps(0, 1) if chunk else ():
        writer.configure((name,), num_keep_alive_refs=SEQUENCE, max_chunk_length=chunk)
    for first in range(0, live.size, LENGTH):
        for row, step in enumerate(_episode(play, first, padding)):
            writer.append(step)
            made = item(writer.history)
            if made:
                writer.create_item(TABLE, 1.0, made)
            if row % AT_ONCE == 0:
                writer.flush(block_until_num_items=AT_ONCE)
        writer.end_episode()


def _episode(play: Play, first: int, padding: int) -> Iterator[Columns]:
    """The first step again, for the stacks of the first ones, then all steps, then the final observation, as a step that is 0 otherwise.

    An item must be a slice of what was appended: it cannot name a step twice.
    """
    for number in (*[first] * padding, *range(first, first + LENGTH)):
        step = {name: column[0] for name, column in play.steps(number, 1).items()}
        yield step
    yield {name: np.zeros_like(value) for name, value in step.items()} | {"obs": play.final(number)}


def _transition(history: Any) -> Any:
    """That which ends with the newest observation."""
    if len(history["obs"]) > STACK:
        return {name: column[-STACK - 1 :] if name == "obs" else column[-2:-1] for name, column in history.items()}
    return None


def _sequence(history: Any) -> Any:
    """That which ends with the newest step, where one does."""
    steps = len(history["obs"])
    if SEQUENCE <= steps <= LENGTH and (steps - SEQUENCE) % PERIOD == 0:
        return {name: column[-SEQUENCE:] for name, column in history.items()}
    return None


def _item(play: Play, observations: int, others: int) -> Columns:
    """An item, whose values are 0."""
    first = play.steps(0, 1).items()
    return {name: np.zeros((observations if name == "obs" else others, *column.shape[1:]), column.dtype) for name, column in first}


def _stacked(batch: Columns) -> Columns:
    return batch | {"obs": batch["obs"][:, :STACK], "next_obs": batch["obs"][:, 1:]}


if __name__ == "__main__":
    main(Task.from_command_line())
