"""Streams over several shards: batches whose rows each come from the shard that a draw over all of them says."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import (
    ClosedError,
    DeadlineError,
    EmptyTableError,
    FailedPreconditionError,
    RateLimitedError,
    ReplayError,
    RowIdError,
    ServerUnavailableError,
    TableChangedError,
    TableNotFoundError,
)
from tdreplay.limits import MAX_INT64
from tdreplay.priorities import Updated
from tdreplay.processes import Owner
from tdreplay.tokens import check_keys, check_same, whole_of
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.stream import new_priorities
from tdreplay_client.sharding.joining import with_lost_shards
from tdreplay_client.sharding.keeper import Keeper
from tdreplay_client.sharding.mixing import Given, drawn_places, mixed
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.recycled_memory import RecycledMemory
from tdreplay_client.sharding.stream_plan import StreamPlace, StreamPlan
from tdreplay_client.sharding.supply import Supply
from tdreplay_client.sharding.whole_batches import Giver, Whole, WholeBatches
from tdreplay_client.transport.threads import start_reader

__all__ = ["ShardedStream"]

JOIN_SECONDS = 5.0
VERSION = 1
"""Of the tokens of streams over shards."""


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
        self._whole = WholeBatches(plan.batch_size, streams)
        self._place, self._is_sound = StreamPlace(), True
        self._numbers: npt.NDArray[np.float64] | None = None
        self._rng = np.random.Generator(np.random.SFC64())
        self._ready: deque[_Ready] = deque()
        self._has_begun = False  # Whether the whole buffer had the rows that its rate limiter wants.
        self._drawn = 0  # Batches that were put together: the number of the next one.
        self._over = False
        self._taking = threading.RLock()  # An interrupt on the way out of it may leave it to its thread, which gets it again.
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
        before: StreamPlace | None = None
        try:
            with self._taking:
                before = self._place
                return self._next()
        except (RateLimitedError, EmptyTableError, StopIteration) as error:
            self._is_sound = True  # Nothing was taken. The batch that could not be had is still the next one.
            if isinstance(error, EmptyTableError) and not self._plan.wait:
                self._fail()
            raise
        except Exception:
            self._fail()
            raise
        except BaseException:  # An interrupt: nobody got the batch. It is drawn again.
            if before is not None:
                self._place, self._is_sound = before, False
            raise

    def _next(self) -> TensorDict:
        if self._over:
            raise StopIteration
        if not self._is_sound:  # An interrupt may have come anywhere, and another one while that was dealt with.
            self._go_to(self._place)
        self._is_sound = False
        if not self._ready:
            with self._keeper.used():
                self._put_together()
        ready = self._ready.popleft()
        batch = with_lost_shards(ready.batch, ready.lost) if self._plan.degrade else ready.batch
        self._place, self._is_sound = self._place.after(ready.taken), True
        return batch

    def _fail(self) -> None:
        """Ends the stream, which gives no batch after an error."""
        self._over = True
        self._end()

    def _put_together(self) -> None:
        """Puts the next batches together.

        Raises:
            EmptyTableError: there is no row to draw.
            ReplayError: a shard is lost, or refused something.
        """
        until = time.monotonic() + self._plan.timeout
        while True:
            self._check_kept()
            every = self._keeper.supplies
            self._whole.check(every)
            weighed = self._weighed(every)
            if weighed is None:
                self._await_rows(until)
                continue
            if not self._may_begin(until):
                continue
            supplies, masses = weighed
            if any(supply.call is not None for supply in supplies):
                if self._is_written(every, supplies, masses, until):
                    return
                continue
            size = self._streams.size
            batches = 1 if size is None else size.together
            places = drawn_places(masses, self._uniform(batches))
            if self._are_here(zip(supplies, map(len, places), strict=True), until):
                break
        self._mix(batches, every, supplies, masses / masses.sum(), places)

    def _weighed(self, every: tuple[Supply, ...]) -> tuple[list[Supply], npt.NDArray[np.float64]] | None:
        """From which shards rows are drawn, and in which proportion: that of their masses; where none has any, that of their rows.

        None: none has a row, or one has some of which no draw can be had at this moment. Without it, too few rows would be drawn from it.
        """
        there = [supply for supply in every if supply.totals.rows]
        if not there or not all(supply.is_open for supply in there):
            return None
        masses = [supply.totals.mass for supply in there]
        if not any(masses):
            return there, np.array([float(supply.totals.rows) for supply in there])
        some = [(supply, mass) for supply, mass in zip(there, masses, strict=True) if mass > 0]
        return [supply for supply, _ in some], np.array([mass for _, mass in some])

    def _uniform(self, batches: int) -> npt.NDArray[np.float64]:
        """A random number for each row of the next batches: of the seed and the number of its batch alone, where there is a seed.

        They are the same until the batches are put together. A draw that waits for a shard's rate limiter would else be made again and again until it
        needs fewer rows of that shard.
        """
        rows, seed = self._plan.batch_size, self._streams.seed
        if seed is None:
            if self._numbers is None:
                self._numbers = self._rng.random(rows * batches)
            return self._numbers
        keys = [np.array([seed, self._drawn + number], np.uint64) for number in range(batches)]
        return np.concatenate([np.random.Generator(np.random.Philox(key=key)).random(rows) for key in keys])

    def _may_begin(self, until: float) -> bool:
        """Whether the whole buffer has, or had, the rows that its rate limiter wants before one is drawn. Where not, it waits a moment for them.

        Raises:
            RateLimitedError: they did not come in time.
        """
        if not self._has_begun:
            try:
                self._keeper.check_least()
                self._has_begun = True
            except RateLimitedError:
                if time.monotonic() >= until:
                    raise
                self._keeper.wait(until - time.monotonic())
        return self._has_begun

    def _await_rows(self, until: float) -> None:
        """Waits until there are draws of a shard.

        Raises:
            EmptyTableError: no shard has a row.
            ReplayError: no shard answers, or one refused something.
        """
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

    def _is_written(self, every: tuple[Supply, ...], supplies: list[Supply], masses: npt.NDArray[np.float64], until: float) -> bool:
        """Waits for a batch whose rows the shards write to memory of this process. False: it is to be drawn anew."""
        givers = [Giver(supply, supply.call, supply.call.layout, every.index(supply)) for supply in supplies if supply.call is not None]
        if len(givers) < len(supplies):
            return False
        size, least = _of_whole(every, sum(supply.totals.mass for supply in supplies))
        first = self._whole.ask(Whole(givers, masses, len(every), size, least, self._keeper.lost))
        if first is None or not self._are_here(first.needed, until):
            return False
        self._ready.append(_Ready(self._whole.take().made(self._transfer), {}, first.of.lost))
        return True

    def _are_here(self, needed: Iterable[tuple[Supply, int]], until: float) -> bool:
        """Whether each shard's draws are here, so many. Where one was lost meanwhile, or became empty, the rows are to be drawn anew."""
        for supply, rows in needed:
            try:
                while not supply.has(rows):
                    if not self._fill(supply, rows, until):
                        return False
            except EmptyTableError:
                supply.empty()
                return False
            except (ServerUnavailableError, DeadlineError, TableNotFoundError, TableChangedError, RowIdError) as error:
                self._check_kept()
                if supply not in self._keeper.supplies:
                    return False
                self._lose(supply, error)
                return False
        return True

    def _lose(self, supply: Supply, error: ReplayError) -> None:
        """Goes on without a shard that is lost, where that is wanted.

        Raises:
            ReplayError: it is not wanted, or the shard is not lost.
        """
        if not self._plan.degrade:
            if supply.call is None or not isinstance(error, ServerUnavailableError):
                raise error
            supply.drop()
            supply.error = error  # If it is not back as soon as a batch may wait.
        elif isinstance(error, RowIdError):  # It was started again without the rows that it had, and got updates of their priorities?
            if not self._keeper.is_renewed(supply):
                raise error
            supply.lose(error)
        else:
            self._keeper.lose(supply, error)

    def _fill(self, supply: Supply, rows: int, until: float) -> bool:
        """Waits for draws, in the end as long as a batch may, whatever less the shard's own calls wait. As `Supply.ensure`."""
        try:
            return supply.ensure(rows)
        except RateLimitedError:
            if not self._plan.degrade or time.monotonic() >= until:
                raise
            return True

    def _mix(
        self,
        batches: int,
        every: tuple[Supply, ...],
        supplies: list[Supply],
        shares: npt.NDArray[np.float64],
        places: list[npt.NDArray[np.intp]],
    ) -> None:
        """Makes batches of the draws, which are here."""
        rows = self._plan.batch_size
        size, least = _of_whole(every, sum(supply.totals.mass for supply in supplies))
        given = [
            Given(supply.take(len(where)), where, supply.shard.number, every.index(supply), share)
            for supply, where, share in zip(supplies, places, shares.tolist(), strict=True)
            if len(where)
        ]
        first = given[0].runs[0].pull.batch
        columns = mixed(given, batches, len(every), self._memory, size, least)
        whole = self._transfer.bring(columns, (batches * rows, *first.batch_shape), first.dim_names).take()
        parts = [whole] if batches == 1 else whole.split(rows)  # One TensorDict that is split costs half as much as several that are made.
        self._ready.extend(_Ready(one, self._counts(given, number), self._keeper.lost) for number, one in enumerate(parts))
        self._drawn, self._numbers = self._drawn + batches, None

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
        place = self._place
        taken = {str(number): rows for number, rows in sorted(place.taken.items())}
        return {**self._settings(), "seed": self._streams.seed, "position": place.position, "taken": taken}

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
            self._place = StreamPlace(position, taken)
            self._go_to(self._place)
            self._is_sound = True

    def _go_to(self, place: StreamPlace) -> None:
        """Draws the batches from this place on anew."""
        self._ready.clear()
        self._drawn = place.position
        self._keeper.begin_at(place.taken)

    # -- priorities ---------------------------------------------------------------------------------------------------------------------------

    def update_priorities(self, batch: TensorDictBase, td_error: Any) -> None:
        """As `BatchStream.update_priorities`. Each row's goes to its shard; those of a shard that is lost are lost with it."""
        self._owner.check()
        row_ids, priorities = new_priorities(batch, td_error)
        if self._over:
            raise ClosedError("the stream is closed")
        self._keeper.send_priorities(row_ids, priorities)

    @property
    def updated(self) -> Updated:
        """What became of the rows of this stream's updates, as far as the shards have said. Those that a lost shard did not confirm are stale."""
        return self._keeper.updated

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


def _of_whole(supplies: tuple[Supply, ...], mass: float) -> tuple[int, float]:
    """Among how many rows is drawn, and the smallest probability above 0 that one of them has."""
    totals = [supply.totals for supply in supplies if supply.is_open]
    rows = sum(one.rows for one in totals)
    return rows, min((one.least for one in totals if one.least > 0), default=0.0) / mass if mass else 1 / rows
