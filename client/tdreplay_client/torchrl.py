"""TorchRL's replay buffer over a table of a server.

This is the only module of the client that knows TorchRL, and nothing of the client imports it: it is for those who have TorchRL.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.errors import InvalidArgumentError, MissingRowsError, SlotIndexError, UnimplementedError
from tdreplay.limits import check_batch_size, check_flag, check_whole
from tdreplay.processes import Owner
from tdreplay.system_fields import INDEX, ROW_ID
from tdreplay.torchrl_parts import IN_PLACE, PARTS, StoredRows, WrittenRows, refusing, unchanged
from tdreplay_client.buffer import MAX_PREFETCH, RemoteReplayBuffer
from tdreplay_client.reading.stream import BatchStream

try:
    from torchrl.data import TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import Sampler
    from torchrl.data.replay_buffers.storages import Storage
    from torchrl.data.replay_buffers.writers import Writer
except ModuleNotFoundError as missing:
    if missing.name != "torchrl":
        raise
    text = "tdreplay_client.torchrl needs torchrl, which is not installed: pip install 'tdreplay[torchrl]'"
    raise ModuleNotFoundError(text, name=missing.name) from missing

__all__ = ["RemoteTensorDictReplayBuffer"]

STATE = "the server keeps the rows: `state_dict` of the whole buffer says where it stands, and `buffer.checkpoint` copies them"
TRANSFORMS = "`dumps` writes no pickle, and these transforms have tensors: keep `transform.state_dict()` beside it"
FILE = "tdreplay.json"


class Places:
    """Which row lay in which slot, as this buffer said last: who names a slot means the row that he was given, and not one that took its place since.

    Args:
        buffer: The buffer over the table.
    """

    def __init__(self, buffer: RemoteReplayBuffer) -> None:
        self._buffer = buffer
        self._row_ids = np.zeros(0, np.int64)  # Of each slot, and one more than it is: 0 stands for none. Memory is taken where one is noted.

    def slots(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The slots of rows that were just inserted."""
        self._row_ids = self._row_ids if len(self._row_ids) else np.zeros(self._buffer.buffer_size, np.int64)
        slots = row_ids % len(self._row_ids)
        self._row_ids[slots] = row_ids + 1
        return slots

    def note(self, slots: npt.NDArray[np.int64], row_ids: npt.NDArray[np.int64]) -> None:
        """Notes rows that are given to the user.

        Another client may have changed the capacity, and with it the slots. Then what was known is forgotten.
        """
        if not len(self._row_ids) or (row_ids % len(self._row_ids) != slots).any():
            self._row_ids = np.zeros(self._buffer.buffer_size, np.int64)
        self._row_ids[slots] = row_ids + 1

    def row_ids(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The rows that were given with these slots; where none was, those that lie there now.

        Raises:
            SlotIndexError: A slot holds no row.
        """
        state = self._buffer.state()
        known = self._row_ids if len(self._row_ids) else np.zeros(state.buffer_size, np.int64)
        if ((slots < 0) | (slots >= len(known))).any():
            raise SlotIndexError(f"index ({slots.min()} to {slots.max()}) must be slots from 0 to {len(known) - 1}")
        oldest = state.write_count - state.size
        row_ids = np.where(known[slots] > 0, known[slots] - 1, oldest + (slots - oldest) % state.buffer_size)
        if (row_ids >= state.write_count).any():
            raise SlotIndexError(f"slot {slots[row_ids >= state.write_count][0]} holds no row")
        return row_ids

    def forget(self) -> None:
        """Forgets all rows: the table does not hold them any more."""
        self._row_ids = np.zeros(0, np.int64)


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
        return torch.from_numpy(self._places.slots(row_ids.numpy()))

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
    """

    def __init__(self, buffer: RemoteReplayBuffer, places: Places, batch_size: int | None, prefetch: int, *, wait: bool) -> None:
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
        self._places.note(index.cpu().numpy(), row_ids.cpu().numpy())
        return index, {ROW_ID.name: row_ids}

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

    _empty = begin_anew
    state_dict = load_state_dict = dumps = loads = refusing(STATE)


class RemoteTensorDictReplayBuffer(TensorDictReplayBuffer):
    """A `torchrl.data.TensorDictReplayBuffer` whose rows are those of a table of a server.

    TorchRL's collectors, trainers and scripts take it for their own. `add`, `extend`, `sample`, `len`, iteration, indexing, `empty`, `write_count`,
    transforms and `query` do what TorchRL says, over the network: rows are stored once and as durable as the server says, and drawn as the table's
    sampler says. A batch has one more field, ``row_id``, by which priorities are updated.

    It can be pickled and copied, as the collectors of several processes do it: each copy opens a connection of its own. All methods may be called
    from several threads, and no thread waits for the call of another one.

    What would change stored rows in place, or take the parts apart, is an UnimplementedError with the reason.

    Example:
        >>> with RemoteTensorDictReplayBuffer("127.0.0.1:50051", table="steps", buffer_size=100_000, batch_size=256) as replay:
        ...     collector = Collector(env, policy, frames_per_batch=200, total_frames=10_000, replay_buffer=replay)
        ...     for _ in collector:
        ...         loss = loss_module(replay.sample())

    Args:
        buffer: A `RemoteReplayBuffer`, which its opener closes; or the address of a server, for a buffer that `close` closes with this one.
        batch_size: The rows of each batch of `sample` and of the iteration.
        prefetch: How many batches are on their way while one is used: they are drawn before they are asked for. None: none is, and a batch is of the
            moment of its call. Batches of another size than `batch_size` are never read ahead.
        transform: What is done to rows; see TorchRL.
        priority_key: The field of `extend` and of `update_tensordict_priority` that has the priorities.
        collate_fn: is given each batch. None: batches stay as they are.
        generator: Makes batches reproducible: it gives a seed for each batch, or for each stream of batches that are read ahead. None: the buffer's
            own seed does, if it has one. ``torch.manual_seed`` has no influence: rows are drawn by the server.
        wait: Whether `sample` waits for the first row of an empty table, as long as the buffer's timeout. False: an EmptyTableError at once.
        **options: For the buffer that is opened at an address: ``table``, ``buffer_size``, ``device`` and so on; see `RemoteReplayBuffer`.

    Raises:
        InvalidArgumentError: An argument breaks its rule.
    """

    def __init__(
        self,
        buffer: RemoteReplayBuffer | str,
        *,
        batch_size: SupportsIndex | None = None,
        prefetch: SupportsIndex | None = None,
        transform: Any = None,
        priority_key: str = "td_error",
        collate_fn: Callable[[Any], Any] | None = None,
        generator: torch.Generator | None = None,
        wait: bool = False,
        **options: Any,
    ) -> None:
        size = None if batch_size is None else check_batch_size(batch_size)
        ahead = check_whole(prefetch or 0, "prefetch", 0, MAX_PREFETCH)
        if ahead and size is None:
            raise InvalidArgumentError(f"prefetch ({ahead}) needs a batch_size: batches of one size are read ahead")
        if options and not isinstance(buffer, str):
            raise InvalidArgumentError(f"{', '.join(options)} belong to a buffer that is opened at an address, and this one is open")
        waits = check_flag(wait, "wait")
        self._owned = isinstance(buffer, str)
        self._buffer = RemoteReplayBuffer(buffer, **options) if isinstance(buffer, str) else buffer
        self._places = Places(self._buffer)
        super().__init__(
            storage=TableStorage(self._buffer),
            writer=TableWriter(self._buffer, self._places),
            sampler=TableSampler(self._buffer, self._places, size, ahead, wait=waits),
            batch_size=size,
            transform=transform,
            priority_key=priority_key,
            collate_fn=collate_fn or unchanged,
            generator=generator,
        )
        # The server has locks, and a thread that waits for rows must not stop the one that brings them.
        self._replay_lock = nullcontext()
        self.shared = True
        self._arguments = {"batch_size": size, "prefetch": ahead, "priority_key": priority_key, "collate_fn": collate_fn, "wait": waits}

    def __reduce__(self) -> tuple[Any, ...]:
        """The buffer, which opens a connection of its own there, and the arguments. `empty` is counted from where it was."""
        generator = None if self._rng is None else (self._rng.get_state(), self._rng.device)
        return _reopened, (type(self), self._buffer, self._arguments, self._transform, generator), self._writer.not_counted

    def __setstate__(self, not_counted: int) -> None:
        self._writer.not_counted = not_counted
        self._owned = True  # The copy's connection is its own.

    def __copy__(self) -> Self:
        return deepcopy(self)  # With a connection of its own, as every copy.

    @property
    def buffer(self) -> RemoteReplayBuffer:
        """The same rows with the methods of tdreplay."""
        return self._buffer

    def share(self, shared: bool = True) -> Self:
        """Does nothing: any process may use a copy of it."""
        self._write_lock = nullcontext()
        return self

    def set_rng(self, generator: torch.Generator | None) -> None:
        """Another generator. Batches that were read ahead are forgotten."""
        super().set_rng(generator)
        self._sampler.begin_anew()

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the buffer stands, without its rows: they are on the server, and stay there while a trainer is saved and started again."""
        state = self._buffer.state()
        stands = {"table": self._buffer.table, "insert_count": state.insert_count, "not_counted": self._writer.not_counted}
        return {**stands, "batch_size": self._batch_size, "transforms": self._transform.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was made. It changes no row: what others have stored since then stays.

        Raises:
            MissingRowsError: The table has seen fewer rows than then: it is another one, or it lost them.
        """
        state = self._buffer.state()
        if state.insert_count < state_dict["insert_count"]:
            raise MissingRowsError(
                f"table {self._buffer.table!r} has seen {state.insert_count} rows, and table {state_dict['table']!r} had seen "
                f"{state_dict['insert_count']} when the state was made: it is another one, or it lost them"
            )
        self._writer.not_counted = state_dict["not_counted"]
        self._batch_size = state_dict["batch_size"]
        self._transform.load_state_dict(state_dict["transforms"])

    def dumps(self, path: str | Path) -> None:
        """Writes `state_dict` as JSON into the directory `path`, which is made where it is not there.

        Raises:
            UnimplementedError: The transforms have a state.
        """
        state = self.state_dict()
        if state.pop("transforms"):
            raise UnimplementedError(TRANSFORMS)
        Path(path).mkdir(exist_ok=True)
        (Path(path) / FILE).write_text(json.dumps(state))

    def loads(self, path: str | Path) -> None:
        """As `load_state_dict`, with what `dumps` wrote."""
        self.load_state_dict({**json.loads((Path(path) / FILE).read_text()), "transforms": {}})

    save = dump = dumps
    load = loads

    # -- the end ------------------------------------------------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = None) -> None:
        """As `close`."""
        super().shutdown(timeout)
        self._sampler.begin_anew()
        if self._owned:
            self._buffer.close()

    def close(self) -> None:
        """Ends the batches that are read ahead, and closes the buffer where it was opened here. Closing twice is allowed. The table stays."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # -- what it refuses ----------------------------------------------------------------------------------------------------------------------

    register_save_hook = register_load_hook = refusing(STATE)
    __setitem__ = write_all = set_ = set_at_ = update_ = update_if_present = submit_update_if_present = refusing(IN_PLACE)
    set_storage = set_writer = set_sampler = refusing(PARTS)


def _reopened(
    kind: type[RemoteTensorDictReplayBuffer],
    buffer: RemoteReplayBuffer,
    arguments: dict[str, Any],
    transform: Any,
    generator: tuple[torch.Tensor, torch.device] | None,
) -> RemoteTensorDictReplayBuffer:
    """The copy of a buffer that was pickled or copied."""
    rng = None
    if generator is not None:
        rng = torch.Generator(device=generator[1])
        rng.set_state(generator[0])
    return kind(buffer, transform=transform, generator=rng, **arguments)


def first_of_each(values: torch.Tensor) -> torch.Tensor:
    """A value of each row, of shape [rows]: system fields of rows that are batches are expanded to them."""
    return values.reshape(len(values), -1)[:, 0]
