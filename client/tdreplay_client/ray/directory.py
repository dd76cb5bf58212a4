"""Where clients learn of the shards of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tdreplay.errors import ServerUnavailableError
from tdreplay_client.ray.calls import answer_of, found_directory
from tdreplay_client.ray.settings import check_name
from tdreplay_client.ray.status import DRAINING, ShardStatus
from tdreplay_client.sharding.shard import ShardPlace

__all__ = ["PLACES_SECONDS", "RayDirectory"]

PLACES_SECONDS = 2.0
"""How long the actor that knows the shards may take to say where they are."""


class RayDirectory:
    """The `Directory` of a cluster: its shards as they are now, with those that came and without those that left.

    It can be pickled, into tasks and actors of the same Ray.

    Args:
        name: Of the cluster.
    """

    def __init__(self, name: str) -> None:
        self._name, self._actor = check_name(name), None

    @property
    def name(self) -> str:
        """The name of the cluster."""
        return self._name

    def places(self) -> Sequence[ShardPlace]:
        """The shards that there are now, by number. A shard whose server is being started again is one of them, at its last address.

        It takes two seconds at most.

        Raises:
            TableNotFoundError: there is no such cluster, or no longer.
            ServerUnavailableError, DeadlineError: the actor that knows them is being restarted. Whoever knows the shards goes on with them.
            FailedPreconditionError: this process is not connected to Ray.
        """
        actor: Any = found_directory(self._name) if self._actor is None else self._actor
        self._actor = None
        found: Sequence[ShardStatus] = answer_of(actor.places.remote(), PLACES_SECONDS, f"the directory of cluster {self._name!r}")
        self._actor = actor
        if not found:
            raise ServerUnavailableError(f"cluster {self._name!r} does not know the addresses of its shards yet")
        return [ShardPlace(shard.number, shard.address, draining=shard.state == DRAINING) for shard in found]

    def __reduce__(self) -> tuple[Any, ...]:
        return RayDirectory, (self._name,)

    def __repr__(self) -> str:
        return f"RayDirectory({self._name!r})"
