"""Updates of priorities, each sent to the shard that has the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.errors import NoPrioritiesError, RowIdError, ServerUnavailableError
from tdreplay.priorities import Updated, check_weights, checked_priorities, checked_row_ids
from tdreplay.shard_ids import local_row_ids, shard_numbers, sharded_row_ids
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.totals import KnownTotals

__all__ = ["check_shard_numbers", "update_shards"]


def update_shards(shards: ShardSet, totals: KnownTotals, row_ids: Any, priorities: Any) -> Updated:
    """Gives rows other priorities: as `BaseReplayBuffer.update_priorities`. All shards that have some are told at once.

    Rows of a shard that is lost are waited for as long as the buffer's `timeout`. Where the buffer goes on without lost shards, their updates are
    dropped, and they count as stale; so do those of a shard that was removed.

    Raises:
        NoPrioritiesError: the rows have none.
        RowIdError, InvalidArgumentError: an id was never given, or a priority is too large. Nothing changes.
    """
    ids = checked_row_ids(row_ids)
    given = checked_priorities(priorities, len(ids))
    if not shards.config.sampler.has_priorities:
        shards.learn()  # It may have been dropped and made anew since.
    if not shards.config.sampler.has_priorities:
        raise NoPrioritiesError(f"the rows of this table have no priorities: its sampler is {shards.config.sampler}")
    check_weights(given, shards.config.sampler)  # Else the other shards would have changed their rows.
    there = shards.now
    numbers = shard_numbers(ids)
    check_shard_numbers(ids, numbers, {shard.number for shard in there} | shards.removed)
    of_shard = {shard: np.flatnonzero(numbers == shard.number) for shard in there}
    asked = [shard for shard in there if len(of_shard[shard])] or there[:1]
    _check_given(shards, {shard: local_row_ids(ids[of_shard[shard]]) for shard in asked})

    def update(shard: Shard) -> Updated:
        rows = of_shard[shard]
        if shards.goes_on and not shard.is_there:
            return Updated(0, len(rows))
        try:
            return shard.asked(lambda table: table.update_priorities(local_row_ids(ids[rows]), given[rows]))
        except ServerUnavailableError:
            if not shards.goes_on:
                raise
            return Updated(0, len(rows))
        finally:
            totals.changed(shard.number)

    found = shards.each(update, asked)
    gone = len(ids) - sum(map(len, of_shard.values()))
    return Updated(sum(one.updated for one in found), sum(one.stale for one in found) + gone)


def check_shard_numbers(ids: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], known: set[int]) -> None:
    """Passes where each row is of a shard that is known.

    Raises:
        RowIdError: one is not. The first of them is named.
    """
    unknown = ~np.isin(numbers, list(known))
    if unknown.any():
        first = int(np.flatnonzero(unknown)[0])
        raise RowIdError(
            f"row id {ids[first]} must be of a shard of the buffer: it is of shard {numbers[first]}, and no row with it was ever inserted"
        )


def _check_given(shards: ShardSet, of_shard: Mapping[Shard, npt.NDArray[np.int64]]) -> None:
    """Passes where the shards gave these ids. Those are asked of which it is not known; a lost one says it when it is there."""
    unsure = [shard for shard, ids in of_shard.items() if ids.max(initial=-1) >= shard.given and (shard.is_there or not shards.goes_on)]

    def ask(shard: Shard) -> None:
        shard.given = shard.asked(lambda table: table.state()).write_count

    for shard, answer in zip(unsure, shards.tried(ask, unsure), strict=True):
        if isinstance(answer, ServerUnavailableError):
            if not shards.goes_on:
                raise answer
            continue
        wrong = of_shard[shard][of_shard[shard] >= shard.given]
        if len(wrong):
            first, end, found = (sharded_row_ids(local, shard.number) for local in (0, shard.given, int(wrong[0])))
            bounds = f"from {first} to {end - 1}" if shard.given else "of a row, and its shard has had none"
            raise RowIdError(f"row id {found} must be {bounds}: no row with this id was ever inserted")
