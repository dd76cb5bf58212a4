"""The server of tdreplay, and its replay buffer in process."""

from typing import TYPE_CHECKING

from tdreplay.lazy import imported_when_asked

if TYPE_CHECKING:
    from tdreplay.priorities import Updated, importance_weights, sequence_priorities
    from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
    from tdreplay.samplers import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Uniform, WithoutReplacement
    from tdreplay.sequences import Sequences
    from tdreplay.table_config import TableConfig
    from tdreplay.trajectories import Trajectories
    from tdreplay.trajectory_state import Episode
    from tdreplay.trajectory_writer import TrajectoryWriter
    from tdreplay.transitions import Transitions
    from tdreplay_server.buffer import ReplayBuffer
    from tdreplay_server.config import ServerConfig
    from tdreplay_server.server import ReplayServer
    from tdreplay_server.spawn import ServerProcess, spawn_server

__all__ = [
    "Episode",
    "Fifo",
    "Lifo",
    "MaxHeap",
    "MinHeap",
    "MinSize",
    "Prioritized",
    "Queue",
    "ReplayBuffer",
    "ReplayServer",
    "SamplesPerInsert",
    "Sequences",
    "ServerConfig",
    "ServerProcess",
    "TableConfig",
    "Trajectories",
    "TrajectoryWriter",
    "Transitions",
    "Uniform",
    "Updated",
    "WithoutReplacement",
    "importance_weights",
    "sequence_priorities",
    "spawn_server",
]

_OWN = {"ReplayBuffer": ".buffer", "ReplayServer": ".server", "ServerConfig": ".config", "ServerProcess": ".spawn", "spawn_server": ".spawn"}
_SHARED = {
    "tdreplay.priorities": ("Updated", "importance_weights", "sequence_priorities"),
    "tdreplay.rate_limiters": ("MinSize", "Queue", "SamplesPerInsert"),
    "tdreplay.samplers": ("Fifo", "Lifo", "MaxHeap", "MinHeap", "Prioritized", "Uniform", "WithoutReplacement"),
    "tdreplay.sequences": ("Sequences",),
    "tdreplay.table_config": ("TableConfig",),
    "tdreplay.trajectories": ("Trajectories",),
    "tdreplay.trajectory_state": ("Episode",),
    "tdreplay.trajectory_writer": ("TrajectoryWriter",),
    "tdreplay.transitions": ("Transitions",),
}

# ``tdreplay-server --help``, and what it says of a setting that cannot be, do without torch.
__getattr__, __dir__ = imported_when_asked(__name__, _OWN | {name: module for module, names in _SHARED.items() for name in names}, extra="server")
