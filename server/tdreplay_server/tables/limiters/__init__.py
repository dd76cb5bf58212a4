"""Rate limiters: what decides who has to wait. A new one is a module here, and an entry in `LIMITERS`.

A limiter knows no rows, no disk and no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tdreplay.limits import check_choice
from tdreplay_server.tables.limiters.limiter import NO_DEADLINE, RateLimiter
from tdreplay_server.tables.limiters.unlimited import Unlimited

__all__ = ["LIMITERS", "NO_DEADLINE", "RateLimiter", "Unlimited", "limiter_of"]

LIMITERS: Mapping[str, Callable[[], RateLimiter]] = {"none": Unlimited}
"""The name of a limiter, as in `TableConfig` -> what makes one."""


def limiter_of(name: str) -> RateLimiter:
    """A new limiter of that name.

    Raises:
        InvalidArgumentError: there is none.
    """
    return LIMITERS[check_choice(name, "limiter", LIMITERS)]()
