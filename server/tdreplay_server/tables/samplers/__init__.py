"""Samplers: what chooses the rows of a batch. A new one is a value in `tdreplay.samplers`, a module here, and an entry in `SAMPLERS`.

A sampler may import storage, and of durability only what tells it which rows are live and what keeps its state. It knows no disk and no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tdreplay import samplers
from tdreplay_server.tables.samplers.fifo import FifoSampler
from tdreplay_server.tables.samplers.lifo import LifoSampler
from tdreplay_server.tables.samplers.max_heap import MaxHeapSampler
from tdreplay_server.tables.samplers.min_heap import MinHeapSampler
from tdreplay_server.tables.samplers.prioritized import PrioritizedSampler
from tdreplay_server.tables.samplers.sampler import Draw, Sampler, Totals
from tdreplay_server.tables.samplers.uniform import UniformSampler
from tdreplay_server.tables.samplers.without_replacement import WithoutReplacementSampler

__all__ = [
    "SAMPLERS",
    "Draw",
    "FifoSampler",
    "LifoSampler",
    "MaxHeapSampler",
    "MinHeapSampler",
    "PrioritizedSampler",
    "Sampler",
    "Totals",
    "UniformSampler",
    "WithoutReplacementSampler",
    "made_sampler",
]

SAMPLERS: Mapping[type[samplers.Sampler], Callable[[Any], Sampler]] = {
    samplers.Uniform: lambda _: UniformSampler(),
    samplers.Prioritized: lambda value: PrioritizedSampler(value.alpha),
    samplers.Fifo: lambda _: FifoSampler(),
    samplers.Lifo: lambda _: LifoSampler(),
    samplers.WithoutReplacement: lambda _: WithoutReplacementSampler(),
    samplers.MaxHeap: lambda _: MaxHeapSampler(),
    samplers.MinHeap: lambda _: MinHeapSampler(),
}
"""The value that names a sampler -> what makes one."""


def made_sampler(value: samplers.Sampler) -> Sampler:
    """A new sampler, as the value says."""
    return SAMPLERS[type(value)](value)
