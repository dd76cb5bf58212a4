"""What each shard has of what is asked of the whole buffer, and the whole again.

A buffer of fewer rows than shards has one row on each of the first ones. The tables of the others are made too, and are not used: their capacity is
`UNUSED`, which no share is behind one of a single row. So whoever opens the buffer finds out which are used, and a reset may change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tdreplay.errors import InvalidArgumentError
from tdreplay.rate_limiters import MinSize, Queue, RateLimiter, SamplesPerInsert
from tdreplay.table_config import TableConfig, TableRequest

__all__ = ["part_of", "share_of", "used_places", "whole_config"]

UNUSED = 2


def share_of(request: TableRequest, place: int, shards: int) -> TableRequest:
    """What the shard at `place` among so many is to be: its part of the capacity, and of the rows and the draws that a rate limiter counts."""
    size, used = request.buffer_size, shards
    if size is not None:
        used = min(size, shards)
        size = part_of(size, place, used) if place < used else UNUSED
    limiter = None if request.rate_limiter is None else _limiter_share(request.rate_limiter, min(place, used - 1), used)
    return replace(request, buffer_size=size, rate_limiter=limiter)


def used_places(sizes: Sequence[int]) -> list[int]:
    """The places that are used among shards of these capacities, which are those of some or all of them in their order."""
    return [place for place, size in enumerate(sizes) if size != UNUSED or 1 not in sizes[:place]]


def part_of(number: int, place: int, shards: int) -> int:
    """The part of a whole number that the shard at `place` has: the first ones have one more, where it cannot be divided."""
    return (number + shards - 1 - place) // shards


def _limiter_share(limiter: RateLimiter, place: int, shards: int) -> RateLimiter:
    if isinstance(limiter, MinSize):
        return MinSize(max(1, part_of(limiter.min_size, place, shards)))
    if isinstance(limiter, Queue):
        return Queue(max(1, part_of(limiter.max_size, place, shards)))
    if isinstance(limiter, SamplesPerInsert):
        ratio, least = limiter.samples_per_insert, max(1.0, limiter.samples_per_insert)
        return SamplesPerInsert(ratio, max(1, part_of(limiter.min_size, place, shards)), max(least, limiter.error_buffer / shards))
    return limiter


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
    sums = {name: sum(getattr(limiter, name) for limiter in limiters) for name in ("min_size", "max_size", "error_buffer") if hasattr(first, name)}
    return replace(first, **sums) if sums else first
