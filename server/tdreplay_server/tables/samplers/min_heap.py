"""The rows of the lowest priority first."""

from __future__ import annotations

from tdreplay_server.tables.samplers.heap_sampler import HeapSampler

__all__ = ["MinHeapSampler"]


class MinHeapSampler(HeapSampler):
    """Takes the rows of the lowest priority that may be drawn; of equal ones the oldest first."""

    sign = -1.0
