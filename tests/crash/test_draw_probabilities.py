"""What is drawn comes from the exact probabilities, whatever was inserted, updated, overwritten and restarted before: chi-square.

TDREPLAY_KILLS: from 50 on the long form runs, of 10^6 draws.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from priorities_model import PrioritiesModel, some_priorities
from processes import Servers
from raw_tables import RawTable, channel_to

from chi_square import deviation
from tdreplay.samplers import Prioritized, Sampler, Uniform
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server.tables.selection import BatchQuery
from tdreplay_server.tables.table import Table

DRAWS = 1_000_000 if int(os.environ.get("TDREPLAY_KILLS", "0")) >= 50 else 100_000
ROUNDS, STEPS, SLOTS, BATCH = 4, 20, 300, 1000
MOST_DEVIATIONS = 5.0
"""One honest run in three million is further off than that."""
Drawn = tuple[np.ndarray, np.ndarray | None]
"""The ids of rows, and how probable the server says they were."""


class Played(Protocol):
    """A table of 300 slots."""

    def insert(self, rows: int, priorities: np.ndarray | None) -> None: ...
    def update(self, row_ids: np.ndarray, priorities: np.ndarray) -> tuple[int, int]: ...
    def restart(self) -> None: ...
    def draw(self, rows: int) -> Drawn: ...


class InProcess:
    """A table in process, over a directory."""

    def __init__(self, sampler: Sampler, directory: Path, stack: ExitStack) -> None:
        self._sampler, self._directory, self._stack = sampler, directory, stack
        self.restart()

    def restart(self) -> None:
        self._stack.close()
        self._table = self._stack.enter_context(closing(Table(TableConfig(SLOTS, sampler=self._sampler), directory=self._directory)))

    def insert(self, rows: int, priorities: np.ndarray | None) -> None:
        columns = {"number": torch.arange(rows) + self._table.state().write_count}
        self._table.insert(columns, Schema.of(columns, ()), rows, priorities=priorities)

    def update(self, row_ids: np.ndarray, priorities: np.ndarray) -> tuple[int, int]:
        return self._table.update_priorities(row_ids, priorities)

    def draw(self, rows: int) -> Drawn:
        found = self._table.take(self._table.select_random(BatchQuery(rows, described=True), self._table.unseeded(1)))
        return found["row_id"].numpy(), found["probability"].numpy() if self._sampler.has_priorities else None


class Served:
    """A table of a server that is killed in each restart."""

    def __init__(self, sampler: Sampler, directory: Path, stack: ExitStack) -> None:
        self._servers, self._stack = Servers(directory), stack
        self._server = stack.enter_context(self._servers.running())
        self._table = RawTable(stack.enter_context(channel_to(self._servers.address)), "drawn")
        self._table.create(SLOTS, sampler=sampler.to_json())

    def restart(self) -> None:
        self._server.kill()
        self._server.wait()
        self._server = self._stack.enter_context(self._servers.running())

    def insert(self, rows: int, priorities: np.ndarray | None) -> None:
        self._table.add(np.arange(rows), priorities)

    def update(self, row_ids: np.ndarray, priorities: np.ndarray) -> tuple[int, int]:
        return self._table.update(row_ids, priorities)

    def draw(self, rows: int) -> Drawn:
        self._table.describe()  # The server may have died since the last call: a draw is not repeated.
        found = self._table.sample(rows)
        return found["row_id"], found.get("probability")


@contextmanager
def opened(kind: Callable[..., Played], sampler: Sampler, directory: Path) -> Iterator[Played]:
    with ExitStack() as stack:
        yield kind(sampler, directory, stack)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [(InProcess, Uniform()), (InProcess, Prioritized(0.6)), (Served, Uniform()), (Served, Prioritized(0.9))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_draws_have_the_exact_probabilities_after_inserts_updates_wraps_and_restarts(kind, sampler, tmp_path):
    random, model, deviations = np.random.default_rng(), PrioritiesModel(SLOTS), []
    with opened(kind, sampler, tmp_path / "data") as table:
        for number in range(ROUNDS):
            for step in range(STEPS):
                play(table, model, random, sampler.has_priorities)
                if step == STEPS - 1 - number % 2:  # Before the last step, or after it.
                    table.restart()
            deviations.append(drawn_off(table, model, getattr(sampler, "alpha", 0.0)))
    print(f"{ROUNDS} times {DRAWS // ROUNDS} draws, standard deviations off: {[round(one, 1) for one in deviations]}")
    assert model.write_count > 3 * SLOTS
    assert max(deviations) < MOST_DEVIATIONS
    assert sum(deviations) / ROUNDS**0.5 < MOST_DEVIATIONS  # What is a little off each time.


def play(table: Played, model: PrioritiesModel, random: np.random.Generator, has_priorities: bool) -> None:
    """One insert or one update, of the table and of what is true of it."""
    if not has_priorities or not model.write_count or random.random() < 0.5:
        rows = int(random.integers(1, SLOTS // 3))
        priorities = some_priorities(random, rows) if has_priorities and random.random() < 0.5 else None
        table.insert(rows, priorities)
        model.insert(rows, priorities)
    else:
        row_ids = random.integers(max(0, model.write_count - 2 * SLOTS), model.write_count, random.integers(1, SLOTS))
        priorities = some_priorities(random, len(row_ids))
        assert table.update(row_ids, priorities) == model.update(row_ids, priorities)


def drawn_off(table: Played, model: PrioritiesModel, alpha: float) -> float:
    """How far off the draws of a table are, in standard deviations. What it says of the probabilities must be exact."""
    ids, probabilities = model.probabilities(alpha)
    counts = np.zeros(len(ids), np.int64)
    for _ in range(DRAWS // ROUNDS // BATCH):
        row_ids, said = table.draw(BATCH)
        places = row_ids - ids[0]
        counts += np.bincount(places, minlength=len(ids))
        assert said is None or np.allclose(said, probabilities[places], rtol=1e-9, atol=0)
    return deviation(counts, probabilities)
