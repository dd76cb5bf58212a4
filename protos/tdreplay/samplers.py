"""What chooses the rows of a batch: the samplers that a table can have, as values.

Whatever the sampler, a batch takes its rows one after the other. The samplers with an order (`Fifo`, `Lifo`, `MaxHeap`, `MinHeap`) take each row once
before a batch takes any of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tdreplay.limits import check_number
from tdreplay.named_settings import NamedSetting, named_setting

__all__ = ["SAMPLERS", "Fifo", "Lifo", "MaxHeap", "MinHeap", "Prioritized", "Sampler", "Uniform", "WithoutReplacement", "sampler_of"]


@dataclass(frozen=True)
class Sampler(NamedSetting):
    """Base of the samplers.

    Attributes:
        has_priorities: Whether rows have priorities.
    """

    has_priorities = False


@dataclass(frozen=True)
class Uniform(Sampler):
    """Every row is equally probable, with replacement."""

    name = "uniform"


@dataclass(frozen=True)
class Prioritized(Sampler):
    """A row is drawn with a probability proportional to its priority to the power `alpha`, with replacement.

    Schaul et al., Prioritized Experience Replay, ICLR 2016. A row of priority 0 is never drawn. If all rows have priority 0, all are equally
    probable.

    Attributes:
        alpha: From 0 (uniform) up.

    Raises:
        InvalidArgumentError: alpha is negative or not finite.
    """

    name = "prioritized"
    has_priorities = True

    alpha: float = 0.6

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_number(self.alpha, "alpha", 0))


@dataclass(frozen=True)
class Fifo(Sampler):
    """The oldest rows first."""

    name = "fifo"


@dataclass(frozen=True)
class Lifo(Sampler):
    """The newest rows first."""

    name = "lifo"


@dataclass(frozen=True)
class WithoutReplacement(Sampler):
    """A random row that was not drawn in this pass.

    A pass ends when all rows were drawn in it. Rows that are inserted meanwhile belong to it.
    """

    name = "without_replacement"


@dataclass(frozen=True)
class MaxHeap(Sampler):
    """The rows of the highest priority first; of equal ones the oldest."""

    name = "max_heap"
    has_priorities = True


@dataclass(frozen=True)
class MinHeap(Sampler):
    """The rows of the lowest priority first; of equal ones the oldest."""

    name = "min_heap"
    has_priorities = True


SAMPLERS: Mapping[str, type[Sampler]] = {kind.name: kind for kind in (Uniform, Prioritized, Fifo, Lifo, WithoutReplacement, MaxHeap, MinHeap)}
"""The name of a sampler -> its class."""


def sampler_of(entries: object) -> Sampler:
    """The sampler that `entries` describes: a `Sampler`, a name, or a mapping of ``name`` and its numbers.

    Raises:
        InvalidArgumentError: it is none.
    """
    return named_setting(entries, "sampler", SAMPLERS)
