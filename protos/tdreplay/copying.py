"""What cannot be pickled or copied, and what to do instead."""

from __future__ import annotations

from typing import ClassVar, NoReturn

__all__ = ["OfOneProcess"]


class OfOneProcess:
    """A base of what belongs to its process: pickling and copying it is a TypeError that says what to do instead."""

    _instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: {self._instead}")
