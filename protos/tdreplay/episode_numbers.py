"""The numbers of episodes and steps, as the writer of a trajectory gives them.

Where an environment is in its episodes is a value that is replaced whole: whoever is interrupted leaves the value from before, or the one from after.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.rows import Given
from tdreplay.system_fields import EPISODE_ID, STEP, STEP_KIND, StepKind

__all__ = ["EpisodePlace", "EpisodePlaces", "NumberedSteps", "in_turn", "kinds_of", "new_episode_id", "numbers", "side_by_side"]

IDs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def new_episode_id() -> int:
    """A number that no other episode has: one of 2^63."""
    return secrets.randbits(63)


class EpisodePlace(NamedTuple):
    """Where one environment is in its episodes.

    Attributes:
        episode_id: The episode of its next step.
        step: The number of that step.
        resets: Whether the next appended step is no step but a reset, to be left out.
        owed: Final observations that follow what was stored last, and are not stored yet; None: there are none.
    """

    episode_id: int
    step: int = 0
    resets: bool = False
    owed: Given | None = None

    @classmethod
    def new(cls, *, resets: bool = False) -> EpisodePlace:
        """At the beginning of a new episode."""
        return cls(new_episode_id(), 0, resets)


class EpisodePlaces(NamedTuple):
    """Where n environments are in their episodes: as `EpisodePlace`, in arrays of shape [n], which nobody changes.

    Attributes:
        any_resets: Whether any of `resets` is true.
    """

    episode_ids: IDs
    steps: IDs
    resets: Flags
    any_resets: bool = False
    owed: Given | None = None

    @classmethod
    def new(cls, n_envs: int) -> EpisodePlaces:
        """All at the beginning of new episodes."""
        return cls(_new_ids(n_envs), np.zeros(n_envs, np.int64), np.zeros(n_envs, bool))

    def renewed(self, envs: IDs) -> EpisodePlaces:
        """These environments are at the beginning of new episodes."""
        ids, steps, resets = self.episode_ids.copy(), self.steps.copy(), self.resets.copy()
        ids[envs], steps[envs], resets[envs] = _new_ids(len(envs)), 0, False
        return self._replace(episode_ids=ids, steps=steps, resets=resets, any_resets=bool(resets.any()))

    def after(self, kept: Flags | None, ended: IDs, *, resets: bool) -> EpisodePlaces:
        """One step later.

        Args:
            kept: Those whose step was stored; None: all. The others' step was a reset, and was left out.
            ended: Those whose episode ended with it.
            resets: Whether the next appended step of these is a reset.
        """
        steps = self.steps + (1 if kept is None else kept)
        flags = np.zeros(len(steps), bool)
        if not len(ended):
            return EpisodePlaces(self.episode_ids, steps, flags)
        ids = self.episode_ids.copy()
        ids[ended], steps[ended], flags[ended] = _new_ids(len(ended)), 0, resets
        return EpisodePlaces(ids, steps, flags, resets)


class NumberedSteps(NamedTuple):
    """The numbers of n steps.

    Attributes:
        episode_ids, steps: int64 of shape [n].
        kept: Which of the steps are stored, of shape [n]; the others are resets. None: all of them.
        ended: With which of those an episode ended, in order: int64 of shape [k].
        after: Where the environments are after them.
    """

    episode_ids: IDs
    steps: IDs
    kept: Flags | None
    ended: IDs
    after: EpisodePlace | EpisodePlaces


def side_by_side(places: EpisodePlaces, ends: Flags, *, resets: bool) -> NumberedSteps:
    """The numbers of the steps that n environments took, one each.

    Args:
        places: Where they are before that.
        ends: Whether the episode of each ended with it, of shape [n].
        resets: Whether the step after an end is a reset, to be left out.
    """
    kept = ~places.resets if places.any_resets else None
    ended = np.flatnonzero(ends if kept is None else ends & kept)
    return NumberedSteps(places.episode_ids, places.steps, kept, ended, places.after(kept, ended, resets=resets))


def in_turn(place: EpisodePlace, ends: Flags, *, resets: bool) -> NumberedSteps:
    """The numbers of n steps that one environment took in turn. The arguments are as in `side_by_side`."""
    rows, at, ended = len(ends), 0, []
    ids, steps, kept = np.empty(rows, np.int64), np.empty(rows, np.int64), np.ones(rows, bool)
    last = np.flatnonzero(ends)
    while at < rows:
        if place.resets:
            kept[at], place, at = False, EpisodePlace(place.episode_id), at + 1
            continue
        end = int(np.searchsorted(last, at))
        stop = int(last[end]) + 1 if end < len(last) else rows
        ids[at:stop], steps[at:stop] = place.episode_id, np.arange(place.step, place.step + stop - at)
        if end < len(last):
            ended.append(stop - 1)
            place = EpisodePlace.new(resets=resets)
        else:
            place = EpisodePlace(place.episode_id, place.step + stop - at)
        at = stop
    return NumberedSteps(ids, steps, None if kept.all() else kept, np.array(ended, np.int64), place)


def kinds_of(terminated: Flags, ended: IDs, followed: IDs) -> npt.NDArray[np.uint8]:
    """What n rows are to their episodes.

    Args:
        terminated: Whether the episode of each terminated, where it ended: of shape [n].
        ended: With which of them an episode ended.
        followed: Which of these a final observation follows.
    """
    kinds = np.zeros(len(terminated), np.uint8)
    kinds[ended] = np.where(terminated[ended], StepKind.TERMINATED, StepKind.TRUNCATED)
    kinds[followed] |= np.uint8(StepKind.FINAL_FOLLOWS)
    return kinds


def numbers(episode_ids: Any, steps: Any, kinds: Any) -> dict[str, Any]:
    """The fields in which rows carry their numbers."""
    return {EPISODE_ID.name: episode_ids, STEP.name: steps, STEP_KIND.name: kinds}


def _new_ids(number: int) -> IDs:
    return np.array([new_episode_id() for _ in range(number)], np.int64)
