"""The storage, the writer and the sampler of TorchRL's buffer: what they do, a table of a server does."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage
from torchrl.data.replay_buffers.writers import Writer

from tdreplay.errors import ClosedError, NoPrioritiesError
from tdreplay.priorities import importance_weights
from tdreplay.processes import Owner
from tdreplay.system_fields import INDEX, ROW_ID
from tdreplay.torchrl_parts import Places, StoredRows, WrittenRows, first_of_each, has_priorities, refusing
from tdreplay_client.buffer import RemoteReplayBuffer
from tdreplay_client.reading.stream import BatchStream

__all__ = ["STATE", "TableSampler", "TableStorage", "TableWriter"]

STATE = "the server keeps the rows: `state_dict` of the whole buffer says where it stands, and `buffer.checkpoint` copies them"
WEIGHT = "priority_weight"


class TableStorage(StoredRows, Storage):
    """The rows of a table as TorchRL reads them. Only `TableWriter` stores rows.

    Args:
        buffer: The buffer over the table.
    """

    def __init__(self, buffer: RemoteReplayBuffer) -> None:
        StoredRows.__init__(self, buffer, shown=(INDEX.name, ROW_ID.name))
        Storage.__init__(
            self, 1, compilable=True
        )  # Whatever it is told: `max_size` asks the table. Compilable: it needs no memory of several processes.

    state_dict = load_state_dict = refusing(STATE)


class TableWriter(WrittenRows, Writer):
    """Stores rows as `RemoteReplayBuffer.add_batch` does: in one order with the inserts of all clients, and as durable.

    Args:
        buffer: The buffer over the table.
        places: Where the rows go that are inserted.
    """

    def __init__(self, buffer: RemoteReplayBuffer, places: Places) -> None:
        Writer.__init__(self, compilable=True)
        WrittenRows.__init__(self, buffer)
        self._places = places

    def _slots(self, row_ids: torch.Tensor) -> torch.Tensor:
        return self._places.slots(row_ids.numpy())

    def _empty(self, empty_write_count: bool = True) -> None:
        super()._empty(empty_write_count)
        self._places.forget()

    state_dict = load_state_dict = dumps = loads = refusing(STATE)


class TableSampler(Sampler):
    """The batches that the table's own sampler draws: one for each call, or from a stream that reads them ahead.

    Args:
        buffer: The buffer over the table.
        places: Where the rows lie that are drawn.
        batch_size: Rows of the batches that are read ahead.
        prefetch: How many of them are on their way; 0: none.
        wait: Whether an empty table is waited for.
        beta: How much of the rows' unequal probabilities `priority_weight` corrects.

    Attributes:
        beta: The same. TorchRL's schedulers anneal it.
    """

    reduction = "max"

    def __init__(self, buffer: RemoteReplayBuffer, places: Places, batch_size: int | None, prefetch: int, *, wait: bool, beta: float) -> None:
        self.beta = beta
        self._prioritized: bool | None = None
        self._buffer, self._places, self._batch_size, self._prefetch, self._wait = buffer, places, batch_size, prefetch, wait
        self._owner = Owner("the buffer", "start processes with spawn: each opens a connection of its own")
        self._lock = threading.Lock()
        self._stream: BatchStream | None = None

    def sample(self, storage: TableStorage, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """The slots of a batch, int64 of shape [batch_size], and what TorchRL is to add to its rows.

        Raises:
            EmptyTableError: There is no row, and none came within the buffer's timeout where it waits.
        """
        self._owner.check()
        ahead = self._prefetch > 0 and batch_size == self._batch_size
        batch = self._next() if ahead else self._buffer.sample_batch(batch_size, seed=self._seed(), wait=self._wait)
        index, row_ids = storage.hand_over(batch), first_of_each(batch[ROW_ID.name])
        self._places.note(index, row_ids.cpu().numpy())
        self._prioritized = has_priorities(batch)
        if not self._prioritized:
            return index, {ROW_ID.name: row_ids}
        return index, {ROW_ID.name: row_ids, WEIGHT: first_of_each(importance_weights(batch, float(self.beta), "table"))}

    @property
    def prioritized(self) -> bool:
        """Whether the table's rows have priorities. The last batch said so; where there was none, the server is asked."""
        if self._prioritized is None:
            try:
                self._buffer.update_priorities([], [])
                self._prioritized = True
            except NoPrioritiesError:
                self._prioritized = False
        return self._prioritized

    def update(self, row_ids: torch.Tensor, priorities: npt.NDArray[np.float64]) -> None:
        """Gives rows other priorities. Where batches are read ahead, it does not wait until the server has them."""
        stream = self._stream
        if stream is not None and self.prioritized:
            with suppress(ClosedError):  # By another thread: then it waits.
                stream.update_priorities(TensorDict({ROW_ID.name: row_ids}, [len(row_ids)]), priorities)
                return
        self._buffer.update_priorities(row_ids, priorities)

    def _next(self) -> TensorDict:
        """The next batch of the stream. After an error the next call opens another one."""
        with self._lock:
            while True:
                stream = self._stream = self._stream or self._opened()
                try:
                    return next(stream)
                except StopIteration:  # `begin_anew` closed it.
                    self._stream = None
                except BaseException:
                    self.begin_anew()
                    raise

    def _opened(self) -> BatchStream:
        return self._buffer.stream(self._batch_size or 1, prefetch=self._prefetch, seed=self._seed(), wait=self._wait)

    def _seed(self) -> int | None:
        """A seed from TorchRL's generator, where there is one. Else the buffer's own seed makes its batches reproducible."""
        return None if self._rng is None else int(torch.randint(1 << 62, (), generator=self._rng, device=self._rng.device))

    def begin_anew(self) -> None:
        """Forgets the batches that were read ahead. A thread that waits for the next one gets one of another stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _empty(self) -> None:
        self._prioritized = None
        self.begin_anew()

    state_dict = load_state_dict = dumps = loads = refusing(STATE)
