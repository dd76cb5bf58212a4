"""Nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from tdreplay_server.durability.slot_state import SlotState, StateValue
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.limiters.limiter import Wait, WaitState

__all__ = ["UnlimitedLimiter"]


class _AtOnce:
    """For ``with``: does nothing. One object serves all threads: it has no state."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None


_AT_ONCE = _AtOnce()


class UnlimitedLimiter:
    """Lets everybody through at once."""

    values: Sequence[StateValue] = ()

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Nothing to note."""

    def sized(self, size: int) -> None:
        """Nothing to note."""

    def inserting(self, rows: int, wait: Wait) -> _AtOnce:
        """Does not wait."""
        return _AT_ONCE

    def sampling(self, rows: int, batches: int, wait: Wait) -> int:
        """Does not wait."""
        return batches

    def taken(self, rows: int) -> None:
        """Nothing to note."""

    def given_back(self, rows: int) -> None:
        """Nothing to note."""

    def waits(self) -> tuple[WaitState, WaitState]:
        """Nobody waits."""
        return WaitState(), WaitState()
