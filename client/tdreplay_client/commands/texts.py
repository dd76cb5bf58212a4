"""Numbers as people read them."""

from __future__ import annotations

import time

__all__ = ["amount", "clock", "duration", "percent", "ratio", "share", "size"]

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
LETTERS = ("", "k", "M", "G", "T")
SPANS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def size(count: int) -> str:
    """Bytes: ``412 MiB``."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:  # 1000 MiB would be a digit wider than 0.98 GiB.
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}" if unit else f"{count} B"


def amount(value: float) -> str:
    """A count or a rate in at most six characters: ``0``, ``0.25``, ``999``, ``12.3k``, ``4.56M``."""
    letter = 0
    while value >= 999.5 and letter < len(LETTERS) - 1:
        value, letter = value / 1000, letter + 1
    return f"{value:.3g}{LETTERS[letter]}" if value < 999.5 else f"{value:.0f}{LETTERS[letter]}"


def share(part: float, whole: float) -> float:
    """`part` of `whole`, from 0 to 1."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def percent(value: float) -> str:
    """A share in at most four characters. It is 100 % only where nothing is missing."""
    return f"{min(99, round(100 * value)) if value < 1 else 100}%"


def duration(seconds: float) -> str:
    """A time in its two largest units: ``3 h 12 min``, ``45 s``."""
    whole = int(seconds)
    for long, name, short, below in SPANS:
        if whole >= long:
            return f"{whole // long} {name} {whole % long // short} {below}"
    return f"{whole} s"


def ratio(value: float | None) -> str:
    """Samples per insert; ``-`` where there is none."""
    return "-" if value is None else amount(value)


def clock(moment: float) -> str:
    """A moment (`time.time`) on the clock on the wall: ``12:03:04``."""
    return time.strftime("%H:%M:%S", time.localtime(moment))
