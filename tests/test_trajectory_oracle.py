"""The oracle of trajectories says what hand-made episodes bring: what it judges others by is written out here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tdreplay.trajectories import Trajectories
from trajectory_oracle import Ring, Row

TRAJECTORIES = Trajectories()


def ring_of(text: str, capacity: int = 100) -> Ring:
    """Rows in words: "a0 a1 b0 a2T af" are three steps of an episode a and one of b; a terminated, with a final observation.

    T and U end an episode with a final observation that follows as "af", t and u without one. The observation of step 3 of a is 13, of b 23, the
    reward 3.
    """
    ring = Ring(capacity)
    last: dict[str, int] = {}
    for word in text.split():
        name, rest = word[0], word[1:]
        if rest == "f":
            ring.insert(Row(name, last[name] + 1, {"obs": obs(name, last[name] + 1)}, final=True))
            continue
        number = last[name] = int(rest.rstrip("TUtu"))
        ended = {"T": "terminated", "U": "truncated"}.get(rest[-1].upper(), "")
        fields = {
            "obs": obs(name, number),
            "reward": np.float32(number),
            "terminated": np.array(ended == "terminated"),
            "truncated": np.array(ended == "truncated"),
        }
        ring.insert(Row(name, number, {name: np.asarray(value) for name, value in fields.items()}, ended, rest[-1] in "TU"))
    return ring


def obs(name: str, number: int) -> np.ndarray:
    return np.array(10.0 * "_abcdef".index(name) + number, np.float32)


def transitions(**given: Any) -> Any:
    return SimpleNamespace(**{"n_step": 1, "gamma": 0.5, "frame_stack": {}, "padding": "repeat", "names": "torchrl"} | given)


def sequences(length: int, **given: Any) -> Any:
    return SimpleNamespace(**{"length": length, "burn_in": 0, "stride": 1, "padding": "right", "next_obs": False, "step_ids": False} | given)


def of(text: str, view: Any, *names: str, capacity: int = 100) -> dict[int, Any]:
    """Row id -> the values of some names, as lists."""
    found = ring_of(text, capacity).of(view, TRAJECTORIES)
    return {row_id: [row[name].tolist() for name in names] for row_id, row in found.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a0 a1 b0", {0: [10, 11, 0.5]}),  # What comes after a1 and b0 did not come.
        ("a0 a1T af", {0: [10, 11, 0.5], 1: [11, 12, 0]}),
        ("a0 a1U af", {0: [10, 11, 0.5], 1: [11, 12, 0.5]}),
        ("a0 a1T", {0: [10, 11, 0.5]}),  # The final observation was announced.
        ("a0 a1t", {0: [10, 11, 0.5], 1: [11, 0, 0]}),
        ("a0 a1u", {0: [10, 11, 0.5]}),
        ("a0 b0 a1 b1T bf a2", {0: [10, 11, 0.5], 1: [20, 21, 0.5], 2: [11, 12, 0.5], 3: [21, 22, 0]}),
    ],
)
def test_transitions_of_one_step(text, expected):
    assert of(text, transitions(), "obs", "next.obs", "discount") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a0 a1 a2 a3 a4", {0: [13, 0 + 0.5 + 0.5, 0.125, 3, False], 1: [14, 1 + 1 + 0.75, 0.125, 3, False]}),
        ("a0 a1 a2T af", {0: [13, 1, 0, 3, True], 1: [13, 2, 0, 2, True], 2: [13, 2, 0, 1, True]}),
        ("a0 a1 a2U af", {0: [13, 1, 0.125, 3, True], 1: [13, 2, 0.25, 2, True], 2: [13, 2, 0.5, 1, True]}),
        ("a0 a1u", {}),
        ("a0 a1t", {0: [0, 0.5, 0, 2, True], 1: [0, 1, 0, 1, True]}),
        ("a0 a1", {}),
    ],
)
def test_transitions_of_three_steps(text, expected):
    assert of(text, transitions(n_step=3), "next.obs", "next.reward", "discount", "n_steps", "next.done") == expected


@pytest.mark.parametrize(
    ("text", "padding", "expected"),
    [
        ("a0 a1 a2 a3", "repeat", {0: [[10] * 3, [10, 10, 11]], 1: [[10, 10, 11], [10, 11, 12]], 2: [[10, 11, 12], [11, 12, 13]]}),
        ("a0 a1 a2", "zeros", {0: [[0, 0, 10], [0, 10, 11]], 1: [[0, 10, 11], [10, 11, 12]]}),
        ("b0 b1 b2 b3 b4T bf", "zeros", {3: [[21, 22, 23], [22, 23, 24]], 4: [[22, 23, 24], [23, 24, 25]]}),  # b0 is overwritten.
        ("a0t", "repeat", {0: [[10] * 3, [10, 10, 0]]}),
    ],
)
def test_stacks_of_three_frames(text, padding, expected):
    assert of(text, transitions(frame_stack={"obs": 3}, padding=padding), "obs", "next.obs", capacity=5) == expected


def test_stacks_at_the_horizon():
    view = transitions(n_step=3, frame_stack={("obs",): 2})
    assert of("a0 a1 a2 a3 a4T af", view, "obs", "next.obs", "n_steps") == {
        0: [[10, 10], [12, 13], 3],
        1: [[10, 11], [13, 14], 3],
        2: [[11, 12], [14, 15], 3],
        3: [[12, 13], [14, 15], 2],
        4: [[13, 14], [14, 15], 1],
    }


def test_transitions_with_plain_names():
    ((_, row),) = ring_of("a0 a1").of(transitions(names="plain"), TRAJECTORIES).items()
    assert sorted(row) == sorted(["obs", "next_obs", "reward", "terminated", "truncated", "done", "discount", "n_steps", "index", "row_id", "step"])


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("a0 a1 a2", {}, {0: [[10, 11], [True, True], [True, False], [False, False]], 1: [[11, 12], [True, True], [False, False], [False, False]]}),
        ("a0T af", {}, {0: [[10, 0], [True, False], [True, False], [False, False]]}),
        ("a0T af", {"padding": "drop"}, {}),
        ("a0 a1u", {"stride": 2}, {0: [[10, 11], [True, True], [True, False], [False, False]]}),
        ("a0 a1 a2", {"burn_in": 1, "stride": 3}, {0: [[0, 10, 11], [False, True, True], [False, True, False], [True, False, False]]}),
        ("a1 a2 a3", {"burn_in": 1}, {1: [[11, 12, 13], [True] * 3, [False] * 3, [True, False, False]]}),  # The first step is gone.
    ],
)
def test_sequences_of_two_steps(text, arguments, expected):
    assert of(text, sequences(2, **arguments), "obs", "mask", "is_init", "burn_in") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a0 a1 a2", {0: [[11, 12], [10, 11], [0, 1], [0, 1]]}),
        ("a0 b0 a1U af", {0: [[11, 12], [10, 11], [0, 2], [0, 2]], 2: [[12, 0], [11, 12], [2, -1], [2, -1]]}),
        ("a0 a1u", {}),
        ("a0 a1t", {0: [[11, 0], [10, 11], [0, 1], [0, 1]], 1: [[0, 0], [11, 0], [1, -1], [1, -1]]}),
    ],
)
def test_sequences_with_what_comes_next(text, expected):
    assert of(text, sequences(2, next_obs=True, step_ids=True), "next.obs", "obs", "steps.row_id", "steps.index") == expected


def test_a_ring_forgets_the_oldest_rows_and_goes_back():
    ring = ring_of("a0 a1 a2 a3", capacity=3)
    saved = ring.copy()
    assert list(ring.rows) == [1, 2, 3]
    ring.reset(2)
    assert (ring.rows, ring.write_count, ring.slot(5)) == ({}, 4, 1)
    assert not ring.rewind(saved)
    ring = saved.copy()
    ring.rows.pop(3)
    ring.write_count = 3
    back = ring.copy()
    ring.insert(saved.rows[3])
    assert ring.rewind(back)
    assert list(ring.rows) == [1, 2]
