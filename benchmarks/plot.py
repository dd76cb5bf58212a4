"""The run as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Figures
from benchmarks.plan import BARE, IN_PROCESS, RAY, REVERB, SERVICE, SHARED_MEMORY, TORCHRL
from benchmarks.targets import Side

__all__ = ["draw"]

BLUE, GREY, PALE = "#2563eb", "#6b7280", "#d1d5db"
Bars = tuple[tuple[str, str], ...]

SAMPLES: Bars = (
    (SHARED_MEMORY, "stream"),
    (SERVICE, "stream"),
    (IN_PROCESS, "sample_batch"),
    (TORCHRL, "sample"),
    (REVERB, "stream"),
    (RAY, "sample"),
    (BARE, "stream"),
)
INSERTS: Bars = (
    (SHARED_MEMORY, "add_batch"),
    (SERVICE, "extend"),
    (SERVICE, "append"),
    (SERVICE, "add"),
    (IN_PROCESS, "add_batch"),
    (TORCHRL, "add_batch"),
    (REVERB, "TrajectoryWriter"),
    (REVERB, "client.insert"),
    (RAY, "add_batch"),
    (BARE, "add_batch"),
)
STACKS: Bars = (
    (SHARED_MEMORY, "stream, steps"),
    (SHARED_MEMORY, "stream, rows"),
    (SERVICE, "stream, steps"),
    (SERVICE, "stream, rows"),
    (IN_PROCESS, "sample_batch"),
    (TORCHRL, "sample"),
    (REVERB, "stream"),
)
PLAYED: Bars = (
    (SHARED_MEMORY, "append, steps"),
    (SHARED_MEMORY, "extend, steps"),
    (SHARED_MEMORY, "extend, rows"),
    (SERVICE, "append, steps"),
    (SERVICE, "extend, steps"),
    (SERVICE, "extend, rows"),
)
SMALL_STEPS: Bars = ((SERVICE, "stream"), (REVERB, "stream"), (IN_PROCESS, "draw of few steps"), (IN_PROCESS, "draw of many steps"))
BYTES: Bars = ((SERVICE, "disk, steps"), (SERVICE, "disk, rows"), (SERVICE, "memory, steps"), (SERVICE, "memory, rows"))
BARE_IS = "Bare gRPC sends zeros in plain messages, one call or batch after the other, and stores nothing: something to compare with, not a limit."
WORDS = {
    "stream": "stream",
    "sample": "sample",
    "sample_batch": "sample_batch",
    "extend": "writer, batches",
    "append": "writer, single rows",
    "add": "add, one at a time",
    "add_batch": "add_batch",
    "stream, steps": "stream of steps",
    "stream, rows": "stream of rows",
    "append, steps": "steps, 256 environments",
    "extend, steps": "steps, 256 at once",
    "extend, rows": "rows, 256 at once",
    "draw of few steps": "sample_batch, 10^5",
    "draw of many steps": "sample_batch, 10^7",
    "disk, steps": "steps, disk",
    "disk, rows": "rows, disk",
    "memory, steps": "steps, memory",
    "memory, rows": "rows, memory",
}


def draw(path: Path, figures: Figures, machine: str) -> None:
    """Writes a picture of the rows a second, on a logarithmic scale: ours in blue, bare gRPC pale."""
    figure = Figure(figsize=(13, 14), layout="constrained")
    panels = figure.subplots(4, 2, height_ratios=[len(bars) for bars in (SAMPLES, INSERTS, STACKS, BYTES)])
    speed = figures.rows_per_second
    for axes, bars, title in zip(panels, (SAMPLES, INSERTS), ("Sampled batches of 256", "Inserted"), strict=False):
        _panel(axes[0], speed, "small", bars, f"{title}: small rows, 165 B")
        _panel(axes[1], speed, "image", bars, f"{title}: image rows, 56 kB")
    _panel(panels[2][0], speed, "frames", STACKS, "Sampled: steps, stacked then, or rows of stacks")
    _panel(panels[2][1], speed, "frames", PLAYED, "Inserted: steps of one frame, or rows of stacks")
    _panel(panels[3][0], speed, "steps", SMALL_STEPS, "Small steps: sequences of 80; transitions of 10^5 and 10^7 steps")
    _panel(panels[3][1], figures.memory, "frames", BYTES, "Bytes of a transition, of which fewer are better")
    figure.suptitle("Rows a second, median of the rounds (logarithmic: each line is ten times the one before)", fontsize=13)
    figure.supxlabel(f"{machine}; loopback, server and client on the same cores.\n{BARE_IS}", fontsize=9, color=GREY)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, figure_of: Callable[[Side], float], work: str, bars: Bars, title: str) -> None:
    speeds = {bar: figure_of(Side(bar[0], work, bar[1])) for bar in bars}
    measured = [bar for bar in reversed(bars) if speeds[bar]]
    axes.set_title(title, fontsize=11, loc="left")
    if measured:
        drawn = axes.barh([_label(bar) for bar in measured], [speeds[bar] for bar in measured], color=[_colour(bar) for bar in measured])
        axes.bar_label(drawn, [f"{speeds[bar]:,.0f}" for bar in measured], padding=4, fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(min(speeds[bar] for bar in measured) / 3, max(speeds.values()) * 6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(bar: tuple[str, str]) -> str:
    return f"{bar[0]}: {WORDS.get(bar[1], bar[1])}"


def _colour(bar: tuple[str, str]) -> str:
    return PALE if bar[0] == BARE else BLUE if bar[0].startswith("tdreplay") else GREY
