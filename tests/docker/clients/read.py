"""A learner: streams batches until SIGTERM, and checks every row. Where its stream failed, it opens another one."""

from __future__ import annotations

import os
import time

from rows import ADDRESSES, CAPACITY, PAUSE, Buffer, opened, wrong
from tally import Tally
from tensordict import TensorDict

from tdreplay.errors import EmptyTableError, ReplayError
from tdreplay.shard_ids import SHARD_ROW_BITS

BATCH_SIZE = 256


def read(buffer: Buffer, tally: Tally) -> None:
    """Takes batches until the stream fails, or the client is ended."""
    with tally.call():
        batches = buffer.stream(BATCH_SIZE)
    with batches:
        tally.counts["shared"] = batches.shared
        while not tally.ended.is_set():
            with tally.call():
                batch = next(batches)
            tally.counts["wrong"] += wrong(batch)
            tally.counts["batches"] += 1
            if ADDRESSES:
                look_over_shards(buffer, batch, tally)
            time.sleep(PAUSE)


def look_over_shards(buffer: Buffer, batch: TensorDict, tally: Tally) -> None:
    """Notes how many shards the batch was not drawn from, and draws a single one."""
    tally.counts["lost"] = int(batch["lost_shards"][0])
    tally.counts["shards"] = len((batch["row_id"] >> SHARD_ROW_BITS).unique())
    with tally.call():
        tally.counts["wrong"] += wrong(buffer.sample_batch(BATCH_SIZE))


def main() -> None:
    tally = Tally(batches=0, wrong=0, shared=None)
    with opened(buffer_size=CAPACITY, transport=os.environ["TRANSPORT"]) as buffer:
        while not tally.ended.is_set():
            try:
                read(buffer, tally)
            except EmptyTableError:
                tally.counts["errors"] -= 1  # Not a fault: it came before the actors.
                time.sleep(0.1)
            except ReplayError:
                time.sleep(0.1)
    tally.say(ended=True)


if __name__ == "__main__":
    main()
