"""TorchRL's replay buffer over a `ReplayBuffer`. This is the only module of the server that knows TorchRL, and nothing of the server imports it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from tensordict import lazy_legacy, set_lazy_legacy

from tdreplay.copying import OfOneProcess
from tdreplay.errors import UnimplementedError
from tdreplay.system_fields import INDEX
from tdreplay.torchrl_parts import IN_PLACE, PARTS, StoredRows, WrittenRows, refusing, unchanged
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
ONE_PROCESS = "the rows belong to this process: serve them (tdreplay_server.spawn_server) to share them with others"


class TableStorage(StoredRows, Storage):
    """The rows of a buffer as TorchRL reads them. Only `TableWriter` stores rows.

    Args:
        buffer: The buffer that has the rows.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        StoredRows.__init__(self, buffer, shown=(INDEX.name,))
        # Compilable: TorchRL would else make values for several processes, which settles how multiprocessing starts them.
        Storage.__init__(self, buffer.buffer_size, compilable=True)

    def draw(self, rows: int, seed: int) -> torch.Tensor:
        """Draws rows, and reads them at the same moment: `get` gives them to whoever asks for the slots that this returns, int64 of shape [rows]."""
        return self.hand_over(self._buffer.sample_batch(rows, seed=seed))

    state_dict = load_state_dict = refusing(STATE)


class TableWriter(WrittenRows, Writer):
    """Stores rows as `ReplayBuffer.add_batch` does: in one order with all other inserts, and as durable.

    Args:
        buffer: where the rows go.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        Writer.__init__(self, compilable=True)
        WrittenRows.__init__(self, buffer)

    state_dict = load_state_dict = dumps = loads = refusing(STATE)


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

    state_dict = load_state_dict = dumps = loads = refusing(STATE)


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
            collate_fn=collate_fn or unchanged,
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

    state_dict = load_state_dict = dumps = loads = register_save_hook = register_load_hook = refusing(STATE)
    __setitem__ = write_all = set_ = set_at_ = update_ = update_if_present = submit_update_if_present = refusing(IN_PLACE)
    set_storage = set_writer = set_sampler = refusing(PARTS)

    def forget_threads(self) -> None:
        """In a fork of the process: forgets the locks and batches that threads of the parent hold, so that the next call gets a ForkedError."""
        self._replay_lock, self._futures_lock = threading.RLock(), threading.RLock()
        self._prefetch_queue.clear()


_made: weakref.WeakSet[TorchRLReplayBuffer] = weakref.WeakSet()


def _in_fork() -> None:
    for buffer in list(_made):
        buffer.forget_threads()


os.register_at_fork(after_in_child=_in_fork)
