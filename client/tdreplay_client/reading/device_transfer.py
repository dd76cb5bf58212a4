"""The last step of a batch: from the host's memory to the training device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.memory import copy_rows
from tdreplay.schema import Columns, DimNames
from tdreplay.views import TableView
from tdreplay_client.reading.segment_loans import SegmentLoans

__all__ = ["DeviceTransfer", "MadeBatch", "PendingBatch"]


@dataclass(frozen=True)
class PendingBatch:
    """A batch on its device, or, with CUDA, on its way there.

    Attributes:
        batch: the batch.
        copied: tells when the copy to CUDA is done; None where there is none.
        segment: the segment of shared memory in which the batch lies.
        loans: the memory of that segment; None where the batch lies in a message.
        head: the fields of the message that completed the batch.
        number: which batch of that message it is, from 0 up.
    """

    batch: TensorDict
    copied: torch.cuda.Event | None = None
    segment: int = 0
    loans: SegmentLoans | None = None
    head: Any = None
    number: int = 0

    def take(self) -> TensorDict:
        """The batch, in memory that nobody else uses: where it lies in a segment that cannot be spared while the batch lives, a copy.

        It is for use on the current CUDA stream of the calling thread. That stream waits for the copy to the device; the thread does not.
        """
        if self.loans is not None and not self.loans.lend(self.segment):
            return self.batch.clone()
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.batch.device)
            stream.wait_event(self.copied)
            for leaf in self.batch.values(include_nested=True, leaves_only=True):
                leaf.record_stream(stream)  # The memory is the side stream's: it must not be used again before this one is done with it.
        return self.batch


class MadeBatch(Protocol):
    """Makes a batch of columns, as `to_tensordict` does."""

    def __call__(self, columns: Columns, batch_size: tuple[int, ...], device: torch.device, dim_names: DimNames = ()) -> TensorDict:
        """The batch."""


class DeviceTransfer:
    """Brings batches to `device`: to CUDA from pinned memory, on a stream of its own, so that copies and training overlap.

    Args:
        device: Where batches go.
        make: Makes a batch of its columns there.
    """

    def __init__(self, device: torch.device, make: MadeBatch = to_tensordict) -> None:
        self._device, self._make = device, make
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def for_view(self, view: TableView | None) -> DeviceTransfer:
        """The same transfer of batches of windows, of which `view` makes others; None: of batches as they are."""
        if view is None:
            return self
        found = copy.copy(self)
        found._make = view.made_of
        return found

    @property
    def on_host(self) -> bool:
        """Whether batches stay in the host's memory."""
        return self._device.type == "cpu"

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """New memory of the host for a column. It is pinned where the column goes on to CUDA."""
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=self._copies is not None)

    def copy(self, column: torch.Tensor) -> torch.Tensor:
        """A copy of a column in such memory."""
        copied = self.memory(tuple(column.shape), column.dtype)
        copy_rows(column, copied)
        return copied

    def bring(self, columns: Columns, batch_size: tuple[int, ...], dim_names: DimNames = ()) -> PendingBatch:
        """The batch of these columns, which lie in the host's memory. It takes them over: on the CPU they are the batch."""
        if self.on_host:
            return PendingBatch(self._make(columns, batch_size, self._device, dim_names))
        if self._copies is None:
            here = {name: column.to(self._device) for name, column in columns.items()}
            return PendingBatch(self._make(here, batch_size, self._device, dim_names))
        with torch.cuda.stream(self._copies):
            moved = {name: self._pinned(column).to(self._device, non_blocking=True) for name, column in columns.items()}
            batch = self._make(moved, batch_size, self._device, dim_names)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._copies)
        return PendingBatch(batch, copied)

    def _pinned(self, column: torch.Tensor) -> torch.Tensor:
        return column if column.is_pinned() else self.copy(column)
