"""Where the values of system fields come from when rows are read, for those that are not persisted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.memory import Rows
from tdreplay.system_fields import INDEX, ROW_ID, SYSTEM_FIELDS
from tdreplay.values import NUMPY
from tdreplay_server.storage.ring import RowIds, Slots

__all__ = ["COMPUTED", "RowsRead", "write_system_values"]


class RowsRead(NamedTuple):
    """The rows that are read, in the order of the batch.

    Attributes:
        ids: their row ids: int64 of shape [n].
        slots: where they lie: int64 of shape [n].
    """

    ids: RowIds
    slots: Slots


COMPUTED: Mapping[str, Callable[[RowsRead], npt.NDArray[Any]]] = {
    INDEX.name: lambda rows: rows.slots,
    ROW_ID.name: lambda rows: rows.ids,
}
"""The name of a system field -> how its values are had for some rows: an array of shape [n, *field shape] that nobody changes."""

_VIEWS = {field.name: np.dtype((NUMPY[field.dtype], field.shape)) for field in SYSTEM_FIELDS}


def write_system_values(rows: RowsRead, out: Mapping[str, Rows]) -> None:
    """Writes the values of the `COMPUTED` fields that `out` names into the memory that it gives for each."""
    for name, place in out.items():
        place.view(_VIEWS[name])[:] = COMPUTED[name](rows)
