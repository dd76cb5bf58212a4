"""What a table says of itself."""

from __future__ import annotations

from tdreplay.table_description import TableDescription, Waits
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.tables.sampling import Sampling

__all__ = ["described"]


def described(log: RowLog, sampling: Sampling) -> TableDescription:
    """All that is known of a table. No row comes or goes meanwhile.

    Raises:
        StorageError, TableNotFoundError, ClosedError: as `RowLog.check_open`.
    """
    counts = sampling.consumption
    inserted, drawn = sampling.rows_inserted, sampling.rows_drawn
    with log.shared:
        state = log.state_now()
        inserts, samples = sampling.limiter.waits()
        return TableDescription(
            **vars(state),
            config=log.config,
            generation_id=log.generation_id,
            available=state.size if counts is None else counts.available,
            leased=sampling.limiter.rows_reserved,
            sample_count=drawn.total if sampling.is_unlimited else sampling.limiter.rows_taken,
            updated=sampling.updated.updated,
            stale=sampling.updated.stale,
            inserts=Waits(*inserts),
            samples=Waits(*samples),
            insert_rate=inserted.now(),
            sample_rate=drawn.now(),
            trajectories=None if sampling.steps is None else sampling.steps.state(),
        )
