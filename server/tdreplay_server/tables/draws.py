"""Random batches that can be drawn again: each batch of a seed has a generator of its own.

Philox is counter-based (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): the seed and the batch's number are its key, so a batch
does not depend on those before it, nor on the calls and messages in which they were sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tdreplay.limits import check_whole

__all__ = ["Generators", "generators_of"]

Generators: TypeAlias = "Callable[[int], list[np.random.Generator]]"
"""How many batches come next -> the generator of each of them."""


def generators_of(seed: int, first: int = 0) -> Generators:
    """The generators of a seed's batches, from number `first` on.

    Raises:
        InvalidArgumentError: one of them is out of its range.
    """
    check_whole(seed, "seed", 0)
    number = check_whole(first, "the number of the first batch", 0)

    def following(batches: int) -> list[np.random.Generator]:
        nonlocal number
        number += batches
        return [np.random.Generator(np.random.Philox(key=np.array([seed, batch], np.uint64))) for batch in range(number - batches, number)]

    return following
