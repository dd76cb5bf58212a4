"""The client of tdreplay: a replay buffer whose rows are on a server."""

from tdreplay_client.buffer import RemoteReplayBuffer
from tdreplay_client.dataset import ReplayDataset
from tdreplay_client.stream import BatchStream
from tdreplay_client.writer import Writer

__all__ = ["BatchStream", "RemoteReplayBuffer", "ReplayDataset", "Writer"]
