"""All that a table says of itself at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdreplay.state import State
from tdreplay.table_config import TableConfig
from tdreplay.trajectory_state import TrajectoryState

__all__ = ["TableDescription", "Waits"]


@dataclass(frozen=True)
class Waits:
    """How one side of a table waits for the other.

    Attributes:
        waiting: The calls that wait now.
        seconds: How long calls have waited since the server started, in seconds: all of them together, those that wait now included.
        waits_for: What the call that waits longest waits for, in words; '': none waits.
    """

    waiting: int = 0
    seconds: float = 0.0
    waits_for: str = ""


@dataclass(frozen=True, kw_only=True)
class TableDescription(State):
    """What a table is made with, what is in it, and how it is used, all of one moment.

    Attributes:
        config: What the table was made with, with the capacity that it has now.
        generation_id: Another text after a reset, a rewind or a drop: row ids of an older one may be other rows now.
        available: How many rows batches can take now: a row that may be drawn n more times counts n times. Without `max_times_sampled`: `size`.
        leased: The rows of batches that were sent to learners, and not taken yet.
        sample_count: The rows that learners have taken in random batches: since the table was empty, where a rate limiter or `max_times_sampled`
            counts them, else since the server started.
        updated: The rows whose priority was updated since the server started.
        stale: The rows of updates that were not stored any more, since the server started.
        inserts: How inserts wait for the rate limiter.
        samples: How random batches wait for rows and for the rate limiter.
        insert_rate: Rows inserted a second, over the last ten seconds or since the server started.
        sample_rate: Rows that learners took in random batches a second, over the same time.
        trajectories: The steps and episodes that are stored; None in a table without trajectories.
    """

    config: TableConfig
    generation_id: str = ""
    available: int = 0
    leased: int = 0
    sample_count: int = 0
    updated: int = 0
    stale: int = 0
    inserts: Waits = Waits()
    samples: Waits = Waits()
    insert_rate: float = 0.0
    sample_rate: float = 0.0
    trajectories: TrajectoryState | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values. The schema is null while no row was ever stored."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (int, float, str))}
        return {
            "table": self.config.name,
            "config": self.config.to_json(),
            **plain,
            "storing_device": str(self.storing_device),
            "schema": None if self.schema is None else self.schema.to_json(),
            "inserts": vars(self.inserts),
            "samples": vars(self.samples),
            "trajectories": None if self.trajectories is None else self.trajectories.to_json(),
        }
