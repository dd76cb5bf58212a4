"""What the server says of itself and of its tables, as JSON."""

from __future__ import annotations

from typing import Any

from tdreplay.shard_words import shard_words
from tdreplay.table_description import TableDescription
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.dashboard.fields import field_to_json, user_fields
from tdreplay_client.dashboard.limits import MAX_CLIENTS
from tdreplay_client.dashboard.observer import Point
from tdreplay_client.dashboard.tables import row_ids

__all__ = ["description_to_json", "server_to_json"]


def description_to_json(table: TableDescription) -> dict[str, Any]:
    """A table: what `TableDescription.to_json` says, its fields, and the ids of its rows."""
    live = row_ids(table)
    return {
        **table.to_json(),
        "sampler": str(table.config.sampler),
        "rate_limiter": str(table.config.rate_limiter),
        "has_priorities": table.config.sampler.has_priorities,
        "oldest": live.start,
        "replay_ratio": Point.of(0.0, table).replay_ratio,
        "fields": [field_to_json(field) for field in user_fields(table)],
        "row_shape": [] if table.schema is None else list(table.schema.row_shape),
        "row_bytes": 0 if table.schema is None else table.schema.row_bytes,
    }


def server_to_json(status: pb.ServerStatusResponse | str) -> dict[str, Any]:
    """The server: its state, and its clients, those with the most open calls first. ``refused`` says why it does not say that; ''."""
    if isinstance(status, str):
        return {"refused": status, "clients": []}
    clients = sorted(status.clients, key=lambda client: -sum(client.open_calls.values()))
    return {
        "refused": "",
        "version": status.version,
        "shard": shard_words(status.cluster, status.shard if status.HasField("shard") else None),
        "uptime_seconds": status.uptime_seconds,
        "memory_bytes": status.memory_bytes,
        "disk_free_bytes": status.disk_free_bytes if status.disk_bytes > 0 else None,
        "tls": status.tls,
        "authenticated": status.authenticated,
        "more_clients": max(0, len(clients) - MAX_CLIENTS),
        "clients": [_client(client) for client in clients[:MAX_CLIENTS]],
    }


def _client(client: pb.ConnectedClient) -> dict[str, Any]:
    return {
        "peer": client.peer,
        "name": client.name,
        "roles": list(client.roles),
        "open_calls": dict(client.open_calls),
        "connected_seconds": client.connected_seconds,
        "bytes_received": client.bytes_received,
        "bytes_sent": client.bytes_sent,
    }
