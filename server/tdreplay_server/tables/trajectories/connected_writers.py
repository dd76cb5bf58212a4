"""Which writers of episodes are connected."""

from __future__ import annotations

from types import TracebackType

from typing_extensions import Self

__all__ = ["ConnectedWriter", "ConnectedWriters"]


class ConnectedWriter:
    """A writer is connected until this is closed. It may be connected several times at once, as after a lost connection.

    Any thread may close it, at any time, as a finalizer does. It takes no lock. Closing twice is allowed.
    """

    def __init__(self, writer_id: str, among: set[ConnectedWriter]) -> None:
        self.writer_id, self._among = writer_id, among

    def close(self) -> None:
        """The writer is not connected so any more."""
        self._among.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class ConnectedWriters:
    """The writers that are connected to a table."""

    def __init__(self) -> None:
        self._connected: set[ConnectedWriter] = set()  # Single operations of a set are safe in threads, and where they are interrupted.

    def connect(self, writer_id: str) -> ConnectedWriter:
        """The writer with this id is connected from now on."""
        connected = ConnectedWriter(writer_id, self._connected)
        self._connected.add(connected)
        return connected

    def names(self) -> frozenset[str]:
        """Their ids."""
        return frozenset(connected.writer_id for connected in tuple(self._connected))
