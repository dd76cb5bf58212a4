"""Inserts that failed so that nobody knows whether their rows were stored, and how they go out again so that they are stored once."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.errors import ReplayError
from tdreplay.insert_id import InsertId
from tdreplay.schema import Columns, Schema
from tdreplay_client.writing.insert_ids import InsertIds, WriterIds
from tdreplay_client.writing.insert_messages import block_ranges, rows_of, rows_per_block

__all__ = ["Delivery", "Part", "UnacknowledgedInserts"]

MAX_RECORDS = 64
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""How the server says that it stored nothing of a block. After any other end it may have stored it."""


@dataclass(frozen=True)
class Part:
    """The rows of a batch from `start` to `stop`, which travel as the block of that insert id."""

    insert_id: InsertId
    start: int
    stop: int


class Delivery:
    """Rows on their way, the blocks that they were cut into, and what became of these. Acknowledged are always the first ones.

    Args:
        columns: the rows.
        schema: of the rows.
        rows: how many they are.
        done: the first ones, that are acknowledged.
        parts: the next ones, that have numbers.

    Attributes:
        sent: the first ones, that a writer took over, in blocks.
    """

    def __init__(self, columns: Columns, schema: Schema, rows: int, done: int = 0, parts: Iterable[Part] = ()) -> None:
        self.columns, self.schema, self.rows = columns, schema, rows
        self.done, self.parts = done, deque(parts)
        self.sent = done

    @property
    def resumed(self) -> bool:
        """Whether some of the rows went out before."""
        return self.done > 0 or len(self.parts) > 0

    @property
    def in_one_block(self) -> bool:
        """Whether what is left fits into one block, and was not cut before."""
        most = 0 if self.parts else rows_per_block(self.schema)
        return self.rows - self._cut <= most and len(self.parts) <= 1

    @property
    def _cut(self) -> int:
        return self.parts[-1].stop if self.parts else self.done

    def blocks(self, block_bytes: int, insert_ids: InsertIds) -> Iterator[Part]:
        """The blocks that are not acknowledged: those that have numbers, as they are, then the rest, cut to about `block_bytes` and numbered."""
        yield from tuple(self.parts)
        cut = self._cut
        for start, stop in block_ranges(self.schema, self.rows - cut, block_bytes):
            part = Part(insert_ids.next(), cut + start, cut + stop)
            self.parts.append(part)
            yield part

    def batches(self, start: int) -> list[TensorDict]:
        """A copy of the rows from `start` on, if there are any."""
        rest = {name: column[start:].to("cpu", copy=True) for name, column in self.columns.items()}
        return (
            [to_tensordict(rest, (self.rows - start, *self.schema.row_shape), torch.device("cpu"), self.schema.dim_names)]
            if start < self.rows
            else []
        )

    def settle(self) -> None:
        """Notes that all of the rows will be stored: whoever has them sees to it."""
        self.done = self.rows
        self.parts.clear()

    def keep(self) -> None:
        """Copies the rows, which are the user's to change."""
        self.columns = {name: column.to("cpu", copy=True) for name, column in self.columns.items()}

    def has_left(self, columns: Columns, schema: Schema, rows: int) -> bool:
        """Whether what was not sent of these rows are the last ones of those, of which there are as many."""
        same = (schema, rows) == (self.schema, self.rows)
        return same and _digest({name: column[self.sent :] for name, column in self.columns.items()}) == _digest(
            {name: column[self.sent :] for name, column in columns.items()}
        )

    def acknowledge(self) -> Part:
        """Notes that the next block is stored."""
        part = self.parts.popleft()
        self.done = part.stop
        return part


@dataclass(frozen=True)
class _Record:
    """A delivery without its rows: what they are known by, and what became of them."""

    schema: Schema
    rows: int
    digest: bytes
    done: int
    parts: tuple[Part, ...]


class UnacknowledgedInserts:
    """The failed inserts of one buffer, its writers' among them; of more than 64 the last ones.

    Who repeats an insert gives the same rows once more. They go out again cut as they were, under the numbers that they had; what was acknowledged
    does not. They are known by their contents, which are read when an insert failed, and before inserts while there is a failed one of as many rows.

    Attributes:
        writer_ids: of the buffer's inserts.
    """

    def __init__(self) -> None:
        self.writer_ids = WriterIds()
        self._records: deque[_Record] = deque(maxlen=MAX_RECORDS)
        self._lock = threading.Lock()

    def note(self, delivery: Delivery, error: BaseException) -> bool:
        """Keeps what `error` ended; False where there is nothing to keep, because nothing was sent, or the server refused it."""
        if not delivery.resumed or (isinstance(error, ReplayError) and error.code in REFUSALS):
            return False
        digest = _digest(delivery.columns)
        with self._lock:
            self._records.append(_Record(delivery.schema, delivery.rows, digest, delivery.done, tuple(delivery.parts)))
        return True

    def claim(self, columns: Columns, schema: Schema, rows: int) -> Delivery:
        """How these rows go out: as they did before, where they failed, and else afresh."""
        if not self._records or not self._alike(schema, rows):
            return Delivery(columns, schema, rows)
        digest = _digest(columns)
        with self._lock:
            for record in self._records:
                if (record.schema, record.rows, record.digest) == (schema, rows, digest):
                    self._records.remove(record)
                    return Delivery(columns, schema, rows, record.done, record.parts)
        return Delivery(columns, schema, rows)

    def _alike(self, schema: Schema, rows: int) -> bool:
        with self._lock:
            return any((record.schema, record.rows) == (schema, rows) for record in self._records)

    def clear(self) -> None:
        """Forgets them: the table does not hold earlier rows any more."""
        with self._lock:
            self._records.clear()


def _digest(columns: Columns) -> bytes:
    """A digest of rows, whatever device and layout their columns have."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(columns):
        if columns[name].nbytes:
            digest.update(rows_of(columns[name]).view(np.uint8).data)
    return digest.digest()
