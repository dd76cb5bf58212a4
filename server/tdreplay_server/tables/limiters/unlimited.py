"""Nobody waits."""

from __future__ import annotations

from types import TracebackType

__all__ = ["Unlimited"]


class _AtOnce:
    """For ``with``: does nothing. One object serves all threads: it has no state."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None


_AT_ONCE = _AtOnce()


class Unlimited:
    """Lets everybody through at once."""

    def inserting(self, rows: int, until: float) -> _AtOnce:
        """Does not wait."""
        return _AT_ONCE

    def sampling(self, items: int, until: float) -> _AtOnce:
        """Does not wait."""
        return _AT_ONCE
