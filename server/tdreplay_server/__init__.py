"""The server of tdreplay, and its replay buffer in process."""

from typing import TYPE_CHECKING

from tdreplay.lazy import imported_when_asked

if TYPE_CHECKING:
    from tdreplay_server.buffer import ReplayBuffer
    from tdreplay_server.config import ServerConfig
    from tdreplay_server.server import ReplayServer
    from tdreplay_server.spawn import ServerProcess, spawn_server

__all__ = ["ReplayBuffer", "ReplayServer", "ServerConfig", "ServerProcess", "spawn_server"]

# ``tdreplay-server --help``, and what it says of a setting that cannot be, do without torch.
__getattr__, __dir__ = imported_when_asked(
    __name__,
    {"ReplayBuffer": "buffer", "ReplayServer": "server", "ServerConfig": "config", "ServerProcess": "spawn", "spawn_server": "spawn"},
    extra="server",
)
