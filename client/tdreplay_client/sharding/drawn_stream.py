"""Streams over shards whose rows leave when they were drawn: nothing is drawn before it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import ClosedError, EmptyTableError, FailedPreconditionError, RateLimitedError
from tdreplay.limits import MAX_INT64
from tdreplay.priorities import Updated
from tdreplay.samplers import Uniform
from tdreplay.system_fields import LOST_SHARDS
from tdreplay.tokens import check_keys, check_same, whole_of
from tdreplay_client.reading.single_batches import Asked
from tdreplay_client.reading.stream import new_priorities
from tdreplay_client.sharding.draw_query import DrawQuery
from tdreplay_client.sharding.draws import Draws
from tdreplay_client.sharding.priority_updates import update_shards
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.stream_plan import StreamPlan
from tdreplay_client.sharding.totals import KnownTotals

__all__ = ["DrawnStream"]

VERSION = 1


class DrawnStream(OfOneProcess, Iterator[TensorDict]):
    """Batches that are drawn one at a time, each when it is asked for, as `sample_batch` does. It has the methods of `ShardedStream`.

    Each shard gives exactly the rows that a batch takes of it, so no row counts as drawn that nobody got.

    Args:
        draws: Draws the batches.
        shards: The shards.
        totals: What they report.
        asked: What a batch is asked to be.
        plan: The rest of it.
        fields: The fields of a batch; None: all of them.
        seed: Of its draws; None: they differ in each run.
    """

    _instead = "it belongs to connections of this process. Give the other process the buffer, and open a stream there"
    shared = False
    gives_at_once = False

    def __init__(
        self, draws: Draws, shards: ShardSet, totals: KnownTotals, asked: Asked, plan: StreamPlan, fields: tuple[str, ...] | None, seed: int | None
    ) -> None:
        self._draws, self._shards, self._totals, self._asked, self._plan = draws, shards, totals, asked, plan
        self._fields, self._seed, self._position = fields, seed, 0
        self._over = False
        self.updated = Updated(0, 0)

    def __next__(self) -> TensorDict:
        self._shards.owner.check()
        if self._over:
            raise StopIteration
        draw = None if self._seed is None else (self._seed, self._position)
        uniform = self._asked.sampler == Uniform.name
        try:
            batch = self._draws.batch(DrawQuery(self._asked.rows, uniform, self._asked.view, draw, wait=self._plan.wait))
        except RateLimitedError:
            raise
        except Exception as error:
            self._over = not (isinstance(error, EmptyTableError) and self._plan.wait)
            raise
        self._position += 1
        return batch if self._fields is None or self._asked.view is not None else self._chosen(batch, self._fields)

    def _chosen(self, batch: TensorDict, fields: tuple[str, ...]) -> TensorDict:
        lost = (LOST_SHARDS,) if self._plan.degrade else ()
        chosen: TensorDict = batch.select(*(tuple(name.split(".")) for name in (*fields, *lost)))
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """As `ShardedStream.state_dict`.

        Raises:
            FailedPreconditionError: the stream has no seed.
        """
        if self._seed is None:
            raise FailedPreconditionError("a stream without a seed has no place: its batches cannot be drawn again. Give it a seed")
        return {**self._settings(), "seed": self._seed, "position": self._position}

    def _settings(self) -> dict[str, Any]:
        view = {} if self._plan.view is None else {"view": self._plan.view.view.to_json()}
        return {"version": VERSION, "table": self._plan.table, "batch_size": self._plan.batch_size, **view}

    def load_state_dict(self, token: Mapping[str, Any]) -> None:
        """As `ShardedStream.load_state_dict`.

        Raises:
            TokenError: it is no token, or one of another table, batch size or view.
        """
        same = self._settings()
        entries = check_keys(token, (*same, "seed", "position"))
        check_same(entries, same)
        self._seed, self._position = whole_of(entries, "seed", 0, MAX_INT64), whole_of(entries, "position", 0, MAX_INT64)

    def update_priorities(self, batch: TensorDictBase, td_error: Any) -> None:
        """As `ShardedStream.update_priorities`, but it waits for the shards."""
        row_ids, priorities = new_priorities(batch, td_error)
        if self._over:
            raise ClosedError("the stream is closed")
        now = update_shards(self._shards, self._totals, row_ids, priorities)
        self.updated = Updated(self.updated.updated + now.updated, self.updated.stale + now.stale)

    @property
    def lost_shards(self) -> int:
        """How many shards did not answer when they were last asked."""
        return sum(not shard.is_there for shard in self._shards)

    def close(self) -> None:
        """Ends the stream. Closing twice is allowed."""
        self._over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
