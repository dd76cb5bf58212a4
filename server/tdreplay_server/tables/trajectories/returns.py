"""The returns of episodes: the sums of the rewards of their steps, and what is known of those that ended lately."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.fields import Field
from tdreplay.memory import RAW
from tdreplay.schema import Schema
from tdreplay.trajectory_state import Statistics
from tdreplay.values import NUMPY
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.tables.trajectories.episode_table import EpisodeTable, Places
from tdreplay_server.tables.trajectories.step_columns import END

__all__ = ["Returns", "Rewards"]

Sums = npt.NDArray[np.float64]
"""Sums of rewards: float64 of shape [n]."""

LATELY = 100
"""The statistics are of so many episodes."""
NONE: Sums = np.zeros(0)
"""No returns, or no lengths."""
MOST_GONE = 1 << 12
"""The sums of so many open episodes of which no step is stored any more are kept: they may go on."""


class Rewards:
    """The rewards of rows, as numbers.

    Args:
        name: Of the field; None: there is none.
        schema: Gives the schema of the rows; None before the first ones.
        read: (start, stop, field) -> the bytes of the field in the slots from start to stop.
    """

    def __init__(self, name: str | None, schema: Callable[[], Schema | None], read: Callable[[int, int, str], npt.NDArray[Any]]) -> None:
        self._name, self._schema, self._read = name, schema, read

    @property
    def field(self) -> Field | None:
        """The field that has them; None: there is none with one real or whole number a step."""
        schema = self._schema()
        field = None if schema is None or self._name is None else schema.fields_by_name.get(self._name)
        if field is None or field.dtype is torch.bool or field.dtype.is_complex or math.prod(field.shape) != 1:
            return None
        return field

    def of(self, ranges: Sequence[tuple[int, int]]) -> Sums | None:
        """Those of the rows in some ranges of slots; None: there are none."""
        field = self.field
        if field is None:
            return None
        return np.concatenate([_numbers(self._read(*part, field.name), field.dtype) for part in ranges])


def _numbers(rows: npt.NDArray[Any], dtype: torch.dtype) -> Sums:
    if dtype not in RAW:
        return rows.view(NUMPY[dtype]).astype(np.float64)
    return torch.from_numpy(rows.view(np.uint8)).view(dtype).double().numpy()


class Returns:
    """The sum of the rewards of each episode, and the sums and lengths of the last ones that ended.

    The sums are compensated: they do not drift, in whatever portions steps come (Knuth, The Art of Computer Programming 2, section 4.2.2, theorem C).
    Rewards stay in the sum when their rows are overwritten. After a rewind the sums are of the steps that are stored. If more rows come at once than
    the table has, those that were overwritten at once are not counted.

    Args:
        rewards: Those of rows.
    """

    def __init__(self, rewards: Rewards) -> None:
        self.rewards = rewards
        self._ended: tuple[int, Sums, Sums] | None = None  # Ends up to this row were counted: these returns and lengths.
        self.forget()

    def forget(self) -> None:
        """Forgets all sums."""
        self._gone: dict[int, tuple[float, float]] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """No episode has a place."""
        self._sums: Sums = np.zeros(0)
        self._lost: Sums = np.zeros(0)  # What rounding took from each.

    def opened(self, ring: Ring) -> None:
        """These rows are live. Those that are there when a table is opened ended before."""
        if self._ended is None:
            self._ended = ring.write_count, NONE, NONE

    def rewound(self, row_id: int, *, left: bool) -> None:
        """The rows from this id on are not live any more, and later ones may have their ids. `left`: earlier rows are live, and are read anew."""
        if left:
            self.forget()
        if self._ended is not None and self._ended[0] > row_id:
            self._ended = row_id, *self._ended[1:]

    # -- sums -----------------------------------------------------------------------------------------------------------------------------------

    def begun(self, places: Places, ids: list[int], size: int) -> None:
        """Episodes of these ids have these places, of `size` that there are."""
        if size > len(self._sums):
            self._sums, self._lost = (np.concatenate([sums, np.zeros(size - len(sums))]) for sums in (self._sums, self._lost))
        self._sums[places] = self._lost[places] = 0
        if self._gone:
            for place, episode_id in zip(places.tolist(), ids, strict=True):
                self._sums[place], self._lost[place] = self._gone.pop(episode_id, (0.0, 0.0))

    def add(self, places: Places, rewards: Sums, firsts: Slots) -> None:
        """Adds the rewards of steps to the sums of these episodes. Those of each stand together, and begin at one of the places `firsts`."""
        with np.errstate(all="ignore"):  # Rewards may be infinite, or no numbers.
            sums, more = self._sums[places], np.add.reduceat(rewards, firsts)
            total = sums + more
            added = total - sums
            self._sums[places] = total
            self._lost[places] += (sums - (total - added)) + (more - added)

    def of(self, places: Places) -> Sums:
        """The sums of episodes."""
        return exact(self._sums[places], self._lost[places])

    def copied(self, size: int) -> tuple[Sums, Sums]:
        """Copies of the sums of the first `size` places, and of what rounding took from each: see `exact`."""
        return self._sums[:size].copy(), self._lost[:size].copy()

    def gone(self, episodes: EpisodeTable, places: Places) -> None:
        """No row of these episodes is live any more."""
        if not len(self._sums):  # They were forgotten.
            return
        for place in places[(episodes.kind[places] & END) == 0].tolist():
            self._gone[int(episodes.ids[place])] = float(self._sums[place]), float(self._lost[place])
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    # -- ends -----------------------------------------------------------------------------------------------------------------------------------

    def ended(self, places: Places, rows: RowIds, lengths: npt.NDArray[np.int64], known: range) -> None:
        """Counts episodes that ended with these rows, each once. They are among those that are `known` since now."""
        counted, returns, lasted = self._ended or (known.stop, NONE, NONE)
        if known.stop < counted:
            counted = known.start  # A rewind of a table without rows.
        if len(rows):
            order = rows.argsort()
            order = order[rows[order] >= counted][-LATELY:]
            lasted = np.concatenate([lasted, lengths[order]])[-LATELY:]
            if self.rewards.field is not None:
                returns = np.concatenate([returns, self.of(places[order])])[-LATELY:]
        self._ended = max(counted, known.stop), returns, lasted

    def statistics(self) -> tuple[Statistics, Statistics]:
        """Of the returns and of the lengths of the last episodes that ended."""
        _, returns, lengths = self._ended or (0, NONE, NONE)
        return _in_short(returns), _in_short(lengths)


def exact(sums: Sums, lost: Sums) -> Sums:
    """Sums with what rounding took from them. Those that are infinite, or no numbers, stay so."""
    return np.where(np.isfinite(lost), sums + lost, sums)


def _in_short(values: npt.NDArray[np.float64]) -> Statistics:
    if not len(values):
        return Statistics()
    with np.errstate(all="ignore"):
        return Statistics(len(values), *(float(reduced) for reduced in (values.mean(), values.std(), values.min(), values.max())))
