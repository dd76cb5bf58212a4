"""A stream of batches as a PyTorch dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader, IterableDataset

from tdreplay.errors import ForkedError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay_client.buffer import RemoteReplayBuffer

__all__ = ["ReplayDataset", "as_is"]


def as_is(batch: TensorDict) -> TensorDict:
    """The batch. PyTorch's own conversion takes a TensorDict for a dict, and fails."""
    return batch


class ReplayDataset(IterableDataset[TensorDict]):
    """Random batches of a table without end; `loader` makes the DataLoader for them.

    Each iteration opens a connection and a stream of its own. gRPC does not survive a fork: a forked worker raises `ForkedError`, a spawned one
    works. A stream whose server is lost goes on when it is back, within `timeout`.

    Args:
        address: of the server.
        batch_size: rows per batch, drawn uniformly with replacement.
        prefetch: how many batches may be on their way at any time.
        fields: which fields come; None: all of them, ``index`` and ``row_id``.
        device: where batches go.
        table: the table's name.
        timeout: seconds that a call may wait for the server: to answer, or to come back.
    """

    def __init__(
        self,
        address: str,
        batch_size: int,
        *,
        prefetch: int = 2,
        fields: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        table: str = DEFAULT_TABLE,
        timeout: float = 30.0,
    ) -> None:
        super().__init__()
        self._connect: dict[str, Any] = {"address": address, "device": device, "table": table, "timeout": timeout}
        self._stream: dict[str, Any] = {"batch_size": batch_size, "prefetch": prefetch, "fields": fields}
        self._process = os.getpid()

    def __iter__(self) -> Iterator[TensorDict]:
        if os.getpid() != self._process:
            raise ForkedError(
                f"the dataset was made by process {self._process}, of which this worker is a fork, and gRPC does not survive a fork: "
                'pass multiprocessing_context="spawn" to the DataLoader'
            )
        with RemoteReplayBuffer(**self._connect) as buffer, buffer.stream(**self._stream) as batches:
            yield from batches

    def loader(self, num_workers: int = 0) -> DataLoader[TensorDict]:
        """A DataLoader of these batches as they are, in this process or in spawned workers, each with a stream of its own."""
        context = "spawn" if num_workers else None
        return DataLoader(self, batch_size=None, num_workers=num_workers, multiprocessing_context=context, collate_fn=as_is)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Spawned workers get the dataset this way; a forked one does not, and keeps its parent's process id.
        self.__dict__.update(state, _process=os.getpid())
