"""Epochs over steps that lie on several shards: each step, or each anchor of a view, comes exactly once, as it was stored."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from tensordict import TensorDict

from tdreplay.epochs import Epochs
from tdreplay.errors import OverwrittenError, TableChangedError, TokenError
from tdreplay.sequences import Sequences
from tdreplay.shard_ids import sharded_row_ids
from tdreplay.transitions import Transitions
from tdreplay.views import View
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from trajectory_oracle import Ring
from trajectory_play import TRAJECTORIES, Actor

VIEWS: dict[str, View] = {
    "transitions": Transitions(),
    "three steps, stacks of four": Transitions(n_step=3, frame_stack={"obs": 4}),
    "sequences": Sequences(length=5, burn_in=3),
    "sequences that overlap little": Sequences(length=4, stride=3, padding="drop", next_obs=True),
}
ORDERS: dict[str, dict[str, Any]] = {"slot order": {}, "shuffled": {"shuffle": True, "seed": 5}}


def cases(views: Iterable[str | None], every: int = 2) -> pytest.MarkDecorator:
    """The orders with views, or None for the steps themselves. In the short form one of so many comes."""
    found = [
        pytest.param(None if view is None else VIEWS[view], order, id=f"{view or 'steps'}, {name}")
        for view, (name, order) in itertools.product(views, ORDERS.items())
    ]
    chosen = found if os.environ.get("TDREPLAY_LONG") else [one for number, one in enumerate(found) if (number // 2 + number) % every == 0]
    return pytest.mark.parametrize(("view", "order"), chosen)


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Of three servers."""
    with ExitStack() as stack:
        config = ServerConfig(address="127.0.0.1:0", max_tables=10_000)
        yield [stack.enter_context(ReplayServer(config)).address for _ in range(3)]


class Home:
    """The table of a shard into which two actors play in turn, and what it must hold."""

    def __init__(self, number: int, buffer: RemoteReplayBuffer, capacity: int) -> None:
        self.number, self.buffer, self.ring = number, buffer, Ring(capacity)
        chance, numbers = random.Random(number), itertools.count(100 * number)
        self._players = [(Actor(chance, numbers, longest=12), buffer.trajectory_writer()) for _ in range(2)]
        self._turns = itertools.cycle(self._players)

    def play(self, steps: int) -> None:
        """So many steps, one after the other."""
        for actor, writer in itertools.islice(self._turns, steps):
            played = actor.play()
            writer.append(played.step, final=played.final)
            if played.abandons:
                writer.abandon()
            writer.flush()
            for row in played.rows:
                self.ring.insert(row)

    def anchors(self, view: View | None) -> dict[int, Any]:
        """The steps, or the anchors of a view, by their row ids in the whole buffer: what each must be."""
        found = self.ring.steps if view is None else self.ring.of(view, TRAJECTORIES)
        return {sharded_row_ids(row_id, self.number): value for row_id, value in found.items()}


class Stage:
    """Tables on three shards, and the buffer over them."""

    def __init__(self, stack: ExitStack, addresses: list[str], table: str, capacity: int, on_loss: str) -> None:
        options = {"table": table, "trajectories": TRAJECTORIES}
        shards = [stack.enter_context(RemoteReplayBuffer(address, buffer_size=capacity, **options)) for address in addresses]
        self.homes = [Home(number, shard, capacity) for number, shard in enumerate(shards)]
        self.whole: Any = stack.enter_context(ShardedReplayBuffer(addresses, on_loss=on_loss, table=table))

    def play(self, *steps: int) -> None:
        """So many steps on each shard."""
        for home, count in zip(self.homes, steps, strict=False):
            home.play(count)

    def anchors(self, view: View | None) -> dict[int, Any]:
        """Those of all shards."""
        return {row_id: value for home in self.homes for row_id, value in home.anchors(view).items()}


@pytest.fixture
def staged(addresses: list[str], table: str) -> Iterator[Any]:
    """Makes tables of a capacity, on three shards."""
    with ExitStack() as stack:
        yield lambda capacity=80, on_loss="raise": Stage(stack, addresses, table, capacity, on_loss)


def anchors(batch: TensorDict) -> list[int]:
    """The row ids of the anchors of a batch."""
    row_ids = batch["row_id"]
    found: list[int] = (row_ids if row_ids.ndim == 1 else row_ids[:, 0]).tolist()
    return found


def taken(batches: Epochs) -> list[list[int]]:
    return [anchors(batch) for batch in batches]


def resumed(whole: ShardedReplayBuffer, batches: Epochs, *arguments: Any, **options: Any) -> Epochs:
    """Another iterator that goes on where one stood."""
    token = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    other = whole.epochs(*arguments, **options)
    other.load_state_dict(token)
    assert other.state_dict() == token
    return other


@cases([None, *VIEWS])
def test_each_anchor_of_all_shards_comes_once_an_epoch_in_full_batches_however_many_learners_share_them(staged, view, order):
    stage = staged()
    stage.play(100, 40, 9)  # On the first shard some episodes have lost their first steps.
    expected = stage.anchors(view)
    for world_size in (1, 3):
        options = {"seed": 1} | order
        shares = [taken(stage.whole.epochs(7, 2, view=view, rank=rank, world_size=world_size, **options)) for rank in range(world_size)]
        assert Counter(row_id for share in shares for batch in share for row_id in batch) == dict.fromkeys(expected, 2)
        for share in shares:
            assert sum(len(batch) < 7 for batch in share) <= 2


