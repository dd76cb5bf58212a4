"""Sends the parts of inserts, each to its shard, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.errors import DeadlineError, ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay.rows import Given
from tdreplay.shard_ids import sharded_row_ids
from tdreplay_client.sharding.callers import Callers
from tdreplay_client.sharding.routes import SentPart
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_choice import ShardChoice
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.totals import KnownTotals

__all__ = ["PartSender", "joined"]

MOST_THREADS = 64
"""The most parts of inserts that are sent at once."""
RowIds = npt.NDArray[np.int64]


class PartSender:
    """Sends parts of inserts, and waits until they are stored.

    Args:
        shards: The shards.
        choice: Chooses another shard for a part whose shard is lost.
        totals: What the shards reported: it does not count any more where rows came.
    """

    def __init__(self, shards: ShardSet, choice: ShardChoice, totals: KnownTotals) -> None:
        self._shards, self._choice, self._totals = shards, choice, totals
        self._callers = Callers(MOST_THREADS)  # Of its own: readers must not wait for a lost shard's rows.

    def send(self, rows: Given, parts: Sequence[SentPart], writer_id: str, *, one_first: bool = False) -> RowIds:
        """Sends those parts that are not stored, waits for all, and gives the row ids of all rows.

        With `one_first` no other shard gets any before the first one took its part. An interrupt leaves what is being sent to the next `send`.

        Raises:
            ReplayError: the first error of any part, when all have ended.
        """
        try:
            for part in parts:
                if part.sending is not None and not part.sending.cancel():  # An interrupted call left it. Unless it has begun, it is sent below.
                    _await(part)
                part.sending = None
            if one_first or len(parts) == 1:
                self._store(rows, parts[0], writer_id)
            self._store_each(rows, [part for part in parts if part.row_ids is None], writer_id)
        finally:
            for part in parts:
                self._totals.changed(part.part.number)
                self._choice.settle(part.part.number, part.part.rows(rows.number), None if part.row_ids is None else int(part.row_ids.max()) + 1)
        return joined(parts, rows.number)

    def _store(self, rows: Given, part: SentPart, writer_id: str) -> None:
        if part.row_ids is None:
            part.row_ids = self._stored(rows, part, writer_id)

    def _store_each(self, rows: Given, parts: Sequence[SentPart], writer_id: str) -> None:
        for part in parts:
            part.sending = Future()  # Known before it is sent: an interrupt may come at once.
            self._callers.call(self._stored, rows, part, writer_id, found=part.sending)
        errors = [error for error in map(_await, parts) if error is not None]
        if errors:
            raise errors[0]

    def _stored(self, rows: Given, sent: SentPart, writer_id: str) -> RowIds:
        """The shard's row ids of a part, when it is stored."""
        shard = self._shard_of(sent, sent.part.rows(rows.number))
        sent.may_move = False
        return self._into(shard, _picked(rows, sent.part.places), writer_id)

    def _shard_of(self, sent: SentPart, rows: int) -> Shard:
        """The shard of a part of so many rows; another one where that is lost, and no part of it was sent.

        An open call says that a shard is there. Without one it is asked: once rows are on their way, nobody knows any more whether they are stored.
        """
        while True:
            shard = self._shard(sent.part.number)
            if not sent.may_move or shard.writes.is_connected_for_inserts or _answers(shard):
                return shard
            other = self._choice.place_whole(rows, shard.number)
            if other is None:  # It is waited for.
                return shard
            self._choice.settle(shard.number, rows)
            sent.part = sent.part._replace(number=other)

    def _shard(self, number: int) -> Shard:
        place = self._shards.place_of(number)
        found = self._shards.leaving(number) if place is None else self._shards[place]
        return self._shards[0] if found is None else found

    def _into(self, shard: Shard, rows: Given, writer_id: str) -> RowIds:
        try:
            return shard.writes.insert(rows, writer_id=writer_id)
        except TableNotFoundError:
            if not self._choice.has_table_elsewhere():
                raise
            shard.writes.connect()  # It came back without its data: its table is made again, where this buffer knows how.
            return shard.writes.insert(rows, writer_id=writer_id)

    def answers_still(self, number: int) -> bool:
        """Whether a shard that was removed can still be asked what it stored."""
        shard = self._shards.leaving(number)
        while shard is not None and not _answers(shard):
            shard = self._shards.leaving(number)
        return shard is not None

    def close(self) -> None:
        """Takes no rows any more. Those that are on their way go on."""
        self._callers.close()


def _answers(shard: Shard) -> bool:
    """Whether a shard answers now. One that does not counts as lost."""
    try:
        shard.writes.look(LOSS_SECONDS, create=False)
    except (ServerUnavailableError, DeadlineError) as error:
        shard.lose(error)
        return False
    except ReplayError:  # It does. The insert finds out what is wrong.
        return True
    return True


def _await(part: SentPart) -> BaseException | None:
    """Waits for what another thread sends of a part. Gives the error that it ended with."""
    if part.sending is None:
        return None
    error = part.sending.exception()
    if error is None:
        part.row_ids = part.sending.result()
    part.sending = None
    return error


def _picked(rows: Given, places: npt.NDArray[np.int64] | None) -> Given:
    """The rows at these places; None: all."""
    if places is None or len(places) == rows.number:
        return rows
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    regular = np.array_equal(places, np.arange(places[0], places[0] + step * len(places), step))
    among: Any = slice(int(places[0]), int(places[-1]) + 1, step) if regular else places
    values = {name: column[among] for name, column in rows.columns(None, cast=False).items()}
    return rows._replace(values=values, rows=len(places), priorities=None if rows.priorities is None else rows.priorities[places])


def joined(parts: Sequence[SentPart], rows: int) -> RowIds:
    """The row ids of the whole buffer, int64 of shape [rows], of rows whose parts are stored. Those of rows in none of these parts are any."""
    row_ids = np.empty(rows, np.int64)
    for sent in parts:
        places: Any = slice(None) if sent.part.places is None else sent.part.places
        row_ids[places] = sharded_row_ids(sent.row_ids, sent.part.number)
    return row_ids
