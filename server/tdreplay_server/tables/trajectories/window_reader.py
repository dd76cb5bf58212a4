"""Windows out of a storage: the steps around each anchor, field by field, in one pass into the memory that the caller gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tdreplay.memory import Rows, as_rows
from tdreplay.system_fields import INDEX, ROW_ID, WINDOW_AFTER, WINDOW_BEFORE, WINDOW_NAMES
from tdreplay.windows import Window
from tdreplay_server.storage.ring import RowIds, Slots
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.tables.trajectories.episode_index import NONE, EpisodeIndex
from tdreplay_server.tables.trajectories.window_format import WindowFormat

__all__ = ["WindowFinder", "gather_windows", "take_windows"]


class Steps(NamedTuple):
    """The steps of the windows of some anchors, one after the other.

    Attributes:
        ids: The ids of their rows; -1 where there is none: shape [n, length].
        slots: Where they lie, and some live slot where there is none: shape [n * length].
        missing: The places in `slots` where there is none; None: there are all.
    """

    ids: RowIds
    slots: Slots
    missing: Slots | None

    def part(self, start: int, stop: int) -> Steps:
        """Those of the anchors from start to stop."""
        length = self.ids.shape[1]
        missing = self.missing
        if missing is not None:
            first, last = np.searchsorted(missing, (start * length, stop * length))
            missing = missing[first:last] - start * length if last > first else None
        return Steps(self.ids[start:stop], self.slots[start * length : stop * length], missing)


class WindowFinder:
    """Finds the steps of windows around some anchors. Windows of the same steps are found once. It is right until a row is overwritten.

    Attributes:
        ids: The ids of the anchors.
        oldest: The id of the oldest live row.
        before, after: How many steps before each anchor are in its window, and how many from it on.

    Args:
        index: Knows the episodes. It is current.
        ids: The anchors.
        found: What is read of each.
    """

    def __init__(self, index: EpisodeIndex, ids: RowIds, found: WindowFormat) -> None:
        self._index, self.ids, self.oldest = index, ids, index.oldest
        self._steps = index.steps_of(ids)
        self.before, self.after = index.around(ids, found.query.rule)
        self._query = found.query
        self._windows = [window for window, _ in found.parts_by_window]
        self._rows: dict[bool, tuple[int, RowIds]] = {}
        self._found: dict[tuple[int, int, bool, bool], Steps] = {}

    def steps(self, window: Window) -> Steps:
        """The steps of a window of each anchor."""
        key = (window.first, window.last, window.at_horizon, window.repeat_first)
        if key not in self._found:
            self._found[key] = self._find(window)
        return self._found[key]

    def _find(self, window: Window) -> Steps:
        first, rows = self._all_rows(window.at_horizon)
        ids = self._without_final(rows[:, window.first - first : window.last - first + 1], window)
        if not (ids < 0).any():
            return Steps(ids, self._index.slots_of(ids).reshape(-1), None)
        if window.repeat_first:
            ids = self._with_first(ids, window)
        missing = np.flatnonzero(ids.reshape(-1) < 0)
        slots = self._index.slots_of(np.where(ids < 0, self.ids[0], ids)).reshape(-1)
        return Steps(ids, slots, missing if len(missing) else None)

    def _without_final(self, ids: RowIds, window: Window) -> RowIds:
        """The rows. A window that does not reach the observation after the last step has no final observation."""
        if window.at_horizon or window.last < 1 or (self._query.next_step and window.last == self._query.steps):
            return ids
        after = np.arange(window.first, window.last + 1) >= self.after[:, None]
        return np.where(after, NONE, ids) if after.any() else ids

    def _all_rows(self, at_horizon: bool) -> tuple[int, RowIds]:
        """The first step of all windows at the anchor, or at the horizon, and their rows."""
        if at_horizon not in self._rows:
            windows = [window for window in self._windows if window.at_horizon is at_horizon]
            first, last = min(window.first for window in windows), max(window.last for window in windows)
            offsets = np.arange(first, last + 1)[None, :] + (self.after[:, None] if at_horizon else np.zeros((len(self.ids), 1), np.int64))
            self._rows[at_horizon] = (first, self._index.rows_at(self.ids, offsets))
        return self._rows[at_horizon]

    def _with_first(self, ids: RowIds, window: Window) -> RowIds:
        """The rows, with the first one of the episode in place of what would lie before it."""
        steps = self._steps + self.after if window.at_horizon else self._steps
        some = np.flatnonzero(steps + window.first < 0)
        if not len(some):
            return ids
        firsts = self._index.rows_at(self.ids[some], -self._steps[some][:, None])
        early = steps[some][:, None] + np.arange(window.first, window.last + 1) < 0
        ids = ids.copy()
        ids[some] = np.where(early, firsts, ids[some])
        return ids


def gather_windows(
    storage: RowStorage, finder: WindowFinder, start: int, stop: int, found: WindowFormat, out: dict[str, Rows], *, threads: bool
) -> None:
    """Copies the windows of the anchors of `finder` from start to stop into `out`: those of the fields that have bytes.

    The rows of a field in `out` have the bytes of a whole window each. `threads`: several may work on it.
    """
    ids = finder.ids[start:stop]
    known = {INDEX.name: ids % storage.buffer_size, ROW_ID.name: ids, WINDOW_BEFORE.name: finder.before, WINDOW_AFTER.name: finder.after}
    for name in known.keys() & out.keys():
        values = known[name]
        out[name].view(np.int64)[:] = values[start:stop] if name in WINDOW_NAMES else values
    for window, parts in found.parts_by_window:
        steps = finder.steps(window).part(start, stop)
        places = {part.field.name: out[part.name].view(part.step) for part in parts if part.name in out}
        _gather(storage, steps, places, threads=threads)


def take_windows(storage: RowStorage, finder: WindowFinder, found: WindowFormat) -> dict[str, torch.Tensor]:
    """Copies of the windows of the anchors, on the CPU: field name -> tensor of shape [n, *field shape], in the order of the fields."""
    rows = len(finder.ids)
    columns = {field.name: torch.empty((rows, *field.shape), dtype=field.dtype, device="cpu") for field in found.fields}
    if rows:
        out = {name: as_rows(column) for name, column in columns.items() if column.nbytes}
        gather_windows(storage, finder, 0, rows, found, out, threads=True)
    return columns


def _gather(storage: RowStorage, steps: Steps, places: dict[str, Rows], *, threads: bool) -> None:
    """Copies steps into some places: the name of a field -> where its values go."""
    ids = steps.ids.reshape(-1) if INDEX.name in places or ROW_ID.name in places else None
    if ids is not None and ROW_ID.name in places:
        places.pop(ROW_ID.name).view(np.int64)[:] = ids
    if ids is not None and INDEX.name in places:
        places.pop(INDEX.name).view(np.int64)[:] = np.where(ids < 0, ids, ids % storage.buffer_size)
    storage.gather(steps.slots, places, threads=threads)
    if steps.missing is not None:
        for rows in places.values():
            rows.view(np.uint8).reshape(len(rows), -1)[steps.missing] = 0
