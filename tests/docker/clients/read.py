"""A learner: streams batches until SIGTERM, and checks every row. Where its stream failed, it opens another one."""

from __future__ import annotations

import os
import time

from rows import ADDRESS, CAPACITY, PAUSE, TABLE, TIMEOUT, wrong
from tally import Tally

from tdreplay.errors import EmptyTableError, ReplayError
from tdreplay_client import RemoteReplayBuffer

BATCH_SIZE = 256


def read(buffer: RemoteReplayBuffer, tally: Tally) -> None:
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
            time.sleep(PAUSE)


def main() -> None:
    tally = Tally(batches=0, wrong=0, shared=None)
    with RemoteReplayBuffer(ADDRESS, table=TABLE, buffer_size=CAPACITY, timeout=TIMEOUT, transport=os.environ["TRANSPORT"]) as buffer:
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
