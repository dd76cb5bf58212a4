"""The run as a picture."""

from __future__ import annotations

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
BARE_IS = "Bare gRPC sends zeros in plain messages, one call or batch after the other, and stores nothing: something to compare with, not a limit."
WORDS = {
    "stream": "stream",
    "sample": "sample",
    "sample_batch": "sample_batch",
    "extend": "writer, batches",
    "append": "writer, single rows",
    "add": "add, one at a time",
    "add_batch": "add_batch",
}


def draw(path: Path, figures: Figures, machine: str) -> None:
    """Writes a picture of the rows a second, on a logarithmic scale: ours in blue, bare gRPC pale."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=(len(SAMPLES), len(INSERTS)))
    for axes, bars, title in zip(panels, (SAMPLES, INSERTS), ("Sampled batches of 256", "Inserted"), strict=True):
        _panel(axes[0], figures, "small", bars, f"{title}: small rows, 165 B")
        _panel(axes[1], figures, "image", bars, f"{title}: image rows, 56 kB")
    figure.suptitle("Rows a second, median of the rounds (logarithmic: each line is ten times the one before)", fontsize=13)
    figure.supxlabel(f"{machine}; loopback, server and client on the same cores.\n{BARE_IS}", fontsize=9, color=GREY)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, figures: Figures, work: str, bars: Bars, title: str) -> None:
    speeds = {bar: figures.rows_per_second(Side(bar[0], work, bar[1])) for bar in bars}
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
