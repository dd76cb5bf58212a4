"""How many steps, episodes and anchors there are: arithmetic on what is known of each episode, however many steps it has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tdreplay.trajectory_state import Anchors, TrajectoryState
from tdreplay.windows import AnchorRule
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex
from tdreplay_server.tables.trajectories.episode_table import EpisodeTable
from tdreplay_server.tables.trajectories.step_columns import END, FINAL_FOLLOWS, TERMINATED

__all__ = ["trajectory_state"]

TRANSITIONS = AnchorRule(steps=1, next_step=True)


class _StoredSteps:
    """The steps that are stored of each episode of which there are any. Arrays have shape [episodes].

    Attributes:
        first, last: The numbers of the first and of the last of them.
        ended: Whether the episode terminated or was truncated.
    """

    def __init__(self, episodes: EpisodeTable) -> None:
        places = episodes.live()
        places = places[episodes.last_step[places] >= episodes.first_step[places]]
        self.first, self.last, kinds = episodes.first_step[places], episodes.last_step[places], episodes.kind[places]
        self.ended = (kinds & END) != 0
        self._next_is_there = episodes.has_final[places] | (((kinds & TERMINATED) != 0) & ((kinds & FINAL_FOLLOWS) == 0))

    def count(self, rule: AnchorRule) -> int:
        """How many anchors of a rule there are among them, as `EpisodeIndex.are_anchors` says it of one."""
        lowest = np.where(self.first > 0, self.first + rule.before, 0)
        highest = np.where(self.ended & (not rule.whole), self.last, self.last - (rule.steps - 1))
        if rule.next_step:
            highest = np.where(self._next_is_there, highest, np.minimum(highest, self.last - rule.steps))
        return int(np.maximum(highest // rule.stride - (lowest - 1) // rule.stride, 0).sum())


def trajectory_state(index: EpisodeIndex, rules: Iterable[AnchorRule]) -> TrajectoryState:
    """What is known of steps and episodes, and how many anchors of some rules there are. The index is current, and no row is overwritten meanwhile.

    It takes some ten milliseconds for a million episodes.
    """
    stored, (returns, lengths) = _StoredSteps(index.episodes), index.returns.statistics()
    return TrajectoryState(
        steps=stored.count(AnchorRule()),
        episodes=len(stored.first),
        open_episodes=int(np.count_nonzero(~stored.ended)),
        transitions=stored.count(TRANSITIONS),
        anchors=tuple(Anchors.of(rule, stored.count(rule)) for rule in rules),
        episode_return=returns,
        episode_length=lengths,
    )
