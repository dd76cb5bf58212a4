"""Episodes as things: the list of them, one whole, their returns, and what describe() says, against whole episodes in Python lists."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import astuple

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import EpisodeNotFoundError, InvalidArgumentError, NoTrajectoriesError
from tdreplay.sequences import Sequences
from tdreplay.trajectories import Trajectories
from tdreplay.transitions import Transitions
from trajectory_play import TRAJECTORIES, plain_fields
from trajectory_rows import Chronicle, Players, columns_of, id_of

VIEWS = {
    "transitions": Transitions(),
    "3 steps of stacks": Transitions(n_step=3, frame_stack={"obs": 4}),
    "sequences": Sequences(length=5, burn_in=2, stride=3),
    "whole sequences": Sequences(length=4, padding="drop", next_obs=True),
}


def check_episodes(buffer, chronicle) -> None:
    """The list is what the chronicle says; an episode that did not end is open or abandoned."""
    found = buffer.episodes()
    unfinished = {episode.ended for episode in found} - {"terminated", "truncated"}
    assert unfinished <= {"", "abandoned"}
    assert len(unfinished) <= 1
    assert found == chronicle.episodes(*unfinished or {""})


def check_description(buffer, chronicle) -> None:
    state, ring = buffer.describe().trajectories, chronicle.ring
    expected = chronicle.episodes("")
    assert (state.steps, state.episodes) == (len(ring.steps), len(expected))
    assert state.open_episodes == sum(not episode.ended for episode in expected)
    assert state.transitions == len(ring.of(VIEWS["transitions"], TRAJECTORIES))
    returns, lengths = chronicle.statistics()
    assert astuple(state.episode_return) == pytest.approx(astuple(returns), rel=1e-12, abs=1e-12)
    assert astuple(state.episode_length) == pytest.approx(astuple(lengths), rel=1e-12, abs=1e-12)


def check_whole(buffer, ring, serial, trajectories=TRAJECTORIES) -> None:
    """One episode has the steps that are stored, and the observation after each where the final one is."""
    episode, found = ring.episodes[serial], buffer.episode(id_of(serial))
    ids, rows = zip(*episode.steps.values(), strict=True)
    assert found.batch_size == (len(rows),)
    assert found["row_id"].tolist() == list(ids)
    assert found["index"].tolist() == [ring.slot(row_id) for row_id in ids]
    for name, column in columns_of(rows).items():
        if name != "step_kind":
            assert np.array_equal(found[tuple(name.split("."))].numpy(), column)
    assert found.get("step_kind") is None
    after = [name for name in rows[0].fields if name.split(".")[0] in trajectories.final_fields]
    assert (found.get("next") is not None) is (episode.final is not None)
    if episode.final is not None:
        following = [*rows[1:], episode.final[1]]
        assert {".".join(key) for key in found["next"].keys(True, True) if isinstance(key, tuple)} <= set(after)
        for name in after:
            assert np.array_equal(found[("next", *name.split("."))].numpy(), np.stack([row.fields[name] for row in following]))


@pytest.mark.parametrize("actors", [1, 16])
@pytest.mark.parametrize("capacity", [37, 400])
def test_episodes_are_listed_and_counted_while_rows_come_and_go(make_buffer, kind, actors, capacity):
    buffer, chronicle = make_buffer(capacity, trajectories=TRAJECTORIES), Chronicle(capacity, kind.shards)
    chance, players = random.Random(capacity + actors), Players(actors, actors)
    most = min(40, capacity // max(2, 2 * kind.shards))  # No more than a shard takes in at once.
    for turn in range(60):
        buffer.add_batch(chronicle.insert(players.rows(chance.randint(1, most))))
        if turn % 3 == 0:
            check_episodes(buffer, chronicle)
            check_description(buffer, chronicle)
        if turn % 10 == 0:
            for serial, episode in chronicle.ring.episodes.items():
                if episode.steps:
                    check_whole(buffer, chronicle.ring, serial)


def test_describe_says_how_many_steps_each_view_can_draw(make_buffer, kind):
    buffer, chronicle, players = make_buffer(150, trajectories=TRAJECTORIES), Chronicle(150, kind.shards), Players(7, 5)
    for _ in range(6):
        buffer.add_batch(chronicle.insert(players.rows(45)))
        for view in VIEWS.values():
            buffer.sample_batch(4, view=view)
        buffer.sample_batch(4)
        counted = {anchors.rule: anchors.count for anchors in buffer.describe().trajectories.anchors}
        expected = {view.query(TRAJECTORIES).rule: len(chronicle.ring.of(view, TRAJECTORIES)) for view in VIEWS.values()}
        expected[Transitions().query(TRAJECTORIES).rule._replace(next_step=False)] = len(chronicle.ring.steps)
        assert counted == expected


def test_priorities_do_not_change_how_many_steps_can_be_drawn(make_buffer, kind):
    buffer, chronicle, players = make_buffer(100, trajectories=TRAJECTORIES, sampler="prioritized"), Chronicle(100, kind.shards), Players(3, 4)
    buffer.add_batch(chronicle.insert(players.rows(60)))
    for uniform in (False, True):
        buffer.sample_batch(4, view=VIEWS["sequences"], uniform=uniform)
    (anchors,) = buffer.describe().trajectories.anchors
    assert anchors.count == len(chronicle.ring.of(VIEWS["sequences"], TRAJECTORIES))


def test_a_table_without_steps_has_no_episodes(make_buffer):
    buffer = make_buffer(10, trajectories=TRAJECTORIES)
    assert buffer.episodes() == []
    state = buffer.describe().trajectories
    assert (state.steps, state.episodes, state.transitions, state.anchors) == (0, 0, 0, ())
    with pytest.raises(EpisodeNotFoundError, match="episode 5 is not there"):
        buffer.episode(5)


def test_an_episode_of_which_the_final_observation_alone_is_left_is_none(make_buffer, kind):
    buffer, chronicle = make_buffer(4, trajectories=TRAJECTORIES), Chronicle(4, min(4, kind.shards))
    players = Players(1, 1, longest=3, ends=("terminated",))
    for _ in range(30):
        buffer.add_batch(chronicle.insert(players.rows(1)))
        check_episodes(buffer, chronicle)
        check_description(buffer, chronicle)
        for serial, episode in chronicle.ring.episodes.items():
            if not episode.steps:
                with pytest.raises(EpisodeNotFoundError, match=f"episode {id_of(serial)}"):
                    buffer.episode(id_of(serial))


def test_a_reset_forgets_episodes_and_keeps_what_is_known_of_those_that_ended(make_buffer, kind):
    buffer, chronicle, players = make_buffer(100, trajectories=TRAJECTORIES), Chronicle(100, kind.shards), Players(5, 4)
    buffer.add_batch(chronicle.insert(players.rows(80)))
    buffer.reset(60)
    chronicle.ring.reset(60)
    assert buffer.episodes() == []
    check_description(buffer, chronicle)


def test_a_rewind_takes_steps_back_and_the_episodes_go_on_from_there(make_buffer, kind, tmp_path):
    buffer, chronicle, players = make_buffer(500, trajectories=TRAJECTORIES), Chronicle(500, kind.shards), Players(5, 4)
    rows = players.rows(200)
    buffer.add_batch(chronicle.insert(rows[:90]))
    buffer.save(tmp_path / "here")
    buffer.add_batch(Chronicle(500, kind.shards).insert(rows[90:150]))
    buffer.load(tmp_path / "here")
    check_episodes(buffer, chronicle)
    buffer.add_batch(chronicle.insert(rows[90:]))
    check_episodes(buffer, chronicle)


def steps(rewards, episode_id=7, last=False):
    """Steps of one episode with these rewards."""
    count = len(rewards)
    kind = torch.zeros(count, dtype=torch.uint8)
    kind[-1] = int(last)
    ends = {"terminated": kind == 1, "truncated": torch.zeros(count, dtype=torch.bool)}
    numbers = {"episode_id": torch.full((count,), episode_id), "step": torch.arange(count), "step_kind": kind}
    return TensorDict({"obs": torch.zeros(count, 2), "reward": rewards, **ends, **numbers}, [count])


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64, torch.uint16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_rewards_of_any_real_or_whole_numbers_are_summed_up(make_buffer, dtype, shape):
    buffer = make_buffer(100, trajectories=True)
    buffer.add_batch(steps(torch.tensor([1, 2, 4, 0.5 if dtype.is_floating_point else 8]).to(dtype).reshape(4, *shape), last=True))
    expected = 7.5 if dtype.is_floating_point else 15.0
    assert [episode.episode_return for episode in buffer.episodes()] == [expected]
    assert buffer.describe().trajectories.episode_return.mean == expected


@pytest.mark.parametrize("rewards", [torch.ones(3, 2), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.complex64)])
def test_what_is_no_number_a_step_is_no_reward(make_buffer, rewards):
    buffer = make_buffer(10, trajectories=True)
    buffer.add_batch(steps(rewards, last=True))
    state = buffer.describe().trajectories
    assert [episode.episode_return for episode in buffer.episodes()] == [None]
    assert (state.episode_return.count, state.episode_length.count, state.episode_length.mean) == (0, 1, 3.0)


def test_a_table_without_a_reward_has_no_returns(make_buffer):
    buffer = make_buffer(10, trajectories=Trajectories(reward=None))
    buffer.add_batch(steps(torch.ones(3)))
    assert [episode.episode_return for episode in buffer.episodes()] == [None]


def test_returns_do_not_drift_in_whatever_portions_steps_come(make_buffer):
    buffer, rewards = make_buffer(20_000, trajectories=True), torch.full((3000,), 0.1, dtype=torch.float64)
    rewards[0] = 1e12
    whole = steps(rewards)
    for start in range(0, 3000, 100):
        buffer.add_batch(whole[start : start + 100])
    one = steps(rewards, episode_id=8)
    buffer.add_batch(one[:1])
    buffer.add_batch(one[1:])
    assert [episode.episode_return for episode in buffer.episodes()] == pytest.approx([1e12 + 299.9] * 2, rel=1e-15)


def test_infinite_rewards_stay_infinite(make_buffer):
    buffer, infinity = make_buffer(10, trajectories=True), float("inf")
    whole = steps(torch.tensor([infinity, 1.0, 2.0]))
    for start in range(3):
        buffer.add_batch(whole[start : start + 1])
    assert [episode.episode_return for episode in buffer.episodes()] == [infinity]


def test_a_long_episode_comes_whole_in_order(make_buffer):
    buffer, count = make_buffer(150_000, trajectories=True), 100_000
    whole = steps(torch.arange(count, dtype=torch.float32))
    whole["obs"] = torch.arange(count).float().unsqueeze(1).repeat(1, 20)
    other = steps(torch.zeros(1), episode_id=3)
    other["obs"] = torch.zeros(1, 20)
    for start in range(0, count, 10_000):
        buffer.add_batch(whole[start : start + 10_000])
        other["step"] = torch.tensor([start // 10_000])
        buffer.add_batch(other)
    found = buffer.episode(7)
    assert found.batch_size == (count,)
    assert torch.equal(found["step"], torch.arange(count))
    assert torch.equal(found["obs"], whole["obs"])
    assert buffer.episode(3)["step"].tolist() == list(range(10))


def test_an_episode_whose_steps_lie_far_apart_comes_whole(make_buffer):
    buffer = make_buffer(5000, trajectories=True)
    for number in range(4):
        lone = steps(torch.ones(1), episode_id=9)
        lone["step"] = torch.tensor([number])
        buffer.add_batch(lone)
        buffer.add_batch(steps(torch.ones(1000), episode_id=100 + number))
    assert buffer.episode(9)["row_id"].tolist() == [0, 1001, 2002, 3003]


def test_next_observations_share_the_memory_of_observations(make_buffer, kind):
    buffer, chronicle = make_buffer(50, trajectories=TRAJECTORIES), Chronicle(50, kind.shards)
    rows = Players(1, 1, longest=8, ends=("truncated",)).rows(9)
    buffer.add_batch(chronicle.insert(rows))
    found = buffer.episode(id_of(rows[0].episode))
    found["obs"][1:] += 1
    assert torch.equal(found["next", "obs"][:-1], found["obs"][1:])


def test_a_table_without_trajectories_has_no_episodes(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch({"obs": torch.zeros(3)})
    assert buffer.describe().trajectories is None
    for act in (buffer.episodes, lambda: buffer.episode(3)):
        with pytest.raises(NoTrajectoriesError, match="no steps of episodes"):
            act()


@pytest.mark.parametrize("episode_id", [-1, 1 << 63, 1.5, "7", None])
def test_an_episode_id_that_is_none_is_refused(make_buffer, episode_id):
    with pytest.raises(InvalidArgumentError, match="episode_id"):
        make_buffer(10, trajectories=True).episode(episode_id)


def test_fields_of_steps_are_those_that_were_given(make_buffer, kind):
    buffer, chronicle = make_buffer(50, trajectories=TRAJECTORIES), Chronicle(50, kind.shards)
    rows = Players(2, 1, ends=("abandoned",)).rows(3)
    buffer.add_batch(chronicle.insert(rows))
    found = {key if isinstance(key, str) else ".".join(key) for key in buffer.episode(id_of(rows[0].episode)).keys(True, True)}
    assert found == {*plain_fields(0, 0), "index", "row_id", "episode_id", "step"}


def step(number, reward=1.0, terminated=False):
    """A step for a writer of trajectories."""
    return {"obs": np.full(2, number, np.float32), "reward": np.float32(reward), "terminated": terminated, "truncated": False}


def ended(buffer) -> list[str]:
    return [episode.ended for episode in buffer.episodes()]


def becomes(buffer, expected) -> None:
    """Waits for it: a server hears of the end of a call a moment later than its client."""
    until = time.monotonic() + 10
    while ended(buffer) != expected and time.monotonic() < until:
        time.sleep(0.01)
    assert ended(buffer) == expected


def test_an_episode_is_abandoned_when_its_writer_is_not_connected_any_more(make_buffer):
    buffer = make_buffer(50, trajectories=True)
    writer, other = buffer.trajectory_writer(), buffer.trajectory_writer()
    writer.append(step(0, terminated=True), final={"obs": np.ones(2, np.float32)})
    writer.append(step(0))
    writer.flush()
    other.append(step(0))
    other.flush()
    assert ended(buffer) == ["terminated", "", ""]
    writer.close()
    becomes(buffer, ["terminated", "abandoned", ""])
    other.close()
    becomes(buffer, ["terminated", "abandoned", "abandoned"])
    assert buffer.describe().trajectories.open_episodes == 2
    with buffer.trajectory_writer() as third:
        third.append(step(0))
        third.flush()
        becomes(buffer, ["terminated", "abandoned", "abandoned", ""])


def test_a_writer_that_nobody_refers_to_any_more_is_not_connected(make_buffer):
    buffer = make_buffer(50, trajectories=True)
    writer = buffer.trajectory_writer()
    writer.append(step(0))
    writer.flush()
    assert ended(buffer) == [""]
    del writer
    gc.collect()
    becomes(buffer, ["abandoned"])
