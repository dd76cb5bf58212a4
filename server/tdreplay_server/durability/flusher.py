"""Rows that are flushed to the disk now and then: the level interval of durability.

The kernel may bring rows to the disk before the journal says that they overwrite others. So each flush takes the rows out of the journal's window,
on the disk, that are going to be overwritten before the next one; an insert that would go further waits for a flush of its own. After a crash those
rows are not live, whether they were overwritten or not: they were the oldest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tdreplay.errors import ReplayError
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.logs import log

__all__ = ["Flusher"]


class Flusher:
    """Flushes a table every `seconds`, from a thread of its own, once it is started.

    Attributes:
        flushed_to: the rows below this id are on the disk.

    Args:
        seconds: from one flush to the next.
        flush: does it.
    """

    def __init__(self, seconds: float, flush: Callable[[], None]) -> None:
        self._seconds, self._flush = seconds, flush
        self.flushed_to = self._last_count = -1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tdreplay-flusher", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._flush()
            except ReplayError as error:  # Of a disk that failed the table knows; a full one may have room the next time.
                log.error("rows could not be flushed to the disk", error=str(error))

    def ahead(self, ring: Ring, flushed_to: int, rows: int) -> int:
        """The rows below this id may be overwritten until the next flush.

        It makes room for twice as many rows as came since the last flush, at most half of the ring, but for `rows` in any case.

        Args:
            ring: as it is now.
            flushed_to: the rows below this id are on the disk.
            rows: that are about to be written.
        """
        came = ring.write_count - self._last_count if self._last_count >= 0 else 0
        self.flushed_to, self._last_count = flushed_to, ring.write_count
        return ring.retire(max(rows, min(2 * came, ring.buffer_size // 2))).oldest

    def close(self) -> None:
        """Ends the thread, and waits for it. Closing twice is allowed."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
