"""All that a server says of itself at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ConnectedClient", "Limit", "ServerStatus"]


@dataclass(frozen=True, kw_only=True)
class ConnectedClient:
    """A client that has calls open, or had one within the last minute.

    Attributes:
        peer: Its address, as the server sees it: HOST:PORT, or 'unix'. Clients of one name on Unix sockets are one.
        name: The name of its token or certificate; '': the server asks nobody for a name.
        roles: What it may do: 'actor', 'learner', 'reader', 'admin', sorted.
        open_calls: The name of a call -> how many of them it has open.
        connected_seconds: Seconds since its first call over this connection.
        messages_received: The messages that it sent.
        bytes_received: Their bytes. What travels through shared memory is not among them.
        messages_sent: The messages that it was sent.
        bytes_sent: Their bytes, counted in the same way.
    """

    peer: str
    name: str = ""
    roles: tuple[str, ...] = ()
    open_calls: Mapping[str, int] = field(default_factory=dict)
    connected_seconds: float = 0.0
    messages_received: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    bytes_sent: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "roles": list(self.roles), "open_calls": dict(self.open_calls)}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the server, and how much of it is used.

    Attributes:
        name: The setting's name, as 'max_streams'.
        limit: The most.
        used: What is used now; -1: it is not counted.
        refused: The calls that were refused because of it since the server started.
    """

    name: str
    limit: int
    used: int = -1
    refused: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The state of a server.

    Attributes:
        version: The version of tdreplay that it runs.
        uptime_seconds: Seconds since it started.
        memory_bytes: The memory that its process holds, without pages of rows, which the system may drop; -1: the system does not say.
        memory_budget_bytes: The memory that clients can cost it beside the rows, by its limits; 0: it does not say.
        disk_free_bytes: What is free on the disk of its data directory; -1: it has none.
        disk_bytes: All of that disk; -1: it has no data directory.
        tls: Whether its connections are encrypted.
        authenticated: Whether it asks its callers who they are.
        durability: What acknowledged rows survive: 'none', 'process', 'interval', 'power'.
        cluster: The name of the cluster whose shard it is; '': it is of none.
        shard: Which of the shards of one buffer it is; None: it is none.
        clients: Those that are connected, by peer. At most 4096 of them.
        limits: Its limits, by name.
    """

    version: str
    uptime_seconds: float = 0.0
    memory_bytes: int = -1
    memory_budget_bytes: int = 0
    disk_free_bytes: int = -1
    disk_bytes: int = -1
    tls: bool = False
    authenticated: bool = False
    durability: str = "none"
    cluster: str = ""
    shard: int | None = None
    clients: tuple[ConnectedClient, ...] = ()
    limits: tuple[Limit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "clients": [client.to_json() for client in self.clients], "limits": [limit.to_json() for limit in self.limits]}
