"""The memory that a server takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

__all__ = ["most_private_bytes", "private_bytes"]

LOOKS = 10
BATCHES_BETWEEN = 3


def private_bytes(pid: int) -> int:
    """Memory that is the process's own. What it maps of the table's files does not count: the page cache can drop it at any time."""
    process = psutil.Process(pid)
    mapped = sum(area.private_clean + area.private_dirty for area in process.memory_maps() if area.path.endswith(".memmap"))
    return int(process.memory_full_info().uss - mapped)


def most_private_bytes(pid: int, sample: Callable[[], Any]) -> int:
    """The most that the process has while sample() is called."""
    most = 0
    for _ in range(LOOKS):
        for _ in range(BATCHES_BETWEEN):
            sample()
        most = max(most, private_bytes(pid))
    return most
