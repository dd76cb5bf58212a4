"""Writers of trajectories: over a server that dies and comes back, in loops over Gymnasium's environments, and at their end."""

from __future__ import annotations

import threading
import time
from functools import partial

import gymnasium
import numpy as np
import pytest
from episode_rows import LENGTH, check_numbers, stored, taken_step, taken_steps
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from restarts import restart_soon

from conftest import freeze, thaw
from tdreplay.errors import ClosedError, DeadlineError
from tdreplay_client import RemoteReplayBuffer

pytest_plugins = ["restart_fixtures"]


@pytest.fixture
def open_steps(phoenix, table):
    made: list[RemoteReplayBuffer] = []

    def open_table(**options) -> RemoteReplayBuffer:
        made.append(RemoteReplayBuffer(phoenix.address, table=table, buffer_size=100_000, trajectories=True, **options))
        return made[-1]

    yield open_table
    for buffer in made:
        buffer.close()


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_a_writer_goes_on_with_its_episode_after_the_server_was_killed(phoenix, open_steps, transport):
    buffer = open_steps(timeout=60, transport=transport)
    starting = threading.Thread(target=restart_soon, args=(phoenix,))
    with buffer.trajectory_writer(autoreset="disabled", flush_rows=8) as writer:
        starting.start()
        number = 0
        while starting.is_alive() or number < 500:
            writer.append(*taken_step(number))
            number += 1
            time.sleep(0.001)
    episodes = check_numbers(stored(buffer))
    assert [seen for found in episodes.values() for seen in found] == list(range(number))
    assert all(len(found) == LENGTH for found in list(episodes.values())[:-1])


@pytest.mark.parametrize("width", [1, 16_384])
def test_episodes_of_several_environments_go_on_after_the_server_was_killed(phoenix, open_steps, width):
    buffer = open_steps(timeout=60)
    starting = threading.Thread(target=restart_soon, args=(phoenix,))
    with buffer.trajectory_writer(4, autoreset="disabled") as writer:
        starting.start()
        number = 0
        while starting.is_alive() or number < 50:
            writer.append(*taken_steps(number, 4, width))
            number += 1
            time.sleep(0.01)
    seen = [seen for steps in check_numbers(stored(buffer)).values() for seen in steps]
    assert sorted(seen) == [100_000 * env + at for env in range(4) for at in range(number)]


def test_an_error_hands_the_steps_back_and_ends_the_writer_and_add_batch_takes_them(phoenix, open_steps):
    buffer = open_steps(timeout=1)
    writer = buffer.trajectory_writer(autoreset="disabled", flush_seconds=1000)
    writer.append(*taken_step(0))
    writer.flush()
    freeze(phoenix.server.child.pid)
    try:
        for number in range(1, 10):
            writer.append(*taken_step(number))
        with pytest.raises(DeadlineError) as raised:
            writer.flush()
    finally:
        thaw(phoenix.server.child.pid)
    rows = raised.value.rows
    assert rows["step"].tolist() == [*range(1, LENGTH + 1), 0, 1, 2]
    with pytest.raises(ClosedError):
        writer.append(*taken_step(10))
    writer.close()
    add_again(buffer, rows)
    with buffer.trajectory_writer(autoreset="disabled") as following:
        following.append(*taken_step(10))
    assert [len(steps) for steps in check_numbers(stored(buffer)).values()] == [LENGTH, 3, 1]


def add_again(buffer: RemoteReplayBuffer, rows) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            return buffer.add_batch(rows)
        except DeadlineError:
            assert time.monotonic() < deadline


def test_a_writer_that_is_closed_with_its_buffer_stores_what_it_has(address, table):
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=1000, trajectories=True)
    writer = buffer.trajectory_writer(flush_seconds=1000, autoreset="disabled")
    for number in range(20):
        writer.append(*taken_step(number))
    buffer.close()
    with pytest.raises(ClosedError):
        writer.append(*taken_step(20))
    writer.close()
    with RemoteReplayBuffer(address, table=table) as again:
        assert sum(map(len, check_numbers(stored(again)).values())) == 20


