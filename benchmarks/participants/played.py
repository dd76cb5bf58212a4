"""Tables of steps that are played, and of the same play as rows of transitions, and what is made of steps when they are sampled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.participants.service_inserts import FLUSH_TIMEOUT
from benchmarks.participants.tensors import as_tensordict
from benchmarks.play import STACK, Play, Turn
from benchmarks.work import BATCH, Live, WrongRowsError
from tdreplay_client import RemoteReplayBuffer, Transitions

__all__ = ["ENVS", "VIEW", "Inserts", "fill_rows", "fill_steps"]

ENVS = 8
"""Environments whose steps interleave in the tables that are sampled from."""
VIEW = Transitions(n_step=1, frame_stack={"obs": STACK}, names="plain")


class Inserts:
    """Stores the turns of a play, again and again.

    Args:
        buffer: in which they are stored.
        writer: of the buffer, which nobody else writes to.
        store: gives the writer a turn.
        turns: all episodes end with the last of them.
    """

    def __init__(self, buffer: RemoteReplayBuffer, writer: Any, store: Callable[[Turn], object], turns: Iterable[Turn]) -> None:
        self._buffer, self._writer, self._store, self._turns = buffer, writer, store, itertools.cycle(list(turns))
        self._rows = buffer.state().write_count if buffer.size else 0

    def insert(self) -> None:
        """Stores the next turn, without waiting for it."""
        turn = next(self._turns)
        self._store(turn)
        self._rows += turn.rows

    def flush(self) -> None:
        """Waits until all of them are stored."""
        self._writer.flush(FLUSH_TIMEOUT)

    def check(self) -> None:
        """So many rows must have been written, after a `flush`.

        Raises:
            WrongRowsError: there are more, or fewer.
        """
        written = self._buffer.state().write_count
        if written != self._rows:
            raise WrongRowsError(f"{written} rows were written, and not {self._rows}")


def fill_steps(buffer: Any, play: Play, live: Live) -> None:
    """Stores the steps that are live. The environments' steps interleave, and their episodes have ended."""
    with buffer.trajectory_writer(n_envs=play.envs) as writer:
        for turn in play.turns(live.size, play.envs):
            writer.append(turn.steps, turn.finals)


def fill_rows(buffer: RemoteReplayBuffer, play: Play, live: Live) -> None:
    """Stores the same as transitions, as today's users do."""
    for first in range(0, live.size, BATCH):
        buffer.add_batch(as_tensordict(play.rows(first, min(BATCH, live.size - first))))
