"""What can be counted of a table without taking its lock."""

from __future__ import annotations

from typing import NamedTuple

from tdreplay.priorities import Updated
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.system.counting import Counted
from tdreplay_server.tables.activity import Checkpoints
from tdreplay_server.tables.limiters import WaitState
from tdreplay_server.tables.sampling import Sampling

__all__ = ["TableCounts", "counted"]


class TableCounts(NamedTuple):
    """The numbers of a table, of about one moment.

    Attributes:
        rows, capacity: The rows that are stored, and the slots that there are for them.
        leased: The rows of batches on their way to learners.
        inserted, sampled: The rows that were inserted, and those that learners took in random batches, since the table was opened.
        inserted_bytes, sent_bytes, epochs, checkpoints, sampled_ages, updated_ages: As in `Activity`.
        priorities: The priorities that were updated, and those that were stale.
        inserts, samples: How each side waits.
        commits, flushes: The seconds that transactions of the journal took, and that rows took to the disk.
    """

    rows: int
    capacity: int
    leased: int
    inserted: int
    sampled: int
    inserted_bytes: int
    sent_bytes: int
    epochs: int
    checkpoints: Checkpoints
    sampled_ages: Counted
    updated_ages: Counted
    priorities: Updated
    inserts: WaitState
    samples: WaitState
    commits: Counted
    flushes: Counted


def counted(log: RowLog, sampling: Sampling) -> TableCounts:
    """The numbers of a table. Nobody waits for whoever counts, and that one waits for no insert, reset or flush: it takes no lock of the rows."""
    ring, activity = log.ring, sampling.activity  # The ring is of one moment: whoever moves it puts another one in its place.
    inserts, samples = sampling.limiter.waits()
    return TableCounts(
        rows=ring.size,
        capacity=ring.buffer_size,
        leased=sampling.limiter.rows_reserved,
        inserted=sampling.rows_inserted.total,
        sampled=sampling.rows_drawn.total,
        inserted_bytes=activity.inserted_bytes,
        sent_bytes=activity.sent_bytes.value,
        epochs=activity.epochs.value,
        checkpoints=activity.checkpoints,
        sampled_ages=activity.sampled_ages.read(),
        updated_ages=activity.updated_ages.read(),
        priorities=sampling.updated,
        inserts=inserts,
        samples=samples,
        commits=log.commit_seconds.read(),
        flushes=log.flush_seconds.read(),
    )
