"""A disk that failed: the table raises the same error at every call from then on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tdreplay.errors import StorageError

__all__ = ["DiskFailure"]


class DiskFailure:
    """Whether the disk of a table failed.

    Args:
        on_failure: Called once when it does. It is called from a thread of its own, because it may need locks that the finder of the failure holds.
    """

    def __init__(self, on_failure: Callable[[StorageError], object] | None) -> None:
        self._on_failure = on_failure
        self._error: StorageError | None = None
        self._lock = threading.Lock()

    @property
    def happened(self) -> bool:
        """Whether the disk failed."""
        return self._error is not None

    def check(self) -> None:
        """Passes where the disk did not fail.

        Raises:
            StorageError: how it failed.
        """
        if self._error is not None:
            raise StorageError(str(self._error))  # A new one: a traceback holds all that its frames hold.

    @contextmanager
    def noted(self) -> Iterator[None]:
        """For ``with``: where the block ends with an error of the disk, the disk failed."""
        try:
            yield
        except StorageError as error:
            self._note(StorageError(str(error)))
            raise

    def _note(self, error: StorageError) -> None:
        with self._lock:
            known, self._error = self._error, self._error or error
        if known is None and self._on_failure is not None:
            threading.Thread(target=self._on_failure, args=(error,), name="tdreplay-failure", daemon=True).start()
