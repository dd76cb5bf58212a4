"""What so many shards, actors and learners need, worked out of what was measured of one shard. No clocks and no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.fan_out import asked_shards
from benchmarks.markdown import rounded
from tdreplay_client.sharding.pull_streams import PullSize

__all__ = ["Costs", "Plan", "plan_rows"]

MONTH_MINUTES = 30 * 24 * 60
QUESTIONS = 10
"""A second, of a client to a shard that is silent, at most."""
MOST_CONNECTIONS = 8192
"""That a server takes, unless it is told otherwise."""
Cell: TypeAlias = Callable[[int], str]
"""What stands in the column of so many shards."""


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        inserts: for "small" and "image" rows, seconds of a server's core for a row that an actor appends.
        draws: the same for a row of a stream over many shards.
        row_bytes: the same, of a row.
        question_client, question_server: seconds of a core for a question after totals.
        connections, threads: of a learner for each shard: with an open stream and ``on_loss="degrade"``.
    """

    inserts: Mapping[str, float]
    draws: Mapping[str, float]
    row_bytes: Mapping[str, int]
    question_client: float
    question_server: float
    connections: float
    threads: float


@dataclass(frozen=True)
class Plan:
    """What there is to be.

    Attributes:
        rows: of each shard.
        actors: for each shard.
        actor_rows: a second, of an actor.
        learners: of all shards together.
        batches: a second, of a learner.
        batch: rows of a batch.
        prefetch: of a learner's stream.
    """

    rows: int = 1_000_000
    actors: int = 100
    actor_rows: int = 100
    learners: int = 16
    batches: int = 50
    batch: int = 256
    prefetch: int = 2

    @property
    def drawn(self) -> int:
        """Rows a second of all learners."""
        return self.learners * self.batches * self.batch


def plan_rows(plan: Plan, costs: Costs, single: Mapping[int, float]) -> list[list[str]]:
    """The rows of the plan's table, a column for each number of shards in `single`, which says how much longer a single batch takes than of one."""
    entries = {**_loads(plan, costs), **_reads(plan, costs, single), **_clients(plan, costs)}
    return [[name, *map(cell, single)] for name, cell in entries.items()]


def _loads(plan: Plan, costs: Costs) -> dict[str, Cell]:
    """What servers have to do."""
    inserted = plan.actors * plan.actor_rows

    def cores(work: str) -> Cell:
        return lambda shards: f"{rounded(inserted * costs.inserts[work], 1)}, {rounded(plan.drawn / shards * costs.draws[work], 1)}"

    def network(work: str) -> Cell:
        return lambda shards: ", ".join(rounded(rows * costs.row_bytes[work] / 1e6) for rows in (inserted, plan.drawn / shards))

    return {
        "rows": lambda shards: f"{plan.rows * shards / 1e6:,.0f} million",
        "actors": lambda shards: f"{plan.actors * shards:,}",
        "inserts of all actors, rows/s": lambda shards: f"{inserted * shards:,}",
        "draws of all learners, rows/s": lambda _: f"{plan.drawn:,}",
        "small rows: cores of each server, inserts and draws": cores("small"),
        "image rows: the same": cores("image"),
        "small rows: network of each server, MB/s in and out": network("small"),
        "image rows: the same, MB/s": network("image"),
        "a shard is away, if each is for a minute a month": lambda shards: (
            f"{rounded(100 * (1 - (1 - 1 / MONTH_MINUTES) ** shards), 1)} % of the time"
        ),
    }


def _reads(plan: Plan, costs: Costs, single: Mapping[int, float]) -> dict[str, Cell]:
    """What becomes of batches."""

    def age(shards: int) -> str:
        size = PullSize.of(plan.batch, plan.batch * costs.row_bytes["small"], shards, plan.prefetch, seeded=False, counted=False)
        batches = size.rows * size.ahead * shards / plan.batch
        return f"{batches:,.0f} batches, {rounded(batches / plan.batches)} s"

    return {
        "rows of a batch from one shard": lambda shards: rounded(plan.batch / shards),
        "how old a draw of a stream can be": age,
        "shards that a single batch asks": lambda shards: f"{asked_shards(plan.batch, shards):.0f}",
        "a single batch, to that of one shard: p50": lambda shards: f"{rounded(single[shards])} times",
    }


def _clients(plan: Plan, costs: Costs) -> dict[str, Cell]:
    """What clients have open, and what they ask."""

    def connected(count: float) -> str:
        return f"{count:,.0f}{': too many' if count > MOST_CONNECTIONS else ''}"

    return {
        "connections of a server, each client to all shards": lambda shards: connected(costs.connections * (plan.learners + plan.actors * shards)),
        "the same, each actor to one shard": lambda _: connected(costs.connections * plan.learners + plan.actors),
        "connections of a learner": lambda shards: f"{costs.connections * shards:,.0f}",
        "threads of a learner": lambda shards: f"{costs.threads * shards:,.0f}",
        "questions of a learner, at most": lambda shards: f"{QUESTIONS * shards:,}/s",
        "cores of the learner for them": lambda shards: rounded(QUESTIONS * shards * costs.question_client, 1),
        "cores of each server for those of all learners": lambda _: rounded(QUESTIONS * plan.learners * costs.question_server, 1),
    }
