"""What a writer of trajectories makes of steps, as rows: over every kind of buffer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import ClosedError, InvalidArgumentError, NoPrioritiesError, NoTrajectoriesError, SchemaError
from tdreplay.trajectories import Trajectories

GOES_ON, TERMINATED, TRUNCATED, FOLLOWED, FINAL = 0, 1, 2, 4, 8
Row = tuple[int, int, int, float]
"""The number of the episode in order of appearance, the step, its kind and the first number of the observation."""


@pytest.fixture
def buffer(make_buffer) -> BaseReplayBuffer:
    return make_buffer(1000, trajectories=True)


def obs(value: float) -> np.ndarray:
    return np.full(2, value, np.float32)


def step(value: float, terminated: Any = False, truncated: Any = False, **others: Any) -> dict[str, Any]:
    return {"obs": obs(value), "action": int(value), "reward": np.float32(value), "terminated": terminated, "truncated": truncated} | others


def steps(values: list[float], terminated: list[int] = (), truncated: list[int] = ()) -> dict[str, Any]:
    """Steps with these values; the episode ends at these places."""
    number, places = np.array(values, np.float32), np.arange(len(values))
    return {
        "obs": np.stack([number, number], axis=1),
        "action": number.astype(np.int64),
        "reward": number,
        "terminated": np.isin(places, terminated),
        "truncated": np.isin(places, truncated),
    }


def stored(buffer: BaseReplayBuffer, name: str = "obs") -> list[Row]:
    """All rows in the order in which they were stored."""
    size = buffer.state().size
    rows = buffer.sample_by_index_fields(slice(None), ["episode_id", "step", "step_kind", name, "row_id"])
    rows = rows[rows["row_id"].argsort()]  # Over shards: those of one writer are on one.
    ids = rows["episode_id"].tolist()
    episodes = {episode_id: number for number, episode_id in enumerate(dict.fromkeys(ids))}
    values = rows[tuple(name.split("."))].reshape(size, -1)[:, 0].tolist()
    return [(episodes[e], s, k, v) for e, s, k, v in zip(ids, rows["step"].tolist(), rows["step_kind"].tolist(), values, strict=True)]


# -- one environment ------------------------------------------------------------------------------------------------------------------------------


def test_steps_are_numbered_and_an_end_is_followed_by_its_final_observation(buffer):
    with buffer.trajectory_writer() as writer:
        for number in range(3):
            writer.append(step(number, terminated=number == 2), final=obs(number + 1))
        writer.append(step(10))
        writer.append(step(11, truncated=True), final={"obs": obs(12)})
        writer.append(step(20, terminated=True))
        writer.append(step(30, truncated=True))
        writer.append(step(40))
    assert stored(buffer) == [
        *[(0, 0, GOES_ON, 0), (0, 1, GOES_ON, 1), (0, 2, TERMINATED | FOLLOWED, 2), (0, 3, FINAL, 3)],
        *[(1, 0, GOES_ON, 10), (1, 1, TRUNCATED | FOLLOWED, 11), (1, 2, FINAL, 12)],
        *[(2, 0, TERMINATED, 20), (3, 0, TRUNCATED, 30), (4, 0, GOES_ON, 40)],
    ]


def test_the_other_fields_of_a_final_observation_are_0(buffer):
    with buffer.trajectory_writer() as writer:
        writer.append(step(5, True, extra=np.full((2, 3), 7, np.int16), text=[1.5, 2.5], flag=True), final=obs(6))
    row = buffer.sample_by_index_fields([-1], ["obs", "action", "reward", "terminated", "truncated", "extra", "text", "flag"])[0]
    assert row["obs"].tolist() == [6, 6]
    assert row["extra"].dtype == torch.int16
    for name in ("action", "reward", "terminated", "truncated", "extra", "text", "flag"):
        assert not row[name].any()


def test_where_both_ends_are_true_the_episode_terminated(buffer):
    with buffer.trajectory_writer() as writer:
        writer.append(step(1, True, True), final=obs(2))
    assert stored(buffer) == [(0, 0, TERMINATED | FOLLOWED, 1), (0, 1, FINAL, 2)]


@pytest.mark.parametrize("end", [True, np.True_, np.array(True), np.array([True]), torch.tensor(True), torch.tensor([True])])
def test_ends_are_bools_of_any_make(buffer, end):
    with buffer.trajectory_writer() as writer:
        for number in range(3):
            writer.append(step(number, terminated=end if number == 1 else end ^ end))
    assert [row[:3] for row in stored(buffer)] == [(0, 0, GOES_ON), (0, 1, TERMINATED), (1, 0, GOES_ON)]


def test_many_steps_in_turn_are_as_if_they_were_appended(make_buffer):
    values, terminated, truncated, finals = [float(n) for n in range(12)], [2, 7], [3, 11], [obs(100), None, obs(102), obs(103)]
    one, many = make_buffer(100, trajectories=True), make_buffer(100, trajectories=True)
    with one.trajectory_writer() as writer:
        left = iter(finals)
        for number in range(12):
            end = number in terminated or number in truncated
            writer.append(step(number, number in terminated, number in truncated), final=next(left) if end else None)
    with many.trajectory_writer() as writer:
        writer.extend(steps(values[:5], terminated, truncated), final=finals[:2])
        writer.extend(steps(values[5:], [2], [6]), final=np.stack(finals[2:]))
    assert sorted(stored(many)) == sorted(stored(one))


def test_ends_may_be_one_field(make_buffer):
    buffer = make_buffer(100, trajectories=Trajectories(ends=("done",), final_fields=("obs",), reward=None))
    with buffer.trajectory_writer() as writer:
        writer.append({"obs": obs(0), "done": False})
        writer.append({"obs": obs(1), "done": True}, final=obs(2))
    assert stored(buffer) == [(0, 0, GOES_ON, 0), (0, 1, TERMINATED | FOLLOWED, 1), (0, 2, FINAL, 2)]


def test_nested_observations_and_tensordicts(make_buffer):
    buffer = make_buffer(100, trajectories=Trajectories(final_fields=("obs", "goal")))
    seen = lambda n: {"camera": {"left": np.full((2, 2), n, np.uint8)}, "joints": torch.full((3,), float(n))}  # noqa: E731
    with buffer.trajectory_writer() as writer:
        writer.append({"obs": seen(0), "goal": 1.0, "action": 1, "terminated": False, "truncated": False})
        writer.append(
            TensorDict(
                {
                    "obs": seen(1),
                    "goal": torch.tensor(2.0),
                    "action": torch.tensor(3),
                    "terminated": torch.tensor(True),
                    "truncated": torch.tensor(False),
                }
            ),
            final=TensorDict({"obs": seen(2), "goal": torch.tensor(3.0)}),
        )
        writer.append({"obs": seen(3), "goal": 4.0, "action": 1, "terminated": False, "truncated": True}, final={"obs": seen(4), "goal": 5.0})
    kinds = [(0, 0, GOES_ON), (0, 1, TERMINATED | FOLLOWED), (0, 2, FINAL), (1, 0, TRUNCATED | FOLLOWED), (1, 1, FINAL)]
    assert stored(buffer, "obs.camera.left") == [(*kind, n) for n, kind in enumerate(kinds)]
    assert [row[3] for row in stored(buffer, "obs.joints")] == [0, 1, 2, 3, 4]
    assert [row[3] for row in stored(buffer, "goal")] == [1, 2, 3, 4, 5]


# -- several environments -------------------------------------------------------------------------------------------------------------------------


def test_several_environments_are_numbered_each_by_itself(buffer):
    with buffer.trajectory_writer(3) as writer:
        writer.append(steps([0, 10, 20]))
        writer.append(steps([1, 11, 21], terminated=[1]), final=np.stack([obs(-1), obs(12), obs(-1)]))
        writer.append(steps([2, 13, 22], truncated=[0, 2]), final={"obs": [obs(3), None, None]})
        writer.append(steps([4, 14, 23]))
    assert stored(buffer) == [
        *[(0, 0, GOES_ON, 0), (1, 0, GOES_ON, 10), (2, 0, GOES_ON, 20)],
        *[(0, 1, GOES_ON, 1), (1, 1, TERMINATED | FOLLOWED, 11), (2, 1, GOES_ON, 21), (1, 2, FINAL, 12)],
        *[(0, 2, TRUNCATED | FOLLOWED, 2), (3, 0, GOES_ON, 13), (2, 2, TRUNCATED, 22), (0, 3, FINAL, 3)],
        *[(4, 0, GOES_ON, 4), (3, 1, GOES_ON, 14), (5, 0, GOES_ON, 23)],
    ]


@pytest.mark.parametrize("form", ["objects", "list", "dicts", "tensordict"])
def test_final_observations_come_in_every_form(make_buffer, form):
    buffer = make_buffer(100, trajectories=True)
    seen = lambda *numbers: {"a": np.array(numbers, np.float32), "b": {"c": np.array(numbers, np.uint8)}}  # noqa: E731
    ends = {"terminated": np.array([True, False, True]), "truncated": np.zeros(3, bool)}
    finals: Any = [{"a": np.float32(5), "b": {"c": np.uint8(5)}}, None, {"a": np.float32(7), "b": {"c": np.uint8(7)}}]
    if form == "objects":
        finals = np.array(finals, object)
    elif form == "dicts":
        finals = {"obs": {"a": np.array([np.float32(5), None, np.float32(7)], object), "b": {"c": [np.uint8(5), None, np.uint8(7)]}}}
    elif form == "tensordict":
        finals = TensorDict({"obs": TensorDict(seen(5, 6, 7), [3])}, [3])
    with buffer.trajectory_writer(3) as writer:
        writer.append({"obs": seen(1, 2, 3), "action": np.arange(3)} | ends, final=finals)
    for name in ("obs.a", "obs.b.c"):
        assert stored(buffer, name)[3:] == [(0, 1, FINAL, 5), (2, 1, FINAL, 7)]


def test_a_reset_by_the_next_step_is_left_out(buffer):
    with buffer.trajectory_writer(2, autoreset="next_step") as writer:
        writer.append(steps([0, 10], terminated=[0]), final=steps([1, 11])["obs"])
        writer.append(steps([1, 11], truncated=[1]), final=steps([2, 12])["obs"])
        writer.append(steps([2, 12], terminated=[0]), final=steps([3, 13])["obs"])
        writer.append(steps([3, 14], terminated=[0, 1]))
    assert stored(buffer) == [
        *[(0, 0, TERMINATED | FOLLOWED, 0), (1, 0, GOES_ON, 10), (0, 1, FINAL, 1)],
        *[(1, 1, TRUNCATED | FOLLOWED, 11), (1, 2, FINAL, 12)],
        *[(2, 0, TERMINATED | FOLLOWED, 2), (2, 1, FINAL, 3)],
        *[(3, 0, TERMINATED, 14)],
    ]


def test_resets_are_left_out_of_steps_in_turn_and_over_calls(buffer):
    with buffer.trajectory_writer(autoreset="next_step") as writer:
        writer.extend(steps([0, 1, 1.5, 2, 3], terminated=[1, 4]), final=[obs(1.5), obs(3.5)])
        writer.append(step(3.5))
        writer.append(step(4, truncated=True), final=obs(5))
        writer.extend(steps([5]))
        writer.extend(steps([6, 7]))
    assert [row[3] for row in sorted(stored(buffer))] == [0, 1, 1.5, 2, 3, 3.5, 4, 5, 6, 7]
    assert sum(row[2] == FINAL for row in stored(buffer)) == 3


def test_a_step_that_looks_like_a_reset_warns_once(make_buffer):
    def play(**options: Any) -> None:
        with make_buffer(100, trajectories=True).trajectory_writer(**options) as writer:
            for _ in range(2):
                writer.append(step(0, True), final=obs(1))
                writer.append(step(1))
                writer.append(step(2, True), final=obs(3))
                writer.append(step(4))

    with pytest.warns(UserWarning, match="autoreset") as caught:
        play()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(autoreset="disabled")


def test_abandoned_environments_begin_new_episodes(buffer):
    with buffer.trajectory_writer(3) as writer:
        before = writer.episode_ids
        writer.append(steps([0, 10, 20]))
        writer.abandon([0, 2])
        writer.append(steps([1, 11, 21]))
        writer.abandon(np.array([False, True, False]))
        writer.append(steps([2, 12, 22]))
        now = writer.episode_ids
        writer.abandon()
        assert not set(now) & set(writer.episode_ids)
        assert not set(now) & set(before)
        with pytest.raises(InvalidArgumentError, match="envs"):
            writer.abandon(3)
    assert [row[:2] for row in stored(buffer)] == [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (4, 0), (3, 1), (5, 0), (4, 1)]


def test_episode_ids_are_those_of_the_next_steps(buffer):
    with buffer.trajectory_writer() as writer:
        ids = []
        for number in range(4):
            ids.append(int(writer.episode_ids[0]))
            writer.append(step(number, terminated=number == 1))
    assert ids == buffer.sample_by_index_fields(slice(None), ["episode_id"])["episode_id"].tolist()
    assert ids[0] == ids[1] != ids[2] == ids[3]


# -- TorchRL's form -------------------------------------------------------------------------------------------------------------------------------


def torchrl_steps(numbers: list[int], terminated: list[int], truncated: list[int]) -> TensorDict:
    number, places = torch.tensor(numbers), torch.arange(len(numbers))
    ends = {"terminated": torch.isin(places, torch.tensor(terminated))[:, None], "truncated": torch.isin(places, torch.tensor(truncated))[:, None]}
    never = {name: torch.zeros(len(numbers), 1, dtype=torch.bool) for name in ("terminated", "truncated", "done")}
    after = {
        "obs": number[:, None].float() + 1,
        "reward": number[:, None].float(),
        "done": ends["terminated"] | ends["truncated"],
        "lives": number,
    } | ends
    whole = TensorDict({"obs": number[:, None].float(), "action": number, **never, "next": TensorDict(after, [len(numbers)])}, [len(numbers)])
    return whole.refine_names("time")


@pytest.mark.parametrize("how", ["append", "extend", "n_envs"])
def test_steps_in_torchrls_form_bring_their_final_observations(buffer, how):
    given = torchrl_steps([0, 1, 2, 3, 4], [1], [4])
    with buffer.trajectory_writer(5 if how == "n_envs" else 1, autoreset="disabled") as writer:
        if how == "append":
            for one in given:
                writer.append(one)
        else:
            getattr(writer, "append" if how == "n_envs" else how)(given)
    rows = stored(buffer)
    assert [(row[2], row[3]) for row in sorted(rows)] == [(0, 0), (5, 1), (8, 2), (0, 2), (0, 3), (6, 4), (8, 5)]
    schema = buffer.state().schema
    assert [field.name for field in schema.fields] == sorted(
        ["obs", "action", "reward", "terminated", "truncated", "lives", "episode_id", "step", "step_kind"]
    )
    assert schema.dim_names == ()
    assert buffer.sample_by_index_fields([1 - len(rows)], ["reward"])["reward"].item() == 1


def test_next_needs_all_final_fields_or_none(make_buffer):
    buffer = make_buffer(10, trajectories=Trajectories(final_fields=("obs", "goal")))
    with buffer.trajectory_writer() as writer:
        after = {"reward": 1.0, "terminated": True, "truncated": False, "obs": obs(1)}
        with pytest.raises(SchemaError, match=r"'next'.*goal"):
            writer.append({"obs": obs(0), "goal": obs(3), "next": after})
        del after["obs"]
        writer.append({"obs": obs(0), "goal": obs(3), "next": after})
    assert stored(buffer) == [(0, 0, TERMINATED, 0)]


# -- priorities -----------------------------------------------------------------------------------------------------------------------------------


def test_priorities_are_those_of_the_steps(make_buffer):
    buffer = make_buffer(100, trajectories=True, sampler="prioritized")
    with buffer.trajectory_writer() as writer:
        writer.append(step(1), priority=0.0)
        writer.append(step(2, True), final=obs(3), priority=2.0)
        writer.extend(steps([4, 5, 6], terminated=[1]), final=[obs(7)], priorities=[0.0, 0.0, 0.0])
    with buffer.trajectory_writer(2) as writer:
        writer.append(steps([8, 9], terminated=[0]), final=steps([10, 11])["obs"], priority=np.zeros(2))
        with pytest.raises(InvalidArgumentError, match="priorities"):
            writer.append(steps([8, 9]), priority=[1.0, 2.0, 3.0])
    assert set(buffer.sample_batch(100)["action"].tolist()) == {2}


def test_a_priority_needs_a_table_with_priorities(buffer):
    with buffer.trajectory_writer() as writer:
        with pytest.raises(NoPrioritiesError):
            writer.append(step(0), priority=1.0)
        writer.append(step(1))
    assert stored(buffer) == [(0, 0, GOES_ON, 1)]


# -- what is refused ------------------------------------------------------------------------------------------------------------------------------


WRONG_STEPS = {
    "no obs": ({"action": 1, "terminated": False, "truncated": False}, "'obs'.*final_fields"),
    "no end": ({"obs": obs(0), "terminated": False}, "'truncated'.*ends"),
    **{name: (step(0) | {name: 0}, f"'{name}'.*reserved") for name in ("episode_id", "step", "step_kind", "window_before", "window_after")},
    "end of text": (step(0, terminated="no"), "'terminated'.*bool"),
    "two ends": (step(0, terminated=np.zeros(2, bool)), "'terminated'.*bool"),
    "end 0.5": (step(0, terminated=0.5), "'terminated'.*bool"),
    "other dtype": (step(0) | {"obs": np.zeros(2)}, "'obs'.*F32"),
    "other shape": (step(0) | {"obs": np.zeros(3, np.float32)}, "'obs'.*F32"),
    "one field more": (step(0) | {"more": 1}, "'more'"),
    "a batch": (TensorDict({name: torch.as_tensor(value)[None] for name, value in step(0).items()}, [1]), "batch dimension"),
}


@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_wrong_step_is_refused_and_the_writer_goes_on(buffer, wrong):
    given, words = WRONG_STEPS[wrong]
    with buffer.trajectory_writer() as writer:
        writer.append(step(1))
        with pytest.raises(SchemaError, match=words):
            writer.append(given)
        writer.append(step(2))
    assert stored(buffer) == [(0, 0, GOES_ON, 1), (0, 1, GOES_ON, 2)]


WRONG_FINALS = {
    "dtype": {"obs": np.zeros(2)},
    "shape": {"obs": np.zeros(3, np.float32)},
    "another field": {"obs": obs(1), "action": 1},
    "text": {"obs": "seen"},
    "a bare number": 1.0,
}


@pytest.mark.parametrize("wrong", WRONG_FINALS)
@pytest.mark.parametrize("first", [True, False])
def test_a_wrong_final_observation_is_refused_and_with_it_its_step(buffer, wrong, first):
    with buffer.trajectory_writer() as writer:
        if not first:
            writer.append(step(1))
        with pytest.raises(InvalidArgumentError, match="obs"):
            writer.append(step(2, True), final=WRONG_FINALS[wrong])
        writer.append(step(3), final=WRONG_FINALS[wrong])  # The episode does not end: it is not looked at.
        writer.append(step(4, True), final=obs(5))
    first_rows = [] if first else [(0, 0, GOES_ON, 1)]
    assert stored(buffer) == [*first_rows, *[(0, 1 - first, GOES_ON, 3), (0, 2 - first, TERMINATED | FOLLOWED, 4), (0, 3 - first, FINAL, 5)]]


def test_wrong_final_observations_of_several_environments_are_refused(buffer):
    with buffer.trajectory_writer(2) as writer:
        ended = steps([1, 2], terminated=[0, 1])
        for wrong in (1.5, np.zeros((2, 2)), np.zeros((3, 2), np.float32), [obs(1)], [obs(1), np.zeros(2)], {"seen": np.zeros((2, 2), np.float32)}):
            with pytest.raises(SchemaError, match=r"final|'obs'"):
                writer.append(ended, final=wrong)
        writer.append(ended, final=[None, obs(3)])
    assert stored(buffer) == [(0, 0, TERMINATED, 1), (1, 0, TERMINATED | FOLLOWED, 2), (1, 1, FINAL, 3)]


def test_another_number_of_environments_is_refused(buffer):
    with buffer.trajectory_writer(3) as writer:
        with pytest.raises(SchemaError, match=r"2 steps.*3"):
            writer.append(steps([1, 2]))
        with pytest.raises(InvalidArgumentError, match="n_envs"):
            writer.extend(steps([1, 2, 3]))
        writer.append(steps([1, 2, 3]))
    assert len(stored(buffer)) == 3


@pytest.mark.parametrize("options", [{"n_envs": 0}, {"n_envs": True}, {"n_envs": 1.5}, {"autoreset": "sometimes"}, {"autoreset": 1}])
def test_arguments_that_cannot_be_are_refused(buffer, options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        buffer.trajectory_writer(**options)


def test_a_table_without_trajectories_has_no_such_writer(make_buffer):
    with pytest.raises(NoTrajectoriesError, match="trajectories"):
        make_buffer(10).trajectory_writer()


def test_steps_are_converted_where_the_buffer_converts(make_buffer):
    buffer = make_buffer(100, trajectories=True, cast=True)
    with buffer.trajectory_writer() as writer:
        writer.append(step(0))
        writer.append(step(1.0, np.array([True])) | {"obs": np.ones(2), "reward": 1}, final=[2, 2])
    assert stored(buffer) == [(0, 0, GOES_ON, 0), (0, 1, TERMINATED | FOLLOWED, 1), (0, 2, FINAL, 2)]


def test_numbers_take_the_dtypes_of_the_table(make_buffer):
    """Python's floats of a first step are as they are in `add`; a final number follows its step."""
    buffer = make_buffer(100, trajectories=True)
    with buffer.trajectory_writer() as writer:
        writer.append({"obs": 0.5, "reward": 1.0, "terminated": True, "truncated": False}, final=1.5)
    with buffer.trajectory_writer() as writer:
        writer.append({"obs": 2, "reward": 1, "terminated": True, "truncated": False}, final=3)
    assert sorted(row[3] for row in stored(buffer)) == [0.5, 1.5, 2, 3]  # Over shards the two writers may be on any.


def test_a_closed_writer_takes_no_step(buffer):
    writer = buffer.trajectory_writer()
    writer.append(step(1))
    writer.flush()
    writer.close()
    writer.close()
    with pytest.raises(ClosedError):
        writer.append(step(2))
    assert len(stored(buffer)) == 1
