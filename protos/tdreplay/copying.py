"""Objects that cannot be pickled or copied."""

from __future__ import annotations

from typing import ClassVar, NoReturn

__all__ = ["OfOneProcess"]


class OfOneProcess:
    """Base of objects that belong to one process. Pickling or copying them is a TypeError. Its message says what to do instead: `_instead`."""

    _instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: {self._instead}")
