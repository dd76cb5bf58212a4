"""What acknowledged rows survive."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdreplay.errors import InvalidArgumentError

__all__ = ["NO_DURABILITY", "Durability"]


@dataclass(frozen=True)
class Durability:
    """A level, named by what survives.

    Attributes:
        level: none; process: the death of the server's process (SIGKILL, out of memory, a segfault); interval: that, and the loss of power, but for
            what was acknowledged in the last seconds; power: that, and the loss of power.
        seconds: How often rows are flushed to the disk, with the level interval.
    """

    level: str
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Durability:
        """The level that ``process``, ``interval:SECONDS`` or ``power`` says.

        Raises:
            InvalidArgumentError: it is none of these.
        """
        match = re.fullmatch(r"(process|power)|interval:(\d+(?:\.\d+)?)", text)
        if match is None or (match[2] and not 0.01 <= float(match[2]) <= 3600):
            raise InvalidArgumentError(f"durability ({text[:40]!r}) must be process, interval:SECONDS (0.01 to 3600) or power")
        return cls(match[1] or "interval", float(match[2] or 0))

    @property
    def reaches_disk(self) -> bool:
        """Whether rows are flushed to the disk."""
        return self.level in ("interval", "power")


NO_DURABILITY = Durability("none")
"""The level of rows that end with their process: in files without names, or in a device's memory."""
