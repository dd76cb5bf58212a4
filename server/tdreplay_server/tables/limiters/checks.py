"""Settings with which everybody would wait for ever."""

from __future__ import annotations

from tdreplay.errors import InvalidArgumentError
from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
from tdreplay.table_config import TableConfig

__all__ = ["check_limiter"]


def check_limiter(config: TableConfig) -> None:
    """Passes where a table with these settings may always go on, with batches and inserts of one row at least.

    To be called when a table is made, and when a reset gives it another capacity.

    Raises:
        InvalidArgumentError: both sides would come to wait for ever. The message names the two settings.
    """
    limiter, buffer_size, times = config.rate_limiter, config.buffer_size, config.max_times_sampled
    if isinstance(limiter, (MinSize, SamplesPerInsert)) and limiter.min_size > buffer_size:
        _refuse("min_size", limiter.min_size, "buffer_size", buffer_size, "so many rows would never be there, and no batch would be drawn")
    if isinstance(limiter, Queue) and limiter.max_size > buffer_size:
        _refuse("max_size", limiter.max_size, "buffer_size", buffer_size, "rows would be overwritten before the queue is full")
    if isinstance(limiter, SamplesPerInsert) and limiter.samples_per_insert > times > 0:
        ends = "all rows would leave before they were drawn so often, and inserts would wait for ever"
        _refuse("samples_per_insert", limiter.samples_per_insert, "max_times_sampled", times, ends)


def _refuse(name: str, value: float, bound: str, most: int, reason: str) -> None:
    raise InvalidArgumentError(f"{name} ({value}) must not be above {bound} ({most}): {reason}")
