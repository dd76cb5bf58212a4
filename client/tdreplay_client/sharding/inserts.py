"""Inserts that are waited for, over shards: `add`, `add_batch` and `insert`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt

from tdreplay.errors import RateLimitedError, ReplayError, SchemaError
from tdreplay.priorities import check_weights
from tdreplay.rows import Given
from tdreplay.schema import Columns
from tdreplay.system_fields import EPISODE_ID, LOST_SHARDS, STEP_KIND
from tdreplay_client.sharding.joint_schema import Fitted, JointSchema
from tdreplay_client.sharding.part_sender import PartSender, joined
from tdreplay_client.sharding.routes import Route, Routes, SentPart
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_choice import ShardChoice, ShardPart
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.totals import KnownTotals
from tdreplay_client.transport.refusals import stored_nothing

__all__ = ["ShardedInserts"]

RowIds = npt.NDArray[np.int64]
NO_SHARD = -1
"""Stands for the shard of rows that wait for room."""
PAUSE_SECONDS = 0.02
"""How long is waited before shards without room are asked again."""


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
        self._sender = PartSender(shards, self.choice, totals)
        self.schema = JointSchema(self.choice.schema, cast=cast)

    def insert(self, rows: Given, *, writer_id: str = "") -> RowIds:
        """Stores rows, and gives their row ids of the whole buffer, in the order of the rows. With a writer id all go to the shard of that id.

        Rows whose shard is lost go to another one, unless a key says which shard it is, or they may have been sent: then it is waited for.

        Raises:
            SchemaError, CodecError: they do not fit, or cannot be stored. No shard got any.
            InvalidArgumentError: a priority is too large. The same.
            ReplayError: as those of a table. Some of the rows may be stored. Given again, they are stored once.
        """
        self._shards.check_open()  # In a fork, and behind `close`, no thread would send anything.
        route = self.routes.claim(rows)
        if route is not None:
            return self._again(rows, route, writer_id)
        check_weights(rows.priorities, self._shards.config.sampler)  # Else other shards would have taken their part.
        try:
            fitted = self.schema.fitted(rows)
        except SchemaError as error:
            if self._shards.config.trajectories:
                raise SchemaError(f"{error}: the rows of this table are steps, and trajectory_writer() writes them") from None
            raise
        return self._fresh(rows, fitted, writer_id)

    def _fresh(self, rows: Given, fitted: Fitted, writer_id: str) -> RowIds:
        """Stores rows that fit, and did not fail before. Nothing is called behind the try: an interrupt there would find rows that are forgotten."""
        parts: list[SentPart] = []
        try:
            # Of the first rows one shard says whether it takes them, before another gets any.
            with self.schema.fixing if fitted.is_first else nullcontext():
                if fitted.is_first:
                    fitted = self.schema.fitted(rows)
                parts += self._placed(fitted, rows.number, writer_id)
                row_ids = self._sent(self._as_sent(rows, fitted), parts, writer_id, one_first=fitted.is_first)
                self.schema.confirm(fitted.schema)
        except BaseException as error:
            if parts and not _is_refused(parts, error):
                self.routes.note(rows, parts)
            if isinstance(error, SchemaError):  # A shard has another schema by now.
                self.schema.forget()
            raise
        return row_ids

    def _again(self, rows: Given, route: Route, writer_id: str) -> RowIds:
        """Stores rows that were given before, and failed."""
        try:
            sent = self._as_sent(rows)
            route.parts = [part for before in route.parts for part in self._anew(sent, before, writer_id)]
            row_ids = self._sent(sent, route.parts, writer_id)
        except BaseException as error:
            route.thread, route.is_over = 0, _is_refused(route.parts, error)
            raise
        route.is_over = True  # As the last step, see above.
        return row_ids

    def _sent(self, rows: Given, parts: list[SentPart], writer_id: str, *, one_first: bool = False) -> RowIds:
        """Sends what is not stored, and gives the row ids of all rows. Parts that wait for room are replaced by those that shards let in.

        Errors and `one_first`: as `PartSender.send`.
        """
        until = time.monotonic() + self._shards.timeout
        chosen = [part for part in parts if not part.waits]
        row_ids = self._sender.send(rows, chosen, writer_id, one_first=one_first) if chosen else None
        while (waiting := next((part for part in parts if part.waits), None)) is not None:
            let_in = self._let_in(waiting, rows.number, until)
            at = parts.index(waiting)
            parts[at : at + 1] = let_in
            chosen, row_ids = [part for part in let_in if not part.waits], None
            self._sender.send(rows, chosen, writer_id, one_first=one_first)
        return joined(parts, rows.number) if row_ids is None else row_ids

    def _let_in(self, waiting: SentPart, rows: int, until: float) -> list[SentPart]:
        """The parts of rows that wait, once shards let some of them in, and last those that wait on.

        Raises:
            RateLimitedError: no shard lets any in by this time.
        """
        places = np.arange(rows) if waiting.part.places is None else waiting.part.places
        while True:
            try:
                found = self.choice.place_in_room(len(places))
                break
            except RateLimitedError:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE_SECONDS)
        taken = np.concatenate([np.arange(len(places)) if part.places is None else part.places for part in found])
        parts = [SentPart(ShardPart(part.number, places[part.places]), may_move=True) for part in found]
        rest = np.delete(places, taken)
        return [*parts, SentPart(ShardPart(NO_SHARD, rest), waits=True)] if len(rest) else parts

    def _as_sent(self, rows: Given, fitted: Fitted | None = None) -> Given:
        """Rows whose values have dtypes, those of the schema. An error of a writer may have added the field ``priority`` to such as have them.

        A batch that was put back says how many shards were lost, which no server knows.
        """
        if rows.typed and not self.schema.cast and LOST_SHARDS not in rows.values:
            return rows
        return rows._replace(values=(fitted or self.schema.fitted(rows)).columns, rows=rows.number)

    def _placed(self, fitted: Fitted, rows: int, writer_id: str) -> Sequence[SentPart]:
        """The parts of rows, and their shards."""
        if writer_id:
            return [SentPart(ShardPart(self.choice.by_key(writer_id)))]
        if self._are_steps(fitted.columns):
            return [SentPart(part) for part in self.choice.by_episode(fitted.columns[EPISODE_ID.name].reshape(rows).cpu().numpy())]
        if rows and self.choice.may_wait:
            return [SentPart(ShardPart(NO_SHARD), waits=True)]
        return [SentPart(part, may_move=True) for part in self.choice.place(rows)]

    def _are_steps(self, columns: Columns) -> bool:
        """Whether an episode's rows are to stay together. Rows of a table without trajectories may have fields of the same names."""
        return bool(self._shards.config.trajectories) and STEP_KIND.name in columns and EPISODE_ID.name in columns

    def _anew(self, rows: Given, sent: SentPart, writer_id: str) -> Sequence[SentPart]:
        """A part that goes out again: what is known of it. Where its shard was removed, and does not answer any more, others get it."""
        number, places = sent.part
        if sent.waits or sent.row_ids is not None or self._shards.place_of(number) is not None or self._sender.answers_still(number):
            return [sent]
        columns = rows.columns(None, cast=False)
        if writer_id or not self._are_steps(columns):
            other = self.choice.by_key(writer_id) if writer_id else self.choice.place(1)[0].number
            return [SentPart(ShardPart(other, places))]
        among = np.arange(rows.number) if places is None else places
        episodes = columns[EPISODE_ID.name].reshape(rows.number).cpu().numpy()[among]
        return [SentPart(ShardPart(part.number, among[part.places])) for part in self.choice.by_episode(episodes)]

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
        self.choice.note_written()
        self._totals.changed(shard.number)

    def close(self) -> None:
        """Takes no rows any more. Those that are on their way go on."""
        self._sender.close()

    def forget(self) -> None:
        """Forgets what is known of rows and schema: the tables do not hold earlier rows any more."""
        self.schema.forget()
        self.routes.clear()
        self.choice.forget()


def _is_refused(parts: Sequence[SentPart], error: BaseException) -> bool:
    """Whether none of the rows of an insert is stored: the only shard refused it, or all wait for room."""
    if all(part.waits for part in parts):
        return True
    return len(parts) == 1 and parts[0].row_ids is None and isinstance(error, ReplayError) and stored_nothing(error)
