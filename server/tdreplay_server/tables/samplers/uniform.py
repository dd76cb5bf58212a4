"""Every live row with the same probability."""

from __future__ import annotations

import numpy as np

from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.samplers.sampler import Draw

__all__ = ["Uniform"]


class Uniform:
    """Draws live rows uniformly, with replacement. It needs no memory: the ring says which rows are live."""

    def inserted(self, ids: range) -> None:
        """Nothing to note."""

    def evicted(self, ids: range) -> None:
        """Nothing to forget."""

    def draw(self, n: int, ring: Ring, rng: np.random.Generator) -> Draw:
        """`n` row ids. Only the number of live rows counts, not where their ids start: tables with the same rows draw the same ones."""
        return Draw(rng.integers(ring.oldest, ring.write_count, n))
