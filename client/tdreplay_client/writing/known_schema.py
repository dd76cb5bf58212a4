"""What a client knows of a table's schema, for values that have no dtype of their own, or another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tdreplay.errors import SchemaError
from tdreplay.messages import schema_from_message
from tdreplay.rows import Given
from tdreplay.schema import Columns, Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.connection import Connection

__all__ = ["KnownSchema", "WriterSchema"]

T = TypeVar("T")


class WriterSchema(Protocol):
    """What a writer has to know of the schema of its table."""

    @property
    def cast(self) -> bool:
        """Whether values of other dtypes are converted."""

    def for_first(self, rows: Given) -> Schema | None:
        """The schema for the first rows of a writer; None: they have one of their own."""


class KnownSchema:
    """Brings rows to the schema of the table. Rows whose tensors and arrays have dtypes of their own do without it, unless `cast`.

    Args:
        connection: the connection to the server.
        table: the table's name.
        cast: whether values of other dtypes are converted.

    Attributes:
        cast: whether values of other dtypes are converted.
    """

    def __init__(self, connection: Connection, table: str, *, cast: bool) -> None:
        self._connection, self._request, self.cast = connection, pb.DescribeRequest(table=table), cast
        self._known: Schema | None = None

    def insert(self, rows: Given, store: Callable[[Columns, Schema, int], T]) -> T:
        """Gives rows to `store`, as columns, and returns what it returns.

        Where they do not fit the known schema, the server is asked once: the table may have another one by now.

        Raises:
            SchemaError: they do not fit the table's schema as it is now.
        """
        if rows.typed and not self.cast:
            return self._store(rows, None, store)
        known = self._known or self._asked()
        try:
            return self._store(rows, known, store)
        except SchemaError:
            now = self._asked()
            if now == known:
                raise
            return self._store(rows, now, store)

    def _store(self, rows: Given, schema: Schema | None, store: Callable[[Columns, Schema, int], T]) -> T:
        columns = rows.columns(schema, cast=self.cast)
        stored = rows.schema(columns)
        result = store(columns, stored, rows.number)
        self._known = stored
        return result

    def _asked(self) -> Schema | None:
        """The schema as the server has it now; None while there is none."""
        answer = self._connection.retried(lambda budget: self._connection.unary("Describe", self._request, budget))
        return schema_from_message(answer.schema) if answer.HasField("schema") else None

    def for_first(self, rows: Given) -> Schema | None:
        """The table's schema as it is now, where the first rows of a writer need it."""
        return None if rows.typed and not self.cast else self._asked()

    def forget(self) -> None:
        """Forgets what is known: the table does not hold earlier rows any more."""
        self._known = None
