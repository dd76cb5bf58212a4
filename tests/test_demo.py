"""What the demo says of a training."""

from __future__ import annotations

import io
import re
from pathlib import Path

from examples.cartpole.evaluation import Evaluation
from examples.cartpole.learner import UPDATES_PER_EVALUATION, UPDATES_PER_PUSH, Report
from examples.cartpole.pace import ROWS_PER_PUSH, WARM_UP_ROWS
from examples.cartpole.plot import draw_learning_curve
from examples.cartpole.progress import Display, print_summary
from examples.cartpole.training import Training
from rich.console import Console

EVALUATIONS = [Evaluation(rows, (value,) * 20) for rows, value in ((0, 20.0), (1200, 120.0), (1400, 450.0))]


def training(updates: int = 640) -> Training:
    """A training after so many updates, with the rows that belong to them."""
    report = Report(updates=updates, seconds=10.0, waiting=2.0, evaluating=3.0, evaluation=EVALUATIONS[-1])
    pushed = WARM_UP_ROWS + updates // UPDATES_PER_PUSH * ROWS_PER_PUSH
    return Training(None, 0.0, rows=pushed, pushed=pushed, report=report, evaluations=EVALUATIONS)


def said(do) -> str:
    console = Console(file=io.StringIO(), width=200)
    do(console)
    return console.file.getvalue()


def test_the_figures_of_the_summary_agree():
    text = said(lambda console: print_summary(console, training(), 16.0))
    total, before, learner = map(float, re.search(r"seconds +([\d.]+): ([\d.]+) .*, ([\d.]+) of the learner", text).groups())
    assert total == before + learner == 16
    parts = re.search(r"([\d.]+) updating, ([\d.]+) evaluating, ([\d.]+) waiting", text).groups()
    assert sum(map(float, parts)) == learner
    pushed, first, each = re.search(r"rows pushed +([\d,]+): ([\d,]+) before the first update, then ([\d.]+) an update", text).groups()
    assert int(pushed.replace(",", "")) == int(first.replace(",", "")) + 640 * float(each)
    assert "640, one a batch of 128 rows: 64 a second" in text


def test_a_summary_without_an_update_is_one_too():
    assert "0.0 an update" in said(lambda console: print_summary(console, Training(None, 0.0), 3.0))


def test_the_display_says_what_is_going_on():
    def show(console: Console) -> None:
        with Display(console, 300.0) as display:
            display.show(training())

    assert "learning" in said(show)


def test_a_training_is_evaluated_many_times_before_it_can_be_solved():
    assert UPDATES_PER_EVALUATION <= 64


def test_the_curve_is_a_picture(tmp_path: Path):
    draw_learning_curve(tmp_path / "curve.png", EVALUATIONS, "title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
