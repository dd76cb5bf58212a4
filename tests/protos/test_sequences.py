"""Sequences, against what they must be by definition, and their priorities."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from episodes_by_hand import episode_of, windows_of

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.priorities import importance_weights, row_ids_of, sequence_priorities
from tdreplay.sequences import Sequences
from tdreplay.trajectories import Trajectories
from tdreplay.windows import Window

USUAL = Trajectories()
STEPS = 6


def built(view, episode, anchors, **drawn):
    return view.build(windows_of(view.query(USUAL), episode, anchors, **drawn), USUAL)


@pytest.mark.parametrize("burn_in", [0, 2, 9])
@pytest.mark.parametrize("length", [1, 3, 9])
@pytest.mark.parametrize("next_obs", [False, True])
def test_each_anchor_becomes_the_sequence_of_its_definition(next_obs, length, burn_in):
    episode = episode_of(STEPS, truncated=True)
    batch = built(Sequences(length, burn_in, next_obs=next_obs, step_ids=True), episode, list(range(STEPS)))
    assert batch.batch_size == (STEPS, burn_in + length)
    for anchor in range(STEPS):
        for place in range(burn_in + length):
            here, step = batch[anchor, place], anchor - burn_in + place
            there = 0 <= step < STEPS
            assert here["mask"] == there
            assert here["is_init"] == (step == 0)
            assert here["burn_in"] == (place < burn_in)
            assert (here["row_id"], here["index"]) == (100 + anchor, (100 + anchor) % 64)
            assert here["steps", "row_id"] == (100 + step if there else -1)
            assert here["steps", "index"] == ((100 + step) % 64 if there else -1)
            for name in ("action", "reward", "terminated", "truncated", "step"):
                assert here[name] == (episode.fields[name][step] if there else 0)
            if there or not next_obs:
                assert torch.equal(here["obs"], episode.fields["obs"][step] if there else torch.zeros(2))
            if there and next_obs:
                assert torch.equal(here["next", "obs"], torch.tensor([10.0 * step + 10, 10.0 * step + 11]))


def test_a_batch_has_these_fields_and_no_others():
    plain = {"obs", "action", "reward", "terminated", "truncated", "episode_id", "step", "mask", "is_init", "burn_in", "index", "row_id"}
    batch = built(Sequences(3), episode_of(STEPS), [0])
    assert set(batch.keys(include_nested=True, leaves_only=True)) == plain
    batch = built(Sequences(3, next_obs=True, step_ids=True), episode_of(STEPS), [0])
    assert set(batch.keys(include_nested=True, leaves_only=True)) == plain | {("next", "obs"), ("steps", "index"), ("steps", "row_id")}


def test_observations_and_the_next_ones_are_views_of_one_gathered_array():
    view = Sequences(3, 2, next_obs=True)
    windows = windows_of(view.query(USUAL), episode_of(STEPS, truncated=True), [0, 4])
    batch = view.build(windows, USUAL)
    assert {batch[name].untyped_storage().data_ptr() for name in ("obs", ("next", "obs"))} == {windows["obs"].untyped_storage().data_ptr()}
    assert batch["action"].data_ptr() == windows["action"].data_ptr()


def test_the_query_says_which_sequences_may_be_drawn():
    assert Sequences(80, 40, 20).query(USUAL).rule == (40, 80, False, False, 20)
    assert Sequences(80, padding="drop").query(USUAL).rule == (0, 80, False, True, 1)
    assert Sequences(80, next_obs=True).query(USUAL).rule == (0, 80, True, False, 1)
    assert Window("obs", -40, 80) in Sequences(80, 40, next_obs=True).query(USUAL).windows


def test_a_step_whose_earlier_steps_are_gone_is_no_beginning():
    view = Sequences(2, 1)
    windows = windows_of(view.query(USUAL), episode_of(STEPS), [1])
    windows["step"] = windows["step"] + 5  # Its episode began five steps before the first one that the server knows.
    assert view.build(windows, USUAL)["is_init"].tolist() == [[False, False, False]]


def test_fields_that_were_not_asked_for_are_not_missed():
    view = Sequences(3)
    windows = windows_of(view.query(USUAL), episode_of(STEPS), [0]).exclude("action")
    assert "action" not in view.build(windows, USUAL)


def test_windows_of_another_query_are_refused():
    with pytest.raises(CodecError, match="3 steps of each anchor were asked for"):
        Sequences(3).build(windows_of(Sequences(2).query(USUAL), episode_of(STEPS), [0]), USUAL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, r"length \(0\) must be a whole number from 1 to 16384"),
        ({"length": 80.0}, r"length \(80.0\)"),
        ({"length": 3, "burn_in": -1}, r"burn_in \(-1\) must be a whole number from 0"),
        ({"length": 3, "stride": 0}, r"stride \(0\) must be a whole number from 1"),
        ({"length": 3, "padding": "left"}, r"padding \('left'\) must be one of \['drop', 'right'\]"),
        ({"length": 3, "next_obs": "yes"}, r"next_obs \('yes'\) must be True or False"),
        ({"length": 3, "step_ids": 1}, r"step_ids \(1\) must be True or False"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Sequences(**arguments)


def test_a_view_is_a_value():
    view = Sequences(80, 40, next_obs=True)
    assert view == pickle.loads(pickle.dumps(view)) != Sequences(80, 41, next_obs=True)  # noqa: S301 - spawned workers get it so.
    assert json.loads(json.dumps(view.to_json())) == view.to_json()


# -- what is known of a draw, of which a sequence has one ---------------------------------------------------------------------------------------


def drawn(burn_in=2):
    """Sequences as a table with priorities gives them."""
    draw = {
        "probability": torch.tensor([0.5, 0.1], dtype=torch.float64),
        "priority": torch.tensor([5.0, 1.0], dtype=torch.float64),
        "table_size": torch.tensor([10, 10]),
        "min_probability": torch.tensor([0.01, 0.01], dtype=torch.float64),
    }
    return built(Sequences(3, burn_in), episode_of(STEPS), [0, 4], **draw)


def test_a_sequence_has_what_is_known_of_its_anchor_at_each_step():
    batch = drawn()
    assert batch["probability"].tolist() == [[0.5] * 5, [0.1] * 5]
    assert batch["priority"].tolist() == [[5.0] * 5, [1.0] * 5]
    assert batch["table_size"].shape == batch["min_probability"].shape == (2, 5)


@pytest.mark.parametrize("normalize", ["batch", "table", None])
def test_a_sequence_has_one_weight(normalize):
    raw = torch.tensor([(10 * 0.5) ** -0.5, (10 * 0.1) ** -0.5])
    largest = {"batch": raw.max(), "table": torch.tensor((10 * 0.01) ** -0.5), None: torch.tensor(1.0)}[normalize]
    torch.testing.assert_close(importance_weights(drawn(), 0.5, normalize), raw / largest)
    assert importance_weights(drawn()[:, 2:], 0.5, normalize).shape == (2,)


def test_a_sequence_of_a_table_without_priorities_has_a_weight_of_1():
    assert importance_weights(built(Sequences(3, 2), episode_of(STEPS), [0, 4]), 0.5).tolist() == [1, 1]


def test_a_sequence_has_one_row_id():
    assert row_ids_of(drawn()).tolist() == [100, 104]


def test_priorities_of_sequences_mix_the_largest_error_and_the_mean():
    errors = torch.tensor([[9.0, -4.0, 1.0, 1.0], [0.5, -1.5, math.nan, math.inf]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    torch.testing.assert_close(sequence_priorities(errors, mask), torch.tensor([0.9 * 4 + 0.1 * 2, 0.9 * 1.5 + 0.1 * 1]))
    assert sequence_priorities(errors, mask, eta=1).tolist() == [4, 1.5]
    assert sequence_priorities(errors, mask, eta=0).tolist() == [2, 1]
    assert sequence_priorities(torch.full((1, 3), -7.0), torch.tensor([[True, True, False]])).tolist() == [7]


def test_priorities_of_sequences_are_numbers_whatever_the_errors_are():
    errors = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    found = sequence_priorities(errors, torch.tensor([[True] * 3, [False] * 3]))
    assert found.tolist() == [1, 0]
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    assert sequence_priorities(errors.double(), torch.ones(2, 3, dtype=torch.bool)).dtype is torch.float64


@pytest.mark.parametrize(
    ("errors", "mask", "eta"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.bool), 0.9),
        (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool), 0.9),
        (torch.ones(2, 3), torch.ones(2, 3), 0.9),
        (torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool), 0.9),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), 1.1),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), math.nan),
    ],
)
def test_errors_that_are_not_of_sequences_are_refused(errors, mask, eta):
    with pytest.raises(InvalidArgumentError, match=r"must"):
        sequence_priorities(errors, mask, eta)
