"""Points at which the server's process can be made to die, for crash tests.

``TDREPLAY_FAILPOINT=NAME`` or ``NAME:N`` kills the process with SIGKILL when it reaches that point for the first, or the N-th, time.
"""

from __future__ import annotations

import os
import signal

__all__ = ["FAILPOINTS", "failpoint"]

FAILPOINTS = (
    "insert-before-intent",
    "insert-after-intent",
    "insert-half-written",
    "insert-after-rows",
    "insert-after-commit",
    "allocate-before-schema",
    "reset-after-journal",
    "create-before-rename",
    "compact-after-copy",
    "compact-after-checksums",
    "checkpoint-half-written",
    "checkpoint-before-manifest",
    "checkpoint-before-rename",
    "checkpoint-after-rename",
)
"""Every point that there is."""

_name, _, _count = os.environ.get("TDREPLAY_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def failpoint(name: str) -> None:
    """Dies here, where the environment says so."""
    global _left
    if name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
