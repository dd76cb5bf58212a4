"""Rate limiters: what decides who has to wait. A new one is a value in `tdreplay.rate_limiters`, a module here, and an entry in `LIMITERS`.

A limiter knows no rows, no disk and no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tdreplay import rate_limiters
from tdreplay_server.tables.limiters.limiter import AT_ONCE, NO_DEADLINE, RateLimiter, Wait, WaitState
from tdreplay_server.tables.limiters.unlimited import UnlimitedLimiter

__all__ = ["AT_ONCE", "LIMITERS", "NO_DEADLINE", "RateLimiter", "UnlimitedLimiter", "Wait", "WaitState", "made_limiter"]

LIMITERS: Mapping[type[rate_limiters.RateLimiter], Callable[[Any], RateLimiter]] = {rate_limiters.Unlimited: lambda _: UnlimitedLimiter()}
"""The value that names a rate limiter -> what makes one."""


def made_limiter(value: rate_limiters.RateLimiter) -> RateLimiter:
    """A new rate limiter, as the value says."""
    return LIMITERS[type(value)](value)
