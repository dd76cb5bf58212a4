"""The metrics of tables, each with the label `table`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tdreplay_server.monitoring.families import Distributions, Labelled, counter, gauge, histogram
from tdreplay_server.system.counting import Counted
from tdreplay_server.tables.counts import TableCounts
from tdreplay_server.tables.limiters import WaitState

__all__ = ["TableMetrics"]

Counts = Mapping[str, TableCounts]
Read = Callable[[TableCounts], float]

GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("tdreplay_table_rows", "Rows that are stored.", lambda counts: counts.rows),
    ("tdreplay_table_capacity_rows", "Rows that there is room for.", lambda counts: counts.capacity),
    ("tdreplay_table_fill_ratio", "Rows that are stored, over those that there is room for.", lambda counts: counts.rows / counts.capacity),
    ("tdreplay_table_leased_rows", "Rows of batches that were sent to learners, and not taken yet.", lambda counts: counts.leased),
    (
        "tdreplay_table_replay_ratio",
        "Rows sampled over rows inserted, since the server started; 0: nothing was inserted.",
        lambda counts: counts.sampled / counts.inserted if counts.inserted else 0.0,
    ),
    ("tdreplay_table_checkpoint_seconds", "What the last checkpoint took.", lambda counts: counts.checkpoints.last_seconds),
    (
        "tdreplay_table_checkpoint_timestamp_seconds",
        "When the last checkpoint was complete, since 1970; 0: there was none since the server started.",
        lambda counts: counts.checkpoints.last_time,
    ),
)

COUNTERS: tuple[tuple[str, str, Read], ...] = (
    ("tdreplay_table_inserted_rows_total", "Rows that were inserted.", lambda counts: counts.inserted),
    ("tdreplay_table_sampled_rows_total", "Rows that learners took in random batches.", lambda counts: counts.sampled),
    ("tdreplay_table_inserted_bytes_total", "Bytes of the rows that were inserted.", lambda counts: counts.inserted_bytes),
    (
        "tdreplay_table_sent_bytes_total",
        "Bytes of the blocks of rows for clients, over gRPC or in shared memory.",
        lambda counts: counts.sent_bytes,
    ),
    ("tdreplay_table_updated_priorities_total", "Priorities that were updated.", lambda counts: counts.priorities.updated),
    ("tdreplay_table_stale_priorities_total", "Priorities of rows that were not stored any more.", lambda counts: counts.priorities.stale),
    ("tdreplay_table_epochs_total", "Times that epochs were begun or gone on with.", lambda counts: counts.epochs),
    ("tdreplay_table_checkpoints_total", "Checkpoints that were written.", lambda counts: counts.checkpoints.written),
    ("tdreplay_table_failed_checkpoints_total", "Checkpoints that could not be written.", lambda counts: counts.checkpoints.failed),
)

HISTOGRAMS: tuple[tuple[str, str, Callable[[TableCounts], Counted]], ...] = (
    (
        "tdreplay_table_sampled_age_rows",
        "Rows that were inserted after a row, when it was drawn: of one row a draw.",
        lambda counts: counts.sampled_ages,
    ),
    (
        "tdreplay_table_updated_age_rows",
        "Rows that were inserted after a row, when its priority was updated: of one row an update.",
        lambda counts: counts.updated_ages,
    ),
    ("tdreplay_table_journal_seconds", "What a transaction of the journal took.", lambda counts: counts.commits),
    ("tdreplay_table_flush_seconds", "What bringing rows to the disk took.", lambda counts: counts.flushes),
)

SIDES: Mapping[str, Callable[[TableCounts], WaitState]] = {"insert": lambda counts: counts.inserts, "sample": lambda counts: counts.samples}
"""The sides of a rate limiter."""


class TableMetrics(Collector):
    """What was counted of tables.

    Args:
        read: The numbers of each table, by its name.
    """

    def __init__(self, read: Callable[[], Counts]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        tables = self._read()
        yield gauge("tdreplay_tables", "Tables that there are.", (), {(): len(tables)})
        for name, text, value in GAUGES:
            yield gauge(name, text, ("table",), {(table,): value(counts) for table, counts in tables.items()})
        for name, text, value in COUNTERS:
            yield counter(name, text, ("table",), {(table,): value(counts) for table, counts in tables.items()})
        for name, text, distribution in HISTOGRAMS:
            found: Distributions = {(table,): distribution(counts) for table, counts in tables.items()}
            # Those without a value are left out: they are many lines.
            yield histogram(name, text, ("table",), {names: counted for names, counted in found.items() if counted.number})
        yield from _waits({(table, side): state(counts) for table, counts in tables.items() for side, state in SIDES.items()})


def _waits(states: Mapping[tuple[str, ...], WaitState]) -> Iterator[Metric]:
    labels = ("table", "side")
    seconds: Labelled = {names: state.seconds for names, state in states.items()}
    yield counter("tdreplay_table_limiter_wait_seconds_total", "Seconds that calls waited for the rate limiter, or for rows.", labels, seconds)
    waiting: Labelled = {names: state.waiting for names, state in states.items()}
    yield gauge("tdreplay_table_limiter_waiting_calls", "Calls that wait for the rate limiter, or for rows.", labels, waiting)
