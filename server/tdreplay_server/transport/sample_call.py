"""A Sample call: what the client's messages say while batches are drawn and sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import LEAST_SHARED_BYTES, MOST_SHARED_BYTES, check_number, check_whole
from tdreplay.priorities import Updated, checked_priorities, checked_row_ids
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.durability.insert import Priorities
from tdreplay_server.storage.ring import RowIds
from tdreplay_server.tables.leases import Drawn, SentBatches
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.credits import Credits
from tdreplay_server.transport.encoding import Outgoing

__all__ = ["DrawBatches", "SampleCall", "draw_head", "read_ahead", "updated"]

MOST_SEGMENTS = MOST_SHARED_BYTES // LEAST_SHARED_BYTES
"""The most segments of shared memory that a call can have."""
MOST_NAMED = 1024
"""The most batches that a client may name before they are sent."""
NOTHING = np.empty(0, np.uint8)

DrawBatches: TypeAlias = "Callable[[int, Any], Drawn]"
"""How many batches, and the `NextBatch` that the one is, or None -> up to so many batches."""


class SampleCall:
    """The batches of one Sample call, as they are drawn, and what its client says of them.

    Args:
        table: Where they are drawn.
        query: The first message of the call.
        draw: Draws them.
    """

    def __init__(self, table: Table, query: Any, draw: DrawBatches) -> None:
        self._table, self._query, self._draw = table, query, draw
        self._sent, self._updated = SentBatches(), Updated(0, 0)
        self._has_credits, self._has_names = query.credits > 0, False

    def note(self, head: Any) -> None:
        """Acts on a further message: batches that the learner has taken, and updates of priorities.

        Raises:
            ReplayError: it says what cannot be.
        """
        self._check_named(head)
        if len(head.placed) and not self._query.HasField("client_memory"):
            raise InvalidArgumentError(f"placed ({len(head.placed)} parts of batches): the call has no client_memory to which they could be written")
        if head.taken:
            self._sent.taken(head.taken)
        if head.updates:
            done = updated(self._table, head.updates)
            self._updated = Updated(self._updated.updated + done.updated, self._updated.stale + done.stale)

    def _check_named(self, head: Any) -> None:
        """Passes where the batches that a message names can be asked for."""
        self._has_credits |= head.credits > 0
        self._has_names |= len(head.next) > 0
        if self._has_credits and self._has_names:
            raise InvalidArgumentError("next and credits: a call names its batches or grants credits for them, and this one does both")
        check_whole(len(head.next), "the number of batches in next", 0, MOST_NAMED)
        for batch in head.next:
            check_whole(batch.rows, "rows of a batch in next", 1, self._query.batch_size)
            check_number(batch.wait_seconds, "wait_seconds", 0)
            check_whole(batch.seed, "seed", 0)
            check_whole(batch.batch, "batch", 0)

    def batches(self, flow: Credits, most: int) -> Iterator[Outgoing]:
        """The batches, as many at once as are granted, and at most `most`."""
        while granted := flow.granted(most):
            rows = self._query.batch_size if granted.named is None else granted.named.rows
            selection, leases = self._draw(*granted)
            drawn = selection.rows // rows
            flow.give_back(granted.batches - drawn)
            if self._query.leases_make_room:
                for lease in leases:
                    lease.make_room()
            self._sent.sent(leases, drawn)
            yield Outgoing(selection, rows, self.head(selection))
            if not self._query.says_taken:
                self._sent.all_taken()

    def head(self, selection: Any) -> dict[str, Any]:
        """What a message says of the draw of its batches, and of the client's updates so far."""
        head = draw_head(self._query, selection)
        return head | self._updated._asdict() if self._query.knows_priorities else head

    def close(self) -> None:
        """Gives back what the learner has not taken."""
        self._sent.close()


def draw_head(query: Any, selection: Any) -> dict[str, Any]:
    """What a message says of the draw of its batches: what its client wants to know, and what belongs to rows that say how each was drawn."""
    drawn, head = selection.chosen, dict[str, Any]()
    if query.knows_priorities and selection.is_described:
        head |= {"table_size": drawn.totals.rows, "min_probability": drawn.min_probability}
    if query.wants_totals:
        head["totals"] = drawn.totals._asdict()
    return head


def updated(table: Table, updates: Sequence[pb.PriorityUpdate]) -> Updated:
    """What became of updates of priorities, of which there is one at least. They are made at once, which costs less than one after the other.

    Of equal ids the last one counts, in whichever update it is.

    Raises:
        ReplayError: one of them cannot be. No priority changed.
    """
    found = [_checked(update) for update in updates]
    row_ids, priorities = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    return table.update_priorities(row_ids, priorities)


def _checked(update: pb.PriorityUpdate) -> tuple[RowIds, Priorities]:
    row_ids = checked_row_ids(update.row_ids)
    check_whole(len(update.priorities), "the number of priorities", len(row_ids), len(row_ids))
    return row_ids, checked_priorities(update.priorities, len(row_ids))


def read_ahead(requests: Iterator[Request], note: Callable[[Any], object]) -> Iterator[Request]:
    """What the requests say, which a thread of its own reads as they come, and notes at once. Several that came meanwhile are given as one.

    So the client is heard while the call waits: what the call waits for may follow from what the client says.
    """
    heard = _Heard()
    threading.Thread(target=_read, args=(requests, note, heard), name="tdreplay-requests", daemon=True).start()
    return iter(heard.next, None)


class _Heard:
    """What a client said that the call did not act on yet. It does not grow, however many messages come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._said: Request | None = None
        self._error: Exception | None = None
        self._over = False

    def add(self, head: Any) -> None:
        """Adds the credits, the named batches and the segments of a message.

        Raises:
            InvalidArgumentError: credits are negative, or there are more segments than a call has, or more batches than may wait.
        """
        with self._changed:
            said = pb.SampleRequest() if self._said is None else self._said.head
            granted = check_whole(said.credits + check_whole(head.credits, "credits", 0), "credits", 0)
            check_whole(len(said.released_slots) + len(head.released_slots), "the number of released_slots", 0, MOST_SEGMENTS)
            check_whole(len(said.next) + len(head.next), "the number of batches in next that were not sent yet", 0, MOST_NAMED)
            said.credits = granted
            said.released_slots.extend(head.released_slots)
            said.next.extend(head.next)
            self._said = Request(said, NOTHING)
            self._changed.notify()

    def end(self, error: Exception | None) -> None:
        """Nothing more comes. `error`: what `next` raises after what came before."""
        with self._changed:
            self._error, self._over = error, True
            self._changed.notify()

    def next(self) -> Request | None:
        """All that came since the last time, as one message. Waits until there is something; None: the client says no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._said is not None or self._over)
            said, self._said = self._said, None
            if said is None and self._error is not None:
                raise self._error
            return said


def _read(requests: Iterator[Request], note: Callable[[Any], object], heard: _Heard) -> None:
    try:
        for request in requests:
            note(request.head)
            heard.add(request.head)
    except Exception as error:  # noqa: BLE001 - the thread of the call raises it.
        heard.end(error)
    else:
        heard.end(None)
