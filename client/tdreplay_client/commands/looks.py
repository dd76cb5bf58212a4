"""What a look at a server finds: its status and its tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdreplay.errors import TableNotFoundError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tdreplay.server_status import ServerStatus
    from tdreplay.table_description import TableDescription
    from tdreplay_client.transport.connection import Connection

__all__ = ["Look", "look", "samples_per_insert"]


@dataclass(frozen=True)
class Look:
    """A server at one moment. Its tables are asked one after the other, so they are of slightly different moments.

    Attributes:
        address: of the server.
        taken: when it was looked at (`time.time`).
        server: its status.
        tables: the descriptions of the tables that the caller may use, by name.
    """

    address: str
    taken: float
    server: ServerStatus
    tables: tuple[TableDescription, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "address": self.address,
            "time": self.taken,
            "server": self.server.to_json(),
            "tables": [description.to_json() for description in self.tables],
        }


def look(connection: Connection, *, waits: bool) -> Look:
    """Looks at a server.

    Args:
        connection: to the server.
        waits: whether a server that is not there is waited for, as long as the connection's timeout.

    Raises:
        PermissionDeniedError: the caller is neither a reader nor an admin.
        UnimplementedError: the server is of an older version, which has no status.
        ServerUnavailableError, DeadlineError: the server is not there, or does not answer.
    """
    from tdreplay.server_status_messages import server_status_from_message
    from tdreplay.v1 import replay_buffer_pb2 as pb

    answer = _asked(connection, waits, "ServerStatus", pb.ServerStatusRequest())
    names = _asked(connection, waits, "ListTables", pb.ListTablesRequest()).tables
    tables = (description for name in names for description in _described(connection, waits, name))
    return Look(connection.address, time.time(), server_status_from_message(answer), tuple(tables))


def _asked(connection: Connection, waits: bool, call: str, request: Message) -> Any:
    return connection.retried(lambda budget: connection.unary(call, request, budget)) if waits else connection.unary(call, request)


def _described(connection: Connection, waits: bool, name: str) -> Iterator[TableDescription]:
    from tdreplay.description_messages import description_from_message
    from tdreplay.v1 import replay_buffer_pb2 as pb

    try:
        yield description_from_message(_asked(connection, waits, "Describe", pb.DescribeRequest(table=name)), name)
    except TableNotFoundError:
        return  # It was dropped since the names were listed.


def samples_per_insert(table: TableDescription) -> float | None:
    """The replay ratio over the last ten seconds: how many rows were drawn for each row that came. None while no row comes."""
    return table.sample_rate / table.insert_rate if table.insert_rate else None
