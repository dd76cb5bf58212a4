"""Streams over shards whose rows leave when they were drawn: nothing is drawn before it is taken."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
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
from tdreplay_client.sharding.drawing import Drawing
from tdreplay_client.sharding.draws import Draws
from tdreplay_client.sharding.priority_updates import update_shards
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.stream_plan import StreamPlan
from tdreplay_client.sharding.totals import KnownTotals
from tdreplay_client.transport.threads import start_reader

__all__ = ["DrawnStream"]

LOOK_SECONDS = 0.1
"""How often the thread that draws is looked after. What it draws is there at once."""
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
        self._come: deque[tuple[TensorDict, Drawing] | Exception] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._drawing = threading.Thread()  # None that runs.

    def __next__(self) -> TensorDict:
        self._shards.owner.check()
        come: tuple[TensorDict, Drawing] | Exception | None = None
        try:
            while not self._come:
                if not self._drawing.is_alive() and not self._come:
                    if self._over:
                        raise StopIteration
                    self._drawing = start_reader(self._draw)
                with suppress(queue.Empty):
                    self._bell.get(timeout=LOOK_SECONDS)
            come = self._come.popleft()
            if isinstance(come, Exception):
                raise come
            batch, drawing = come
            start_reader(partial(drawing.end_leases, taken=True)).join()  # An interrupt of half of it would give rows to others, too.
            self._position += 1
            return batch
        except Exception:
            raise
        except BaseException:  # An interrupt: nobody got the batch, whose rows may have left the shards. The next call gives it.
            if come is not None:
                self._come.appendleft(come)
            raise

    def _draw(self) -> None:
        """In a thread that no interrupt reaches: draws a batch, or notes why there is none."""
        draw = None if self._seed is None else (self._seed, self._position)
        uniform = self._asked.sampler == Uniform.name
        try:
            batch, drawing = self._draws.leased_batch(DrawQuery(self._asked.rows, uniform, self._asked.view, draw, wait=self._plan.wait))
            chosen = batch if self._fields is None or self._asked.view is not None else self._chosen(batch, self._fields)
            self._come.append((chosen, drawing))
        except Exception as error:  # noqa: BLE001 - the thread that takes batches raises it.
            may_come = isinstance(error, RateLimitedError) or (isinstance(error, EmptyTableError) and self._plan.wait)
            self._over |= not may_come
            self._come.append(error.with_traceback(None))
        self._bell.put(None)

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
        """Ends the stream. A batch that was drawn and that nobody took is given back. Closing twice is allowed."""
        self._over = True
        while self._come:
            come = self._come.popleft()
            if not isinstance(come, Exception):
                come[1].end_leases(taken=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
