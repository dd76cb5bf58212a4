"""One table, and what it does not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figures, Verdict
from benchmarks.machine import LIMITS
from benchmarks.plan import SERVICE, SHARED_MEMORY
from benchmarks.rounds import Outcome
from benchmarks.targets import Comparison, Side

__all__ = ["MIB", "memory_lines", "print_header", "print_report"]

WIDTH = 180
COLUMNS = ("", "work", "rows/s", "against", "rows/s", "ratio", "of the rounds", "target", "")
MIB = 1 << 20
BUSY = 0.2
"""Load for each core above which the run is told to be of no use."""

Compared = list[tuple[Comparison, Verdict | None]]


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def print_header(machine: Mapping[str, Any], sizes: Mapping[str, Mapping[str, int]]) -> None:
    """The machine, and the work."""
    words = "{processor}, {cores} cores, {memory_gib} GiB, load {load_before} before the run".format_map(machine)
    work = "; ".join("{}: {:,} B a row, {:,} B a batch of {}".format(name, *list(size.values())[:3]) for name, size in sizes.items())
    _console().print(f"{words}\n{work}")
    if machine["load_before"] > BUSY * machine["cores"]:
        _console().print("[red]The machine is busy with something else: what follows is mostly noise.[/]")


def print_report(
    compared: Compared,
    memory: Iterable[str],
    outcome: Outcome,
    versions: Mapping[str, Mapping[str, str]],
    title: str = "tdreplay and its peers",
    limits: Sequence[str] = LIMITS,
) -> None:
    """The table of all comparisons; then versions, the server's memory, what is missing and why, and the limits."""
    console = _console()
    table = Table(*COLUMNS, title=title, title_justify="left", box=None, pad_edge=False)
    for column in (2, 4, 5, 6, 7):
        table.columns[column].justify = "right"
    for comparison, verdict in compared:
        table.add_row(*_names(comparison), *_results(comparison, verdict, outcome))
    console.print(table)
    for line in (*_versions(versions), *memory, *_missing(outcome)):
        console.print(line, markup=False)
    console.print("What this does not show:\n" + "\n".join(f"- {limit}" for limit in limits), markup=False)


def _names(comparison: Comparison) -> tuple[str, str]:
    return comparison.what, comparison.ours.work


def _results(comparison: Comparison, verdict: Verdict | None, outcome: Outcome) -> tuple[str, ...]:
    theirs = f"{comparison.theirs.participant}, {comparison.theirs.op}"
    target = "" if comparison.least is None else f"{comparison.least:.3g}x"
    if verdict is None:
        return "", theirs, "", "", "", target, "not measured" if outcome.failures or outcome.left_out else "not built"
    spread = f"{verdict.lowest:.3g} to {verdict.highest:.3g}"
    unit = " B" if comparison.unit == "bytes" else ""
    figures = f"{verdict.ours:,.0f}{unit}", theirs, f"{verdict.theirs:,.0f}{unit}"
    return *figures, f"{verdict.ratio:.3g}x", spread, target, _coloured(verdict)


def _coloured(verdict: Verdict) -> str:
    colour = "green" if verdict.words == "PASS" else "red"
    return f"[{colour}]{verdict.words}[/]" if verdict.words else ""


def _versions(versions: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [f"{name}: " + ", ".join(f"{package} {version}" for package, version in found.items()) for name, found in versions.items()]


def memory_lines(figures: Figures) -> list[str]:
    """What the servers' memory was while they streamed."""
    cases = ((SERVICE, "small"), (SERVICE, "image"), (SHARED_MEMORY, "image"))
    found = ([figures.memory(Side(*case, f"server memory, {when}")) / MIB for when in ("idle", "streaming")] for case in cases)
    return [
        f"The server's own memory, {who}, {work}: {idle:.0f} MiB before, {most:.0f} MiB while it streams"
        for (who, work), (idle, most) in zip(cases, found, strict=True)
        if most
    ]


def _missing(outcome: Outcome) -> list[str]:
    left_out = [f"Left out: {name}: {reason}" for name, reason in outcome.left_out.items()]
    return [*left_out, *(f"FAILED: {how}" for how in outcome.failures)]
