"""Random batches: each has a generator, and is pinned to the row ids that were drawn.

A batch of a seed can be drawn again. Philox is counter-based (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): the seed and the
batch's number are its key, so a batch does not depend on those before it, nor on the calls and messages in which they were sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tdreplay.errors import TableChangedError
from tdreplay.limits import check_whole
from tdreplay.system_fields import PRIORITY, PROBABILITY
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.consumption import TooFewDrawsError
from tdreplay_server.tables.samplers import Draw, Totals

__all__ = ["DrawRows", "DrawnRows", "Generators", "generators_of"]

Generators: TypeAlias = "Callable[[int], Sequence[np.random.Generator]]"
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


def overwritten(ids: RowIds, ring: Ring) -> npt.NDArray[np.bool_]:
    """For each id whether its row was overwritten."""
    gone: npt.NDArray[np.bool_] = ids < ring.oldest
    return gone


LostRows: TypeAlias = "Callable[[RowIds, int], object]"
"""As `Consumption.give_back`."""

DrawRows: TypeAlias = "Callable[[int, Sequence[np.random.Generator], Ring], Draw]"
"""As `Sampler.draw`."""


class DrawnRows:
    """The rows of random batches, all drawn against one ring.

    A row that was overwritten before it was read is drawn anew, against the ring of that moment, with the generator of its batch. So the row that
    took its slot does not take its place. A seed gives the same rows again as long as the same rows are overwritten in between.

    Attributes:
        min_probability: The smallest probability above 0 that a row had.
        moment: What the ids mean: as `Consumption.moment`.

    Args:
        draw: Draws them.
        rows: The number of rows of each batch.
        generators: One for each batch.
        ring: The live rows, of which there is at least one.
        moment: What the ids mean.
        are_lost: Which rows cannot be read any more, as a mask, of some that were drawn.
        lost: Hears which rows were overwritten before they were read, after others were drawn in their place.

    Raises:
        TooFewDrawsError: as `draw` does; once they are drawn, `ids` raises TableChangedError instead.
    """

    def __init__(
        self,
        draw: DrawRows,
        rows: int,
        generators: Sequence[np.random.Generator],
        ring: Ring,
        moment: int = 0,
        lost: LostRows | None = None,
        are_lost: Callable[[RowIds, Ring], npt.NDArray[np.bool_]] = overwritten,
    ) -> None:
        self._draw, self._rows, self._generators, self._oldest, self._lost = draw, rows, generators, ring.oldest, lost
        self._are_lost = are_lost
        drawn = draw(rows, generators, ring)
        self._ids, self._probabilities, self._priorities = drawn.ids, drawn.probabilities, drawn.priorities
        self._first, self.min_probability, self.moment = drawn, drawn.min_probability, moment

    @property
    def totals(self) -> Totals:
        """Among what was drawn. Of anchors it is known where it was asked for."""
        return self._first.totals

    def batch(self, number: int) -> RowIds:
        """The ids of the rows of one batch, in order."""
        return self._ids[number * self._rows : (number + 1) * self._rows]

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the rows from start to stop, counted over all batches. All of them are live in `ring`, and so are the rows that they need."""
        if ring.oldest > self._oldest:
            self._draw_anew(start + np.flatnonzero(self._are_lost(self._ids[start:stop], ring)), ring)
        return self._ids[start:stop]

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """What the draw says of the rows from start to stop: the name of a drawn field -> its values."""
        probabilities = self._probabilities
        same = np.full(stop - start, 1 / self._first.size) if probabilities is None else probabilities[start:stop]
        return {PROBABILITY.name: same} | ({} if self._priorities is None else {PRIORITY.name: self._priorities[start:stop]})

    def _draw_anew(self, places: RowIds, ring: Ring) -> None:
        batches = places // self._rows
        for batch in np.unique(batches):
            some = places[batches == batch]
            lost, drawn = self._ids[some], self._drawn_again(len(some), self._generators[batch], ring)
            self._ids[some] = drawn.ids
            if self._lost is not None:
                self._lost(lost, self.moment)
            for known, new in ((self._probabilities, drawn.probabilities), (self._priorities, drawn.priorities)):
                if known is not None:
                    known[some] = new

    def _drawn_again(self, rows: int, generator: np.random.Generator, ring: Ring) -> Draw:
        try:
            return self._draw(rows, [generator], ring)
        except TooFewDrawsError:
            raise TableChangedError(f"{rows} rows of a batch were overwritten before they were read, and there are no others") from None
