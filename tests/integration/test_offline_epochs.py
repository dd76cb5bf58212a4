"""The example of offline epochs: two learners that share the rows learn what the expert does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_two_learners_learn_from_rows_that_come_to_one_of_them():
    done = subprocess.run([sys.executable, "-m", "examples.offline_epochs"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 learners took 49152 rows in 6 epochs: each row once an epoch" in done.stdout
    learned, before = map(float, re.search(r"in ([\d.]+)% of cases; .* in ([\d.]+)%", done.stdout).groups())
    assert learned >= 95 > 70 > before
