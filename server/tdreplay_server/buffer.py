"""The replay buffer in process: the API of `tdreplay.api` over TorchRL."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer

from tdreplay.api import BaseReplayBuffer, EpochQuery, Index, State, as_slots
from tdreplay.block import check_header
from tdreplay.columns import from_row, from_rows, to_tensordict
from tdreplay.errors import ClosedError, EmptyTableError, MissingRowsError, TableChangedError
from tdreplay.limits import check_batch_size, check_whole
from tdreplay.memory import Rows
from tdreplay.metadata import Metadata
from tdreplay.schema import INDEX, ROW_ID, Columns, Schema
from tdreplay_server.locks import ReadWriteLock
from tdreplay_server.ring import Ring, Slots
from tdreplay_server.selection import Selection, epoch_orders
from tdreplay_server.storage import Inserts, RowStorage, open_storage
from tdreplay_server.torchrl_parts import RingWriter, UniformSampler

__all__ = ["ReplayBuffer"]

MAX_ROW_ID = 1 << 62
"""Far from where 64 bits end: at a million rows a second a table reaches it after 146,000 years."""


class ReplayBuffer(BaseReplayBuffer):
    """A replay buffer in this process. See `BaseReplayBuffer` for its methods.

    Args:
        device: where batches go: the training device.
        storing_device: where the rows lie: the CPU, in files that are mapped into memory, or a CUDA device.
        buffer_size: the capacity, in rows. The memory is taken when the first rows come.
        directory: for the files; it must not be there yet. None: a temporary one, removed by `close`.

    Raises:
        InvalidArgumentError: buffer_size is below 1, or storing_device is not there.
        FileExistsError: the directory is there already.
    """

    def __init__(
        self,
        device: torch.device | str,
        storing_device: torch.device | str,
        buffer_size: SupportsIndex,
        *,
        directory: Path | None = None,
    ) -> None:
        super().__init__(device)
        size, where = check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID), torch.device(storing_device)
        open_storage(where, size, Path())  # Refuses a device that is not there before a directory is made.
        self._lock = ReadWriteLock()
        self._generation = 0
        self._schema: Schema | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="tdreplay-")) if directory is None else directory
        if directory is not None:
            directory.mkdir(parents=True)
        self._remove = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True) if directory is None else None
        self._closed = False
        self._start(size, where, Ring(size))

    def _start(self, buffer_size: int, storing_device: torch.device, ring: Ring) -> None:
        self._storage: RowStorage = open_storage(storing_device, buffer_size, self._directory / "rows")
        self._storage.ring = ring
        # TorchRL's buffer holds the parts together; the hot paths below go to the parts.
        self._replay = TensorDictReplayBuffer(storage=self._storage, writer=RingWriter(), sampler=UniformSampler())
        self._schema = None

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def add(self, row: TensorDictBase) -> None:
        self._insert(*from_row(row), 1)

    def add_batch(self, batch: TensorDictBase) -> None:
        self._insert(*from_rows(batch), len(batch))

    def _insert(self, columns: Columns, row_shape: tuple[int, ...], rows: int) -> None:
        self.insert(columns, Schema.of(columns, row_shape), rows)

    def insert(self, columns: Inserts, schema: Schema, rows: int) -> int:
        """Copies `rows` rows of `schema` in, and gives the id of the first. They are checked before anything is touched.

        Args:
            columns: field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
            schema: of the rows.
            rows: how many they are.

        Raises:
            SchemaError, CodecError: as in `add_batch`.
        """
        with self._lock.write():
            self._check_open()
            if self._schema is None:
                check_header(schema)
                self._storage.allocate(schema)
                self._schema = schema
            self._schema.check(schema)
            first = self._storage.ring.write_count
            self._write(columns, rows)
            return first

    def _write(self, columns: Inserts, rows: int) -> None:
        try:
            self._replay.writer.write(columns, rows)
        except BaseException:
            self._generation += 1  # The slots that it was to overwrite may be torn: who selected them must not read them.
            raise

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    def sample_batch(self, batch_size: SupportsIndex) -> TensorDict:
        return self._take(self.select_random(check_batch_size(batch_size)))

    def sample_by_index(self, index: Index) -> TensorDict:
        return self._take(self.select_slots(as_slots(index).numpy()))

    def sample_by_index_fields(self, index: Index, fields: Sequence[str]) -> TensorDict:
        return self._take(self.select_slots(as_slots(index).numpy(), fields))

    def sample_all(self) -> TensorDict:
        return self._take(self.select_all())

    def _open_epochs(self, query: EpochQuery) -> Iterator[TensorDict]:
        return map(self._take, self.select_epochs(query))

    def _take(self, selection: Selection) -> TensorDict:
        """The selected rows as a TensorDict on `device`, in memory of its own."""
        slots, names = selection.slots(0, selection.rows), [field.name for field in selection.fields]
        with self._reading(selection) as storage:
            found = storage.select(slots, (name for name in names if name not in (INDEX, ROW_ID)))
            found |= {INDEX: torch.from_numpy(slots), ROW_ID: torch.from_numpy(storage.ring.row_ids(slots))}
        return to_tensordict({name: found[name].to(self._device) for name in names}, (selection.rows, *selection.row_shape), self._device)

    def select_random(self, rows: int, fields: Sequence[str] | None = None) -> Selection:
        """`rows` rows, drawn uniformly with replacement.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            self._schema_of_rows()
            slots, _ = self._replay.sampler.sample(self._storage, rows)
            return self._select(rows, _slices(slots.numpy()), fields)

    def select_slots(self, slots: Slots, fields: Sequence[str] | None = None) -> Selection:
        """The rows in `slots`.

        Raises:
            SlotIndexError: a slot holds no live row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            self._check_open()
            self._storage.ring.check_live(slots)
            return self._select(len(slots), _slices(slots), fields)

    def select_all(self, fields: Sequence[str] | None = None) -> Selection:
        """Every live row, in slot order.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            ring = self._storage.ring
            return self._select(ring.size, lambda start, stop: ring.in_slot_order(np.arange(start, stop)), fields)

    def select_epochs(self, query: EpochQuery) -> Iterator[Selection]:
        """The batches of `query`, over the rows that are live now.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            selection, ring = self._select(0, _slices(np.empty(0, np.int64)), query.fields), self._storage.ring
        return (replace(selection, rows=len(slots), slots=_slices(slots)) for slots in epoch_orders(query, ring))

    def _select(self, rows: int, slots: Callable[[int, int], Slots], fields: Sequence[str] | None) -> Selection:
        schema = self._schema_of_rows()
        return Selection(schema.select(fields), schema.row_shape, rows, slots, self._generation)

    def _schema_of_rows(self) -> Schema:
        self._check_open()
        if self._schema is None or not self._storage.ring.size:
            raise EmptyTableError("the table is empty: there is no row to sample yet")
        return self._schema

    def read(self, selection: Selection, start: int, stop: int, out: dict[str, Rows], *, threads: bool = False) -> None:
        """Copies the rows of `selection` from `start` to `stop` into `out`: those of its fields that have bytes. No row is torn.

        `threads`: several may work on it.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        slots = selection.slots(start, stop)
        index, row_id = out.pop(INDEX, None), out.pop(ROW_ID, None)
        with self._reading(selection) as storage:
            storage.gather(slots, out, threads=threads)
            ring = storage.ring
        if index is not None:
            index.view(np.int64)[:] = slots
        if row_id is not None:
            row_id.view(np.int64)[:] = ring.row_ids(slots)

    @contextmanager
    def _reading(self, selection: Selection) -> Iterator[RowStorage]:
        with self._lock.read():
            if selection.generation != self._generation:
                raise TableChangedError("the table was reset, rewound or dropped while it was read")
            yield self._storage

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        with self._lock.read():
            ring = self._storage.ring
            return State(ring.buffer_size, ring.size, ring.pointer, ring.write_count, self._storage.device, self._schema)

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        with self._lock.write():
            self._check_open()
            self._restart(self._storage.max_size if buffer_size is None else check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID))
        self._iterator = None

    def _restart(self, buffer_size: int) -> None:
        ring, device = self._storage.ring.restart(buffer_size), self._storage.device
        self._storage.discard()
        self._start(buffer_size, device, ring)
        self._generation += 1

    def _rewind(self, metadata: Metadata) -> None:
        self.rewind(metadata.buffer_size, metadata.data_size, metadata.write_count)

    def rewind(self, buffer_size: int, size: int, write_count: int) -> None:
        """Makes the row ids ``[write_count - size, write_count)`` the live rows again; an empty buffer takes the capacity `buffer_size`.

        Raises:
            MissingRowsError: some of those rows are not stored. Nothing changes.
            InvalidArgumentError: a number is out of its range.
        """
        check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID)
        check_whole(write_count, "write_count", 0, MAX_ROW_ID)
        check_whole(size, "size", 0, min(buffer_size, write_count))
        with self._lock.write():
            self._check_open()
            ring = self._storage.ring
            if buffer_size != ring.buffer_size and (size or ring.size):
                raise MissingRowsError(f"buffer_size ({buffer_size}) must be {ring.buffer_size}: a buffer that holds rows keeps its capacity")
            rewound = replace(ring, buffer_size=buffer_size).rewind(size, write_count)
            if buffer_size != ring.buffer_size:
                self._restart(buffer_size)
            self._storage.ring = rewound
            self._generation += 1

    def close(self) -> None:
        """Gives the memory back and removes a temporary directory. Closing twice is allowed; any other call is then a ClosedError."""
        with self._lock.write():
            self._closed = True
            self._generation += 1
            self._storage.release()
        if self._remove is not None:
            self._remove()

    def delete(self) -> None:
        """Closes the buffer and removes its directory."""
        self.close()
        shutil.rmtree(self._directory, ignore_errors=not self._directory.exists())

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the buffer is closed")


def _slices(slots: Slots) -> Callable[[int, int], Slots]:
    return lambda start, stop: slots[start:stop]
