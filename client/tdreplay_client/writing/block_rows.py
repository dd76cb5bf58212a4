"""How many rows a block may have, so that the rate limiter of its table can let it in."""

from __future__ import annotations

from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.rate_limiters import Queue, SamplesPerInsert
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["most_block_rows"]


def most_block_rows(config: pb.TableConfig) -> int:
    """The most rows of one block for a table with this config, at least 1.

    A server refuses a block that its rate limiter can never let in. A block takes at most half of what the limiter leaves: else a block that is
    too large for the room and a batch that is too large for the rows would wait for each other.
    """
    limiter, most = config.rate_limiter, MAX_BATCH_SIZE
    if limiter.name == Queue.name:
        most = limiter.max_size // 2
    elif limiter.name == SamplesPerInsert.name and limiter.samples_per_insert > 0:
        most = int(min(limiter.error_buffer / limiter.samples_per_insert, MAX_BATCH_SIZE))
    return min(max(1, most), MAX_BATCH_SIZE)
