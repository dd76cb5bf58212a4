"""The learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.cartpole.evaluation import EPISODES, GOAL, Evaluation

__all__ = ["draw_learning_curve"]

BLUE, GREEN, GREY = "#2563eb", "#15803d", "#6b7280"


def draw_learning_curve(path: Path, evaluations: Sequence[Evaluation], title: str) -> None:
    """Writes a picture of the returns over the rows pushed: their mean, and the band in which eight of ten lie."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    _draw_returns(axes, evaluations)
    _draw_goal(axes, evaluations[-1])
    _label(axes, title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_returns(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    rows = [evaluation.rows for evaluation in evaluations]
    low, high = np.percentile([evaluation.returns for evaluation in evaluations], [10, 90], axis=1)
    means = [evaluation.mean for evaluation in evaluations]
    axes.plot(rows, means, "o-", color=BLUE, linewidth=1.5, markersize=3, label=f"mean of {EPISODES} greedy episodes")
    axes.fill_between(rows, low, high, color=BLUE, alpha=0.15, linewidth=0, label="10th to 90th percentile")


def _draw_goal(axes: Axes, last: Evaluation) -> None:
    axes.axhline(GOAL, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(f"goal: {GOAL:.0f}", (0, GOAL), xytext=(0, 4), textcoords="offset points", color=GREY)
    if last.solved:
        axes.plot(last.rows, last.mean, "o", color=GREEN, markersize=9, clip_on=False, label=f"solved: {last.mean:.1f}", zorder=3)


def _label(axes: Axes, title: str) -> None:
    axes.set(xlabel="rows pushed into the replay buffer", ylabel="return (500 at most)", ylim=(0, 515), title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
