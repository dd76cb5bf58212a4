"""The rows of the highest priority first."""

from __future__ import annotations

from tdreplay_server.tables.samplers.heap_sampler import HeapSampler

__all__ = ["MaxHeapSampler"]


class MaxHeapSampler(HeapSampler):
    """Takes the rows of the highest priority that may be drawn; of equal ones the oldest first."""

    sign = 1.0
