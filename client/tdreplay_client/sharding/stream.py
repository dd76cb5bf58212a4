"""Streams over several shards: batches whose rows each come from the shard that a draw over all of them says."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import ClosedError, DeadlineError, EmptyTableError, FailedPreconditionError, RateLimitedError, ServerUnavailableError
from tdreplay.limits import MAX_INT64
from tdreplay.priorities import Updated
from tdreplay.processes import Owner
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay.tokens import check_keys, check_same, whole_of
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.stream import new_priorities
from tdreplay_client.sharding.joining import LOST_SHARDS
from tdreplay_client.sharding.keeper import Keeper
from tdreplay_client.sharding.mixing import Given, drawn_places, mixed
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.recycled_memory import RecycledMemory
from tdreplay_client.sharding.supply import Supply
from tdreplay_client.transport.threads import start_reader

__all__ = ["ShardedStream", "StreamPlan"]

JOIN_SECONDS = 5.0
VERSION = 1
"""Of the tokens of streams over shards."""


class StreamPlan(NamedTuple):
    """What a stream is asked to be.

    Attributes:
        table: The table's name.
        batch_size: Rows of a batch.
        view: What is made of the windows of a batch; None: the rows come as they are.
        wait: Whether a batch waits while all shards are empty.
        degrade: Whether it goes on without shards that are lost.
        timeout: The most seconds that a batch waits.
    """

    table: str
    batch_size: int
    view: TableView | None
    wait: bool
    degrade: bool
    timeout: float


class _Ready(NamedTuple):
    """A batch that was put together.

    Attributes:
        batch: On its device.
        taken: How many rows it has of each shard, by the shard's number, where the stream has a seed.
        lost: How many shards were not drawn from.
    """

    batch: TensorDict
    taken: Mapping[int, int]
    lost: int


class ShardedStream(OfOneProcess, Iterator[TensorDict]):
    """Batches of a buffer over several shards, on the training device. The next draws are on their way while a batch is used.

    See `BatchStream`, whose methods it has. Each row of a batch comes from a shard that is drawn in proportion to what the shards last said of their
    rows, or of their rows' priorities, and is a draw of that shard; the rows come in random order over shards. What the shards say comes with their
    draws; a shard of which nothing came is asked ten times a second while batches are taken.

    Args:
        plan: What it is asked to be.
        transfer: Brings batches to the device.
        streams: Opens the shards' streams, and knows the seed.
        keeper: Keeps what the shards give. The stream ends it.

    Raises:
        EmptyTableError: no shard has a row, and the stream does not wait.
        ReplayError: a shard refused it, or is lost.
    """

    _instead = "it belongs to connections of this process. Give the other process the buffer, and open a stream there"

    def __init__(self, plan: StreamPlan, transfer: DeviceTransfer, streams: PullStreams, keeper: Keeper) -> None:
        self._plan, self._transfer, self._streams, self._keeper = plan, transfer.for_view(plan.view), streams, keeper
        self._memory = RecycledMemory(transfer)
        self._position = 0
        self._rng = np.random.Generator(np.random.SFC64())
        self._ready: deque[_Ready] = deque()
        self._drawn = 0  # Batches that were put together: the number of the next one.
        self._taken: dict[int, int] = {}  # Rows of each shard in the batches that were handed out.
        self._over = False
        self._taking = threading.Lock()
        self._owner = Owner("the stream")
        self._end: Callable[[], object] = weakref.finalize(self, keeper.close)
        try:
            keeper.open()
            if not plan.wait and not any(supply.is_open for supply in keeper.supplies):
                raise EmptyTableError("the buffer is empty: no shard has a row to read yet")
            self._thread = start_reader(keeper.run)
        except BaseException:
            self._end()
            raise

    # -- batches ------------------------------------------------------------------------------------------------------------------------------

    def __next__(self) -> TensorDict:
        self._owner.check()
        with self._taking:
            try:
                return self._next()
            except (RateLimitedError, EmptyTableError, StopIteration) as error:
                if isinstance(error, EmptyTableError) and not self._plan.wait:
                    self._over = True
                    self._end()
                raise
            except Exception:
                self._over = True
                self._end()
                raise
            except BaseException:  # An interrupt: draws may be lost with it, and are drawn again.
                self._go_to(self._position, self._taken)
                raise

    def _next(self) -> TensorDict:
        if not self._ready:
            if self._over:
                raise StopIteration
            self._put_together()
        ready = self._ready.popleft()
        batch = ready.batch
        if self._plan.degrade:
            batch.set(LOST_SHARDS, torch.full(batch.batch_size, ready.lost, dtype=torch.int64, device=batch.device))
        self._position += 1
        for number, rows in ready.taken.items():
            self._taken[number] = self._taken.get(number, 0) + rows
        return batch

    def _put_together(self) -> None:
        """Puts the next batches together.

        Raises:
            EmptyTableError: there is no row to draw.
            ReplayError: a shard is lost, or refused something.
        """
        keeper, until = self._keeper, time.monotonic() + self._plan.timeout
        keeper.use()
        while True:
            supplies, masses = _weighed(keeper.supplies)
            size = self._streams.size
            batches = 1 if size is None else size.together
            if supplies:
                places = drawn_places(masses, self._uniform(batches))
                if self._are_here(supplies, places, until):
                    break
            else:
                self._await_rows(until)
        self._mix(batches, supplies, masses / masses.sum(), places)

    def _uniform(self, batches: int) -> npt.NDArray[np.float64]:
        """A random number for each row of the next batches: of the seed and the number of its batch alone, where there is a seed."""
        rows, seed = self._plan.batch_size, self._streams.seed
        if seed is None:
            return self._rng.random(rows * batches)
        keys = [np.array([seed, self._drawn + number], np.uint64) for number in range(batches)]
        return np.concatenate([np.random.Generator(np.random.Philox(key=key)).random(rows) for key in keys])

    def _await_rows(self, until: float) -> None:
        """Waits until there are draws of a shard.

        Raises:
            EmptyTableError: no shard has a row.
            ReplayError: no shard answers, or one refused something.
        """
        self._check_kept()
        left, supplies = until - time.monotonic(), self._keeper.supplies
        may_come = any(supply.totals.rows or not supply.shard.is_there for supply in supplies)
        if left <= 0 or not (may_come or self._plan.wait):
            errors = [supply.error for supply in supplies if supply.error is not None]
            raise EmptyTableError("the buffer is empty: no shard has a row to read yet") if not errors else copy(errors[0])
        self._keeper.wait(left)

    def _check_kept(self) -> None:
        """Passes where the shards' streams are kept."""
        if self._over:
            raise StopIteration
        if self._keeper.error is not None:
            raise copy(self._keeper.error)

    def _are_here(self, supplies: list[Supply], places: list[npt.NDArray[np.intp]], until: float) -> bool:
        """Whether the draws of these rows are here. Where a shard was lost meanwhile, or became empty, the rows are to be drawn anew."""
        for supply, rows in zip(supplies, places, strict=True):
            try:
                while not supply.has(len(rows)):
                    self._fill(supply, len(rows), until)
            except EmptyTableError:
                supply.empty()
                return False
            except (ServerUnavailableError, DeadlineError) as error:
                self._check_kept()
                if supply not in self._keeper.supplies:
                    return False
                if not self._plan.degrade:
                    raise
                self._keeper.lose(supply, error)
                return False
        return True

    def _fill(self, supply: Supply, rows: int, until: float) -> None:
        """Waits for draws, in the end as long as a batch may, whatever less the shard's own calls wait."""
        try:
            supply.ensure(rows)
        except RateLimitedError:
            if not self._plan.degrade or time.monotonic() >= until:
                raise

    def _mix(self, batches: int, supplies: list[Supply], shares: npt.NDArray[np.float64], places: list[npt.NDArray[np.intp]]) -> None:
        """Makes batches of the draws, which are here."""
        rows, every = self._plan.batch_size, self._keeper.supplies
        size, least = _of_whole(every, sum(supply.totals.mass for supply in supplies))
        given = [
            Given(supply.take(len(where)), where, supply.shard.number, supply.place, share)
            for supply, where, share in zip(supplies, places, shares.tolist(), strict=True)
            if len(where)
        ]
        first = given[0].runs[0].pull.batch
        columns = mixed(given, batches, len(every), self._memory, size, least)
        whole = self._transfer.bring(columns, (batches * rows, *first.batch_shape), first.dim_names).take()
        parts = [whole] if batches == 1 else whole.split(rows)  # One TensorDict that is split costs half as much as several that are made.
        self._ready.extend(_Ready(one, self._counts(given, number), self._keeper.lost) for number, one in enumerate(parts))
        self._drawn += batches

    def _counts(self, given: list[Given], batch: int) -> Mapping[int, int]:
        """How many rows of the batch of this number each shard gave, where it is to be known."""
        if self._streams.seed is None:
            return {}
        rows = self._plan.batch_size
        return {one.number: int(np.count_nonzero(one.places // rows == batch)) for one in given}

    @property
    def gives_at_once(self) -> bool:
        """Whether `next` waits for nothing: the batch is put together already."""
        return bool(self._ready) and not self._over

    # -- where it stands ----------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A token for `load_state_dict`, as that of `BatchStream`: with how many rows each shard gave so far.

        Raises:
            FailedPreconditionError: the stream has no seed, so its batches cannot be drawn again.
        """
        if self._streams.seed is None:
            raise FailedPreconditionError("a stream without a seed has no place: its batches cannot be drawn again. Give it a seed")
        taken = {str(number): rows for number, rows in sorted(self._taken.items())}
        return {**self._settings(), "seed": self._streams.seed, "position": self._position, "taken": taken}

    def _settings(self) -> dict[str, Any]:
        view = {} if self._plan.view is None else {"view": self._plan.view.view.to_json()}
        shards = [supply.shard.number for supply in self._keeper.supplies]
        return {"version": VERSION, "table": self._plan.table, "batch_size": self._plan.batch_size, "shards": shards, **view}

    def load_state_dict(self, token: Mapping[str, Any]) -> None:
        """As `BatchStream.load_state_dict`. The batches are the same as long as the shards are the same, and hold the same rows.

        Raises:
            TokenError: it is no token, or one of another table, batch size, view or other shards. The stream goes on where it was.
        """
        same = self._settings()
        entries = check_keys(token, (*same, "seed", "position", "taken"))
        check_same(entries, same)
        seed, position = whole_of(entries, "seed", 0, MAX_INT64), whole_of(entries, "position", 0, MAX_INT64)
        given = entries["taken"] if isinstance(entries["taken"], Mapping) else {"": None}
        numbers = {str(number): number for number in same["shards"]}
        found = check_keys(given, [name for name in given if name in numbers])
        taken = {numbers[name]: whole_of(found, name, 0, MAX_INT64) for name in found}
        with self._taking:
            self._streams.seed = seed
            self._go_to(position, taken)

    def _go_to(self, position: int, taken: Mapping[int, int]) -> None:
        """Makes the batch of this number the next one."""
        self._ready.clear()
        self._position = self._drawn = position
        self._taken = dict(taken)
        self._keeper.begin_at(self._taken)

    # -- priorities ---------------------------------------------------------------------------------------------------------------------------

    def update_priorities(self, batch: TensorDictBase, td_error: Any) -> None:
        """As `BatchStream.update_priorities`. Each row's goes to its shard; those of a shard that is lost are lost with it."""
        self._owner.check()
        row_ids, priorities = new_priorities(batch, td_error)
        if self._over:
            raise ClosedError("the stream is closed")
        numbers, own = shard_numbers(row_ids), local_row_ids(row_ids)
        for supply in self._keeper.supplies:
            of_it = numbers == supply.shard.number
            if of_it.any():
                supply.send_priorities(own[of_it], priorities[of_it])

    @property
    def updated(self) -> Updated:
        """What became of the rows of this stream's updates, as far as the shards have said."""
        parts = [supply.updated for supply in self._keeper.supplies]
        return Updated(sum(part.updated for part in parts), sum(part.stale for part in parts))

    # -- the rest -----------------------------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """Whether all shards' draws come through memory that is shared with their servers."""
        found = [supply.shared for supply in self._keeper.supplies if supply.is_open]
        return bool(found) and all(found)

    @property
    def lost_shards(self) -> int:
        """How many shards did not answer when they were last asked, and are not drawn from."""
        return self._keeper.lost

    def close(self) -> None:
        """Ends the calls and the threads. Closing twice is allowed. The shards first hear what was said last: it takes half a second at most."""
        self._over = True
        if self._owner.is_here:
            self._end()
            if self._thread is not threading.current_thread():
                self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _weighed(supplies: tuple[Supply, ...]) -> tuple[list[Supply], npt.NDArray[np.float64]]:
    """Those from which rows are drawn, and in which proportion: that of their masses; where none has any, that of their rows."""
    there = [supply for supply in supplies if supply.is_open and supply.totals.rows]
    masses = [supply.totals.mass for supply in there]
    if not any(masses):
        return there, np.array([float(supply.totals.rows) for supply in there])
    some = [(supply, mass) for supply, mass in zip(there, masses, strict=True) if mass > 0]
    return [supply for supply, _ in some], np.array([mass for _, mass in some])


def _of_whole(supplies: tuple[Supply, ...], mass: float) -> tuple[int, float]:
    """Among how many rows is drawn, and the smallest probability above 0 that one of them has."""
    totals = [supply.totals for supply in supplies if supply.is_open]
    rows = sum(one.rows for one in totals)
    return rows, min((one.least for one in totals if one.least > 0), default=0.0) / mass if mass else 1 / rows
