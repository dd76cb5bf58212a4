"""What TorchRL's storage and writer do over a buffer of tdreplay: the adapters of both ends inherit it beside TorchRL's own classes.

TorchRL itself is imported by those adapters, and not here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.weak import WeakIdKeyDictionary

from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import SlotIndexError, UnimplementedError
from tdreplay.rows import given_row, given_rows
from tdreplay.system_fields import DRAWN_NAMES, INDEX, SYSTEM_NAMES

__all__ = ["IN_PLACE", "PARTS", "Places", "StoredRows", "WrittenRows", "first_of_each", "has_priorities", "refusing", "unchanged"]

IN_PLACE = "a stored row does not change: `extend` stores new ones"
PARTS = "storage, writer and sampler work on one table and belong together: make a TensorDictReplayBuffer of your own for other ones"


def refusing(reason: str) -> Callable[..., NoReturn]:
    """A method of TorchRL's that a buffer does not have: it raises an UnimplementedError."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnimplementedError(reason)

    return refuse


def unchanged(batch: Any) -> Any:
    """The batch: TorchRL's own collate functions would stack it again."""
    return batch


def first_of_each(values: torch.Tensor) -> torch.Tensor:
    """A value of each row, of shape [rows]: system fields of rows that are batches are expanded to them."""
    return values.reshape(len(values), -1)[:, 0]


def has_priorities(batch: TensorDictBase) -> bool:
    """Whether a random batch says how probable its rows were. A user may have fields of the same names, but not of all four."""
    return all(name in batch.keys() for name in DRAWN_NAMES)  # noqa: SIM118 - a TensorDict iterates over its rows.


class StoredRows:
    """Base of storages: the rows of a buffer as TorchRL reads them.

    Args:
        buffer: The buffer that has the rows.
        shown: The system fields that rows have here. TorchRL's users know ``index`` alone.
    """

    ndim = 1

    def __init__(self, buffer: BaseReplayBuffer, shown: Collection[str]) -> None:
        self._buffer, self._hidden = buffer, SYSTEM_NAMES.difference(shown)
        self._handed = threading.local()

    @property
    def max_size(self) -> int:
        """The capacity, in rows. A reset of the buffer may change it."""
        return self._buffer.buffer_size

    @max_size.setter
    def max_size(self, size: int) -> None:
        """TorchRL sets it to what it is."""

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self._buffer.device

    @property
    def _last_cursor_index(self) -> int | None:
        """The slot of the newest row. TorchRL asks where trajectories end."""
        state = self._buffer.state()
        return (state.pointer - 1) % state.buffer_size if state.size else None

    def __len__(self) -> int:
        return self._buffer.size

    def hand_over(self, batch: TensorDict) -> torch.Tensor:
        """Keeps a batch that was drawn for this thread's next `get`, and gives the slots to ask for: int64 of shape [rows].

        TorchRL draws slots first and reads them afterwards. The rows were read when they were drawn.
        """
        index = first_of_each(batch[INDEX.name])
        self._handed.over = index, batch.exclude(*self._hidden, *(DRAWN_NAMES if has_priorities(batch) else ()))
        return index

    def get(self, index: Any) -> TensorDict:
        """Copies of the rows in some slots, with the field ``index``.

        Args:
            index: A slot, a slice of the live slots, or a tensor, an array or a list of slots, also a mask.

        Raises:
            SlotIndexError: a slot holds no live row.
            EmptyTableError: there is no row.
        """
        handed, self._handed.over = getattr(self._handed, "over", None), None
        if handed is not None and index is handed[0]:
            batch: TensorDict = handed[1]
            return batch
        everything = isinstance(index, slice) and index == slice(None)
        found: TensorDict = (self._buffer.sample_all() if everything else self._buffer.sample_by_index(index)).exclude(*self._hidden)
        return found

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> NoReturn:
        """Refuses: a row in a slot that the journal does not know would be lost, or doubled."""
        raise UnimplementedError(IN_PLACE)

    def contains(self, item: int | torch.Tensor) -> bool | torch.Tensor:
        """Whether a slot, or each of some slots, holds a row. Negative numbers count from the last row, as in `get`."""
        state = self._buffer.state()
        first = state.write_count - state.size
        return ((item >= 0) & (item < state.buffer_size) & ((item - first) % state.buffer_size < state.size)) | ((item < 0) & (item >= -state.size))

    def _empty(self) -> None:
        """Nothing is left to do: the writer has reset the buffer."""