@cases(VIEWS)
def test_every_value_is_that_of_the_oracle(staged, view, order):
    stage = staged()
    stage.play(90, 50, 0)  # The third shard has no rows.
    expected = stage.anchors(view)
    for batch in stage.whole.epochs(9, view=view, **order):
        flat = {key if isinstance(key, str) else ".".join(key): value.numpy() for key, value in batch.items(True, True)}
        for place, row_id in enumerate(anchors(batch)):
            for name, value in expected[row_id].items():
                if name not in {"row_id", "index"}:
                    np.testing.assert_allclose(flat[name][place], value, rtol=1e-6, err_msg=name)


@cases([None, *VIEWS], every=4)
def test_a_learner_goes_on_at_every_batch_while_steps_come(staged, view, order):
    stage = staged(150)
    stage.play(40, 20, 10)
    expected, arguments = stage.anchors(view), (12, 2)
    batches, found = stage.whole.epochs(*arguments, view=view, **order), Counter[int]()
    for number in range(1000):
        stage.play(*([2, 2, 2] if number < 15 else []))
        batches = resumed(stage.whole, batches, *arguments, view=view, **order)
        batch = next(batches, None)
        if batch is None:
            break
        found.update(anchors(batch))
    assert found == dict.fromkeys(expected, 2)
    assert (batches.overwritten, batches.lost, batches.epoch) == (0, 0, 2)


@cases(VIEWS, every=4)
def test_with_drop_last_a_learner_leaves_out_its_last_batch(staged, view, order):
    stage = staged()
    stage.play(60, 30, 20)
    found = taken(stage.whole.epochs(6, 2, view=view, drop_last=True, **order))
    assert [len(batch) for batch in found] == [6] * (2 * (len(stage.anchors(view)) // 6))


@cases([None, *VIEWS])
def test_anchors_that_were_overwritten_are_left_out_and_counted(staged, view, order):
    stage = staged()
    stage.play(90, 40, 30)
    rows = sum(len(home.ring.rows) for home in stage.homes)
    batches, expected = stage.whole.epochs(4, view=view, **order), stage.anchors(view)
    token = batches.state_dict()
    stage.play(50, 20, 10)
    batches.load_state_dict(token)  # Nothing is read ahead of these steps.
    found = taken(batches)
    left = stage.anchors(view).keys() & expected.keys()
    assert Counter(row_id for batch in found for row_id in batch) == dict.fromkeys(left, 1)
    assert 0 < batches.overwritten <= rows
    assert all(len(batch) == 4 for batch in found[:-1])


@cases(VIEWS)
def test_what_lies_in_the_slot_of_an_overwritten_step_comes_where_it_is_an_anchor(staged, view, order):
    stage = staged()
    stage.play(90, 40, 30)
    batches = stage.whole.epochs(4, view=view, on_overwrite="replace", **order)
    token, before = batches.state_dict(), stage.anchors(view)
    stage.play(50, 0, 0)
    batches.load_state_dict(token)
    found = [row_id for batch in taken(batches) for row_id in batch]
    now = stage.anchors(view)
    assert found
    assert set(found) <= now.keys()
    assert {row_id for row_id in found if row_id >> 48} == {row_id for row_id in before if row_id >> 48}
    assert set(found) >= now.keys() & before.keys()
    assert batches.overwritten > 0


@cases(["transitions"])
def test_the_first_overwritten_step_is_an_error_where_that_is_wanted(staged, view, order):
    stage = staged()
    stage.play(60, 60, 60)
    batches = stage.whole.epochs(4, view=view, on_overwrite="raise", **order)
    token = batches.state_dict()
    stage.play(0, 60, 0)
    batches.load_state_dict(token)
    with pytest.raises(OverwrittenError, match="shard 1"):
        taken(batches)


@cases([None, *VIEWS], every=4)
def test_steps_of_a_shard_that_was_reset_are_counted_as_lost_where_the_buffer_goes_on(staged, view, order):
    stage = staged(on_loss="degrade")
    stage.play(60, 40, 30)
    rows = len(stage.homes[1].ring.rows)
    batches = stage.whole.epochs(4, 2, view=view, **order)
    token, expected = batches.state_dict(), {**stage.homes[0].anchors(view), **stage.homes[2].anchors(view)}
    stage.homes[1].buffer.reset()
    batches.load_state_dict(token)
    assert Counter(row_id for batch in taken(batches) for row_id in batch) == dict.fromkeys(expected, 2)
    assert (batches.lost, batches.overwritten) == (2 * rows, 0)
    with ShardedReplayBuffer(stage.whole.addresses, table=stage.whole.table) as strict:
        with pytest.raises(TableChangedError, match="shard 1"):
            strict.epochs(4, 2, view=view, **order).load_state_dict(token)


def test_a_token_is_of_its_view(staged):
    stage = staged()
    stage.play(30, 30, 30)
    token = stage.whole.epochs(4, view=Transitions()).state_dict()
    for other in (None, Transitions(n_step=2)):
        with pytest.raises(TokenError, match=r"state_dict|windows"):
            stage.whole.epochs(4, view=other).load_state_dict(token)


def test_fields_that_were_asked_for_come_alone(staged):
    stage = staged()
    stage.play(30, 30, 30)
    expected = sorted(row.fields["action"].item() for home in stage.homes for row in home.ring.steps.values())
    found = list(stage.whole.epochs(8, fields=["action"]))
    assert all(set(batch.keys()) == {"action"} for batch in found)
    assert sorted(action for batch in found for action in batch["action"].tolist()) == expected
