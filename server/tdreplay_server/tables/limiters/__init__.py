"""Rate limiters: what decides who has to wait. A new one is a value in `tdreplay.rate_limiters`, and its inequalities in `rule`.

A limiter knows no rows, no disk and no messages. The table tells it how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable

from tdreplay.rate_limiters import Unlimited
from tdreplay.table_config import TableConfig
from tdreplay_server.tables.limiters.limited import Limited
from tdreplay_server.tables.limiters.limiter import AT_ONCE, FOR_EVER, RateLimiter, Reserved, Supply, Wait, WaitState
from tdreplay_server.tables.limiters.unlimited import UnlimitedLimiter

__all__ = ["AT_ONCE", "FOR_EVER", "RateLimiter", "Reserved", "Supply", "UnlimitedLimiter", "Wait", "WaitState", "made_limiter"]


def made_limiter(config: TableConfig, supply: Callable[[], Supply]) -> RateLimiter:
    """The limiter of a new table.

    Args:
        config: The settings of the table.
        supply: What the table has to give now. It is called with a mutex held, from any thread: it must be quick, and take no lock of the table.
    """
    if isinstance(config.rate_limiter, Unlimited) and not config.is_consuming:
        return UnlimitedLimiter()
    return Limited(config, supply)
