"""Where the steps of a remote buffer's episodes go: into a writer of rows."""

from __future__ import annotations

from typing import Any, Protocol

from tdreplay.rows import Given
from tdreplay.schema import Columns
from tdreplay.trajectory_writer import StepSink, joined
from tdreplay_client.writing.writer import Marks

__all__ = ["WriterSink"]

MOST_JOINED_BYTES = 4 << 20
"""Rows of so many bytes are copied, to go out together with the final observations behind them: a block of its own takes longer. More go out before
these."""


class RowWriter(Protocol):
    """A `Writer`, or one over several tables."""

    mark: Any

    @property
    def is_open(self) -> bool:
        """Whether it takes rows."""

    @property
    def takes_at_once(self) -> bool:
        """As `Writer.takes_at_once`."""

    def columns(self, given: Given) -> Columns:
        """As `Writer.columns`."""

    def append_given(self, given: Given, marks: Marks | None = None) -> None:
        """As `Writer.append_given`."""

    def extend_given(self, given: Given, marks: Marks | None = None) -> None:
        """As `Writer.extend_given`."""

    def flush(self, timeout: float | None = None) -> None:
        """As `Writer.flush`."""

    def close(self, timeout: float | None = None) -> None:
        """As `Writer.close`."""


class WriterSink(StepSink):
    """Gives rows to a writer, which sees to it that each is stored once.

    Args:
        writer: the writer.
        cast: whether it converts values of other dtypes.
    """

    def __init__(self, writer: RowWriter, *, cast: bool) -> None:
        self._writer, self.cast = writer, cast

    @property
    def mark(self) -> Any:
        """What the rows left that were taken last."""
        return self._writer.mark

    @mark.setter
    def mark(self, mark: Any) -> None:
        self._writer.mark = mark

    @property
    def is_open(self) -> bool:
        return self._writer.is_open

    @property
    def takes_at_once(self) -> bool:
        return self._writer.takes_at_once

    def columns(self, rows: Given) -> Columns:
        return self._writer.columns(rows)

    def take(self, rows: Given, before: Any, after: Any) -> None:
        if rows.rows is None:
            self._writer.append_given(rows, (before, after))
        else:
            self._writer.extend_given(rows, (before, after))

    def take_both(self, rows: Given, finals: Given, marks: tuple[Any, Any, Any]) -> None:
        before, between, after = marks
        if sum(column.nbytes for column in rows.values.values()) <= MOST_JOINED_BYTES:
            self.take(joined(rows, finals), before, after)
        else:
            self.take(rows, before, between)
            self.take(finals, between, after)

    def flush(self, timeout: float | None) -> None:
        self._writer.flush(timeout)

    def close(self, timeout: float | None) -> None:
        self._writer.close(timeout)
