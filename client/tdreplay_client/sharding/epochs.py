"""Epochs over several shards: one order over all rows, which are asked for by their ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
from tensordict import TensorDict

from tdreplay.epochs import EpochPlace, EpochPlan, EpochQuery, Epochs
from tdreplay.errors import EmptyTableError, ServerUnavailableError, TableChangedError, TableNotFoundError, TokenError, UnimplementedError
from tdreplay.table_messages import trajectories_from_message
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.epoch_batches import EpochBatches, StepEpochBatches
from tdreplay_client.sharding.epoch_places import made_batch
from tdreplay_client.sharding.epoch_plan import FIRST, ShardedPlace, ShardedPlan, ShardWindow
from tdreplay_client.sharding.epoch_read_ahead import ReadAhead
from tdreplay_client.sharding.epoch_rows import PAUSE_SECONDS
from tdreplay_client.sharding.recycled_memory import RecycledMemory
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_set import ShardSet, none_there
from tdreplay_client.sharding.shard_table import ShardTable

__all__ = ["ShardedEpochs", "described", "plan_over"]

log = logging.getLogger("tdreplay")


def described(shards: ShardSet, patience: float | None) -> list[tuple[Shard, pb.DescribeResponse]]:
    """What the servers say of the tables now. A shard that is lost is waited for, because its rows are to come too.

    Args:
        shards: The buffer's shards.
        patience: For how many seconds a lost shard is waited for, where epochs begin without it then; None: they do not.

    Raises:
        ServerUnavailableError: no shard is there, or one is not.
    """
    if patience is None:
        return shards.on_those_there(lambda shard: shard.asked(ShardTable.answer))

    def answer(shard: Shard) -> pb.DescribeResponse | ServerUnavailableError:
        error = ServerUnavailableError(f"shard {shard.number} at {shard.place.address} is lost")
        while not shard.is_lost_for(patience):
            try:
                if shard.is_there:
                    return shard.asked(ShardTable.answer)
            except ServerUnavailableError as failure:
                error = failure
            shards.check_open()
            time.sleep(PAUSE_SECONDS)  # The buffer asks it whether it is back.
        log.warning("epochs begin without the rows of shard %d, which is lost", shard.number)
        return error

    there = shards.now
    found = list(zip(there, shards.each(answer, there), strict=True))
    answers = [(shard, answer) for shard, answer in found if not isinstance(answer, ServerUnavailableError)]
    if not answers:
        raise none_there(answer for _, answer in found)
    return answers


def plan_over(query: EpochQuery, table: str, answers: Sequence[tuple[Shard, pb.DescribeResponse]], seed: int | None) -> ShardedPlan:
    """Epochs over the rows that the shards have, by what their servers say of the tables.

    Raises:
        EmptyTableError: there is none.
        UnimplementedError: a server is of an older version.
    """
    for shard, answer in answers:
        if not answer.generation_id:
            raise UnimplementedError(f"server {shard.place.address} is of an older version, whose epochs cannot go on")
    windows = [
        ShardWindow(shard.number, answer.generation_id, answer.write_count - answer.size, answer.write_count, answer.config.buffer_size)
        for shard, answer in answers
        if answer.size
    ]
    if not windows:
        raise EmptyTableError("the table is empty: there is no row to read yet")
    of_steps = bool(trajectories_from_message(answers[0][1].config))
    return ShardedPlan.over_shards(query, table, windows, seed, of_steps=of_steps)


class ShardedEpochs(Epochs):
    """The batches of some epochs over several shards. The next ones are on their way while one is used.

    Where a shard is lost, the iterator waits for it. Where the buffer goes on without lost shards, rows of one that is gone for good are left out and
    counted: its table is another one by now, or it is lost for longer than the buffer's timeout.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        transfer: Brings batches to the device.
        patience: For how many seconds a lost shard is waited for, where the buffer goes on without it; None: it does not.
        view: What is made of their windows. None: the rows come as they are.

    Raises:
        ReplayError: a server refused the query.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, transfer: DeviceTransfer, patience: float | None, view: TableView | None = None) -> None:
        super().__init__(plan, view)
        self._place: ShardedPlace = FIRST
        self._plan: ShardedPlan = plan
        self._shards, self._transfer, self._patience = shards, transfer, patience
        self._memory = RecycledMemory(transfer)
        self._times_emptied = shards.times_emptied
        self._row_bytes = self._checked_row_bytes(plan)
        self._batches: EpochBatches | None = self._opened(plan, FIRST)

    def _opened(self, plan: ShardedPlan, place: ShardedPlace) -> EpochBatches:
        kind = StepEpochBatches if plan.of_steps else EpochBatches
        return kind(plan, place, ReadAhead(self._shards, plan, place, self._patience, self._row_bytes))

    def _checked_row_bytes(self, plan: ShardedPlan) -> int:
        """Asks a shard for one row, so that what cannot be is said at once. Its bytes; 0: none came. Where no shard answers, the batches say so."""
        shards = {shard.number: shard for shard in self._shards.now}
        for window in plan.windows:
            shard = shards.get(window.shard)
            if shard is None:
                continue
            ids = np.array([window.first_row_id], np.int64)
            try:
                answer = shard.asked(partial(ShardTable.epoch_rows, row_ids=ids, window=window, query=plan.query))
            except (TableChangedError, TableNotFoundError, ServerUnavailableError):
                if self._patience is None:
                    raise
                continue
            return 0 if answer.batch is None else answer.batch.nbytes
        return 0

    @property
    def lost(self) -> int:
        """How many rows were gone with their shard when they were to come, in all epochs so far: 0 unless the buffer goes on without lost shards."""
        return self._place.lost

    def _go_to(self, plan: EpochPlan, place: EpochPlace) -> None:
        self._shards.check_open()
        emptied = self._shards.times_emptied
        whole = cast("ShardedPlan", plan)  # As `at_token` of such a plan gives it, with such a place.
        self._check_tables(whole)
        before, self._batches = self._batches, self._opened(whole, cast("ShardedPlace", place))
        self._times_emptied = emptied
        if before is not None:
            before.close()

    def _check_tables(self, plan: ShardedPlan) -> None:
        """Passes where the rows of a plan can be read.

        Raises:
            TableChangedError: the tables are others by now: all of them, or, where the buffer does not go on without shards, one.
            TokenError: a window cannot be.
        """
        known = {shard.number: shard for shard in self._shards.now}
        windows = [window for window in plan.windows if window.shard in known]
        gone = [f"shard {window.shard} is no shard of this buffer" for window in plan.windows if window.shard not in known]
        ask = self._shards.each if self._patience is None else self._shards.tried
        for window, answer in zip(windows, ask(lambda shard: shard.asked(ShardTable.answer), [known[one.shard] for one in windows]), strict=True):
            if isinstance(answer, ServerUnavailableError):
                continue
            if answer.generation_id != window.generation_id:
                gone.append(f"the table of shard {window.shard} was reset, rewound or lost rows since the epochs began")
            elif window.end_row_id > answer.write_count or window.buffer_size != answer.config.buffer_size:
                raise TokenError(
                    f"the window of row ids [{window.first_row_id}, {window.end_row_id}) of shard {window.shard} must be 1 to "
                    f"{answer.config.buffer_size} of those below {answer.write_count}"
                )
        if gone and (self._patience is None or len(gone) == len(plan.windows)):
            raise TableChangedError(gone[0])

    def _next(self) -> tuple[TensorDict | None, EpochPlace]:
        self._shards.check_open()
        if self._times_emptied != self._shards.times_emptied and not self._plan.is_over(self._place):  # Rows that were read ahead are gone, too.
            raise TableChangedError("this buffer reset, rewound or dropped the tables since the epochs began")
        if self._batches is None:
            self._batches = self._opened(self._plan, self._place)
        pieces, place = self._batches.next(self._place)
        if not pieces:
            return None, place
        return made_batch(pieces, len(self._shards), self._memory, self._transfer), place

    def _break_off(self) -> None:
        self._end()
        self._batches = None

    def _end(self) -> None:
        if self._batches is not None:
            self._batches.close()
