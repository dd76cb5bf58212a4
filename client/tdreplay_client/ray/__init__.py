"""A buffer whose shards Ray places, restarts and finds.

This room alone knows Ray, and nothing else of the client imports it: it is for those who have Ray. Rows do not pass through Ray.
"""

from typing import TYPE_CHECKING

from tdreplay.lazy import imported_when_asked

if TYPE_CHECKING:
    from tdreplay_client.ray.cluster import ReplayCluster
    from tdreplay_client.ray.directory import RayDirectory
    from tdreplay_client.ray.status import ClusterStatus, Resized, ShardStatus

__all__ = ["ClusterStatus", "RayDirectory", "ReplayCluster", "Resized", "ShardStatus"]

_MODULES = {
    "ClusterStatus": ".status",
    "RayDirectory": ".directory",
    "ReplayCluster": ".cluster",
    "Resized": ".status",
    "ShardStatus": ".status",
}

# The actors of a cluster do without torch: they are there, and there again, sooner.
__getattr__, __dir__ = imported_when_asked(__name__, _MODULES, extra="ray")
