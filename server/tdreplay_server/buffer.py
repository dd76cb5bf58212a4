"""The replay buffer in process: the API of `tdreplay.api` over a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer, Checkpoint, State
from tdreplay.columns import drawn_columns
from tdreplay.copying import OfOneProcess
from tdreplay.devices import parse_device
from tdreplay.epochs import EpochQuery, Epochs
from tdreplay.errors import EmptyTableError, OverwrittenError, StorageError, TableChangedError
from tdreplay.limits import DEFAULT_TIMEOUT, check_batch_size, check_flag
from tdreplay.metadata import Metadata
from tdreplay.priorities import Updated, checked_priorities, checked_row_ids
from tdreplay.processes import Owner
from tdreplay.progress import Shown, reporting
from tdreplay.rate_limiters import RateLimiter
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.samplers import Sampler
from tdreplay.selecting import Slots
from tdreplay.table_config import TableRequest
from tdreplay.table_description import TableDescription
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import Episode
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay.views import TableView, View
from tdreplay_server.system.interrupts import Calls
from tdreplay_server.tables.batches import as_batch, taken_in_parts
from tdreplay_server.tables.draws import DrawnRows, generators_of
from tdreplay_server.tables.leases import Drawn, SentBatches
from tdreplay_server.tables.limiters import Wait
from tdreplay_server.tables.selection import BatchQuery, Selection
from tdreplay_server.tables.table import Table
from tdreplay_server.tables.table_epochs import TableEpochs
from tdreplay_server.tables.trajectory_sink import TableSink, insert_given

__all__ = ["ReplayBuffer"]

POLL_SECONDS = 0.02
"""Between two looks for the first row."""


class ReplayBuffer(OfOneProcess, BaseReplayBuffer):
    """A replay buffer in this process. See `BaseReplayBuffer` for its methods. In a fork of the process each of them is a `ForkedError`.

    Args:
        device: where batches go: the training device.
        storing_device: where the rows lie: the CPU, in files that are mapped into memory, or a CUDA device.
        buffer_size: the capacity, in rows. The memory, or the space on the disk, is taken when the first rows come.
        sampler, rate_limiter, max_times_sampled, trajectories: as in `TableConfig`. A call waits up to 30 s for the rate limiter.
        directory: for the rows on the CPU. Where it is there, the buffer goes on where the last one ended, however that ended; one process at a time
            may use it. None: files without names, whose space is free again after `close`, or when the process ended, however that was.
        durability: what stored rows survive, given a directory: ``process``, ``interval:SECONDS`` or ``power``; see docs/durability.md.
        checkpoints: the directory for checkpoints. None: ``checkpoints`` in the directory.
        on_failure: called once, from a thread of its own, when the disk failed. From then on every call raises that error; `close` may be called.
        cast: whether `add` and `add_batch` convert what has another dtype than the buffer's field; see `BaseReplayBuffer`.
        seed: makes random batches reproducible, as in `BaseReplayBuffer`.

    Raises:
        InvalidArgumentError: buffer_size is below 1, seed is out of its range, storing_device is not there, or durability is none of these.
        FailedPreconditionError: the directory holds a table of another capacity, or of a newer version. Nothing in it changed.
        DirectoryInUseError: another process has the directory.
        CorruptDataError: what is in the directory is not what was written.
    """

    _instead = "its rows belong to this process. Serve them (tdreplay_server.spawn_server): a RemoteReplayBuffer can be given to other processes"

    def __init__(
        self,
        device: torch.device | str,
        storing_device: torch.device | str,
        buffer_size: SupportsIndex,
        *,
        sampler: Sampler | str | None = None,
        rate_limiter: RateLimiter | str | None = None,
        max_times_sampled: SupportsIndex | None = None,
        trajectories: Trajectories | Mapping[str, Any] | bool | None = None,
        directory: Path | None = None,
        durability: str = "process",
        checkpoints: Path | None = None,
        on_failure: Callable[[StorageError], object] | None = None,
        cast: bool = False,
        seed: SupportsIndex | None = None,
    ) -> None:
        super().__init__(device, seed)
        self._storing_device = where = parse_device(storing_device, "storing_device")
        self._cast = check_flag(cast, "cast")
        self._owner = Owner("the buffer")
        self._draws, self._inserts = Calls(), Calls()  # Where one was interrupted, there may be rows that nobody gets.
        self._own_table = Table(
            TableRequest.of(buffer_size, where, sampler, rate_limiter, max_times_sampled, trajectories).config("cpu"),
            directory=directory,
            durability=durability,
            checkpoints=checkpoints and checkpoints.resolve(),
            on_failure=on_failure,
        )

    @property
    def _table(self) -> Table:
        self._owner.check()  # Before any lock: another thread may have held it when this process was forked.
        return self._own_table

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def add(self, row: Row, *, priority: float | None = None) -> None:
        self.insert(given_row(row).prioritized(priority))

    def add_batch(self, batch: Row, *, priorities: Any = None) -> None:
        self.insert(given_rows(batch).prioritized(priorities))

    def insert(self, rows: Given, *, writer_id: str = "") -> npt.NDArray[np.int64]:
        with self._inserts:
            return insert_given(self._table, rows, cast=self._cast)

    def trajectory_writer(self, n_envs: SupportsIndex = 1, *, autoreset: Any = None) -> TrajectoryWriter:
        table = self._table
        return TrajectoryWriter(TableSink(table, self._owner, cast=self._cast), table.config, n_envs, autoreset)

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        batch_size: SupportsIndex,
        *,
        seed: SupportsIndex | None = None,
        wait: bool = False,
        uniform: bool = False,
        view: View | None = None,
    ) -> TensorDict:
        rows, seen, only = check_batch_size(batch_size), self._view_of(view), check_flag(uniform, "uniform")
        draw, now = self._next_draw(seed), time.monotonic()
        query = BatchQuery(rows, uniform=only, described=True, windows=seen.windows if seen else None)
        end = now + DEFAULT_TIMEOUT if check_flag(wait, "wait") else 0.0
        self._settle()
        try:
            with self._draws:
                return self._drawn_batch(query, draw, now, end, seen)
        finally:
            self._settle()

    def _settle(self) -> None:
        """After an interrupt (Ctrl-C): counts anew which rows can be drawn, those of batches that nobody got too, once no thread draws any more."""
        for calls in (self._inserts, self._draws):
            calls.look()
        if (self._inserts.interrupted or self._draws.interrupted) and not self._draws.any:
            self._table.forget_leases()
            self._inserts.interrupted = self._draws.interrupted = False

    def _drawn_batch(self, query: BatchQuery, draw: tuple[int, int] | None, now: float, end: float, view: TableView | None) -> TensorDict:
        """The next batch. An empty buffer waits for its first row until `end`."""
        while True:
            try:
                generators = self._table.unseeded if draw is None else generators_of(*draw)
                return self._taken(self._table.draw(query, 1, generators, Wait(now + DEFAULT_TIMEOUT)), view)
            except TableChangedError:  # Between the draw and the copy, by another thread: the rows of now are drawn.
                continue
            except EmptyTableError:
                if time.monotonic() >= end:
                    raise
            time.sleep(POLL_SECONDS)

    def _taken(self, drawn: Drawn, view: TableView | None) -> TensorDict:
        """The batch that was drawn. Its rows count as drawn."""
        sent = SentBatches()
        sent.sent(drawn.leases, 1)
        with closing(sent):
            batch = self._take(drawn.selection, view)
            sent.all_taken()
        return batch

    def update_priorities(self, row_ids: Any, priorities: Any) -> Updated:
        ids = checked_row_ids(row_ids)
        return self._table.update_priorities(ids, checked_priorities(priorities, len(ids)))

    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None, view: TableView | None, *, priorities: bool = False) -> TensorDict:
        if priorities:
            return self._take(self._table.select_slots_with_priorities(slots, fields))
        return self._take(self._table.select_slots(slots, fields, None if view is None else view.windows), view)

    def _trajectories(self) -> Trajectories | Literal[False]:
        return self._table.config.trajectories

    def sample_all(self, *, progress: Shown = None) -> TensorDict:
        with reporting(progress, "sample_all") as told:
            selection = self._table.select_all()
            return self._take(selection) if told is None else as_batch(taken_in_parts(self._table, selection, told), selection, self._device)

    def episodes(self) -> list[Episode]:
        found = self._table.episodes()
        return found.part(0, len(found))

    def _episode_rows(self, episode_id: int) -> tuple[TensorDict, bool]:
        until = time.monotonic() + DEFAULT_TIMEOUT
        while True:
            selection, has_final = self._table.select_episode(episode_id)
            try:
                return self._take(selection), has_final
            except OverwrittenError:  # By another thread, since they were selected.
                if time.monotonic() >= until:
                    raise

    def _open_epochs(self, query: EpochQuery, seed: int | None, view: TableView | None) -> Epochs:
        table = self._table
        return TableEpochs(table, table.plan_epochs(query, seed), self._owner, self._device, view)

    def _take(self, selection: Selection, view: TableView | None = None) -> TensorDict:
        """The selected rows, or what `view` makes of them, as a TensorDict on `device`, in memory of its own."""
        columns = self._table.take(selection)
        if isinstance(selection.chosen, DrawnRows) and selection.is_described:
            columns |= drawn_columns(selection.rows, selection.chosen.totals.rows, selection.chosen.min_probability)
        return as_batch(columns, selection, self._device, view)

    @property
    def storing_device(self) -> torch.device:
        self._owner.check()
        return self._storing_device

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        return self._table.state()

    def describe(self) -> TableDescription:
        return self._table.describe()

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        self._table.reset(buffer_size)
        self._iterator = None

    def _rewind(self, metadata: Metadata) -> None:
        self._table.rewind(metadata.buffer_size, metadata.data_size, metadata.write_count)

    def checkpoint(self, name: str, *, progress: Shown = None) -> Checkpoint:
        with reporting(progress, "checkpoint", "bytes") as told:
            return self._table.checkpoint(name, progress=told)

    def close(self) -> None:
        """Gives the memory back, and the space of rows that lie in no directory. Closing twice is allowed; any other call is then a ClosedError.

        In a fork of the process nothing happens: what the buffer holds is its parent's.
        """
        if self._owner.is_here:
            self._own_table.close()
