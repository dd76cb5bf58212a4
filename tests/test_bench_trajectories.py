"""The quick form of ``make bench-trajectories`` measures what needs no other environment. What it measures is not judged here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.figures import Figures
from benchmarks.measure import Measurement
from benchmarks.play import LENGTH, SEQUENCE, STACK, Play
from benchmarks.trajectory_targets import TRAJECTORY_COMPARISONS
from benchmarks.work import Live, WrongRowsError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300.0


@pytest.mark.timeout(SECONDS + 10)
def test_what_the_quick_form_measures_has_a_ratio():
    command = [sys.executable, "-m", "benchmarks.trajectories", "--quick", "--seconds", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "FAILED" not in done.stdout
    expected = [c for c in TRAJECTORY_COMPARISONS if c.ours.participant == c.theirs.participant and c.unit == "rows"]
    assert len(expected) == 7
    for comparison in expected:
        assert re.search(rf"{re.escape(comparison.what)} .*[\d.]+x .*{comparison.least:.3g}x", done.stdout), comparison


@pytest.mark.parametrize(("rows", "ratio", "words"), [(7000, 7.0, "PASS"), (3500, 3.5, "short by 50%")])
def test_of_bytes_fewer_are_better(rows, ratio, words):
    bytes_on_disk = TRAJECTORY_COMPARISONS[0]
    assert bytes_on_disk.unit == "bytes"
    sides = {bytes_on_disk.ours: 1000, bytes_on_disk.theirs: rows}
    figures = Figures([[Measurement(side.participant, side.work, side.op, memory=size) for side, size in sides.items()]])
    verdict = figures.verdict(bytes_on_disk)
    assert (verdict.ours, verdict.theirs, verdict.ratio, verdict.words) == (1000, rows, ratio, words)


@pytest.fixture(scope="module")
def play():
    return Play("frames", envs=2)


def test_a_stack_repeats_the_first_frame_and_the_last_transition_has_the_final_observation(play):
    steps, rows = play.steps(0, 2 * LENGTH), play.rows(0, 2 * LENGTH)
    mine = steps["obs"][0::2]  # Of the first environment.
    assert np.array_equal(rows["obs"][2 * 1], mine[[0, 0, 0, 1]])
    assert np.array_equal(rows["next_obs"][2 * 1], mine[[0, 0, 1, 2]])
    last = rows["next_obs"][2 * (LENGTH - 1)]
    assert np.array_equal(last[: STACK - 1], mine[-STACK + 1 :])
    assert np.array_equal(last[-1], play.final(2 * (LENGTH - 1)))
    assert steps["terminated"][2 * (LENGTH - 1)]
    assert not steps["truncated"].any()


@pytest.mark.parametrize("name", ["obs", "next_obs", "action", "terminated"])
def test_a_batch_with_a_wrong_value_is_refused(play, name):
    batch = {field: column.copy() for field, column in play.rows(100, 8).items()}
    play.check(batch, Live(0, 200))
    batch[name][3] = ~batch[name][3]
    with pytest.raises(WrongRowsError, match=name):
        play.check(batch, Live(0, 200))


def test_a_sequence_that_goes_on_after_the_end_of_its_episode_is_refused():
    play = Play("steps")
    first = LENGTH - 10  # The next episode begins after ten steps.
    whole = {name: column[None].copy() for name, column in play.steps(first, SEQUENCE).items()} | {"mask": np.ones((1, SEQUENCE), np.bool_)}
    with pytest.raises(WrongRowsError):
        play.check_sequences(whole, Live(0, 2 * LENGTH))
    for column in whole.values():
        column[:, 10:] = 0
    assert play.check_sequences(whole, Live(0, 2 * LENGTH)).tolist() == [first]
