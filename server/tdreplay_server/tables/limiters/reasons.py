"""Why a call waits, or can never pass, in words."""

from __future__ import annotations

import math

from tdreplay.rate_limiters import Queue, RateLimiter, SamplesPerInsert
from tdreplay.table_config import TableConfig
from tdreplay_server.tables.limiters.rule import Counts, Rule

__all__ = ["never_inserted", "no_free_slots", "stuck", "too_far_ahead", "too_few_rows"]


def never_inserted(config: TableConfig, rule: Rule, rows: int, most: float) -> str:
    """An insert has more rows than can ever be inserted at once."""
    limiter = config.rate_limiter
    if isinstance(limiter, Queue):
        return f"an insert of {rows} rows never fits into a queue: insert at most {math.floor(most)} rows at once, or give it a max_size of {rows}"
    enough = rule.ratio * rows / 2
    return (
        f"an insert of {rows} rows would be ahead of the batches by more than error_buffer allows, for ever: "
        f"insert at most {math.floor(most)} rows at once, or give the rate limiter an error_buffer of {enough:.10g}"
    )


def too_far_ahead(limiter: RateLimiter, rule: Rule, counts: Counts, rows: int) -> str:
    """An insert waits until more rows were drawn. `counts`: with the rows that are being inserted."""
    if isinstance(limiter, Queue):
        there = counts.inserted - counts.taken
        return f"an insert of {rows} rows waits for room in the queue: it holds {limiter.max_size} rows, {there} are in it"
    needed = math.ceil(rule.balance(counts.inserted + rows, 0) - rule.max_diff)
    return f"an insert of {rows} rows waits until {needed} rows were drawn, {counts.taken} were"


def no_free_slots(buffer_size: int, free: int, rows: int) -> str:
    """An insert waits until old rows were drawn that it would overwrite."""
    return f"an insert of {rows} rows waits for as many free slots: {free} of {buffer_size} are free, rows that were not drawn are in the others"


def too_few_rows(rule: Rule, counts: Counts, rows: int) -> str:
    """A batch waits for rows."""
    if counts.size < rule.min_size:
        return f"sampling needs {rule.min_size} rows, {counts.size} are there"
    left = counts.draws - counts.reserved
    if left < rows:
        return f"a batch takes {rows} rows, {max(left, 0)} are there" + _with_learners(counts)
    drawn = counts.taken + counts.reserved
    needed = math.ceil((rule.min_diff + drawn + rows) / rule.ratio)
    return f"a batch of {rows} rows waits until {needed} rows were inserted, {counts.inserted} were" + _with_learners(counts)


def _with_learners(counts: Counts) -> str:
    return f", and batches with {counts.reserved} rows are on their way to learners" if counts.reserved else ""


def stuck(limiter: RateLimiter, rule: Rule, insert: int, batch: int) -> str:
    """An insert and a batch of so many rows wait for each other: what would have let one of them go."""
    text = f". An insert of {insert} rows and a batch of {batch} rows wait for each other"
    if isinstance(limiter, SamplesPerInsert) and (enough := rule.error_buffer(insert, batch)) > limiter.error_buffer:
        return f"{text}: an error_buffer of {enough:.10g} would let one of them go, it is {limiter.error_buffer:.10g}"
    if isinstance(limiter, Queue) and (needed := insert + batch - 1) > limiter.max_size:
        return f"{text}: a max_size of {needed} would let one of them go, it is {limiter.max_size}"
    return text
