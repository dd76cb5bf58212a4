"""The memory that this process holds."""

from __future__ import annotations

from pathlib import Path

__all__ = ["memory_bytes"]

STATUS = Path("/proc/self/status")


def memory_bytes() -> int:
    """The anonymous part of the resident set, in bytes: without pages of files, which the system may drop. -1 where the system does not say it."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), -1)
