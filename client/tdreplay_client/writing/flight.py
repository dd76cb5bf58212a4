"""What a writer holds, as values that are replaced whole: whenever it is interrupted, it holds what it held before, or what it holds after."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from tensordict import TensorDict

from tdreplay.insert_id import InsertId
from tdreplay.rows import given_rows
from tdreplay_client.writing.insert_messages import InsertMessage
from tdreplay_client.writing.staging import Staging
from tdreplay_client.writing.unacknowledged import Delivery, Part

__all__ = ["Flight", "handed_back"]


class Flight(NamedTuple):
    """The rows of a writer that are not acknowledged.

    Attributes:
        blocks: that are on their way, in order.
        acknowledged: how many came before them.
        rest: a batch that is being added, or whose `extend` was interrupted: its rows from `rest.sent` on. What is staged came after them.
        staging: the block that is being filled.
    """

    blocks: tuple[InsertMessage, ...] = ()
    acknowledged: int = 0
    rest: Delivery | None = None
    staging: Staging | None = None

    @property
    def sent(self) -> int:
        """How many blocks there were until now."""
        return self.acknowledged + len(self.blocks)

    @property
    def units(self) -> int:
        """Complete units that are on their way."""
        return sum(block.units for block in self.blocks)

    @property
    def rows(self) -> int:
        """All rows that are not acknowledged."""
        rest = 0 if self.rest is None else self.rest.rows - self.rest.sent
        staged = 0 if self.staging is None else self.staging.rows
        return sum(block.layout.batch_shape[0] for block in self.blocks) + rest + staged

    def with_staged(self, block: InsertMessage) -> Flight:
        """The block that was being filled is on its way."""
        return Flight((*self.blocks, block), self.acknowledged, self.rest)

    def with_block(self, block: InsertMessage, rest: Delivery | None) -> Flight:
        """A block of a batch is on its way. `rest`: the batch, where there is more of it."""
        return Flight((*self.blocks, block), self.acknowledged, rest, self.staging)

    def with_staging(self, staging: Staging | None) -> Flight:
        """Another block to be filled."""
        return self._replace(staging=staging)

    def with_rest(self, rest: Delivery | None) -> Flight:
        """Another batch that is being added."""
        return self._replace(rest=rest)

    def acknowledge(self) -> Flight:
        """The first block is stored."""
        return Flight(self.blocks[1:], self.acknowledged + 1, self.rest, self.staging)

    def adopt(self, at: int, block: InsertMessage) -> Flight:
        """A block as it goes over another call."""
        return self._replace(blocks=(*self.blocks[:at], block, *self.blocks[at + 1 :]))


def handed_back(flight: Flight, given: TensorDict | None) -> tuple[TensorDict, Delivery] | None:
    """The rows of a flight, then those that were just given, and how they go out again so that each is stored once. None: there are none."""
    batches = [block.rows() for block in flight.blocks]
    numbered = [(block.insert_id, len(rows)) for block, rows in zip(flight.blocks, batches, strict=True)]
    if flight.rest is not None:
        batches += flight.rest.batches(flight.rest.sent)
        numbered += [(part.insert_id, part.stop - part.start) for part in flight.rest.parts if part.start >= flight.rest.sent]
    if flight.staging is not None and flight.staging.rows:  # These never went out, and have no insert id yet.
        batches.append(flight.staging.message().rows())
    batches += [] if given is None else [given]
    if not batches:
        return None
    rows = torch.cat(batches)
    return rows, _delivery(rows, numbered)


def _delivery(rows: TensorDict, numbered: list[tuple[InsertId, int]]) -> Delivery:
    """These rows, of which the first ones were cut into blocks of so many, of these numbers."""
    given = given_rows(rows)
    columns = given.columns(None, cast=False)
    stops = list(itertools.accumulate(count for _, count in numbered))
    parts = [Part(insert_id, stop - count, stop) for (insert_id, count), stop in zip(numbered, stops, strict=True)]
    return Delivery(columns, given.schema(columns), len(rows), parts=parts)
