"""What the server's samplers take for a draw, an update and an insert, without a server around them. ``make bench-samplers``.

Each figure is the median of many calls, in microseconds. A full table of so many rows is drawn from. `draw` comes after an update, as in a learner's
loop; `of 16` is one batch of 16 that are drawn at once. `insert` is a block of 64 rows; the draw after it, in which the tree follows, is under
`draw after`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tdreplay import samplers
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.samplers import SAMPLERS, Sampler, made_sampler

BATCH, BLOCK, AT_ONCE, SECONDS = 256, 64, 16, 0.25
COLUMNS = ("sampler", "rows", "open ms", "draw", "of 16", "update", "insert", "draw after", "withhold", "offer")


class Filled:
    """A sampler of a full table, whose rows have different priorities."""

    def __init__(self, value: samplers.Sampler, rows: int) -> None:
        self.generator = np.random.default_rng(0)
        self.sampler: Sampler = made_sampler(value)
        self.ring = Ring(rows, rows // 3, rows // 3 + rows)
        state = SlotState(Kept(tuple(self.sampler.columns), tuple(self.sampler.values)), rows)
        self.sampler.opened(state, rows)
        self.sampler.written(range(self.ring.oldest, self.ring.write_count), self.generator.random(rows))
        self.sampler.inserted(range(self.ring.oldest, self.ring.write_count))
        self.ids = self.generator.integers(self.ring.oldest, self.ring.write_count, BATCH)
        self.errors = self.generator.random(BATCH)

    def draw(self, batches: int = 1) -> None:
        """So many batches at once."""
        self.sampler.draw(BATCH, [self.generator] * batches, self.ring)

    def update(self) -> None:
        """A batch of priorities, of rows all over the table."""
        self.ids = self.generator.integers(self.ring.oldest, self.ring.write_count, BATCH)
        self.sampler.update(self.ids, self.errors, self.ring)

    def insert(self) -> None:
        """A block that overwrites the oldest rows, without priorities."""
        before, self.ring = self.ring, self.ring.commit(BLOCK)
        self.sampler.evicted(range(before.oldest, self.ring.oldest))
        new = range(before.write_count, self.ring.write_count)
        self.sampler.written(new, None)
        self.sampler.inserted(new)

    def figures(self) -> list[float]:
        """Seconds of each column from `draw` on."""
        draw = median_time(self.draw, self.update)
        at_once = median_time(lambda: self.draw(AT_ONCE), self.update) / AT_ONCE
        update, insert, after = median_time(self.update), median_time(self.insert), median_time(self.draw, self.insert)
        withhold = median_time(lambda: self.sampler.withhold(self.ids), self.update, lambda: self.sampler.offer(self.ids))
        offer = median_time(lambda: self.sampler.offer(self.ids), self.update, lambda: self.sampler.withhold(self.ids))
        return [draw, at_once, update, insert, after, withhold, offer]


def median_time(call: Callable[[], object], *before: Callable[[], object], seconds: float = SECONDS) -> float:
    """The median of the seconds that `call` takes, each time after others, over about `seconds`."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        for other in before:
            other()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(rows: Annotated[str, typer.Option(help="Numbers of rows, joined by commas.")] = "100000,1000000,10000000") -> None:
    """Measure the samplers."""
    shown = Table(*COLUMNS, title=f"batches of {BATCH}, blocks of {BLOCK}: microseconds")
    for kind in SAMPLERS:
        for count in map(int, rows.split(",")):
            start = time.perf_counter()
            filled = Filled(kind(), count)
            filled.draw()
            opened = 1e3 * (time.perf_counter() - start)
            shown.add_row(kind.name, f"{count:,}", f"{opened:.0f}", *(f"{1e6 * seconds:.1f}" for seconds in filled.figures()))
    Console(width=140).print(shown)


if __name__ == "__main__":
    typer.run(main)
