"""The client of tdreplay: a replay buffer whose rows are on a server."""

from typing import TYPE_CHECKING

from tdreplay.lazy import imported_when_asked

if TYPE_CHECKING:
    from tdreplay_client.buffer import RemoteReplayBuffer
    from tdreplay_client.dataset import ReplayDataset
    from tdreplay_client.reading.stream import BatchStream
    from tdreplay_client.writing.writer import Writer

__all__ = ["BatchStream", "RemoteReplayBuffer", "ReplayDataset", "Writer"]

# ``tdreplay health``, which runs every few seconds, does without torch.
__getattr__, __dir__ = imported_when_asked(
    __name__, {"BatchStream": "reading.stream", "RemoteReplayBuffer": "buffer", "ReplayDataset": "dataset", "Writer": "writing.writer"}
)
