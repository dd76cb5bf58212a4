"""Compares what a buffer brings of a view with what the oracle says: every value, dtype and shape, of exactly the anchors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tensordict import TensorDictBase

from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import EmptyTableError, InvalidArgumentError, SlotIndexError
from tdreplay.trajectories import Trajectories
from tdreplay.views import View
from trajectory_oracle import Episode, Expected, Ring, longest
from trajectory_play import TRAJECTORIES, action_of, serials

__all__ = ["Checked", "arrays_of", "check_episodes", "check_rows", "episode_ids"]

DRAWN = {"probability", "priority", "table_size", "min_probability"}
ROUNDING = 1e-6
"""Of float32 sums whose terms have no exact form."""


def arrays_of(batch: TensorDictBase) -> dict[str, np.ndarray]:
    """Name -> values, nested names joined with '.'."""
    return {key if isinstance(key, str) else ".".join(key): value.numpy() for key, value in batch.items(True, True)}


def episode_ids(buffer: BaseReplayBuffer) -> dict[int, int]:
    """Episode, as its actor numbered it -> its id in the table. No two share one."""
    rows = arrays_of(buffer.sample_all())
    found = dict(zip(serials(rows["action"]).tolist(), rows["episode_id"].tolist(), strict=True))
    pairs = set(zip(serials(rows["action"]).tolist(), rows["episode_id"].tolist(), strict=True))
    assert len(pairs) == len(found) == len(set(found.values())), f"an episode has two ids, or an id two episodes: {sorted(pairs)}"
    assert min(found.values()) >= 0
    return found


def check_rows(buffer: BaseReplayBuffer, ring: Ring) -> None:
    """Passes where the table holds the rows of the ring: `sample_all` brings each step, as it was, and no final observation."""
    state = buffer.state()
    assert (state.buffer_size, state.size, state.write_count) == (ring.capacity, len(ring.rows), ring.write_count)
    if not ring.steps:
        return
    came = arrays_of(buffer.sample_all())
    assert sorted(came["row_id"].tolist()) == list(ring.steps)
    for place, row_id in enumerate(came["row_id"].tolist()):
        row = ring.steps[row_id]
        assert (came["step"][place], came["index"][place]) == (row.number, ring.slot(row_id))
        assert came["action"][place] == action_of(row.episode, row.number)
        assert all(np.array_equal(came[name][place], value) for name, value in row.fields.items()), row


def check_episodes(buffer: BaseReplayBuffer, ring: Ring, *, returns: bool = True) -> None:
    """Passes where the table lists the episodes of the ring, and brings each whole. `returns`: Whether those of whole episodes are checked."""
    episodes = {episode: stored for episode, stored in ring.episodes.items() if stored.steps}
    listed = {one.episode_id: one for one in buffer.episodes()}
    ids = episode_ids(buffer) if episodes else {}
    assert [one.first_row_id for one in listed.values()] == [next(iter(stored.steps.values()))[0] for stored in episodes.values()]
    for episode, stored in episodes.items():
        one, first = listed[ids[episode]], next(iter(stored.steps))
        ended = one.ended if one.ended in {"", "abandoned"} and not stored.ended else stored.ended
        assert (one.first_step, one.steps, one.ended, one.has_final) == (first, len(stored.steps), ended, stored.final is not None)
        if returns and first == 0:
            assert one.episode_return == sum(row.fields["reward"] for _, row in stored.steps.values())
        check_episode(arrays_of(buffer.episode(ids[episode])), stored)


def check_episode(came: Mapping[str, np.ndarray], stored: Episode) -> None:
    """Passes where all steps of an episode came, in order; with its final observation, also what was observed after each."""
    rows = list(stored.steps.values())
    assert came["row_id"].tolist() == [row_id for row_id, _ in rows]
    assert came["step"].tolist() == [row.number for _, row in rows]
    after = {f"next.{name}" for name in stored.final[1].fields} if stored.final else set()
    assert came.keys() == {*rows[0][1].fields, *after, "index", "row_id", "episode_id", "step"}
    for place, (_, row) in enumerate(rows):
        assert all(np.array_equal(came[name][place], value) for name, value in row.fields.items()), row
        following = stored.observed(row.number + 1)
        assert all(np.array_equal(came[name][place], following.fields[name.removeprefix("next.")]) for name in after), row


_known: OrderedDict[Any, Expected] = OrderedDict()
KNOWN = 400


def _expected(ring: Ring, view: View, trajectories: Trajectories) -> Expected:
    """What the ring says, which takes a while: several tests ask for the same. What a row is follows from its episode and its number."""
    rows = tuple((row.episode, row.number, row.ended, row.announces, row.final) for row in ring.rows.values())
    key = (view, repr(view), trajectories, ring.capacity, tuple(ring.rows), len(getattr(ring, "parts", ())), ring.write_count, rows)
    if key not in _known:
        _known[key] = ring.of(view, trajectories)
        if len(_known) > KNOWN:
            _known.popitem(last=False)
    return _known[key]


class Checked:
    """What a view must bring of a table as it stands, and what it brought.

    Attributes:
        anchors: The row ids that may come, in ascending order.
        seen: Row id -> how often it came in draws.
    """

    def __init__(self, buffer: BaseReplayBuffer, ring: Ring, view: Any, trajectories: Trajectories = TRAJECTORIES) -> None:
        self.buffer, self.view = buffer, view
        self.ring = ring.copy()
        self.refused: type[Exception] | None = InvalidArgumentError if longest(view) > ring.longest_window else None
        expected = {} if self.refused else _expected(self.ring, view, trajectories)
        self.anchors = np.array(list(expected), np.int64)
        ids = episode_ids(buffer) if expected else {}
        rows = [row | self._episode_id(row_id, row, ids) for row_id, row in expected.items()]
        self._columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
        self._priorities = np.array([ring.rows[row_id].priority for row_id in expected])
        self.seen = np.zeros(len(rows), np.int64)

    def _episode_id(self, row_id: int, row: Mapping[str, np.ndarray], ids: Mapping[int, int]) -> dict[str, np.ndarray]:
        """Of a transition its episode; of a sequence the same where a step is."""
        episode = np.int64(ids[self.ring.rows[row_id].episode])
        return {"episode_id": np.where(row["mask"], episode, 0) if "mask" in row else episode}

    # -- batches ----------------------------------------------------------------------------------------------------------------------------------

    def rows(self, batch: TensorDictBase, *, drawn: bool = False) -> np.ndarray:
        """Passes where all rows of a batch are anchors, and right; gives which anchors they are."""
        came = arrays_of(batch)
        places = self._places(came["row_id"].reshape(len(batch), -1)[:, 0])
        probabilities = {name: came.pop(name) for name in DRAWN & came.keys()} if drawn else {}
        assert came.keys() == self._columns.keys()
        for name, values in came.items():
            self._compare(name, values, self._columns[name][places], places)
        self._compare_draw(probabilities, places)
        return places

    def _places(self, row_ids: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.anchors, row_ids).clip(max=max(len(self.anchors) - 1, 0))
        others = row_ids[self.anchors[places] != row_ids] if len(self.anchors) else row_ids
        assert not len(others), f"{self.view} brought {self._named(others)}, which are no anchors"
        return places

    def _named(self, row_ids: np.ndarray) -> str:
        return ", ".join(f"row {row_id} ({self.ring.rows.get(row_id, 'which is not live')})" for row_id in row_ids[:5].tolist())

    def _compare(self, name: str, values: np.ndarray, expected: np.ndarray, places: np.ndarray) -> None:
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape), name
        rough = name.rpartition(".")[2] in {"reward", "discount"}
        equal = np.isclose(values, expected, ROUNDING, ROUNDING) if rough else values == expected
        if not equal.all():
            at = int(np.argwhere(~equal.reshape(len(places), -1).all(1))[0, 0])
            where = self._named(self.anchors[places[at : at + 1]])
            raise AssertionError(f"{self.view} brought of {where} {name}\n{values[at]}\ninstead of\n{expected[at]}")

    def _compare_draw(self, came: Mapping[str, np.ndarray], places: np.ndarray) -> None:
        if "priority" in came:
            shaped = (-1, *[1] * (came["priority"].ndim - 1))
            assert (came["priority"] == self._priorities[places].reshape(shaped)).all()
            assert self.alpha is None or np.allclose(came["probability"], self.probabilities[places].reshape(shaped), 1e-9)

    alpha: float | None = 1.0
    """Of the table's sampler; None: it is not prioritized."""

    @property
    def probabilities(self) -> np.ndarray:
        """How probable each anchor is where the sampler is prioritized."""
        mass = self._priorities ** (self.alpha or 0)
        return mass / mass.sum() if mass.any() else np.full(len(mass), 1 / max(1, len(mass)))

    @property
    def drawable(self) -> np.ndarray:
        """Which anchors a prioritized sampler may draw."""
        return self.probabilities > 0

    def _error(self, kind: type[Exception]) -> type[Exception]:
        """What is raised where there is no anchor: a view that is too long for the table is another thing, where there are rows."""
        return self.refused if self.refused and self.ring.rows else kind

    # -- ways of reading --------------------------------------------------------------------------------------------------------------------------

    def random(self, batch_size: int = 512, prioritized: bool = False) -> None:
        """Draws until each anchor came."""
        wanted = self.drawable if prioritized else np.ones(len(self.anchors), bool)
        if not wanted.any():
            with pytest.raises(self._error(EmptyTableError)):
                self.buffer.sample_batch(batch_size, view=self.view)
            return
        least = self.probabilities[wanted].min() if prioritized else 1 / len(self.anchors)
        for _ in range(10 + int(40 / least) // batch_size):
            self.draw(self.buffer.sample_batch(batch_size, view=self.view))
            if (self.seen > 0).sum() == wanted.sum():
                break
        assert np.array_equal(self.seen > 0, wanted), f"never came: {self._named(self.anchors[wanted & (self.seen == 0)])}"

    def draw(self, batch: TensorDictBase) -> None:
        """Takes in a random batch."""
        np.add.at(self.seen, self.rows(batch, drawn=True), 1)

    def epochs(self, batch_size: int = 17, **options: Any) -> None:
        """Each anchor comes once an epoch; where there is none, no batch comes."""
        if self.refused or not self.ring.rows:
            with pytest.raises(self._error(EmptyTableError)):
                list(self.buffer.epochs(batch_size, view=self.view, **options))
            return
        batches = [self.rows(batch) for batch in self.buffer.epochs(batch_size, 2, view=self.view, **options)]
        came = np.concatenate([np.zeros(0, np.int64), *batches])
        for epoch in np.split(came, 2):
            assert sorted(epoch) == list(range(len(self.anchors)))

    def slots(self, others: int = 1000) -> None:
        """Each anchor by its slot, in one batch; then each other slot, or so many of them, which is none."""
        slots = np.array([self.ring.slot(row_id) for row_id in self.anchors.tolist()], np.int64)
        if len(slots):
            order = np.random.default_rng(len(slots)).permutation(len(slots))
            assert np.array_equal(self.rows(self.buffer.sample_by_index(slots[order], view=self.view)), order)
        rest = np.setdiff1d(np.arange(self.ring.capacity), slots)
        for slot in np.random.default_rng(0).permutation(rest)[:others].tolist():
            with pytest.raises((self.refused or SlotIndexError, SlotIndexError)):
                self.buffer.sample_by_index([*slots[:1].tolist(), slot], view=self.view)
