"""Half a minute of mixed traffic, the short form of `make soak`: nothing grows, and growth would be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.soak import Looks, judged

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(400)  # A machine that is busy with other tests takes as long to start the processes.
def test_half_a_minute_of_mixed_traffic_leaves_nothing_behind():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--seconds", "30"], cwd=ROOT, capture_output=True, text=True, timeout=380, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("each_look", "grows"), [(0.0, False), (0.05, False), (1.0, True)])
def test_what_grows_is_seen_and_a_peak_is_not(each_look, grows):
    looks = Looks(0, [float(second) for second in range(90)])
    looks.figures["threads"] = [20 + each_look * second + (40 if second == 88 else 0) for second in range(90)]
    ((line, fine),) = judged("server", looks)
    assert (fine, "GROWS" in line) == (not grows, grows)
