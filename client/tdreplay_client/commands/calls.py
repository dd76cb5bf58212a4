"""What the commands ask a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tdreplay.errors import TableNotFoundError
from tdreplay.limits import check_seconds
from tdreplay_client.commands.options import found_address

if TYPE_CHECKING:
    from tdreplay.table_description import TableDescription
    from tdreplay_client.transport.connection import Connection

__all__ = ["connected", "described", "described_tables"]


@contextmanager
def connected(address: str, timeout: float) -> Iterator[Connection]:
    """For ``with``: a connection to the server at `address`, or where the environment says."""
    target, seconds = found_address(address), check_seconds(timeout, "timeout")
    from tdreplay_client.transport.access import found_access
    from tdreplay_client.transport.connection import Connection

    connection = Connection(target, seconds, found_access(target, None, None))
    try:
        yield connection
    finally:
        connection.close()


def described(connection: Connection, name: str) -> TableDescription:
    """The description of a table."""
    from tdreplay.description_messages import description_from_message
    from tdreplay.v1 import replay_buffer_pb2 as pb

    answer = connection.retried(lambda budget: connection.unary("Describe", pb.DescribeRequest(table=name), budget))
    return description_from_message(answer, name)


def described_tables(connection: Connection) -> list[TableDescription]:
    """The descriptions of all tables that the caller may use, by name."""
    from tdreplay.v1 import replay_buffer_pb2 as pb

    names = connection.retried(lambda budget: connection.unary("ListTables", pb.ListTablesRequest(), budget)).tables
    return [description for name in names for description in _if_there(connection, name)]


def _if_there(connection: Connection, name: str) -> list[TableDescription]:
    try:
        return [described(connection, name)]
    except TableNotFoundError:  # It was dropped since the names were listed.
        return []
