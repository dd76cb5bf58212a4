"""What a random batch over several shards is to be."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from tdreplay.samplers import Uniform
from tdreplay.views import TableView
from tdreplay_client.reading.single_batches import Asked, Draw
from tdreplay_client.sharding.totals import DrawKind

__all__ = ["DrawQuery", "generator_of"]

_own = threading.local()


@dataclass(frozen=True)
class DrawQuery:
    """What a random batch is to be.

    Attributes:
        rows: Its number of rows.
        uniform: Whether all rows are equally probable, whatever the sampler is.
        view: What is made of the windows around them; None: the rows come alone.
        draw: Its seed and its number among the batches of that seed; None: it is drawn by chance.
        wait: Whether an empty buffer is waited for.
    """

    rows: int
    uniform: bool = False
    view: TableView | None = None
    draw: Draw = None
    wait: bool = False

    @property
    def kind(self) -> DrawKind:
        """Of what it is drawn."""
        return DrawKind(self.uniform, None if self.view is None else self.view.windows)

    @property
    def asked(self) -> Asked:
        """What each shard is asked for, of as many rows at most."""
        return Asked(self.rows, Uniform.name if self.uniform else "", self.view)


def generator_of(draw: Draw) -> np.random.Generator:
    """What decides how many rows each shard gives, and in which order they come: of the batch of that number of a seed, or by chance."""
    if draw is not None:
        return np.random.Generator(np.random.Philox(key=np.array(draw, np.uint64)))
    if not hasattr(_own, "generator"):
        _own.generator = np.random.default_rng()
    found: np.random.Generator = _own.generator
    return found
