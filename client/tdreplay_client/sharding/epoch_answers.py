"""What a shard says of rows that are to come in an epoch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.errors import CodecError
from tdreplay_client.sharding.shard_batches import ShardBatch

__all__ = ["COMES", "LOST", "NO_ANCHOR", "OVERWRITTEN", "REPLACED", "EpochAnswer", "Outcomes", "come_of"]

COMES, NO_ANCHOR, OVERWRITTEN, REPLACED, LOST = range(5)
"""What becomes of a row: the bytes of `outcomes` in a SampleByIndexResponse, and one for rows of shards that are gone for good."""

Outcomes = npt.NDArray[np.uint8]
_COME = np.array([True, False, False, True, False])
"""For each outcome whether a row comes."""


def come_of(outcomes: Outcomes) -> npt.NDArray[np.bool_]:
    """For each outcome whether a row comes."""
    found: npt.NDArray[np.bool_] = _COME[outcomes]
    return found


class EpochAnswer(NamedTuple):
    """What a shard says of some rows that are to come.

    Attributes:
        outcomes: What becomes of each.
        batch: Those that come, in their order; None: none does.
        oldest: The oldest row that it had then.
    """

    outcomes: Outcomes
    batch: ShardBatch | None
    oldest: int

    @property
    def comes(self) -> npt.NDArray[np.bool_]:
        """For each whether a row comes."""
        return come_of(self.outcomes)

    @classmethod
    def of(cls, head: Any, batch: ShardBatch | None, asked: int) -> EpochAnswer:
        """What the message `head` says of so many rows, of which `batch` came.

        Raises:
            CodecError: the message cannot be, or there is none.
        """
        outcomes = np.frombuffer(b"" if head is None else head.outcomes, np.uint8)
        come = 0 if batch is None else batch.rows
        if len(outcomes) != asked or outcomes.max() > REPLACED or np.count_nonzero(come_of(outcomes)) != come:
            raise CodecError(f"{len(outcomes)} outcomes and {come} rows came for {asked} rows of an epoch")
        return cls(outcomes, batch, head.oldest_row_id)