# -- Gymnasium --------------------------------------------------------------------------------------------------------------------------------------


class Count(gymnasium.Env):
    """Episodes of 3 steps and more, each of which says its environment, episode and step; every second one is truncated."""

    def __init__(self, env: int) -> None:
        box = gymnasium.spaces.Box(-1, 1_000_000, (3,), np.float32)
        self.observation_space, self.action_space = gymnasium.spaces.Dict({"at": box, "half": box}), gymnasium.spaces.Discrete(2)
        self._env, self._episode, self._step = env, -1, 0

    def reset(self, *, seed=None, options=None):
        self._episode, self._step = self._episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self._step += 1
        over = self._step == 3 + self._env
        return self._seen(), float(self._step), over and self._episode % 2 == 0, over and self._episode % 2 == 1, {}

    def _seen(self):
        at = np.array([self._env, self._episode, self._step], np.float32)
        return {"at": at, "half": at / 2}


def check_played(buffer, n_envs: int, steps: int) -> None:
    """Passes where every environment's episodes are whole, with their ends and final observations; the last one is open."""
    rows = buffer.sample_by_index_fields(range(buffer.state().size), ["episode_id", "step", "step_kind", "obs", "reward", "action"])
    assert np.array_equal(rows["obs", "half"], rows["obs", "at"] / 2)
    whole = zip(*(rows[name].tolist() for name in ("episode_id", "step", "step_kind", "reward")), rows["obs", "at"].tolist(), strict=True)
    episodes: dict[int, list] = {}
    for episode_id, step, kind, reward, (env, episode, at) in whole:
        assert step == at
        assert reward == (0 if kind == 8 else step + 1)
        episodes.setdefault(episode_id, []).append((env, episode, kind))
    assert len({(found[0][0], found[0][1]) for found in episodes.values()}) == len(episodes)
    for found in episodes.values():
        env, episode, _ = found[0]
        assert {row[:2] for row in found} == {(env, episode)}
        kinds = [0] * (2 + int(env)) + [5 if episode % 2 == 0 else 6, 8]
        assert [row[2] for row in found] == kinds[: len(found)]
    assert sum(kind != 8 for found in episodes.values() for _, _, kind in found) == steps


@pytest.fixture(params=["in process", "grpc", "shared_memory"])
def buffer(request, address, table):
    from tdreplay_server import ReplayBuffer

    if request.param == "in process":
        made = ReplayBuffer("cpu", "cpu", 1000, trajectories=True)
    else:
        made = RemoteReplayBuffer(address, table=table, buffer_size=1000, trajectories=True, transport=request.param)
    with made:
        yield made


def test_a_loop_over_one_environment(buffer):
    env = Count(1)
    with buffer.trajectory_writer() as writer:
        obs, _ = env.reset()
        for _ in range(50):
            next_obs, reward, terminated, truncated, _ = env.step(0)
            step = {"obs": obs, "action": 0, "reward": reward, "terminated": terminated, "truncated": truncated}
            writer.append(step, final={"obs": next_obs})
            obs = env.reset()[0] if terminated or truncated else next_obs
    check_played(buffer, 1, 50)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_loop_over_vector_environments(buffer, mode):
    env = SyncVectorEnv([partial(Count, number) for number in range(3)], autoreset_mode=mode)
    with buffer.trajectory_writer(3, autoreset=mode) as writer:
        obs, _ = env.reset()
        left_out, was_over = 0, np.zeros(3, bool)
        for _ in range(40):
            obs = {name: value.copy() for name, value in obs.items()}
            next_obs, reward, terminated, truncated, infos = env.step(np.zeros(3, np.int64))
            step = {"obs": obs, "action": np.zeros(3, np.int64), "reward": reward, "terminated": terminated, "truncated": truncated}
            writer.append(step, final={"obs": next_obs} if mode is AutoresetMode.NEXT_STEP else infos.get("final_obs"))
            left_out += int(was_over.sum())
            obs, was_over = next_obs, terminated | truncated
    check_played(buffer, 3, 120 - (left_out if mode is AutoresetMode.NEXT_STEP else 0))
