"""Which rows a read takes, and in which order: decided once, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tdreplay.block import Layout, layout
from tdreplay.fields import Field
from tdreplay.schema import DimNames
from tdreplay.system_fields import PRIORITY
from tdreplay.windows import AnchorRule, WindowQuery
from tdreplay_server.storage.ring import Ring, RowIds, Slots

__all__ = ["BatchQuery", "ChosenRows", "PartOfRows", "PrioritiesInSlots", "RowFormat", "RowsInSlots", "Selection", "joined"]


@dataclass(frozen=True)
class RowFormat:
    """What is read of each row.

    Attributes:
        fields: The fields, in the order in which they were asked for.
        row_shape: The batch dimensions after the first.
        dim_names: The names of the batch dimensions; () where none has one.
    """

    fields: tuple[Field, ...]
    row_shape: tuple[int, ...]
    dim_names: DimNames

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return sum(field.row_bytes for field in self.fields)

    def block(self, rows: int) -> Layout:
        """How so many rows lie in a block."""
        return layout(self.fields, rows, self.row_shape, self.dim_names)


@dataclass(frozen=True)
class BatchQuery:
    """What is asked for of random batches.

    Attributes:
        rows: The number of rows of a batch.
        fields: The names of the fields; None: all of them.
        uniform: Whether all rows are to be equally probable, whatever the table's sampler is.
        described: Whether the batches of a table with priorities have the fields `probability` and `priority`, whatever fields are named. Those
            that are `uniform` have not.
        windows: What comes with each row, where the rows are steps; None: the row alone.
        counted: Whether it is to be known among how many anchors was drawn, where the rows are steps. Of other rows it always is.
    """

    rows: int
    fields: tuple[str, ...] | None = None
    uniform: bool = False
    described: bool = False
    windows: WindowQuery | None = None
    counted: bool = False

    @property
    def rule(self) -> AnchorRule:
        """Which steps are anchors, where the rows are steps."""
        return AnchorRule() if self.windows is None else self.windows.rule


class ChosenRows(Protocol):
    """The rows that somebody chose, in their order."""

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the rows from start to stop, all of which are live in `ring`. To be called under the table's lock. Nobody else changes them."""

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """What is known of these rows because of their draw, once their ids were asked for: the name of a drawn field -> its values."""


class RowsInSlots:
    """The rows that lie in some slots when they are read: a newer one, where the slot was overwritten since it was chosen.

    Args:
        slots: (start, stop) -> the slots from start to stop. Each held a live row when it was chosen, so each holds one from then on.
    """

    def __init__(self, slots: Callable[[int, int], Slots]) -> None:
        self._slots = slots

    @classmethod
    def listed(cls, slots: Slots) -> RowsInSlots:
        """The rows in the listed slots."""
        return cls(lambda start, stop: slots[start:stop])

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the rows that lie there in `ring`."""
        return ring.row_ids(self._slots(start, stop))

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing: they were not drawn."""
        return {}


class PrioritiesInSlots(RowsInSlots):
    """The same, with the priorities that the rows have when they are read. One thread reads them, a part after the other.

    Args:
        slots: As above.
        priorities: As `Sampler.priorities`.
    """

    def __init__(self, slots: Callable[[int, int], Slots], priorities: Callable[[RowIds], npt.NDArray[np.float64]]) -> None:
        super().__init__(slots)
        self._priorities, self._read = priorities, np.zeros(0, np.int64)

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the rows that lie there in `ring`."""
        self._read = super().ids(ring, start, stop)
        return self._read

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """The priorities of the rows whose ids were asked for last."""
        return {PRIORITY.name: self._priorities(self._read)}


class PartOfRows:
    """The rows of a choice from one place on.

    Args:
        chosen: The choice.
        first: The place of the first row.
    """

    def __init__(self, chosen: ChosenRows, first: int) -> None:
        self._chosen, self._first = chosen, first

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """As `ChosenRows.ids`."""
        return self._chosen.ids(ring, self._first + start, self._first + stop)

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """As `ChosenRows.drawn`."""
        return self._chosen.drawn(self._first + start, self._first + stop)


@dataclass(frozen=True)
class Selection:
    """Rows to be read.

    Attributes:
        format: What is read of each row.
        rows: The number of rows.
        chosen: Which rows they are.
        version: The version of the table's rows; they may be read while it is the same.
    """

    format: RowFormat
    rows: int
    chosen: ChosenRows
    version: int

    @property
    def is_described(self) -> bool:
        """Whether the rows are read with the fields of their draw, which are the last ones."""
        return self.format.fields[-1] is PRIORITY

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """What the rows from start to stop are read with of their draw, once their ids were asked for: the name of a drawn field -> its values."""
        return self.chosen.drawn(start, stop) if self.is_described else {}


class _Joined:
    def __init__(self, parts: Sequence[Selection]) -> None:
        self._parts = parts

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        return np.concatenate([part.chosen.ids(ring, 0, part.rows) for part in self._parts])[start:stop]

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        return {}


def joined(selections: Sequence[Selection]) -> Selection:
    """Selections of one table and one format as one, whose rows come one after the other."""
    if len(selections) == 1:
        return selections[0]
    return replace(selections[0], rows=sum(part.rows for part in selections), chosen=_Joined(selections))
