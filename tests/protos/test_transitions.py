"""Transitions, against what they must be by definition."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from episodes_by_hand import Episode, episode_of, windows_of

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.trajectories import Trajectories
from tdreplay.transitions import Transitions
from tdreplay.views import TableView, check_view
from tdreplay.windows import Window

USUAL = Trajectories()
STEPS = 6


def built(view, episode, anchors, trajectories=USUAL, **options):
    return view.build(windows_of(view.query(trajectories), episode, anchors, **options), trajectories)


def frame(episode, step, padding):
    """The observation at a step, as a stack has it."""
    if step < 0:
        return episode.fields["obs"][0] * (padding == "repeat")
    if step < episode.steps:
        return episode.fields["obs"][step]
    return episode.finals["obs"] if step == episode.steps and episode.finals else torch.zeros(2)


def stack_at(episode, step, frames, padding):
    return torch.stack([frame(episode, step + at, padding) for at in range(1 - frames, 1)])


@pytest.mark.parametrize(("end", "final"), [("terminated", True), ("terminated", False), ("truncated", True)])
@pytest.mark.parametrize("padding", ["repeat", "zeros"])
@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("n_step", [1, 3, 10])
def test_each_anchor_becomes_the_transition_of_its_definition(n_step, frames, padding, final, end):
    episode = episode_of(STEPS, final=final, **{end: True})
    view = Transitions(n_step, 0.9, {"obs": frames}, padding)
    batch = built(view, episode, list(range(STEPS)))
    for anchor in range(STEPS):
        row, taken = batch[anchor], min(n_step, STEPS - anchor)
        ended = anchor + taken == STEPS
        assert torch.equal(row["obs"], stack_at(episode, anchor, frames, padding))
        assert torch.equal(row["next", "obs"], stack_at(episode, anchor + taken, frames, padding))
        expected = sum(0.9**j * (1 + (anchor + j) / 8) for j in range(taken))
        torch.testing.assert_close(row["next", "reward"], torch.tensor(expected, dtype=torch.float32))
        assert row["n_steps"] == taken
        assert row["next", "terminated"] == (ended and end == "terminated")
        assert row["next", "truncated"] == (ended and end == "truncated")
        assert row["next", "done"] == ended
        discount = 0.0 if ended and end == "terminated" else 0.9**taken
        torch.testing.assert_close(row["discount"], torch.tensor(discount, dtype=torch.float32))
        assert (row["action"], row["step"], row["episode_id"]) == (anchor, anchor, 77)
        assert (row["row_id"], row["index"]) == (100 + anchor, (100 + anchor) % 64)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_batch_has_these_fields_and_no_others(n_step):
    batch = built(Transitions(n_step), episode_of(STEPS, truncated=True), [0, 4])
    outcome = {("next", name) for name in ("obs", "reward", "terminated", "truncated", "done")}
    assert set(batch.keys(include_nested=True, leaves_only=True)) == outcome | {
        *("obs", "action", "discount", "n_steps", "index", "row_id", "episode_id", "step"),
    }
    assert batch.batch_size == (2,)
    assert batch["obs"].shape == batch["next", "obs"].shape == (2, 2)
    assert (batch["discount"].dtype, batch["n_steps"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("n_step", [1, 3])
def test_plain_names_have_no_next(n_step):
    batch = built(Transitions(n_step, names="plain"), episode_of(STEPS, truncated=True), [0, 4])
    assert set(batch.keys(include_nested=True, leaves_only=True)) == {
        *("obs", "next_obs", "action", "reward", "terminated", "truncated", "done", "discount", "n_steps", "index", "row_id", "episode_id", "step"),
    }
    assert batch["next_obs"].tolist() == [[10.0 * min(n_step, 6), 10.0 * n_step + 1], [10.0 * min(4 + n_step, 6), 10.0 * min(4 + n_step, 6) + 1]]


def test_stacks_and_next_observations_are_views_of_one_gathered_array():
    view = Transitions(frame_stack={"obs": 4, "action": 2})
    windows = windows_of(view.query(USUAL), episode_of(STEPS, truncated=True), [0, 4])
    batch = view.build(windows, USUAL)
    gathered = windows["obs"].untyped_storage().data_ptr()
    assert {batch[name].untyped_storage().data_ptr() for name in ("obs", ("next", "obs"))} == {gathered}
    assert batch["action"].untyped_storage().data_ptr() == windows["action"].untyped_storage().data_ptr()


def test_one_step_asks_for_one_window_of_each_observation():
    windows = Transitions(frame_stack={"obs": 4}).query(USUAL).windows
    assert [window for window in windows if window.field == "obs"] == [Window("obs", -3, 1, repeat_first=True)]


def test_more_steps_ask_for_an_observation_at_the_anchor_and_one_at_the_horizon():
    query = Transitions(5, frame_stack={"obs": 4}, padding="zeros").query(USUAL)
    assert [window for window in query.windows if window.field == "obs"] == [Window("obs", -3, 0), Window("obs", -3, 0, "next", at_horizon=True)]
    assert query.rule == (3, 5, True, False, 1)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_field_that_is_no_observation_is_stacked_without_a_next_one(n_step):
    batch = built(Transitions(n_step, frame_stack={"action": 3}), episode_of(STEPS, truncated=True), [0, 4])
    assert batch["action"].tolist() == [[0, 0, 0], [2, 3, 4]]
    assert ("next", "action") not in batch.keys(include_nested=True)


def test_a_stack_of_one_frame_has_its_dimension():
    batch = built(Transitions(frame_stack={"obs": 1}), episode_of(STEPS, truncated=True), [3])
    assert batch["obs"].shape == batch["next", "obs"].shape == (1, 1, 2)


def nested():
    """An episode of nested observations, of which one comes as a stack."""
    numbers = torch.arange(STEPS)
    rest = {name: value for name, value in episode_of(STEPS, truncated=True).fields.items() if name != "obs"}
    fields = {"obs.pixels": (10 * numbers).view(-1, 1, 1).to(torch.uint8), "obs.speed": numbers / 2, **rest}
    return Episode(fields, {"obs.pixels": torch.tensor([[60]], dtype=torch.uint8), "obs.speed": torch.tensor(3.0)})


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("finals", [("obs",), ("obs.pixels", "obs.speed")])
@pytest.mark.parametrize("name", ["obs.pixels", ("obs", "pixels")])
def test_a_part_of_a_nested_observation_is_stacked(name, finals, n_step):
    batch = built(Transitions(n_step, frame_stack={name: 2}), nested(), [0, 5], Trajectories(final_fields=finals))
    assert batch["obs", "pixels"].flatten(1).tolist() == [[0, 0], [40, 50]]
    assert batch["next", "obs", "pixels"].flatten(1).tolist() == [[10 * (n_step - 1), 10 * n_step], [50, 60]]
    assert batch["obs", "speed"].tolist() == [0, 2.5]
    assert batch["next", "obs", "speed"].tolist() == [n_step / 2, 3]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("finals", [("obs",), ("obs.pixels", "obs.speed"), ("obs.pixels",)])
def test_the_name_of_a_parent_stacks_all_below_it(finals, n_step):
    batch = built(Transitions(n_step, frame_stack={"obs": 2}, names="plain"), nested(), [5], Trajectories(final_fields=finals))
    assert batch["obs", "pixels"].flatten().tolist() == [40, 50]
    assert batch["next_obs", "pixels"].flatten().tolist() == [50, 60]
    assert batch["obs", "speed"].tolist() == [[2, 2.5]]
    assert (("next_obs", "speed") in batch.keys(include_nested=True)) == (finals != ("obs.pixels",))


def test_an_end_that_is_not_there_is_not_made_up():
    trajectories = Trajectories(ends=("over",), reward=None)
    fields = episode_of(STEPS, terminated=True).fields
    episode = Episode({"obs": fields["obs"], "over": fields["terminated"]}, {"obs": torch.zeros(2)})
    batch = built(Transitions(3), episode, [0, 5], trajectories)
    assert batch["next", "over"].tolist() == batch["next", "done"].tolist() == [False, True]
    assert set(batch["next"].keys()) == {"obs", "over", "done"}
    assert batch["discount"].tolist() == [pytest.approx(0.99**3), 0]


def test_an_end_that_is_named_done_keeps_its_values():
    fields = episode_of(STEPS, truncated=True).fields
    names = {"terminated": "done", "truncated": "cut"}
    episode = Episode({names.get(name, name): value for name, value in fields.items()}, {"obs": torch.zeros(2)})
    batch = built(Transitions(3), episode, [5], Trajectories(ends=("done", "cut")))
    assert (batch["next", "done"].item(), batch["next", "cut"].item()) == (False, True)


@pytest.mark.parametrize("n_step", [1, 3])
def test_rewards_and_ends_keep_their_shapes(n_step):
    fields = episode_of(STEPS, terminated=True).fields
    episode = Episode(fields | {name: fields[name].unsqueeze(1) for name in ("reward", "terminated")}, {"obs": torch.zeros(2)})
    batch = built(Transitions(n_step, 0.5), episode, [0, 5])
    assert batch["next", "reward"].shape == batch["next", "terminated"].shape == (2, 1)
    assert batch["next", "done"].tolist() == [False, True]  # One for each transition, because the two ends have different shapes.
    assert batch["discount"].tolist() == [0.5**n_step, 0]


@pytest.mark.parametrize(("dtype", "comes"), [("int64", "float32"), ("bool", "float32"), ("float64", "float64"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize("n_step", [1, 2])
def test_a_reward_keeps_its_dtype_where_it_has_fractions(n_step, dtype, comes):
    rewards = torch.ones(STEPS).to(getattr(torch, dtype))
    batch = built(Transitions(n_step, 0.5), episode_of(STEPS, truncated=True, reward=rewards), [0])
    assert batch["next", "reward"].dtype is getattr(torch, comes)
    assert batch["next", "reward"].item() == 2 - 0.5 ** (n_step - 1)


def test_many_bfloat16_rewards_are_summed_exactly():
    rewards = torch.full((400,), 1.0, dtype=torch.bfloat16)
    batch = built(Transitions(300, 1), episode_of(400, truncated=True, reward=rewards), [0])
    assert batch["next", "reward"].item() == 300  # A sum in bfloat16 stays at 256.


@pytest.mark.parametrize("gamma", [0, 1])
def test_a_gamma_at_either_bound_is_taken(gamma):
    batch = built(Transitions(3, gamma), episode_of(STEPS, truncated=True), [0, 5])
    torch.testing.assert_close(batch["next", "reward"], torch.tensor([1 + gamma * (1.125 + 1.25), 1.625]))
    assert batch["discount"].tolist() == [gamma, gamma]


def test_what_is_known_of_the_draw_stays():
    draw = {"probability": torch.tensor([0.25, 0.5], dtype=torch.float64), "table_size": torch.tensor([6, 6])}
    batch = built(Transitions(), episode_of(STEPS, truncated=True), [0, 5], **draw)
    assert batch["probability"].tolist() == [0.25, 0.5]
    assert batch["table_size"].tolist() == [6, 6]


def test_fields_that_were_not_asked_for_are_not_missed():
    view = Transitions()
    windows = windows_of(view.query(USUAL), episode_of(STEPS, truncated=True), [0]).exclude("action", "episode_id", "step")
    assert "action" not in view.build(windows, USUAL)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_batch_stays_on_its_device(device):
    batch = built(Transitions(3, frame_stack={"obs": 2}), episode_of(STEPS, truncated=True), [0, 5], device=device)
    assert {value.device.type for value in batch.values(include_nested=True, leaves_only=True)} == {device}


@pytest.mark.parametrize("arguments", [{"n_step": 3}, {"frame_stack": {"obs": 3}}, {"frame_stack": {"action": 2}}])
def test_windows_of_another_query_are_refused(arguments):
    windows = windows_of(Transitions().query(USUAL), episode_of(STEPS, truncated=True), [0])
    with pytest.raises(CodecError, match="steps of each anchor were asked for"):
        Transitions(**arguments).build(windows, USUAL)


def test_a_batch_without_windows_is_refused():
    with pytest.raises(CodecError, match="window_before"):
        Transitions().build(windows_of(Transitions().query(USUAL), episode_of(STEPS), [0]).exclude("window_before"), USUAL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_step": 0}, r"n_step \(0\) must be a whole number from 1 to 16384"),
        ({"n_step": 1.5}, r"n_step \(1.5\)"),
        ({"n_step": True}, r"n_step \(True\)"),
        ({"gamma": 1.01}, r"gamma \(1.01\) must be a finite number from 0 to 1"),
        ({"gamma": -0.1}, r"gamma \(-0.1\)"),
        ({"gamma": math.nan}, r"gamma \(nan\)"),
        ({"frame_stack": {"obs": 0}}, r"frame_stack of 'obs' \(0\) must be a whole number from 1"),
        ({"frame_stack": 4}, r"frame_stack \(4\) must be a mapping"),
        ({"frame_stack": {4: 4}}, r"frame_stack: 4 must be the name of a field"),
        ({"frame_stack": {"": 4}}, r"frame_stack: '' must be the name of a field"),
        ({"frame_stack": {("a", "b"): 2, "a.b": 3}}, r"must name each field once"),
        ({"padding": "edge"}, r"padding \('edge'\) must be one of \['repeat', 'zeros'\]"),
        ({"names": "gym"}, r"names \('gym'\) must be one of \['plain', 'torchrl'\]"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Transitions(**arguments)


@pytest.mark.parametrize("name", ["reward", "terminated", "truncated", "index", "row_id", "episode_id", "step", "step_kind"])
def test_neither_the_outcome_nor_a_system_field_is_stacked(name):
    with pytest.raises(InvalidArgumentError, match=f"frame_stack \\('{name}'\\) must name fields of steps"):
        Transitions(frame_stack={name: 2}).query(USUAL)


def test_a_view_is_a_value():
    view = Transitions(3, frame_stack={("obs", "pixels"): 4})
    assert view == Transitions(3, frame_stack={"obs.pixels": 4}) == pickle.loads(pickle.dumps(view))  # noqa: S301 - spawned workers get it so.
    assert view != Transitions(3, frame_stack={"obs.pixels": 3})
    assert hash(view) == hash(Transitions(3, frame_stack={"obs.pixels": 4}))
    assert json.loads(json.dumps(view.to_json())) == view.to_json()
    assert len({str(Transitions(gamma=gamma).to_json()) for gamma in (0.5, 1, 1.0)}) == 2


@pytest.mark.parametrize("view", [Transitions, "transitions", 3, {}])
def test_what_is_no_view_is_refused(view):
    with pytest.raises(InvalidArgumentError, match=r"must be Transitions\(\.\.\.\), Sequences\(\.\.\.\) or None"):
        check_view(view)


def test_a_view_of_a_table_asks_and_builds_for_that_table():
    seen = TableView(Transitions(), Trajectories(final_fields=("obs",), reward=None))
    assert all(window.field != "reward" for window in seen.windows.windows)
    batch = seen.build(windows_of(seen.windows, episode_of(STEPS, truncated=True), [2]))
    assert batch["reward"].item() == 1.25  # A field as any other.
