"""What a cluster says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["DRAINING", "LEAVING", "RESTARTING", "SERVING", "STARTING", "ClusterStatus", "Resized", "ShardStatus", "Target"]

STARTING, SERVING, DRAINING, LEAVING, RESTARTING = "starting", "serving", "draining", "leaving", "restarting"


class Target(NamedTuple):
    """A shard that gets rows of one that leaves.

    Attributes:
        number: Its number.
        address: Where its server listens.
    """

    number: int
    address: str


@dataclass(frozen=True)
class ShardStatus:
    """One shard of a cluster.

    Attributes:
        number: Its number.
        address: Where its server listens; '': it has not started yet.
        node: The id of the Ray node on which it runs.
        state: ``starting``: its server was not ready yet, or ended and is being started again. ``serving``. ``draining``: it takes no more rows, and
            gives those that it has. ``leaving``: clients do not use it any more; its rows are being moved, where they are to be.
            ``restarting``: its actor does not answer; Ray starts it again.
        restarts: How often its server was started again on its data.
        began_empty: Whether it was started without its data, which is on a node that is gone: what it held is lost.
        error: Why its server does not start; '': it does.
        pid: The id of its server's process on that node; None: it has none now.
    """

    number: int
    address: str
    node: str
    state: str
    restarts: int = 0
    began_empty: bool = False
    error: str = ""
    pid: int | None = None


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster.

    Attributes:
        name: Its name.
        shards: Its shards, by number.
    """

    name: str
    shards: tuple[ShardStatus, ...]


@dataclass(frozen=True)
class Resized:
    """What a change of the number of shards did.

    Attributes:
        added: The numbers of the new shards.
        removed: The numbers of those that are gone.
        moved_rows: The rows of these that are in other shards now.
        dropped_rows: The rows that are gone with them.
    """

    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    moved_rows: int = 0
    dropped_rows: int = 0

    def with_added(self, numbers: Iterable[int]) -> Resized:
        """The same, and these shards were added."""
        return replace(self, added=tuple(numbers))
