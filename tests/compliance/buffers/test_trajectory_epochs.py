"""Epochs over steps: each step, or each anchor of a view, comes exactly once, whatever becomes of the rows meanwhile."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tensordict import TensorDict

from compliance.kinds import MakeBuffer
from tdreplay.api import BaseReplayBuffer
from tdreplay.epochs import Epochs
from tdreplay.errors import NoTrajectoriesError, OverwrittenError, TokenError
from tdreplay.sequences import Sequences
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay.transitions import Transitions
from tdreplay.views import View
from trajectory_play import TRAJECTORIES, Actor
from trajectory_shards import RingOverShards, ring_of, written

VIEWS: dict[str, View] = {
    "transitions": Transitions(),
    "three steps, stacks of four": Transitions(n_step=3, frame_stack={"obs": 4}),
    "sequences": Sequences(length=5, burn_in=3),
    "sequences that overlap little": Sequences(length=4, stride=3, padding="drop", next_obs=True),
}
pytestmark = pytest.mark.covers("kind", among=4)
views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
ORDERS: dict[str, dict[str, Any]] = {"slot order": {}, "shuffled": {"shuffle": True, "seed": 5}}
orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())


class Game:
    """A buffer into which some actors play in turn, and what it must hold."""

    def __init__(self, make_buffer: MakeBuffer, capacity: int) -> None:
        self.buffer: Any = make_buffer(capacity, trajectories=TRAJECTORIES)
        self.ring, chance, numbers = ring_of(self.buffer, capacity), random.Random(3), itertools.count()
        self._actors = [Actor(chance, numbers, longest=12) for _ in range(3)]
        self._writers = [self.buffer.trajectory_writer() for _ in self._actors]
        self._turns = itertools.cycle(range(3))

    def play(self, steps: int) -> None:
        """So many steps, one after the other."""
        for turn in itertools.islice(self._turns, steps):
            played, writer, before = self._actors[turn].play(), self._writers[turn], written(self.buffer)
            writer.append(played.step, final=played.final)
            if played.abandons:
                writer.abandon()
            writer.flush()
            if isinstance(self.ring, RingOverShards):
                (home,) = (place for place, (old, new) in enumerate(zip(before, written(self.buffer), strict=True)) if new > old)
                self.ring.homes[played.rows[0].episode] = home
            for row in played.rows:
                self.ring.insert(row)

    def anchors(self, view: View | None) -> list[int]:
        """The row ids of all steps, or of all anchors of a view, that are there now."""
        return sorted(self.ring.steps if view is None else self.ring.of(view, TRAJECTORIES))


@pytest.fixture
def game(make_buffer: MakeBuffer) -> Game:
    return Game(make_buffer, 150)


def anchors(batch: TensorDict) -> list[int]:
    """The row ids of the anchors of a batch."""
    row_ids = batch["row_id"]
    found: list[int] = (row_ids if row_ids.ndim == 1 else row_ids[:, 0]).tolist()
    return found


def taken(batches: Epochs) -> list[list[int]]:
    return [anchors(batch) for batch in batches]


def resumed(buffer: BaseReplayBuffer, batches: Epochs, *arguments: Any, **options: Any) -> Epochs:
    """Another iterator that goes on where one stood."""
    token = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    other = buffer.epochs(*arguments, **options)
    other.load_state_dict(token)
    assert other.state_dict() == token
    return other


@orders
@pytest.mark.parametrize("view", [None, *VIEWS.values()], ids=["steps", *VIEWS.keys()])
def test_each_anchor_comes_once_an_epoch_in_full_batches_however_many_learners_share_them(game, view, order):
    game.play(170)  # It wraps around: some episodes have lost their first steps.
    expected = game.anchors(view)
    assert expected
    for world_size in (1, 3):
        options = {"seed": 1} | order
        shares = [taken(game.buffer.epochs(7, 2, view=view, rank=rank, world_size=world_size, **options)) for rank in range(world_size)]
        assert Counter(row_id for share in shares for batch in share for row_id in batch) == dict.fromkeys(expected, 2)
        for share in shares:
            assert sum(len(batch) < 7 for batch in share) <= 2


@views
def test_every_value_of_an_epoch_is_that_of_the_oracle(game, view):
    game.play(120)
    expected = game.ring.of(view, TRAJECTORIES)
    for batch in game.buffer.epochs(9, view=view, shuffle=True, seed=2):
        flat = {key if isinstance(key, str) else ".".join(key): value.numpy() for key, value in batch.items(True, True)}
        for place, row_id in enumerate(anchors(batch)):
            for name, value in expected[row_id].items():
                np.testing.assert_allclose(flat[name][place], value, rtol=1e-6, err_msg=name)


@orders
@views
def test_steps_that_came_later_change_nothing_and_a_learner_goes_on_at_every_batch(make_buffer, view, order):
    game = Game(make_buffer, 600)  # Room for all steps on one of five shards.
    game.play(60)
    expected, arguments = game.anchors(view), (4, 2)
    batches, found = game.buffer.epochs(*arguments, view=view, **order), Counter[int]()
    for number in range(1000):
        game.play(1 if number < 60 else 0)
        batches = resumed(game.buffer, batches, *arguments, view=view, **order)
        batch = next(batches, None)
        if batch is None:
            break
        found.update(anchors(batch))
    assert found == dict.fromkeys(expected, 2)
    assert batches.overwritten == 0
    assert batches.epoch == 2


@orders
@views
def test_with_drop_last_a_learner_leaves_out_its_last_batch(game, view, order):
    game.play(100)
    found = taken(game.buffer.epochs(6, 2, view=view, drop_last=True, **order))
    assert [len(batch) for batch in found] == [6] * (2 * (len(game.anchors(view)) // 6))


@orders
@views
def test_anchors_that_were_overwritten_are_left_out_and_counted(game, view, order):
    game.play(130)
    window = sorted(game.ring.rows)
    expected, batches = game.anchors(view), game.buffer.epochs(4, view=view, on_overwrite="skip", **order)
    found = anchors(next(batches))
    game.play(60)
    left = set(game.ring.of(view, TRAJECTORIES)) & set(expected)
    ahead = [anchors(batch) for batch in batches]
    came = found + [row_id for batch in ahead for row_id in batch]
    assert len(came) == len(set(came))
    assert left <= set(came) <= set(expected)
    gone = [row_id for row_id in window if row_id not in game.ring.rows]
    assert gone
    assert 0 < batches.overwritten <= len(window) - len(came)
    assert batches.epoch == 1


@views
def test_newer_anchors_come_in_their_place_where_that_is_wanted(game, kind, view):
    game.play(130)
    expected, batches = game.anchors(view), game.buffer.epochs(4, view=view, on_overwrite="replace")
    game.play(100)
    came = [row_id for batch in batches for row_id in anchors(batch)]
    now = game.ring.of(view, TRAJECTORIES)
    newer = [row_id for row_id in came if row_id not in expected]
    assert newer
    assert all(row_id in now for row_id in newer)
    ids, slots = np.array(came), 150 // max(1, kind.shards)
    taken = zip(shard_numbers(ids).tolist(), (local_row_ids(ids) % slots).tolist(), strict=True)
    assert len(set(taken)) == len(came)
    assert batches.overwritten > 0


@views
def test_overwritten_anchors_are_an_error_where_that_is_wanted(game, view):
    game.play(130)
    batches = game.buffer.epochs(4, view=view, on_overwrite="raise")
    next(batches)
    game.play(90)
    with pytest.raises(OverwrittenError, match=r"row \d+ (was overwritten|needs steps)"):
        list(batches)
    batches.load_state_dict(batches.state_dict())
    with pytest.raises(OverwrittenError):
        list(batches)


def test_epochs_of_which_nothing_comes_end(game):
    game.play(20)
    for batches in (game.buffer.epochs(4, 1 << 40, view=Sequences(length=25, padding="drop")), game.buffer.epochs(500, 1 << 40, drop_last=True)):
        assert list(batches) == []
        assert batches.epoch == 1 << 40


def test_a_token_belongs_to_its_view(game):
    game.play(50)
    token = game.buffer.epochs(4, view=Transitions()).state_dict()
    with pytest.raises(TokenError):
        game.buffer.epochs(4, view=Transitions(n_step=2)).load_state_dict(token)
    with pytest.raises(TokenError):
        game.buffer.epochs(4).load_state_dict(token)


def test_a_view_needs_trajectories(make_buffer):
    with pytest.raises(NoTrajectoriesError):
        make_buffer(5).epochs(4, view=Transitions())
