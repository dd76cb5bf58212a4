"""The client of tdreplay: a replay buffer whose rows are on a server, or on several."""

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
    from tdreplay_client.aio.batches import AsyncBatchStream, AsyncEpochs
    from tdreplay_client.aio.buffer import AsyncReplayBuffer
    from tdreplay_client.aio.writers import AsyncTrajectoryWriter, AsyncWriter
    from tdreplay_client.buffer import RemoteReplayBuffer
    from tdreplay_client.dataset import ReplayDataset
    from tdreplay_client.reading.stream import BatchStream
    from tdreplay_client.sharding.buffer import ShardedReplayBuffer
    from tdreplay_client.sharding.writer import ShardedWriter
    from tdreplay_client.transport.access import TLS
    from tdreplay_client.writing.writer import Writer

__all__ = [
    "TLS",
    "AsyncBatchStream",
    "AsyncEpochs",
    "AsyncReplayBuffer",
    "AsyncTrajectoryWriter",
    "AsyncWriter",
    "BatchStream",
    "Episode",
    "Fifo",
    "Lifo",
    "MaxHeap",
    "MinHeap",
    "MinSize",
    "Prioritized",
    "Queue",
    "RemoteReplayBuffer",
    "ReplayDataset",
    "SamplesPerInsert",
    "Sequences",
    "ShardedReplayBuffer",
    "ShardedWriter",
    "TableConfig",
    "Trajectories",
    "TrajectoryWriter",
    "Transitions",
    "Uniform",
    "Updated",
    "WithoutReplacement",
    "Writer",
    "importance_weights",
    "sequence_priorities",
]

_OWN = {
    "AsyncBatchStream": ".aio.batches",
    "AsyncEpochs": ".aio.batches",
    "AsyncReplayBuffer": ".aio.buffer",
    "AsyncTrajectoryWriter": ".aio.writers",
    "AsyncWriter": ".aio.writers",
    "BatchStream": ".reading.stream",
    "RemoteReplayBuffer": ".buffer",
    "ReplayDataset": ".dataset",
    "ShardedReplayBuffer": ".sharding.buffer",
    "ShardedWriter": ".sharding.writer",
    "TLS": ".transport.access",
    "Writer": ".writing.writer",
}
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

# ``tdreplay health``, which runs every few seconds, does without torch.
__getattr__, __dir__ = imported_when_asked(__name__, _OWN | {name: module for module, names in _SHARED.items() for name in names})
