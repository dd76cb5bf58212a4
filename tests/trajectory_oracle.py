"""What a table of trajectories holds, and what each view of it brings: whole episodes in Python lists, one step after the other.

It is slow and simple, and shares nothing with what it judges but the names of the views' arguments. An episode is named by whoever plays it: which
id it has in a table is for others to find out.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["Episode", "Expected", "Ring", "Row", "longest"]

Fields = Mapping[str, np.ndarray]
Expected = dict[int, dict[str, np.ndarray]]
"""The row id of an anchor -> name -> what a batch has of it: names of nested fields are joined with '.'."""


@dataclass(frozen=True)
class Row:
    """A step, or the final observation of an episode.

    Attributes:
        episode: Which one.
        number: Of the step in its episode, from 0 up; that of the last step + 1 for a final observation.
        fields: Name -> value. A final observation has fields of an observation only.
        ended: How the episode ended with this step: '' (it did not), 'terminated' or 'truncated'.
        announces: The final observation follows.
        final: It is a final observation.
        priority: Of a step.
    """

    episode: Hashable
    number: int
    fields: Fields
    ended: str = ""
    announces: bool = False
    final: bool = False
    priority: float = 1.0

    def __str__(self) -> str:
        return f"{'the final observation' if self.final else 'step'} {self.number} of {self.episode} {self.ended}"


@dataclass
class Episode:
    """What is stored of an episode.

    Attributes:
        steps: Number -> (row id, step), in ascending order and without a gap.
        final: The row id of the final observation, and what it is.
    """

    steps: dict[int, tuple[int, Row]] = field(default_factory=dict)
    final: tuple[int, Row] | None = None

    @property
    def ended(self) -> str:
        """How it ended: '' where it did not, or where its last step is gone."""
        return next(reversed(self.steps.values()))[1].ended if self.steps else ""

    def step(self, number: int) -> Row | None:
        """A step; None: it is not there."""
        return self.steps[number][1] if number in self.steps else None

    def observed(self, number: int) -> Row | None:
        """What was observed at such a place: a step, or the final observation; None: nothing is there."""
        if self.final and self.final[1].number == number:
            return self.final[1]
        return self.step(number)


class Ring:
    """The live rows of a table.

    Attributes:
        capacity: How many there can be.
        write_count: The id of the next row.
        rows: Row id -> row, in ascending order.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.write_count = capacity, 0
        self.rows: dict[int, Row] = {}

    def insert(self, row: Row) -> int:
        """Takes in a row, which overwrites another one where the ring is full, and gives its id."""
        self.rows.pop(self.write_count - self.capacity, None)
        self.rows[self.write_count] = row
        self.write_count += 1
        return self.write_count - 1

    def reset(self, capacity: int | None = None) -> None:
        """Forgets all rows. The next one lies in the first slot."""
        self.capacity = capacity or self.capacity
        self.write_count = -(-self.write_count // self.capacity) * self.capacity
        self.rows.clear()

    def resize(self, capacity: int) -> None:
        """Takes another capacity: the newest rows stay, and keep their ids."""
        self.capacity = capacity
        self.rows = {row_id: row for row_id, row in self.rows.items() if row_id >= self.write_count - capacity}

    def rewind(self, saved: Ring) -> bool:
        """Goes back to where it stood; False: rows that were there then are gone, and nothing changes."""
        if saved.capacity != self.capacity or not saved.rows.keys() <= self.rows.keys():
            return False
        self.rows, self.write_count = {row_id: self.rows[row_id] for row_id in saved.rows}, saved.write_count
        return True

    def prioritize(self, priorities: Mapping[int, float]) -> None:
        """Gives live rows other priorities."""
        for row_id, priority in priorities.items():
            self.rows[row_id] = replace(self.rows[row_id], priority=priority)

    def copy(self) -> Ring:
        """The same as it stands now."""
        made = Ring(self.capacity)
        made.rows, made.write_count = dict(self.rows), self.write_count
        return made

    @property
    def longest_window(self) -> int:
        """The most rows of an episode that can be there."""
        return self.capacity

    def slot(self, row_id: int) -> int:
        """Where a row lies."""
        return row_id % self.capacity

    @property
    def steps(self) -> dict[int, Row]:
        """The live rows that are steps."""
        return {row_id: row for row_id, row in self.rows.items() if not row.final}

    @property
    def episodes(self) -> dict[Hashable, Episode]:
        """The episodes of which anything is stored, by ascending first row."""
        found: dict[Hashable, Episode] = {}
        for row_id, row in self.rows.items():
            episode = found.setdefault(row.episode, Episode())
            if row.final:
                episode.final = row_id, row
            else:
                episode.steps[row.number] = row_id, row
        return found

    def of(self, view: Any, trajectories: Any) -> Expected:
        """Which steps are anchors of a view, by ascending row id, and what comes of each."""
        seen = _Seen(self, view, trajectories)
        found: Expected = {}
        for episode in self.episodes.values():
            for row_id, row in episode.steps.values():
                if (brought := seen.at(episode, row)) is not None:
                    found[row_id] = seen.named(episode, row_id, row, brought)
        return dict(sorted(found.items()))


def longest(view: Any) -> int:
    """The most rows that an anchor of a view needs: a table of fewer has no use for the view."""
    if hasattr(view, "n_step"):
        return max([1, *dict(view.frame_stack).values()]) - 1 + view.n_step + 1
    return int(view.burn_in + view.length + view.next_obs)


class _Seen:
    """A view of a ring, one step at a time."""

    def __init__(self, ring: Ring, view: Any, trajectories: Any) -> None:
        self._ring, self._view, self._trajectories = ring, view, trajectories
        self._fields = next((row.fields for row in ring.rows.values() if not row.final), {})
        self._zeros = {name: np.zeros_like(value) for name, value in self._fields.items()}
        self._is_transition = hasattr(view, "n_step")
        given = {_joined(name): count for name, count in dict(view.frame_stack).items()} if self._is_transition else {}
        self._stacks = {name: given[near] for name in self._fields if (near := _nearest(name, given))}

    def at(self, episode: Episode, row: Row) -> dict[str, Any] | None:
        """What comes of a step; None: it is no anchor."""
        return self._transition(episode, row) if self._is_transition else self._sequence(episode, row)

    def named(self, episode: Episode, row_id: int, row: Row, brought: dict[str, Any]) -> dict[str, np.ndarray]:
        """The same, and where the anchor lies."""
        where: dict[str, Any] = {"index": np.int64(self._ring.slot(row_id)), "row_id": np.int64(row_id)}
        if self._is_transition:
            where["step"] = np.int64(row.number)
        else:
            where = {name: np.full(self._view.burn_in + self._view.length, value) for name, value in where.items()}
        return {name: np.asarray(value) for name, value in (brought | where).items()}

    # -- what both need ---------------------------------------------------------------------------------------------------------------------------

    def _is_final(self, name: str) -> bool:
        return any(name == final or name.startswith(f"{final}.") for final in self._trajectories.final_fields)

    def _taken(self, episode: Episode, number: int, most: int) -> list[Row] | None:
        """The steps from a step on, up to the end of the episode; None: one of them did not come."""
        taken: list[Row] = []
        while len(taken) < most:
            step = episode.step(number + len(taken))
            if step is None:
                return None
            taken.append(step)
            if step.ended:
                break
        return taken

    @staticmethod
    def _has_next(episode: Episode, last: Row) -> bool:
        """Whether the observation after a step is there, or nobody needs it."""
        needless = last.ended == "terminated" and not last.announces
        return needless or episode.observed(last.number + 1) is not None

    def _lacks(self, episode: Episode, number: int, before: int) -> bool:
        """Whether one of the steps before a step is not there."""
        return any(episode.step(earlier) is None for earlier in range(max(0, number - before), number))

    def _value(self, row: Row | None, name: str) -> np.ndarray:
        """A row's value of a field; 0 where there is no row."""
        return self._zeros[name] if row is None else row.fields[name]

    # -- transitions ------------------------------------------------------------------------------------------------------------------------------

    def _transition(self, episode: Episode, row: Row) -> dict[str, Any] | None:
        taken = self._taken(episode, row.number, self._view.n_step)
        if taken is None or not self._has_next(episode, taken[-1]) or self._lacks(episode, row.number, max([1, *self._stacks.values()]) - 1):
            return None
        return self._now(episode, row) | self._next(episode, row.number + len(taken)) | self._gained(taken)

    def _now(self, episode: Episode, row: Row) -> dict[str, Any]:
        apart = {*self._trajectories.ends, self._trajectories.reward}
        return {name: self._frames(episode, row.number, name) for name in self._fields if name not in apart}

    def _next(self, episode: Episode, number: int) -> dict[str, Any]:
        return {self._next_name(name): self._frames(episode, number, name) for name in self._fields if self._is_final(name)}

    def _frames(self, episode: Episode, number: int, name: str) -> np.ndarray:
        """What a step has of a field, or the stack that ends there."""
        if name not in self._stacks:
            return self._value(episode.observed(number), name)
        return np.stack([self._frame(episode, earlier, name) for earlier in range(number - self._stacks[name] + 1, number + 1)])

    def _frame(self, episode: Episode, number: int, name: str) -> np.ndarray:
        if number < 0 and self._view.padding == "repeat":
            return self._value(episode.steps[0][1], name)
        return self._value(episode.observed(number) if number >= 0 else None, name)

    def _gained(self, taken: list[Row]) -> dict[str, Any]:
        """The rewards of some steps, and how they ended."""
        last, gamma, found = taken[-1], self._view.gamma, {}
        if self._trajectories.reward in self._fields:
            rewards = [step.fields[self._trajectories.reward] for step in taken]
            total = sum(gamma**place * reward.astype(np.float64) for place, reward in enumerate(rewards))
            found[self._result_name(self._trajectories.reward)] = np.asarray(total).astype(rewards[0].dtype)
        ends = {end: last.fields[end] for end in self._trajectories.ends}
        found |= {self._result_name(end): value for end, value in ends.items()}
        found[self._result_name("done")] = np.logical_or.reduce(list(ends.values()))
        discount = 0.0 if last.ended == "terminated" else gamma ** len(taken)
        return found | {"discount": np.float32(discount), "n_steps": np.int64(len(taken))}

    def _next_name(self, name: str) -> str:
        return f"next.{name}" if self._view.names == "torchrl" else f"next_{name}"

    def _result_name(self, name: str) -> str:
        return f"next.{name}" if self._view.names == "torchrl" else name

    # -- sequences --------------------------------------------------------------------------------------------------------------------------------

    def _sequence(self, episode: Episode, row: Row) -> dict[str, Any] | None:
        view = self._view
        taken = self._taken(episode, row.number, view.length)
        if taken is None or row.number % view.stride or self._lacks(episode, row.number, view.burn_in):
            return None
        if (view.next_obs and not self._has_next(episode, taken[-1])) or (view.padding == "drop" and len(taken) < view.length):
            return None
        places = range(row.number - view.burn_in, row.number + view.length)
        steps = [episode.step(number) if number < row.number + len(taken) else None for number in places]
        found = {name: np.stack([self._value(step, name) for step in steps]) for name in self._fields}
        found["mask"] = np.array([step is not None for step in steps])
        found["is_init"] = np.array([step is not None and step.number == 0 for step in steps])
        found["burn_in"] = np.arange(len(places)) < view.burn_in
        found["step"] = np.array([0 if step is None else step.number for step in steps])
        if view.next_obs:
            found |= self._observations(episode, places) | self._next_observations(episode, places)
        return found | self._step_ids(episode, steps)

    def _observations(self, episode: Episode, places: range) -> dict[str, Any]:
        """The final observation stands at its own place, too, where the mask is False: observations share the memory of those after them."""
        seen = [episode.observed(number) for number in places]
        return {name: np.stack([self._value(row, name) for row in seen]) for name in self._fields if self._is_final(name)}

    def _next_observations(self, episode: Episode, places: range) -> dict[str, Any]:
        after = range(places.start + 1, places.stop + 1)
        return {f"next.{name}": values for name, values in self._observations(episode, after).items()}

    def _step_ids(self, episode: Episode, steps: list[Row | None]) -> dict[str, Any]:
        if not self._view.step_ids:
            return {}
        ids = [-1 if step is None else episode.steps[step.number][0] for step in steps]
        slots = [-1 if row_id < 0 else self._ring.slot(row_id) for row_id in ids]
        return {"steps.index": np.array(slots), "steps.row_id": np.array(ids)}


def _joined(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else ".".join(name)


def _nearest(name: str, given: Mapping[str, int]) -> str:
    """The one of some names that stands for a field: its own, or that of its nearest parent; '' if there is none."""
    while name and name not in given:
        name = name.rpartition(".")[0]
    return name
