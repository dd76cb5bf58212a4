"""Inserts that are waited for, over shards: `add`, `add_batch` and `insert`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.errors import ReplayError, SchemaError, TableNotFoundError
from tdreplay.rows import Given
from tdreplay.shard_ids import sharded_row_ids
from tdreplay.system_fields import EPISODE_ID, STEP_KIND
from tdreplay_client.sharding.joint_schema import Fitted, JointSchema
from tdreplay_client.sharding.routes import Routes, SentPart
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_choice import ShardChoice, ShardPart
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.totals import KnownTotals
from tdreplay_client.transport.refusals import stored_nothing

__all__ = ["ShardedInserts"]

MOST_THREADS = 64
"""The most parts of inserts that are sent at once."""
RowIds = npt.NDArray[np.int64]


class ShardedInserts:
    """Inserts rows into shards, and knows rows again whose insert failed.

    Attributes:
        choice: Chooses the shards.
        schema: What all shards' rows have.
        routes: The inserts that failed, those of writers among them.

    Args:
        shards: The shards.
        rule: How they are chosen.
        totals: What the shards reported: it does not count any more where rows came.
        cast: Whether values of other dtypes are converted.
    """

    def __init__(self, shards: ShardSet, rule: str, totals: KnownTotals, *, cast: bool) -> None:
        self._shards, self._totals = shards, totals
        self.choice, self.routes = ShardChoice(shards, rule), Routes()
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="tdreplay-insert")  # Readers must not wait for a lost shard's rows.
        self.schema = JointSchema(self.choice.schema, cast=cast)

    def insert(self, rows: Given, *, writer_id: str = "") -> RowIds:
        """Stores rows, and gives their row ids of the whole buffer, in the order of the rows. With a writer id all go to the shard of that id.

        Raises:
            SchemaError, CodecError: they do not fit, or cannot be stored. No shard got any.
            ReplayError: as those of a table. Some of the rows may be stored. Given again, they are stored once.
        """
        parts = self.routes.claim(rows)
        if parts is not None:
            return self._sent(rows, self._as_sent(rows), [self._anew(part) for part in parts], writer_id)
        fitted = self.schema.fitted(rows)
        if not fitted.is_first:
            return self._fitting(rows, fitted, writer_id)
        with self.schema.fixing:  # One shard says whether it takes the first rows, before another gets any.
            return self._fitting(rows, self.schema.fitted(rows), writer_id)

    def _fitting(self, rows: Given, fitted: Fitted, writer_id: str) -> RowIds:
        """Stores rows that fit."""
        parts = [SentPart(part) for part in self._placed(fitted, rows.number, writer_id)]
        try:
            row_ids = self._sent(rows, self._as_sent(rows, fitted), parts, writer_id, one_first=fitted.is_first)
        except SchemaError:  # A shard has another schema by now.
            self.schema.forget()
            raise
        self.schema.confirm(fitted.schema)
        return row_ids

    def _as_sent(self, rows: Given, fitted: Fitted | None = None) -> Given:
        """Rows whose values have dtypes, those of the schema. An error of a writer may have added the field ``priority`` to such as have them."""
        if rows.typed and not self.schema.cast:
            return rows
        return rows._replace(values=(fitted or self.schema.fitted(rows)).columns, rows=rows.number)

    def _placed(self, fitted: Fitted, rows: int, writer_id: str) -> Sequence[ShardPart]:
        if writer_id:
            return [ShardPart(self.choice.by_key(writer_id))]
        if STEP_KIND.name in fitted.columns and EPISODE_ID.name in fitted.columns:
            return self.choice.by_episode(fitted.columns[EPISODE_ID.name].reshape(rows).cpu().numpy())
        return self.choice.place(rows)

    def _anew(self, sent: SentPart) -> SentPart:
        """A part that goes out again: what is known of it. Where its shard was removed, another one gets it."""
        if sent.row_ids is None and self._shards.place_of(sent.part.number) is None:
            return SentPart(sent.part._replace(number=self.choice.place(1)[0].number))
        return sent

    def _sent(self, given: Given, rows: Given, parts: Sequence[SentPart], writer_id: str, *, one_first: bool = False) -> RowIds:
        """Sends the parts of what was `given`, all at once, and waits for all."""
        try:
            for part in parts:
                _await_left(part)
            if one_first or len(parts) == 1:
                self._store(rows, parts[0], writer_id)
            self._store_each(rows, [part for part in parts if part.row_ids is None], writer_id)
        except BaseException as error:
            some = len(parts) > 1 or parts[0].row_ids is not None
            if some or not (isinstance(error, ReplayError) and stored_nothing(error)):
                self.routes.note(given, parts)
            raise
        finally:
            for part in parts:
                self._totals.changed(part.part.number)
                self.choice.settle(part.part.number, part.part.rows(rows.number), None if part.row_ids is None else int(part.row_ids.max()) + 1)
        return _joined(parts, rows.number)

    def _store(self, rows: Given, part: SentPart, writer_id: str) -> None:
        if part.row_ids is None:
            part.row_ids = self._stored(rows, part, writer_id)

    def _store_each(self, rows: Given, parts: Sequence[SentPart], writer_id: str) -> None:
        for part in parts:
            part.sending = self._threads.submit(self._stored, rows, part, writer_id)
        errors = [error for error in map(_await_left, parts) if error is not None]
        if errors:
            raise errors[0]

    def _stored(self, rows: Given, sent: SentPart, writer_id: str) -> RowIds:
        """The shard's row ids of a part, when it is stored."""
        return self._into(self._shard(sent.part.number), _picked(rows, sent.part.places), writer_id)

    def _into(self, shard: Shard, rows: Given, writer_id: str) -> RowIds:
        try:
            return shard.writes.insert(rows, writer_id=writer_id)
        except TableNotFoundError:
            if not self.choice.has_table_elsewhere():
                raise
            shard.writes.connect()  # It came back without its data: its table is made again, where this buffer knows how.
            return shard.writes.insert(rows, writer_id=writer_id)

    def _shard(self, number: int) -> Shard:
        place = self._shards.place_of(number)
        return self._shards[0 if place is None else place]

    def fit(self, rows: Given) -> None:
        """Checks the first rows of a writer. If no shard has a schema, theirs is that of all from now on.

        Raises:
            SchemaError, CodecError: they do not fit, or cannot be stored.
        """
        with self.schema.fixing:
            self.schema.promise(self.schema.fitted(rows).schema)

    def is_removed(self, shard: Shard) -> bool:
        """Whether it is none of the buffer's shards any more."""
        return shard.number in self._shards.removed

    def note_stored(self, shard: Shard) -> None:
        """Notes that a writer stored rows there."""
        self.schema.confirm()
        self._totals.changed(shard.number)

    def close(self) -> None:
        """Takes no rows any more. Those that are on their way go on."""
        self._threads.shutdown(wait=False)

    def forget(self) -> None:
        """Forgets what is known of rows and schema: the tables do not hold earlier rows any more."""
        self.schema.forget()
        self.routes.clear()
        self.choice.forget()


def _await_left(part: SentPart) -> BaseException | None:
    """Waits for what another thread sends of a part, maybe for a call that was interrupted. Gives the error that it ended with."""
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


def _joined(parts: Sequence[SentPart], rows: int) -> RowIds:
    row_ids = np.empty(rows, np.int64)
    for sent in parts:
        places: Any = slice(None) if sent.part.places is None else sent.part.places
        row_ids[places] = sharded_row_ids(sent.row_ids, sent.part.number)
    return row_ids
