"""The quick form of ``make bench-sampling`` measures everything that needs no other environment. What it measures is not judged here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.sampling_targets import comparisons, programs

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300.0


@pytest.mark.timeout(SECONDS + 10)
def test_every_comparison_of_the_quick_form_has_a_ratio():
    command = [sys.executable, "-m", "benchmarks.sampling", "--quick", "--seconds", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "FAILED" not in done.stdout
    quick = {entry.participant for entry in programs(quick=True, against=None) if entry.quick}
    expected = [c for c in comparisons(against=None) if {c.ours.participant, c.theirs.participant} <= quick]
    assert len(expected) == 6
    for comparison in expected:
        assert re.search(rf"{re.escape(comparison.what)} .*[\d.]+x .*{comparison.least:.3g}x", done.stdout), comparison
