"""TorchRL's replay buffer over a `ReplayBuffer`. This is the only module of the server that knows TorchRL, and nothing of the server imports it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase, lazy_legacy, set_lazy_legacy

from tdreplay.copying import OfOneProcess
from tdreplay.errors import UnimplementedError
from tdreplay.rows import given_row, given_rows
from tdreplay_server.buffer import ReplayBuffer
from tdreplay_server.system.imports import process_unchanged

_legacy = lazy_legacy()
with process_unchanged():
    from torchrl.data import TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import Sampler
    from torchrl.data.replay_buffers.storages import Storage
    from torchrl.data.replay_buffers.writers import Writer

    set_lazy_legacy(_legacy).set()

__all__ = ["TorchRLReplayBuffer"]

STATE = "the buffer's directory keeps the rows, and `buffer.checkpoint` copies them: TorchRL would write and read files of pickle"
IN_PLACE = "a stored row does not change: `extend` stores new ones"
PARTS = "storage, writer and sampler work on one table and belong together: make a TensorDictReplayBuffer of your own for other ones"
ONE_PROCESS = "the rows belong to this process: serve them (tdreplay_server.spawn_server) to share them with others"


class TableStorage(Storage):
    """The rows of a buffer as TorchRL reads them. Only `TableWriter` stores rows.

    Args:
        buffer: The buffer that has the rows.
    """

    ndim = 1

    def __init__(self, buffer: ReplayBuffer) -> None:
        # Compilable: TorchRL would else make values for several processes, which settles how multiprocessing starts them.
        super().__init__(buffer.buffer_size, compilable=True)
        self._buffer = buffer
        self._drawn: tuple[torch.Tensor, TensorDict] | None = None

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

    def draw(self, rows: int, seed: int) -> torch.Tensor:
        """Draws rows, and reads them at the same moment: `get` gives them to whoever asks for the slots that this returns, int64 of shape [rows]."""
        batch = _without_row_ids(self._buffer.sample_batch(rows, seed=seed))
        index: torch.Tensor = batch["index"].reshape(rows, -1)[:, 0]
        self._drawn = index, batch
        return index

    def get(self, index: Any) -> TensorDict:
        """Copies of the rows in some slots, with the field ``index``.

        Args:
            index: a slot, a slice of the live slots, or a tensor, an array or a list of slots, also a mask.

        Raises:
            SlotIndexError: a slot holds no live row.
            EmptyTableError: there is no row.
        """
        drawn, self._drawn = self._drawn, None
        if drawn is not None and index is drawn[0]:
            return drawn[1]
        if isinstance(index, slice) and index == slice(None):
            return _without_row_ids(self._buffer.sample_all())
        return _without_row_ids(self._buffer.sample_by_index(index))

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

    def state_dict(self) -> NoReturn:
        """Refuses."""
        raise UnimplementedError(STATE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> NoReturn:
        """Refuses."""
        raise UnimplementedError(STATE)


class TableWriter(Writer):
    """Stores rows as `ReplayBuffer.add_batch` does: in one order with all other inserts, and as durable.

    Args:
        buffer: where the rows go.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        super().__init__(compilable=True)
        self._buffer = buffer
        self._not_counted = 0

    @property
    def _write_count(self) -> int:
        """The rows that were ever inserted into the table, since the last call of `empty` in this process."""
        return self._buffer.state().insert_count - self._not_counted

    def add(self, data: Any) -> int:
        """Stores a row, and gives its slot."""
        return self._buffer.insert(given_row(data)) % self._buffer.buffer_size

    def extend(self, data: TensorDictBase) -> torch.Tensor:
        """Stores rows, and gives their slots, int64 of shape [n] on their device. The dimensions of a batch lose their names, as in TorchRL."""
        first = self._buffer.insert(given_rows(data)._replace(dim_names=())) if len(data) else 0
        return torch.arange(first, first + len(data), device=data.device or "cpu") % self._buffer.buffer_size

    def _empty(self, empty_write_count: bool = True) -> None:
        self._buffer.reset()
        if empty_write_count:
            self._not_counted = self._buffer.state().insert_count

    def _refuse(self, *_: object) -> NoReturn:
        """Refuses."""
        raise UnimplementedError(STATE)

    state_dict = load_state_dict = dumps = loads = _refuse


