"""A writer that does not wait for a server that is away: what it never sent can be taken back, and goes elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tdreplay.block import decode
from tdreplay.errors import ReplayError
from tdreplay.limits import BLOCK_BYTES, SHARED_BLOCK_BYTES, check_seconds
from tdreplay.rows import Given
from tdreplay.system_fields import PRIORITY
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.writing.insert_messages import InsertMessage
from tdreplay_client.writing.insert_state import Batch
from tdreplay_client.writing.known_schema import WriterSchema
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts
from tdreplay_client.writing.writer import Writer

__all__ = ["LeavingWriter"]

T = TypeVar("T")


class LeavingWriter(Writer):
    """A `Writer` for one shard of several.

    Args:
        connection, table, sharing, unacknowledged, known_schema, flush_rows, flush_seconds, max_in_flight: As for `Writer`.
        gives_up: Whether it is to wait no longer for the server, which has been away for so many seconds while something was due. Calls that wait
            then return, with their rows taken. It must not refer to the writer.
    """

    def __init__(
        self,
        connection: Connection,
        table: str,
        sharing: Sharing,
        unacknowledged: UnacknowledgedInserts,
        known_schema: WriterSchema,
        flush_rows: int,
        flush_seconds: float,
        max_in_flight: int,
        gives_up: Callable[[float], bool],
    ) -> None:
        super().__init__(connection, table, sharing, unacknowledged, known_schema, flush_rows, flush_seconds, max_in_flight)
        self._core.gives_up = gives_up

    @property
    def is_here(self) -> bool:
        """Whether this is the process that opened it."""
        return self._owner.is_here

    def check_here(self) -> None:
        """Passes in the process that opened it.

        Raises:
            ForkedError: this is a fork of that.
        """
        self._owner.check()

    @property
    def away_seconds(self) -> float:
        """For how long the server has been away while something was due; 0: it is there, as far as is known."""
        return self._core.away_seconds

    @property
    def is_untouched(self) -> bool:
        """Whether it took no row so far."""
        return self._core.engine.is_untouched

    @property
    def rows_left(self) -> int:
        """The rows that are not acknowledged."""
        return self._core.engine.state.rows

    @property
    def failure(self) -> ReplayError | None:
        """What the next call raises."""
        return self._core.error

    @property
    def is_interrupted_here(self) -> bool:
        """Whether this thread is in the middle of one of its calls: this is a signal handler then."""
        return self._core.is_interrupted_here()

    def ask(self, question: Callable[[], T]) -> T:
        """The result of `question`, from a thread of its own: an interrupt of this thread does not reach it."""
        self._core.release_left_lock()
        return self._core.ask(question)

    def flush_unless_lost(self, timeout: float | None = None) -> bool:
        """As `flush`. Where the server is given up it returns, and gives False.

        Raises:
            ReplayError: as `flush`.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        self._owner.check()
        self._refuse_reentry()
        self._core.check_open()
        try:
            return self._core.flush_unless_lost(seconds)
        except ReplayError as error:
            self._core.forget(error)
            raise

    def first_stop(self, given: Given, start: int) -> int:
        """Where rows end that are taken in one step, of columns whose rows before `start` were taken."""
        schema = given.schema(given.columns(None, cast=False))
        batch = Batch(given.values, schema, given.number, start, priorities=given.priorities, block_rows=self._block_rows)
        return batch.block_stop(min(BLOCK_BYTES, SHARED_BLOCK_BYTES))

    def withdraw(self) -> list[Given]:
        """Takes back the rows that were never sent, in order, in memory of their own. What was sent stays until it is acknowledged."""
        return [_given(message) for message in self._core.withdraw()]


def _given(message: InsertMessage) -> Given:
    block = decode(message.memory)
    columns = {name: column.clone() for name, column in block.columns.items()}
    priorities = columns.pop(PRIORITY.name).reshape(message.rows, -1)[:, 0].contiguous().numpy() if message.has_priorities else None
    return Given(columns, block.batch_shape[1:], message.rows, block.header.dim_names, priorities)
