"""What each shard has of what is asked of the whole buffer, and the whole again.

A buffer of fewer rows than shards has one row on each of the first ones. The tables of the others are made too, and are not used: their capacity is
`UNUSED`, which no share is behind one of a single row. So whoever opens the buffer finds out which are used, and a reset may change it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from tdreplay.errors import InvalidArgumentError
from tdreplay.rate_limiters import MinSize, Queue, RateLimiter, SamplesPerInsert
from tdreplay.table_config import TableConfig, TableRequest

__all__ = ["part_of", "share_of", "used_places", "whole_config"]

UNUSED = 2
ROUNDING = 1e-9
"""So little does not count when a float is divided."""


def share_of(request: TableRequest, place: int, shards: int) -> TableRequest:
    """What the shard at `place` among so many is to be: its part of the capacity, and of the rows and the draws that a rate limiter counts.

    One that came later, whose place lies behind these, has as large a part as the last of them: the whole grows.

    Raises:
        InvalidArgumentError: a rate limiter's numbers are too small to be divided among so many. The message names the number and the least one.
    """
    place, size, limiter = min(place, shards - 1), request.buffer_size, request.rate_limiter
    if size is not None:
        used = min(size, shards)
        if used < shards and isinstance(limiter, (Queue, SamplesPerInsert)):
            _refuse("buffer_size", size, shards, f"one for each shard, where the rate limiter is {limiter}")
        size = part_of(size, place, used) if place < used else UNUSED
    return replace(request, buffer_size=size, rate_limiter=None if limiter is None else _limiter_share(limiter, place, shards))


def used_places(sizes: Sequence[int]) -> list[int]:
    """The places that are used among shards of these capacities, which are those of some or all of them in their order."""
    return [place for place, size in enumerate(sizes) if size != UNUSED or 1 not in sizes[:place]]


def part_of(number: int, place: int, shards: int) -> int:
    """The part of a whole number that the shard at `place` has: the first ones have one more, where it cannot be divided."""
    return (number + shards - 1 - place) // shards


def _limiter_share(limiter: RateLimiter, place: int, shards: int) -> RateLimiter:
    if isinstance(limiter, MinSize):
        return MinSize(part_of(limiter.min_size, place, shards))
    if isinstance(limiter, Queue):
        if limiter.max_size < shards:
            _refuse("max_size", limiter.max_size, shards, "one for each shard: else one would let no row in")
        return Queue(part_of(limiter.max_size, place, shards))
    if isinstance(limiter, SamplesPerInsert):
        ratio, least = limiter.samples_per_insert, max(1.0, limiter.samples_per_insert)
        if limiter.error_buffer < least * shards * (1 - ROUNDING):
            _refuse("error_buffer", limiter.error_buffer, least * shards, f"{least:g} for each shard, which is samples_per_insert or 1")
        return SamplesPerInsert(ratio, part_of(limiter.min_size, place, shards), max(least, limiter.error_buffer / shards))
    return limiter


def _refuse(name: str, value: float, least: float, why: str) -> NoReturn:
    raise InvalidArgumentError(f"{name} ({value:g}) must be at least {least:g}, {why}")


def whole_config(configs: Sequence[TableConfig]) -> TableConfig:
    """The settings of the buffer whose shards have these, one at least: capacities, and what limiters count, are sums.

    Raises:
        InvalidArgumentError: two shards differ in what is to be equal. The message names the setting.
    """
    first = configs[0]
    for setting in ("storing_device", "sampler", "max_times_sampled", "trajectories"):
        for place, config in enumerate(configs):
            if getattr(config, setting) != getattr(first, setting):
                raise InvalidArgumentError(
                    f"the shards are no one buffer: {setting} of the first is {getattr(first, setting)}, and of number {place} of them "
                    f"{getattr(config, setting)}"
                )
    return replace(
        first, buffer_size=sum(config.buffer_size for config in configs), rate_limiter=_whole_limiter([config.rate_limiter for config in configs])
    )


def _whole_limiter(limiters: Sequence[RateLimiter]) -> RateLimiter:
    first = limiters[0]
    if {type(limiter) for limiter in limiters} != {type(first)}:
        raise InvalidArgumentError(f"the shards are no one buffer: their rate_limiters are {', '.join(sorted({one.name for one in limiters}))}")
    ratios = sorted({limiter.samples_per_insert for limiter in limiters if isinstance(limiter, SamplesPerInsert)})
    if len(ratios) > 1:
        raise InvalidArgumentError(f"the shards are no one buffer: their samples_per_insert are {ratios}")
    sums = {name: _sum([getattr(limiter, name) for limiter in limiters]) for name in ("min_size", "max_size", "error_buffer") if hasattr(first, name)}
    return replace(first, **sums) if sums else first


def _sum(parts: Sequence[float]) -> float:
    """The number that was divided into these parts: as their sum would have it, but for the last digit of a float."""
    total = sum(parts) if isinstance(parts[0], int) else math.fsum(parts)
    rounded = float(f"{total:.15g}")
    return rounded if isinstance(total, float) and math.isclose(rounded / len(parts), parts[0], rel_tol=sys.float_info.epsilon) else total