class TableSampler(Sampler):
    """Draws live rows uniformly, with replacement. It is as random as TorchRL's generator, or ``torch.manual_seed``, say."""

    def sample(self, storage: TableStorage, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """`batch_size` slots, int64 of shape [batch_size].

        Raises:
            EmptyTableError: there is no row.
        """
        where = None if self._rng is None else self._rng.device
        seed = int(torch.randint(1 << 62, (), generator=self._rng, device=where))
        return storage.draw(batch_size, seed), {}

    def _empty(self) -> None:
        """Nothing to forget."""

    def _refuse(self, *_: object) -> NoReturn:
        """Refuses."""
        raise UnimplementedError(STATE)

    state_dict = load_state_dict = dumps = loads = _refuse


def _refusing(reason: str) -> Callable[..., NoReturn]:
    """A method of TorchRL's that this buffer does not have."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnimplementedError(reason)

    return refuse


class TorchRLReplayBuffer(OfOneProcess, TensorDictReplayBuffer):
    """A `torchrl.data.TensorDictReplayBuffer` whose rows are those of a `ReplayBuffer`: both may be used at once, from several threads.

    `add`, `extend`, `sample`, `len`, iteration, indexing, `empty`, transforms, prefetching and `query` do what TorchRL says. What they store is as
    durable, and as exactly ordered, as by `ReplayBuffer.add_batch`. A batch is drawn and read at one moment. Its rows are whole, and copies.

    What would change stored rows in place, take the parts apart, share the rows between processes, or use pickle, is an UnimplementedError with the
    reason. ``state_dict``, ``dumps`` and ``loads`` are not needed: a `ReplayBuffer` with a directory goes on where it ended, and has checkpoints.

    Example:
        >>> with ReplayBuffer("cpu", "cpu", 1000, directory=Path("replay")) as buffer:
        ...     replay = TorchRLReplayBuffer(buffer, batch_size=32)
        ...     replay.extend(TensorDict({"obs": torch.rand(100, 4)}, [100]))
        ...     batch = replay.sample()

    Args:
        buffer: where the rows are. Whoever opened it closes it, after `shutdown` where there is a `prefetch`.
        batch_size: The rows of each batch of `sample` and of the iteration.
        prefetch: how many batches threads draw ahead. None: none.
        transform: what is done to rows; see TorchRL.
        pin_memory: whether batches lie in pinned memory.
        collate_fn: is given each batch. None: batches stay as they are.
        generator: makes the batches reproducible. None: torch's own does, as after ``torch.manual_seed``.
    """

    _instead = ONE_PROCESS

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        batch_size: int | None = None,
        prefetch: int | None = None,
        transform: Any = None,
        pin_memory: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._buffer = buffer
        super().__init__(
            storage=TableStorage(buffer),
            writer=TableWriter(buffer),
            sampler=TableSampler(),
            batch_size=batch_size,
            prefetch=prefetch,
            transform=transform,
            pin_memory=pin_memory,
            collate_fn=collate_fn or _unchanged,
            generator=generator,
        )
        _made.add(self)

    @property
    def buffer(self) -> ReplayBuffer:
        """The same rows with the methods of tdreplay."""
        return self._buffer

    def share(self, shared: bool = True) -> TorchRLReplayBuffer:
        """Refuses, unless `shared` is False, which says what is the case."""
        if shared:
            raise UnimplementedError(ONE_PROCESS)
        super().share(False)
        return self

    state_dict = load_state_dict = dumps = loads = register_save_hook = register_load_hook = _refusing(STATE)
    __setitem__ = write_all = set_ = set_at_ = update_ = update_if_present = submit_update_if_present = _refusing(IN_PLACE)
    set_storage = set_writer = set_sampler = _refusing(PARTS)

    def forget_threads(self) -> None:
        """In a fork of the process: forgets the locks and batches that threads of the parent hold, so that the next call gets a ForkedError."""
        self._replay_lock, self._futures_lock = threading.RLock(), threading.RLock()
        self._prefetch_queue.clear()


_made: weakref.WeakSet[TorchRLReplayBuffer] = weakref.WeakSet()


def _in_fork() -> None:
    for buffer in list(_made):
        buffer.forget_threads()


os.register_at_fork(after_in_child=_in_fork)


def _unchanged(batch: Any) -> Any:
    return batch


def _without_row_ids(batch: TensorDict) -> TensorDict:
    """The fields that TorchRL's users know."""
    found: TensorDict = batch.exclude("row_id")
    return found
