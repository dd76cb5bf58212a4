"""The schema that the rows of all shards have: rows are checked against it before any shard gets one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from tdreplay.errors import SchemaError
from tdreplay.rows import Given
from tdreplay.schema import Columns, Schema

__all__ = ["Fitted", "JointSchema"]


class Fitted(NamedTuple):
    """Rows that fit the shards.

    Attributes:
        columns: The rows as they are stored.
        schema: Theirs.
        is_first: Whether no shard has a schema: one of them must take these rows before another gets any.
    """

    columns: Columns
    schema: Schema
    is_first: bool


class JointSchema:
    """Brings rows to the schema of the shards.

    Args:
        ask: Says the schema that any shard has now; None: none has one.
        cast: Whether values of other dtypes are converted.

    Attributes:
        cast: The same.
        fixing: Held by who inserts the first rows.
    """

    def __init__(self, ask: Callable[[], Schema | None], *, cast: bool) -> None:
        self._ask, self.cast, self.fixing = ask, cast, threading.RLock()
        self._known: Schema | None = None
        self._promised = False  # It is that of rows that are not known to be stored.

    def fitted(self, rows: Given) -> Fitted:
        """The rows as columns. Where they do not fit the known schema, the shards are asked: they may have another one by now.

        Raises:
            SchemaError: they do not fit. No shard got any.
            CodecError: a field cannot be stored.
            ReplayError: no shard answers.
        """
        known = self._known
        if known is not None:
            try:
                return self._of(rows, known)
            except SchemaError:
                now = self._ask()
                if now == known or (now is None and self._promised):
                    raise
        else:
            now = self._ask()
        self._known, self._promised = now, False
        return self._of(rows, now)

    def _of(self, rows: Given, schema: Schema | None) -> Fitted:
        columns = rows.columns(schema, cast=self.cast)
        stored = rows.schema(columns)
        if schema is not None:
            schema.check(stored)
        return Fitted(columns, stored, schema is None)

    def promise(self, schema: Schema) -> None:
        """Notes that rows of this schema are about to be sent: where no shard has another one, no other rows are to come before them."""
        if self._known is None:
            self._known, self._promised = schema, True

    def confirm(self, schema: Schema | None = None) -> None:
        """Notes that rows are stored, of this schema or of the promised one."""
        self._known, self._promised = self._known or schema, False

    def for_first(self, rows: Given) -> Schema | None:
        """The schema for the first rows of a writer, which were `fitted` before: what `KnownSchema` says of one table."""
        return self._known

    def forget(self) -> None:
        """Forgets what is known: the tables do not hold earlier rows any more."""
        self._known, self._promised = None, False
