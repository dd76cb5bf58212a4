"""Which rows of a ring are live. Arithmetic alone: no memory, no lock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tdreplay.errors import FailedPreconditionError, MissingRowsError, SlotIndexError
from tdreplay.limits import MAX_INT64, MAX_ROW_ID, check_whole
from tdreplay.selecting import Slots, in_slot_order

__all__ = ["Ring", "RowIds", "Slots", "check_window", "slot_ranges"]

RowIds = npt.NDArray[np.int64]
"""Row ids: shape [n]."""

SMALL_JUMP = 1 << 32
"""By so many a reset may always take the row ids forward."""


@dataclass(frozen=True)
class Ring:
    """A ring of `buffer_size` slots. Row `row_id` lies in slot ``row_id % buffer_size``; the live rows are the ids ``[oldest, write_count)``.

    A write goes in two steps: `retire` takes the slots' old rows out of the window, then the new rows are copied, then `commit` takes them in.
    So a write that breaks in between leaves no half-written row behind.

    Attributes:
        buffer_size: the slots.
        oldest: the id of the oldest live row.
        write_count: the id of the next row.
        insert_offset: how many more rows were ever inserted than `write_count` says. Only a jump of the ids changes it.
    """

    buffer_size: int
    oldest: int = 0
    write_count: int = 0
    insert_offset: int = 0

    @property
    def size(self) -> int:
        """The live rows."""
        return self.write_count - self.oldest

    @property
    def insert_count(self) -> int:
        """The rows that were ever inserted."""
        return self.write_count + self.insert_offset

    @property
    def pointer(self) -> int:
        """The slot of the next row."""
        return self.write_count % self.buffer_size

    def retire(self, rows: int) -> Ring:
        """The ring without the rows that the next `rows` rows are going to overwrite."""
        oldest = min(max(self.oldest, self.write_count + rows - self.buffer_size), self.write_count)
        return Ring(self.buffer_size, oldest, self.write_count, self.insert_offset)  # Not `replace`, which takes three times as long.

    def commit(self, rows: int) -> Ring:
        """The ring with the next `rows` rows, of which at most `buffer_size` are live.

        Raises:
            FailedPreconditionError: there are no more ids.
        """
        written = self.write_count + rows
        if written > MAX_INT64:
            raise FailedPreconditionError(f"the next {rows} rows would get ids from {self.write_count} on, and the last is {MAX_INT64 - 1}")
        return Ring(self.buffer_size, max(self.oldest, written - self.buffer_size), written, self.insert_offset)

    def restart(self, buffer_size: int) -> Ring:
        """An empty ring of that capacity, whose next row lies in slot 0 and has a higher id than every row before.

        Raises:
            InvalidArgumentError: the capacity is so large that the ids would jump to where they end.
        """
        start = -(-self.write_count // buffer_size) * buffer_size
        most = max(MAX_ROW_ID + MAX_ROW_ID // 2, self.write_count + SMALL_JUMP)
        check_whole(start, f"the next row id after a reset to buffer_size {buffer_size}", 0, min(most, MAX_INT64))
        return Ring(buffer_size, start, start, self.insert_count - start)

    def rewind(self, size: int, write_count: int) -> Ring:
        """The ring whose live rows are the ids ``[write_count - size, write_count)``.

        Raises:
            MissingRowsError: some of them are not live; the message says which.
        """
        first = write_count - size
        if size and (first < self.oldest or write_count > self.write_count):
            missing = f"[{first}, {write_count})" if not self.size else f"outside [{self.oldest}, {self.write_count})"
            raise MissingRowsError(
                f"the rows of ids [{first}, {write_count}) must be stored, and those {missing} are missing; no row is brought back"
            )
        return replace(self, oldest=first, write_count=write_count, insert_offset=self.insert_count - write_count)

    def in_slot_order(self, positions: Slots) -> Slots:
        """The slots at some positions of the live slots in ascending order; position 0 is the lowest live slot."""
        return in_slot_order(positions, self.buffer_size, self.oldest, self.size)

    def row_ids(self, slots: Slots) -> RowIds:
        """The ids of the rows in live `slots`."""
        newest = self.write_count - 1
        return newest - (newest - slots) % self.buffer_size

    def check_live(self, slots: Slots) -> None:
        """Passes where every slot holds a live row.

        Raises:
            SlotIndexError: names the first slot that does not.
        """
        live = (slots >= 0) & (slots < self.buffer_size)
        if self.size < self.buffer_size:
            live &= self.row_ids(slots) >= self.oldest
        if not live.all():
            slot = int(slots[~live][0])
            raise SlotIndexError(f"index {slot} holds no row: the buffer has {self.size} rows in its {self.buffer_size} slots")


def check_window(buffer_size: int, size: int, write_count: int) -> None:
    """Passes where a ring of that capacity can hold the row ids ``[write_count - size, write_count)``.

    Raises:
        InvalidArgumentError: a number is out of its range.
    """
    check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID)
    check_whole(write_count, "write_count", 0, MAX_ROW_ID)
    check_whole(size, "size", 0, min(buffer_size, write_count))


def slot_ranges(row_id: int, rows: int, buffer_size: int) -> list[tuple[int, int]]:
    """The slots of `rows` rows, at most `buffer_size`, of which the first has that id: [start, stop), and a second range where the ring wraps."""
    start = row_id % buffer_size
    stop = start + rows
    return [(start, stop)] if stop <= buffer_size else [(start, buffer_size), (0, stop - buffer_size)]
