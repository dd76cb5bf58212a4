"""What a table of trajectories says of its steps and episodes at one moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tdreplay.windows import AnchorRule

__all__ = ["Anchors", "Episode", "Statistics", "TrajectoryState"]


@dataclass(frozen=True)
class Episode:
    """An episode of which a step is stored.

    Attributes:
        episode_id: Its number.
        first_row_id: The id of the first of its rows that is stored.
        first_step: The number of the first step that is stored: above 0 where earlier ones were overwritten.
        steps: The steps that are stored, without the final observation.
        episode_return: The sum of the rewards of all of its steps that came since the server started, and of those that were stored then. None: the
            table has no rewards.
        ended: How it ended: 'terminated', 'truncated' or 'abandoned'. '': it is open.
        has_final: Whether the final observation is stored.
    """

    episode_id: int
    first_row_id: int
    first_step: int
    steps: int
    episode_return: float | None = None
    ended: str = ""
    has_final: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Anchors:
    """How many steps can be drawn in one way: those whose whole window is there.

    Attributes:
        before, steps, next_step, whole, stride: As in `AnchorRule`.
        count: How many there are.
    """

    before: int
    steps: int
    next_step: bool
    whole: bool
    stride: int
    count: int

    @classmethod
    def of(cls, rule: AnchorRule, count: int) -> Anchors:
        """The number of steps that are anchors by a rule."""
        return cls(*rule, count)

    @property
    def rule(self) -> AnchorRule:
        """Which steps they are."""
        return AnchorRule(self.before, self.steps, self.next_step, self.whole, self.stride)


@dataclass(frozen=True)
class Statistics:
    """Some numbers in short. Where there are none, all of it is 0.

    Attributes:
        count: How many there are.
        mean: Their mean.
        std: Their standard deviation.
        min: The least.
        max: The greatest.
    """

    count: int = 0
    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class TrajectoryState:
    """The steps and episodes of a table.

    Attributes:
        steps: Steps that are stored. The other rows are final observations.
        episodes: Episodes of which a step is stored.
        open_episodes: Those of them that are open, or abandoned.
        transitions: The steps that can be drawn as transitions of one step, without stacks.
        anchors: How many steps can be drawn, for each way in which steps were drawn lately.
        episode_return: The sums of rewards of the last 100 episodes that ended, since the server started.
        episode_length: The numbers of steps of the same episodes.
    """

    steps: int = 0
    episodes: int = 0
    open_episodes: int = 0
    transitions: int = 0
    anchors: tuple[Anchors, ...] = ()
    episode_return: Statistics = Statistics()
    episode_length: Statistics = Statistics()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "anchors": [asdict(anchors) for anchors in self.anchors]}
