"""The run as a file: all that the table is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.figures import Verdict
from benchmarks.machine import LIMITS
from benchmarks.plan import Plan
from benchmarks.rounds import Outcome
from benchmarks.targets import Comparison

__all__ = ["write_results"]


def write_results(path: Path, plan: Plan, about: Mapping[str, Any], compared: list[tuple[Comparison, Verdict | None]], outcome: Outcome) -> None:
    """Writes the machine, the versions, the work, every comparison, and every figure of every round."""
    content = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
        "plan": asdict(plan),
        "limits": LIMITS,
        "comparisons": [_entry(comparison, verdict) for comparison, verdict in compared],
        "failures": outcome.failures,
        "left_out": outcome.left_out,
        "rounds": [[asdict(measurement) for measurement in measurements] for measurements in outcome.rounds],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _entry(comparison: Comparison, verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {**asdict(comparison), "verdict": "not measured"}
    ratios = {"ratio": verdict.ratio, "lowest_ratio": verdict.lowest, "highest_ratio": verdict.highest}
    what = "bytes" if comparison.unit == "bytes" else "rows_per_second"
    figures = {f"our_{what}": verdict.ours, f"their_{what}": verdict.theirs}
    return {**asdict(comparison), **figures, **ratios, "verdict": verdict.words}
