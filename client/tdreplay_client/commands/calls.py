"""What the commands ask a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tdreplay.errors import TableNotFoundError
from tdreplay.limits import check_seconds
from tdreplay_client.commands.options import found_server

if TYPE_CHECKING:
    from tdreplay.table_description import TableDescription
    from tdreplay_client.buffer import RemoteReplayBuffer
    from tdreplay_client.transport.connection import Connection

__all__ = ["buffer_at", "connected", "described", "described_tables"]


@contextmanager
def connected(address: str, timeout: float) -> Iterator[Connection]:
    """For ``with``: a connection to the server at `address`, or where the environment or the profile says, with the access that they say."""
    target, seconds = found_server(address), check_seconds(timeout, "timeout")
    from tdreplay_client.transport.connection import Connection

    connection = Connection(target.address, seconds, target.access)
    try:
        yield connection
    finally:
        connection.close()


def buffer_at(address: str, timeout: float, table: str, **settings: Any) -> RemoteReplayBuffer:
    """The buffer of a table of the server at `address`, or where the environment or the profile says, with the access that they say.

    `settings` are those of the table, as `RemoteReplayBuffer` takes them.
    """
    target, seconds = found_server(address), check_seconds(timeout, "timeout")
    from tdreplay_client.buffer import RemoteReplayBuffer  # Here: it brings torch, for which `health` has no time.

    access = target.access
    return RemoteReplayBuffer(target.address, table=table, timeout=seconds, tls=access.tls or False, token=access.token, **settings)


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
