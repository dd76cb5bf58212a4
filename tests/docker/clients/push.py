"""An actor: pushes numbered rows until SIGTERM, by `add_batch` and by a writer in turn. What failed it gives again, until it is stored."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from rows import CAPACITY, PAUSE, Buffer, opened, rows
from tally import Tally
from tensordict import TensorDict

from tdreplay.errors import ReplayError

ROWS = int(os.environ["ROWS"])
BATCHES_PER_TURN = 10


class Pusher:
    """Pushes an actor's rows in order."""

    def __init__(self, buffer: Buffer, tally: Tally) -> None:
        self._buffer, self._tally, self._writer, self._next = buffer, tally, buffer.writer(), 0

    def batch(self) -> TensorDict:
        """The next rows."""
        self._next += ROWS
        time.sleep(PAUSE)
        return rows(self._tally.counts["actor"], self._next - ROWS, ROWS)

    def add(self) -> None:
        """Each batch is acknowledged before the next one."""
        for _ in range(BATCHES_PER_TURN):
            self._until_stored(self._buffer.add_batch, self.batch())
            self._tally.counts["acknowledged"] += ROWS

    def write(self) -> None:
        """Batches are on their way together."""
        for _ in range(BATCHES_PER_TURN):
            self._written(self._writer.extend, self.batch())
        self._written(lambda _: self._writer.flush(), None)
        self._tally.counts["acknowledged"] += ROWS * BATCHES_PER_TURN

    def _written(self, step: Callable[[TensorDict], None], batch: TensorDict) -> None:
        try:
            with self._tally.call():
                step(batch)
        except ReplayError as error:
            self._until_stored(self._rewritten, error.rows)

    def _rewritten(self, batch: TensorDict) -> None:
        self._writer = self._buffer.writer()
        self._writer.extend(batch)
        self._writer.flush()

    def _until_stored(self, store: Callable[[TensorDict], None], batch: TensorDict) -> None:
        while batch is not None:
            try:
                with self._tally.call():
                    store(batch)
                return
            except ReplayError as error:
                batch = batch if error.rows is None else error.rows


def connected(tally: Tally) -> Buffer:
    """The table, once the server is there."""
    while True:
        with suppress(ReplayError), tally.call():
            return opened(buffer_size=CAPACITY)


def main() -> None:
    tally = Tally(actor=int(socket.gethostname(), 16), acknowledged=0)
    with connected(tally) as buffer:
        pusher = Pusher(buffer, tally)
        while not tally.ended.is_set():
            pusher.add()
            pusher.write()
    tally.say(ended=True)


if __name__ == "__main__":
    main()
