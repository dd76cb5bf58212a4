"""The API of a replay buffer, the same in process and over the wire."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import SupportsIndex

import torch
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.devices import check_device
from tdreplay.limits import check_batch_size, check_flag, check_whole
from tdreplay.metadata import Metadata
from tdreplay.rows import Row
from tdreplay.schema import Schema
from tdreplay.seeds import derived_seed
from tdreplay.selecting import Fields, Index, Slots, as_fields, as_slots, shaped

__all__ = ["BaseReplayBuffer", "Checkpoint", "EpochQuery", "Progress", "State"]

Progress = Callable[[int, int], object]
"""Called with the bytes that are done, and those that there are in all."""


@dataclass(frozen=True)
class State:
    """A buffer at one moment.

    Attributes:
        buffer_size: capacity in rows.
        size: rows stored.
        pointer: slot of the next row.
        write_count: id of the next row; the stored rows are the ids ``[write_count - size, write_count)``. It jumps at a `reset`, and goes back at a
            `load`.
        storing_device: where the rows lie.
        schema: what a row looks like; None while none was ever stored.
        durability: what acknowledged rows survive: none, process, interval or power.
        insert_count: the rows that were ever inserted, each counted once.
    """

    buffer_size: int
    size: int
    pointer: int
    write_count: int
    storing_device: torch.device
    schema: Schema | None
    durability: str = "none"
    insert_count: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole, and on the disk.

    Attributes:
        path: its directory, on the machine that has the rows.
        rows: that are in it.
        write_count: of the buffer at the checkpoint's moment: its rows are the ids ``[write_count - rows, write_count)``.
        bytes: of the rows.
    """

    path: str
    rows: int
    write_count: int
    bytes: int


@dataclass(frozen=True)
class EpochQuery:
    """What `create_epoch_iterator` asks for. Checked when it is made.

    Raises:
        InvalidArgumentError: batch_size, n_epochs or seed is out of its range.
    """

    batch_size: int
    n_epochs: int = 1
    shuffle: bool = False
    seed: int | None = None
    drop_last: bool = False
    fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_whole(self.n_epochs, "n_epochs", 1)
        if self.seed is not None:
            check_whole(self.seed, "seed", 0)


