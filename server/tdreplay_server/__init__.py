"""The server of tdreplay, and its replay buffer in process."""

from tdreplay_server.buffer import ReplayBuffer
from tdreplay_server.config import ServerConfig
from tdreplay_server.server import ReplayServer
from tdreplay_server.spawn import ServerProcess, spawn_server

__all__ = ["ReplayBuffer", "ReplayServer", "ServerConfig", "ServerProcess", "spawn_server"]
