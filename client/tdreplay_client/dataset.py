"""A stream of batches as a PyTorch dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, SupportsFloat, SupportsIndex

import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tdreplay.devices import check_device
from tdreplay.errors import ForkedError
from tdreplay.limits import DEFAULT_TABLE, DEFAULT_TIMEOUT, check_batch_size, check_seconds, check_whole
from tdreplay.seeds import derived_seed
from tdreplay.selecting import Fields, as_fields
from tdreplay.views import View, check_view
from tdreplay_client.buffer import MAX_PREFETCH, RemoteReplayBuffer
from tdreplay_client.transport.access import TLS
from tdreplay_client.transport.targets import found_target

__all__ = ["ReplayDataset", "as_is"]


def as_is(batch: TensorDict) -> TensorDict:
    """The batch. PyTorch's own conversion takes a TensorDict for a dict, and fails."""
    return batch


class ReplayDataset(IterableDataset[TensorDict]):
    """Random batches of a table without end; `loader` makes the DataLoader for them.

    Each iteration opens a connection and a stream of its own, which waits for the table's first row. gRPC does not survive a fork: a forked worker
    raises `ForkedError`, a spawned one works. A stream whose server is lost goes on when it is back, within `timeout`.

    Args:
        address: The address of the server; None: as in `RemoteReplayBuffer`.
        batch_size: rows per batch, drawn uniformly with replacement.
        prefetch: how many batches may be on their way at any time.
        fields: as in `RemoteReplayBuffer.stream`; None: all of them, ``index`` and ``row_id``.
        device: where batches go.
        table: the table's name.
        timeout: seconds that a call may wait for the server: to answer, or to come back.
        view: as in `RemoteReplayBuffer.stream`.
        seed: each iteration brings the batches of this seed, as `RemoteReplayBuffer.stream` does; worker w of a DataLoader those of a seed that
            follows from it and w. None: batches differ.
        tls: as in `RemoteReplayBuffer`, like `token` and `profile`. What they and the environment say is looked up here, and goes to the workers.
        token: what the server knows the caller by.
        profile: the name of a profile.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
    """

    def __init__(
        self,
        address: str | None,
        batch_size: SupportsIndex,
        *,
        prefetch: SupportsIndex = 2,
        fields: Fields | None = None,
        device: torch.device | str = "cpu",
        table: str = DEFAULT_TABLE,
        timeout: SupportsFloat | None = DEFAULT_TIMEOUT,
        seed: SupportsIndex | None = None,
        view: View | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        profile: str | None = None,
    ) -> None:
        super().__init__()
        seconds, where = check_seconds(timeout, "timeout"), check_device(device, "device")
        target = found_target(address, tls, token, profile)
        shown: dict[str, Any] = {"tls": target.access.tls or False, "token": target.access.token}
        self._connect: dict[str, Any] = {"address": target.address, "device": where, "table": table, "timeout": seconds, **shown}
        size, ahead = check_batch_size(batch_size), check_whole(prefetch, "prefetch", 1, MAX_PREFETCH)
        self._stream: dict[str, Any] = {
            "batch_size": size,
            "prefetch": ahead,
            "fields": as_fields(fields),
            "view": view if view is None else check_view(view),
        }
        self._seed = None if seed is None else check_whole(seed, "seed", 0)
        self._process = os.getpid()

    def __iter__(self) -> Iterator[TensorDict]:
        if os.getpid() != self._process:
            raise ForkedError(
                f"the dataset was made by process {self._process}, of which this worker is a fork, and gRPC does not survive a fork: "
                'pass multiprocessing_context="spawn" to the DataLoader'
            )
        with RemoteReplayBuffer(**self._connect) as buffer, buffer.stream(**self._stream, seed=self._worker_seed()) as batches:
            yield from batches

    def _worker_seed(self) -> int | None:
        worker = get_worker_info()
        return self._seed if self._seed is None or worker is None else derived_seed(self._seed, worker.id)

    def loader(self, num_workers: int = 0) -> DataLoader[TensorDict]:
        """A DataLoader of these batches as they are, in this process or in spawned workers, each with a stream of its own."""
        context = "spawn" if num_workers else None
        return DataLoader(self, batch_size=None, num_workers=num_workers, multiprocessing_context=context, collate_fn=as_is)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Spawned workers get the dataset this way; a forked one does not, and keeps its parent's process id.
        self.__dict__.update(state, _process=os.getpid())
