"""What a buffer of several shards says of itself: sums, and each shard."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdreplay.state import State
from tdreplay.table_description import TableDescription, Waits
from tdreplay.trajectory_state import Anchors, Statistics, TrajectoryState
from tdreplay_client.sharding.shares import whole_config

__all__ = ["ShardDescription", "ShardedDescription", "whole_description", "whole_state"]

LEVELS = ("none", "process", "interval", "power")
"""What acknowledged rows survive, from the least to the most."""
SUMS = ("buffer_size", "size", "write_count", "insert_count", "available", "leased", "sample_count", "updated", "stale", "insert_rate", "sample_rate")


@dataclass(frozen=True)
class ShardDescription:
    """One shard of a buffer.

    Attributes:
        number: Its number in the cluster.
        address: Where its server listens.
        description: Of its table; None: it is lost.
        lost_seconds: For how long it has been lost; 0: it is there.
    """

    number: int
    address: str
    description: TableDescription | None
    lost_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "description": None if self.description is None else self.description.to_json()}


@dataclass(frozen=True, kw_only=True)
class ShardedDescription(TableDescription):
    """What a buffer of several shards is made with, what is in it, and how it is used: sums over the shards that are there, each of its own moment.

    Attributes:
        shards: Each shard, by number.
        lost_shards: How many of them are lost.
    """

    shards: tuple[ShardDescription, ...] = ()
    lost_shards: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**super().to_json(), "shards": [shard.to_json() for shard in self.shards]}


def whole_state(states: Sequence[State], pointer: int) -> State:
    """The state of a buffer whose shards have these, one at least, and whose next row goes into the slot `pointer`."""
    known = next((state.schema for state in states if state.schema is not None), None)
    sums = {name: sum(getattr(state, name) for state in states) for name in ("buffer_size", "size", "write_count", "insert_count")}
    durability = min((state.durability for state in states), key=LEVELS.index)
    return State(pointer=pointer, storing_device=states[0].storing_device, schema=known, durability=durability, **sums)


def whole_description(shards: Sequence[ShardDescription], pointer: int) -> ShardedDescription:
    """What a buffer says whose shards say this. At least one of them is there.

    Raises:
        InvalidArgumentError: two shards differ in what is to be equal.
    """
    there = [shard.description for shard in shards if shard.description is not None]
    state = whole_state(there, pointer)
    sums = {name: sum(getattr(one, name) for one in there) for name in SUMS}
    return ShardedDescription(
        **{**vars(state), **sums},
        config=whole_config([one.config for one in there]),
        generation_id=hashlib.sha256(" ".join(one.generation_id for one in there).encode()).hexdigest()[:32],
        inserts=_waits([one.inserts for one in there]),
        samples=_waits([one.samples for one in there]),
        trajectories=_trajectories([one.trajectories for one in there if one.trajectories is not None]),
        shards=tuple(shards),
        lost_shards=len(shards) - len(there),
    )


def _waits(waits: Sequence[Waits]) -> Waits:
    for_what = next((one.waits_for for one in waits if one.waits_for), "")
    return Waits(sum(one.waiting for one in waits), sum(one.seconds for one in waits), for_what)


def _trajectories(states: Sequence[TrajectoryState]) -> TrajectoryState | None:
    if not states:
        return None
    sums = {name: sum(getattr(state, name) for state in states) for name in ("steps", "episodes", "open_episodes", "transitions")}
    return TrajectoryState(
        **sums,
        anchors=_anchors([anchors for state in states for anchors in state.anchors]),
        episode_return=_statistics([state.episode_return for state in states]),
        episode_length=_statistics([state.episode_length for state in states]),
    )


def _anchors(found: Sequence[Anchors]) -> tuple[Anchors, ...]:
    sums: dict[Any, Anchors] = {}
    for anchors in found:
        before = sums.get(anchors.rule)
        sums[anchors.rule] = anchors if before is None else replace(before, count=before.count + anchors.count)
    return tuple(sums.values())


def _statistics(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all numbers of which these are the statistics."""
    some = [part for part in parts if part.count]
    count = sum(part.count for part in some)
    if not count:
        return Statistics()
    mean = sum(part.count * part.mean for part in some) / count
    square = sum(part.count * (part.std**2 + (part.mean - mean) ** 2) for part in some) / count
    return Statistics(count, mean, math.sqrt(square), min(part.min for part in some), max(part.max for part in some))
