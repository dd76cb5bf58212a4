"""Rows that are flushed to the disk now and then: the level interval of durability.

The kernel may bring new rows to the disk before the journal says that they overwrite others. So each flush looks ahead: it takes the rows that will
be overwritten before the next flush out of the journal's window, on the disk. An insert that would go further waits for a flush of its own. After a
crash those rows are not live, whether they were overwritten or not. They were the oldest.
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
        flushed_to: The rows below this id are on the disk.

    Args:
        seconds: The time from one flush to the next.
        flush: Flushes the table.
    """

    def __init__(self, seconds: float, flush: Callable[[], None]) -> None:
        self._seconds, self._flush = seconds, flush
        self.flushed_to = self._last_count = -1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tdreplay-flusher", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._flush()
            except ReplayError as error:  # Of a disk that failed the table knows; a full one may have room the next time.
                log.error("rows could not be flushed to the disk", error=str(error))

    def ahead(self, ring: Ring, flushed_to: int, rows: int) -> int:
        """The rows below the id that this gives may be overwritten until the next flush.

        There is room for twice as many rows as came since the last flush, at most half of the ring, but for `rows` in any case.

        Args:
            ring: The ring as it is now.
            flushed_to: The rows below this id are on the disk.
            rows: The number of rows that are about to be written.
        """
        came = ring.write_count - self._last_count if self._last_count >= 0 else 0
        self.flushed_to, self._last_count = flushed_to, ring.write_count
        return ring.retire(max(rows, min(2 * came, ring.buffer_size // 2))).oldest

    def close(self) -> None:
        """Ends the thread, and waits for it. Closing twice is allowed."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
