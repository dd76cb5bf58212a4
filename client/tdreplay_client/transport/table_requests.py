"""What a client asks of a server's tables, where an older server would do something else and not say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdreplay.errors import UnimplementedError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay.table_messages import create_table_request
from tdreplay.v1 import replay_buffer_pb2 as pb

if TYPE_CHECKING:
    from tdreplay.table_config import TableRequest
    from tdreplay_client.transport.connection import Connection
    from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["check_understood", "create_table"]


def create_table(connection: Connection, request: TableRequest, budget: RetryBudget) -> bool:
    """Asks a server for a table. True where it was created, False where it was there with these settings.

    Raises:
        UnimplementedError: as `check_understood`. No table was made.
        TableExistsError, InvalidArgumentError, ResourceExhaustedError: what the server says.
    """
    check_understood(connection, request, budget)
    created: bool = connection.unary("CreateTable", create_table_request(request), budget).created
    return created


def check_understood(connection: Connection, request: TableRequest, budget: RetryBudget) -> None:
    """Passes where the server knows all that is asked. It costs a call where trajectories are.

    Raises:
        UnimplementedError: the server is of an older version, which would take steps for plain rows.
    """
    if not request.trajectories:
        return
    # Every server describes this table, be it there or not, and newer ones say of each whether it has trajectories.
    answer = connection.unary("Describe", pb.DescribeRequest(table=DEFAULT_TABLE), budget)
    if not answer.config.HasField("trajectories"):
        raise UnimplementedError(f"server {connection.address} is of an older version, which knows no trajectories")
