"""What a server says of itself, to protobuf messages and back."""

from __future__ import annotations

from tdreplay.messages import durability_from_message, durability_to_message
from tdreplay.server_status import ConnectedClient, Limit, ServerStatus
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["server_status_from_message", "server_status_to_message"]

CLIENT = ("peer", "name", "connected_seconds", "messages_received", "bytes_received", "messages_sent", "bytes_sent")
LIMIT = ("name", "limit", "used", "refused")
SERVER = (
    *("version", "uptime_seconds", "memory_bytes", "memory_budget_bytes", "disk_free_bytes", "disk_bytes"),
    *("tls", "authenticated", "cluster"),
)
"""What has the same name and value in both."""


def server_status_to_message(status: ServerStatus) -> pb.ServerStatusResponse:
    """The message that says the state of a server."""
    return pb.ServerStatusResponse(
        **{name: getattr(status, name) for name in SERVER},
        clients=[pb.ConnectedClient(**vars(client)) for client in status.clients],
        limits=[pb.Limit(**vars(limit)) for limit in status.limits],
        durability=durability_to_message(status.durability),
        shard=status.shard,
    )


def server_status_from_message(message: pb.ServerStatusResponse) -> ServerStatus:
    """What a message says of a server."""
    return ServerStatus(
        **{name: getattr(message, name) for name in SERVER},
        clients=tuple(map(_client, message.clients)),
        limits=tuple(Limit(**{name: getattr(limit, name) for name in LIMIT}) for limit in message.limits),
        durability=durability_from_message(message.durability),
        shard=message.shard if message.HasField("shard") else None,
    )


def _client(message: pb.ConnectedClient) -> ConnectedClient:
    plain = {name: getattr(message, name) for name in CLIENT}
    return ConnectedClient(roles=tuple(message.roles), open_calls=dict(message.open_calls), **plain)