class Places:
    """Which rows a user means by slots: those that he was given with them, and not others that took their places since.

    A tensor of slots that was given out means exactly its rows, as long as it is there. A copy of it, or a part, means the rows that were given last
    with these slots.

    Args:
        buffer: The buffer that has the rows.
    """

    def __init__(self, buffer: BaseReplayBuffer) -> None:
        self._buffer = buffer
        self._exact: Any = WeakIdKeyDictionary()  # It has no types.
        self._last = np.zeros(0, np.int64)  # Of each slot, one more than the row id: 0 stands for none. Memory is taken where one is noted.

    def slots(self, row_ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """The slots of rows that were just inserted, to be given out: int64 of shape [n]."""
        self._last = self._last if len(self._last) else np.zeros(self._buffer.buffer_size, np.int64)
        slots = torch.from_numpy(row_ids % len(self._last))
        self.note(slots, row_ids)
        return slots

    def note(self, slots: torch.Tensor, row_ids: npt.NDArray[np.int64]) -> None:
        """Notes what is given out.

        Another client may have changed the capacity, and with it the slots. Then what was known is forgotten.
        """
        places = slots.cpu().numpy()
        if not len(self._last) or (row_ids % len(self._last) != places).any():
            self._last = np.zeros(self._buffer.buffer_size, np.int64)
        self._last[places] = row_ids + 1
        self._exact[slots] = row_ids

    def row_ids(self, slots: torch.Tensor) -> npt.NDArray[np.int64]:
        """The rows that a user means by slots; where none was given with one, the row that lies there now.

        Raises:
            SlotIndexError: A slot holds no row.
        """
        exact: npt.NDArray[np.int64] | None = self._exact.get(slots)
        return self._last_given(slots.reshape(-1).cpu().numpy()) if exact is None else exact

    def _last_given(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        state = self._buffer.state()
        last = self._last if len(self._last) else np.zeros(state.buffer_size, np.int64)
        if ((slots < 0) | (slots >= len(last))).any():
            raise SlotIndexError(f"index ({slots.min()} to {slots.max()}) must be slots from 0 to {len(last) - 1}")
        oldest = state.write_count - state.size
        row_ids = np.where(last[slots] > 0, last[slots] - 1, oldest + (slots - oldest) % state.buffer_size)
        if (row_ids >= state.write_count).any():
            raise SlotIndexError(f"slot {slots[row_ids >= state.write_count][0]} holds no row")
        return row_ids

    def forget(self) -> None:
        """Forgets all rows: the table does not hold them any more."""
        self._last = np.zeros(0, np.int64)


class WrittenRows:
    """Base of writers: rows are stored as `BaseReplayBuffer.add_batch` does, in one order with all other inserts, and as durable.

    Args:
        buffer: Where the rows go.

    Attributes:
        not_counted: The rows that had been inserted into the table when `empty` began to count anew.
    """

    def __init__(self, buffer: BaseReplayBuffer) -> None:
        self._buffer = buffer
        self.not_counted = 0

    @property
    def _write_count(self) -> int:
        """The rows that were ever inserted into the table, since the last call of `empty` through this buffer."""
        return self._buffer.state().insert_count - self.not_counted

    def add(self, data: Any) -> int:
        """Stores a row, and gives its slot."""
        return int(self._slots(torch.from_numpy(self._buffer.insert(given_row(data))))[0])

    def extend(self, data: TensorDictBase) -> torch.Tensor:
        """Stores rows, and gives their slots, int64 of shape [n] on their device. The dimensions of a batch lose their names, as in TorchRL."""
        if not len(data):
            return torch.zeros(0, dtype=torch.int64, device=data.device or "cpu")
        return self._slots(torch.from_numpy(self._buffer.insert(given_rows(data)._replace(dim_names=())))).to(data.device or "cpu")

    def _slots(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The slots in which rows lie that were just inserted."""
        return row_ids % self._buffer.buffer_size

    def _empty(self, empty_write_count: bool = True) -> None:
        self._buffer.reset()
        if empty_write_count:
            self.not_counted = self._buffer.state().insert_count
