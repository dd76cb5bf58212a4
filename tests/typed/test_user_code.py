"""User code type-checks, strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USER_CODE = Path(__file__).with_name("user_code.py")
ROOT = USER_CODE.parents[2]


def test_what_users_write_type_checks():
    done = subprocess.run([sys.executable, "-m", "mypy", USER_CODE], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
