"""Nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from tdreplay_server.durability.slot_state import SlotState, StateValue
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.limiters.limiter import Reserved, Wait, WaitState

__all__ = ["UnlimitedLimiter"]


class _Granted(Reserved):
    """For ``with``: nothing that anybody has to wait for."""

    __slots__ = ()

    def __enter__(self) -> Reserved:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None


_ALL = _Granted(1, 1, 0)


class UnlimitedLimiter:
    """Lets everybody through at once, and counts nothing. It is for tables whose rows can be drawn any number of times."""

    values: Sequence[StateValue] = ()

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Nothing to note."""

    def emptied(self, ring: Ring) -> None:
        """Nothing to forget."""

    def changed(self) -> None:
        """Nobody waits for it."""

    def closed(self) -> None:
        """Nobody waits."""

    def let_go(self) -> None:
        """Nobody waits."""

    def inserting(self, rows: int, wait: Wait) -> _Granted:
        """Does not wait."""
        return _ALL

    def sampling(self, rows: int, batches: int, wait: Wait) -> _Granted:
        """Does not wait."""
        return _Granted(batches, rows, 0)

    def taken(self, reserved: Reserved, batches: int = 1) -> None:
        """Nothing to count."""

    def given_back(self, reserved: Reserved, batches: int = 1) -> None:
        """Nothing to count."""

    def insert_room(self) -> int | None:
        """Any number."""
        return None

    def promised(self, reserved: Reserved, batches: int = 1) -> None:
        """Nobody waits for room."""

    @property
    def rows_taken(self) -> int:
        """Nobody counts them."""
        return 0

    @property
    def rows_reserved(self) -> int:
        """None: nobody reserves anything."""
        return 0

    def waits(self) -> tuple[WaitState, WaitState]:
        """Nobody waits."""
        return WaitState(), WaitState()
