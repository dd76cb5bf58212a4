"""What the server knows of itself: for its status, from the parts that know it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tdreplay.server_status import ConnectedClient, Limit, ServerStatus
from tdreplay_server.durability.shard_mark import NO_SHARD, ShardName
from tdreplay_server.system.memory_use import memory_bytes

__all__ = ["ServerState"]


@dataclass
class ServerState:
    """The state of a server. Its fixed part comes from the settings; what counts is asked when somebody wants to know.

    Attributes:
        data_dir: the data directory; None: there is none.
        durability: what acknowledged rows survive: 'none', 'process', 'interval', 'power'.
        tls: whether connections are encrypted.
        authenticated: whether callers are asked who they are.
        memory_budget_bytes: the memory that clients can cost it beside the rows; 0: it is not known.
        shard: which shard of which cluster it is.
        clients: gives those that are connected.
        limits: gives the limits, and how much of each is used.
    """

    data_dir: Path | None = None
    durability: str = "none"
    tls: bool = False
    authenticated: bool = False
    memory_budget_bytes: int = 0
    shard: ShardName = NO_SHARD
    clients: Callable[[], tuple[ConnectedClient, ...]] = tuple
    limits: Callable[[], Iterable[Limit]] = tuple

    def __post_init__(self) -> None:
        self._version, self._began = version("tdreplay"), time.monotonic()

    def now(self) -> ServerStatus:
        """All of it at this moment."""
        free, whole = self._disk()
        return ServerStatus(
            version=self._version,
            uptime_seconds=time.monotonic() - self._began,
            memory_bytes=memory_bytes(),
            memory_budget_bytes=self.memory_budget_bytes,
            disk_free_bytes=free,
            disk_bytes=whole,
            tls=self.tls,
            authenticated=self.authenticated,
            durability=self.durability,
            cluster=self.shard.cluster,
            shard=self.shard.number,
            clients=self.clients(),
            limits=tuple(sorted(self.limits(), key=lambda limit: limit.name)),
        )

    def _disk(self) -> tuple[int, int]:
        """The free bytes of the data directory's disk, and all of them; -1 where there is none, or it does not answer."""
        try:
            disk = None if self.data_dir is None else shutil.disk_usage(self.data_dir)
        except OSError:
            disk = None
        return (-1, -1) if disk is None else (disk.free, disk.total)