class BaseReplayBuffer(ABC):
    """A ring of ``buffer_size`` rows, each a TensorDict of the same fields.

    The first rows fix the fields' names, dtypes and shapes; rows that differ are refused with `SchemaError` and change nothing. Every batch that a
    method returns lies on `device`, owns its memory, and carries two more fields, both int64 of shape [n]: ``index``, the slots of its rows, and
    ``row_id``, their numbers since the buffer began (expanded to the batch size where rows are batches themselves). All methods may be called from
    several threads.

    Args:
        device: where batches go.
        seed: makes what is drawn at random reproducible, from 0 to 2^63 - 1: call number k of `sample_batch` gives batch number k of the seed. Two
            buffers of the same seed give the same batches as long as they hold the same rows in the same order. None: batches differ in every run.
    """

    def __init__(self, device: torch.device | str, seed: SupportsIndex | None = None) -> None:
        self._device = check_device(device, "device")
        self._seed = None if seed is None else check_whole(seed, "seed", 0)
        self._batches, self._orders = itertools.count(), itertools.count()  # Of the seed: `next` takes a number at once, in any thread.
        self._iterator: Iterator[TensorDict] | None = None

    # -- what an implementation provides ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, row: Row) -> None:
        """Stores one row: a TensorDict without a row dimension, or a dict (nested or not) of tensors, arrays, numbers and lists.

        Its memory is copied. A number takes the dtype of the field, where it is of its kind or a wider one (bool; whole; real; complex) and in its
        range. A tensor or an array has a dtype, which must be the field's. A buffer with ``cast=True`` converts any dtype, where every value keeps
        its meaning: bools are 0 and 1, a whole number stays whole, and a finite one finite; dimensions of 1 may then differ, too. ``index`` and
        ``row_id``, as a sampled batch has them, are left out.

        Raises:
            SchemaError: it differs from the rows before it, a number does not fit, or something would be lost, as an inner batch size would.
            CodecError: a field cannot be stored: non-tensor data, a key with '.', an unknown dtype.
        """

    @abstractmethod
    def add_batch(self, batch: Row) -> None:
        """Stores n rows: a TensorDict of batch size [n, ...], or a dict whose values have a first dimension of n. Its memory is copied.

        Of more than `buffer_size` rows the last ones stay. Values are those that `add` takes.

        Raises:
            SchemaError: the rows differ from those before them, or as in `add`.
            CodecError: a field cannot be stored: non-tensor data, a key with '.', an unknown dtype.
            InvalidArgumentError: there is no batch dimension, or no row.
        """

    @abstractmethod
    def sample_batch(self, batch_size: SupportsIndex, *, seed: SupportsIndex | None = None, wait: bool = False) -> TensorDict:
        """`batch_size` rows drawn uniformly at random, with replacement: a TensorDict of batch size [batch_size, ...].

        Args:
            batch_size: how many rows.
            seed: the same seed gives the same rows, as long as the buffer holds the same ones. None: the buffer's own seed, where it has one.
            wait: for the first row, where there is none: as long as `timeout` of a remote buffer says, in process 30 s.

        Raises:
            EmptyTableError: there is no row.
            InvalidArgumentError: batch_size is below 1 or above `MAX_BATCH_SIZE`, or seed is out of its range.
        """

    @abstractmethod
    def _by_slots(self, slots: Slots, fields: tuple[str, ...] | None) -> TensorDict:
        """The rows in `slots`, of batch size [n, ...], and of their fields those that are named."""

    @abstractmethod
    def sample_all(self) -> TensorDict:
        """Every stored row, in slot order.

        Raises:
            EmptyTableError: there is no row.
        """

    @abstractmethod
    def state(self) -> State:
        """The buffer's state, all of it at the same moment."""

    @abstractmethod
    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """Forgets all rows and their schema, and takes a new capacity where one is given. Row ids go on; the next row lies in slot 0."""

    @abstractmethod
    def checkpoint(self, name: str, *, progress: Progress | None = None) -> Checkpoint:
        """Writes all rows, as they are at one moment, to a directory beside the data, and returns when they are on the disk.

        Other calls go on meanwhile. The checkpoint appears whole or not at all; one of the same name is replaced, at once. The command
        ``tdreplay-server restore`` makes a table of it. (`save` writes no rows: it only notes where the buffer stands.)

        Args:
            name: 1 to 64 letters, digits, '_' or '-'.
            progress: called now and then, from this thread.

        Raises:
            FailedPreconditionError: the buffer has no directory of its own to put it in.
            TableChangedError: the buffer was reset, rewound or dropped meanwhile. There is no new checkpoint then.
            StorageError, ResourceExhaustedError: the disk failed, or is full. The same.
        """

    @abstractmethod
    def _open_epochs(self, query: EpochQuery) -> Iterator[TensorDict]:
        """The batches of `query` over the rows that are stored now."""

    @abstractmethod
    def _rewind(self, metadata: Metadata) -> None:
        """Goes back to where `metadata` was saved, or raises MissingRowsError and changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the buffer holds. Closing twice is allowed."""

    # -- what follows from it -----------------------------------------------------------------------------------------------------------------

    def _next_draw(self, seed: SupportsIndex | None) -> tuple[int, int] | None:
        """What makes the next random batch reproducible: a seed, and the batch's number among those of that seed. None: nothing does."""
        if seed is not None:
            return check_whole(seed, "seed", 0), 0
        return None if self._seed is None else (self._seed, next(self._batches))

    def _next_order(self) -> int | None:
        """The seed of the next random orders; None where the buffer has no seed."""
        return None if self._seed is None else derived_seed(self._seed, next(self._orders))

    def sample_by_index(self, index: Index) -> TensorDict:
        """The rows that `index` names, in that order. A row may come twice.

        Args:
            index: numbers of slots: a list, a range, an array or a tensor of any integer dtype. Of shape [a, b] it gives the batch size [a, b, ...];
                one number alone gives its row, of batch size [...]. Negative numbers count from the end of the stored rows in slot order: -1 is the
                last one. A slice, or a mask of booleans, chooses among the `size` stored rows in slot order; the buffer is asked for its size first.

        Raises:
            SlotIndexError (an IndexError): a number names no stored row; the message says which.
            InvalidArgumentError: the index names no row, or more than `MAX_BATCH_SIZE`; a mask has not `size` elements; or it is something else.
        """
        return self.sample_by_index_fields(index, None)

    def sample_by_index_fields(self, index: Index, fields: Fields | None) -> TensorDict:
        """As `sample_by_index`, but only `fields`.

        Args:
            index: as in `sample_by_index`.
            fields: names: nested keys joined with '.', or as tuples in a list (``[("next", "obs")]``); the name of a parent (``"next"``) stands for
                all fields below it; ``index`` and ``row_id`` come where they are named. None: all fields, and these two.

        Raises:
            FieldNotFoundError: a field is not there, or comes twice, or none is named.
        """
        slots, shape = as_slots(index, self.state)
        return shaped(self._by_slots(slots, as_fields(fields)), shape)

    def sample_random(self, batch_size: SupportsIndex, *, seed: SupportsIndex | None = None, wait: bool = False) -> TensorDict:
        """The same as `sample_batch`."""
        return self.sample_batch(batch_size, seed=seed, wait=wait)

    def create_epoch_iterator(
        self,
        batch_size: SupportsIndex,
        n_epochs: SupportsIndex = 1,
        *,
        shuffle: bool = False,
        seed: SupportsIndex | None = None,
        drop_last: bool = False,
        fields: Fields | None = None,
    ) -> Iterator[TensorDict]:
        """Iterates `n_epochs` times over the rows that are stored now, and makes this the iterator of `get_next_batch`.

        Args:
            batch_size: rows per batch; the last batch of an epoch has the rest.
            n_epochs: how often each row comes, at least 1.
            shuffle: a new random order in every epoch; False: slot order.
            seed: makes the random orders the same for the same number of rows. None: the buffer's own seed does, where it has one.
            drop_last: leaves out the last batch of an epoch where it is partial.
            fields: as in `sample_by_index_fields`; None: all of them.

        A slot that is written meanwhile comes with its newer row, whole.

        Raises:
            EmptyTableError: there is no row.
            InvalidArgumentError: an argument is out of its range.
            TableChangedError: (while iterating) the buffer was reset or rewound.
        """
        size, epochs = check_batch_size(batch_size), check_whole(n_epochs, "n_epochs", 1)
        shuffled, whole = check_flag(shuffle, "shuffle"), check_flag(drop_last, "drop_last")
        order = check_whole(seed, "seed", 0) if seed is not None else self._next_order() if shuffled else None
        self._iterator = self._open_epochs(EpochQuery(size, epochs, shuffled, order, whole, as_fields(fields)))
        return self._iterator

    def get_next_batch(self, batch_size: SupportsIndex) -> TensorDict:
        """The next batch of the current epoch iterator, which has its own batch size; where there is none, a random batch.

        Raises:
            StopIteration: the iterator is at its end, and stays there until another one is created.
        """
        check_batch_size(batch_size)
        return self.sample_batch(batch_size) if self._iterator is None else next(self._iterator)

    def calculate_num_batches(self, batch_size: SupportsIndex) -> int:
        """How many batches one epoch has: size / batch_size, rounded up."""
        return -(-self.size // check_batch_size(batch_size))

    def get_steps_and_iterator(self, n_epochs: SupportsIndex, max_iter: SupportsIndex, batch_size: SupportsIndex) -> int:
        """Prepares a round of training, and says how many times `get_next_batch` is to be called.

        With n_epochs > 0, n_epochs * batches per epoch, and an epoch iterator is created; with 0, max_iter, and batches are random.

        Raises:
            InvalidArgumentError: an argument is out of its range.
            EmptyTableError: n_epochs > 0, and there is no row.
        """
        epochs, steps, size = check_whole(n_epochs, "n_epochs", 0), check_whole(max_iter, "max_iter", 0), check_batch_size(batch_size)
        if epochs == 0:
            self._iterator = None
            return steps
        batches = self.calculate_num_batches(size)
        self.create_epoch_iterator(size, epochs)
        return epochs * batches

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes capacity, size and pointer to ``path + ".metadata"`` on the caller's disk. The rows are not in it."""
        state = self.state()
        Metadata(state.buffer_size, state.size, state.pointer, state.write_count).write(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes back to where `save` wrote ``path + ".metadata"``: rows that were added since are forgotten.

        It brings back no row. The rows that the file speaks of must still be stored; an empty file's capacity is taken by an empty buffer.

        Raises:
            MissingRowsError: some of them are not; the message says which. Nothing changes.
            FileNotFoundError: there is no such file.
            InvalidArgumentError: the file is broken.
        """
        self._rewind(Metadata.read(path))
        self._iterator = None

    @property
    def device(self) -> torch.device:
        """Where batches go. No call."""
        return self._device

    @property
    @abstractmethod
    def storing_device(self) -> torch.device:
        """Where the rows lie. It never changes in the life of a table, so that it is asked for once: reading it costs no call."""

    @property
    def buffer_size(self) -> int:
        """The capacity, in rows. Asked for each time, as all that follows: `reset` changes it, another client's too."""
        return self.state().buffer_size

    @property
    def size(self) -> int:
        """The rows stored."""
        return self.state().size

    @property
    def data_size(self) -> int:
        """The rows stored."""
        return self.size

    @property
    def pointer(self) -> int:
        """The slot of the next row."""
        return self.state().pointer

    @property
    def durability(self) -> str:
        """What stored rows survive: none; process: the death of the process that has them; interval, power: the loss of power, too."""
        return self.state().durability

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
